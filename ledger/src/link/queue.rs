//! What waits to be sent to one peer, bounded in frames and bytes.
//!
//! Owns two lanes: what the core sends now, and events from the store for a peer that is far
//! behind, which wait for room and never delay the first lane. Never grows beyond its bounds: who
//! finds the first lane full drops the link. How many bytes both may hold is the peer's share.
//! Called by the links' registry and by each link's sending task.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::share::{Held, Queued, Share, Standing};
use crate::limits::{PEER_QUEUE_FRAMES_MAX, STORED_FRAMES_MAX};

/// The filling end.
#[derive(Clone)]
pub struct PeerQueue {
    frames: mpsc::Sender<(Bytes, Queued)>,
    stored: mpsc::Sender<(Bytes, Held)>,
    bytes: Arc<AtomicUsize>,
    share: Arc<Share>,
}

/// The emptying end.
pub struct Outgoing {
    frames: mpsc::Receiver<(Bytes, Queued)>,
    stored: mpsc::Receiver<(Bytes, Held)>,
}

/// The peer takes less than it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much waits for the peer")]
pub struct Overflow;

/// The link that a frame was for has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the link is gone")]
pub struct Gone;

/// A queue within a peer's share.
pub fn queue(share: Arc<Share>) -> (PeerQueue, Outgoing) {
    let (frames_in, frames) = mpsc::channel(PEER_QUEUE_FRAMES_MAX);
    let (stored_in, stored) = mpsc::channel(STORED_FRAMES_MAX);
    let filling = PeerQueue { frames: frames_in, stored: stored_in, bytes: Arc::default(), share };
    (filling, Outgoing { frames, stored })
}

impl PeerQueue {
    /// Adds a frame to the first lane.
    ///
    /// # Errors
    /// [`Overflow`].
    pub fn push(&self, frame: Bytes) -> Result<(), Overflow> {
        let queued = self.share.queue(&self.bytes, frame.len()).ok_or(Overflow)?;
        self.frames.try_send((frame, queued)).map_err(|_| Overflow)
    }

    /// Whether an answer of so many bytes may join the first lane: answers take half of it, so that
    /// who asks for much at once loses some of them and not the link.
    pub fn has_room_for_answer(&self, bytes: usize) -> bool {
        self.bytes.load(Ordering::Relaxed).saturating_add(bytes) <= self.share.queue_bytes_max() / 2
    }

    /// Of which kind the peer is now.
    pub fn standing(&self) -> Standing {
        self.share.standing()
    }

    /// Waits for room in the second lane for what is about to be read from the store.
    ///
    /// # Errors
    /// The link is gone.
    pub async fn room(&self, bytes: usize) -> Result<Held, Gone> {
        tokio::select! {
            () = self.stored.closed() => Err(Gone),
            held = self.share.stored(bytes) => Ok(held),
        }
    }

    /// Adds a frame to the second lane as soon as there is a place, in room that was waited for.
    ///
    /// # Errors
    /// The link is gone.
    pub async fn push_stored(&self, frame: Bytes, room: Held) -> Result<(), Gone> {
        self.stored.send((frame, room)).await.map_err(|_| Gone)
    }
}

impl Outgoing {
    /// The next frame, of the first lane if there is one; none when the queue was dropped.
    pub async fn next(&mut self) -> Option<Bytes> {
        tokio::select! {
            biased;
            frame = self.frames.recv() => frame.map(|(frame, _)| frame),
            Some((frame, _)) = self.stored.recv() => Some(frame),
        }
    }

    /// The next frame of the first lane, if one waits now.
    pub fn next_now(&mut self) -> Option<Bytes> {
        self.frames.try_recv().ok().map(|(frame, _)| frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::QUEUES_OF_VOTERS_BYTES_MAX;

    #[tokio::test]
    async fn who_asks_for_much_at_once_loses_answers_and_neither_the_link_nor_what_all_are_told() {
        let voters = 100;
        let share = Arc::new(Share::of(Standing::Votes, voters));
        let (queue, mut outgoing) = queue(share);
        let answer = Bytes::from(vec![0; 64 * 1024]);
        let mut answered = 0;
        for _ in 0..100_000 {
            if queue.has_room_for_answer(answer.len()) {
                queue.push(answer.clone()).expect("there is room");
                answered += answer.len();
            }
        }
        assert!(answered <= QUEUES_OF_VOTERS_BYTES_MAX / voters / 2);
        queue.push(answer.clone()).expect("the other half is for what all are told");
        // What is sent makes room again.
        assert_eq!(outgoing.next().await.as_ref(), Some(&answer));
        assert_eq!(outgoing.next_now().as_ref(), Some(&answer));
        assert!(queue.has_room_for_answer(answer.len()));
        while queue.push(answer.clone()).is_ok() {}
        assert!(queue.bytes.load(Ordering::Relaxed) <= QUEUES_OF_VOTERS_BYTES_MAX / voters);
    }
}
