//! The scenarios: what is asked for, and what must be seen of it on any backend.

use std::collections::BTreeSet;
use std::time::Duration;

use dagger_agent::handover::{AttestedVm, AttestedVolume};
use dagger_payload::id::{AccountId, CommitIndex, Generation, VolumeId};
use dagger_payload::kind::{Protection, ReportPhase, StopManner, VolumePhase};
use dagger_payload::object::Wanted;
use dagger_payload::volume::{VmVolume, Volume, VolumeDisk, VolumeUse, VolumeWanted};

use super::half::{Half, reported};
use super::setting::Setting;
use super::versions::HERE;

/// Longer than anything here takes on a busy machine.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// Pause between two looks at something that has no event to wait for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How many machines are adopted.
const MANY: u8 = 20;

/// A backend says that it does not offer this, by this code.
pub(crate) struct NotOffered(pub(crate) String);

/// What is lived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scenario {
    Created,
    Paused,
    Rebooted,
    Killed,
    VolumeAtStart,
    VolumeWhileRunning,
    Adopted,
}

impl Scenario {
    pub(crate) const ALL: [Self; 7] = [
        Self::Created,
        Self::Paused,
        Self::Rebooted,
        Self::Killed,
        Self::VolumeAtStart,
        Self::VolumeWhileRunning,
        Self::Adopted,
    ];

    pub(crate) fn sentence(self) -> &'static str {
        match self {
            Self::Created => "a VM is created, stopped, started and deleted",
            Self::Paused => "a VM is paused, resumed, and deleted while paused",
            Self::Rebooted => "a VM is rebooted, whether its guest obeys or not",
            Self::Killed => "a machine that is killed runs again",
            Self::VolumeAtStart => "a volume comes with a start and goes with another",
            Self::VolumeWhileRunning => "a volume comes to a machine that runs",
            Self::Adopted => "20 VMs outlive the loss of the state directory",
        }
    }

    pub(crate) async fn live(self, setting: &Setting) -> Result<(), NotOffered> {
        match self {
            Self::Created => created(setting).await,
            Self::Paused => paused(setting).await,
            Self::Rebooted => rebooted(setting).await,
            Self::Killed => killed(setting).await,
            Self::VolumeAtStart => volume_at_start(setting).await,
            Self::VolumeWhileRunning => return volume_while_running(setting).await,
            Self::Adopted => adopted(setting).await,
        }
        Ok(())
    }
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let waited = tokio::time::timeout(WAIT_MAX, waited).await;
    waited.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Orders this version; the next report is about it, and says this.
pub(crate) async fn ask(half: &mut Half, version: &AttestedVm, phase: ReportPhase) {
    half.vm(version).await;
    let report = half.report().await;
    let told = (report.vm, report.generation, report.phase);
    assert_eq!(told, (version.vm.id, version.vm.generation, phase), "{report:?}");
}

/// The version of a stop that asks no guest.
pub(crate) fn forced(mut version: AttestedVm) -> AttestedVm {
    version.vm.stop_manner = StopManner::Forced;
    version
}

async fn created(setting: &Setting) {
    let (vm, mut half) = (setting.vm(0), setting.agent(&[]).await);
    ask(&mut half, &setting.version(vm, Wanted::Running, 1), ReportPhase::Running).await;
    let first = setting.start_of(vm).expect("it runs");
    let off = forced(setting.version(vm, Wanted::Stopped, 2));
    ask(&mut half, &off, ReportPhase::Stopped).await;
    assert_eq!(setting.start_of(vm), None);
    ask(&mut half, &setting.version(vm, Wanted::Running, 3), ReportPhase::Running).await;
    let second = setting.start_of(vm).expect("it runs again");
    assert_ne!(first, second);
    ask(&mut half, &setting.version(vm, Wanted::Deleted, 4), ReportPhase::Deleted).await;
    assert_eq!(setting.start_of(vm), None);
    assert!(setting.quarantined() >= 2, "the disk and the seed");
    half.end().await;
}

async fn paused(setting: &Setting) {
    let (vm, mut half) = (setting.vm(0), setting.agent(&[]).await);
    ask(&mut half, &setting.version(vm, Wanted::Running, 1), ReportPhase::Running).await;
    let first = setting.start_of(vm);
    assert!(first.is_some());
    ask(&mut half, &setting.version(vm, Wanted::Paused, 2), ReportPhase::Paused).await;
    ask(&mut half, &setting.version(vm, Wanted::Running, 3), ReportPhase::Running).await;
    ask(&mut half, &setting.version(vm, Wanted::Paused, 4), ReportPhase::Paused).await;
    assert_eq!(setting.start_of(vm), first, "it was started again");
    ask(&mut half, &setting.version(vm, Wanted::Deleted, 5), ReportPhase::Deleted).await;
    assert_eq!(setting.start_of(vm), None);
    half.end().await;
}

async fn rebooted(setting: &Setting) {
    let (vm, mut half) = (setting.vm(0), setting.agent(&[]).await);
    ask(&mut half, &setting.version(vm, Wanted::Running, 1), ReportPhase::Running).await;
    let first = setting.start_of(vm).expect("it runs");
    let mut again = setting.version(vm, Wanted::Running, 2);
    again.vm.booted_since = Generation(2);
    ask(&mut half, &again, ReportPhase::Running).await;
    assert_ne!(setting.start_of(vm).expect("it runs"), first);
    ask(&mut half, &setting.version(vm, Wanted::Deleted, 3), ReportPhase::Deleted).await;
    half.end().await;
}

async fn killed(setting: &Setting) {
    let (vm, mut half) = (setting.vm(0), setting.agent(&[]).await);
    ask(&mut half, &setting.version(vm, Wanted::Running, 1), ReportPhase::Running).await;
    let first = setting.start_of(vm).expect("it runs");
    setting.kill(vm);
    let is_another = || setting.start_of(vm).is_some_and(|start| start != first);
    until("it runs again", is_another).await;
    ask(&mut half, &setting.version(vm, Wanted::Deleted, 2), ReportPhase::Deleted).await;
    assert_eq!(setting.start_of(vm), None);
    half.end().await;
}

/// A volume of one GiB that is being made.
fn new_volume(setting: &Setting) -> AttestedVolume {
    let vm = setting.version(setting.vm(0), Wanted::Running, 1).vm;
    let volume = Volume {
        id: VolumeId(setting.vm(99).0),
        account: AccountId([5; 16]),
        name: "data".parse().unwrap(),
        generation: Generation(1),
        created: vm.changed,
        changed: vm.changed,
        wanted: VolumeWanted::Kept,
        size_gib: 1,
        host: HERE,
        used_by: VolumeUse::Free {},
        disk: VolumeDisk::NotReported,
        reported: None,
        meter: dagger_payload::usage::Meter::NEW,
        protection: Protection::Unprotected,
        snapshots: Vec::new(),
        restoring: None,
        origin: None,
    };
    AttestedVolume { volume, commit: CommitIndex(1) }
}

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
    let volume = new_volume(setting);
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

async fn volume_at_start(setting: &Setting) {
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

async fn volume_while_running(setting: &Setting) -> Result<(), NotOffered> {
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
            let reason = report.reason.expect("a reason");
            // What a hypervisor refuses stands behind the code for that.
            let reason = reason.strip_prefix("hypervisor_refused: ").unwrap_or(&reason);
            Err(NotOffered(reason.split(':').next().unwrap_or_default().to_owned()))
        }
    };
    ask(&mut half, &setting.version(vm, Wanted::Deleted, 3), ReportPhase::Deleted).await;
    half.end().await;
    offered
}

/// No step that switches on or off was begun for it, only made sure that it has what it had.
fn assert_untouched(setting: &Setting, version: &AttestedVm) {
    let text = std::fs::read_to_string(setting.journal(version.vm.id)).unwrap();
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(record["step"].is_null(), "{text}");
    let done = record["done"].as_array().unwrap().iter();
    let done: BTreeSet<&str> = done.map(|step| step.as_str().unwrap()).collect();
    // That a machine runs is written down as if it had been started.
    assert_eq!(done, BTreeSet::from(["network", "start"]), "{text}");
}

async fn adopted(setting: &Setting) {
    let version = |number| setting.version(setting.vm(number), Wanted::Running, 1);
    let versions: Vec<AttestedVm> = (0..MANY).map(version).collect();
    let mut half = setting.agent(&[]).await;
    for version in &versions {
        half.vm(version).await;
    }
    for _ in &versions {
        let report = half.report().await;
        assert_eq!(report.phase, ReportPhase::Running, "{report:?}");
    }
    half.end().await;
    let starts = || versions.iter().map(|version| setting.start_of(version.vm.id));
    let before: BTreeSet<_> = starts().map(|start| start.expect("it runs")).collect();
    assert_eq!(before.len(), usize::from(MANY));

    std::fs::remove_dir_all(setting.path().join("state")).unwrap();
    let told = |version: &AttestedVm| reported(version, ReportPhase::Running);
    let told: Vec<_> = versions.iter().map(told).collect();
    let mut half = setting.agent(&told).await;
    let are_adopted = || {
        let settled = |version: &AttestedVm| {
            let text = std::fs::read_to_string(setting.journal(version.vm.id)).unwrap_or_default();
            text.contains("\"applied\": 1")
        };
        versions.iter().all(settled)
    };
    until("all are adopted", are_adopted).await;
    let after: BTreeSet<_> = starts().map(|start| start.expect("it runs")).collect();
    assert_eq!(after, before, "a machine was touched");
    assert!(!half.has_said_more(), "something was told about the adoption");
    versions.iter().for_each(|version| assert_untouched(setting, version));

    // And they are all still the owner's.
    for version in &versions {
        half.vm(&setting.version(version.vm.id, Wanted::Deleted, 2)).await;
    }
    for _ in &versions {
        assert_eq!(half.report().await.phase, ReportPhase::Deleted);
    }
    assert!(starts().all(|start| start.is_none()));
    half.end().await;
}
