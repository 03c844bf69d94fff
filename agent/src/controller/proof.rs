//! Proofs that a machine may be switched off or removed.
//!
//! Owns the only way to make them: from an attested version of the VM whose accepted placement
//! names this host. A function that destroys takes one of these, never an id (R9). Made by the
//! controller, checked by nobody else.

use dagger_payload::id::{Generation, HostId, PayloadDigest, Position, VmId, VolumeId};
use dagger_payload::object::{Placement, Wanted};
use dagger_payload::volume::{VolumeUse, VolumeWanted};

use crate::handover::{AttestedVm, AttestedVolume};

/// The VM's owner wants it switched off (for good, for a reboot, or gone), and this host has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopProof {
    vm: VmId,
    generation: Generation,
    payload: PayloadDigest,
    position: Position,
}

/// The VM's owner wants it gone, and this host carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteProof(StopProof);

/// The volume's owner wants it gone, no VM uses it, and it is on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeProof(VolumeId);

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
                Some(Self {
                    vm: vm.id,
                    generation: vm.generation,
                    payload: vm.changed.digest,
                    position: vm.changed.position,
                })
            }
            _ => None,
        }
    }

    /// The proof, if `attested` asks for a reboot of the machine that carries generation `carried`.
    pub fn of_reboot(attested: &AttestedVm, here: HostId, carried: Generation) -> Option<Self> {
        let vm = &attested.vm;
        let is_here = matches!(vm.placement, Placement::Accepted { host, .. } if host == here);
        let asked = vm.wanted == Wanted::Running && carried < vm.booted_since;
        (is_here && asked).then_some(Self {
            vm: vm.id,
            generation: vm.generation,
            payload: vm.changed.digest,
            position: vm.changed.position,
        })
    }

    /// Which VM.
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// By which order, for the log.
    pub fn order(&self) -> (Generation, PayloadDigest, Position) {
        (self.generation, self.payload, self.position)
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
