//! The judged state: objects, and what follows from them (who uses how much, which names and
//! addresses are taken, which deadlines are open).
//!
//! Owns every index and keeps it in step: objects change only through [`State::absorb`]. Never
//! decides whether a change is allowed: the rules beside this file do. `snapshot` writes it down as
//! a whole and reads it again. Called by the judge alone.

pub(crate) mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use dagger_payload::codec::encode;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{
    AccountId, ClusterId, HistoryHash, HostId, ImageDigest, LedgerTime, OperatorId, PayloadDigest,
    StateRoot, VmId,
};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::{Capacity, GuestSubnet};
use dagger_payload::name::{ImageName, Name};
use dagger_payload::object::{Account, Effect, Grant, Host, Image, Placement, Vm, VmState};

use super::silence::Silence;
use super::tree::StateTree;
use snapshot::Order;

/// Index of the first address that a guest may have: 0 is the network, 1 the host.
const GUEST_ADDRESS_FIRST: u32 = 2;

/// What an account uses on the hosts of one operator, or a host in all.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) capacity: Capacity,
    pub(crate) vms: u32,
}

#[derive(Debug, Default)]
struct Addresses {
    taken: BTreeSet<Ipv4Addr>,
    /// Where the search for the next address starts, so that one that was given back rests longest.
    cursor: u32,
}

/// Everything that judging depends on.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) cluster: ClusterId,
    pub(crate) genesis: Genesis,
    pub(crate) time: LedgerTime,
    /// Everything that was judged so far.
    pub(crate) history: HistoryHash,
    /// What the root says about the order: time and silence as they were when anything changed.
    order: Option<Order>,
    pub(crate) hosts: BTreeMap<HostId, Host>,
    pub(crate) accounts: BTreeMap<AccountId, Account>,
    pub(crate) images: BTreeMap<ImageName, Image>,
    pub(crate) vms: BTreeMap<VmId, Vm>,
    pub(crate) silence: Silence,
    agent_keys: BTreeMap<PublicKey, HostId>,
    images_of: BTreeMap<ImageDigest, BTreeSet<ImageName>>,
    vm_names: BTreeMap<(AccountId, Name), VmId>,
    vms_of: BTreeMap<AccountId, BTreeSet<VmId>>,
    used_on: BTreeMap<HostId, Usage>,
    used_by: BTreeMap<(AccountId, OperatorId), Usage>,
    addresses: BTreeMap<HostId, Addresses>,
    deadlines: BTreeSet<(LedgerTime, VmId)>,
    remembered: BTreeMap<PayloadDigest, LedgerTime>,
    forgotten_at: BTreeSet<(LedgerTime, PayloadDigest)>,
    tree: StateTree,
}

impl State {
    pub(crate) fn found(genesis: Genesis, cluster: ClusterId) -> Self {
        let mut tree = StateTree::default();
        tree.set(b"cluster", cluster.as_bytes());
        Self {
            cluster,
            silence: Silence::new(genesis.hosts.iter().map(|host| host.id()).collect()),
            genesis,
            time: LedgerTime(0),
            history: HistoryHash::ZERO,
            order: None,
            hosts: BTreeMap::new(),
            accounts: BTreeMap::new(),
            images: BTreeMap::new(),
            vms: BTreeMap::new(),
            agent_keys: BTreeMap::new(),
            images_of: BTreeMap::new(),
            vm_names: BTreeMap::new(),
            vms_of: BTreeMap::new(),
            used_on: BTreeMap::new(),
            used_by: BTreeMap::new(),
            addresses: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            remembered: BTreeMap::new(),
            forgotten_at: BTreeSet::new(),
            tree,
        }
    }

    pub(crate) fn root(&self) -> StateRoot {
        self.tree.root()
    }

    /// The operator who signs with `key`.
    pub(crate) fn operator(&self, key: &PublicKey) -> Option<OperatorId> {
        let found = self.genesis.operators.iter().find(|operator| operator.key == *key);
        found.map(|operator| operator.id())
    }

    /// The joined host whose agent signs with `key`.
    pub(crate) fn host_of_agent(&self, key: &PublicKey) -> Option<&Host> {
        self.hosts.get(self.agent_keys.get(key)?)
    }

    /// The account that signs with `key`, if one of its grants is live.
    pub(crate) fn live_account(&self, key: &PublicKey, now: LedgerTime) -> Option<&Account> {
        let account = self.accounts.get(&AccountId::of(key))?;
        account.grants.iter().any(|grant| is_live(grant, now)).then_some(account)
    }

    pub(crate) fn vm_named(&self, account: AccountId, name: &Name) -> Option<VmId> {
        self.vm_names.get(&(account, name.clone())).copied()
    }

    pub(crate) fn vms_of(&self, account: &AccountId) -> impl Iterator<Item = &Vm> {
        let ids = self.vms_of.get(account).into_iter().flatten();
        ids.filter_map(|id| self.vms.get(id))
    }

    pub(crate) fn images_with(&self, digest: &ImageDigest) -> impl Iterator<Item = &Image> {
        let names = self.images_of.get(digest).into_iter().flatten();
        names.filter_map(|name| self.images.get(name))
    }

    pub(crate) fn used_on(&self, host: &HostId) -> Usage {
        self.used_on.get(host).copied().unwrap_or_default()
    }

    pub(crate) fn used_by(&self, account: &AccountId, operator: &OperatorId) -> Usage {
        self.used_by.get(&(*account, *operator)).copied().unwrap_or_default()
    }

    /// The next address for a guest on `host`: never one in use, and one that was given back only
    /// after all others.
    pub(crate) fn free_address(&self, host: &Host) -> Option<Ipv4Addr> {
        let subnet = &host.guest_subnet;
        let hosts_max = guest_addresses(subnet);
        let default = Addresses::default();
        let addresses = self.addresses.get(&host.id).unwrap_or(&default);
        (0..hosts_max)
            .map(|step| GUEST_ADDRESS_FIRST + (addresses.cursor + step) % hosts_max)
            .filter_map(|index| subnet.address(index))
            .find(|address| !addresses.taken.contains(address))
    }

    /// VMs whose offer has lapsed before `now`.
    pub(crate) fn lapsed(&self, now: LedgerTime) -> Vec<VmId> {
        self.deadlines.iter().take_while(|(at, _)| *at < now).map(|(_, vm)| *vm).collect()
    }

    pub(crate) fn next_deadline(&self) -> Option<LedgerTime> {
        // Something happens only once ledger time has *passed* the deadline.
        self.deadlines.first().map(|(at, _)| at.plus_ms(1))
    }

    pub(crate) fn remembers(&self, digest: &PayloadDigest) -> bool {
        self.remembered.contains_key(digest)
    }

    /// Remembers a payload until it has expired by itself.
    pub(crate) fn remember(&mut self, digest: PayloadDigest, not_after: LedgerTime) {
        if self.remembered.insert(digest, not_after).is_none() {
            self.forgotten_at.insert((not_after, digest));
            let key = [b"payload/", digest.as_bytes().as_slice()].concat();
            self.tree.set(&key, &not_after.0.to_be_bytes());
        }
    }

    /// Forgets expired payloads. Called only for commits that change the root anyway.
    pub(crate) fn forget_expired(&mut self) {
        while let Some((at, digest)) = self.forgotten_at.first().copied() {
            if at >= self.time {
                return;
            }
            self.forgotten_at.pop_first();
            self.remembered.remove(&digest);
            self.tree.remove(&[b"payload/", digest.as_bytes().as_slice()].concat());
        }
    }

    /// Takes in the new version of an object and brings every index into step.
    pub(crate) fn absorb(&mut self, effect: &Effect) {
        match effect {
            Effect::Host(host) => {
                self.set_leaf(b"host/", host.id.as_bytes(), &**host);
                if let Some(old) = self.hosts.insert(host.id, (**host).clone()) {
                    self.agent_keys.remove(&old.agent_key);
                }
                self.agent_keys.insert(host.agent_key.clone(), host.id);
            }
            Effect::Account(account) => {
                self.set_leaf(b"account/", account.id.as_bytes(), &**account);
                self.accounts.insert(account.id, (**account).clone());
            }
            Effect::Image(image) => {
                self.set_leaf(b"image/", image.name.as_str().as_bytes(), &**image);
                if let Some(old) = self.images.insert(image.name.clone(), (**image).clone())
                    && let Some(names) = self.images_of.get_mut(&old.digest)
                {
                    names.remove(&image.name);
                }
                self.images_of.entry(image.digest).or_default().insert(image.name.clone());
            }
            Effect::Vm(vm) => self.absorb_vm(vm),
        }
    }

    fn absorb_vm(&mut self, vm: &Vm) {
        if let Some(old) = self.vms.remove(&vm.id) {
            self.release(&old);
        }
        if vm.state() == VmState::Deleted {
            self.tree.remove(&[b"vm/", vm.id.as_bytes().as_slice()].concat());
            return;
        }
        self.set_leaf(b"vm/", vm.id.as_bytes(), vm);
        self.take(vm);
        self.vms.insert(vm.id, vm.clone());
    }

    fn take(&mut self, vm: &Vm) {
        self.vm_names.insert((vm.account, vm.name.clone()), vm.id);
        self.vms_of.entry(vm.account).or_default().insert(vm.id);
        if let Placement::Offered { deadline, .. } = vm.placement {
            self.deadlines.insert((deadline, vm.id));
        }
        let Some((host, address)) = vm.placement.host().zip(vm.placement.address()) else {
            return;
        };
        for usage in self.usages(vm, host) {
            usage.capacity = usage.capacity.plus(&vm.size);
            usage.vms = usage.vms.saturating_add(1);
        }
        let Some(subnet) = self.hosts.get(&host).map(|host| host.guest_subnet) else { return };
        let addresses = self.addresses.entry(host).or_default();
        if addresses.taken.insert(address) {
            let index = u32::from(address).saturating_sub(u32::from(subnet.network));
            let next = index.saturating_sub(GUEST_ADDRESS_FIRST).saturating_add(1);
            addresses.cursor = next % guest_addresses(&subnet).max(1);
            let cursor = addresses.cursor.to_be_bytes();
            self.tree.set(&[b"addresses/", host.as_bytes().as_slice()].concat(), &cursor);
        }
    }

    fn release(&mut self, vm: &Vm) {
        self.vm_names.remove(&(vm.account, vm.name.clone()));
        if let Some(ids) = self.vms_of.get_mut(&vm.account) {
            ids.remove(&vm.id);
        }
        if let Placement::Offered { deadline, .. } = vm.placement {
            self.deadlines.remove(&(deadline, vm.id));
        }
        let Some((host, address)) = vm.placement.host().zip(vm.placement.address()) else {
            return;
        };
        for usage in self.usages(vm, host) {
            usage.capacity = usage.capacity.minus(&vm.size);
            usage.vms = usage.vms.saturating_sub(1);
        }
        if let Some(addresses) = self.addresses.get_mut(&host) {
            addresses.taken.remove(&address);
        }
    }

    /// The two sums that a VM on `host` counts in.
    fn usages(&mut self, vm: &Vm, host: HostId) -> impl Iterator<Item = &mut Usage> {
        let operator = self.hosts.get(&host).map(|host| host.operator);
        let by = operator.map(|operator| self.used_by.entry((vm.account, operator)).or_default());
        by.into_iter().chain([self.used_on.entry(host).or_default()])
    }

    fn set_leaf<T: minicbor::Encode<()>>(&mut self, kind: &[u8], id: &[u8], object: &T) {
        self.tree.set(&[kind, id].concat(), &encode(object));
    }
}

/// How many addresses of a subnet guests may have.
fn guest_addresses(subnet: &GuestSubnet) -> u32 {
    let size = 1_u32.checked_shl(32 - u32::from(subnet.prefix_length)).unwrap_or(0);
    size.saturating_sub(GUEST_ADDRESS_FIRST + 1)
}

/// Whether a grant may be used now.
pub(crate) fn is_live(grant: &Grant, now: LedgerTime) -> bool {
    grant.until >= now
}
