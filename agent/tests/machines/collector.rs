//! What is removed for ever: only what was deleted, only after its time, one thing at a time.

use std::collections::{BTreeMap, BTreeSet};

use dagger_agent::actuator::disks::Disks;
use dagger_agent::actuator::store::StoredDisks;
use dagger_agent::controller::proof::{DeleteProof, RemainsProof, Remnant};
use dagger_agent::controller::{
    Collection, Controller, Input, LocalPolicy, Output, Retention, Stored, StoredOverlay,
};
use dagger_agent::handover::{AttestedVm, Order, ReportSubject};
use dagger_images::ImportDirectories;
use dagger_payload::id::{ImageDigest, LedgerTime, VmId};
use dagger_payload::kind::{ReportPhase, VolumePhase};
use dagger_payload::object::Wanted;

use super::desk::Desk;
use super::support::{HERE, VM, accepted, after, offered, report, wants};
use super::volumes::{NextVolume, VOLUME, volume};

const HOUR_MS: u64 = 3_600_000;
const OTHER: VmId = VmId([9; 16]);

pub(crate) fn keeping(quarantine: Option<u64>, images: Option<u64>) -> Desk {
    let mut desk = Desk::new();
    let retention = Retention { quarantine_hours: quarantine, unused_image_hours: images };
    desk.controller =
        Controller::new(HERE, LocalPolicy::default(), BTreeMap::new()).keeping(retention);
    desk
}

/// The last version of a VM that was deleted here.
fn deleted(vm: VmId) -> AttestedVm {
    let mut deleted = after(&wants(&accepted(), Wanted::Deleted), |vm| {
        vm.reported = Some(report(2, ReportPhase::Deleted));
    });
    deleted.vm.id = vm;
    deleted
}

pub(crate) fn at(hours: u64) -> Input {
    Input::Order(Order::LedgerTime(LedgerTime(hours * HOUR_MS)))
}

fn remains(subjects: &[Remnant]) -> Stored {
    Stored { remains: subjects.iter().copied().collect(), ..Stored::default() }
}

fn collected(outputs: &[Output]) -> Vec<Remnant> {
    let subject = |output: &Output| match output {
        Output::Collect(collection) => match &**collection {
            Collection::Remains(proof) => Some(proof.subject()),
            Collection::Image(_) => None,
        },
        _ => None,
    };
    outputs.iter().filter_map(subject).collect()
}

pub(crate) fn images(outputs: &[Output]) -> Vec<ImageDigest> {
    let image = |output: &Output| match output {
        Output::Collect(collection) => match &**collection {
            Collection::Image(proof) => Some(proof.image()),
            Collection::Remains(_) => None,
        },
        _ => None,
    };
    outputs.iter().filter_map(image).collect()
}

#[test]
fn without_a_retention_time_nothing_is_looked_at_and_nothing_removed() {
    let mut desk = keeping(None, None);
    desk.vm(&deleted(VM));
    desk.take(at(1));
    desk.take(at(1_000_000));
    assert!(!desk.caught_up().contains(&Output::LookAtStores));
    let everything = Stored { images: [ImageDigest([1; 32])].into(), ..remains(&[vm(VM)]) };
    assert_eq!(desk.take(Input::Stored(everything)), []);
    assert_eq!(desk.controller.next_wake(), None);
}

fn vm(vm: VmId) -> Remnant {
    Remnant::Of(ReportSubject::Vm(vm))
}

#[test]
fn what_was_deleted_goes_after_its_time_and_what_nobody_deleted_never() {
    let mut desk = keeping(Some(24), None);
    desk.vm(&deleted(VM));
    desk.take(at(10));
    assert!(desk.caught_up().contains(&Output::LookAtStores));
    let all = || Input::Stored(remains(&[vm(VM), vm(OTHER)]));
    desk.take(at(33));
    assert_eq!(desk.take(all()), [], "before its time");
    desk.take(at(34));
    assert_eq!(collected(&desk.take(all())), [vm(VM)]);
    assert_eq!(desk.take(Input::Collected), []);
    // A VM that is wanted, or only wanted gone, is no proof.
    for version in [accepted(), wants(&accepted(), Wanted::Deleted), offered()] {
        assert_eq!(RemainsProof::of_vm(&version, HERE), None);
    }
    assert_eq!(RemainsProof::of_vm(&deleted(VM), super::support::ELSEWHERE), None);
}

#[test]
fn a_volume_goes_like_a_vm_and_the_time_counts_from_its_own_deletion_also_after_a_restart() {
    let mut desk = keeping(Some(24), None);
    // The history is told anew: two commits, long ago and just now.
    let gone = volume().reported(VolumePhase::Ready).deleted().reported(VolumePhase::Deleted);
    desk.order(Order::Volume(Box::new(gone)));
    desk.take(at(10));
    desk.vm(&deleted(VM));
    desk.take(at(100));
    desk.caught_up();
    let volume = Remnant::Of(ReportSubject::Volume(VOLUME));
    let outputs = desk.take(Input::Stored(remains(&[vm(VM), volume])));
    assert_eq!(collected(&outputs), [volume]);
}

#[test]
fn one_thing_is_removed_at_a_time_and_one_that_cannot_be_removed_holds_up_no_other() {
    let mut desk = keeping(Some(1), None);
    desk.vm(&deleted(VM));
    desk.vm(&deleted(OTHER));
    desk.take(at(1));
    desk.take(at(2));
    desk.caught_up();
    let both = || Input::Stored(remains(&[vm(VM), vm(OTHER)]));
    assert_eq!(collected(&desk.take(both())), [vm(VM)]);
    assert_eq!(desk.take(both()), [], "two at a time");
    // It failed: the next one follows, and the failed one comes again after the next look.
    assert_eq!(collected(&desk.take(Input::Collected)), [vm(OTHER)]);
    assert_eq!(desk.take(Input::Collected), []);
    assert_eq!(desk.wait(600), [Output::LookAtStores]);
    assert_eq!(collected(&desk.take(Input::Stored(remains(&[vm(VM)])))), [vm(VM)]);
    // On hold nothing is removed.
    desk.order(Order::Hold("older than before".to_owned()));
    assert_eq!(desk.take(Input::Collected), []);
    assert_eq!(desk.take(both()), []);
}

#[test]
fn an_image_goes_once_no_vm_and_no_disk_has_needed_it_for_its_time() {
    let needed = offered().vm.image.digest;
    let [below, unused] = [8, 9].map(|byte| ImageDigest([byte; 32]));
    let stored = |overlays: &[StoredOverlay]| {
        let images = BTreeSet::from([needed, below, unused]);
        Input::Stored(Stored { images, overlays: overlays.to_vec(), ..Stored::default() })
    };
    let disk = StoredOverlay { vm: OTHER, image: Some(below) };
    let held = StoredOverlay { vm: VM, image: None };
    let mut desk = keeping(None, Some(24));
    desk.vm(&accepted());
    desk.take(at(1));
    desk.caught_up();
    assert_eq!(desk.take(stored(&[disk, held])), []);
    desk.take(at(24));
    assert_eq!(desk.take(stored(&[disk, held])), [], "before its time");
    desk.take(at(25));
    // A disk that nobody can read, of a VM that nobody knows, may lie over any image.
    let stranger = StoredOverlay { vm: VmId([0xaa; 16]), image: None };
    assert_eq!(desk.take(stored(&[disk, held, stranger])), []);
    assert_eq!(desk.take(stored(&[disk, held])), [], "the time begins again");
    desk.take(at(49));
    assert_eq!(images(&desk.take(stored(&[disk, held]))), [unused]);
}

#[test]
fn an_image_that_is_needed_by_the_time_its_turn_comes_stays() {
    let needed = offered().vm.image.digest;
    let unused = ImageDigest([0; 32]);
    let stored = || Input::Stored(Stored { images: [needed, unused].into(), ..Stored::default() });
    let mut desk = keeping(None, Some(24));
    desk.take(at(1));
    desk.caught_up();
    desk.take(stored());
    desk.take(at(25));
    assert_eq!(images(&desk.take(stored())), [unused], "one at a time");
    desk.vm(&offered());
    assert_eq!(desk.take(Input::Collected), []);
}

#[test]
fn a_collected_vm_leaves_nothing_and_everything_else_in_quarantine_stays() {
    let directory = tempfile::tempdir().unwrap();
    let stores = StoredDisks::open(directory.path(), HERE, ImportDirectories::default()).unwrap();
    for vm in [VM, OTHER] {
        std::fs::write(stores.disk_path(vm), "precious").unwrap();
        std::fs::write(directory.path().join(format!("consoles/{vm}.log")), "login: ").unwrap();
        let mut gone = wants(&accepted(), Wanted::Deleted);
        gone.vm.id = vm;
        stores.quarantine(&DeleteProof::of(&gone, HERE).unwrap()).unwrap();
    }
    std::fs::write(directory.path().join("disks/quarantine/saved"), "by hand").unwrap();
    assert_eq!(stores.stored().unwrap().remains, [vm(VM), vm(OTHER)].into());
    stores.collect(&RemainsProof::of_vm(&deleted(VM), HERE).unwrap()).unwrap();
    let survey = stores.survey().unwrap();
    let names: Vec<_> = survey.remains.iter().map(|remains| remains.name.clone()).collect();
    let account = accepted().vm.account;
    let [disk, console] =
        [format!("{HERE}-{OTHER}.qcow2.{account}.0"), format!("{OTHER}.log.{account}.0")];
    assert_eq!(names, [disk, "saved".to_owned(), console]);
}
