//! Links to the other members' ledgers: TLS 1.3 with raw keys over TCP, one live link per pair.
//!
//! Owns who dials (the member with the lower index), back-off, caps on strangers, the bounded
//! queues, and the checks of what comes in. Who is linked to changes while links are up. Sends
//! nothing of its own but `Hello`: an idle link is silent (the kernel's keep-alive notices a dead
//! host). Never interprets a message. Called by the driver.

pub mod frames;
pub mod heard;
pub mod inspect;
mod peers;
pub mod queue;
mod refusals;
mod session;
pub mod share;
pub mod tls;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backon::BackoffBuilder;
use bytes::Bytes;
use dagger_payload::committee::Committee;
use dagger_payload::event::{Event, Header, SignedHeader};
use dagger_payload::id::{AuthorIndex, ClusterId};
use dagger_payload::key::{PublicKey, SecretKey};
use dagger_payload::name::Name;
use dagger_payload::peer::PeerMessage;
use dagger_payload::roster::{Roster, Seat, SeatStanding};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::limits::{
    HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX, LINK_SETTLED, REDIAL_WAIT_MAX, REDIAL_WAIT_MIN,
};
use heard::Teller;
use inspect::{Inspector, Keys, KnownEvents};
use peers::{Finding, Peer, Peers};
use queue::PeerQueue;
use refusals::{Refusals, TOO_MANY_HANDSHAKES};
use session::LinkError;
use share::{Share, Standing};
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
    /// Members of the first moment, by author, who vote; [`Links::update`] names others.
    pub members: Vec<Member>,
}

/// What all tasks of the links share.
struct Shared {
    me: AuthorIndex,
    identity: Identity,
    server: Arc<rustls::ServerConfig>,
    inspector: Inspector,
    peers: Peers,
    events: Teller,
    refusals: Refusals,
    stopping: CancellationToken,
    /// Where the links' tasks run, whoever changes who is linked to.
    runtime: Handle,
}

impl Shared {
    fn name(&self, peer: AuthorIndex) -> String {
        let known = self.peers.get(peer);
        known.map_or_else(|| format!("host {}", peer.0), |known| known.member.name.to_string())
    }

    async fn tell(&self, event: LinkEvent) -> Result<(), LinkError> {
        self.events.tell(event, None).await.map_err(|_| LinkError::GivenUp)
    }

    /// Tells of what a peer sent, as soon as it may make so much more wait.
    async fn pass_on(
        &self,
        share: &Share,
        bytes: usize,
        event: LinkEvent,
    ) -> Result<(), LinkError> {
        let held = share.received(bytes).await;
        self.events.tell(event, Some(held)).await.map_err(|_| LinkError::GivenUp)
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
        events: Teller,
    ) -> Self {
        let LinkConfiguration { cluster, me, members } = configuration;
        let identity = Identity::new(key, Vec::new());
        let server = identity.server(me);
        let keys = Keys::default();
        let shared = Arc::new(Shared {
            me,
            identity,
            server,
            inspector: Inspector { cluster, keys, known },
            peers: Peers::default(),
            events,
            refusals: Refusals::default(),
            stopping: CancellationToken::new(),
            runtime: Handle::current(),
        });
        let links = Self { shared };
        let keys = members.iter().map(|member| member.key.clone()).collect();
        links.link_to(keys, (0..).map(AuthorIndex).zip(members).collect(), |_| true);
        tokio::spawn(listen(links.shared.clone(), listener));
        links
    }

    /// From now on these are the seats, and `voters` vote. Links are kept to present members, and
    /// to who votes still although it is on its way out; all others lose theirs and are let in no
    /// more. Who has left itself links to nobody. Events of every seat are known by its key,
    /// whether or not anybody sits there.
    pub fn update(&self, roster: &Roster, voters: Committee) {
        let keys = roster.seats().iter().map(|seat| seat.ledger_key.clone()).collect();
        let counts =
            |seat: &Seat| seat.standing == SeatStanding::Present || voters.contains(seat.index);
        let is_out = roster.seat(self.shared.me).is_some_and(|own| !counts(own));
        let linked = roster.seats().iter().filter(|seat| !is_out && counts(seat));
        let members = linked.map(|seat| {
            let (name, key, address) = (seat.name.clone(), seat.ledger_key.clone(), seat.address);
            (seat.index, Member { name, key, address })
        });
        self.link_to(keys, members.collect(), |author| voters.contains(author));
    }

    fn link_to(
        &self,
        keys: Vec<PublicKey>,
        mut wanted: BTreeMap<AuthorIndex, Member>,
        votes: impl Fn(AuthorIndex) -> bool,
    ) {
        let shared = &self.shared;
        shared.inspector.keys.replace(keys);
        wanted.remove(&shared.me);
        let members = wanted.iter().map(|(author, member)| (*author, member.key.clone()));
        shared.identity.set_members(members.collect());
        // The member with the lower index dials.
        let finding = |author| if author > shared.me { Finding::Dials } else { Finding::Accepts };
        let standing = |author| if votes(author) { Standing::Votes } else { Standing::Follows };
        for peer in shared.peers.replace(wanted, (finding, standing), &shared.stopping) {
            shared.runtime.spawn(keep_dialling(shared.clone(), peer));
        }
    }

    /// Puts a frame into a peer's queue. A peer that is not connected misses it; a link whose queue
    /// is full is dropped.
    pub fn send(&self, peer: AuthorIndex, frame: Bytes) {
        if let Some(peer) = self.shared.peers.get(peer) {
            send_to(&peer, frame);
        }
    }

    /// Puts a frame into every connected peer's queue.
    pub fn broadcast(&self, frame: &Bytes) {
        for peer in self.shared.peers.all() {
            send_to(&peer, frame.clone());
        }
    }

    /// The queue to a connected peer, for frames from the store that wait for room.
    pub fn queue(&self, peer: AuthorIndex) -> Option<PeerQueue> {
        let peer = self.shared.peers.get(peer)?;
        let live = peer.place.live.lock().expect("no holder of this lock panics");
        live.as_ref().map(|live| live.queue.clone())
    }

    /// Whether an answer of so many bytes may be sent to `peer` now; else it is left out, and the
    /// peer asks again.
    pub fn has_room_for_answer(&self, peer: AuthorIndex, bytes: usize) -> bool {
        self.queue(peer).is_some_and(|queue| queue.has_room_for_answer(bytes))
    }

    /// Whether a link to `peer` is up.
    pub fn is_connected(&self, peer: AuthorIndex) -> bool {
        self.queue(peer).is_some()
    }

    /// All peers to whom a link is up.
    pub fn connected(&self) -> Vec<AuthorIndex> {
        let up = |peer: &AuthorIndex| self.is_connected(*peer);
        self.shared.peers.all().into_iter().map(|peer| peer.author).filter(up).collect()
    }

    /// Ends all links and stops to listen and to dial.
    pub fn stop(&self) {
        self.shared.stopping.cancel();
    }
}

fn send_to(peer: &Peer, frame: Bytes) {
    if let Some(live) = &*peer.place.live.lock().expect("no holder of this lock panics")
        && let Err(overflow) = live.queue.push(frame)
    {
        tracing::warn!(peer = %peer.member.name, %overflow, "link dropped");
        live.given_up.cancel();
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
        peers: &Peers,
    ) -> Option<Self> {
        let is_a_members = peers.has_address(address);
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
        let admitted = Stranger::admit(address.ip(), &strangers, &places, &shared.peers);
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

/// Dials a peer again and again, for as long as it is reached so.
async fn keep_dialling(shared: Arc<Shared>, peer: Arc<Peer>) {
    let address = peer.member.address;
    let mut backoff = waits();
    let mut told = false;
    while !peer.leaving.is_cancelled() {
        let started = Instant::now();
        let ended = session::dial(&shared, &peer).await;
        if peer.leaving.is_cancelled() {
            return;
        }
        if started.elapsed() >= LINK_SETTLED {
            (backoff, told) = (waits(), false);
        }
        if let Err(error) = ended
            && !std::mem::replace(&mut told, true)
        {
            let peer = &peer.member.name;
            tracing::info!(%peer, %address, %error, "no link now; it is tried again and again");
        }
        let wait = backoff.next().unwrap_or(REDIAL_WAIT_MAX);
        tokio::select! {
            () = peer.leaving.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}
