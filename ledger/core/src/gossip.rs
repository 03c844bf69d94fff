//! What peers tell each other about what they have, and how what one lacks reaches it.
//!
//! Owns who is connected, members and followers alike, and when the next exchange is due. Never
//! touches a socket. Own events are broadcast when they are made (`pace`); everything else travels
//! by asking.

use std::collections::BTreeSet;

use dagger_payload::committee::Committee;
use dagger_payload::event::Parent;
use dagger_payload::id::{AuthorIndex, Epoch, Round};
use dagger_payload::peer::{Highest, PeerMessage};

use crate::allowance::Allowances;
use crate::catchup::end_of_stretch;
use crate::limits::{
    ANSWER_EVERY_MS, ANSWER_OF_OTHERS_EVERY_MS, ANSWERS_AT_ONCE_MAX, ANSWERS_OF_OTHERS_AT_ONCE_MAX,
    EPOCH_HINT_MS, HAVE_MS, QUESTION_EVERY_MS, QUESTIONS_AT_ONCE_MAX, WISH_EVERY_MS,
    WISHES_AT_ONCE_MAX,
};
use crate::{Core, Moment, Output, Turn};

/// Who is there.
#[derive(Debug)]
pub(crate) struct Gossip {
    connected: BTreeSet<AuthorIndex>,
    have_at: Moment,
    /// Not before this moment is a peer of another epoch answered at once.
    hint_at: Moment,
    /// How often each peer may still be sent what it lacks.
    answers: Allowances,
    /// How often all those without a vote may, together.
    answers_of_others: Allowances,
    /// How many events that it names each may still be sent.
    wishes: Allowances,
    /// How often each may still ask about its past.
    questions: Allowances,
}

impl Default for Gossip {
    fn default() -> Self {
        Self {
            connected: BTreeSet::new(),
            have_at: Moment(0),
            hint_at: Moment(0),
            answers: Allowances::new(ANSWERS_AT_ONCE_MAX, ANSWER_EVERY_MS),
            answers_of_others: Allowances::new(
                ANSWERS_OF_OTHERS_AT_ONCE_MAX,
                ANSWER_OF_OTHERS_EVERY_MS,
            ),
            wishes: Allowances::new(WISHES_AT_ONCE_MAX, WISH_EVERY_MS),
            questions: Allowances::new(QUESTIONS_AT_ONCE_MAX, QUESTION_EVERY_MS),
        }
    }
}

impl Gossip {
    pub(crate) fn disconnected(&mut self, peer: AuthorIndex) {
        self.connected.remove(&peer);
    }

    pub(crate) fn is_connected(&self, peer: AuthorIndex) -> bool {
        self.connected.contains(&peer)
    }

    /// How many peers are connected.
    pub(crate) fn connected_count(&self) -> u16 {
        u16::try_from(self.connected.len()).expect("peers are few")
    }

    /// The first connected peer from `peer` on, in circular order.
    pub(crate) fn connected_from(&self, peer: AuthorIndex) -> Option<AuthorIndex> {
        self.connected.range(peer..).chain(&self.connected).next().copied()
    }

    /// One connected peer after the other, as `turn` counts up.
    pub(crate) fn connected_in_turn(&self, turn: u64) -> Option<AuthorIndex> {
        let count = u64::from(self.connected_count()).max(1);
        let at = usize::try_from(turn % count).expect("peers are few");
        self.connected.iter().nth(at).copied()
    }

    pub(crate) fn have_at(&self) -> Option<Moment> {
        (!self.connected.is_empty()).then_some(self.have_at)
    }

    /// Whether `peer` may ask about its past once more; if so, it has.
    pub(crate) fn may_ask(&mut self, peer: AuthorIndex, now: Moment) -> bool {
        self.questions.spend(peer, now) || planted!(QuestionsUnlimited)
    }

    /// Whether `peer` may be sent once more what it lacks; if so, it has been.
    fn may_be_answered(&mut self, committee: Committee, peer: AuthorIndex, now: Moment) -> bool {
        // All the others have one allowance, as if they were one.
        let votes = committee.contains(peer);
        let spends = self.answers.spend(peer, now)
            && (votes || self.answers_of_others.spend(AuthorIndex(0), now));
        spends || planted!(AnswersUnlimited)
    }

    /// Tell peers soon what is here.
    pub(crate) fn tell_have_at(&mut self, moment: Moment) {
        self.have_at = self.have_at.min(moment);
    }
}

/// The index after `peer`'s.
pub(crate) fn following(peer: AuthorIndex) -> AuthorIndex {
    AuthorIndex(peer.0.saturating_add(1))
}

impl Core {
    pub(crate) fn peer_connected(&mut self, turn: &mut Turn<'_>, peer: AuthorIndex) {
        if self.is_me(peer) {
            return;
        }
        if self.gossip.have_at().is_none() {
            self.gossip.have_at = turn.now.plus_ms(HAVE_MS);
        }
        self.gossip.connected.insert(peer);
        self.pace.heard_from(peer);
        self.recovery.ask_again_at(turn.now);
        turn.outputs.push(Output::Send { to: peer, message: self.have(), after: self.written });
    }

    /// What this host has of the present epoch, or does not need to be shown.
    pub(crate) fn have(&self) -> PeerMessage {
        let floor = self.graph.floor();
        // A liar's events may claim to stand at any round; nobody has accepted those.
        let reach = self.graph.highest_round().next();
        let mut highest = self.highest();
        for each in &mut highest {
            let passed_over = self.intake.passed_over(each.author);
            let passed_over =
                if planted!(FarRoundsTold) { passed_over } else { passed_over.min(reach) };
            each.round = each.round.max(floor).max(passed_over);
        }
        PeerMessage::Have { highest, epoch: self.configuration.epoch }
    }

    /// A peer shows that it is in a later epoch: it hears what is here, and sends the rest.
    pub(crate) fn hint_that_behind(&mut self, turn: &mut Turn<'_>, peer: AuthorIndex) {
        if self.gossip.hint_at <= turn.now && self.gossip.is_connected(peer) {
            self.gossip.hint_at = turn.now.plus_ms(EPOCH_HINT_MS);
            turn.outputs.push(Output::Send { to: peer, message: self.have(), after: self.written });
        }
    }

    /// The exchange every so often, which heals whatever was lost on a link.
    pub(crate) fn tell_have(&mut self, turn: &mut Turn<'_>) {
        if self.gossip.have_at().is_some_and(|at| at <= turn.now) {
            self.gossip.have_at = turn.now.plus_ms(HAVE_MS);
            turn.outputs.push(Output::Broadcast { message: self.have(), after: self.written });
        }
    }

    /// Sends a peer what it lacks: from memory what is there, from the store what is older. One
    /// that asks too often is not answered: it asks again.
    pub(crate) fn peer_has(
        &mut self,
        turn: &mut Turn<'_>,
        peer: AuthorIndex,
        epoch: Epoch,
        has: Vec<Highest>,
    ) {
        if !self.gossip.is_connected(peer) {
            return;
        }
        self.catch_up.note(peer, epoch, &has);
        if epoch > self.configuration.epoch {
            self.hint_that_behind(turn, peer);
            return;
        }
        if !self.gossip.may_be_answered(self.configuration.committee, peer, turn.now) {
            return;
        }
        if epoch < self.configuration.epoch {
            // Nothing of a closed epoch is in memory.
            let below = end_of_stretch(&has);
            turn.outputs.push(Output::ServeStored { to: peer, epoch, above: has, below });
            return;
        }
        let round_of = |author: AuthorIndex| {
            let found = has.iter().find(|highest| highest.author == author);
            found.map_or(Round(0), |highest| highest.round)
        };
        let floor = self.graph.collection_round();
        let authors: Vec<_> = self.configuration.committee.authors().collect();
        let older = authors.iter().any(|author| {
            let theirs = round_of(*author);
            theirs < floor && theirs < self.graph.highest_of(*author)
        });
        if older {
            // Nothing needs to be looked for of an author of whom the peer has all.
            let above = authors.iter().map(|author| {
                let (theirs, own) = (round_of(*author), self.graph.highest_of(*author));
                let round = if theirs < own { theirs } else { theirs.max(floor) };
                Highest { author: *author, round }
            });
            let (above, below) = (above.collect(), end_of_stretch(&has).min(floor));
            turn.outputs.push(Output::ServeStored { to: peer, epoch, above, below });
            if below < floor {
                return; // the rest is of use only on top of what lies between
            }
        }
        let lowest = authors.iter().map(|author| round_of(*author)).min().unwrap_or_default();
        let mut round = floor.max(lowest.next());
        while round <= self.graph.highest_round() {
            let lacking =
                self.graph.in_round(round).filter(|(author, _)| round > round_of(*author));
            let messages = lacking.map(|(_, event)| PeerMessage::event(event));
            let after = self.written;
            turn.outputs.extend(messages.map(|message| Output::Send { to: peer, message, after }));
            round = round.next();
        }
    }

    pub(crate) fn peer_wants(
        &mut self,
        turn: &mut Turn<'_>,
        peer: AuthorIndex,
        events: Vec<Parent>,
        epoch: Epoch,
    ) {
        // Counted by event: who comes back asks for many at once, each in a message of its own.
        let mut events: BTreeSet<_> = events.into_iter().collect();
        events.retain(|_| self.gossip.wishes.spend(peer, turn.now));
        let (held, stored): (Vec<_>, Vec<_>) =
            events.into_iter().partition(|event| self.graph.contains(&event.digest));
        let held: BTreeSet<_> = held.into_iter().map(|event| event.digest).collect();
        let held = held.iter().filter_map(|digest| self.graph.get(digest));
        let after = self.written;
        turn.outputs.extend(held.map(|event| {
            let message = PeerMessage::event(event);
            Output::Send { to: peer, message, after }
        }));
        if !stored.is_empty() {
            turn.outputs.push(Output::ServeEvents { to: peer, events: stored, epoch });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_that_have_no_vote_are_answered_as_one_and_no_voter_pays_for_it() {
        let (committee, now) = (Committee::new(4).expect("four may vote"), Moment(5));
        let mut gossip = Gossip::default();
        let mut answered = |peers: std::ops::Range<u16>, now| {
            let asks = peers.flat_map(|peer| std::iter::repeat_n(AuthorIndex(peer), 1_000));
            asks.filter(|peer| gossip.may_be_answered(committee, *peer, now)).count() as u64
        };
        assert_eq!(answered(4..52, now), ANSWERS_OF_OTHERS_AT_ONCE_MAX);
        assert_eq!(answered(0..4, now), 4 * ANSWERS_AT_ONCE_MAX);
        assert_eq!(answered(52..53, now.plus_ms(ANSWER_OF_OTHERS_EVERY_MS)), 1);
    }
}
