//! What waits to be sent to one peer, bounded in frames and bytes.
//!
//! Owns two lanes: what the core sends now, and events from the store for a peer that is far
//! behind, which wait for room and never delay the first lane. Never grows beyond its bounds: who
//! finds the first lane full drops the link. Called by the links' registry and by each link's
//! sending task.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::limits::{PEER_QUEUE_BYTES_MAX, PEER_QUEUE_FRAMES_MAX, STORED_FRAMES_MAX};

/// The filling end.
#[derive(Clone)]
pub struct PeerQueue {
    frames: mpsc::Sender<Bytes>,
    stored: mpsc::Sender<Bytes>,
    bytes: Arc<AtomicUsize>,
}

/// The emptying end.
pub struct Outgoing {
    frames: mpsc::Receiver<Bytes>,
    stored: mpsc::Receiver<Bytes>,
    bytes: Arc<AtomicUsize>,
}

/// The peer takes less than it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much waits for the peer")]
pub struct Overflow;

/// The link that a frame was for has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the link is gone")]
pub struct Gone;

/// A queue.
pub fn queue() -> (PeerQueue, Outgoing) {
    let (frames_in, frames) = mpsc::channel(PEER_QUEUE_FRAMES_MAX);
    let (stored_in, stored) = mpsc::channel(STORED_FRAMES_MAX);
    let bytes = Arc::new(AtomicUsize::new(0));
    let filling = PeerQueue { frames: frames_in, stored: stored_in, bytes: bytes.clone() };
    let emptying = Outgoing { frames, stored, bytes };
    (filling, emptying)
}

impl PeerQueue {
    /// Adds a frame to the first lane.
    ///
    /// # Errors
    /// [`Overflow`].
    pub fn push(&self, frame: Bytes) -> Result<(), Overflow> {
        let length = frame.len();
        if self.bytes.fetch_add(length, Ordering::Relaxed) + length > PEER_QUEUE_BYTES_MAX {
            return Err(Overflow);
        }
        self.frames.try_send(frame).map_err(|_| Overflow)
    }

    /// Adds a frame to the second lane as soon as there is room.
    ///
    /// # Errors
    /// The link is gone.
    pub async fn push_stored(&self, frame: Bytes) -> Result<(), Gone> {
        self.stored.send(frame).await.map_err(|_| Gone)
    }
}

impl Outgoing {
    /// The next frame, of the first lane if there is one; none when the queue was dropped.
    pub async fn next(&mut self) -> Option<Bytes> {
        tokio::select! {
            biased;
            frame = self.frames.recv() => {
                let frame = frame?;
                self.bytes.fetch_sub(frame.len(), Ordering::Relaxed);
                Some(frame)
            }
            Some(frame) = self.stored.recv() => Some(frame),
        }
    }

    /// The next frame of the first lane, if one waits now.
    pub fn next_now(&mut self) -> Option<Bytes> {
        let frame = self.frames.try_recv().ok()?;
        self.bytes.fetch_sub(frame.len(), Ordering::Relaxed);
        Some(frame)
    }
}
