//! BLAKE3 for one purpose each: its mode that derives a key from a context, so that a hash made for
//! one purpose never equals one made for another.
//!
//! Owns the keys, which are derived once: hashing the context anew would be a good part of hashing
//! a small payload. Called for everything that is hashed often.
//!
//! [`BlocksHasher`] calls `blake3::platform`, of which its authors promise nothing: the workspace
//! names one version exactly, and a test compares every hash with those of the promised functions.

use std::sync::OnceLock;

use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};
use blake3::platform::Platform;
use blake3::{Hasher, IncrementCounter};

/// So many hashes are asked for in one call; processors have lanes for 16 at most.
const BLOCKS_TOGETHER: usize = 16;

/// So many strings are looked at together.
const STRINGS_TOGETHER: usize = 32;

/// Strings with as many blocks before their last one, or more, are hashed alone.
const BLOCKS_CHAINED_MAX: usize = 8;

/// What BLAKE3 mixes in with a block, by where and for what it is hashed (section 2.3 of its
/// specification).
const DERIVE_KEY_MATERIAL: u8 = 1 << 6;
/// The block is the first one.
const CHUNK_START: u8 = 1 << 0;
/// It is the last one, of all there is.
const CHUNK_END_AND_ROOT: u8 = 1 << 1 | 1 << 3;

/// Bytes of a block.
const BLOCK_BYTES: usize = 64;

/// What is hashed, and for what.
#[derive(Debug)]
pub struct Purpose {
    context: &'static str,
    key: OnceLock<ContextKey>,
}

impl Purpose {
    /// The purpose that `context` names; it stands in a `static`.
    pub const fn new(context: &'static str) -> Self {
        Self { context, key: OnceLock::new() }
    }

    /// The same as `blake3::Hasher::new_derive_key` with the context.
    pub fn hasher(&self) -> Hasher {
        Hasher::new_from_context_key(self.context_key())
    }

    fn context_key(&self) -> &ContextKey {
        self.key.get_or_init(|| hash_derive_key_context(self.context))
    }

    /// Hash of `bytes`.
    pub fn hash(&self, bytes: &[u8]) -> [u8; 32] {
        *self.hasher().update(bytes).finalize().as_bytes()
    }

    /// For whoever makes many hashes.
    pub fn kept(&self) -> KeptHasher {
        KeptHasher(self.hasher())
    }

    /// For whoever hashes many things of some blocks.
    pub fn of_strings(&self) -> StringsHasher {
        StringsHasher { blocks: self.of_blocks(), alone: self.kept() }
    }

    /// For whoever hashes many things of one block.
    pub fn of_blocks(&self) -> BlocksHasher {
        BlocksHasher { key: words_of(self.context_key()), platform: Platform::detect() }
    }
}

/// A hasher that is used again and again: making one anew takes a third as long as hashing a block.
#[derive(Debug)]
pub struct KeptHasher(Hasher);

impl KeptHasher {
    /// The same as [`Purpose::hash`].
    pub fn hash(&mut self, bytes: &[u8]) -> [u8; 32] {
        *self.0.reset().update(bytes).finalize().as_bytes()
    }
}

/// Hashes things of one block each, side by side in the processor: a fifth of the time.
#[derive(Debug)]
pub struct BlocksHasher {
    key: [u32; 8],
    platform: Platform,
}

impl BlocksHasher {
    /// Writes over `hashes`, for each of `blocks`, the same as [`Purpose::hash`].
    pub fn hash_all(&self, blocks: &[[u8; 64]], hashes: &mut Vec<[u8; 32]>) {
        hashes.resize(blocks.len(), [0; 32]);
        let parts = blocks.chunks(BLOCKS_TOGETHER).zip(hashes.chunks_mut(BLOCKS_TOGETHER));
        for (blocks, hashes) in parts {
            let mut inputs = [&blocks[0]; BLOCKS_TOGETHER];
            inputs.iter_mut().zip(blocks).for_each(|(input, block)| *input = block);
            self.platform.hash_many(
                &inputs[..blocks.len()],
                &self.key,
                0,
                IncrementCounter::No,
                DERIVE_KEY_MATERIAL,
                CHUNK_START,
                CHUNK_END_AND_ROOT,
                hashes.as_flattened_mut(),
            );
        }
    }
}

/// Hashes things of some blocks each, side by side up to their last block: that one ends anywhere,
/// which the lanes of the processor cannot tell apart.
#[derive(Debug)]
pub struct StringsHasher {
    blocks: BlocksHasher,
    alone: KeptHasher,
}

/// Calls [`BlocksHasher::chain`] for as many blocks as `$count` says.
macro_rules! chain {
    ($hasher:expr, $count:expr, $strings:expr, $chained:expr, [$($blocks:literal)*]) => {
        match $count {
            $($blocks => $hasher.chain::<{ $blocks * BLOCK_BYTES }>($strings, $chained),)*
            _ => {}
        }
    };
}

impl StringsHasher {
    /// The same as [`Purpose::hash`].
    pub fn hash(&mut self, bytes: &[u8]) -> [u8; 32] {
        self.alone.hash(bytes)
    }

    /// Writes over `hashes`, for each of `strings`, the same as [`Purpose::hash`].
    pub fn hash_all(&mut self, strings: &[&[u8]], hashes: &mut Vec<[u8; 32]>) {
        hashes.resize(strings.len(), [0; 32]);
        for (strings, hashes) in
            strings.chunks(STRINGS_TOGETHER).zip(hashes.chunks_mut(STRINGS_TOGETHER))
        {
            let (mut numbers, mut counts) =
                ([[0; STRINGS_TOGETHER]; BLOCKS_CHAINED_MAX], [0; BLOCKS_CHAINED_MAX]);
            for (number, string) in (0_u8..).zip(strings) {
                let before_last = blocks_before_last(string);
                if before_last < BLOCKS_CHAINED_MAX {
                    numbers[before_last][counts[before_last]] = number;
                    counts[before_last] += 1;
                } else {
                    hashes[usize::from(number)] = self.alone.hash(string);
                }
            }
            for (before_last, (numbers, count)) in numbers.iter().zip(counts).enumerate() {
                if count > 0 {
                    self.hash_alike(before_last, (strings, &numbers[..count]), hashes);
                }
            }
        }
    }

    /// Hashes those of `strings` with these `numbers`, which have so many blocks before their last.
    fn hash_alike(
        &self,
        before_last: usize,
        (strings, numbers): (&[&[u8]], &[u8]),
        hashes: &mut [[u8; 32]],
    ) {
        let mut alike = [&[][..]; STRINGS_TOGETHER];
        for (alike, number) in alike.iter_mut().zip(numbers) {
            *alike = strings[usize::from(*number)];
        }
        let alike = &alike[..numbers.len()];
        let mut chained = [[0; 32]; STRINGS_TOGETHER];
        let blocks = &self.blocks;
        chain!(blocks, before_last, alike, &mut chained, [1 2 3 4 5 6 7]);
        for ((string, number), chained) in alike.iter().zip(numbers).zip(&chained) {
            let begun = (before_last > 0).then_some(chained);
            hashes[usize::from(*number)] = blocks.end(begun, &string[before_last * BLOCK_BYTES..]);
        }
    }
}

/// How many blocks a string has before its last one, which may be full.
fn blocks_before_last(string: &[u8]) -> usize {
    string.len().saturating_sub(1) / BLOCK_BYTES
}

impl BlocksHasher {
    /// Writes what the first `N` bytes of each of `strings` lead to, of which more follow.
    fn chain<const N: usize>(&self, strings: &[&[u8]], chained: &mut [[u8; 32]]) {
        let parts = strings.chunks(BLOCKS_TOGETHER).zip(chained.chunks_mut(BLOCKS_TOGETHER));
        for (strings, chained) in parts {
            let mut inputs = [&[0; N]; BLOCKS_TOGETHER];
            let begins = strings.iter().filter_map(|string| string.first_chunk());
            inputs.iter_mut().zip(begins).for_each(|(input, begin)| *input = begin);
            self.platform.hash_many(
                &inputs[..strings.len()],
                &self.key,
                0,
                IncrementCounter::No,
                DERIVE_KEY_MATERIAL,
                CHUNK_START,
                0,
                chained.as_flattened_mut(),
            );
        }
    }

    /// The hash of what ends with the block `last`, which may be full, after what led to `chained`.
    fn end(&self, chained: Option<&[u8; 32]>, last: &[u8]) -> [u8; 32] {
        let (mut words, begins) = match chained {
            Some(chained) => (words_of(chained), 0),
            None => (self.key, CHUNK_START),
        };
        let mut block = [0; BLOCK_BYTES];
        block[..last.len()].copy_from_slice(last);
        let length = u8::try_from(last.len()).expect("at most a block");
        let flags = DERIVE_KEY_MATERIAL | CHUNK_END_AND_ROOT | begins;
        self.platform.compress_in_place(&mut words, &block, length, 0, flags);
        let mut hash = [0; 32];
        let bytes = words.iter().map(|word| word.to_le_bytes());
        hash.as_chunks_mut().0.iter_mut().zip(bytes).for_each(|(place, word)| *place = word);
        hash
    }
}

fn words_of(bytes: &[u8; 32]) -> [u32; 8] {
    let mut words = [0; 8];
    let given = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
    words.iter_mut().zip(given).for_each(|(word, given)| *word = given);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purpose_hashes_as_its_context_says() {
        static PURPOSE: Purpose = Purpose::new("dagger v1 test");
        for bytes in [&b""[..], b"a", &[7; 3000]] {
            let hash = blake3::derive_key("dagger v1 test", bytes);
            assert_eq!(PURPOSE.hash(bytes), hash);
            // The second time with the kept key.
            assert_eq!(PURPOSE.hash(bytes), hash);
        }
        let mut kept = PURPOSE.kept();
        for bytes in [&b"a"[..], &[7; 3000], b"", &[8; 64]] {
            assert_eq!(kept.hash(bytes), PURPOSE.hash(bytes), "whatever it hashed before");
        }
    }

    #[test]
    fn blocks_hashed_side_by_side_have_the_hashes_that_they_have_alone() {
        static PURPOSE: Purpose = Purpose::new("dagger v1 test");
        let hasher = PURPOSE.of_blocks();
        let mut hashes = vec![[1; 32]; 3];
        for count in (0..=40_u8).chain([100, 255]) {
            let blocks: Vec<_> = (0..count).map(|at| [at.wrapping_mul(7) ^ count; 64]).collect();
            hasher.hash_all(&blocks, &mut hashes);
            let alone: Vec<_> = blocks.iter().map(|block| PURPOSE.hash(block)).collect();
            assert_eq!(hashes, alone, "{count} blocks");
        }
    }

    #[test]
    fn strings_hashed_side_by_side_have_the_hashes_that_they_have_alone() {
        static PURPOSE: Purpose = Purpose::new("dagger v1 test");
        let (mut hasher, mut hashes) = (PURPOSE.of_strings(), vec![[1; 32]; 3]);
        let bytes: Vec<u8> = (0..3000_u32).map(|at| at.to_le_bytes()[0] ^ 7).collect();
        let lengths: Vec<usize> = (0..=1100).chain([2048, 3000]).collect();
        for step in [1, 5, 64, 65] {
            let lengths = (0..step).flat_map(|first| lengths.iter().skip(first).step_by(step));
            let strings: Vec<&[u8]> = lengths
                .map(|length| &bytes[length % 7 * (3000 - length) / 7..][..*length])
                .collect();
            for count in (0..=70).chain([strings.len()]) {
                hasher.hash_all(&strings[..count], &mut hashes);
                let alone: Vec<_> = strings.iter().map(|string| PURPOSE.hash(string)).collect();
                assert_eq!(hashes, alone[..count], "{count} strings, each {step}th length");
            }
        }
    }
}
