//! The newest releases, in memory: who follows them need not read the archive.
//!
//! Owns their number and their bytes, both bounded. Called by fold and by those who follow.

use std::collections::VecDeque;
use std::sync::Arc;

use dagger_payload::id::CommitIndex;
use dagger_payload::release::CommitRelease;

use crate::limits::{RELEASES_TAIL_BYTES_MAX, RELEASES_TAIL_MAX};

/// Everything that was released after a commit.
#[derive(Debug, Clone, Default)]
pub(super) struct Tail {
    releases: VecDeque<(Arc<CommitRelease>, usize)>,
    bytes: usize,
    /// The last commit that is in it no more.
    after: CommitIndex,
}

impl Tail {
    /// The next release, with its size.
    pub(super) fn push(&mut self, release: Arc<CommitRelease>, size_bytes: usize) {
        self.bytes += size_bytes;
        self.releases.push_back((release, size_bytes));
        while self.releases.len() > RELEASES_TAIL_MAX || self.bytes > RELEASES_TAIL_BYTES_MAX {
            let Some((release, size_bytes)) = self.releases.pop_front() else { break };
            self.bytes -= size_bytes;
            self.after = release.end.index;
        }
    }

    /// At most `count_max` releases of the commits after `after`, oldest first; nothing when some
    /// of them are in the archive only.
    pub(super) fn after(
        &self,
        after: CommitIndex,
        count_max: usize,
    ) -> Option<Vec<Arc<CommitRelease>>> {
        if after < self.after {
            return None;
        }
        let start = self.releases.partition_point(|(release, _)| release.end.index <= after);
        let releases = self.releases.range(start..).take(count_max);
        Some(releases.map(|(release, _)| Arc::clone(release)).collect())
    }

    /// How many releases it has.
    pub(super) fn len(&self) -> usize {
        self.releases.len()
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::event::CommitEnd;
    use dagger_payload::id::{LedgerTime, Position, PrefixHash, StateRoot};

    use super::*;

    fn release(index: u64) -> Arc<CommitRelease> {
        let end = CommitEnd {
            index: CommitIndex(index),
            position: Position(0),
            prefix_hash: PrefixHash::ZERO,
            state_root: StateRoot::ZERO,
        };
        let (releases, time_effects) = (Vec::new(), Vec::new());
        Arc::new(CommitRelease { end, ledger_time: LedgerTime(1), releases, time_effects })
    }

    fn indices(tail: &Tail, after: u64) -> Option<Vec<u64>> {
        let releases = tail.after(CommitIndex(after), 2)?;
        Some(releases.iter().map(|release| release.end.index.0).collect())
    }

    #[test]
    fn the_tail_says_so_when_it_has_forgotten_what_is_asked_for() {
        let mut tail = Tail::default();
        assert_eq!(indices(&tail, 0), Some(vec![]));
        let last = u64::try_from(RELEASES_TAIL_MAX).expect("small") + 2;
        (1..=last).for_each(|index| tail.push(release(index), 1));
        assert_eq!(tail.len(), RELEASES_TAIL_MAX);
        assert_eq!((indices(&tail, 0), indices(&tail, 1)), (None, None));
        assert_eq!(indices(&tail, 2), Some(vec![3, 4]));
        assert_eq!(indices(&tail, last), Some(vec![]));
    }

    #[test]
    fn a_release_that_is_too_large_for_the_tail_is_not_in_it() {
        let mut tail = Tail::default();
        tail.push(release(1), 1);
        tail.push(release(2), RELEASES_TAIL_BYTES_MAX + 1);
        assert_eq!((tail.len(), indices(&tail, 1), indices(&tail, 2)), (0, None, Some(vec![])));
        tail.push(release(3), 1);
        assert_eq!((indices(&tail, 1), indices(&tail, 2)), (None, Some(vec![3])));
    }
}
