//! How much memory what waits on the links may take, of all peers together.
//!
//! Owns one budget for two kinds of peers: who votes has an equal share that nobody else can use,
//! all others have what is left for them, in shares as well. So whoever holds many seats without a
//! vote takes nothing from those that order. Never looks at what waits. Called by the links'
//! registry, which knows who votes, and by each link's queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{
    PEER_QUEUE_BYTES_MAX, QUEUE_SHARE_BYTES_MIN, QUEUES_OF_OTHERS_BYTES_MAX,
    QUEUES_OF_VOTERS_BYTES_MAX, RECEIVED_BYTES_PER_PEER_MAX, RECEIVED_OF_OTHERS_BYTES_MAX,
    STORED_BYTES_PER_PEER_MAX, STORED_OF_OTHERS_BYTES_MAX,
};

/// Whether a peer votes in the present epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Votes,
    /// It follows, or is on its way in or out.
    Follows,
}

/// What peers without a vote have together.
pub(super) struct Others {
    queued: Arc<AtomicUsize>,
    stored: Arc<Semaphore>,
    received: Arc<Semaphore>,
}

impl Default for Others {
    fn default() -> Self {
        Self {
            queued: Arc::default(),
            stored: Arc::new(Semaphore::new(STORED_OF_OTHERS_BYTES_MAX)),
            received: Arc::new(Semaphore::new(RECEIVED_OF_OTHERS_BYTES_MAX)),
        }
    }
}

/// What one queue may hold where so many peers of its kind are linked.
fn queue_bytes_max(standing: Standing, peers: usize) -> usize {
    let all = match standing {
        Standing::Votes => QUEUES_OF_VOTERS_BYTES_MAX,
        Standing::Follows => QUEUES_OF_OTHERS_BYTES_MAX,
    };
    (all / peers.max(1)).clamp(QUEUE_SHARE_BYTES_MIN, PEER_QUEUE_BYTES_MAX)
}

/// What one peer may make wait, whichever link it came by.
pub struct Share {
    votes: AtomicBool,
    queue_bytes_max: AtomicUsize,
    stored: Arc<Semaphore>,
    received: Arc<Semaphore>,
    others: Arc<Others>,
}

impl Share {
    /// Of a peer without a vote, beside those others, until more is known.
    pub(super) fn new(others: Arc<Others>) -> Self {
        Self {
            votes: AtomicBool::new(false),
            queue_bytes_max: AtomicUsize::new(QUEUE_SHARE_BYTES_MIN),
            stored: Arc::new(Semaphore::new(STORED_BYTES_PER_PEER_MAX)),
            received: Arc::new(Semaphore::new(RECEIVED_BYTES_PER_PEER_MAX)),
            others,
        }
    }

    /// A share for a queue alone.
    #[cfg(test)]
    pub(crate) fn of(standing: Standing, peers: usize) -> Self {
        let share = Self::new(Arc::default());
        share.is_of(standing, peers);
        share
    }

    /// From now on the peer is of this kind, and so many such peers are linked to.
    pub(super) fn is_of(&self, standing: Standing, peers: usize) {
        self.votes.store(standing == Standing::Votes, Ordering::Relaxed);
        self.queue_bytes_max.store(queue_bytes_max(standing, peers), Ordering::Relaxed);
    }

    /// Of which kind the peer is now.
    pub(super) fn standing(&self) -> Standing {
        if self.votes.load(Ordering::Relaxed) { Standing::Votes } else { Standing::Follows }
    }

    /// What its queue may hold now.
    pub(super) fn queue_bytes_max(&self) -> usize {
        self.queue_bytes_max.load(Ordering::Relaxed)
    }

    /// What it shares with others, if it has no vote.
    fn others(&self) -> Option<&Others> {
        (self.standing() == Standing::Follows).then_some(&*self.others)
    }

    /// Counts so many bytes of a queue; none where there is no room for them.
    pub(super) fn queue(&self, link: &Arc<AtomicUsize>, bytes: usize) -> Option<Queued> {
        let own = Counted::add(link, bytes, self.queue_bytes_max())?;
        let together = match self.others() {
            Some(others) => Some(Counted::add(&others.queued, bytes, QUEUES_OF_OTHERS_BYTES_MAX)?),
            None => None,
        };
        Some(Queued { _own: own, _together: together })
    }

    /// Waits for room for what the store is about to be asked for.
    pub(super) async fn stored(&self, bytes: usize) -> Held {
        let own = take(&self.stored, bytes, STORED_BYTES_PER_PEER_MAX).await;
        let together = match self.others() {
            Some(others) => Some(take(&others.stored, bytes, STORED_OF_OTHERS_BYTES_MAX).await),
            None => None,
        };
        Held { own, together }
    }

    /// Waits until so many bytes more of this peer may wait for the driver.
    pub(super) async fn received(&self, bytes: usize) -> Held {
        let own = take(&self.received, bytes, RECEIVED_BYTES_PER_PEER_MAX).await;
        let together = match self.others() {
            Some(others) => Some(take(&others.received, bytes, RECEIVED_OF_OTHERS_BYTES_MAX).await),
            None => None,
        };
        Held { own, together }
    }
}

async fn take(room: &Arc<Semaphore>, bytes: usize, bytes_max: usize) -> OwnedSemaphorePermit {
    let bytes = u32::try_from(bytes.min(bytes_max)).expect("some mebibytes");
    room.clone().acquire_many_owned(bytes).await.expect("nobody closes it")
}

/// Bytes that are counted for as long as this is kept.
struct Counted {
    counter: Arc<AtomicUsize>,
    bytes: usize,
}

impl Counted {
    fn add(counter: &Arc<AtomicUsize>, bytes: usize, bytes_max: usize) -> Option<Self> {
        let counted = Self { counter: counter.clone(), bytes };
        let before = counter.fetch_add(bytes, Ordering::Relaxed);
        (before.saturating_add(bytes) <= bytes_max).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Kept by a frame for as long as it waits.
pub(super) struct Queued {
    _own: Counted,
    _together: Option<Counted>,
}

/// Room that is free again when this is gone.
pub struct Held {
    own: OwnedSemaphorePermit,
    together: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// A part of it, at most so many bytes.
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.own.num_permits());
        let own = self.own.split(bytes).expect("no more than there is");
        let together = self.together.as_mut();
        let together = together.and_then(|all| all.split(bytes.min(all.num_permits())));
        Self { own, together }
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::limits::FRAME_BYTES_MAX;

    use super::*;

    /// Fills queues of so many peers as far as each of them may, and gives how much that is.
    fn filled(shares: &[Share]) -> (usize, Vec<Queued>) {
        let mut kept = Vec::new();
        for share in shares {
            let link = Arc::default();
            while let Some(queued) = share.queue(&link, FRAME_BYTES_MAX) {
                kept.push(queued);
            }
        }
        (kept.len() * FRAME_BYTES_MAX, kept)
    }

    fn shares(others: &Arc<Others>, standing: Standing, peers: usize) -> Vec<Share> {
        let share = |_| {
            let share = Share::new(others.clone());
            share.is_of(standing, peers);
            share
        };
        (0..peers).map(share).collect()
    }

    #[test]
    fn however_many_peers_without_a_vote_fill_their_queues_a_voter_has_its_whole_share() {
        for peers in [1, 4, 60, 200, 1_000] {
            let others = Arc::default();
            let (taken, kept) = filled(&shares(&others, Standing::Follows, peers));
            assert!(taken <= QUEUES_OF_OTHERS_BYTES_MAX, "{peers} take {taken}");
            let voters = shares(&others, Standing::Votes, 3);
            assert_eq!(filled(&voters).0, 3 * PEER_QUEUE_BYTES_MAX);
            // What they let go can be taken again.
            drop(kept);
            assert_eq!(filled(&shares(&others, Standing::Follows, peers)).0, taken);
        }
        let voters = shares(&Arc::default(), Standing::Votes, 127);
        let (taken, _kept) = filled(&voters);
        let fair = 127 * QUEUE_SHARE_BYTES_MIN..=QUEUES_OF_VOTERS_BYTES_MAX;
        assert!(fair.contains(&taken));
    }

    #[tokio::test]
    async fn what_peers_without_a_vote_are_sent_from_the_store_waits_for_each_other_alone() {
        let others = Arc::default();
        let (followers, voter) =
            (shares(&others, Standing::Follows, 300), shares(&others, Standing::Votes, 1));
        let mut kept = Vec::new();
        for share in &followers {
            let wait = std::time::Duration::from_millis(1);
            let Ok(held) = tokio::time::timeout(wait, share.stored(FRAME_BYTES_MAX)).await else {
                break;
            };
            kept.push(held);
        }
        assert_eq!(kept.len(), STORED_OF_OTHERS_BYTES_MAX / FRAME_BYTES_MAX);
        let mut own = voter[0].stored(FRAME_BYTES_MAX).await;
        let _part = own.split(FRAME_BYTES_MAX / 2);
        let _rest = own.split(FRAME_BYTES_MAX);
        assert_eq!(own.split(1).own.num_permits(), 0);
        // Who lets its part go makes room for the next one.
        drop(kept.pop());
        followers[299].stored(FRAME_BYTES_MAX).await;
    }
}
