//! How long the bodies of events are kept.
//!
//! Owns the rule: a body goes when nobody needs it who begins from any of the snapshots that are
//! kept here, and when it is older than the operator's setting. Headers, commits, releases and
//! verdicts stay. Called when a snapshot has come to count, and at the start.

use std::sync::Arc;

use dagger_payload::id::CommitIndex;

use super::{Delivery, DeliveryError};
use crate::configuration::Retention;
use crate::driver::start::FIRST_EPOCH;
use crate::limits::SNAPSHOTS_KEPT;
use crate::store::StoreError;
use crate::store::pruning::{Pruned, pruned_change};
use crate::store::records::Records;

/// Prunes once, at the start: the setting may be another one than before.
pub async fn run(delivery: Arc<Delivery>) {
    if let Err(error) = prune(&delivery).await {
        let _ = delivery.is_fatal(error);
    }
}

/// Prunes what may go now.
///
/// # Errors
/// The store fails, or the daemon stops.
pub(super) async fn prune(delivery: &Arc<Delivery>) -> Result<(), DeliveryError> {
    let Retention::Hours(hours) = delivery.retention else {
        return Ok(());
    };
    let records = delivery.records.clone();
    let finding = tokio::task::spawn_blocking(move || may_go(&records, hours));
    let Some(pruned) = finding.await.expect("reading commits does not panic")? else {
        return Ok(());
    };
    // From here on nobody is promised those events.
    delivery.writer.store(vec![pruned_change(&pruned)]).await?;
    let mut count = 0;
    loop {
        let records = delivery.records.clone();
        let reading = tokio::task::spawn_blocking(move || records.body_removals(pruned));
        let changes = reading.await.expect("reading events does not panic")?;
        if changes.is_empty() {
            break;
        }
        count += changes.len() / 2;
        delivery.writer.store(changes).await?;
    }
    if count > 0 {
        let Pruned { epoch, round } = pruned;
        tracing::info!(epoch = epoch.0, round = round.0, count, "event bodies are pruned");
    }
    Ok(())
}

/// Up to where bodies may go that are kept for so many hours; none when that is no further than
/// they are gone.
///
/// # Errors
/// [`StoreError`].
pub fn may_go(records: &Records, hours: u64) -> Result<Option<Pruned>, StoreError> {
    let whole = records.snapshots()?;
    if whole.len() < SNAPSHOTS_KEPT || records.newest_offer()?.is_none() {
        return Ok(None);
    }
    let oldest = whole.first().map_or(CommitIndex(0), |kept| kept.head.end.index);
    let Some(limit) = older_than(records, oldest, hours)? else {
        return Ok(None);
    };
    let Some(commit) = records.commit(limit)? else {
        return Ok(None);
    };
    let handover = records.handover_before(limit)?;
    let epoch = handover.map_or(FIRST_EPOCH, |handover| handover.epoch);
    let pruned = Pruned { epoch, round: commit.floor };
    // Also when the mark stands already: an end in between may have left some.
    let known = records.pruned()?;
    Ok((pruned >= known && pruned.round.0 > 0).then_some(pruned))
}

/// The last commit up to `limit` that is so much older than the newest, by ledger time.
fn older_than(
    records: &Records,
    limit: CommitIndex,
    hours: u64,
) -> Result<Option<CommitIndex>, StoreError> {
    let Some(newest) = records.last_commit()? else {
        return Ok(None);
    };
    let until = newest.ledger_time.0.saturating_sub(hours.saturating_mul(3_600_000));
    // Ledger time never goes back, so the commits that are old enough come first.
    let (mut low, mut high) = (records.began()?.0, limit.0);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        match records.commit(CommitIndex(middle))? {
            Some(commit) if commit.ledger_time.0 <= until => low = middle,
            Some(_) => high = middle - 1,
            None => low = middle,
        }
    }
    Ok((low > 0).then_some(CommitIndex(low)))
}

#[cfg(test)]
mod tests {
    use dagger_ledger_core::CommitRecord;
    use dagger_ledger_core::interface::Record;
    use dagger_payload::event::{CommitEnd, Parent};
    use dagger_payload::id::{
        AuthorIndex, Epoch, EventDigest, LedgerTime, Position, PrefixHash, Round, StateRoot,
    };
    use dagger_payload::release::QuorumEvidence;
    use dagger_payload::snapshot::SnapshotHead;

    use super::*;
    use crate::store::Store;
    use crate::store::memory::MemoryStore;
    use crate::store::pool::Pool;
    use crate::store::records::Recorder;
    use crate::store::snapshots::{Kept, Source, head_change, whole_changes};

    const HOUR_MS: u64 = 3_600_000;

    /// One commit an hour, each with a floor of its own index.
    fn commit(index: u64) -> Record {
        let digest = EventDigest::ZERO;
        Record::Commit(CommitRecord {
            index: CommitIndex(index),
            leader: Parent { author: AuthorIndex(0), round: Round(index + 9), digest },
            slot: 0,
            events: Vec::new(),
            forked: Vec::new(),
            first_position: Position(1),
            last_position: Position(0),
            ledger_time: LedgerTime(index * HOUR_MS),
            prefix_hash: PrefixHash([1; 32]),
            collection_round: Round(index + 4),
            floor: Round(index),
            epoch: Epoch(0),
        })
    }

    fn kept(index: u64) -> Kept {
        let end = CommitEnd {
            index: CommitIndex(index),
            position: Position(0),
            prefix_hash: PrefixHash([1; 32]),
            state_root: StateRoot([2; 32]),
        };
        let head = SnapshotHead { end, chunks: 0, bytes: 0, made_after: CommitIndex(index) };
        Kept { head, source: Source::Own }
    }

    #[test]
    fn bodies_go_below_the_older_snapshot_and_only_when_they_are_old_enough() {
        let store = Arc::new(MemoryStore::default());
        let records = Records::new(store.clone());
        let commits: Vec<_> = (1..=50).map(commit).collect();
        let (changes, _) =
            Recorder::new(AuthorIndex(0), (Epoch(0), &[]), Pool::default()).changes_of(&commits);
        store.commit(&changes).expect("commits");
        let goes = |hours| may_go(&records, hours).expect("reads").map(|pruned| pruned.round.0);
        store.commit(&[head_change(&kept(20))]).expect("commits");
        assert_eq!(goes(0), None, "one snapshot could turn out to be unreadable");
        store.commit(&[head_change(&kept(40))]).expect("commits");
        assert_eq!(goes(0), None, "nobody else could begin here");
        let evidence = QuorumEvidence { headers: Vec::new() };
        store.commit(&whole_changes(&kept(40), &evidence)).expect("commits");
        assert_eq!(goes(0), Some(20));
        assert_eq!(goes(30), Some(20));
        assert_eq!(goes(35), Some(15));
        assert_eq!(goes(49), Some(1));
        assert_eq!(goes(50), None);
        assert_eq!(goes(u64::from(u32::MAX)), None);
        // What is gone is not looked for again further up than it went.
        let pruned = Pruned { epoch: FIRST_EPOCH, round: Round(18) };
        store.commit(&[pruned_change(&pruned)]).expect("commits");
        assert_eq!((goes(0), goes(35)), (Some(20), None));
    }
}
