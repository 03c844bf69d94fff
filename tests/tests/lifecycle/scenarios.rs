//! The scenarios: what is asked for, and what must be seen of it on any backend.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use dagger_agent::handover::AttestedVm;
use dagger_api::Sight;
use dagger_payload::id::Generation;
use dagger_payload::kind::{ReportPhase, ReportVm, RestartPolicy, StopManner};
use dagger_payload::object::Wanted;

use super::disks;
use super::half::{Half, reported};
use super::people;
use super::setting::Setting;

/// Longer than anything here takes on a busy machine.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// Pause between two looks at something that has no event to wait for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a guest has that was asked to stop.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(30);
/// How many machines are adopted.
const MANY: u8 = 20;

/// A backend says that it does not offer this, by this code.
pub(crate) struct NotOffered(pub(crate) String);

/// What is lived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scenario {
    Created,
    Stopped,
    Paused,
    Rebooted,
    Resized,
    Killed,
    KilledOnce,
    MachineLost,
    DiskLost,
    StoppedByHand,
    Console,
    VolumeAtStart,
    VolumeWhileRunning,
    GrownWhileOff,
    GrownWhileRunning,
    PutBack,
    KeptWhileRunning,
    Adopted,
}

impl Scenario {
    pub(crate) const ALL: [Self; 18] = [
        Self::Created,
        Self::Stopped,
        Self::Paused,
        Self::Rebooted,
        Self::Resized,
        Self::Killed,
        Self::KilledOnce,
        Self::MachineLost,
        Self::DiskLost,
        Self::StoppedByHand,
        Self::Console,
        Self::VolumeAtStart,
        Self::VolumeWhileRunning,
        Self::GrownWhileOff,
        Self::GrownWhileRunning,
        Self::PutBack,
        Self::KeptWhileRunning,
        Self::Adopted,
    ];

    pub(crate) fn sentence(self) -> &'static str {
        match self {
            Self::Created => "a VM is created, stopped, started and deleted",
            Self::Stopped => "a guest is asked to stop, and stopped after 30 s if deaf",
            Self::Paused => "a VM is paused, resumed, and deleted while paused",
            Self::Rebooted => "a VM is rebooted, whether its guest obeys or not",
            Self::Resized => "a VM is resized as it runs, and larger from its next start",
            Self::Killed => "a machine that is killed runs again",
            Self::KilledOnce => "a machine that is killed stays off if to be started once",
            Self::MachineLost => "a machine that is gone is made again over its own disk",
            Self::DiskLost => "a lost disk is told, and no empty one takes its place",
            Self::StoppedByHand => "a VM is stopped by hand, and stays off until its owner acts",
            Self::Console => "what a guest says is kept, and its console is typed at",
            Self::VolumeAtStart => "a volume comes with a start and goes with another",
            Self::VolumeWhileRunning => "a volume comes to a machine that runs",
            Self::GrownWhileOff => "a volume of a VM that is off grows",
            Self::GrownWhileRunning => "a volume of a machine that runs grows",
            Self::PutBack => "a volume is kept, written to, and put back",
            Self::KeptWhileRunning => "a volume of a machine that runs is kept",
            Self::Adopted => "20 VMs outlive the loss of the state directory",
        }
    }

    /// Whether it only waits most of its time: half a minute for guests that ignore their button.
    pub(crate) fn only_waits(self) -> bool {
        matches!(self, Self::Stopped | Self::Rebooted)
    }

    pub(crate) async fn live(self, setting: &Setting) -> Result<(), NotOffered> {
        match self {
            Self::Created => created(setting).await,
            Self::Stopped => stopped(setting).await,
            Self::Paused => paused(setting).await,
            Self::Rebooted => rebooted(setting).await,
            Self::Resized => resized(setting).await,
            Self::Killed => killed(setting).await,
            Self::KilledOnce => killed_once(setting).await,
            Self::MachineLost => machine_lost(setting).await,
            Self::DiskLost => disk_lost(setting).await,
            Self::StoppedByHand => people::stopped_by_hand(setting).await,
            Self::Console => return people::console(setting).await,
            Self::VolumeAtStart => disks::volume_at_start(setting).await,
            Self::VolumeWhileRunning => return disks::volume_while_running(setting).await,
            Self::GrownWhileOff => disks::grown_while_off(setting).await,
            Self::GrownWhileRunning => return disks::grown_while_running(setting).await,
            Self::PutBack => disks::put_back(setting).await,
            Self::KeptWhileRunning => return disks::kept_while_running(setting).await,
            Self::Adopted => adopted(setting).await,
        }
        Ok(())
    }
}

/// The code with which the reason of a report begins; what a hypervisor refuses stands behind the
/// code for that.
pub(crate) fn code_of(reason: Option<String>) -> String {
    let reason = reason.expect("a reason");
    let reason = reason.strip_prefix("hypervisor_refused: ").unwrap_or(&reason);
    reason.split(':').next().unwrap_or_default().to_owned()
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

/// The button first; one that ignores it has its time, and is switched off then.
async fn stopped(setting: &Setting) {
    let (vm, mut half) = (setting.vm(0), setting.agent(&[]).await);
    ask(&mut half, &setting.version(vm, Wanted::Running, 1), ReportPhase::Running).await;
    let asked = Instant::now();
    ask(&mut half, &setting.version(vm, Wanted::Stopped, 2), ReportPhase::Stopped).await;
    assert_eq!(asked.elapsed() < SHUTDOWN_WAIT, setting.guest_obeys(), "{:?}", asked.elapsed());
    assert_eq!(setting.start_of(vm), None);
    ask(&mut half, &setting.version(vm, Wanted::Running, 3), ReportPhase::Running).await;
    assert!(setting.start_of(vm).is_some());
    ask(&mut half, &setting.version(vm, Wanted::Deleted, 4), ReportPhase::Deleted).await;
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

async fn resized(setting: &Setting) {
    let larger = |wanted, generation| {
        let mut version = forced(setting.version(setting.vm(0), wanted, generation));
        version.vm.size.cpus = 2;
        version.vm.size.memory_mib *= 2;
        version
    };
    let (vm, mut half) = (setting.vm(0), setting.agent(&[]).await);
    ask(&mut half, &setting.version(vm, Wanted::Running, 1), ReportPhase::Running).await;
    let (first, before) = (setting.start_of(vm), setting.cpus_and_memory_mib(vm));
    ask(&mut half, &larger(Wanted::Running, 2), ReportPhase::Running).await;
    assert_eq!((setting.start_of(vm), setting.cpus_and_memory_mib(vm)), (first, before));
    ask(&mut half, &larger(Wanted::Stopped, 3), ReportPhase::Stopped).await;
    ask(&mut half, &larger(Wanted::Running, 4), ReportPhase::Running).await;
    assert_eq!(setting.cpus_and_memory_mib(vm), (2, 2 * before.1));
    assert_eq!(before.0, 1);
    ask(&mut half, &setting.version(vm, Wanted::Deleted, 5), ReportPhase::Deleted).await;
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

/// It has run: its owner is told that it is off, and nobody starts it before he asks.
async fn killed_once(setting: &Setting) {
    let once = |wanted, generation| {
        let mut version = forced(setting.version(setting.vm(0), wanted, generation));
        version.vm.restart = RestartPolicy::Never;
        version
    };
    let (vm, mut half) = (setting.vm(0), setting.agent(&[]).await);
    ask(&mut half, &once(Wanted::Running, 1), ReportPhase::Running).await;
    half.vm(&reported(&once(Wanted::Running, 1), ReportPhase::Running)).await;
    setting.kill(vm);
    let ReportVm { generation, phase, reason, .. } = half.report().await;
    assert_eq!((generation.0, phase), (1, ReportPhase::Stopped), "{reason:?}");
    // Neither this agent starts it nor the next.
    half.end().await;
    let mut half = setting.agent(&[reported(&once(Wanted::Running, 1), phase)]).await;
    until("it is seen", || half.sight(vm) == Some(Sight::Stopped)).await;
    assert_eq!(setting.start_of(vm), None);
    ask(&mut half, &once(Wanted::Running, 2), ReportPhase::Running).await;
    assert!(setting.start_of(vm).is_some());
    ask(&mut half, &once(Wanted::Deleted, 3), ReportPhase::Deleted).await;
    half.end().await;
}

/// Somebody removes the machine with its definition, behind the agent's back.
async fn machine_lost(setting: &Setting) {
    let (vm, mut half) = (setting.vm(0), setting.agent(&[]).await);
    ask(&mut half, &setting.version(vm, Wanted::Running, 1), ReportPhase::Running).await;
    let (first, disk) = (setting.start_of(vm).expect("it runs"), setting.disk(vm));
    let inode = || std::fs::metadata(&disk).unwrap().ino();
    let before = inode();
    setting.lose(vm);
    let is_another = || setting.start_of(vm).is_some_and(|start| start != first);
    until("it runs again", is_another).await;
    assert_eq!(inode(), before, "it has another disk");
    ask(&mut half, &setting.version(vm, Wanted::Deleted, 2), ReportPhase::Deleted).await;
    half.end().await;
}

/// What is not there is not told as running, and what was on it is not replaced by nothing.
async fn disk_lost(setting: &Setting) {
    let (vm, mut half) = (setting.vm(0), setting.agent(&[]).await);
    ask(&mut half, &setting.version(vm, Wanted::Running, 1), ReportPhase::Running).await;
    let off = forced(setting.version(vm, Wanted::Stopped, 2));
    ask(&mut half, &off, ReportPhase::Stopped).await;
    let (disk, away) = (setting.disk(vm), setting.path().join("away"));
    std::fs::rename(&disk, &away).unwrap();
    let on = setting.version(vm, Wanted::Running, 3);
    half.vm(&on).await;
    let report = half.report().await;
    assert_eq!((report.generation.0, report.phase), (3, ReportPhase::Degraded), "{report:?}");
    assert_eq!(code_of(report.reason), "disk_missing");
    // Nor does the next agent make one, whatever it remembers.
    half.end().await;
    std::fs::remove_dir_all(setting.path().join("state")).unwrap();
    let mut half = setting.agent(&[reported(&on, ReportPhase::Degraded)]).await;
    let report = half.report().await;
    assert_eq!(report.phase, ReportPhase::Degraded, "{report:?}");
    assert_eq!((setting.start_of(vm), disk.exists()), (None, false));
    std::fs::rename(&away, &disk).unwrap();
    ask(&mut half, &setting.version(vm, Wanted::Running, 4), ReportPhase::Running).await;
    assert!(setting.start_of(vm).is_some());
    ask(&mut half, &setting.version(vm, Wanted::Deleted, 5), ReportPhase::Deleted).await;
    half.end().await;
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
