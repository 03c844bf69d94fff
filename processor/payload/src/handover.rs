//! How one epoch follows another: where it ends, who votes in the next one, and the certificate.
//!
//! Owns these documents and their check. Never decides who votes (the judge does) nor when (the
//! ledger core does). Called by both, by the store and by readers of later epochs.

use std::collections::BTreeSet;

use crate::committee::Committee;
use crate::event::{CommitEnd, SignedHeader};
use crate::id::{AuthorIndex, ClusterId, CommitIndex, Epoch, LedgerTime};
use crate::key::PublicKey;
use crate::proof::StateProof;

/// Where an epoch ends, and who votes in the next one. Decided by the judge, from the order alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct EpochEnd {
    /// The last commit.
    #[n(0)]
    pub last: CommitIndex,
    /// The members of the next epoch.
    #[n(1)]
    pub committee: Committee,
}

/// The certificate with which an epoch begins: a quorum of the epoch before attests the last commit
/// end, whose state root binds the new members. The chain of these, from the genesis on, is what
/// readers of a later epoch check.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Handover {
    /// The epoch that begins.
    #[n(0)]
    pub epoch: Epoch,
    /// Its members.
    #[n(1)]
    pub committee: Committee,
    /// Where the epoch before ended.
    #[n(2)]
    pub founding: Founding,
    /// Headers of that epoch whose attestation names exactly that end, of a quorum of its authors.
    #[n(3)]
    pub headers: Vec<SignedHeader>,
}

/// Who votes in the next epoch and with which keys, shown against the state root of the last commit
/// end of the one before. Made by the judge, which alone has the state.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct NextMembers {
    /// The next epoch.
    #[n(0)]
    pub epoch: Epoch,
    /// What stands under it: a [`crate::roster::EpochMembers`].
    #[n(1)]
    pub members: StateProof,
    /// The [`crate::roster::Seat`] of each voter.
    #[n(2)]
    pub seats: Vec<(AuthorIndex, StateProof)>,
}

/// What an epoch continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Founding {
    /// The commit end before its first commit; in the first epoch that of the founding state.
    #[n(0)]
    pub end: CommitEnd,
    /// The ledger time there.
    #[n(1)]
    pub ledger_time: LedgerTime,
}

impl Handover {
    /// Whether a quorum of `before`, the committee of the epoch before, attests exactly this end.
    /// That the end's state root names this committee is for a proof against that root to show.
    pub fn is_certified_by<'k>(
        &self,
        cluster: &ClusterId,
        before: Committee,
        key_of: impl Fn(AuthorIndex) -> Option<&'k PublicKey>,
    ) -> bool {
        let mut authors = BTreeSet::new();
        for signed in &self.headers {
            let Ok((header, _)) = signed.verify(&key_of) else { return false };
            let fits = header.cluster == *cluster
                && header.epoch.next() == self.epoch
                && header.attestation.newest == self.founding.end
                && before.contains(header.author);
            if !fits || !authors.insert(header.author) {
                return false;
            }
        }
        authors.len() >= before.quorum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Attestation, EVENT_VERSION, Event, Header};
    use crate::id::{MerkleRoot, Position, PrefixHash, Round, StateRoot};
    use crate::key::{Domain, SecretKey};

    const CLUSTER: ClusterId = ClusterId([3; 32]);

    fn key(author: u16) -> SecretKey {
        SecretKey::from_seed(&[u8::try_from(author).expect("few"); 32].into())
    }

    fn end(index: u64) -> CommitEnd {
        CommitEnd {
            index: CommitIndex(index),
            position: Position(5),
            prefix_hash: PrefixHash([1; 32]),
            state_root: StateRoot([2; 32]),
        }
    }

    fn header(author: u16, epoch: u64, index: u64) -> SignedHeader {
        let header = Header {
            version: EVENT_VERSION,
            cluster: CLUSTER,
            epoch: Epoch(epoch),
            round: Round(1),
            author: AuthorIndex(author),
            parents: Vec::new(),
            payload_root: MerkleRoot::ZERO,
            payload_count: 0,
            timestamp: LedgerTime(9),
            attestation: Attestation { newest: end(index), checkpoint: None },
        };
        let sign =
            |digest: &crate::id::EventDigest| key(author).sign_in(Domain::Event, digest.as_bytes());
        Event::make(header, Vec::new(), sign).signed_header()
    }

    #[test]
    fn only_a_quorum_of_the_epoch_before_that_names_exactly_this_end_certifies_a_handover() {
        let before = Committee::new(4).expect("in range");
        let keys: Vec<PublicKey> = (0..5).map(|author| key(author).public_key()).collect();
        let certified = |headers: Vec<SignedHeader>| {
            let committee = Committee::new(5).expect("in range");
            let founding = Founding { end: end(7), ledger_time: LedgerTime(9) };
            let handover = Handover { epoch: Epoch(3), committee, founding, headers };
            handover.is_certified_by(&CLUSTER, before, |author| keys.get(usize::from(author.0)))
        };
        let good = || (0..3).map(|author| header(author, 2, 7)).collect::<Vec<_>>();
        assert!(certified(good()));
        assert!(!certified(good()[..2].to_vec()));
        for bad in [header(4, 2, 7), header(0, 2, 7), header(3, 2, 6), header(3, 3, 7)] {
            let headers = good()[..2].iter().cloned().chain([bad]).collect();
            assert!(!certified(headers));
        }
    }
}
