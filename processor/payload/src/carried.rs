//! That a member carried a payload: the payload's record, its path to the Merkle root of one event,
//! and that event's signed header.
//!
//! Owns their bytes and their check, which needs the genesis and the handovers to the event's epoch
//! and nothing else. Never says that the payload was ordered: its leaf of the state does. Put
//! together by the ledger; checked by whoever has the genesis.

use crate::attested::{AttestationError, EpochBeginning, Walk};
use crate::event::{EventError, SignedHeader};
use crate::genesis::Genesis;
use crate::id::{AuthorIndex, ClusterId, Epoch, EventDigest, LedgerTime, PayloadDigest, Round};
use crate::limits::{EVENT_PAYLOADS_MAX, HANDOVERS_SHOWN_MAX, PAYLOAD_BYTES_MAX};
use crate::merkle;
use crate::payload::SignedPayload;
use crate::proof::Path;

/// A payload and the event that carried it.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Carried {
    /// The payload with its signature: the record that was hashed.
    #[n(0)]
    pub payload: SignedPayload,
    /// Its place among the records of the event, from 0.
    #[n(1)]
    pub index: u32,
    /// The hashes beside its way to the event's Merkle root, lowest first.
    #[n(2)]
    pub path: Path,
    /// The event's header, signed by whoever carried it.
    #[n(3)]
    pub header: SignedHeader,
}

/// Who carried a payload, and in which event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carrier {
    /// The payload.
    pub digest: PayloadDigest,
    /// Whose event it is.
    pub author: AuthorIndex,
    /// Of which epoch.
    pub epoch: Epoch,
    /// Of which round.
    pub round: Round,
    /// The event.
    pub event: EventDigest,
    /// Its place in the event, from 0.
    pub index: u32,
    /// How many payloads the event carried.
    pub count: u32,
    /// When, by its author's clock.
    pub timestamp: LedgerTime,
}

/// Why nobody has to believe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CarriageError {
    /// A payload, an event or a list that is larger than any may be.
    #[error("it is larger than any payload, event or list of handovers may be")]
    TooLarge,
    /// The handovers lead nowhere.
    #[error(transparent)]
    Handovers(#[from] AttestationError),
    /// The header is none, or is not signed by the member that it names.
    #[error("the header of the event does not count: {0}")]
    Header(#[from] EventError),
    /// An event of another cluster.
    #[error("the event is of another cluster than this genesis founds")]
    AnotherCluster,
    /// Its author is no member of the event's epoch, or no handover leads there.
    #[error("the event's author is proven to be no member of its epoch {0}")]
    NoMember(Epoch),
    /// The path does not lead from the payload to the event's Merkle root.
    #[error("the path does not lead from the payload to the event's Merkle root")]
    AnotherRoot,
}

impl Carried {
    /// Who carried the payload, if a member of the cluster did.
    ///
    /// # Errors
    /// [`CarriageError`].
    pub fn verify(
        &self,
        cluster: &ClusterId,
        genesis: &Genesis,
        handovers: &[EpochBeginning],
    ) -> Result<Carrier, CarriageError> {
        let is_bounded =
            self.payload.bytes.len() <= PAYLOAD_BYTES_MAX && handovers.len() <= HANDOVERS_SHOWN_MAX;
        if !is_bounded {
            return Err(CarriageError::TooLarge);
        }
        let walk = Walk::along(cluster, genesis, handovers)?;
        let (header, event) = self.header.verify(|author| walk.key(author))?;
        if header.cluster != *cluster {
            return Err(CarriageError::AnotherCluster);
        }
        let committee = walk.committee_of(header.epoch);
        if !committee.is_some_and(|committee| committee.contains(header.author)) {
            return Err(CarriageError::NoMember(header.epoch));
        }
        let fits = |number: u32| usize::try_from(number).map_err(|_| CarriageError::TooLarge);
        let (count, index) = (fits(header.payload_count)?, fits(self.index)?);
        if count > EVENT_PAYLOADS_MAX {
            return Err(CarriageError::TooLarge);
        }
        let leaf = self.payload.leaf();
        if !merkle::verify(&header.payload_root, count, index, &leaf, &self.path.0) {
            return Err(CarriageError::AnotherRoot);
        }
        Ok(Carrier {
            digest: self.payload.digest(),
            author: header.author,
            epoch: header.epoch,
            round: header.round,
            event,
            index: self.index,
            count: header.payload_count,
            timestamp: header.timestamp,
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use zeroize::Zeroizing;

    use super::*;
    use crate::codec;
    use crate::committee::Committee;
    use crate::event::{Attestation, CommitEnd, EVENT_VERSION, Event, Header};
    use crate::genesis::{GenesisHost, GenesisMode, GenesisOperator};
    use crate::handover::{Founding, Handover};
    use crate::id::{CommitIndex, MerkleRoot, Position, PrefixHash, ProtocolVersion, StateRoot};
    use crate::key::{Domain, SecretKey, Signature};
    use crate::payload::SignatureKind;
    use crate::proof::{Finding, StateProof};
    use crate::roster::EpochMembers;
    use crate::state_tree::{Subject, key_hash, leaf, node, side};

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_seed(&Zeroizing::new([byte; 32]))
    }

    fn genesis() -> (Genesis, ClusterId) {
        let name = |text: String| text.parse().expect("a name");
        let host = |number: u8| GenesisHost {
            name: name(format!("host{number}")),
            operator: name("op".into()),
            ledger_key: key(number).public_key(),
            address: "127.0.0.1:7400".parse().expect("an address"),
        };
        let genesis = Genesis {
            dagger: 1,
            nonce: "0".repeat(32),
            name: name("test".into()),
            mode: GenesisMode::Judged,
            operators: vec![GenesisOperator { name: name("op".into()), key: key(99).public_key() }],
            hosts: (0..4).map(host).collect(),
            collection_depth_rounds: 60,
            handover_distance_commits: 10,
            commit_bytes_max: None,
        };
        let cluster = ClusterId::of(&genesis.to_bytes());
        (genesis, cluster)
    }

    fn payload(number: u8) -> SignedPayload {
        let bytes = Bytes::from(vec![number; 40]);
        let signature = Signature([number; 64]);
        SignedPayload { signature_kind: SignatureKind::SshEd25519, signature, bytes: bytes.into() }
    }

    fn end() -> CommitEnd {
        CommitEnd {
            index: CommitIndex(3),
            position: Position(0),
            prefix_hash: PrefixHash::ZERO,
            state_root: StateRoot::ZERO,
        }
    }

    /// The event of member `author` in this epoch, with `count` payloads, signed by `signer`.
    fn event(author: u8, epoch: u64, count: u8, signer: u8) -> Event {
        signed_event((author, signer), epoch, count, end())
    }

    fn signed_event(by: (u8, u8), epoch: u64, count: u8, newest: CommitEnd) -> Event {
        let (author, signer) = by;
        let header = Header {
            version: EVENT_VERSION,
            cluster: genesis().1,
            epoch: Epoch(epoch),
            round: Round(1),
            author: AuthorIndex(author.into()),
            parents: Vec::new(),
            payload_root: MerkleRoot::ZERO,
            payload_count: 0,
            timestamp: LedgerTime(7),
            attestation: Attestation { newest, checkpoint: None },
        };
        Event::make(header, (0..count).map(payload).collect(), |digest| {
            key(signer).sign_in(Domain::Event, digest.as_bytes())
        })
    }

    fn carried(event: &Event, index: u32) -> Carried {
        let at = usize::try_from(index).expect("small");
        Carried {
            payload: event.payloads[at].clone(),
            index,
            path: Path(merkle::prove(&event.leaves, at).expect("there")),
            header: event.signed_header(),
        }
    }

    fn verify(carried: &Carried) -> Result<Carrier, CarriageError> {
        let (genesis, cluster) = genesis();
        carried.verify(&cluster, &genesis, &[])
    }

    #[test]
    fn every_payload_of_an_event_is_shown_to_be_carried_by_its_author_at_its_place() {
        for count in [1_u8, 2, 3, 7, 64, 65] {
            let event = event(2, 0, count, 2);
            for index in 0..u32::from(count) {
                let carried = carried(&event, index);
                let bytes = codec::encode(&carried);
                assert_eq!(codec::decode(&bytes), Ok(carried.clone()));
                let carrier = verify(&carried).expect("it holds");
                let number = u8::try_from(index).expect("small");
                assert_eq!(carrier.digest, payload(number).digest());
                assert_eq!((carrier.author, carrier.event), (AuthorIndex(2), event.digest));
                assert_eq!((carrier.index, carrier.count), (index, count.into()));
                // Nor is it shown at another place, or of another payload.
                let moved = Carried { index: (index + 1) % u32::from(count), ..carried.clone() };
                assert!(count == 1 || verify(&moved).is_err());
                let other = Carried { payload: payload(200), ..carried };
                assert_eq!(verify(&other), Err(CarriageError::AnotherRoot));
            }
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_shows_nothing_any_more() {
        let bytes = codec::encode(&carried(&event(1, 0, 5, 1), 3));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let Ok(read) = codec::decode::<Carried>(&flipped) else { continue };
            assert!(verify(&read).is_err(), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(codec::decode::<Carried>(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn an_event_of_a_stranger_another_epoch_or_another_cluster_carries_nothing() {
        let bad_signature = CarriageError::Header(EventError::BadSignature);
        assert_eq!(verify(&carried(&event(1, 0, 2, 2), 0)), Err(bad_signature));
        let unknown = CarriageError::Header(EventError::UnknownAuthor);
        assert_eq!(verify(&carried(&event(9, 0, 2, 9), 0)), Err(unknown));
        // Its key is known, and no handover shows who votes there.
        let later = verify(&carried(&event(1, 1, 2, 1), 0));
        assert_eq!(later, Err(CarriageError::NoMember(Epoch(1))));
        let (mut other, _) = genesis();
        other.nonce = "1".repeat(32);
        let cluster = ClusterId::of(&other.to_bytes());
        let foreign = carried(&event(1, 0, 2, 1), 0).verify(&cluster, &other, &[]);
        assert_eq!(foreign, Err(CarriageError::AnotherCluster));
    }

    /// How epoch 1 began with `told` members, where the state named `named`; a proof of those, too.
    fn beginning(told: &[u16], named: &[u16]) -> (EpochBeginning, StateProof) {
        let committee = |members: &[u16]| {
            Committee::of(members.iter().copied().map(AuthorIndex)).expect("some")
        };
        let members = EpochMembers {
            epoch: Epoch(1),
            committee: committee(named),
            begins_after: CommitIndex(3),
            protocol: ProtocolVersion::FIRST,
        };
        let value = codec::encode(&members);
        let place = key_hash(&Subject::Epoch(Epoch(1)).key());
        let (own, beside) = (leaf(&place, &value), [7; 32]);
        let root = if side(&place, 0) == 0 { node(&own, &beside) } else { node(&beside, &own) };
        let proof = StateProof { path: Path(vec![beside]), finding: Finding::Value(value.into()) };
        let newest = CommitEnd { state_root: StateRoot(root), ..end() };
        let attested = |author| signed_event((author, author), 0, 0, newest).signed_header();
        let handover = Handover {
            epoch: Epoch(1),
            committee: committee(told),
            founding: Founding { end: newest, ledger_time: LedgerTime(9) },
            headers: (0..3).map(attested).collect(),
        };
        (EpochBeginning { handover, members: None, seats: Vec::new() }, proof)
    }

    #[test]
    fn who_left_cannot_write_himself_into_the_next_epoch_and_carry_anything_there() {
        let unproven = AttestationError::MembersUnproven { epoch: Epoch(1) };
        let (genesis, cluster) = genesis();
        let verify = |author: u8, told: &[u16], is_shown: Option<()>| {
            let (mut begun, proof) = beginning(told, &[0, 1, 2]);
            begun.members = is_shown.map(|()| proof);
            carried(&event(author, 1, 2, author), 0).verify(&cluster, &genesis, &[begun])
        };
        for is_shown in [None, Some(())] {
            let written = verify(3, &[0, 1, 2, 3], is_shown);
            assert_eq!(written, Err(CarriageError::Handovers(unproven)));
        }
        assert_eq!(verify(3, &[0, 1, 2], Some(())), Err(CarriageError::NoMember(Epoch(1))));
        let stayed = verify(2, &[0, 1, 2], Some(())).expect("it votes");
        assert_eq!((stayed.author, stayed.epoch), (AuthorIndex(2), Epoch(1)));
    }

    #[test]
    fn what_is_larger_than_anything_that_was_carried_is_not_looked_at() {
        let mut large = carried(&event(1, 0, 2, 1), 0);
        large.payload.bytes = vec![0; PAYLOAD_BYTES_MAX + 1].into();
        assert_eq!(verify(&large), Err(CarriageError::TooLarge));
        let long = Carried { path: Path(vec![[0; 32]; 200]), ..carried(&event(1, 0, 2, 1), 0) };
        assert_eq!(verify(&long), Err(CarriageError::AnotherRoot));
    }
}
