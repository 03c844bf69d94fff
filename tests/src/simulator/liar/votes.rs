//! How the twins of a liar vote.
//!
//! Owns what the second of two chains leaves out, so that hosts which see one chain each count
//! votes and certificates differently. Called when a liar makes an event.

use dagger_payload::event::Parent;
use dagger_payload::id::Round;

use super::Liar;

impl Liar {
    /// Leaves out one event of the round below, if a quorum is left: whoever sees this twin alone
    /// counts a vote or a certificate less than who sees the other.
    pub(super) fn vote_otherwise(&mut self, parents: &mut Vec<Parent>, round: Round) {
        let me = self.configuration.me;
        let below = parents.iter().filter(|parent| parent.round.next() == round).count();
        let at = self.random.index(parents.len().max(1));
        let others = parents.get(at).is_some_and(|parent| parent.author != me);
        if others && below > self.configuration.committee.quorum() {
            parents.remove(at);
        }
    }
}
