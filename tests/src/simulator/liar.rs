//! A host that lies, with a real key of its own: twins, withheld and false parents, false
//! attestations and clocks, silence.
//!
//! Owns what it heard and what it said. Never holds another host's key, so every lie is one that a
//! real attacker could tell. Called by the world for the hosts that the seed makes liars.

mod habits;
mod kind;
mod split;
mod votes;
mod wedge;

use std::collections::BTreeMap;
use std::sync::Arc;

use dagger_ledger_core::interface::{CoreConfiguration, EventSigner};
use dagger_payload::event::{Attestation, CommitEnd, EVENT_VERSION, Event, Header, Parent};
use dagger_payload::handover::Handover;
use dagger_payload::id::{
    AuthorIndex, CommitIndex, EventDigest, LedgerTime, MerkleRoot, Position, PrefixHash, Round,
    StateRoot,
};
use dagger_payload::key::Signature;
use dagger_payload::payload::{SignatureKind, SignedPayload};
use dagger_payload::peer::{EndOfEpoch, Highest, PeerMessage};

use self::habits::Habits;
pub(crate) use self::kind::LieKind;
use self::split::Split;
use self::wedge::Wedge;
use super::keys::SimulatedKey;
use super::random::Random;

/// A message and to whom it goes.
pub(crate) type Lie = (usize, PeerMessage);

/// Chance that a liar plans a split, in thousandths.
const SPLIT_PERMILLE: u64 = 300;
/// Chance that one that does not plans a wedge, in thousandths.
const WEDGE_PERMILLE: u64 = 250;
/// Chance that a liar forks in the end so that everybody sees it, in thousandths.
const CONFESSION_PERMILLE: u64 = 400;
/// Events that a liar may make at once.
const EVENTS_PER_TURN: usize = 6;
/// Old events that a liar may send again at once.
const OLD_EVENTS_PER_TURN: usize = 20;

/// What a liar of this seed is after, if not just anything.
fn plans(configuration: &CoreConfiguration, seed: u64) -> (Option<Split>, Option<Wedge>) {
    let plan = &mut Random::new(seed, "split");
    if configuration.committee.members() != split::MEMBERS {
        return (None, None);
    }
    let others = configuration.committee.authors().filter(|author| *author != configuration.me);
    let others: Vec<_> = others.collect();
    if plan.happens(SPLIT_PERMILLE) {
        (Some(Split::against(plan.choose(&others))), None)
    } else if plan.happens(WEDGE_PERMILLE) {
        (None, Some(Wedge::with(plan.choose(&others))))
    } else {
        (None, None)
    }
}

/// See the module.
pub(crate) struct Liar {
    configuration: CoreConfiguration,
    hosts: usize,
    key: SimulatedKey,
    random: Random,
    habits: Habits,
    split: Option<Split>,
    wedge: Option<Wedge>,
    /// Forks in the end so that everybody sees it.
    confesses: bool,
    held: BTreeMap<EventDigest, Arc<Event>>,
    rounds: BTreeMap<Round, BTreeMap<AuthorIndex, Vec<Parent>>>,
    /// The newest event of each chain; a second chain is a twin.
    chains: Vec<Option<Parent>>,
    heard_attestation: Option<Attestation>,
    heard_payload: Option<SignedPayload>,
    made: u64,
    /// What was kept from peers.
    kept_back: Vec<Arc<Event>>,
    /// How often each lie was told.
    pub(crate) lies: BTreeMap<LieKind, u64>,
}

impl Liar {
    /// A liar with habits drawn from `seed`.
    pub(crate) fn new(configuration: CoreConfiguration, key: SimulatedKey, seed: u64) -> Self {
        let mut random = Random::new(seed, "liar");
        let drawn = Habits::drawn(&mut random);
        let (split, wedge) = plans(&configuration, seed);
        let planned = split.is_some() || wedge.is_some();
        let habits = if planned { Habits::blameless() } else { drawn };
        let confesses = Random::new(seed, "confession").happens(CONFESSION_PERMILLE);
        Self {
            hosts: configuration.committee.members(),
            configuration,
            key,
            random,
            habits,
            split,
            wedge,
            confesses,
            held: BTreeMap::new(),
            rounds: BTreeMap::new(),
            chains: vec![None],
            heard_attestation: None,
            heard_payload: None,
            made: 0,
            kept_back: Vec::new(),
            lies: BTreeMap::new(),
        }
    }

    /// Goes along into the next epoch; what it planned ends with the last one.
    pub(crate) fn enter(&mut self, handover: &Handover) {
        self.configuration.epoch = handover.epoch;
        self.configuration.committee = handover.committee;
        self.configuration.founding = handover.founding;
        self.rounds.clear();
        self.chains = vec![None];
        self.heard_attestation = None;
        (self.split, self.wedge) = (None, None);
        let heard: Vec<_> = self.held.values().cloned().collect();
        for event in heard {
            self.keep(event);
        }
    }

    fn keep(&mut self, event: Arc<Event>) {
        let place = event.as_parent();
        if event.header.epoch != self.configuration.epoch {
            self.held.insert(event.digest, event);
            return;
        }
        let authors = self.rounds.entry(place.round).or_default();
        let events = authors.entry(place.author).or_default();
        if !events.contains(&place) {
            events.push(place);
        }
        self.held.insert(event.digest, event);
    }

    /// Hears an event that others would accept the form of.
    pub(crate) fn hear_event(&mut self, event: Arc<Event>) {
        if event.header.epoch == self.configuration.epoch {
            self.heard_attestation = Some(event.header.attestation);
        }
        if let Some(payload) = event.payloads.first() {
            self.heard_payload = Some(payload.clone());
        }
        if event.header.author != self.configuration.me {
            self.keep(event);
        }
    }

    /// Behaves while the cluster is being founded: it knows nothing, and says so.
    pub(crate) fn found(&mut self, from: usize, message: &PeerMessage) -> Vec<Lie> {
        let PeerMessage::AskRecovery { nonce, epoch } = message else {
            return Vec::new();
        };
        let (nonce, highest_of_asker, quorum_round) = (*nonce, Round(0), Round(0));
        vec![(
            from,
            PeerMessage::AnswerRecovery {
                nonce,
                highest_of_asker,
                quorum_round,
                epoch: *epoch,
                end: EndOfEpoch::Ahead,
            },
        )]
    }

    /// Hears anything else, and answers as it likes.
    pub(crate) fn hear(&mut self, from: usize, message: &PeerMessage) -> Vec<Lie> {
        match message {
            PeerMessage::Want { events, .. } => {
                let mut answers = Vec::new();
                for wanted in events {
                    let answers_it = self.random.happens(self.habits.answer);
                    if let (true, Some(event)) = (answers_it, self.held.get(&wanted.digest)) {
                        answers.push((from, PeerMessage::event(event)));
                    }
                }
                answers
            }
            PeerMessage::AskRecovery { nonce, epoch } => {
                let claim = self.random.choose(&[0, 0, 1, 1_000_000]);
                let quorum = self.random.choose(&[0, 0, 20, u64::MAX / 2]);
                let answer = PeerMessage::AnswerRecovery {
                    nonce: *nonce,
                    highest_of_asker: Round(claim),
                    quorum_round: Round(quorum),
                    epoch: *epoch,
                    end: self.random.choose(&[EndOfEpoch::Ahead, EndOfEpoch::MayHaveCome]),
                };
                vec![(from, answer)]
            }
            PeerMessage::Have { highest, .. } => {
                let lacks = |event: &&Arc<Event>| {
                    let header = &event.header;
                    highest
                        .iter()
                        .any(|has| has.author == header.author && has.round < header.round)
                };
                let lacking = self.held.values().filter(lacks).take(40);
                let lacking: Vec<_> = lacking.map(|e| (from, PeerMessage::event(e))).collect();
                lacking.into_iter().filter(|_| self.random.happens(self.habits.answer)).collect()
            }
            PeerMessage::Hello { .. }
            | PeerMessage::Event { .. }
            | PeerMessage::AnswerRecovery { .. }
            | PeerMessage::AskPart { .. }
            | PeerMessage::Part { .. }
            | PeerMessage::Closing { .. }
            | PeerMessage::Submit { .. }
            | PeerMessage::Taken { .. } => Vec::new(),
        }
    }

    /// Counts a lie.
    pub(crate) fn told(&mut self, kind: LieKind) {
        *self.lies.entry(kind).or_default() += 1;
    }

    /// Has its turn: makes what events it can and tells some peers of them.
    pub(crate) fn lie(&mut self, wall: LedgerTime) -> Vec<Lie> {
        if let Some(lies) = self.split(wall).or_else(|| self.wedge(wall)) {
            return lies;
        }
        if self.random.happens(self.habits.silence) {
            self.told(LieKind::Silence);
            return Vec::new();
        }
        let mut lies = Vec::new();
        if self.random.happens(self.habits.noise) {
            self.told(LieKind::Garbage);
            lies.extend(self.noise());
        }
        if self.random.happens(self.habits.old_events) {
            lies.extend(self.old_events());
        }
        if self.random.happens(self.habits.flood) {
            lies.extend(self.flood());
        }
        for turn in 0..EVENTS_PER_TURN {
            let payloads = self.payloads();
            lies.extend(self.speak(turn % self.chains.len(), wall, payloads));
        }
        if self.chains.len() > 1 && self.random.happens(100) {
            let at = self.random.index(self.chains.len());
            self.chains.swap_remove(at);
        }
        lies
    }

    /// Answers an event with an empty vote, before anybody else can.
    pub(crate) fn vote_fast(&mut self, wall: LedgerTime) -> Vec<Lie> {
        if let Some(lies) = self.split(wall).or_else(|| self.wedge(wall)) {
            return lies;
        }
        if !self.random.happens(self.habits.fast) {
            return Vec::new();
        }
        let lies = self.speak(0, wall, Vec::new());
        if !lies.is_empty() {
            self.told(LieKind::FastEmptyVote);
        }
        lies
    }

    /// Makes the next event of a chain and shows it to whom it likes.
    fn speak(&mut self, chain: usize, wall: LedgerTime, payloads: Vec<SignedPayload>) -> Vec<Lie> {
        let mut lies = Vec::new();
        let Some(event) = self.make(chain, wall, payloads) else {
            return lies;
        };
        let event = Arc::new(event);
        self.keep(event.clone());
        let before = self.chains[chain].replace(event.as_parent());
        if self.chains.len() == 1 && self.random.happens(self.habits.twin) {
            self.chains.push(before);
            self.told(LieKind::Twin);
        }
        for peer in self.peers() {
            // Each peer mostly sees one of the chains.
            let stray = self.chains.len() > 1 && peer % 2 != chain;
            if stray && !self.random.happens(100) {
                continue;
            }
            if self.random.happens(self.habits.withhold) {
                self.told(LieKind::WithheldParent);
                self.kept_back.push(event.clone());
                continue;
            }
            if stray {
                self.told(LieKind::TwinAsAncestor);
            }
            lies.push((peer, PeerMessage::event(&event)));
        }
        lies
    }

    fn old_events(&mut self) -> Vec<Lie> {
        let events: Vec<_> = self.held.values().collect();
        if events.is_empty() {
            return Vec::new();
        }
        let first = self.random.index(events.len());
        let old = events.into_iter().cycle().skip(first).take(OLD_EVENTS_PER_TURN);
        let old: Vec<_> = old.map(|event| PeerMessage::event(event)).collect();
        self.told(LieKind::OldEvents);
        let peers = self.peers();
        let to = peers[self.random.index(peers.len())];
        old.into_iter().map(|message| (to, message)).collect()
    }

    /// Lets go all that it kept back.
    pub(crate) fn flood(&mut self) -> Vec<Lie> {
        let kept = std::mem::take(&mut self.kept_back);
        if kept.is_empty() {
            return Vec::new();
        }
        self.told(LieKind::LateFlood);
        let peers = self.peers();
        let to_all = |event: &Arc<Event>| {
            let message = PeerMessage::event(event);
            peers.iter().map(move |peer| (*peer, message.clone())).collect::<Vec<_>>()
        };
        kept.iter().flat_map(to_all).collect()
    }

    fn peers(&self) -> Vec<usize> {
        let me = usize::from(self.configuration.me.0);
        (0..self.hosts).filter(|peer| *peer != me).collect()
    }

    fn noise(&mut self) -> Vec<Lie> {
        let peers = self.peers();
        let to = peers[self.random.index(peers.len())];
        let (author, round, epoch) = (AuthorIndex(0), Round(1), self.configuration.epoch);
        let stranger = Parent { author, round, digest: EventDigest(self.random_bytes()) };
        let known = self.held.values().next_back().cloned();
        let mut noise = vec![
            (to, PeerMessage::Want { events: vec![stranger], epoch }),
            (
                to,
                PeerMessage::Have {
                    highest: vec![Highest { author: AuthorIndex(0), round: Round(u64::MAX) }],
                    epoch,
                },
            ),
            (
                to,
                PeerMessage::AskRecovery {
                    nonce: self.random.bits(),
                    epoch: self.configuration.epoch,
                },
            ),
            (
                to,
                PeerMessage::AnswerRecovery {
                    nonce: 1,
                    highest_of_asker: Round(u64::MAX),
                    quorum_round: Round(u64::MAX / 2),
                    epoch: self.configuration.epoch,
                    end: EndOfEpoch::Ahead,
                },
            ),
        ];
        if let Some(event) = known {
            let mut bytes = event.bytes.to_vec();
            let at = self.random.index(bytes.len());
            bytes[at] ^= 1 << self.random.below(8);
            noise.push((to, PeerMessage::Event { bytes: bytes.into() }));
        }
        noise
    }

    fn random_bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            *byte = u8::try_from(self.random.below(256)).expect("below 256");
        }
        bytes
    }

    /// The next event of a chain, if a quorum of the round before is known.
    fn make(
        &mut self,
        chain: usize,
        wall: LedgerTime,
        payloads: Vec<SignedPayload>,
    ) -> Option<Event> {
        let previous = self.chains[chain];
        let round = self.round_after(previous.map_or(Round(0), |parent| parent.round))?;
        let mut parents = self.parents(previous, round);
        if chain > 0 {
            self.vote_otherwise(&mut parents, round);
        }
        let event = self.sign(round, parents, wall, payloads);
        event.has_quorum_below(self.configuration.committee).then_some(event)
    }

    fn sign(
        &mut self,
        round: Round,
        parents: Vec<Parent>,
        wall: LedgerTime,
        payloads: Vec<SignedPayload>,
    ) -> Event {
        let header = Header {
            version: EVENT_VERSION,
            cluster: self.configuration.cluster,
            epoch: self.configuration.epoch,
            round,
            author: self.configuration.me,
            parents,
            payload_root: MerkleRoot::ZERO,
            payload_count: 0,
            timestamp: self.clock(wall),
            attestation: self.attestation(),
        };
        Event::make(header, payloads, |digest| self.key.sign(digest))
    }

    /// An event with a payload above the highest round that a quorum of others has, without a chain
    /// of its own below it; shown to everybody.
    pub(crate) fn speak_unnamed(&mut self, wall: LedgerTime) -> Vec<Lie> {
        let payload = self.own_payload();
        let Some(event) = self.sign_on_top(wall, vec![payload]) else {
            return Vec::new();
        };
        self.told(LieKind::UnnamedPayload);
        self.peers().into_iter().map(|peer| (peer, PeerMessage::event(&event))).collect()
    }

    /// Shows each half of its peers another event for one round, if it is one that ends so: what
    /// they build on it then shows everybody that it forks.
    pub(crate) fn confess(&mut self, wall: LedgerTime) -> Vec<Lie> {
        if !self.confesses {
            return Vec::new();
        }
        let payload = self.own_payload();
        let twins = [vec![payload], Vec::new()].map(|payloads| self.sign_on_top(wall, payloads));
        let [Some(first), Some(second)] = twins else {
            return Vec::new();
        };
        self.told(LieKind::Twin);
        let twins = [first, second].into_iter().cycle();
        let to_each = self.peers().into_iter().zip(twins);
        to_each.map(|(peer, event)| (peer, PeerMessage::event(&event))).collect()
    }

    /// Signs an event above the highest round that a quorum of others has.
    fn sign_on_top(&mut self, wall: LedgerTime, payloads: Vec<SignedPayload>) -> Option<Event> {
        let me = self.configuration.me;
        let quorum = self.configuration.committee.quorum();
        let others = |authors: &BTreeMap<AuthorIndex, Vec<Parent>>| -> Vec<Parent> {
            let others = authors.iter().filter(|(author, _)| **author != me);
            others.filter_map(|(_, events)| events.first().copied()).collect()
        };
        let mut rounds = self.rounds.iter().rev().map(|(round, authors)| (*round, others(authors)));
        let (below, parents) = rounds.find(|(_, parents)| parents.len() >= quorum)?;
        Some(self.sign(below.next(), parents, wall, payloads))
    }

    /// A round above `last` whose quorum below is known: the next one, or far ahead.
    fn round_after(&mut self, last: Round) -> Option<Round> {
        let quorum = self.configuration.committee.quorum();
        if last.0 == 0 && self.random.happens(500) {
            return Some(Round(1));
        }
        let mut ready = self
            .rounds
            .range(last.max(Round(1))..)
            .filter(|(_, authors)| authors.len() >= quorum)
            .map(|(round, _)| round.next())
            .filter(|round| *round > last);
        if self.random.happens(self.habits.jump) { ready.next_back() } else { ready.next() }
    }

    fn parents(&mut self, previous: Option<Parent>, round: Round) -> Vec<Parent> {
        let mut parents: Vec<Parent> = previous.into_iter().collect();
        let below = Round(round.0 - 1);
        let me = self.configuration.me;
        let authors: Vec<_> = self.configuration.committee.authors().collect();
        for author in authors.into_iter().filter(|author| *author != me) {
            let events: Vec<Parent> = self
                .rounds
                .range(..round)
                .rev()
                .filter_map(|(_, authors)| authors.get(&author))
                .flatten()
                .copied()
                .take(4)
                .collect();
            let Some(newest) = events.first().copied() else {
                continue;
            };
            let mut parent = newest;
            if self.random.happens(self.habits.old_parent) {
                parent = events[self.random.index(events.len())];
            } else if newest.round == below {
                let twins: Vec<_> = events.iter().filter(|e| e.round == below).copied().collect();
                parent = twins[self.random.index(twins.len())];
            }
            if self.random.happens(self.habits.false_parent) {
                self.told(LieKind::FalseParent);
                if self.random.happens(500) {
                    parent.digest = EventDigest(self.random_bytes());
                } else if parent.round < below {
                    parent.round = below;
                } else {
                    // As if of long ago: who has forgotten that round cannot look.
                    parent.round = Round(1);
                }
            }
            parents.push(parent);
        }
        parents
    }

    fn payloads(&mut self) -> Vec<SignedPayload> {
        if !self.random.happens(self.habits.payloads) {
            return Vec::new();
        }
        let own = self.own_payload();
        self.heard_payload.clone().into_iter().chain([own]).collect()
    }

    fn own_payload(&mut self) -> SignedPayload {
        self.made += 1;
        let me = self.configuration.me;
        let bytes = format!("lie {} of {me}", self.made);
        SignedPayload {
            signature_kind: SignatureKind::SshEd25519,
            signature: Signature([1; 64]),
            bytes: bytes.into(),
        }
    }

    fn clock(&mut self, wall: LedgerTime) -> LedgerTime {
        if self.random.happens(self.habits.false_clock) {
            self.told(LieKind::FalseClock);
            LedgerTime(self.random.choose(&[0, wall.0 / 2, wall.0 * 2, u64::MAX]))
        } else {
            wall
        }
    }

    fn attestation(&mut self) -> Attestation {
        if !self.random.happens(self.habits.false_attestation)
            && let Some(heard) = self.heard_attestation
        {
            return heard;
        }
        self.told(LieKind::FalseAttestation);
        let end = CommitEnd {
            index: CommitIndex(self.random.below(1000)),
            position: Position(self.random.below(1000)),
            prefix_hash: PrefixHash(self.random_bytes()),
            state_root: StateRoot(self.random_bytes()),
        };
        Attestation { newest: end, checkpoint: None }
    }
}
