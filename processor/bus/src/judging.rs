//! The conversation between ledger (client) and processor (server): admission before order,
//! judgement after it.
//!
//! Each connection starts with [`Open`] and [`Opened`]. Judgement is strictly in order of commits,
//! one answer per commit; admissions are answered in any order. A ledger that died may have lost
//! the answers that were under way: the last [`crate::limits::JUDGED_KEPT_MAX`] judged commits may
//! be asked for again and get the same answer. A ledger that lacks more than that asks for
//! [`Purpose::JudgementAnew`].
//!
//! With a [`Judge`] the ledger may ask for a snapshot of the state after that commit: the answer is
//! followed by [`Judged::Chunk`]s and one [`Judged::Snapshot`]. Later it hands the chunks back with
//! [`Purpose::JudgementFrom`] instead of all commits up to there: [`Restore`] and [`Restored`].

use bytes::Bytes;
use dagger_payload::event::CommitEnd;
use dagger_payload::handover::{EpochEnd, NextMembers};
use dagger_payload::id::{
    AccountId, ClusterId, CommitIndex, LedgerTime, PayloadDigest, ProtocolVersion,
};
use dagger_payload::key::PublicKey;
use dagger_payload::payload::SignedPayload;
use dagger_payload::prediction::Prediction;
use dagger_payload::proof::JudgedProof;
use dagger_payload::refusal::Refusal;
use dagger_payload::release::{OrderedCommit, SealedRelease};
use dagger_payload::roster::Roster;
use dagger_payload::snapshot::{SealedAnchor, SnapshotHead};
use dagger_payload::state_tree::Subject;
use minicbor::{Decode, Encode};

/// First message of the ledger.
#[derive(Debug, Clone, Encode, Decode)]
pub struct Open {
    /// The cluster.
    #[n(0)]
    pub cluster: ClusterId,
    /// What the connection is for.
    #[n(1)]
    pub purpose: Purpose,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Purpose {
    /// [`Admit`] and [`Admission`].
    #[n(0)]
    Admissions,
    /// [`Judge`] and [`Judged`].
    #[n(1)]
    Judgement,
    /// The same, but the processor first begins a new life, as if it had been restarted: founding
    /// state, commit 0, a new seal key, all other connections closed. Asked by a ledger whose store
    /// knows less than the processor has judged.
    #[n(2)]
    JudgementAnew,
    /// After [`Opened`] the ledger sends a snapshot ([`Restore`]); when [`Restored`] says so, the
    /// processor begins a new life with its state, and judgement goes on from there on the same
    /// connection.
    #[n(3)]
    JudgementFrom,
}

/// Answer to [`Open`].
#[derive(Debug, Clone, Encode, Decode)]
pub struct Opened {
    /// The processor's cluster.
    #[n(0)]
    pub cluster: ClusterId,
    /// The seal key of this processor's life; a new one means that it was restarted and starts from
    /// the beginning.
    #[n(1)]
    pub seal_key: PublicKey,
    /// The last judged commit end; commit 0 with the root of the founding state at first.
    #[n(2)]
    pub judged: CommitEnd,
    /// The earliest open deadline.
    #[n(3)]
    pub next_deadline: Option<LedgerTime>,
    /// Where the epoch ends, once that is decided and until it is judged.
    #[n(4)]
    pub epoch_end: Option<EpochEnd>,
    /// Where this life began; none at the founding.
    #[n(5)]
    pub anchor: Option<SealedAnchor>,
    /// All seats, as they were judged.
    #[n(6)]
    pub roster: Roster,
}

/// A snapshot on its way into the judge.
#[derive(Debug, Clone, Encode, Decode)]
pub enum Restore {
    /// First: what it is of.
    #[n(0)]
    Head {
        /// The head.
        #[n(0)]
        head: SnapshotHead,
    },
    /// Then as many chunks as the head says, in order.
    #[n(1)]
    Chunk {
        /// As the judge made it.
        #[n(0)]
        #[cbor(with = "dagger_payload::codec::shared_bytes")]
        bytes: Bytes,
    },
}

/// Answer to a whole snapshot.
#[derive(Debug, Clone, Encode, Decode)]
pub enum Restored {
    /// A new life has begun with it.
    #[n(0)]
    Done {
        /// How it stands.
        #[n(0)]
        opened: Box<Opened>,
    },
    /// It does not lead to the root of its head, or cannot be read; the old life goes on until the
    /// connection ends.
    #[n(1)]
    Refused {
        /// Why.
        #[n(0)]
        why: String,
    },
}

/// A question at the door.
#[derive(Debug, Clone, Encode, Decode)]
pub struct Admit {
    /// Repeated in the answer.
    #[n(0)]
    pub id: u64,
    /// What is asked.
    #[n(1)]
    pub asked: Asked,
    /// The later of ledger time and the host's clock: for the expiry check at the door only.
    #[n(2)]
    pub now: LedgerTime,
}

/// What is asked at the door.
#[derive(Debug, Clone, Encode, Decode)]
pub enum Asked {
    /// May this payload be packed?
    #[n(0)]
    Pack {
        /// The payload.
        #[n(0)]
        payload: SignedPayload,
    },
    /// What would come of this document if its signer signed it?
    #[n(1)]
    Predict {
        /// At most `PAYLOAD_BYTES_MAX`.
        #[n(0)]
        #[cbor(with = "dagger_payload::codec::shared_bytes")]
        document: Bytes,
    },
    /// What stands under this subject of the judged state?
    #[n(2)]
    Prove {
        /// Which.
        #[n(0)]
        subject: Subject,
        /// In which state.
        #[n(1)]
        at: ProofAt,
    },
}

/// In which state something is to be proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum ProofAt {
    /// In the present one.
    #[n(0)]
    Present,
    /// In that of the next checkpoint, which all members will attest, also while commits follow
    /// each other faster than anybody attests each of them. The answer waits for it; when too many
    /// wait, the one that has waited longest is [`AdmissionOutcome::NotProven`].
    #[n(1)]
    Checkpoint,
}

/// Answer to [`Admit`].
#[derive(Debug, Clone, Encode, Decode)]
pub struct Admission {
    /// As asked.
    #[n(0)]
    pub id: u64,
    /// The answer.
    #[n(1)]
    pub outcome: AdmissionOutcome,
}

/// Whether a payload may be packed, what would come of a document, or what stands in the state.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum AdmissionOutcome {
    /// Yes.
    #[n(0)]
    Admitted {
        /// Its identity.
        #[n(0)]
        digest: PayloadDigest,
        /// The account that signs it; none for operators and hosts.
        #[n(1)]
        account: Option<AccountId>,
    },
    /// Ordered before: the first copy counts.
    #[n(1)]
    Known {
        /// Its identity.
        #[n(0)]
        digest: PayloadDigest,
    },
    /// No.
    #[n(2)]
    Refused {
        /// Why.
        #[n(0)]
        refusal: Refusal,
    },
    /// What would come of it.
    #[n(3)]
    Predicted {
        /// Binds nobody.
        #[n(0)]
        prediction: Box<Prediction>,
    },
    /// What stands there.
    #[n(4)]
    Proven {
        /// Against the root of its commit end.
        #[n(0)]
        proof: Box<JudgedProof>,
    },
    /// Not now: a new life began, or too many wait.
    #[n(5)]
    NotProven,
}

/// Judge the next commit.
#[derive(Debug, Clone, Encode, Decode)]
pub struct Judge {
    /// Follows the last judged one without a gap.
    #[n(0)]
    pub commit: OrderedCommit,
    /// What else is wanted after it.
    #[n(1)]
    pub then: Then,
}

/// What is wanted after a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Then {
    /// Nothing.
    #[n(0)]
    Nothing,
    /// A snapshot of the state, as it was after the last commit that changed anything.
    #[n(1)]
    Snapshot,
}

/// Answer to [`Judge`].
#[derive(Debug, Clone, Encode, Decode)]
pub enum Judged {
    /// Done. The release may be empty; its `end` then still says the state root.
    #[n(0)]
    Done {
        /// What came of it, sealed.
        #[n(0)]
        sealed: Box<SealedRelease>,
        /// The earliest open deadline after it.
        #[n(1)]
        next_deadline: Option<LedgerTime>,
        /// Where the epoch ends: from the commit that decides it to the epoch's last one.
        #[n(2)]
        epoch_end: Option<EpochEnd>,
        /// All seats, when the commit changed any.
        #[n(3)]
        roster: Option<Box<Roster>>,
        /// After the last commit of an epoch: who votes in the next one, shown against the state
        /// root of this commit. What begins elsewhere in that epoch is checked with it.
        #[n(4)]
        next_members: Option<Box<NextMembers>>,
    },
    /// Not the next commit.
    #[n(1)]
    OutOfOrder {
        /// The one that would be.
        #[n(0)]
        expected: CommitIndex,
    },
    /// A part of the snapshot that was asked for with the last commit.
    #[n(2)]
    Chunk {
        /// At most `SNAPSHOT_CHUNK_BYTES_MAX`.
        #[n(0)]
        #[cbor(with = "dagger_payload::codec::shared_bytes")]
        bytes: Bytes,
    },
    /// The snapshot is whole.
    #[n(3)]
    Snapshot {
        /// What it is of.
        #[n(0)]
        head: SnapshotHead,
    },
    /// The commit is the first one of an epoch whose rules this processor does not know. It judges
    /// no further, and never guesses: judging waits until it is upgraded.
    #[n(4)]
    Upgrade {
        /// The version of the rules that it needs.
        #[n(0)]
        needs: ProtocolVersion,
    },
}
