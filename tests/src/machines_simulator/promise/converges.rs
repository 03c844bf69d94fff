//! In the end every VM, volume and snapshot is as its owner wants it, and its host has said so, or
//! its host has said that it is degraded, with the reason.

use dagger_controller::machine::Power;
use dagger_payload::kind::{ReportPhase, RestartPolicy, VolumePhase};
use dagger_payload::object::{Placement, Vm, VmState, Wanted};
use dagger_payload::volume::{Snapshot, Volume, VolumeDisk, VolumeState, VolumeUse, VolumeWanted};

use super::super::host::Host;
use super::super::metal::Domain;
use super::Scene;

pub(super) fn check(scene: &Scene<'_>) -> Result<(), (usize, String)> {
    for vm in scene.court.vms.values().filter(|vm| vm.state() != VmState::Deleted) {
        match &vm.placement {
            Placement::NoHost {} => {}
            Placement::Offered { .. } | Placement::Lost { .. } => {
                return Err((0, format!("VM {} is still {:?}", vm.id, vm.placement)));
            }
            Placement::Accepted { host, .. } => {
                let index = scene.court.host_index(*host).expect("one of ours");
                of_vm(vm, &scene.hosts[index]).map_err(|why| (index, why))?;
            }
        }
    }
    for volume in scene.court.volumes.values() {
        if volume.state() == VolumeState::Deleted {
            continue;
        }
        let index = scene.court.host_index(volume.host).expect("one of ours");
        let check = of_volume(scene, volume, &scene.hosts[index]);
        check.map_err(|why| (index, why))?;
    }
    Ok(())
}

fn of_vm(vm: &Vm, host: &Host) -> Result<(), String> {
    let wrong = |what: &str| {
        let (id, wanted, said) = (vm.id, vm.wanted, &vm.reported);
        let machine = host.metal.look(vm.id);
        Err(format!("VM {id}, wanted {wanted:?}, {what}: {said:?}, seen {machine:?}"))
    };
    let Some(report) = &vm.reported else { return wrong("never reported") };
    if report.generation != vm.generation || report.host != host.id {
        return wrong("is not reported in its generation");
    }
    if report.phase == ReportPhase::Degraded {
        return if report.reason.is_some() { Ok(()) } else { wrong("is degraded without reason") };
    }
    let domain = host.metal.domain(vm.id);
    let power = domain.map(|domain| domain.power);
    let by_hand = report.reason.as_ref().is_some_and(|why| why.starts_with("local_stop:"));
    let may_stop = by_hand || (vm.restart == RestartPolicy::Never && vm.wanted == Wanted::Running);
    match (vm.wanted, report.phase) {
        (Wanted::Running, ReportPhase::Running) if power == Some(Power::Running) => {}
        (Wanted::Paused, ReportPhase::Paused) if power == Some(Power::Paused) => {}
        (Wanted::Stopped | Wanted::Paused, ReportPhase::Stopped)
            if power == Some(Power::Stopped) => {}
        (_, ReportPhase::Stopped) if by_hand && power.is_none() => return Ok(()),
        (_, ReportPhase::Stopped) if may_stop && power == Some(Power::Stopped) => return Ok(()),
        _ => return wrong("is otherwise than wanted"),
    }
    match domain {
        // Its operator's word came first: the tags are written when its owner's counts again.
        Some(_) if by_hand => Ok(()),
        Some(domain) => of_machine(vm, domain).or_else(wrong),
        None => wrong("has no machine"),
    }
}

fn of_machine(vm: &Vm, domain: &Domain) -> Result<(), &'static str> {
    if domain.tags.generation != vm.generation || domain.tags.payload != vm.changed.digest {
        return Err("carries tags of another generation");
    }
    let wanted = vm.volumes.iter().map(|used| used.volume);
    if domain.power != Power::Stopped && !wanted.eq(domain.held.keys().copied()) {
        let mut wanted: Vec<_> = vm.volumes.iter().map(|used| used.volume).collect();
        wanted.sort();
        if !wanted.iter().eq(domain.held.keys()) {
            return Err("has other volumes than it is to have");
        }
    }
    Ok(())
}

fn of_volume(scene: &Scene<'_>, volume: &Volume, host: &Host) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("volume {what}: {volume:?}"));
    let is_told = |snapshot: &Snapshot| {
        let said = snapshot.reported.as_ref().map(|report| (report.phase, &report.reason));
        match (snapshot.wanted, snapshot.disk, said) {
            (_, _, Some((VolumePhase::Degraded, Some(_)))) => true,
            (VolumeWanted::Kept, VolumeDisk::Made, _) => {
                host.metal.snapshots.contains_key(&(volume.id, snapshot.id))
            }
            _ => false,
        }
    };
    let said = volume.reported.as_ref().filter(|one| one.generation == volume.generation);
    let degraded = said.filter(|report| report.phase == VolumePhase::Degraded);
    if let Some(report) = degraded {
        return if report.reason.is_some() { Ok(()) } else { wrong("is degraded without reason") };
    }
    match volume.used_by {
        VolumeUse::Detaching { vm } | VolumeUse::Attached { vm } => {
            // Its file changes only with the machine's next version.
            let holder = scene.court.vms.get(&vm);
            let is_degraded = holder
                .and_then(|vm| vm.reported.as_ref())
                .is_none_or(|report| report.phase == ReportPhase::Degraded);
            let is_attached = matches!(volume.used_by, VolumeUse::Attached { .. });
            if is_degraded || is_attached { Ok(()) } else { wrong("is never let go of") }
        }
        VolumeUse::Free {} => {
            if said.is_none_or(|report| report.phase != VolumePhase::Ready) {
                return wrong("is not reported in its generation");
            }
            if host.lost.contains(&volume.id) {
                return Ok(()); // found to be gone by the next start, or by the next use
            }
            let file = host.metal.volumes.get(&volume.id);
            if file.is_none_or(|file| file.size_gib < volume.size_gib) {
                return wrong("has no file of its size");
            }
            match volume.snapshots.iter().find(|snapshot| !is_told(snapshot)) {
                Some(_) => wrong("has a snapshot that is otherwise than wanted"),
                None => Ok(()),
            }
        }
    }
}
