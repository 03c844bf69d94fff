//! The maxima of the waits for libvirt and of tries to list what it runs. Called by its
//! implementation only.

use std::time::Duration;

/// How long one copy may take.
pub(super) const COPY_WAIT_MAX: Duration = Duration::from_secs(6 * 60 * 60);
/// How long a job may take to end that was told to.
pub(super) const COPY_END_WAIT_MAX: Duration = Duration::from_secs(30);
/// Pause between two looks at a job.
pub(super) const COPY_LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long libvirt may take to say whether KVM works. It probes QEMU for that; on a machine whose
/// `/dev/kvm` exists but is very slow this takes a minute, and such a KVM is of no use anyway.
pub(super) const KVM_ANSWER_MS_MAX: u64 = 10_000;
/// Seconds between two signs of life that libvirt and we ask of each other.
pub(super) const KEEP_ALIVE_SECONDS: i32 = 3;
/// Signs of life that may be missing before the connection counts as ended.
pub(super) const KEEP_ALIVE_MISSING_MAX: u32 = 3;
/// How often a listing is begun again because a domain went while it was looked at.
pub(super) const LISTINGS_MAX: u32 = 5;
/// Pause after libvirt's event loop has failed.
pub(super) const EVENT_LOOP_PAUSE: Duration = Duration::from_millis(100);
