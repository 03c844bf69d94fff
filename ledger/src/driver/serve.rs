//! Sending stored events, and parts of snapshots, to peers that are further behind than the core's
//! memory.
//!
//! Owns the bounds: of each peer one long transfer at a time (a newer wish replaces an older) and a
//! few small ones. Reads block, so they run beside the core's thread; a transfer goes as fast as
//! the peer takes it. Called by the driver.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dagger_payload::event::Parent;
use dagger_payload::id::{AuthorIndex, Epoch, EventDigest, Round};
use dagger_payload::peer::{Highest, Part, PeerMessage};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::exit::{Stop, StopHandle};
use crate::limits::SMALL_TRANSFERS_PER_PEER_MAX;
use crate::link::Links;
use crate::link::queue::PeerQueue;
use crate::store::StoreError;
use crate::store::records::{EventKey, Records};
use crate::transfer::server;

struct Peer {
    /// Set to end the transfer that runs.
    outdated: Arc<AtomicBool>,
    small: Arc<Semaphore>,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            outdated: Arc::default(),
            small: Arc::new(Semaphore::new(SMALL_TRANSFERS_PER_PEER_MAX)),
        }
    }
}

/// The transfers under way.
pub(super) struct Servers {
    records: Records,
    runtime: Handle,
    stop: StopHandle,
    peers: BTreeMap<AuthorIndex, Peer>,
}

impl Servers {
    /// Reads from `records`, on the blocking threads of `runtime`.
    pub(super) fn new(records: Records, runtime: Handle, stop: StopHandle) -> Self {
        Self { records, runtime, stop, peers: BTreeMap::new() }
    }

    /// Sends all events of `epoch` above `above` and below round `below`, by round; after the last
    /// one of a closed epoch the headers that certify its end.
    pub(super) fn serve_stored(
        &mut self,
        links: &Links,
        to: AuthorIndex,
        epoch: Epoch,
        above: &[Highest],
        below: Round,
    ) {
        let Some(queue) = links.queue(to) else {
            return;
        };
        let peer = self.peers.entry(to).or_default();
        peer.outdated.store(true, Ordering::Relaxed);
        peer.outdated = Arc::default();
        let transfer = Transfer {
            records: self.records.clone(),
            epoch,
            queue,
            above: above.iter().map(|highest| (highest.author, highest.round)).collect(),
            below,
            outdated: peer.outdated.clone(),
        };
        let stop = self.stop.clone();
        self.runtime.spawn_blocking(move || report(transfer.run(), &stop));
    }

    /// Sends a part of a snapshot, or says that it is not here.
    pub(super) fn serve_part(&mut self, links: &Links, to: AuthorIndex, part: Part) {
        self.serve_small(links, to, move |records, queue| send_part(records, queue, part));
    }

    /// Sends these events, as far as they are stored; too many such wishes of one peer are dropped,
    /// and he asks again.
    pub(super) fn serve_events(
        &mut self,
        links: &Links,
        to: AuthorIndex,
        events: Vec<Parent>,
        epoch: Epoch,
    ) {
        let keys = events.into_iter().map(move |event| EventKey::at(epoch, event));
        self.serve_small(links, to, move |records, queue| send_each(records, queue, keys));
    }

    fn serve_small(
        &mut self,
        links: &Links,
        to: AuthorIndex,
        send: impl FnOnce(&Records, &PeerQueue) -> Result<(), StoreError> + Send + 'static,
    ) {
        let peer = self.peers.entry(to).or_default();
        let (Some(queue), Ok(permit)) = (links.queue(to), peer.small.clone().try_acquire_owned())
        else {
            return;
        };
        let (records, stop) = (self.records.clone(), self.stop.clone());
        self.runtime.spawn_blocking(move || {
            report(send(&records, &queue), &stop);
            drop(permit);
        });
    }
}

fn report(result: Result<(), StoreError>, stop: &StopHandle) {
    if let Err(broken) = result {
        stop.stop(Stop::Broken(Box::new(broken)));
    }
}

fn send_each(
    records: &Records,
    queue: &PeerQueue,
    keys: impl Iterator<Item = EventKey>,
) -> Result<(), StoreError> {
    for key in keys {
        if let Some(event) = records.event(key)?
            && queue.push_stored_blocking(PeerMessage::event(&event).to_bytes().into()).is_err()
        {
            return Ok(());
        }
    }
    Ok(())
}

fn send_part(records: &Records, queue: &PeerQueue, part: Part) -> Result<(), StoreError> {
    let bytes = server::part(records, part)?;
    // The link may be gone: the peer asks again.
    let _ = queue.push_stored_blocking(PeerMessage::Part { part, bytes }.to_bytes().into());
    Ok(())
}

/// One long transfer.
struct Transfer {
    records: Records,
    epoch: Epoch,
    queue: PeerQueue,
    above: BTreeMap<AuthorIndex, Round>,
    below: Round,
    outdated: Arc<AtomicBool>,
}

impl Transfer {
    fn run(self) -> Result<(), StoreError> {
        let lowest = self.above.values().min().copied().unwrap_or_default();
        if self.records.lacks_above(self.epoch, lowest)? {
            let bytes = server::part(&self.records, Part::Offer)?;
            let offer = PeerMessage::Part { part: Part::Offer, bytes };
            let _ = self.queue.push_stored_blocking(offer.to_bytes().into());
            return Ok(());
        }
        let mut next = Some(EventKey {
            epoch: self.epoch,
            round: lowest.next(),
            author: AuthorIndex(0),
            digest: EventDigest::ZERO,
        });
        while let Some(from) = next {
            let (events, following) = self.records.events(from)?;
            for event in events {
                let header = &event.header;
                if header.epoch > self.epoch {
                    return self.send_certificate();
                }
                if header.round >= self.below || self.outdated.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let has = self.above.get(&header.author).copied().unwrap_or_default();
                let frame = || PeerMessage::event(&event).to_bytes().into();
                if header.round > has && self.queue.push_stored_blocking(frame()).is_err() {
                    return Ok(());
                }
            }
            next = following;
        }
        self.send_certificate()
    }

    /// The headers by which a quorum attested the end of a closed epoch. The peer may have other
    /// events of the same authors and rounds, if those lie; these are what lets it follow.
    fn send_certificate(&self) -> Result<(), StoreError> {
        let handover = self.records.handover(self.epoch.next())?;
        for header in handover.into_iter().flat_map(|handover| handover.headers) {
            let frame = PeerMessage::Closing { header }.to_bytes();
            if self.queue.push_stored_blocking(frame.into()).is_err() {
                break;
            }
        }
        Ok(())
    }
}
