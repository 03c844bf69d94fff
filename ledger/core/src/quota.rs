//! How much events may take that wait for their parents.
//!
//! Owns the count for each peer that brought some. Who votes has an equal share that nobody else
//! can use; all others have little, and that together. Never drops an event. Called by `intake`.

use std::collections::BTreeMap;

use dagger_payload::committee::Committee;
use dagger_payload::id::AuthorIndex;

use crate::limits::{
    MISSING_PER_PEER_MAX, SUSPENDED_BYTES_MAX, SUSPENDED_BYTES_OF_OTHERS_MAX,
    SUSPENDED_BYTES_PER_OTHER_MAX, SUSPENDED_BYTES_PER_PEER_MAX, SUSPENDED_PER_PEER_MAX,
};

/// What suspended events take.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) count: usize,
    pub(crate) bytes: usize,
    pub(crate) parents: usize,
}

impl Taken {
    fn and(self, more: Self) -> Self {
        Self {
            count: self.count.saturating_add(more.count),
            bytes: self.bytes.saturating_add(more.bytes),
            parents: self.parents.saturating_add(more.parents),
        }
    }

    fn without(self, less: Self) -> Self {
        Self {
            count: self.count.saturating_sub(less.count),
            bytes: self.bytes.saturating_sub(less.bytes),
            parents: self.parents.saturating_sub(less.parents),
        }
    }

    fn fits(self, bytes_max: usize) -> bool {
        self.count <= SUSPENDED_PER_PEER_MAX
            && self.bytes <= bytes_max
            && self.parents <= MISSING_PER_PEER_MAX
    }
}

/// Bytes of events that one member brought and that may wait.
pub(crate) fn suspended_bytes_max(committee: Committee) -> usize {
    SUSPENDED_BYTES_PER_PEER_MAX.min(SUSPENDED_BYTES_MAX / committee.members())
}

/// What events of each peer take.
#[derive(Debug)]
pub(crate) struct Quotas {
    committee: Committee,
    of: BTreeMap<AuthorIndex, Taken>,
}

impl Quotas {
    pub(crate) fn new(committee: Committee) -> Self {
        Self { committee, of: BTreeMap::new() }
    }

    /// Takes so much more for `peer`, if it may have that.
    pub(crate) fn take(&mut self, peer: AuthorIndex, more: Taken) -> bool {
        let of_peer = self.of.get(&peer).copied().unwrap_or_default().and(more);
        let fits = if self.committee.contains(peer) {
            of_peer.fits(suspended_bytes_max(self.committee))
        } else {
            of_peer.fits(SUSPENDED_BYTES_PER_OTHER_MAX)
                && self.of_others().and(more).fits(SUSPENDED_BYTES_OF_OTHERS_MAX)
        };
        if fits {
            self.of.insert(peer, of_peer);
        }
        fits
    }

    /// So much of `peer` waits no more.
    pub(crate) fn give_back(&mut self, peer: AuthorIndex, less: Taken) {
        if let Some(taken) = self.of.get_mut(&peer) {
            *taken = taken.without(less);
            if *taken == Taken::default() {
                self.of.remove(&peer);
            }
        }
    }

    /// What events of all those take that have no vote.
    pub(crate) fn of_others(&self) -> Taken {
        let others = self.of.iter().filter(|(peer, _)| !self.committee.contains(**peer));
        others.fold(Taken::default(), |all, (_, taken)| all.and(*taken))
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::limits::EVENT_BODY_BYTES_MAX;

    use super::*;

    const LARGEST: Taken = Taken { count: 1, bytes: EVENT_BODY_BYTES_MAX, parents: 128 };

    /// How many of the largest events of this peer may wait.
    fn filled(quotas: &mut Quotas, peer: u16) -> usize {
        (0..).take_while(|_| quotas.take(AuthorIndex(peer), LARGEST)).count()
    }

    #[test]
    fn what_many_peers_without_a_vote_bring_waits_in_little_and_no_voter_pays_for_it() {
        for (members, each) in [(4, 32), (8, 32), (128, 2)] {
            let mut quotas = Quotas::new(Committee::new(members).expect("a committee"));
            let others: usize = (200..300).map(|peer| filled(&mut quotas, peer)).sum();
            assert_eq!(others, SUSPENDED_BYTES_OF_OTHERS_MAX / EVENT_BODY_BYTES_MAX);
            let members = u16::try_from(members).expect("few");
            for member in 0..members {
                assert_eq!(filled(&mut quotas, member), each, "of {members}");
            }
            // What waits no more makes room, of the same kind.
            quotas.give_back(AuthorIndex(0), LARGEST);
            assert_eq!(filled(&mut quotas, 299), 0);
            assert_eq!(filled(&mut quotas, 0), 1);
            quotas.give_back(AuthorIndex(200), LARGEST);
            assert_eq!(filled(&mut quotas, 299), 1);
        }
    }
}
