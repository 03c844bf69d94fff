//! Shapes of what a host shows to, and takes from, whoever operates it.
//!
//! Owns names and units only, like the rest of this package.

use dagger_payload::id::{Generation, HostId, VmId, VolumeId};
use dagger_payload::kind::StopManner;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Sight;

/// `GET /v1/fsck`: what on the answering host has no owner, and which owner lacks what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsckView {
    /// The host that was looked at.
    pub host: HostId,
    /// What was found; empty if all is in order.
    pub findings: Vec<FsckFinding>,
    /// What could not be seen, and why: nothing is said about it.
    pub unknown: Vec<String>,
    /// VMs and volumes that belong here.
    pub owners: u64,
    /// Domains or units that stand here under names of ours.
    pub machines: u64,
    /// Disks, seeds and volumes that are here.
    pub files: u64,
    /// Files in quarantine. Those of what was deleted go after the retention time, if the operator
    /// gave one; all others only by his hand.
    pub quarantined: u64,
    /// Below which directory of the host they are, in folders that are called `quarantine`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_directory: Option<String>,
}

impl FsckView {
    /// Nothing was looked at yet.
    pub fn of(host: HostId) -> Self {
        let (findings, unknown) = (Vec::new(), Vec::new());
        Self {
            host,
            findings,
            unknown,
            owners: 0,
            machines: 0,
            files: 0,
            quarantined: 0,
            storage_directory: None,
        }
    }
}

/// One finding of [`FsckView`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsckFinding {
    /// What it is.
    pub kind: FsckKind,
    /// The VM that it is named after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmId>,
    /// The volume that it is named after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeId>,
    /// The file, or what is known besides.
    pub detail: String,
}

/// Kinds of [`FsckFinding`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FsckKind {
    /// A network card, or filters, of a VM that does not belong here.
    CardWithoutOwner,
    /// A disk or seed of a VM, or a volume, that does not belong here.
    DiskWithoutOwner,
    /// A domain or unit, tagged as ours, of a VM that does not belong here.
    MachineWithoutOwner,
    /// A domain or unit under a name of ours that is not ours.
    MachineForeign,
    /// A VM or volume that was made here and has no disk.
    OwnerWithoutDisk,
    /// A VM that was made here and has no domain or unit.
    OwnerWithoutMachine,
    /// An entry of the disks' directory whose name nobody here gives.
    FileForeign,
    /// A domain that carries our tags under another name, or a unit or process of ours without its
    /// directory.
    MachineMisplaced,
    /// What a guest said, of a VM that does not belong here.
    ConsoleWithoutOwner,
    /// An image file that no registered image stands for.
    ImageUnregistered,
    /// A file in quarantine of something whose deletion this host does not know: it stays until the
    /// operator removes it.
    QuarantineWithoutProof,
}

/// `POST /v1/vms/{vm}/local-stop` (Unix socket only): the operator of a host switches a machine
/// off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LocalStop {
    /// Why; the host reports it to the ledger, where everybody reads it.
    pub reason: String,
    /// How; gracefully if not given.
    #[serde(default)]
    pub manner: StopManner,
}

/// The answer: it is written down, and what is seen of the machine now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LocalStopView {
    /// Which.
    pub vm: VmId,
    /// It stays off until its owner asks for something that makes a higher generation.
    pub generation: Generation,
    /// Whether it is off.
    pub sight: Sight,
}
