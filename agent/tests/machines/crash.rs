//! The agent dies at every point of a VM's life, once per run, and one restart later everything is
//! as if it had not.
//!
//! Real: controller, journal (files), performer. Fake: hypervisor, disks, ledger (see `support`).
//! Pinned: exactly one machine, one disk that is made once, no orphan, nothing left after the
//! deletion but the disk in quarantine.

use std::collections::VecDeque;
use std::sync::Arc;

use dagger_agent::actuator::Performer;
use dagger_agent::controller::{Controller, Input, LocalPolicy, Monotonic, Output};
use dagger_agent::handover::{AttestedVm, Order};
use dagger_agent::hypervisor::names::HostNames;
use dagger_agent::hypervisor::{Hypervisor, Machine, Power};
use dagger_agent::journal::Journal;
use dagger_agent::machines::NetworkKind;
use dagger_agent::observation::Tickets;
use dagger_payload::id::{CommitIndex, Position};
use dagger_payload::kind::{ReportPhase, ReportVm};
use dagger_payload::object::{Placement, VmReport, Wanted};

use super::support::{FakeHost, Guest, HERE, VM, after, cause, host, offered, wants, wants_reboot};

/// More inputs than any run takes: a run that reaches it goes round in circles.
const INPUTS_MAX: usize = 2_000;

/// What the owner asks for, one after the other, each once the one before is reported.
const LIFE: [(Wish, ReportPhase); 7] = [
    (Wish::Be(Wanted::Running), ReportPhase::Running),
    (Wish::Be(Wanted::Paused), ReportPhase::Paused),
    (Wish::Be(Wanted::Running), ReportPhase::Running),
    (Wish::Reboot, ReportPhase::Running),
    (Wish::Be(Wanted::Stopped), ReportPhase::Stopped),
    (Wish::Be(Wanted::Running), ReportPhase::Running),
    (Wish::Be(Wanted::Deleted), ReportPhase::Deleted),
];

/// One thing that the owner asks for.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Be(Wanted),
    Reboot,
}

/// The ordered history of the one VM.
struct Ledger {
    versions: Vec<AttestedVm>,
    asked: usize,
}

impl Ledger {
    fn new() -> Self {
        Self { versions: vec![offered()], asked: 0 }
    }

    fn last(&self) -> &AttestedVm {
        self.versions.last().unwrap()
    }

    /// Orders a report, as the judge would; gives the versions that it makes.
    fn order(&mut self, report: &ReportVm) -> Vec<AttestedVm> {
        let mut made = Vec::new();
        if report.generation != self.last().vm.generation {
            return made;
        }
        made.push(after(self.last(), |vm| {
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
        }));
        if report.phase == LIFE[self.asked].1 && self.asked + 1 < LIFE.len() {
            self.asked += 1;
            made.push(match LIFE[self.asked].0 {
                Wish::Be(wanted) => wants(&made[0], wanted),
                Wish::Reboot => wants_reboot(&made[0]),
            });
        }
        self.versions.extend(made.iter().cloned());
        made
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
            consoles: "/consoles".into(),
        };
        let mut inputs = VecDeque::from([Input::Order(Order::Host(Box::new(host())))]);
        inputs.extend(
            ledger.versions.iter().cloned().map(|vm| Input::Order(Order::Vm(Box::new(vm)))),
        );
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
            Output::Persist(record) => self.journal.write(&record).unwrap(),
            Output::Forget(vm) => self.journal.forget(vm).unwrap(),
            Output::Report(report) => {
                let versions = self.ledger.order(&report);
                self.inputs
                    .extend(versions.into_iter().map(|vm| Input::Order(Order::Vm(Box::new(vm)))));
            }
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
    ledger.versions.pop();
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
