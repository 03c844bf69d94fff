//! The model's state: the objects in plain lists, and the few things beside them that the rules
//! look at. Nothing is indexed and no sum is kept: everything is counted anew when it is asked for.

use std::collections::BTreeMap;

use dagger_payload::codec::encode;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{
    AccountId, AuthorIndex, ClusterId, CommitIndex, Epoch, Generation, HistoryHash, HostId,
    LedgerTime, OperatorId, PayloadDigest, Round, StateRoot, VmId, VolumeId,
};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::{Capacity, KeyRole};
use dagger_payload::membership::{Operator, Proposal, ProposalStanding, founding_operators};
use dagger_payload::object::{
    Account, Cause, Effect, Grant, Host, HostDuty, Image, Placement, Vm, VmState,
};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::{CommitRelease, OrderedCommit};
use dagger_payload::roster::{EpochMembers, Roster, Seat, SeatStanding};
use dagger_payload::snapshot::extend_history;
use dagger_payload::state_tree::{Author, Judgement};
use dagger_payload::usage::PastUsage;
use dagger_payload::volume::{Volume, VolumeState};

use super::changes::Rewritten;
use super::looks::Looked;
use super::members::is_present;
use super::snapshots;

/// A payload in hand.
pub(crate) struct Asked<'a> {
    pub(crate) signer: &'a PublicKey,
    pub(crate) cause: Cause,
}

/// New versions of objects, or why not.
pub(crate) type Ruling = Result<Vec<Effect>, RefusalCode>;

/// Refuses a change of another version than the signer saw.
pub(crate) fn require_generation(
    expected: Option<Generation>,
    now: Generation,
) -> Result<(), RefusalCode> {
    if expected.unwrap_or(now) == now { Ok(()) } else { Err(RefusalCode::Conflict) }
}

/// What the order shows of a member.
#[derive(Default, Clone, Copy)]
pub(crate) struct Activity {
    newest: Round,
    behind_since: Option<LedgerTime>,
}

/// Everything.
pub(crate) struct Model {
    pub(crate) cluster: ClusterId,
    pub(crate) now: LedgerTime,
    /// The commit in hand.
    pub(crate) commit: CommitIndex,
    pub(crate) operators: Vec<Operator>,
    /// Those that are pending.
    pub(crate) proposals: Vec<Proposal>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) accounts: Vec<Account>,
    pub(crate) images: Vec<Image>,
    pub(crate) vms: Vec<Vm>,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) past_usage: Vec<PastUsage>,
    pub(crate) seats: Vec<Seat>,
    pub(crate) epochs: Vec<EpochMembers>,
    pub(crate) remembered: BTreeMap<PayloadDigest, Judgement>,
    /// What the commit in hand has looked at.
    pub(crate) looked: Looked,
    /// What the commit in hand has written anew.
    pub(crate) rewritten: Rewritten,
    /// For each host the index of the address after the one that was given last.
    pub(crate) cursors: BTreeMap<HostId, u32>,
    /// What the order shows of the voters of an epoch.
    activity: (Epoch, BTreeMap<AuthorIndex, Activity>),
    /// Everything that was judged so far.
    history: HistoryHash,
    /// What the order showed when anything changed last.
    order: Option<Vec<u8>>,
}

/// The bytes of what the root says about the order.
#[derive(minicbor::Encode)]
struct Order {
    #[n(0)]
    time: LedgerTime,
    #[n(1)]
    history: HistoryHash,
    #[n(2)]
    silence: Silence,
}

#[derive(minicbor::Encode)]
struct Silence {
    #[n(0)]
    epoch: Epoch,
    #[n(1)]
    voters: Vec<Voter>,
}

#[derive(minicbor::Encode)]
struct Voter {
    #[n(0)]
    author: AuthorIndex,
    #[n(1)]
    newest: Round,
    #[n(2)]
    behind_since: Option<LedgerTime>,
}

/// A voter when an epoch begins.
fn quiet(author: AuthorIndex) -> (AuthorIndex, Activity) {
    (author, Activity::default())
}

impl Model {
    pub(crate) fn found(genesis: Genesis, cluster: ClusterId) -> Self {
        Self {
            cluster,
            seats: Roster::founding(&genesis).into(),
            epochs: vec![EpochMembers::founding(&genesis)],
            operators: founding_operators(&genesis),
            proposals: Vec::new(),
            commit: CommitIndex(0),
            now: LedgerTime(0),
            hosts: Vec::new(),
            accounts: Vec::new(),
            images: Vec::new(),
            vms: Vec::new(),
            volumes: Vec::new(),
            past_usage: Vec::new(),
            remembered: BTreeMap::new(),
            looked: Looked::default(),
            rewritten: Rewritten::default(),
            cursors: BTreeMap::new(),
            activity: (Epoch(0), genesis.committee().authors().map(quiet).collect()),
            history: HistoryHash::ZERO,
            order: None,
        }
    }

    pub(crate) fn operator(&self, key: &PublicKey) -> Option<OperatorId> {
        let mut present = self.operators.iter().filter(|operator| is_present(operator));
        present.find(|operator| operator.key == *key).map(|operator| operator.id)
    }

    pub(crate) fn host_of_agent(&self, key: &PublicKey) -> Option<&Host> {
        let mut present = self.hosts.iter().filter(|host| host.duty != HostDuty::Left);
        present.find(|host| host.agent_key == *key)
    }

    pub(crate) fn present_seats(&self) -> impl Iterator<Item = &Seat> {
        self.seats.iter().filter(|seat| seat.standing == SeatStanding::Present)
    }

    /// The seat that a present host got last.
    pub(crate) fn newest_seat(&self, host: HostId) -> Option<&Seat> {
        self.present_seats().filter(|seat| seat.host == host).max_by_key(|seat| seat.index)
    }

    pub(crate) fn newest_epoch(&self) -> &EpochMembers {
        self.epochs.iter().max_by_key(|members| members.epoch).expect("the first one")
    }

    /// The epoch of the commit in hand.
    fn epoch(&self) -> &EpochMembers {
        let has_begun =
            |one: &&EpochMembers| one.epoch == Epoch(0) || one.begins_after < self.commit;
        let begun = self.epochs.iter().filter(has_begun);
        begun.max_by_key(|members| members.epoch).expect("the first one")
    }

    /// Whether a host votes now or in the next epoch.
    pub(crate) fn votes(&self, host: HostId) -> bool {
        let mut seats = self.present_seats().filter(|seat| seat.host == host);
        seats.any(|seat| self.is_voting(seat.index))
    }

    /// Whether a seat has a vote now or in the next epoch.
    pub(crate) fn is_voting(&self, seat: AuthorIndex) -> bool {
        let committees = [self.epoch().committee, self.newest_epoch().committee];
        committees.iter().any(|committee| committee.contains(seat))
    }

    /// For whom a key signs.
    pub(crate) fn author(&self, key: &PublicKey) -> Option<Author> {
        let account = self.signing(key).ok().map(|(account, _)| Author::Account(account.id));
        let host = self.host_of_agent(key).map(|host| Author::Host(host.id));
        self.operator(key).map(Author::Operator).or(host).or(account)
    }

    pub(crate) fn host(&self, id: HostId) -> Option<&Host> {
        self.hosts.iter().find(|host| host.id == id)
    }

    pub(crate) fn vm(&self, id: VmId) -> Option<&Vm> {
        self.vms.iter().find(|vm| vm.id == id)
    }

    pub(crate) fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.id == id)
    }

    pub(crate) fn account(&self, id: AccountId) -> Option<&Account> {
        self.accounts.iter().find(|account| account.id == id)
    }

    /// The account that has `key` among its keys, and what the key may do.
    pub(crate) fn signing(&self, key: &PublicKey) -> Result<(&Account, KeyRole), RefusalCode> {
        for account in &self.accounts {
            for own in &account.keys {
                if own.key == *key {
                    return Ok((account, own.role));
                }
            }
        }
        let was_one = self.accounts.iter().any(|account| account.key == *key);
        Err(if was_one { RefusalCode::NotAuthorized } else { RefusalCode::AccountUnknown })
    }

    /// The account for which `key` may change something other than keys.
    pub(crate) fn acting(&self, key: &PublicKey) -> Result<&Account, RefusalCode> {
        match self.signing(key)? {
            (_, KeyRole::Read) => Err(RefusalCode::NotAuthorized),
            (account, KeyRole::Owner | KeyRole::Operate) => Ok(account),
        }
    }

    /// Whether a grant has not ended, and who gave it is still an operator.
    pub(crate) fn is_live(&self, grant: &Grant) -> bool {
        let mut operators = self.operators.iter().filter(|operator| is_present(operator));
        grant.until >= self.now && operators.any(|operator| operator.id == grant.operator)
    }

    /// Whether the account may use anything now.
    pub(crate) fn is_granted(&self, account: &Account) -> bool {
        account.grants.iter().any(|grant| self.is_live(grant))
    }

    /// Size and number of the VMs that `counts` picks.
    pub(crate) fn sum(&self, counts: impl Fn(&Vm) -> bool) -> (Capacity, u32) {
        let counted = self.vms.iter().filter(|vm| counts(vm));
        counted.fold((Capacity::default(), 0), |(sum, vms), vm| (sum.plus(&vm.size), vms + 1))
    }

    /// Size of the volumes that `counts` picks.
    pub(crate) fn sum_volumes(&self, counts: impl Fn(&Volume) -> bool) -> Capacity {
        let counted = self.volumes.iter().filter(|volume| counts(volume));
        let disk_gib = counted.map(snapshots::takes_gib).sum();
        Capacity { cpus: 0, memory_mib: 0, disk_gib }
    }

    /// Size and number of what an account has with an operator, without one VM.
    pub(crate) fn sum_with(
        &self,
        account: AccountId,
        operator: OperatorId,
        without: Option<VmId>,
    ) -> (Capacity, u32) {
        let (vms, count) = self.sum(|vm| {
            Some(vm.id) != without && vm.account == account && self.is_with(vm, operator)
        });
        let volumes = self.sum_volumes(|volume| {
            let host = self.host(volume.host).expect("it has joined");
            volume.account == account && host.operator == operator
        });
        (vms.plus(&volumes), count)
    }

    /// Size of everything on a host, without one VM.
    pub(crate) fn sum_on(&self, host: HostId, without: Option<VmId>) -> Capacity {
        let (vms, _) = self.sum(|vm| Some(vm.id) != without && vm.placement.host() == Some(host));
        vms.plus(&self.sum_volumes(|volume| volume.host == host))
    }

    /// Whether a VM is, or is to be, on a host of this operator.
    pub(crate) fn is_with(&self, vm: &Vm, operator: OperatorId) -> bool {
        let host = vm.placement.host().and_then(|host| self.host(host));
        host.is_some_and(|host| host.operator == operator)
    }

    /// The operator with whom a VM counts: of its host, of the one that was lost with it, or of the
    /// last one that was offered it.
    pub(crate) fn counts_with(&self, vm: &Vm) -> Option<OperatorId> {
        let host = match vm.placement {
            Placement::Lost { host } => Some(host),
            _ => vm.placement.host().or(vm.tried.last().copied()),
        };
        host.and_then(|host| self.host(host)).map(|host| host.operator)
    }

    /// Whether nothing more may stand on the hosts of an operator.
    pub(crate) fn is_burdened(&self, operator: OperatorId) -> bool {
        let vms = self.vms.iter().filter(|vm| self.counts_with(vm) == Some(operator));
        let is_his =
            |volume: &&Volume| self.host(volume.host).is_some_and(|host| host.operator == operator);
        let volumes = self.volumes.iter().filter(is_his);
        let volumes: usize = volumes.map(|volume| 1 + volume.snapshots.len()).sum();
        vms.clone().count() + volumes >= 20_000
            || vms.map(|vm| encode(vm).len()).sum::<usize>() >= 64 << 20
    }

    /// Whether an account may have no further VM, volume or snapshot.
    pub(crate) fn has_enough(&self, account: AccountId) -> bool {
        let vms = self.vms.iter().filter(|vm| vm.account == account).count();
        let volumes = self.volumes.iter().filter(|volume| volume.account == account);
        vms + volumes.map(|volume| 1 + volume.snapshots.len()).sum::<usize>() >= 10_000
    }

    pub(crate) fn is_silent(&self, host: HostId) -> bool {
        let is_late = |since: LedgerTime| self.now.0 - since.0 > 10_000;
        let mut seats = self.seats.iter().filter(|seat| seat.host == host);
        seats.any(|seat| {
            let activity = self.activity.1.get(&seat.index);
            activity.and_then(|activity| activity.behind_since).is_some_and(is_late)
        })
    }

    /// Takes in who has ordered what.
    pub(crate) fn observe(&mut self, commit: &OrderedCommit) {
        self.commit = commit.index;
        let members = *self.epoch();
        if self.activity.0 != members.epoch {
            self.activity = (members.epoch, members.committee.authors().map(quiet).collect());
        }
        for (author, activity) in &mut self.activity.1 {
            let own = commit.authors.iter().filter(|(other, _)| other == author);
            let newest = own.map(|(_, round)| *round).max().unwrap_or(activity.newest);
            activity.newest = activity.newest.max(newest);
            let is_behind = commit.leader_round.0 > activity.newest.0 + 16;
            activity.behind_since = match (is_behind, activity.behind_since) {
                (false, _) => None,
                (true, None) => Some(commit.ledger_time),
                (true, since) => since,
            };
        }
    }

    /// Takes in that a release had content.
    pub(crate) fn close(&mut self, release: &CommitRelease) {
        self.history = extend_history(&self.history, release);
        let (epoch, activity) = &self.activity;
        let voters = activity.iter().map(|(author, activity)| {
            let Activity { newest, behind_since } = *activity;
            Voter { author: *author, newest, behind_since }
        });
        let silence = Silence { epoch: *epoch, voters: voters.collect() };
        let order = Order { time: self.now, history: self.history, silence };
        self.order = Some(encode(&order));
    }

    /// As a release tells it: of a VM that is there, what may have changed.
    pub(crate) fn told(&self, effect: &Effect) -> Effect {
        let Effect::Vm(vm) = effect else { return effect.clone() };
        let Some(before) = self.vm(vm.id) else { return effect.clone() };
        let change = vm.change();
        assert_eq!(change.of(before), Ok((**vm).clone()), "a reader makes another VM of it");
        Effect::VmChanged(Box::new(change))
    }

    /// Puts the new version of an object in the place of the old one.
    pub(crate) fn put(&mut self, effect: &Effect) {
        match effect {
            Effect::Host(new) => {
                self.hosts.retain(|old| old.id != new.id);
                self.hosts.push((**new).clone());
            }
            Effect::Account(new) => {
                self.accounts.retain(|old| old.id != new.id);
                self.accounts.push((**new).clone());
            }
            Effect::Image(new) => {
                self.images.retain(|old| old.name != new.name);
                self.images.push((**new).clone());
            }
            Effect::Volume(new) => {
                self.volumes.retain(|old| old.id != new.id);
                if new.state() != VolumeState::Deleted {
                    self.volumes.push((**new).clone());
                }
            }
            Effect::Seat(new) => {
                self.seats.retain(|old| old.index != new.index);
                self.seats.push((**new).clone());
            }
            Effect::Epoch(new) => {
                self.epochs.retain(|old| old.epoch != new.epoch);
                self.epochs.push(**new);
            }
            Effect::Operator(new) => {
                self.operators.retain(|old| old.id != new.id);
                self.operators.push((**new).clone());
            }
            Effect::Proposal(new) => {
                self.proposals.retain(|old| old.id != new.id);
                if matches!(new.standing, ProposalStanding::Open | ProposalStanding::Passed) {
                    self.proposals.push((**new).clone());
                }
            }
            Effect::Usage(new) => {
                self.past_usage.retain(|old| (old.account, old.host) != (new.account, new.host));
                self.past_usage.push((**new).clone());
            }
            Effect::VmChanged(_) => panic!("the model's rules make whole VMs"),
            Effect::Vm(new) => {
                let place = |vm: &Vm| vm.placement.host().zip(vm.placement.address());
                let before = self.vm(new.id).and_then(place);
                self.vms.retain(|old| old.id != new.id);
                if new.state() == VmState::Deleted {
                    return;
                }
                if let Some((host, address)) = place(new).filter(|now| Some(*now) != before) {
                    let subnet = self.host(host).expect("it has joined").guest_subnet;
                    let guests = (1_u32 << (32 - subnet.prefix_length)) - 3;
                    let number = u32::from(address) - u32::from(subnet.network) - 2;
                    self.cursors.insert(host, (number + 1) % guests);
                }
                self.vms.push((**new).clone());
            }
        }
    }

    /// The root of the state: all leaves, hashed from nothing.
    pub(crate) fn root(&self) -> StateRoot {
        let mut leaves: Vec<(String, Vec<u8>, Vec<u8>)> =
            vec![("cluster".to_owned(), Vec::new(), self.cluster.as_bytes().to_vec())];
        leaves.extend(self.order.clone().map(|order| ("order".to_owned(), Vec::new(), order)));
        let mut add = |kind: &str, id: &[u8], value: Vec<u8>| {
            leaves.push((format!("{kind}/"), id.to_vec(), value));
        };
        self.hosts.iter().for_each(|host| add("host", host.id.as_bytes(), encode(host)));
        self.accounts.iter().for_each(|one| add("account", one.id.as_bytes(), encode(one)));
        self.images.iter().for_each(|one| add("image", one.name.as_str().as_bytes(), encode(one)));
        self.vms.iter().for_each(|vm| add("vm", vm.id.as_bytes(), encode(vm)));
        self.volumes.iter().for_each(|one| add("volume", one.id.as_bytes(), encode(one)));
        for seat in &self.seats {
            add("seat", &u64::from(seat.index.0).to_be_bytes(), encode(seat));
        }
        self.operators.iter().for_each(|one| add("operator", one.id.as_bytes(), encode(one)));
        self.proposals.iter().for_each(|one| add("proposal", one.id.as_bytes(), encode(one)));
        for members in &self.epochs {
            add("epoch", &members.epoch.0.to_be_bytes(), encode(members));
        }
        for past in &self.past_usage {
            let id = [past.account.as_bytes().as_slice(), past.host.as_bytes().as_slice()].concat();
            add("usage", &id, encode(past));
        }
        for (digest, judgement) in &self.remembered {
            add("payload", digest.as_bytes(), encode(judgement));
        }
        for (host, cursor) in &self.cursors {
            add("addresses", host.as_bytes(), cursor.to_be_bytes().to_vec());
        }
        let hashed = leaves.into_iter().map(|(kind, id, value)| {
            let place = blake3::derive_key(
                "dagger v1 state key",
                &[kind.as_bytes(), id.as_slice()].concat(),
            );
            let value = blake3::derive_key("dagger v1 state value", &value);
            (place, blake3::derive_key("dagger v1 state leaf", &[place, value].concat()))
        });
        StateRoot(trie(hashed.collect(), 0))
    }
}

/// The hash of a trie over leaves, from bit `depth` of their places on.
fn trie(leaves: Vec<([u8; 32], [u8; 32])>, depth: usize) -> [u8; 32] {
    match leaves.as_slice() {
        [] => return [0; 32],
        [(_, hash)] => return *hash,
        _ => {}
    }
    let is_right = |place: &[u8; 32]| place[depth / 8] & (0x80 >> (depth % 8)) != 0;
    let (right, left) = leaves.into_iter().partition(|(place, _)| is_right(place));
    blake3::derive_key(
        "dagger v1 state node",
        &[trie(left, depth + 1), trie(right, depth + 1)].concat(),
    )
}
