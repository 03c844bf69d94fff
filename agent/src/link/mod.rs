//! The agent's connections to the other two daemons of its host.
//!
//! Owns connecting, waiting and trying again: the seal key from the processor ([`seal`]), requests
//! to the ledger ([`requests`]), the release stream ([`releases`]), and the way of attested
//! releases to the machines' half ([`orders`]). Never decides what counts: [`crate::verify`] does.
//! Never ends because another daemon is away.

pub mod orders;
pub mod releases;
pub mod requests;
pub mod seal;

use std::time::Duration;

use backon::BackoffBuilder;

use crate::limits::{RETRY_WAIT_MAX, RETRY_WAIT_MIN};

/// Growing pauses between attempts, for ever.
pub(crate) struct Pauses {
    waits: backon::ExponentialBackoff,
    shortest: Duration,
    longest: Duration,
}

impl Pauses {
    pub(crate) fn new() -> Self {
        Self::between(RETRY_WAIT_MIN, RETRY_WAIT_MAX)
    }

    pub(crate) fn between(shortest: Duration, longest: Duration) -> Self {
        let waits = backon::ExponentialBuilder::default()
            .with_min_delay(shortest)
            .with_max_delay(longest)
            .without_max_times()
            .build();
        Self { waits, shortest, longest }
    }

    /// The next attempt worked: the next pause is a short one again.
    pub(crate) fn reset(&mut self) {
        *self = Self::between(self.shortest, self.longest);
    }

    pub(crate) fn next(&mut self) -> Duration {
        self.waits.next().unwrap_or(self.longest)
    }
}
