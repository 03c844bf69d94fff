//! The one place of this half where the wall clock is read: for the API's hint and for `not_after`
//! of reports.
//!
//! Never decides order or safety. Called by API and reports.

use std::time::{SystemTime, UNIX_EPOCH};

use dagger_payload::id::LedgerTime;

/// The later of `ledger_time` and this host's clock.
pub fn now(ledger_time: LedgerTime) -> LedgerTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let wall = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    ledger_time.max(LedgerTime(wall))
}
