//! Maxima of the local streams, and of the files that daemons read at start. Both ends of a stream
//! are daemons of the same host, so these bound mistakes rather than attacks. Called by the
//! connection, by the daemons' servers, and by `setup`.

use std::time::Duration;

use dagger_payload::limits::SEATS_MAX;

/// One message, in bytes: the payloads of one commit after a long partition fit.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Releases that may be under way to a reader that has not yet acknowledged them.
pub const RELEASE_WINDOW_MAX: u32 = 256;
/// Requests under way on one connection.
pub const REQUESTS_UNDER_WAY_MAX: usize = 1024;
/// Connections that one socket serves at a time.
pub const CONNECTIONS_MAX: usize = 64;
/// How long the first message of a conversation may take.
pub const OPEN_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long an answer may take before the caller counts the other daemon as unavailable.
pub const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);
/// Judged commits whose sealed releases the processor keeps, to answer again a ledger that died
/// before it stored them; more than a ledger ever has under way.
pub const JUDGED_KEPT_MAX: usize = 64;
/// Bytes of what is kept of them, beyond the newest; a ledger that asks for more begins anew.
pub const JUDGED_KEPT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Proofs that wait at the processor for the state of the next checkpoint.
pub const PROOFS_WAITING_MAX: usize = 64;
/// Bytes of a daemon's configuration file, and of its key file, that are read at most.
pub const CONFIGURATION_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a roster file that are read at most: 1 KiB for each seat.
pub const ROSTER_BYTES_MAX: usize = 1024 * SEATS_MAX;
