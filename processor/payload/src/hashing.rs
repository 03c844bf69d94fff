//! BLAKE3 for one purpose each: its mode that derives a key from a context, so that a hash made for
//! one purpose never equals one made for another.
//!
//! Owns the keys, which are derived once: hashing the context anew would be a good part of hashing
//! a small payload. Called for everything that is hashed often.

use std::sync::OnceLock;

use blake3::Hasher;
use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};

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
        let key = self.key.get_or_init(|| hash_derive_key_context(self.context));
        Hasher::new_from_context_key(key)
    }

    /// Hash of `bytes`.
    pub fn hash(&self, bytes: &[u8]) -> [u8; 32] {
        *self.hasher().update(bytes).finalize().as_bytes()
    }

    /// For whoever makes many hashes.
    pub fn kept(&self) -> KeptHasher {
        KeptHasher(self.hasher())
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
}
