//! Newtypes for everything that has an identity or a place in an order.
//!
//! Owns their text form (lower-case hex, decimal) and their CBOR form (byte string, unsigned
//! integer). Never decides what an id means. Called everywhere.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::hashing::Purpose;

/// A text that is no id of the wanted length in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} lower-case hex digits")]
pub struct ParseIdError {
    /// How many digits were expected.
    pub expected: usize,
}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], ParseIdError> {
    let wrong = ParseIdError { expected: N * 2 };
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return Err(wrong);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        match (digit(pair[0]), digit(pair[1])) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => return Err(wrong),
        }
    }
    Ok(bytes)
}

/// The order of the bytes, told by the first eight as one number: digests hardly ever share them,
/// and maps compare them all the time.
pub fn cmp_digests<const N: usize>(one: &[u8; N], other: &[u8; N]) -> Ordering {
    let head = |bytes: &[u8; N]| bytes.first_chunk().copied().map_or(0, u64::from_be_bytes);
    head(one).cmp(&head(other)).then_with(|| one.cmp(other))
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $length:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(pub [u8; $length]);

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                cmp_digests(&self.0, &other.0)
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl $name {
            /// All zero bytes: the value before the first.
            pub const ZERO: Self = Self([0; $length]);

            /// The raw bytes.
            pub fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_hex(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                encoder: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                encoder.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(
                decoder: &mut minicbor::Decoder<'b>,
                _: &mut C,
            ) -> Result<Self, minicbor::decode::Error> {
                let bytes = decoder.bytes()?.try_into();
                bytes.map(Self).map_err(|_| minicbor::decode::Error::message("wrong id length"))
            }
        }

        #[cfg(feature = "schema")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                crate::name::string_schema(
                    &format!("^[0-9a-f]{{{}}}$", $length * 2),
                    "lower-case hex",
                )
            }
        }

        #[cfg(feature = "schema")]
        impl utoipa::ToSchema for $name {}
    };
}

hex_id!(
    /// BLAKE3 digest of the signed bytes of a payload: its identity, whoever signed and however
    /// often.
    PayloadDigest, 32
);
hex_id!(
    /// BLAKE3 digest of an event's header bytes.
    EventDigest, 32
);
hex_id!(
    /// BLAKE3 digest of the genesis document: the cluster's name in every signed thing.
    ClusterId, 32
);
hex_id!(
    /// BLAKE3 digest of an image file's bytes.
    ImageDigest, 32
);
hex_id!(
    /// Chain over every ordered payload up to a commit end; see [`crate::release::extend_prefix`].
    PrefixHash, 32
);
hex_id!(
    /// Root of the judged state at a commit end.
    StateRoot, 32
);

hex_id!(
    /// Hash chain over everything that was judged: payloads, verdicts and effects.
    HistoryHash, 32
);
hex_id!(
    /// Root of a Merkle tree over an event's payload records.
    MerkleRoot, 32
);
hex_id!(
    /// A host: derived from its ledger key, see [`HostId::of`].
    HostId, 16
);
hex_id!(
    /// An operator: derived from the operator's key, see [`OperatorId::of`].
    OperatorId, 16
);
hex_id!(
    /// An account: derived from its first key, see [`AccountId::of`].
    AccountId, 16
);
hex_id!(
    /// A virtual machine: derived from the payload that created it, see [`VmId::of`].
    VmId, 16
);
hex_id!(
    /// A volume: derived from the payload that created it, see [`VolumeId::of`].
    VolumeId, 16
);
hex_id!(
    /// A volume's snapshot: derived from the payload that asked for it, see [`SnapshotId::of`].
    SnapshotId, 16
);

fn derive<const N: usize>(purpose: &Purpose, bytes: &[u8]) -> [u8; N] {
    let mut id = [0; N];
    purpose.hasher().update(bytes).finalize_xof().fill(&mut id);
    id
}

impl PayloadDigest {
    /// Identity of a payload: a digest of the exact bytes that were signed.
    pub fn of(signed_bytes: &[u8]) -> Self {
        static PURPOSE: Purpose = Purpose::new("dagger v1 payload");
        Self(PURPOSE.hash(signed_bytes))
    }
}

impl EventDigest {
    /// Identity of an event: a digest of the header bytes as received.
    pub fn of(header_bytes: &[u8]) -> Self {
        static PURPOSE: Purpose = Purpose::new("dagger v1 event");
        Self(derive(&PURPOSE, header_bytes))
    }
}

impl ClusterId {
    /// Name of a cluster: a digest of its genesis document's bytes.
    pub fn of(genesis_bytes: &[u8]) -> Self {
        static PURPOSE: Purpose = Purpose::new("dagger v1 genesis");
        Self(derive(&PURPOSE, genesis_bytes))
    }
}

impl HostId {
    /// Id of the host that signs its events with `ledger_key`.
    pub fn of(ledger_key: &crate::key::PublicKey) -> Self {
        static PURPOSE: Purpose = Purpose::new("dagger v1 host");
        Self(derive(&PURPOSE, ledger_key.as_bytes()))
    }
}

impl OperatorId {
    /// Id of the operator who signs with `key`.
    pub fn of(key: &crate::key::PublicKey) -> Self {
        static PURPOSE: Purpose = Purpose::new("dagger v1 operator");
        Self(derive(&PURPOSE, key.as_bytes()))
    }
}

impl AccountId {
    /// Id of the account whose first key is `key`.
    pub fn of(key: &crate::key::PublicKey) -> Self {
        static PURPOSE: Purpose = Purpose::new("dagger v1 account");
        Self(derive(&PURPOSE, key.as_bytes()))
    }
}

impl VmId {
    /// Id of the VM that the payload `created_by` created.
    pub fn of(created_by: &PayloadDigest) -> Self {
        static PURPOSE: Purpose = Purpose::new("dagger v1 vm");
        Self(derive(&PURPOSE, created_by.as_bytes()))
    }
}

impl VolumeId {
    /// Id of the volume that the payload `created_by` created.
    pub fn of(created_by: &PayloadDigest) -> Self {
        static PURPOSE: Purpose = Purpose::new("dagger v1 volume");
        Self(derive(&PURPOSE, created_by.as_bytes()))
    }
}

impl SnapshotId {
    /// Id of the snapshot that the payload `asked_by` asked for.
    pub fn of(asked_by: &PayloadDigest) -> Self {
        static PURPOSE: Purpose = Purpose::new("dagger v1 volume snapshot");
        Self(derive(&PURPOSE, asked_by.as_bytes()))
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident, $type:ty) => {
        $(#[$doc])*
        #[derive(
            Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash,
            Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
        )]
        #[serde(transparent)]
        #[cbor(transparent)]
        #[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
        pub struct $name(#[n(0)] pub $type);

        impl $name {
            /// The value after this one; saturates, for no count here can reach its end.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }
    };
}

counter!(
    /// Place of an ordered payload; the first is 1, and a commit end without payloads is at 0.
    Position, u64
);
counter!(
    /// Count of commits (with or without payloads); the first is 1, the state before it is 0.
    CommitIndex, u64
);
counter!(
    /// Round of an event in its epoch; the first is 1.
    Round, u64
);
counter!(
    /// Span between two changes of the committee; the first is 0.
    Epoch, u64
);
counter!(
    /// Version of an object: the first is 1, each accepted change adds one.
    Generation, u64
);
counter!(
    /// The number of a seat, that is, of a ledger key; the same in every epoch. See
    /// [`crate::roster`].
    AuthorIndex, u16
);
counter!(
    /// Which rules payloads are judged by, from an epoch's first commit on; the first is 1.
    ProtocolVersion, u32
);

impl ProtocolVersion {
    /// The rules of every founding.
    pub const FIRST: Self = Self(1);
    /// The newest rules that this build knows.
    pub const KNOWN: Self = Self::FIRST;
}

counter!(
    /// Milliseconds since 1970-01-01T00:00:00Z, agreed by the cluster (a lower median), never a
    /// wall clock.
    LedgerTime, u64
);

impl LedgerTime {
    /// This time plus `milliseconds`.
    #[must_use]
    pub fn plus_ms(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_what_it_prints_and_nothing_else() {
        let digest = PayloadDigest::of(b"x");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!(digest.to_string().to_uppercase().parse::<PayloadDigest>().is_err());
        assert!("00".parse::<PayloadDigest>().is_err());
    }

    #[test]
    fn the_same_bytes_have_another_digest_in_another_domain() {
        assert_ne!(PayloadDigest::of(b"x").0, EventDigest::of(b"x").0);
    }
}
