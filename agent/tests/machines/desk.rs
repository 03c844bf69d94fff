//! A controller at a desk: told one input at a time, and what it says, in words for tests.

use std::collections::BTreeMap;
use std::time::Duration;

use dagger_agent::controller::{
    Controller, Finished, Input, LocalPolicy, Monotonic, Outcome, Output, Room, Seen, Sighting,
    Step,
};
use dagger_agent::handover::{AttestedVm, Order};
use dagger_agent::hypervisor::{Inventory, Machine, Power};
use dagger_agent::journal::Record;
use dagger_payload::id::{CommitIndex, Generation};
use dagger_payload::kind::{ReportPhase, ReportVm};

use super::support::{HERE, VM, host, ours};

/// A controller with a clock and a counter for looks.
pub(crate) struct Desk {
    pub(crate) controller: Controller,
    pub(crate) now: Monotonic,
    pub(crate) ticket: u64,
    /// The generation of the step that was begun last.
    begun: Generation,
    /// Whether cards of running machines are made sure of without a word.
    pub(crate) connects: bool,
    /// What this host has free whenever that is asked.
    pub(crate) room: Room,
    /// Whether the machine was last seen in memory.
    in_memory: bool,
}

impl Desk {
    pub(crate) fn with(
        records: BTreeMap<dagger_payload::id::VmId, Record>,
        policy: LocalPolicy,
    ) -> Self {
        let controller = Controller::new(HERE, policy, records);
        let mut desk = Self {
            controller,
            now: Monotonic::default(),
            ticket: 0,
            begun: Generation(0),
            connects: true,
            room: Room::default(),
            in_memory: false,
        };
        desk.order(Order::Host(Box::new(host())));
        desk
    }

    pub(crate) fn new() -> Self {
        Self::with(BTreeMap::new(), LocalPolicy::default())
    }

    /// On a host that has this free.
    pub(crate) fn having(room: Room) -> Self {
        Self { room, ..Self::new() }
    }

    /// A desk that was told all of `versions`, sees `machine`, and is caught up.
    pub(crate) fn live(versions: &[AttestedVm], machine: Option<Machine>) -> (Self, Vec<Output>) {
        let mut desk = Self::new();
        let outputs = desk.go_live(versions, machine);
        (desk, outputs)
    }

    pub(crate) fn go_live(
        &mut self,
        versions: &[AttestedVm],
        machine: Option<Machine>,
    ) -> Vec<Output> {
        for version in versions {
            assert_eq!(self.vm(version), [], "something was done before the end of history");
        }
        assert_eq!(self.inventory(machine), [], "something was done before the end of history");
        self.caught_up()
    }

    pub(crate) fn take(&mut self, input: Input) -> Vec<Output> {
        let mut outputs = self.handle(input);
        // Tests of anything else would each have to say it.
        while self.connects && self.in_memory && steps(&outputs).contains(&Step::Network) {
            outputs.retain(|output| !matches!(output, Output::Act(_)));
            self.ticket += 1;
            let finished = Finished {
                vm: VM,
                generation: self.begun,
                step: Step::Network,
                outcome: Outcome::Done,
                sighting: None,
            };
            outputs.extend(self.handle(Input::Finished(finished, self.ticket)));
        }
        outputs
    }

    /// What is asked about the room is answered without a word.
    fn handle(&mut self, input: Input) -> Vec<Output> {
        let mut outputs = self.handle_alone(input);
        while let Some(at) = outputs.iter().position(|it| matches!(it, Output::LookAtRoom(..))) {
            let Output::LookAtRoom(vm, _) = outputs.remove(at) else { continue };
            outputs.extend(self.handle_alone(Input::Room(vm, self.room)));
        }
        outputs
    }

    fn handle_alone(&mut self, input: Input) -> Vec<Output> {
        let seen = match &input {
            Input::Inventory { machines, .. } => machines.get(&VM),
            Input::Sighting(_, Sighting { seen: Seen::Present(machine), .. }) => Some(machine),
            Input::Finished(finished, _) => match &finished.sighting {
                Some(Sighting { seen: Seen::Present(machine), .. }) => Some(machine),
                _ => None,
            },
            _ => None,
        };
        if let Some(Machine::Ours { power, .. }) = seen {
            self.in_memory = *power != Power::Stopped;
        }
        let outputs = self.controller.handle(self.now, input);
        for output in &outputs {
            match output {
                Output::Act(job) => self.begun = job.tags.generation,
                Output::Halt(job) => self.begun = job.generation,
                _ => {}
            }
        }
        outputs
    }

    pub(crate) fn order(&mut self, order: Order) -> Vec<Output> {
        self.take(Input::Order(order))
    }

    pub(crate) fn vm(&mut self, version: &AttestedVm) -> Vec<Output> {
        self.order(Order::Vm(Box::new(version.clone())))
    }

    pub(crate) fn caught_up(&mut self) -> Vec<Output> {
        self.order(Order::CaughtUp(CommitIndex(100)))
    }

    pub(crate) fn inventory(&mut self, machine: Option<Machine>) -> Vec<Output> {
        self.ticket += 1;
        let machines: Inventory = machine.into_iter().map(|machine| (VM, machine)).collect();
        self.take(Input::Inventory { ticket: self.ticket, machines })
    }

    pub(crate) fn see(&mut self, machine: Machine) -> Vec<Output> {
        self.ticket += 1;
        let sighting = Sighting { ticket: self.ticket, seen: Seen::Present(machine) };
        self.take(Input::Sighting(VM, sighting))
    }

    pub(crate) fn finish(
        &mut self,
        step: Step,
        outcome: Outcome,
        machine: Option<Machine>,
    ) -> Vec<Output> {
        self.ticket += 1;
        let ticket = self.ticket;
        let sighting = machine.map(|machine| Sighting { ticket, seen: Seen::Present(machine) });
        let finished = Finished { vm: VM, generation: self.begun, step, outcome, sighting };
        self.take(Input::Finished(finished, ticket))
    }

    pub(crate) fn done(&mut self, step: Step, machine: Option<Machine>) -> Vec<Output> {
        self.finish(step, Outcome::Done, machine)
    }

    /// Takes the steps that make a machine, up to the start.
    pub(crate) fn make(&mut self) -> Vec<Output> {
        for step in [Step::Image, Step::Disk, Step::Seed, Step::Network] {
            self.done(step, None);
        }
        self.done(Step::Define, Some(ours(Power::Stopped, 1)))
    }

    pub(crate) fn wait(&mut self, seconds: u64) -> Vec<Output> {
        self.now = self.now.plus(Duration::from_secs(seconds));
        self.take(Input::Tick)
    }
}

pub(crate) fn steps(outputs: &[Output]) -> Vec<Step> {
    let step = |output: &Output| match output {
        Output::Act(job) => Some(job.action.step()),
        _ => None,
    };
    outputs.iter().filter_map(step).collect()
}

pub(crate) fn reports(outputs: &[Output]) -> Vec<ReportVm> {
    let report = |output: &Output| match output {
        Output::Report(report) => Some(report.clone()),
        _ => None,
    };
    outputs.iter().filter_map(report).collect()
}

pub(crate) fn phases(outputs: &[Output]) -> Vec<ReportPhase> {
    reports(outputs).iter().map(|report| report.phase).collect()
}

pub(crate) fn reason(outputs: &[Output]) -> String {
    reports(outputs)[0].reason.clone().unwrap()
}
