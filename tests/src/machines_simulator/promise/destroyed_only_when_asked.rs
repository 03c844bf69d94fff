//! Nothing is switched off, undefined or put into quarantine without an ordered and accepted
//! request for that id in that generation (or, to switch off, the word of the host's own operator).

use std::collections::BTreeSet;

use dagger_controller::{Input, VolumeAction};
use dagger_payload::id::{Generation, SnapshotId, VmId, VolumeId};
use dagger_payload::object::{Placement, Wanted};
use dagger_payload::volume::{VolumeUse, VolumeWanted};

use super::super::metal::Deed;
use super::super::work::Work;
use super::{Observed, Scene};

#[derive(Default)]
pub(super) struct Watch {
    /// What operators have switched off by hand, by host.
    by_hand: BTreeSet<(usize, VmId)>,
}

impl Watch {
    pub(super) fn watch(
        &mut self,
        observed: &Observed<'_>,
        scene: &Scene<'_>,
    ) -> Result<(), String> {
        let (deed, work) = match observed {
            Observed::Told(Input::LocalStop(vm, ..)) => {
                self.by_hand.insert((scene.host, *vm));
                return Ok(());
            }
            Observed::Did(deed, work) => (*deed, *work),
            _ => return Ok(()),
        };
        let is_asked = match (*deed, work) {
            (Deed::PoweredOff(vm), Some(Work::Halt(_))) => self.by_hand.contains(&(scene.host, vm)),
            (Deed::PoweredOff(vm), Some(Work::Vm(job))) => {
                is_off_asked(scene, vm, job.tags.generation)
            }
            (Deed::Undefined(vm) | Deed::DiskQuarantined(vm), Some(Work::Vm(job))) => {
                is_deleted(scene, vm, job.tags.generation)
            }
            (Deed::VolumeQuarantined(volume), Some(Work::Volume(job))) => {
                is_volume_deleted(scene, volume, job.volume.generation)
            }
            (Deed::VolumeRestored(volume, snapshot), Some(Work::Volume(job))) => {
                is_restored(scene, (volume, snapshot), job.volume.generation)
            }
            (Deed::SnapshotQuarantined(volume, snapshot), Some(Work::Volume(job))) => {
                matches!(job.action, VolumeAction::QuarantineSnapshot(_))
                    && is_snapshot_deleted(scene, volume, snapshot)
            }
            (
                Deed::PoweredOff(_)
                | Deed::Undefined(_)
                | Deed::DiskQuarantined(_)
                | Deed::VolumeQuarantined(_)
                | Deed::VolumeRestored(..)
                | Deed::SnapshotQuarantined(..),
                _,
            ) => false,
            _ => true,
        };
        if is_asked { Ok(()) } else { Err(format!("{deed:?}, and nobody asked for it")) }
    }
}

fn is_off_asked(scene: &Scene<'_>, id: VmId, generation: Generation) -> bool {
    let versions = scene.court.vm_versions.get(&id).into_iter().flatten();
    let mut versions = versions.filter(|(_, vm)| vm.generation == generation);
    versions.any(|(_, vm)| {
        let is_here =
            matches!(vm.placement, Placement::Accepted { host, .. } if host == scene.here().id);
        is_here
            && match vm.wanted {
                Wanted::Stopped | Wanted::Deleted => true,
                // For a reboot that was asked for.
                Wanted::Running => vm.booted_since > Generation(1),
                Wanted::Paused => false,
            }
    })
}

fn is_deleted(scene: &Scene<'_>, id: VmId, generation: Generation) -> bool {
    let mut versions = scene.court.vm_versions.get(&id).into_iter().flatten();
    versions.any(|(_, vm)| {
        let is_here =
            matches!(vm.placement, Placement::Accepted { host, .. } if host == scene.here().id);
        is_here && (vm.wanted, vm.generation) == (Wanted::Deleted, generation)
    })
}

fn is_volume_deleted(scene: &Scene<'_>, id: VolumeId, generation: Generation) -> bool {
    let mut versions = scene.court.volume_versions.get(&id).into_iter().flatten();
    versions.any(|(_, volume)| {
        let told = (volume.wanted, volume.generation, volume.used_by);
        told == (VolumeWanted::Deleted, generation, VolumeUse::Free {})
    })
}

fn is_restored(
    scene: &Scene<'_>,
    (id, snapshot): (VolumeId, SnapshotId),
    generation: Generation,
) -> bool {
    let mut versions = scene.court.volume_versions.get(&id).into_iter().flatten();
    versions
        .any(|(_, volume)| (volume.restoring, volume.generation) == (Some(snapshot), generation))
}

fn is_snapshot_deleted(scene: &Scene<'_>, id: VolumeId, snapshot: SnapshotId) -> bool {
    let mut versions = scene.court.volume_versions.get(&id).into_iter().flatten();
    versions.any(|(_, volume)| {
        let known = volume.snapshot(snapshot).map(|snapshot| snapshot.wanted);
        known == Some(VolumeWanted::Deleted)
    })
}
