//! The graph in memory: accepted events from a floor below the collection round up, who made them,
//! and what became of them.
//!
//! Owns look-ups by digest, round and author, ancestry, and which authors lie. Never decides order
//! (`commit` does) and never checks signatures (the driver does). Called by the other modules of
//! the core.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dagger_payload::committee::Committee;
use dagger_payload::event::{Event, Parent};
use dagger_payload::id::{AuthorIndex, EventDigest, Round};

use crate::interface::CommitRecord;
use crate::limits::{TWINS_HELD_BYTES_MAX, TWINS_HELD_MAX};

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Neither ordered nor forked, so far.
    Open,
    /// In a commit.
    Ordered,
    /// Never ordered: another event of its author and round is.
    Forked,
}

#[derive(Debug)]
struct Node {
    event: Arc<Event>,
    fate: Fate,
}

/// What is held beyond one event of each author in each round.
#[derive(Debug, Default, Clone, Copy)]
struct Surplus {
    events: usize,
    bytes: usize,
}

/// Accepted events above the floor.
#[derive(Debug)]
pub(crate) struct Graph {
    committee: Committee,
    nodes: BTreeMap<EventDigest, Node>,
    rounds: BTreeMap<Round, BTreeMap<AuthorIndex, Vec<EventDigest>>>,
    /// Events with payloads whose fate is open.
    open_payloads: BTreeSet<(Round, EventDigest)>,
    /// Fates of events that are not here yet: those of commits that this host has without their
    /// events.
    expected: BTreeMap<EventDigest, (Parent, Fate)>,
    /// Highest accepted round of each author, also of pruned events.
    highest: BTreeMap<AuthorIndex, Round>,
    /// Authors with two accepted events in one round: never named again.
    forkers: BTreeSet<AuthorIndex>,
    surplus: Surplus,
    /// Counts changes.
    version: u64,
    /// Whether there was open work at that version, above that own event.
    open_then: Option<(u64, Option<EventDigest>, bool)>,
    collection_round: Round,
    /// Events of this round and lower are neither kept nor required as parents. It lies as far
    /// below the collection round as that lies below the leader, so that a host which is a little
    /// behind finds everything that others built on.
    floor: Round,
}

impl Graph {
    pub(crate) fn new(committee: Committee) -> Self {
        Self {
            committee,
            nodes: BTreeMap::new(),
            rounds: BTreeMap::new(),
            open_payloads: BTreeSet::new(),
            expected: BTreeMap::new(),
            highest: BTreeMap::new(),
            forkers: BTreeSet::new(),
            surplus: Surplus::default(),
            version: 0,
            open_then: None,
            collection_round: Round(0),
            floor: Round(0),
        }
    }

    pub(crate) fn floor(&self) -> Round {
        self.floor
    }

    pub(crate) fn collection_round(&self) -> Round {
        self.collection_round
    }

    pub(crate) fn get(&self, digest: &EventDigest) -> Option<&Arc<Event>> {
        self.nodes.get(digest).map(|node| &node.event)
    }

    pub(crate) fn contains(&self, digest: &EventDigest) -> bool {
        self.nodes.contains_key(digest)
    }

    /// All accepted events in memory, by round.
    pub(crate) fn events(&self) -> impl Iterator<Item = &Arc<Event>> {
        let digests = self.rounds.values().flat_map(BTreeMap::values).flatten();
        digests.filter_map(|digest| self.get(digest))
    }

    pub(crate) fn fate(&self, digest: &EventDigest) -> Option<Fate> {
        self.nodes.get(digest).map(|node| node.fate)
    }

    /// Takes in an event all of whose parents above the collection round are here.
    pub(crate) fn insert(&mut self, event: Arc<Event>) {
        let (author, round, digest) = (event.header.author, event.header.round, event.digest);
        self.version += 1;
        let own = self.rounds.entry(round).or_default().entry(author).or_default();
        own.push(digest);
        if own.len() > 1 {
            self.forkers.insert(author);
            self.surplus.events += 1;
            self.surplus.bytes += event.bytes.len();
        }
        // Up to the collection round nothing will be ordered any more.
        let work = event.header.payload_count > 0 || planted!(ClosingEventIsWork);
        if work && round > self.collection_round {
            self.open_payloads.insert((round, digest));
        }
        self.raise_highest(author, round);
        self.nodes.insert(digest, Node { event, fate: Fate::Open });
        if let Some((_, fate)) = self.expected.remove(&digest) {
            self.set_fate(&digest, fate);
        }
    }

    /// What became of events that are not here yet.
    pub(crate) fn expect_fates(&mut self, commits: &[CommitRecord]) {
        for commit in commits {
            let ordered = commit.events.iter().map(|event| (event, Fate::Ordered));
            let forked = commit.forked.iter().map(|event| (event, Fate::Forked));
            for (event, fate) in ordered.chain(forked) {
                if event.round > self.floor {
                    self.expected.insert(event.digest, (*event, fate));
                }
            }
        }
    }

    pub(crate) fn set_fate(&mut self, digest: &EventDigest, fate: Fate) {
        self.version += 1;
        if let Some(node) = self.nodes.get_mut(digest) {
            node.fate = fate;
            self.open_payloads.remove(&(node.event.header.round, *digest));
        }
    }

    /// Raises the collection round, forgets what lies below the floor, and returns the events of
    /// `author` that were never ordered up to that round: there nothing will be.
    pub(crate) fn collect(
        &mut self,
        collection_round: Round,
        floor: Round,
        author: AuthorIndex,
    ) -> Vec<Arc<Event>> {
        self.version += 1;
        let mut lost = Vec::new();
        let passed = (
            std::ops::Bound::Excluded(self.collection_round),
            std::ops::Bound::Included(collection_round),
        );
        for authors in self.rounds.range(passed).map(|(_, authors)| authors) {
            for digest in authors.values().flatten() {
                let node = &self.nodes[digest];
                if node.fate == Fate::Open {
                    self.open_payloads.remove(&(node.event.header.round, *digest));
                    if node.event.header.author == author {
                        lost.push(node.event.clone());
                    }
                }
            }
        }
        let begin = if planted!(NothingForgotten) { Round(0) } else { floor.next() };
        let kept = self.rounds.split_off(&begin);
        let dropped = std::mem::replace(&mut self.rounds, kept);
        for events in dropped.values().flat_map(BTreeMap::values) {
            for (place, digest) in events.iter().enumerate() {
                let bytes = self.nodes.remove(digest).map_or(0, |node| node.event.bytes.len());
                if place > 0 {
                    self.surplus.events -= 1;
                    self.surplus.bytes -= bytes;
                }
            }
        }
        self.expected.retain(|_, (event, _)| event.round > floor);
        self.collection_round = collection_round;
        self.floor = floor;
        lost
    }

    /// Whether so many twins are held that rounds are worth making for the sake of the floor, which
    /// rises with them.
    pub(crate) fn is_crowded(&self) -> bool {
        self.surplus.events > TWINS_HELD_MAX || self.surplus.bytes > TWINS_HELD_BYTES_MAX
    }

    /// How many rounds, twins and fates of events that are not here yet are held.
    pub(crate) fn held(&self) -> (u64, usize, usize) {
        let rounds = self.highest_round().0.saturating_sub(self.floor.0);
        (rounds, self.surplus.events, self.expected.len())
    }

    /// Sets where a restored graph begins, before its events are inserted.
    pub(crate) fn restore(&mut self, collection_round: Round, floor: Round) {
        self.collection_round = collection_round;
        self.floor = floor;
    }

    /// Events of `author` in `round`, in the order of their arrival; more than one only of a liar.
    pub(crate) fn at(&self, round: Round, author: AuthorIndex) -> &[EventDigest] {
        let authors = self.rounds.get(&round);
        authors.and_then(|authors| authors.get(&author)).map_or(&[], Vec::as_slice)
    }

    /// All events of a round, by author.
    pub(crate) fn in_round(
        &self,
        round: Round,
    ) -> impl Iterator<Item = (AuthorIndex, &Arc<Event>)> {
        self.rounds.get(&round).into_iter().flatten().flat_map(|(author, digests)| {
            digests.iter().map(|digest| (*author, &self.nodes[digest].event))
        })
    }

    /// Whether events of a quorum of authors who may be named stand in `round`.
    pub(crate) fn has_quorum(&self, round: Round) -> bool {
        let authors = self.rounds.get(&round).into_iter().flatten();
        let named = authors.filter(|(author, _)| self.may_name(**author)).count();
        named >= self.committee.quorum()
    }

    /// Whether a quorum stands in `round`, if also those count who may no longer be named.
    pub(crate) fn has_quorum_with_forkers(&self, round: Round) -> bool {
        self.rounds.get(&round).map_or(0, BTreeMap::len) >= self.committee.quorum()
    }

    /// The lowest round, not below the collection round, on which a host that lies below it can
    /// build. Those who may no longer be named count only if nothing else is left: others may have
    /// passed that round with their help.
    pub(crate) fn round_to_join(&self) -> Option<Round> {
        let open = || self.rounds.range(self.collection_round..).map(|(round, _)| *round);
        let named = open().find(|round| self.has_quorum(*round));
        named.or_else(|| open().find(|round| self.has_quorum_with_forkers(*round)))
    }

    /// The highest round with a quorum; 0 for none.
    pub(crate) fn quorum_round(&self) -> Round {
        let found = self.rounds.keys().rev().find(|round| self.has_quorum(**round));
        found.copied().unwrap_or_default()
    }

    /// The highest round with a quorum, if also those count who may no longer be named.
    pub(crate) fn quorum_round_with_forkers(&self) -> Round {
        let found = self.rounds.keys().rev().find(|round| self.has_quorum_with_forkers(**round));
        found.copied().unwrap_or_default()
    }

    /// The highest round with any accepted event.
    pub(crate) fn highest_round(&self) -> Round {
        self.rounds.last_key_value().map(|(round, _)| *round).unwrap_or_default()
    }

    /// The highest round in which an author who may be named has an event.
    pub(crate) fn highest_named_round(&self) -> Round {
        let names = |authors: &BTreeMap<AuthorIndex, _>| authors.keys().any(|a| self.may_name(*a));
        let found = self.rounds.iter().rev().find(|(_, authors)| names(authors));
        found.map(|(round, _)| *round).unwrap_or_default()
    }

    /// Highest accepted round of one author.
    pub(crate) fn highest_of(&self, author: AuthorIndex) -> Round {
        self.highest.get(&author).copied().unwrap_or_default()
    }

    pub(crate) fn raise_highest(&mut self, author: AuthorIndex, round: Round) {
        let highest = self.highest.entry(author).or_default();
        *highest = round.max(*highest);
    }

    pub(crate) fn may_name(&self, author: AuthorIndex) -> bool {
        !self.forkers.contains(&author)
    }

    pub(crate) fn forkers(&self) -> impl Iterator<Item = AuthorIndex> {
        self.forkers.iter().copied()
    }

    /// The highest event of `author` below `round`, if he may be named and it lies in the round
    /// just below or not below the collection round.
    pub(crate) fn highest_below(&self, author: AuthorIndex, round: Round) -> Option<Parent> {
        if !self.may_name(author) || self.highest_of(author).0 == 0 {
            return None;
        }
        let below = Round(round.0.saturating_sub(1));
        let mut below = self.rounds.range(below.min(self.collection_round)..round).rev();
        let digest = below.find_map(|(_, authors)| authors.get(&author)?.first())?;
        Some(self.nodes[digest].event.as_parent())
    }

    /// Whether some event with payloads still waits to be ordered, in the history of the own newest
    /// event or of the highest event of an author who may be named.
    pub(crate) fn has_open_payloads(&mut self, own_newest: Option<EventDigest>) -> bool {
        // Asked after each input, most of which change nothing here.
        match self.open_then {
            Some((version, newest, open)) if (version, newest) == (self.version, own_newest) => {
                open
            }
            _ => {
                let open = self.looks_for_open_payloads(own_newest);
                self.open_then = Some((self.version, own_newest, open));
                open
            }
        }
    }

    fn looks_for_open_payloads(&self, own_newest: Option<EventDigest>) -> bool {
        if self.open_payloads.is_empty() {
            return false;
        }
        let nameable = |(_, digest): &(Round, EventDigest)| {
            self.may_name(self.nodes[digest].event.header.author)
        };
        // The highest event of a nameable author has all of his own in its history.
        if self.open_payloads.iter().any(nameable) {
            return true;
        }
        if planted!(UnnameableTwinIsWork) {
            return true;
        }
        let floor = self.open_payloads.first().map_or(Round(0), |(round, _)| *round);
        let tips = self.committee.authors().filter_map(|author| {
            let newest = self.highest_below(author, Round(u64::MAX))?;
            Some(newest.digest)
        });
        let reached = self.history(tips.chain(own_newest), floor);
        self.open_payloads.iter().any(|(_, digest)| reached.contains(digest))
    }

    /// Everything from `tips` down to `floor`, itself included.
    pub(crate) fn history(
        &self,
        tips: impl IntoIterator<Item = EventDigest>,
        floor: Round,
    ) -> BTreeSet<EventDigest> {
        let mut reached = BTreeSet::new();
        let mut next: Vec<EventDigest> = tips.into_iter().collect();
        while let Some(digest) = next.pop() {
            let Some(node) = self.nodes.get(&digest) else {
                continue;
            };
            if node.event.header.round < floor || !reached.insert(digest) {
                continue;
            }
            let parents = node.event.header.parents.iter();
            next.extend(parents.filter(|parent| parent.round >= floor).map(|p| p.digest));
        }
        reached
    }

    /// The open events in the history of `leader` above the collection round, itself included.
    pub(crate) fn open_history(&self, leader: EventDigest) -> Vec<Arc<Event>> {
        let mut seen = BTreeSet::new();
        let mut open = Vec::new();
        let mut next = vec![leader];
        while let Some(digest) = next.pop() {
            let Some(node) = self.nodes.get(&digest) else {
                continue;
            };
            let decided = node.fate != Fate::Open;
            let collected = node.event.header.round <= self.collection_round;
            if decided || collected || !seen.insert(digest) {
                continue;
            }
            open.push(node.event.clone());
            // A parent that claims a round up to the collection round may be a lie that only some
            // hosts could check.
            let parents = node.event.header.parents.iter();
            let open_parents = parents.filter(|parent| parent.round > self.collection_round);
            next.extend(open_parents.map(|parent| parent.digest));
        }
        open
    }

    /// Whether another event of this author and round is in a commit.
    pub(crate) fn has_ordered_twin(&self, event: &Event) -> bool {
        let place = (event.header.round, event.header.author);
        let mut expected = self.expected.values().filter(|(_, fate)| *fate == Fate::Ordered);
        let mut twins = self.at(place.0, place.1).iter();
        twins.any(|digest| *digest != event.digest && self.fate(digest) == Some(Fate::Ordered))
            || expected.any(|(twin, _)| (twin.round, twin.author) == place)
    }
}
