//! The life of an agent: its start, what it is told, what it sees, what it says.
//!
//! Owns what the agent's other parts do around the controller (following the ledger, observation,
//! submission), each in its own time. Never decides about a machine. Called by the world.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dagger_controller::order::{Order, ReportSubject};
use dagger_controller::record::Record;
use dagger_controller::selection::Selection;
use dagger_controller::{Controller, Fetched, Input, Monotonic, Output, Room, Seen, Sighting};
use dagger_payload::id::{CommitIndex, ImageDigest, VmId};
use dagger_payload::kind::Body;

use super::court::{Door, Person};
use super::faults::FaultKind;
use super::host::{Agent, Told};
use super::promise::{Broken, Observed};
use super::world::{Event, Life, Season, World};

/// How often everything is listed.
const LISTING_EVERY_MS: u64 = 60_000;

impl World {
    /// The agent of that life, if it lives.
    pub(super) fn agent(&mut self, life: Life) -> Option<&mut Agent> {
        let host = &mut self.hosts[life.host];
        if host.life == life.life { host.agent.as_mut() } else { None }
    }

    pub(super) fn life(&self, host: usize) -> Life {
        Life { host, life: self.hosts[host].life }
    }

    pub(super) fn agent_starts(&mut self, host: usize) -> Result<(), Broken> {
        if self.hosts[host].agent.is_some() {
            return Ok(());
        }
        let now_ms = self.now_ms;
        let here = &mut self.hosts[host];
        let records: BTreeMap<_, _> =
            here.journal.keys().filter_map(|vm| Some((*vm, here.record(*vm)?))).collect();
        here.lost.clear();
        let controller = Controller::new(here.id, here.policy.clone(), records);
        here.agent = Some(Agent {
            controller: controller.keeping(here.retention.clone()),
            tickets: 0,
            told: 0,
            selection: Selection::new(here.id),
            state: Told::Nothing,
            orders_at_ms: now_ms,
            outbox: BTreeMap::new(),
            is_submitting: false,
            turns: BTreeSet::new(),
            awaited: BTreeSet::new(),
            fetching: BTreeMap::new(),
            tick_at_ms: None,
        });
        self.log.note(self.now_ms, host, "the agent starts");
        self.observe(host, &Observed::AgentBegan)?;
        let life = self.life(host);
        self.after((1, 500), Event::List(life));
        self.tell(host);
        Ok(())
    }

    /// The agent dies; what it meant to do is gone, what it wrote down stays.
    pub(super) fn agent_dies(&mut self, host: usize, why: &str) {
        let here = &mut self.hosts[host];
        here.life += 1;
        if here.agent.take().is_some() {
            self.log.note(self.now_ms, host, &format!("the agent dies: {why}"));
            self.after((50, 5_000), Event::AgentStarts(host));
        }
    }

    /// What the host's ledger shows now, if it shows anything.
    pub(super) fn view(&mut self, host: usize) {
        let now_ms = self.now_ms;
        let here = &mut self.hosts[host];
        if now_ms >= here.older_until_ms && now_ms >= here.stalled_until_ms {
            here.shown = here.newest;
            self.tell(host);
        }
    }

    /// Tells the controller what is attested and what concerns it, as the agent's teller does.
    pub(super) fn tell(&mut self, host: usize) {
        let life = self.life(host);
        let here = &mut self.hosts[host];
        let Some(agent) = &mut here.agent else { return };
        let mut orders = Vec::new();
        if here.shown < here.mark {
            if agent.state == Told::Hold {
                return;
            }
            agent.state = Told::Hold;
            (agent.told, agent.selection) = (0, Selection::new(here.id));
            orders.push(Order::Hold("older_view".to_owned()));
        } else {
            // Durable before anything that follows from it is told.
            here.mark = here.shown;
            if agent.told == 0 && agent.state == Told::CaughtUp {
                agent.state = Told::Nothing;
                orders.push(Order::Hold("told again".to_owned()));
            }
            for index in agent.told..here.shown {
                let index = usize::try_from(index).expect("few");
                let release = &self.court.releases[index];
                orders.extend(agent.selection.concerning(release).into_orders());
            }
            agent.told = here.shown;
            if agent.state != Told::CaughtUp {
                agent.state = Told::CaughtUp;
                orders.push(Order::CaughtUp(CommitIndex(here.shown)));
            }
        }
        let mut at_ms = agent.orders_at_ms.max(self.now_ms);
        for order in orders {
            if self.random.happens(20) {
                at_ms += self.random.within((1, 100));
            }
            self.at(at_ms, Event::ToAgent(life, Box::new(Input::Order(order))));
        }
        if let Some(agent) = self.agent(life) {
            agent.orders_at_ms = at_ms;
        }
    }

    /// The controller is told something, and what it says is done.
    pub(super) fn input(&mut self, life: Life, input: Input) -> Result<(), Broken> {
        if self.agent(life).is_none() {
            return Ok(());
        }
        let host = life.host;
        self.observe(host, &Observed::Told(&input))?;
        let now = Monotonic(Duration::from_millis(self.now_ms));
        let Some(agent) = self.agent(life) else { return Ok(()) };
        let outputs = agent.controller.handle(now, input);
        for output in outputs {
            self.output(life, output)?;
            if self.agent(life).is_none() {
                return Ok(());
            }
        }
        self.wind(life);
        Ok(())
    }

    /// Sees that the controller is woken when it wants to be.
    fn wind(&mut self, life: Life) {
        let Some(agent) = self.agent(life) else { return };
        let Some(wake) = agent.controller.next_wake() else { return };
        let at_ms = u64::try_from(wake.0.as_millis()).expect("a run is short");
        if agent.tick_at_ms.is_none_or(|tick_at_ms| at_ms < tick_at_ms) {
            agent.tick_at_ms = Some(at_ms);
            self.at(at_ms, Event::Tick(life));
        }
    }

    pub(super) fn tick(&mut self, life: Life) -> Result<(), Broken> {
        if let Some(agent) = self.agent(life) {
            agent.tick_at_ms = None;
            return self.input(life, Input::Tick);
        }
        Ok(())
    }

    fn output(&mut self, life: Life, output: Output) -> Result<(), Broken> {
        let host = life.host;
        match output {
            Output::Act(job) => self.begin(life, super::work::Work::Vm(job)),
            Output::Halt(job) => self.begin(life, super::work::Work::Halt(job)),
            Output::ActOnVolume(job) => self.begin(life, super::work::Work::Volume(job)),
            Output::Persist(record) => self.keep(host, record.vm, Some(&record)),
            Output::Forget(vm) => self.keep(host, vm, None),
            Output::Report(report) => {
                self.put(life, ReportSubject::Vm(report.vm), Body::ReportVm(report))
            }
            Output::ReportVolume(report) => {
                self.put(life, ReportSubject::Volume(report.volume), Body::ReportVolume(report))
            }
            Output::ReportSnapshot(report) => {
                let subject = ReportSubject::Snapshot(report.volume, report.snapshot);
                self.put(life, subject, Body::ReportSnapshot(report))
            }
            Output::Look(vm) => {
                self.after((1, 20), Event::Look(life, vm));
                Ok(())
            }
            Output::LookAtRoom(vm, _) => {
                let room = self.room();
                self.after((1, 20), Event::ToAgent(life, Box::new(Input::Room(vm, room))));
                Ok(())
            }
            Output::ReadConsole(vm) => {
                if self.random.happens(500) {
                    let key = Person::Developer(0).secret().public_key().to_openssh();
                    let key = key.parse().expect("a key");
                    let input = Box::new(Input::GuestHostKey(vm, key));
                    self.after((500, 10_000), Event::ToAgent(life, input));
                }
                Ok(())
            }
            Output::LookAtStores => {
                self.after((1, 500), Event::LookAtStores(life));
                Ok(())
            }
            Output::Collect(collection) => {
                self.observe(host, &Observed::Collects(&collection))?;
                self.after((1, 500), Event::Collect(life, collection));
                Ok(())
            }
            Output::Fetch(job) => {
                self.fetch(life, job.image);
                Ok(())
            }
            Output::StopFetching(image) => {
                let number = self.agent(life).and_then(|agent| agent.fetching.get(&image).copied());
                if let Some(number) = number {
                    let event = Event::FetchEnds(life, image, number, Fetched::Stopped);
                    self.after((1, 20), event);
                }
                Ok(())
            }
            // Nothing of what is not whole is kept here.
            Output::DiscardFetched(_) => Ok(()),
            Output::Alarm(vm, reason) => {
                self.log.note(self.now_ms, host, &format!("alarm about VM {vm}: {reason}"));
                Ok(())
            }
            Output::AlarmAboutVolume(volume, reason) => {
                let line = format!("alarm about volume {volume}: {reason}");
                self.log.note(self.now_ms, host, &line);
                Ok(())
            }
        }
    }

    /// What a host has free: mostly enough, now and then nothing, or nobody knows.
    fn room(&mut self) -> Room {
        let mut figure = || match self.random.within((0, 99)) {
            0..3 => Some(0),
            3..20 => None,
            _ => Some(u64::MAX),
        };
        Room { memory_mib: figure(), storage_mib: figure(), ..Room::default() }
    }

    /// Writes a record down, or forgets it.
    fn keep(&mut self, host: usize, vm: VmId, record: Option<&Record>) -> Result<(), Broken> {
        self.observe(host, &Observed::Says("change of the journal"))?;
        if self.crashes(host, FaultKind::CrashBeforePersist) {
            return Ok(());
        }
        match record {
            Some(record) => self.hosts[host].write(record),
            None => drop(self.hosts[host].journal.remove(&vm)),
        }
        self.crashes(host, FaultKind::CrashAfterPersist);
        Ok(())
    }

    /// Whether the agent dies here.
    pub(super) fn crashes(&mut self, host: usize, kind: FaultKind) -> bool {
        if !self.befalls(kind) {
            return false;
        }
        self.count(kind);
        self.agent_dies(host, &format!("{kind:?}"));
        true
    }

    fn put(&mut self, life: Life, subject: ReportSubject, body: Body) -> Result<(), Broken> {
        let line = format!("reports about {}: {body:?}", Self::name(subject));
        self.log.note(self.now_ms, life.host, &line);
        self.observe(life.host, &Observed::Says("report"))?;
        let Some(agent) = self.agent(life) else { return Ok(()) };
        agent.outbox.insert(subject, body);
        if !std::mem::replace(&mut agent.is_submitting, true) {
            self.after((5, 200), Event::Submit(life));
        }
        Ok(())
    }

    /// A report was ordered too late to count; a newer one about the same takes its place.
    pub(super) fn say_again(&mut self, person: Person, body: Body) {
        let (Person::Agent(host), Some(subject)) = (person, subject(&body)) else { return };
        let life = self.life(host);
        let Some(agent) = self.agent(life) else { return };
        agent.outbox.entry(subject).or_insert(body);
        if !std::mem::replace(&mut agent.is_submitting, true) {
            self.after((5, 200), Event::Submit(life));
        }
    }

    /// Brings what waits to the host's ledger, which may not be there.
    pub(super) fn submit(&mut self, life: Life) {
        let is_stalled = self.now_ms < self.hosts[life.host].stalled_until_ms;
        let Some(agent) = self.agent(life) else { return };
        agent.is_submitting = false;
        if is_stalled {
            agent.is_submitting = true;
            self.after((500, 2_000), Event::Submit(life));
            return;
        }
        let mut left = BTreeMap::new();
        for (subject, body) in std::mem::take(&mut agent.outbox) {
            let person = Person::Agent(life.host);
            match self.court.bring(person, body.clone(), self.now_ms) {
                Door::Open(payload) => self.order(payload),
                Door::Full(_) => {
                    left.insert(subject, body);
                }
                Door::Shut(_) => {}
            }
        }
        if !left.is_empty()
            && let Some(agent) = self.agent(life)
        {
            agent.is_submitting = true;
            agent.outbox = left;
            self.after((1_000, 2_000), Event::Submit(life));
        }
    }

    /// The hypervisor may answer again.
    pub(super) fn hear(&mut self, host: usize) {
        if !self.hosts[host].is_deaf(self.now_ms) {
            let life = self.life(host);
            self.after((1, 2_000), Event::List(life));
        }
    }

    pub(super) fn list(&mut self, life: Life) {
        if self.agent(life).is_some() && !self.hosts[life.host].is_deaf(self.now_ms) {
            self.look(life, None);
            self.after((LISTING_EVERY_MS, LISTING_EVERY_MS), Event::List(life));
        }
    }

    /// A look begins: at one machine, or at all.
    pub(super) fn look(&mut self, life: Life, vm: Option<VmId>) {
        if self.hosts[life.host].is_deaf(self.now_ms) {
            return;
        }
        let Some(agent) = self.agent(life) else { return };
        let ticket = agent.ticket();
        self.after((0, 60), Event::Capture(life, ticket, vm));
    }

    /// The hypervisor answers a look; the answer is on its way for a while.
    pub(super) fn capture(&mut self, life: Life, ticket: u64, vm: Option<VmId>) {
        if self.hosts[life.host].is_deaf(self.now_ms) {
            return;
        }
        let metal = &self.hosts[life.host].metal;
        let input = match vm.map(|vm| (vm, metal.look(vm))) {
            Some((vm, Some(machine))) => {
                Input::Sighting(vm, Sighting { ticket, seen: Seen::Present(machine) })
            }
            // Only a full listing shows that something is absent.
            Some((_, None)) | None => Input::Inventory { ticket, machines: metal.list() },
        };
        self.after((1, 100), Event::ToAgent(life, Box::new(input)));
    }

    fn fetch(&mut self, life: Life, image: ImageDigest) {
        let number = self.steps;
        self.steps += 1;
        let fetched = if self.befalls(FaultKind::FetchFailed) {
            self.count(FaultKind::FetchFailed);
            if self.random.happens(100) {
                Fetched::Refused("image_refused: another file".to_owned())
            } else {
                Fetched::Unavailable("fetch_failed: nobody answers".to_owned())
            }
        } else {
            Fetched::Here
        };
        if let Some(agent) = self.agent(life) {
            agent.fetching.insert(image, number);
            self.after((100, 8_000), Event::FetchEnds(life, image, number, fetched));
        }
    }

    pub(super) fn fetch_ends(
        &mut self,
        life: Life,
        image: ImageDigest,
        number: u64,
        fetched: Fetched,
    ) -> Result<(), Broken> {
        let Some(agent) = self.agent(life) else { return Ok(()) };
        if agent.fetching.get(&image) != Some(&number) {
            return Ok(());
        }
        agent.fetching.remove(&image);
        if fetched == Fetched::Here {
            self.hosts[life.host].metal.images.insert(image);
        }
        self.input(life, Input::Fetched(image, fetched))
    }

    pub(super) fn look_at_stores(&mut self, life: Life) {
        // A look that fails is made again later.
        if self.season == Season::Calm || !self.random.happens(50) {
            let stored = self.hosts[life.host].metal.stored();
            self.after((1, 100), Event::ToAgent(life, Box::new(Input::Stored(stored))));
        }
    }
}

/// What a report is about.
fn subject(body: &Body) -> Option<ReportSubject> {
    match body {
        Body::ReportVm(report) => Some(ReportSubject::Vm(report.vm)),
        Body::ReportVolume(report) => Some(ReportSubject::Volume(report.volume)),
        Body::ReportSnapshot(report) => {
            Some(ReportSubject::Snapshot(report.volume, report.snapshot))
        }
        _ => None,
    }
}
