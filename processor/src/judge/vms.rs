//! `vm.create`, `vm.start`, `vm.stop`, `vm.pause`, `vm.resume`, `vm.reboot`, `vm.resize`,
//! `vm.protect`, `vm.delete`, and the way of an offer from host to host.
//!
//! Owns who may change a VM and what a change makes of it. Every state accepts delete. Reports of
//! hosts are in `reports`.

use dagger_payload::id::{Generation, HostId, LedgerTime};
use dagger_payload::kind::{
    Capacity, Protection, StopManner, VmChange, VmCreate, VmProtect, VmResize, VmStop,
};
use dagger_payload::limits::HOMELESS_VMS_PER_ACCOUNT_MAX;
use dagger_payload::object::{Effect, Placement, Vm, VmState, Wanted};
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::usage::Meter;

use super::accounts::acting;
use super::burdens::require_few_objects;
use super::looks::Looks;
use super::made_of::require_images;
use super::placement::{place, require_room};
use super::reports::past_usage;
use super::state::{Means, State};
use super::{Case, Ruling, refuse, require_generation};

pub(crate) fn create(state: &State, case: &Case<'_>, body: &VmCreate) -> Ruling {
    let (mut vm, means) = newborn(state, case, body)?;
    vm.placement = place(state, case.looks, &vm, means, case.now)?;
    Ok(vec![Effect::Vm(vm)])
}

/// The VM that `body` asks for, before it has a host, and the means of its account.
pub(crate) fn newborn<'s>(
    state: &'s State,
    case: &Case<'_>,
    body: &VmCreate,
) -> Result<(Box<Vm>, Means<'s>), Refusal> {
    let account = acting(state, case)?;
    let made = case.newborn.expect("who asks for a VM makes one");
    let estate = state.estate(&account.id);
    if !account.grants.iter().any(|grant| state.is_live(grant, case.now)) {
        return refuse(RefusalCode::AccountUnknown, "the account has no live grant");
    }
    if estate.is_some_and(|own| own.homeless >= HOMELESS_VMS_PER_ACCOUNT_MAX) {
        let detail = format!(
            "{HOMELESS_VMS_PER_ACCOUNT_MAX} of your VMs have no host: start or delete one of them"
        );
        return refuse(RefusalCode::LimitExceeded, detail);
    }
    require_few_objects(estate)?;
    if let Some(other) = estate.and_then(|own| state.vm_named(own, made.name, &body.name)) {
        let detail = format!("your VM {other} is called {}", body.name);
        return refuse(RefusalCode::NameTaken, detail);
    }
    require_images(state, case, account, body)?;
    let vm = Box::new(Vm {
        id: made.id,
        account: account.id,
        name: body.name.clone(),
        generation: Generation(1),
        created: case.cause,
        changed: case.cause,
        wanted: Wanted::Running,
        image: body.image.clone(),
        size: body.size(),
        ssh_keys: body.ssh_keys.clone(),
        public_user_data: body.public_user_data.clone(),
        labels: body.labels.clone(),
        region: body.region.clone(),
        host_labels: body.host_labels.clone(),
        pinned_host: body.host,
        placement: Placement::NoHost {},
        tried: Vec::new(),
        reported: None,
        guest_host_key: None,
        protection: Protection::Unprotected,
        apart: body.apart.clone(),
        booted_since: Generation(1),
        meter: Meter::NEW,
        stop_manner: StopManner::Graceful,
        restart: body.restart,
        volumes: Vec::new(),
        volumes_since: Generation(1),
        network: body.network.clone().unwrap_or_default(),
        boot: body.boot.clone(),
        more_cards: body.more_cards.clone(),
    });
    Ok((vm, Means { grants: &account.grants, estate }))
}

/// Also gives a VM that found no host another round of offers, and lets a paused guest go on.
pub(crate) fn start(state: &State, case: &Case<'_>, body: &VmChange) -> Ruling {
    let mut vm = owned(state, case, body)?;
    let homeless = vm.placement == Placement::NoHost {};
    if vm.wanted == Wanted::Running && !homeless && vm.state() != VmState::Stopped {
        return Ok(Vec::new()); // it is wanted running already, and has not stopped by itself
    }
    if let Some(host) = vm.placement.host() {
        require_grant(state, case, &vm, &host)?;
    }
    if homeless {
        vm.tried.clear();
        let means = state.means(&vm.account);
        vm.placement = place(state, case.looks, &vm, means, case.now)?;
    }
    Ok(change(vm, Wanted::Running, case))
}

pub(crate) fn stop(state: &State, case: &Case<'_>, body: &VmStop) -> Ruling {
    let expected_generation = body.expected_generation;
    let vm = owned(state, case, &VmChange { vm: body.vm, expected_generation })?;
    let is_forced = |manner| manner == StopManner::Forced;
    if vm.wanted == Wanted::Stopped && (is_forced(vm.stop_manner) || !is_forced(body.manner)) {
        return Ok(Vec::new()); // it is wanted stopped already
    }
    let vm = Vm { stop_manner: body.manner, ..vm };
    Ok(change(vm, Wanted::Stopped, case))
}

/// The guest stays in memory, and where it is.
pub(crate) fn pause(state: &State, case: &Case<'_>, body: &VmChange) -> Ruling {
    let vm = owned(state, case, body)?;
    match vm.wanted {
        Wanted::Paused => Ok(Vec::new()), // it is wanted paused already
        Wanted::Running => Ok(change(vm, Wanted::Paused, case)),
        Wanted::Stopped | Wanted::Deleted => {
            refuse(RefusalCode::StateWrong, "the VM is not wanted running: start it")
        }
    }
}

/// What holds memory on a host may go on there, also when the grant has ended.
pub(crate) fn resume(state: &State, case: &Case<'_>, body: &VmChange) -> Ruling {
    let vm = owned(state, case, body)?;
    match vm.wanted {
        Wanted::Running => Ok(Vec::new()), // it is wanted running already
        Wanted::Paused => Ok(change(vm, Wanted::Running, case)),
        Wanted::Stopped | Wanted::Deleted => {
            refuse(RefusalCode::StateWrong, "the VM is not paused: start it")
        }
    }
}

/// The guest is switched off, if need be after a while, and on again; nothing else changes.
pub(crate) fn reboot(state: &State, case: &Case<'_>, body: &VmChange) -> Ruling {
    let vm = owned(state, case, body)?;
    if vm.wanted != Wanted::Running {
        return refuse(RefusalCode::StateWrong, "the VM is not wanted running: start it");
    }
    let vm = Vm { booted_since: vm.generation.next(), ..vm };
    Ok(change(vm, Wanted::Running, case))
}

/// Counts at once and is carried out at the next start; so a running guest's size may only grow,
/// or its host would give away what the guest still holds.
pub(crate) fn resize(state: &State, case: &Case<'_>, body: &VmResize) -> Ruling {
    let expected_generation = body.expected_generation;
    let vm = owned(state, case, &VmChange { vm: body.vm, expected_generation })?;
    let size = Capacity {
        cpus: body.cpus.unwrap_or(vm.size.cpus),
        memory_mib: body.memory_mib.unwrap_or(vm.size.memory_mib),
        ..vm.size
    };
    if size == vm.size {
        return Ok(Vec::new()); // it is as large already
    }
    if vm.wanted != Wanted::Stopped && !size.covers(&vm.size) {
        let detail = "a VM in memory can only grow: stop it before it becomes smaller";
        return refuse(RefusalCode::StateWrong, detail);
    }
    if vm.boot.as_ref().is_some_and(|boot| !boot.fits_memory(size.memory_mib)) {
        let detail = "its kernel and initial RAM disk take more than half of so much memory";
        return refuse(RefusalCode::StateWrong, detail);
    }
    require_room(state, &vm, &size, case.now)?;
    let meter = vm.meter.turned(vm.meter.counts, &vm.size, case.now);
    let vm = Vm { size, meter, ..vm };
    let wanted = vm.wanted;
    Ok(change(vm, wanted, case))
}

pub(crate) fn delete(state: &State, case: &Case<'_>, body: &VmChange) -> Ruling {
    let vm = owned_or_lost(state, case, body)?;
    if vm.protection == Protection::Protected {
        return refuse(
            RefusalCode::Protected,
            format!("{} is protected against deletion", vm.name),
        );
    }
    let past = match vm.placement {
        // Nobody is left to report it gone.
        Placement::Lost { host } => Some(past_usage(state, host, &vm)),
        Placement::Offered { .. } | Placement::Accepted { .. } | Placement::NoHost {} => None,
    };
    Ok(change(vm, Wanted::Deleted, case).into_iter().chain(past).collect())
}

pub(crate) fn protect(state: &State, case: &Case<'_>, body: &VmProtect) -> Ruling {
    let expected_generation = body.expected_generation;
    let vm = owned_or_lost(state, case, &VmChange { vm: body.vm, expected_generation })?;
    if vm.protection == body.protection {
        return Ok(Vec::new()); // it is as wished already
    }
    let vm = Vm { protection: body.protection, ..vm };
    let wanted = vm.wanted;
    Ok(change(vm, wanted, case))
}

/// What is switched on, or accepted, uses a grant of the host's operator, as what is new does.
///
/// # Errors
/// `grant_ended`.
pub(super) fn require_grant(
    state: &State,
    case: &Case<'_>,
    vm: &Vm,
    host: &HostId,
) -> Result<(), Refusal> {
    let operator = state.hosts.get(host).map(|host| host.operator);
    let account = state.accounts.get(&vm.account);
    let mut grants = account.into_iter().flat_map(|account| &account.grants);
    if grants.any(|grant| Some(grant.operator) == operator && state.is_live(grant, case.now)) {
        return Ok(());
    }
    let name = state.hosts.get(host).map_or_else(String::new, |host| host.name.to_string());
    let detail = format!("no grant of the operator of its host {name} is live");
    refuse(RefusalCode::GrantEnded, detail)
}

pub(super) fn change(mut vm: Vm, wanted: Wanted, case: &Case<'_>) -> Vec<Effect> {
    vm.wanted = wanted;
    vm.generation = vm.generation.next();
    vm.changed = case.cause;
    vec![Effect::Vm(Box::new(vm))]
}

/// The VM that `body` names, if the signer owns it, it may still be changed, and it is not out of
/// the cluster's reach.
pub(super) fn owned(state: &State, case: &Case<'_>, body: &VmChange) -> Result<Vm, Refusal> {
    let vm = owned_or_lost(state, case, body)?;
    if let Placement::Lost { .. } = vm.placement {
        let detail = "the VM is lost: its host has left the cluster. It can be deleted";
        return refuse(RefusalCode::StateWrong, detail);
    }
    Ok(vm)
}

/// The VM that `body` names, if the signer owns it and it may still be changed.
fn owned_or_lost(state: &State, case: &Case<'_>, body: &VmChange) -> Result<Vm, Refusal> {
    // Who holds no grant any more may still stop and delete what is his.
    let account = acting(state, case)?.id;
    let Some(vm) = state.vm(&body.vm) else {
        return refuse(RefusalCode::NotFound, format!("there is no VM {}", body.vm));
    };
    if vm.account != account {
        return refuse(RefusalCode::NotAuthorized, "the VM belongs to another account");
    }
    require_generation(body.expected_generation, ("VM", vm.generation))?;
    if vm.wanted == Wanted::Deleted {
        return refuse(RefusalCode::StateWrong, "the VM is being deleted");
    }
    Ok(vm)
}

/// The present host did not take the VM: the next one is offered it, or there is none.
///
/// # Errors
/// `commit_full`: it is to be asked for again.
pub(crate) fn offer_next(
    state: &State,
    looks: &Looks,
    mut vm: Vm,
    now: LedgerTime,
) -> Result<Effect, Refusal> {
    vm.tried.extend(vm.placement.host());
    let means = state.means(&vm.account);
    vm.placement = match place(state, looks, &vm, means, now) {
        Err(full) if full.code == RefusalCode::CommitFull => return Err(full),
        placed => placed.unwrap_or(Placement::NoHost {}),
    };
    vm.generation = vm.generation.next();
    Ok(Effect::Vm(Box::new(vm)))
}
