//! Second events of one author and round, and when one of them is taken in.
//!
//! Owns the twins that nobody needs yet, and how many a peer may make this host take in within a
//! time. Never keeps evidence and never decides who lies. Called by `intake`.
//!
//! A twin is taken in only as an ancestor of another author's event: a liar who names his own twins
//! makes nobody store them. Honest members name at most one branch of a liar each, so they bring in
//! few. A liar who names another liar's twins can bring in as many as he likes, but only so fast.

use std::collections::BTreeMap;
use std::sync::Arc;

use dagger_payload::event::Event;
use dagger_payload::id::{AuthorIndex, EventDigest, Round};

use crate::Moment;
use crate::limits::{
    TWIN_EVERY_MS, TWINS_AT_ONCE_MAX, TWINS_BYTES_PER_AUTHOR_MAX, TWINS_PER_AUTHOR_MAX,
};

/// How many twins a peer may still bring in.
#[derive(Debug, Clone, Copy)]
struct Budget {
    left: u64,
    /// Since when more has been earned.
    since: Moment,
}

/// Twins that nobody needs yet, and budgets.
#[derive(Debug, Default)]
pub(crate) struct Twins {
    kept: BTreeMap<EventDigest, (AuthorIndex, Arc<Event>)>,
    budgets: BTreeMap<AuthorIndex, Budget>,
}

impl Twins {
    /// Keeps a twin, and who sent it, until somebody names it. There is little room for each
    /// author; what finds none is asked for when it is named.
    pub(crate) fn keep(&mut self, from: AuthorIndex, event: Arc<Event>) {
        let author = event.header.author;
        let kept = self.kept.values().map(|(_, twin)| twin);
        let sizes = kept.filter(|twin| twin.header.author == author).map(|twin| twin.bytes.len());
        let (count, bytes) = sizes.fold((0, 0), |(count, sum), bytes| (count + 1, sum + bytes));
        let room =
            count < TWINS_PER_AUTHOR_MAX && bytes + event.bytes.len() <= TWINS_BYTES_PER_AUTHOR_MAX;
        if room {
            self.kept.insert(event.digest, (from, event));
        }
    }

    pub(crate) fn contains(&self, digest: &EventDigest) -> bool {
        self.kept.contains_key(digest)
    }

    /// Gives a twin back, and who sent it.
    pub(crate) fn take(&mut self, digest: &EventDigest) -> Option<(AuthorIndex, Arc<Event>)> {
        self.kept.remove(digest)
    }

    /// Forgets what nobody needs any more.
    pub(crate) fn collect(&mut self, floor: Round) {
        self.kept.retain(|_, (_, event)| event.header.round > floor);
    }

    /// Whether `peer` may bring in one more twin now; if so, it has.
    pub(crate) fn spend(&mut self, peer: AuthorIndex, now: Moment) -> bool {
        let full = Budget { left: TWINS_AT_ONCE_MAX, since: now };
        let budget = self.budgets.entry(peer).or_insert(full);
        let earned = now.0.saturating_sub(budget.since.0) / TWIN_EVERY_MS;
        budget.left = budget.left.saturating_add(earned).min(TWINS_AT_ONCE_MAX);
        budget.since = budget.since.plus_ms(earned * TWIN_EVERY_MS);
        let may = budget.left > 0;
        budget.left = budget.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_brings_in_many_twins_at_once_and_then_one_at_a_time() {
        let mut twins = Twins::default();
        let mut spend = |peer, at| twins.spend(AuthorIndex(peer), Moment(at));
        assert_eq!((0..2 * TWINS_AT_ONCE_MAX).filter(|_| spend(1, 5)).count() as u64, 256);
        assert!(!spend(1, 5 + TWIN_EVERY_MS - 1));
        assert!(spend(1, 5 + TWIN_EVERY_MS) && !spend(1, 5 + TWIN_EVERY_MS));
        assert!(spend(2, 5), "another peer pays for itself");
        let later = 5 + 1_000_000 * TWIN_EVERY_MS;
        assert_eq!((0..2 * TWINS_AT_ONCE_MAX).filter(|_| spend(1, later)).count() as u64, 256);
    }
}
