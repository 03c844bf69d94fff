//! The hosts' signing keys in a run: cheap ones in most seeds, real ed25519 in one of twenty.
//!
//! Owns the secrets, so that no player can sign as another. Called by hosts (to sign) and by the
//! world, which verifies each event as a driver does.

use std::sync::Arc;

use dagger_ledger_core::interface::EventSigner;
use dagger_payload::committee::Committee;
use dagger_payload::event::Event;
use dagger_payload::id::{ClusterId, Epoch, EventDigest};
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

    /// Whether a driver would let this event through to its core.
    pub(crate) fn verify(&self, event: &Event, committee: Committee) -> bool {
        let header = &event.header;
        if header.cluster != self.cluster
            || header.epoch != Epoch(0)
            || !event.has_quorum_below(committee)
        {
            return false;
        }
        match self.keys.get(usize::from(header.author.0)) {
            Some(key @ SimulatedKey::Cheap(_)) => key.sign(&event.digest) == event.signature,
            Some(SimulatedKey::Real(key)) => {
                let public = key.public_key();
                let digest = event.digest.as_bytes();
                public.verifies_in(Domain::Event, digest, &event.signature)
            }
            None => false,
        }
    }
}
