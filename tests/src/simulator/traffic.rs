//! What hosts tell each other in a run: how a message leaves, travels and is read.
//!
//! Owns the step from bytes to a core's input, as a driver does it, and shows whatever leaves an
//! honest host to the promises. Never decides what is said. Called by the world.

use std::sync::Arc;

use bytes::Bytes;
use dagger_ledger_core::Core;
use dagger_ledger_core::interface::Input;
use dagger_payload::event::Event;
use dagger_payload::id::{AuthorIndex, Epoch, Round};
use dagger_payload::peer::{Highest, Part, PeerMessage};

use super::network::{Care, Connection};
use super::schedule::SimulatedTime;
use super::world::{Happening, HostHappening, Step, World};
use crate::promise::Observed;

impl World {
    pub(super) fn arrive(&mut self, host: usize, from: usize, message: &Arc<PeerMessage>) -> Step {
        let author = self.hosts[from].me;
        self.log.note(self.now(), host, message.kind(), u64::from(author.0));
        self.explain_status(host);
        let input = match message.as_ref() {
            PeerMessage::AskPart { part: Part::Offer } => return self.offer_snapshot(host, from),
            PeerMessage::Part { part: Part::Offer, bytes } => {
                return self.hear_offer(host, from, bytes);
            }
            PeerMessage::Event { bytes } => match self.parse(bytes) {
                Some(event) => Input::EventReceived { from: author, event },
                None => return Ok(()),
            },
            PeerMessage::Closing { header } => match self.keys.read_closing(header) {
                Some(closing) => closing,
                None => return Ok(()),
            },
            message => match Input::of_message(author, message.clone()) {
                Some(input) => input,
                None => return Ok(()),
            },
        };
        self.feed(host, input)
    }

    pub(super) fn explain_status(&self, host: usize) {
        let status = || format!("  {:?}", self.hosts[host].core.as_ref().map(Core::status));
        self.log.explain(self.now(), host, status);
    }

    /// Reads and verifies an event's bytes, once for all hosts that share them.
    pub(super) fn parse(&mut self, bytes: &Bytes) -> Option<Arc<Event>> {
        let place = bytes.as_ptr().addr();
        if let Some(parsed) = self.parsed.get(&place) {
            return parsed.clone();
        }
        let read = Event::read(bytes.clone()).ok();
        let verified = read.filter(|event| {
            let committee = self.epochs.get(&event.header.epoch);
            committee.is_some_and(|committee| self.keys.verify(event, *committee))
        });
        // The entry keeps the bytes alive, so that no others can come to stand at their place.
        let parsed = verified.map(Arc::new);
        if parsed.is_some() {
            self.parsed.insert(place, parsed.clone());
        }
        parsed
    }

    /// Sends what a host asks for that is further behind than memory reaches, or a snapshot.
    pub(super) fn serve_stored(
        &mut self,
        host: usize,
        to: AuthorIndex,
        epoch: Epoch,
        above: &[Highest],
        below: Round,
    ) -> Step {
        let lowest = above.iter().map(|highest| highest.round).min().unwrap_or_default();
        if self.hosts[host].disk.lacks_above(epoch, lowest) {
            return self.offer_snapshot(host, usize::from(to.0));
        }
        let wanted = |event: &&Arc<Event>| {
            let header = &event.header;
            let has = |h: &Highest| h.author == header.author && h.round >= header.round;
            header.epoch == epoch && header.round < below && !above.iter().any(has)
        };
        let events = self.hosts[host].disk.durable.events.values();
        let events: Vec<_> = events.filter(wanted).cloned().collect();
        self.serve(host, to, &events)?;
        self.serve_certificate(host, to, epoch)
    }

    pub(super) fn serve(&mut self, host: usize, to: AuthorIndex, events: &[Arc<Event>]) -> Step {
        for event in events {
            let message = Arc::new(PeerMessage::event(event));
            self.send(host, usize::from(to.0), &message)?;
        }
        Ok(())
    }

    pub(super) fn send(&mut self, host: usize, to: usize, message: &Arc<PeerMessage>) -> Step {
        let Some(connection) = self.hosts[host].connections[to] else {
            return Ok(());
        };
        if self.network.connection(host, to) != Some(connection) {
            return Ok(());
        }
        self.observe_sending(host, message)?;
        let care = match message.as_ref() {
            PeerMessage::AnswerRecovery { .. } => Care::AfterEarlier,
            _ => Care::Usual,
        };
        let now = self.now();
        let arrivals = self.network.send(now, (host, to), care, message);
        for at in arrivals.at {
            self.arrive_at(at, host, to, connection, message.clone());
        }
        Ok(())
    }

    fn observe_sending(&mut self, host: usize, message: &Arc<PeerMessage>) -> Step {
        let kind = message.kind();
        let bytes = match message.as_ref() {
            PeerMessage::Event { bytes } => bytes.len(),
            other => other.to_bytes().len(),
        };
        let length = u64::try_from(bytes).expect("a length fits into 64 bits");
        let now = self.now();
        self.log.note(now, host, "sends", length);
        self.observe(host, &Observed::Sends { kind, bytes })?;
        let PeerMessage::Event { bytes } = message.as_ref() else {
            return Ok(());
        };
        let author = self.hosts[host].me;
        let Some(event) = self.parse(bytes) else {
            return self.promises.observe(
                author,
                &Observed::Halted {
                    reason: "an honest host sends an event that others refuse".to_owned(),
                },
            );
        };
        self.log.digest(&event.digest.0);
        self.log.explain(now, host, || describe(&event));
        let observed =
            Observed::EventLeaves { event: &event, disk: &self.hosts[host].disk.durable };
        self.promises.observe(author, &observed)
    }

    pub(super) fn arrive_at(
        &mut self,
        at: SimulatedTime,
        from: usize,
        to: usize,
        connection: Connection,
        message: Arc<PeerMessage>,
    ) {
        let happening = HostHappening::Arrives(from, connection, message);
        self.schedule.at(at, Happening::Host(to, happening));
    }
}

fn describe(event: &Event) -> String {
    let header = &event.header;
    let parents = header.parents.iter();
    let parents: Vec<_> = parents.map(|p| format!("{}@{}", p.author, p.round)).collect();
    format!(
        "  event {}@{} payloads {} attests {} parents {}",
        header.author,
        header.round,
        header.payload_count,
        header.attestation.newest.index,
        parents.join(" ")
    )
}
