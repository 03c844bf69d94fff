//! The maxima of what is said to the helpers for networks and of the waits for them. Called by
//! their callers only.

use std::time::Duration;

/// How long one request may take: a few programs that are done in milliseconds, on a busy host.
pub(super) const HELPER_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long after its end the program that answers guests is started again, at first,
pub(super) const RESPONDER_WAIT_MIN: Duration = Duration::from_secs(1);
/// and after it has ended again and again.
pub(super) const RESPONDER_WAIT_MAX: Duration = Duration::from_secs(300);
