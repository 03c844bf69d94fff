//! Taking events in: what is accepted, what waits for its parents, and what proves that its author
//! lies.
//!
//! Owns suspended events and twins that nobody has named yet. Never checks signatures. Called for
//! every received and every own event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dagger_payload::committee::Committee;
use dagger_payload::event::{Event, Parent};
use dagger_payload::id::{AuthorIndex, EventDigest, Round};
use dagger_payload::peer::PeerMessage;

use crate::gossip::following;
use crate::limits::{
    EVIDENCE_PER_AUTHOR_MAX, SUSPENDED_BYTES_PER_PEER_MAX, SUSPENDED_PER_PEER_MAX,
    TWINS_PER_AUTHOR_MAX, WANT_AGAIN_MS, WANT_TURNS_MAX,
};
use crate::{Core, Fork, HaltReason, Moment, Output, Record, Turn};

#[derive(Debug)]
struct Suspended {
    event: Arc<Event>,
    from: AuthorIndex,
    missing: BTreeSet<EventDigest>,
}

/// How much of one peer is suspended.
#[derive(Debug, Default)]
struct Held {
    events: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Missing {
    children: BTreeSet<EventDigest>,
    /// Whom to ask next, counted from the peer who sent the child.
    ask: AuthorIndex,
    ask_at: Moment,
    /// How often it was asked for.
    asked: u32,
    round: Round,
}

/// Events that are not in the graph yet.
#[derive(Debug)]
pub(crate) struct Intake {
    committee: Committee,
    suspended: BTreeMap<EventDigest, Suspended>,
    suspended_of: BTreeMap<AuthorIndex, Held>,
    missing: BTreeMap<EventDigest, Missing>,
    /// Second events of an author and round: accepted only when another author's event names them.
    twins: BTreeMap<EventDigest, Arc<Event>>,
    evidence: BTreeMap<AuthorIndex, usize>,
    /// Suspended events whose last missing parents have sunk below the graph's floor: nobody needs
    /// those any more.
    freed: Vec<Suspended>,
    /// When the earliest of the missing events should be asked for.
    ask_at: Option<Moment>,
    /// The last round of which an event was left out because the judge lags.
    left_out: Option<Round>,
}

impl Intake {
    pub(crate) fn new(committee: Committee) -> Self {
        Self {
            committee,
            suspended: BTreeMap::new(),
            suspended_of: BTreeMap::new(),
            missing: BTreeMap::new(),
            twins: BTreeMap::new(),
            evidence: BTreeMap::new(),
            freed: Vec::new(),
            ask_at: None,
            left_out: None,
        }
    }

    /// Whether something was left out since this was asked last.
    pub(crate) fn take_left_out(&mut self) -> Option<Round> {
        self.left_out.take()
    }

    /// Forgets what nobody needs any more; what waited only for such events waits no more.
    pub(crate) fn collect(&mut self, floor: Round) {
        self.twins.retain(|_, event| event.header.round > floor);
        let old = self.suspended.iter().filter(|(_, s)| s.event.header.round <= floor);
        for digest in old.map(|(digest, _)| *digest).collect::<Vec<_>>() {
            self.release(&digest);
        }
        let sunk = self.missing.iter().filter(|(_, missing)| missing.round <= floor);
        for parent in sunk.map(|(digest, _)| *digest).collect::<Vec<_>>() {
            let children = self.missing.remove(&parent).map(|missing| missing.children);
            for child in children.into_iter().flatten() {
                let freed = self.no_longer_missing(&child, &parent);
                self.freed.extend(freed);
            }
        }
    }

    /// Strikes `parent` off what `child` waits for; gives the child if that was the last.
    fn no_longer_missing(
        &mut self,
        child: &EventDigest,
        parent: &EventDigest,
    ) -> Option<Suspended> {
        let suspended = self.suspended.get_mut(child)?;
        suspended.missing.remove(parent);
        if suspended.missing.is_empty() { self.release(child) } else { None }
    }

    /// Forgets everything that waits for an event that nobody has, and gives it.
    fn drop_descendants(&mut self, digest: EventDigest) -> Vec<Arc<Event>> {
        let mut gone = vec![digest];
        let mut dropped = Vec::new();
        while let Some(parent) = gone.pop() {
            let children = self.missing.get(&parent).map(|missing| missing.children.clone());
            for child in children.into_iter().flatten() {
                dropped.extend(self.release(&child).map(|suspended| suspended.event));
                gone.push(child);
            }
        }
        dropped
    }

    /// Events of `author` that wait for their parents here.
    pub(crate) fn waiting_of(&self, author: AuthorIndex) -> impl Iterator<Item = &Arc<Event>> {
        let events = self.suspended.values().map(|suspended| &suspended.event);
        events.filter(move |event| event.header.author == author)
    }

    /// When a missing event should be asked for next.
    pub(crate) fn ask_at(&self) -> Option<Moment> {
        self.ask_at.filter(|_| !self.missing.is_empty())
    }

    fn keep_twin(&mut self, event: Arc<Event>) {
        let author = event.header.author;
        let kept = self.twins.values().filter(|twin| twin.header.author == author).count();
        if kept < TWINS_PER_AUTHOR_MAX {
            self.twins.insert(event.digest, event);
        }
    }

    /// Takes a suspended event out, with its wishes.
    fn release(&mut self, digest: &EventDigest) -> Option<Suspended> {
        let suspended = self.suspended.remove(digest)?;
        if let Some(held) = self.suspended_of.get_mut(&suspended.from) {
            held.events = held.events.saturating_sub(1);
            held.bytes = held.bytes.saturating_sub(suspended.event.bytes.len());
        }
        for parent in &suspended.missing {
            if let Some(missing) = self.missing.get_mut(parent) {
                missing.children.remove(digest);
                if missing.children.is_empty() {
                    self.missing.remove(parent);
                }
            }
        }
        Some(suspended)
    }

    fn suspend(&mut self, from: AuthorIndex, event: Arc<Event>, missing: Vec<Parent>, now: Moment) {
        let held = self.suspended_of.entry(from).or_default();
        let bytes = held.bytes.saturating_add(event.bytes.len());
        if held.events >= SUSPENDED_PER_PEER_MAX || bytes > SUSPENDED_BYTES_PER_PEER_MAX {
            return; // it comes again when the peer is asked what it has
        }
        held.events += 1;
        held.bytes = bytes;
        self.ask_at = Some(now);
        for parent in &missing {
            let wish = self.missing.entry(parent.digest).or_insert_with(|| Missing {
                children: BTreeSet::new(),
                ask: from,
                ask_at: now,
                asked: 0,
                round: parent.round,
            });
            wish.children.insert(event.digest);
        }
        let missing = missing.iter().map(|parent| parent.digest).collect();
        self.suspended.insert(event.digest, Suspended { event, from, missing });
    }
}

impl Core {
    /// An event came from a peer.
    pub(crate) fn receive(
        &mut self,
        turn: &mut Turn<'_>,
        from: AuthorIndex,
        event: Arc<Event>,
    ) -> Result<(), HaltReason> {
        if event.header.epoch != self.configuration.epoch {
            if event.header.epoch > self.configuration.epoch {
                self.hint_that_behind(turn, from);
            }
            return Ok(());
        }
        self.note_closing(&event.header, || event.signed_header());
        if self.is_me(event.header.author) {
            self.recovery.own_event_seen(&event);
        }
        let known = self.graph.contains(&event.digest)
            || self.intake.suspended.contains_key(&event.digest)
            || self.intake.twins.contains_key(&event.digest);
        let old = event.header.round <= self.graph.floor();
        if self.is_far_ahead_of_the_judge(event.header.round) {
            self.intake.left_out = Some(event.header.round);
            return Ok(());
        }
        let fits = self.intake.committee.contains(event.header.author)
            && event.has_quorum_below(self.intake.committee);
        if known || old || !fits {
            if old && fits {
                // Nobody needs it here: the next exchange says so.
                self.graph.raise_highest(event.header.author, event.header.round);
            }
            return Ok(());
        }
        self.pace.heard_from(event.header.author);
        let wanted = self.intake.missing.contains_key(&event.digest);
        let twin = self.graph.at(event.header.round, event.header.author).first().copied();
        if let Some(first) = twin {
            self.keep_evidence(turn, first, &event);
            if !wanted {
                self.intake.keep_twin(event);
                return Ok(());
            }
        }
        self.admit(turn, from, event)
    }

    /// Accepts an event, and then whatever waited for it; or suspends it.
    pub(crate) fn admit(
        &mut self,
        turn: &mut Turn<'_>,
        from: AuthorIndex,
        event: Arc<Event>,
    ) -> Result<(), HaltReason> {
        let mut ready = vec![(from, event)];
        while let Some((from, event)) = ready.pop() {
            if self.graph.contains(&event.digest) || !self.parents_are_true(&event) {
                continue;
            }
            let missing = self.missing_parents(&event);
            let mut held_back = Vec::new();
            for parent in &missing {
                // A twin that somebody names is wanted now.
                held_back.extend(self.intake.twins.remove(&parent.digest));
            }
            if !missing.is_empty() {
                self.intake.suspend(from, event, missing, turn.now);
                ready.extend(held_back.into_iter().map(|twin| (from, twin)));
                continue;
            }
            self.accept(turn, from, &event)?;
            let waiting = self.intake.missing.remove(&event.digest);
            for child in waiting.into_iter().flat_map(|missing| missing.children) {
                let freed = self.intake.no_longer_missing(&child, &event.digest);
                self.intake.freed.extend(freed);
            }
            ready.extend(self.intake.freed.drain(..).map(|freed| (freed.from, freed.event)));
        }
        Ok(())
    }

    fn accept(
        &mut self,
        turn: &mut Turn<'_>,
        from: AuthorIndex,
        event: &Arc<Event>,
    ) -> Result<(), HaltReason> {
        if let Some(first) = self.graph.at(event.header.round, event.header.author).first() {
            self.keep_evidence(turn, *first, event);
        }
        self.recovery.signed(event.header.author);
        self.graph.insert(event.clone());
        let returned = self.is_me(event.header.author) && !self.is_me(from);
        let record = if returned { Record::OwnEventReturned } else { Record::Event };
        turn.records.push(record(event.clone()));
        self.commit_what_is_decided(turn)
    }

    /// A parent must be the event that its author and round say.
    fn parents_are_true(&self, event: &Event) -> bool {
        event.header.parents.iter().all(|parent| {
            self.graph.get(&parent.digest).is_none_or(|known| known.as_parent() == *parent)
        })
    }

    fn missing_parents(&self, event: &Event) -> Vec<Parent> {
        let floor = self.graph.floor();
        let parents = event.header.parents.iter();
        let above = parents.filter(|parent| parent.round > floor);
        above.filter(|parent| !self.graph.contains(&parent.digest)).copied().collect()
    }

    fn keep_evidence(&mut self, turn: &mut Turn<'_>, first: EventDigest, second: &Event) {
        let author = second.header.author;
        let kept = self.intake.evidence.entry(author).or_default();
        if first == second.digest || *kept >= EVIDENCE_PER_AUTHOR_MAX {
            return;
        }
        if let Some(first) = self.graph.get(&first) {
            *kept += 1;
            turn.records.push(Record::Fork(Fork {
                author,
                round: second.header.round,
                first: first.signed_header(),
                second: second.signed_header(),
            }));
        }
    }

    /// Asks for missing parents: first the peer who sent the child, then one connected peer after
    /// the other.
    pub(crate) fn ask_missing(&mut self, turn: &mut Turn<'_>) {
        if self.intake.ask_at().is_none_or(|at| at > turn.now) {
            return;
        }
        let peers = u32::from(self.gossip.connected_count()).max(1);
        let mut wants: BTreeMap<AuthorIndex, Vec<EventDigest>> = BTreeMap::new();
        let mut hopeless = Vec::new();
        let mut next = turn.now.plus_ms(WANT_AGAIN_MS);
        for (digest, missing) in &mut self.intake.missing {
            if missing.ask_at > turn.now {
                next = next.min(missing.ask_at);
                continue;
            }
            let turns = missing.asked / peers;
            missing.ask_at = turn.now.plus_ms(WANT_AGAIN_MS << turns.min(WANT_TURNS_MAX));
            if self.intake.suspended.contains_key(digest) {
                continue; // it is here and waits for its own parents
            }
            if turns >= WANT_TURNS_MAX {
                hopeless.push(*digest);
            } else if let Some(peer) = self.gossip.connected_from(missing.ask) {
                wants.entry(peer).or_default().push(*digest);
                missing.ask = following(peer);
                missing.asked += 1;
            }
        }
        for digest in hopeless {
            for event in self.intake.drop_descendants(digest) {
                self.recovery.cannot_stand(&event.digest);
            }
        }
        self.intake.ask_at = Some(next);
        for (to, digests) in wants {
            for digests in digests.chunks(dagger_payload::limits::WANT_DIGESTS_MAX) {
                let message = PeerMessage::Want { digests: digests.to_vec() };
                turn.outputs.push(Output::Send { to, message, after: self.written });
            }
        }
    }
}
