//! What members carried that no honest host takes in at its door.
//!
//! Owns the count of such payloads, and of their bytes, for each seat. What is malformed, too large
//! or not signed by the key that it names can be told from the bytes alone, whatever was judged
//! before: whose event carries it lies about having checked it. A kind that is unknown does not
//! count: a host whose software knows newer rules may take it in honestly. Called by fold.

use std::collections::BTreeMap;

use dagger_payload::id::AuthorIndex;
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::Release;

/// What one seat has carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JunkCount {
    /// Payloads.
    pub payloads: u64,
    /// Bytes of their documents.
    pub bytes: u64,
}

/// By seat; those without any are left out.
#[derive(Debug, Clone, Default)]
pub(super) struct Junk(BTreeMap<AuthorIndex, JunkCount>);

impl Junk {
    /// A payload was refused by `code`.
    pub(super) fn note(&mut self, release: &Release, code: RefusalCode) {
        if !is_junk(code) {
            return;
        }
        let count = self.0.entry(release.ordered.author).or_default();
        let bytes = u64::try_from(release.ordered.payload.bytes.len()).unwrap_or(u64::MAX);
        count.payloads = count.payloads.saturating_add(1);
        count.bytes = count.bytes.saturating_add(bytes);
    }

    /// Each seat that carried any.
    pub(super) fn counts(&self) -> impl Iterator<Item = (AuthorIndex, JunkCount)> {
        self.0.iter().map(|(author, count)| (*author, *count))
    }
}

fn is_junk(code: RefusalCode) -> bool {
    matches!(
        code,
        RefusalCode::SignatureInvalid
            | RefusalCode::PayloadMalformed
            | RefusalCode::PayloadTooLarge
            | RefusalCode::SignerUnsupported
    )
}
