//! The agent dies at every point of a VM's and a volume's life, once per run, and one restart later
//! everything is as if it had not.
//!
//! Real: controller, journal (files), performer. Fake: hypervisor, disks, ledger (see `support`).
//! Pinned: exactly one machine, one disk and one volume that are made once, no orphan, nothing left
//! after the deletion but both in quarantine.

use std::collections::VecDeque;
use std::sync::Arc;

use dagger_agent::actuator::Performer;
use dagger_agent::controller::{Controller, Input, LocalPolicy, Monotonic, Output};
use dagger_agent::handover::{AttestedVm, AttestedVolume, Order};
use dagger_agent::hypervisor::names::HostNames;
use dagger_agent::hypervisor::{Hypervisor, Machine, Power};
use dagger_agent::journal::Journal;
use dagger_agent::machines::NetworkKind;
use dagger_agent::observation::Tickets;
use dagger_payload::id::{CommitIndex, Position};
use dagger_payload::kind::{ReportPhase, ReportVm, ReportVolume, VolumePhase};
use dagger_payload::object::{Placement, VmReport, Wanted};
use dagger_payload::volume::VolumeUse;

use super::support::{FakeHost, Guest, HERE, VM, after, cause, host, offered, wants, wants_reboot};
use super::volumes::{NextVolume, VOLUME, volume, with_volumes};

/// More inputs than any run takes: a run that reaches it goes round in circles.
const INPUTS_MAX: usize = 2_000;

/// What the owner asks for, one after the other, each once the one before is reported.
const LIFE: [(Wish, Told); 12] = [
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
];

/// One thing that the owner asks for.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Be(Wanted),
    Reboot,
    NewVolume,
    Attach,
    Grow,
    Detach,
    DeleteVolume,
}

/// What the host reports once a wish is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Vm(ReportPhase),
    Volume(VolumePhase),
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
    versions: Vec<Version>,
    asked: usize,
}

impl Ledger {
    fn new() -> Self {
        Self { versions: vec![Version::Vm(Box::new(offered()))], asked: 0 }
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
        let detached = self.last_volume().filter(|last| {
            let detaching = matches!(last.volume.used_by, VolumeUse::Detaching { .. });
            detaching && report.phase == ReportPhase::Running
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

    /// The owner asks for the next thing, if `told` is what the last one was to end with.
    fn ask_next(&mut self, told: Told) {
        if told != LIFE[self.asked].1 || self.asked + 1 == LIFE.len() {
            return;
        }
        self.asked += 1;
        let vm = self.last();
        let use_by = |used_by| {
            let volume = self.last_volume().expect("it was ordered");
            Version::Volume(Box::new(volume.after(|volume| volume.used_by = used_by)))
        };
        let next = match LIFE[self.asked].0 {
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
            Wish::DeleteVolume => {
                vec![Version::Volume(Box::new(
                    self.last_volume().expect("it was ordered").deleted(),
                ))]
            }
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
            network: NetworkKind::Nat,
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
fn live(guest: Guest, dies_after: Option<usize>) -> usize {
    let directory = directory_in_memory();
    let world = Arc::new(FakeHost::new(guest));
    let mut ledger = Ledger::new();
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
    assert!(state.quarantine.contains(&VM) && state.disks_made == 1, "{state:?}");
    assert!(state.volumes.is_empty() && state.given.is_empty(), "{dies_after:?}: {state:?}");
    assert!(
        state.volumes_quarantined.get(&VOLUME) == Some(&3) && state.volumes_made == 1,
        "{state:?}"
    );
    assert_eq!(state.starts, 3, "died after {dies_after:?}: {state:?}");
    let journal = Journal::open(directory.path().to_owned(), HERE).unwrap();
    assert!(journal.read_all().unwrap().records.is_empty(), "died after {dies_after:?}");
    state.fuse.passed
}

#[test]
fn a_crash_at_any_step_of_a_vms_life_leaves_exactly_one_vm_and_then_none() {
    for guest in [Guest::Obeys, Guest::Ignores] {
        let points = live(guest, None);
        assert!(points > 60, "the run is too short to mean anything: {points} points");
        for dies_after in 0..points {
            live(guest, Some(dies_after));
        }
    }
}

#[test]
fn an_agent_with_an_empty_journal_adopts_what_runs_and_starts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let world = Arc::new(FakeHost::new(Guest::Obeys));
    let mut ledger = Ledger::new();
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
            assert!(!matches!(output, Output::Act(_) | Output::Report(_)), "{output:?}");
            agent.carry_out(output);
        }
    }
    let records = agent.journal.read_all().unwrap().records;
    assert_eq!(records[&VM].applied, Some(ledger.last().vm.generation));
    let state = world.state();
    assert_eq!((state.starts, state.disks_made), (1, 1));
    assert!(matches!(&state.machines[&VM], Machine::Ours { power: Power::Running, .. }));
}
