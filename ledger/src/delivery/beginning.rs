//! A life of the judge that begins from another host's snapshot.
//!
//! Owns the check of the fetched history against the anchor that the processor sealed, and the one
//! write with which this host's own history begins there: after it a restart finds the same. Never
//! fetches anything (`transfer` does). Called by judging when the processor has taken the snapshot.

use std::sync::Arc;

use dagger_bus::judging::Opened;
use dagger_ledger_core::Input;
use dagger_payload::id::{CommitIndex, HistoryHash};
use dagger_payload::snapshot::extend_history;

use super::judging_session::places_in;
use super::{Delivery, DeliveryError};
use crate::limits::STORE_PAGE_RELEASES;
use crate::store::StoreError;
use crate::store::records::{self, Records};
use crate::store::seats::roster_change;
use crate::store::snapshots::{Kept, Source};
use crate::transfer::{Fetched, Outcome};

/// Lets store, core and readers go on from a snapshot that the processor has begun with.
///
/// # Errors
/// The store fails, or the daemon stops.
pub(super) async fn settle(
    delivery: &Arc<Delivery>,
    opened: &Opened,
    fetched: &Fetched,
) -> Result<Outcome, DeliveryError> {
    let Fetched { offer, frontier, .. } = fetched;
    let end = offer.head.end;
    let records = delivery.records.clone();
    let reading = tokio::task::spawn_blocking(move || history_through(&records, end.index));
    let history = reading.await.expect("reading releases does not panic")?;
    let anchor = opened.anchor.as_ref().map(|sealed| &sealed.anchor);
    if opened.judged != end || anchor.is_none_or(|anchor| anchor.history != history) {
        return Ok(Outcome::FalsePast);
    }
    take_past(delivery, end.index).await?;
    note_places(delivery, end.index).await?;
    if frontier.last().is_none() {
        return Ok(Outcome::FalseSnapshot);
    }
    let own = (delivery.me, &delivery.pool);
    let mut changes = delivery.records.beginning_changes(offer, frontier, own)?;
    changes.extend(opened.epoch_end.iter().map(records::epoch_end_change));
    changes.push(roster_change(&opened.roster));
    delivery.seats.take(opened.roster.clone())?;
    delivery.writer.store(changes).await?;
    delivery.snapshots.add(Kept { head: offer.head.clone(), source: Source::Fetched });
    delivery.commits.begin_after(end.index);
    delivery.evidence.began(&end);
    let frontier = Box::new(frontier.clone());
    // The core is gone only when the daemon stops.
    let epoch_end = opened.epoch_end;
    let _ = delivery.core.send(Input::Adopted { frontier, end, epoch_end }).await;
    Ok(Outcome::Begun)
}

/// The chain over all releases up to a commit, the own ones and those that were fetched.
fn history_through(records: &Records, through: CommitIndex) -> Result<HistoryHash, StoreError> {
    let (mut history, mut after) = (HistoryHash::ZERO, CommitIndex(0));
    loop {
        let page = records.releases_with_fetched(after, through)?;
        let Some(last) = page.last() else {
            return Ok(history);
        };
        after = last.release.end.index;
        history =
            page.iter().fold(history, |history, each| extend_history(&history, &each.release));
    }
}

/// Puts what was fetched, and is found to be true, among the own releases; nothing else of it is
/// kept. After a crash in between the rest is moved or fetched when a snapshot is begun with again.
async fn take_past(delivery: &Delivery, through: CommitIndex) -> Result<(), DeliveryError> {
    loop {
        let mut changes = delivery.records.fetched_is_true(through)?;
        if changes.is_empty() {
            changes = delivery.records.fetched_removals()?;
        }
        if changes.is_empty() {
            return Ok(());
        }
        delivery.writer.store(changes).await?;
    }
}

/// Lets the payloads of stored releases up to a commit be found whose places were not noted yet,
/// and forgets those that waited here.
pub(super) async fn note_places(
    delivery: &Delivery,
    through: CommitIndex,
) -> Result<(), DeliveryError> {
    let mut after = delivery.places.noted();
    loop {
        let page = delivery.records.releases(after, through, STORE_PAGE_RELEASES)?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = last.release.end.index;
        let placed: Vec<_> = page.iter().flat_map(places_in).collect();
        delivery.places.note(&placed);
        delivery.are_ordered(placed.into_iter().map(|(digest, _)| digest));
        while let Some(mut moving) = delivery.places.too_many() {
            delivery.writer.store(moving.take_changes()).await?;
            delivery.places.moved(&moving);
        }
    }
}
