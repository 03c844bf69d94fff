//! The maxima of one download. Called by this package only.

use std::time::Duration;

/// Bytes of the request.
pub const REQUEST_BYTES_MAX: usize = 256 * 1024;
/// How long the request may take to arrive.
pub const REQUEST_WAIT_MAX: Duration = Duration::from_secs(10);
/// Sources of one request.
pub const SOURCES_MAX: usize = 64;
/// Redirects that are followed for one question.
pub const REDIRECTS_MAX: usize = 5;
/// Addresses of one name that are tried.
pub const ADDRESSES_MAX: usize = 16;
/// How long a name may take to resolve.
pub const RESOLVE_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long one address may take to answer.
pub const CONNECT_WAIT_MAX: Duration = Duration::from_secs(10);
/// The longest that a request may let a source be silent.
pub const STALL_WAIT_MAX: Duration = Duration::from_secs(300);
/// What a source has to send within the time in which it may be silent, in bytes: one that sends
/// less holds the download up.
pub const STALL_BYTES_MIN: u64 = 16 * 1024;
/// While others can be asked, a source has to send so fast that all of it would come within this
/// time: one that is slower is asked again when nobody else has served.
pub const QUICK_WAIT_MAX: Duration = Duration::from_secs(600);
/// So many bytes in a second are quick enough for anything, however large.
pub const QUICK_BYTES_PER_SECOND: u64 = 1 << 20;
/// How long one download may take: the next one goes on where it ended, after others had its place.
pub const DOWNLOAD_WAIT_MAX: Duration = Duration::from_secs(6 * 60 * 60);
/// Bytes of an answer's head.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// How often one source is asked in a row while each time something new has come.
pub const TRIES_WITH_GAIN_MAX: usize = 8;
/// Between two words about how far it has come.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// A piece of the kept file that is hashed at a time, in bytes.
pub const PIECE_BYTES: usize = 1 << 20;
