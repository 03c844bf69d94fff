//! Taking events in: what is accepted, what waits for its parents, and what proves that its author
//! lies.
//!
//! Owns suspended events: those that wait for their parents. Never checks signatures. Called for
//! every received and every own event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dagger_payload::committee::Committee;
use dagger_payload::event::{Event, Parent};
use dagger_payload::id::{AuthorIndex, EventDigest, Round};
use dagger_payload::limits::WANT_EVENTS_MAX;
use dagger_payload::peer::PeerMessage;

use crate::gossip::following;
use crate::limits::{EVIDENCE_PER_AUTHOR_MAX, WANT_AGAIN_MS, WANT_TURNS_MAX};
use crate::missing::Missing;
use crate::quota::{Quotas, Taken};
use crate::twins::Twins;
use crate::{Core, Fork, HaltReason, Moment, Output, Record, Turn};

#[derive(Debug)]
struct Suspended {
    event: Arc<Event>,
    from: AuthorIndex,
    missing: BTreeSet<EventDigest>,
    /// How many were missing when it came.
    parents: usize,
}

impl Suspended {
    fn taken(&self) -> Taken {
        Taken { count: 1, bytes: self.event.bytes.len(), parents: self.parents }
    }
}

/// What to do about a missing event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Ask for it.
    Ask,
    /// It is here and waits for its own parents.
    Here,
    /// It is a twin that is here, and may be taken in once somebody pays for it.
    Take,
    /// It is a twin that only its own author's events name.
    None,
}

/// Events that are not in the graph yet.
#[derive(Debug)]
pub(crate) struct Intake {
    committee: Committee,
    suspended: BTreeMap<EventDigest, Suspended>,
    quotas: Quotas,
    missing: BTreeMap<EventDigest, Missing>,
    twins: Twins,
    evidence: BTreeMap<AuthorIndex, usize>,
    /// Suspended events whose last missing parents have sunk below the graph's floor: nobody needs
    /// those any more.
    freed: Vec<Suspended>,
    /// Up to which round each author's events were shown that rest on a twin which nobody but he
    /// names.
    passed_over: BTreeMap<AuthorIndex, Round>,
    /// When missing events should be asked for, by time; also times that have been put off since.
    asks: BTreeSet<(Moment, EventDigest)>,
    /// The last round of which an event was left out because the judge lags.
    left_out: Option<Round>,
}

impl Intake {
    pub(crate) fn new(committee: Committee) -> Self {
        Self {
            committee,
            suspended: BTreeMap::new(),
            quotas: Quotas::new(committee),
            missing: BTreeMap::new(),
            twins: Twins::default(),
            evidence: BTreeMap::new(),
            freed: Vec::new(),
            passed_over: BTreeMap::new(),
            asks: BTreeSet::new(),
            left_out: None,
        }
    }

    /// Whether something was left out since this was asked last.
    pub(crate) fn take_left_out(&mut self) -> Option<Round> {
        self.left_out.take()
    }

    /// Forgets what nobody needs any more; what waited only for such events waits no more.
    pub(crate) fn collect(&mut self, floor: Round) {
        self.twins.collect(floor);
        let old = self.suspended.iter().filter(|(_, s)| s.event.header.round <= floor);
        for digest in old.map(|(digest, _)| *digest).collect::<Vec<_>>() {
            self.release(&digest);
        }
        let sunk = self.missing.iter().filter(|(_, missing)| missing.has_sunk_below(floor));
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

    /// How many events of one peer wait here at most, and their bytes; how many wait in all, and
    /// for how many others.
    pub(crate) fn held(&self) -> (Taken, usize, usize) {
        let mut of: BTreeMap<AuthorIndex, Taken> = BTreeMap::new();
        for waiting in self.suspended.values() {
            let taken = of.entry(waiting.from).or_default();
            taken.count += 1;
            taken.bytes += waiting.event.bytes.len();
            taken.parents += waiting.parents;
        }
        let parents = of.values().map(|taken| taken.parents).max().unwrap_or_default();
        let count = of.values().map(|taken| taken.count).max().unwrap_or_default();
        let bytes = of.values().map(|taken| taken.bytes).max().unwrap_or_default();
        (Taken { count, bytes, parents }, self.suspended.len(), self.missing.len())
    }

    /// What events of all peers take that have no vote.
    pub(crate) fn held_of_others(&self) -> Taken {
        self.quotas.of_others()
    }

    /// Twins of one author that nobody needs yet, at most.
    pub(crate) fn twins_kept(&self) -> usize {
        self.twins.most_of_one()
    }

    /// Events of `author` that wait for their parents here.
    pub(crate) fn waiting_of(&self, author: AuthorIndex) -> impl Iterator<Item = &Arc<Event>> {
        let events = self.suspended.values().map(|suspended| &suspended.event);
        events.filter(move |event| event.header.author == author)
    }

    /// Up to which round `author`'s events need not be shown to this host, though it has not
    /// accepted them: they rest on a twin of his that nobody else names. Whoever has accepted them
    /// would show them at each exchange, for as long as there is no work that names them.
    pub(crate) fn passed_over(&self, author: AuthorIndex) -> Round {
        self.passed_over.get(&author).copied().unwrap_or_default()
    }

    /// Notes what waits for these twins, which only their own authors' events name.
    fn pass_over(&mut self, twins: Vec<EventDigest>) {
        let (mut next, mut seen) = (twins, BTreeSet::new());
        while let Some(digest) = next.pop() {
            let children = self.missing.get(&digest).into_iter().flat_map(|it| &it.children);
            for child in children.filter(|child| seen.insert(**child)) {
                let Some(waiting) = self.suspended.get(child) else { continue };
                let header = &waiting.event.header;
                let round = self.passed_over.entry(header.author).or_default();
                if !planted!(PassedOverNotTold) {
                    *round = header.round.max(*round);
                }
                next.push(*child);
            }
        }
    }

    /// The missing events that should be asked for by now, each once.
    fn due(&mut self, now: Moment) -> BTreeSet<EventDigest> {
        let mut due = BTreeSet::new();
        while self.asks.first().is_some_and(|(at, _)| *at <= now) {
            let (_, digest) = self.asks.pop_first().expect("it was just seen");
            if self.missing.get(&digest).is_some_and(|missing| missing.ask_at <= now) {
                due.insert(digest);
            }
        }
        due
    }

    /// When a missing event should be asked for next.
    pub(crate) fn ask_at(&self) -> Option<Moment> {
        self.asks.first().map(|(at, _)| *at)
    }

    /// Who sent an event of another author than `author` that waits for this one, if there is one:
    /// directly, or through events of `author`.
    fn named_by(&self, digest: &EventDigest, author: AuthorIndex) -> Option<AuthorIndex> {
        let (mut next, mut seen) = (vec![*digest], BTreeSet::new());
        while let Some(parent) = next.pop() {
            let children = self.missing.get(&parent).into_iter().flat_map(|it| &it.children);
            for child in children.filter(|child| seen.insert(**child)) {
                match self.suspended.get(child) {
                    Some(waiting) if waiting.event.header.author != author => {
                        return Some(waiting.from);
                    }
                    Some(_) => next.push(*child),
                    None => {}
                }
            }
        }
        None
    }

    /// Marks all that `digest`, which `from` sent and which was just suspended, waits for, whether
    /// it is here or not: as shown by him, and by whoever showed an event above `digest`. What has
    /// a mark was marked down to the ground, so each is visited once for each peer.
    fn note_shown(&mut self, digest: &EventDigest, from: AuthorIndex, peers: u32, now: Moment) {
        let above = self.missing.get(digest).map(|missing| missing.shown_by.clone());
        let mut shown_by = above.unwrap_or_default();
        shown_by.insert(from);
        for peer in shown_by {
            let mut next = vec![*digest];
            while let Some(child) = next.pop() {
                for parent in self.suspended.get(&child).into_iter().flat_map(|it| &it.missing) {
                    if let Some(missing) = self.missing.get_mut(parent)
                        && missing.shown_by.insert(peer)
                    {
                        if missing.asked >= peers {
                            missing.ask_at = now;
                            self.asks.insert((now, *parent));
                        }
                        next.push(*parent);
                    }
                }
            }
        }
    }

    /// Marks what `event`, which was just suspended, is the first of another author to name:
    /// directly, or through events of its own author. Gives those of it that are twins which were
    /// kept until then.
    fn note_named(&mut self, event: &Event) -> Vec<(AuthorIndex, Arc<Event>)> {
        let own = event.header.author;
        let is_named = self.missing.get(&event.digest).is_some_and(|missing| missing.is_named);
        let parents = event.header.parents.iter();
        let named = parents.filter(|parent| is_named || parent.author != own);
        let mut next: Vec<_> = named.map(|parent| parent.digest).collect();
        let mut twins = Vec::new();
        while let Some(digest) = next.pop() {
            let Some(missing) = self.missing.get_mut(&digest) else { continue };
            if std::mem::replace(&mut missing.is_named, true) {
                continue; // and what its author built it upon
            }
            twins.extend(self.twins.take(&digest));
            let before = self.suspended.get(&digest).and_then(|waiting| {
                let author = waiting.event.header.author;
                waiting.event.header.parents.first().filter(|parent| parent.author == author)
            });
            next.extend(before.map(|parent| parent.digest));
        }
        twins
    }

    /// Takes a suspended event out, with its wishes.
    fn release(&mut self, digest: &EventDigest) -> Option<Suspended> {
        let suspended = self.suspended.remove(digest)?;
        self.quotas.give_back(suspended.from, suspended.taken());
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
        let more = Taken { count: 1, bytes: event.bytes.len(), parents: missing.len() };
        if !self.quotas.take(from, more) {
            return; // it comes again when somebody names it, or tells what he has
        }
        for parent in &missing {
            if !self.missing.contains_key(&parent.digest) {
                self.asks.insert((now, parent.digest));
            }
            let wish = self.missing.entry(parent.digest).or_insert_with(|| Missing::of(from, now));
            wish.children.insert(event.digest);
            wish.places.entry(event.header.author).or_insert((parent.round, parent.author));
        }
        let parents = missing.len();
        let missing = missing.iter().map(|parent| parent.digest).collect();
        self.suspended.insert(event.digest, Suspended { event, from, missing, parents });
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
            || self.intake.twins.contains(&event.digest);
        let old = event.header.round <= self.graph.floor();
        let fits = self.intake.committee.contains(event.header.author)
            && event.has_quorum_below(self.intake.committee);
        if fits {
            self.catch_up.hear(from, event.header.epoch, event.header.round);
        }
        if self.is_far_ahead_of_the_judge(event.header.round) {
            self.intake.left_out = Some(event.header.round);
            return Ok(());
        }
        if known || old || !fits {
            if old && fits {
                // Nobody needs it here: the next exchange says so.
                self.graph.raise_highest(event.header.author, event.header.round);
            }
            return Ok(());
        }
        self.pace.heard_from(event.header.author);
        if let Some(first) = self.twin_of(&event) {
            self.keep_evidence(turn, first, &event);
            if self.intake.named_by(&event.digest, event.header.author).is_none() {
                self.intake.twins.keep(from, event);
                return Ok(());
            }
        }
        self.admit(turn, from, event)
    }

    /// Another accepted event of the same author and round.
    fn twin_of(&self, event: &Event) -> Option<EventDigest> {
        let mut there = self.graph.at(event.header.round, event.header.author).iter();
        there.find(|digest| **digest != event.digest).copied()
    }

    /// Whether an event may be accepted now: a twin only as an ancestor of another author's event,
    /// and if who brought that one, or the twin, has not brought too many.
    fn may_take(&mut self, turn: &Turn<'_>, from: AuthorIndex, event: &Event) -> bool {
        if self.is_me(from) || self.twin_of(event).is_none() || planted!(TwinsTakenUnnamed) {
            return true;
        }
        let namer = self.intake.named_by(&event.digest, event.header.author);
        namer.is_some_and(|namer| {
            let twins = &mut self.intake.twins;
            twins.spend(namer, turn.now) || (namer != from && twins.spend(from, turn.now))
        })
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
            let waits = self.intake.suspended.contains_key(&event.digest);
            // A commit of this turn may have raised the floor above it.
            let sunk = event.header.round <= self.graph.floor();
            if sunk || waits || self.graph.contains(&event.digest) || !self.parents_are_true(&event)
            {
                continue;
            }
            let missing = self.missing_parents(&event);
            if !missing.is_empty() {
                self.intake.suspend(from, event.clone(), missing, turn.now);
                self.intake.note_shown(&event.digest, from, self.peers_asked(), turn.now);
                // A twin that another author names is wanted now.
                ready.extend(self.intake.note_named(&event));
                continue;
            }
            if !self.may_take(turn, from, &event) {
                if let Some(first) = self.twin_of(&event) {
                    self.keep_evidence(turn, first, &event);
                }
                self.intake.twins.keep(from, event);
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

    /// Takes in what a commit has left without missing parents.
    pub(crate) fn admit_freed(&mut self, turn: &mut Turn<'_>) -> Result<(), HaltReason> {
        let freed = std::mem::take(&mut self.intake.freed);
        freed.into_iter().try_for_each(|freed| self.admit(turn, freed.from, freed.event))
    }

    fn accept(
        &mut self,
        turn: &mut Turn<'_>,
        from: AuthorIndex,
        event: &Arc<Event>,
    ) -> Result<(), HaltReason> {
        if let Some(first) = self.twin_of(event) {
            self.keep_evidence(turn, first, event);
        }
        self.recovery.signed(event.header.author);
        let Turn { now, wall, .. } = *turn;
        let own = (self.configuration.me, self.configuration.committee);
        self.clock.heard(event, own, (now, wall));
        self.graph.insert(event.clone());
        let returned = self.is_me(event.header.author) && !self.is_me(from);
        let record = if returned { Record::OwnEventReturned } else { Record::Event };
        turn.records.push(record(event.clone()));
        self.commit_what_is_decided(turn)
    }

    /// A parent must be the event that its author and round say. One that claims to stand at or
    /// below the floor is not looked at: who has that floor cannot know it, and whether an event
    /// can be accepted must not depend on what came first.
    fn parents_are_true(&self, event: &Event) -> bool {
        let floor = self.graph.floor();
        let floor = if planted!(OldParentsChecked) { Round(0) } else { floor };
        let mut parents = event.header.parents.iter().filter(|parent| parent.round > floor);
        parents.all(|parent| {
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
        if first == second.digest || *kept >= EVIDENCE_PER_AUTHOR_MAX || planted!(ForkNotKept) {
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

    fn wish(&self, digest: &EventDigest, missing: &Missing) -> Wish {
        if self.intake.suspended.contains_key(digest) {
            return Wish::Here;
        }
        let named = missing.places.values().any(|(round, author)| {
            let twin = self.graph.at(*round, *author).iter().any(|first| first != digest);
            !twin || self.intake.named_by(digest, *author).is_some()
        });
        match (named || planted!(TwinsTakenUnnamed), self.intake.twins.contains(digest)) {
            (true, true) => Wish::Take,
            (true, false) => Wish::Ask,
            (false, _) => Wish::None,
        }
    }

    /// How many are asked for something in one turn.
    fn peers_asked(&self) -> u32 {
        u32::from(self.gossip.connected_count()).max(1)
    }

    /// Asks for missing parents: first the peer who sent the child, then one connected peer after
    /// the other.
    pub(crate) fn ask_missing(&mut self, turn: &mut Turn<'_>) -> Result<(), HaltReason> {
        if self.intake.ask_at().is_none_or(|at| at > turn.now) {
            return Ok(());
        }
        let due = self.intake.due(turn.now).into_iter().filter_map(|digest| {
            let missing = self.intake.missing.get(&digest)?;
            Some((digest, self.wish(&digest, missing)))
        });
        let due: Vec<_> = due.collect();
        let peers = self.peers_asked();
        let mut wants: BTreeMap<AuthorIndex, Vec<Parent>> = BTreeMap::new();
        let (mut hopeless, mut taken) = (Vec::new(), Vec::new());
        let unnamed = due.iter().filter(|(_, wish)| *wish == Wish::None).map(|(digest, _)| *digest);
        self.intake.pass_over(unnamed.collect());
        let given_up_after = if planted!(NeverGivesUp) { u32::MAX } else { WANT_TURNS_MAX };
        for (digest, wish) in due {
            let Some(missing) = self.intake.missing.get_mut(&digest) else { continue };
            missing.believe_another(peers);
            let turns = missing.asked / peers;
            missing.ask_at = turn.now.plus_ms(WANT_AGAIN_MS << turns.min(WANT_TURNS_MAX));
            self.intake.asks.insert((missing.ask_at, digest));
            match wish {
                Wish::Here => {}
                Wish::Take => taken.extend(self.intake.twins.take(&digest)),
                Wish::Ask | Wish::None if turns >= given_up_after => hopeless.push(digest),
                Wish::None => missing.asked += 1,
                Wish::Ask => {
                    if let Some(peer) = self.gossip.connected_from(missing.ask) {
                        wants.entry(peer).or_default().extend(missing.as_parents(digest));
                        missing.ask = following(peer);
                        missing.asked += 1;
                    }
                }
            }
        }
        for digest in hopeless {
            for event in self.intake.drop_descendants(digest) {
                self.recovery.cannot_stand(&event.digest);
            }
        }
        for (from, twin) in taken {
            self.admit(turn, from, twin)?;
        }
        let epoch = self.configuration.epoch;
        for (to, events) in wants {
            for events in events.chunks(WANT_EVENTS_MAX) {
                let message = PeerMessage::Want { events: events.to_vec(), epoch };
                turn.outputs.push(Output::Send { to, message, after: self.written });
            }
        }
        Ok(())
    }
}
