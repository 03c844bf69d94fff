//! One release stream to the agent: releases with content in order of commits, then evidence as it
//! advances; where an epoch ends, the evidence with which the next one began.
//!
//! Owns the cursor, the window, and the end of the stream when the processor was replaced: what it
//! sealed counts no more, and the agent fetches the new seal key before it comes again. Sends only
//! what is durable. Called by `agent`.

use std::sync::Arc;

use dagger_bus::connection::{Receiver, Sender};
use dagger_bus::ledger::{Consumed, StreamItem};
use dagger_bus::limits::RELEASE_WINDOW_MAX;
use dagger_bus::{BusError, Connection};
use dagger_payload::genesis::GenesisMode;
use dagger_payload::handover::Handover;
use dagger_payload::id::{CommitIndex, Epoch};
use dagger_payload::release::QuorumEvidence;
use dagger_payload::snapshot::SealedAnchor;
use tokio::sync::watch;

use super::evidence::Attested;
use super::recent::{self, Sent};
use super::{Delivery, Released, opaque};
use crate::driver::start::FIRST_EPOCH;
use crate::limits::STORE_PAGE_RELEASES;
use crate::store::StoreError;

struct Stream {
    delivery: Arc<Delivery>,
    sender: Sender,
    /// All releases up to here have been sent.
    sent: CommitIndex,
    /// Releases that were sent and are not acknowledged.
    under_way: std::collections::VecDeque<CommitIndex>,
    window: usize,
    attested: CommitIndex,
    caught_up: CaughtUp,
    /// How this epoch and those before it began has been sent, as far as this host knows it.
    epoch: Epoch,
    /// How the epoch after that one began, once it has been looked up.
    boundary: Option<Handover>,
}

#[derive(PartialEq, Eq)]
enum CaughtUp {
    NotYet,
    Said,
}

/// Serves releases after `after` until the agent leaves or the processor is replaced.
///
/// # Errors
/// [`BusError`]: why it ended.
pub(super) async fn serve(
    delivery: &Arc<Delivery>,
    connection: Connection,
    after: CommitIndex,
    window: u32,
) -> Result<(), BusError> {
    let Connection { sender, mut receiver } = connection;
    let mut released = delivery.released.subscribe();
    let mut attested = delivery.evidence.attested();
    let window = usize::try_from(window.clamp(1, RELEASE_WINDOW_MAX)).expect("at most 256");
    // Evidence is sent before what comes after it: an agent that has a release has that.
    let begun = delivery.records.handover_before(after);
    let begun = begun.map_err(|error| lost(delivery, error))?;
    let mut stream = Stream {
        delivery: delivery.clone(),
        sender,
        sent: after,
        under_way: std::collections::VecDeque::new(),
        window,
        attested: CommitIndex(0),
        caught_up: CaughtUp::NotYet,
        epoch: begun.map_or(FIRST_EPOCH, |handover| handover.epoch),
        boundary: None,
    };
    let mut seal_key = None;
    loop {
        let now = released.borrow_and_update().clone();
        if let Some(now) = now {
            if *seal_key.get_or_insert_with(|| now.seal_key.clone()) != now.seal_key {
                return Ok(());
            }
            let newest = attested.borrow_and_update().clone();
            stream.send_what_is_new(&now, newest.as_deref()).await?;
        }
        stream.wait(&mut receiver, &mut released, &mut attested).await?;
    }
}

/// The store cannot be read: that ends more than this stream.
fn lost(delivery: &Delivery, error: StoreError) -> BusError {
    let _ = delivery.is_fatal(error.into());
    BusError::Closed
}

impl Stream {
    async fn wait(
        &mut self,
        receiver: &mut Receiver,
        released: &mut watch::Receiver<Option<Released>>,
        attested: &mut watch::Receiver<Option<Arc<Attested>>>,
    ) -> Result<(), BusError> {
        tokio::select! {
            consumed = receiver.receive::<Consumed>() => {
                let consumed = consumed?.commit;
                while self.under_way.front().is_some_and(|commit| *commit <= consumed) {
                    self.under_way.pop_front();
                }
            }
            changed = released.changed() => changed.map_err(|_| BusError::Closed)?,
            changed = attested.changed() => changed.map_err(|_| BusError::Closed)?,
        }
        Ok(())
    }

    async fn send_what_is_new(
        &mut self,
        released: &Released,
        attested: Option<&Attested>,
    ) -> Result<(), BusError> {
        while self.sent < released.through && self.under_way.len() < self.window {
            let room = (self.window - self.under_way.len()).min(STORE_PAGE_RELEASES);
            let began = released.began();
            let is_past = self.sent < began;
            let through = if is_past { began } else { released.through };
            let page = match self.read(released, through, room).await {
                Ok(page) => page,
                Err(error) => return Err(lost(&self.delivery, error)),
            };
            let last = page.len() < room;
            for (commit, item) in page {
                self.send_boundaries_before(commit).await?;
                self.sender.feed(&*item).await?;
                self.under_way.push_back(commit);
                self.sent = commit;
            }
            if last {
                self.sent = through;
            }
            if is_past
                && self.sent == began
                && let Some(anchor) = &released.anchor
            {
                let anchor = Box::new(SealedAnchor::clone(anchor));
                self.sender.feed(&StreamItem::Anchor { anchor }).await?;
            }
        }
        self.send_boundaries_before(self.sent.next()).await?;
        let all_sent = self.sent >= released.through;
        if let Some(attested) = attested
            && attested.commit > self.attested
            && attested.commit <= self.sent
        {
            self.attested = attested.commit;
            let item = StreamItem::Attested {
                commit: attested.commit,
                evidence: attested.evidence.clone(),
            };
            self.sender.feed(&item).await?;
        }
        let history_sent = all_sent && released.through >= released.history_end;
        if history_sent && self.caught_up == CaughtUp::NotYet {
            self.caught_up = CaughtUp::Said;
            let commit = released.through;
            self.sender.feed(&StreamItem::CaughtUp { commit }).await?;
        }
        self.sender.flush().await
    }

    /// Sends how those epochs began whose first commit comes at or before `commit`.
    async fn send_boundaries_before(&mut self, commit: CommitIndex) -> Result<(), BusError> {
        while self.epoch < self.delivery.evidence.epoch() {
            let next = self.epoch.next();
            if self.boundary.is_none() {
                let records = self.delivery.records.clone();
                // An epoch that this host never was in has left what was fetched of it only.
                let reading = tokio::task::spawn_blocking(move || records.beginning_of(next));
                let read = reading.await.expect("reading a handover does not panic");
                let beginning = read.map_err(|error| lost(&self.delivery, error))?;
                self.boundary = beginning.map(|beginning| beginning.handover);
            }
            let is_ahead = |handover: &Handover| handover.founding.end.index >= commit;
            if self.boundary.as_ref().is_some_and(is_ahead) {
                return Ok(());
            }
            if let Some(handover) = self.boundary.take() {
                let evidence = QuorumEvidence { headers: handover.headers };
                let commit = handover.founding.end.index;
                self.sender.feed(&StreamItem::Attested { commit, evidence }).await?;
            }
            self.epoch = next;
        }
        Ok(())
    }

    async fn read(
        &self,
        released: &Released,
        through: CommitIndex,
        count: usize,
    ) -> Result<Vec<Sent>, StoreError> {
        let (newest, life) = (&self.delivery.recent, &released.seal_key);
        if let Some(page) = newest.get(life, self.sent, through, count) {
            return Ok(page);
        }
        if self.delivery.genesis.mode == GenesisMode::Opaque {
            let page = opaque::releases(&self.delivery, self.sent, through, count).await?;
            return Ok(page.into_iter().map(recent::sent).collect());
        }
        let records = self.delivery.records.clone();
        let (began, after) = (released.began(), self.sent);
        let reading = tokio::task::spawn_blocking(move || {
            let page = records.releases(after, through, count)?.into_iter();
            let sent = if after < began { recent::past } else { recent::sent };
            Ok(page.map(sent).collect())
        });
        reading.await.expect("reading releases does not panic")
    }
}
