//! The agent dies at every point of a VM's and a volume's life, once per run, and one restart later
//! everything is as if it had not.
//!
//! Real: controller, journal (files), performer. Fake: hypervisor, disks, ledger (see `support`).
//! Pinned: exactly one machine, one disk and one volume that are made once, no orphan, nothing left
//! after the deletion but both in quarantine.

use std::collections::VecDeque;
use std::sync::Arc;

use dagger_agent::actuator::Performer;
use dagger_agent::controller::{Controller, Input, LocalPolicy, Monotonic, Output, Step};
use dagger_agent::handover::{AttestedVm, AttestedVolume, Order};
use dagger_agent::hypervisor::names::HostNames;
use dagger_agent::hypervisor::{Hypervisor, Machine, Power};
use dagger_agent::journal::Journal;
use dagger_agent::observation::Tickets;
use dagger_net::request::Owner;
use dagger_payload::id::{CommitIndex, Position};
use dagger_payload::kind::{
    Protection, ReportPhase, ReportSnapshot, ReportVm, ReportVolume, RestartPolicy, StopManner,
    VolumePhase,
};
use dagger_payload::object::{Placement, Vm, VmReport, Wanted};
use dagger_payload::volume::VolumeUse;

use super::support::{FakeHost, Guest, HERE, VM, after, cause, host, offered, wants, wants_reboot};
use super::volumes::{NextVolume, VOLUME, volume, with_volumes};

/// More inputs than any run takes: a run that reaches it goes round in circles.
const INPUTS_MAX: usize = 2_000;

/// What the owner asks for, one after the other, each once the one before is reported; and what
/// must have come of it in the end, wherever the agent died meanwhile.
struct Life {
    wishes: &'static [(Wish, Told)],
    starts: usize,
    disks: usize,
    volume: VolumeEnd,
}

/// Where the volume is in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VolumeEnd {
    /// There never was one.
    Never,
    /// Deleted, with this size in GiB.
    Quarantined(u64),
    /// Still there: only its VM was deleted.
    Kept,
}

/// All that is asked for of a VM that is looked after.
const LONG: Life = Life {
    wishes: &[
        (Wish::Be(Wanted::Running), Told::Vm(ReportPhase::Running)),
        (Wish::NewVolume, Told::Volume(VolumePhase::Ready)),
        (Wish::Attach, Told::Vm(ReportPhase::Running)),
        (Wish::Be(Wanted::Paused), Told::Vm(ReportPhase::Paused)),
        (Wish::Be(Wanted::Running), Told::Vm(ReportPhase::Running)),
        (Wish::Grow, Told::Vm(ReportPhase::Running)),
        (Wish::Reboot, Told::Vm(ReportPhase::Running)),
        (Wish::Detach, Told::Vm(ReportPhase::Running)),
        (Wish::DeleteVolume, Told::Volume(VolumePhase::Deleted)),
        (Wish::Be(Wanted::Stopped), Told::Vm(ReportPhase::Stopped)),
        (Wish::Be(Wanted::Running), Told::Vm(ReportPhase::Running)),
        (Wish::Be(Wanted::Deleted), Told::Vm(ReportPhase::Deleted)),
    ],
    starts: 3,
    disks: 1,
    volume: VolumeEnd::Quarantined(3),
};

/// Changed while it runs and while it is off, and switched off by force.
const FORCED: Life = Life {
    wishes: &[
        (Wish::Be(Wanted::Running), Told::Vm(ReportPhase::Running)),
        (Wish::Resize, Told::Vm(ReportPhase::Running)),
        (Wish::Close, Told::Vm(ReportPhase::Running)),
        (Wish::Protect, Told::Vm(ReportPhase::Running)),
        (Wish::ForcedStop, Told::Vm(ReportPhase::Stopped)),
        (Wish::Resize, Told::Vm(ReportPhase::Stopped)),
        (Wish::Be(Wanted::Running), Told::Vm(ReportPhase::Running)),
        (Wish::Be(Wanted::Deleted), Told::Vm(ReportPhase::Deleted)),
    ],
    starts: 2,
    disks: 1,
    volume: VolumeEnd::Never,
};

/// Never started again by itself, also when the agent dies at the worst moment.
const ONCE: Life = Life {
    wishes: &[
        (Wish::Be(Wanted::Running), Told::Vm(ReportPhase::Running)),
        (Wish::Once, Told::Vm(ReportPhase::Running)),
        (Wish::Be(Wanted::Stopped), Told::Vm(ReportPhase::Stopped)),
        (Wish::Be(Wanted::Running), Told::Vm(ReportPhase::Running)),
        (Wish::Be(Wanted::Deleted), Told::Vm(ReportPhase::Deleted)),
    ],
    starts: 2,
    disks: 1,
    volume: VolumeEnd::Never,
};

/// Deleted before anything of it was made.
const UNMADE: Life = Life {
    wishes: &[
        (Wish::Be(Wanted::Running), Told::Vm(ReportPhase::Accepted)),
        (Wish::Be(Wanted::Deleted), Told::Vm(ReportPhase::Deleted)),
    ],
    starts: 0,
    disks: 0,
    volume: VolumeEnd::Never,
};

/// Deleted with a volume, which stays.
const ATTACHED: Life = Life {
    wishes: &[
        (Wish::Be(Wanted::Running), Told::Vm(ReportPhase::Running)),
        (Wish::NewVolume, Told::Volume(VolumePhase::Ready)),
        (Wish::Attach, Told::Vm(ReportPhase::Running)),
        (Wish::Be(Wanted::Deleted), Told::Vm(ReportPhase::Deleted)),
    ],
    starts: 1,
    disks: 1,
    volume: VolumeEnd::Kept,
};

/// With a volume that is kept, written to, and put back.
const KEPT: Life = Life {
    wishes: &[
        (Wish::Be(Wanted::Running), Told::Vm(ReportPhase::Running)),
        (Wish::NewVolume, Told::Volume(VolumePhase::Ready)),
        (Wish::Attach, Told::Vm(ReportPhase::Running)),
        (Wish::Detach, Told::Vm(ReportPhase::Running)),
        (Wish::Snapshot, Told::Snapshot(VolumePhase::Ready)),
        (Wish::Attach, Told::Vm(ReportPhase::Running)),
        (Wish::Detach, Told::Vm(ReportPhase::Running)),
        (Wish::Restore, Told::Volume(VolumePhase::Ready)),
        (Wish::DeleteSnapshot, Told::Snapshot(VolumePhase::Deleted)),
        (Wish::DeleteVolume, Told::Volume(VolumePhase::Deleted)),
        (Wish::Be(Wanted::Deleted), Told::Vm(ReportPhase::Deleted)),
    ],
    starts: 1,
    disks: 1,
    volume: VolumeEnd::Quarantined(1),
};

/// One thing that the owner asks for.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Be(Wanted),
    Reboot,
    ForcedStop,
    Resize,
    Protect,
    Close,
    Once,
    NewVolume,
    Attach,
    Grow,
    Detach,
    Snapshot,
    Restore,
    DeleteSnapshot,
    DeleteVolume,
}

/// What the host reports once a wish is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Vm(ReportPhase),
    Volume(VolumePhase),
    Snapshot(VolumePhase),
}

/// A version of the one VM or of the one volume.
#[derive(Debug, Clone)]
enum Version {
    Vm(Box<AttestedVm>),
    Volume(Box<AttestedVolume>),
}

impl Version {
    fn order(&self) -> Input {
        Input::Order(match self.clone() {
            Self::Vm(vm) => Order::Vm(vm),
            Self::Volume(volume) => Order::Volume(volume),
        })
    }
}

/// The ordered history of the one VM and the one volume.
struct Ledger {
    life: &'static [(Wish, Told)],
    versions: Vec<Version>,
    asked: usize,
}

impl Ledger {
    fn new(life: &Life) -> Self {
        let versions = vec![Version::Vm(Box::new(offered()))];
        Self { life: life.wishes, versions, asked: 0 }
    }

    fn last(&self) -> &AttestedVm {
        let vm = |version: &'_ Version| matches!(version, Version::Vm(_));
        match self.versions.iter().rfind(|version| vm(version)) {
            Some(Version::Vm(vm)) => vm,
            other => panic!("{other:?}"),
        }
    }

    fn last_volume(&self) -> Option<&AttestedVolume> {
        self.versions.iter().rev().find_map(|version| match version {
            Version::Volume(volume) => Some(&**volume),
            Version::Vm(_) => None,
        })
    }

    /// Orders a report, as the judge would; gives the versions that it makes.
    fn order(&mut self, report: &ReportVm) -> Vec<Version> {
        let before = self.versions.len();
        if report.generation != self.last().vm.generation {
            return Vec::new();
        }
        let told = after(self.last(), |vm| {
            vm.reported = Some(VmReport {
                host: HERE,
                generation: report.generation,
                phase: report.phase,
                reason: report.reason.clone(),
                cause: cause(9),
                agreement: dagger_payload::object::Agreement::WithOrder,
            });
            if let (ReportPhase::Accepted, Some(address)) = (report.phase, vm.placement.address()) {
                vm.placement = Placement::Accepted { host: HERE, address, position: Position(2) };
            }
        });
        self.versions.push(Version::Vm(Box::new(told)));
        let detached = self.last_volume().filter(|last| match last.volume.used_by {
            VolumeUse::Detaching { .. } => report.phase == ReportPhase::Running,
            VolumeUse::Attached { .. } => report.phase == ReportPhase::Deleted,
            VolumeUse::Free {} => false,
        });
        if let Some(volume) = detached {
            let free = volume.after(|volume| volume.used_by = VolumeUse::Free {});
            self.versions.push(Version::Volume(Box::new(free)));
        }
        self.ask_next(Told::Vm(report.phase));
        self.versions[before..].to_vec()
    }

    /// The same about the volume.
    fn order_volume(&mut self, report: &ReportVolume) -> Vec<Version> {
        let before = self.versions.len();
        let last = self.last_volume().expect("it was ordered");
        if report.generation != last.volume.generation {
            return Vec::new();
        }
        self.versions.push(Version::Volume(Box::new(last.reported(report.phase))));
        self.ask_next(Told::Volume(report.phase));
        self.versions[before..].to_vec()
    }

    /// The same about its snapshot.
    fn order_snapshot(&mut self, report: &ReportSnapshot) -> Vec<Version> {
        let before = self.versions.len();
        let last = self.last_volume().expect("it was ordered");
        self.versions.push(Version::Volume(Box::new(last.reported_snapshot(report.phase))));
        self.ask_next(Told::Snapshot(report.phase));
        self.versions[before..].to_vec()
    }

    /// The owner asks for the next thing, if `told` is what the last one was to end with.
    fn ask_next(&mut self, told: Told) {
        if told != self.life[self.asked].1 || self.asked + 1 == self.life.len() {
            return;
        }
        self.asked += 1;
        let vm = self.last();
        let use_by = |used_by| {
            let volume = self.last_volume().expect("it was ordered");
            Version::Volume(Box::new(volume.after(|volume| volume.used_by = used_by)))
        };
        let volume_now = |next: fn(&AttestedVolume) -> AttestedVolume| {
            vec![Version::Volume(Box::new(next(self.last_volume().expect("it was ordered"))))]
        };
        let changed = |change: &dyn Fn(&mut Vm)| {
            let mut version = wants(vm, vm.vm.wanted);
            change(&mut version.vm);
            vec![Version::Vm(Box::new(version))]
        };
        let next = match self.life[self.asked].0 {
            Wish::ForcedStop => {
                let mut version = wants(vm, Wanted::Stopped);
                version.vm.stop_manner = StopManner::Forced;
                vec![Version::Vm(Box::new(version))]
            }
            Wish::Resize => changed(&|vm| vm.size.cpus += 1),
            Wish::Protect => changed(&|vm| vm.protection = Protection::Protected),
            Wish::Close => changed(&|vm| vm.network.allow = Some(Vec::new())),
            Wish::Once => changed(&|vm| vm.restart = RestartPolicy::Never),
            Wish::Be(wanted) => vec![Version::Vm(Box::new(wants(vm, wanted)))],
            Wish::Reboot => vec![Version::Vm(Box::new(wants_reboot(vm)))],
            Wish::NewVolume => vec![Version::Volume(Box::new(volume()))],
            Wish::Attach => {
                let given = Version::Vm(Box::new(with_volumes(vm, &[VOLUME])));
                vec![use_by(VolumeUse::Attached { vm: VM }), given]
            }
            Wish::Grow => {
                let mut given = with_volumes(vm, &[VOLUME]);
                given.vm.volumes[0].size_gib = 3;
                let volume = self.last_volume().expect("it was ordered");
                let grown = volume.after(|volume| {
                    volume.generation = volume.generation.next();
                    volume.changed = cause(volume.generation.0);
                    volume.size_gib = 3;
                });
                vec![Version::Volume(Box::new(grown)), Version::Vm(Box::new(given))]
            }
            Wish::Detach => {
                let taken = Version::Vm(Box::new(with_volumes(vm, &[])));
                vec![use_by(VolumeUse::Detaching { vm: VM }), taken]
            }
            Wish::Snapshot => volume_now(NextVolume::asked_snapshot),
            Wish::Restore => volume_now(NextVolume::put_back),
            Wish::DeleteSnapshot => volume_now(NextVolume::without_snapshot),
            Wish::DeleteVolume => volume_now(NextVolume::deleted),
        };
        self.versions.extend(next);
    }
}

/// One life of the agent: from its start until it dies or nothing is left to do.
struct Agent<'a> {
    world: &'a Arc<FakeHost>,
    ledger: &'a mut Ledger,
    journal: Journal,
    performer: Performer,
    controller: Controller,
    inputs: VecDeque<Input>,
    tickets: Tickets,
    now: Monotonic,
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Died,
    Idle,
}

impl<'a> Agent<'a> {
    fn start(
        world: &'a Arc<FakeHost>,
        ledger: &'a mut Ledger,
        directory: &std::path::Path,
    ) -> Self {
        let journal = Journal::open(directory.to_owned(), HERE).unwrap();
        let found = journal.read_all().unwrap();
        assert!(found.set_aside.is_empty(), "the journal was damaged: {:?}", found.set_aside);
        let tickets = Tickets::default();
        let performer = Performer {
            hypervisor: Arc::clone(world) as Arc<dyn Hypervisor>,
            disks: Arc::clone(world) as _,
            journal: journal.clone(),
            tickets: tickets.clone(),
            names: HostNames::of(HERE),
            networks: Some((Arc::clone(world) as _, Owner::Root)),
            nameservers: Vec::new(),
            consoles: "/consoles".into(),
        };
        let mut inputs = VecDeque::from([Input::Order(Order::Host(Box::new(host())))]);
        inputs.extend(ledger.versions.iter().map(Version::order));
        inputs.push_back(Input::Order(Order::CaughtUp(CommitIndex(ledger.versions.len() as u64))));
        inputs.push_back(Input::Inventory {
            ticket: tickets.draw(),
            machines: world.list().unwrap(),
        });
        Self {
            world,
            ledger,
            journal,
            performer,
            controller: Controller::new(HERE, LocalPolicy::default(), found.records),
            inputs,
            tickets,
            now: Monotonic::default(),
        }
    }

    fn run(mut self) -> Ended {
        for _ in 0..INPUTS_MAX {
            let input = match self.inputs.pop_front() {
                Some(input) => input,
                None => match self.controller.next_wake() {
                    Some(wake) => {
                        self.now = self.now.max(wake);
                        Input::Tick
                    }
                    None => return Ended::Idle,
                },
            };
            for output in self.controller.handle(self.now, input) {
                self.carry_out(output);
                if self.world.state().fuse.dead {
                    return Ended::Died;
                }
            }
        }
        panic!("the agent goes round in circles: {:?}", self.world.state());
    }

    fn dies_here(&self) -> bool {
        self.world.state().fuse.burn()
    }

    fn carry_out(&mut self, output: Output) {
        if self.dies_here() {
            return;
        }
        match output {
            Output::Act(job) => {
                let finished = self.performer.perform(&job).unwrap();
                self.inputs.push_back(Input::Finished(finished, self.tickets.draw()));
            }
            Output::LookAtStores | Output::Collect(_) => panic!("nobody gave a retention time"),
            Output::Fetch(_) | Output::StopFetching(_) => panic!("the image is here"),
            Output::Halt(job) => {
                let finished = self.performer.halt(&job).unwrap();
                self.inputs.push_back(Input::Finished(finished, self.tickets.draw()));
            }
            Output::Persist(record) => self.journal.write(&record).unwrap(),
            Output::Forget(vm) => self.journal.forget(vm).unwrap(),
            Output::Report(report) => {
                let versions = self.ledger.order(&report);
                self.inputs.extend(versions.iter().map(Version::order));
            }
            Output::ActOnVolume(job) => {
                let finished = self.performer.perform_for_volume(&job);
                self.inputs.push_back(Input::VolumeFinished(finished));
            }
            Output::ReportVolume(report) => {
                let versions = self.ledger.order_volume(&report);
                self.inputs.extend(versions.iter().map(Version::order));
            }
            Output::ReportSnapshot(report) => {
                let versions = self.ledger.order_snapshot(&report);
                self.inputs.extend(versions.iter().map(Version::order));
            }
            Output::AlarmAboutVolume(volume, reason) => panic!("alarm about {volume}: {reason}"),
            Output::Look(_) => {
                let ticket = self.tickets.draw();
                let machines = self.world.list().unwrap();
                self.inputs.push_back(Input::Inventory { ticket, machines });
            }
            Output::ReadConsole(_) => {}
            Output::Alarm(vm, reason) => panic!("alarm about {vm}: {reason}"),
        }
        let _ = self.dies_here();
    }
}

/// In memory where the machine has that: hundreds of runs sync thousands of files, and what is
/// pinned here is the order of writes and acts, not the disk's.
fn directory_in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Runs the whole life with one death after `dies_after` points; gives how many points there were.
fn live(life: &Life, guest: Guest, dies_after: Option<usize>) -> usize {
    let directory = directory_in_memory();
    let world = Arc::new(FakeHost::new(guest));
    let mut ledger = Ledger::new(life);
    world.state().fuse.left = dies_after;
    if Agent::start(&world, &mut ledger, directory.path()).run() == Ended::Died {
        world.state().fuse.dead = false;
        world.state().fuse.left = None;
        assert_eq!(Agent::start(&world, &mut ledger, directory.path()).run(), Ended::Idle);
    }
    let state = world.state();
    let told = ledger.last().vm.reported.as_ref().unwrap();
    assert_eq!(told.phase, ReportPhase::Deleted, "died after {dies_after:?}: {state:?}");
    assert!(state.machines.is_empty() && state.disks.is_empty() && state.seeds.is_empty());
    assert!(state.cards.is_empty(), "died after {dies_after:?}: {state:?}");
    assert_eq!(state.quarantine.contains(&VM), life.disks == 1, "{dies_after:?}: {state:?}");
    let counts = (state.starts, state.disks_made);
    assert_eq!(counts, (life.starts, life.disks), "died after {dies_after:?}: {state:?}");
    let volume = match (state.volumes.get(&VOLUME), state.volumes_quarantined.get(&VOLUME)) {
        (None, None) => VolumeEnd::Never,
        (None, Some(size)) => VolumeEnd::Quarantined(*size),
        (Some(_), _) => VolumeEnd::Kept,
    };
    assert_eq!(volume, life.volume, "died after {dies_after:?}: {state:?}");
    let made = usize::from(volume != VolumeEnd::Never);
    assert!(state.given.is_empty() && state.volumes_made == made, "{dies_after:?}: {state:?}");
    let keeps = life.wishes.iter().any(|(wish, _)| matches!(wish, Wish::Snapshot));
    state.kept.check(usize::from(keeps));
    let journal = Journal::open(directory.path().to_owned(), HERE).unwrap();
    assert!(journal.read_all().unwrap().records.is_empty(), "died after {dies_after:?}");
    state.fuse.passed
}

/// Lives it once without a death, and once with each that is possible.
fn live_and_die(life: &Life, points_min: usize) {
    for guest in [Guest::Obeys, Guest::Ignores] {
        let points = live(life, guest, None);
        assert!(points >= points_min, "the run is too short to mean anything: {points} points");
        for dies_after in 0..points {
            live(life, guest, Some(dies_after));
        }
    }
}

#[test]
fn a_crash_at_any_step_of_a_vms_life_leaves_exactly_one_vm_and_then_none() {
    live_and_die(&LONG, 60);
}

#[test]
fn a_crash_while_a_vm_is_changed_or_switched_off_by_force_repeats_nothing() {
    live_and_die(&FORCED, 40);
}

#[test]
fn a_crash_starts_no_vm_again_that_is_to_be_started_once() {
    live_and_die(&ONCE, 40);
}

#[test]
fn a_vm_that_is_deleted_while_it_is_being_made_leaves_nothing_whenever_the_agent_dies() {
    live_and_die(&UNMADE, 10);
}

#[test]
fn a_vm_that_is_deleted_with_a_volume_leaves_the_volume_whenever_the_agent_dies() {
    live_and_die(&ATTACHED, 30);
}

#[test]
fn a_crash_while_a_volume_is_kept_and_put_back_copies_the_same_bytes_once() {
    live_and_die(&KEPT, 60);
}

#[test]
fn an_agent_with_an_empty_journal_adopts_what_runs_and_starts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let world = Arc::new(FakeHost::new(Guest::Obeys));
    let mut ledger = Ledger::new(&LONG);
    // The fuse ends the first life once the guest runs and is reported: the owner's next wish comes
    // later.
    let mut agent = Agent::start(&world, &mut ledger, directory.path());
    while agent.ledger.asked == 0 {
        let input = agent.inputs.pop_front().unwrap();
        for output in agent.controller.handle(agent.now, input) {
            agent.carry_out(output);
        }
    }
    assert!(matches!(ledger.versions.pop(), Some(Version::Volume(_))), "a wish for a volume");
    ledger.asked = 0;
    let empty = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(&world, &mut ledger, empty.path());
    while let Some(input) = agent.inputs.pop_front() {
        for output in agent.controller.handle(agent.now, input) {
            // The card is made sure of, as it is by every agent that starts.
            match &output {
                Output::Act(job) => assert_eq!(job.action.step(), Step::Network, "{output:?}"),
                other => assert!(!matches!(other, Output::Report(_)), "{other:?}"),
            }
            agent.carry_out(output);
        }
    }
    let records = agent.journal.read_all().unwrap().records;
    assert_eq!(records[&VM].applied, Some(ledger.last().vm.generation));
    let state = world.state();
    assert_eq!((state.starts, state.disks_made), (1, 1));
    assert!(matches!(&state.machines[&VM], Machine::Ours { power: Power::Running, .. }));
}
