//! What owners and operators ask for: random payloads about what there is.
//!
//! Owns the draw. Never looks at a host: people see only what is judged. Called by the world.

use dagger_payload::id::AccountId;
use dagger_payload::kind::{
    AccountRevoke, Body, HostChange, Protection, RestartPolicy, SnapshotDelete, StopManner,
    VmChange, VmCreate, VmProtect, VmResize, VmStop, VolumeAttach, VolumeClone, VolumeCreate,
    VolumeDelete, VolumeDetach, VolumeGrow, VolumeProtect, VolumeRestore, VolumeSnapshot,
};
use dagger_payload::object::{Placement, Vm, Wanted};
use dagger_payload::volume::{Volume, VolumeUse, VolumeWanted};

use super::court::{Court, DEVELOPERS, Person, image};
use crate::simulator::random::Random;

/// VMs of one owner that are not wanted gone.
const VMS_MAX: usize = 4;
/// Volumes of one owner that are not wanted gone.
const VOLUMES_MAX: usize = 3;
/// Of the wishes about a volume that could be put back to a snapshot, how many are that.
const RESTORED_PERMILLE: u64 = 150;

/// What somebody asks for now, if he can think of something.
pub(super) fn draw(random: &mut Random, court: &Court, now_ms: u64) -> Option<(Person, Body)> {
    if random.happens(40) {
        return Some(operators_wish(random, court, now_ms));
    }
    let developer = random.index(DEVELOPERS);
    let account = AccountId::of(&Person::Developer(developer).secret().public_key());
    let vms = court.vms.values().filter(|vm| vm.account == account);
    let vms: Vec<&Vm> = vms.filter(|vm| vm.wanted != Wanted::Deleted).collect();
    let volumes = court.volumes.values().filter(|volume| volume.account == account);
    let volumes: Vec<&Volume> =
        volumes.filter(|volume| volume.wanted != VolumeWanted::Deleted).collect();
    let number = court.releases.len();
    let body = match random.below(10) {
        0..=1 if vms.len() < VMS_MAX => create_vm(random, court, number),
        2..=3 if volumes.len() < VOLUMES_MAX => Body::VolumeCreate(VolumeCreate {
            name: format!("volume{number}").parse().expect("a name"),
            size_gib: random.within((1, 4)),
            host: random.choose(&court.hosts),
        }),
        4..=6 if !volumes.is_empty() => {
            let volume = volumes[random.index(volumes.len())];
            change_volume(random, volume, &vms, number)?
        }
        _ if !vms.is_empty() => {
            let vm = vms[random.index(vms.len())];
            change_vm(random, vm)
        }
        _ => create_vm(random, court, number),
    };
    Some((Person::Developer(developer), body))
}

fn operators_wish(random: &mut Random, court: &Court, now_ms: u64) -> (Person, Body) {
    let operator = Person::Operator(random.index(court.hosts.len().min(2)));
    let developer = random.index(DEVELOPERS);
    let host = HostChange { host: random.choose(&court.hosts), expected_generation: None };
    let body = match random.below(6) {
        0 => {
            let account = AccountId::of(&Person::Developer(developer).secret().public_key());
            Body::AccountRevoke(AccountRevoke { account, expected_generation: None })
        }
        1 => Body::HostDrain(host),
        2..=3 => Body::HostResume(host),
        _ => court.grant(developer, now_ms),
    };
    (operator, body)
}

fn create_vm(random: &mut Random, court: &Court, number: usize) -> Body {
    Body::VmCreate(Box::new(VmCreate {
        name: format!("vm{number}").parse().expect("a name"),
        image: image(usize::from(random.happens(300))),
        cpus: 1,
        memory_mib: 256,
        disk_gib: random.within((1, 3)),
        ssh_keys: Vec::new(),
        region: None,
        host: random.happens(300).then(|| random.choose(&court.hosts)),
        host_labels: Default::default(),
        apart: Vec::new(),
        labels: Default::default(),
        public_user_data: None,
        restart: if random.happens(200) { RestartPolicy::Never } else { RestartPolicy::Always },
        network: None,
        boot: None,
        more_cards: Vec::new(),
    }))
}

fn change_vm(random: &mut Random, vm: &Vm) -> Body {
    let expected_generation = random.happens(300).then_some(vm.generation);
    let change = VmChange { vm: vm.id, expected_generation };
    match random.below(20) {
        0..=3 => Body::VmStart(change),
        4..=6 => {
            let forced = random.happens(400);
            let manner = if forced { StopManner::Forced } else { StopManner::Graceful };
            Body::VmStop(VmStop { vm: vm.id, manner, expected_generation })
        }
        7..=8 => Body::VmPause(change),
        9..=10 => Body::VmResume(change),
        11..=12 => Body::VmReboot(change),
        13 => Body::VmResize(VmResize {
            vm: vm.id,
            cpus: None,
            memory_mib: Some(random.choose(&[256, 512])),
            expected_generation,
        }),
        14 => {
            let protected = random.happens(400);
            let protection =
                if protected { Protection::Protected } else { Protection::Unprotected };
            Body::VmProtect(VmProtect { vm: vm.id, protection, expected_generation })
        }
        _ => Body::VmDelete(change),
    }
}

fn change_volume(random: &mut Random, volume: &Volume, vms: &[&Vm], number: usize) -> Option<Body> {
    let (id, expected_generation) = (volume.id, None);
    let name = || format!("copy{number}").parse().expect("a name");
    let snapshot = match volume.snapshots.len() {
        0 => None,
        count => Some(volume.snapshots[random.index(count)].id),
    };
    // Few volumes are ever free and have a snapshot; what only they can do is asked for often.
    if volume.used_by == (VolumeUse::Free {})
        && random.happens(RESTORED_PERMILLE)
        && let Some(snapshot) = snapshot
    {
        let restored = VolumeRestore { volume: id, snapshot, expected_generation };
        return Some(Body::VolumeRestore(restored));
    }
    let body = match (random.below(18), volume.used_by) {
        (0..=6, VolumeUse::Free {}) => {
            let is_beside = |vm: &&&Vm| {
                let at = vm.placement.host();
                at == Some(volume.host) && matches!(vm.placement, Placement::Accepted { .. })
            };
            let beside: Vec<_> = vms.iter().filter(is_beside).collect();
            let vm = beside.get(random.index(beside.len().max(1)))?.id;
            Body::VolumeAttach(VolumeAttach { volume: id, vm, expected_generation })
        }
        (0..=4, _) => Body::VolumeDetach(VolumeDetach { volume: id, expected_generation }),
        (5..=7, _) => {
            let size_gib = volume.size_gib + 1;
            Body::VolumeGrow(VolumeGrow { volume: id, size_gib, expected_generation })
        }
        (8..=10, _) => {
            Body::VolumeSnapshot(VolumeSnapshot { volume: id, name: name(), expected_generation })
        }
        (11..=12, _) => {
            let snapshot = snapshot?;
            Body::VolumeRestore(VolumeRestore { volume: id, snapshot, expected_generation })
        }
        (13, _) => {
            let (snapshot, size_gib) = (snapshot?, volume.size_gib + 1);
            Body::VolumeClone(VolumeClone { name: name(), volume: id, snapshot, size_gib })
        }
        (14..=15, _) => Body::SnapshotDelete(SnapshotDelete { volume: id, snapshot: snapshot? }),
        (16, _) => {
            let protection = Protection::Unprotected;
            Body::VolumeProtect(VolumeProtect { volume: id, protection, expected_generation })
        }
        _ => Body::VolumeDelete(VolumeDelete { volume: id, expected_generation }),
    };
    Some(body)
}
