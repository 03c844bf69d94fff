//! The costly and stateless part of judging a payload: reading it strictly, checking its signature,
//! hashing it.
//!
//! Owns the result that both admission and judgement use, so that they cannot differ. Pure; may run
//! on any thread.

use dagger_payload::id::PayloadDigest;
use dagger_payload::merkle::{self, Leaf};
use dagger_payload::payload::{Payload, SignedPayload};
use dagger_payload::refusal::{Refusal, RefusalCode};

/// A payload after form and signature have been looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Identity of the payload.
    pub digest: PayloadDigest,
    /// The document, if it is well-formed and signed by the key that it names.
    pub outcome: Result<Box<Payload>, Refusal>,
    /// Hash of its record, for the chain over everything ordered.
    pub leaf: Leaf,
}

/// Reads `signed` and checks its signature (`verify_strict`, never a batch).
pub fn verify(signed: &SignedPayload) -> Verified {
    let outcome = signed.read().and_then(|payload| {
        if signed.is_signed_by(&payload.signer) {
            return Ok(Box::new(payload));
        }
        let detail = format!("not signed by {}", payload.signer.fingerprint());
        Err(Refusal::new(RefusalCode::SignatureInvalid, detail))
    });
    let leaf = merkle::leaf(&signed.to_record());
    Verified { digest: signed.digest(), outcome, leaf }
}
