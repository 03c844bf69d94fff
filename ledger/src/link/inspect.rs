//! What a received frame is worth: form, cluster, author and signature are checked here,
//! before the core hears of it.
//!
//! Owns these checks and the memory of accepted events, whose second copies cost no verification.
//! Runs in the link's own task, so the links' runtime is the pool on which signatures are verified,
//! and each peer's order is kept. Never decides whether an event fits into the graph (the core
//! does). Called by the link's sessions.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, RwLock};

use dagger_payload::event::{Event, EventError, Header, SignedHeader};
use dagger_payload::id::{AuthorIndex, ClusterId, EventDigest};
use dagger_payload::key::PublicKey;
use dagger_payload::peer::{FrameError, PeerMessage};

use crate::limits::KNOWN_EVENTS_MAX;

/// The newest accepted events' digests, at most [`KNOWN_EVENTS_MAX`].
#[derive(Default)]
pub struct KnownEvents {
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    digests: HashSet<EventDigest>,
    order: VecDeque<EventDigest>,
}

impl KnownEvents {
    /// Remembers an event that the core has accepted.
    pub fn remember(&self, digest: EventDigest) {
        let mut recent = self.recent.lock().expect("no holder of this lock panics");
        if !recent.digests.insert(digest) {
            return;
        }
        recent.order.push_back(digest);
        if recent.order.len() > KNOWN_EVENTS_MAX
            && let Some(oldest) = recent.order.pop_front()
        {
            recent.digests.remove(&oldest);
        }
    }

    fn contains(&self, digest: &EventDigest) -> bool {
        self.recent.lock().expect("no holder of this lock panics").digests.contains(digest)
    }
}

/// A message that passed.
#[derive(Debug)]
pub enum Inbound {
    /// A new event with a valid signature.
    Event(Arc<Event>),
    /// An event that is known already.
    Known,
    /// A header with a valid signature that may attest the end of an epoch.
    Closing(Box<Header>, SignedHeader),
    /// Any other message.
    Message(PeerMessage),
}

/// Why a frame was refused; the link is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No message.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// No valid event.
    #[error("{0}")]
    Event(#[from] EventError),
}

/// Keys by author, of everybody who ever had a seat. They may be replaced at any time.
#[derive(Debug, Default)]
pub struct Keys(RwLock<Arc<[PublicKey]>>);

impl Keys {
    /// From now on these.
    pub fn replace(&self, keys: Vec<PublicKey>) {
        *self.0.write().expect("no holder of this lock panics") = keys.into();
    }

    fn now(&self) -> Arc<[PublicKey]> {
        self.0.read().expect("no holder of this lock panics").clone()
    }
}

impl FromIterator<PublicKey> for Keys {
    fn from_iter<I: IntoIterator<Item = PublicKey>>(keys: I) -> Self {
        Self(RwLock::new(keys.into_iter().collect()))
    }
}

/// Checks frames against one cluster's members.
pub struct Inspector {
    /// The cluster.
    pub cluster: ClusterId,
    /// The members' keys, by author.
    pub keys: Keys,
    /// What needs no second check.
    pub known: Arc<KnownEvents>,
}

impl Inspector {
    /// Checks one frame.
    ///
    /// # Errors
    /// [`Refused`]: an honest peer never sends such a frame.
    pub fn inspect(&self, frame: &[u8]) -> Result<Inbound, Refused> {
        let message = PeerMessage::read(frame)?;
        let keys = self.keys.now();
        let key_of = |author: AuthorIndex| keys.get(usize::from(author.0));
        let bytes = match message {
            PeerMessage::Event { bytes } => bytes,
            PeerMessage::Closing { header: signed } => {
                let (header, _) = signed.verify(key_of)?;
                if header.cluster != self.cluster {
                    return Err(EventError::Foreign.into());
                }
                return Ok(Inbound::Closing(Box::new(header), signed));
            }
            message => return Ok(Inbound::Message(message)),
        };
        if self.known.contains(&Event::digest_in(&bytes)?) {
            return Ok(Inbound::Known);
        }
        let event = Event::read(bytes)?;
        // Of any epoch: the core knows which one it is in.
        event.verify(&self.cluster, event.header.epoch, key_of)?;
        Ok(Inbound::Event(Arc::new(event)))
    }
}
