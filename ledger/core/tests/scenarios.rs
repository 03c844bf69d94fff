//! Small fixed scenarios of the consensus, on a network where every message takes one millisecond
//! and every write two.
//!
//! Pinned here: how many rounds a lone payload costs, silence afterwards, dead and restarted
//! members, liars. The seeded simulator of `dagger-tests` does the same with chance in every place.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use dagger_ledger_core::{
    CommitRecord, Core, CoreConfiguration, EventSigner, Input, Memory, Moment, Output, Phase,
    Record, RestoredState, WriteNumber,
};
use dagger_payload::committee::Committee;
use dagger_payload::event::{CommitEnd, Event};
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, Epoch, EventDigest, LedgerTime, PayloadDigest, Position,
    StateRoot,
};
use dagger_payload::key::Signature;
use dagger_payload::payload::{SignatureKind, SignedPayload};
use dagger_payload::peer::{Highest, PeerMessage};
use dagger_payload::release::{OrderedCommit, initial_prefix};

const CLUSTER: ClusterId = ClusterId([7; 32]);
const START_MS: u64 = 1_700_000_000_000;

struct CheapSigner(u8);

impl EventSigner for CheapSigner {
    fn sign(&self, _: &EventDigest) -> Signature {
        Signature([self.0; 64])
    }
}

#[derive(Default, Clone)]
struct Store {
    events: BTreeMap<EventDigest, Arc<Event>>,
    commits: Vec<CommitRecord>,
    pool: BTreeMap<PayloadDigest, SignedPayload>,
}

struct Host {
    core: Core,
    store: Store,
    pending: Vec<(WriteNumber, Vec<Record>)>,
    durable: WriteNumber,
    waiting: Vec<(WriteNumber, Output)>,
    wake_at: Moment,
    ordered: Vec<PayloadDigest>,
    /// How far ledger time was behind the clock when a payload was last judged, in milliseconds.
    judged_behind_ms: u64,
    root: StateRoot,
    alive: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Deliver { to: usize, from: usize, frame: Vec<u8> },
    Durable { host: usize, number: u64 },
}

struct Net {
    hosts: Vec<Host>,
    now: u64,
    due: BTreeSet<(u64, u64, Due)>,
    sequence: u64,
    frames: Rc<RefCell<u64>>,
}

fn founding() -> CommitEnd {
    CommitEnd {
        index: CommitIndex(0),
        position: Position(0),
        prefix_hash: initial_prefix(&CLUSTER),
        state_root: StateRoot::ZERO,
    }
}

fn core(members: usize, me: usize, state: RestoredState) -> Core {
    let configuration = CoreConfiguration {
        cluster: CLUSTER,
        epoch: Epoch(0),
        committee: Committee::new(members).expect("in range"),
        me: author(me),
        collection_depth_rounds: 20,
        founding: founding(),
    };
    Core::restore(configuration, Box::new(CheapSigner(u8::try_from(me).expect("few"))), state)
}

fn author(index: usize) -> AuthorIndex {
    AuthorIndex(u16::try_from(index).expect("few"))
}

fn payload(text: &str) -> SignedPayload {
    SignedPayload {
        signature_kind: SignatureKind::SshEd25519,
        signature: Signature([1; 64]),
        bytes: Bytes::copy_from_slice(text.as_bytes()),
    }
}

impl Net {
    fn new(members: usize) -> Self {
        let hosts = (0..members)
            .map(|me| Host {
                core: core(members, me, RestoredState::default()),
                store: Store::default(),
                pending: Vec::new(),
                durable: WriteNumber(0),
                waiting: Vec::new(),
                wake_at: Moment(0),
                ordered: Vec::new(),
                judged_behind_ms: 0,
                root: StateRoot::ZERO,
                alive: true,
            })
            .collect();
        let mut net = Self {
            hosts,
            now: 0,
            due: BTreeSet::new(),
            sequence: 0,
            frames: Rc::new(RefCell::new(0)),
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
        let wall = LedgerTime(START_MS + self.now);
        self.hosts[host].core.handle(Moment(self.now), wall, input, &mut outputs);
        for output in outputs {
            self.output(host, output);
        }
    }

    fn output(&mut self, at: usize, output: Output) {
        let after = match &output {
            Output::Send { after, .. }
            | Output::Broadcast { after, .. }
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
            Output::Committed { commit, .. } => self.judge(at, &commit),
            Output::WakeAt(moment) => self.hosts[at].wake_at = moment,
            Output::ServeStored { to, above, below } => self.serve(at, to, &above, below.0),
            Output::ServeDigests { to, digests } => {
                for digest in digests {
                    if let Some(event) = self.hosts[at].store.events.get(&digest).cloned() {
                        self.send(at, usize::from(to.0), &PeerMessage::event(&event));
                    }
                }
            }
            Output::Halted(reason) => panic!("host {at} halted: {reason}"),
        }
    }

    fn serve(&mut self, at: usize, to: AuthorIndex, above: &[Highest], below: u64) {
        let mut events: Vec<_> = self.hosts[at].store.events.values().cloned().collect();
        events.sort_by_key(|event| event.header.round);
        for event in events {
            let known = above.iter().find(|highest| highest.author == event.header.author);
            let round = event.header.round;
            if round.0 < below && known.is_none_or(|highest| round > highest.round) {
                self.send(at, usize::from(to.0), &PeerMessage::event(&event));
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, message: &PeerMessage) {
        *self.frames.borrow_mut() += 1;
        self.schedule(1, Due::Deliver { to, from, frame: message.to_bytes() });
    }

    /// A judge whose root is a digest of everything ordered.
    fn judge(&mut self, at: usize, commit: &OrderedCommit) {
        let wall_ms = START_MS + self.now;
        let host = &mut self.hosts[at];
        if !commit.payloads.is_empty() {
            host.judged_behind_ms = wall_ms - commit.ledger_time.0;
        }
        for ordered in &commit.payloads {
            let digest = ordered.payload.digest();
            host.ordered.push(digest);
            let mut root = host.root.0.to_vec();
            root.extend(digest.0);
            host.root = StateRoot(PayloadDigest::of(&root).0);
        }
        let end = CommitEnd {
            index: commit.index,
            position: commit.last_position(),
            prefix_hash: commit.prefix_hash,
            state_root: host.root,
        };
        self.input(at, Input::Judged { end, next_deadline: None });
    }

    fn run(&mut self, for_ms: u64) {
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
                    drop(store.events.insert(event.digest, event))
                }
                Record::Commit(commit) => store.commits.push(commit),
                Record::Packed(digests) => digests.iter().for_each(|digest| {
                    store.pool.remove(digest);
                }),
                Record::Returned(payloads) => {
                    store.pool.extend(payloads.into_iter().map(|p| (p.digest(), p)));
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
            PeerMessage::Have { highest } => Input::PeerHave { from, highest },
            PeerMessage::Want { digests } => Input::PeerWant { from, digests },
            PeerMessage::AskRecovery { nonce } => Input::RecoveryAsked { from, nonce },
            PeerMessage::AnswerRecovery { nonce, highest_of_asker, quorum_round } => {
                Input::RecoveryAnswered { from, nonce, highest_of_asker, quorum_round }
            }
            PeerMessage::Hello { .. } => return,
        };
        self.input(to, input);
    }

    fn submit(&mut self, host: usize, text: &str) {
        let payload = payload(text);
        self.hosts[host].store.pool.insert(payload.digest(), payload.clone());
        self.input(host, Input::Submitted(payload));
    }

    fn kill(&mut self, host: usize) {
        self.hosts[host].alive = false;
        for other in 0..self.hosts.len() {
            if other != host && self.hosts[other].alive {
                self.input(other, Input::PeerDisconnected(author(host)));
            }
        }
    }

    /// Starts a killed host from what was durable.
    fn restart(&mut self, host: usize) {
        let store = self.hosts[host].store.clone();
        let floor = store.commits.last().map_or(0, |commit| commit.floor.0);
        let mut events: Vec<_> = store.events.values().cloned().collect();
        events.sort_by_key(|event| event.header.round);
        let own = events.iter().filter(|event| event.header.author == author(host));
        let state = RestoredState {
            own_last: own.max_by_key(|event| event.header.round).cloned(),
            highest: Vec::new(),
            events: events.iter().filter(|e| e.header.round.0 >= floor).cloned().collect(),
            commits: store.commits.clone(),
            pool: store.pool.values().cloned().collect(),
            memory: Memory::Agrees,
        };
        let members = self.hosts.len();
        let restarted = &mut self.hosts[host];
        restarted.core = core(members, host, state);
        restarted.pending.clear();
        restarted.waiting.clear();
        restarted.durable = WriteNumber(0);
        restarted.wake_at = Moment(0);
        restarted.alive = true;
        (restarted.ordered, restarted.root) = (Vec::new(), StateRoot::ZERO);
        let mut history: Vec<Arc<Event>> = Vec::new();
        for record in store.commits {
            history.clear();
            history.extend(record.events.iter().map(|event| store.events[&event.digest].clone()));
            let commit = record.to_ordered_commit(&history).expect("stored whole");
            self.judge(host, &commit);
        }
        for other in (0..members).filter(|other| *other != host) {
            if self.hosts[other].alive {
                self.input(other, Input::PeerConnected(author(host)));
                self.input(host, Input::PeerConnected(author(other)));
            }
        }
    }

    fn assert_all_ordered(&self, texts: &[&str]) {
        let wanted: BTreeSet<_> = texts.iter().map(|text| payload(text).digest()).collect();
        let first = &self.hosts.iter().find(|host| host.alive).expect("one lives").ordered;
        for host in self.hosts.iter().filter(|host| host.alive) {
            assert_eq!(&host.ordered, first);
        }
        assert_eq!(first.iter().copied().collect::<BTreeSet<_>>(), wanted);
        assert_eq!(first.len(), wanted.len());
    }
}

#[test]
fn a_lone_payload_is_ordered_everywhere_attested_and_followed_by_silence() {
    for members in [1, 2, 3, 4, 7] {
        let mut net = Net::new(members);
        net.run(2_000);
        net.submit(0, "one");
        net.run(2_000);
        net.assert_all_ordered(&["one"]);
        for host in &net.hosts {
            assert_eq!(host.core.status().phase, Phase::Member);
        }
        let rounds: Vec<_> = net.hosts.iter().map(|host| host.core.status().round).collect();
        let frames = *net.frames.borrow();
        net.run(25_000);
        assert_eq!(*net.frames.borrow(), frames, "{members} members still talk: {rounds:?}");
        assert!(rounds[0].0 <= 9, "{members} members took {} rounds", rounds[0].0);
    }
}

#[test]
fn many_payloads_at_all_hosts_are_ordered_once_and_alike() {
    let mut net = Net::new(4);
    let texts: Vec<String> = (0..200).map(|number| format!("payload {number}")).collect();
    for (number, text) in texts.iter().enumerate() {
        net.submit(number % 4, text);
        net.run(3);
    }
    net.run(3_000);
    net.assert_all_ordered(&texts.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn one_dead_host_of_four_does_not_stop_the_others_and_catches_up_after_its_restart() {
    let mut net = Net::new(4);
    net.run(1_000);
    net.kill(3);
    for number in 0..50 {
        net.submit(number % 3, &format!("payload {number}"));
        net.run(50);
    }
    net.run(2_000);
    let texts: Vec<String> = (0..50).map(|number| format!("payload {number}")).collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    net.assert_all_ordered(&texts);
    net.restart(3);
    net.run(3_000);
    net.assert_all_ordered(&texts);
    assert_eq!(net.hosts[3].ordered.len(), 50);
}

#[test]
fn without_a_quorum_nothing_is_ordered_and_one_restart_resumes_by_itself() {
    let mut net = Net::new(4);
    net.run(1_000);
    net.kill(2);
    net.kill(3);
    net.submit(0, "waits");
    net.run(20_000);
    assert!(net.hosts[0].ordered.is_empty());
    net.restart(2);
    net.run(5_000);
    net.assert_all_ordered(&["waits"]);
}

#[test]
fn a_payload_survives_the_crash_of_its_host_before_and_after_packing() {
    for crash_after_ms in 0..30 {
        let mut net = Net::new(4);
        net.run(1_000);
        net.submit(3, "kept");
        net.run(crash_after_ms);
        net.kill(3);
        net.run(500);
        net.restart(3);
        net.run(5_000);
        net.assert_all_ordered(&["kept"]);
    }
}

#[test]
fn a_payload_after_a_minute_of_silence_is_judged_at_a_fresh_ledger_time() {
    for members in [1, 2, 3, 4, 7] {
        for host in 0..members {
            let mut net = Net::new(members);
            net.run(1_000);
            net.submit(0, "before the silence");
            net.run(60_000);
            net.submit(host, "after the silence");
            net.run(5_000);
            net.assert_all_ordered(&["before the silence", "after the silence"]);
            for judging in &net.hosts {
                let behind_ms = judging.judged_behind_ms;
                assert!(behind_ms <= 3_000, "{members} members: {behind_ms} ms behind");
            }
        }
    }
}
