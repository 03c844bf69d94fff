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

    /// A commit has become durable.
    pub fn publish(&self, commit: OrderedCommit) {
        let index = commit.index;
        let mut recent = self.recent.lock().expect("no holder of this lock panics");
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
        recent.commits.get(at).cloned()
    }
}
