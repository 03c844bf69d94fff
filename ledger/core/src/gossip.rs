//! What peers tell each other about what they have, and how what one lacks reaches it.
//!
//! Owns who is connected and when the next exchange is due. Never touches a socket. Own events are
//! broadcast when they are made (`pace`); everything else travels by asking.

use dagger_payload::committee::Committee;
use dagger_payload::id::{AuthorIndex, EventDigest, Round};
use dagger_payload::peer::{Highest, PeerMessage};

use crate::limits::HAVE_MS;
use crate::{Core, Moment, Output, Turn};

/// Who is there.
#[derive(Debug)]
pub(crate) struct Gossip {
    connected: Vec<Link>,
    have_at: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Up,
    Down,
}

impl Gossip {
    pub(crate) fn new(committee: Committee) -> Self {
        Self { connected: vec![Link::Down; committee.members()], have_at: Moment(0) }
    }

    pub(crate) fn disconnected(&mut self, peer: AuthorIndex) {
        if let Some(link) = self.connected.get_mut(usize::from(peer.0)) {
            *link = Link::Down;
        }
    }

    pub(crate) fn is_connected(&self, peer: AuthorIndex) -> bool {
        self.connected.get(usize::from(peer.0)) == Some(&Link::Up)
    }

    /// How many peers are connected.
    pub(crate) fn connected_count(&self) -> u16 {
        let up = self.connected.iter().filter(|link| **link == Link::Up).count();
        u16::try_from(up).expect("members are few")
    }

    /// The first connected peer from `peer` on, in circular order.
    pub(crate) fn connected_from(&self, peer: AuthorIndex) -> Option<AuthorIndex> {
        let members = self.connected.len();
        let start = usize::from(peer.0);
        let found = (0..members)
            .map(|step| (start + step) % members)
            .find(|at| self.connected[*at] == Link::Up)?;
        u16::try_from(found).ok().map(AuthorIndex)
    }

    /// The member after `peer`, in circular order.
    pub(crate) fn following(&self, peer: AuthorIndex) -> AuthorIndex {
        let next = (usize::from(peer.0) + 1) % self.connected.len();
        AuthorIndex(u16::try_from(next).expect("a member's index fits"))
    }

    pub(crate) fn have_at(&self) -> Option<Moment> {
        self.connected.contains(&Link::Up).then_some(self.have_at)
    }
}

impl Core {
    pub(crate) fn peer_connected(&mut self, turn: &mut Turn<'_>, peer: AuthorIndex) {
        if self.is_me(peer) || !self.configuration.committee.contains(peer) {
            return;
        }
        if self.gossip.have_at().is_none() {
            self.gossip.have_at = turn.now.plus_ms(HAVE_MS);
        }
        self.gossip.connected[usize::from(peer.0)] = Link::Up;
        self.pace.heard_from(peer);
        self.recovery.ask_again_at(turn.now);
        let message = PeerMessage::Have { highest: self.highest() };
        turn.outputs.push(Output::Send { to: peer, message, after: self.written });
    }

    /// The exchange every so often, which heals whatever was lost on a link.
    pub(crate) fn tell_have(&mut self, turn: &mut Turn<'_>) {
        if self.gossip.have_at().is_some_and(|at| at <= turn.now) {
            self.gossip.have_at = turn.now.plus_ms(HAVE_MS);
            let message = PeerMessage::Have { highest: self.highest() };
            turn.outputs.push(Output::Broadcast { message, after: self.written });
        }
    }

    /// Sends a peer what it lacks: from memory what is there, from the store what is older.
    pub(crate) fn peer_has(&mut self, turn: &mut Turn<'_>, peer: AuthorIndex, has: &[Highest]) {
        if !self.gossip.is_connected(peer) {
            return;
        }
        let round_of = |author: AuthorIndex| {
            let found = has.iter().find(|highest| highest.author == author);
            found.map_or(Round(0), |highest| highest.round)
        };
        let floor = self.graph.collection_round();
        let authors: Vec<_> = self.configuration.committee.authors().collect();
        let older = authors.iter().any(|author| {
            let theirs = round_of(*author);
            theirs < floor && theirs < self.graph.highest_of(*author)
        });
        if older {
            let above =
                authors.iter().map(|author| Highest { author: *author, round: round_of(*author) });
            turn.outputs.push(Output::ServeStored {
                to: peer,
                above: above.collect(),
                below: floor,
            });
        }
        let lowest = authors.iter().map(|author| round_of(*author)).min().unwrap_or_default();
        let mut round = floor.max(lowest.next());
        while round <= self.graph.highest_round() {
            let lacking =
                self.graph.in_round(round).filter(|(author, _)| round > round_of(*author));
            let messages = lacking.map(|(_, event)| PeerMessage::event(event));
            let after = self.written;
            turn.outputs.extend(messages.map(|message| Output::Send { to: peer, message, after }));
            round = round.next();
        }
    }

    pub(crate) fn peer_wants(
        &mut self,
        turn: &mut Turn<'_>,
        peer: AuthorIndex,
        digests: Vec<EventDigest>,
    ) {
        let (held, stored): (Vec<_>, Vec<_>) =
            digests.into_iter().partition(|digest| self.graph.contains(digest));
        let held = held.iter().filter_map(|digest| self.graph.get(digest));
        let after = self.written;
        turn.outputs.extend(held.map(|event| {
            let message = PeerMessage::event(event);
            Output::Send { to: peer, message, after }
        }));
        if !stored.is_empty() {
            turn.outputs.push(Output::ServeDigests { to: peer, digests: stored });
        }
    }
}
