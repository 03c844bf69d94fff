//! The scenarios about volumes: they come and go, grow, and are kept and put back.

use std::path::Path;
use std::process::Command;

use dagger_agent::handover::{AttestedVm, AttestedVolume};
use dagger_payload::id::{Generation, LedgerTime, SnapshotId, VolumeId};
use dagger_payload::kind::{ReportPhase, VolumePhase};
use dagger_payload::object::Wanted;
use dagger_payload::volume::{Snapshot, VmVolume, VolumeDisk, VolumeUse, VolumeWanted};

use super::half::Half;
use super::scenarios::{NotOffered, ask, code_of, forced};
use super::setting::Setting;
use super::versions::HERE;
use super::volumes::{CAUSE, new_volume};

const SNAPSHOT: SnapshotId = SnapshotId([10; 16]);

/// The version in which the volume belongs to its user.
fn attached(mut version: AttestedVolume, used_by: VolumeUse) -> AttestedVolume {
    version.commit = version.commit.next();
    version.volume.disk = VolumeDisk::Made;
    version.volume.used_by = used_by;
    version
}

/// The version of a VM that has this volume from then on.
fn with_volume(mut version: AttestedVm, volume: &AttestedVolume) -> AttestedVm {
    let size_gib = volume.volume.size_gib;
    version.vm.volumes = vec![VmVolume { volume: volume.volume.id, slot: 0, size_gib }];
    version.vm.volumes_since = version.vm.generation;
    version
}

/// The version of a VM that has no volume from then on.
fn without_volumes(mut version: AttestedVm) -> AttestedVm {
    version.vm.volumes_since = version.vm.generation;
    version
}

async fn made_volume(setting: &Setting, half: &mut Half) -> AttestedVolume {
    let volume = new_volume(VolumeId(setting.vm(99).0));
    half.volume(&volume).await;
    assert_eq!(half.report_of_volume().await.phase, VolumePhase::Ready);
    let vm = setting.vm(0);
    let volume = attached(volume, VolumeUse::Attached { vm });
    half.volume(&volume).await;
    volume
}

fn file_of(setting: &Setting, volume: &AttestedVolume) -> std::path::PathBuf {
    setting.path().join(format!("storage/disks/{HERE}-{}.volume", volume.volume.id))
}

pub(super) async fn volume_at_start(setting: &Setting) {
    let (vm, mut half) = (setting.vm(0), setting.agent(&[]).await);
    ask(&mut half, &setting.version(vm, Wanted::Running, 1), ReportPhase::Running).await;
    let off = forced(setting.version(vm, Wanted::Stopped, 2));
    ask(&mut half, &off, ReportPhase::Stopped).await;
    let volume = made_volume(setting, &mut half).await;
    let file = file_of(setting, &volume);
    let off = with_volume(forced(setting.version(vm, Wanted::Stopped, 3)), &volume);
    ask(&mut half, &off, ReportPhase::Stopped).await;
    let mut on = setting.version(vm, Wanted::Running, 4);
    (on.vm.volumes, on.vm.volumes_since) = (off.vm.volumes.clone(), off.vm.volumes_since);
    ask(&mut half, &on, ReportPhase::Running).await;
    assert!(setting.has_open(vm, &file), "the machine lacks its volume");
    let mut off = forced(setting.version(vm, Wanted::Stopped, 5));
    (off.vm.volumes, off.vm.volumes_since) = (on.vm.volumes.clone(), on.vm.volumes_since);
    ask(&mut half, &off, ReportPhase::Stopped).await;
    let on = without_volumes(setting.version(vm, Wanted::Running, 6));
    ask(&mut half, &on, ReportPhase::Running).await;
    assert!(!setting.has_open(vm, &file), "the machine kept a volume");
    ask(&mut half, &setting.version(vm, Wanted::Deleted, 7), ReportPhase::Deleted).await;
    assert!(file.exists(), "a volume went with its user");
    half.end().await;
}

pub(super) async fn volume_while_running(setting: &Setting) -> Result<(), NotOffered> {
    let (vm, mut half) = (setting.vm(0), setting.agent(&[]).await);
    ask(&mut half, &setting.version(vm, Wanted::Running, 1), ReportPhase::Running).await;
    let first = setting.start_of(vm);
    let volume = made_volume(setting, &mut half).await;
    half.vm(&with_volume(setting.version(vm, Wanted::Running, 2), &volume)).await;
    let report = half.report().await;
    // It runs on, whatever its host can do for it.
    assert_eq!(setting.start_of(vm), first);
    let offered = match report.phase {
        ReportPhase::Running => {
            assert!(setting.has_open(vm, &file_of(setting, &volume)), "it lacks its volume");
            Ok(())
        }
        _ => {
            assert_eq!(report.phase, ReportPhase::Degraded, "{report:?}");
            Err(NotOffered(code_of(report.reason)))
        }
    };
    ask(&mut half, &setting.version(vm, Wanted::Deleted, 3), ReportPhase::Deleted).await;
    half.end().await;
    offered
}

/// A VM that is off, with a volume from its next start on: in generation 3.
async fn off_with_volume(setting: &Setting, half: &mut Half) -> (AttestedVolume, AttestedVm) {
    let vm = setting.vm(0);
    ask(half, &setting.version(vm, Wanted::Running, 1), ReportPhase::Running).await;
    let off = forced(setting.version(vm, Wanted::Stopped, 2));
    ask(half, &off, ReportPhase::Stopped).await;
    let volume = made_volume(setting, half).await;
    let off = with_volume(forced(setting.version(vm, Wanted::Stopped, 3)), &volume);
    ask(half, &off, ReportPhase::Stopped).await;
    (volume, off)
}

/// The next generation of a VM, with what it has.
fn next(setting: &Setting, of: &AttestedVm, wanted: Wanted) -> AttestedVm {
    let mut version = forced(setting.version(of.vm.id, wanted, of.vm.generation.0 + 1));
    (version.vm.volumes, version.vm.volumes_since) = (of.vm.volumes.clone(), of.vm.volumes_since);
    version
}

/// The volume, and the next generation of its VM, once its owner wants 3 GiB.
fn grown(
    setting: &Setting,
    volume: &AttestedVolume,
    of: &AttestedVm,
) -> (AttestedVolume, AttestedVm) {
    let mut volume = volume.clone();
    volume.commit = volume.commit.next();
    volume.volume.generation = volume.volume.generation.next();
    volume.volume.size_gib = 3;
    let version = with_volume(next(setting, of, of.vm.wanted), &volume);
    (volume, version)
}

fn gib(file: &Path) -> u64 {
    let output =
        Command::new("qemu-img").args(["info", "-U", "--output=json"]).arg(file).output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    told["virtual-size"].as_u64().unwrap() >> 30
}

pub(super) async fn grown_while_off(setting: &Setting) {
    let mut half = setting.agent(&[]).await;
    let (volume, off) = off_with_volume(setting, &mut half).await;
    let file = file_of(setting, &volume);
    let (volume, off) = grown(setting, &volume, &off);
    half.volume(&volume).await;
    ask(&mut half, &off, ReportPhase::Stopped).await;
    let on = next(setting, &off, Wanted::Running);
    ask(&mut half, &on, ReportPhase::Running).await;
    assert!(setting.has_open(on.vm.id, &file), "the machine lacks its volume");
    assert_eq!(gib(&file), 3);
    ask(&mut half, &next(setting, &on, Wanted::Deleted), ReportPhase::Deleted).await;
    half.end().await;
}

pub(super) async fn grown_while_running(setting: &Setting) -> Result<(), NotOffered> {
    let mut half = setting.agent(&[]).await;
    let (volume, off) = off_with_volume(setting, &mut half).await;
    let (vm, file) = (off.vm.id, file_of(setting, &volume));
    let on = next(setting, &off, Wanted::Running);
    ask(&mut half, &on, ReportPhase::Running).await;
    let first = setting.start_of(vm);
    let (volume, larger) = grown(setting, &volume, &on);
    half.volume(&volume).await;
    half.vm(&larger).await;
    let report = half.report().await;
    // It runs on, whatever its host can do for it.
    assert_eq!(setting.start_of(vm), first);
    let offered = match report.phase {
        // Nobody holds a disk on paper, and the driver invents its size.
        ReportPhase::Running if setting.is_on_paper() => {
            assert_eq!(gib(&file), 1);
            Err(NotOffered("sizes_on_paper".to_owned()))
        }
        ReportPhase::Running => {
            assert_eq!(gib(&file), 3);
            Ok(())
        }
        _ => {
            assert_eq!(report.phase, ReportPhase::Degraded, "{report:?}");
            Err(NotOffered(code_of(report.reason)))
        }
    };
    // From its next start on it is so large in any case.
    let off = next(setting, &larger, Wanted::Stopped);
    ask(&mut half, &off, ReportPhase::Stopped).await;
    let on = next(setting, &off, Wanted::Running);
    ask(&mut half, &on, ReportPhase::Running).await;
    assert_eq!(gib(&file), 3);
    ask(&mut half, &next(setting, &on, Wanted::Deleted), ReportPhase::Deleted).await;
    half.end().await;
    offered
}

/// The volume once a snapshot of it is asked for.
fn with_snapshot(mut version: AttestedVolume) -> AttestedVolume {
    version.commit = version.commit.next();
    version.volume.disk = VolumeDisk::Made;
    version.volume.snapshots = vec![Snapshot {
        id: SNAPSHOT,
        name: "monday".parse().unwrap(),
        size_gib: version.volume.size_gib,
        created: CAUSE,
        created_at: LedgerTime(0),
        wanted: VolumeWanted::Kept,
        disk: VolumeDisk::NotReported,
        reported: None,
    }];
    version
}

/// Writes to or reads from a volume that no machine has.
fn as_guest(file: &Path, word: &str, byte: u8) {
    let words = format!("{word} -P {byte} 0 128k");
    let output =
        Command::new("qemu-io").args(["-f", "qcow2", "-c", &words]).arg(file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("failed"), "{words}: {said}");
}

pub(super) async fn put_back(setting: &Setting) {
    let mut half = setting.agent(&[]).await;
    let volume = new_volume(VolumeId(setting.vm(99).0));
    half.volume(&volume).await;
    assert_eq!(half.report_of_volume().await.phase, VolumePhase::Ready);
    let file = file_of(setting, &volume);
    as_guest(&file, "write", 1);
    let asked = with_snapshot(volume);
    half.volume(&asked).await;
    assert_eq!(half.report_of_snapshot().await.phase, VolumePhase::Ready);
    as_guest(&file, "write", 2);
    let mut back = asked;
    back.commit = back.commit.next();
    back.volume.snapshots[0].disk = VolumeDisk::Made;
    back.volume.generation = Generation(2);
    back.volume.restoring = Some(SNAPSHOT);
    half.volume(&back).await;
    let report = half.report_of_volume().await;
    assert_eq!((report.generation.0, report.phase), (2, VolumePhase::Ready), "{report:?}");
    as_guest(&file, "read", 1);
    // What was put back can be given to a machine, which starts with it.
    let vm = setting.vm(0);
    half.volume(&attached(back.clone(), VolumeUse::Attached { vm })).await;
    let on = with_volume(setting.version(vm, Wanted::Running, 1), &back);
    ask(&mut half, &on, ReportPhase::Running).await;
    assert!(setting.has_open(vm, &file), "the machine lacks its volume");
    ask(&mut half, &next(setting, &on, Wanted::Deleted), ReportPhase::Deleted).await;
    half.end().await;
}

pub(super) async fn kept_while_running(setting: &Setting) -> Result<(), NotOffered> {
    let mut half = setting.agent(&[]).await;
    let (volume, off) = off_with_volume(setting, &mut half).await;
    let on = next(setting, &off, Wanted::Running);
    ask(&mut half, &on, ReportPhase::Running).await;
    let first = setting.start_of(on.vm.id);
    half.volume(&with_snapshot(volume)).await;
    let report = half.report_of_snapshot().await;
    assert_eq!(setting.start_of(on.vm.id), first, "it was started again");
    let kept = setting.files_of_disks("snapshot");
    let offered = match report.phase {
        VolumePhase::Ready => {
            assert_eq!(kept, 1);
            Ok(())
        }
        _ => {
            assert_eq!((report.phase, kept), (VolumePhase::Degraded, 0), "{report:?}");
            Err(NotOffered(code_of(report.reason)))
        }
    };
    ask(&mut half, &next(setting, &on, Wanted::Deleted), ReportPhase::Deleted).await;
    half.end().await;
    offered
}
