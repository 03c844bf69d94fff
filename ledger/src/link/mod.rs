//! Links to the other members' ledgers: TLS 1.3 with raw keys over TCP, one live link per pair.
//!
//! Owns who dials (the member with the lower index), back-off, caps on strangers, the bounded
//! queues, and the checks of what comes in. Sends nothing of its own but `Hello`: an idle link is
//! silent (the kernel's keep-alive notices a dead host). Never interprets a message. Called by the
//! driver.

pub mod frames;
pub mod inspect;
pub mod queue;
mod refusals;
mod session;
pub mod tls;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backon::BackoffBuilder;
use bytes::Bytes;
use dagger_payload::event::{Event, Header, SignedHeader};
use dagger_payload::id::{AuthorIndex, ClusterId};
use dagger_payload::key::{PublicKey, SecretKey};
use dagger_payload::name::Name;
use dagger_payload::peer::PeerMessage;
use tokio::net::TcpListener;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::limits::{
    HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX, LINK_SETTLED, REDIAL_WAIT_MAX, REDIAL_WAIT_MIN,
};
use inspect::{Inspector, KnownEvents};
use queue::PeerQueue;
use refusals::{Refusals, TOO_MANY_HANDSHAKES};
use session::LinkError;
use tls::Identity;

/// A member, as far as links need it.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name, for messages to people.
    pub name: Name,
    /// Its ledger key.
    pub key: PublicKey,
    /// Where it listens.
    pub address: SocketAddr,
}

/// What the driver hears from links; of each peer in order: connected, messages, closed.
#[derive(Debug)]
pub enum LinkEvent {
    /// A link is up.
    Connected(AuthorIndex),
    /// It is gone.
    Closed(AuthorIndex),
    /// A new event with a valid signature.
    Event(AuthorIndex, Arc<Event>),
    /// A header with a valid signature that may attest the end of an epoch.
    Closing(Box<Header>, SignedHeader),
    /// Any other message.
    Message(AuthorIndex, PeerMessage),
}

/// What links need to know.
pub struct LinkConfiguration {
    /// The cluster.
    pub cluster: ClusterId,
    /// This member.
    pub me: AuthorIndex,
    /// All members, by author.
    pub members: Vec<Member>,
}

struct Live {
    queue: PeerQueue,
    given_up: CancellationToken,
}

#[derive(Default)]
struct Place {
    /// Held for a link's whole life, so that the driver never hears of two.
    turn: Arc<tokio::sync::Mutex<()>>,
    live: Mutex<Option<Live>>,
}

/// What all tasks of the links share.
struct Shared {
    members: Vec<Member>,
    identity: Identity,
    server: Arc<rustls::ServerConfig>,
    inspector: Inspector,
    places: Vec<Place>,
    events: mpsc::Sender<LinkEvent>,
    refusals: Refusals,
    stopping: CancellationToken,
}

/// Kept by a link while it is the live one.
struct PlaceGuard<'a> {
    place: &'a Place,
    _turn: OwnedMutexGuard<()>,
}

impl PlaceGuard<'_> {
    /// The link is over; the turn is free when the guard is dropped.
    fn leave(&self) {
        *self.place.live.lock().expect("no holder of this lock panics") = None;
    }
}

impl Shared {
    fn name(&self, peer: AuthorIndex) -> &Name {
        &self.members[usize::from(peer.0)].name
    }

    async fn take_place(
        &self,
        peer: AuthorIndex,
        queue: PeerQueue,
        given_up: CancellationToken,
    ) -> PlaceGuard<'_> {
        let place = &self.places[usize::from(peer.0)];
        if let Some(older) = &*place.live.lock().expect("no holder of this lock panics") {
            older.given_up.cancel();
        }
        let turn = place.turn.clone().lock_owned().await;
        *place.live.lock().expect("no holder of this lock panics") = Some(Live { queue, given_up });
        PlaceGuard { place, _turn: turn }
    }

    async fn tell(&self, event: LinkEvent) -> Result<(), LinkError> {
        self.events.send(event).await.map_err(|_| LinkError::GivenUp)
    }
}

/// All links of this ledger.
#[derive(Clone)]
pub struct Links {
    shared: Arc<Shared>,
}

impl Links {
    /// Starts to listen and to dial, on the current runtime; what happens goes to `events`.
    pub fn start(
        configuration: LinkConfiguration,
        key: &SecretKey,
        known: Arc<KnownEvents>,
        listener: TcpListener,
        events: mpsc::Sender<LinkEvent>,
    ) -> Self {
        let LinkConfiguration { cluster, me, members } = configuration;
        let keys: Vec<PublicKey> = members.iter().map(|member| member.key.clone()).collect();
        let by_author = (0..).map(AuthorIndex).zip(keys.iter().cloned()).collect();
        let identity = Identity::new(key, by_author);
        let server = identity.server(|author| author < me);
        let inspector = Inspector { cluster, keys, known };
        let places = members.iter().map(|_| Place::default()).collect();
        let shared = Arc::new(Shared {
            members,
            identity,
            server,
            inspector,
            places,
            events,
            refusals: Refusals::default(),
            stopping: CancellationToken::new(),
        });
        tokio::spawn(listen(shared.clone(), listener));
        for (author, member) in (0..).map(AuthorIndex).zip(&shared.members) {
            if author > me {
                tokio::spawn(keep_dialling(shared.clone(), author, member.address));
            }
        }
        Self { shared }
    }

    /// Puts a frame into a peer's queue. A peer that is not connected misses it; a link whose queue
    /// is full is dropped.
    pub fn send(&self, peer: AuthorIndex, frame: Bytes) {
        let Some(place) = self.shared.places.get(usize::from(peer.0)) else {
            return;
        };
        if let Some(live) = &*place.live.lock().expect("no holder of this lock panics")
            && let Err(overflow) = live.queue.push(frame)
        {
            tracing::warn!(peer = %self.shared.name(peer), %overflow, "link dropped");
            live.given_up.cancel();
        }
    }

    /// Puts a frame into every connected peer's queue.
    pub fn broadcast(&self, frame: &Bytes) {
        for peer in (0..).map(AuthorIndex).take(self.shared.places.len()) {
            self.send(peer, frame.clone());
        }
    }

    /// The queue to a connected peer, for frames from the store that wait for room.
    pub fn queue(&self, peer: AuthorIndex) -> Option<PeerQueue> {
        let place = self.shared.places.get(usize::from(peer.0))?;
        let live = place.live.lock().expect("no holder of this lock panics");
        live.as_ref().map(|live| live.queue.clone())
    }

    /// Whether a link to `peer` is up.
    pub fn is_connected(&self, peer: AuthorIndex) -> bool {
        self.queue(peer).is_some()
    }

    /// Ends all links and stops to listen and to dial.
    pub fn stop(&self) {
        self.shared.stopping.cancel();
    }
}

/// One of a bounded number of connections that nobody has authenticated yet.
struct Stranger {
    address: IpAddr,
    strangers: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Stranger {
    /// A member's address takes no place that others could have filled: it has its own few, so
    /// that a flood from elsewhere keeps no member out.
    fn admit(
        address: IpAddr,
        strangers: &Arc<Mutex<BTreeMap<IpAddr, usize>>>,
        places: &Arc<Semaphore>,
        members: &[Member],
    ) -> Option<Self> {
        let is_a_members = members.iter().any(|member| member.address.ip() == address);
        let permit = match is_a_members {
            true => None,
            false => Some(places.clone().try_acquire_owned().ok()?),
        };
        let mut counts = strangers.lock().expect("no holder of this lock panics");
        let count = counts.entry(address).or_insert(0);
        if *count >= HANDSHAKES_PER_ADDRESS_MAX {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Self { address, strangers: strangers.clone(), _permit: permit })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut counts = self.strangers.lock().expect("no holder of this lock panics");
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

async fn listen(shared: Arc<Shared>, listener: TcpListener) {
    let strangers = Arc::new(Mutex::new(BTreeMap::new()));
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let accepted = tokio::select! {
            () = shared.stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or a connection that was gone again: neither is helped
                // by haste.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(REDIAL_WAIT_MIN).await;
                continue;
            }
        };
        let admitted = Stranger::admit(address.ip(), &strangers, &places, &shared.members);
        let Some(stranger) = admitted else {
            let refused = shared.refusals.count(TOO_MANY_HANDSHAKES);
            // A flood of connections must not become one of lines.
            if refused.is_power_of_two() {
                let code = TOO_MANY_HANDSHAKES;
                tracing::warn!(%address, code, refused, "unauthenticated connections were closed");
            }
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let accepted = session::accept(&shared, stream).await;
            drop(stranger);
            let ended = match accepted {
                Ok(accepted) => accepted.serve(&shared).await,
                Err(error) => Err(error),
            };
            let Err(error) = ended else {
                return;
            };
            match shared.refusals.of(&error) {
                Some((code, refused)) => {
                    tracing::info!(%address, code, refused, %error, "an accepted link was refused");
                }
                None => tracing::info!(%address, %error, "an accepted link ended"),
            }
        });
    }
}

fn waits() -> impl Iterator<Item = Duration> {
    backon::ExponentialBuilder::default()
        .with_min_delay(REDIAL_WAIT_MIN)
        .with_max_delay(REDIAL_WAIT_MAX)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .build()
        .map(|wait| wait.min(REDIAL_WAIT_MAX))
}

async fn keep_dialling(shared: Arc<Shared>, peer: AuthorIndex, address: SocketAddr) {
    let mut backoff = waits();
    let mut told = false;
    loop {
        let started = Instant::now();
        let ended = tokio::select! {
            () = shared.stopping.cancelled() => return,
            ended = session::dial(&shared, peer, address) => ended,
        };
        if started.elapsed() >= LINK_SETTLED {
            (backoff, told) = (waits(), false);
        }
        if let Err(error) = ended
            && !std::mem::replace(&mut told, true)
        {
            let peer = shared.name(peer);
            tracing::info!(%peer, %address, %error, "no link now; it is tried again and again");
        }
        let wait = backoff.next().unwrap_or(REDIAL_WAIT_MAX);
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}
