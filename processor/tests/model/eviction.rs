//! What becomes of the hosts of removed operators, in the model.

use dagger_payload::id::{Generation, HostId, OperatorId, VmId, VolumeId};
use dagger_payload::object::{Effect, HostDuty, Placement, Vm, Wanted};
use dagger_payload::roster::{Seat, SeatStanding};
use dagger_payload::usage::{Metered, PastUsage, Used};
use dagger_payload::volume::{Volume, VolumeDisk, VolumeUse, VolumeWanted};

use super::members::is_present;
use super::reports::read;
use super::run::put_all;
use super::state::Model;
use super::vms::offer_next;
use super::volumes::with_past;

/// Of those, one commit tells.
const AT_ONCE: usize = 1024;

/// Seats on which nobody votes leave with their operator, and hosts that have no other seat.
pub(crate) fn leaving(model: &Model) -> Vec<Effect> {
    let is_gone =
        |id: OperatorId| model.operators.iter().any(|one| one.id == id && !is_present(one));
    let mut seats: Vec<Seat> = model.present_seats().cloned().collect();
    seats.retain(|seat| is_gone(seat.operator) && !model.is_voting(seat.index));
    seats.sort_by_key(|seat| seat.index);
    let stays = |host| {
        let mut own = model.present_seats().filter(|seat| seat.host == host);
        own.any(|seat| !seats.contains(seat))
    };
    let mut hosts: Vec<_> =
        seats.iter().map(|seat| seat.host).filter(|host| !stays(*host)).collect();
    hosts.sort();
    hosts.dedup();
    let mut effects = Vec::new();
    for seat in &seats {
        let standing = SeatStanding::Left;
        effects.push(Effect::Seat(Box::new(Seat { standing, ..seat.clone() })));
    }
    for mut host in hosts.into_iter().filter_map(|host| model.host(host).cloned()) {
        host.duty = HostDuty::Left;
        host.generation = Generation(host.generation.0 + 1);
        effects.push(Effect::Host(Box::new(host)));
    }
    effects
}

/// What is on a host that has left, by id, VMs first: one after another, each put before the next
/// is looked at.
pub(crate) fn lose(model: &mut Model) -> Vec<Effect> {
    let gone: Vec<HostId> =
        model.hosts.iter().filter(|host| host.duty == HostDuty::Left).map(|host| host.id).collect();
    let is_gone = |host: HostId| gone.contains(&host);
    let mut vms: Vec<&Vm> = model.vms.iter().collect();
    vms.retain(|vm| vm.placement.host().is_some_and(is_gone));
    let mut vms: Vec<VmId> = vms.iter().map(|vm| vm.id).collect();
    vms.sort();
    let mut volumes: Vec<&Volume> = model.volumes.iter().collect();
    volumes.retain(|volume| volume.disk != VolumeDisk::Lost && is_gone(volume.host));
    let mut volumes: Vec<VolumeId> = volumes.iter().map(|volume| volume.id).collect();
    volumes.sort();
    let room = AT_ONCE.saturating_sub(vms.len());
    let mut told = Vec::new();
    for id in vms.into_iter().take(AT_ONCE) {
        let effects = lost_vm(model, model.vm(id).expect("it is on that host"));
        told.extend(put_all(effects, model));
    }
    for id in volumes.into_iter().take(room) {
        let effects = lost_volume(model, model.volume(id).expect("it is on that host"));
        told.extend(put_all(effects, model));
    }
    told
}

fn lost_vm(model: &Model, vm: &Vm) -> Vec<Effect> {
    let Placement::Accepted { host, .. } = vm.placement else {
        return offer_next(model, vm).into_iter().collect();
    };
    let mut vm = vm.clone();
    vm.placement = Placement::Lost { host };
    vm.generation = Generation(vm.generation.0 + 1);
    vm.meter = read(&vm.meter, &vm.size, model.now);
    vm.meter.counts = Metered::Nothing;
    vm.volumes = Vec::new();
    let mut effects = vec![Effect::Vm(Box::new(vm.clone()))];
    if vm.wanted == Wanted::Deleted {
        effects.push(past(model, &vm, host));
    }
    effects
}

fn lost_volume(model: &Model, volume: &Volume) -> Vec<Effect> {
    let mut volume = volume.clone();
    volume.meter = read(&volume.meter, &volume.size(), model.now);
    volume.meter.counts = Metered::Nothing;
    volume.disk = VolumeDisk::Lost;
    volume.used_by = VolumeUse::Free {};
    volume.restoring = None;
    volume.generation = Generation(volume.generation.0 + 1);
    match volume.wanted {
        VolumeWanted::Kept => vec![Effect::Volume(Box::new(volume))],
        VolumeWanted::Deleted => with_past(model, volume),
    }
}

/// The sum with a VM that nobody reports gone.
pub(crate) fn past(model: &Model, vm: &Vm, host: HostId) -> Effect {
    let known = model.past_usage.iter().find(|one| (one.account, one.host) == (vm.account, host));
    let (vms, used) = known.map_or((0, Used::default()), |past| (past.vms, past.used));
    let used = used.plus(&vm.meter.used);
    Effect::Usage(Box::new(PastUsage { account: vm.account, host, vms: vms + 1, used }))
}
