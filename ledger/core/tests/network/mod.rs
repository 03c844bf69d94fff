//! A network of cores where every message takes one millisecond and every write two, and a judge
//! whose root is a digest of everything ordered.
//!
//! Owns what a driver does, in its smallest form. Never decides by chance. Called by the scenarios.
#![allow(dead_code, unreachable_pub)]

mod lies;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use dagger_ledger_core::{
    CommitRecord, Core, CoreConfiguration, EventSigner, Frontier, Input, Memory, Moment, Output,
    Record, RestoredState, WriteNumber,
};
use dagger_payload::committee::Committee;
use dagger_payload::event::{CommitEnd, Event};
use dagger_payload::handover::{EpochEnd, Founding, Handover};
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, Epoch, EventDigest, LedgerTime, PayloadDigest, Position,
    StateRoot,
};
use dagger_payload::key::Signature;
use dagger_payload::limits::COMMIT_BYTES_DEFAULT;
use dagger_payload::payload::{SignatureKind, SignedPayload};
use dagger_payload::peer::{Highest, PeerMessage};
use dagger_payload::release::{OrderedCommit, initial_prefix};

const CLUSTER: ClusterId = ClusterId([7; 32]);
const HANDOVER_DISTANCE_COMMITS: u64 = 5;
const START_MS: u64 = 1_700_000_000_000;

struct CheapSigner(u8);

impl EventSigner for CheapSigner {
    fn sign(&self, _: &EventDigest) -> Signature {
        Signature([self.0; 64])
    }
}

#[derive(Default, Clone)]
pub struct Store {
    events: BTreeMap<EventDigest, Arc<Event>>,
    commits: Vec<CommitRecord>,
    pool: BTreeMap<PayloadDigest, SignedPayload>,
    pub handovers: Vec<Handover>,
    memory: Memory,
    /// What the judge begins with.
    snapshot: Option<Adopted>,
}

/// What a host begins from, in place of the history up to there.
#[derive(Clone)]
pub struct Adopted {
    frontier: Frontier,
    end: CommitEnd,
    ordered: Vec<PayloadDigest>,
}

/// What a liar says.
pub type Lie = Arc<Event>;

pub struct Host {
    pub core: Core,
    pub store: Store,
    pending: Vec<(WriteNumber, Vec<Record>)>,
    durable: WriteNumber,
    waiting: Vec<(WriteNumber, Output)>,
    wake_at: Moment,
    pub ordered: Vec<PayloadDigest>,
    /// How far ledger time was behind the clock when a payload was last judged, in milliseconds.
    pub judged_behind_ms: u64,
    root: StateRoot,
    /// The end that the judge has named, until it is judged.
    epoch_end: Option<EpochEnd>,
    pub alive: bool,
    lives: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Deliver { to: usize, from: usize, frame: Vec<u8> },
    Durable { host: usize, number: u64 },
    Judge { host: usize, index: CommitIndex },
}

pub struct Net {
    pub hosts: Vec<Host>,
    /// Voting hosts at the founding: the first of them.
    members: usize,
    now: u64,
    due: BTreeSet<(u64, u64, Due)>,
    sequence: u64,
    pub frames: Rc<RefCell<u64>>,
    /// Bytes of all that was sent.
    pub bytes: usize,
    /// Events that each host sent from its store.
    pub served: Vec<u64>,
    /// Sends nothing from its store.
    pub withholding: Option<usize>,
    /// Nobody hears it.
    pub muted: Option<usize>,
    /// How long each host's judge takes, in milliseconds; those that are not named take none.
    pub judge_ms: BTreeMap<usize, u64>,
    /// How far hosts' clocks are ahead, in milliseconds.
    pub ahead_ms: BTreeMap<usize, u64>,
    judging: BTreeMap<(usize, CommitIndex), OrderedCommit>,
}

fn founding() -> Founding {
    let end = CommitEnd {
        index: CommitIndex(0),
        position: Position(0),
        prefix_hash: initial_prefix(&CLUSTER),
        state_root: StateRoot::ZERO,
    };
    Founding { end, ledger_time: LedgerTime(0) }
}

fn core(members: usize, me: usize, last: Option<&Handover>, state: RestoredState) -> Core {
    let configuration = CoreConfiguration {
        cluster: CLUSTER,
        epoch: last.map_or(Epoch(0), |handover| handover.epoch),
        committee: last.map_or(Committee::new(members).expect("in range"), |last| last.committee),
        me: author(me),
        collection_depth_rounds: 20,
        handover_distance_commits: HANDOVER_DISTANCE_COMMITS,
        commit_bytes_max: COMMIT_BYTES_DEFAULT,
        founding: last.map_or(founding(), |handover| handover.founding),
    };
    Core::restore(configuration, Box::new(CheapSigner(u8::try_from(me).expect("few"))), state)
}

pub fn author(index: usize) -> AuthorIndex {
    AuthorIndex(u16::try_from(index).expect("few"))
}

pub fn payload(text: &str) -> SignedPayload {
    SignedPayload {
        signature_kind: SignatureKind::SshEd25519,
        signature: Signature([1; 64]),
        bytes: Bytes::copy_from_slice(text.as_bytes()).into(),
    }
}

fn root_after(root: StateRoot, digest: &PayloadDigest) -> StateRoot {
    StateRoot(PayloadDigest::of(&[root.0, digest.0].concat()).0)
}

impl Net {
    pub fn new(members: usize) -> Self {
        Self::with_followers(members, 0)
    }

    pub fn with_followers(members: usize, followers: usize) -> Self {
        let hosts = (0..members + followers)
            .map(|me| Host {
                core: core(members, me, None, RestoredState::default()),
                store: Store::default(),
                pending: Vec::new(),
                durable: WriteNumber(0),
                waiting: Vec::new(),
                wake_at: Moment(0),
                ordered: Vec::new(),
                judged_behind_ms: 0,
                root: StateRoot::ZERO,
                epoch_end: None,
                alive: true,
                lives: 0,
            })
            .collect();
        let mut net = Self {
            hosts,
            members,
            now: 0,
            due: BTreeSet::new(),
            sequence: 0,
            frames: Rc::new(RefCell::new(0)),
            bytes: 0,
            served: vec![0; members + followers],
            withholding: None,
            muted: None,
            judge_ms: BTreeMap::new(),
            ahead_ms: BTreeMap::new(),
            judging: BTreeMap::new(),
        };
        net.connect_all();
        net
    }

    fn connect_all(&mut self) {
        for a in 0..self.hosts.len() {
            for b in 0..self.hosts.len() {
                if a != b && self.hosts[a].alive && self.hosts[b].alive {
                    self.input(a, Input::PeerConnected(author(b)));
                }
            }
        }
    }

    fn schedule(&mut self, after_ms: u64, due: Due) {
        self.sequence += 1;
        self.due.insert((self.now + after_ms, self.sequence, due));
    }

    fn input(&mut self, host: usize, input: Input) {
        let mut outputs = Vec::new();
        let ahead_ms = self.ahead_ms.get(&host).copied().unwrap_or(0);
        let wall = LedgerTime(START_MS + self.now + ahead_ms);
        self.hosts[host].core.handle(Moment(self.now), wall, input, &mut outputs);
        for output in outputs {
            self.output(host, output);
        }
    }

    fn output(&mut self, at: usize, output: Output) {
        let after = match &output {
            Output::Send { after, .. }
            | Output::Broadcast { after, .. }
            | Output::EpochBegan { after, .. }
            | Output::Committed { after, .. } => *after,
            _ => WriteNumber(0),
        };
        if after > self.hosts[at].durable {
            self.hosts[at].waiting.push((after, output));
            return;
        }
        match output {
            Output::Write { number, records } => {
                self.hosts[at].pending.push((number, records));
                self.schedule(2, Due::Durable { host: at, number: number.0 });
            }
            Output::Send { to, message, .. } => self.send(at, usize::from(to.0), &message),
            Output::Broadcast { message, .. } => {
                for to in (0..self.hosts.len()).filter(|to| *to != at) {
                    self.send(at, to, &message);
                }
            }
            Output::Committed { commit, .. } => self.take_to_judge(at, commit),
            Output::EpochBegan { handover, .. } => {
                assert_eq!(self.hosts[at].store.handovers.last(), Some(&handover));
            }
            Output::WakeAt(moment) => self.hosts[at].wake_at = moment,
            Output::ServeStored { to, epoch, above, below } => {
                self.serve(at, to, epoch, &above, below.0);
            }
            Output::ServeEvents { to, events, .. } => {
                for wanted in events {
                    let event = self.hosts[at].store.events.get(&wanted.digest);
                    if let Some(event) = event.filter(|event| event.as_parent() == wanted).cloned()
                    {
                        self.send(at, usize::from(to.0), &PeerMessage::event(&event));
                    }
                }
            }
            Output::Halted(reason) => panic!("host {at} halted: {reason}"),
        }
    }

    fn serve(&mut self, at: usize, to: AuthorIndex, epoch: Epoch, above: &[Highest], below: u64) {
        if self.withholding == Some(at) {
            return;
        }
        let events = self.hosts[at].store.events.values();
        let events = events.filter(|event| event.header.epoch == epoch);
        let mut events: Vec<_> = events.cloned().collect();
        events.sort_by_key(|event| event.header.round);
        for event in events {
            let known = above.iter().find(|highest| highest.author == event.header.author);
            let round = event.header.round;
            if round.0 < below && known.is_none_or(|highest| round > highest.round) {
                self.served[at] += 1;
                self.send(at, usize::from(to.0), &PeerMessage::event(&event));
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, message: &PeerMessage) {
        let frame = message.to_bytes();
        *self.frames.borrow_mut() += 1;
        self.bytes += frame.len();
        if self.muted == Some(from) {
            return;
        }
        self.schedule(1, Due::Deliver { to, from, frame });
    }

    fn take_to_judge(&mut self, at: usize, commit: OrderedCommit) {
        if let Some(after_ms) = self.judge_ms.get(&at).copied() {
            self.schedule(after_ms, Due::Judge { host: at, index: commit.index });
            self.judging.insert((at, commit.index), commit);
        } else {
            self.judge(at, &commit);
        }
    }

    /// A judge whose root is a digest of everything ordered; the payload `members 0 2 5` changes
    /// who votes.
    fn judge(&mut self, at: usize, commit: &OrderedCommit) {
        let wall_ms = START_MS + self.now;
        let host = &mut self.hosts[at];
        if !commit.payloads.is_empty() {
            host.judged_behind_ms = wall_ms.saturating_sub(commit.ledger_time.0);
        }
        for ordered in &commit.payloads {
            let digest = ordered.payload.digest();
            host.ordered.push(digest);
            host.root = root_after(host.root, &digest);
            let text = std::str::from_utf8(&ordered.payload.bytes).expect("text");
            if let Some(members) = text.strip_prefix("members ") {
                let members = members.split(' ').map(|index| index.parse().expect("an index"));
                let last = CommitIndex(commit.index.0 + HANDOVER_DISTANCE_COMMITS);
                let committee = Committee::of(members.map(AuthorIndex)).expect("in range");
                host.epoch_end.get_or_insert(EpochEnd { last, committee });
            }
        }
        let end = CommitEnd {
            index: commit.index,
            position: commit.last_position(),
            prefix_hash: commit.prefix_hash,
            state_root: host.root,
        };
        let epoch_end = host.epoch_end;
        if epoch_end.is_some_and(|last| last.last == end.index) {
            host.epoch_end = None;
        }
        self.input(at, Input::Judged { end, next_deadline: None, epoch_end });
    }

    pub fn run(&mut self, for_ms: u64) {
        let end = self.now + for_ms;
        loop {
            let wakes = self.hosts.iter().zip(0..).filter(|(host, _)| host.alive);
            let wake = wakes.map(|(host, at)| (host.wake_at.0, at)).min();
            let next = self.due.first().map(|(at, _, _)| *at);
            let at = wake.map(|(at, _)| at).into_iter().chain(next).min();
            let Some(at) = at.filter(|at| *at <= end) else { break };
            self.now = self.now.max(at);
            if next.is_some_and(|next| next <= at) {
                let (_, _, due) = self.due.pop_first().expect("it was just seen");
                self.take(due);
            } else if let Some((_, host)) = wake {
                self.input(host, Input::Tick);
            }
        }
        self.now = end;
    }

    fn take(&mut self, due: Due) {
        match due {
            Due::Deliver { to, from, frame } => {
                if !self.hosts[to].alive || !self.hosts[from].alive {
                    return;
                }
                let message = PeerMessage::read(&frame).expect("own frame");
                self.deliver(to, author(from), message);
            }
            Due::Judge { host, index } => {
                let commit = self.judging.remove(&(host, index));
                if let Some(commit) = commit.filter(|_| self.hosts[host].alive) {
                    self.judge(host, &commit);
                }
            }
            Due::Durable { host, number } => {
                let number = WriteNumber(number);
                if !self.hosts[host].alive || self.hosts[host].pending.is_empty() {
                    return;
                }
                let (written, records) = self.hosts[host].pending.remove(0);
                assert_eq!(written, number);
                self.hosts[host].durable = number;
                self.keep(host, records);
                self.input(host, Input::WriteDurable(number));
                let waiting = std::mem::take(&mut self.hosts[host].waiting);
                for (_, output) in waiting {
                    self.output(host, output);
                }
            }
        }
    }

    fn keep(&mut self, host: usize, records: Vec<Record>) {
        let store = &mut self.hosts[host].store;
        for record in records {
            match record {
                Record::Event(event) | Record::OwnEventReturned(event) => {
                    drop(store.events.insert(event.digest, event));
                }
                Record::Commit(commit) => store.commits.push(commit),
                Record::Packed(digests) => digests.iter().for_each(|digest| {
                    store.pool.remove(digest);
                }),
                Record::Returned(payloads) => {
                    store.pool.extend(payloads.into_iter().map(|p| (p.digest(), p)));
                }
                Record::Handover { handover, memory } => {
                    store.handovers.push(handover);
                    // The witness names an epoch that begins with a memory that is whole.
                    if memory == Memory::Agrees {
                        store.memory = memory;
                    }
                }
                Record::Fork(_) => {}
            }
        }
    }

    fn deliver(&mut self, to: usize, from: AuthorIndex, message: PeerMessage) {
        let input = match message {
            PeerMessage::Event { bytes } => {
                let event = Arc::new(Event::read(bytes).expect("well-formed"));
                Input::EventReceived { from, event }
            }
            message => match Input::of_message(from, message) {
                Some(input) => input,
                None => return,
            },
        };
        self.input(to, input);
    }

    pub fn submit(&mut self, host: usize, text: &str) {
        let payload = payload(text);
        self.hosts[host].store.pool.insert(payload.digest(), payload.clone());
        self.input(host, Input::Submitted(payload));
    }

    pub fn kill(&mut self, host: usize) {
        self.hosts[host].alive = false;
        for other in 0..self.hosts.len() {
            if other != host && self.hosts[other].alive {
                self.input(other, Input::PeerDisconnected(author(host)));
            }
        }
    }

    /// Starts a killed host from what was durable.
    pub fn restart(&mut self, host: usize) {
        self.hosts[host].lives += 1;
        let store = self.hosts[host].store.clone();
        let last = store.handovers.last();
        let epoch = last.map_or(Epoch(0), |handover| handover.epoch);
        let founding = last.map_or(founding(), |handover| handover.founding);
        let events = store.events.values().filter(|event| event.header.epoch == epoch);
        let mut events: Vec<_> = events.cloned().collect();
        events.sort_by_key(|event| event.header.round);
        let commits = store.commits.iter().filter(|commit| commit.index > founding.end.index);
        let commits: Vec<_> = commits.cloned().collect();
        let floor = commits.last().map_or(0, |commit| commit.floor.0);
        let own = events.iter().filter(|event| event.header.author == author(host));
        let state = RestoredState {
            own_last: own.max_by_key(|event| event.header.round).cloned(),
            highest: Vec::new(),
            events: events.iter().filter(|e| e.header.round.0 >= floor).cloned().collect(),
            commits,
            pool: store.pool.values().cloned().collect(),
            memory: store.memory,
            questions_above: self.hosts[host].lives << 32,
        };
        let (members, hosts) = (self.members, self.hosts.len());
        let restarted = &mut self.hosts[host];
        restarted.core = core(members, host, last, state);
        restarted.epoch_end = None;
        restarted.pending.clear();
        restarted.waiting.clear();
        restarted.durable = WriteNumber(0);
        restarted.wake_at = Moment(0);
        restarted.alive = true;
        (restarted.ordered, restarted.root) = (Vec::new(), StateRoot::ZERO);
        let judged = store.snapshot.as_ref().map_or(CommitIndex(0), |from| from.end.index);
        if let Some(from) = store.snapshot {
            self.begin_from(host, from);
        }
        let mut history: Vec<Arc<Event>> = Vec::new();
        for record in store.commits.into_iter().filter(|record| record.index > judged) {
            history.clear();
            history.extend(record.events.iter().map(|event| store.events[&event.digest].clone()));
            let commit = record.to_ordered_commit(&history).expect("stored whole");
            self.judge(host, &commit);
        }
        for other in (0..hosts).filter(|other| *other != host) {
            if self.hosts[other].alive {
                self.input(other, Input::PeerConnected(author(host)));
                self.input(host, Input::PeerConnected(author(other)));
            }
        }
    }

    /// The disk is lost.
    pub fn wipe(&mut self, host: usize) {
        self.hosts[host].store = Store { memory: Memory::Doubtful, ..Store::default() };
    }

    /// What another host could begin from: the last commit with payloads that lies `back` commits
    /// before the newest one of `host`.
    pub fn frontier_before_the_last(&self, host: usize, back: usize) -> Adopted {
        let store = &self.hosts[host].store;
        let until = &store.commits[..store.commits.len() - back];
        let last = until.iter().rfind(|commit| commit.last_position >= commit.first_position);
        let last = last.expect("payloads were ordered");
        let began = |handover: &&Handover| handover.founding.end.index < last.index;
        let handover = store.handovers.iter().rfind(began).cloned();
        let mut frontier = Frontier { handover, commits: Vec::new() };
        let began = frontier.began();
        let near = until.iter().filter(|commit| {
            let before = commit.index <= last.index && commit.index > began;
            before && commit.leader.round >= last.collection_round
        });
        frontier.commits = near.cloned().collect();
        assert_eq!(frontier.last(), Some(last));
        let count = usize::try_from(last.last_position.0).expect("few");
        let ordered = self.hosts[host].ordered[..count].to_vec();
        let end = CommitEnd {
            index: last.index,
            position: last.last_position,
            prefix_hash: last.prefix_hash,
            state_root: ordered.iter().fold(StateRoot::ZERO, root_after),
        };
        Adopted { frontier, end, ordered }
    }

    /// The same, and all hosts that live forget what nobody needs who begins there.
    pub fn prune_below_a_frontier(&mut self, host: usize, back: usize) -> Adopted {
        let adopted = self.frontier_before_the_last(host, back);
        let floor = adopted.frontier.last().expect("whole").floor;
        let epoch = adopted.frontier.epoch(Epoch(0));
        assert!(floor.0 > 0, "nothing to forget");
        for host in self.hosts.iter_mut().filter(|host| host.alive) {
            let kept = |event: &Event| (event.header.epoch, event.header.round) > (epoch, floor);
            host.store.events.retain(|_, event| kept(event));
        }
        adopted
    }

    /// Store and judge of `host` go on from there, as its ledger would make them; then the core
    /// hears of it.
    pub fn adopt(&mut self, host: usize, adopted: Adopted) {
        let store = &mut self.hosts[host].store;
        store.commits = adopted.frontier.commits.clone();
        store.handovers.extend(adopted.frontier.handover.clone());
        store.snapshot = Some(adopted.clone());
        self.adopt_only(host, adopted);
    }

    /// Only the core hears of it.
    pub fn adopt_only(&mut self, host: usize, adopted: Adopted) {
        let (frontier, end) = (Box::new(adopted.frontier.clone()), adopted.end);
        let ahead = end.index > self.hosts[host].core.status().committed;
        self.input(host, Input::Adopted { frontier, end, epoch_end: None });
        if ahead {
            self.begin_from(host, adopted);
        }
    }

    fn begin_from(&mut self, host: usize, Adopted { ordered, end, .. }: Adopted) {
        (self.hosts[host].ordered, self.hosts[host].root) = (ordered, end.state_root);
        self.input(host, Input::Judged { end, next_deadline: None, epoch_end: None });
    }

    pub fn assert_all_ordered(&self, texts: &[&str]) {
        let wanted: BTreeSet<_> = texts.iter().map(|text| payload(text).digest()).collect();
        let first = &self.hosts.iter().find(|host| host.alive).expect("one lives").ordered;
        for host in self.hosts.iter().filter(|host| host.alive) {
            assert_eq!(host.ordered.len(), first.len());
            assert_eq!(&host.ordered, first);
        }
        assert_eq!(first.iter().copied().collect::<BTreeSet<_>>(), wanted);
        assert_eq!(first.len(), wanted.len());
    }
}
