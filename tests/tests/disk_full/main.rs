//! A host's disk is full at every write of everything that writes to it, and nothing comes of that
//! but waiting.
//!
//! Setting: the real stores, `qemu-img`, journal and machines' half on a file system of a few MiB,
//! which is filled but for so many pages that one more write each time succeeds, and once until no
//! file can be made. Pinned: the error has the code that says so, nothing half-made stays, disks
//! are whole, and the same succeeds once there is room. Needs root, for a mount namespace.

// A test that meets what it does not expect has failed.
#![allow(clippy::unwrap_used)]

mod copies;
#[allow(dead_code, reason = "other tests ask more of it")]
#[path = "../shared/half.rs"]
mod half;
mod history;
mod operations;
#[allow(dead_code, reason = "other tests try the real one too")]
#[path = "../shared/program_under_test.rs"]
mod program_under_test;
mod small_disk;
#[path = "../shared/versions.rs"]
mod versions;
#[path = "../shared/volumes.rs"]
mod volumes;

use std::time::Duration;

use dagger_agent::machines::{Accelerator, Backend};
use dagger_payload::id::VmId;
use dagger_payload::kind::{ReportPhase, StopManner};
use dagger_payload::object::Wanted;

use self::half::{Half, store_image};
use self::operations::{Host, Operation};
use self::small_disk::{Lack, SmallDisk};
use self::versions::attested;

/// libvirt's test driver, within this process.
const PAPER: &str = "test:///default";
/// More pages than any of it writes.
const PAGES_MAX: u64 = 1024;
const VM: VmId = VmId([7; 16]);

/// Tries it with this lack, and then without. Whether the lack was felt.
fn try_with(operation: Operation, lack: Lack) -> bool {
    let disk = SmallDisk::new();
    let host = Host::new(&disk);
    operation.prepare(&host);
    let mut before = disk.files();
    disk.fill(lack);
    let context = format!("{operation:?} with {lack:?}");
    let tried = operation.perform(&host);
    if let Err(why) = &tried {
        assert!(why.starts_with("disk_full: "), "{context}: {why}");
        let mut after = disk.files();
        if let Some(changed) = operation.changes(&host) {
            assert!(before.remove(&changed).is_some() && after.remove(&changed).is_some());
        }
        assert_eq!(after, before, "{context}: something half-made is left");
        host.check();
        disk.free();
        assert_eq!(operation.perform(&host), Ok(()), "{context}: there is room now");
    }
    disk.free();
    operation.check(&host);
    let made = disk.files();
    assert_eq!(operation.perform(&host), Ok(()), "{context}: it is there");
    assert_eq!(disk.files(), made, "{context}: it was made twice");
    tried.is_err()
}

/// With each number of pages from none on, until that is enough.
fn try_at_every_write(operation: Operation) {
    let felt = |pages: &u64| try_with(operation, Lack::Pages(*pages));
    let pages = (0..PAGES_MAX).take_while(felt).count();
    assert!((1..1000).contains(&pages), "{operation:?} felt {pages} lacks");
    println!("{operation:?}: full at each of {pages} pages");
    // More room harms nobody.
    assert!(!try_with(operation, Lack::Pages(pages as u64 + 1)), "{operation:?}");
}

/// Each operation with the sentence that it proves, and all of them, so that none is left out.
macro_rules! operations {
    ($($operation:ident: $sentence:ident;)*) => {
        const OPERATIONS: &[Operation] = &[$(Operation::$operation),*];
        $(
            #[test]
            fn $sentence() {
                try_at_every_write(Operation::$operation);
            }
        )*
    };
}

operations! {
    ImportImage: a_disk_that_is_full_at_any_write_of_an_import_says_so_and_no_image_is_there;
    TakeInDownload: a_disk_that_is_full_at_any_write_of_a_download_says_so_and_keeps_what_came;
    MakeDisk: a_disk_that_is_full_at_any_write_of_a_vms_disk_says_so_and_no_disk_is_there;
    MakeSeed: a_disk_that_is_full_at_any_write_of_a_seed_says_so_and_no_seed_is_there;
    MakeVolume: a_disk_that_is_full_at_any_write_of_a_volume_says_so_and_no_volume_is_there;
    GrowVolume: a_disk_that_is_full_at_any_write_of_a_growing_volume_says_so_and_leaves_it_whole;
    KeepSnapshot: a_disk_that_is_full_at_any_write_of_a_snapshot_says_so_and_no_snapshot_is_there;
    CloneVolume: a_disk_that_is_full_at_any_write_of_a_clone_says_so_and_no_clone_is_there;
    RestoreVolume: a_disk_that_is_full_at_any_write_of_a_restored_volume_says_so_and_leaves_the_old;
}

#[test]
fn a_disk_on_which_no_file_can_be_made_is_told_as_full_and_leaves_nothing_half_made() {
    for &operation in OPERATIONS {
        assert_eq!(try_with(operation, Lack::Files), operation.makes_files(), "{operation:?}");
    }
}

/// Which directory of the host lies on the small disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    State,
    Storage,
}

/// A VM is asked for while the directory is full, and runs once it is not.
async fn live_with(full: Full) {
    let (disk, base) = (SmallDisk::new(), tempfile::tempdir().unwrap());
    let image = store_image(base.path(), 64 << 10);
    let (name, at) = match full {
        Full::State => ("state", disk.path().join("state")),
        Full::Storage => ("storage", disk.path().join("storage")),
    };
    if full == Full::Storage {
        store_image(disk.path(), 64 << 10);
        std::fs::remove_dir_all(base.path().join(name)).unwrap();
    } else {
        std::fs::create_dir(&at).unwrap();
    }
    std::os::unix::fs::symlink(&at, base.path().join(name)).unwrap();
    let backend = Backend::Libvirt { uri: PAPER.to_owned(), accelerator: Accelerator::Tcg };
    let mut half = Half::start(base.path(), backend, &[]).await;
    // On this one thread it opens its directories as soon as it has its turn.
    tokio::task::yield_now().await;
    assert!(base.path().join("state/journal").exists());
    let before = disk.files();
    disk.fill(Lack::Pages(0));
    let version = |wanted, generation| {
        let mut version = attested(VM, wanted, generation);
        version.vm.image = image.clone();
        version.vm.size.memory_mib = 32;
        version.vm.stop_manner = StopManner::Forced;
        version
    };
    half.vm(&version(Wanted::Running, 1)).await;
    let report = half.report().await;
    let reason = report.reason.unwrap_or_default();
    assert_eq!(report.phase, ReportPhase::Degraded, "{full:?}: {reason}");
    assert!(reason.starts_with("disk_full: "), "{full:?}: {reason}");
    assert_eq!(disk.files(), before, "{full:?}: something half-made is left");
    disk.free();
    let report = tokio::time::timeout(Duration::from_secs(60), half.report()).await.unwrap();
    assert_eq!(report.phase, ReportPhase::Running, "{full:?}: {report:?}");
    half.vm(&version(Wanted::Deleted, 2)).await;
    assert_eq!(half.report().await.phase, ReportPhase::Deleted);
    half.end().await;
}

/// Its threads are begun by one that sees the small disk.
fn run(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

#[test]
fn a_vm_that_is_asked_for_while_the_storage_is_full_says_so_and_runs_once_there_is_room() {
    run(live_with(Full::Storage));
}

#[test]
fn an_agent_whose_journal_has_no_room_lives_on_does_nothing_and_goes_on_once_there_is_room() {
    run(live_with(Full::State));
}
