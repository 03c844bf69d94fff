//! The maxima of the controller's waits and repetitions. Called by the controller only.

use std::time::Duration;

/// The first wait before a failed step is tried again; it doubles.
pub(super) const RETRY_WAIT_FIRST: Duration = Duration::from_secs(1);
/// The longest wait before a failed step is tried again.
pub(super) const RETRY_WAIT_MAX: Duration = Duration::from_secs(30);
/// Failed tries of one step before the VM is reported degraded; trying goes on.
pub(super) const SILENT_TRIES_MAX: u32 = 3;
/// How long a guest may take to switch itself off before it is switched off.
pub(super) const SHUTDOWN_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long before a guest is asked again: one that was booting may have missed the first button.
pub(super) const SHUTDOWN_ASK_AGAIN: Duration = Duration::from_secs(8);
/// How often a guest that stopped by itself is started again within [`RESTART_WINDOW`].
pub(super) const RESTARTS_MAX: usize = 3;
/// The window for [`RESTARTS_MAX`].
pub(super) const RESTART_WINDOW: Duration = Duration::from_secs(600);
/// Memory that must stay free beside what VMs need, in MiB: hypervisors need some of their own.
pub(super) const MEMORY_RESERVE_MIB: u64 = 256;
/// Room that must stay free beside what VMs' disks need, in MiB: what a copy of a disk leaves, too.
pub(super) const STORAGE_RESERVE_MIB: u64 = 1024;
/// Places that are tried for one image, of all names that stand for it.
pub(super) const IMAGE_SOURCES_TRIED_MAX: usize = 32;
/// How often it is looked whether something in the stores may go.
pub(super) const COLLECT_LOOK_EVERY: Duration = Duration::from_secs(600);
/// Removals that are queued after one look; the next look queues more.
pub(super) const COLLECTIONS_WAITING_MAX: usize = 1024;
/// What a qcow2 file may have besides its contents and their tables, in bytes.
pub(super) const QCOW2_BYTES_MORE_MAX: u64 = 16 << 20;
/// Images that are fetched at the same time; `dagger-fetch.socket` lets in some more, which are
/// just ending.
pub(super) const FETCHES_TOGETHER_MAX: usize = 6;
/// Those of them that are fetched for one account.
pub(super) const FETCHES_PER_ACCOUNT_MAX: usize = 2;
/// Hosts of the cluster that are asked for an image in one try.
pub(super) const FETCH_HOSTS_MAX: usize = 16;
/// The first wait before an image is fetched again; it doubles.
pub(super) const FETCH_WAIT_FIRST: Duration = Duration::from_secs(2);
/// The longest wait before an image is fetched again: a source that lies sends all of it each time.
pub(super) const FETCH_WAIT_MAX: Duration = Duration::from_secs(600);
/// Versions of one generation that are kept as evidence.
pub(super) const EVIDENCE_MAX: usize = 8;
