//! Whom this ledger links to now.
//!
//! Owns the list of peers, which changes while links are up: who is new is dialled or let in at
//! once, who moved is dialled anew, who is no longer in it loses its link. A peer's place outlives
//! its entry, so that the driver never hears of two links at a time. Never decides who is in it.
//! Called by the links' registry and sessions.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, RwLock};

use dagger_payload::id::AuthorIndex;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::Member;
use super::queue::PeerQueue;
use super::session::LinkError;
use super::share::{Others, Share, Standing};

/// A link that is up.
pub(super) struct Live {
    pub(super) queue: PeerQueue,
    pub(super) given_up: CancellationToken,
}

/// Where the one link to a peer is.
pub(super) struct Place {
    /// Held for a link's whole life, so that the driver never hears of two.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Ends the newest link of all that came: the one that is up, or the one that waits for it to
    /// end. So at most two are kept, however many a peer opens.
    newest: Mutex<Option<CancellationToken>>,
    pub(super) live: Mutex<Option<Live>>,
    /// For what waits to be sent to the peer, and what it sent and the driver has not heard yet,
    /// whichever link it goes by.
    pub(super) share: Arc<Share>,
}

impl Place {
    fn new(others: Arc<Others>) -> Self {
        let (turn, newest, live) = (Arc::default(), Mutex::default(), Mutex::default());
        Self { turn, newest, live, share: Arc::new(Share::new(others)) }
    }
}

/// A peer, as it is reached now.
pub(super) struct Peer {
    pub(super) author: AuthorIndex,
    pub(super) member: Member,
    /// Cancelled when the peer is no longer reached so; its links end with it.
    pub(super) leaving: CancellationToken,
    pub(super) place: Arc<Place>,
}

/// Kept by a link while it is the live one.
pub(super) struct PlaceGuard {
    place: Arc<Place>,
    _turn: OwnedMutexGuard<()>,
}

impl PlaceGuard {
    /// The link is over; the turn is free when the guard is dropped.
    pub(super) fn leave(&self) {
        *self.place.live.lock().expect("no holder of this lock panics") = None;
    }
}

impl Peer {
    /// Takes the peer's one place, after the link that holds it now has ended.
    ///
    /// # Errors
    /// A newer link came meanwhile, or the peer left.
    pub(super) async fn take_place(
        &self,
        queue: PeerQueue,
        given_up: CancellationToken,
    ) -> Result<PlaceGuard, LinkError> {
        let place = self.place.clone();
        let older = {
            let mut newest = place.newest.lock().expect("no holder of this lock panics");
            newest.replace(given_up.clone())
        };
        if let Some(older) = older {
            older.cancel();
        }
        let turn = tokio::select! {
            biased;
            () = given_up.cancelled() => return Err(LinkError::GivenUp),
            turn = place.turn.clone().lock_owned() => turn,
        };
        *place.live.lock().expect("no holder of this lock panics") = Some(Live { queue, given_up });
        Ok(PlaceGuard { place, _turn: turn })
    }
}

/// All peers; as many entries as there are seats.
#[derive(Default)]
pub(super) struct Peers {
    peers: RwLock<BTreeMap<AuthorIndex, Arc<Peer>>>,
    places: Mutex<BTreeMap<AuthorIndex, Arc<Place>>>,
    /// What those of them share that do not vote.
    others: Arc<Others>,
}

/// How this ledger and its peers find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// It dials them.
    Dials,
    /// They dial it.
    Accepts,
}

impl Peers {
    /// The entry of a peer.
    pub(super) fn get(&self, author: AuthorIndex) -> Option<Arc<Peer>> {
        self.peers.read().expect("no holder of this lock panics").get(&author).cloned()
    }

    /// The entry of a peer that a link is about to serve.
    ///
    /// # Errors
    /// It has just left.
    pub(super) fn expect(&self, author: AuthorIndex) -> Result<Arc<Peer>, LinkError> {
        self.get(author).ok_or(LinkError::UnknownKey)
    }

    /// All entries.
    pub(super) fn all(&self) -> Vec<Arc<Peer>> {
        self.peers.read().expect("no holder of this lock panics").values().cloned().collect()
    }

    /// Whether a peer is reached at this address.
    pub(super) fn has_address(&self, address: IpAddr) -> bool {
        let peers = self.peers.read().expect("no holder of this lock panics");
        peers.values().any(|peer| peer.member.address.ip() == address)
    }

    /// Leaves these peers alone in the list, and gives those that must be dialled anew. Tokens of
    /// new entries end with `stopping`.
    pub(super) fn replace(
        &self,
        wanted: BTreeMap<AuthorIndex, Member>,
        (finding, standing): (impl Fn(AuthorIndex) -> Finding, impl Fn(AuthorIndex) -> Standing),
        stopping: &CancellationToken,
    ) -> Vec<Arc<Peer>> {
        let mut peers = self.peers.write().expect("no holder of this lock panics");
        let mut places = self.places.lock().expect("no holder of this lock panics");
        let left = peers.extract_if(.., |author, _| !wanted.contains_key(author));
        for (_, peer) in left {
            tracing::info!(peer = %peer.member.name, "has left; no link to it is kept");
            peer.leaving.cancel();
        }
        let kinds: Vec<Standing> = wanted.keys().map(|author| standing(*author)).collect();
        let linked = |kind| kinds.iter().filter(|each| **each == kind).count();
        let mut to_dial = Vec::new();
        for (author, member) in wanted {
            let dials = finding(author) == Finding::Dials;
            let known = peers.get(&author);
            // Who dials here may come from anywhere: only its key counts.
            let stays = known.filter(|known| !dials || known.member.address == member.address);
            if let (Some(moved), None) = (known, stays) {
                moved.leaving.cancel();
            }
            let leaving =
                stays.map_or_else(|| stopping.child_token(), |known| known.leaving.clone());
            let is_new = stays.is_none();
            let place = places.entry(author);
            let place = place.or_insert_with(|| Arc::new(Place::new(self.others.clone()))).clone();
            place.share.is_of(standing(author), linked(standing(author)));
            let peer = Arc::new(Peer { author, member, leaving, place });
            if is_new && dials {
                to_dial.push(peer.clone());
            }
            peers.insert(author, peer);
        }
        to_dial
    }
}
