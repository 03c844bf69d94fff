//! The maxima of what is said to the helper for networks and of the waits for it. Called by its
//! caller only.

use std::time::Duration;

/// How long one request may take: a few programs that are done in milliseconds, on a busy host.
pub(super) const HELPER_WAIT_MAX: Duration = Duration::from_secs(30);
