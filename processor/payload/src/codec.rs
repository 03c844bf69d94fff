//! Deterministic CBOR (RFC 8949, section 4.2.1) by way of minicbor: integer keys, shortest forms.
//!
//! Owns the rule that bytes count only if writing again what was read gives the same bytes (no
//! decoder checks canonical form by itself). Called for everything that is digested, sent or
//! stored.

/// Why bytes were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// No value of the wanted type.
    #[error("the bytes do not decode")]
    Malformed,
    /// A second spelling of a value, or bytes after it.
    #[error("the bytes are not in canonical form")]
    NotCanonical,
}

/// The canonical bytes of `value`.
pub fn encode<T: minicbor::Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("writing to memory cannot fail")
}

/// Reads a value whose canonical bytes are exactly `bytes`.
///
/// # Errors
/// [`CodecError`].
pub fn decode<'b, T>(bytes: &'b [u8]) -> Result<T, CodecError>
where
    T: minicbor::Decode<'b, ()> + minicbor::Encode<()>,
{
    let value: T = minicbor::decode(bytes).map_err(|_| CodecError::Malformed)?;
    if encode(&value) == bytes { Ok(value) } else { Err(CodecError::NotCanonical) }
}

/// Shared bytes as a CBOR byte string; for `#[cbor(with = "...")]`.
pub mod shared_bytes {
    use bytes::Bytes;

    /// Writes a byte string.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn encode<C, W: minicbor::encode::Write>(
        value: &Bytes,
        encoder: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.bytes(value)?.ok()
    }

    /// Reads a byte string into its own allocation (its length is bounded by the frame's).
    ///
    /// # Errors
    /// Not a byte string.
    pub fn decode<C>(
        decoder: &mut minicbor::Decoder<'_>,
        _: &mut C,
    ) -> Result<Bytes, minicbor::decode::Error> {
        Ok(Bytes::copy_from_slice(decoder.bytes()?))
    }
}
