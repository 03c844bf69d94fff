//! The whole state as chunks of bytes, and back.
//!
//! Owns what a snapshot holds and in which order. Every entry is covered by the state root, so a
//! snapshot is true when it leads to a root that a quorum attests; indexes are made again. Chunks
//! are made one at a time, from a mark, so that a large state costs no second copy. Reading is
//! total over all bytes. Called by the judge.

use std::collections::BTreeMap;
use std::ops::Bound;

use dagger_payload::codec::encode;
use dagger_payload::id::{
    AccountId, AuthorIndex, Epoch, HistoryHash, HostId, LedgerTime, OperatorId, PayloadDigest,
    StateRoot, VmId, VolumeId,
};
use dagger_payload::limits::SNAPSHOT_CHUNK_BYTES_MAX;
use dagger_payload::name::ImageName;
use dagger_payload::object::Effect;
use dagger_payload::roster::{Roster, Seat};
use dagger_payload::snapshot::EFFECT_HEAD_BYTES;
use dagger_payload::state_tree::{Judgement, Subject};
use minicbor::{Decode, Encode};

use super::super::digest_map::{Digest, DigestMap};
use super::super::silence::Silence;
use super::State;
use super::kept::KeptVm;

/// What follows from the order itself and changes with every commit that has content. Readers of
/// proofs know its beginning as `state_tree::Ordered`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Order {
    #[n(0)]
    pub(crate) time: LedgerTime,
    #[n(1)]
    pub(crate) history: HistoryHash,
    #[n(2)]
    pub(crate) silence: Silence,
}

/// How many bytes stand in an encoded entry before its effect: as in an effect before its object.
pub(super) const ENTRY_HEAD_BYTES: usize = EFFECT_HEAD_BYTES;

/// One entry of a snapshot.
#[derive(Debug, Encode, Decode)]
pub(super) enum Entry {
    #[n(0)]
    Order(#[n(0)] Order),
    #[n(1)]
    Object(#[n(0)] Effect),
    #[n(2)]
    AddressCursor(#[n(0)] HostId, #[n(1)] u32),
    #[n(3)]
    Remembered(#[n(0)] PayloadDigest, #[n(1)] Judgement),
}

/// Up to where a snapshot has come.
#[derive(Debug, Default, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    #[default]
    Start,
    Order,
    Host(HostId),
    Account(AccountId),
    Image(ImageName),
    Vm(VmId),
    Volume(VolumeId),
    Usage((AccountId, HostId)),
    Seat(AuthorIndex),
    Epoch(Epoch),
    Operator(OperatorId),
    Proposal(PayloadDigest),
    AddressCursor(HostId),
    Remembered(PayloadDigest),
}

impl Entry {
    pub(super) fn mark(&self) -> Mark {
        match self {
            Self::Order(_) => Mark::Order,
            Self::Object(Effect::Host(host)) => Mark::Host(host.id),
            Self::Object(Effect::Account(account)) => Mark::Account(account.id),
            Self::Object(Effect::Image(image)) => Mark::Image(image.name.clone()),
            Self::Object(Effect::Vm(vm)) => Mark::Vm(vm.id),
            Self::Object(Effect::VmChanged(change)) => Mark::Vm(change.id),
            Self::Object(Effect::Volume(volume)) => Mark::Volume(volume.id),
            Self::Object(Effect::Usage(past)) => Mark::Usage((past.account, past.host)),
            Self::Object(Effect::Seat(seat)) => Mark::Seat(seat.index),
            Self::Object(Effect::Epoch(members)) => Mark::Epoch(members.epoch),
            Self::Object(Effect::Operator(operator)) => Mark::Operator(operator.id),
            Self::Object(Effect::Proposal(proposal)) => Mark::Proposal(proposal.id),
            Self::AddressCursor(host, _) => Mark::AddressCursor(*host),
            Self::Remembered(digest, _) => Mark::Remembered(*digest),
        }
    }
}

/// Why bytes are no snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// A chunk does not decode.
    #[error("a chunk cannot be read")]
    Malformed,
    /// Entries are doubled or not in their order.
    #[error("its entries are not in order")]
    Disordered,
    /// More or fewer chunks or bytes than its head says.
    #[error("its chunks are not those of its head")]
    Incomplete,
    /// The chunks make another state than the head says.
    #[error("its chunks lead to state root {found}")]
    AnotherRoot {
        /// To which one.
        found: StateRoot,
    },
}

impl Mark {
    /// Which kind of entry, in the order of the kinds.
    fn section(&self) -> u8 {
        match self {
            Self::Start => 0,
            Self::Order => 1,
            Self::Host(_) => 2,
            Self::Account(_) => 3,
            Self::Image(_) => 4,
            Self::Vm(_) => 5,
            Self::Volume(_) => 6,
            Self::Usage(_) => 7,
            Self::Seat(_) => 8,
            Self::Epoch(_) => 9,
            Self::Operator(_) => 10,
            Self::Proposal(_) => 11,
            Self::AddressCursor(_) => 12,
            Self::Remembered(_) => 13,
        }
    }
}

/// What of one kind of entries comes after a mark.
enum Rest<'m, K> {
    All,
    After(&'m K),
    Nothing,
}

impl<'m, K> Rest<'m, K> {
    /// Where it begins.
    fn from(self) -> Option<Bound<&'m K>> {
        match self {
            Self::All => Some(Bound::Unbounded),
            Self::After(key) => Some(Bound::Excluded(key)),
            Self::Nothing => None,
        }
    }
}

/// The entries of `map` that are left.
fn rest<'m, K: Ord, V>(
    map: &'m BTreeMap<K, V>,
    left: Rest<'m, K>,
) -> impl Iterator<Item = (&'m K, &'m V)> {
    let from = left.from();
    from.into_iter().flat_map(|from| map.range::<K, _>((from, Bound::Unbounded)))
}

/// The same of a map by digests.
fn rest_of_many<'m, K: Digest, V, const BITS: u32>(
    map: &'m DigestMap<K, V, BITS>,
    left: Rest<'m, K>,
) -> impl Iterator<Item = (&'m K, &'m V)> {
    left.from().into_iter().flat_map(|from| map.iter_from(from))
}

/// The seats that are left.
fn seats_left<'r>(
    roster: &'r Roster,
    left: Rest<'r, AuthorIndex>,
) -> impl Iterator<Item = &'r Seat> {
    let from = match left {
        Rest::All => 0,
        Rest::After(last) => usize::from(last.0) + 1,
        Rest::Nothing => usize::MAX,
    };
    // Seats stand by number.
    roster.seats().iter().skip(from)
}

/// What is left of the kind of entries whose marks are `$kind`.
macro_rules! left {
    ($mark:expr, $kind:ident, $section:literal) => {
        match $mark {
            Mark::$kind(key) => Rest::After(key),
            mark if mark.section() < $section => Rest::All,
            _ => Rest::Nothing,
        }
    };
}

/// The next entry that is to be written.
enum Next<'s> {
    Entry(Entry),
    /// An [`Entry::Object`] with an [`Effect::Vm`], of which the bytes are at hand.
    Vm(VmId, &'s KeptVm),
}

/// As [`Entry`].
#[derive(Encode)]
enum KeptEntry<'s> {
    #[n(1)]
    Object(#[n(0)] KeptEffect<'s>),
}

/// As [`Effect`].
#[derive(Encode)]
enum KeptEffect<'s> {
    #[n(3)]
    Vm(#[n(0)] &'s KeptVm),
}

impl Next<'_> {
    fn mark(&self) -> Mark {
        match self {
            Self::Entry(entry) => entry.mark(),
            Self::Vm(id, _) => Mark::Vm(*id),
        }
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        let written = match self {
            Self::Entry(entry) => minicbor::encode(entry, bytes),
            Self::Vm(_, vm) => minicbor::encode(KeptEntry::Object(KeptEffect::Vm(vm)), bytes),
        };
        written.expect("writing to memory cannot fail");
    }
}

impl State {
    /// Brings what the root says about the order into step: called when a commit changes anything.
    pub(crate) fn note_order(&mut self) {
        let (time, history) = (self.time, self.history);
        let order = Order { time, history, silence: self.silence.clone() };
        self.tree.set_key(&Subject::Order.key(), &encode(&order));
        self.order = Some(order);
    }

    /// The next chunk after `mark`, which moves on; none at the end.
    pub(crate) fn snapshot_chunk(&self, mark: &mut Mark) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut reached = None;
        for entry in self.entries_after(mark) {
            reached = Some(entry.mark());
            entry.write(&mut bytes);
            if bytes.len() >= SNAPSHOT_CHUNK_BYTES_MAX {
                break;
            }
        }
        *mark = reached?;
        Some(bytes)
    }

    fn entries_after<'s>(&'s self, mark: &'s Mark) -> impl Iterator<Item = Next<'s>> {
        // Every field by name: who adds one decides here whether it is an entry, or an index that
        // follows from entries.
        let Self {
            cluster: _,
            handover_distance_commits: _,
            time: _,
            history: _,
            order,
            silence: _,
            silent: _,
            hosts,
            accounts: accounts_of,
            images,
            vms,
            volumes,
            past_usage,
            operators,
            proposals,
            roster,
            epochs,
            operator_keys: _,
            agent_keys: _,
            departed: _,
            offered: _,
            volume_names: _,
            snapshots: _,
            volumes_used_by: _,
            rooms: _,
            addresses,
            moved: _,
            deadlines: _,
            memory,
            tallies: _,
            stranded: _,
            left_carrying: _,
            tree: _,
            scratch: _,
        } = self;
        let order = order.clone().filter(|_| *mark == Mark::Start).map(Entry::Order);
        let hosts = rest_of_many(hosts, left!(mark, Host, 2));
        let accounts = left!(mark, Account, 3).from();
        let accounts = accounts.into_iter().flat_map(|from| accounts_of.iter_from(from));
        let images = rest(images, left!(mark, Image, 4));
        let vms = rest_of_many(vms, left!(mark, Vm, 5));
        let volumes = rest(volumes, left!(mark, Volume, 6));
        let past_usage = rest(past_usage, left!(mark, Usage, 7));
        let addresses = rest_of_many(addresses, left!(mark, AddressCursor, 12));
        let remembered = rest_of_many(memory.judgements(), left!(mark, Remembered, 13));
        let seats = seats_left(roster, left!(mark, Seat, 8));
        let epochs = rest(epochs, left!(mark, Epoch, 9));
        let operators = rest(operators, left!(mark, Operator, 10));
        let proposals = rest(proposals, left!(mark, Proposal, 11));
        let objects = hosts
            .map(|(_, host)| Effect::Host(Box::new(host.clone())))
            .chain(accounts.map(|account| Effect::Account(Box::new(account.clone()))))
            .chain(images.map(|(_, image)| Effect::Image(Box::new(image.clone()))));
        let vms = vms.map(|(id, vm)| Next::Vm(*id, vm));
        let objects_after = volumes
            .map(|(_, volume)| Effect::Volume(Box::new(volume.clone())))
            .chain(past_usage.map(|(_, past)| Effect::Usage(Box::new(past.clone()))))
            .chain(seats.map(|seat| Effect::Seat(Box::new(seat.clone()))))
            .chain(epochs.map(|(_, members)| Effect::Epoch(Box::new(*members))))
            .chain(operators.map(|(_, operator)| Effect::Operator(Box::new(operator.clone()))))
            .chain(proposals.map(|(_, proposal)| Effect::Proposal(Box::new(proposal.clone()))));
        let cursors = addresses.map(|(host, each)| Entry::AddressCursor(*host, each.cursor));
        let remembered = remembered.map(|(digest, each)| Entry::Remembered(*digest, *each));
        let before = order.into_iter().chain(objects.map(Entry::Object));
        let after = objects_after.map(Entry::Object).chain(cursors).chain(remembered);
        before.map(Next::Entry).chain(vms).chain(after.map(Next::Entry))
    }

    /// Takes in an entry whose canonical bytes are `written`.
    pub(super) fn load(&mut self, entry: Entry, written: &[u8]) {
        match entry {
            Entry::Order(order) => {
                (self.time, self.history, self.silence) =
                    (order.time, order.history, order.silence);
                self.note_order();
            }
            Entry::Object(effect) => {
                self.absorb(&effect, &written[ENTRY_HEAD_BYTES + EFFECT_HEAD_BYTES..]);
            }
            Entry::AddressCursor(host, cursor) => self.set_cursor(host, cursor),
            Entry::Remembered(digest, judgement) => {
                self.remember(digest, &Subject::Payload(digest).place(), judgement);
            }
        }
    }
}
