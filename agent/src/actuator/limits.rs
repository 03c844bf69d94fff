//! The maxima of what the actuator does at a time and how long it may take. Called by the actuator
//! only.

use std::time::Duration;

use crate::controller::{DiskRule, Step, VolumeAction, VolumeJob};

/// Steps, each of another VM or volume, that are carried out at a time, besides those below.
pub(super) const STEPS_TOGETHER_MAX: usize = 8;
/// Copies of whole volumes that are made at a time: each may take hours.
pub(super) const COPIES_TOGETHER_MAX: usize = 2;
/// Those of them that are made for one account.
pub(super) const COPIES_PER_ACCOUNT_MAX: usize = 1;
/// Machines that are switched off at a time because their owners want it.
pub(super) const STOPS_TOGETHER_MAX: usize = 4;
/// Machines that are switched off at a time because this host's operator wants it.
pub(super) const HALTS_TOGETHER_MAX: usize = 4;
/// How long a step may wait for its turn; it waits in a queue, so many VMs at once are slow, not
/// failed.
pub(super) const TURN_WAIT_MAX: Duration = Duration::from_secs(600);

/// How long a step for a volume may take, besides copying.
const VOLUME_STEP_WAIT_MAX: Duration = Duration::from_secs(120);
/// How long copying a GiB may take. What takes longer is found once it is there.
const COPY_GIB_WAIT_MAX: Duration = Duration::from_secs(20);
/// How long copying may take in all.
const COPY_WAIT_MAX: Duration = Duration::from_secs(6 * 60 * 60);

/// Whether the step copies a whole volume.
pub(super) fn copies_volume(job: &VolumeJob) -> bool {
    match &job.action {
        VolumeAction::Make(DiskRule::MayMake) => job.volume.origin.is_some(),
        VolumeAction::Keep(_, DiskRule::MayMake) | VolumeAction::Restore(_) => true,
        VolumeAction::Make(DiskRule::MustExist)
        | VolumeAction::Keep(_, DiskRule::MustExist)
        | VolumeAction::Quarantine(_)
        | VolumeAction::QuarantineSnapshot(_) => false,
    }
}

/// How long a step for a volume may take before its outcome counts as unknown.
pub(super) fn volume_step_wait_max(job: &VolumeJob) -> Duration {
    let gib = u32::try_from(job.volume.size_gib).unwrap_or(u32::MAX);
    let copying = COPY_GIB_WAIT_MAX.saturating_mul(gib).min(COPY_WAIT_MAX);
    if copies_volume(job) { VOLUME_STEP_WAIT_MAX + copying } else { VOLUME_STEP_WAIT_MAX }
}

/// How long a step may take before its outcome counts as unknown.
pub(super) fn step_wait_max(step: Step) -> Duration {
    Duration::from_secs(match step {
        // Reads and hashes the whole file, perhaps copies it first.
        Step::Image => 1800,
        Step::Disk | Step::Seed | Step::Quarantine => 120,
        Step::Network | Step::Disconnect | Step::Define | Step::Undefine => 60,
        // One wait for the guest to let go, per volume that it is to lose.
        Step::Volumes => 120,
        Step::Tag | Step::Pause | Step::Resume | Step::AskShutdown => 30,
        // Starting and ending QEMU on a busy host.
        Step::Start | Step::Destroy => 120,
    })
}
