//! Volumes as the judged state holds them: what is wanted, where, who uses them, what was reported.
//!
//! Owns their shape and what follows from it alone. Never decides a change: the judge in
//! `dagger-processor` does. Called by the processor (writes), the agent (folds, carries out, shows)
//! and `daggerctl` (shows). CBOR maps with the keys below.

use serde::{Deserialize, Serialize};

use crate::id::{AccountId, Generation, HostId, LedgerTime, SnapshotId, VmId, VolumeId};
use crate::kind::{Capacity, Protection, VolumePhase};
use crate::limits::VM_VOLUMES_MAX;
use crate::name::Name;
use crate::object::Cause;
use crate::usage::Meter;

/// A volume that a VM uses.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmVolume {
    /// Which volume.
    #[n(0)]
    pub volume: VolumeId,
    /// Which of the machine's places for volumes, from 0; it keeps it for as long as it is used.
    #[n(1)]
    pub slot: u8,
    /// The size that the machine is to see, in GiB.
    #[n(2)]
    pub size_gib: u64,
}

/// The lowest place for volumes that none of `volumes` takes; `None` when all are taken.
pub fn free_slot(volumes: &[VmVolume]) -> Option<u8> {
    (0..VM_VOLUMES_MAX).find(|slot| volumes.iter().all(|used| used.slot != *slot))
}

/// What the owner wants of a volume.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum VolumeWanted {
    /// It should be there.
    #[n(0)]
    Kept,
    /// It should be gone.
    #[n(1)]
    Deleted,
}

/// Who may write to a volume: never two at a time.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case", tag = "status")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum VolumeUse {
    /// Nobody.
    #[n(0)]
    Free {},
    /// This VM.
    #[n(1)]
    Attached {
        /// Which.
        #[n(0)]
        vm: VmId,
    },
    /// This VM is to lose it, and its host has not yet said that it did.
    #[n(2)]
    Detaching {
        /// Which.
        #[n(0)]
        vm: VmId,
    },
}

impl VolumeUse {
    /// The VM that may write to it.
    pub fn vm(&self) -> Option<VmId> {
        match self {
            Self::Free {} => None,
            Self::Attached { vm } | Self::Detaching { vm } => Some(*vm),
        }
    }
}

/// Whether the volume's disk was ever made.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum VolumeDisk {
    /// Its host has not said so: it may be made, and nobody can have written to it.
    #[n(0)]
    NotReported,
    /// Its host said so: from then on it may only be found, never made anew.
    #[n(1)]
    Made,
    /// Its host left the cluster with its operator, who did not give it up: it is out of reach,
    /// with its snapshots, and can only be deleted.
    #[n(2)]
    Lost,
}

/// The last thing that the host said about a volume.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VolumeReport {
    /// About which generation.
    #[n(0)]
    pub generation: Generation,
    /// What.
    #[n(1)]
    pub phase: VolumePhase,
    /// Why.
    #[n(2)]
    pub reason: Option<String>,
    /// The report itself.
    #[n(3)]
    pub cause: Cause,
}

/// The last thing that the host said about a snapshot.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SnapshotReport {
    /// What.
    #[n(0)]
    pub phase: VolumePhase,
    /// Why.
    #[n(1)]
    pub reason: Option<String>,
    /// The report itself.
    #[n(2)]
    pub cause: Cause,
}

/// A snapshot of a volume: what was on it, in a file of its own that never changes.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cbor(map)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Snapshot {
    /// Its id.
    #[n(0)]
    pub id: SnapshotId,
    /// Its name, unique among the account's snapshots.
    #[n(1)]
    pub name: Name,
    /// The volume's size when it was asked for, in GiB.
    #[n(2)]
    pub size_gib: u64,
    /// What asked for it.
    #[n(3)]
    pub created: Cause,
    /// When, in ledger time. It holds what was on the volume then, or, if a VM had the volume, at a
    /// moment between then and the report that it is ready, as after a power cut.
    #[n(4)]
    pub created_at: LedgerTime,
    /// What its owner wants.
    #[n(5)]
    pub wanted: VolumeWanted,
    /// Whether its file was made.
    #[n(6)]
    pub disk: VolumeDisk,
    /// The host's last report.
    #[n(7)]
    pub reported: Option<SnapshotReport>,
}

/// A snapshot's state in one word; one that is gone is in no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum SnapshotState {
    /// Its host has not made it yet.
    Pending,
    /// Volumes can be put back to it, and made from it.
    Ready,
    /// It cannot be made, or is missing; see the reason.
    Degraded,
    /// To be deleted, and not yet gone.
    Deleting,
}

impl Snapshot {
    /// The state in one word.
    pub fn state(&self) -> SnapshotState {
        let said = self.reported.as_ref().map(|report| report.phase);
        match (self.wanted, said, self.disk) {
            (VolumeWanted::Deleted, _, _) => SnapshotState::Deleting,
            (VolumeWanted::Kept, Some(VolumePhase::Degraded), _)
            | (VolumeWanted::Kept, _, VolumeDisk::Lost) => SnapshotState::Degraded,
            (VolumeWanted::Kept, _, VolumeDisk::Made) => SnapshotState::Ready,
            (VolumeWanted::Kept, _, VolumeDisk::NotReported) => SnapshotState::Pending,
        }
    }

    /// Whether its volume's contents are still to be copied.
    pub fn is_due(&self) -> bool {
        (self.wanted, self.disk) == (VolumeWanted::Kept, VolumeDisk::NotReported)
    }
}

/// What a volume began with.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Origin {
    /// The volume whose snapshot it was; it may be gone by now.
    #[n(0)]
    pub volume: VolumeId,
    /// The snapshot; it may be gone by now.
    #[n(1)]
    pub snapshot: SnapshotId,
}

/// A volume.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cbor(map)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Volume {
    /// Its id.
    #[n(0)]
    pub id: VolumeId,
    /// Whose it is.
    #[n(1)]
    pub account: AccountId,
    /// Its name, unique among the account's volumes.
    #[n(2)]
    pub name: Name,
    /// Grows with every accepted change of the disk and of its protection; who uses it and reports
    /// do not change it.
    #[n(3)]
    pub generation: Generation,
    /// What created it.
    #[n(4)]
    pub created: Cause,
    /// What made this generation.
    #[n(5)]
    pub changed: Cause,
    /// What its owner wants.
    #[n(6)]
    pub wanted: VolumeWanted,
    /// Its size, in GiB.
    #[n(7)]
    pub size_gib: u64,
    /// Where it is.
    #[n(8)]
    pub host: HostId,
    /// Who uses it.
    #[n(9)]
    pub used_by: VolumeUse,
    /// Whether its disk was made.
    #[n(10)]
    pub disk: VolumeDisk,
    /// The host's last report.
    #[n(11)]
    pub reported: Option<VolumeReport>,
    /// What it has used.
    #[n(12)]
    pub meter: Meter,
    /// Whether it may be deleted.
    #[n(13)]
    pub protection: Protection,
    /// Its snapshots, in the order in which they were asked for; at most `VOLUME_SNAPSHOTS_MAX`.
    #[n(14)]
    #[cbor(default, skip_if = "Vec::is_empty")]
    pub snapshots: Vec<Snapshot>,
    /// The snapshot to which it is to be put back, until its host says that it is.
    #[n(15)]
    pub restoring: Option<SnapshotId>,
    /// The snapshot that it began with, unless it began empty.
    #[n(16)]
    pub origin: Option<Origin>,
}

/// A volume's state in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum VolumeState {
    /// Its host has not made it yet, or is at work on it.
    Pending,
    /// It can be attached.
    Ready,
    /// A VM uses it.
    Attached,
    /// A VM is to lose it and has not yet.
    Detaching,
    /// It cannot be brought to what is wanted; see the reason.
    Degraded,
    /// To be deleted, and not yet gone.
    Deleting,
    /// Gone; its disk is in quarantine.
    Deleted,
}

impl Volume {
    /// What it takes of a host and of a grant: itself and each snapshot, as if they were full;
    /// nothing once it is lost.
    pub fn size(&self) -> Capacity {
        if self.disk == VolumeDisk::Lost {
            return Capacity::default();
        }
        let snapshots = self.snapshots.iter().map(|snapshot| snapshot.size_gib);
        let disk_gib = snapshots.fold(self.size_gib, u64::saturating_add);
        Capacity { cpus: 0, memory_mib: 0, disk_gib }
    }

    /// One of its snapshots.
    pub fn snapshot(&self, id: SnapshotId) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.id == id)
    }

    /// The snapshot that is still to be made of what is on the volume, which nobody gets, and which
    /// does not grow, before that.
    pub fn due_snapshot(&self) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.is_due())
    }

    /// The state in one word.
    pub fn state(&self) -> VolumeState {
        let current = |phase: VolumePhase| {
            let said = self.reported.as_ref().map(|report| (report.phase, report.generation));
            said == Some((phase, self.generation))
        };
        let is_lost = self.disk == VolumeDisk::Lost;
        match (self.wanted, self.used_by) {
            (VolumeWanted::Kept, _) if is_lost => VolumeState::Degraded,
            (VolumeWanted::Deleted, _) if is_lost || current(VolumePhase::Deleted) => {
                VolumeState::Deleted
            }
            (VolumeWanted::Deleted, _) => VolumeState::Deleting,
            (VolumeWanted::Kept, VolumeUse::Detaching { .. }) => VolumeState::Detaching,
            (VolumeWanted::Kept, _) if current(VolumePhase::Degraded) => VolumeState::Degraded,
            (VolumeWanted::Kept, VolumeUse::Attached { .. }) => VolumeState::Attached,
            (VolumeWanted::Kept, VolumeUse::Free {}) => match self.due_snapshot() {
                Some(due) if due.state() == SnapshotState::Degraded => VolumeState::Degraded,
                None if current(VolumePhase::Ready) => VolumeState::Ready,
                Some(_) | None => VolumeState::Pending,
            },
        }
    }
}
