//! Snapshots of the judged state: how they are named, and what a reader needs who starts from one.
//!
//! Owns the head of a snapshot, the anchor that a processor seals when it has begun from one, and
//! the chain over everything that was judged. Never says what stands in a chunk: only the judge
//! reads those. Called by all three daemons.

use std::collections::BTreeSet;

use crate::codec;
use crate::committee::Committee;
use crate::event::{Attestation, CommitEnd, Header, SignedHeader};
use crate::hashing::Purpose;
use crate::id::{ClusterId, CommitIndex, HistoryHash, LedgerTime, PayloadDigest, Position};
use crate::key::{Domain, PublicKey, Signature};
use crate::object::Effect;
use crate::release::{CommitRelease, QuorumEvidence, SealedRelease, Verdict};

/// How many bytes stand in an encoded effect before its object: an array of two, the number of the
/// kind, an array of one.
pub const EFFECT_HEAD_BYTES: usize = 3;

/// What a snapshot is of. Its chunks lead to the state root of `end`, or it is none.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SnapshotHead {
    /// The commit end whose state it holds: the last one that changed anything.
    #[n(0)]
    pub end: CommitEnd,
    /// How many chunks there are.
    #[n(1)]
    pub chunks: u32,
    /// Bytes of all of them.
    #[n(2)]
    pub bytes: u64,
    /// The commit after which it was made: all members attest this one (see
    /// [`crate::event::CHECKPOINT_COMMITS`]), with the position, prefix and root of `end`.
    #[n(3)]
    pub made_after: CommitIndex,
}

/// A snapshot that one ledger offers another.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SnapshotOffer {
    /// Which one.
    #[n(0)]
    pub head: SnapshotHead,
    /// Headers that attest its state.
    #[n(1)]
    pub evidence: QuorumEvidence,
}

/// Releases as they stand in a store, in order: the past of a host that begins from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(transparent)]
pub struct PastReleases(#[n(0)] pub Vec<SealedRelease>);

impl SnapshotHead {
    /// Whether `attestation` names this state and the commit after which it was made: either commit
    /// end that a header names may be both. Were the state enough, a liar could offer a true one
    /// under any later commit, and who took it would hold it for the newest for ever.
    pub fn is_named_by(&self, attestation: &Attestation) -> bool {
        let made_after = CommitEnd { index: self.made_after, ..self.end };
        attestation.checkpoint == Some(made_after)
            || (attestation.newest == self.end && self.made_after == self.end.index)
    }
}

impl SnapshotOffer {
    /// Whether a quorum of `committee` attests the snapshot's state. `read` gives a header whose
    /// signature is its author's.
    pub fn is_attested_by(
        &self,
        cluster: &ClusterId,
        committee: Committee,
        read: impl Fn(&SignedHeader) -> Option<Header>,
    ) -> bool {
        let mut authors = BTreeSet::new();
        for signed in &self.evidence.headers {
            let Some(header) = read(signed) else { return false };
            let fits = header.cluster == *cluster
                && committee.contains(header.author)
                && self.head.is_named_by(&header.attestation);
            if !fits || !authors.insert(header.author) {
                return false;
            }
        }
        authors.len() >= committee.quorum()
    }
}

/// Where a processor's life began, when it did not begin at the founding.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Anchor {
    /// The commit end whose state it began with.
    #[n(0)]
    pub end: CommitEnd,
    /// The ledger time there.
    #[n(1)]
    pub ledger_time: LedgerTime,
    /// Everything that was judged up to there. The state root of `end` covers it.
    #[n(2)]
    pub history: HistoryHash,
}

/// An anchor with the seal of the processor whose life it begins.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct SealedAnchor {
    /// The anchor.
    #[n(0)]
    pub anchor: Anchor,
    /// The signature (domain `Seal`) over its digest.
    #[n(1)]
    pub seal: Signature,
}

impl Anchor {
    /// What is sealed; hashed for another purpose than a release, so that neither passes for the
    /// other.
    pub fn seal_digest(&self) -> [u8; 32] {
        static PURPOSE: Purpose = Purpose::new("dagger v1 anchor");
        PURPOSE.hash(&codec::encode(self))
    }
}

impl SealedAnchor {
    /// Whether `seal_key` sealed it.
    pub fn is_sealed_by(&self, seal_key: &PublicKey) -> bool {
        seal_key.verifies_in(Domain::Seal, &self.anchor.seal_digest(), &self.seal)
    }
}

/// The chain after a release: payloads in order, their verdicts (without the words of a refusal,
/// which may change between versions) and all effects. A release without content leaves it as it
/// is.
pub fn extend_history(before: &HistoryHash, release: &CommitRelease) -> HistoryHash {
    if release.is_empty() {
        return *before;
    }
    let mut record = HistoryRecord::default();
    record.begin(before, release.end.index, release.ledger_time, release.releases.len());
    for judged in &release.releases {
        record.judged(judged.position, &judged.digest, &judged.verdict);
        record.effects(&judged.effects);
    }
    record.effects(&release.time_effects);
    record.hash()
}

/// So many bytes of a record are hashed together: enough for parts of them to go side by side, few
/// enough to be near the processor still.
const RECORD_BYTES_TOGETHER: usize = 16 * 1024;

static HISTORY: Purpose = Purpose::new("dagger v1 history");

/// What a commit adds to the chain, hashed while it is judged; each effect is encoded once as it is
/// told, here.
#[derive(Debug)]
pub struct HistoryRecord {
    hasher: blake3::Hasher,
    /// What is not hashed yet.
    bytes: Vec<u8>,
    /// How much of the commit is.
    hashed_bytes: usize,
}

impl Default for HistoryRecord {
    fn default() -> Self {
        Self { hasher: HISTORY.hasher(), bytes: Vec::new(), hashed_bytes: 0 }
    }
}

impl HistoryRecord {
    /// Begins a commit with so many payloads, in the memory of the one before.
    pub fn begin(
        &mut self,
        before: &HistoryHash,
        index: CommitIndex,
        ledger_time: LedgerTime,
        payloads: usize,
    ) {
        self.hasher.reset();
        self.hashed_bytes = 0;
        self.bytes.clear();
        self.bytes.extend(before.as_bytes());
        self.bytes.extend(index.0.to_be_bytes());
        self.bytes.extend(ledger_time.0.to_be_bytes());
        self.number(payloads);
    }

    /// The next payload and its verdict; its effects follow.
    pub fn judged(&mut self, position: Position, digest: &PayloadDigest, verdict: &Verdict) {
        self.bytes.extend(position.0.to_be_bytes());
        self.bytes.extend(digest.as_bytes());
        let code = match verdict {
            Verdict::Accepted => "",
            Verdict::Refused(refusal) => refusal.code.as_str(),
        };
        self.number(code.len());
        self.bytes.extend(code.as_bytes());
        let whole = self.bytes.len() / RECORD_BYTES_TOGETHER * RECORD_BYTES_TOGETHER;
        if whole > 0 {
            self.hasher.update(&self.bytes[..whole]);
            self.bytes.drain(..whole);
            self.hashed_bytes += whole;
        }
    }

    /// How much was written down of the commit.
    pub fn size_bytes(&self) -> usize {
        self.hashed_bytes + self.bytes.len()
    }

    /// Effects: after each payload its own, after all of them those of the passing of time.
    pub fn effects(&mut self, effects: &[Effect]) {
        self.begin_effects(effects.len());
        for effect in effects {
            self.effect(effect);
        }
    }

    /// So many effects follow.
    pub fn begin_effects(&mut self, count: usize) {
        let count = u64::try_from(count).expect("fits into 64 bits");
        // CBOR says itself where it ends.
        let written = minicbor::Encoder::new(&mut self.bytes).array(count).map(|_| ());
        written.expect("writing to memory cannot fail");
    }

    /// The next effect, as it is told; gives the canonical bytes of its object.
    pub fn effect(&mut self, effect: &Effect) -> &[u8] {
        let object = self.bytes.len() + EFFECT_HEAD_BYTES;
        codec::encode_after(effect, &mut self.bytes);
        &self.bytes[object..]
    }

    /// The chain after the commit.
    pub fn hash(&mut self) -> HistoryHash {
        self.hasher.update(&self.bytes);
        self.hashed_bytes += self.bytes.len();
        self.bytes.clear();
        HistoryHash(*self.hasher.finalize().as_bytes())
    }

    fn number(&mut self, number: usize) {
        let number = u64::try_from(number).expect("fits into 64 bits");
        self.bytes.extend(number.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EVENT_VERSION, Event, Header, SignedHeader};
    use crate::id::{AuthorIndex, Epoch, EventDigest, MerkleRoot, PrefixHash, Round, StateRoot};
    use crate::key::SecretKey;
    use crate::payload::{SignatureKind, SignedPayload};
    use crate::refusal::{Refusal, RefusalCode};
    use crate::release::{OrderedPayload, Release};

    fn release(verdict: Verdict) -> CommitRelease {
        let end = CommitEnd {
            index: CommitIndex(3),
            position: Position(1),
            prefix_hash: PrefixHash([1; 32]),
            state_root: StateRoot([2; 32]),
        };
        let payload = SignedPayload {
            signature_kind: SignatureKind::SshEd25519,
            signature: Signature([1; 64]),
            bytes: b"text"[..].into(),
        };
        let release = Release {
            position: Position(1),
            digest: PayloadDigest::of(b"text"),
            ordered: OrderedPayload { author: crate::id::AuthorIndex(0), payload },
            verdict,
            effects: Vec::new(),
        };
        let (releases, time_effects) = (vec![release], Vec::new());
        CommitRelease { end, ledger_time: LedgerTime(5), releases, time_effects }
    }

    #[test]
    fn only_headers_of_a_quorum_that_name_its_state_attest_a_snapshot() {
        let cluster = ClusterId([3; 32]);
        let key =
            |author: u16| SecretKey::from_seed(&[u8::try_from(author).expect("few"); 32].into());
        let keys: Vec<PublicKey> = (0..5).map(|author| key(author).public_key()).collect();
        let end = release(Verdict::Accepted).end;
        let made_after = CommitEnd { index: CommitIndex(100), ..end };
        let other = CommitEnd { state_root: StateRoot([9; 32]), ..end };
        let signed = |author: u16, newest: CommitEnd, checkpoint: Option<CommitEnd>| {
            let header = Header {
                version: EVENT_VERSION,
                cluster,
                epoch: Epoch(0),
                round: Round(1),
                author: AuthorIndex(author),
                parents: Vec::new(),
                payload_root: MerkleRoot::ZERO,
                payload_count: 0,
                timestamp: LedgerTime(9),
                attestation: Attestation { newest, checkpoint },
            };
            let sign = |digest: &EventDigest| key(author).sign_in(Domain::Event, digest.as_bytes());
            Event::make(header, Vec::new(), sign).signed_header()
        };
        let head = SnapshotHead { end, chunks: 1, bytes: 7, made_after: CommitIndex(100) };
        let attested = |headers: Vec<SignedHeader>| {
            let offer = SnapshotOffer { head: head.clone(), evidence: QuorumEvidence { headers } };
            let committee = Committee::new(4).expect("in range");
            offer.is_attested_by(&cluster, committee, |signed| {
                let read = signed.verify(|author| keys.get(usize::from(author.0)));
                read.ok().map(|(header, _)| header)
            })
        };
        let good = [end, other, made_after];
        let good = [0, 1, 2].map(|at| signed(at, good[usize::from(at)], Some(made_after)));
        assert!(attested(good.to_vec()));
        assert!(!attested(good[..2].to_vec()), "too few");
        let stranger = signed(4, end, Some(made_after));
        // Who vouches for the state alone says nothing of when it was made.
        let (by_state, by_another) = (signed(3, end, None), signed(3, other, Some(end)));
        for bad in [good[0].clone(), stranger, by_state.clone(), by_another] {
            assert!(!attested([&good[..2], &[bad]].concat()));
        }
        let at_once = SnapshotHead { made_after: end.index, ..head.clone() };
        let names = |signed: &SignedHeader| {
            let read = signed.verify(|author| keys.get(usize::from(author.0)));
            at_once.is_named_by(&read.expect("signed").0.attestation)
        };
        assert!(names(&by_state) && !names(&good[1]));
        let mut forged = good[2].clone();
        forged.signature = Signature([0; 64]);
        assert!(!attested([&good[..2], &[forged]].concat()));
    }

    #[test]
    fn the_history_binds_verdicts_and_order_and_not_the_words_of_a_refusal() {
        let refused = |code, detail: &str| release(Verdict::Refused(Refusal::new(code, detail)));
        let after = |release: &CommitRelease| extend_history(&HistoryHash::ZERO, release);
        let accepted = after(&release(Verdict::Accepted));
        let expired = after(&refused(RefusalCode::Expired, "late"));
        assert_ne!(accepted, expired);
        assert_ne!(expired, after(&refused(RefusalCode::Duplicate, "late")));
        assert_eq!(expired, after(&refused(RefusalCode::Expired, "too late")));
        let twice = extend_history(&accepted, &refused(RefusalCode::Expired, "late"));
        assert_ne!(twice, extend_history(&expired, &release(Verdict::Accepted)));
        let mut empty = release(Verdict::Accepted);
        empty.releases.clear();
        assert_eq!(extend_history(&accepted, &empty), accepted);
    }
}
