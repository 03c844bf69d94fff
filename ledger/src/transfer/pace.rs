//! How slowly a peer may send what it is asked for.
//!
//! Owns the patience with one peer in one transfer: it is used up by waiting and earned by parts,
//! so that a peer that sends each part just in time is not waited for without end. Knows no clock.
//! Called by the client.

use std::time::Duration;

use crate::limits::{
    PART_PATIENCE, PART_WAIT_MAX, TRANSFER_BYTES_PER_SECOND_MIN, TRANSFER_PATIENCE,
};

/// What is left of the patience with one peer.
#[derive(Debug)]
pub struct Pace {
    left: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { left: TRANSFER_PATIENCE }
    }
}

impl Pace {
    /// How long its next part may take.
    pub fn wait_max(&self) -> Duration {
        self.left.min(PART_WAIT_MAX)
    }

    /// It was waited for so long, in vain.
    pub fn waited(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }

    /// It was waited for so long, and so many bytes came.
    pub fn came(&mut self, time: Duration, bytes: usize) {
        let bytes = u64::try_from(bytes).expect("a length fits into 64 bits");
        let for_bytes = Duration::from_millis(bytes * 1000 / TRANSFER_BYTES_PER_SECOND_MIN);
        self.left = (self.left + PART_PATIENCE + for_bytes).min(TRANSFER_PATIENCE + time);
        self.waited(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PIECE_BYTES_MAX;

    #[test]
    fn who_sends_every_part_just_in_time_is_left_within_a_minute_and_a_slow_line_is_not() {
        let just_in_time = PART_WAIT_MAX - Duration::from_secs(1);
        for bytes in [1, PIECE_BYTES_MAX] {
            let (mut pace, mut waited) = (Pace::default(), Duration::ZERO);
            while pace.wait_max() > just_in_time {
                pace.came(just_in_time, bytes);
                waited += just_in_time;
            }
            waited += pace.wait_max();
            pace.waited(pace.wait_max());
            assert_eq!(pace.wait_max(), Duration::ZERO);
            assert!(waited < Duration::from_secs(60), "{waited:?}");
        }
        let mut pace = Pace::default();
        for _ in 0..10_000 {
            // Little more than two megabits a second, and half a second on the way.
            pace.came(Duration::from_millis(2_400), PIECE_BYTES_MAX);
            assert_eq!(pace.wait_max(), PART_WAIT_MAX);
        }
    }
}
