//! Copies of volumes on file systems that share blocks, and on one that does not.
//!
//! Setting: XFS, btrfs and ext4 in files, mounted by loop devices in a mount namespace of the
//! test's own; needs root. Pinned: where blocks are shared a snapshot and a clone take next to
//! nothing, and are as independent of the volume as where they are whole copies.

// A test that meets what it does not expect has failed.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::Path;
use std::process::Command;

use dagger_images::DiskStore;
use dagger_payload::id::{HostId, SnapshotId, VolumeId};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::statvfs;

const VOLUME: VolumeId = VolumeId([2; 16]);
const COPY: VolumeId = VolumeId([3; 16]);
const SNAPSHOT: SnapshotId = SnapshotId([4; 16]);
const MIB: u64 = 1 << 20;
/// What the volume may hold.
const VOLUME_BYTES: u64 = 256 * MIB;
/// What is written to it.
const WRITTEN_BYTES: u64 = 64 * MIB;
/// What one copy may take where blocks are shared: tables of the file system.
const SHARED_BYTES_MAX: u64 = 4 * MIB;

/// Runs a tool; returns what it says when it fails.
fn run(program: &str, words: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(words).output().expect(program);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let failed = !output.status.success() || said.contains("failed") || said.contains("error");
    if failed { Err(format!("{program} {words:?}: {said}")) } else { Ok(()) }
}

fn qemu_io(disk: &Path, command: &str) {
    run("qemu-io", &["-f", "qcow2", "-c", command, disk.to_str().unwrap()]).unwrap();
}

/// Whether this kernel has the file system; it may be a module that is loaded when first needed.
fn kernel_has(kind: &str) -> bool {
    let _ = Command::new("modprobe").args(["-q", kind]).status();
    let known = std::fs::read_to_string("/proc/filesystems").unwrap();
    known.lines().any(|line| line.split_whitespace().next_back() == Some(kind))
}

/// What is free, once everything is on the disk.
fn free_bytes(directory: &Path) -> u64 {
    nix::unistd::syncfs(File::open(directory).unwrap()).unwrap();
    let told = statvfs(directory).unwrap();
    told.blocks_free() * told.fragment_size()
}

/// Keeps a volume and makes another of what was kept, on a new file system of this kind; returns
/// what the two copies took.
fn two_copies_take_bytes(kind: &str) -> u64 {
    let base = tempfile::tempdir().unwrap();
    let (file, directory) = (base.path().join("disk"), base.path().join("mounted"));
    File::create(&file).unwrap().set_len(1024 * MIB).unwrap();
    std::fs::create_dir(&directory).unwrap();
    let (file, mounted) = (file.to_str().unwrap(), directory.to_str().unwrap());
    run(&format!("mkfs.{kind}"), &["-q", file]).unwrap();
    run("mount", &["-o", "loop", file, mounted]).unwrap();
    let store = DiskStore::open(&directory.join("disks"), HostId([1; 16])).unwrap();
    let volume = store.ensure_volume(VOLUME, VOLUME_BYTES).unwrap().path;
    qemu_io(&volume, &format!("write -P 0x11 1M {WRITTEN_BYTES}"));
    let before = free_bytes(&directory);
    store.ensure_snapshot(VOLUME, SNAPSHOT).unwrap();
    store.ensure_clone(COPY, (VOLUME, SNAPSHOT)).unwrap();
    let taken = before.saturating_sub(free_bytes(&directory));
    // What is written to one is read from none of the others.
    qemu_io(&volume, "write -P 0x22 1M 2M");
    qemu_io(&store.volume_path(COPY), "write -P 0x33 2M 2M");
    qemu_io(&store.snapshot_path(VOLUME, SNAPSHOT), &format!("read -P 0x11 1M {WRITTEN_BYTES}"));
    qemu_io(&store.volume_path(COPY), "read -P 0x11 1M 1M");
    qemu_io(&volume, "read -P 0x22 2M 1M");
    drop(store);
    run("umount", &[mounted]).unwrap();
    taken
}

#[test]
fn copies_of_a_volume_take_next_to_nothing_where_the_file_system_shares_blocks() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace of one's own needs root");
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
    let (there, lacking): (Vec<_>, Vec<_>) =
        ["xfs", "btrfs"].into_iter().partition(|kind| kernel_has(kind));
    assert!(!there.is_empty(), "this kernel has neither XFS nor btrfs");
    println!("not tried, for this kernel has them not: {lacking:?}");
    for kind in there {
        let taken = two_copies_take_bytes(kind);
        println!("{kind}: two copies of {WRITTEN_BYTES} bytes take {taken}");
        assert!(taken <= 2 * SHARED_BYTES_MAX, "{kind}: {taken} bytes");
    }
    let taken = two_copies_take_bytes("ext4");
    assert!(taken >= 2 * WRITTEN_BYTES, "ext4 shares nothing, and took {taken} bytes");
}
