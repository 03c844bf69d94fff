//! Quorum arithmetic for a committee of equal votes.
//!
//! Owns n, f, Q and who leads a round. Never knows keys or addresses. Called by the ledger core, by
//! the agent (attested positions) and by offline verification. Source: n >= 3f + 1, Lamport,
//! Shostak and Pease (1982).

use crate::id::{AuthorIndex, Epoch, Round};
use crate::limits::MEMBERS_MAX;

/// Size of a committee, 1 to [`MEMBERS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committee {
    members: u16,
}

impl Committee {
    /// A committee of `members`; `None` outside 1 to [`MEMBERS_MAX`].
    pub fn new(members: usize) -> Option<Self> {
        let fits = (1..=MEMBERS_MAX).contains(&members);
        fits.then(|| Self { members: members.try_into().expect("128 fits into 16 bits") })
    }

    /// n: how many members vote.
    pub fn members(self) -> usize {
        usize::from(self.members)
    }

    /// f: how many members may fail in any way.
    pub fn faulty_max(self) -> usize {
        (self.members() - 1) / 3
    }

    /// Q = n - f: how many must agree. Two quorums share more than f members.
    pub fn quorum(self) -> usize {
        self.members() - self.faulty_max()
    }

    /// K: leader slots in each round.
    pub fn leader_slots(self) -> usize {
        self.members().min(3)
    }

    /// The author who leads slot `slot` (0 to K-1) of `round`: by rotation only, never by
    /// observation.
    pub fn leader(self, epoch: Epoch, round: Round, slot: usize) -> AuthorIndex {
        let members = u64::from(self.members);
        let slot = u64::try_from(slot).expect("a slot is below three");
        let turn = (epoch.0 % members + round.0 % members + slot) % members;
        AuthorIndex(u16::try_from(turn).expect("below the number of members"))
    }

    /// All members in order.
    pub fn authors(self) -> impl Iterator<Item = AuthorIndex> {
        (0..self.members).map(AuthorIndex)
    }

    /// Whether `author` is one of them.
    pub fn contains(self, author: AuthorIndex) -> bool {
        author.0 < self.members
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_quorums_always_share_an_honest_member_and_one_forms_without_the_faulty() {
        for members in 1..=MEMBERS_MAX {
            let committee = Committee::new(members).expect("in range");
            let (f, quorum) = (committee.faulty_max(), committee.quorum());
            assert!(2 * quorum > members + f, "{members}");
            assert!(quorum <= members - f && members > 3 * f, "{members}");
        }
        assert_eq!(Committee::new(0), None);
        assert_eq!(Committee::new(MEMBERS_MAX + 1), None);
    }

    #[test]
    fn the_slots_of_a_round_have_different_leaders() {
        let committee = Committee::new(4).expect("in range");
        for round in 0..9 {
            let mut leaders: Vec<_> =
                (0..3).map(|slot| committee.leader(Epoch(1), Round(round), slot)).collect();
            leaders.dedup();
            assert_eq!(leaders.len(), 3);
        }
    }
}
