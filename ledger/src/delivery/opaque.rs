//! Mode `opaque` of a genesis, for benchmarks of the ledger alone: nothing is judged, and no
//! processor takes part.
//!
//! Owns what stands in the judge's place: every ordered payload is released as it is, copies too,
//! and the state is always the same. Everything else (the door's bounds, what is stored, the
//! streams) is as in a judged cluster; only the release itself is not stored, because it says
//! nothing that the commit does not. Never used by a cluster that agents join. Called by the
//! daemon.

use std::sync::Arc;

use dagger_bus::judging::Opened;
use dagger_payload::event::CommitEnd;
use dagger_payload::id::{ClusterId, CommitIndex, Position, StateRoot};
use dagger_payload::key::{PublicKey, Signature};
use dagger_payload::release::{
    CommitRelease, OrderedCommit, Release, SealedRelease, Verdict, initial_prefix,
};
use dagger_payload::roster::Roster;
use tokio::sync::watch;

use super::judging_session::{Batch, Keeping, Outlook, Session};
use super::{Delivery, DeliveryError};
use crate::limits::OPAQUE_COMMITS_PER_WRITE_MAX;
use crate::store::StoreError;
use crate::store::records;

/// There is no state beside the order, so nothing ever changes it.
const ROOT: StateRoot = StateRoot::ZERO;
/// Nobody vouches for a verdict, because there is none.
const NO_SEAL: Signature = Signature([0; 64]);

fn founding_end(cluster: &ClusterId) -> CommitEnd {
    CommitEnd {
        index: CommitIndex(0),
        position: Position(0),
        prefix_hash: initial_prefix(cluster),
        state_root: ROOT,
    }
}

/// In place of a processor's life: this host's own key, which is the same after every start.
fn life(delivery: &Delivery) -> PublicKey {
    delivery.seats.key(delivery.me).expect("found by its key")
}

fn release_of(commit: &OrderedCommit) -> SealedRelease {
    let releases = commit.placed().map(|(position, ordered)| Release {
        position,
        digest: ordered.payload.digest(),
        ordered: ordered.clone(),
        verdict: Verdict::Accepted,
        effects: Vec::new(),
    });
    let end = CommitEnd {
        index: commit.index,
        position: commit.last_position(),
        prefix_hash: commit.prefix_hash,
        state_root: ROOT,
    };
    let (releases, ledger_time) = (releases.collect(), commit.ledger_time);
    let release = CommitRelease { end, ledger_time, releases, time_effects: Vec::new() };
    SealedRelease { release, seal: NO_SEAL }
}

/// Releases what is ordered until the daemon stops.
pub async fn run(delivery: Arc<Delivery>, founding: watch::Sender<Option<CommitEnd>>) {
    if let Err(error) = release_all(&delivery, &founding).await
        && let Ok(error) = delivery.is_fatal(error)
    {
        tracing::debug!(%error, "nothing more is released");
    }
}

async fn release_all(
    delivery: &Arc<Delivery>,
    founding: &watch::Sender<Option<CommitEnd>>,
) -> Result<(), DeliveryError> {
    let first = founding_end(&delivery.cluster);
    if delivery.records.founding()?.is_none() {
        delivery.writer.store(vec![records::judged_change(&first)]).await?;
    }
    founding.send_if_modified(|shown| shown.replace(first).is_none());
    let through = delivery.records.released()?.map_or(first.index, |released| released.through);
    let opened = Opened {
        cluster: delivery.cluster,
        seal_key: life(delivery),
        judged: delivery.records.judged(through)?.unwrap_or(first),
        next_deadline: None,
        epoch_end: None,
        anchor: None,
        roster: Roster::founding(&delivery.genesis),
    };
    let mut session = Session::new(delivery.clone(), opened, through, Keeping::Places)?;
    session.begin().await?;
    let mut newest = delivery.commits.newest();
    let mut next = through.next();
    let mut batch = Batch::default();
    loop {
        let durable = newest.wait_for(|newest| *newest >= next).await.map(|newest| *newest);
        // The sender of this watch lives as long as delivery does.
        let durable = durable.map_err(|_| dagger_bus::BusError::Closed)?;
        for _ in 0..OPAQUE_COMMITS_PER_WRITE_MAX {
            let commit = delivery.commits.get(next).await?.ok_or_else(|| missing(next))?;
            session.take(&commit, release_of(&commit), Outlook::default(), &mut batch).await?;
            next = next.next();
            if next > durable {
                break;
            }
        }
        // The commits are durable, and nothing else that is shown is stored here.
        session.show(&mut batch);
        if session.is_unmarked() {
            session.store(&mut batch).await?;
        }
    }
}

fn missing(commit: CommitIndex) -> StoreError {
    StoreError::Damaged { table: "commits", key: format!("{commit}") }
}

/// Up to `count_max` releases with payloads, of commits after `after` and up to `through`.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn releases(
    delivery: &Delivery,
    after: CommitIndex,
    through: CommitIndex,
    count_max: usize,
) -> Result<Vec<SealedRelease>, StoreError> {
    let mut releases = Vec::new();
    let mut next = after.next();
    while next <= through && releases.len() < count_max {
        let commit = delivery.commits.get(next).await?.ok_or_else(|| missing(next))?;
        if !commit.payloads.is_empty() {
            releases.push(release_of(&commit));
        }
        next = next.next();
    }
    Ok(releases)
}
