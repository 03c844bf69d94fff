//! What goes into the core and what comes out: the whole contract with the driver.
//!
//! The driver calls [`crate::Core::handle`] with one [`Input`] at a time and carries out the
//! [`Output`]s in their order. It may put several [`Output::Write`]s into one durable transaction,
//! but may neither reorder them nor send or deliver anything whose `after` is not durable yet. When
//! a write is durable it says so with [`Input::WriteDurable`].

use std::sync::Arc;

use dagger_payload::committee::Committee;
use dagger_payload::event::{CommitEnd, Event, Header, Parent, SignedHeader};
use dagger_payload::handover::{EpochEnd, Founding, Handover};
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, Epoch, EventDigest, LedgerTime, PayloadDigest, Position,
    PrefixHash, Round,
};
use dagger_payload::key::Signature;
use dagger_payload::payload::SignedPayload;
use dagger_payload::peer::{EndOfEpoch, Highest, PeerMessage};
use dagger_payload::release::OrderedCommit;

use crate::adopt::Frontier;
use crate::clock::ClockDoubt;

/// A point on the driver's monotonic clock, in milliseconds since any start; never goes back.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    /// This moment plus `milliseconds`.
    #[must_use]
    pub fn plus_ms(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }
}

/// Number of a write; grows by one with each.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteNumber(pub u64);

/// What the core is told.
#[derive(Debug, Clone)]
pub enum Input {
    /// An event whose form ([`Event::read`]), cluster, epoch and signature ([`Event::verify`]) the
    /// driver has checked.
    EventReceived {
        /// Which peer sent it (not always its author).
        from: AuthorIndex,
        /// The event.
        event: Arc<Event>,
    },
    /// A peer in a later epoch shows a header whose cluster and signature the driver has checked.
    /// It may attest the end of this epoch.
    ClosingShown {
        /// As read.
        header: Box<Header>,
        /// As signed.
        signed: SignedHeader,
    },
    /// An authenticated link to a member is up.
    PeerConnected(AuthorIndex),
    /// It is gone.
    PeerDisconnected(AuthorIndex),
    /// What a peer has.
    PeerHave {
        /// Which peer.
        from: AuthorIndex,
        /// Its highest accepted rounds.
        highest: Vec<Highest>,
        /// In this epoch.
        epoch: Epoch,
    },
    /// What a peer lacks.
    PeerWant {
        /// Which peer.
        from: AuthorIndex,
        /// The events.
        events: Vec<Parent>,
        /// Their epoch.
        epoch: Epoch,
    },
    /// A peer asks about its own past.
    RecoveryAsked {
        /// Which peer.
        from: AuthorIndex,
        /// Repeated in the answer.
        nonce: u64,
        /// About its rounds in this epoch.
        epoch: Epoch,
    },
    /// A peer tells about this host's past.
    RecoveryAnswered {
        /// Which peer.
        from: AuthorIndex,
        /// What it says.
        answer: RecoveryAnswer,
        /// As asked.
        epoch: Epoch,
    },
    /// A payload of this host's users, admitted and already durable in the driver's pool.
    Submitted(SignedPayload),
    /// The processor has judged a commit. Repeats after a restart of the processor are welcome.
    Judged {
        /// The commit end with its state root.
        end: CommitEnd,
        /// The earliest ledger time at which something will happen by itself.
        next_deadline: Option<LedgerTime>,
        /// Where the epoch ends, once that is decided; at least
        /// [`CoreConfiguration::handover_distance_commits`] after the commit that decided it.
        epoch_end: Option<EpochEnd>,
    },
    /// This host has begun from a snapshot of another one; store and judge go on from there
    /// already. The frontier is true: more members than may lie say so.
    Adopted {
        /// The commit whose state the snapshot holds.
        frontier: Box<Frontier>,
        /// Its end, which a quorum attests.
        end: CommitEnd,
        /// Where the epoch ends, if the state there says so: without it more would be committed
        /// than the epoch has, for what follows the commit may be here already.
        epoch_end: Option<EpochEnd>,
    },
    /// Every write up to and with this one is durable.
    WriteDurable(WriteNumber),
    /// The operator of this host says that its clock is right as it is now.
    ClockConfirmed,
    /// The time asked for with [`Output::WakeAt`] has come (or any other time: it does no harm).
    Tick,
}

impl Input {
    /// What a peer's message tells the core; `None` for a greeting, for what is signed and must be
    /// checked first, and for what the core has no part in.
    pub fn of_message(from: AuthorIndex, message: PeerMessage) -> Option<Self> {
        match message {
            PeerMessage::Have { highest, epoch } => Some(Self::PeerHave { from, highest, epoch }),
            PeerMessage::Want { events, epoch } => Some(Self::PeerWant { from, events, epoch }),
            PeerMessage::AskRecovery { nonce, epoch } => {
                Some(Self::RecoveryAsked { from, nonce, epoch })
            }
            PeerMessage::AnswerRecovery { nonce, highest_of_asker, quorum_round, epoch, end } => {
                let answer = RecoveryAnswer { nonce, highest_of_asker, quorum_round, end };
                Some(Self::RecoveryAnswered { from, answer, epoch })
            }
            PeerMessage::Hello { .. }
            | PeerMessage::Event { .. }
            | PeerMessage::Closing { .. }
            | PeerMessage::AskPart { .. }
            | PeerMessage::Part { .. }
            | PeerMessage::Submit { .. }
            | PeerMessage::Taken { .. } => None,
        }
    }
}

/// What a peer says when it is asked for this host's past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryAnswer {
    /// As asked.
    pub nonce: u64,
    /// Highest round of this host's events that the peer holds.
    pub highest_of_asker: Round,
    /// Highest round at which the peer holds events of a quorum.
    pub quorum_round: Round,
    /// Whether the end of the epoch may have come.
    pub end: EndOfEpoch,
}

/// What the core wants done, in this order.
#[derive(Debug, Clone)]
pub enum Output {
    /// Make these records durable, all or none of them, after all earlier writes.
    Write {
        /// Number of the write.
        number: WriteNumber,
        /// The records.
        records: Vec<Record>,
    },
    /// Send to one peer, if it is connected.
    Send {
        /// To whom.
        to: AuthorIndex,
        /// What.
        message: PeerMessage,
        /// Only once this write is durable.
        after: WriteNumber,
    },
    /// Send to every connected peer.
    Broadcast {
        /// What.
        message: PeerMessage,
        /// Only once this write is durable.
        after: WriteNumber,
    },
    /// Send all stored events above these rounds and below `below`, by ascending round, to a peer
    /// that is further behind than memory reaches.
    ServeStored {
        /// To whom.
        to: AuthorIndex,
        /// Events of this epoch.
        epoch: Epoch,
        /// What the peer has.
        above: Vec<Highest>,
        /// Events of this round and higher are sent by the core itself.
        below: Round,
    },
    /// Send these stored events to a peer, as far as the store has them.
    ServeEvents {
        /// To whom.
        to: AuthorIndex,
        /// Which.
        events: Vec<Parent>,
        /// Their epoch.
        epoch: Epoch,
    },
    /// A commit, for the judge. It is also in the store as a [`CommitRecord`], so that delivery may
    /// read it from there.
    Committed {
        /// The commit.
        commit: OrderedCommit,
        /// Only once this write is durable.
        after: WriteNumber,
    },
    /// The next epoch has begun: from here on events are made, checked and stored in it. It is
    /// also in the store, as [`Record::Handover`].
    EpochBegan {
        /// What it continues, and why.
        handover: Handover,
        /// Only once this write is durable.
        after: WriteNumber,
    },
    /// Call again with [`Input::Tick`] at this moment; replaces an earlier wish.
    WakeAt(Moment),
    /// Stop for ever and say why: more than f members lie, or this code is wrong.
    Halted(HaltReason),
}

/// Why the core stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HaltReason {
    /// Two events of one leader slot both have a quorum of certificates.
    #[error(
        "two events of {author:?} in round {round} are both certified: more than f members lie"
    )]
    TwoCertifiedLeaders {
        /// Whose slot.
        author: AuthorIndex,
        /// Which round.
        round: Round,
    },
    /// This host is the only member, and its memory is not the one of its last life.
    #[error(
        "this host is the only member, and its store and its witness do not both know what it \
         signed last: it might sign an old round again, and there is nobody to ask"
    )]
    NobodyToAsk,
    /// The judge's answer differs from one that it gave before.
    #[error("commit {index} was judged twice with different results: this host's judge is broken")]
    JudgedDifferently {
        /// Which commit.
        index: CommitIndex,
    },
    /// The judge speaks of a commit that does not match what was committed.
    #[error("commit {index} was judged with another prefix than was ordered")]
    JudgedForeign {
        /// Which commit.
        index: CommitIndex,
    },
    /// The judge named two ends of one epoch, or one that has passed.
    #[error(
        "the judge ends epoch {epoch} at {index}, which contradicts what it said or what stands"
    )]
    EndsOtherwise {
        /// Which epoch.
        epoch: Epoch,
        /// Where.
        index: CommitIndex,
    },
}

/// What the store keeps. Keys: events by (epoch, round, author, digest), commits by index, the pool
/// by arrival, forks by (author, round).
#[derive(Debug, Clone)]
pub enum Record {
    /// An accepted event. When its author is this host, it was made now, and the witness file must
    /// show its round before it is sent.
    Event(Arc<Event>),
    /// An event of this host that a peer gave back: kept like any other, but the witness must not
    /// show it. Until this host has signed anew, a restart must still find that it forgot.
    OwnEventReturned(Arc<Event>),
    /// A commit.
    Commit(CommitRecord),
    /// These payloads left the pool: they are in an own event of the same write.
    Packed(Vec<PayloadDigest>),
    /// These payloads are back in the pool: their event can no longer be ordered.
    Returned(Vec<SignedPayload>),
    /// Proof that a member lies.
    Fork(Fork),
    /// The epoch has ended and the next one begins.
    Handover {
        /// The certificate.
        handover: Handover,
        /// When this agrees, the witness must show the new epoch before anything is signed in it.
        /// Else it must not: a restart must still find that this host forgot.
        memory: Memory,
    },
}

/// A commit, from which its [`OrderedCommit`] can be rebuilt with the events that it names.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct CommitRecord {
    /// Which commit.
    #[n(0)]
    pub index: CommitIndex,
    /// The committed leader.
    #[n(1)]
    pub leader: Parent,
    /// The slot of the leader in its round.
    #[n(2)]
    pub slot: u16,
    /// The events in order; payloads are ordered by event, then by place in the event.
    #[n(3)]
    pub events: Vec<Parent>,
    /// Events of the leader's history that are never ordered, because another one of their author
    /// and round is.
    #[n(4)]
    pub forked: Vec<Parent>,
    /// Position of the first payload.
    #[n(5)]
    pub first_position: Position,
    /// Position of the last payload up to and with this commit.
    #[n(6)]
    pub last_position: Position,
    /// The agreed time.
    #[n(7)]
    pub ledger_time: LedgerTime,
    /// The chain after this commit.
    #[n(8)]
    pub prefix_hash: PrefixHash,
    /// Events of this round and lower can no longer be ordered after this commit.
    #[n(9)]
    pub collection_round: Round,
    /// Events of this round and lower are not needed in memory any more, not even as parents of
    /// others. Above it they are, also below the collection round: a host that is a little behind
    /// must find what others build on.
    #[n(10)]
    pub floor: Round,
    /// The epoch in which all these events stand.
    #[n(11)]
    pub epoch: Epoch,
}

/// Two headers of one author for one round.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Fork {
    /// The author.
    #[n(0)]
    pub author: AuthorIndex,
    /// The round.
    #[n(1)]
    pub round: Round,
    /// One header.
    #[n(2)]
    pub first: SignedHeader,
    /// The other.
    #[n(3)]
    pub second: SignedHeader,
}

/// Signs this host's events. The simulator has a cheap one; ed25519 is deterministic, so the core
/// stays so.
pub trait EventSigner {
    /// Signs an event digest.
    fn sign(&self, digest: &EventDigest) -> Signature;
}

/// What the core starts with; epoch, committee and founding change with each handover.
#[derive(Debug, Clone)]
pub struct CoreConfiguration {
    /// The cluster.
    pub cluster: ClusterId,
    /// The epoch.
    pub epoch: Epoch,
    /// Its members.
    pub committee: Committee,
    /// This host. Who is no member follows, and makes no events.
    pub me: AuthorIndex,
    /// Rounds behind the committed leader below which events can no longer be ordered.
    pub collection_depth_rounds: u64,
    /// How far commits may be ahead of the judge, so that a change of members is known everywhere
    /// before the epoch's last commit.
    pub handover_distance_commits: u64,
    /// Bytes of payloads in one commit, as they are counted for an event; one event always fits.
    /// The same on every host, else orders part.
    pub commit_bytes_max: usize,
    /// What the epoch continues.
    pub founding: Founding,
}

/// What the store gives back at start.
#[derive(Debug, Clone, Default)]
pub struct RestoredState {
    /// All events above the last commit's floor (all events, before the first commit), by round.
    pub events: Vec<Arc<Event>>,
    /// The epoch's last commit and all before it whose leader's round is at or above the last one's
    /// collection round, by index.
    pub commits: Vec<CommitRecord>,
    /// This host's event of the highest round.
    pub own_last: Option<Arc<Event>>,
    /// The highest stored round of each author, also where its event is not among `events`.
    pub highest: Vec<Highest>,
    /// Payloads that are in no event.
    pub pool: Vec<SignedPayload>,
    /// Whether this memory can be trusted.
    pub memory: Memory,
    /// What this life asks its peers is numbered from the next number on. Drawn anew for each life,
    /// far from the end of 64 bits, so that no answer to an earlier life passes for one to this.
    pub questions_above: u64,
}

/// Whether the store still knows everything that this host ever signed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Store and witness agree.
    #[default]
    Agrees,
    /// Empty, damaged, restored from a copy, or behind its witness.
    Doubtful,
}

/// How the core is, for the driver's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreStatus {
    /// Whether it may sign.
    pub phase: Phase,
    /// The epoch.
    pub epoch: Epoch,
    /// Who votes in it.
    pub committee: Committee,
    /// Round of the own newest event.
    pub round: Round,
    /// Newest commit.
    pub committed: CommitIndex,
    /// Newest judged commit.
    pub judged: CommitIndex,
    /// Position of the newest ordered payload.
    pub position: Position,
    /// Ledger time of the newest commit.
    pub ledger_time: LedgerTime,
    /// Payloads that wait here.
    pub waiting: usize,
    /// Highest accepted round of each member.
    pub highest: Vec<Highest>,
    /// Members of whom two events for one round were seen.
    pub forkers: Vec<AuthorIndex>,
    /// Peers that were asked for history and brought nothing, and how often.
    pub fruitless: Vec<(AuthorIndex, u64)>,
    /// Why this host makes no events until its operator confirms its clock, if so.
    pub clock_doubt: Option<ClockDoubt>,
}

/// Whether the core may sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It asks its peers about its own past, or waits for the first round that it may sign.
    Recovering,
    /// It takes part.
    Member,
    /// It has no vote in this epoch; it orders and judges what others vote on.
    Follower,
    /// It stopped for ever.
    Halted,
}
