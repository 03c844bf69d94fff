//! Whether this host's clock may go into its events.
//!
//! Owns the comparison of the wall clock with the monotonic clock, and with what peers' newest
//! events say. Never corrects a clock, and never decides order: a doubt makes this host silent
//! until its operator confirms the clock. Called with every input, and for every accepted event.

use std::collections::{BTreeMap, VecDeque};

use dagger_payload::committee::Committee;
use dagger_payload::event::Event;
use dagger_payload::id::{AuthorIndex, EventDigest, LedgerTime};

use crate::Moment;
use crate::limits::{CLOCK_DIFFERENCE_MS_MAX, CLOCK_FRESH_MS, CLOCK_OWN_EVENTS_MAX};

/// Why a host's clock is in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockDoubt {
    /// The wall clock jumped, by so many milliseconds, while the monotonic clock did not.
    Jumped {
        /// Forward, or back when negative.
        by_ms: i64,
    },
    /// It is so many milliseconds ahead of the clocks of more peers than may be wrong.
    Differs {
        /// Ahead, or behind when negative.
        ahead_ms: i64,
    },
}

/// What the operator has said about the present difference from peers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Word {
    #[default]
    None,
    /// The own clock is right: counts until peers agree again.
    OwnIsRight,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    before: Option<(Moment, LedgerTime)>,
    /// Own events of the last while, and when they were made: who names one of them did so since.
    made: VecDeque<(EventDigest, Moment)>,
    /// How far the own clock is ahead of each peer's, as its newest event shows, in milliseconds.
    ahead_ms: BTreeMap<AuthorIndex, i64>,
    doubt: Option<ClockDoubt>,
    word: Word,
}

/// `a` - `b`, in milliseconds.
fn difference_ms(a: u64, b: u64) -> i64 {
    let wide = i128::from(a) - i128::from(b);
    i64::try_from(wide).unwrap_or(if wide > 0 { i64::MAX } else { i64::MIN })
}

fn is_far(difference_ms: i64) -> bool {
    difference_ms.unsigned_abs() > CLOCK_DIFFERENCE_MS_MAX
}

impl Clock {
    pub(crate) fn doubt(&self) -> Option<ClockDoubt> {
        self.doubt
    }

    /// Both clocks are read anew.
    pub(crate) fn read(&mut self, now: Moment, wall: LedgerTime) {
        if let Some((moment, before)) = self.before.replace((now, wall)) {
            let expected = before.plus_ms(now.0.saturating_sub(moment.0));
            let by_ms = difference_ms(wall.0, expected.0);
            if is_far(by_ms) {
                self.doubt = Some(ClockDoubt::Jumped { by_ms });
                self.ahead_ms.clear();
                self.word = Word::None;
            }
        }
    }

    /// An own event was made.
    pub(crate) fn made(&mut self, event: &Event, now: Moment) {
        self.made.push_back((event.digest, now));
        if self.made.len() > CLOCK_OWN_EVENTS_MAX {
            self.made.pop_front();
        }
    }

    /// A peer's event was accepted. If it names an own event of the last while, it was made since,
    /// and its timestamp says what its author's clock shows; any other may be old.
    pub(crate) fn heard(
        &mut self,
        event: &Event,
        (me, committee): (AuthorIndex, Committee),
        (now, wall): (Moment, LedgerTime),
    ) {
        let header = &event.header;
        let own = header.parents.iter().find(|parent| parent.author == me);
        let fresh = own.is_some_and(|own| {
            let mut made = self.made.iter().rev();
            made.any(|(digest, at)| *digest == own.digest && at.plus_ms(CLOCK_FRESH_MS) >= now)
        });
        if header.author == me || !fresh {
            return;
        }
        self.ahead_ms.insert(header.author, difference_ms(wall.0, header.timestamp.0));
        self.ahead_ms.retain(|author, _| committee.contains(*author));
        match (self.differing(committee), self.word) {
            (None, Word::None) | (Some(_), Word::OwnIsRight) => {}
            (None, Word::OwnIsRight) => {
                let near = self.ahead_ms.values().filter(|ms| !is_far(**ms)).count();
                if near >= Self::needed(committee) {
                    self.word = Word::None;
                }
            }
            (Some(ahead_ms), Word::None) => {
                self.doubt.get_or_insert(ClockDoubt::Differs { ahead_ms });
            }
        }
    }

    /// How many peers must say the same: more than half, and always more than may be wrong.
    fn needed(committee: Committee) -> usize {
        let others = committee.members().saturating_sub(1);
        (committee.faulty_max() + 1).max(others / 2 + 1)
    }

    /// How far the own clock is at least ahead of (or behind) more than half of all peers, if that
    /// is too far.
    fn differing(&self, committee: Committee) -> Option<i64> {
        let needed = Self::needed(committee);
        let far = |sign: i64| {
            let far = self.ahead_ms.values().copied();
            let mut far: Vec<_> = far.filter(|ms| is_far(*ms) && ms.signum() == sign).collect();
            far.sort_unstable_by_key(|ms| ms.unsigned_abs());
            // The nearest of the farthest that are needed: no liar sets it alone.
            far.len().checked_sub(needed).map(|at| far[at])
        };
        far(1).or_else(|| far(-1))
    }

    /// The operator says that the present clock is right.
    pub(crate) fn confirm(&mut self) {
        self.doubt = None;
        self.ahead_ms.clear();
        self.word = Word::OwnIsRight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    #[test]
    fn a_clock_may_run_unevenly_but_not_jump_by_more_than_an_hour() {
        let mut clock = Clock::default();
        clock.read(Moment(10), LedgerTime(50 * HOUR_MS));
        clock.read(Moment(20), LedgerTime(51 * HOUR_MS));
        clock.read(Moment(30), LedgerTime(50 * HOUR_MS + 20));
        clock.read(Moment(30 + 9 * HOUR_MS), LedgerTime(59 * HOUR_MS + 20));
        assert_eq!(clock.doubt(), None);
        clock.read(Moment(31 + 9 * HOUR_MS), LedgerTime(57 * HOUR_MS));
        let by_ms = -i64::try_from(2 * HOUR_MS + 21).expect("small");
        assert_eq!(clock.doubt(), Some(ClockDoubt::Jumped { by_ms }));
        clock.confirm();
        clock.read(Moment(32 + 9 * HOUR_MS), LedgerTime(57 * HOUR_MS));
        assert_eq!(clock.doubt(), None);
    }

    #[test]
    fn no_minority_puts_a_clock_in_doubt_and_no_liar_says_how_far_it_is() {
        let committee = Committee::new(4).expect("four may vote");
        let mut clock = Clock::default();
        let far = i64::try_from(2 * HOUR_MS).expect("small");
        clock.ahead_ms = BTreeMap::from([(AuthorIndex(1), i64::MIN), (AuthorIndex(2), far)]);
        assert_eq!(clock.differing(committee), None, "they do not agree");
        clock.ahead_ms.insert(AuthorIndex(1), i64::MAX);
        assert_eq!(clock.differing(committee), Some(far));
        clock.ahead_ms.insert(AuthorIndex(2), 5);
        assert_eq!(clock.differing(committee), None);
    }
}
