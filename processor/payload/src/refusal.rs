//! Stable codes for everything that is refused because the outside is wrong.
//!
//! Owns the codes and, for each, what the sender should change. Never carries a transient failure
//! (those are *unavailable* and are retried). Called by the judge, the ledger's door, the API
//! (problem+json) and `daggerctl`.

use serde::{Deserialize, Serialize};

use crate::limits::REASON_BYTES_MAX;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal, $advice:literal;)*) => {
        /// Why a payload was refused. Codes are never renamed or reused.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
            minicbor::Encode, minicbor::Decode,
        )]
        #[serde(rename_all = "snake_case")]
        #[cbor(index_only)]
        #[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
        pub enum RefusalCode {
            $($(#[$doc])* #[n($number)] $name,)*
        }

        impl RefusalCode {
            /// All codes, in order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The stable text of the code.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What the sender should do next, as a sentence.
            pub fn advice(self) -> &'static str {
                match self { $(Self::$name => $advice,)* }
            }
        }
    };
}

codes! {
    /// Over the size limit.
    PayloadTooLarge = 0, "payload_too_large", "Keep the document within 64 KiB.";
    /// Not in the strict JSON subset, an unknown or missing field, or a value out of range.
    PayloadMalformed = 1, "payload_malformed",
        "Correct the field that the detail names; `daggerctl` writes well-formed documents.";
    /// A kind that no rule in force knows.
    KindUnknown = 2, "kind_unknown", "Use a kind that the API document lists, or upgrade the hosts.";
    /// Names another cluster's genesis.
    ClusterWrong = 3, "cluster_wrong", "Put this cluster's id into `cluster`; GET /v1/cluster tells it.";
    /// The signature does not verify under the key that the payload names.
    SignatureInvalid = 4, "signature_invalid",
        "Sign exactly the bytes that you send: ssh-keygen -Y sign -n dagger -f KEY FILE.";
    /// The key may not sign (weak, hardware, wrong type).
    SignerUnsupported = 5, "signer_unsupported", "Sign with a plain ssh-ed25519 key.";
    /// `not_after_ms` has passed in ledger time.
    Expired = 6, "expired", "Make and sign the request again with a later `not_after_ms`.";
    /// `not_after_ms` lies more than a day ahead.
    NotAfterTooFar = 7, "not_after_too_far", "Choose a `not_after_ms` within 24 hours of ledger time.";
    /// The same bytes were ordered before.
    Duplicate = 8, "duplicate", "Nothing: the first copy counts; look its digest up.";
    /// The signer has no live grant and is neither operator nor host.
    AccountUnknown = 9, "account_unknown", "Ask an operator for a grant: daggerctl account grant.";
    /// The signer is known but may not do this.
    NotAuthorized = 10, "not_authorized", "Have it signed by the owner of the object.";
    /// No such object.
    NotFound = 11, "not_found", "Check the name or id; `daggerctl vm ls` lists yours.";
    /// The name is taken in this account.
    NameTaken = 12, "name_taken", "Choose another name, or delete the object that has it.";
    /// More than the account's grants allow.
    GrantExceeded = 13, "grant_exceeded", "Ask for less, delete something, or ask for a larger grant.";
    /// No host that may be used has room and fits.
    NoHostFits = 14, "no_host_fits", "Ask for less, drop a constraint, or ask further operators.";
    /// The image is not registered, or differs from what was registered.
    ImageUnknown = 15, "image_unknown", "Register the image, or copy digest and size from `image ls`.";
    /// The object changed since the generation that the request expects.
    Conflict = 16, "conflict", "Look at the object again and repeat the request if it still applies.";
    /// The object is not in a state in which this is possible.
    StateWrong = 17, "state_wrong", "Wait for, or undo, what the detail names.";
    /// Too many bytes of this account, or of this key, wait to be ordered.
    TooMuchUnordered = 18, "too_much_unordered", "Wait until earlier requests are ordered.";
    /// A number is outside what any object may have.
    LimitExceeded = 19, "limit_exceeded", "Stay within the limit that the detail names.";
    /// The object exists already, unchanged.
    AlreadyExists = 20, "already_exists", "Nothing, or change what you ask for.";
    /// A local rule of the placed host's operator refuses it.
    HostPolicy = 21, "host_policy", "Choose another host, or ask its operator.";
    /// The operator of the VM's host took his grant back, or its time has passed.
    GrantEnded = 22, "grant_ended",
        "Ask that operator for a new grant; the VM can still be stopped and deleted.";
    /// The VM is protected against deletion.
    Protected = 23, "protected", "Unprotect it first: daggerctl vm unprotect VM.";
    /// One operator would hold more votes than may be false.
    Unbalanced = 24, "unbalanced",
        "Change other voters in the same proposal, so that no operator holds more than f votes.";
    /// So many requests of the signer are remembered, until they expire, that no more are taken.
    TooManyRemembered = 25, "too_many_remembered",
        "Wait until earlier requests have expired; give the next ones an earlier `not_after_ms`.";
}

impl std::fmt::Display for RefusalCode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A refusal: a stable code and one sentence that names what is wrong here.
#[derive(
    Debug,
    Clone,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    minicbor::Encode,
    minicbor::Decode,
    thiserror::Error,
)]
#[error("{code}: {detail}")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Refusal {
    /// The stable code.
    #[n(0)]
    pub code: RefusalCode,
    /// What is wrong in this case; not stable, and part of no digest.
    #[n(1)]
    pub detail: String,
}

impl Refusal {
    /// A refusal with its detail, of which at most [`REASON_BYTES_MAX`] bytes are kept: it may
    /// repeat what a stranger wrote, and travels in every release.
    pub fn new(code: RefusalCode, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        detail.truncate(detail.floor_char_boundary(REASON_BYTES_MAX));
        // A cut text keeps its capacity, and releases are kept for a while.
        detail.shrink_to_fit();
        Self { code, detail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_code_is_the_same_in_json_and_in_words() {
        for code in RefusalCode::ALL {
            let json = serde_json::to_value(code).expect("a code is a string");
            assert_eq!(json, code.as_str());
        }
    }

    #[test]
    fn a_refusal_repeats_no_more_than_its_bound_of_what_a_stranger_wrote() {
        let long = Refusal::new(RefusalCode::KindUnknown, "é".repeat(REASON_BYTES_MAX));
        assert_eq!(long.detail, "é".repeat(REASON_BYTES_MAX / 2));
        let odd = Refusal::new(RefusalCode::KindUnknown, format!("x{}", long.detail));
        assert_eq!(odd.detail.len(), REASON_BYTES_MAX - 1);
        assert_eq!(Refusal::new(RefusalCode::KindUnknown, "short").detail, "short");
    }
}
