//! `volume.create`, `volume.attach`, `volume.detach`, `volume.grow`, `volume.protect`,
//! `volume.delete` and `report.volume`: disks that outlive the machines that use them.
//!
//! Owns who may change a volume, that no two VMs ever write to one, and what a host's report makes
//! of it. A VM that was to lose a volume has lost it only when its host says so ([`released_by`]).

use dagger_payload::id::{Generation, VolumeId};
use dagger_payload::kind::{
    Capacity, Protection, ReportPhase, ReportVm, ReportVolume, VmChange, VolumeAttach,
    VolumeCreate, VolumeDelete, VolumeDetach, VolumeGrow, VolumePhase, VolumeProtect,
};
use dagger_payload::limits::VM_VOLUMES_MAX;
use dagger_payload::object::{Account, Effect, HostDuty, Placement, Vm, Wanted};
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::usage::{Meter, Metered, PastUsage, Used};
use dagger_payload::volume::{
    VmVolume, Volume, VolumeDisk, VolumeReport, VolumeState, VolumeUse, VolumeWanted, free_slot,
};

use super::accounts::acting;
use super::burdens::require_few_on_disk;
use super::placement::require_share;
use super::snapshots::{require_no_snapshots, require_still};
use super::state::State;
use super::vms::{change, owned};
use super::{Case, Ruling, refuse, require_generation};

pub(crate) fn create(state: &State, case: &Case<'_>, body: &VolumeCreate) -> Ruling {
    let account = acting(state, case)?;
    let volume = newborn(state, case, account, body)?;
    Ok(vec![Effect::Volume(Box::new(volume))])
}

/// The empty volume that `body` asks for, if `account` may have it there.
pub(crate) fn newborn(
    state: &State,
    case: &Case<'_>,
    account: &Account,
    body: &VolumeCreate,
) -> Result<Volume, Refusal> {
    if !account.grants.iter().any(|grant| state.is_live(grant, case.now)) {
        return refuse(RefusalCode::AccountUnknown, "the account has no live grant");
    }
    if let Some(other) = state.volume_named(account.id, &body.name) {
        let detail = format!("your volume {other} is called {}", body.name);
        return refuse(RefusalCode::NameTaken, detail);
    }
    let Some(host) = state.present_host(&body.host) else {
        return refuse(RefusalCode::NotFound, format!("no host {} is declared", body.host));
    };
    if host.duty == HostDuty::Draining {
        return refuse(RefusalCode::NoHostFits, format!("{} is draining", host.name));
    }
    if state.silent(case.now).binary_search(&host.id).is_ok() {
        return refuse(RefusalCode::NoHostFits, format!("{} is silent", host.name));
    }
    let volume = Volume {
        id: VolumeId::of(&case.cause.digest),
        account: account.id,
        name: body.name.clone(),
        generation: Generation(1),
        created: case.cause,
        changed: case.cause,
        wanted: VolumeWanted::Kept,
        size_gib: body.size_gib,
        host: host.id,
        used_by: VolumeUse::Free {},
        disk: VolumeDisk::NotReported,
        reported: None,
        meter: Meter::NEW,
        protection: Protection::Unprotected,
        snapshots: Vec::new(),
        restoring: None,
        origin: None,
    };
    let nothing = Capacity::default();
    require_share(state, (&account.id, host), (&nothing, &volume.size()), case.now)?;
    require_few_on_disk(state, &account.id, &host.operator)?;
    Ok(volume)
}

pub(crate) fn attach(state: &State, case: &Case<'_>, body: &VolumeAttach) -> Ruling {
    let volume = own(state, case, body.volume, None)?;
    let expected_generation = body.expected_generation;
    let vm = owned(state, case, &VmChange { vm: body.vm, expected_generation })?;
    if volume.used_by == (VolumeUse::Attached { vm: vm.id }) {
        return Ok(Vec::new()); // it has it already
    }
    if let Some(user) = volume.used_by.vm() {
        let detail = format!("VM {user} has the volume: detach it first, and wait until it is off");
        return refuse(RefusalCode::StateWrong, detail);
    }
    if volume.state() != VolumeState::Ready {
        let detail = "its host has not said that the volume is ready";
        return refuse(RefusalCode::StateWrong, detail);
    }
    if !matches!(vm.placement, Placement::Accepted { host, .. } if host == volume.host) {
        let host = state.hosts.get(&volume.host).map_or("another host", |host| host.name.as_str());
        let detail = format!("the volume is on {host}, and no host or another one has the VM");
        return refuse(RefusalCode::StateWrong, detail);
    }
    require_not_paused(&vm)?;
    let slot = free_slot_of(state, &vm)?;
    let mut volumes = vm.volumes.clone();
    volumes.push(VmVolume { volume: volume.id, slot, size_gib: volume.size_gib });
    let used_by = VolumeUse::Attached { vm: vm.id };
    Ok(give(vm, volumes, Volume { used_by, ..volume.clone() }, case))
}

/// A slot for one more volume. What the VM is still to lose counts: else detaching would make room
/// for volume after volume, all of which each report about the VM looks at.
///
/// # Errors
/// `limit_exceeded`.
fn free_slot_of(state: &State, vm: &Vm) -> Result<u8, Refusal> {
    let used = state.volumes_used_count(&vm.id);
    let slot = free_slot(&vm.volumes).filter(|_| used < usize::from(VM_VOLUMES_MAX));
    slot.ok_or_else(|| {
        let detail = format!(
            "the VM has {} volumes, those included that its host has not said it lost, and may \
             have no more",
            used.max(vm.volumes.len())
        );
        Refusal::new(RefusalCode::LimitExceeded, detail)
    })
}

pub(crate) fn detach(state: &State, case: &Case<'_>, body: &VolumeDetach) -> Ruling {
    let volume = own(state, case, body.volume, None)?;
    let VolumeUse::Attached { vm } = volume.used_by else {
        return Ok(Vec::new()); // it is, or will be, nobody's already
    };
    let expected_generation = body.expected_generation;
    let vm = owned(state, case, &VmChange { vm, expected_generation })?;
    require_not_paused(&vm)?;
    let mut kept = vm.volumes.clone();
    kept.retain(|used| used.volume != volume.id);
    let used_by = VolumeUse::Detaching { vm: vm.id };
    Ok(give(vm, kept, Volume { used_by, ..volume.clone() }, case))
}

/// Counts at once. A VM that has the volume is told too, since its machine holds the disk.
pub(crate) fn grow(state: &State, case: &Case<'_>, body: &VolumeGrow) -> Ruling {
    let volume = own(state, case, body.volume, body.expected_generation)?;
    if body.size_gib == volume.size_gib {
        return Ok(Vec::new()); // it is as large already
    }
    if body.size_gib < volume.size_gib {
        let detail = format!("the volume has {} GiB: it can only grow", volume.size_gib);
        return refuse(RefusalCode::StateWrong, detail);
    }
    if volume.disk != VolumeDisk::Made {
        return refuse(RefusalCode::StateWrong, "its host has not said that the volume is ready");
    }
    require_still(volume)?;
    let user = match volume.used_by {
        VolumeUse::Free {} => None,
        VolumeUse::Attached { vm } => {
            let vm = owned(state, case, &VmChange { vm, expected_generation: None })?;
            require_not_paused(&vm)?;
            Some(vm)
        }
        VolumeUse::Detaching { vm } => {
            let detail = format!("VM {vm} is to lose the volume: wait until it is off");
            return refuse(RefusalCode::StateWrong, detail);
        }
    };
    let Some(host) = state.hosts.get(&volume.host) else {
        return refuse(RefusalCode::NotFound, format!("no host {} is declared", volume.host));
    };
    let mut grown = Volume { size_gib: body.size_gib, ..volume.clone() };
    let sizes = (&volume.size(), &grown.size());
    require_share(state, (&volume.account, host), sizes, case.now)?;
    grown.meter = volume.meter.turned(volume.meter.counts, &volume.size(), case.now);
    grown.generation = volume.generation.next();
    grown.changed = case.cause;
    let Some(vm) = user else { return Ok(vec![Effect::Volume(Box::new(grown))]) };
    let mut volumes = vm.volumes.clone();
    for used in volumes.iter_mut().filter(|used| used.volume == grown.id) {
        used.size_gib = grown.size_gib;
    }
    Ok(give(vm, volumes, grown, case))
}

pub(crate) fn delete(state: &State, case: &Case<'_>, body: &VolumeDelete) -> Ruling {
    let volume = own_or_lost(state, case, body.volume, body.expected_generation)?;
    if volume.protection == Protection::Protected {
        let detail = format!("{} is protected against deletion", volume.name);
        return refuse(RefusalCode::Protected, detail);
    }
    if let Some(user) = volume.used_by.vm() {
        let detail = format!("VM {user} has the volume: detach it first, and wait until it is off");
        return refuse(RefusalCode::StateWrong, detail);
    }
    if volume.disk != VolumeDisk::Lost {
        require_no_snapshots(volume)?; // what is lost is lost with them
    }
    let mut volume = Volume { restoring: None, ..volume.clone() };
    volume.wanted = VolumeWanted::Deleted;
    volume.generation = volume.generation.next();
    volume.changed = case.cause;
    let is_gone = volume.state() == VolumeState::Deleted;
    let past = is_gone.then(|| past_usage(state, &volume));
    Ok([Effect::Volume(Box::new(volume))].into_iter().chain(past).collect())
}

/// Its host has nothing to do for that, and says so.
pub(crate) fn protect(state: &State, case: &Case<'_>, body: &VolumeProtect) -> Ruling {
    let volume = own_or_lost(state, case, body.volume, body.expected_generation)?;
    if volume.protection == body.protection {
        return Ok(Vec::new()); // it is as wished already
    }
    let (protection, generation) = (body.protection, volume.generation.next());
    let volume = Volume { protection, generation, changed: case.cause, ..volume.clone() };
    Ok(vec![Effect::Volume(Box::new(volume))])
}

/// The volume of which its own host, the signer, reports something.
///
/// # Errors
/// `account_unknown`, `not_found`, and `conflict` for another host's.
pub(super) fn reported<'s>(
    state: &'s State,
    case: &Case<'_>,
    volume: VolumeId,
) -> Result<&'s Volume, Refusal> {
    let Some(host) = state.host_of_agent(case.signer) else {
        let detail = "the signer is no agent of a host that has joined";
        return refuse(RefusalCode::AccountUnknown, detail);
    };
    let Some(known) = state.volumes.get(&volume) else {
        return refuse(RefusalCode::NotFound, format!("there is no volume {volume}"));
    };
    if known.host != host.id {
        return refuse(RefusalCode::Conflict, "the volume is on another host");
    }
    Ok(known)
}

pub(crate) fn report(state: &State, case: &Case<'_>, body: &ReportVolume) -> Ruling {
    let volume = reported(state, case, body.volume)?;
    if body.generation != volume.generation {
        let detail =
            format!("generation {} reported, {} is wanted", body.generation, volume.generation);
        return refuse(RefusalCode::Conflict, detail);
    }
    match (body.phase, volume.wanted) {
        (VolumePhase::Deleted, VolumeWanted::Kept) => {
            return refuse(RefusalCode::StateWrong, "nobody asked for the volume to be deleted");
        }
        (VolumePhase::Ready, VolumeWanted::Deleted) => {
            return refuse(RefusalCode::StateWrong, "the volume is to be deleted");
        }
        _ => {}
    }
    let is_known = volume.reported.as_ref().is_some_and(|known| {
        (known.generation, known.phase, &known.reason)
            == (body.generation, body.phase, &body.reason)
    });
    if is_known {
        return Ok(Vec::new());
    }
    let mut volume = volume.clone();
    let counts = match body.phase {
        VolumePhase::Ready => Metered::Disk,
        VolumePhase::Degraded => volume.meter.counts,
        VolumePhase::Deleted => Metered::Nothing,
    };
    volume.meter = volume.meter.turned(counts, &volume.size(), case.now);
    if body.phase == VolumePhase::Ready {
        volume.disk = VolumeDisk::Made;
        volume.restoring = None;
    }
    volume.reported = Some(VolumeReport {
        generation: body.generation,
        phase: body.phase,
        reason: body.reason.clone(),
        cause: case.cause,
    });
    let past = (body.phase == VolumePhase::Deleted).then(|| past_usage(state, &volume));
    Ok([Effect::Volume(Box::new(volume))].into_iter().chain(past).collect())
}

/// The volumes that nobody uses any more after a host's report about `vm`: those that it was to
/// lose, once it is as wanted, and all when it is gone.
pub(crate) fn released_by<'s>(
    state: &'s State,
    vm: &Vm,
    report: &ReportVm,
) -> impl Iterator<Item = Effect> + use<'s> {
    let is_released: Option<fn(&VolumeUse) -> bool> = match report.phase {
        ReportPhase::Deleted => Some(|_| true),
        ReportPhase::Running | ReportPhase::Stopped | ReportPhase::Paused => {
            Some(|used_by| matches!(used_by, VolumeUse::Detaching { .. }))
        }
        // It sets nothing free, and nothing is looked at.
        ReportPhase::Accepted | ReportPhase::Refused | ReportPhase::Degraded => None,
    };
    let used = is_released.map(|is_released| {
        let used = state.volumes_used_by(&vm.id);
        used.filter(move |volume| is_released(&volume.used_by))
    });
    used.into_iter().flatten().map(|volume| {
        Effect::Volume(Box::new(Volume { used_by: VolumeUse::Free {}, ..volume.clone() }))
    })
}

/// The sum for the volume's account and host, with the volume that is gone.
pub(super) fn past_usage(state: &State, volume: &Volume) -> Effect {
    let (account, host) = (volume.account, volume.host);
    let past = state.past_usage.get(&(account, host));
    let (vms, used) = past.map_or((0, Used::default()), |past| (past.vms, past.used));
    Effect::Usage(Box::new(PastUsage { account, host, vms, used: used.plus(&volume.meter.used) }))
}

/// A guest that is halted cannot let go of a disk, so its disks stay as they are.
fn require_not_paused(vm: &Vm) -> Result<(), Refusal> {
    if vm.wanted == Wanted::Paused {
        return refuse(RefusalCode::StateWrong, "the VM is paused: resume or stop it first");
    }
    Ok(())
}

/// The next versions of a VM that is to have `volumes`, and of the volume that this is about.
fn give(vm: Vm, volumes: Vec<VmVolume>, volume: Volume, case: &Case<'_>) -> Vec<Effect> {
    let volumes_since = vm.generation.next();
    let vm = Vm { volumes, volumes_since, ..vm };
    let wanted = vm.wanted;
    let mut effects = vec![Effect::Volume(Box::new(volume))];
    effects.extend(change(vm, wanted, case));
    effects
}

/// The volume, if the signer owns it, it may still be changed, and its host can do so.
pub(crate) fn own<'s>(
    state: &'s State,
    case: &Case<'_>,
    volume: VolumeId,
    expected: Option<Generation>,
) -> Result<&'s Volume, Refusal> {
    let volume = own_or_lost(state, case, volume, expected)?;
    if volume.disk == VolumeDisk::Lost {
        let detail = "the volume is lost: its host has left the cluster. It can be deleted";
        return refuse(RefusalCode::StateWrong, detail);
    }
    Ok(volume)
}

/// The volume, if the signer owns it and it may still be changed.
fn own_or_lost<'s>(
    state: &'s State,
    case: &Case<'_>,
    volume: VolumeId,
    expected: Option<Generation>,
) -> Result<&'s Volume, Refusal> {
    // Who holds no grant any more may still detach and delete what is his.
    let account = acting(state, case)?.id;
    let Some(volume) = state.volumes.get(&volume) else {
        return refuse(RefusalCode::NotFound, format!("there is no volume {volume}"));
    };
    if volume.account != account {
        return refuse(RefusalCode::NotAuthorized, "the volume belongs to another account");
    }
    require_generation(expected, ("volume", volume.generation))?;
    if volume.wanted == VolumeWanted::Deleted {
        return refuse(RefusalCode::StateWrong, "the volume is being deleted");
    }
    Ok(volume)
}
