//! JSON shape of the ordered history as an auditor reads it.
//!
//! Owns what is shown of each payload. Never decides.

use dagger_payload::id::{CommitIndex, LedgerTime, PayloadDigest, Position};
use dagger_payload::name::Name;
use dagger_payload::refusal::Refusal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Attested;

/// `GET /v1/log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogView {
    /// What the reader may see of that part of the history, by position.
    pub entries: Vec<LogEntry>,
    /// From where to go on, if there is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Position>,
}

/// One ordered payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// Its place for ever.
    pub position: Position,
    /// The commit that ordered it.
    pub commit: CommitIndex,
    /// The commit's ledger time.
    pub ledger_time: LedgerTime,
    /// Its identity.
    pub digest: PayloadDigest,
    /// Its kind; none when it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Who signed it, as an OpenSSH public key; none when nobody is proven to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// Who that is: `account ...`, `operator NAME`, `host NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer_name: Option<String>,
    /// Name of the host whose event carried it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried_by: Option<Name>,
    /// Why it was refused; none when it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// Whether a quorum attests it.
    pub attested: Attested,
}
