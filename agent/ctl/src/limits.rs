//! Maxima of this package: every wait, read and retry of the command line. Called by all modules.

use std::time::Duration;

/// What was typed and waits to be sent to a console: reads of at most a kibibyte.
pub(crate) const TYPED_WAITING_MAX: usize = 16;
/// Opening one connection to an agent.
pub(crate) const CONNECT_MAX: Duration = Duration::from_secs(3);
/// One answer of an agent, on top of the time for which it was asked to wait.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(15);
/// One long poll.
pub(crate) const LONG_POLL: Duration = Duration::from_secs(10);
/// Importing one image file on a host: the host reads and hashes the whole of it.
pub(crate) const IMPORT_MAX: Duration = Duration::from_secs(600);
/// Switching a machine off by hand: its guest has 30 seconds before the plug is pulled.
pub(crate) const LOCAL_STOP_MAX: Duration = Duration::from_secs(60);
/// Copying a VM's disk on its host, before the first byte of the file comes.
pub(crate) const EXPORT_MAX: Duration = Duration::from_secs(65 * 60);
/// How long the next bytes of such a file may take.
pub(crate) const VM_FILE_PIECE_WAIT_MAX: Duration = Duration::from_secs(60);
/// How much of it is read at a time.
pub(crate) const VM_FILE_PIECE_BYTES: usize = 1024 * 1024;
/// Answers of which a VM's history is put together: a million steps.
pub(crate) const HISTORY_ANSWERS_MAX: usize = 1000;
/// How long the next bytes of an exported history may take.
pub(crate) const HISTORY_PIECE_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a session with an agent over TCP is asked to last.
pub(crate) const SESSION_LIFE: Duration = Duration::from_secs(300);
/// Bytes of one answer.
pub(crate) const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of one line in an event stream.
pub(crate) const EVENT_LINE_BYTES_MAX: usize = 1024 * 1024;
/// Agents that may be listed in `--api`.
pub(crate) const ENDPOINTS_MAX: usize = 64;
/// First pause between two looks at something that is awaited; each doubles the one before.
pub(crate) const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// How long handing in is tried again while every agent is in trouble of its own (a start, a full
/// queue).
pub(crate) const SUBMIT_RETRY_MAX: Duration = Duration::from_secs(10);
/// Longest pause between two looks.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(1);
/// One attempt to read a guest's SSH banner.
pub(crate) const BANNER_MAX: Duration = Duration::from_secs(3);
/// How long a guest whose SSH server answers may take to show its host key: cloud-init does so at
/// the very end of its work, where the processor is emulated half a minute later.
pub(crate) const HOST_KEY_WAIT_MAX: Duration = Duration::from_secs(90);
/// Bytes of a key, signature or user-data file.
pub(crate) const SMALL_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Hosts of one development cluster.
pub(crate) const DEVELOPMENT_HOSTS_MAX: i64 = 16;
/// A daemon's time to end after SIGTERM, before SIGKILL.
pub(crate) const DAEMON_STOP_MAX: Duration = Duration::from_secs(8);
/// A daemon's time to serve after its start.
pub(crate) const DAEMON_START_MAX: Duration = Duration::from_secs(20);
/// A cluster's time until all of its ledgers are connected.
pub(crate) const CLUSTER_START_MAX: Duration = Duration::from_secs(60);
/// Everything that a running `cluster dev` does when it is asked to stop.
pub(crate) const CLUSTER_STOP_MAX: Duration = Duration::from_secs(120);
/// A new libvirtd probes QEMU once, which takes several seconds without KVM.
pub(crate) const LIBVIRT_START_MAX: Duration = Duration::from_secs(90);
/// One call of `virsh`.
pub(crate) const VIRSH_MAX: Duration = Duration::from_secs(30);
/// A KVM that works brings the firmware to its end in a fraction of this.
pub(crate) const KVM_PROBE_MAX: Duration = Duration::from_secs(3);
/// Longest path of a Unix socket: `sun_path` has 108 bytes, one of which ends it.
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Between two looks at the daemons.
pub(crate) const SUPERVISION_PAUSE: Duration = Duration::from_millis(500);
/// Ports that are tried before giving up.
pub(crate) const PORT_ATTEMPTS_MAX: u16 = 4096;
/// Between two pictures of a spinner.
pub(crate) const SPINNER_TURN: Duration = Duration::from_millis(120);
