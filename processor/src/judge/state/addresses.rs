//! The addresses that the guests of one host have.
//!
//! Owns which are taken, as bits: guests get theirs one after another, so that those of many stand
//! in a word or two, and asking for one looks at little memory. Kept by the state.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// What is known of one host's addresses.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    pub(super) taken: TakenAddresses,
    /// Where the search for the next address starts, so that one that was given back rests longest.
    pub(super) cursor: u32,
    /// What the state tree has of the cursor.
    pub(super) standing: Option<u32>,
}

impl Addresses {
    /// Moves the cursor, and says whether the state tree has to be told and did not have to before.
    pub(super) fn move_to(&mut self, cursor: u32) -> bool {
        let before = std::mem::replace(&mut self.cursor, cursor);
        self.standing.is_none_or(|standing| standing == before)
    }
}

/// A set of addresses.
#[derive(Debug, Default)]
pub(super) struct TakenAddresses {
    /// A bit for each address; by the address without its last six bits. No word is zero.
    words: BTreeMap<u32, u64>,
    count: u32,
}

impl TakenAddresses {
    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn contains(&self, address: Ipv4Addr) -> bool {
        let (word, bit) = place(address);
        self.words.get(&word).is_some_and(|bits| bits & bit != 0)
    }

    /// Whether it was not there.
    pub(super) fn insert(&mut self, address: Ipv4Addr) -> bool {
        let (word, bit) = place(address);
        let bits = self.words.entry(word).or_default();
        let is_new = *bits & bit == 0;
        *bits |= bit;
        self.count += u32::from(is_new);
        is_new
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, address: Ipv4Addr) -> bool {
        let (word, bit) = place(address);
        let Some(bits) = self.words.get_mut(&word).filter(|bits| **bits & bit != 0) else {
            return false;
        };
        *bits &= !bit;
        if *bits == 0 {
            self.words.remove(&word);
        }
        self.count -= 1;
        true
    }
}

/// In which word an address stands, and its bit there.
fn place(address: Ipv4Addr) -> (u32, u64) {
    let number = u32::from(address);
    (number >> 6, 1 << (number & 63))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn it_has_what_was_put_in_and_not_taken_out() {
        let (mut taken, mut model) = (TakenAddresses::default(), BTreeSet::new());
        let mut random: u32 = 5;
        for _ in 0..4000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let address = Ipv4Addr::from(u32::MAX - (random >> 16) % 300);
            assert_eq!(taken.contains(address), model.contains(&address));
            if (random >> 8).is_multiple_of(2) {
                assert_eq!(taken.insert(address), model.insert(address));
            } else {
                assert_eq!(taken.remove(address), model.remove(&address));
            }
            assert_eq!(usize::try_from(taken.count()), Ok(model.len()));
        }
        model.iter().for_each(|address| assert!(taken.remove(*address)));
        assert!(taken.words.is_empty(), "nothing is left of what was given back");
    }
}
