//! Stable codes for everything that is refused because the outside is wrong.
//!
//! Owns the codes and, for each, the rule behind it and what the sender should change. Never
//! carries a transient failure (those are *unavailable* and are retried). Called by the judge, the
//! ledger's door, the API (problem+json) and `daggerctl`.

use serde::{Deserialize, Serialize};

use crate::limits::REASON_BYTES_MAX;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal,
        $rule:literal, $advice:literal;)*) => {
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

            /// The rule that was broken, as a sentence.
            pub fn rule(self) -> &'static str {
                match self { $(Self::$name => $rule,)* }
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
    PayloadTooLarge = 0, "payload_too_large",
        "A signed document has at most 64 KiB.",
        "Keep the document within 64 KiB.";
    /// Not in the strict JSON subset, an unknown or missing field, or a value out of range.
    PayloadMalformed = 1, "payload_malformed",
        "A document is strict JSON: known fields once each, values in their range, nothing else.",
        "Correct the field that the detail names; `daggerctl` writes well-formed documents.";
    /// A kind that no rule in force knows.
    KindUnknown = 2, "kind_unknown",
        "Only kinds that the rules in force know are carried out; others are refused for ever.",
        "Use a kind that the API document lists, or upgrade the hosts.";
    /// Names another cluster's genesis.
    ClusterWrong = 3, "cluster_wrong",
        "A document counts only in the cluster whose genesis it names.",
        "Put this cluster's id into `cluster`; GET /v1/cluster tells it.";
    /// The signature does not verify under the key that the payload names.
    SignatureInvalid = 4, "signature_invalid",
        "A document counts only with a signature of the key that it names, over exactly its bytes.",
        "Sign exactly the bytes that you send: ssh-keygen -Y sign -n dagger -f KEY FILE.";
    /// The key may not sign (weak, hardware, wrong type).
    SignerUnsupported = 5, "signer_unsupported",
        "Signers are plain ssh-ed25519 keys that nobody else could also sign for.",
        "Sign with a plain ssh-ed25519 key.";
    /// `not_after_ms` has passed in ledger time.
    Expired = 6, "expired",
        "A document counts only until its own `not_after_ms`, in ledger time.",
        "Make and sign the request again with a later `not_after_ms`.";
    /// `not_after_ms` lies more than a day ahead.
    NotAfterTooFar = 7, "not_after_too_far",
        "A document counts for at most 24 hours of ledger time.",
        "Choose a `not_after_ms` within 24 hours of ledger time.";
    /// The same bytes were ordered before.
    Duplicate = 8, "duplicate",
        "The same bytes are carried out once.",
        "Nothing: the first copy counts; look its digest up.";
    /// The signer has no live grant and is neither operator nor host.
    AccountUnknown = 9, "account_unknown",
        "Only operators, hosts and accounts with a live grant may fill the ledger.",
        "Ask an operator for a grant: daggerctl account grant.";
    /// The signer is known but may not do this.
    NotAuthorized = 10, "not_authorized",
        "Owners sign for their objects, operators for their hosts, hosts for their reports.",
        "Sign with the key of whom the rule or the detail names: --key FILE.";
    /// No such object.
    NotFound = 11, "not_found",
        "A change names something that is there.",
        "Check the name, id or key that the detail names.";
    /// The name is taken in this account.
    NameTaken = 12, "name_taken",
        "A name stands for one thing of an account, a publisher or the cluster.",
        "Choose another name, or delete the object that has it.";
    /// More than the account's grants allow.
    GrantExceeded = 13, "grant_exceeded",
        "What an account takes stays within its live grants, of each operator and in all.",
        "Ask for less, delete something, or ask for a larger grant.";
    /// No host that may be used has room and fits.
    NoHostFits = 14, "no_host_fits",
        "A VM goes to a host that has room, meets its conditions and was granted to its account.",
        "Ask for less, drop a constraint, or ask further operators.";
    /// The image is not registered, or differs from what was registered.
    ImageUnknown = 15, "image_unknown",
        "A VM is made only of a registered image, named with its digest, format and size.",
        "Register the image, or copy digest and size from `image ls`.";
    /// The object changed since the generation that the request expects.
    Conflict = 16, "conflict",
        "A change that names a version counts for that version alone, a report for what is placed.",
        "Look at the object again and repeat the request if it still applies.";
    /// The object is not in a state in which this is possible.
    StateWrong = 17, "state_wrong",
        "Each change has states in which it is possible.",
        "Wait for, or undo, what the detail names.";
    /// Too many bytes of this account, or of this key, wait to be ordered.
    TooMuchUnordered = 18, "too_much_unordered",
        "The documents of one account that wait for their order are bounded.",
        "Wait until earlier requests are ordered.";
    /// A number is outside what any object may have.
    LimitExceeded = 19, "limit_exceeded",
        "Every number, list and count has a range that holds for everybody.",
        "Stay within the limit that the detail names.";
    /// The object exists already, unchanged.
    AlreadyExists = 20, "already_exists",
        "What is there already is not made a second time.",
        "Nothing, or change what you ask for.";
    /// A local rule of the placed host's operator refuses it.
    HostPolicy = 21, "host_policy",
        "A host's operator may refuse a VM before his host has accepted it, publicly and signed.",
        "Choose another host, or ask its operator.";
    /// The operator of the VM's host took his grant back, or its time has passed.
    GrantEnded = 22, "grant_ended",
        "A grant that was taken back or has passed starts nothing new; what runs goes on.",
        "Ask that operator for a new grant; the VM can still be stopped and deleted.";
    /// The VM is protected against deletion.
    Protected = 23, "protected",
        "What is protected is not deleted.",
        "Unprotect it first: daggerctl vm unprotect VM.";
    /// One operator would hold more votes than may be false.
    Unbalanced = 24, "unbalanced",
        "From four operators on none holds more votes than may be false.",
        "Change other voters in the same proposal, so that no operator holds more than f votes.";
    /// So many requests of the signer are remembered, until they expire, that no more are taken.
    TooManyRemembered = 25, "too_many_remembered",
        "Of one signer so many documents are remembered at a time as the limits say.",
        "Wait until earlier requests have expired; give the next ones an earlier `not_after_ms`.";
    /// A registered file is named for what it is not: a kernel as a disk, a disk as a kernel.
    ImageUseWrong = 26, "image_use_wrong",
        "A disk begins with a disk image; what is booted directly was registered as a kernel.",
        "Name an image of the right format; `daggerctl image ls` shows the format of each.";
    /// So much changed with this commit, or was looked at for it, that nothing more may.
    CommitFull = 27, "commit_full",
        "What one commit changes, and what is looked at for an account with it, is bounded.",
        "Send the same request again: it left no trace.";
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
    fn every_code_says_which_rule_was_broken_and_what_to_do() {
        let mut rules: Vec<_> = RefusalCode::ALL.iter().map(|code| code.rule()).collect();
        assert!(rules.iter().all(|rule| rule.len() > 20 && rule.ends_with('.')), "{rules:?}");
        assert!(RefusalCode::ALL.iter().all(|code| code.advice().ends_with('.')));
        rules.sort_unstable();
        rules.dedup();
        assert_eq!(rules.len(), RefusalCode::ALL.len(), "two codes for one rule");
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
