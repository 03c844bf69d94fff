//! Releases: what judging turned a commit into, and the hash chain over everything ordered.
//!
//! Owns the shape that travels from processor to ledger to agent, its digest (which the processor
//! seals) and the prefix hash. Never judges. Called by all three daemons.

use crate::codec;
use crate::event::{CommitEnd, SignedHeader};
use crate::id::{
    AuthorIndex, ClusterId, CommitIndex, LedgerTime, PayloadDigest, Position, PrefixHash, Round,
};
use crate::key::Signature;
use crate::merkle::Leaf;
use crate::object::Effect;
use crate::payload::SignedPayload;
use crate::refusal::Refusal;

/// The chain before the first commit.
pub fn initial_prefix(cluster: &ClusterId) -> PrefixHash {
    let mut hasher = blake3::Hasher::new_derive_key("dagger v1 prefix start");
    PrefixHash(*hasher.update(cluster.as_bytes()).finalize().as_bytes())
}

/// The chain after a commit: unchanged by one without payloads, else a hash of the chain before,
/// the commit's ledger time and the Merkle leaf of each payload in order.
pub fn extend_prefix<'p>(
    before: &PrefixHash,
    ledger_time: LedgerTime,
    payloads: impl IntoIterator<Item = &'p SignedPayload>,
) -> PrefixHash {
    let leaves = payloads.into_iter().map(SignedPayload::leaf);
    extend_prefix_by(before, ledger_time, leaves)
}

/// The same, where the leaves are known.
pub fn extend_prefix_by(
    before: &PrefixHash,
    ledger_time: LedgerTime,
    leaves: impl IntoIterator<Item = Leaf>,
) -> PrefixHash {
    // In one piece, so that parts of it are hashed side by side.
    let leaves: Vec<Leaf> = leaves.into_iter().collect();
    if leaves.is_empty() {
        return *before;
    }
    let mut hasher = blake3::Hasher::new_derive_key("dagger v1 prefix");
    hasher.update(before.as_bytes()).update(&ledger_time.0.to_be_bytes());
    PrefixHash(*hasher.update(leaves.as_flattened()).finalize().as_bytes())
}

/// What the ledger hands to the processor: one commit, in order.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct OrderedCommit {
    /// Which commit; each follows the one before without a gap.
    #[n(0)]
    pub index: CommitIndex,
    /// The agreed time of this commit; never before that of an earlier commit.
    #[n(1)]
    pub ledger_time: LedgerTime,
    /// Round of the committed leader.
    #[n(2)]
    pub leader_round: Round,
    /// For each author of whom this commit orders events: the highest round among them.
    #[n(3)]
    pub authors: Vec<(AuthorIndex, Round)>,
    /// The payloads; the first has position `first_position`.
    #[n(4)]
    pub payloads: Vec<OrderedPayload>,
    /// Position of the first payload of this commit (the next one, if it has none).
    #[n(5)]
    pub first_position: Position,
    /// The chain after this commit.
    #[n(6)]
    pub prefix_hash: PrefixHash,
}

impl OrderedCommit {
    /// Each payload with its position.
    pub fn placed(&self) -> impl Iterator<Item = (Position, &OrderedPayload)> {
        (self.first_position.0..).map(Position).zip(&self.payloads)
    }

    /// Position of the last payload up to and with this commit.
    pub fn last_position(&self) -> Position {
        let count = u64::try_from(self.payloads.len()).expect("a count fits into 64 bits");
        Position(self.first_position.0.saturating_sub(1).saturating_add(count))
    }
}

/// A payload with the author who packed it.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct OrderedPayload {
    /// Whose event carried it.
    #[n(0)]
    pub author: AuthorIndex,
    /// The payload.
    #[n(1)]
    pub payload: SignedPayload,
}

/// What the judge decided about an ordered payload.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub enum Verdict {
    /// It counts; its effects follow.
    #[n(0)]
    Accepted,
    /// It changes nothing.
    #[n(1)]
    Refused(#[n(0)] Refusal),
}

/// One judged payload.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Release {
    /// Its place for ever.
    #[n(0)]
    pub position: Position,
    /// Identity of the payload.
    #[n(1)]
    pub digest: PayloadDigest,
    /// The payload itself, so that a reader can check the developer's signature.
    #[n(2)]
    pub ordered: OrderedPayload,
    /// What was decided.
    #[n(3)]
    pub verdict: Verdict,
    /// New versions of every object that it changed.
    #[n(4)]
    pub effects: Vec<Effect>,
}

/// Everything that one commit released.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct CommitRelease {
    /// The commit end that these releases lead to.
    #[n(0)]
    pub end: CommitEnd,
    /// The commit's ledger time.
    #[n(1)]
    pub ledger_time: LedgerTime,
    /// The judged payloads, by position.
    #[n(2)]
    pub releases: Vec<Release>,
    /// What the passing of ledger time changed (deadlines), after the payloads.
    #[n(3)]
    pub time_effects: Vec<Effect>,
}

impl CommitRelease {
    /// Whether a reader who skips it misses nothing.
    pub fn is_empty(&self) -> bool {
        self.releases.is_empty() && self.time_effects.is_empty()
    }

    /// What the commit changed, in order.
    pub fn effects(&self) -> impl Iterator<Item = &Effect> {
        let judged = self.releases.iter().flat_map(|release| &release.effects);
        judged.chain(&self.time_effects)
    }

    /// What the processor seals: a digest over the release's bytes.
    pub fn seal_digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("dagger v1 release");
        *hasher.update(&codec::encode(self)).finalize().as_bytes()
    }
}

/// A release with the processor's seal: what the agent receives.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct SealedRelease {
    /// The release.
    #[n(0)]
    pub release: CommitRelease,
    /// The processor's signature (domain `Seal`) over [`CommitRelease::seal_digest`].
    #[n(1)]
    pub seal: Signature,
}

/// Evidence that a quorum judged the history up to a commit end: headers of different authors.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct QuorumEvidence {
    /// Signed headers, at least a quorum of authors.
    #[n(0)]
    pub headers: Vec<SignedHeader>,
}
