//! Records of snapshots: chunks as the judge made them, and a head that stands only when all of
//! them are here and a quorum attests their commit.
//!
//! Owns their keys. Never reads a chunk. Called by delivery.

use bytes::Bytes;
use dagger_payload::id::CommitIndex;
use dagger_payload::snapshot::SnapshotHead;

use super::records::{Records, damaged, open, open_encoded, put, put_encoded};
use super::{Change, Direction, StoreError, Table};
use crate::limits::STORE_PAGE_EVENTS;

/// The head sorts behind all chunks.
const HEAD: u32 = u32::MAX;

fn key(commit: CommitIndex, number: u32) -> Vec<u8> {
    [&commit.0.to_be_bytes()[..], &number.to_be_bytes()].concat()
}

fn parts(key: &[u8]) -> Result<(CommitIndex, u32), StoreError> {
    let (commit, number) = key.split_first_chunk().ok_or_else(|| damaged(Table::Snapshots, key))?;
    let number = number.try_into().map_err(|_| damaged(Table::Snapshots, key))?;
    Ok((CommitIndex(u64::from_be_bytes(*commit)), u32::from_be_bytes(number)))
}

/// Keeps a chunk of the snapshot made after `commit`.
pub fn chunk_change(commit: CommitIndex, number: u32, chunk: &Bytes) -> Change {
    put(Table::Snapshots, key(commit, number), chunk.to_vec())
}

/// Keeps the head of a whole snapshot.
pub fn head_change(head: &SnapshotHead) -> Change {
    put_encoded(Table::Snapshots, key(head.made_after, HEAD), head)
}

/// Takes a snapshot's head away, so that it is none any more.
pub fn head_removal(commit: CommitIndex) -> Change {
    Change::Delete { table: Table::Snapshots, key: key(commit, HEAD) }
}

impl Records {
    /// The heads of all whole snapshots, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn snapshots(&self) -> Result<Vec<SnapshotHead>, StoreError> {
        let mut heads = Vec::new();
        let mut from = Vec::new();
        loop {
            // From any chunk straight to where the head of its snapshot would be.
            let page = self.store.page(Table::Snapshots, &from, Direction::Forward, 1)?;
            let Some((found, value)) = page.into_iter().next() else {
                return Ok(heads);
            };
            let (commit, number) = parts(&found)?;
            if number == HEAD {
                heads.push(open_encoded(Table::Snapshots, &found, value)?);
                from = key(commit.next(), 0);
            } else {
                from = key(commit, HEAD);
            }
        }
    }

    /// One chunk of a snapshot.
    ///
    /// # Errors
    /// [`StoreError`]; `Damaged` also when it is not there.
    pub fn snapshot_chunk(&self, commit: CommitIndex, number: u32) -> Result<Bytes, StoreError> {
        let key = key(commit, number);
        let value = self.store.get(Table::Snapshots, &key)?;
        let value = value.ok_or_else(|| damaged(Table::Snapshots, &key))?;
        Ok(open(Table::Snapshots, &key, value)?.into())
    }

    /// Removals of up to a page of the parts of snapshots before `commit`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn snapshot_removals(&self, commit: CommitIndex) -> Result<Vec<Change>, StoreError> {
        let end = key(commit, 0);
        let page = self.store.page(Table::Snapshots, &[], Direction::Forward, STORE_PAGE_EVENTS)?;
        let keys = page.into_iter().map(|(key, _)| key).take_while(|key| *key < end);
        Ok(keys.map(|key| Change::Delete { table: Table::Snapshots, key }).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dagger_payload::event::CommitEnd;
    use dagger_payload::id::{Position, PrefixHash, StateRoot};

    use super::*;
    use crate::store::Store;
    use crate::store::memory::MemoryStore;

    fn head(index: u64, chunks: u32) -> SnapshotHead {
        let end = CommitEnd {
            index: CommitIndex(index),
            position: Position(index),
            prefix_hash: PrefixHash([1; 32]),
            state_root: StateRoot([2; 32]),
        };
        SnapshotHead { end, chunks, bytes: 7, made_after: CommitIndex(index) }
    }

    #[test]
    fn only_whole_snapshots_are_listed_and_old_ones_go_with_all_their_parts() {
        let store = Arc::new(MemoryStore::default());
        let records = Records::new(store.clone());
        for (index, chunks) in [(3, 2), (5, 1), (9, 3)] {
            let chunk = |number| {
                chunk_change(CommitIndex(index), number, &Bytes::from(format!("{index}.{number}")))
            };
            store.commit(&(0..chunks).map(chunk).collect::<Vec<_>>()).expect("commits");
        }
        store.commit(&[head_change(&head(3, 2)), head_change(&head(9, 3))]).expect("commits");
        assert_eq!(records.snapshots().expect("reads"), [head(3, 2), head(9, 3)]);
        let chunk = records.snapshot_chunk(CommitIndex(9), 2).expect("reads");
        assert_eq!(chunk, "9.2");
        assert!(records.snapshot_chunk(CommitIndex(9), 3).is_err());
        let removals = records.snapshot_removals(CommitIndex(9)).expect("reads");
        assert_eq!(removals.len(), 4);
        store.commit(&removals).expect("commits");
        assert_eq!(records.snapshots().expect("reads"), [head(9, 3)]);
        store.commit(&[head_removal(CommitIndex(9))]).expect("commits");
        assert_eq!(records.snapshots().expect("reads"), []);
    }
}
