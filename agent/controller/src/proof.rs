//! Proofs that a machine may be switched off or removed.
//!
//! Owns the only way to make them: from an attested version of the VM whose accepted placement
//! names this host, or, to switch off and no more, from the durable word of the host's own operator
//! (R10). A function that destroys takes one of these, never an id (R9). Made by the controller,
//! checked by nobody else.

use dagger_payload::id::{
    AccountId, Generation, HostId, ImageDigest, PayloadDigest, Position, SnapshotId, VmId, VolumeId,
};
use dagger_payload::object::{Placement, VmState, Wanted};
use dagger_payload::volume::{Snapshot, VolumeState, VolumeUse, VolumeWanted};

use crate::order::{AttestedVm, AttestedVolume, ReportSubject};
use crate::record::Record;

/// The VM's owner wants it switched off (for good, for a reboot, or gone), and this host has it; or
/// this host's operator wants it off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopProof {
    vm: VmId,
    generation: Generation,
    authority: Authority,
}

/// Whose word it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Authority {
    /// The owner's, ordered.
    Order { payload: PayloadDigest, position: Position },
    /// The operator's, in this host's journal.
    Operator,
}

impl Authority {
    fn of(attested: &AttestedVm) -> Self {
        let changed = &attested.vm.changed;
        Self::Order { payload: changed.digest, position: changed.position }
    }
}

impl std::fmt::Display for StopProof {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let generation = self.generation;
        match &self.authority {
            Authority::Order { payload, position } => {
                write!(formatter, "generation {generation} by payload {payload} at {}", position.0)
            }
            Authority::Operator => {
                write!(formatter, "this host's operator, at generation {generation}")
            }
        }
    }
}

/// The VM's owner wants it gone, and this host carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteProof {
    stop: StopProof,
    account: AccountId,
}

/// The volume's owner wants it gone, no VM uses it, and it is on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeProof(VolumeId, AccountId);

/// The volume's owner wants it put back to a snapshot, no VM uses it, and it is on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreProof {
    volume: VolumeId,
    snapshot: SnapshotId,
    generation: Generation,
    account: AccountId,
}

/// The snapshot's owner wants it gone, and it is on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotProof(VolumeId, SnapshotId, AccountId);

/// What is left of something may be removed for ever: its owner's accepted deletion, or the putting
/// back of a volume, was carried out here, reported and ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemainsProof {
    subject: Remnant,
    generation: Generation,
    payload: PayloadDigest,
}

/// An image's file may be removed: nothing of this host needs it, and has not for long enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedProof(ImageDigest);

impl UnusedProof {
    /// Made by the collector only.
    pub(super) fn of(image: ImageDigest) -> Self {
        Self(image)
    }

    /// Which image.
    pub fn image(&self) -> ImageDigest {
        self.0
    }
}

/// What something in quarantine is left of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remnant {
    /// What was deleted.
    Of(ReportSubject),
    /// What a volume held before this generation of it put it back.
    Replaced(VolumeId, Generation),
}

impl Remnant {
    /// The volume with which it goes, if that is deleted.
    pub fn of_volume(self) -> Option<VolumeId> {
        match self {
            Self::Of(ReportSubject::Snapshot(volume, _)) | Self::Replaced(volume, _) => {
                Some(volume)
            }
            Self::Of(ReportSubject::Vm(_) | ReportSubject::Volume(_)) => None,
        }
    }
}

impl std::fmt::Display for Remnant {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Of(subject) => subject.fmt(formatter),
            Self::Replaced(volume, generation) => {
                write!(formatter, "volume {volume} before generation {generation}")
            }
        }
    }
}

impl RemainsProof {
    /// The proof, if `attested` is one.
    pub fn of_vm(attested: &AttestedVm, here: HostId) -> Option<Self> {
        let vm = &attested.vm;
        let was_here = matches!(vm.placement, Placement::Accepted { host, .. } if host == here);
        (was_here && vm.state() == VmState::Deleted).then_some(Self {
            subject: Remnant::Of(ReportSubject::Vm(vm.id)),
            generation: vm.generation,
            payload: vm.changed.digest,
        })
    }

    /// The proof, if `attested` is one.
    pub fn of_volume(attested: &AttestedVolume, here: HostId) -> Option<Self> {
        let volume = &attested.volume;
        (volume.host == here && volume.state() == VolumeState::Deleted).then_some(Self {
            subject: Remnant::Of(ReportSubject::Volume(volume.id)),
            generation: volume.generation,
            payload: volume.changed.digest,
        })
    }

    /// The proofs that follow from `after`, the version after `before`: snapshots whose deletion
    /// was reported, and what a volume held that was put back.
    pub fn between(before: &AttestedVolume, after: &AttestedVolume, here: HostId) -> Vec<Self> {
        let (old, new) = (&before.volume, &after.volume);
        if new.host != here || new.id != old.id || after.commit < before.commit {
            return Vec::new();
        }
        let (generation, payload) = (new.generation, new.changed.digest);
        let proof = |subject| Self { subject, generation, payload };
        let is_gone = |snapshot: &&Snapshot| {
            snapshot.wanted == VolumeWanted::Deleted && new.snapshot(snapshot.id).is_none()
        };
        let gone = old.snapshots.iter().filter(is_gone);
        let gone = gone.map(|snapshot| Remnant::Of(ReportSubject::Snapshot(new.id, snapshot.id)));
        let was_put_back = old.restoring.is_some()
            && (new.restoring, new.wanted) == (None, VolumeWanted::Kept)
            && old.generation == new.generation;
        let replaced = was_put_back.then_some(Remnant::Replaced(new.id, old.generation));
        gone.chain(replaced).map(proof).collect()
    }

    /// Of what.
    pub fn subject(&self) -> Remnant {
        self.subject
    }

    /// By which deletion, for the log.
    pub fn order(&self) -> (Generation, PayloadDigest) {
        (self.generation, self.payload)
    }
}

impl VolumeProof {
    /// The proof, if `attested` is one.
    pub fn of(attested: &AttestedVolume, here: HostId) -> Option<Self> {
        let volume = &attested.volume;
        let is_free = volume.used_by == (VolumeUse::Free {});
        let is_proof = is_free && volume.wanted == VolumeWanted::Deleted && volume.host == here;
        is_proof.then_some(Self(volume.id, volume.account))
    }

    /// Which volume.
    pub fn volume(&self) -> VolumeId {
        self.0
    }

    /// Whose it was.
    pub fn account(&self) -> AccountId {
        self.1
    }
}

impl RestoreProof {
    /// The proof, if `attested` is one.
    pub fn of(attested: &AttestedVolume, here: HostId) -> Option<Self> {
        let volume = &attested.volume;
        let is_free = volume.used_by == (VolumeUse::Free {});
        let is_proof = is_free && volume.wanted == VolumeWanted::Kept && volume.host == here;
        let (id, generation, account) = (volume.id, volume.generation, volume.account);
        let proof = |snapshot| Self { volume: id, snapshot, generation, account };
        volume.restoring.filter(|_| is_proof).map(proof)
    }

    /// Which volume.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// To which of its snapshots.
    pub fn snapshot(&self) -> SnapshotId {
        self.snapshot
    }

    /// The generation of the volume that asks for it.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whose it is.
    pub fn account(&self) -> AccountId {
        self.account
    }
}

impl SnapshotProof {
    /// The proof, if `attested` is one.
    pub fn of(attested: &AttestedVolume, here: HostId, snapshot: SnapshotId) -> Option<Self> {
        let volume = &attested.volume;
        let wanted = volume.snapshot(snapshot).map(|snapshot| snapshot.wanted);
        let is_proof = wanted == Some(VolumeWanted::Deleted) && volume.host == here;
        is_proof.then_some(Self(volume.id, snapshot, volume.account))
    }

    /// Of which volume.
    pub fn volume(&self) -> VolumeId {
        self.0
    }

    /// Which snapshot.
    pub fn snapshot(&self) -> SnapshotId {
        self.1
    }

    /// Whose it was.
    pub fn account(&self) -> AccountId {
        self.2
    }
}

impl StopProof {
    /// The proof, if `attested` is one.
    pub fn of(attested: &AttestedVm, here: HostId) -> Option<Self> {
        let vm = &attested.vm;
        match (&vm.placement, vm.wanted) {
            (Placement::Accepted { host, .. }, Wanted::Stopped | Wanted::Deleted)
                if *host == here =>
            {
                let (vm, generation) = (vm.id, vm.generation);
                Some(Self { vm, generation, authority: Authority::of(attested) })
            }
            _ => None,
        }
    }

    /// The proof, if `attested` asks for a reboot of the machine that carries generation `carried`.
    pub fn of_reboot(attested: &AttestedVm, here: HostId, carried: Generation) -> Option<Self> {
        let vm = &attested.vm;
        let is_here = matches!(vm.placement, Placement::Accepted { host, .. } if host == here);
        let asked = vm.wanted == Wanted::Running && carried < vm.booted_since;
        let (vm, generation) = (vm.id, vm.generation);
        (is_here && asked).then(|| Self { vm, generation, authority: Authority::of(attested) })
    }

    /// The proof, if this host's operator has switched the machine of `record` off by hand.
    pub fn of_operator(record: &Record) -> Option<Self> {
        let generation = record.halted_at.as_ref()?.generation;
        Some(Self { vm: record.vm, generation, authority: Authority::Operator })
    }

    /// Which VM.
    pub fn vm(&self) -> VmId {
        self.vm
    }
}

impl DeleteProof {
    /// The proof, if `attested` is one.
    pub fn of(attested: &AttestedVm, here: HostId) -> Option<Self> {
        (attested.vm.wanted == Wanted::Deleted)
            .then(|| StopProof::of(attested, here))
            .flatten()
            .map(|stop| Self { stop, account: attested.vm.account })
    }

    /// Which VM.
    pub fn vm(&self) -> VmId {
        self.stop.vm
    }

    /// What wants to be gone may be switched off.
    pub fn stop(&self) -> &StopProof {
        &self.stop
    }

    /// Whose it was.
    pub fn account(&self) -> AccountId {
        self.account
    }
}
