//! Asking before signing: after every start a host learns from its peers what they hold of its own
//! events.
//!
//! Owns the question whether this host may sign, and above which round. Without it a store that was
//! restored from a copy would sign a second event for an old round: the host would become the liar
//! that the protocol defends against. The rules stand in design section 7, "Durability".

use std::collections::BTreeMap;

use dagger_payload::committee::Committee;
use dagger_payload::id::{AuthorIndex, Epoch, Round};
use dagger_payload::peer::PeerMessage;

use crate::interface::Memory;
use crate::limits::{RECOVERY_ASK_MS, RECOVERY_MARGIN_ROUNDS};
use crate::{Core, Moment, Output, Turn};

/// Whether this host may sign.
#[derive(Debug)]
pub(crate) struct Recovery {
    committee: Committee,
    memory: Memory,
    /// The highest quorum round of each peer that answered.
    answers: BTreeMap<AuthorIndex, Round>,
    /// Highest round of own events that peers have shown.
    own_seen: Round,
    ask_at: Moment,
    nonce: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Asking,
    Over,
}

impl Recovery {
    pub(crate) fn new(committee: Committee, me: AuthorIndex, memory: Memory) -> Self {
        // Who is alone has nobody to ask; with a doubtful memory only its operator can help (a new
        // epoch). Who has no vote and remembers everything has never signed.
        let nobody_else = committee.members() == 1 || !committee.contains(me);
        let alone = nobody_else && memory == Memory::Agrees;
        Self {
            committee,
            memory,
            answers: BTreeMap::new(),
            own_seen: Round(0),
            ask_at: Moment(0),
            nonce: 0,
            state: if alone { State::Over } else { State::Asking },
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// The same question in the next epoch: who may sign here may sign there, from the first round
    /// on; who does not know of his past does not know of it there either.
    pub(crate) fn in_next_epoch(&self, committee: Committee, now: Moment) -> Self {
        Self {
            committee,
            memory: self.memory,
            answers: BTreeMap::new(),
            own_seen: Round(0),
            ask_at: now,
            nonce: self.nonce,
            state: self.state,
        }
    }

    /// When to ask again.
    pub(crate) fn wake_at(&self) -> Option<Moment> {
        (!self.is_over() && self.committee.members() > 1).then_some(self.ask_at)
    }

    pub(crate) fn ask_again_at(&mut self, moment: Moment) {
        self.ask_at = self.ask_at.min(moment);
    }

    pub(crate) fn answered(&mut self, from: AuthorIndex, nonce: u64, quorum_round: Round) {
        if !self.is_over() && nonce > 0 && nonce <= self.nonce && self.committee.contains(from) {
            self.answers.insert(from, quorum_round);
        }
    }

    /// An event of this host came back from a peer: proof of what was signed, whoever claims what.
    pub(crate) fn own_event_seen(&mut self, round: Round) {
        self.own_seen = self.own_seen.max(round);
    }

    /// The round above which this host may sign, once enough peers have answered. Claims alone
    /// count for nothing: a peer that holds own events sends them ahead of its answer, on the same
    /// link.
    fn floor(&self, own_round: Round) -> Option<Round> {
        let others = self.committee.members() - 1;
        if self.memory == Memory::Agrees && self.own_seen <= own_round {
            let enough = (self.committee.faulty_max() + 1).min(others);
            return (self.answers.len() >= enough).then_some(own_round);
        }
        if self.committee.faulty_max() == 0 {
            // Nobody may be assumed to lie, and everybody is asked: the highest shown is the
            // highest signed.
            return (self.answers.len() == others).then_some(self.own_seen);
        }
        if self.answers.len() < self.committee.quorum() {
            return None;
        }
        let quorum_round = self.answers.values().max().copied().unwrap_or_default();
        if quorum_round.0 == 0 && self.own_seen.0 == 0 {
            return Some(Round(0)); // the cluster is being founded
        }
        Some(self.own_seen.max(Round(quorum_round.0 + RECOVERY_MARGIN_ROUNDS)))
    }
}

impl Core {
    /// Asks all connected peers, from time to time, until enough have answered.
    pub(crate) fn ask_recovery(&mut self, turn: &mut Turn<'_>) {
        let me = self.configuration.me;
        if self.recovery.is_over() || !self.configuration.committee.contains(me) {
            return;
        }
        if let Some(floor) = self.recovery.floor(self.pace.own_round()) {
            // Own events that only peers had must be here before anything is built on them.
            if self.graph.highest_of(me) >= self.recovery.own_seen {
                self.recovery.state = State::Over;
                let newest = self.graph.highest_below(me, Round(u64::MAX));
                let newest = newest.and_then(|parent| self.graph.get(&parent.digest)).cloned();
                self.pace.resume(newest, floor);
                return;
            }
        }
        if self.recovery.ask_at <= turn.now {
            self.recovery.ask_at = turn.now.plus_ms(RECOVERY_ASK_MS);
            self.recovery.nonce += 1;
            let nonce = self.recovery.nonce;
            let ask = PeerMessage::AskRecovery { nonce, epoch: self.configuration.epoch };
            for message in [self.have(), ask] {
                turn.outputs.push(Output::Broadcast { message, after: self.written });
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
        if !self.configuration.committee.contains(from) || epoch != self.configuration.epoch {
            return;
        }
        let message = PeerMessage::AnswerRecovery {
            nonce,
            highest_of_asker: self.graph.highest_of(from),
            quorum_round: self.graph.quorum_round(),
            epoch,
        };
        turn.outputs.push(Output::Send { to: from, message, after: self.written });
    }
}
