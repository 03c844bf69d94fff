//! Bodies of `report.*`: what hosts say that they did or saw.
//!
//! Owns their fields and ranges. Judged by `dagger-processor`'s rules of reports.

use serde::{Deserialize, Serialize};

use super::{Checked, require};
use crate::id::{Generation, VmId};
use crate::limits::REASON_BYTES_MAX;
use crate::name::SshKeyLine;
use crate::refusal::Refusal;

/// What a host says it did or saw.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ReportPhase {
    /// The placed host takes the VM; it acts only once this is ordered.
    #[n(0)]
    Accepted,
    /// The placed host refuses by its operator's local policy; the next host is tried.
    #[n(1)]
    Refused,
    /// Seen running.
    #[n(2)]
    Running,
    /// Seen stopped (asked for or not: compare with what is wanted).
    #[n(3)]
    Stopped,
    /// Cannot be brought to what is wanted; the reason says why.
    #[n(4)]
    Degraded,
    /// Undefined, its disk in quarantine.
    #[n(5)]
    Deleted,
    /// Seen in memory, paused.
    #[n(6)]
    Paused,
}

/// `report.vm`, signed with the host's agent key; sent on change only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportVm {
    /// Which VM.
    pub vm: VmId,
    /// The generation that this is about.
    pub generation: Generation,
    /// What happened.
    pub phase: ReportPhase,
    /// Why, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The guest's SSH host key, once known, so that the first log-in can be checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_host_key: Option<SshKeyLine>,
}

impl Checked for ReportVm {
    fn check(&self) -> Result<(), Refusal> {
        let reason = self.reason.as_ref().map_or(0, String::len);
        require(reason <= REASON_BYTES_MAX, "reason: at most 512 bytes")
    }
}
