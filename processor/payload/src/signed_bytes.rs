//! Bytes that were signed, together with their digest.
//!
//! Owns that the digest is taken once, where the bytes come in, and that it is theirs: whatever is
//! done with a payload afterwards (find, count, order, release it) goes by the digest. Never reads
//! the bytes. Made wherever a payload is made or decoded.

use std::ops::Deref;

use bytes::Bytes;

use crate::id::PayloadDigest;

/// See the module. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub struct SignedBytes {
    bytes: Bytes,
    digest: PayloadDigest,
}

impl SignedBytes {
    /// The bytes' digest.
    pub fn digest(&self) -> PayloadDigest {
        self.digest
    }

    /// The bytes alone, which are shared.
    pub fn shared(&self) -> Bytes {
        self.bytes.clone()
    }
}

impl<B: Into<Bytes>> From<B> for SignedBytes {
    fn from(bytes: B) -> Self {
        let bytes = bytes.into();
        let digest = PayloadDigest::of(&bytes);
        Self { bytes, digest }
    }
}

impl Deref for SignedBytes {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

impl PartialEq for SignedBytes {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for SignedBytes {}

/// A byte string.
impl<C> minicbor::Encode<C> for SignedBytes {
    fn encode<W: minicbor::encode::Write>(
        &self,
        encoder: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.bytes(&self.bytes)?.ok()
    }
}

/// Reads a byte string into its own allocation (its length is bounded by the frame's).
impl<'b, C> minicbor::Decode<'b, C> for SignedBytes {
    fn decode(
        decoder: &mut minicbor::Decoder<'b>,
        _: &mut C,
    ) -> Result<Self, minicbor::decode::Error> {
        Ok(Bytes::copy_from_slice(decoder.bytes()?).into())
    }
}
