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

/// What BLAKE3 mixes in with a block, by where and for what it is hashed (section 2.3 of its
/// specification).
const DERIVE_KEY_MATERIAL: u8 = 1 << 6;
/// The block is the first one.
const CHUNK_START: u8 = 1 << 0;
/// It is the last one, of all there is.
const CHUNK_END_AND_ROOT: u8 = 1 << 1 | 1 << 3;

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

    /// For whoever hashes many things of one block.
    pub fn of_blocks(&self) -> BlocksHasher {
        let words = self.context_key().as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
        let mut key = [0; 8];
        key.iter_mut().zip(words).for_each(|(word, given)| *word = given);
        BlocksHasher { key, platform: Platform::detect() }
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
        hashes.clear();
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
}
