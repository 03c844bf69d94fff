//! The world of one run: the queue of what is still to happen, the court, the hosts.
//!
//! Owns simulated time and the order of everything. Lives of agents are in [`super::life`], steps
//! in [`super::steps`], strikes in [`super::strikes`]. Called by the run.

use std::collections::BTreeMap;
use std::rc::Rc;

use dagger_controller::order::ReportSubject;
use dagger_controller::{Collection, Fetched, Input, LocalPolicy, Outcome, Retention, Sighting};
use dagger_payload::id::{ImageDigest, VmId};
use dagger_payload::payload::SignedPayload;

use super::court::{Court, Door, IMAGES};
use super::faults::{FaultKind, Mixture};
use super::host::Host;
use super::log::Log;
use super::owners;
use super::promise::{Broken, Observed, Promises, Scene};
use super::work::Work;
use crate::simulator::random::Random;

/// What an event is for: a host's agent in one of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) host: usize,
    pub(super) life: u64,
}

/// Something that is still to happen.
pub(super) enum Event {
    /// Ledger time goes on, and what waits is ordered.
    Commit,
    /// Owners ask for something.
    Owners,
    /// Something is struck.
    Strike,
    /// A payload arrives where it is ordered.
    Arrive(SignedPayload),
    /// A host's ledger shows this commit, attested.
    Show(usize, u64),
    /// A host's ledger may show more than it did.
    View(usize),
    /// The disks of a host take something again.
    Room(usize),
    /// The hypervisor of a host may answer again.
    Hear(usize),
    AgentStarts(usize),
    ToAgent(Life, Box<Input>),
    Tick(Life),
    Submit(Life),
    List(Life),
    Look(Life, VmId),
    Capture(Life, u64, Option<VmId>),
    Persist(Life, u64, Rc<Work>),
    Effect(Life, u64, Rc<Work>),
    End(Life, u64, Rc<Work>, Outcome, Option<Sighting>),
    Deadline(Life, u64, Rc<Work>),
    LookAtStores(Life),
    Collect(Life, Box<Collection>),
    FetchEnds(Life, ImageDigest, u64, Fetched),
    GuestStops(usize, VmId),
}

/// How a run goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Season {
    Faults,
    Calm,
}

pub(super) struct World {
    queue: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    pub(super) now_ms: u64,
    pub(super) random: Random,
    pub(super) log: Log,
    pub(super) mixture: Mixture,
    pub(super) season: Season,
    pub(super) court: Court,
    pub(super) hosts: Vec<Host>,
    pub(super) promises: Promises,
    pub(super) faults: BTreeMap<FaultKind, u64>,
    /// Steps that were begun, by nobody's order in particular.
    pub(super) steps: u64,
}

impl World {
    pub(super) fn new(seed: u64, hosts: usize, log: Log) -> Self {
        let mut random = Random::new(seed, "machines");
        let mixture = Mixture::draw(&mut random);
        let court = Court::furnished(hosts);
        let hours = random.happens(500).then_some(1);
        let retention = Retention { quarantine_hours: hours, unused_image_hours: hours };
        let ids = court.hosts.clone();
        let mut host = |id| {
            let vms_max = random.happens(200).then_some(3);
            let policy = LocalPolicy { vms_max, capacity_max: None };
            let mut host = Host::new(id, policy, retention.clone());
            host.metal.images.insert(IMAGES[0]);
            host
        };
        let hosts: Vec<Host> = ids.into_iter().map(&mut host).collect();
        let promises = Promises::new(hosts.len());
        let mut world = Self {
            queue: BTreeMap::new(),
            scheduled: 0,
            now_ms: 0,
            random,
            log,
            mixture,
            season: Season::Faults,
            court,
            hosts,
            promises,
            faults: BTreeMap::new(),
            steps: 0,
        };
        let furnished = u64::try_from(world.court.releases.len()).expect("few");
        for host in 0..world.hosts.len() {
            world.after((0, 20), Event::Show(host, furnished));
            world.after((0, 200), Event::AgentStarts(host));
        }
        world.after((100, 100), Event::Commit);
        world.after((100, 1_000), Event::Owners);
        world.after((2_000, 8_000), Event::Strike);
        world
    }

    /// Something happens after a time from `range_ms`.
    pub(super) fn after(&mut self, range_ms: (u64, u64), event: Event) {
        let wait_ms = self.random.within(range_ms);
        self.at(self.now_ms + wait_ms, event);
    }

    pub(super) fn at(&mut self, at_ms: u64, event: Event) {
        self.scheduled += 1;
        self.queue.insert((at_ms.max(self.now_ms), self.scheduled), event);
    }

    pub(super) fn count(&mut self, kind: FaultKind) {
        *self.faults.entry(kind).or_default() += 1;
    }

    /// Whether this fault, which befalls things by chance, comes now.
    pub(super) fn befalls(&mut self, kind: FaultKind) -> bool {
        let permille = match self.season {
            Season::Faults => self.mixture.permille(kind),
            Season::Calm => 0,
        };
        self.random.happens(permille)
    }

    pub(super) fn observe(&mut self, host: usize, observed: &Observed<'_>) -> Result<(), Broken> {
        let (court, hosts, now_ms) = (&self.court, &self.hosts[..], self.now_ms);
        self.promises.watch(observed, &Scene { court, hosts, host, now_ms })
    }

    /// Everything until `end_ms`.
    pub(super) fn run_until(&mut self, end_ms: u64) -> Result<(), Broken> {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end_ms {
                break;
            }
            self.now_ms = entry.key().0;
            let event = entry.remove();
            self.happen(event)?;
        }
        self.now_ms = end_ms;
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Commit => self.commit(),
            Event::Owners => self.owners(),
            Event::Strike => return self.strike(),
            Event::Arrive(payload) => self.court.pending.push(payload),
            Event::Show(host, index) => {
                let host_state = &mut self.hosts[host];
                host_state.newest = host_state.newest.max(index);
                self.view(host);
            }
            Event::View(host) => self.view(host),
            Event::Room(host) => self.hosts[host].metal.is_full = false,
            Event::Hear(host) => self.hear(host),
            Event::AgentStarts(host) => return self.agent_starts(host),
            Event::ToAgent(life, input) => return self.input(life, *input),
            Event::Tick(life) => return self.tick(life),
            Event::Submit(life) => self.submit(life),
            Event::List(life) => self.list(life),
            Event::Look(life, vm) => self.look(life, Some(vm)),
            Event::Capture(life, ticket, vm) => self.capture(life, ticket, vm),
            Event::Persist(life, number, work) => return self.persist(life, number, work),
            Event::Effect(life, number, work) => return self.effect(life, number, work),
            Event::End(life, number, work, outcome, sighting) => {
                return self.end(life, number, &work, outcome, sighting);
            }
            Event::Deadline(life, number, work) => return self.deadline(life, number, &work),
            Event::LookAtStores(life) => self.look_at_stores(life),
            Event::Collect(life, collection) => return self.collect(life, &collection),
            Event::FetchEnds(life, image, number, fetched) => {
                return self.fetch_ends(life, image, number, fetched);
            }
            Event::GuestStops(host, vm) => self.guest_stops(host, vm),
        }
        Ok(())
    }

    fn commit(&mut self) {
        let seldom = self.random.happens(30);
        if self.court.is_commit_due(self.now_ms) || seldom {
            let lapsed = self.court.offers_lapsed;
            self.court.commit(self.now_ms);
            for _ in lapsed..self.court.offers_lapsed {
                self.count(FaultKind::OfferLapsed);
            }
            for (person, body) in std::mem::take(&mut self.court.late) {
                self.say_again(person, body);
            }
            let index = u64::try_from(self.court.releases.len()).expect("few");
            self.log.note(self.now_ms, self.hosts.len(), &format!("commit {index}"));
            for host in 0..self.hosts.len() {
                self.after((1, 300), Event::Show(host, index));
            }
        }
        let pause_ms = if self.season == Season::Calm { (500, 1_000) } else { (50, 400) };
        self.after(pause_ms, Event::Commit);
    }

    fn owners(&mut self) {
        if self.season == Season::Calm {
            return;
        }
        if let Some((person, body)) = owners::draw(&mut self.random, &self.court, self.now_ms) {
            let line = format!("{person:?} asks: {}", body.kind());
            self.log.note(self.now_ms, self.hosts.len(), &line);
            match self.court.bring(person, body, self.now_ms) {
                Door::Open(payload) => self.order(payload),
                // Most of what cannot be accepted is never ordered, and some all the same.
                Door::Full(payload) | Door::Shut(payload) => {
                    if self.random.happens(100) {
                        self.order(payload);
                    }
                }
            }
        }
        self.after((50, 2_500), Event::Owners);
    }

    /// Brings a payload to where it is ordered, perhaps twice.
    pub(super) fn order(&mut self, payload: SignedPayload) {
        if self.befalls(FaultKind::PayloadTwice) {
            self.count(FaultKind::PayloadTwice);
            self.after((1, 4_000), Event::Arrive(payload.clone()));
        }
        self.after((1, 300), Event::Arrive(payload));
    }

    /// What a report is about, for the log.
    pub(super) fn name(subject: ReportSubject) -> String {
        subject.to_string()
    }
}
