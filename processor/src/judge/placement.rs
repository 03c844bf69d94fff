//! Where a VM goes: the same host on every judge.
//!
//! Owns the filter, the preference and the tie-break. Uses only the state and ledger time. Called
//! when a VM is created, when an offer lapses or is refused, and when an owner starts a VM that
//! found no host.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dagger_payload::id::{HostId, LedgerTime, VmId};
use dagger_payload::kind::{Apart, ApartBy, ApartStrength, Capacity};
use dagger_payload::limits::{ACCEPTANCE_MS_MAX, REASON_BYTES_MAX};
use dagger_payload::name::{Labels, Name};
use dagger_payload::object::{Grant, Host, HostDuty, Placement, Vm};
use dagger_payload::refusal::{Refusal, RefusalCode};

use super::state::{State, is_live};

/// Offers `vm` to the best host that it has not tried.
///
/// # Errors `grant_exceeded` when no grant has room, `no_host_fits` when grants have but no host
/// does; the detail says which host lacks what.
pub(crate) fn place(state: &State, vm: &Vm, now: LedgerTime) -> Result<Placement, Refusal> {
    let grants = state.accounts.get(&vm.account).map_or(&[][..], |account| &account.grants);
    let roomy: Vec<&Grant> =
        grants.iter().filter(|grant| has_room(state, grant, vm, now)).collect();
    if roomy.is_empty() {
        return Err(Refusal::new(RefusalCode::GrantExceeded, describe_grants(state, vm, now)));
    }
    let neighbours = Neighbours::of(state, vm);
    let mut rejected = Vec::new();
    let mut best = None;
    for host in state.hosts.values() {
        if !roomy.iter().any(|grant| grant.operator == host.operator) {
            continue;
        }
        match examine(state, &neighbours, host, vm, now) {
            Ok((rank, address)) => {
                if best.as_ref().is_none_or(|(other, _, _)| *other < rank) {
                    best = Some((rank, host.id, address));
                }
            }
            Err(reason) => rejected.push((&host.name, reason)),
        }
    }
    match best {
        Some((_, host, address)) => {
            Ok(Placement::Offered { host, address, deadline: now.plus_ms(ACCEPTANCE_MS_MAX) })
        }
        None => Err(Refusal::new(RefusalCode::NoHostFits, describe(&rejected))),
    }
}

/// How good a host is: the greatest wins. Fewest broken preferences, most memory left, and the
/// digest of VM and host, so that nobody can choose who wins a tie.
type Rank = (Reverse<usize>, u64, [u8; 32]);

fn has_room(state: &State, grant: &Grant, vm: &Vm, now: LedgerTime) -> bool {
    let mut used = state.used_by(&vm.account, &grant.operator);
    // An offer that moves on no longer counts where it was.
    let placed = state.vms.get(&vm.id).and_then(|old| state.hosts.get(&old.placement.host()?));
    if placed.is_some_and(|host| host.operator == grant.operator) {
        used.capacity = used.capacity.minus(&vm.size);
        used.vms = used.vms.saturating_sub(1);
    }
    is_live(grant, now)
        && used.vms < grant.vms
        && grant.capacity.covers(&used.capacity.plus(&vm.size))
}

fn describe_grants(state: &State, vm: &Vm, now: LedgerTime) -> String {
    let account = state.accounts.get(&vm.account);
    let live = account.into_iter().flat_map(|account| &account.grants);
    let left: Vec<String> = live
        .filter(|grant| is_live(grant, now))
        .map(|grant| {
            let used = state.used_by(&vm.account, &grant.operator);
            let left = grant.capacity.minus(&used.capacity);
            let vms = grant.vms.saturating_sub(used.vms);
            format!("{} CPUs, {} MiB, {} GiB, {vms} VMs", left.cpus, left.memory_mib, left.disk_gib)
        })
        .collect();
    let wanted = &vm.size;
    format!(
        "{} CPUs, {} MiB and {} GiB asked; left of each grant: {}",
        wanted.cpus,
        wanted.memory_mib,
        wanted.disk_gib,
        if left.is_empty() { "nothing".to_owned() } else { left.join("; ") }
    )
}

/// Why a granted host cannot take a VM.
#[derive(Debug, Clone, Copy)]
enum Reason {
    Tried,
    Silent,
    Draining,
    OtherHostAsked,
    OtherRegion,
    LabelsMissing,
    NotApart(ApartBy),
    Full(Capacity),
    NoAddress,
}

fn examine(
    state: &State,
    neighbours: &Neighbours<'_>,
    host: &Host,
    vm: &Vm,
    now: LedgerTime,
) -> Result<(Rank, Ipv4Addr), Reason> {
    let used = state.used_on(&host.id).capacity;
    if vm.tried.contains(&host.id) {
        return Err(Reason::Tried);
    } else if state.silence.is_silent(&host.id, now) {
        return Err(Reason::Silent);
    } else if host.duty == HostDuty::Draining {
        return Err(Reason::Draining);
    } else if vm.pinned_host.is_some_and(|pinned| pinned != host.id) {
        return Err(Reason::OtherHostAsked);
    } else if vm.region.as_ref().is_some_and(|region| *region != host.region) {
        return Err(Reason::OtherRegion);
    } else if !carries(&host.labels, &vm.host_labels) {
        return Err(Reason::LabelsMissing);
    } else if let Some(by) = neighbours.broken(host, ApartStrength::Required).next() {
        return Err(Reason::NotApart(by));
    }
    let free = host.offered().minus(&used);
    if !free.covers(&vm.size) {
        return Err(Reason::Full(vm.size.minus(&free)));
    }
    let address = state.free_address(host).ok_or(Reason::NoAddress)?;
    let broken = neighbours.broken(host, ApartStrength::Preferred).count();
    let rank = (Reverse(broken), free_share(host, &used.plus(&vm.size)), tie(&vm.id, &host.id));
    Ok((rank, address))
}

/// The hosts of the VMs that a VM is kept away from, wish by wish.
struct Neighbours<'a> {
    wishes: Vec<(&'a Apart, Vec<&'a Host>)>,
}

impl<'a> Neighbours<'a> {
    fn of(state: &'a State, vm: &'a Vm) -> Self {
        let hosts_of = |apart: &Apart| {
            let mut hosts: BTreeMap<HostId, &Host> = BTreeMap::new();
            for other in state.vms_of(&vm.account) {
                if other.id != vm.id && carries(&other.labels, &apart.from) {
                    let host = other.placement.host().and_then(|host| state.hosts.get(&host));
                    hosts.extend(host.map(|host| (host.id, host)));
                }
            }
            hosts.into_values().collect()
        };
        Self { wishes: vm.apart.iter().map(|apart| (apart, hosts_of(apart))).collect() }
    }

    /// The wishes of this strength that placing the VM on `host` would break.
    fn broken(&self, host: &Host, strength: ApartStrength) -> impl Iterator<Item = ApartBy> {
        self.wishes.iter().filter_map(move |(apart, hosts)| {
            let shared = hosts.iter().any(|other| shares(apart.by, host, other));
            (apart.strength == strength && shared).then_some(apart.by)
        })
    }
}

fn shares(by: ApartBy, one: &Host, other: &Host) -> bool {
    match by {
        ApartBy::Host => one.id == other.id,
        ApartBy::Operator => one.operator == other.operator,
        ApartBy::Site => {
            let same_site =
                one.site.is_some() && (&one.site, &one.region) == (&other.site, &other.region);
            one.id == other.id || same_site
        }
    }
}

fn carries(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// Thousandths of the host's offered memory that stay free when `used` is used.
fn free_share(host: &Host, used: &Capacity) -> u64 {
    let offered = host.offered();
    let free = u128::from(offered.minus(used).memory_mib);
    let share = free * 1000 / u128::from(offered.memory_mib.max(1));
    u64::try_from(share).unwrap_or(1000)
}

fn tie(vm: &VmId, host: &HostId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("dagger v1 placement tie");
    *hasher.update(vm.as_bytes()).update(host.as_bytes()).finalize().as_bytes()
}

/// Which host lacks what, as far as the refusal has room for it.
fn describe(rejected: &[(&Name, Reason)]) -> String {
    if rejected.is_empty() {
        return "no operator whose grant has room for it has declared a host".to_owned();
    }
    let mut text = String::new();
    for (at, (host, reason)) in rejected.iter().enumerate() {
        let part = format!("{}{host} {}", if at == 0 { "" } else { "; " }, reason.words());
        let left = rejected.len() - at;
        let more = format!("; and {left} more");
        if text.len() + part.len() + more.len() > REASON_BYTES_MAX {
            return text + &more;
        }
        text += &part;
    }
    text
}

impl Reason {
    fn words(self) -> String {
        match self {
            Self::Tried => "did not take it".to_owned(),
            Self::Silent => "is silent".to_owned(),
            Self::Draining => "is draining".to_owned(),
            Self::OtherHostAsked => "is not the host asked for".to_owned(),
            Self::OtherRegion => "is in another region".to_owned(),
            Self::LabelsMissing => "does not carry the labels asked for".to_owned(),
            Self::NotApart(ApartBy::Host) => "carries a VM to keep away from".to_owned(),
            Self::NotApart(ApartBy::Operator) => {
                "has the operator of a VM to keep away from".to_owned()
            }
            Self::NotApart(ApartBy::Site) => "is at the site of a VM to keep away from".to_owned(),
            Self::Full(lack) => {
                let amounts = [
                    (u64::from(lack.cpus), "CPUs"),
                    (lack.memory_mib, "MiB of memory"),
                    (lack.disk_gib, "GiB of disk"),
                ];
                let lacking = amounts.iter().filter(|(amount, _)| *amount > 0);
                let parts: Vec<_> =
                    lacking.map(|(amount, unit)| format!("{amount} {unit}")).collect();
                format!("lacks {}", parts.join(", "))
            }
            Self::NoAddress => "has no address left".to_owned(),
        }
    }
}
