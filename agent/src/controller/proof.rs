//! Proofs that a machine may be switched off or removed.
//!
//! Owns the only way to make them: from an attested version of the VM whose accepted placement
//! names this host, or, to switch off and no more, from the durable word of the host's own operator
//! (R10). A function that destroys takes one of these, never an id (R9). Made by the controller,
//! checked by nobody else.

use dagger_payload::id::{
    Generation, HostId, ImageDigest, PayloadDigest, Position, VmId, VolumeId,
};
use dagger_payload::object::{Placement, VmState, Wanted};
use dagger_payload::volume::{VolumeState, VolumeUse, VolumeWanted};

use crate::handover::{AttestedVm, AttestedVolume, ReportSubject};
use crate::journal::Record;

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
pub struct DeleteProof(StopProof);

/// The volume's owner wants it gone, no VM uses it, and it is on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeProof(VolumeId);

/// What is left of a VM or volume may be removed for ever: its owner's accepted deletion was
/// carried out here, reported and ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemainsProof {
    subject: ReportSubject,
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

impl RemainsProof {
    /// The proof, if `attested` is one.
    pub fn of_vm(attested: &AttestedVm, here: HostId) -> Option<Self> {
        let vm = &attested.vm;
        let was_here = matches!(vm.placement, Placement::Accepted { host, .. } if host == here);
        (was_here && vm.state() == VmState::Deleted).then_some(Self {
            subject: ReportSubject::Vm(vm.id),
            generation: vm.generation,
            payload: vm.changed.digest,
        })
    }

    /// The proof, if `attested` is one.
    pub fn of_volume(attested: &AttestedVolume, here: HostId) -> Option<Self> {
        let volume = &attested.volume;
        (volume.host == here && volume.state() == VolumeState::Deleted).then_some(Self {
            subject: ReportSubject::Volume(volume.id),
            generation: volume.generation,
            payload: volume.changed.digest,
        })
    }

    /// Of what.
    pub fn subject(&self) -> ReportSubject {
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
        is_proof.then_some(Self(volume.id))
    }

    /// Which volume.
    pub fn volume(&self) -> VolumeId {
        self.0
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
            .map(Self)
    }

    /// Which VM.
    pub fn vm(&self) -> VmId {
        self.0.vm
    }

    /// What wants to be gone may be switched off.
    pub fn stop(&self) -> &StopProof {
        &self.0
    }
}
