//! The heap of what is still to happen, ordered by time and then by sequence of scheduling.
//!
//! Owns simulated time. Never decides what happens. Called by the world only.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Simulated time since the start of the run, in microseconds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SimulatedTime(pub u64);

impl SimulatedTime {
    /// This time plus `microseconds`.
    #[must_use]
    pub(crate) fn plus_us(self, microseconds: u64) -> Self {
        Self(self.0.saturating_add(microseconds))
    }

    /// Whole milliseconds.
    pub(crate) fn milliseconds(self) -> u64 {
        self.0 / 1000
    }
}

struct Entry<T> {
    key: Reverse<(SimulatedTime, u64)>,
    happening: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

/// The heap.
pub(crate) struct Schedule<T> {
    now: SimulatedTime,
    sequence: u64,
    heap: BinaryHeap<Entry<T>>,
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Self { now: SimulatedTime::default(), sequence: 0, heap: BinaryHeap::new() }
    }
}

impl<T> Schedule<T> {
    /// The present.
    pub(crate) fn now(&self) -> SimulatedTime {
        self.now
    }

    /// Lets `happening` happen at `at`, or now when that has passed.
    pub(crate) fn at(&mut self, at: SimulatedTime, happening: T) {
        let key = Reverse((at.max(self.now), self.sequence));
        self.sequence += 1;
        self.heap.push(Entry { key, happening });
    }

    /// Lets `happening` happen `microseconds` from now.
    pub(crate) fn after_us(&mut self, microseconds: u64, happening: T) {
        self.at(self.now.plus_us(microseconds), happening);
    }

    /// Moves on to the next happening, unless none is left up to `end`; then time stops at `end`.
    pub(crate) fn next_until(&mut self, end: SimulatedTime) -> Option<T> {
        let due = self.heap.peek().is_some_and(|entry| entry.key.0.0 <= end);
        if !due {
            self.now = self.now.max(end);
            return None;
        }
        let entry = self.heap.pop()?;
        self.now = entry.key.0.0;
        Some(entry.happening)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_scheduled_for_one_time_happens_in_the_order_of_scheduling() {
        let mut schedule = Schedule::default();
        schedule.after_us(5, 'b');
        schedule.after_us(5, 'c');
        schedule.after_us(1, 'a');
        schedule.after_us(9, 'd');
        let end = SimulatedTime(5);
        let order: String = std::iter::from_fn(|| schedule.next_until(end)).collect();
        assert_eq!(order, "abc");
        assert_eq!(schedule.now(), end);
    }
}
