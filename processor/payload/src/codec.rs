//! Deterministic CBOR (RFC 8949, section 4.2.1) by way of minicbor: integer keys, shortest forms.
//!
//! Owns the rule that bytes count only if writing again what was read gives the same bytes (no
//! decoder checks canonical form by itself). Called for everything that is digested, sent or
//! stored.

use std::convert::Infallible;

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

/// Writes the canonical bytes of `value` over what stands in `bytes`: whoever encodes often asks
/// for memory once.
pub fn encode_over<T: minicbor::Encode<()>>(value: &T, bytes: &mut Vec<u8>) {
    bytes.clear();
    encode_after(value, bytes);
}

/// Writes the canonical bytes of `value` after what stands in `bytes`.
pub fn encode_after<T: minicbor::Encode<()>>(value: &T, bytes: &mut Vec<u8>) {
    minicbor::encode(value, Appending { bytes }).expect("writing to memory cannot fail");
}

/// A writer to the end of some bytes.
struct Appending<'b> {
    bytes: &'b mut Vec<u8>,
}

impl minicbor::encode::Write for Appending<'_> {
    type Error = Infallible;

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        match bytes {
            // Most of what is written, without a call.
            [byte] => self.bytes.push(*byte),
            _ => self.bytes.extend_from_slice(bytes),
        }
        Ok(())
    }
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
    if is_canonical(&value, bytes) { Ok(value) } else { Err(CodecError::NotCanonical) }
}

/// Whether writing `value` gives exactly `bytes`; nothing is allocated for it.
pub fn is_canonical<T: minicbor::Encode<()>>(value: &T, bytes: &[u8]) -> bool {
    let mut comparing = Comparing { left: bytes };
    minicbor::encode(value, &mut comparing).is_ok() && comparing.left.is_empty()
}

/// A writer that takes only what is expected.
struct Comparing<'b> {
    left: &'b [u8],
}

/// Something else was written.
#[derive(Debug, thiserror::Error)]
#[error("other bytes")]
struct OtherBytes;

impl minicbor::encode::Write for Comparing<'_> {
    type Error = OtherBytes;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), OtherBytes> {
        self.left = match bytes {
            // Most of what is written, told without a call.
            [byte] => match self.left {
                [expected, left @ ..] if expected == byte => left,
                _ => return Err(OtherBytes),
            },
            _ => self.left.strip_prefix(bytes).ok_or(OtherBytes)?,
        };
        Ok(())
    }
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
