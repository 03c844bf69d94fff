//! What becomes of the hosts of an operator who was removed, and of what they carried.
//!
//! Owns when such a host leaves (once it votes in no epoch that runs or is decided) and that what
//! it carried is lost: what runs there runs on, since nobody here can stop it, and no other host
//! ever gets a VM of the same id, so that there are never two. Called by the judge at the end of
//! each commit; `members` and `epochs` decide who is removed.

use std::collections::BTreeSet;

use dagger_payload::id::{CommitIndex, HostId, LedgerTime, OperatorId, VmId, VolumeId};
use dagger_payload::limits::LOST_PER_COMMIT_MAX;
use dagger_payload::membership::OperatorStanding;
use dagger_payload::object::{Effect, Host, HostDuty, Placement, Vm, VmState};
use dagger_payload::roster::{Seat, SeatStanding};
use dagger_payload::usage::Metered;
use dagger_payload::volume::{Volume, VolumeDisk, VolumeState, VolumeUse};

use super::looks::Looks;
use super::state::State;
use super::{reports, vms, volumes};

/// Seats and hosts of removed operators that leave with `commit`.
pub(crate) fn leaving(state: &State, commit: CommitIndex) -> Vec<Effect> {
    let removed = state.operators.values();
    let removed: BTreeSet<OperatorId> = removed
        .filter(|operator| operator.standing == OperatorStanding::Left)
        .map(|operator| operator.id)
        .collect();
    if removed.is_empty() {
        return Vec::new();
    }
    let committees = [state.epoch_at(commit).committee, state.newest_epoch().committee];
    let votes = |seat: &Seat| committees.iter().any(|committee| committee.contains(seat.index));
    let (staying, leaving): (Vec<&Seat>, Vec<&Seat>) =
        state.roster.present().partition(|seat| !removed.contains(&seat.operator) || votes(seat));
    let mut hosts: BTreeSet<HostId> = leaving.iter().map(|seat| seat.host).collect();
    for seat in staying {
        hosts.remove(&seat.host); // it votes on another seat
    }
    let left = |seat: &Seat| Seat { standing: SeatStanding::Left, ..seat.clone() };
    let seats = leaving.into_iter().map(|seat| Effect::Seat(Box::new(left(seat))));
    let hosts = hosts.iter().filter_map(|host| state.hosts.get(host)).map(|host| {
        let (duty, generation) = (HostDuty::Left, host.generation.next());
        Effect::Host(Box::new(Host { duty, generation, ..host.clone() }))
    });
    seats.chain(hosts).collect()
}

/// Something that is on a host that has left without giving it up.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stranded {
    Vm(VmId),
    Volume(VolumeId),
}

/// Some of these, VMs first: as many as one commit tells.
pub(crate) fn stranded(state: &State) -> Vec<Stranded> {
    let vms = state.stranded_vms().copied().map(Stranded::Vm);
    let volumes = state.stranded_volumes().copied().map(Stranded::Volume);
    vms.chain(volumes).take(LOST_PER_COMMIT_MAX).collect()
}

/// What becomes of one of them. The one before it has been taken in: offers go on to hosts, and
/// sums of usage grow, by what is there then.
pub(crate) fn lose(state: &State, looks: &Looks, stranded: Stranded) -> Vec<Effect> {
    match stranded {
        Stranded::Vm(id) => state.vm(&id).map(|vm| lost_vm(state, looks, vm)).unwrap_or_default(),
        Stranded::Volume(id) => {
            state.volumes.get(&id).map(|volume| lost_volume(state, volume)).unwrap_or_default()
        }
    }
}

/// Whether the next commit makes anything of this, without anybody's word.
pub(crate) fn is_due(state: &State, judged: CommitIndex) -> bool {
    state.stranded_vms().next().is_some()
        || state.stranded_volumes().next().is_some()
        || !leaving(state, judged.next()).is_empty()
}

fn lost_vm(state: &State, looks: &Looks, mut vm: Vm) -> Vec<Effect> {
    let now: LedgerTime = state.time;
    let host = match vm.placement {
        Placement::Accepted { host, .. } => host,
        // Nobody can have acted for it. When too much was looked at, it waits.
        Placement::Offered { .. } => {
            return vms::offer_next(state, looks, vm, now).into_iter().collect();
        }
        Placement::NoHost {} | Placement::Lost { .. } => return Vec::new(),
    };
    vm.placement = Placement::Lost { host };
    vm.generation = vm.generation.next();
    vm.meter = vm.meter.turned(Metered::Nothing, &vm.size, now);
    vm.volumes.clear();
    let past = (vm.state() == VmState::Deleted).then(|| reports::past_usage(state, host, &vm));
    [Effect::Vm(Box::new(vm))].into_iter().chain(past).collect()
}

fn lost_volume(state: &State, volume: &Volume) -> Vec<Effect> {
    let mut lost = volume.clone();
    lost.meter = volume.meter.turned(Metered::Nothing, &volume.size(), state.time);
    lost.disk = VolumeDisk::Lost;
    lost.generation = volume.generation.next();
    lost.used_by = VolumeUse::Free {};
    lost.restoring = None;
    let is_gone = lost.state() == VolumeState::Deleted;
    let past = is_gone.then(|| volumes::past_usage(state, &lost));
    [Effect::Volume(Box::new(lost))].into_iter().chain(past).collect()
}
