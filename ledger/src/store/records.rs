//! The records: their keys, their bytes, their checksums, and how changes and answers are made of
//! them.
//!
//! Owns the layout of every table (see `../decisions.md`). Each value ends with eight bytes of a
//! BLAKE3 hash over its table, key and content, checked at every read. Never decides what is
//! written. Called by driver and delivery.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use dagger_ledger_core::interface::{CommitRecord, Memory, Record};
use dagger_payload::codec;
use dagger_payload::event::{CommitEnd, Event, Parent};
use dagger_payload::handover::{EpochEnd, Handover};
use dagger_payload::hashing::Purpose;
use dagger_payload::id::{
    AuthorIndex, CommitIndex, Epoch, EventDigest, PayloadDigest, Position, Round,
};
use dagger_payload::key::PublicKey;
use dagger_payload::limits::MEMBERS_MAX;
use dagger_payload::peer::Highest;
use dagger_payload::release::{OrderedCommit, SealedRelease};
use minicbor::{Decode, Encode};

use super::pool::Pool;
use super::witness::Signed;
use super::{Change, Direction, Store, StoreError, Table};
use crate::driver::start::FIRST_EPOCH;
use crate::limits::{STORE_PAGE_EVENTS, STORE_PAGE_EVENTS_BYTES};

pub(super) const CHECKSUM_BYTES: usize = 8;
const INSTANCE_KEY: &[u8] = b"instance";
pub(super) const OWN_LAST_KEY: &[u8] = b"own_last";
const RELEASED_KEY: &[u8] = b"released";
const EPOCH_END_KEY: &[u8] = b"epoch_end";
const PLACED_KEY: &[u8] = b"placed";

/// Random at the making of a store; the witness file names it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct InstanceId(#[n(0)] pub minicbor::bytes::ByteArray<16>);

/// For which cluster and member a store was made, and which one it is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Instance {
    /// Which store.
    #[n(0)]
    pub id: InstanceId,
    /// The cluster.
    #[n(1)]
    pub cluster: dagger_payload::id::ClusterId,
    /// The member.
    #[n(2)]
    pub author: AuthorIndex,
}

/// Up to which commit the releases of one processor's life are stored without a gap.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Released {
    /// The seal key of that life.
    #[n(0)]
    pub seal_key: PublicKey,
    /// The last commit.
    #[n(1)]
    pub through: CommitIndex,
}

/// Where a payload was ordered first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct OrderedAt {
    /// The position.
    #[n(0)]
    pub position: Position,
    /// The commit.
    #[n(1)]
    pub commit: CommitIndex,
}

/// Place of an event in its table: sorts by epoch, round and author.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventKey {
    /// The epoch.
    pub epoch: Epoch,
    /// The round.
    pub round: Round,
    /// The author.
    pub author: AuthorIndex,
    /// The digest.
    pub digest: EventDigest,
}

impl EventKey {
    /// The key of `event`.
    pub fn of(event: &Event) -> Self {
        let header = &event.header;
        Self {
            epoch: header.epoch,
            round: header.round,
            author: header.author,
            digest: event.digest,
        }
    }

    /// Where the events of a round begin.
    pub(crate) fn first_of(epoch: Epoch, round: Round) -> Self {
        Self { epoch, round, author: AuthorIndex(0), digest: EventDigest::ZERO }
    }

    /// The key of an event of `epoch` that others name.
    pub fn at(epoch: Epoch, event: Parent) -> Self {
        let Parent { author, round, digest } = event;
        Self { epoch, round, author, digest }
    }

    fn read(key: &[u8]) -> Option<Self> {
        let (epoch, rest) = key.split_first_chunk()?;
        let (round, rest) = rest.split_first_chunk()?;
        let (author, digest) = rest.split_first_chunk()?;
        Some(Self {
            epoch: Epoch(u64::from_be_bytes(*epoch)),
            round: Round(u64::from_be_bytes(*round)),
            author: AuthorIndex(u16::from_be_bytes(*author)),
            digest: EventDigest(digest.try_into().ok()?),
        })
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let (epoch, round) = (self.epoch.0.to_be_bytes(), self.round.0.to_be_bytes());
        [&epoch[..], &round, &self.author.0.to_be_bytes(), self.digest.as_bytes()].concat()
    }
}

fn checksum(table: Table, key: &[u8], content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    static PURPOSE: Purpose = Purpose::new("dagger v1 record");
    let mut hasher = PURPOSE.hasher();
    let name = table.name().as_bytes();
    for part in [name, key] {
        let length = u64::try_from(part.len()).expect("a length fits into 64 bits");
        hasher.update(&length.to_be_bytes()).update(part);
    }
    let mut checksum = [0; CHECKSUM_BYTES];
    hasher.update(content).finalize_xof().fill(&mut checksum);
    checksum
}

pub(super) fn damaged(table: Table, key: &[u8]) -> StoreError {
    let key = key.iter().map(|byte| format!("{byte:02x}")).collect();
    StoreError::Damaged { table: table.name(), key }
}

pub(super) fn put(table: Table, key: Vec<u8>, mut content: Vec<u8>) -> Change {
    content.extend(checksum(table, &key, &content));
    Change::Put { table, key, value: content }
}

pub(super) fn put_encoded<T: Encode<()>>(table: Table, key: Vec<u8>, content: &T) -> Change {
    put(table, key, codec::encode(content))
}

/// What a record holds, if it is as it was written.
pub(super) fn content<'v>(
    table: Table,
    key: &[u8],
    value: &'v [u8],
) -> Result<&'v [u8], StoreError> {
    let (content, seal) =
        value.split_last_chunk::<CHECKSUM_BYTES>().ok_or_else(|| damaged(table, key))?;
    if *seal == checksum(table, key, content) { Ok(content) } else { Err(damaged(table, key)) }
}

pub(super) fn open(table: Table, key: &[u8], mut value: Vec<u8>) -> Result<Vec<u8>, StoreError> {
    let length = content(table, key, &value)?.len();
    value.truncate(length);
    Ok(value)
}

pub(super) fn open_encoded<T>(table: Table, key: &[u8], value: Vec<u8>) -> Result<T, StoreError>
where
    T: for<'b> Decode<'b, ()>,
{
    let content = open(table, key, value)?;
    minicbor::decode(&content).map_err(|_| damaged(table, key))
}

pub(super) fn open_event(key: &[u8], value: Vec<u8>) -> Result<Arc<Event>, StoreError> {
    let bytes = open(Table::Events, key, value)?;
    let event = Event::read(bytes.into()).map_err(|_| damaged(Table::Events, key))?;
    Ok(Arc::new(event))
}

/// Checks the record of `key` in `table` as a reader of it would: its checksum and, of an event,
/// its shape.
///
/// # Errors
/// `Damaged`.
pub fn check(table: Table, key: &[u8], value: Vec<u8>) -> Result<(), StoreError> {
    match table {
        Table::Events => open_event(key, value).map(drop),
        _ => open(table, key, value).map(drop),
    }
}

pub(super) fn index_key(index: CommitIndex) -> Vec<u8> {
    index.0.to_be_bytes().to_vec()
}

/// Turns the core's records into changes.
#[derive(Debug)]
pub struct Recorder {
    me: AuthorIndex,
    highest: BTreeMap<(Epoch, AuthorIndex), Round>,
    pool: Pool,
}

impl Recorder {
    /// For the member `me`, with the `highest` rounds of an epoch and the `pool` that the store
    /// has.
    pub fn new(me: AuthorIndex, (epoch, highest): (Epoch, &[Highest]), pool: Pool) -> Self {
        let highest = highest.iter().map(|entry| ((epoch, entry.author), entry.round)).collect();
        Self { me, highest, pool }
    }

    /// What is written for `records`, and how far this host has signed with those events in them
    /// that it made.
    pub fn changes_of(&mut self, records: &[Record]) -> (Vec<Change>, Option<Signed>) {
        let mut changes = Vec::new();
        let mut signed = None;
        for record in records {
            match record {
                Record::Event(event) => {
                    self.event_changes(event, &mut changes);
                    if event.header.author == self.me {
                        let (epoch, round) = (event.header.epoch, event.header.round);
                        signed = signed.max(Some(Signed { epoch, round }));
                    }
                }
                Record::OwnEventReturned(event) => self.event_changes(event, &mut changes),
                Record::Commit(commit) => {
                    changes.push(put_encoded(Table::Commits, index_key(commit.index), commit));
                }
                Record::Packed(digests) => {
                    changes.extend(digests.iter().filter_map(|each| self.pool.removal(each)));
                }
                Record::Returned(payloads) => {
                    let returned = payloads.iter();
                    changes.extend(returned.map(|each| self.pool.entry(&each.digest(), each)));
                }
                Record::Fork(fork) => {
                    let key = fork_key(fork.author, fork.round);
                    changes.push(put_encoded(Table::Forks, key, fork));
                }
                Record::Handover { handover, memory } => {
                    self.handover_changes(handover, &mut changes);
                    let began = Signed { epoch: handover.epoch, round: Round(0) };
                    signed = signed.max(Some(began).filter(|_| *memory == Memory::Agrees));
                }
            }
        }
        (changes, signed)
    }

    /// A new epoch begins without events.
    fn handover_changes(&mut self, handover: &Handover, changes: &mut Vec<Change>) {
        changes.push(handover_change(handover));
        changes.push(Change::Delete { table: Table::Meta, key: OWN_LAST_KEY.to_vec() });
        for (epoch, author) in std::mem::take(&mut self.highest).into_keys() {
            changes.push(Change::Delete { table: Table::Highest, key: highest_key(epoch, author) });
        }
    }

    fn event_changes(&mut self, event: &Event, changes: &mut Vec<Change>) {
        let (epoch, author, round) = (event.header.epoch, event.header.author, event.header.round);
        let place = EventKey::of(event).to_bytes();
        changes.push(put(Table::Events, place.clone(), event.bytes.to_vec()));
        let highest = self.highest.entry((epoch, author)).or_default();
        if round > *highest {
            *highest = round;
            let key = highest_key(epoch, author);
            changes.push(put_encoded(Table::Highest, key, &Highest { author, round }));
            if author == self.me {
                changes.push(put(Table::Meta, OWN_LAST_KEY.to_vec(), place));
            }
        }
    }
}

/// By epoch, too: what the core writes of an epoch that a snapshot has left behind is of no account
/// in the one that it began.
pub(super) fn highest_key(epoch: Epoch, author: AuthorIndex) -> Vec<u8> {
    [&epoch.0.to_be_bytes()[..], &author.0.to_be_bytes()].concat()
}

fn fork_key(author: AuthorIndex, round: Round) -> Vec<u8> {
    [&author.0.to_be_bytes()[..], &round.0.to_be_bytes()].concat()
}

/// Keeps the certificate with which an epoch began.
pub fn handover_change(handover: &Handover) -> Change {
    put_encoded(Table::Handovers, handover.epoch.0.to_be_bytes().to_vec(), handover)
}

/// Keeps what the store is for.
pub fn instance_change(instance: &Instance) -> Change {
    put_encoded(Table::Meta, INSTANCE_KEY.to_vec(), instance)
}

/// Keeps a judged commit end that differs from the one before; the first is that of the founding
/// state, at commit 0.
pub fn judged_change(end: &CommitEnd) -> Change {
    put_encoded(Table::Judged, index_key(end.index), end)
}

/// Keeps where the epoch ends.
pub fn epoch_end_change(end: &EpochEnd) -> Change {
    put_encoded(Table::Meta, EPOCH_END_KEY.to_vec(), end)
}

/// Keeps a sealed release, in place of that of an earlier life.
pub fn release_change(sealed: &SealedRelease) -> Change {
    put_encoded(Table::Releases, index_key(sealed.release.end.index), sealed)
}

/// Keeps up to where releases are stored.
pub fn released_change(released: &Released) -> Change {
    put_encoded(Table::Meta, RELEASED_KEY.to_vec(), released)
}

/// Keeps where a payload was ordered, unless an earlier place is kept.
pub fn ordered_change(digest: &PayloadDigest, at: &OrderedAt) -> Change {
    match put_encoded(Table::Ordered, digest.as_bytes().to_vec(), at) {
        Change::Put { table, key, value } => Change::PutNew { table, key, value },
        other => other,
    }
}

/// Keeps up to which commit the table of places is complete.
pub fn placed_change(through: CommitIndex) -> Change {
    put_encoded(Table::Meta, PLACED_KEY.to_vec(), &through)
}

/// Typed reading of a store.
#[derive(Clone)]
pub struct Records {
    pub(super) store: Arc<dyn Store>,
}

impl Records {
    /// Reads from `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// The store itself, for its writer.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub(super) fn get<T>(&self, table: Table, key: &[u8]) -> Result<Option<T>, StoreError>
    where
        T: for<'b> Decode<'b, ()>,
    {
        let value = self.store.get(table, key)?;
        value.map(|value| open_encoded(table, key, value)).transpose()
    }

    /// What the store is for; none in a new one.
    ///
    /// # Errors
    /// [`StoreError`], as everywhere below.
    pub fn instance(&self) -> Result<Option<Instance>, StoreError> {
        self.get(Table::Meta, INSTANCE_KEY)
    }

    /// The commit end before the first commit, once it is known.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn founding(&self) -> Result<Option<CommitEnd>, StoreError> {
        self.get(Table::Judged, &index_key(CommitIndex(0)))
    }

    /// The certificate with which the newest epoch began; none in the first one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last_handover(&self) -> Result<Option<Handover>, StoreError> {
        let last = self.store.last(Table::Handovers)?;
        last.map(|(key, value)| open_encoded(Table::Handovers, &key, value)).transpose()
    }

    /// How this epoch began.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn handover(&self, epoch: Epoch) -> Result<Option<Handover>, StoreError> {
        self.get(Table::Handovers, &epoch.0.to_be_bytes())
    }

    /// Where the present epoch ends, once that is decided. What was decided of an epoch before is
    /// past.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn epoch_end(&self) -> Result<Option<EpochEnd>, StoreError> {
        let end: Option<EpochEnd> = self.get(Table::Meta, EPOCH_END_KEY)?;
        let began = self.last_handover()?.map(|handover| handover.founding.end.index);
        Ok(end.filter(|end| began.is_none_or(|began| end.last > began)))
    }

    /// The epoch that this host is in, as far as the store knows.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn epoch(&self) -> Result<Epoch, StoreError> {
        Ok(self.last_handover()?.map_or(FIRST_EPOCH, |handover| handover.epoch))
    }

    /// This host's newest event of the present epoch. One of an epoch before says nothing: the core
    /// may have written it after a snapshot of this epoch was begun with, of which it was yet to
    /// hear.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn own_last(&self) -> Result<Option<Arc<Event>>, StoreError> {
        let Some(value) = self.store.get(Table::Meta, OWN_LAST_KEY)? else {
            return Ok(None);
        };
        let place = open(Table::Meta, OWN_LAST_KEY, value)?;
        let of = EventKey::read(&place).ok_or_else(|| damaged(Table::Meta, OWN_LAST_KEY))?.epoch;
        if of != self.epoch()? {
            return Ok(None);
        }
        match self.store.get(Table::Events, &place)? {
            Some(value) => open_event(&place, value).map(Some),
            None => Err(damaged(Table::Events, &place)),
        }
    }

    /// An event; none also when its body is pruned.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn event(&self, key: EventKey) -> Result<Option<Arc<Event>>, StoreError> {
        let key = key.to_bytes();
        let value = self.store.get(Table::Events, &key)?;
        value.map(|value| open_event(&key, value)).transpose()
    }

    /// A page of events of `epoch` from `from` on, by round and author, and where the next page
    /// starts (none at the end).
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn events(
        &self,
        from: EventKey,
    ) -> Result<(Vec<Arc<Event>>, Option<EventKey>), StoreError> {
        let epoch = from.epoch.0.to_be_bytes();
        let (mut page, mut bytes, mut next) = (Vec::new(), 0, None);
        self.store.visit(Table::Events, &from.to_bytes(), &mut |key, value| {
            if !key.starts_with(&epoch) {
                return ControlFlow::Break(());
            }
            bytes += value.len();
            let is_full = page.len() == STORE_PAGE_EVENTS || bytes > STORE_PAGE_EVENTS_BYTES;
            if is_full && !page.is_empty() {
                next = Some(key.to_vec());
                return ControlFlow::Break(());
            }
            page.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        let events = page.into_iter().map(|(key, value)| open_event(&key, value));
        let events = events.collect::<Result<_, _>>()?;
        let read = |key: Vec<u8>| EventKey::read(&key).ok_or_else(|| damaged(Table::Events, &key));
        Ok((events, next.map(read).transpose()?))
    }

    /// A commit.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn commit(&self, index: CommitIndex) -> Result<Option<CommitRecord>, StoreError> {
        self.get(Table::Commits, &index_key(index))
    }

    /// The newest commit.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last_commit(&self) -> Result<Option<CommitRecord>, StoreError> {
        let last = self.store.last(Table::Commits)?;
        last.map(|(key, value)| open_encoded(Table::Commits, &key, value)).transpose()
    }

    /// A commit as the judge sees it, rebuilt from its record and its events.
    ///
    /// # Errors
    /// [`StoreError`]; `Damaged` also when an event is missing.
    pub fn ordered_commit(&self, index: CommitIndex) -> Result<Option<OrderedCommit>, StoreError> {
        let Some(record) = self.commit(index)? else {
            return Ok(None);
        };
        let mut events = Vec::with_capacity(record.events.len());
        for parent in &record.events {
            let key = EventKey::at(record.epoch, *parent);
            events.push(self.event(key)?.ok_or_else(|| damaged(Table::Events, &key.to_bytes()))?);
        }
        let commit = record.to_ordered_commit(&events);
        commit.map(Some).ok_or_else(|| damaged(Table::Commits, &index_key(index)))
    }

    /// Where a payload was ordered, as far as the table of places goes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn ordered(&self, digest: &PayloadDigest) -> Result<Option<OrderedAt>, StoreError> {
        self.get(Table::Ordered, digest.as_bytes())
    }

    /// Up to which commit the table of places is complete.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn placed(&self) -> Result<CommitIndex, StoreError> {
        Ok(self.get(Table::Meta, PLACED_KEY)?.unwrap_or(CommitIndex(0)))
    }

    /// The judged commit end at `index`: that of the last commit up to it which changed anything.
    /// None before the snapshot with which this host began.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn judged(&self, index: CommitIndex) -> Result<Option<CommitEnd>, StoreError> {
        if index.0 > 0 && index < self.began()? {
            return Ok(None);
        }
        let end = self.last_judged_until(index)?;
        Ok(end.map(|end| CommitEnd { index, ..end }))
    }

    /// The newest judged commit end up to `index` that changed anything.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last_judged_until(&self, index: CommitIndex) -> Result<Option<CommitEnd>, StoreError> {
        let page = self.store.page(Table::Judged, &index_key(index), Direction::Backward, 1)?;
        let mut page = page.into_iter();
        let end = page.next().map(|(key, value)| open_encoded(Table::Judged, &key, value));
        end.transpose()
    }

    /// The newest judged commit end that changed anything.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last_judged(&self) -> Result<Option<CommitEnd>, StoreError> {
        let last = self.store.last(Table::Judged)?;
        last.map(|(key, value)| open_encoded(Table::Judged, &key, value)).transpose()
    }

    /// Up to where the releases of which processor's life are stored.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn released(&self) -> Result<Option<Released>, StoreError> {
        self.get(Table::Meta, RELEASED_KEY)
    }

    /// The highest stored round of each author in the present epoch.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn highest(&self) -> Result<Vec<Highest>, StoreError> {
        let of_epoch = self.epoch()?.0.to_be_bytes();
        let page = self.store.page(Table::Highest, &of_epoch, Direction::Forward, MEMBERS_MAX)?;
        let page = page.into_iter().take_while(|(key, _)| key.starts_with(&of_epoch));
        page.map(|(key, value)| open_encoded(Table::Highest, &key, value)).collect()
    }
}
