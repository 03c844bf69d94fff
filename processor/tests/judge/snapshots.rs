//! Volumes' snapshots: when they may be taken, put back, cloned and deleted, and what they cost.

use dagger_payload::id::SnapshotId;
use dagger_payload::kind::{
    ReportSnapshot, SnapshotDelete, VolumeClone, VolumePhase, VolumeRestore, VolumeSnapshot,
};
use dagger_payload::limits::VOLUME_SNAPSHOTS_MAX;
use dagger_payload::volume::{Snapshot, SnapshotState, Volume, VolumeDisk, VolumeState};

use super::volumes::{attach, changed, delete, detach, grow, new_volume, ready, running, told};
use super::*;

fn take(volume: &Volume, name: &str) -> Body {
    let name = name.parse().expect("a name");
    Body::VolumeSnapshot(VolumeSnapshot { volume: volume.id, name, expected_generation: None })
}

fn restore(volume: &Volume, snapshot: SnapshotId) -> Body {
    let volume = volume.id;
    Body::VolumeRestore(VolumeRestore { volume, snapshot, expected_generation: None })
}

fn clone(volume: &Volume, snapshot: SnapshotId, size_gib: u64) -> Body {
    let name = "copy".parse().expect("a name");
    Body::VolumeClone(VolumeClone { name, volume: volume.id, snapshot, size_gib })
}

fn forget(volume: &Volume, snapshot: SnapshotId) -> Body {
    Body::SnapshotDelete(SnapshotDelete { volume: volume.id, snapshot })
}

fn said(volume: &Volume, snapshot: SnapshotId, phase: VolumePhase) -> Body {
    Body::ReportSnapshot(ReportSnapshot { volume: volume.id, snapshot, phase, reason: None })
}

/// Asks for a snapshot; its host has not made it.
fn asked(court: &mut Court, volume: &Volume, name: &str) -> (Volume, Snapshot) {
    let volume = changed(&court.accept(&developer(), take(volume, name)));
    let snapshot = volume.snapshots.last().expect("one more").clone();
    (volume, snapshot)
}

/// A volume with a snapshot that its host has made.
fn kept(court: &mut Court, volume: &Volume, name: &str) -> (Volume, SnapshotId) {
    let (volume, snapshot) = asked(court, volume, name);
    let report = said(&volume, snapshot.id, VolumePhase::Ready);
    (changed(&court.accept(&agent_key(1), report)), snapshot.id)
}

#[test]
fn nobody_gets_a_volume_before_its_host_has_made_the_snapshot_that_was_asked_for() {
    let mut court = Court::furnished();
    let vm = running(&mut court, "web");
    let volume = ready(&mut court, "data");
    let (pending, snapshot) = asked(&mut court, &volume, "monday");
    assert_eq!((pending.state(), snapshot.state()), (VolumeState::Pending, SnapshotState::Pending));
    assert_eq!(pending.generation, volume.generation, "nothing on the disk changes");
    for early in [
        attach(&volume, &vm),
        grow(&volume, 20),
        take(&volume, "tuesday"),
        restore(&volume, snapshot.id),
        clone(&volume, snapshot.id, 10),
        delete(&volume),
    ] {
        assert_eq!(court.submit(&developer(), early), Err(RefusalCode::StateWrong));
    }
    let strange = said(&volume, snapshot.id, VolumePhase::Ready);
    assert_eq!(court.submit(&agent_key(2), strange.clone()), Err(RefusalCode::Conflict));
    let made = changed(&court.accept(&agent_key(1), strange));
    assert_eq!(
        (made.state(), made.snapshots[0].state()),
        (VolumeState::Ready, SnapshotState::Ready)
    );
    let again = said(&volume, snapshot.id, VolumePhase::Ready);
    assert_eq!(court.accept(&agent_key(1), again), vec![]);
    court.vm(&developer(), attach(&volume, &vm));
}

#[test]
fn what_a_vm_may_be_writing_to_is_not_put_back_and_can_be_kept_and_cloned_from() {
    let mut court = Court::furnished();
    let vm = running(&mut court, "web");
    let volume = ready(&mut court, "data");
    let (volume, snapshot) = kept(&mut court, &volume, "monday");
    court.vm(&developer(), attach(&volume, &vm));
    let torn = court.submit(&developer(), restore(&volume, snapshot));
    assert_eq!(torn, Err(RefusalCode::StateWrong));
    let (pending, tuesday) = asked(&mut court, &volume, "tuesday");
    assert_eq!((pending.state(), tuesday.state()), (VolumeState::Attached, SnapshotState::Pending));
    // One at a time, and in the size that its host was told.
    for early in [take(&volume, "wednesday"), grow(&volume, 20), clone(&volume, tuesday.id, 10)] {
        assert_eq!(court.submit(&developer(), early), Err(RefusalCode::StateWrong));
    }
    // Its host cannot: whoever asked gives up, and everything else goes on.
    court.accept(&agent_key(1), said(&volume, tuesday.id, VolumePhase::Degraded));
    let again = court.sign(&developer(), take(&volume, "again"));
    let Verdict::Refused(told) = court.commit(vec![again]).releases.remove(0).verdict else {
        panic!("one copy at a time");
    };
    assert_eq!(told.detail, "the snapshot tuesday could not be made: delete it first");
    let given_up = changed(&court.accept(&developer(), forget(&volume, tuesday.id)));
    assert_eq!(given_up.state(), VolumeState::Attached);
    court.accept(&agent_key(1), said(&volume, tuesday.id, VolumePhase::Deleted));
    kept(&mut court, &volume, "wednesday");
    let copy = changed(&court.accept(&developer(), clone(&volume, snapshot, 12)));
    assert_eq!((copy.size_gib, copy.host, copy.disk), (12, volume.host, VolumeDisk::NotReported));
    assert_eq!(copy.origin.map(|origin| origin.snapshot), Some(snapshot));
    court.accept(&developer(), detach(&volume));
    for leaving in [restore(&volume, snapshot), take(&volume, "thursday")] {
        assert_eq!(court.submit(&developer(), leaving), Err(RefusalCode::StateWrong));
    }
}

#[test]
fn a_volume_that_is_put_back_is_nobodys_until_its_host_has_done_it() {
    let mut court = Court::furnished();
    let vm = running(&mut court, "web");
    let volume = ready(&mut court, "data");
    let (volume, snapshot) = kept(&mut court, &volume, "monday");
    let unknown = court.submit(&developer(), restore(&volume, SnapshotId([9; 16])));
    assert_eq!(unknown, Err(RefusalCode::NotFound));
    let volume = changed(&court.accept(&developer(), restore(&volume, snapshot)));
    assert_eq!((volume.restoring, volume.state()), (Some(snapshot), VolumeState::Pending));
    assert_eq!(court.accept(&developer(), restore(&volume, snapshot)), vec![]);
    for early in [attach(&volume, &vm), take(&volume, "tuesday"), forget(&volume, snapshot)] {
        assert_eq!(court.submit(&developer(), early), Err(RefusalCode::StateWrong));
    }
    let volume = changed(&court.accept(&agent_key(1), told(&volume, VolumePhase::Ready)));
    assert_eq!((volume.restoring, volume.state()), (None, VolumeState::Ready));
    court.vm(&developer(), attach(&volume, &vm));
}

#[test]
fn a_host_that_cannot_put_a_volume_back_leaves_a_way_out() {
    let mut court = Court::furnished();
    let volume = ready(&mut court, "data");
    let (volume, first) = kept(&mut court, &volume, "first");
    let (volume, second) = kept(&mut court, &volume, "second");
    let volume = changed(&court.accept(&developer(), restore(&volume, first)));
    let other = court.submit(&developer(), restore(&volume, second));
    assert_eq!(other, Err(RefusalCode::StateWrong));
    let volume = changed(&court.accept(&agent_key(1), told(&volume, VolumePhase::Degraded)));
    let volume = changed(&court.accept(&developer(), restore(&volume, second)));
    let volume = changed(&court.accept(&agent_key(1), told(&volume, VolumePhase::Degraded)));
    for snapshot in [first, second] {
        court.accept(&developer(), forget(&volume, snapshot));
    }
    let gone = changed(&court.accept(&developer(), delete(&volume)));
    assert_eq!(gone.restoring, None);
}

#[test]
fn a_snapshot_stays_while_something_is_still_to_be_made_from_it() {
    let mut court = Court::furnished();
    let volume = ready(&mut court, "data");
    let (volume, snapshot) = kept(&mut court, &volume, "monday");
    let small = court.submit(&developer(), clone(&volume, snapshot, 9));
    assert_eq!(small, Err(RefusalCode::StateWrong), "what is cut off would be lost");
    let copy = changed(&court.accept(&developer(), clone(&volume, snapshot, 10)));
    court.judge = snapshot::copy(&court);
    for early in [forget(&volume, snapshot), delete(&volume)] {
        assert_eq!(court.submit(&developer(), early), Err(RefusalCode::StateWrong));
    }
    court.accept(&agent_key(1), told(&copy, VolumePhase::Ready));
    let volume = changed(&court.accept(&developer(), forget(&volume, snapshot)));
    assert_eq!(volume.snapshots[0].state(), SnapshotState::Deleting);
    assert_eq!(court.accept(&developer(), forget(&volume, snapshot)), vec![]);
    let late = court.submit(&developer(), restore(&volume, snapshot));
    assert_eq!(late, Err(RefusalCode::StateWrong));
    let report = said(&volume, snapshot, VolumePhase::Deleted);
    let volume = changed(&court.accept(&agent_key(1), report));
    assert!(volume.snapshots.is_empty());
}

#[test]
fn only_what_was_asked_for_is_reported_gone_and_it_may_go_while_a_vm_has_the_volume() {
    let mut court = Court::furnished();
    let vm = running(&mut court, "web");
    let volume = ready(&mut court, "data");
    let (volume, snapshot) = kept(&mut court, &volume, "monday");
    let lost = said(&volume, snapshot, VolumePhase::Deleted);
    assert_eq!(court.submit(&agent_key(1), lost.clone()), Err(RefusalCode::StateWrong));
    court.vm(&developer(), attach(&volume, &vm));
    court.accept(&developer(), forget(&volume, snapshot));
    let back = said(&volume, snapshot, VolumePhase::Ready);
    assert_eq!(court.submit(&agent_key(1), back), Err(RefusalCode::StateWrong));
    let volume = changed(&court.accept(&agent_key(1), lost));
    assert_eq!(volume.state(), VolumeState::Attached);
    assert!(volume.snapshots.is_empty());
}

#[test]
fn a_snapshot_costs_what_its_volume_does_from_the_order_until_its_host_says_that_it_is_gone() {
    let mut court = Court::furnished();
    let volume = ready(&mut court, "data");
    court.now = court.now.plus_ms(1_000);
    let (volume, snapshot) = kept(&mut court, &volume, "monday");
    assert_eq!((volume.size().disk_gib, volume.meter.used.disk_gib_ms), (20, 10 * 1_000));
    let more = |size| new_volume("more", size);
    assert_eq!(court.submit(&developer(), more(31)), Err(RefusalCode::GrantExceeded));
    let filler = changed(&court.accept(&developer(), more(25)));
    let over = court.submit(&developer(), take(&volume, "tuesday"));
    assert_eq!(over, Err(RefusalCode::GrantExceeded));
    let over = court.submit(&developer(), clone(&volume, snapshot, 10));
    assert_eq!(over, Err(RefusalCode::GrantExceeded));
    court.now = court.now.plus_ms(1_000);
    court.accept(&developer(), forget(&volume, snapshot));
    court.judge = snapshot::copy(&court);
    let over = court.submit(&developer(), take(&volume, "tuesday"));
    assert_eq!(over, Err(RefusalCode::GrantExceeded), "it is not gone yet");
    let report = said(&volume, snapshot, VolumePhase::Deleted);
    let volume = changed(&court.accept(&agent_key(1), report));
    assert_eq!((volume.size().disk_gib, volume.meter.used.disk_gib_ms), (10, 30 * 1_000));
    court.accept(&developer(), delete(&filler));
    court.accept(&developer(), take(&volume, "tuesday"));
}

#[test]
fn names_of_snapshots_are_an_accounts_and_a_volume_has_so_many() {
    let mut court = Court::furnished();
    let made = changed(&court.accept(&developer(), new_volume("data", 1)));
    let made = changed(&court.accept(&agent_key(1), told(&made, VolumePhase::Ready)));
    let other = ready(&mut court, "other");
    let mut volume = made;
    for number in 0..VOLUME_SNAPSHOTS_MAX {
        (volume, _) = kept(&mut court, &volume, &format!("number{number}"));
    }
    court.judge = snapshot::copy(&court);
    let full = court.submit(&developer(), take(&volume, "more"));
    assert_eq!(full, Err(RefusalCode::LimitExceeded));
    let taken = court.submit(&developer(), take(&other, "number3"));
    assert_eq!(taken, Err(RefusalCode::NameTaken));
    let third = volume.snapshots[3].id;
    court.accept(&developer(), forget(&volume, third));
    let taken = court.submit(&developer(), take(&other, "number3"));
    assert_eq!(taken, Err(RefusalCode::NameTaken), "it is not gone yet");
    court.accept(&agent_key(1), said(&volume, third, VolumePhase::Deleted));
    court.accept(&developer(), take(&other, "number3"));
    assert_eq!(
        court.submit(&key(77), take(&volume, "mine")),
        Err(RefusalCode::AccountUnknown),
        "a stranger"
    );
}
