//! The world of one run: hosts, links, users and faults, moved one happening at a time.
//!
//! Owns the run. Never breaks what it models: a host sees only its own clock, disk and links.
//! Called by [`super::run`].

use std::collections::BTreeMap;
use std::sync::Arc;

use dagger_ledger_core::Frontier;
use dagger_ledger_core::interface::{CoreConfiguration, Input, Output, WriteNumber};
use dagger_payload::committee::Committee;
use dagger_payload::event::{CommitEnd, Event};
use dagger_payload::handover::Founding;
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, Epoch, LedgerTime, Position, StateRoot,
};
use dagger_payload::payload::SignedPayload;
use dagger_payload::peer::PeerMessage;
use dagger_payload::release::initial_prefix;

use super::clocks::ClockChange;
use super::device::PowerCut;
use super::disk::WitnessFate;
use super::faults::FaultKind;
use super::host::{Host, Incarnation};
use super::judge::HANDOVER_DISTANCE_COMMITS;
use super::keys::Keys;
use super::liar::{Liar, LieKind};
use super::log::Log;
use super::network::{Connection, Network};
use super::random::Random;
use super::schedule::{Schedule, SimulatedTime};
use super::settings::{Change, Settings};
use super::snapshots::{Fetched, SnapshotCounts};
use super::users::Users;
use crate::promise::{Broken, End, HostAtEnd, Observed, Promises, Setting};

/// How long a broken connection takes to come back, from and to, in microseconds.
pub(super) const RECONNECT_US: (u64, u64) = (20_000, 600_000);
/// How long a closed direction is borne before the connection breaks, from and to, in microseconds.
pub(super) const LINK_TIMEOUT_US: (u64, u64) = (200_000, 4_000_000);
/// Slowest write of a slow disk, and longest stand-still of a slow judge, in microseconds.
pub(super) const SLOW_WRITE_US: (u64, u64) = (50_000, 400_000);
/// Time to judge an empty commit, or one again after a restart, in microseconds.
pub(super) const REJUDGE_US: u64 = 20;

/// What may happen.
pub(crate) enum Happening {
    /// Something in one host.
    Host(usize, HostHappening),
    /// A pair tries to connect.
    Connect(usize, usize),
    /// A direction that was closed has not opened: the connection breaks.
    TimeOut(usize, usize, Connection),
    /// A direction closes for so many microseconds.
    Close(usize, usize, u64),
    /// A direction opens again.
    Open(usize, usize),
    /// A host stands still for so many microseconds.
    Pause(usize, u64),
    /// An old copy takes the place of a host's store.
    RestoreBackup(usize, WitnessFate),
    /// A host that stood still goes on.
    Resume(usize, Incarnation),
    /// A host that is down starts.
    Start(usize),
    /// A user submits.
    Submit,
    /// The operators change the members.
    Change(Change),
    /// A host begins to speak to nobody.
    BeLate,
    /// The others have so many more payloads to order, while this host speaks to nobody.
    WorkWithout(usize, u32),
    /// A host's clock leaps, or is set right.
    Clock(usize, ClockChange),
    /// A host loses its store when much was ordered already.
    Lose,
    /// A fault begins.
    Fault,
    /// A liar has its turn.
    Lie(usize),
}

/// What may happen in one host.
pub(crate) enum HostHappening {
    /// A message arrives.
    Arrives(usize, Connection, Arc<PeerMessage>),
    /// A link is up.
    Connected(usize, Connection),
    /// A link is gone.
    Disconnected(usize, Connection),
    /// A flush has ended.
    Written(Incarnation, WriteNumber),
    /// A submitted payload is to become durable.
    Submitted(Incarnation, SignedPayload),
    /// The judge is done with the next commit, if it has not begun elsewhere since.
    Judged(Incarnation, u64),
    /// Offers of snapshots have come.
    Fetch(Incarnation),
    /// All parts of one are here.
    Fetched(Incarnation, Box<Fetched>),
    /// The core hears that store and judge have begun from one.
    Adopted(Incarnation, Box<Frontier>, CommitEnd),
    /// Others are asked for theirs.
    AskForOffers(Incarnation),
    /// It is time to wake.
    Wake(Incarnation, u64),
}

/// See the module.
pub(crate) struct World {
    pub(super) settings: Settings,
    /// Who votes in each epoch that has begun somewhere.
    pub(super) epochs: BTreeMap<Epoch, Committee>,
    /// f, in the smallest committee of the run.
    pub(super) faulty_max: usize,
    /// Epochs that ended with a member less.
    pub(super) left: u64,
    pub(super) keys: Keys,
    pub(super) schedule: Schedule<Happening>,
    pub(super) network: Network<Arc<PeerMessage>>,
    pub(super) hosts: Vec<Host>,
    pub(super) liars: BTreeMap<usize, Liar>,
    pub(super) users: Users,
    pub(super) promises: Promises,
    pub(super) random: Random,
    /// Decides about crashes after a return.
    pub(super) returns: Random,
    /// Decides about clocks that leap.
    pub(super) clocks: Random,
    /// Decides about snapshots.
    pub(super) transfer: Random,
    /// What came of them.
    pub(crate) snapshots: SnapshotCounts,
    pub(super) closed: BTreeMap<(usize, usize), u32>,
    pub(super) parsed: BTreeMap<usize, Option<Arc<Event>>>,
    pub(super) injecting: bool,
    pub(super) judged_before: Vec<CommitIndex>,
    pub(super) handed_on: Vec<CommitIndex>,
    /// Whether all honest hosts have a memory of their own.
    pub(super) founded: bool,
    /// Hosts that forgot something, and the commit that they must know before they know again all
    /// that they knew.
    pub(super) forgetful: BTreeMap<usize, CommitIndex>,
    /// Power cuts that lost, tore or reordered sectors.
    pub(crate) cuts: PowerCut,
    /// What happened.
    pub(crate) log: Log,
    /// Faults by kind.
    pub(crate) fault_counts: BTreeMap<FaultKind, u64>,
}

pub(super) type Step = Result<(), Broken>;

impl World {
    /// The world that `seed` draws.
    pub(crate) fn new(seed: u64, hosts: usize, log: Log) -> Self {
        let settings = Settings::draw(seed, hosts);
        let committee = Committee::new(hosts).expect("the caller bounds the hosts");
        let faulty_max = settings.faulty_max(hosts);
        let cluster = ClusterId::of(&seed.to_be_bytes());
        let keys = Keys::draw(seed, cluster, hosts);
        let founding = CommitEnd {
            index: CommitIndex(0),
            position: Position(0),
            prefix_hash: initial_prefix(&cluster),
            state_root: StateRoot::ZERO,
        };
        let host = |me: AuthorIndex| {
            let configuration = CoreConfiguration {
                cluster,
                epoch: Epoch(0),
                committee,
                me,
                collection_depth_rounds: settings.collection_depth_rounds,
                handover_distance_commits: HANDOVER_DISTANCE_COMMITS,
                commit_bytes_max: settings.commit_bytes_max,
                founding: Founding { end: founding, ledger_time: LedgerTime(0) },
            };
            let at = usize::from(me.0);
            Host::new(configuration, keys.of(at), settings.clock_ahead_ms[at])
        };
        let hosts: Vec<Host> = committee.authors().map(host).collect();
        let links = settings.links.clone();
        let mut draw = Random::new(seed, "liars");
        let first_liar = draw.index(hosts.len());
        let liars = (0..settings.liars).map(|turn| (first_liar + turn) % hosts.len());
        let liar = |host: usize| {
            let seed = draw.bits();
            (host, Liar::new(hosts[host].configuration.clone(), keys.of(host), seed))
        };
        let liars: BTreeMap<usize, Liar> = liars.map(liar).collect();
        Self {
            network: Network::new(hosts.len(), links, Random::new(seed, "network")),
            users: Users::new(Random::new(seed, "users"), &settings),
            promises: Promises::new(Setting {
                cluster,
                committee,
                faulty_max,
                founding,
                liars: liars.keys().map(|host| hosts[*host].me).collect(),
            }),
            liars,
            settings,
            epochs: BTreeMap::from([(Epoch(0), committee)]),
            faulty_max,
            left: 0,
            keys,
            schedule: Schedule::default(),
            hosts,
            random: Random::new(seed, "world"),
            returns: Random::new(seed, "crashes after returns"),
            clocks: Random::new(seed, "clocks"),
            transfer: Random::new(seed, "snapshots"),
            snapshots: SnapshotCounts::default(),
            closed: BTreeMap::new(),
            parsed: BTreeMap::new(),
            injecting: true,
            judged_before: vec![CommitIndex(0); committee.members()],
            handed_on: vec![CommitIndex(0); committee.members()],
            founded: false,
            forgetful: BTreeMap::new(),
            cuts: PowerCut::default(),
            log,
            fault_counts: BTreeMap::new(),
        }
    }

    /// What was drawn.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Payloads reported received.
    pub(crate) fn received(&self) -> u64 {
        self.users.received
    }

    /// The network's own misdeeds.
    pub(crate) fn network_counts(&self) -> super::network::NetworkCounts {
        self.network.counts
    }

    /// How often each lie was told.
    pub(crate) fn lies(&self) -> BTreeMap<LieKind, u64> {
        let mut lies = BTreeMap::new();
        for (kind, count) in self.liars.values().flat_map(|liar| &liar.lies) {
            *lies.entry(*kind).or_default() += count;
        }
        lies
    }

    /// How many epochs began after the first one.
    pub(crate) fn epochs_began(&self) -> u64 {
        self.epochs.keys().next_back().map_or(0, |last| last.0)
    }

    /// How many of them with a host less.
    pub(crate) fn members_left(&self) -> u64 {
        self.left
    }

    /// How many hosts lie.
    pub(crate) fn liars_count(&self) -> usize {
        self.liars.len()
    }

    /// The present.
    pub(crate) fn now(&self) -> SimulatedTime {
        self.schedule.now()
    }

    /// Starts hosts, links, users and faults.
    pub(crate) fn begin(&mut self) {
        for host in 0..self.hosts.len() {
            let delay_us = self.random.within((0, 300_000));
            self.schedule.after_us(delay_us, Happening::Start(host));
            for other in 0..host {
                self.connect_later(other, host);
            }
        }
        self.schedule.after_us(100_000, Happening::Submit);
        let gap_us = self.random.within(self.settings.fault_gap_us);
        self.schedule.after_us(gap_us, Happening::Fault);
        self.plan_changes();
        let late_events = if self.faulty_max > 0 { self.settings.late_events } else { 0 };
        for _ in 0..late_events {
            let at_us = self.returns.within((1_000_000, self.settings.faults_us));
            self.schedule.after_us(at_us, Happening::BeLate);
        }
        self.help_liars();
        self.plan_leaps();
    }

    /// Ends all faults: links open, hosts go on or start.
    pub(crate) fn heal(&mut self) {
        for host in self.liars.keys().copied().collect::<Vec<_>>() {
            self.flood_late(host);
        }
        self.injecting = false;
        self.network.faulty = false;
        self.closed.clear();
        for host in 0..self.hosts.len() {
            self.hosts[host].planned_crash = None;
            self.hosts[host].disk_slow_until = SimulatedTime::default();
            self.hosts[host].disk_full_until = SimulatedTime::default();
            self.hosts[host].judge_slow_until = SimulatedTime::default();
            let incarnation = self.hosts[host].incarnation;
            self.schedule.after_us(0, Happening::Resume(host, incarnation));
            self.schedule.after_us(1, Happening::Start(host));
            for other in 0..self.hosts.len() {
                self.schedule.after_us(0, Happening::Open(host, other));
            }
        }
        self.bring_all_back();
        self.look_at_clocks();
        self.plan_losses();
    }

    /// Lets one payload be submitted at every host, or at one host only.
    pub(crate) fn submit_again(&mut self) {
        let mut hosts = self.honest_hosts();
        if self.random.happens(500) {
            let only = self.random.choose(&hosts);
            hosts.retain(|host| *host == only);
        }
        for host in hosts {
            let payload = self.users.payload();
            self.submit_at(host, payload);
        }
    }

    /// Says that nothing is left to do; liars whom nobody names any more then try to make others
    /// work.
    ///
    /// # Errors
    /// A broken promise.
    pub(crate) fn silence_begins(&mut self) -> Step {
        self.observe(0, &Observed::SilenceBegins)?;
        self.break_silence();
        Ok(())
    }

    /// Moves on to `end`.
    ///
    /// # Errors
    /// The first broken promise.
    pub(crate) fn run_until(&mut self, end: SimulatedTime) -> Step {
        while let Some(happening) = self.schedule.next_until(end) {
            self.happen(happening)?;
        }
        Ok(())
    }

    /// Shows the end to the promises.
    ///
    /// # Errors
    /// A broken promise.
    pub(crate) fn check_end(&mut self) -> Step {
        let fallen = self.promises.fallen().clone();
        for host in self.honest_hosts() {
            if self.settings.checks_store && !self.hosts[host].disk.is_sound() {
                let (promise, host) = ("nothing_lost", self.hosts[host].me);
                let detail = "the store does not hold what was written".to_owned();
                return Err(Broken { promise, host, detail });
            }
        }
        let hosts = self
            .hosts
            .iter()
            .filter(|host| !self.liars.contains_key(&usize::from(host.me.0)))
            .filter(|host| !fallen.contains(&host.me))
            .map(|host| HostAtEnd {
                host: host.me,
                disk: &host.disk.durable,
                judged: host.judge.end,
                waiting: host.waiting(),
                held: host.held(),
                own_last: host.disk.durable.own_last(host.me),
            })
            .collect();
        self.promises.observe_end(&End { hosts })
    }

    pub(super) fn observe(&mut self, host: usize, observed: &Observed<'_>) -> Step {
        let author = self.hosts[host].me;
        self.promises.observe(author, observed)
    }

    pub(super) fn happen(&mut self, happening: Happening) -> Step {
        match happening {
            Happening::Host(host, happening) => {
                if self.liars.contains_key(&host) {
                    self.happen_in_liar(host, happening);
                    return Ok(());
                }
                if self.hosts[host].paused {
                    self.hosts[host].backlog.push(happening);
                    return Ok(());
                }
                self.happen_in(host, happening)
            }
            Happening::Connect(a, b) => {
                self.connect(a, b);
                Ok(())
            }
            Happening::TimeOut(a, b, connection) => {
                let open = self.network.is_open(a, b) && self.network.is_open(b, a);
                if !open && self.network.connection(a, b) == Some(connection) {
                    self.reset(a, b);
                }
                Ok(())
            }
            Happening::Close(from, to, length_us) => {
                self.close(from, to, length_us);
                Ok(())
            }
            Happening::Open(from, to) => {
                self.open(from, to);
                Ok(())
            }
            Happening::Pause(host, length_us) => {
                self.stand_still(host, length_us);
                Ok(())
            }
            Happening::RestoreBackup(host, fate) => self.restore_backup(host, fate),
            Happening::Resume(host, incarnation) => self.resume(host, incarnation),
            Happening::Start(host) => self.start(host),
            Happening::Submit => {
                self.submit();
                Ok(())
            }
            Happening::Change(change) => {
                self.change(change);
                Ok(())
            }
            Happening::BeLate => {
                self.be_late();
                Ok(())
            }
            Happening::WorkWithout(late, payloads) => {
                self.work_without(late, payloads);
                Ok(())
            }
            Happening::Clock(host, change) => self.change_clock(host, change),
            Happening::Lose => {
                self.lose();
                Ok(())
            }
            Happening::Fault => {
                self.fault();
                Ok(())
            }
            Happening::Lie(host) => {
                self.lie(host);
                Ok(())
            }
        }
    }

    fn happen_in(&mut self, host: usize, happening: HostHappening) -> Step {
        let incarnation = self.hosts[host].incarnation;
        match happening {
            HostHappening::Arrives(from, connection, message) => {
                if self.hosts[host].connections[from] == Some(connection) {
                    self.arrive(host, from, &message)?;
                }
            }
            HostHappening::Connected(peer, connection) => {
                if self.hosts[host].core.is_some()
                    && self.network.connection(host, peer) == Some(connection)
                {
                    self.log.note(self.now(), host, "connected", connection.0);
                    self.hosts[host].connections[peer] = Some(connection);
                    let author = self.hosts[peer].me;
                    self.feed(host, Input::PeerConnected(author))?;
                }
            }
            HostHappening::Disconnected(peer, connection) => {
                if self.hosts[host].connections[peer] == Some(connection) {
                    self.log.note(self.now(), host, "disconnected", connection.0);
                    self.hosts[host].connections[peer] = None;
                    let author = self.hosts[peer].me;
                    self.feed(host, Input::PeerDisconnected(author))?;
                }
            }
            HostHappening::Written(life, through) if life == incarnation => {
                self.written(host, through)?;
            }
            HostHappening::Submitted(life, payload) if life == incarnation => {
                self.submitted(host, payload)?;
            }
            HostHappening::Judged(life, turn) if life == incarnation => {
                if self.hosts[host].judge_turn == turn {
                    self.judged(host)?;
                }
            }
            HostHappening::Fetch(life) if life == incarnation => self.fetch(host),
            HostHappening::Fetched(life, fetched) if life == incarnation => {
                self.settle(host, fetched)?;
            }
            HostHappening::Adopted(life, frontier, end) if life == incarnation => {
                self.adopted(host, frontier, end)?;
            }
            HostHappening::AskForOffers(life) if life == incarnation => {
                self.ask_for_offers(host)?;
            }
            HostHappening::Wake(life, token) if life == incarnation => {
                if self.hosts[host].wake_token == token {
                    self.feed(host, Input::Tick)?;
                }
            }
            HostHappening::Written(..)
            | HostHappening::Submitted(..)
            | HostHappening::Judged(..)
            | HostHappening::Fetch(_)
            | HostHappening::Fetched(..)
            | HostHappening::Adopted(..)
            | HostHappening::AskForOffers(_)
            | HostHappening::Wake(..) => {}
        }
        Ok(())
    }

    pub(super) fn feed(&mut self, host: usize, input: Input) -> Step {
        let now = self.now();
        let submits = matches!(input, Input::Submitted(_));
        let waited = self.hosts[host].waiting();
        let outputs = self.hosts[host].handle(now, input);
        let returned = !submits && self.hosts[host].waiting() > waited;
        self.observe(host, &Observed::Holds { held: &self.hosts[host].held() })?;
        for output in outputs {
            match output {
                Output::Write { number, records } => {
                    self.hosts[host].disk.write(number, records);
                    self.flush(host);
                }
                Output::WakeAt(moment) => {
                    let at = self.hosts[host].time_of(moment);
                    self.hosts[host].wake_token += 1;
                    let token = self.hosts[host].wake_token;
                    let life = self.hosts[host].incarnation;
                    let happening = Happening::Host(host, HostHappening::Wake(life, token));
                    self.schedule.at(at, happening);
                }
                Output::Halted(reason) => {
                    let reason = reason.to_string();
                    self.observe(host, &Observed::Halted { reason })?;
                }
                Output::Send { .. }
                | Output::Broadcast { .. }
                | Output::ServeStored { .. }
                | Output::ServeEvents { .. }
                | Output::EpochBegan { .. }
                | Output::Committed { .. } => self.hosts[host].held.push_back(output),
            }
        }
        if returned {
            self.payloads_returned(host);
        }
        self.release(host)
    }

    pub(super) fn release(&mut self, host: usize) -> Step {
        while let Some(output) = self.hosts[host].release() {
            match output {
                Output::Send { to, message, .. } => {
                    self.send(host, usize::from(to.0), &Arc::new(message))?;
                }
                Output::Broadcast { message, .. } => {
                    let message = Arc::new(message);
                    for to in (0..self.hosts.len()).filter(|to| *to != host) {
                        self.send(host, to, &message)?;
                    }
                }
                Output::ServeStored { to, epoch, above, below } => {
                    self.serve_stored(host, to, epoch, &above, below)?;
                }
                Output::ServeEvents { to, events, epoch } => {
                    let events = self.hosts[host].disk.stored(epoch, &events);
                    self.serve(host, to, &events)?;
                }
                Output::Committed { commit, .. } => {
                    let (now, index) = (self.now(), commit.index.0);
                    self.log.note(now, host, "committed", index);
                    let author = self.hosts[host].me;
                    let observed =
                        Observed::Ordered { commit: &commit, disk: &self.hosts[host].disk.durable };
                    self.promises.observe(author, &observed)?;
                    self.handed_on[host] = self.handed_on[host].max(commit.index);
                    self.judge(host);
                }
                Output::EpochBegan { handover, .. } => self.epoch_began(host, &handover)?,
                Output::Write { .. } | Output::WakeAt(_) | Output::Halted(_) => {}
            }
        }
        Ok(())
    }
}
