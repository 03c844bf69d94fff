//! What a liar says: events in the name of a member whose core is dead.
//!
//! Owns their making, and looks into what hosts have stored. Never decides whether they are
//! believed. Called by the directed cases.

use std::sync::Arc;

use dagger_ledger_core::{EventSigner, Input};
use dagger_payload::event::{Attestation, EVENT_VERSION, Event, Header, Parent};
use dagger_payload::id::{Epoch, LedgerTime, MerkleRoot, Round};

use super::{CLUSTER, CheapSigner, Lie, Net, START_MS, author, founding, payload};

impl Net {
    /// An event that a liar signs: with `before` of its own below it, perhaps, and these of others.
    pub fn forge(&self, (liar, round): (usize, u64), parents: Vec<Parent>, text: &str) -> Lie {
        let (own, mut others): (Vec<_>, Vec<_>) =
            parents.into_iter().partition(|parent| parent.author == author(liar));
        others.sort_by_key(|parent| parent.author);
        let end = founding().end;
        let header = Header {
            version: EVENT_VERSION,
            cluster: CLUSTER,
            epoch: Epoch(0),
            round: Round(round),
            author: author(liar),
            parents: own.into_iter().chain(others).collect(),
            payload_root: MerkleRoot::ZERO,
            payload_count: 0,
            timestamp: LedgerTime(START_MS + self.now),
            attestation: Attestation { newest: end, checkpoint: None },
        };
        let payloads = if text.is_empty() { Vec::new() } else { vec![payload(text)] };
        let signer = CheapSigner(u8::try_from(liar).expect("few"));
        let event = Event::make(header, payloads, |digest| signer.sign(digest));
        Event::read(event.bytes).map(Arc::new).expect("in form")
    }

    /// Its operator confirms the clock of `host`.
    pub fn confirm_clock(&mut self, host: usize) {
        self.input(host, Input::ClockConfirmed);
    }

    /// `from` tells `to` that it has nothing.
    pub fn tell_nothing(&mut self, from: usize, to: usize) {
        let (from, highest) = (author(from), Vec::new());
        self.input(to, Input::PeerHave { from, highest, epoch: Epoch(0) });
    }

    /// `from` asks `to` about its own past.
    pub fn ask_past(&mut self, from: usize, to: usize, nonce: u64) {
        self.input(to, Input::RecoveryAsked { from: author(from), nonce, epoch: Epoch(0) });
    }

    /// `from` shows an event to `to`.
    pub fn tell(&mut self, from: usize, to: usize, event: &Lie) {
        let input = Input::EventReceived { from: author(from), event: event.clone() };
        self.input(to, input);
    }

    /// Events of a round that `at` has stored, by author.
    pub fn round(&self, at: usize, round: u64) -> Vec<Parent> {
        let events = self.hosts[at].store.events.values();
        let mut events: Vec<_> = events.map(|event| event.as_parent()).collect();
        events.retain(|place| place.round == Round(round));
        events.sort_by_key(|place| place.author);
        events
    }

    /// The newest event of `of` that `at` has stored.
    pub fn newest(&self, at: usize, of: usize) -> Arc<Event> {
        let events = self.hosts[at].store.events.values();
        let events = events.filter(|event| event.header.author == author(of));
        events.max_by_key(|event| event.header.round).expect("there is one").clone()
    }

    pub fn has(&self, at: usize, event: &Lie) -> bool {
        self.hosts[at].store.events.contains_key(&event.digest)
    }

    pub fn has_ordered(&self, at: usize, text: &str) -> bool {
        self.hosts[at].ordered.contains(&payload(text).digest())
    }
}
