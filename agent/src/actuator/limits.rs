//! The maxima of what the actuator does at a time and how long it may take. Called by the actuator
//! only.

use std::time::Duration;

use crate::controller::Step;

/// Steps, each of another VM or volume, that are carried out at a time.
pub(super) const STEPS_TOGETHER_MAX: usize = 8;
/// How long a step may wait for its turn; it waits in a queue, so many VMs at once are slow, not
/// failed.
pub(super) const TURN_WAIT_MAX: Duration = Duration::from_secs(600);

/// How long a step for a volume may take before its outcome counts as unknown.
pub(super) const VOLUME_STEP_WAIT_MAX: Duration = Duration::from_secs(120);

/// How long a step may take before its outcome counts as unknown.
pub(super) fn step_wait_max(step: Step) -> Duration {
    Duration::from_secs(match step {
        // Reads and hashes the whole file, perhaps copies it first.
        Step::Image => 1800,
        Step::Disk | Step::Seed | Step::Quarantine => 120,
        Step::Network | Step::Define | Step::Undefine => 60,
        // One wait for the guest to let go, per volume that it is to lose.
        Step::Volumes => 120,
        Step::Tag | Step::Pause | Step::Resume | Step::AskShutdown => 30,
        // Starting and ending QEMU on a busy host.
        Step::Start | Step::Destroy => 120,
    })
}
