//! The other VMs of an account, as placing one of its VMs sees them: from which it is to be kept
//! away, and which have an address on a bridge that it wants.
//!
//! Owns that each is looked at once for a search, where it stands in memory, that every look is
//! counted, and that a host is then held against sorted sets. Which host is best is for
//! `placement`. Called by it alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use dagger_payload::bridge::Bridged;
use dagger_payload::id::{HostId, OperatorId};
use dagger_payload::kind::{Apart, ApartBy, ApartStrength};
use dagger_payload::limits::VM_APART_MAX;
use dagger_payload::name::Name;
use dagger_payload::object::{Host, Vm};

use super::looks::Looks;
use super::networks::bridged;
use super::state::State;

/// A set of a VM's wishes, by their place among them.
pub(crate) type Wishes = u8;

const _: () = assert!(VM_APART_MAX <= Wishes::BITS as usize);

/// What is sought among the other VMs.
#[derive(Debug)]
pub(crate) struct Sought<'v> {
    /// Label by label, in the order of their names, which wishes name it.
    labels: Vec<(&'v str, &'v str, Wishes)>,
    wishes: Wishes,
    /// With their bridges.
    addresses: Vec<(&'v Name, Ipv4Addr)>,
}

/// What a VM has of it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Met {
    /// Those all of whose labels it carries.
    pub(crate) wishes: Wishes,
    /// Whether one of the addresses is its own.
    pub(crate) has_address: bool,
}

impl<'v> Sought<'v> {
    pub(crate) fn of(vm: &'v Vm) -> Self {
        let placed = || (0..Wishes::BITS).map(|at| 1 << at).zip(&vm.apart);
        let labels = placed().flat_map(|(wish, apart)| {
            apart.from.iter().map(move |(name, value)| (name.as_str(), value.as_str(), wish))
        });
        let mut labels: Vec<(_, _, Wishes)> = labels.collect();
        labels.sort_unstable();
        labels.dedup_by(|next, kept| {
            let is_same = (next.0, next.1) == (kept.0, kept.1);
            kept.2 |= if is_same { next.2 } else { 0 };
            is_same
        });
        let chosen = |card: &'v Bridged| Some((&card.bridge, card.address?.address));
        let wishes = placed().fold(0, |wishes, (wish, _)| wishes | wish);
        Self { labels, wishes, addresses: bridged(vm).filter_map(chosen).collect() }
    }

    /// Whether nobody has to be looked at.
    pub(crate) fn is_nothing(&self) -> bool {
        self.wishes == 0 && self.addresses.is_empty()
    }

    pub(crate) fn has_addresses(&self) -> bool {
        !self.addresses.is_empty()
    }

    pub(crate) fn has(&self, bridge: &str, address: Ipv4Addr) -> bool {
        self.addresses.iter().any(|own| (own.0.as_str(), own.1) == (bridge, address))
    }

    /// The wishes of which a VM carries all labels; `labels` are its own, in the order of their
    /// names, and are read as far as it takes.
    pub(crate) fn carried<'b>(
        &self,
        mut labels: impl Iterator<Item = (&'b [u8], &'b [u8])>,
    ) -> Wishes {
        let (mut wishes, mut label) = (self.wishes, labels.next());
        for (name, value, of) in &self.labels {
            if wishes & of == 0 {
                continue; // those that name it are not met in any case
            }
            while label.is_some_and(|(other, _)| other < name.as_bytes()) {
                label = labels.next();
            }
            if label != Some((name.as_bytes(), value.as_bytes())) {
                wishes &= !of;
                if wishes == 0 {
                    break;
                }
            }
        }
        wishes
    }
}

/// Whether a search for a host of `vm` looks at the account's other VMs.
pub(crate) fn takes_looking(vm: &Vm) -> bool {
    !vm.apart.is_empty() || bridged(vm).any(|card| card.address.is_some())
}

/// Where a VM is not to be.
#[derive(Default)]
pub(crate) struct Neighbours<'a> {
    wishes: Vec<Wish<'a>>,
    /// Hosts on which an address of the VM on a bridge is another's.
    contested: BTreeSet<HostId>,
}

/// What one wish forbids; of what it does not ask for, nothing.
struct Wish<'a> {
    apart: &'a Apart,
    hosts: BTreeSet<HostId>,
    operators: BTreeSet<OperatorId>,
    /// In their regions.
    sites: BTreeSet<(&'a Name, &'a Name)>,
}

impl<'a> Neighbours<'a> {
    pub(crate) fn of(state: &'a State, looks: &Looks, vm: &'a Vm) -> Self {
        let sought = Sought::of(vm);
        if sought.is_nothing() {
            return Self::default();
        }
        looks.add(state, vm.account, state.vms_count(&vm.account));
        let mut on_hosts: BTreeMap<HostId, Met> = BTreeMap::new();
        for (host, Met { wishes, has_address }) in state.look(&vm.account, &vm.id, &sought) {
            let met = on_hosts.entry(host).or_default();
            met.wishes |= wishes;
            met.has_address |= has_address;
        }
        let mut wishes: Vec<_> = vm.apart.iter().map(Wish::new).collect();
        for (id, met) in &on_hosts {
            let Some(host) = state.hosts.get(id) else { continue };
            for (at, wish) in (0..Wishes::BITS).zip(&mut wishes) {
                if met.wishes & 1 << at != 0 {
                    wish.forbid(host);
                }
            }
        }
        let contested = on_hosts.iter().filter(|(_, met)| met.has_address);
        Self { wishes, contested: contested.map(|(host, _)| *host).collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.wishes.is_empty()
    }

    pub(crate) fn has(&self, strength: ApartStrength) -> bool {
        self.wishes.iter().any(|wish| wish.apart.strength == strength)
    }

    /// Whether a host carries another VM of the account with one of the VM's addresses.
    pub(crate) fn contest(&self, host: &HostId) -> bool {
        self.contested.contains(host)
    }

    /// The wishes of this strength that placing the VM on `host` would break.
    pub(crate) fn broken(
        &self,
        host: &Host,
        strength: ApartStrength,
    ) -> impl Iterator<Item = ApartBy> {
        let of_strength = self.wishes.iter().filter(move |wish| wish.apart.strength == strength);
        of_strength.filter(move |wish| wish.forbids(host)).map(|wish| wish.apart.by)
    }
}

impl<'a> Wish<'a> {
    fn new(apart: &'a Apart) -> Self {
        let (hosts, operators, sites) = Default::default();
        Self { apart, hosts, operators, sites }
    }

    /// Takes in a host that carries a VM to keep away from.
    fn forbid(&mut self, host: &'a Host) {
        match self.apart.by {
            ApartBy::Host => _ = self.hosts.insert(host.id),
            ApartBy::Operator => _ = self.operators.insert(host.operator),
            // One without a site is a site of its own.
            ApartBy::Site => match &host.site {
                Some(site) => _ = self.sites.insert((&host.region, site)),
                None => _ = self.hosts.insert(host.id),
            },
        }
    }

    fn forbids(&self, host: &Host) -> bool {
        let site = || host.site.as_ref().is_some_and(|s| self.sites.contains(&(&host.region, s)));
        self.hosts.contains(&host.id) || self.operators.contains(&host.operator) || site()
    }
}
