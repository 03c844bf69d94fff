//! Records of snapshots: chunks as the judge made them, and a head that stands only when all of
//! them are here and a quorum attests their commit. What the own judge made and what was fetched
//! stands apart, also of one commit: the one may be thrown away while the other is yet to count.
//!
//! Owns their keys. Never reads a chunk. Called by delivery and by `transfer`.

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

/// Where a snapshot's chunks come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The own judge.
    Own,
    /// Another host.
    Fetched,
}

/// Which snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotKey {
    /// The commit after which it was made.
    pub made_after: CommitIndex,
    /// Whose chunks they are.
    pub source: Source,
}

impl SnapshotKey {
    /// The own judge's.
    pub fn own(made_after: CommitIndex) -> Self {
        Self { made_after, source: Source::Own }
    }

    /// Another host's.
    pub fn fetched(made_after: CommitIndex) -> Self {
        Self { made_after, source: Source::Fetched }
    }

    fn next(self) -> Option<Self> {
        let following = self.made_after.next();
        match self.source {
            Source::Own => Some(Self::fetched(self.made_after)),
            Source::Fetched => (following > self.made_after).then(|| Self::own(following)),
        }
    }
}

/// A whole snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its head.
    pub head: SnapshotHead,
    /// Whose chunks it has.
    pub source: Source,
}

impl Kept {
    /// Under which key its parts stand.
    pub fn key(&self) -> SnapshotKey {
        SnapshotKey { made_after: self.head.made_after, source: self.source }
    }
}

fn key(of: SnapshotKey, number: u32) -> Vec<u8> {
    let source = match of.source {
        Source::Own => 0,
        Source::Fetched => 1,
    };
    [&of.made_after.0.to_be_bytes()[..], &[source], &number.to_be_bytes()].concat()
}

fn parts(key: &[u8]) -> Result<(SnapshotKey, u32), StoreError> {
    let read = |key: &[u8]| {
        let (commit, rest) = key.split_first_chunk()?;
        let (source, number) = rest.split_first()?;
        let source = match source {
            0 => Source::Own,
            1 => Source::Fetched,
            _ => return None,
        };
        let made_after = CommitIndex(u64::from_be_bytes(*commit));
        let number = u32::from_be_bytes(number.try_into().ok()?);
        Some((SnapshotKey { made_after, source }, number))
    };
    read(key).ok_or_else(|| damaged(Table::Snapshots, key))
}

/// Keeps a chunk of a snapshot.
pub fn chunk_change(of: SnapshotKey, number: u32, chunk: &Bytes) -> Change {
    put(Table::Snapshots, key(of, number), chunk.to_vec())
}

/// Lets a snapshot count of which all is here, with who attests its state: it can be offered to
/// others. Of one commit it is the only one.
pub fn whole_changes(kept: &Kept, evidence: &QuorumEvidence) -> [Change; 3] {
    let other = match kept.source {
        Source::Own => SnapshotKey::fetched(kept.head.made_after),
        Source::Fetched => SnapshotKey::own(kept.head.made_after),
    };
    let evidence = put_encoded(Table::Snapshots, key(kept.key(), EVIDENCE), evidence);
    [head_change(kept), evidence, head_removal(other)]
}

/// Keeps the head of a whole snapshot.
pub fn head_change(kept: &Kept) -> Change {
    put_encoded(Table::Snapshots, key(kept.key(), HEAD), &kept.head)
}

/// Takes a snapshot's head away, so that it is none any more.
pub fn head_removal(of: SnapshotKey) -> Change {
    Change::Delete { table: Table::Snapshots, key: key(of, HEAD) }
}

impl Records {
    /// All whole snapshots, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn snapshots(&self) -> Result<Vec<Kept>, StoreError> {
        let (mut all, mut from) = (Vec::new(), Vec::new());
        loop {
            // From any chunk straight to where the head of its snapshot would be.
            let page = self.store.page(Table::Snapshots, &from, Direction::Forward, 1)?;
            let Some((found, value)) = page.into_iter().next() else {
                return Ok(all);
            };
            let (of, number) = parts(&found)?;
            if number == HEAD {
                let head = open_encoded(Table::Snapshots, &found, value)?;
                all.push(Kept { head, source: of.source });
                let Some(next) = of.next() else {
                    return Ok(all); // nothing is above it
                };
                from = key(next, 0);
            } else {
                from = key(of, HEAD);
            }
        }
    }

    /// One chunk of a snapshot, whole or not, if it is here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn snapshot_chunk(
        &self,
        of: SnapshotKey,
        number: u32,
    ) -> Result<Option<Bytes>, StoreError> {
        if number >= SNAPSHOT_CHUNKS_MAX {
            return Ok(None);
        }
        let key = key(of, number);
        let value = self.store.get(Table::Snapshots, &key)?;
        let chunk = value.map(|value| open(Table::Snapshots, &key, value)).transpose()?;
        Ok(chunk.map(Bytes::from))
    }

    /// One chunk of the whole snapshot made after a commit, if it is here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn offered_chunk(
        &self,
        made_after: CommitIndex,
        number: u32,
    ) -> Result<Option<Bytes>, StoreError> {
        for of in [SnapshotKey::own(made_after), SnapshotKey::fetched(made_after)] {
            if self.store.contains(Table::Snapshots, &key(of, HEAD))? {
                return self.snapshot_chunk(of, number);
            }
        }
        Ok(None)
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
        for kept in self.snapshots()?.into_iter().rev() {
            // Who attests its state, as far as that is known.
            if let Some(evidence) = self.get(Table::Snapshots, &key(kept.key(), EVIDENCE))? {
                return Ok(Some(SnapshotOffer { head: kept.head, evidence }));
            }
        }
        Ok(None)
    }

    /// Removals of all chunks of one snapshot.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn chunk_removals(&self, of: SnapshotKey) -> Result<Vec<Change>, StoreError> {
        let mut removals = Vec::new();
        for number in 0..SNAPSHOT_CHUNKS_MAX {
            let key = key(of, number);
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
        let end = key(SnapshotKey::own(commit), 0);
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

    fn kept(source: Source, index: u64, chunks: u32) -> Kept {
        let end = CommitEnd {
            index: CommitIndex(index),
            position: Position(index),
            prefix_hash: PrefixHash([1; 32]),
            state_root: StateRoot([2; 32]),
        };
        let head = SnapshotHead { end, chunks, bytes: 7, made_after: CommitIndex(index) };
        Kept { head, source }
    }

    fn put_chunks(store: &MemoryStore, of: SnapshotKey, chunks: u32) {
        let text = |number| format!("{:?} {}.{number}", of.source, of.made_after.0);
        let chunk = |number| chunk_change(of, number, &Bytes::from(text(number)));
        store.commit(&(0..chunks).map(chunk).collect::<Vec<_>>()).expect("commits");
    }

    #[test]
    fn only_whole_snapshots_are_listed_and_old_ones_go_with_all_their_parts() {
        let store = Arc::new(MemoryStore::default());
        let records = Records::new(store.clone());
        let (first, last) = (kept(Source::Own, 3, 2), kept(Source::Fetched, 9, 3));
        put_chunks(&store, first.key(), 2);
        put_chunks(&store, SnapshotKey::own(CommitIndex(5)), 1);
        put_chunks(&store, last.key(), 3);
        store.commit(&[head_change(&first), head_change(&last)]).expect("commits");
        assert_eq!(records.snapshots().expect("reads"), [first, last.clone()]);
        let chunk = |number| records.offered_chunk(CommitIndex(9), number).expect("reads");
        assert_eq!(chunk(2).expect("is here"), "Fetched 9.2");
        assert_eq!(chunk(3), None);
        assert_eq!(records.offered_chunk(CommitIndex(5), 0).expect("reads"), None, "not whole");
        let removals = records.snapshot_removals(CommitIndex(9)).expect("reads");
        assert_eq!(removals.len(), 4);
        store.commit(&removals).expect("commits");
        assert_eq!(records.snapshots().expect("reads"), std::slice::from_ref(&last));
        store.commit(&[head_removal(last.key())]).expect("commits");
        assert_eq!(records.snapshots().expect("reads"), []);
    }

    #[test]
    fn what_was_fetched_goes_without_the_own_chunks_of_the_same_commit_that_do_not_count_yet() {
        let store = Arc::new(MemoryStore::default());
        let records = Records::new(store.clone());
        let (own, fetched) = (kept(Source::Own, 9, 2), kept(Source::Fetched, 9, 3));
        put_chunks(&store, own.key(), 2);
        put_chunks(&store, fetched.key(), 3);
        let removals = records.chunk_removals(fetched.key()).expect("reads");
        assert_eq!(removals.len(), 3);
        store.commit(&removals).expect("commits");
        let evidence = QuorumEvidence { headers: Vec::new() };
        store.commit(&whole_changes(&own, &evidence)).expect("commits");
        let chunk = |number| records.offered_chunk(CommitIndex(9), number).expect("reads");
        assert_eq!([chunk(0), chunk(1)].map(Option::unwrap), ["Own 9.0", "Own 9.1"]);

        // Of one commit only one counts.
        put_chunks(&store, fetched.key(), 3);
        store.commit(&whole_changes(&fetched, &evidence)).expect("commits");
        assert_eq!(records.snapshots().expect("reads"), [fetched]);
        assert_eq!(chunk(0).expect("is here"), "Fetched 9.0");
    }
}
