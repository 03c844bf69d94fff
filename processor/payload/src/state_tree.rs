//! How the judged state hashes to its root.
//!
//! Owns the hashes of leaves and nodes (domains apart, so that no node passes for a leaf), the keys
//! under which objects stand, and what stands there for a payload. The tree itself is the judge's.
//! Called by the judge, and by whoever checks a proof.
//!
//! The tree is a binary trie over the hashes of keys, first bit first: a subtree with one leaf is
//! that leaf, a subtree without any is [`EMPTY`]. So a path is about log2 of the number of leaves
//! long; what it proves is in [`crate::proof`].

use serde::{Deserialize, Serialize};

use crate::hashing::{BlocksHasher, KeptHasher, Purpose, StringsHasher};
use crate::id::{
    AccountId, AuthorIndex, Epoch, HistoryHash, HostId, LedgerTime, OperatorId, PayloadDigest,
    Position, VmId, VolumeId,
};
use crate::name::ImageName;
use crate::refusal::RefusalCode;

static KEY: Purpose = Purpose::new("dagger v1 state key");
static VALUE: Purpose = Purpose::new("dagger v1 state value");
static LEAF: Purpose = Purpose::new("dagger v1 state leaf");
static NODE: Purpose = Purpose::new("dagger v1 state node");

/// A hash in the state tree.
pub type Hash = [u8; 32];

/// Hash of a subtree without leaves.
pub const EMPTY: Hash = [0; 32];

/// What a leaf of the state is about. JSON: `{"kind": "vm", "id": "..."}`.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(tag = "kind", content = "id", rename_all = "snake_case")]
pub enum Subject {
    /// A host, as `object::Host`.
    #[n(0)]
    Host(#[n(0)] HostId),
    /// An account, as `object::Account`.
    #[n(1)]
    Account(#[n(0)] AccountId),
    /// An image, as `object::Image`.
    #[n(2)]
    Image(#[n(0)] ImageName),
    /// A VM, as `object::Vm`.
    #[n(3)]
    Vm(#[n(0)] VmId),
    /// A volume, as `volume::Volume`.
    #[n(4)]
    Volume(#[n(0)] VolumeId),
    /// What an account's deleted VMs have used on a host, as `usage::PastUsage`.
    #[n(5)]
    Usage(#[n(0)] AccountId, #[n(1)] HostId),
    /// A payload that was ordered and has not expired, as [`Judgement`].
    #[n(6)]
    Payload(#[n(0)] PayloadDigest),
    /// A seat, as `roster::Seat`.
    #[n(7)]
    Seat(#[n(0)] AuthorIndex),
    /// An epoch that has begun or is to begin, as `roster::EpochMembers`.
    #[n(8)]
    Epoch(#[n(0)] Epoch),
    /// An operator, as `membership::Operator`.
    #[n(9)]
    Operator(#[n(0)] OperatorId),
    /// A pending proposal, as `membership::Proposal`.
    #[n(10)]
    Proposal(#[n(0)] PayloadDigest),
    /// What the state says of the order itself, as [`Ordered`].
    #[n(11)]
    Order,
}

/// What the state says of everything that led to it. The leaf has more after these, which is for
/// the judge alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, minicbor::Decode)]
pub struct Ordered {
    /// Ledger time of the last commit with content.
    #[n(0)]
    pub time: LedgerTime,
    /// The chain over all that was judged: see [`crate::snapshot::extend_history`].
    #[n(1)]
    pub history: HistoryHash,
}

/// On whose account a payload is remembered: whoever its signer signs for.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    minicbor::Encode,
    minicbor::Decode,
)]
#[serde(tag = "kind", content = "id", rename_all = "snake_case")]
pub enum Author {
    /// An operator.
    #[n(0)]
    Operator(#[n(0)] OperatorId),
    /// A host, by its agent.
    #[n(1)]
    Host(#[n(0)] HostId),
    /// An account, by any of its keys.
    #[n(2)]
    Account(#[n(0)] AccountId),
}

/// What became of an ordered payload; the state remembers it until the payload has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Judgement {
    /// Its place for ever.
    #[n(0)]
    pub position: Position,
    /// Until when it is remembered: its own `not_after`.
    #[n(1)]
    pub not_after: LedgerTime,
    /// Why it was refused; none when it was accepted.
    #[n(2)]
    pub refused: Option<RefusalCode>,
    /// Whose it is.
    #[n(3)]
    pub author: Author,
}

impl Subject {
    /// The key of its leaf.
    pub fn key(&self) -> Vec<u8> {
        let mut key = Vec::new();
        self.write_key(&mut key);
        key
    }

    /// The place of its leaf.
    pub fn place(&self) -> Hash {
        key_hash(&self.key())
    }

    /// Writes the key of its leaf over what stands in `key`.
    pub fn write_key(&self, key: &mut Vec<u8>) {
        let number;
        let (kind, id): (&[u8], &[u8]) = match self {
            Self::Host(id) => (b"host/", id.as_bytes()),
            Self::Account(id) => (b"account/", id.as_bytes()),
            Self::Image(name) => (b"image/", name.as_str().as_bytes()),
            Self::Vm(id) => (b"vm/", id.as_bytes()),
            Self::Volume(id) => (b"volume/", id.as_bytes()),
            Self::Usage(account, _) => (b"usage/", account.as_bytes()),
            Self::Payload(digest) => (b"payload/", digest.as_bytes()),
            Self::Operator(id) => (b"operator/", id.as_bytes()),
            Self::Proposal(id) => (b"proposal/", id.as_bytes()),
            Self::Order => (b"order", b""),
            Self::Seat(index) => {
                number = u64::from(index.0).to_be_bytes();
                (b"seat/", &number)
            }
            Self::Epoch(epoch) => {
                number = epoch.0.to_be_bytes();
                (b"epoch/", &number)
            }
        };
        key.clear();
        key.extend_from_slice(kind);
        key.extend_from_slice(id);
        if let Self::Usage(_, host) = self {
            key.extend_from_slice(host.as_bytes());
        }
    }
}

/// Hash of a key: the leaf's place.
pub fn key_hash(key: &[u8]) -> Hash {
    KEY.hash(key)
}

/// Hash of what stands at a leaf.
pub fn value_hash(value: &[u8]) -> Hash {
    VALUE.hash(value)
}

/// Hash of the leaf at `place` with `value`.
pub fn leaf(place: &Hash, value: &[u8]) -> Hash {
    leaf_of(place, &value_hash(value))
}

/// The same, where only the hash of the value is known.
pub fn leaf_of(place: &Hash, value_hash: &Hash) -> Hash {
    LEAF.hash([*place, *value_hash].as_flattened())
}

/// Hash of a branch.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    NODE.hash([*left, *right].as_flattened())
}

/// The same hashes, for whoever makes many of them.
#[derive(Debug)]
pub struct StateHasher {
    key: KeptHasher,
    value: StringsHasher,
    leaf: BlocksHasher,
    node: BlocksHasher,
    /// Where keys are written.
    key_bytes: Vec<u8>,
}

impl Default for StateHasher {
    fn default() -> Self {
        let (key, value) = (KEY.kept(), VALUE.of_strings());
        let [leaf, node] = [&LEAF, &NODE].map(Purpose::of_blocks);
        Self { key, value, leaf, node, key_bytes: Vec::new() }
    }
}

impl StateHasher {
    /// As [`Subject::place`].
    pub fn place(&mut self, subject: &Subject) -> Hash {
        subject.write_key(&mut self.key_bytes);
        self.key.hash(&self.key_bytes)
    }

    /// As [`value_hash`].
    pub fn value_hash(&mut self, value: &[u8]) -> Hash {
        self.value.hash(value)
    }

    /// Writes the [`value_hash`] of each of `values` over `hashes`.
    pub fn value_hashes(&mut self, values: &[&[u8]], hashes: &mut Vec<Hash>) {
        self.value.hash_all(values, hashes);
    }

    /// Writes [`leaf_of`] each place and its value's hash over `leaves`.
    pub fn leaves(&self, places_and_values: &[[Hash; 2]], leaves: &mut Vec<Hash>) {
        self.leaf.hash_all(blocks(places_and_values), leaves);
    }

    /// Writes the [`node()`] of each two children over `nodes`.
    pub fn nodes(&self, children: &[[Hash; 2]], nodes: &mut Vec<Hash>) {
        self.node.hash_all(blocks(children), nodes);
    }
}

/// Each pair as the one block that it is.
fn blocks(pairs: &[[Hash; 2]]) -> &[[u8; 64]] {
    pairs.as_flattened().as_flattened().as_chunks().0
}

/// On which side of the branch at `depth` the leaf at `place` stands: 0 left, 1 right.
pub fn side(place: &Hash, depth: usize) -> usize {
    usize::from(place[depth / 8] >> (7 - depth % 8) & 1)
}

/// Written by hand: the derive knows no variants of two ids.
#[cfg(feature = "schema")]
impl utoipa::PartialSchema for Subject {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{ObjectBuilder, Type};
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .property("kind", crate::name::string_schema("^[a-z_]+$", "what it is: `vm`, ..."))
            .property(
                "id",
                ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::SchemaType::AnyValue)
                    .description(Some(
                        "its id or name; for `usage` a list of account and host; for `order` none",
                    )),
            )
            .required("kind")
            .description(Some("What a proof is about"))
            .into()
    }
}

#[cfg(feature = "schema")]
impl utoipa::ToSchema for Subject {}
