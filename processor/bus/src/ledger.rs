//! The conversation between agent (client) and ledger (server): requests, and the stream of
//! releases.
//!
//! Each connection starts with [`Open`] and its answer [`Opened`], then serves one purpose.
//! Requests carry an id, and answers may come in any order. On a release stream the ledger sends
//! [`StreamItem`]s and the agent answers [`Consumed`]; at most the asked window of releases is
//! under way.

use bytes::Bytes;
use dagger_payload::attested::AttestedProof;
use dagger_payload::committee::Committee;
use dagger_payload::handover::EpochEnd;
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, Epoch, EventDigest, HostId, LedgerTime, PayloadDigest,
    Position, ProtocolVersion, Round,
};
use dagger_payload::name::Name;
use dagger_payload::payload::SignedPayload;
use dagger_payload::prediction::Prediction;
use dagger_payload::refusal::Refusal;
use dagger_payload::release::{CommitRelease, QuorumEvidence, SealedRelease};
use dagger_payload::snapshot::SealedAnchor;
use dagger_payload::state_tree::Subject;
use minicbor::{Decode, Encode};

/// First message of the agent.
#[derive(Debug, Clone, Encode, Decode)]
pub struct Open {
    /// The cluster that the agent serves.
    #[n(0)]
    pub cluster: ClusterId,
    /// What the connection is for.
    #[n(1)]
    pub purpose: Purpose,
}

/// What a connection is for.
#[derive(Debug, Clone, Encode, Decode)]
pub enum Purpose {
    /// [`Request`]s and [`Response`]s.
    #[n(0)]
    Requests {},
    /// Releases of the commits after `after`, from the oldest on, for ever.
    #[n(1)]
    Releases {
        /// The last commit that the agent has.
        #[n(0)]
        after: CommitIndex,
        /// How many unacknowledged releases may be under way; capped by `RELEASE_WINDOW_MAX`.
        #[n(1)]
        window: u32,
    },
}

/// Answer to [`Open`].
#[derive(Debug, Clone, Encode, Decode)]
pub struct Opened {
    /// The ledger's cluster; the agent leaves when it is another.
    #[n(0)]
    pub cluster: ClusterId,
    /// The host whose ledger this is.
    #[n(1)]
    pub host: HostId,
}

/// A request.
#[derive(Debug, Clone, Encode, Decode)]
pub struct Request {
    /// Repeated in the response.
    #[n(0)]
    pub id: u64,
    /// What is asked.
    #[n(1)]
    pub call: Call,
}

/// What an agent may ask.
#[derive(Debug, Clone, Encode, Decode)]
pub enum Call {
    /// Admit this payload, keep it durably, and have it ordered.
    #[n(0)]
    Submit {
        /// The payload.
        #[n(0)]
        payload: SignedPayload,
    },
    /// What became of a payload.
    #[n(1)]
    Look {
        /// Which.
        #[n(0)]
        digest: PayloadDigest,
    },
    /// How the ledger is.
    #[n(2)]
    Status {},
    /// Headers by which a quorum attests the commit end at or after this commit.
    #[n(3)]
    Evidence {
        /// Which commit.
        #[n(0)]
        commit: CommitIndex,
    },
    /// What would come of this document if its signer signed it? Nothing of it is kept.
    #[n(4)]
    Predict {
        /// At most `PAYLOAD_BYTES_MAX`.
        #[n(0)]
        #[cbor(with = "dagger_payload::codec::shared_bytes")]
        document: Bytes,
    },
    /// What stands under this subject of the judged state, for somebody who has only the genesis?
    #[n(5)]
    Prove {
        /// Which.
        #[n(0)]
        subject: Subject,
    },
}

/// A response.
#[derive(Debug, Clone, Encode, Decode)]
pub struct Response {
    /// The request's id.
    #[n(0)]
    pub id: u64,
    /// The answer.
    #[n(1)]
    pub answer: Answer,
}

/// What a ledger answers.
#[derive(Debug, Clone, Encode, Decode)]
pub enum Answer {
    /// The payload is durable here, or was ordered before.
    #[n(0)]
    Receipt {
        /// Its identity.
        #[n(0)]
        digest: PayloadDigest,
        /// Where it stands.
        #[n(1)]
        standing: Standing,
    },
    /// Where a payload stands.
    #[n(1)]
    Standing {
        /// Where.
        #[n(0)]
        standing: Standing,
    },
    /// How the ledger is.
    #[n(2)]
    Status {
        /// The report.
        #[n(0)]
        status: Box<LedgerStatus>,
    },
    /// The payload was refused at the door; nothing of it is kept.
    #[n(3)]
    Refused {
        /// Why.
        #[n(0)]
        refusal: Refusal,
    },
    /// Not now; nothing of it is kept.
    #[n(4)]
    Unavailable {
        /// Why.
        #[n(0)]
        reason: Unavailable,
    },
    /// Evidence, or none yet.
    #[n(5)]
    Evidence {
        /// The headers.
        #[n(0)]
        evidence: Option<QuorumEvidence>,
    },
    /// What would come of a document.
    #[n(6)]
    Prediction {
        /// Binds nobody.
        #[n(0)]
        prediction: Box<Prediction>,
    },
    /// What stands there, in a state that a quorum attests; none while no quorum attests one.
    #[n(7)]
    Proof {
        /// The proof.
        #[n(0)]
        proof: Option<Box<AttestedProof>>,
    },
}

/// Where a payload stands in this ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Standing {
    /// Never seen here.
    #[n(0)]
    Unknown {},
    /// Durable here, waiting to be ordered.
    #[n(1)]
    Received {},
    /// Ordered (at its first valid position).
    #[n(2)]
    Ordered {
        /// At this position.
        #[n(0)]
        position: Position,
        /// By this commit.
        #[n(1)]
        commit: CommitIndex,
    },
}

/// Why a ledger cannot take a change now.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Unavailable {
    /// Too few members can be reached.
    #[n(0)]
    NoQuorum {
        /// How many are reached, this one included.
        #[n(0)]
        have: u16,
        /// How many it takes.
        #[n(1)]
        need: u16,
        /// Who is missing.
        #[n(2)]
        missing: Vec<Name>,
    },
    /// The processor is not there.
    #[n(1)]
    NoProcessor {},
    /// The ledger asks its peers about its own past, or catches up.
    #[n(2)]
    Recovering {},
    /// Too much waits already.
    #[n(3)]
    Overloaded {},
    /// The disk is full or the store's map is.
    #[n(4)]
    StoreFull {},
    /// This host has left: it has no vote, and members take nothing from it. (What a host without a
    /// vote takes in while it is a member, it hands to one that has.)
    #[n(5)]
    Follower {},
    /// Rules count that this host's processor does not know: what is ordered is not judged here
    /// until it is upgraded.
    #[n(6)]
    UpgradeNeeded {
        /// The version of the rules.
        #[n(0)]
        needs: ProtocolVersion,
    },
    /// This host's clock jumped, or is far from those of its peers: it makes no events until its
    /// operator confirms the clock.
    #[n(7)]
    ClockInDoubt {
        /// How far it is ahead of what it was compared with, in milliseconds.
        #[n(0)]
        ahead_ms: i64,
        /// With what.
        #[n(1)]
        compared_with: ClockReference,
    },
}

/// What a host's wall clock is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum ClockReference {
    /// Its own monotonic clock: the wall clock jumped.
    #[n(0)]
    OwnMonotonic,
    /// The newest events of more than half of its peers.
    #[n(1)]
    Peers,
}

/// A member as this ledger sees it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct MemberStatus {
    /// Its index.
    #[n(0)]
    pub author: AuthorIndex,
    /// Its name.
    #[n(1)]
    pub name: Name,
    /// Its host id.
    #[n(2)]
    pub host: HostId,
    /// The link to it.
    #[n(3)]
    pub link: LinkStatus,
    /// The highest round of its events here.
    #[n(4)]
    pub highest_round: Round,
}

/// State of a link to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum LinkStatus {
    /// This is the ledger itself.
    #[n(0)]
    Own,
    /// Connected and authenticated.
    #[n(1)]
    Connected,
    /// Not connected.
    #[n(2)]
    Missing,
}

/// How a ledger is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct LedgerStatus {
    /// The cluster.
    #[n(0)]
    pub cluster: ClusterId,
    /// This ledger's index.
    #[n(1)]
    pub author: AuthorIndex,
    /// The epoch.
    #[n(2)]
    pub epoch: Epoch,
    /// The highest round of its own events.
    #[n(3)]
    pub round: Round,
    /// The newest commit.
    #[n(4)]
    pub committed: CommitIndex,
    /// The newest judged commit.
    #[n(5)]
    pub judged: CommitIndex,
    /// The newest commit that a quorum attests.
    #[n(6)]
    pub attested: CommitIndex,
    /// Position of the newest ordered payload.
    #[n(7)]
    pub position: Position,
    /// Ledger time of the newest commit.
    #[n(8)]
    pub ledger_time: LedgerTime,
    /// All members that are present, with and without a vote.
    #[n(9)]
    pub members: Vec<MemberStatus>,
    /// How many must be reached for a change.
    #[n(10)]
    pub quorum: u16,
    /// Payloads that wait here.
    #[n(11)]
    pub waiting: u64,
    /// Bytes in the store.
    #[n(12)]
    pub store_bytes: u64,
    /// Why it cannot take changes now, if so.
    #[n(13)]
    pub unavailable: Option<Unavailable>,
    /// The commit of the newest snapshot, from which a processor begins; 0 for none.
    #[n(14)]
    pub snapshot: CommitIndex,
    /// Bodies of events are gone up to this round of [`Self::pruned_epoch`], and of all epochs
    /// before it; 0 when all are here.
    #[n(15)]
    pub pruned_round: Round,
    /// See [`Self::pruned_round`].
    #[n(16)]
    pub pruned_epoch: Epoch,
    /// Members who signed two events for one round, by author and round.
    #[n(17)]
    pub forks: Vec<ForkStatus>,
    /// Who votes in the present epoch; the other members follow.
    #[n(18)]
    pub committee: Committee,
    /// Where the epoch ends and who votes in the next one, once that is decided.
    #[n(19)]
    pub epoch_end: Option<EpochEnd>,
}

/// A member who lies: whoever signs two events for one round may show each to others.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ForkStatus {
    /// Its index.
    #[n(0)]
    pub author: AuthorIndex,
    /// Its name.
    #[n(1)]
    pub name: Name,
    /// Its host id.
    #[n(2)]
    pub host: HostId,
    /// For which round, as far as the two headers are kept here.
    #[n(3)]
    pub evidence: Option<ForkEvidence>,
}

/// Two events of one author for one round, whose signed headers are kept as proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct ForkEvidence {
    /// The round.
    #[n(0)]
    pub round: Round,
    /// One event.
    #[n(1)]
    pub first: EventDigest,
    /// The other.
    #[n(2)]
    pub second: EventDigest,
}

/// What a release stream carries, in order of commits.
#[derive(Debug, Clone, Encode, Decode)]
pub enum StreamItem {
    /// A commit with payloads or effects.
    #[n(0)]
    Release {
        /// Sealed by the processor that runs now.
        #[n(0)]
        sealed: Box<SealedRelease>,
    },
    /// A quorum has attested a commit end at or above `commit`; sent when that advances, after its
    /// release. Where an epoch ended, and before any later release, the headers by which a quorum
    /// of its voters attests that end: a reader needs them to know the voters of the next one.
    #[n(1)]
    Attested {
        /// The highest commit that the evidence covers.
        #[n(0)]
        commit: CommitIndex,
        /// By which headers.
        #[n(1)]
        evidence: QuorumEvidence,
    },
    /// Everything judged so far has been sent; sent once after the history, and after each reset.
    #[n(2)]
    CaughtUp {
        /// The newest judged commit.
        #[n(0)]
        commit: CommitIndex,
    },
    /// A release of a processor's life before the present one, from before its anchor: nobody can
    /// check its seal any more. It counts when the anchor's history covers it.
    #[n(3)]
    Past {
        /// The release.
        #[n(0)]
        release: Box<CommitRelease>,
    },
    /// After the last past release: where the present life began.
    #[n(4)]
    Anchor {
        /// Sealed by the processor that runs now.
        #[n(0)]
        anchor: Box<SealedAnchor>,
    },
}

/// The agent has taken in all items up to and with this commit.
#[derive(Debug, Clone, Copy, Encode, Decode)]
pub struct Consumed {
    /// The commit.
    #[n(0)]
    pub commit: CommitIndex,
}
