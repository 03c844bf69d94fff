//! The costly and stateless part of judging a payload: reading it strictly, checking its signature,
//! hashing it.
//!
//! Owns the result that both admission and judgement use, so that they cannot differ, and every
//! hash that the judge needs and that follows from the payload alone. Pure; may run on any thread.

use dagger_payload::hashing::Purpose;
use dagger_payload::id::{PayloadDigest, VmId};
use dagger_payload::kind::Body;
use dagger_payload::merkle::Leaf;
use dagger_payload::name::Name;
use dagger_payload::payload::{Payload, SignedPayload};
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::state_tree::{Hash, Subject};

/// A payload after form and signature have been looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Identity of the payload.
    pub digest: PayloadDigest,
    /// The document, if it is well-formed and signed by the key that it names.
    pub outcome: Result<Box<Payload>, Refusal>,
    /// Hash of its record, for the chain over everything ordered.
    pub leaf: Leaf,
    /// Where the state tree has what became of it.
    pub(crate) place: Hash,
    /// The VM that it makes, if it asks for one and is accepted.
    pub(crate) newborn: Option<Newborn>,
}

/// What is known of a VM before a rule has looked at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Newborn {
    pub(crate) id: VmId,
    /// Where the state tree has it.
    pub(crate) place: Hash,
    pub(crate) name: NameWord,
}

/// The first word of a name's digest. Two names may share it by accident, and hardly on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NameWord(pub(crate) u64);

/// Reads `signed` and checks its signature (`verify_strict`, never a batch).
pub fn verify(signed: &SignedPayload) -> Verified {
    let outcome = signed.read().and_then(|payload| {
        if signed.is_signed_by(&payload.signer) {
            return Ok(Box::new(payload));
        }
        let detail = format!("not signed by {}", payload.signer.fingerprint());
        Err(Refusal::new(RefusalCode::SignatureInvalid, detail))
    });
    Verified::of(signed, outcome)
}

impl Verified {
    /// A payload of which `outcome` is known.
    pub fn of(signed: &SignedPayload, outcome: Result<Box<Payload>, Refusal>) -> Self {
        let digest = signed.digest();
        let newborn = outcome.as_ref().ok().and_then(|payload| Newborn::of(&digest, payload));
        let leaf = signed.leaf();
        Self { digest, outcome, leaf, place: Subject::Payload(digest).place(), newborn }
    }
}

impl Newborn {
    /// The VM that `payload` makes.
    pub(crate) fn of(digest: &PayloadDigest, payload: &Payload) -> Option<Self> {
        let Body::VmCreate(body) = &payload.body else { return None };
        let id = VmId::of(digest);
        Some(Self { id, place: Subject::Vm(id).place(), name: NameWord::from(&body.name) })
    }
}

impl From<&Name> for NameWord {
    fn from(name: &Name) -> Self {
        static PURPOSE: Purpose = Purpose::new("dagger v1 name word");
        let hash = PURPOSE.hash(name.as_str().as_bytes());
        Self(hash.first_chunk().copied().map_or(0, u64::from_be_bytes))
    }
}
