//! Volumes: who may have one, that no two VMs ever write to one, and what they cost.

use dagger_payload::id::{AccountId, VolumeId};
use dagger_payload::kind::{
    Protection, ReportVolume, VolumeAttach, VolumeCreate, VolumeDelete, VolumeDetach, VolumeGrow,
    VolumePhase, VolumeProtect,
};
use dagger_payload::limits::VM_VOLUMES_MAX;
use dagger_payload::usage::{PastUsage, Used};
use dagger_payload::volume::{Volume, VolumeState, VolumeUse};

use super::*;

pub(crate) fn new_volume(name: &str, size_gib: u64) -> Body {
    let name = name.parse().expect("a name");
    Body::VolumeCreate(VolumeCreate { name, size_gib, host: host(1) })
}

pub(crate) fn attach(volume: &Volume, vm: &Vm) -> Body {
    let (volume, vm) = (volume.id, vm.id);
    Body::VolumeAttach(VolumeAttach { volume, vm, expected_generation: None })
}

pub(crate) fn detach(volume: &Volume) -> Body {
    Body::VolumeDetach(VolumeDetach { volume: volume.id, expected_generation: None })
}

pub(crate) fn delete(volume: &Volume) -> Body {
    Body::VolumeDelete(VolumeDelete { volume: volume.id, expected_generation: None })
}

pub(crate) fn told(volume: &Volume, phase: VolumePhase) -> Body {
    let (volume, generation) = (volume.id, volume.generation);
    Body::ReportVolume(ReportVolume { volume, generation, phase, reason: None })
}

/// The volume among what a payload changed.
pub(crate) fn changed(effects: &[Effect]) -> Volume {
    let found = effects.iter().find_map(|effect| match effect {
        Effect::Volume(volume) => Some((**volume).clone()),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no volume among {effects:?}"))
}

/// A volume that its host has made.
pub(crate) fn ready(court: &mut Court, name: &str) -> Volume {
    let volume = changed(&court.accept(&developer(), new_volume(name, 10)));
    changed(&court.accept(&agent_key(1), told(&volume, VolumePhase::Ready)))
}

/// A VM that runs on host 1.
pub(crate) fn running(court: &mut Court, name: &str) -> Vm {
    let vm = court.vm(&developer(), on(name, 1));
    let vm = court.report(&vm, 1, ReportPhase::Accepted).expect("accepted");
    court.report(&vm, 1, ReportPhase::Running).expect("runs")
}

#[test]
fn a_protected_volume_is_deleted_only_after_it_is_unprotected() {
    let mut court = Court::furnished();
    let volume = ready(&mut court, "data");
    let protect = |protection, expected_generation| {
        Body::VolumeProtect(VolumeProtect { volume: volume.id, protection, expected_generation })
    };
    let now = Some(volume.generation);
    let protected = protect(Protection::Protected, now);
    assert_eq!(court.submit(&operator(0), protected.clone()), Err(RefusalCode::AccountUnknown));
    let protected = changed(&court.accept(&developer(), protected));
    assert_eq!(protected.generation, volume.generation.next());
    let again = protect(Protection::Protected, None);
    assert_eq!(court.accept(&developer(), again), vec![]);
    assert_eq!(court.submit(&developer(), delete(&volume)), Err(RefusalCode::Protected));
    let unprotected = protect(Protection::Unprotected, now);
    assert_eq!(court.submit(&developer(), unprotected), Err(RefusalCode::Conflict));
    // Its host has nothing to do but to say so.
    let protected = changed(&court.accept(&agent_key(1), told(&protected, VolumePhase::Ready)));
    assert_eq!(protected.state(), VolumeState::Ready);
    court.accept(&developer(), protect(Protection::Unprotected, Some(protected.generation)));
    court.accept(&developer(), delete(&volume));
}

#[test]
fn a_volume_is_one_vms_until_its_host_says_that_the_vm_has_lost_it() {
    let mut court = Court::furnished();
    let (one, other) = (running(&mut court, "one"), running(&mut court, "other"));
    let volume = ready(&mut court, "data");
    let one = court.vm(&developer(), attach(&volume, &one));
    assert_eq!((one.volumes[0].slot, one.volumes_since), (0, one.generation));
    assert_eq!(court.accept(&developer(), attach(&volume, &one)), vec![]);
    for taken in [attach(&volume, &other), delete(&volume)] {
        assert_eq!(court.submit(&developer(), taken), Err(RefusalCode::StateWrong));
    }
    court.report(&one, 1, ReportPhase::Running).expect("it has it");

    let effects = court.accept(&developer(), detach(&volume));
    let volume = changed(&effects);
    assert_eq!(volume.used_by, VolumeUse::Detaching { vm: one.id });
    let one = match effects.last() {
        Some(Effect::Vm(vm)) => (**vm).clone(),
        other => panic!("{other:?}"),
    };
    assert!(one.volumes.is_empty());
    court.report(&one, 1, ReportPhase::Degraded).expect("the guest does not let go");
    for early in [attach(&volume, &other), delete(&volume)] {
        assert_eq!(court.submit(&developer(), early), Err(RefusalCode::StateWrong));
    }
    let effects = court.accept(&agent_key(1), report(one.id, one.generation, ReportPhase::Running));
    assert_eq!(changed(&effects).state(), VolumeState::Ready);
    court.accept(&developer(), attach(&volume, &other));
}

#[test]
fn a_volume_outlives_the_vm_that_used_it() {
    let mut court = Court::furnished();
    let vm = running(&mut court, "web");
    let volume = ready(&mut court, "data");
    let vm = court.vm(&developer(), attach(&volume, &vm));
    let vm = court.vm(&developer(), Body::VmDelete(change(&vm)));
    assert_eq!(court.submit(&developer(), delete(&volume)), Err(RefusalCode::StateWrong));
    let effects = court.accept(&agent_key(1), report(vm.id, vm.generation, ReportPhase::Deleted));
    assert_eq!(changed(&effects).state(), VolumeState::Ready);
    court.accept(&developer(), delete(&volume));
}

#[test]
fn a_volume_counts_against_grant_and_host_until_its_host_says_that_it_is_gone() {
    let mut court = Court::furnished();
    let before = court.submit(&developer(), new_volume("huge", 1_000));
    assert_eq!(before, Err(RefusalCode::GrantExceeded));
    let volume = ready(&mut court, "data");
    assert_eq!(court.submit(&developer(), new_volume("data", 1)), Err(RefusalCode::NameTaken));
    court.now = court.now.plus_ms(1_000);
    let deleted = changed(&court.accept(&developer(), delete(&volume)));
    assert_eq!(deleted.state(), VolumeState::Deleting);
    assert_eq!(court.submit(&developer(), new_volume("data", 1)), Err(RefusalCode::NameTaken));
    let effects = court.accept(&agent_key(1), told(&deleted, VolumePhase::Deleted));
    let used = Used { disk_gib_ms: 10 * 1_000, ..Used::default() };
    let account = AccountId::of(&developer().public_key());
    let past = PastUsage { account, host: host(1), vms: 0, used };
    assert_eq!(effects.last(), Some(&Effect::Usage(Box::new(past))));
    court.accept(&developer(), new_volume("data", 1));
}

#[test]
fn a_volume_goes_to_no_vm_of_another_host_or_account_and_to_none_that_is_paused() {
    let mut court = Court::furnished();
    let volume = ready(&mut court, "data");
    let elsewhere = court.vm(&developer(), on("elsewhere", 2));
    let elsewhere = court.report(&elsewhere, 2, ReportPhase::Accepted).expect("accepted");
    let wrong = court.submit(&developer(), attach(&volume, &elsewhere));
    assert_eq!(wrong, Err(RefusalCode::StateWrong));
    let vm = running(&mut court, "web");
    let stranger = court.submit(&key(77), attach(&volume, &vm));
    assert_eq!(stranger, Err(RefusalCode::AccountUnknown));
    let paused = court.vm(&developer(), Body::VmPause(change(&vm)));
    assert_eq!(court.submit(&developer(), attach(&volume, &vm)), Err(RefusalCode::StateWrong));
    court.vm(&developer(), Body::VmResume(change(&paused)));
    let unknown = Volume { id: VolumeId([9; 16]), ..volume.clone() };
    assert_eq!(court.submit(&developer(), attach(&unknown, &vm)), Err(RefusalCode::NotFound));
    court.vm(&developer(), attach(&volume, &vm));
}

/// A small volume that its host has made.
fn small(court: &mut Court, name: &str) -> Volume {
    let made = changed(&court.accept(&developer(), new_volume(name, 1)));
    changed(&court.accept(&agent_key(1), told(&made, VolumePhase::Ready)))
}

#[test]
fn a_vm_has_so_many_volumes_and_a_place_is_given_again_once_its_host_says_that_it_is_free() {
    let mut court = Court::furnished();
    let mut vm = running(&mut court, "web");
    let mut volumes = Vec::new();
    for number in 0..VM_VOLUMES_MAX {
        let made = small(&mut court, &format!("data{number}"));
        vm = court.vm(&developer(), attach(&made, &vm));
        volumes.push(made);
    }
    let made = small(&mut court, "more");
    let full = court.submit(&developer(), attach(&made, &vm));
    assert_eq!(full, Err(RefusalCode::LimitExceeded));
    let vm = court.vm(&developer(), detach(&volumes[3]));
    court.report(&vm, 1, ReportPhase::Running).expect("it has lost it");
    let vm = court.vm(&developer(), attach(&made, &vm));
    assert_eq!(vm.volumes.last().map(|used| used.slot), Some(3));
}

#[test]
fn volumes_that_a_vm_is_still_to_lose_make_no_room_for_others() {
    let mut court = Court::furnished();
    let mut vm = running(&mut court, "web");
    for number in 0..VM_VOLUMES_MAX {
        let made = small(&mut court, &format!("data{number}"));
        court.vm(&developer(), attach(&made, &vm));
        vm = court.vm(&developer(), detach(&made));
    }
    let made = small(&mut court, "more");
    // A judge that begins from a snapshot counts the same, and other reports free none.
    for _ in 0..2 {
        let full = court.submit(&developer(), attach(&made, &vm));
        assert_eq!(full, Err(RefusalCode::LimitExceeded));
        let body = report(vm.id, vm.generation, ReportPhase::Degraded);
        assert!(court.accept(&agent_key(1), body).len() <= 1);
        court.judge = snapshot::copy(&court);
    }
    let body = report(vm.id, vm.generation, ReportPhase::Running);
    let effects = court.accept(&agent_key(1), body);
    assert_eq!(effects.len(), 1 + usize::from(VM_VOLUMES_MAX));
    court.vm(&developer(), attach(&made, &vm));
}

pub(crate) fn grow(volume: &Volume, size_gib: u64) -> Body {
    Body::VolumeGrow(VolumeGrow { volume: volume.id, size_gib, expected_generation: None })
}

#[test]
fn a_volume_grows_within_the_grant_and_never_shrinks_and_its_vm_is_told() {
    let mut court = Court::furnished();
    let volume = ready(&mut court, "data");
    assert_eq!(court.accept(&developer(), grow(&volume, 10)), vec![]);
    assert_eq!(court.submit(&developer(), grow(&volume, 9)), Err(RefusalCode::StateWrong));
    assert_eq!(court.submit(&developer(), grow(&volume, 51)), Err(RefusalCode::GrantExceeded));
    court.now = court.now.plus_ms(1_000);
    let grown = changed(&court.accept(&developer(), grow(&volume, 20)));
    assert_eq!((grown.size_gib, grown.meter.used.disk_gib_ms), (20, 10 * 1_000));
    assert_eq!(grown.state(), VolumeState::Pending, "its host has not said that it grew");
    let grown = changed(&court.accept(&agent_key(1), told(&grown, VolumePhase::Ready)));
    let vm = running(&mut court, "web");
    court.vm(&developer(), attach(&grown, &vm));
    let vm = court.vm(&developer(), grow(&grown, 30));
    assert_eq!((vm.volumes[0].size_gib, vm.volumes_since), (30, vm.generation));
    court.accept(&developer(), detach(&grown));
    assert_eq!(court.submit(&developer(), grow(&grown, 40)), Err(RefusalCode::StateWrong));
}

#[test]
fn a_volume_that_was_never_made_does_not_grow() {
    let mut court = Court::furnished();
    let volume = changed(&court.accept(&developer(), new_volume("data", 10)));
    assert_eq!(court.submit(&developer(), grow(&volume, 20)), Err(RefusalCode::StateWrong));
}

#[test]
fn a_judge_begun_from_a_snapshot_knows_the_names_users_and_sizes_of_volumes() {
    let mut court = Court::furnished();
    let vm = running(&mut court, "web");
    let volume = ready(&mut court, "data");
    let vm = court.vm(&developer(), attach(&volume, &vm));
    court.judge = snapshot::copy(&court);
    assert_eq!(court.submit(&developer(), new_volume("data", 1)), Err(RefusalCode::NameTaken));
    assert_eq!(court.submit(&developer(), delete(&volume)), Err(RefusalCode::StateWrong));
    let left = 50 - volume.size_gib - vm.size.disk_gib;
    let more = court.submit(&developer(), new_volume("more", left + 1));
    assert_eq!(more, Err(RefusalCode::GrantExceeded));
    court.accept(&developer(), new_volume("more", left));
    let vm = court.vm(&developer(), Body::VmDelete(change(&vm)));
    let effects = court.accept(&agent_key(1), report(vm.id, vm.generation, ReportPhase::Deleted));
    assert_eq!(changed(&effects).used_by, VolumeUse::Free {});
}
