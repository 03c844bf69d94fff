//! How releases tell of VMs: a new one whole, a change of one without what never changes.

use dagger_payload::codec::encode;
use dagger_payload::limits::USER_DATA_BYTES_MAX;
use dagger_payload::proven::Proven;
use dagger_payload::snapshot::{SnapshotHead, extend_history};
use dagger_payload::state_tree::Subject;
use dagger_processor::judge::snapshot::SnapshotError;

use super::proofs::shown;
use super::snapshot::{read, write_down};
use super::*;

/// A VM whose texts are as long as they may be.
fn talkative() -> Body {
    Body::VmCreate(Box::new(VmCreate {
        host: Some(host(1)),
        public_user_data: Some("x".repeat(USER_DATA_BYTES_MAX)),
        ..create_body("web", 1)
    }))
}

fn running(court: &mut Court) -> Vm {
    let vm = court.vm(&developer(), talkative());
    court.report(&vm, 1, ReportPhase::Accepted).expect("accepted");
    court.report(&vm, 1, ReportPhase::Running).expect("running")
}

#[test]
fn a_change_of_a_vm_is_told_in_few_bytes_however_long_its_texts_are() {
    let mut court = Court::furnished();
    let vm = running(&mut court);
    let asked = court.sign(&developer(), Body::VmReboot(change(&vm)));
    let mut release = court.release(vec![asked]);
    let bytes = encode(&release).len();
    assert!(bytes < 1024, "{bytes} bytes");
    let [Effect::VmChanged(told)] = &release.releases[0].effects[..] else { panic!("{release:?}") };
    assert_eq!((told.id, told.booted_since), (vm.id, vm.generation.next()));

    // A reader who has the version before knows all of the new one, as it stands in the state.
    court.read(&mut release);
    let [Effect::Vm(whole)] = &release.releases[0].effects[..] else { panic!("{release:?}") };
    assert_eq!(whole.public_user_data, vm.public_user_data);
    let proven = shown(&mut court, &Subject::Vm(vm.id)).expect("it is there");
    assert_eq!(proven, Proven::Vm(whole.clone()));
}

#[test]
fn a_new_vm_is_told_whole_also_when_the_same_commit_changes_it() {
    let mut court = Court::furnished();
    let wish = court.sign(&developer(), talkative());
    let id = VmId::of(&wish.digest());
    let stop = VmChange { vm: id, expected_generation: None };
    let stop = court.sign(&developer(), Body::VmStop(stop.into()));
    let release = court.release(vec![wish, stop]);
    let told: Vec<&Effect> = release.effects().collect();
    let [Effect::Vm(made), Effect::VmChanged(stopped)] = told[..] else { panic!("{told:?}") };
    assert_eq!((made.id, stopped.id), (id, id));
    assert_eq!(stopped.of(made).map(|vm| vm.name), Ok(made.name.clone()));
}

#[test]
fn the_last_version_of_a_vm_is_told_as_a_change_too() {
    let mut court = Court::furnished();
    let vm = running(&mut court);
    let vm = court.vm(&developer(), Body::VmDelete(change(&vm)));
    let gone = court.sign(&agent_key(1), report(vm.id, vm.generation, ReportPhase::Deleted));
    let release = court.release(vec![gone]);
    let told: Vec<&Effect> = release.effects().collect();
    let [Effect::VmChanged(last), Effect::Usage(_)] = told[..] else { panic!("{told:?}") };
    assert_eq!(last.id, vm.id);
}

#[test]
fn the_chain_covers_what_is_told() {
    let mut court = Court::furnished();
    let vm = running(&mut court);
    let before = court.judge.anchor().history;
    let asked = court.sign(&developer(), Body::VmReboot(change(&vm)));
    let mut release = court.release(vec![asked]);
    assert_eq!(extend_history(&before, &release), court.judge.anchor().history);
    court.read(&mut release);
    assert_ne!(extend_history(&before, &release), court.judge.anchor().history);
}

#[test]
fn a_snapshot_holds_whole_vms_and_nothing_else() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), create("web", 1));
    let (head, chunks) = write_down(&court.judge);
    let whole = encode(&Effect::Vm(Box::new(vm.clone())));
    let at = chunks[0].windows(whole.len()).position(|part| part == whole).expect("it is there");
    let told = encode(&Effect::VmChanged(Box::new(vm.change())));
    let chunk = [&chunks[0][..at], &told[..], &chunks[0][at + whole.len()..]].concat();
    let bytes = u64::try_from(chunk.len()).expect("a length");
    let false_head = SnapshotHead { bytes, ..head };
    let judge = read(&court, false_head, &[chunk]);
    assert_eq!(judge.err(), Some(SnapshotError::Malformed));
}
