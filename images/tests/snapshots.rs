//! Snapshots of real qcow2 files, written and read with `qemu-io`, held by `qemu-system`'s locks.

// A test that meets what it does not expect has failed.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use dagger_images::disks::{Outcome, ReplacedName, SnapshotName};
use dagger_images::{DiskStore, ImageError, Quarantine, RemainsOf};
use dagger_payload::id::{AccountId, Generation, HostId, SnapshotId, VolumeId};

const HERE: HostId = HostId([1; 16]);
const VOLUME: VolumeId = VolumeId([2; 16]);
const COPY: VolumeId = VolumeId([3; 16]);
const ACCOUNT: AccountId = AccountId([6; 16]);
const SNAPSHOT: SnapshotId = SnapshotId([4; 16]);
const SIZE: u64 = 64 << 20;

fn qemu_io(disk: &Path, command: &str) {
    let output =
        Command::new("qemu-io").args(["-f", "qcow2", "-c", command]).arg(disk).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = !output.status.success() || said.contains("failed") || said.contains("error");
    assert!(!failed, "{command}: {said}{}", String::from_utf8_lossy(&output.stderr));
}

fn store(directory: &Path) -> DiskStore {
    DiskStore::open(directory, HERE).unwrap()
}

#[test]
fn what_was_on_a_volume_comes_back_and_begins_another_and_what_was_replaced_is_kept_aside() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let volume = store.ensure_volume(VOLUME, SIZE).unwrap().path;
    qemu_io(&volume, "write -P 0x11 1M 2M");
    assert_eq!(store.ensure_snapshot(VOLUME, SNAPSHOT).unwrap().outcome, Outcome::Created);
    qemu_io(&volume, "write -P 0x22 1M 4M");
    assert_eq!(store.ensure_snapshot(VOLUME, SNAPSHOT).unwrap().outcome, Outcome::Kept);
    store.grow_volume(VOLUME, 2 * SIZE).unwrap();

    let restore = || store.restore_volume((VOLUME, SNAPSHOT), (Generation(5), ACCOUNT)).unwrap();
    assert_eq!(restore(), Outcome::Created);
    qemu_io(&volume, "read -P 0x11 1M 2M");
    qemu_io(&volume, "read -P 0 3M 2M");
    store.grow_volume(VOLUME, 2 * SIZE).unwrap();
    // Asked again for the same order, it is left alone.
    qemu_io(&volume, "write -P 0x33 1M 1M");
    assert_eq!(restore(), Outcome::Kept);
    qemu_io(&volume, "read -P 0x33 1M 1M");

    assert_eq!(store.ensure_clone(COPY, (VOLUME, SNAPSHOT)).unwrap().outcome, Outcome::Created);
    store.quarantine_snapshot(VOLUME, SNAPSHOT, ACCOUNT).unwrap().unwrap();
    qemu_io(&store.volume_path(COPY), "read -P 0x11 1M 2M");
    let survey = store.survey().unwrap();
    assert_eq!(
        (survey.volumes, survey.snapshots, survey.foreign),
        (vec![VOLUME, COPY], vec![], vec![])
    );
    let remains = Quarantine::of(directory.path(), HERE).list().unwrap();
    let of: Vec<RemainsOf> = remains.iter().map(|remains| remains.of).collect();
    let replaced = RemainsOf::Replaced(VOLUME, Generation(5));
    assert_eq!(of, [RemainsOf::Snapshot(VOLUME, SNAPSHOT), replaced]);
    let aside = directory.path().join("quarantine").join(&remains[1].name);
    qemu_io(&aside, "read -P 0x22 1M 4M");
}

#[test]
fn a_volume_that_lost_its_file_between_two_renames_is_put_back_by_the_next_try() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let volume = store.ensure_volume(VOLUME, SIZE).unwrap().path;
    qemu_io(&volume, "write -P 0x11 0 1M");
    store.ensure_snapshot(VOLUME, SNAPSHOT).unwrap();
    let (account, generation) = (Some(ACCOUNT), Generation(5));
    let name = ReplacedName { host: HERE, volume: VOLUME, account, generation };
    let aside = directory.path().join("quarantine").join(name.to_string());
    std::fs::rename(&volume, aside).unwrap();
    let order = (Generation(5), ACCOUNT);
    let restored = store.restore_volume((VOLUME, SNAPSHOT), order).unwrap();
    assert_eq!(restored, Outcome::Created);
    qemu_io(&volume, "read -P 0x11 0 1M");
}

#[test]
fn what_an_older_agent_put_aside_for_an_order_still_says_that_it_was_carried_out() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let volume = store.ensure_volume(VOLUME, SIZE).unwrap().path;
    store.ensure_snapshot(VOLUME, SNAPSHOT).unwrap();
    let (account, generation) = (None, Generation(5));
    let name = ReplacedName { host: HERE, volume: VOLUME, account, generation };
    std::fs::write(directory.path().join("quarantine").join(name.to_string()), "was").unwrap();
    qemu_io(&volume, "write -P 0x33 1M 1M");
    let restored = store.restore_volume((VOLUME, SNAPSHOT), (generation, ACCOUNT)).unwrap();
    assert_eq!(restored, Outcome::Kept);
    qemu_io(&volume, "read -P 0x33 1M 1M");
    assert!(store.was_restored(VOLUME, (generation, ACCOUNT)).unwrap());
    assert!(!store.was_restored(VOLUME, (Generation(6), ACCOUNT)).unwrap());
}

#[test]
fn what_somebody_writes_to_is_neither_copied_nor_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let volume = store.ensure_volume(VOLUME, SIZE).unwrap().path;
    store.ensure_snapshot(VOLUME, SNAPSHOT).unwrap();
    let mut writer = Command::new("qemu-io")
        .args(["-f", "qcow2"])
        .arg(&volume)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut keys, said) = (writer.stdin.take().unwrap(), writer.stdout.take().unwrap());
    keys.write_all(b"write -P 0x44 0 1M\n").unwrap();
    // It has written, so it has the file, and its lock.
    let mut lines = BufReader::new(said).lines();
    assert!(lines.any(|line| line.unwrap().contains("wrote")));
    let other = SnapshotId([5; 16]);
    store.ensure_snapshot(VOLUME, other).unwrap_err();
    store.restore_volume((VOLUME, SNAPSHOT), (Generation(5), ACCOUNT)).unwrap_err();
    drop(keys);
    assert!(writer.wait().unwrap().success());
    assert!(!store.has_snapshot(VOLUME, other).unwrap(), "nothing half-made is left");
    store.ensure_snapshot(VOLUME, other).unwrap();
    let name = SnapshotName { host: HERE, volume: VOLUME, snapshot: other }.to_string();
    assert_eq!(name.parse::<SnapshotName>().unwrap().snapshot, other);
    qemu_io(&store.snapshot_path(VOLUME, other), "read -P 0x44 0 1M");
}

#[test]
fn a_snapshot_that_somebody_else_writes_is_whole_and_of_the_volumes_size_or_there_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let volume = store.ensure_volume(VOLUME, SIZE).unwrap().path;
    qemu_io(&volume, "write -P 0x11 1M 2M");
    let of = (VOLUME, SNAPSHOT);
    let copy = |copy: &Path| -> Result<(), ImageError> {
        let convert = ["convert", "-n", "-f", "qcow2", "-O", "qcow2"];
        let done = Command::new("qemu-img").args(convert).arg(&volume).arg(copy).status().unwrap();
        assert!(done.success());
        Ok(())
    };
    let nothing_is_left = || {
        assert_eq!(store.survey().unwrap().snapshots, []);
        let partial = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(".partial");
        let entries = std::fs::read_dir(directory.path()).unwrap().flatten();
        assert_eq!(entries.filter(|entry| partial(&entry.file_name())).count(), 0);
    };
    // It ends early, leaves no disk, or one of another size.
    let early = store.ensure_snapshot_by(of, SIZE, |_| Err(ImageError::DiskSize(7)));
    assert!(matches!(early, Err(ImageError::DiskSize(7))));
    nothing_is_left();
    let overwrite = |bytes: &'static [u8]| {
        move |copy: &Path| -> Result<(), ImageError> {
            std::fs::write(copy, bytes).unwrap();
            Ok(())
        }
    };
    assert!(store.ensure_snapshot_by(of, SIZE, overwrite(b"no disk")).is_err());
    nothing_is_left();
    let resized = |copy: &Path| -> Result<(), ImageError> {
        let resize = ["resize", "-q", "-f", "qcow2"];
        let done = Command::new("qemu-img").args(resize).arg(copy).arg("128M").status().unwrap();
        assert!(done.success());
        Ok(())
    };
    let larger = store.ensure_snapshot_by(of, SIZE, resized);
    assert!(matches!(larger, Err(ImageError::DiskSize(bytes)) if bytes == 2 * SIZE));
    nothing_is_left();

    let made = store.ensure_snapshot_by(of, SIZE, copy).unwrap();
    assert_eq!(made.outcome, Outcome::Created);
    qemu_io(&made.path, "read -P 0x11 1M 2M");
    let again =
        store.ensure_snapshot_by(of, SIZE, |_| -> Result<(), ImageError> { panic!("twice") });
    assert_eq!(again.unwrap().outcome, Outcome::Kept);
}
