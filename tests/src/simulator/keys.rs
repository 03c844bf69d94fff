//! The hosts' signing keys in a run: cheap ones in most seeds, real ed25519 in one of twenty.
//!
//! Owns the secrets, so that no player can sign as another. Called by hosts (to sign) and by the
//! world, which verifies each event as a driver does.

use std::sync::Arc;

use dagger_ledger_core::interface::{EventSigner, Input};
use dagger_payload::codec;
use dagger_payload::committee::Committee;
use dagger_payload::event::{Event, Header, SignedHeader};
use dagger_payload::id::{AuthorIndex, ClusterId, EventDigest};
use dagger_payload::key::{Domain, SecretKey, Signature};
use zeroize::Zeroizing;

use super::random::Random;

/// One seed of this many uses real signatures.
const REAL_SIGNATURES_EVERY: u64 = 20;

/// A host's key.
#[derive(Clone)]
pub(crate) enum SimulatedKey {
    /// A keyed hash: as hard to forge for a player who lacks the secret.
    Cheap([u8; 32]),
    /// What hosts use.
    Real(Arc<SecretKey>),
}

impl EventSigner for SimulatedKey {
    fn sign(&self, digest: &EventDigest) -> Signature {
        match self {
            Self::Cheap(secret) => {
                let mut signature = [0; 64];
                blake3::Hasher::new_keyed(secret)
                    .update(digest.as_bytes())
                    .finalize_xof()
                    .fill(&mut signature);
                Signature(signature)
            }
            Self::Real(key) => key.sign_in(Domain::Event, digest.as_bytes()),
        }
    }
}

/// The keys of all hosts of a run.
pub(crate) struct Keys {
    cluster: ClusterId,
    keys: Vec<SimulatedKey>,
}

impl Keys {
    /// Draws keys for `hosts` hosts.
    pub(crate) fn draw(seed: u64, cluster: ClusterId, hosts: usize) -> Self {
        let mut random = Random::new(seed, "keys");
        let real = seed.is_multiple_of(REAL_SIGNATURES_EVERY);
        let mut secret = || {
            let mut secret = [0; 32];
            for chunk in secret.chunks_exact_mut(8) {
                chunk.copy_from_slice(&random.bits().to_be_bytes());
            }
            secret
        };
        let key = |secret: [u8; 32]| match real {
            true => SimulatedKey::Real(Arc::new(SecretKey::from_seed(&Zeroizing::new(secret)))),
            false => SimulatedKey::Cheap(secret),
        };
        Self { cluster, keys: (0..hosts).map(|_| key(secret())).collect() }
    }

    /// The key of one host.
    pub(crate) fn of(&self, host: usize) -> SimulatedKey {
        self.keys[host].clone()
    }

    /// Whether a driver would let this event of an epoch of `committee` through to its core.
    pub(crate) fn verify(&self, event: &Event, committee: Committee) -> bool {
        let header = &event.header;
        if header.cluster != self.cluster || !event.has_quorum_below(committee) {
            return false;
        }
        self.signed(header.author, &event.digest, &event.signature)
    }

    fn signed(&self, author: AuthorIndex, digest: &EventDigest, signature: &Signature) -> bool {
        match self.keys.get(usize::from(author.0)) {
            Some(key @ SimulatedKey::Cheap(_)) => key.sign(digest) == *signature,
            Some(SimulatedKey::Real(key)) => {
                key.public_key().verifies_in(Domain::Event, digest.as_bytes(), signature)
            }
            None => false,
        }
    }

    /// A header that its author signed.
    pub(crate) fn read(&self, signed: &SignedHeader) -> Option<Header> {
        let header: Header = codec::decode(&signed.header).ok()?;
        let digest = EventDigest::of(&signed.header);
        self.signed(header.author, &digest, &signed.signature).then_some(header)
    }

    /// What a driver tells its core of a header that may attest the end of an epoch.
    pub(crate) fn read_closing(&self, signed: &SignedHeader) -> Option<Input> {
        let header = self.read(signed).filter(|header| header.cluster == self.cluster)?;
        Some(Input::ClosingShown { header: Box::new(header), signed: signed.clone() })
    }
}
