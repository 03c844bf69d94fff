//! What needs room for a whole disk at once, what a machine says, and what is deleted.
//!
//! Setting: the real stores, and a file system of a few MiB that becomes smaller meanwhile. Where a
//! hypervisor copies beside its guest, `qemu-img` does here. The guest that speaks is that of the
//! program that behaves like Cloud Hypervisor.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dagger_agent::actuator::disks::Disks;
use dagger_agent::controller::proof::DeleteProof;
use dagger_agent::hypervisor::HypervisorError;
use dagger_agent::machines::Backend;
use dagger_api::Sight;
use dagger_payload::id::AccountId;
use dagger_payload::kind::{ReportPhase, StopManner};
use dagger_payload::object::Wanted;

use super::half::{Half, store_image};
use super::operations::{Host, Operation, SNAPSHOT, VM, VOLUME, restore_proof};
use super::program_under_test::{configuration, contract_program, firmware};
use super::small_disk::{Lack, PAGE_BYTES, SmallDisk};
use super::versions::{HERE, attested};

/// So many pages are less than a copy and the reserve need.
const PAGES_SHORT: u64 = 8;

/// As a hypervisor does it: into the empty disk that is there.
fn copy_by_hand(from: &Path, to: &Path) -> Result<(), HypervisorError> {
    let words = ["convert", "-q", "-n", "-f", "qcow2", "-O", "qcow2"];
    let output = Command::new("qemu-img").args(words).args([from, to]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    output.status.success().then_some(()).ok_or(HypervisorError::Failed(said))
}

#[test]
fn a_snapshot_beside_a_guest_is_not_begun_without_room_and_one_that_fills_the_disk_leaves_nothing()
{
    let disk = SmallDisk::new();
    let host = Host::new(&disk);
    Operation::KeepSnapshot.prepare(&host);
    let volume = host.disks.volume_path(VOLUME);
    let keep = |copy: &dyn Fn(&Path) -> Result<(), HypervisorError>| {
        host.disks.ensure_snapshot_by(VOLUME, SNAPSHOT, 1, copy).map_err(|error| error.to_string())
    };
    let before = disk.files();

    disk.shrink(PAGES_SHORT);
    let unasked = |_: &Path| panic!("the guest's hypervisor was asked without room for the copy");
    let why = keep(&unasked).unwrap_err();
    assert!(why.starts_with("disk_full: no_room: "), "{why}");
    assert_eq!(disk.files(), before);
    disk.grow();

    // Others fill it meanwhile.
    let crowded = |path: &Path| {
        disk.shrink(1);
        copy_by_hand(&volume, path)
    };
    let why = keep(&crowded).unwrap_err();
    assert!(why.contains("No space left on device"), "{why}");
    assert_eq!(disk.files(), before, "something half-made is left");
    disk.grow();
    host.check();

    assert_eq!(keep(&|path| copy_by_hand(&volume, path)), Ok(()));
    assert_eq!(disk.files().len(), before.len() + 1);
    host.check();
}

#[test]
fn no_copy_of_a_volume_is_begun_without_room_for_it() {
    for operation in [Operation::KeepSnapshot, Operation::CloneVolume, Operation::RestoreVolume] {
        let disk = SmallDisk::new();
        let host = Host::new(&disk);
        operation.prepare(&host);
        let before = disk.files();
        disk.shrink(PAGES_SHORT);
        let why = operation.perform(&host).unwrap_err();
        assert!(why.starts_with("disk_full: no_room: "), "{operation:?}: {why}");
        assert!(!why.bytes().any(|byte| byte.is_ascii_digit()), "{operation:?} is public: {why}");
        assert_eq!(disk.files(), before, "{operation:?}");
        disk.grow();
        assert_eq!(operation.perform(&host), Ok(()), "{operation:?}");
    }
}

#[test]
fn a_volume_is_put_back_so_often_as_its_account_has_room_for_what_that_replaces() {
    let disk = SmallDisk::new();
    let host = Host::new(&disk);
    Operation::RestoreVolume.prepare(&host);
    let account = restore_proof(2).account();
    let mut generation = 1;
    let refused = loop {
        generation += 1;
        assert_eq!(host.disks.require_quarantine_room(account), Ok(()), "{generation}");
        assert_eq!(host.disks.restore_volume(&restore_proof(generation)), Ok(()));
        host.write(2);
        if let Err(error) = host.disks.require_quarantine_room(account) {
            break error.to_string();
        }
        assert!(generation < 1000, "never full");
    };
    assert!(refused.starts_with("quarantine_full: "), "{refused}");
    let before = disk.files();
    let again = host.disks.restore_volume(&restore_proof(generation + 1)).unwrap_err();
    assert_eq!(again.to_string(), refused);
    assert_eq!(disk.files(), before, "nothing of it is lost, and nothing more comes");
    // What was carried out before it could be said is found so.
    assert_eq!(host.disks.restore_volume(&restore_proof(generation)), Ok(()));
    assert_eq!(disk.files(), before);
    host.reads(VOLUME, 2);
    // Nobody else is concerned, and the operator makes room.
    assert_eq!(host.disks.require_quarantine_room(AccountId([77; 16])), Ok(()));
    let last = format!(".replaced.{account}.{generation}");
    let replaced = before.keys().find(|path| path.to_string_lossy().ends_with(&last));
    fs::remove_file(replaced.unwrap()).unwrap();
    assert_eq!(host.disks.restore_volume(&restore_proof(generation + 1)), Ok(()));
    host.reads(VOLUME, 1);
}

#[test]
fn a_copy_of_a_whole_disk_is_not_begun_without_room_for_it_and_leaves_nothing_behind_with_it() {
    let disk = SmallDisk::new();
    let host = Host::new(&disk);
    Operation::MakeDisk.prepare(&host);
    assert_eq!(Operation::MakeDisk.perform(&host), Ok(()));
    let before = disk.files();
    disk.shrink(PAGES_SHORT);
    let error = host.disks.flatten(VM, &host.image).unwrap_err();
    assert!(error.is_for_want_of_space() && error.code() == "no_room", "{error}");
    assert_eq!(disk.files(), before);
    disk.grow();
    let copy = host.disks.flatten(VM, &host.image).unwrap();
    assert_eq!(copy.virtual_size_bytes, 1 << 30);
    assert_eq!(disk.files(), before, "the copy has a name");
}

#[test]
fn what_is_deleted_goes_into_quarantine_on_a_full_disk_too_and_nothing_of_it_is_lost() {
    let deleted = attested(VM, Wanted::Deleted, 2);
    let proof = DeleteProof::of(&deleted, HERE).unwrap();
    for lack in [Lack::Pages(0), Lack::Files] {
        let disk = SmallDisk::new();
        let host = Host::new(&disk);
        Operation::MakeDisk.prepare(&host);
        for made in [Operation::MakeDisk, Operation::MakeSeed] {
            assert_eq!(made.perform(&host), Ok(()));
        }
        let said = disk.path().join(format!("storage/consoles/{VM}.log"));
        fs::write(&said, "login:").unwrap();
        let contents = |disk: &SmallDisk| {
            let mut contents: Vec<_> = disk.files().into_values().collect();
            contents.sort_by_key(|digest| *digest.as_bytes());
            contents
        };
        let seed =
            disk.files().into_iter().find(|(path, _)| path.to_string_lossy().contains("seed"));
        let before: Vec<_> = contents(&disk)
            .into_iter()
            .filter(|it| Some(*it) != seed.as_ref().map(|s| s.1))
            .collect();
        disk.fill(lack);
        if let Err(error) = host.disks.quarantine(&proof) {
            let why = error.to_string();
            assert!(why.starts_with("disk_full: "), "{lack:?}: {why}");
            disk.free();
            host.disks.quarantine(&proof).unwrap();
        }
        assert!(!said.exists() && !host.disks.disk_path(VM).exists(), "{lack:?}");
        let after: Vec<_> = contents(&disk)
            .into_iter()
            .filter(|it| Some(*it) != seed.as_ref().map(|s| s.1))
            .collect();
        assert_eq!(after, before, "{lack:?}: what was deleted is not all there");
        host.disks.quarantine(&proof).unwrap();
    }
}

/// What the guest has said so far, as it is kept.
fn said(consoles: &Path) -> String {
    let read = fs::read(consoles.join(format!("{VM}.log")));
    String::from_utf8_lossy(&read.unwrap_or_default()).into_owned()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let work = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    let held = tokio::time::timeout(Duration::from_secs(60), work).await;
    held.unwrap_or_else(|_| panic!("never: {what}"));
}

#[test]
fn a_guest_whose_words_find_no_room_runs_on_and_is_heard_again_once_there_is_some() {
    let (disk, base) = (SmallDisk::new(), tempfile::Builder::new().prefix("dl").tempdir().unwrap());
    firmware(base.path());
    let image = store_image(base.path(), 1 << 20);
    let consoles = disk.path().join("consoles");
    fs::create_dir(&consoles).unwrap();
    symlink(&consoles, base.path().join("storage/consoles")).unwrap();
    super::run(async {
        let program = configuration(contract_program(), base.path());
        let mut half = Half::start(base.path(), Backend::CloudHypervisor(program), &[]).await;
        let version = |wanted, generation| {
            let mut version = attested(VM, wanted, generation);
            version.vm.image = image.clone();
            version.vm.size.memory_mib = 32;
            version.vm.stop_manner = StopManner::Forced;
            version
        };
        half.vm(&version(Wanted::Running, 1)).await;
        assert_eq!(half.report().await.phase, ReportPhase::Running);
        until("it is heard", || said(&consoles).contains("UP")).await;

        // To the end of the page, so that the next word needs another.
        let before = said(&consoles);
        let page = usize::try_from(PAGE_BYTES).unwrap();
        let rest = vec![b'.'; page - before.len() % page];
        let log = consoles.join(format!("{VM}.log"));
        OpenOptions::new().append(true).open(log).unwrap().write_all(&rest).unwrap();
        let whole = said(&consoles);
        disk.fill(Lack::Pages(0));
        let typing = half.console(VM).await.unwrap();
        for _ in 0..3 {
            typing.send(b"xyz".as_slice().into()).await.unwrap();
        }
        assert_eq!(said(&consoles), whole, "what it said before is kept");
        assert_eq!(half.sight(VM), Some(Sight::Running));
        disk.free();
        until("it is heard again", || {
            let typed = typing.try_send(b"again".as_slice().into());
            typed.is_ok() && said(&consoles)[whole.len()..].contains("again")
        })
        .await;
        assert!(said(&consoles).starts_with(&whole) && !typing.is_closed());
        half.vm(&version(Wanted::Deleted, 2)).await;
        assert_eq!(half.report().await.phase, ReportPhase::Deleted);
        half.end().await;
    });
}
