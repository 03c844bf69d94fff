//! A host on which one disk cannot be removed: the others go, and nothing of theirs stays.
//!
//! Setting: the machines' half with libvirt's test driver, and a mount over one file, which the
//! kernel neither renames nor removes then. Pinned: each deletion is its own, it is told which one
//! does not go on and why, and that one goes on by itself once it can. Needs root, for a mount
//! namespace.

// A test that meets what it does not expect has failed.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "other tests ask more of it")]
#[path = "shared/half.rs"]
mod half;
#[allow(dead_code, reason = "other tests ask more of it")]
#[path = "shared/versions.rs"]
mod versions;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use dagger_agent::actuator::disks::Disks;
use dagger_agent::actuator::store::StoredDisks;
use dagger_agent::controller::proof::RemainsProof;
use dagger_agent::handover::AttestedVm;
use dagger_agent::machines::{Accelerator, Backend};
use dagger_images::ImportDirectories;
use dagger_payload::id::VmId;
use dagger_payload::kind::{ReportPhase, StopManner, VmImage};
use dagger_payload::object::Wanted;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use self::half::{Half, reported, store_image};
use self::versions::{HERE, attested};

/// libvirt's test driver, within this process.
const PAPER: &str = "test:///default";
/// The one in the way comes first.
const VMS: [VmId; 3] = [VmId([7; 16]), VmId([8; 16]), VmId([9; 16])];
const NOTHING: Option<&str> = None;

/// Mounts of this thread, and of what it starts, are nobody else's.
fn enter_namespace() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace of one's own needs root");
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING).unwrap();
}

/// Nobody can rename or remove the file.
fn pin(file: &Path) {
    mount(Some(file), file, NOTHING, MsFlags::MS_BIND, NOTHING).unwrap();
}

fn unpin(file: &Path) {
    umount2(file, MntFlags::MNT_DETACH).unwrap();
}

fn version(image: &VmImage, vm: VmId, wanted: Wanted, generation: u64) -> AttestedVm {
    let mut version = attested(vm, wanted, generation);
    version.vm.image = image.clone();
    version.vm.size.memory_mib = 32;
    version.vm.stop_manner = StopManner::Forced;
    version
}

fn disk(directory: &Path, vm: VmId) -> PathBuf {
    directory.join(format!("storage/disks/{HERE}-{vm}.qcow2"))
}

async fn delete_all_with_one_in_the_way() {
    enter_namespace();
    let host = tempfile::tempdir().unwrap();
    let image = store_image(host.path(), 64 << 10);
    let backend = Backend::Libvirt { uri: PAPER.to_owned(), accelerator: Accelerator::Tcg };
    let mut half = Half::start(host.path(), backend, &[]).await;
    for vm in VMS {
        half.vm(&version(&image, vm, Wanted::Running, 1)).await;
        assert_eq!(half.report().await.phase, ReportPhase::Running);
    }
    let pinned = disk(host.path(), VMS[0]);
    pin(&pinned);
    for vm in VMS {
        half.vm(&version(&image, vm, Wanted::Deleted, 2)).await;
    }
    let mut deleted = BTreeSet::new();
    for _ in VMS {
        let report = half.report().await;
        if report.vm != VMS[0] {
            assert_eq!(report.phase, ReportPhase::Deleted, "{report:?}");
            deleted.insert(report.vm);
            continue;
        }
        assert_eq!(report.phase, ReportPhase::Degraded, "{report:?}");
        let reason = report.reason.unwrap_or_default();
        assert!(reason.starts_with("disk_failed: disk_file_failed: "), "{reason}");
    }
    assert_eq!(deleted, BTreeSet::from([VMS[1], VMS[2]]));
    assert!(pinned.exists() && VMS[1..].iter().all(|vm| !disk(host.path(), *vm).exists()));
    // And a new one comes meanwhile.
    let another = VmId([10; 16]);
    half.vm(&version(&image, another, Wanted::Running, 1)).await;
    assert_eq!(half.report().await.phase, ReportPhase::Running);
    unpin(&pinned);
    let report = half.report().await;
    assert_eq!((report.vm, report.phase), (VMS[0], ReportPhase::Deleted), "{report:?}");
    assert!(!pinned.exists());
    half.vm(&version(&image, another, Wanted::Deleted, 2)).await;
    assert_eq!(half.report().await.phase, ReportPhase::Deleted);
    half.end().await;
    collect_all_with_one_in_the_way(host.path());
}

/// What is left of them goes for ever, but for what cannot.
fn collect_all_with_one_in_the_way(host: &Path) {
    let quarantine = host.join("storage/disks/quarantine");
    let left = || -> Vec<String> {
        let entries = std::fs::read_dir(&quarantine).unwrap();
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect()
    };
    let of = |vm: VmId| left().into_iter().filter(|name| name.contains(&vm.to_string())).count();
    let imports = ImportDirectories::new(Vec::new());
    let stores = StoredDisks::open(&host.join("storage"), HERE, imports).unwrap();
    assert!(VMS.iter().all(|vm| of(*vm) == 2), "a disk and a seed of each: {:?}", left());
    let account = attested(VMS[0], Wanted::Deleted, 2).vm.account;
    let pinned = quarantine.join(format!("{HERE}-{}.qcow2.{account}.0", VMS[0]));
    pin(&pinned);
    let collect = |vm| {
        let gone = reported(&attested(vm, Wanted::Deleted, 2), ReportPhase::Deleted);
        stores.collect(&RemainsProof::of_vm(&gone, HERE).unwrap())
    };
    let outcomes = VMS.map(|vm| collect(vm).is_ok());
    assert_eq!(outcomes, [false, true, true]);
    // Its seed is not kept for the sake of its disk.
    assert_eq!(VMS.map(of), [1, 0, 0], "{:?}", left());
    unpin(&pinned);
    assert_eq!(collect(VMS[0]), Ok(()));
    assert_eq!(of(VMS[0]), 0);
}

#[test]
fn one_disk_that_cannot_be_removed_keeps_no_other_vm_from_going_and_none_from_coming() {
    // Its threads are begun by one that sees the mounts.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(delete_all_with_one_in_the_way());
}
