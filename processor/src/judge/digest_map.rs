//! A map whose keys are digests: what it looks at for one key is little, and can be fetched before.
//!
//! Owns that keys stand apart by their first bits, each part an ordered map of its own. So one step
//! replaces the upper levels of a search, parts that do not wait for each other can be fetched
//! together, and whoever makes keys that begin alike gets an ordinary map and no more. The order is
//! that of the keys. Called by the state.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;

use dagger_payload::id::{AccountId, HostId, PayloadDigest, VmId};

/// As many parts as so many bits tell apart: of some ten thousand keys, each part is one node.
const PARTS_BITS: u32 = 10;

/// A key that is a digest, so that its first word tells most apart.
pub(crate) trait Digest: Ord {
    /// Keys are in the order of these words, those that share one in any.
    fn first_word(&self) -> u64;
}

/// The first word of `bytes`, in their order.
pub(crate) fn first_word<const N: usize>(bytes: &[u8; N]) -> u64 {
    bytes.first_chunk().copied().map_or(0, u64::from_be_bytes)
}

impl Digest for VmId {
    fn first_word(&self) -> u64 {
        first_word(self.as_bytes())
    }
}

impl Digest for AccountId {
    fn first_word(&self) -> u64 {
        first_word(self.as_bytes())
    }
}

impl Digest for HostId {
    fn first_word(&self) -> u64 {
        first_word(self.as_bytes())
    }
}

impl Digest for PayloadDigest {
    fn first_word(&self) -> u64 {
        first_word(self.as_bytes())
    }
}

/// The map.
#[derive(Debug)]
pub(crate) struct DigestMap<K, V, const BITS: u32 = PARTS_BITS> {
    parts: Box<[BTreeMap<K, V>]>,
}

/// For some hundred keys: their parts take no room in the cache that others need.
pub(crate) type SmallDigestMap<K, V> = DigestMap<K, V, 5>;

impl<K, V, const BITS: u32> Default for DigestMap<K, V, BITS> {
    fn default() -> Self {
        Self { parts: (0..1 << BITS).map(|_| BTreeMap::new()).collect() }
    }
}

impl<K: Digest, V, const BITS: u32> DigestMap<K, V, BITS> {
    fn part_of(key: &K) -> usize {
        let part = key.first_word() >> (u64::BITS - BITS);
        usize::try_from(part).expect("few bits are left")
    }

    fn part(&self, key: &K) -> &BTreeMap<K, V> {
        &self.parts[Self::part_of(key)]
    }

    fn part_mut(&mut self, key: &K) -> &mut BTreeMap<K, V> {
        &mut self.parts[Self::part_of(key)]
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.part(key).get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.part_mut(key).get_mut(key)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.part_mut(&key).insert(key, value)
    }

    pub(crate) fn entry(&mut self, key: K) -> Entry<'_, K, V> {
        self.part_mut(&key).entry(key)
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.part_mut(key).remove(key)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.parts.iter().flat_map(BTreeMap::values)
    }

    /// The entries from `from` on, by key.
    pub(crate) fn iter_from<'m>(
        &'m self,
        from: Bound<&'m K>,
    ) -> impl Iterator<Item = (&'m K, &'m V)> {
        let first = match from {
            Bound::Included(key) | Bound::Excluded(key) => Self::part_of(key),
            Bound::Unbounded => 0,
        };
        let begun = self.parts[first].range((from, Bound::Unbounded));
        begun.chain(self.parts[first + 1..].iter().flatten())
    }

    /// Reads where `key` stands or would, so that it is near when somebody asks for it. Nothing
    /// here waits for what is read: what is fetched for several keys comes together.
    pub(crate) fn fetch(&self, key: &K) -> u64 {
        let part = self.part(key);
        let ends = [part.first_key_value(), part.last_key_value()];
        ends.into_iter().flatten().fold(0, |sum, (key, _)| sum ^ key.first_word())
    }
}

/// At once from what is sorted by key; whatever is not is put in alone.
impl<K: Digest, V, const BITS: u32> FromIterator<(K, V)> for DigestMap<K, V, BITS> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let (mut map, mut entries) = (Self::default(), entries.into_iter().peekable());
        for (at, part) in map.parts.iter_mut().enumerate() {
            // Collected, a map is built at once.
            *part = std::iter::from_fn(|| entries.next_if(|(key, _)| Self::part_of(key) == at))
                .collect();
        }
        entries.for_each(|(key, value)| _ = map.insert(key, value));
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Many share their part, some of them all of their first word.
    fn key(random: u32) -> VmId {
        let mut id = [0; 16];
        id[0] = (random >> 16).to_le_bytes()[0] & 3;
        id[15] = (random >> 24).to_le_bytes()[0] & 31;
        id[1] = (random >> 8).to_le_bytes()[0] & 0xc1;
        VmId(id)
    }

    #[test]
    fn it_has_what_an_ordered_map_has_in_the_same_order() {
        let (mut map, mut model) = (DigestMap::<_, _>::default(), BTreeMap::new());
        let mut random: u32 = 3;
        for step in 0..20_000_u32 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let key = key(random);
            assert_eq!(map.get(&key), model.get(&key));
            map.fetch(&key);
            match (random >> 5) % 5 {
                0 | 1 => assert_eq!(map.remove(&key), model.remove(&key)),
                2 => assert_eq!(map.get_mut(&key), model.get_mut(&key)),
                3 => assert_eq!(map.entry(key).or_insert(step), model.entry(key).or_insert(step)),
                _ => assert_eq!(map.insert(key, step), model.insert(key, step)),
            }
            if step.is_multiple_of(500) {
                assert!(map.values().eq(model.values()));
                for from in [Bound::Unbounded, Bound::Included(&key), Bound::Excluded(&key)] {
                    assert!(map.iter_from(from).eq(model.range((from, Bound::Unbounded))));
                }
            }
        }
        let sorted: DigestMap<_, _> = model.clone().into_iter().collect();
        assert!(sorted.iter_from(Bound::Unbounded).eq(&model));
        let unsorted: DigestMap<_, _> = model.clone().into_iter().rev().collect();
        assert!(unsorted.iter_from(Bound::Unbounded).eq(&model), "in whatever order they come");
    }
}
