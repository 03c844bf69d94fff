//! Bodies of `volume.snapshot`, `volume.restore`, `volume.clone`, `snapshot.delete` and
//! `report.snapshot`: what a volume held at a time, kept.
//!
//! Owns their fields and ranges. Judged by `dagger-processor`'s rules of volumes' snapshots.

use serde::{Deserialize, Serialize};

use super::volume::{VolumePhase, require_size};
use super::{Checked, require};
use crate::id::{Generation, SnapshotId, VolumeId};
use crate::limits::REASON_BYTES_MAX;
use crate::name::Name;
use crate::refusal::Refusal;

/// `volume.snapshot`, signed by the account: what is on the volume now is kept beside it, on the
/// same host, and never changes again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSnapshot {
    /// Of which volume; no VM may use it.
    pub volume: VolumeId,
    /// Unique among the account's snapshots.
    pub name: Name,
    /// Refuse with `conflict` unless the volume is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// `volume.restore`, signed by the account: the volume holds again what the snapshot does. What it
/// held goes into quarantine; its size stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRestore {
    /// Which volume; no VM may use it.
    pub volume: VolumeId,
    /// Which of its snapshots.
    pub snapshot: SnapshotId,
    /// Refuse with `conflict` unless the volume is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// `volume.clone`, signed by the account: a new volume on the same host that begins with what the
/// snapshot holds, and depends on it no more once it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeClone {
    /// Name of the new volume, unique among the account's volumes.
    pub name: Name,
    /// Of which volume's snapshot; a VM may use that volume meanwhile.
    pub volume: VolumeId,
    /// Which of its snapshots.
    pub snapshot: SnapshotId,
    /// Size of the new volume, in GiB: no less than the snapshot's.
    pub size_gib: u64,
}

/// `snapshot.delete`, signed by the account: its file goes into quarantine. The volume, and what
/// was made from the snapshot, stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotDelete {
    /// Of which volume; a VM may use it meanwhile.
    pub volume: VolumeId,
    /// Which of its snapshots.
    pub snapshot: SnapshotId,
}

/// `report.snapshot`, signed with the host's agent key; sent on change only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportSnapshot {
    /// Of which volume.
    pub volume: VolumeId,
    /// Which of its snapshots.
    pub snapshot: SnapshotId,
    /// What happened: its file is there, cannot be brought there, or is in quarantine.
    pub phase: VolumePhase,
    /// Why, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Checked for VolumeSnapshot {}

impl Checked for VolumeRestore {}

impl Checked for VolumeClone {
    fn check(&self) -> Result<(), Refusal> {
        require_size(self.size_gib)
    }
}

impl Checked for SnapshotDelete {}

impl Checked for ReportSnapshot {
    fn check(&self) -> Result<(), Refusal> {
        let reason = self.reason.as_ref().map_or(0, String::len);
        require(reason <= REASON_BYTES_MAX, "reason: at most 512 bytes")
    }
}
