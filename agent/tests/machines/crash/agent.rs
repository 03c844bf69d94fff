//! One life of the agent: from its start until it dies or nothing is left to do.
//!
//! Real: controller, journal (files), performer. Fake: hypervisor, disks, ledger.

use std::collections::VecDeque;
use std::sync::Arc;

use dagger_agent::actuator::Performer;
use dagger_agent::actuator::disks::Disks;
use dagger_agent::controller::{
    Collection, Controller, Fetched, Input, LocalPolicy, Monotonic, Output, Retention, Room, Seen,
    Sighting,
};
use dagger_agent::handover::Order;
use dagger_agent::hypervisor::Hypervisor;
use dagger_agent::hypervisor::names::HostNames;
use dagger_agent::journal::Journal;
use dagger_agent::observation::Tickets;
use dagger_net::request::Owner;
use dagger_payload::id::CommitIndex;

use super::super::fetches::surroundings;
use super::super::support::{FakeHost, HERE, VM, Victim, host};
use super::coverage::{When, name};
use super::ledger::{Ledger, Version};
use super::lives::{ImageAt, Life, Remains};

/// More inputs than any run takes: a run that reaches it goes round in circles.
const INPUTS_MAX: usize = 2_000;
/// How far ledger time goes from one look at the stores to the next: past the hour for which
/// remains are kept.
const LOOK_EVERY_MS: u64 = 2 * 3_600_000;

pub(super) struct Agent<'a> {
    world: &'a Arc<FakeHost>,
    pub(super) ledger: &'a mut Ledger,
    pub(super) journal: Journal,
    performer: Performer,
    pub(super) controller: Controller,
    pub(super) inputs: VecDeque<Input>,
    tickets: Tickets,
    pub(super) now: Monotonic,
    /// The operator's word was passed on to this agent.
    is_told_by_hand: Told,
}

/// Whether this agent was told.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    NotYet,
    Told,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Died,
    Idle,
}

impl<'a> Agent<'a> {
    pub(super) fn start(
        life: &Life,
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
        let hours = match life.remains {
            Remains::Kept => None,
            Remains::Collected(_) => Some(1),
        };
        let retention = Retention { quarantine_hours: hours, unused_image_hours: hours };
        let controller = Controller::new(HERE, LocalPolicy::default(), found.records);
        let mut inputs = VecDeque::from([Input::Order(Order::Host(Box::new(host())))]);
        if let ImageAt::Elsewhere(_) = life.image {
            inputs.extend(surroundings().into_iter().map(Input::Order));
        }
        inputs.extend(ledger.versions.iter().map(Version::order));
        inputs.push_back(Input::Order(Order::LedgerTime(ledger.time)));
        inputs.push_back(Input::Order(Order::CaughtUp(CommitIndex(ledger.versions.len() as u64))));
        let mut agent = Self {
            world,
            ledger,
            journal,
            performer,
            controller: controller.keeping(retention),
            inputs,
            tickets,
            now: Monotonic::default(),
            is_told_by_hand: Told::NotYet,
        };
        agent.look();
        agent.hear_the_operator();
        agent
    }

    pub(super) fn run(mut self) -> Ended {
        for _ in 0..INPUTS_MAX {
            let input = match self.inputs.pop_front() {
                Some(input) => input,
                None if self.ledger.is_over && self.is_tidy() => return Ended::Idle,
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

    /// Nothing is left that will be collected.
    fn is_tidy(&self) -> bool {
        let state = self.world.state();
        self.controller.next_wake().is_none() || (state.remains() == 0 && state.images.is_empty())
    }

    pub(super) fn carry_out(&mut self, output: Output) {
        let name = name(&output);
        if self.dies(name, When::Before) == Some(Victim::Agent) {
            return;
        }
        self.ledger.lived.insert(name);
        let had_struck = self.world.state().fuse.has_struck;
        self.perform(output);
        if self.world.state().fuse.dead {
            self.ledger.deaths.insert((name, When::Within));
        } else if self.world.state().fuse.has_struck && !had_struck {
            self.ledger.deaths.insert((name, When::Within));
            // The connection broke with the process, and is there again.
            self.inputs.push_back(Input::SightLost { ticket: self.tickets.draw() });
            self.look();
            self.ledger.lose_process(&self.world.state());
        } else {
            self.dies(name, When::After);
        }
    }

    /// Passes a point outside of any act.
    fn dies(&mut self, name: &'static str, when: When) -> Option<Victim> {
        let victim = self.world.state().burn()?;
        self.ledger.deaths.insert((name, when));
        if victim == Victim::Process {
            // The hypervisor says that something happened to the machine.
            let seen = self.world.state().machines.get(&VM).cloned();
            if let Some(machine) = seen {
                let ticket = self.tickets.draw();
                let sighting = Sighting { ticket, seen: Seen::Present(machine) };
                self.inputs.push_back(Input::Sighting(VM, sighting));
            }
            self.ledger.lose_process(&self.world.state());
        }
        Some(victim)
    }

    fn look(&mut self) {
        let ticket = self.tickets.draw();
        let machines = self.world.list().unwrap();
        self.inputs.push_back(Input::Inventory { ticket, machines });
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Act(job) => {
                self.ledger.check_start(&job);
                let finished = self.performer.perform(&job).unwrap();
                self.inputs.push_back(Input::Finished(finished, self.tickets.draw()));
            }
            Output::Halt(job) => {
                let finished = self.performer.halt(&job).unwrap();
                self.inputs.push_back(Input::Finished(finished, self.tickets.draw()));
            }
            Output::ActOnVolume(job) => {
                let finished = self.performer.perform_for_volume(&job);
                self.inputs.push_back(Input::VolumeFinished(finished));
            }
            Output::LookAtStores => {
                self.ledger.time = self.ledger.time.plus_ms(LOOK_EVERY_MS);
                self.inputs.push_back(Input::Order(Order::LedgerTime(self.ledger.time)));
                self.inputs.push_back(Input::Stored(self.world.stored().unwrap()));
            }
            Output::Collect(collection) => {
                // One that fails is tried again after the next look.
                let _ = match &*collection {
                    Collection::Remains(proof) => self.world.collect(proof),
                    Collection::Image(proof) => self.world.collect_image(proof),
                };
                self.inputs.push_back(Input::Collected);
            }
            Output::Fetch(job) => {
                let versions = self.ledger.order_fetching();
                if versions.is_empty() && self.world.fetch(job.image).is_ok() {
                    self.inputs.push_back(Input::Fetched(job.image, Fetched::Here));
                }
                // What its owner gives up is fetched until the agent says otherwise.
                self.hear(versions);
            }
            Output::StopFetching(image) => {
                self.inputs.push_back(Input::Fetched(image, Fetched::Stopped));
            }
            // The fake host keeps nothing of what is not whole.
            Output::DiscardFetched(_) => {}
            Output::Persist(record) => {
                self.journal.write(&record).unwrap();
                if record.halted_at.is_some() {
                    self.ledger.by_hand = None;
                }
            }
            Output::Forget(vm) => self.journal.forget(vm).unwrap(),
            Output::Report(report) => {
                let versions = self.ledger.order(&report, &self.world.state());
                self.hear(versions);
            }
            Output::ReportVolume(report) => {
                let versions = self.ledger.order_volume(&report);
                self.hear(versions);
            }
            Output::ReportSnapshot(report) => {
                let versions = self.ledger.order_snapshot(&report);
                self.hear(versions);
            }
            Output::Look(_) => self.look(),
            Output::LookAtRoom(vm, _) => self.inputs.push_back(Input::Room(vm, Room::default())),
            Output::ReadConsole(_) => {}
            Output::Alarm(vm, reason) => panic!("alarm about {vm}: {reason}"),
            Output::AlarmAboutVolume(volume, reason) => panic!("alarm about {volume}: {reason}"),
        }
    }

    fn hear(&mut self, versions: Vec<Version>) {
        self.inputs.extend(versions.iter().map(Version::order));
        self.inputs.push_back(Input::Order(Order::LedgerTime(self.ledger.time)));
        self.hear_the_operator();
    }

    /// A stop by hand is asked for until an agent has answered.
    fn hear_the_operator(&mut self) {
        match self.ledger.by_hand {
            Some(manner) if self.is_told_by_hand == Told::NotYet => {
                self.is_told_by_hand = Told::Told;
                let why = "it mines coins".to_owned();
                self.inputs.push_back(Input::LocalStop(VM, manner, why));
            }
            Some(_) => {}
            None => self.is_told_by_hand = Told::NotYet,
        }
    }
}
