//! Asking before signing: after every start a host learns from its peers what they hold of its own
//! events.
//!
//! Owns the question whether this host may sign, and above which round. Without it a store that was
//! restored from a copy would sign a second event for an old round: the host would become the liar
//! that the protocol defends against. The rules stand in design section 7, "Durability".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dagger_payload::committee::Committee;
use dagger_payload::event::Event;
use dagger_payload::id::{AuthorIndex, Epoch, EventDigest, Round};
use dagger_payload::peer::{EndOfEpoch, PeerMessage};

use crate::graph::Graph;
use crate::interface::{Memory, RecoveryAnswer};
use crate::limits::{OWN_SHOWN_MAX, RECOVERY_ASK_MS, RECOVERY_HELPS_MAX, RECOVERY_MARGIN_ROUNDS};
use crate::{Core, HaltReason, Moment, Output, Turn};

/// Whether this host may sign.
#[derive(Debug)]
pub(crate) struct Recovery {
    committee: Committee,
    beginning: Beginning,
    memory: Memory,
    /// What each peer answered last.
    answers: BTreeMap<AuthorIndex, Answer>,
    /// Who has told this life that he has not attested the end of this epoch.
    end_is_ahead: BTreeSet<AuthorIndex>,
    /// Highest round of own events that peers have shown.
    own_seen: Round,
    /// Those events.
    shown: BTreeMap<Round, Arc<Event>>,
    /// Those of them that rest on an event that nobody has any more.
    groundless: BTreeSet<EventDigest>,
    ask_at: Moment,
    /// Number of the newest question of this life, and the one below its first.
    nonce: u64,
    nonces_above: u64,
    state: State,
    /// Peers that asked and have made no event since.
    askers: BTreeMap<AuthorIndex, Asker>,
    /// Up to this round peers are helped to find one that they may sign.
    help_round: Round,
}

/// A peer whose recovery may be open.
#[derive(Debug, Clone, Copy)]
struct Asker {
    since: Moment,
    helped: u32,
}

/// A peer's claim. It counts once the events are here that show it: so a liar's empty claim delays
/// nobody for ever, and what an honest peer sent ahead of its answer cannot be overlooked.
#[derive(Debug, Clone, Copy)]
struct Answer {
    highest_of_asker: Round,
    quorum_round: Round,
}

/// How the epoch began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// With the cluster: a host without a past has none.
    Founding,
    /// With a handover: a host without a past may have lost it.
    Handover,
}

/// Whether the own chain has come to the rounds that may be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnChain {
    /// The next own event is the next round.
    Open,
    /// The next round that may be signed has not been reached by the others.
    Muted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Asking,
    Over,
}

impl State {
    /// Who is alone has nobody to ask; with a doubtful memory only its operator can help. Who has
    /// no vote and remembers everything has never signed.
    fn at_start(committee: Committee, me: AuthorIndex, memory: Memory) -> Self {
        let nobody_else = committee.members() == 1 || !committee.contains(me);
        if nobody_else && memory == Memory::Agrees { Self::Over } else { Self::Asking }
    }
}

impl Recovery {
    pub(crate) fn new(
        (committee, beginning): (Committee, Beginning),
        me: AuthorIndex,
        memory: Memory,
        nonces_above: u64,
    ) -> Self {
        let state = State::at_start(committee, me, memory);
        Self {
            committee,
            beginning,
            memory,
            answers: BTreeMap::new(),
            end_is_ahead: BTreeSet::new(),
            own_seen: Round(0),
            shown: BTreeMap::new(),
            groundless: BTreeSet::new(),
            ask_at: Moment(0),
            nonce: nonces_above,
            nonces_above,
            state: if planted!(SignBeforeAsking) { State::Over } else { state },
            askers: BTreeMap::new(),
            help_round: Round(0),
        }
    }

    /// A round that is worth reaching without other work: a peer that lost its memory signs only
    /// above it.
    pub(crate) fn help_round(&self) -> Round {
        self.help_round
    }

    /// How many own events that peers have shown are kept.
    pub(crate) fn shown(&self) -> usize {
        self.shown.len()
    }

    /// `peer` has made an event: whatever it had to recover, it has recovered.
    pub(crate) fn signed(&mut self, peer: AuthorIndex) {
        self.askers.remove(&peer);
    }

    /// `peer` asked. A plain restart is answered and done; whoever asks on for a while waits for
    /// rounds that nobody would make in silence. Bounded, for a liar can ask for ever.
    fn asked(&mut self, peer: AuthorIndex, now: Moment, quorum_round: Round) {
        let asker = self.askers.entry(peer).or_insert(Asker { since: now, helped: 0 });
        let open = asker.since.plus_ms(RECOVERY_ASK_MS) <= now;
        let round = Round(quorum_round.0 + RECOVERY_MARGIN_ROUNDS);
        // Only what makes others work is counted: they may be held up for longer than he asks.
        if open && asker.helped < RECOVERY_HELPS_MAX && round > self.help_round {
            asker.helped += 1;
            self.help_round = round;
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// The same question in the next epoch: who may sign here may sign there, from the first round
    /// on, unless an earlier life of his that he has forgotten may have been there before; who does
    /// not know of his past does not know of it there either. Who had no vote here was never asked
    /// for his past: an earlier life of his may have been further.
    pub(crate) fn in_next_epoch(&self, committee: Committee, me: AuthorIndex, now: Moment) -> Self {
        let is_sure = self.memory == Memory::Agrees || self.is_first_life(me);
        let (state, memory) = match (self.committee.contains(me), self.state) {
            (true, State::Over) if is_sure || planted!(AnEpochHasNoEarlierLife) => {
                (State::Over, Memory::Agrees)
            }
            (true, _) => (State::Asking, self.memory),
            (false, _) => {
                let memory = self.memory();
                (State::at_start(committee, me, memory), memory)
            }
        };
        Self {
            committee,
            beginning: Beginning::Handover,
            memory,
            answers: BTreeMap::new(),
            end_is_ahead: BTreeSet::new(),
            own_seen: Round(0),
            shown: BTreeMap::new(),
            groundless: BTreeSet::new(),
            ask_at: now,
            nonce: self.nonce,
            nonces_above: self.nonces_above,
            state: if planted!(DoubtEndsWithTheEpoch) { State::Over } else { state },
            askers: BTreeMap::new(),
            help_round: Round(0),
        }
    }

    /// Whether this host knows that no earlier life of it signed in a later epoch: a quorum of this
    /// epoch's members, or all others, have told this life that they have not attested its end. Any
    /// certificate of that end would have the word of an honest one of them. So the next epoch has
    /// not begun before, and from here on this life's store holds all that is signed.
    fn is_first_life(&self, me: AuthorIndex) -> bool {
        let others = self.committee.members() - usize::from(self.committee.contains(me));
        self.end_is_ahead.len() >= self.committee.quorum().min(others)
    }

    /// This host may sign above `floor`. Who begins with the cluster has forgotten nothing: nobody
    /// has come to any round.
    fn come_to_know(&mut self, floor: Round) {
        self.state = State::Over;
        if self.beginning == Beginning::Founding && floor.0 == 0 {
            self.memory = Memory::Agrees;
        }
    }

    /// When a host without a vote asks again, while it may have forgotten something.
    pub(crate) fn wakes_follower_at(&self) -> Option<Moment> {
        (!self.is_over()).then_some(self.ask_at)
    }

    /// Whether a later life may trust what this one leaves.
    pub(crate) fn memory(&self) -> Memory {
        if self.is_over() { Memory::Agrees } else { self.memory }
    }

    /// When to ask again, while recovery goes on or no round above its floor could be made yet.
    pub(crate) fn wake_at(&self, own: OwnChain) -> Option<Moment> {
        let open = !self.is_over() || own == OwnChain::Muted;
        (open && self.committee.members() > 1).then_some(self.ask_at)
    }

    pub(crate) fn ask_again_at(&mut self, moment: Moment) {
        self.ask_at = self.ask_at.min(moment);
    }

    pub(crate) fn answered(&mut self, from: AuthorIndex, answer: RecoveryAnswer) {
        let RecoveryAnswer { nonce, highest_of_asker, quorum_round, end } = answer;
        // Whoever was paused may answer an earlier life, and knows nothing of what it signed since.
        let was_asked = nonce > self.nonces_above && nonce <= self.nonce;
        if !was_asked || !self.committee.contains(from) {
            return;
        }
        if end == EndOfEpoch::Ahead {
            self.end_is_ahead.insert(from);
        }
        if self.is_over() {
            return;
        }
        let answer = self.answers.entry(from).or_insert(Answer { highest_of_asker, quorum_round });
        // What a peer held at the first question is enough: this life has signed nothing since. Its
        // later rounds would only move the goal of a host that is slow to follow. A peer that lost
        // what it claimed says less, and then that counts.
        if answer.highest_of_asker != highest_of_asker || quorum_round < answer.quorum_round {
            *answer = Answer { highest_of_asker, quorum_round };
        }
    }

    /// An event of this host came back from a peer: proof of what was signed, whoever claims what.
    /// It is kept until recovery is over: whoever showed it may have dropped it since.
    pub(crate) fn own_event_seen(&mut self, event: &Arc<Event>) {
        if !self.is_over() && self.shown.len() < OWN_SHOWN_MAX {
            self.shown.insert(event.header.round, event.clone());
        }
    }

    /// All connected peers were asked in vain for what this event rests on. If it is one of the own
    /// events that came back, it is not waited for: it can come into nobody's graph. Where nobody
    /// may lie no round may be left out either, so there it is waited for: it was not lost alone.
    pub(crate) fn cannot_stand(&mut self, digest: &EventDigest) {
        let own = self.shown.values().any(|event| event.digest == *digest);
        if own && self.committee.faulty_max() > 0 {
            self.groundless.insert(*digest);
        }
    }

    /// The highest round that peers have shown to be signed, whether it stands or not.
    fn signed_seen(&self) -> Round {
        let highest = self.shown.last_key_value().map_or(Round(0), |(round, _)| *round);
        self.own_seen.max(highest)
    }

    /// The highest round of the own chain as peers have shown it, up to the first event that nobody
    /// has any more, or that rests on such a one: what was built on that can never be accepted by
    /// anybody.
    fn own_chain_shown(&self, graph: &Graph, me: AuthorIndex) -> Round {
        let mut whole: BTreeSet<EventDigest> = BTreeSet::new();
        let mut highest = graph.highest_of(me);
        for (round, event) in &self.shown {
            let before = event.header.parents.first().filter(|parent| parent.author == me);
            let follows = before.is_none_or(|before| {
                before.round <= graph.floor()
                    || graph.contains(&before.digest)
                    || whole.contains(&before.digest)
            });
            if follows && !self.groundless.contains(&event.digest) {
                whole.insert(event.digest);
                highest = highest.max(*round);
            }
        }
        highest
    }

    /// The round above which this host may sign, once enough peers have answered. `own_round` is
    /// that of the own chain as the store has it, `own_highest` and `quorum_round` are what the
    /// graph shows now.
    fn floor(&self, own_round: Round, own_highest: Round, quorum_round: Round) -> Option<Round> {
        let own_shown = self.answers.values().filter(|a| a.highest_of_asker <= own_highest);
        let others = self.committee.members() - 1;
        if others == 0 {
            return None; // nobody's silence says that nothing was signed
        }
        if self.committee.faulty_max() == 0 {
            // Nobody may be assumed to lie, and everybody is asked: the highest shown is the
            // highest signed. Without all of them nothing could be ordered anyway.
            let floor = own_round.max(self.own_seen);
            return (own_shown.count() == others).then_some(floor);
        }
        let signed_seen = self.signed_seen();
        if self.memory == Memory::Agrees && signed_seen <= own_round {
            let enough = self.committee.faulty_max() + 1;
            return (own_shown.count() >= enough).then_some(own_round);
        }
        let shown = own_shown.filter(|answer| answer.quorum_round <= quorum_round);
        if shown.count() < self.committee.quorum() {
            return None;
        }
        let founding = self.beginning == Beginning::Founding;
        if founding && quorum_round.0 == 0 && signed_seen.0 == 0 {
            return Some(Round(0));
        }
        Some(signed_seen.max(Round(quorum_round.0 + RECOVERY_MARGIN_ROUNDS)))
    }
}

impl Core {
    /// Asks all connected peers, from time to time, until enough have answered.
    pub(crate) fn ask_recovery(&mut self, turn: &mut Turn<'_>) -> Result<(), HaltReason> {
        let me = self.configuration.me;
        if !self.configuration.committee.contains(me) {
            self.remember_as_follower(turn);
            return Ok(());
        }
        if self.recovery.is_over() {
            if self.pace.own_chain() == OwnChain::Muted {
                self.ask_peers(turn);
            }
            return Ok(());
        }
        if self.configuration.committee.members() == 1 {
            return Err(HaltReason::NobodyToAsk);
        }
        if self.recovery.ask_at <= turn.now {
            self.admit_what_was_shown(turn)?;
        }
        self.recovery.own_seen = self.recovery.own_chain_shown(&self.graph, me);
        // What lies at or below the floor needs no showing: the next round is far above it.
        let own_highest = self.graph.highest_of(me).max(self.graph.floor());
        let quorum_round = self.graph.quorum_round_with_forkers();
        let floor = self.recovery.floor(self.pace.own_round(), own_highest, quorum_round);
        if let Some(floor) = floor {
            // Own events that only peers had must be here before anything is built on them.
            if own_highest >= self.recovery.own_seen {
                self.recovery.come_to_know(floor);
                self.recovery.shown.clear();
                self.recovery.groundless.clear();
                let newest = self.graph.highest_below(me, Round(u64::MAX));
                let newest = newest.and_then(|parent| self.graph.get(&parent.digest)).cloned();
                self.pace.resume(newest, floor);
                return Ok(());
            }
        }
        self.ask_peers(turn);
        Ok(())
    }

    /// A host without a vote settles what it may have forgotten before it gets one: in its first
    /// epoch as a voter it would need the word of all but f members, more than are alive when one
    /// is dead.
    fn remember_as_follower(&mut self, turn: &mut Turn<'_>) {
        if self.recovery.is_over() {
            return;
        }
        if self.recovery.is_first_life(self.configuration.me) {
            self.recovery.memory = Memory::Agrees;
            self.recovery.state = State::Over;
            return;
        }
        self.ask_peers(turn);
    }

    /// Whether this host has not attested the end of the present epoch, and knows it: its judge has
    /// come as far in this life as it ever attested.
    fn has_not_attested_the_end(&self) -> bool {
        let own = self.pace.attested().index.max(self.judging.attestation.newest.index);
        let end = self.epoch_end.map(|end| end.last);
        self.recovery.is_over()
            && self.configuration.committee.contains(self.configuration.me)
            && self.judging.index >= own
            && end.is_none_or(|end| own < end)
    }

    /// Own events that came back and could not be accepted yet: their parents are asked for again.
    fn admit_what_was_shown(&mut self, turn: &mut Turn<'_>) -> Result<(), HaltReason> {
        let own_highest = self.graph.highest_of(self.configuration.me);
        let shown = self.recovery.shown.split_off(&own_highest.next());
        self.recovery.shown = shown.clone();
        for event in shown.into_values() {
            // Any other author whom it names is asked first.
            let from = event.header.parents.last().map_or(event.header.author, |last| last.author);
            self.admit(turn, from, event)?;
        }
        Ok(())
    }

    fn ask_peers(&mut self, turn: &mut Turn<'_>) {
        if self.recovery.ask_at <= turn.now {
            self.recovery.ask_at = turn.now.plus_ms(RECOVERY_ASK_MS);
            self.recovery.nonce = self.recovery.nonce.saturating_add(1);
            let nonce = self.recovery.nonce;
            let ask = PeerMessage::AskRecovery { nonce, epoch: self.configuration.epoch };
            turn.outputs.push(Output::Broadcast { message: ask, after: self.written });
            // Each has been told at the start what is here. Told again and again, all of them would
            // send a host that follows slowly the same events once a second, each.
            if let Some(peer) = self.gossip.connected_in_turn(nonce) {
                let message = self.have();
                turn.outputs.push(Output::Send { to: peer, message, after: self.written });
            }
        }
    }

    pub(crate) fn answer_recovery(
        &mut self,
        turn: &mut Turn<'_>,
        from: AuthorIndex,
        nonce: u64,
        epoch: Epoch,
    ) {
        if epoch != self.configuration.epoch || !self.gossip.may_ask(from, turn.now) {
            return;
        }
        let end = match self.has_not_attested_the_end() {
            true => EndOfEpoch::Ahead,
            false => EndOfEpoch::MayHaveCome,
        };
        if !self.configuration.committee.contains(from) {
            // It has signed nothing here, and asks for nothing but whether this epoch goes on.
            if end == EndOfEpoch::Ahead {
                let (highest_of_asker, quorum_round) = (Round(0), Round(0));
                let message = PeerMessage::AnswerRecovery {
                    nonce,
                    highest_of_asker,
                    quorum_round,
                    epoch,
                    end,
                };
                turn.outputs.push(Output::Send { to: from, message, after: self.written });
            }
            return;
        }
        self.recovery.asked(from, turn.now, self.graph.quorum_round());
        // What the asker has signed and cannot be accepted here yet is shown, without a claim.
        for event in self.intake.waiting_of(from).take(OWN_SHOWN_MAX) {
            let message = PeerMessage::event(event);
            turn.outputs.push(Output::Send { to: from, message, after: self.written });
        }
        let message = PeerMessage::AnswerRecovery {
            nonce,
            highest_of_asker: self.graph.highest_of(from),
            quorum_round: self.graph.quorum_round_with_forkers(),
            epoch,
            end,
        };
        turn.outputs.push(Output::Send { to: from, message, after: self.written });
    }
}

#[cfg(test)]
mod tests;
