//! The judged state: objects, and what follows from them (who uses how much, which names and
//! addresses are taken, which deadlines are open).
//!
//! Owns every index and keeps it in step: objects change only through [`State::absorb`]. Never
//! decides whether a change is allowed: the rules beside this file do. `snapshot` writes it down as
//! a whole and reads it again. Called by the judge alone.

mod accounts;
mod addresses;
mod fetching;
mod glance;
mod holdings;
mod kept;
pub(crate) mod loading;
mod offered;
mod proofs;
pub(crate) mod reading;
mod remembering;
pub(crate) mod snapshot;

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::Bound;

use dagger_payload::codec::encode_over;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{
    AccountId, ClusterId, CommitIndex, Epoch, HistoryHash, HostId, LedgerTime, OperatorId,
    PayloadDigest, StateRoot, VmId, VolumeId, cmp_digests,
};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::{Capacity, GuestSubnet, KeyRole};
use dagger_payload::membership::{
    Operator, OperatorStanding, Proposal, ProposalStanding, founding,
};
use dagger_payload::name::{ImageName, Name};
use dagger_payload::object::{Effect, Grant, Host, HostDuty, Image, Vm};
use dagger_payload::release::OrderedCommit;
use dagger_payload::roster::{EpochMembers, Roster};
use dagger_payload::snapshot::EFFECT_HEAD_BYTES;
use dagger_payload::state_tree::{Author, Subject};
use dagger_payload::usage::PastUsage;
use dagger_payload::volume::Volume;

use super::digest_map::{Digest, DigestMap, SmallDigestMap, first_word};
use super::estate::Estate;
use super::memory::Memory;
use super::neighbours::{Met, Sought};
use super::rooms::Rooms;
use super::silence::Silence;
use super::snapshots::SnapshotIndex;
use super::tallies::Tallies;
use super::tree::StateTree;
use crate::verify::NameWord;
use accounts::Accounts;
use addresses::Addresses;
use kept::{Called, KeptVm};
use offered::Offered;
use snapshot::Order;

/// A public key, as the 32 bytes that name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct KeyBytes([u8; 32]);

impl From<&PublicKey> for KeyBytes {
    fn from(key: &PublicKey) -> Self {
        Self(*key.as_bytes())
    }
}

impl Ord for KeyBytes {
    fn cmp(&self, other: &Self) -> Ordering {
        cmp_digests(&self.0, &other.0)
    }
}

impl Digest for KeyBytes {
    fn first_word(&self) -> u64 {
        first_word(&self.0)
    }
}

impl PartialOrd for KeyBytes {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Index of the first address that a guest may have: 0 is the network, 1 the host.
const GUEST_ADDRESS_FIRST: u32 = 2;

/// What an account uses on the hosts of one operator, or a host in all.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) capacity: Capacity,
    pub(crate) vms: u32,
}

/// For whom a key signs that is an account's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signing {
    pub(crate) account: AccountId,
    pub(crate) role: KeyRole,
}

/// What an account was granted, and what it has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Means<'s> {
    pub(crate) grants: &'s [Grant],
    /// None if it never had anything.
    pub(crate) estate: Option<&'s Estate>,
}

impl<'s> Means<'s> {
    pub(crate) fn used_by(&self, operator: &OperatorId) -> Usage {
        self.estate.map_or_else(Usage::default, |estate| estate.used_by(operator))
    }
}

/// Everything that judging depends on.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) cluster: ClusterId,
    /// Commits between a decision on members and the last commit of the epoch.
    pub(crate) handover_distance_commits: u64,
    pub(crate) time: LedgerTime,
    /// Everything that was judged so far.
    pub(crate) history: HistoryHash,
    /// What the root says about the order: time and silence as they were when anything changed.
    order: Option<Order>,
    pub(crate) hosts: SmallDigestMap<HostId, Host>,
    pub(crate) accounts: Accounts,
    pub(crate) images: BTreeMap<ImageName, Image>,
    vms: DigestMap<VmId, KeptVm>,
    pub(crate) volumes: BTreeMap<VolumeId, Volume>,
    pub(crate) past_usage: BTreeMap<(AccountId, HostId), PastUsage>,
    pub(crate) operators: BTreeMap<OperatorId, Operator>,
    /// Those that are pending.
    pub(crate) proposals: BTreeMap<PayloadDigest, Proposal>,
    pub(crate) roster: Roster,
    /// Every epoch that has begun, and the next one once it is decided.
    pub(crate) epochs: BTreeMap<Epoch, EpochMembers>,
    silence: Silence,
    /// Who is silent at `time`: each VM that is placed asks for it.
    silent: Vec<HostId>,
    /// Of present operators.
    operator_keys: BTreeMap<KeyBytes, OperatorId>,
    agent_keys: SmallDigestMap<KeyBytes, HostId>,
    /// Of those who have left.
    departed: BTreeSet<OperatorId>,
    pub(crate) offered: Offered,
    volume_names: BTreeMap<(AccountId, Name), VolumeId>,
    pub(crate) snapshots: SnapshotIndex,
    /// By the VM that may write to them.
    volumes_used_by: BTreeMap<VmId, BTreeSet<VolumeId>>,
    pub(crate) rooms: Rooms,
    addresses: SmallDigestMap<HostId, Addresses>,
    /// Hosts whose address cursor moved since the root was last asked for; some more than once.
    moved: Vec<HostId>,
    deadlines: BTreeSet<(LedgerTime, VmId)>,
    memory: Memory,
    pub(crate) tallies: Tallies,
    /// What hosts carry that have left without giving it up.
    stranded: (BTreeSet<VmId>, BTreeSet<VolumeId>),
    /// Hosts that have left with what they carried, which is still to be found.
    left_carrying: Vec<HostId>,
    tree: StateTree,
    /// Where the bytes of a leaf are written, so that its memory is asked for once.
    scratch: Vec<u8>,
}

impl State {
    pub(crate) fn found(genesis: &Genesis, cluster: ClusterId) -> Self {
        let mut state = Self::empty(genesis, cluster);
        for effect in &founding(genesis) {
            state.absorb_alone(effect);
        }
        state
    }

    /// Without any object, not even those of the founding: what a snapshot is read into.
    pub(crate) fn empty(genesis: &Genesis, cluster: ClusterId) -> Self {
        let mut tree = StateTree::default();
        tree.set_key(b"cluster", cluster.as_bytes());
        Self {
            cluster,
            silence: Silence::new(&EpochMembers::founding(genesis)),
            silent: Vec::new(),
            handover_distance_commits: genesis.handover_distance_commits,
            time: LedgerTime(0),
            history: HistoryHash::ZERO,
            order: None,
            hosts: SmallDigestMap::default(),
            accounts: Accounts::default(),
            images: BTreeMap::new(),
            vms: DigestMap::default(),
            volumes: BTreeMap::new(),
            past_usage: BTreeMap::new(),
            operators: BTreeMap::new(),
            proposals: BTreeMap::new(),
            roster: Roster::default(),
            epochs: BTreeMap::new(),
            operator_keys: BTreeMap::new(),
            agent_keys: SmallDigestMap::default(),
            departed: BTreeSet::new(),
            offered: Offered::default(),
            volume_names: BTreeMap::new(),
            snapshots: SnapshotIndex::default(),
            volumes_used_by: BTreeMap::new(),
            rooms: Rooms::default(),
            addresses: SmallDigestMap::default(),
            moved: Vec::new(),
            deadlines: BTreeSet::new(),
            memory: Memory::default(),
            tallies: Tallies::default(),
            stranded: Default::default(),
            left_carrying: Vec::new(),
            tree,
            scratch: Vec::new(),
        }
    }

    /// The root, after hashing what changed.
    pub(crate) fn root(&mut self) -> StateRoot {
        for host in std::mem::take(&mut self.moved) {
            let Some(addresses) = self.addresses.get_mut(&host) else { continue };
            if addresses.standing != Some(addresses.cursor) {
                addresses.standing = Some(addresses.cursor);
                let key = [b"addresses/", host.as_bytes().as_slice()].concat();
                self.tree.set_key(&key, &addresses.cursor.to_be_bytes());
            }
        }
        self.tree.root()
    }

    /// The operator who signs with `key`.
    pub(crate) fn operator(&self, key: &PublicKey) -> Option<OperatorId> {
        self.operator_keys.get(&KeyBytes::from(key)).copied()
    }

    /// Whether a grant may be used now: until it ends, or its operator is one no more.
    pub(crate) fn is_live(&self, grant: &Grant, now: LedgerTime) -> bool {
        grant.until >= now && !self.departed.contains(&grant.operator)
    }

    /// The newest epoch that is decided.
    pub(crate) fn newest_epoch(&self) -> &EpochMembers {
        self.epochs.values().next_back().expect("every state has the first epoch")
    }

    /// The epoch to which `commit`, which is not yet judged or was judged last, belongs.
    pub(crate) fn epoch_at(&self, commit: CommitIndex) -> &EpochMembers {
        let begun = self
            .epochs
            .values()
            .rev()
            .find(|members| members.begins_after < commit || members.epoch == Epoch(0));
        begun.expect("every state has the first epoch")
    }

    /// A host that has joined and not left.
    pub(crate) fn present_host(&self, id: &HostId) -> Option<&Host> {
        self.hosts.get(id).filter(|host| host.duty != HostDuty::Left)
    }

    /// Goes on to the time of a commit of the epoch of `members`.
    pub(crate) fn observe(&mut self, commit: &OrderedCommit, members: &EpochMembers) {
        self.time = commit.ledger_time;
        self.silence.observe(commit, members);
        self.silent = self.silent_at(self.time);
    }

    /// The hosts that have been behind for too long to be offered a VM, by id.
    pub(crate) fn silent(&self, now: LedgerTime) -> Cow<'_, [HostId]> {
        if now == self.time { self.silent[..].into() } else { self.silent_at(now).into() }
    }

    fn silent_at(&self, now: LedgerTime) -> Vec<HostId> {
        let seats = self.silence.silent(now).filter_map(|author| self.roster.seat(author));
        let mut hosts: Vec<_> = seats.map(|seat| seat.host).collect();
        hosts.sort_unstable(); // each placement asks for many of them
        hosts
    }

    /// The joined host whose agent signs with `key`.
    pub(crate) fn host_of_agent(&self, key: &PublicKey) -> Option<&Host> {
        self.hosts.get(self.agent_keys.get(&KeyBytes::from(key))?)
    }

    /// The account for which `key` signs, in whatever role.
    pub(crate) fn account_id(&self, key: &PublicKey) -> Option<AccountId> {
        self.signing(key).map(|signing| signing.account)
    }

    /// The same, and in which role.
    pub(crate) fn signing(&self, key: &PublicKey) -> Option<Signing> {
        self.accounts.signing(key)
    }

    /// For whom `key` signs, if for anybody; `signing` says for which account it does.
    pub(crate) fn author(&self, key: &PublicKey, signing: Option<Signing>) -> Option<Author> {
        let operator = || self.operator(key).map(Author::Operator);
        let host = || self.host_of_agent(key).map(|host| Author::Host(host.id));
        operator().or_else(host).or(signing.map(|signing| Author::Account(signing.account)))
    }

    pub(crate) fn stranded_vms(&self) -> impl Iterator<Item = &VmId> {
        self.stranded.0.iter()
    }

    pub(crate) fn stranded_volumes(&self) -> impl Iterator<Item = &VolumeId> {
        self.stranded.1.iter()
    }

    fn has_left(&self, host: &HostId) -> bool {
        self.hosts.get(host).is_some_and(|host| host.duty == HostDuty::Left)
    }

    /// Read from its bytes: whoever changes it needs a copy in any case.
    pub(crate) fn vm(&self, id: &VmId) -> Option<Vm> {
        self.vms.get(id).map(KeptVm::read)
    }

    /// The VM of an account that is called `name`, of which `word` is the word.
    pub(crate) fn vm_named(&self, estate: &Estate, word: NameWord, name: &Name) -> Option<VmId> {
        let mut named = estate.vms_named(word);
        let is_called = |vm: &KeptVm| vm.some::<Called<'_>>().name == name.as_str();
        named.find(|id| self.vms.get(id).is_some_and(is_called))
    }

    /// How many VMs an account has.
    pub(crate) fn vms_count(&self, account: &AccountId) -> usize {
        self.estate(account).map_or(0, Estate::vms_count)
    }

    /// Which of an account's VMs, but for one, have something of `sought`, and their hosts.
    pub(crate) fn look(
        &self,
        account: &AccountId,
        without: &VmId,
        sought: &Sought<'_>,
    ) -> impl Iterator<Item = (HostId, Met)> {
        let ids = self.estate(account).into_iter().flat_map(Estate::vms);
        let others = ids.filter(move |id| id != without).filter_map(|id| self.vms.get(&id));
        others.filter_map(|vm| vm.look(sought))
    }

    /// Whose a VM is, and whether a search for its host looks at the account's other VMs.
    pub(crate) fn seeker(&self, vm: &VmId) -> Option<(AccountId, bool)> {
        self.vms.get(vm).map(KeptVm::seeker)
    }

    /// What an account has; nothing if it never had anything.
    pub(crate) fn estate(&self, account: &AccountId) -> Option<&Estate> {
        self.accounts.estate(account)
    }

    pub(crate) fn volume_named(&self, account: AccountId, name: &Name) -> Option<VolumeId> {
        self.volume_names.get(&(account, name.clone())).copied()
    }

    /// The volumes to which a VM may write, or may still.
    pub(crate) fn volumes_used_by<'s>(
        &'s self,
        vm: &VmId,
    ) -> impl Iterator<Item = &'s Volume> + use<'s> {
        let ids = self.volumes_used_by.get(vm).into_iter().flatten();
        ids.filter_map(|id| self.volumes.get(id))
    }

    /// How many they are.
    pub(crate) fn volumes_used_count(&self, vm: &VmId) -> usize {
        self.volumes_used_by.get(vm).map_or(0, BTreeSet::len)
    }

    pub(crate) fn used_on(&self, host: &HostId) -> Usage {
        self.rooms.get(host).map_or_else(Usage::default, |room| room.used)
    }

    pub(crate) fn used_by(&self, account: &AccountId, operator: &OperatorId) -> Usage {
        self.means(account).used_by(operator)
    }

    /// What an account was granted, and what it has.
    pub(crate) fn means(&self, account: &AccountId) -> Means<'_> {
        let grants = self.accounts.get(account).map_or(&[][..], |account| &account.grants);
        Means { grants, estate: self.estate(account) }
    }

    /// The next address for a guest on `host`: never one in use, and one that was given back only
    /// after all others.
    pub(crate) fn free_address(&self, host: &Host) -> Option<Ipv4Addr> {
        let subnet = &host.guest_subnet;
        let hosts_max = guest_addresses(subnet);
        let default = Addresses::default();
        let addresses = self.addresses.get(&host.id).unwrap_or(&default);
        (0..hosts_max)
            .map(|step| GUEST_ADDRESS_FIRST + (addresses.cursor % hosts_max + step) % hosts_max)
            .filter_map(|index| subnet.address(index))
            .find(|address| !addresses.taken.contains(*address))
    }

    /// The next VM whose offer has lapsed before `now`, by deadline, after another one.
    pub(crate) fn lapsed_after(
        &self,
        after: Option<(LedgerTime, VmId)>,
        now: LedgerTime,
    ) -> Option<(LedgerTime, VmId)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.deadlines.range((from, Bound::Unbounded)).next();
        next.filter(|(at, _)| *at < now).copied()
    }

    pub(crate) fn next_deadline(&self) -> Option<LedgerTime> {
        let offer = self.deadlines.first().map(|(at, _)| *at);
        let open = self.proposals.values().filter(|each| each.standing == ProposalStanding::Open);
        let proposal = open.map(|each| each.expires).min();
        // Something happens only once ledger time has *passed* the deadline.
        offer.into_iter().chain(proposal).min().map(|at| at.plus_ms(1))
    }

    fn absorb_image(&mut self, image: &Image, object: &[u8]) {
        self.tree.set(&Subject::Image(image.name.clone()), object);
        match self.images.insert(image.name.clone(), image.clone()) {
            None => {
                let account = account_of(image).and_then(|id| self.accounts.get(&id));
                self.tallies.add_image(image, account.map(|account| account.opened_by));
            }
            Some(old) => self.offered.remove(&old),
        }
        self.offered.add(image);
    }

    /// Takes in an effect whose bytes are not at hand, and says how many the object has.
    pub(crate) fn absorb_alone(&mut self, effect: &Effect) -> usize {
        let mut bytes = std::mem::take(&mut self.scratch);
        encode_over(effect, &mut bytes);
        let object = &bytes[EFFECT_HEAD_BYTES..];
        self.absorb(effect, object);
        let length = object.len();
        self.scratch = bytes;
        length
    }

    /// Takes in the new version of an object, whose canonical bytes are `object`, and brings every
    /// index into step.
    pub(crate) fn absorb(&mut self, effect: &Effect, object: &[u8]) {
        match effect {
            Effect::Host(host) => self.absorb_host(host, object),
            Effect::Account(account) => {
                self.tree.set(&Subject::Account(account.id), object);
                if self.accounts.put((**account).clone()) {
                    self.tallies.add_account(account);
                }
            }
            Effect::Image(image) => self.absorb_image(image, object),
            Effect::Vm(vm) => self.absorb_vm(vm, object),
            // Only told: no rule makes one, and no snapshot with one is read.
            Effect::VmChanged(_) => {}
            Effect::Volume(volume) => self.absorb_volume(volume, object),
            Effect::Usage(past) => {
                self.tree.set(&Subject::Usage(past.account, past.host), object);
                self.past_usage.insert((past.account, past.host), (**past).clone());
            }
            Effect::Seat(seat) => {
                // The rules give seats in their order; a snapshot that does not leads to a root
                // that nobody attests.
                if self.roster.put(seat).is_ok() {
                    self.tree.set(&Subject::Seat(seat.index), object);
                }
            }
            Effect::Epoch(members) => {
                self.tree.set(&Subject::Epoch(members.epoch), object);
                self.epochs.insert(members.epoch, **members);
            }
            Effect::Operator(operator) => {
                self.tree.set(&Subject::Operator(operator.id), object);
                if let Some(old) = self.operators.insert(operator.id, (**operator).clone())
                    && self.operator_keys.get(&KeyBytes::from(&old.key)) == Some(&operator.id)
                {
                    self.operator_keys.remove(&KeyBytes::from(&old.key));
                }
                if operator.standing == OperatorStanding::Present {
                    self.operator_keys.insert(KeyBytes::from(&operator.key), operator.id);
                    self.departed.remove(&operator.id);
                } else {
                    self.departed.insert(operator.id);
                }
            }
            Effect::Proposal(proposal) => {
                let subject = Subject::Proposal(proposal.id);
                if proposal.standing.is_pending() {
                    self.tree.set(&subject, object);
                    self.proposals.insert(proposal.id, (**proposal).clone());
                } else {
                    self.tree.remove(&subject);
                    self.proposals.remove(&proposal.id);
                }
            }
        }
    }
}

/// The account whose image it is, if it is no operator's: images of accounts stand under their ids.
fn account_of(image: &Image) -> Option<AccountId> {
    let id = AccountId::of(&image.publisher);
    (image.name.publisher() == id.to_string()).then_some(id)
}

/// How many addresses of a subnet guests may have.
fn guest_addresses(subnet: &GuestSubnet) -> u32 {
    subnet.size().unwrap_or(0).saturating_sub(GUEST_ADDRESS_FIRST + 1)
}
