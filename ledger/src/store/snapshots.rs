//! Records of snapshots: chunks as the judge made them, and a head that stands only when all of
//! them are here and a quorum attests their commit.
//!
//! Owns their keys. Never reads a chunk. Called by delivery.

use std::collections::BTreeMap;

use bytes::Bytes;
use dagger_payload::committee::Committee;
use dagger_payload::id::{AuthorIndex, CommitIndex, EventDigest};
use dagger_payload::limits::SNAPSHOT_CHUNKS_MAX;
use dagger_payload::release::QuorumEvidence;
use dagger_payload::snapshot::{SnapshotHead, SnapshotOffer};

use super::records::{EventKey, Records, damaged, open, open_encoded, put, put_encoded};
use super::{Change, Direction, StoreError, Table};
use crate::driver::start::FIRST_EPOCH;
use crate::limits::{EVIDENCE_EVENTS_MAX, STORE_PAGE_EVENTS};

/// The head sorts behind all chunks.
const HEAD: u32 = u32::MAX;
/// Who attests it, just before.
const EVIDENCE: u32 = u32::MAX - 1;

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

/// Keeps who attests a snapshot's state: with it the snapshot can be offered to others.
pub fn evidence_change(commit: CommitIndex, evidence: &QuorumEvidence) -> Change {
    put_encoded(Table::Snapshots, key(commit, EVIDENCE), evidence)
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
                if commit.next() == commit {
                    return Ok(heads); // nothing is above it
                }
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
        let chunk = self.snapshot_chunk_here(commit, number)?;
        chunk.ok_or_else(|| damaged(Table::Snapshots, &key(commit, number)))
    }

    /// One chunk of a snapshot, if it is here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn snapshot_chunk_here(
        &self,
        commit: CommitIndex,
        number: u32,
    ) -> Result<Option<Bytes>, StoreError> {
        if number >= SNAPSHOT_CHUNKS_MAX {
            return Ok(None);
        }
        let key = key(commit, number);
        let value = self.store.get(Table::Snapshots, &key)?;
        let chunk = value.map(|value| open(Table::Snapshots, &key, value)).transpose()?;
        Ok(chunk.map(Bytes::from))
    }

    /// Who attests a snapshot's state, as far as that is known.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn snapshot_evidence(
        &self,
        commit: CommitIndex,
    ) -> Result<Option<QuorumEvidence>, StoreError> {
        self.get(Table::Snapshots, &key(commit, EVIDENCE))
    }

    /// Headers of a quorum that attest a snapshot's state; none when they are not found soon after
    /// its commit.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn headers_naming(
        &self,
        head: &SnapshotHead,
        founders: Committee,
    ) -> Result<Option<QuorumEvidence>, StoreError> {
        let Some(commit) = self.commit(head.end.index)? else {
            return Ok(None);
        };
        let handover = self.handover_before(head.end.index)?;
        let epoch = handover.as_ref().map_or(FIRST_EPOCH, |handover| handover.epoch);
        let committee = handover.map_or(founders, |handover| handover.committee);
        let mut headers = BTreeMap::new();
        let (round, author, digest) = (commit.leader.round, AuthorIndex(0), EventDigest::ZERO);
        let mut next = Some(EventKey { epoch, round, author, digest });
        let mut looked_at = 0;
        while let Some(from) = next.filter(|_| looked_at < EVIDENCE_EVENTS_MAX) {
            let (events, following) = self.events(from)?;
            looked_at += events.len();
            for event in events {
                let author = event.header.author;
                if committee.contains(author) && head.is_named_by(&event.header.attestation) {
                    headers.entry(author).or_insert_with(|| event.signed_header());
                }
            }
            if headers.len() >= committee.quorum() {
                let headers = headers.into_values().take(committee.quorum()).collect();
                return Ok(Some(QuorumEvidence { headers }));
            }
            next = following;
        }
        Ok(None)
    }

    /// The newest snapshot that can be offered to others.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn newest_offer(&self) -> Result<Option<SnapshotOffer>, StoreError> {
        for head in self.snapshots()?.into_iter().rev() {
            if let Some(evidence) = self.snapshot_evidence(head.made_after)? {
                return Ok(Some(SnapshotOffer { head, evidence }));
            }
        }
        Ok(None)
    }

    /// Removals of all chunks of one snapshot.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn chunk_removals(&self, commit: CommitIndex) -> Result<Vec<Change>, StoreError> {
        let mut removals = Vec::new();
        for number in 0..SNAPSHOT_CHUNKS_MAX {
            let key = key(commit, number);
            if !self.store.contains(Table::Snapshots, &key)? {
                break;
            }
            removals.push(Change::Delete { table: Table::Snapshots, key });
        }
        Ok(removals)
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
