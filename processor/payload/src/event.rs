//! Events: the vertices of the graph. A header that is signed and digested, and a body of payload
//! records.
//!
//! Owns their bytes (see `decisions.md` for the layout in words, `vectors/` for examples) and the
//! checks that need nothing but the event itself. Never looks into a payload. Called by the ledger,
//! and by whoever checks a proof.

use bytes::Bytes;

use crate::codec::{self, CodecError};
use crate::committee::Committee;
use crate::hashing::Purpose;
use crate::id::{
    AuthorIndex, ClusterId, CommitIndex, Epoch, EventDigest, LedgerTime, MerkleRoot, Position,
    PrefixHash, Round, StateRoot,
};
use crate::key::{Domain, PublicKey, Signature};
use crate::limits::{
    EVENT_BODY_BYTES_MAX, EVENT_HEADER_BYTES_MAX, EVENT_PAYLOADS_MAX, MEMBERS_MAX,
    PAYLOAD_BYTES_MAX,
};
use crate::merkle::{self, Leaf};
use crate::payload::{SignatureKind, SignedPayload};

/// Version of the event layout that this code writes and reads.
pub const EVENT_VERSION: u8 = 1;

/// A reference to an event by place and digest. CBOR: `[author, round, digest]`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, minicbor::Encode, minicbor::Decode,
)]
pub struct Parent {
    /// Who made it.
    #[n(0)]
    pub author: AuthorIndex,
    /// In which round.
    #[n(1)]
    pub round: Round,
    /// Which one.
    #[n(2)]
    pub digest: EventDigest,
}

/// The state of the ordered and judged history after a commit. CBOR: `[index, position, prefix
/// hash, state root]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, minicbor::Encode, minicbor::Decode)]
pub struct CommitEnd {
    /// Which commit.
    #[n(0)]
    pub index: CommitIndex,
    /// Position of the last payload up to and with this commit.
    #[n(1)]
    pub position: Position,
    /// Chain over all of them.
    #[n(2)]
    pub prefix_hash: PrefixHash,
    /// Root of the judged state after this commit.
    #[n(3)]
    pub state_root: StateRoot,
}

/// What an author says he has judged. CBOR: `[newest, checkpoint]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Attestation {
    /// The newest commit end that he has judged; of consecutive equal ones (position and root), the
    /// first.
    #[n(0)]
    pub newest: CommitEnd,
    /// The newest whose index is a multiple of [`CHECKPOINT_COMMITS`], once there is one.
    #[n(1)]
    pub checkpoint: Option<CommitEnd>,
}

/// Every so many commits all authors attest the same commit end.
pub const CHECKPOINT_COMMITS: u64 = 100;

/// What is digested and signed. CBOR: a map with the keys below, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Header {
    /// [`EVENT_VERSION`].
    #[n(0)]
    pub version: u8,
    /// The cluster.
    #[n(1)]
    pub cluster: ClusterId,
    /// The epoch.
    #[n(2)]
    pub epoch: Epoch,
    /// The round, from 1.
    #[n(3)]
    pub round: Round,
    /// Who made it.
    #[n(4)]
    pub author: AuthorIndex,
    /// First the author's previous event (if any), then at most one of each other author, by
    /// author. None in round 1.
    #[n(5)]
    pub parents: Vec<Parent>,
    /// Root over the body's records.
    #[n(6)]
    pub payload_root: MerkleRoot,
    /// Number of records.
    #[n(7)]
    pub payload_count: u32,
    /// The author's clock, milliseconds since 1970; only medians of it count.
    #[n(8)]
    pub timestamp: LedgerTime,
    /// What the author has judged.
    #[n(9)]
    pub attestation: Attestation,
}

/// A header with its signature: enough to prove what its author attested.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct SignedHeader {
    /// The header's canonical bytes.
    #[n(0)]
    #[cbor(with = "crate::codec::shared_bytes")]
    pub header: Bytes,
    /// The author's signature over the digest of these bytes.
    #[n(1)]
    pub signature: Signature,
}

impl SignedHeader {
    /// Reads the header and checks its signature under the key that `key_of` names for its author,
    /// and that its parents are such as an event may have: so it is no larger than that needs.
    ///
    /// # Errors
    /// [`EventError`].
    pub fn verify<'k>(
        &self,
        key_of: impl Fn(AuthorIndex) -> Option<&'k PublicKey>,
    ) -> Result<(Header, EventDigest), EventError> {
        let header = read_header(&self.header)?;
        check_parents(&header)?;
        let digest = EventDigest::of(&self.header);
        let key = key_of(header.author).ok_or(EventError::UnknownAuthor)?;
        if key.verifies_in(Domain::Event, digest.as_bytes(), &self.signature) {
            Ok((header, digest))
        } else {
            Err(EventError::BadSignature)
        }
    }
}

/// The bytes of a whole event. CBOR: `[header bytes, signature, [record bytes, ...]]`.
#[derive(minicbor::Encode, minicbor::Decode)]
struct EventBytes<'b> {
    #[b(0)]
    #[cbor(with = "minicbor::bytes")]
    header: &'b [u8],
    #[n(1)]
    signature: Signature,
    #[b(2)]
    #[cbor(with = "minicbor::bytes")]
    body: &'b [u8],
}

/// An event whose form has been checked: canonical bytes, sizes, Merkle root. Its signature and its
/// parents have not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The header.
    pub header: Header,
    /// Digest of the header's bytes.
    pub digest: EventDigest,
    /// The author's signature.
    pub signature: Signature,
    /// The payload records, in order.
    pub payloads: Vec<SignedPayload>,
    /// The hash of each record.
    pub leaves: Vec<Leaf>,
    /// The whole event as it travels and is stored.
    pub bytes: Bytes,
}

/// Why an event was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Over a size limit.
    #[error("the event is over a size limit")]
    TooLarge,
    /// Not canonical CBOR of this layout.
    #[error("the event's bytes are not canonical")]
    NotCanonical,
    /// A layout version that this code does not know.
    #[error("the event has an unknown version")]
    UnknownVersion,
    /// Parents out of order, doubled, of a later round, or none.
    #[error("the event's parents are not in form")]
    BadParents,
    /// The body does not match the header.
    #[error("the event's payloads do not match its header")]
    BadBody,
    /// No member has this index.
    #[error("the event's author is no member")]
    UnknownAuthor,
    /// Another cluster or epoch.
    #[error("the event belongs to another cluster or epoch")]
    Foreign,
    /// The signature does not verify.
    #[error("the event's signature does not verify")]
    BadSignature,
}

impl From<CodecError> for EventError {
    fn from(_: CodecError) -> Self {
        Self::NotCanonical
    }
}

fn read_header(bytes: &[u8]) -> Result<Header, EventError> {
    if bytes.len() > EVENT_HEADER_BYTES_MAX {
        return Err(EventError::TooLarge);
    }
    let header: Header = codec::decode(bytes)?;
    if header.version == EVENT_VERSION { Ok(header) } else { Err(EventError::UnknownVersion) }
}

impl Event {
    /// Makes an event from `header` (whose payload fields are filled in here) and signs it with
    /// `sign`.
    ///
    /// The caller keeps the sum of the records within [`EVENT_BODY_BYTES_MAX`].
    pub fn make(
        mut header: Header,
        payloads: Vec<SignedPayload>,
        sign: impl FnOnce(&EventDigest) -> Signature,
    ) -> Self {
        let records: Vec<Vec<u8>> = payloads.iter().map(SignedPayload::to_record).collect();
        let leaves: Vec<_> = payloads.iter().map(SignedPayload::leaf).collect();
        header.payload_root = merkle::root(&leaves);
        header.payload_count = u32::try_from(records.len()).expect("bounded by the body's size");
        let header_bytes = codec::encode(&header);
        let digest = EventDigest::of(&header_bytes);
        let signature = sign(&digest);
        let body = records.concat();
        let bytes = codec::encode(&EventBytes { header: &header_bytes, signature, body: &body });
        Self { header, digest, signature, payloads, leaves, bytes: bytes.into() }
    }

    /// Reads an event and checks everything that needs only its own bytes.
    ///
    /// # Errors
    /// [`EventError`], all but the signature and the author.
    pub fn read(bytes: Bytes) -> Result<Self, EventError> {
        let parts: EventBytes = codec::decode(&bytes)?;
        let header = read_header(parts.header)?;
        check_parents(&header)?;
        let (payloads, leaves) = read_body(&bytes, parts.body, &header)?;
        let digest = EventDigest::of(parts.header);
        let signature = parts.signature;
        Ok(Self { header, digest, signature, payloads, leaves, bytes })
    }

    /// The digest of the event in `bytes`, without any other check: enough to tell a copy of what
    /// is known already.
    ///
    /// # Errors
    /// The bytes do not begin as an event does.
    pub fn digest_in(bytes: &[u8]) -> Result<EventDigest, EventError> {
        let mut decoder = minicbor::Decoder::new(bytes);
        let header = decoder.array().and_then(|_| decoder.bytes());
        header.map(EventDigest::of).map_err(|_| EventError::NotCanonical)
    }

    /// Checks what depends on the cluster but not on other events: cluster, epoch, author,
    /// signature.
    ///
    /// # Errors
    /// `Foreign`, `UnknownAuthor`, `BadSignature`.
    pub fn verify<'k>(
        &self,
        cluster: &ClusterId,
        epoch: Epoch,
        key_of: impl Fn(AuthorIndex) -> Option<&'k PublicKey>,
    ) -> Result<(), EventError> {
        if self.header.cluster != *cluster || self.header.epoch != epoch {
            return Err(EventError::Foreign);
        }
        let key = key_of(self.header.author).ok_or(EventError::UnknownAuthor)?;
        if key.verifies_in(Domain::Event, self.digest.as_bytes(), &self.signature) {
            Ok(())
        } else {
            Err(EventError::BadSignature)
        }
    }

    /// Whether the parents of the round before carry a quorum (round 1 has none), and all are
    /// members.
    pub fn has_quorum_below(&self, committee: Committee) -> bool {
        let header = &self.header;
        let below = Round(header.round.0.saturating_sub(1));
        let votes = header.parents.iter().filter(|parent| parent.round == below).count();
        header.parents.iter().all(|parent| committee.contains(parent.author))
            && (header.round.0 == 1 || votes >= committee.quorum())
    }

    /// This event as a parent of another.
    pub fn as_parent(&self) -> Parent {
        Parent { author: self.header.author, round: self.header.round, digest: self.digest }
    }

    /// The header with its signature, cut out of the event's bytes.
    pub fn signed_header(&self) -> SignedHeader {
        let header = codec::encode(&self.header);
        SignedHeader { header: header.into(), signature: self.signature }
    }
}

/// Place of an event within the commit of `leader`, among events of its round: a hash that no
/// author can aim at.
pub fn order_key(leader: &EventDigest, event: &EventDigest) -> [u8; 32] {
    static PURPOSE: Purpose = Purpose::new("dagger v1 order");
    *PURPOSE.hasher().update(leader.as_bytes()).update(event.as_bytes()).finalize().as_bytes()
}

fn check_parents(header: &Header) -> Result<(), EventError> {
    let parents = &header.parents;
    let require = |holds: bool| if holds { Ok(()) } else { Err(EventError::BadParents) };
    require(parents.len() <= MEMBERS_MAX)?;
    if header.round.0 <= 1 {
        return require(header.round.0 == 1 && parents.is_empty());
    }
    // The own parent is usually of the round before; it is older after a recovery, when rounds that
    // may have been signed are left out, and there is none in an author's first event.
    let first = parents.first().ok_or(EventError::BadParents)?;
    let others = if first.author == header.author { &parents[1..] } else { &parents[..] };
    require(parents.iter().all(|parent| parent.round < header.round && parent.round.0 > 0))?;
    require(others.iter().all(|parent| parent.author != header.author))?;
    require(others.windows(2).all(|pair| pair[0].author < pair[1].author))
}

/// The least that a record takes: two heads, a signature with its head, and an empty text.
const RECORD_BYTES_MIN: usize = 69;

/// A record as it stands in a body. CBOR: that of [`SignedPayload`].
#[derive(minicbor::Encode, minicbor::Decode)]
struct RecordBytes<'b> {
    #[n(0)]
    signature_kind: SignatureKind,
    #[n(1)]
    signature: Signature,
    #[b(2)]
    #[cbor(with = "minicbor::bytes")]
    bytes: &'b [u8],
}

/// Reads the records of `body`, which is a part of `event`: the payloads share its memory.
fn read_body(
    event: &Bytes,
    body: &[u8],
    header: &Header,
) -> Result<(Vec<SignedPayload>, Vec<Leaf>), EventError> {
    let count = usize::try_from(header.payload_count).map_err(|_| EventError::TooLarge)?;
    if body.len() > EVENT_BODY_BYTES_MAX || count > EVENT_PAYLOADS_MAX {
        return Err(EventError::TooLarge);
    }
    let mut decoder = minicbor::Decoder::new(body);
    // A header may claim more records than its body has room for: memory goes by the body.
    let room = count.min(body.len() / RECORD_BYTES_MIN);
    let mut payloads = Vec::with_capacity(room);
    let mut leaves = Vec::with_capacity(room);
    while decoder.position() < body.len() {
        let start = decoder.position();
        let read: RecordBytes = decoder.decode().map_err(|_| EventError::NotCanonical)?;
        let record = &body[start..decoder.position()];
        if read.bytes.len() > PAYLOAD_BYTES_MAX || payloads.len() == count {
            return Err(EventError::BadBody);
        }
        if !codec::is_canonical(&read, record) {
            return Err(EventError::NotCanonical);
        }
        let RecordBytes { signature_kind, signature, bytes } = read;
        let bytes = event.slice_ref(bytes).into();
        let payload = SignedPayload { signature_kind, signature, bytes };
        leaves.push(payload.leaf());
        payloads.push(payload);
    }
    if payloads.len() == count && merkle::root(&leaves) == header.payload_root {
        Ok((payloads, leaves))
    } else {
        Err(EventError::BadBody)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SecretKey;
    use zeroize::Zeroizing;

    fn key() -> SecretKey {
        SecretKey::from_seed(&Zeroizing::new([4; 32]))
    }

    fn header(round: u64) -> Header {
        let end = CommitEnd {
            index: CommitIndex(0),
            position: Position(0),
            prefix_hash: PrefixHash::ZERO,
            state_root: StateRoot::ZERO,
        };
        let parents = (round > 1)
            .then(|| {
                [0, 1, 2].map(|author| Parent {
                    author: AuthorIndex(author),
                    round: Round(round - 1),
                    digest: EventDigest([7; 32]),
                })
            })
            .into_iter()
            .flatten()
            .collect();
        Header {
            version: EVENT_VERSION,
            cluster: ClusterId([1; 32]),
            epoch: Epoch(0),
            round: Round(round),
            author: AuthorIndex(0),
            parents,
            payload_root: MerkleRoot::ZERO,
            payload_count: 0,
            timestamp: LedgerTime(1),
            attestation: Attestation { newest: end, checkpoint: None },
        }
    }

    fn event(round: u64, payloads: usize) -> Event {
        let payload = SignedPayload {
            signature_kind: SignatureKind::SshEd25519,
            signature: Signature([3; 64]),
            bytes: "{}".into(),
        };
        Event::make(header(round), vec![payload; payloads], |digest| {
            key().sign_in(Domain::Event, digest.as_bytes())
        })
    }

    #[test]
    fn an_event_reads_back_and_verifies_under_its_authors_key_only() {
        for event in [event(1, 0), event(2, 3)] {
            assert_eq!(Event::read(event.bytes.clone()), Ok(event.clone()));
            assert_eq!(Event::digest_in(&event.bytes), Ok(event.digest));
            let (own, other) = (key().public_key(), SecretKey::from_seed(&Zeroizing::new([5; 32])));
            assert_eq!(event.verify(&ClusterId([1; 32]), Epoch(0), |_| Some(&own)), Ok(()));
            let other = other.public_key();
            let verdict = event.verify(&ClusterId([1; 32]), Epoch(0), |_| Some(&other));
            assert_eq!(verdict, Err(EventError::BadSignature));
            let verdict = event.verify(&ClusterId([2; 32]), Epoch(0), |_| Some(&own));
            assert_eq!(verdict, Err(EventError::Foreign));
            assert!(event.signed_header().verify(|_| Some(&own)).is_ok());
        }
    }

    #[test]
    fn a_signed_header_with_parents_that_no_event_may_have_does_not_count() {
        let own = key().public_key();
        let parent = |author| Parent {
            author: AuthorIndex(author),
            round: Round(1),
            digest: EventDigest([7; 32]),
        };
        let verdict = |parents: Vec<Parent>| {
            let event = Event::make(Header { parents, ..header(2) }, Vec::new(), |digest| {
                key().sign_in(Domain::Event, digest.as_bytes())
            });
            event.signed_header().verify(|_| Some(&own)).map(drop)
        };
        let members = u16::try_from(MEMBERS_MAX).expect("few");
        assert_eq!(verdict((0..members).map(parent).collect()), Ok(()));
        for parents in [
            (0..=members).map(parent).collect(),
            vec![parent(0); 300],
            vec![parent(2), parent(1)],
            Vec::new(),
        ] {
            assert_eq!(verdict(parents), Err(EventError::BadParents));
        }
    }

    #[test]
    fn no_changed_or_cut_byte_of_an_event_passes() {
        let event = event(2, 2);
        let own = key().public_key();
        let passes = |bytes: Vec<u8>| {
            Event::read(bytes.into()).is_ok_and(|read| {
                read.verify(&ClusterId([1; 32]), Epoch(0), |_| Some(&own)).is_ok()
            })
        };
        for at in 0..event.bytes.len() {
            let mut changed = event.bytes.to_vec();
            changed[at] ^= 1;
            assert!(!passes(changed), "byte {at}");
            assert!(!passes(event.bytes[..at].to_vec()), "cut at {at}");
        }
        assert!(passes(event.bytes.to_vec()));
    }

    #[test]
    fn a_record_takes_no_less_than_the_least() {
        let bytes = Bytes::new().into();
        let (signature_kind, signature) = (SignatureKind::SshEd25519, Signature([0; 64]));
        let least = SignedPayload { signature_kind, signature, bytes };
        assert_eq!(least.to_record().len(), RECORD_BYTES_MIN);
    }

    #[test]
    fn parents_out_of_form_are_refused() {
        let refused = |change: fn(&mut Header)| {
            let mut header = header(3);
            change(&mut header);
            let event = Event::make(header, vec![], |_| Signature([0; 64]));
            Event::read(event.bytes) == Err(EventError::BadParents)
        };
        assert!(refused(|header| header.parents.clear()));
        assert!(refused(|header| header.parents.swap(1, 2)));
        assert!(refused(|header| header.parents[1].author = AuthorIndex(2)));
        assert!(refused(|header| header.author = AuthorIndex(1)));
        assert!(refused(|header| header.parents[0].round = Round(3)));
        assert!(refused(|header| header.parents[2].round = Round(3)));
        assert!(refused(|header| header.round = Round(0)));
    }
}
