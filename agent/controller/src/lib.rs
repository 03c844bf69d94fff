//! From what is wanted, seen and written down to the next step: the rules of this host for its
//! machines (design R3 to R9).
//!
//! Owns every decision about a machine: [`Controller::handle`] takes one input and says what to do.
//! Never touches a machine, and knows no clock, socket, file, thread or randomness: the time is
//! told with each input. Called by the machines' half of the agent, by tests that crash it at every
//! step, and by the simulator of machines.

/// Whether a bug is planted here: never, but under the simulator's feature.
macro_rules! planted {
    ($bug:ident) => {{
        #[cfg(feature = "planted-bugs")]
        let planted = crate::planted::is(crate::planted::Bug::$bug);
        #[cfg(not(feature = "planted-bugs"))]
        let planted = false;
        planted
    }};
}

mod collector;
mod decide;
mod entry;
mod fetches;
mod halt;
mod kept;
mod limits;
pub mod machine;
mod offer;
pub mod order;
#[cfg(feature = "planted-bugs")]
pub mod planted;
mod policy;
pub mod proof;
pub mod record;
mod report;
mod room;
pub mod selection;
mod sight;
mod sources;
mod step;
mod volumes;

use std::collections::BTreeMap;
use std::time::Duration;

use dagger_payload::id::{AccountId, HostId, ImageDigest, LedgerTime, VmId, VolumeId};
use dagger_payload::kind::{
    ReportPhase, ReportSnapshot, ReportVm, ReportVolume, StopManner, VmImage,
};
use dagger_payload::name::SshKeyLine;
use dagger_payload::object::{Placement, VmState};

use self::collector::Collector;
use self::decide::{Decision, Surroundings, decide};
use self::entry::{Entry, Taken};
use self::fetches::Fetches;
use self::halt::Charge;
use self::sight::{sight, stranger};
use self::sources::Sources;
use self::volumes::VolumeEntry;
use crate::machine::{Inventory, Machine, Tags};
use crate::order::{AttestedVm, Order, VmSight};
use crate::record::Record;

pub use collector::{Collection, Retention, Stored, StoredOverlay};
pub use fetches::{FetchJob, FetchPlace, Fetched};
pub use policy::LocalPolicy;
pub use room::{QuarantineRoom, Room};
pub use step::{
    Action, DiskRule, Finished, Guests, HaltJob, Job, NeededImage, Outcome, Rung, Seen, Sighting,
    Step,
};
pub use volumes::{VolumeAction, VolumeFinished, VolumeJob};

/// Time since an arbitrary beginning, from a clock that never goes back.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Monotonic(pub Duration);

impl Monotonic {
    /// This time plus `wait`.
    #[must_use]
    pub fn plus(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(wait))
    }

    /// How long ago `earlier` was.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// What the controller is told.
#[derive(Debug, Clone)]
pub enum Input {
    /// From the ledger's side.
    Order(Order),
    /// A full listing.
    Inventory {
        /// Drawn before the listing began; see [`Sighting::ticket`].
        ticket: u64,
        /// Complete: what is not in it is absent.
        machines: Inventory,
    },
    /// A look at one machine.
    Sighting(VmId, Sighting),
    /// The hypervisor cannot be asked; looks that began before this ticket do not count any more.
    SightLost {
        /// Drawn when it was lost.
        ticket: u64,
    },
    /// A step ended; looks that began before this ticket do not count if its outcome is unknown.
    Finished(Finished, u64),
    /// A step for a volume ended.
    VolumeFinished(VolumeFinished),
    /// What lies in the stores.
    Stored(Stored),
    /// A removal ended, well or not.
    Collected,
    /// What this host has free, for this VM that is offered to it.
    Room(VmId, Room),
    /// An image was fetched, or was not.
    Fetched(ImageDigest, Fetched),
    /// This host's operator wants the machine off, in this manner and for this reason.
    LocalStop(VmId, StopManner, String),
    /// The guest shows this SSH host key.
    GuestHostKey(VmId, SshKeyLine),
    /// Time went on.
    Tick,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Make the job's record durable, then carry its action out. One job at a time per VM.
    Act(Box<Job>),
    /// Make the job's record durable, then switch the machine off; a job of its VM like any other.
    Halt(Box<HaltJob>),
    /// Carry this out. One job at a time per volume.
    ActOnVolume(Box<VolumeJob>),
    /// Look what lies in the stores; the answer comes as [`Input::Stored`], or not at all.
    LookAtStores,
    /// Remove this for ever. One at a time.
    Collect(Box<Collection>),
    /// Fetch this image, however long that takes; its end comes as [`Input::Fetched`].
    Fetch(Box<FetchJob>),
    /// Nobody needs this image any more: stop fetching it. Its end comes all the same.
    StopFetching(ImageDigest),
    /// Nobody needs this image, of which nothing is being fetched: remove what came of it.
    DiscardFetched(ImageDigest),
    /// Make this record durable.
    Persist(Box<Record>),
    /// Forget the VM's record.
    Forget(VmId),
    /// Tell the ledger.
    Report(ReportVm),
    /// Tell the ledger.
    ReportVolume(ReportVolume),
    /// Tell the ledger.
    ReportSnapshot(ReportSnapshot),
    /// Look at this machine; the answer comes as a [`Input::Sighting`] or [`Input::Inventory`].
    Look(VmId),
    /// Look what this host has free for this VM of this account; the answer comes as
    /// [`Input::Room`].
    LookAtRoom(VmId, AccountId),
    /// Read this VM's console until its SSH host key shows.
    ReadConsole(VmId),
    /// Tell the operator.
    Alarm(VmId, String),
    /// Tell the operator.
    AlarmAboutVolume(VolumeId, String),
}

/// Whether anything may be done.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mode {
    /// History is being told.
    CatchingUp,
    /// What is told is now.
    Live,
    /// The ledger's view is older than what was seen before.
    Hold(String),
}

/// The controller of one host.
#[derive(Debug, Clone)]
pub struct Controller {
    here: HostId,
    policy: LocalPolicy,
    mode: Mode,
    ledger_time: LedgerTime,
    guests: Option<Guests>,
    sources: Sources,
    fetches: Fetches,
    entries: BTreeMap<VmId, Entry>,
    /// What the last listing showed of VMs that nothing is known of; empty while nothing is seen.
    strangers: Inventory,
    /// The ticket of that listing.
    listed: u64,
    /// When sight was lost last: what began before that counts for nobody.
    lost: u64,
    volumes: BTreeMap<VolumeId, VolumeEntry>,
    collector: Collector,
}

impl Controller {
    /// A controller that knows the journal's records and nothing else yet.
    pub fn new(here: HostId, policy: LocalPolicy, records: BTreeMap<VmId, Record>) -> Self {
        let entries =
            records.into_iter().map(|(vm, record)| (vm, Entry::new(vm, Some(record)))).collect();
        Self {
            here,
            policy,
            mode: Mode::CatchingUp,
            ledger_time: LedgerTime::default(),
            guests: None,
            sources: Sources::default(),
            fetches: Fetches::default(),
            entries,
            strangers: Inventory::new(),
            listed: 0,
            lost: 0,
            volumes: BTreeMap::new(),
            collector: Collector::default(),
        }
    }

    /// The same controller, which keeps what nobody needs any more no longer than `retention` says.
    #[must_use]
    pub fn keeping(self, retention: Retention) -> Self {
        Self { collector: Collector::new(retention), ..self }
    }

    /// Takes one input at the time `now` and says what to do.
    pub fn handle(&mut self, now: Monotonic, input: Input) -> Vec<Output> {
        let mut outputs = Vec::new();
        match input {
            Input::Order(order) => self.take_order(now, order, &mut outputs),
            Input::Inventory { ticket, .. } if ticket <= self.lost => {}
            Input::Inventory { ticket, mut machines } => {
                for (vm, entry) in &mut self.entries {
                    let seen = machines.remove(vm).map_or(Seen::Absent, Seen::Present);
                    entry.see(Sighting { ticket, seen });
                }
                (self.strangers, self.listed) = (machines, ticket);
                self.advance_all(now, &mut outputs);
            }
            Input::Sighting(_, sighting) if sighting.ticket <= self.lost => {}
            Input::Sighting(vm, sighting) => {
                if let Some(entry) = self.entries.get_mut(&vm) {
                    entry.see(sighting);
                }
                self.advance(now, vm, &mut outputs);
            }
            Input::SightLost { ticket } => {
                self.strangers.clear();
                self.lost = self.lost.max(ticket);
                for entry in self.entries.values_mut() {
                    entry.lose_sight(ticket);
                }
            }
            Input::Finished(finished, ticket) => {
                let vm = finished.vm;
                if let Some(entry) = self.entries.get_mut(&vm) {
                    entry.finish(now, finished, ticket);
                }
                self.advance(now, vm, &mut outputs);
            }
            Input::VolumeFinished(finished) => self.finish_volume(now, finished, &mut outputs),
            Input::Stored(stored) => self.take_stored(&stored, &mut outputs),
            Input::Collected => self.take_collected(&mut outputs),
            Input::LocalStop(vm, manner, reason) => {
                self.take_local_stop(now, vm, (manner, reason), &mut outputs);
            }
            Input::GuestHostKey(vm, key) => {
                if let Some(entry) = self.entries.get_mut(&vm) {
                    // The first one stays: a key that changes is for people to look at.
                    entry.guest_host_key.get_or_insert(key);
                }
                self.advance(now, vm, &mut outputs);
            }
            Input::Room(vm, room) => self.take_room(now, (vm, room), &mut outputs),
            Input::Fetched(image, fetched) => {
                self.take_fetched(now, image, &fetched, &mut outputs);
            }
            Input::Tick => self.tick(now, &mut outputs),
        }
        self.stop_needless_fetches(now, &mut outputs);
        outputs
    }

    /// What was due is not due any more, whether something can be done now or not: while nothing
    /// may be, nobody is woken for it, and all are asked again when that changes.
    fn tick(&mut self, now: Monotonic, outputs: &mut Vec<Output>) {
        let is_due = |wake: &mut Monotonic| *wake <= now;
        let entries = self.entries.values_mut();
        let due = entries.filter_map(|entry| entry.wake.take_if(is_due).map(|_| entry.vm));
        let due: Vec<_> = due.collect();
        for vm in due {
            self.advance(now, vm, outputs);
        }
        let volumes = self.volumes.iter_mut();
        let due = volumes.filter_map(|(id, entry)| entry.wake.take_if(is_due).map(|_| *id));
        let due: Vec<_> = due.collect();
        for volume in due {
            self.advance_volume(now, volume, outputs);
        }
        if self.collector.wake.take_if(is_due).is_some() {
            self.look_at_stores(now, outputs);
        }
    }

    /// When to say [`Input::Tick`] next.
    pub fn next_wake(&self) -> Option<Monotonic> {
        let vms = self.entries.values().filter_map(|entry| entry.wake);
        let volumes = self.volumes.values().filter_map(|entry| entry.wake);
        vms.chain(volumes).chain(self.collector.wake).min()
    }

    /// Why nothing may be done now, if so.
    pub fn hold(&self) -> Option<&str> {
        match &self.mode {
            Mode::Hold(reason) => Some(reason),
            Mode::CatchingUp | Mode::Live => None,
        }
    }

    /// What is seen of each VM that concerns this host, or stands here tagged as ours.
    pub fn sights(&self) -> BTreeMap<VmId, VmSight> {
        let strange = self.strangers.iter().filter_map(|(vm, machine)| match machine {
            Machine::Ours { power, .. } => Some((*vm, stranger(*power))),
            Machine::Foreign(_) => None,
        });
        strange.chain(self.entries.iter().map(|(vm, entry)| (*vm, sight(entry)))).collect()
    }

    fn take_order(&mut self, now: Monotonic, order: Order, outputs: &mut Vec<Output>) {
        match order {
            Order::Vm(attested) => {
                let vm = attested.vm.id;
                self.collector.take_vm(&attested, self.here);
                self.take_version(*attested, outputs);
                self.advance(now, vm, outputs);
            }
            Order::Volume(attested) => {
                let known = self.volumes.get(&attested.volume.id).map(VolumeEntry::wanted);
                self.collector.take_volume(known, &attested, self.here);
                self.take_volume(now, *attested, outputs);
            }
            Order::Host(host) if host.id == self.here => {
                self.guests = Some(Guests {
                    subnet: host.guest_subnet,
                    forward_ports_first: host.forward_ports_first,
                });
                self.advance_all(now, outputs);
            }
            Order::Host(host) => self.fetches.take_host(&host),
            Order::Image(image) => self.sources.take(*image),
            Order::LedgerTime(time) => {
                self.ledger_time = self.ledger_time.max(time);
                self.collector.take_time(self.ledger_time);
            }
            Order::CaughtUp(_) => {
                self.mode = Mode::Live;
                self.advance_all(now, outputs);
                self.look_at_stores(now, outputs);
            }
            Order::Hold(_) if planted!(HoldIgnored) => {}
            Order::Hold(reason) => self.mode = Mode::Hold(reason),
        }
    }

    fn take_version(&mut self, attested: AttestedVm, outputs: &mut Vec<Output>) {
        let (vm, here) = (attested.vm.id, self.here);
        let entry = self.entries.entry(vm).or_insert_with(|| Entry::new(vm, None));
        match entry.take(attested) {
            Taken::Newer | Taken::Older => {}
            Taken::Conflict(evidence) => {
                let reason = format!(
                    "conflicting_generation: payloads {} and {} both claim generation {}",
                    evidence.known, evidence.told, evidence.generation.0
                );
                entry.hold = Some(reason.clone());
                if entry.is_accepted_by(here)
                    && let Some(known) = entry.wanted.clone()
                {
                    let record = entry.record_now(here, &known);
                    record.keep(evidence);
                    outputs.push(Output::Persist(Box::new(record.clone())));
                }
                outputs.push(Output::Alarm(vm, reason));
            }
        }
    }

    fn advance_all(&mut self, now: Monotonic, outputs: &mut Vec<Output>) {
        let vms: Vec<_> = self.entries.keys().copied().collect();
        for vm in vms {
            self.advance(now, vm, outputs);
        }
        let volumes: Vec<_> = self.volumes.keys().copied().collect();
        for volume in volumes {
            self.advance_volume(now, volume, outputs);
        }
    }

    /// Says what is next for one VM.
    fn advance(&mut self, now: Monotonic, vm: VmId, outputs: &mut Vec<Output>) {
        let Some(entry) = self.entries.get(&vm) else { return };
        if entry.busy.is_some() {
            return;
        }
        let charge = self.halt(now, vm, outputs);
        if self.mode != Mode::Live || charge == Charge::Operator {
            return;
        }
        let Some(entry) = self.entries.get(&vm) else { return };
        if entry.is_done_with(self.here) {
            self.entries.remove(&vm);
            return;
        }
        let offered = entry.record.is_none()
            && entry.wanted.as_ref().is_some_and(|wanted| {
                matches!(wanted.vm.placement, Placement::Offered { host, .. } if host == self.here)
            });
        if offered {
            self.answer_offer(vm, outputs);
        } else {
            self.work(now, vm, outputs);
        }
    }

    /// Works on a VM that this host carries.
    fn work(&mut self, now: Monotonic, vm: VmId, outputs: &mut Vec<Output>) {
        let (here, guests) = (self.here, self.guests);
        let is_copied = self.copies_for(vm);
        let Some(entry) = self.entries.get_mut(&vm) else { return };
        let Some(wanted) = entry.wanted.clone() else {
            entry.reason = Some("unknown_to_ledger: only this host's journal knows it".to_owned());
            return;
        };
        if wanted.vm.state() == VmState::Deleted && entry.is_accepted_by(here) {
            // Its deletion is told and ordered: nothing is left to remember.
            self.entries.remove(&vm);
            if planted!(RecordNotForgotten) {
                return;
            }
            outputs.push(Output::Forget(vm));
            return;
        }
        let images = || {
            let needed = |image: &VmImage| NeededImage {
                image: image.clone(),
                sources: self.sources.of(&image.digest),
            };
            wanted.vm.images().map(needed).collect()
        };
        let around = Surroundings { here, now, guests, images: &images };
        entry.wake = None;
        let mut decision = decide(entry, &around);
        if decision == Decision::Restart {
            entry.restart(now);
            entry.record_now(here, &wanted).done.remove(&Step::Start);
            decision = decide(entry, &around);
        }
        if let Decision::Fetch(image) = decision {
            return self.await_image(now, (vm, image), outputs);
        }
        if let Decision::Act(Action::Define | Action::Start) = decision
            && is_copied
        {
            // Its machine would not get its disks; it goes on when the copy ends.
            entry.reason = Some("volume_copied: a snapshot of a volume is being made".to_owned());
            return;
        }
        carry_out(entry, here, &wanted, decision, outputs);
    }
}

/// Turns a decision into outputs.
fn carry_out(
    entry: &mut Entry,
    here: HostId,
    wanted: &AttestedVm,
    decision: Decision,
    outputs: &mut Vec<Output>,
) {
    let before = entry.reason.take();
    entry.reason = entry.failure.as_ref().map(|failure| failure.reason.clone());
    let told = match decision {
        Decision::Settled(phase) => return settle(entry, here, wanted, phase, outputs),
        Decision::Halted(reason) => {
            entry.failure = None;
            entry.asked = None;
            let news = report::news(entry, here, ReportPhase::Stopped, Some(&reason));
            outputs.extend(news.map(Output::Report));
            entry.reason = Some(reason);
            return;
        }
        Decision::Hold(reason) => {
            if before.as_ref() != Some(&reason) {
                outputs.push(Output::Alarm(entry.vm, reason.clone()));
            }
            entry.reason = Some(reason);
            return;
        }
        Decision::Degraded(reason) => {
            entry.reason = Some(reason);
            entry.reason.clone()
        }
        Decision::Act(action) => {
            act(entry, here, wanted, action, outputs);
            entry.told_failure()
        }
        Decision::Look => {
            if !std::mem::replace(&mut entry.look_asked, true) {
                outputs.push(Output::Look(entry.vm));
            }
            entry.told_failure()
        }
        Decision::Wait(until) => {
            entry.wake = until;
            entry.told_failure()
        }
        Decision::Restart | Decision::Fetch(_) => None,
    };
    if let Some(reason) = told {
        let news = report::news(entry, here, ReportPhase::Degraded, Some(&reason));
        outputs.extend(news.map(Output::Report));
    }
}

/// It is as wanted: write that down, tell it, and see whether the guest shows its key.
fn settle(
    entry: &mut Entry,
    here: HostId,
    wanted: &AttestedVm,
    phase: ReportPhase,
    outputs: &mut Vec<Output>,
) {
    let generation = wanted.vm.generation;
    entry.failure = None;
    entry.reason = None;
    entry.asked = None;
    let record = entry.record_now(here, wanted);
    let before = record.clone();
    record.applied = Some(generation);
    record.step = None;
    if phase == ReportPhase::Running {
        // Whoever started it: when it is off later, it has stopped by itself.
        record.done.insert(Step::Start);
    }
    if *record != before || before.applied.is_none() {
        outputs.push(Output::Persist(Box::new(record.clone())));
    }
    outputs.extend(report::news(entry, here, phase, None).map(Output::Report));
    let unwatched = entry.console_watched != Some(generation);
    if phase == ReportPhase::Running && entry.guest_host_key.is_none() && unwatched {
        entry.console_watched = Some(generation);
        outputs.push(Output::ReadConsole(entry.vm));
    }
}

/// Begins a step: its record first.
fn act(
    entry: &mut Entry,
    here: HostId,
    wanted: &AttestedVm,
    action: Action,
    outputs: &mut Vec<Output>,
) {
    let step = action.step();
    let record = entry.record_now(here, wanted);
    record.attempts = if record.step == Some(step) { record.attempts.saturating_add(1) } else { 1 };
    record.step = if planted!(StepNotWrittenDown) { None } else { Some(step) };
    let record = record.clone();
    entry.busy = Some(step);
    let tags = Tags {
        host: here,
        vm: wanted.vm.id,
        generation: wanted.vm.generation,
        payload: wanted.vm.changed.digest,
    };
    outputs.push(Output::Act(Box::new(Job { vm: wanted.vm.clone(), tags, record, action })));
}
