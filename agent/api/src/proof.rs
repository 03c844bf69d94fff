//! JSON shape of a proof: small enough to send to a customer, complete enough to check it offline
//! with nothing but the cluster's genesis (`daggerctl ledger verify`).
//!
//! Owns the spelling of its parts; their bytes and their checks are `dagger_payload`'s. Never
//! believes a part.

use std::fmt;

use dagger_payload::attested::{AttestedEnd, AttestedProof};
use dagger_payload::carried::Carried;
use dagger_payload::codec::{self, CodecError};
use dagger_payload::event::{CommitEnd, SignedHeader};
use dagger_payload::id::{ClusterId, CommitIndex, Position, PrefixHash, StateRoot};
use dagger_payload::key::Signature;
use dagger_payload::payload::SignedPayload;
use dagger_payload::proof::Path;
use dagger_payload::state_tree::Subject;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

/// Version of [`ProofView`].
pub const PROOF_VERSION: u64 = 1;

/// `GET /v1/proofs/...`: that an object of the judged state is as it is, or that there is none, and
/// which members of the cluster signed that state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProofView {
    /// Version of this shape: 1.
    pub dagger_proof: u64,
    /// The cluster: the digest of its genesis document.
    pub cluster: ClusterId,
    /// What it is about.
    pub subject: Subject,
    /// The object with its path to the state root, or why there is none (CBOR, in hex).
    #[schema(value_type = String, pattern = "^([0-9a-f]{2})*$")]
    pub state: Hex,
    /// The state.
    pub end: ProofEnd,
    /// Signed event headers of a quorum, each of which names this state.
    pub headers: Vec<ProofHeader>,
    /// How each epoch up to that of the headers began (CBOR, in hex); none in the first epoch.
    #[schema(value_type = Vec<String>)]
    pub handovers: Vec<Hex>,
    /// The signed documents that the object names as its causes, as far as the answering host has
    /// them.
    pub documents: Vec<ProofDocument>,
    /// Of a payload: the event that carried it; left out when the answering host
    /// has no history from so long ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried: Option<ProofCarried>,
}

/// A payload's way to the Merkle root of the event that carried it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProofCarried {
    /// The payload's record: the document and its signature (CBOR, in hex).
    #[schema(value_type = String, pattern = "^([0-9a-f]{2})*$")]
    pub record: Hex,
    /// Its place among the event's records, from 0.
    pub index: u32,
    /// The hashes beside its way to the event's Merkle root, lowest first, one after another.
    #[schema(value_type = String, pattern = "^([0-9a-f]{64})*$")]
    pub path: Hex,
    /// The event's header, signed by whoever carried the payload.
    pub event: ProofHeader,
}

/// A commit end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProofEnd {
    /// After which commit.
    pub commit: CommitIndex,
    /// The last position up to there.
    pub position: Position,
    /// Chain over everything ordered up to there.
    pub prefix_hash: PrefixHash,
    /// Root of the judged state.
    pub state_root: StateRoot,
}

/// A signed header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProofHeader {
    /// Its canonical bytes, in hex.
    #[schema(value_type = String, pattern = "^([0-9a-f]{2})*$")]
    pub header: Hex,
    /// Its author's signature, in hex.
    #[schema(value_type = String, pattern = "^[0-9a-f]{128}$")]
    pub signature: Hex,
}

/// A signed document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProofDocument {
    /// The exact signed text.
    pub document: String,
    /// The armoured signature for `ssh-keygen -Y verify -n dagger`.
    pub signature: String,
}

/// Bytes as lower-case hex.
#[derive(Clone, PartialEq, Eq)]
pub struct Hex(pub Vec<u8>);

/// A part that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnreadableProof {
    /// Another version's.
    Version(u64),
    /// The state's part.
    State(CodecError),
    /// A signature of another length.
    Signature,
    /// A handover.
    Handover(CodecError),
    /// What carried a payload.
    Carried(CodecError),
}

impl fmt::Display for UnreadableProof {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => {
                write!(
                    formatter,
                    "it is a proof of version {version}; this program reads version 1"
                )
            }
            Self::State(error) => write!(formatter, "its `state`: {error}"),
            Self::Signature => formatter.write_str("the signature of a header has not 64 bytes"),
            Self::Handover(error) => write!(formatter, "one of its `handovers`: {error}"),
            Self::Carried(error) => write!(formatter, "its `carried`: {error}"),
        }
    }
}

impl std::error::Error for UnreadableProof {}

impl ProofView {
    /// As it is written down.
    pub fn new(
        cluster: ClusterId,
        subject: Subject,
        proof: &AttestedProof,
        documents: Vec<ProofDocument>,
    ) -> Self {
        let AttestedEnd { end, headers, handovers } = &proof.attested;
        let header = |signed: &SignedHeader| ProofHeader {
            header: Hex(signed.header.to_vec()),
            signature: Hex(signed.signature.0.to_vec()),
        };
        let carried = proof.carried.as_ref().map(|carried| ProofCarried {
            record: Hex(carried.payload.to_record()),
            index: carried.index,
            path: Hex(carried.path.0.concat()),
            event: header(&carried.header),
        });
        Self {
            dagger_proof: PROOF_VERSION,
            cluster,
            subject,
            state: Hex(codec::encode(&proof.state)),
            end: ProofEnd {
                commit: end.index,
                position: end.position,
                prefix_hash: end.prefix_hash,
                state_root: end.state_root,
            },
            headers: headers.iter().map(header).collect(),
            handovers: handovers.iter().map(|handover| Hex(codec::encode(handover))).collect(),
            documents,
            carried,
        }
    }

    /// Its parts, read; nothing of them is checked yet.
    ///
    /// # Errors
    /// [`UnreadableProof`].
    pub fn read(&self) -> Result<AttestedProof, UnreadableProof> {
        if self.dagger_proof != PROOF_VERSION {
            return Err(UnreadableProof::Version(self.dagger_proof));
        }
        let end = CommitEnd {
            index: self.end.commit,
            position: self.end.position,
            prefix_hash: self.end.prefix_hash,
            state_root: self.end.state_root,
        };
        let headers: Result<Vec<_>, _> = self.headers.iter().map(ProofHeader::read).collect();
        let headers = headers?;
        let handovers = self.handovers.iter().map(|handover| codec::decode(&handover.0));
        let handovers: Result<Vec<_>, _> = handovers.collect();
        let handovers = handovers.map_err(UnreadableProof::Handover)?;
        Ok(AttestedProof {
            state: codec::decode(&self.state.0).map_err(UnreadableProof::State)?,
            attested: AttestedEnd { end, headers, handovers },
            carried: self.carried.as_ref().map(ProofCarried::read).transpose()?,
        })
    }
}

impl ProofHeader {
    fn read(&self) -> Result<SignedHeader, UnreadableProof> {
        let signature = self.signature.0.as_slice().try_into();
        let signature = Signature(signature.map_err(|_| UnreadableProof::Signature)?);
        Ok(SignedHeader { header: self.header.0.clone().into(), signature })
    }
}

impl ProofCarried {
    fn read(&self) -> Result<Carried, UnreadableProof> {
        let payload: SignedPayload =
            codec::decode(&self.record.0).map_err(UnreadableProof::Carried)?;
        let path = Path::of_bytes(&self.path.0).ok_or(CodecError::Malformed);
        let path = path.map_err(UnreadableProof::Carried)?;
        Ok(Carried { payload, index: self.index, path, header: self.event.read()? })
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Hex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Hex({self})")
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let byte = |pair: &[u8]| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        };
        let bytes = text.as_bytes().chunks(2).map(byte).collect::<Option<Vec<u8>>>();
        bytes.map(Self).ok_or_else(|| de::Error::custom("expected pairs of lower-case hex digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_spelled_in_one_way() {
        let read = |text: &str| serde_json::from_str::<Hex>(text).ok();
        assert_eq!(read("\"00ff7a\""), Some(Hex(vec![0, 255, 0x7a])));
        assert_eq!(serde_json::to_string(&Hex(vec![0, 255])).ok().as_deref(), Some("\"00ff\""));
        for other in ["\"0\"", "\"0F\"", "\"0g\"", "\" 00\""] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
