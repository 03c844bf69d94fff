//! Quorum arithmetic for a committee of equal votes.
//!
//! Owns who votes in an epoch, n, f, Q and who leads a round. Never knows keys or addresses. Called
//! by the ledger core, by the agent (attested positions) and by offline verification. Source: n >=
//! 3f + 1, Lamport, Shostak and Pease (1982).

use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::id::{AuthorIndex, Epoch, Round};
use crate::limits::{MEMBERS_MAX, SEATS_MAX};

/// The hosts that vote in one epoch: 1 to [`MEMBERS_MAX`] of the [`SEATS_MAX`] seats. Nobody's seat
/// is ever given to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committee {
    /// Bit i of word w is set when author 64 w + i votes.
    voters: [u64; SEATS_MAX / 64],
}

const _: () = assert!(SEATS_MAX.is_multiple_of(64), "a committee is a set of whole words");

impl Committee {
    /// The first `members` author indexes, as at a founding; `None` outside 1 to [`MEMBERS_MAX`].
    pub fn new(members: usize) -> Option<Self> {
        let first = u16::try_from(members).ok()?;
        Self::of((0..first).map(AuthorIndex))
    }

    /// These hosts; `None` when there is none or more than [`MEMBERS_MAX`], or one whose index is
    /// not below [`SEATS_MAX`].
    pub fn of(authors: impl IntoIterator<Item = AuthorIndex>) -> Option<Self> {
        let mut voters = [0; SEATS_MAX / 64];
        for author in authors {
            *voters.get_mut(usize::from(author.0 / 64))? |= 1 << (author.0 % 64);
        }
        let committee = Self { voters };
        (1..=MEMBERS_MAX).contains(&committee.members()).then_some(committee)
    }

    /// n: how many members vote.
    pub fn members(self) -> usize {
        let ones: u32 = self.voters.iter().map(|word| word.count_ones()).sum();
        usize::try_from(ones).expect("at most 1024")
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
        let members = u64::try_from(self.members()).expect("at most 128");
        let slot = u64::try_from(slot).expect("a slot is below three");
        let turn = (epoch.0 % members + round.0 % members + slot) % members;
        let turn = usize::try_from(turn).expect("below the number of members");
        self.authors().nth(turn).expect("below the number of members")
    }

    /// All members in order.
    pub fn authors(self) -> impl Iterator<Item = AuthorIndex> {
        let words = (0_u16..).zip(self.voters);
        words.flat_map(|(at, word)| {
            let set = (0..64).filter(move |bit| word >> bit & 1 == 1);
            set.map(move |bit| AuthorIndex(64 * at + bit))
        })
    }

    fn ascending(authors: Vec<AuthorIndex>) -> Option<Self> {
        let ascending = authors.is_sorted_by(|one, next| one < next);
        Self::of(authors).filter(|_| ascending)
    }

    /// Whether `author` is one of them.
    pub fn contains(self, author: AuthorIndex) -> bool {
        let word = self.voters.get(usize::from(author.0 / 64));
        word.is_some_and(|word| word >> (author.0 % 64) & 1 == 1)
    }
}

const NOT_ASCENDING: &str = "not an ascending list of 1 to 128 members";

/// As the list of its author indexes, ascending.
impl<C> minicbor::Encode<C> for Committee {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        self.authors().collect::<Vec<_>>().encode(encoder, context)
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Committee {
    fn decode(decoder: &mut Decoder<'b>, context: &mut C) -> Result<Self, DecodeError> {
        let authors: Vec<AuthorIndex> = minicbor::Decode::decode(decoder, context)?;
        Self::ascending(authors).ok_or_else(|| DecodeError::message(NOT_ASCENDING))
    }
}

impl Serialize for Committee {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.authors())
    }
}

impl<'de> Deserialize<'de> for Committee {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let authors = Vec::deserialize(deserializer)?;
        Self::ascending(authors).ok_or_else(|| de::Error::custom(NOT_ASCENDING))
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
    fn a_committee_reads_back_and_a_false_list_does_not() {
        let committee = Committee::of([7, 2, 127, 64, 1023].map(AuthorIndex)).expect("in range");
        let bytes = minicbor::to_vec(committee).expect("memory");
        assert_eq!(minicbor::decode::<Committee>(&bytes).ok(), Some(committee));
        for false_list in [vec![], vec![2, 2], vec![3, 1], vec![1024]] {
            let authors: Vec<_> = false_list.into_iter().map(AuthorIndex).collect();
            let bytes = minicbor::to_vec(authors).expect("memory");
            assert!(minicbor::decode::<Committee>(&bytes).is_err());
        }
        assert_eq!(Committee::of((0..129).map(AuthorIndex)), None);
    }

    #[test]
    fn the_slots_of_a_round_have_different_leaders() {
        let committee = Committee::of([1, 4, 5, 9].map(AuthorIndex)).expect("in range");
        for round in 0..9 {
            let mut leaders: Vec<_> =
                (0..3).map(|slot| committee.leader(Epoch(1), Round(round), slot)).collect();
            leaders.dedup();
            assert_eq!(leaders.len(), 3);
            assert!(leaders.iter().all(|leader| committee.contains(*leader)));
        }
    }
}
