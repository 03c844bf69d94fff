//! The agent's own chain of commit ends, recomputed from the released payloads.
//!
//! Never believes a prefix hash that it did not compute itself. Called by [`super::reader`].

use std::collections::VecDeque;

use dagger_payload::event::CommitEnd;
use dagger_payload::id::{ClusterId, CommitIndex, Position, PrefixHash};
use dagger_payload::release::{CommitRelease, extend_prefix, initial_prefix};

use crate::limits::CHAIN_ENDS_MAX;

/// A release does not continue the chain: the ledger or the processor of this host is broken or
/// captured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainBreak {
    /// Its commit does not come after the last one.
    #[error("commit {found} was released after commit {last}")]
    NotLater {
        /// The last one.
        last: CommitIndex,
        /// This one.
        found: CommitIndex,
    },
    /// A position is missing or comes twice.
    #[error("commit {commit} has position {found} where {expected} must stand")]
    Position {
        /// In which commit.
        commit: CommitIndex,
        /// What must stand there.
        expected: Position,
        /// What stands there.
        found: Position,
    },
    /// A payload's bytes are not those of its digest.
    #[error("commit {commit} names a payload by the wrong digest at position {position}")]
    Digest {
        /// In which commit.
        commit: CommitIndex,
        /// At which position.
        position: Position,
    },
    /// The payloads lead to another chain than the release says.
    #[error("the payloads of commit {commit} do not lead to its prefix hash")]
    Prefix {
        /// In which commit.
        commit: CommitIndex,
    },
    /// Ledger time went back.
    #[error("ledger time goes back in commit {commit}")]
    Time {
        /// In which commit.
        commit: CommitIndex,
    },
}

/// How another's commit end compares with the own chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The same history.
    Same {
        /// The last own release that it covers. The end itself may be a later commit that changed
        /// nothing; what is released here between the two is not covered.
        up_to: CommitIndex,
    },
    /// Another history.
    Other,
    /// Nothing to compare with yet.
    Unknown,
}

/// What of the chain is no longer in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forgotten {
    Nothing,
    Oldest,
}

/// The newest commit ends, at most [`CHAIN_ENDS_MAX`], oldest first. Commits that changed nothing
/// are not released and have no entry.
#[derive(Debug, Clone)]
pub struct Chain {
    start: PrefixHash,
    ends: VecDeque<CommitEnd>,
    forgotten: Forgotten,
    ledger_time: dagger_payload::id::LedgerTime,
}

impl Chain {
    /// The chain of `cluster` before its first commit.
    pub fn new(cluster: &ClusterId) -> Self {
        Self {
            start: initial_prefix(cluster),
            ends: VecDeque::new(),
            forgotten: Forgotten::Nothing,
            ledger_time: dagger_payload::id::LedgerTime(0),
        }
    }

    /// The last released commit; 0 before the first.
    pub fn last(&self) -> CommitIndex {
        self.ends.back().map_or(CommitIndex(0), |end| end.index)
    }

    /// Takes in the next release, if it continues the chain; else the chain stays as it is.
    ///
    /// # Errors
    /// [`ChainBreak`].
    pub fn extend(&mut self, release: &CommitRelease) -> Result<(), ChainBreak> {
        let (mut position, before) = match self.ends.back() {
            Some(end) => (end.position, end.prefix_hash),
            None => (Position(0), self.start),
        };
        let commit = release.end.index;
        if commit <= self.last() {
            let (last, found) = (self.last(), commit);
            return Err(ChainBreak::NotLater { last, found });
        }
        if release.ledger_time < self.ledger_time {
            return Err(ChainBreak::Time { commit });
        }
        for judged in &release.releases {
            let (expected, found) = (position.next(), judged.position);
            if found != expected {
                return Err(ChainBreak::Position { commit, expected, found });
            }
            if judged.ordered.payload.digest() != judged.digest {
                return Err(ChainBreak::Digest { commit, position: found });
            }
            position = found;
        }
        if release.end.position != position {
            let (expected, found) = (position, release.end.position);
            return Err(ChainBreak::Position { commit, expected, found });
        }
        let payloads = release.releases.iter().map(|judged| &judged.ordered.payload);
        if extend_prefix(&before, release.ledger_time, payloads) != release.end.prefix_hash {
            return Err(ChainBreak::Prefix { commit });
        }
        self.ledger_time = release.ledger_time;
        self.ends.push_back(release.end);
        if self.ends.len() > CHAIN_ENDS_MAX {
            self.ends.pop_front();
            self.forgotten = Forgotten::Oldest;
        }
        Ok(())
    }

    /// The last commit end at or before `commit`; none before the first release that is kept.
    pub fn end_at(&self, commit: CommitIndex) -> Option<&CommitEnd> {
        let after = self.ends.partition_point(|end| end.index <= commit);
        after.checked_sub(1).and_then(|at| self.ends.get(at))
    }

    /// Compares a commit end that somebody else attests.
    ///
    /// A commit that changed nothing is not released, so it may be named by an end of which only
    /// position and prefix are known here; its state root then counts as the one before it.
    pub fn compare(&self, theirs: &CommitEnd) -> Comparison {
        let Some(own) = self.end_at(theirs.index) else {
            if self.forgotten == Forgotten::Oldest {
                return Comparison::Unknown;
            }
            let nothing = theirs.position == Position(0) && theirs.prefix_hash == self.start;
            return match (nothing, self.ends.is_empty()) {
                (true, _) => Comparison::Same { up_to: CommitIndex(0) },
                (false, true) => Comparison::Unknown,
                (false, false) => Comparison::Other,
            };
        };
        let same_order = own.position == theirs.position && own.prefix_hash == theirs.prefix_hash;
        let same_state = own.state_root == theirs.state_root;
        if same_order && same_state {
            return Comparison::Same { up_to: own.index };
        }
        // Between two releases, or after the last, commits may follow that are not told here yet,
        // or never.
        let told = own.index == theirs.index;
        let passed = theirs.index < self.last();
        match (told, passed, same_order) {
            (true, _, _) | (false, true, false) => Comparison::Other,
            (false, true, true) | (false, false, _) => Comparison::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::id::{LedgerTime, StateRoot};

    use super::*;

    fn release(index: usize) -> CommitRelease {
        let end = CommitEnd {
            index: CommitIndex(u64::try_from(index).expect("small")),
            position: Position(0),
            prefix_hash: initial_prefix(&ClusterId([1; 32])),
            state_root: StateRoot([u8::try_from(index % 251).expect("a byte"); 32]),
        };
        let (releases, time_effects) = (Vec::new(), Vec::new());
        CommitRelease { end, ledger_time: LedgerTime(1), releases, time_effects }
    }

    #[test]
    fn a_long_history_costs_bounded_memory_and_what_was_forgotten_is_unknown() {
        let mut chain = Chain::new(&ClusterId([1; 32]));
        for index in 1..=CHAIN_ENDS_MAX {
            chain.extend(&release(index)).expect("continues");
        }
        let (first, newest) = (release(1).end, release(CHAIN_ENDS_MAX + 1).end);
        assert_eq!(chain.compare(&first), Comparison::Same { up_to: first.index });
        chain.extend(&release(CHAIN_ENDS_MAX + 1)).expect("continues");
        assert_eq!(chain.ends.len(), CHAIN_ENDS_MAX);
        assert_eq!(chain.compare(&first), Comparison::Unknown);
        assert_eq!(chain.compare(&newest), Comparison::Same { up_to: newest.index });
        let other = CommitEnd { state_root: StateRoot([255; 32]), ..newest };
        assert_eq!(chain.compare(&other), Comparison::Other);
    }
}
