//! Commits on their way from the core to delivery: the newest ones in memory, all of them in the
//! store.
//!
//! Owns which commits are durable and a bounded memory of the newest, so that delivery rarely reads
//! what was just written. Never judges. Filled by the driver, read by delivery.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use dagger_payload::id::CommitIndex;
use dagger_payload::release::OrderedCommit;
use tokio::sync::watch;

use crate::limits::{COMMITS_IN_MEMORY, COMMITS_IN_MEMORY_BYTES};
use crate::store::StoreError;
use crate::store::records::Records;

#[derive(Default)]
struct Recent {
    commits: VecDeque<Arc<OrderedCommit>>,
    bytes: usize,
}

/// Durable commits.
pub struct Commits {
    records: Records,
    recent: Mutex<Recent>,
    newest: watch::Sender<CommitIndex>,
}

fn bytes_of(commit: &OrderedCommit) -> usize {
    commit.payloads.iter().map(|ordered| ordered.payload.bytes.len() + 128).sum()
}

impl Commits {
    /// What the store has so far.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn new(records: Records) -> Result<Self, StoreError> {
        let newest = records.last_commit()?.map_or(CommitIndex(0), |commit| commit.index);
        Ok(Self { records, recent: Mutex::default(), newest: watch::Sender::new(newest) })
    }

    /// A commit has become durable. One that a snapshot was adopted beyond meanwhile, while its
    /// write waited, is no news: what is newest never falls.
    pub fn publish(&self, commit: OrderedCommit) {
        let index = commit.index;
        let mut recent = self.recent.lock().expect("no holder of this lock panics");
        let newest = *self.newest.borrow();
        if index <= newest {
            return;
        }
        if index != newest.next() {
            *recent = Recent::default();
        }
        recent.bytes += bytes_of(&commit);
        recent.commits.push_back(Arc::new(commit));
        while recent.commits.len() > COMMITS_IN_MEMORY || recent.bytes > COMMITS_IN_MEMORY_BYTES {
            let Some(oldest) = recent.commits.pop_front() else {
                break;
            };
            recent.bytes -= bytes_of(&oldest);
        }
        self.newest.send_replace(index);
    }

    /// What follows comes after this commit, without those before it.
    pub fn begin_after(&self, index: CommitIndex) {
        let mut recent = self.recent.lock().expect("no holder of this lock panics");
        if *self.newest.borrow() < index {
            *recent = Recent::default();
            self.newest.send_replace(index);
        }
    }

    /// The newest durable commit; changes wake whoever watches.
    pub fn newest(&self) -> watch::Receiver<CommitIndex> {
        self.newest.subscribe()
    }

    /// A commit, from memory or else from the store.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get(&self, index: CommitIndex) -> Result<Option<Arc<OrderedCommit>>, StoreError> {
        if let Some(commit) = self.in_memory(index) {
            return Ok(Some(commit));
        }
        let records = self.records.clone();
        let reading = tokio::task::spawn_blocking(move || records.ordered_commit(index));
        let commit = reading.await.expect("reading a commit does not panic")?;
        Ok(commit.map(Arc::new))
    }

    fn in_memory(&self, index: CommitIndex) -> Option<Arc<OrderedCommit>> {
        let recent = self.recent.lock().expect("no holder of this lock panics");
        let first = recent.commits.front()?.index;
        let at = usize::try_from(index.0.checked_sub(first.0)?).ok()?;
        recent.commits.get(at).filter(|found| found.index == index).cloned()
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::id::{LedgerTime, Position, PrefixHash, Round};

    use super::*;
    use crate::store::memory::MemoryStore;

    fn commit(index: u64) -> OrderedCommit {
        OrderedCommit {
            index: CommitIndex(index),
            ledger_time: LedgerTime(index),
            leader_round: Round(index),
            authors: Vec::new(),
            payloads: Vec::new(),
            first_position: Position(1),
            prefix_hash: PrefixHash::ZERO,
        }
    }

    fn in_memory(commits: &Commits, index: u64) -> Option<CommitIndex> {
        commits.in_memory(CommitIndex(index)).map(|commit| commit.index)
    }

    #[test]
    fn a_commit_from_before_an_adopted_snapshot_does_not_set_the_newest_back() {
        let commits = Commits::new(Records::new(Arc::new(MemoryStore::default()))).expect("reads");
        let newest = commits.newest();
        commits.publish(commit(1));
        commits.begin_after(CommitIndex(10));
        // It was committed before the core heard of the snapshot, and is durable only now.
        commits.publish(commit(2));
        assert_eq!(*newest.borrow(), CommitIndex(10));
        commits.publish(commit(11));
        assert_eq!(*newest.borrow(), CommitIndex(11));
        assert_eq!(in_memory(&commits, 11), Some(CommitIndex(11)));
        for index in [1, 2, 3, 10, 12] {
            assert_eq!(in_memory(&commits, index), None, "{index}");
        }
    }

    #[test]
    fn a_gap_between_commits_gives_nobody_another_commit_than_he_asks_for() {
        let commits = Commits::new(Records::new(Arc::new(MemoryStore::default()))).expect("reads");
        for index in [1, 2, 11, 12] {
            commits.publish(commit(index));
        }
        for index in [1, 2, 3, 11, 12, 13] {
            let found = in_memory(&commits, index);
            assert!(found.is_none_or(|found| found.0 == index), "{index} gave {found:?}");
        }
        assert_eq!(in_memory(&commits, 12), Some(CommitIndex(12)));
    }
}
