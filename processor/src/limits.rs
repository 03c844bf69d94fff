//! The maxima of the daemon's waits, queues and memory, and of what one refusal tells. Those of
//! what all hosts agree on stand in `dagger_payload::limits`. Called by the daemon and the judge.

use std::time::Duration;

/// Batches and chunks that may wait; beyond that a conversation waits, and with it the ledger.
pub(crate) const JOBS_WAITING_MAX: usize = 64;
/// Threads at most.
pub(crate) const THREADS_MAX: usize = 8;
/// Pause after a failed accept (out of descriptors, mostly).
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Chunks of a snapshot that are read ahead of the one that is taken in: enough that no thread
/// waits, and few beside the state that they make.
pub(crate) const CHUNKS_AHEAD_MAX: usize = 16;
/// So many hosts are named where some lack something.
pub(crate) const LACKING_HOSTS_TOLD_MAX: usize = 4;
/// Changes that wait for the root to be asked for; more are taken in at once. Only beginning from a
/// snapshot makes so many: all together they are made a tree without a look at one that is there.
pub(crate) const TREE_CHANGES_WAITING_MAX: usize = 1 << 21;
/// Address space of the process, in bytes: room for some ten million objects. An allocation beyond
/// it aborts the process, and its supervisor starts it anew.
pub(crate) const ADDRESS_SPACE_BYTES_MAX: u64 = 16 << 30;
/// Open files: sockets of two peers, and what the runtime needs.
pub(crate) const OPEN_FILES_MAX: u64 = 256;
