//! In the end everything has an owner: each machine, disk, seed and card a VM that its host
//! carries, each volume and snapshot an order that wants it (or cannot be carried out, and says
//! so).

use dagger_payload::id::VmId;
use dagger_payload::object::{Placement, VmState};
use dagger_payload::volume::{VolumeState, VolumeWanted};

use super::super::host::Host;
use super::super::metal::Standing;
use super::Scene;

pub(super) fn check(scene: &Scene<'_>) -> Result<(), (usize, String)> {
    for (index, host) in scene.hosts.iter().enumerate() {
        vms(scene, host).and_then(|()| volumes(scene, host)).map_err(|why| (index, why))?;
    }
    Ok(())
}

fn vms(scene: &Scene<'_>, host: &Host) -> Result<(), String> {
    let is_ours = |standing: &Standing| matches!(standing, Standing::Ours(_));
    let machines = host.metal.standing.iter().filter(|(_, one)| is_ours(one)).map(|(vm, _)| vm);
    let things = machines.map(|vm| ("a machine", vm));
    let things = things.chain(host.metal.disks.keys().map(|vm| ("a disk", vm)));
    let things = things.chain(host.metal.seeds.iter().map(|vm| ("a seed", vm)));
    let things = things.chain(host.metal.cards.iter().map(|vm| ("a card", vm)));
    let mut things = things.chain(host.journal.keys().map(|vm| ("a record", vm)));
    match things.find(|(_, vm)| !is_carried(scene, host, **vm)) {
        Some((what, vm)) => Err(format!("{what} of VM {vm} is left, and nobody wants it")),
        None => Ok(()),
    }
}

fn is_carried(scene: &Scene<'_>, host: &Host, vm: VmId) -> bool {
    scene.court.vms.get(&vm).is_some_and(|vm| {
        let is_here = matches!(vm.placement, Placement::Accepted { host: at, .. } if at == host.id);
        is_here && vm.state() != VmState::Deleted
    })
}

fn volumes(scene: &Scene<'_>, host: &Host) -> Result<(), String> {
    for id in host.metal.volumes.keys() {
        let wanted = scene
            .court
            .volumes
            .get(id)
            .filter(|volume| volume.host == host.id && volume.state() != VolumeState::Deleted);
        let Some(volume) = wanted else {
            return Err(format!("volume {id} is left, and nobody wants it"));
        };
        let said = volume.reported.as_ref().and_then(|report| report.reason.as_ref());
        if volume.wanted == VolumeWanted::Deleted && said.is_none() {
            return Err(format!("volume {id} is to be gone, and is here"));
        }
    }
    for (volume, snapshot) in host.metal.snapshots.keys() {
        let known = scene.court.volumes.get(volume);
        if known.is_none_or(|volume| volume.snapshot(*snapshot).is_none()) {
            return Err(format!("snapshot {snapshot} of volume {volume} is left"));
        }
    }
    Ok(())
}
