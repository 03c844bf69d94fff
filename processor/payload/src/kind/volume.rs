//! Bodies of `volume.*` and `report.volume`: disks that outlive the machines that use them.
//!
//! Owns their fields and ranges. Judged by `dagger-processor`'s rules of volumes.

use serde::{Deserialize, Serialize};

use super::{Checked, Protection, require};
use crate::id::{Generation, HostId, VmId, VolumeId};
use crate::limits::{REASON_BYTES_MAX, VOLUME_GIB_MAX};
use crate::name::Name;
use crate::refusal::Refusal;

/// `volume.create`, signed by an account: an empty disk on a host, where VMs on that host may use
/// it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeCreate {
    /// Unique among the account's volumes.
    pub name: Name,
    /// Its size, in GiB.
    pub size_gib: u64,
    /// Where it stays for all its life.
    pub host: HostId,
}

/// `volume.delete`, signed by the account: its disk goes into quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeDelete {
    /// Which volume; no VM may use it.
    pub volume: VolumeId,
    /// Refuse with `conflict` unless the volume is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// `volume.attach`, signed by the account: the VM gets the volume as one more disk, at once if it
/// runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeAttach {
    /// Which volume; no VM may use it.
    pub volume: VolumeId,
    /// Which VM, on the volume's host.
    pub vm: VmId,
    /// Refuse with `conflict` unless the VM is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// `volume.detach`, signed by the account: the VM loses that disk, at once if it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeDetach {
    /// Which volume.
    pub volume: VolumeId,
    /// Refuse with `conflict` unless the VM that uses it is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// `volume.grow`, signed by the account: a larger disk with the same contents, at once if a VM has
/// it and runs. It never shrinks: what is cut off would be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeGrow {
    /// Which volume.
    pub volume: VolumeId,
    /// Its new size, in GiB: more than now.
    pub size_gib: u64,
    /// Refuse with `conflict` unless the volume is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// `volume.protect`, signed by the account: whether the volume may be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeProtect {
    /// Which volume.
    pub volume: VolumeId,
    /// What it becomes.
    pub protection: Protection,
    /// Refuse with `conflict` unless the volume is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// What a host says about a volume of its own.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum VolumePhase {
    /// Its disk is there.
    #[n(0)]
    Ready,
    /// It cannot be brought to what is wanted; the reason says why.
    #[n(1)]
    Degraded,
    /// Its disk is in quarantine.
    #[n(2)]
    Deleted,
}

/// `report.volume`, signed with the host's agent key; sent on change only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportVolume {
    /// Which volume.
    pub volume: VolumeId,
    /// The generation that this is about.
    pub generation: Generation,
    /// What happened.
    pub phase: VolumePhase,
    /// Why, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

pub(super) fn require_size(size_gib: u64) -> Result<(), Refusal> {
    require((1..=VOLUME_GIB_MAX).contains(&size_gib), "size_gib: 1 to 65536")
}

impl Checked for VolumeCreate {
    fn check(&self) -> Result<(), Refusal> {
        require_size(self.size_gib)
    }
}

impl Checked for VolumeGrow {
    fn check(&self) -> Result<(), Refusal> {
        require_size(self.size_gib)
    }
}

impl Checked for VolumeDelete {}

impl Checked for VolumeProtect {}

impl Checked for VolumeAttach {}

impl Checked for VolumeDetach {}

impl Checked for ReportVolume {
    fn check(&self) -> Result<(), Refusal> {
        let reason = self.reason.as_ref().map_or(0, String::len);
        require(reason <= REASON_BYTES_MAX, "reason: at most 512 bytes")
    }
}
