//! What links hear, on its way to the driver.
//!
//! Owns the bounds of what waits while the driver is busy: so many events of all peers together,
//! and of each peer the bytes of its share, beyond which nothing is read from it. Never reads a
//! message.
//! Filled by the links' sessions, emptied by the driver.

use tokio::sync::mpsc;

use super::LinkEvent;
use super::share::Held;

struct Told {
    event: LinkEvent,
    held: Option<Held>,
}

/// The links' end.
#[derive(Clone)]
pub struct Teller(mpsc::Sender<Told>);

/// The driver's end.
pub struct Heard(mpsc::Receiver<Told>);

/// The driver is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody listens")]
pub(super) struct Deaf;

/// Both ends; so many events of all peers may wait.
pub fn channel(events_max: usize) -> (Teller, Heard) {
    let (teller, heard) = mpsc::channel(events_max);
    (Teller(teller), Heard(heard))
}

impl Teller {
    pub(super) async fn tell(&self, event: LinkEvent, held: Option<Held>) -> Result<(), Deaf> {
        self.0.send(Told { event, held }).await.map_err(|_| Deaf)
    }
}

impl Heard {
    /// Waits for the next event; none when all links have ended.
    pub async fn recv(&mut self) -> Option<LinkEvent> {
        let Told { event, held } = self.0.recv().await?;
        drop(held);
        Some(event)
    }

    /// The next event, if one waits now.
    pub fn try_recv(&mut self) -> Option<LinkEvent> {
        let Told { event, held } = self.0.try_recv().ok()?;
        drop(held);
        Some(event)
    }
}
