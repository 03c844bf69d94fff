//! What the controller is told by the half of the agent that follows the ledger, and what it shows.
//!
//! Owns only these shapes. Made by whoever follows the ledger, read by the controller.

use dagger_api::Sight;
use dagger_payload::id::{CommitIndex, Generation, LedgerTime, SnapshotId, VmId, VolumeId};
use dagger_payload::object::{Host, Image, Vm};
use dagger_payload::volume::Volume;

/// What the controller is told, in order of commits. Everything in it is sealed by the processor
/// and attested by a quorum, as checked by the agent itself.
#[derive(Debug, Clone)]
pub enum Order {
    /// The new version of a VM whose placement names this host, or named it before.
    Vm(Box<AttestedVm>),
    /// The new version of a volume of this host.
    Volume(Box<AttestedVolume>),
    /// The new version of a host: this one's own object says its guests' subnet, among others;
    /// those of others say where they serve images.
    Host(Box<Host>),
    /// The new version of a registered image: where its file may be had.
    Image(Box<Image>),
    /// Ledger time moved on (with each attested commit).
    LedgerTime(LedgerTime),
    /// The history up to this commit has been told; before the first of these nothing is done to
    /// any machine.
    CaughtUp(CommitIndex),
    /// What the ledger shows is older than what this host has seen before: nothing may change until
    /// [`Order::CaughtUp`] comes again. VMs run on.
    Hold(String),
}

/// A version of a VM that a quorum attests.
#[derive(Debug, Clone)]
pub struct AttestedVm {
    /// The whole object.
    pub vm: Vm,
    /// The commit that made this version.
    pub commit: CommitIndex,
}

/// A version of a volume that a quorum attests.
#[derive(Debug, Clone)]
pub struct AttestedVolume {
    /// The whole object.
    pub volume: Volume,
    /// The commit that made this version.
    pub commit: CommitIndex,
}

/// What a report is about: a later one takes the place of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReportSubject {
    /// A VM.
    Vm(VmId),
    /// A volume.
    Volume(VolumeId),
    /// A volume's snapshot.
    Snapshot(VolumeId, SnapshotId),
}

impl std::fmt::Display for ReportSubject {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vm(vm) => write!(formatter, "VM {vm}"),
            Self::Volume(volume) => write!(formatter, "volume {volume}"),
            Self::Snapshot(volume, snapshot) => {
                write!(formatter, "snapshot {snapshot} of volume {volume}")
            }
        }
    }
}

/// What is seen of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSight {
    /// What the hypervisor shows.
    pub sight: Sight,
    /// The generation that was carried out last.
    pub applied_generation: Option<Generation>,
    /// Why it is not as wanted, if so.
    pub reason: Option<String>,
    /// It waits for its image to be fetched.
    pub awaits_image: bool,
}
