//! The maxima of what is said to Cloud Hypervisor, and of the waits for it. Called by its
//! implementation only.

use std::time::Duration;

/// How long a question about a machine may take. A process that is busy answers later, and is alive
/// all the same.
pub(super) const ASK_WAIT_MAX: Duration = Duration::from_secs(3);
/// How long a change may take; starting a machine touches all of its memory where that is asked
/// for.
pub(super) const CHANGE_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a new process may take until it serves.
pub(super) const SERVE_WAIT_MAX: Duration = Duration::from_secs(15);
/// Between two looks whether it serves.
pub(super) const SERVE_LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long a process that was told to end may take before it is killed.
pub(super) const END_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a killed process may take to be gone: the kernel has all of its memory to give back.
pub(super) const KILL_WAIT_MAX: Duration = Duration::from_secs(30);
/// Between two looks whether it is gone.
pub(super) const GONE_LOOK_EVERY: Duration = Duration::from_millis(5);
/// Bytes of a request's body that every release takes.
pub(super) const REQUEST_BYTES_MAX: usize = 51_200;
/// Bytes of an answer.
pub(super) const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Bytes of a machine's definition file.
pub(super) const DEFINITION_BYTES_MAX: u64 = 1 << 20;
/// The last bytes of an event file that are read.
pub(super) const EVENTS_BYTES_MAX: u64 = 64 * 1024;
/// The last bytes of what a process said that are searched or shown.
pub(super) const LOG_BYTES_MAX: u64 = 64 * 1024;
/// Bytes of memory that what a process writes beside its disks may take before it is cut off.
pub(super) const WRITTEN_BYTES_MAX: u64 = 1 << 20;
/// Between two looks whether it does.
pub(super) const WRITTEN_LOOK_EVERY: Duration = Duration::from_secs(2);
/// Bytes of a console file before it becomes the old one, of which one is kept.
pub(super) const CONSOLE_FILE_BYTES_MAX: u64 = 4 << 20;
/// How long a guest may take nothing from its serial line while somebody types.
pub(super) const CONSOLE_WRITE_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long the serial line of a machine that runs may take to be held when somebody types.
pub(super) const CONSOLE_LINE_WAIT_MAX: Duration = Duration::from_secs(1);
/// Bytes that are taken from a guest's serial line at a time.
pub(super) const CONSOLE_READ_BYTES: usize = 4096;
/// How often a serial line that does not take us is tried, once per [`WATCH_TICK`].
pub(super) const CONSOLE_TRIES_MAX: u32 = 50;
/// How often in a row the watch takes what happened before it reads the lines again: a process may
/// make files without an end.
pub(super) const WATCH_READS_TOGETHER_MAX: usize = 16;
/// The watch's longest sleep while a serial line is to be tried again.
pub(super) const WATCH_TICK: Duration = Duration::from_millis(200);
/// Bytes of the path of a Unix socket, without the zero at its end.
pub(super) const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Machines that are asked at the same time for one listing.
pub(super) const ASKED_TOGETHER_MAX: usize = 16;
/// How long a process may take to give a running machine a disk, to ask for one or to grow one.
pub(super) const HOT_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a guest may take to let go of volumes before that is told, and tried again later.
pub(super) const EJECT_WAIT_MAX: Duration = Duration::from_secs(3);
/// Between two looks whether it has.
pub(super) const EJECT_LOOK_EVERY: Duration = Duration::from_millis(20);
