//! The simulated store: what is durable, and what a crash takes away.
//!
//! Owns the records of one host by the keys that the core's interface names. Never interprets them
//! beyond that. Called by hosts and by promises. Writes are transactions: a crash keeps any prefix
//! of those that are not yet durable, whole.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dagger_ledger_core::interface::{
    CommitRecord, Fork, Memory, Record, RestoredState, WriteNumber,
};
use dagger_payload::event::Event;
use dagger_payload::id::{AuthorIndex, CommitIndex, EventDigest, PayloadDigest, Round};
use dagger_payload::payload::SignedPayload;
use dagger_payload::peer::Highest;
use dagger_payload::release::{OrderedCommit, OrderedPayload};

use super::random::Random;

/// What survives a crash.
#[derive(Debug, Default, Clone)]
pub struct Image {
    /// Accepted events.
    pub events: BTreeMap<(Round, AuthorIndex, EventDigest), Arc<Event>>,
    /// Where they stand.
    pub places: BTreeMap<EventDigest, (Round, AuthorIndex)>,
    /// Commits.
    pub commits: BTreeMap<CommitIndex, CommitRecord>,
    /// Payloads in no event.
    pub pool: BTreeMap<PayloadDigest, SignedPayload>,
    /// Evidence.
    pub forks: BTreeMap<(AuthorIndex, Round), Fork>,
}

impl Image {
    /// The event of this digest.
    pub fn event(&self, digest: &EventDigest) -> Option<&Arc<Event>> {
        let (round, author) = self.places.get(digest)?;
        self.events.get(&(*round, *author, *digest))
    }

    fn apply(&mut self, record: Record) {
        match record {
            Record::Event(event) => {
                let header = &event.header;
                self.places.insert(event.digest, (header.round, header.author));
                self.events.insert((header.round, header.author, event.digest), event);
            }
            Record::Commit(commit) => {
                self.commits.insert(commit.index, commit);
            }
            Record::Packed(digests) => {
                for digest in digests {
                    self.pool.remove(&digest);
                }
            }
            Record::Returned(payloads) => {
                let keyed = payloads.into_iter().map(|p| (p.digest(), p));
                self.pool.extend(keyed);
            }
            Record::Handover(_) => unreachable!("the simulated judge changes no members"),
            Record::Fork(fork) => {
                self.forks.insert((fork.author, fork.round), fork);
            }
        }
    }

    /// This host's event of the highest round.
    pub fn own_last(&self, me: AuthorIndex) -> Option<&Arc<Event>> {
        let own = |event: &&Arc<Event>| event.header.author == me;
        self.events.values().rev().find(own)
    }

    /// Each author's highest round here.
    fn highest(&self) -> Vec<Highest> {
        let mut highest: BTreeMap<AuthorIndex, Round> = BTreeMap::new();
        for (round, author, _) in self.events.keys() {
            highest.insert(*author, *round);
        }
        let entry = |(author, round)| Highest { author, round };
        highest.into_iter().map(entry).collect()
    }

    /// What the core asks for at start.
    pub fn restore(&self, me: AuthorIndex, memory: Memory) -> RestoredState {
        let last = self.commits.values().next_back();
        let collection_round = last.map_or(Round(0), |commit| commit.collection_round);
        let first = last.map_or(Round(0), |commit| commit.floor.next());
        let from = (first, AuthorIndex(0), EventDigest::ZERO);
        RestoredState {
            events: self.events.range(from..).map(|(_, e)| e.clone()).collect(),
            commits: self
                .commits
                .values()
                .filter(|commit| commit.leader.round >= collection_round)
                .cloned()
                .collect(),
            own_last: self.own_last(me).cloned(),
            pool: self.pool.values().cloned().collect(),
            highest: self.highest(),
            memory,
        }
    }

    /// Rebuilds a commit from its record and the events that it names; `None` if one is missing.
    pub fn commit(&self, index: CommitIndex) -> Option<OrderedCommit> {
        let record = self.commits.get(&index)?;
        let mut payloads = Vec::new();
        let mut authors: BTreeMap<AuthorIndex, Round> = BTreeMap::new();
        for place in &record.events {
            let event = self.event(&place.digest)?;
            let highest = authors.entry(place.author).or_default();
            *highest = place.round.max(*highest);
            payloads.extend(
                event.payloads.iter().map(|payload| OrderedPayload {
                    author: place.author,
                    payload: payload.clone(),
                }),
            );
        }
        Some(OrderedCommit {
            index,
            ledger_time: record.ledger_time,
            leader_round: record.leader.round,
            authors: authors.into_iter().collect(),
            payloads,
            first_position: record.first_position,
            prefix_hash: record.prefix_hash,
        })
    }
}

/// A host's store.
#[derive(Debug, Default)]
pub struct Disk {
    /// What survives a crash.
    pub durable: Image,
    pending: VecDeque<(WriteNumber, Vec<Record>)>,
    /// Highest own round in the witness file, written after the store and before anything is sent.
    pub witness: Round,
}

impl Disk {
    /// Takes a write; it is not durable yet.
    pub fn write(&mut self, number: WriteNumber, records: Vec<Record>) {
        self.pending.push_back((number, records));
    }

    /// Number of the last write taken and not durable yet.
    pub fn last_pending(&self) -> Option<WriteNumber> {
        self.pending.back().map(|(number, _)| *number)
    }

    /// Makes all writes up to `through` durable, then the witness.
    pub fn flush(&mut self, through: WriteNumber, me: AuthorIndex) {
        while let Some((_, records)) = self.pending.pop_front_if(|(number, _)| *number <= through) {
            for record in records {
                if let Record::Event(event) = &record
                    && event.header.author == me
                {
                    self.witness = self.witness.max(event.header.round);
                }
                self.durable.apply(record);
            }
        }
    }

    /// A crash: a drawn prefix of the pending writes is durable, the rest never was; the witness
    /// may lag behind.
    pub(crate) fn crash(&mut self, random: &mut Random) {
        let kept = random.index(self.pending.len() + 1);
        for (_, records) in self.pending.drain(..).take(kept) {
            for record in records {
                self.durable.apply(record);
            }
        }
    }

    /// Whether the store knows everything that the witness knows.
    pub fn memory(&self, me: AuthorIndex) -> Memory {
        let own_last = self.durable.own_last(me);
        let own_round = own_last.map_or(Round(0), |event| event.header.round);
        if own_round >= self.witness { Memory::Agrees } else { Memory::Doubtful }
    }
}
