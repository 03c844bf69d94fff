//! Snapshots of the judged state: when one is asked for, how it is kept, and how a judge begins
//! from it.
//!
//! Owns how often, and that a snapshot counts only when all of it is durable and a quorum attests
//! its commit or a later one of the same history. Never reads a chunk. Called by judging.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use dagger_bus::connection::{Receiver, Sender};
use dagger_bus::judging::{Judged, Opened, Restore, Restored, Then};
use dagger_bus::limits::ANSWER_WAIT_MAX;
use dagger_bus::{BusError, Connection};
use dagger_payload::event::{CHECKPOINT_COMMITS, CommitEnd};
use dagger_payload::id::CommitIndex;
use dagger_payload::limits::SNAPSHOT_CHUNKS_MAX;
use dagger_payload::release::OrderedCommit;
use dagger_payload::snapshot::SnapshotHead;
use tokio::time::timeout;

use super::{Delivery, DeliveryError, retention};
use crate::limits::{
    SNAPSHOT_COMMIT_BYTES, SNAPSHOT_WORK_BYTES_MIN, SNAPSHOT_WRITE_BYTES, SNAPSHOTS_KEPT,
};
use crate::store::records::Records;
use crate::store::snapshots::{Kept, SnapshotKey, Source};
use crate::store::{StoreError, snapshots};

/// What is known of this store's snapshots.
pub struct Snapshots {
    /// Whole ones, the oldest first.
    whole: Mutex<Vec<Kept>>,
    /// Bytes that were ordered since the last one was asked for.
    work: AtomicU64,
}

impl Snapshots {
    /// Reads what the store has.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn restore(records: &Records) -> Result<Self, StoreError> {
        Ok(Self { whole: Mutex::new(records.snapshots()?), work: AtomicU64::new(0) })
    }

    fn whole(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.whole.lock().expect("no holder of this lock panics")
    }

    /// The newest whole one.
    pub fn newest(&self) -> Option<Kept> {
        self.whole().last().cloned()
    }

    /// A snapshot of another host counts here too; which ones are kept.
    pub(super) fn add(&self, kept: Kept) -> CommitIndex {
        let mut whole = self.whole();
        let commit = kept.head.made_after;
        whole.retain(|known| known.head.made_after != commit);
        whole.push(kept);
        whole.sort_by_key(|kept| kept.head.made_after);
        let too_many = whole.len().saturating_sub(SNAPSHOTS_KEPT);
        whole.drain(..too_many);
        whole.first().map_or(commit, |kept| kept.head.made_after)
    }

    /// Whether a snapshot is wanted after this commit: at a checkpoint, which all members attest,
    /// when as much was ordered since the last one as a snapshot has bytes. So all snapshots
    /// together cost no more than what they spare.
    pub(super) fn wanted_after(&self, commit: &OrderedCommit) -> Then {
        let payloads = commit.payloads.iter().map(|each| each.payload.bytes.len());
        let bytes = u64::try_from(payloads.sum::<usize>()).expect("fits into 64 bits");
        let before = self.work.load(Ordering::Relaxed);
        // Commits without payloads alone never lead to one.
        let commit_bytes = if before + bytes > 0 { SNAPSHOT_COMMIT_BYTES } else { 0 };
        let work = before + bytes + commit_bytes;
        self.work.store(work, Ordering::Relaxed);
        let last = self.whole().last().map_or(0, |kept| kept.head.bytes);
        let is_checkpoint = commit.index.0.is_multiple_of(CHECKPOINT_COMMITS);
        if !is_checkpoint || work < last.max(SNAPSHOT_WORK_BYTES_MIN) {
            return Then::Nothing;
        }
        self.work.store(0, Ordering::Relaxed);
        Then::Snapshot
    }
}

/// Takes in the snapshot that follows the answer to a commit, and lets it count once a quorum
/// attests that.
///
/// # Errors
/// The processor sends something else.
pub(super) async fn receive(
    delivery: &Arc<Delivery>,
    receiver: &mut Receiver,
    end: CommitEnd,
) -> Result<(), DeliveryError> {
    let (mut changes, mut waiting, mut number, mut bytes) = (Vec::new(), 0, 0, 0);
    let head = loop {
        match receiver.receive().await? {
            Judged::Chunk { bytes: chunk } if number < SNAPSHOT_CHUNKS_MAX => {
                waiting += chunk.len();
                bytes += u64::try_from(chunk.len()).expect("fits into 64 bits");
                changes.push(snapshots::chunk_change(SnapshotKey::own(end.index), number, &chunk));
                number += 1;
                if waiting >= SNAPSHOT_WRITE_BYTES {
                    delivery.writer.store(std::mem::take(&mut changes)).await?;
                    waiting = 0;
                }
            }
            Judged::Snapshot { head } => break head,
            _ => return Err(BusError::Malformed.into()),
        }
    };
    let same = (head.end.position, head.end.prefix_hash, head.end.state_root)
        == (end.position, end.prefix_hash, end.state_root)
        && delivery.records.judged(head.end.index)? == Some(head.end);
    if !same || (head.chunks, head.bytes, head.made_after) != (number, bytes, end.index) {
        return Err(DeliveryError::Judge("its snapshot is of another commit".to_owned()));
    }
    delivery.writer.store(changes).await?;
    tokio::spawn(certify(delivery.clone(), head));
    Ok(())
}

/// Waits until a quorum attests the commit or a later one, and lets the snapshot count.
async fn certify(delivery: Arc<Delivery>, head: SnapshotHead) {
    let mut attested = delivery.evidence.attested();
    let index = head.made_after;
    let reached = attested.wait_for(|now| now.as_ref().is_some_and(|now| now.commit >= index));
    if reached.await.is_err() {
        return; // the daemon stops
    }
    if let Err(error) = keep(&delivery, head).await {
        let _ = delivery.is_fatal(error);
    }
}

async fn keep(delivery: &Arc<Delivery>, head: SnapshotHead) -> Result<(), DeliveryError> {
    let (commit, bytes) = (head.made_after, head.bytes);
    let (records, founders) = (delivery.records.clone(), delivery.genesis.committee());
    let sought = head.clone();
    let seeking = tokio::task::spawn_blocking(move || records.headers_naming(&sought, founders));
    let Some(evidence) = seeking.await.expect("reading events does not panic")? else {
        // In its place would go one that can be offered, and what lies before it is pruned.
        tracing::info!(%commit, "a snapshot is not kept: it could not be offered to other hosts");
        let removals = delivery.records.chunk_removals(SnapshotKey::own(commit))?;
        delivery.writer.store(removals).await?;
        return Ok(());
    };
    let kept = Kept { head, source: Source::Own };
    delivery.writer.store(snapshots::whole_changes(&kept, &evidence).into()).await?;
    let oldest = delivery.snapshots.add(kept);
    tracing::info!(%commit, bytes, "a snapshot of the judged state is kept");
    loop {
        let removals = delivery.records.snapshot_removals(oldest)?;
        if removals.is_empty() {
            break;
        }
        delivery.writer.store(removals).await?;
    }
    retention::prune(delivery).await
}

/// Takes a snapshot away that is of no use.
async fn forget(delivery: &Delivery, of: SnapshotKey) -> Result<(), DeliveryError> {
    delivery.snapshots.whole().retain(|kept| kept.key() != of);
    delivery.writer.store(vec![snapshots::head_removal(of)]).await?;
    Ok(())
}

/// What the processor was sent of a snapshot.
enum Handed {
    All,
    /// Not this chunk, which is not here.
    AllBefore(u32),
}

async fn send_chunks(
    delivery: &Delivery,
    sender: &mut Sender,
    kept: &Kept,
) -> Result<Handed, DeliveryError> {
    let of = kept.key();
    for number in 0..kept.head.chunks {
        let records = delivery.records.clone();
        let reading = tokio::task::spawn_blocking(move || records.snapshot_chunk(of, number));
        let Some(bytes) = reading.await.expect("reading a chunk does not panic")? else {
            return Ok(Handed::AllBefore(number));
        };
        let chunk = Restore::Chunk { bytes };
        let sent = timeout(ANSWER_WAIT_MAX, sender.send(&chunk)).await;
        sent.map_err(|_| BusError::TimedOut)??;
    }
    Ok(Handed::All)
}

/// Hands a snapshot to the processor. None when it was refused, or lacks a chunk: then it is gone.
///
/// # Errors
/// The processor went away, or the store cannot be read.
pub(super) async fn hand_in(
    delivery: &Delivery,
    connection: &mut Connection,
    kept: &Kept,
) -> Result<Option<Opened>, DeliveryError> {
    let (commit, chunks) = (kept.head.made_after, kept.head.chunks);
    tracing::info!(%commit, chunks, "the processor begins from a snapshot");
    connection.sender.send(&Restore::Head { head: kept.head.clone() }).await?;
    let sending = send_chunks(delivery, &mut connection.sender, kept);
    let answering = connection.receiver.receive::<Restored>();
    tokio::pin!(answering);
    // It may refuse before it has all chunks.
    let answer = tokio::select! {
        answer = &mut answering => answer?,
        sent = sending => match sent? {
            Handed::All => {
                timeout(ANSWER_WAIT_MAX, answering).await.map_err(|_| BusError::TimedOut)??
            }
            Handed::AllBefore(number) => {
                tracing::error!(%commit, number, "the snapshot lacks a chunk: it is forgotten");
                forget(delivery, kept.key()).await?;
                return Ok(None);
            }
        }
    };
    match answer {
        Restored::Done { opened } => Ok(Some(*opened)),
        Restored::Refused { why } => {
            tracing::error!(%commit, why, "the processor refuses the snapshot; it is not used again");
            forget(delivery, kept.key()).await?;
            Ok(None)
        }
    }
}
