//! The simulated store: what is durable, and what a crash takes away.
//!
//! Owns the records of one host, as bytes in the tables of the real store and decoded beside them,
//! its witness file and its old backups. Never interprets records beyond that. Called by hosts and
//! by promises. Writing, reading and the verdict on the host's memory are those of a real ledger;
//! only the file and the device below are simulated.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dagger_ledger::delivery::retention::may_go;
use dagger_ledger::driver::start::{overdue_testimony, restored_state};
use dagger_ledger::store::memory::MemoryStore;
use dagger_ledger::store::pool::Pool;
use dagger_ledger::store::pruning::{Pruned, pruned_change};
use dagger_ledger::store::records::{EventKey, InstanceId, Recorder, Records};
use dagger_ledger::store::snapshots::{Kept, Source, whole_changes};
use dagger_ledger::store::witness::{SLOT_BYTES, Signed, Testimony, newest_of, to_slot};
use dagger_ledger::store::{Change, Store};
use dagger_ledger_core::Frontier;
use dagger_ledger_core::interface::{CommitRecord, Fork, Record, RestoredState, WriteNumber};
use dagger_payload::committee::Committee;
use dagger_payload::event::{Event, Parent};
use dagger_payload::handover::Handover;
use dagger_payload::id::{
    AuthorIndex, CommitIndex, Epoch, EventDigest, PayloadDigest, PrefixHash, Round,
};
use dagger_payload::payload::SignedPayload;
use dagger_payload::release::{OrderedCommit, OrderedPayload, QuorumEvidence};
use dagger_payload::snapshot::{SnapshotHead, SnapshotOffer};

use super::device::{Device, PowerCut};
use super::judge::Judge;
use super::random::Random;
use super::transaction;

/// What survives a crash.
#[derive(Debug, Default, Clone)]
pub struct Image {
    /// Accepted events.
    pub events: BTreeMap<(Epoch, Round, AuthorIndex, EventDigest), Arc<Event>>,
    /// Where they stand.
    pub places: BTreeMap<EventDigest, (Epoch, Round, AuthorIndex)>,
    /// Commits.
    pub commits: BTreeMap<CommitIndex, CommitRecord>,
    /// Payloads in no event.
    pub pool: BTreeMap<PayloadDigest, SignedPayload>,
    /// Evidence.
    pub forks: BTreeMap<(AuthorIndex, Round), Fork>,
    /// How each epoch after the first one began.
    pub handovers: BTreeMap<Epoch, Handover>,
    /// Bodies up to here are gone or were never here.
    pub pruned: Pruned,
    /// The judge's states that are kept, by the commits after which they were made.
    pub(crate) snapshots: BTreeMap<CommitIndex, Judge>,
}

impl Image {
    /// The event of this digest.
    pub fn event(&self, digest: &EventDigest) -> Option<&Arc<Event>> {
        let (epoch, round, author) = *self.places.get(digest)?;
        self.events.get(&(epoch, round, author, *digest))
    }

    /// Events of this epoch up to this round can no longer be ordered, as far as this disk knows.
    pub fn collection_round(&self, epoch: Epoch) -> Round {
        let began = self.handovers.get(&epoch).map_or(CommitIndex(0), |h| h.founding.end.index);
        let ended = self.handovers.get(&epoch.next()).map(|h| h.founding.end.index);
        let last = ended.unwrap_or(CommitIndex(u64::MAX));
        let commits = self.commits.range(began.next()..=last.max(began.next()));
        let last = commits.map(|(_, commit)| commit.collection_round).next_back();
        last.unwrap_or(Round(0))
    }

    /// Whether this commit is here as it was handed on; of one with pruned events the record.
    pub fn holds(&self, index: CommitIndex, prefix_hash: PrefixHash) -> bool {
        let Some(record) = self.commits.get(&index) else {
            return false;
        };
        let began = |handover: &&Handover| handover.founding.end.index < index;
        let epoch = self.handovers.values().rev().find(began).map_or(Epoch(0), |h| h.epoch);
        let pruned = record.events.iter().any(|place| self.pruned.covers(epoch, place.round));
        record.prefix_hash == prefix_hash && (pruned || self.commit(index).is_some())
    }

    fn apply(&mut self, record: Record) {
        match record {
            Record::Event(event) | Record::OwnEventReturned(event) => {
                let header = &event.header;
                let (epoch, round, author) = (header.epoch, header.round, header.author);
                self.places.insert(event.digest, (epoch, round, author));
                self.events.insert((epoch, round, author, event.digest), event);
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
            Record::Handover { handover, .. } => {
                self.handovers.insert(handover.epoch, handover);
            }
            Record::Fork(fork) => {
                self.forks.insert((fork.author, fork.round), fork);
            }
        }
    }

    /// This host's event of the highest round of the newest epoch in which it made one.
    pub fn own_last(&self, me: AuthorIndex) -> Option<&Arc<Event>> {
        let own = |event: &&Arc<Event>| event.header.author == me;
        self.events.values().rev().find(own)
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

/// A step on the way from a write to the news that it is durable, at which the power may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PersistPoint {
    /// The transaction's data is in the device's cache.
    Data,
    /// It is synced, but nothing refers to it yet.
    DataSynced,
    /// The record that makes it part of the store is in the cache.
    Meta,
    /// The transaction is durable; the witness knows nothing of it.
    MetaSynced,
    /// The witness' slot is in the cache.
    Witness,
    /// Everything is durable, and nobody has heard of it.
    WitnessSynced,
}

impl PersistPoint {
    /// All of them, in their order.
    pub(crate) const ALL: [Self; 6] = [
        Self::Data,
        Self::DataSynced,
        Self::Meta,
        Self::MetaSynced,
        Self::Witness,
        Self::WitnessSynced,
    ];
}

/// A copy of a host's state, made some time ago.
struct Backup {
    image: Image,
    store: Arc<MemoryStore>,
    instance: InstanceId,
    witness: Device,
}

/// Writes that become durable together.
struct Group {
    records: Vec<Record>,
    changes: Vec<Change>,
    signed: Option<Signed>,
}

/// What becomes of the witness file when a store is lost or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WitnessFate {
    /// It stays as it is.
    Stays,
    /// It goes the way of the store.
    Follows,
}

/// What stands in a store's place for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replacement {
    /// Nothing.
    Empty,
    /// What the last copy holds.
    OldCopy,
}

/// A host's store.
pub(crate) struct Disk {
    /// What is durable, decoded once.
    pub(crate) durable: Image,
    me: AuthorIndex,
    store: Arc<MemoryStore>,
    instance: InstanceId,
    pool: Pool,
    recorder: Recorder,
    pending: VecDeque<(WriteNumber, Vec<Record>)>,
    witness: Device,
    next_slot: u64,
    backup: Option<Backup>,
    /// The true content while another one is in its place.
    aside: Option<Backup>,
    /// Others' events that became durable and were not told yet.
    news: Vec<Arc<Event>>,
}

impl Disk {
    /// The empty store of a new host.
    pub(crate) fn new(me: AuthorIndex) -> Self {
        Self {
            durable: Image::default(),
            me,
            store: Arc::default(),
            instance: InstanceId([0; 16].into()),
            pool: Pool::default(),
            recorder: Recorder::new(me, (Epoch(0), &[]), Pool::default()),
            pending: VecDeque::new(),
            witness: Device::default(),
            next_slot: 0,
            backup: None,
            aside: None,
            news: Vec::new(),
        }
    }

    /// Reads what the core continues from, as a ledger does at its start.
    pub(crate) fn open(&mut self, founders: Committee) -> RestoredState {
        let slots = self.witness.read(0, SLOT_BYTES * 2).try_into().expect("two slots were read");
        let (testimony, next_slot) = newest_of(&slots);
        self.next_slot = next_slot;
        let records = Records::new(self.store.clone());
        let overdue = overdue_testimony(&records, founders, self.instance, testimony);
        if let Some(overdue) = overdue.expect("the store gives back what was written") {
            self.testify(overdue.signed);
            self.witness.sync();
        }
        let state = restored_state(&records, founders, self.instance, testimony);
        let state = state.expect("the store gives back what was written");
        self.pool = Pool::restore(&records).expect("the store gives back what was written");
        let epoch = records.epoch().expect("the store gives back what was written");
        self.recorder = Recorder::new(self.me, (epoch, &state.highest), self.pool.clone());
        state
    }

    /// The records of the real store.
    pub(crate) fn records(&self) -> Records {
        Records::new(self.store.clone())
    }

    /// Those of these events that are stored.
    pub(crate) fn stored(&self, epoch: Epoch, events: &[Parent]) -> Vec<Arc<Event>> {
        let records = self.records();
        let read = |event: &Parent| records.event(EventKey::at(epoch, *event));
        let read = |event| read(event).expect("the store gives back what was written");
        events.iter().filter_map(read).collect()
    }

    /// Whether events of `epoch` above what a peer has are gone.
    pub(crate) fn lacks_above(&self, epoch: Epoch, has: Round) -> bool {
        self.records().lacks_above(epoch, has).expect("the store gives back what was written")
    }

    /// Keeps a snapshot, and of all no more than so many.
    pub(crate) fn keep_snapshot(
        &mut self,
        head: &SnapshotHead,
        evidence: &QuorumEvidence,
        judge: Judge,
        kept_max: usize,
    ) {
        // Whose it is makes no difference here: none has chunks.
        let kept = Kept { head: head.clone(), source: Source::Own };
        let changes = whole_changes(&kept, evidence);
        self.store.commit(&changes).expect("memory has room");
        self.durable.snapshots.insert(head.made_after, judge);
        self.forget_snapshots(kept_max);
    }

    fn forget_snapshots(&mut self, kept_max: usize) {
        let kept = &mut self.durable.snapshots;
        while kept.len() > kept_max {
            kept.pop_first();
        }
        let Some(oldest) = kept.keys().next().copied() else { return };
        let removals = self.records().snapshot_removals(oldest);
        let removals = removals.expect("the store gives back what was written");
        self.store.commit(&removals).expect("memory has room");
    }

    /// Moves the mark up to which bodies may go; true if it moved.
    pub(crate) fn mark_pruned(&mut self) -> bool {
        let may_go = may_go(&self.records(), 0).expect("the store gives back what was written");
        let Some(pruned) = may_go.filter(|pruned| *pruned > self.durable.pruned) else {
            return false;
        };
        self.store.commit(&[pruned_change(&pruned)]).expect("memory has room");
        self.durable.pruned = pruned;
        true
    }

    /// Lets the bodies go that are marked.
    pub(crate) fn remove_pruned(&mut self) {
        let (records, pruned) = (self.records(), self.durable.pruned);
        loop {
            let removals = records.body_removals(pruned);
            let removals = removals.expect("the store gives back what was written");
            if removals.is_empty() {
                break;
            }
            self.store.commit(&removals).expect("memory has room");
        }
        self.forget_events(pruned);
    }

    fn forget_events(&mut self, pruned: Pruned) {
        let own_last = self.durable.own_last(self.me).map(|event| event.digest);
        let Image { events, places, .. } = &mut self.durable;
        events.retain(|(epoch, round, _, digest), _| {
            !pruned.covers(*epoch, *round) || own_last == Some(*digest)
        });
        places.retain(|digest, place| {
            let (epoch, round, author) = *place;
            events.contains_key(&(epoch, round, author, *digest))
        });
    }

    /// Writes what a host writes that begins from another one's snapshot. Nothing may be pending.
    pub(crate) fn begin_from(&mut self, offer: &SnapshotOffer, frontier: &Frontier, judge: &Judge) {
        let (records, own) = (self.records(), (self.me, &self.pool));
        let left = records.left_behind(self.me, frontier);
        let left = left.expect("the store gives back what was written");
        let changes = records.beginning_changes(offer, frontier, own);
        let changes = changes.expect("the store gives back what was written");
        self.store.commit(&changes).expect("memory has room");
        let pruned = self.records().pruned().expect("the store gives back what was written");
        let image = &mut self.durable;
        image.pruned = pruned;
        image.pool.extend(left.into_iter().map(|payload| (payload.digest(), payload)));
        image.snapshots.insert(offer.head.made_after, judge.clone());
        let commits = frontier.commits.iter().map(|commit| (commit.index, commit.clone()));
        image.commits.extend(commits);
        let newest = image.handovers.keys().next_back();
        if let Some(handover) = frontier.handover.as_ref().filter(|new| Some(&new.epoch) > newest) {
            image.handovers.insert(handover.epoch, handover.clone());
        }
    }

    /// Whether the byte store still holds what was durable, read the way a ledger reads it.
    pub(crate) fn is_sound(&self) -> bool {
        let records = Records::new(self.store.clone());
        let pool = records.pool().map(|pool| pool.len());
        let same = |(index, record): (&CommitIndex, &CommitRecord)| {
            let stored = records.ordered_commit(*index).ok().flatten();
            stored == self.durable.commit(*index) && self.durable.holds(*index, record.prefix_hash)
        };
        pool.is_ok_and(|count| count == self.durable.pool.len())
            && self.durable.commits.iter().all(same)
    }

    /// Takes a write; it is not durable yet.
    pub(crate) fn write(&mut self, number: WriteNumber, records: Vec<Record>) {
        self.pending.push_back((number, records));
    }

    /// Number of the last write taken and not durable yet.
    pub(crate) fn last_pending(&self) -> Option<WriteNumber> {
        self.pending.back().map(|(number, _)| *number)
    }

    /// Makes a submitted payload durable.
    pub(crate) fn keep(&mut self, payload: SignedPayload) {
        let digest = payload.digest();
        self.store.commit(&[self.pool.entry(&digest, &payload)]).expect("memory has room");
        self.durable.pool.insert(digest, payload);
    }

    fn take(&mut self, through: WriteNumber) -> Group {
        let mut records = Vec::new();
        while let Some((_, more)) = self.pending.pop_front_if(|(number, _)| *number <= through) {
            records.extend(more);
        }
        let (changes, signed) = self.recorder.changes_of(&records);
        Group { records, changes, signed }
    }

    fn apply(&mut self, records: Vec<Record>, changes: &[Change]) {
        self.store.commit(changes).expect("memory has room");
        for record in records {
            if let Record::Event(event) = &record
                && event.header.author != self.me
            {
                self.news.push(event.clone());
            }
            self.durable.apply(record);
        }
    }

    /// Others' events that became durable since the last call.
    pub(crate) fn take_news(&mut self) -> Vec<Arc<Event>> {
        std::mem::take(&mut self.news)
    }

    fn testify(&mut self, signed: Signed) {
        let slot = to_slot(&Testimony { instance: self.instance, signed });
        self.witness.write(usize::try_from(self.next_slot).expect("0 or 1"), &slot);
        self.next_slot = 1 - self.next_slot;
    }

    /// Makes all writes up to `through` durable, then the witness.
    pub(crate) fn commit(&mut self, through: WriteNumber) {
        let Group { records, changes, signed } = self.take(through);
        self.apply(records, &changes);
        if let Some(signed) = signed {
            self.testify(signed);
            self.witness.sync();
        }
    }

    /// The power goes while the writes up to `through` are on their way and have come to `point`;
    /// later ones never were.
    pub(crate) fn cut_power(
        &mut self,
        through: WriteNumber,
        point: PersistPoint,
        random: &mut Random,
    ) -> PowerCut {
        let Group { records, changes, signed } = self.take(through);
        self.pending.clear();
        let (cut, survived) = transaction::interrupt(&changes, point, random);
        if let Some(survived) = survived {
            assert_eq!(survived, changes, "a transaction is whole or not at all");
            self.apply(records, &survived);
        }
        if let Some(signed) = signed.filter(|_| point >= PersistPoint::Witness) {
            self.testify(signed);
            if point == PersistPoint::WitnessSynced {
                self.witness.sync();
            }
        }
        let witness = self.witness.cut_power(random);
        PowerCut {
            lost: cut.lost + witness.lost,
            torn: cut.torn + witness.torn,
            reordered: cut.reordered + witness.reordered,
        }
    }

    fn copy(&self) -> Backup {
        Backup {
            image: self.durable.clone(),
            store: Arc::new(self.store.crash()),
            instance: self.instance,
            witness: self.witness.clone(),
        }
    }

    /// Makes a copy of everything.
    pub(crate) fn back_up(&mut self) {
        self.backup = Some(self.copy());
    }

    /// Puts an empty store or the last copy in place of what there is, which stays aside with its
    /// witness; false if there is no copy.
    pub(crate) fn replace(&mut self, by: Replacement, random: &mut Random) -> bool {
        let aside = self.copy();
        let replaced = match by {
            Replacement::Empty => {
                self.wipe(WitnessFate::Stays, random);
                true
            }
            Replacement::OldCopy => self.restore_backup(WitnessFate::Stays),
        };
        self.aside = replaced.then_some(aside);
        replaced
    }

    /// Whether the true content stands aside.
    pub(crate) fn is_replaced(&self) -> bool {
        self.aside.is_some()
    }

    /// Puts the true content back.
    pub(crate) fn put_back(&mut self) {
        self.backup = self.aside.take();
        self.restore_backup(WitnessFate::Follows);
    }

    /// Puts the last copy in place of what there is; false if there is none.
    pub(crate) fn restore_backup(&mut self, fate: WitnessFate) -> bool {
        let Some(backup) = self.backup.take() else {
            return false;
        };
        self.pending.clear();
        self.durable = backup.image;
        self.store = backup.store;
        self.instance = backup.instance;
        if fate == WitnessFate::Follows {
            self.witness = backup.witness;
        }
        true
    }

    /// Starts with an empty store, as after the loss of a disk.
    pub(crate) fn wipe(&mut self, fate: WitnessFate, random: &mut Random) {
        let mut instance = [0; 16];
        instance[..8].copy_from_slice(&random.bits().to_be_bytes());
        let mut witness = std::mem::take(&mut self.witness);
        if fate == WitnessFate::Follows {
            witness = Device::default();
        }
        *self = Self { instance: InstanceId(instance.into()), witness, ..Self::new(self.me) };
    }
}
