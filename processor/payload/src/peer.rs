//! What two ledgers say to each other over a link: one message per frame, canonical CBOR, bounded.
//!
//! Owns the messages' bytes and limits. Never opens a link (the ledger's `link` does) and never
//! decides what to answer (the ledger core does). A frame on the wire is a 4-byte big-endian length
//! and these bytes.

use bytes::Bytes;

use crate::codec;
use crate::event::{Event, Parent, SignedHeader};
use crate::id::{AuthorIndex, ClusterId, CommitIndex, Epoch, PayloadDigest, Round};
use crate::limits::{
    EVENT_HEADER_BYTES_MAX, FRAME_BYTES_MAX, MEMBERS_MAX, PAYLOAD_BYTES_MAX, WANT_EVENTS_MAX,
};
use crate::payload::SignedPayload;
use crate::refusal::Refusal;

/// Version of the messages.
pub const PEER_VERSION: u8 = 1;

/// The highest round of one author that the sender has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Highest {
    /// Whose.
    #[n(0)]
    pub author: AuthorIndex,
    /// The round; 0 for none.
    #[n(1)]
    pub round: Round,
}

/// What a host can say of the end of its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(index_only)]
pub enum EndOfEpoch {
    /// It has not attested it, in this life or an earlier one.
    #[n(0)]
    Ahead,
    /// It may have, so that a quorum may have: the next epoch may have begun.
    #[n(1)]
    MayHaveCome,
}

/// A message between ledgers.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub enum PeerMessage {
    /// First on every connection, both ways.
    #[n(0)]
    Hello {
        /// [`PEER_VERSION`].
        #[n(0)]
        version: u8,
        /// The cluster.
        #[n(1)]
        cluster: ClusterId,
    },
    /// What the sender has: after `Hello`, and from time to time. The receiver sends what the
    /// sender lacks.
    #[n(1)]
    Have {
        /// One entry per member, by author.
        #[n(0)]
        highest: Vec<Highest>,
        /// The sender's epoch, in which these rounds are. Who is in a later one sends what is left
        /// of this one.
        #[n(1)]
        epoch: Epoch,
    },
    /// A whole event.
    #[n(2)]
    Event {
        /// See [`Event::read`].
        #[n(0)]
        #[cbor(with = "crate::codec::shared_bytes")]
        bytes: Bytes,
    },
    /// The sender lacks these events.
    #[n(3)]
    Want {
        /// Which, at most [`WANT_EVENTS_MAX`], each where those that name it say that it stands.
        #[n(0)]
        events: Vec<Parent>,
        /// Their epoch.
        #[n(1)]
        epoch: Epoch,
    },
    /// Before it signs anything after a start, the sender asks what is known of its own past.
    #[n(4)]
    AskRecovery {
        /// Repeated in the answer.
        #[n(0)]
        nonce: u64,
        /// The asker's epoch; who is in another one does not answer.
        #[n(1)]
        epoch: Epoch,
    },
    /// The answer, sent after everything that was queued on the link before.
    #[n(5)]
    AnswerRecovery {
        /// As asked.
        #[n(0)]
        nonce: u64,
        /// The highest round of the asker's own events held here; 0 for none.
        #[n(1)]
        highest_of_asker: Round,
        /// The highest round with events of a quorum of authors here; 0 for none.
        #[n(2)]
        quorum_round: Round,
        /// As asked.
        #[n(3)]
        epoch: Epoch,
        /// Whether that epoch's end may have come.
        #[n(4)]
        end: EndOfEpoch,
    },
    /// The sender wants this, at most one thing at a time of one peer.
    #[n(6)]
    AskPart {
        /// What.
        #[n(0)]
        part: Part,
    },
    /// What was asked for; an offer also unasked, in place of events that are pruned here.
    #[n(7)]
    Part {
        /// As asked.
        #[n(0)]
        part: Part,
        /// Its bytes; none when the sender has it not.
        #[n(1)]
        #[cbor(with = "crate::codec::shared_bytes")]
        bytes: Bytes,
    },
    /// To a peer in an epoch that is closed here: one of the headers by which a quorum attests its
    /// end. The event itself may be one that the peer cannot accept, or that nobody has.
    #[n(8)]
    Closing {
        /// Header and signature.
        #[n(0)]
        header: SignedHeader,
    },
    /// From a host without a vote: a payload of its users, for the receiver to have it ordered. The
    /// sender keeps it until it is.
    #[n(9)]
    Submit {
        /// Which.
        #[n(0)]
        payload: SignedPayload,
    },
    /// What the receiver of a [`Self::Submit`] makes of it.
    #[n(10)]
    Taken {
        /// Of which payload.
        #[n(0)]
        digest: PayloadDigest,
        /// What.
        #[n(1)]
        receipt: Receipt,
    },
}

/// What a host with a vote says to a payload that another one hands it.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub enum Receipt {
    /// It is durable there, or was ordered before.
    #[n(0)]
    Taken {},
    /// It was refused at the door.
    #[n(1)]
    Refused {
        /// Why.
        #[n(0)]
        refusal: Refusal,
    },
    /// Not now: too much waits, or something is missing there.
    #[n(2)]
    NotNow {},
}

/// A part of what a host needs that begins from another one's snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub enum Part {
    /// A [`crate::snapshot::SnapshotOffer`]: which snapshot the sender has, and who attests it.
    #[n(0)]
    Offer,
    /// A piece of how ordering goes on after this commit: opaque here, made and read by the ledger
    /// core.
    #[n(1)]
    Frontier {
        /// The commit.
        #[n(0)]
        commit: CommitIndex,
        /// Bytes of it that are known already.
        #[n(1)]
        offset: u64,
    },
    /// One chunk of a snapshot.
    #[n(2)]
    Chunk {
        /// [`crate::snapshot::SnapshotHead::made_after`].
        #[n(0)]
        made_after: CommitIndex,
        /// Which chunk, from 0.
        #[n(1)]
        number: u32,
    },
    /// A piece of the next [`crate::snapshot::PastReleases`].
    #[n(3)]
    Past {
        /// Only commits after this one,
        #[n(0)]
        after: CommitIndex,
        /// and up to this one.
        #[n(1)]
        through: CommitIndex,
        /// Bytes of them that are known already: one release may be larger than a frame.
        #[n(2)]
        offset: u64,
    },
    /// A piece of a [`crate::attested::EpochBeginning`]: how this epoch began, and who votes in it.
    #[n(4)]
    Handover {
        /// The epoch that it began.
        #[n(0)]
        epoch: Epoch,
        /// Bytes of it that are known already.
        #[n(1)]
        offset: u64,
    },
}

/// Why a frame was refused; the link is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Over [`FRAME_BYTES_MAX`] or a list over its limit.
    #[error("the frame is over a size limit")]
    TooLarge,
    /// Not a canonical message.
    #[error("the frame is no message in canonical form")]
    Malformed,
}

impl PeerMessage {
    /// The frame's bytes, without the length.
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// A message that carries `event`.
    pub fn event(event: &Event) -> Self {
        Self::Event { bytes: event.bytes.clone() }
    }

    /// What it is called in logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Have { .. } => "have",
            Self::Event { .. } => "event",
            Self::Want { .. } => "want",
            Self::AskRecovery { .. } => "ask recovery",
            Self::AnswerRecovery { .. } => "answer recovery",
            Self::AskPart { .. } => "ask part",
            Self::Part { .. } => "part",
            Self::Closing { .. } => "closing",
            Self::Submit { .. } => "submit",
            Self::Taken { .. } => "taken",
        }
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn read(frame: &[u8]) -> Result<Self, FrameError> {
        if frame.len() > FRAME_BYTES_MAX {
            return Err(FrameError::TooLarge);
        }
        let message: Self = codec::decode(frame).map_err(|_| FrameError::Malformed)?;
        let fits = match &message {
            Self::Have { highest, .. } => highest.len() <= MEMBERS_MAX,
            Self::Want { events, .. } => events.len() <= WANT_EVENTS_MAX,
            Self::Closing { header } => header.header.len() <= EVENT_HEADER_BYTES_MAX,
            Self::Submit { payload } => payload.bytes.len() <= PAYLOAD_BYTES_MAX,
            Self::Hello { .. }
            | Self::Event { .. }
            | Self::AskRecovery { .. }
            | Self::AnswerRecovery { .. }
            | Self::AskPart { .. }
            | Self::Part { .. }
            | Self::Taken { .. } => true,
        };
        if fits { Ok(message) } else { Err(FrameError::TooLarge) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::EventDigest;
    use crate::key::Signature;
    use crate::payload::SignatureKind;
    use crate::refusal::RefusalCode;

    fn submit(bytes: usize) -> PeerMessage {
        let (signature_kind, signature) = (SignatureKind::SshEd25519, Signature([3; 64]));
        let bytes = vec![b'x'; bytes].into();
        PeerMessage::Submit { payload: SignedPayload { signature_kind, signature, bytes } }
    }

    #[test]
    fn messages_read_back_and_lists_over_their_limit_are_refused() {
        let (author, round, digest) = (AuthorIndex(1), Round(7), EventDigest([1; 32]));
        let wanted = Parent { author, round, digest };
        for message in [
            PeerMessage::Hello { version: 1, cluster: ClusterId([1; 32]) },
            PeerMessage::Have {
                highest: vec![Highest { author: AuthorIndex(1), round: Round(9) }],
                epoch: Epoch(2),
            },
            PeerMessage::Event { bytes: Bytes::from_static(b"bytes") },
            PeerMessage::Want { events: vec![wanted], epoch: Epoch(1) },
            PeerMessage::AskRecovery { nonce: 1, epoch: Epoch(2) },
            PeerMessage::AnswerRecovery {
                nonce: 1,
                highest_of_asker: Round(2),
                quorum_round: Round(3),
                epoch: Epoch(2),
                end: EndOfEpoch::Ahead,
            },
            PeerMessage::AskPart { part: Part::Offer },
            PeerMessage::AskPart { part: Part::Frontier { commit: CommitIndex(7), offset: 9 } },
            PeerMessage::Part {
                part: Part::Chunk { made_after: CommitIndex(100), number: 3 },
                bytes: Bytes::from_static(b"bytes"),
            },
            PeerMessage::Part {
                part: Part::Past { after: CommitIndex(0), through: CommitIndex(9), offset: 7 },
                bytes: Bytes::new(),
            },
            PeerMessage::Closing {
                header: SignedHeader {
                    header: Bytes::from_static(b"header"),
                    signature: Signature([7; 64]),
                },
            },
            submit(PAYLOAD_BYTES_MAX),
            PeerMessage::Taken { digest: PayloadDigest([2; 32]), receipt: Receipt::Taken {} },
            PeerMessage::Taken {
                digest: PayloadDigest([2; 32]),
                receipt: Receipt::Refused {
                    refusal: Refusal::new(RefusalCode::NotAuthorized, "no"),
                },
            },
            PeerMessage::AskPart { part: Part::Handover { epoch: Epoch(3), offset: 9 } },
        ] {
            assert_eq!(PeerMessage::read(&message.to_bytes()), Ok(message));
        }
        let events = vec![wanted; WANT_EVENTS_MAX + 1];
        let many = PeerMessage::Want { events, epoch: Epoch(1) };
        assert_eq!(PeerMessage::read(&many.to_bytes()), Err(FrameError::TooLarge));
        let large = submit(PAYLOAD_BYTES_MAX + 1);
        assert_eq!(PeerMessage::read(&large.to_bytes()), Err(FrameError::TooLarge));
    }
}
