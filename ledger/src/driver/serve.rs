//! Sending stored events, and parts of snapshots, to peers that are further behind than the core's
//! memory.
//!
//! Owns the bounds: of each peer one long transfer at a time (a newer wish replaces an older) and a
//! few small ones, and of all peers together few reads of what may be large. Nothing is read before
//! there is room for it in the peer's share. Reads block, so they run on threads for that, and only
//! they: a transfer goes as fast as the peer takes it, and while it waits it holds no thread.
//! Called by the driver.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use dagger_payload::event::{Event, Parent};
use dagger_payload::id::{AuthorIndex, Epoch, EventDigest, Round};
use dagger_payload::limits::FRAME_BYTES_MAX;
use dagger_payload::peer::{Highest, Part, PeerMessage};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};

use crate::exit::{Stop, StopHandle};
use crate::limits::{LARGE_READS_MAX, LARGE_READS_OF_VOTERS, SMALL_TRANSFERS_PER_PEER_MAX};
use crate::link::Links;
use crate::link::queue::{Gone, PeerQueue};
use crate::link::share::{Held, Standing};
use crate::store::StoreError;
use crate::store::records::{EventKey, Records};
use crate::transfer::server;

/// What one peer is sent.
struct Peer {
    /// The newest long transfer; one task per peer looks here.
    wish: watch::Sender<Option<Arc<Transfer>>>,
    small: Arc<Semaphore>,
}

/// The transfers under way.
pub(super) struct Servers {
    reader: Reader,
    runtime: Handle,
    stop: StopHandle,
    peers: BTreeMap<AuthorIndex, Peer>,
}

impl Servers {
    /// Reads from `records`, on the blocking threads of `runtime`.
    pub(super) fn new(records: Records, runtime: Handle, stop: StopHandle) -> Self {
        Self { reader: Reader::new(records), runtime, stop, peers: BTreeMap::new() }
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
        if let Some(queue) = links.queue(to) {
            let above = above.iter().map(|highest| (highest.author, highest.round)).collect();
            self.wish(to, Transfer { queue, epoch, above, below });
        }
    }

    /// In place of what this peer is sent now.
    fn wish(&mut self, to: AuthorIndex, transfer: Transfer) {
        self.peer(to).wish.send_replace(Some(Arc::new(transfer)));
    }

    fn peer(&mut self, author: AuthorIndex) -> &mut Peer {
        self.peers.entry(author).or_insert_with(|| {
            let (wish, wishes) = watch::channel(None);
            let (reader, stop) = (self.reader.clone(), self.stop.clone());
            self.runtime.spawn(transfer_newest(wishes, reader, stop));
            Peer { wish, small: Arc::new(Semaphore::new(SMALL_TRANSFERS_PER_PEER_MAX)) }
        })
    }

    /// Sends a part of a snapshot, or says that it is not here.
    pub(super) fn serve_part(&mut self, links: &Links, to: AuthorIndex, part: Part) {
        let Some((queue, small)) = self.small(links, to) else {
            return;
        };
        let (reader, stop) = (self.reader.clone(), self.stop.clone());
        self.runtime.spawn(async move {
            report(send_part(&reader, &queue, part).await, &stop);
            drop(small);
        });
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
        let Some((queue, small)) = self.small(links, to) else {
            return;
        };
        let (reader, stop) = (self.reader.clone(), self.stop.clone());
        self.runtime.spawn(async move {
            let keys = events.into_iter().map(|event| EventKey::at(epoch, event));
            report(send_each(&reader, &queue, keys).await, &stop);
            drop(small);
        });
    }

    /// A place for a small transfer, if the peer is there and has one left.
    fn small(
        &mut self,
        links: &Links,
        to: AuthorIndex,
    ) -> Option<(PeerQueue, OwnedSemaphorePermit)> {
        let queue = links.queue(to)?;
        let permit = self.peer(to).small.clone().try_acquire_owned().ok()?;
        Some((queue, permit))
    }
}

/// Reads on threads that may block, one read at a time of each who asks.
#[derive(Clone)]
struct Reader {
    records: Records,
    /// For what is put together from many records before a piece of it is sent.
    large: Arc<Semaphore>,
    /// The same, for peers that vote alone.
    large_of_voters: Arc<Semaphore>,
}

impl Reader {
    fn new(records: Records) -> Self {
        let large = Arc::new(Semaphore::new(LARGE_READS_MAX - LARGE_READS_OF_VOTERS));
        let large_of_voters = Arc::new(Semaphore::new(LARGE_READS_OF_VOTERS));
        Self { records, large, large_of_voters }
    }

    /// Waits for the turn of a large read.
    async fn turn(&self, of: Standing) -> SemaphorePermit<'_> {
        let turn = match of {
            Standing::Votes => tokio::select! {
                turn = self.large_of_voters.acquire() => turn,
                turn = self.large.acquire() => turn,
            },
            Standing::Follows => self.large.acquire().await,
        };
        turn.expect("nobody closes it")
    }

    /// Reads a part. Where a small question makes much to be read, few are answered at a time,
    /// whoever asks; but who votes does not stand behind all others.
    async fn part(&self, part: Part, of: Standing) -> Result<Bytes, StoreError> {
        let turn = match part {
            Part::Past { .. } | Part::Frontier { .. } | Part::Handover { .. } => {
                Some(self.turn(of).await)
            }
            Part::Offer | Part::Chunk { .. } => None,
        };
        let bytes = self.read(move |records| server::part(records, part)).await;
        drop(turn);
        bytes
    }

    async fn read<T: Send + 'static>(
        &self,
        reading: impl FnOnce(&Records) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let records = self.records.clone();
        let read = tokio::task::spawn_blocking(move || reading(&records));
        read.await.expect("reading the store does not panic")
    }
}

fn report(result: Result<(), StoreError>, stop: &StopHandle) {
    if let Err(broken) = result {
        stop.stop(Stop::Broken(Box::new(broken)));
    }
}

async fn send_each(
    reader: &Reader,
    queue: &PeerQueue,
    keys: impl Iterator<Item = EventKey>,
) -> Result<(), StoreError> {
    for key in keys {
        let Ok(room) = queue.room(FRAME_BYTES_MAX).await else {
            return Ok(());
        };
        if let Some(event) = reader.read(move |records| records.event(key)).await?
            && push(queue, PeerMessage::event(&event), room).await.is_err()
        {
            return Ok(());
        }
    }
    Ok(())
}

async fn send_part(reader: &Reader, queue: &PeerQueue, part: Part) -> Result<(), StoreError> {
    // The link may be gone: the peer asks again.
    if let Ok(room) = queue.room(FRAME_BYTES_MAX).await {
        let bytes = reader.part(part, queue.standing()).await?;
        let _ = push(queue, PeerMessage::Part { part, bytes }, room).await;
    }
    Ok(())
}

/// Takes of the room what the message needs; the rest is free at once.
async fn push(queue: &PeerQueue, message: PeerMessage, mut room: Held) -> Result<(), Gone> {
    let frame = Bytes::from(message.to_bytes());
    let of_this = room.split(frame.len());
    drop(room);
    queue.push_stored(frame, of_this).await
}

/// Carries out the newest wish of one peer, again and again, until nobody can wish any more.
async fn transfer_newest(
    mut wishes: watch::Receiver<Option<Arc<Transfer>>>,
    reader: Reader,
    stop: StopHandle,
) {
    while wishes.changed().await.is_ok() {
        let newest = wishes.borrow_and_update().clone();
        if let Some(transfer) = newest {
            let newer = Newer(wishes.clone());
            match transfer.run(&reader, newer).await {
                Ok(()) | Err(Ended::Early) => {}
                Err(Ended::Broken(broken)) => report(Err(broken), &stop),
            }
        }
    }
}

/// Why a long transfer did not come to its end.
enum Ended {
    /// A newer wish, or no link any more.
    Early,
    Broken(StoreError),
}

impl From<StoreError> for Ended {
    fn from(broken: StoreError) -> Self {
        Self::Broken(broken)
    }
}

/// Notices that a newer wish has come since.
struct Newer(watch::Receiver<Option<Arc<Transfer>>>);

impl Newer {
    fn has_come(&self) -> bool {
        self.0.has_changed().unwrap_or(true)
    }

    /// Waits until it has, or nobody can wish any more.
    async fn comes(&mut self) {
        let _ = self.0.changed().await;
    }
}

/// One long transfer.
struct Transfer {
    queue: PeerQueue,
    epoch: Epoch,
    above: BTreeMap<AuthorIndex, Round>,
    below: Round,
}

impl Transfer {
    async fn run(&self, reader: &Reader, mut newer: Newer) -> Result<(), Ended> {
        let epoch = self.epoch;
        let lowest = self.above.values().min().copied().unwrap_or_default();
        if reader.read(move |records| records.lacks_above(epoch, lowest)).await? {
            let (part, mut room) = (Part::Offer, self.room(&mut newer).await?);
            let bytes = reader.part(part, self.queue.standing()).await?;
            return self.send(PeerMessage::Part { part, bytes }, &mut room, &mut newer).await;
        }
        let (round, author, digest) = (lowest.next(), AuthorIndex(0), EventDigest::ZERO);
        let mut next = Some(EventKey { epoch, round, author, digest });
        while let Some(from) = next {
            let mut room = self.room(&mut newer).await?;
            let (events, following) = reader.read(move |records| records.events(from)).await?;
            for event in events {
                if newer.has_come() {
                    return Err(Ended::Early);
                }
                if event.header.round >= self.below {
                    return Ok(());
                }
                if self.lacks(&event) {
                    self.send(PeerMessage::event(&event), &mut room, &mut newer).await?;
                }
            }
            next = following;
        }
        self.send_certificate(reader, newer).await
    }

    fn lacks(&self, event: &Event) -> bool {
        let has = self.above.get(&event.header.author).copied().unwrap_or_default();
        event.header.round > has
    }

    /// Waits for room for a page, unless there is a newer wish.
    async fn room(&self, newer: &mut Newer) -> Result<Held, Ended> {
        tokio::select! {
            biased;
            () = newer.comes() => Err(Ended::Early),
            room = self.queue.room(FRAME_BYTES_MAX) => room.map_err(|_| Ended::Early),
        }
    }

    /// Waits for a place, unless there is a newer wish. The page's room goes along with its events.
    async fn send(
        &self,
        message: PeerMessage,
        room: &mut Held,
        newer: &mut Newer,
    ) -> Result<(), Ended> {
        let frame = Bytes::from(message.to_bytes());
        let of_this = room.split(frame.len());
        tokio::select! {
            biased;
            () = newer.comes() => Err(Ended::Early),
            sent = self.queue.push_stored(frame, of_this) => sent.map_err(|_| Ended::Early),
        }
    }

    /// The headers by which a quorum attested the end of a closed epoch. The peer may have other
    /// events of the same authors and rounds, if those lie; these are what lets it follow.
    async fn send_certificate(&self, reader: &Reader, mut newer: Newer) -> Result<(), Ended> {
        let following = self.epoch.next();
        let handover = reader.read(move |records| records.handover(following)).await?;
        for header in handover.into_iter().flat_map(|handover| handover.headers) {
            let mut room = self.room(&mut newer).await?;
            self.send(PeerMessage::Closing { header }, &mut room, &mut newer).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dagger_ledger_core::Record;
    use dagger_payload::event::{Attestation, CommitEnd, EVENT_VERSION, Header};
    use dagger_payload::id::{
        ClusterId, CommitIndex, LedgerTime, MerkleRoot, Position, PrefixHash, StateRoot,
    };
    use dagger_payload::key::Signature;
    use futures_util::FutureExt;
    use tokio::runtime::Builder;
    use tokio::time::timeout;

    use super::*;
    use crate::exit;
    use crate::limits::STORED_FRAMES_MAX;
    use crate::link::queue::{Outgoing, queue};
    use crate::link::share::Share;
    use crate::store::Store;
    use crate::store::memory::MemoryStore;
    use crate::store::pool::Pool;
    use crate::store::records::Recorder;

    const PATIENCE: Duration = Duration::from_secs(20);
    const PEER: AuthorIndex = AuthorIndex(1);
    const EVENTS: u64 = 40;

    fn event(round: u64) -> Event {
        let newest = CommitEnd {
            index: CommitIndex(0),
            position: Position(0),
            prefix_hash: PrefixHash::ZERO,
            state_root: StateRoot::ZERO,
        };
        let own =
            Parent { author: AuthorIndex(0), round: Round(round - 1), digest: EventDigest::ZERO };
        let header = Header {
            version: EVENT_VERSION,
            cluster: ClusterId([1; 32]),
            epoch: Epoch(0),
            round: Round(round),
            author: AuthorIndex(0),
            parents: Vec::from_iter((round > 1).then_some(own)),
            payload_root: MerkleRoot::ZERO,
            payload_count: 0,
            timestamp: LedgerTime(round),
            attestation: Attestation { newest, checkpoint: None },
        };
        Event::make(header, Vec::new(), |_| Signature([0; 64]))
    }

    fn stored() -> Records {
        let store = Arc::new(MemoryStore::default());
        let mut recorder = Recorder::new(AuthorIndex(2), (Epoch(0), &[]), Pool::default());
        let events = (1..=EVENTS).map(|round| Record::Event(Arc::new(event(round))));
        let (changes, _) = recorder.changes_of(&events.collect::<Vec<_>>());
        store.commit(&changes).expect("commits");
        Records::new(store)
    }

    /// How many frames come up to and with the newest event.
    async fn until_newest(outgoing: &mut Outgoing) -> usize {
        let newest = PeerMessage::event(&event(EVENTS)).to_bytes();
        let mut frames = 0;
        loop {
            let frame = timeout(PATIENCE, outgoing.next()).await.expect("in time");
            frames += 1;
            if frame.expect("the link is up") == newest {
                return frames;
            }
        }
    }

    #[tokio::test]
    async fn who_votes_does_not_wait_for_the_large_reads_of_peers_without_a_vote() {
        let reader = Reader::new(stored());
        let held = reader.turn(Standing::Follows).await;
        assert!(reader.turn(Standing::Follows).now_or_never().is_none(), "all of theirs is taken");
        assert!(reader.turn(Standing::Votes).now_or_never().is_some());
        drop(held);
        assert!(reader.turn(Standing::Follows).now_or_never().is_some());
    }

    #[test]
    fn a_peer_that_wishes_without_end_and_reads_nothing_holds_no_thread_and_is_met_at_last() {
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).max_blocking_threads(4).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (stop, _reasons) = exit::channel();
        let mut servers = Servers::new(stored(), runtime.handle().clone(), stop);
        let (queue, mut outgoing) = queue(Arc::new(Share::of(Standing::Follows, 1)));
        let mut wish = |has: u64| {
            let (epoch, below, queue) = (Epoch(0), Round(u64::MAX), queue.clone());
            let above = BTreeMap::from([(AuthorIndex(0), Round(has))]);
            servers.wish(PEER, Transfer { queue, epoch, above, below });
        };
        for number in 0..200 {
            wish(number % 10);
            // As a submission that is looked up.
            let looked_up = runtime.block_on(async {
                let look = runtime.spawn_blocking(|| ());
                timeout(PATIENCE, look).await
            });
            assert!(looked_up.is_ok(), "after {number} wishes no thread is left");
        }
        wish(EVENTS - 10);
        let frames = runtime.block_on(until_newest(&mut outgoing));
        // What was on its way already, and what the newest wish lacks.
        assert!(frames <= STORED_FRAMES_MAX + 1 + 10, "{frames} frames");
    }
}
