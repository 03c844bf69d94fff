//! The model's placement: every host is looked at, everything is counted anew, the best is kept.

use std::net::Ipv4Addr;

use dagger_payload::bridge::Bridged;
use dagger_payload::id::{AccountId, HostId, VmId};
use dagger_payload::kind::{Apart, ApartBy, ApartStrength, Capacity};
use dagger_payload::object::{Grant, Host, HostDuty, Placement, Vm};
use dagger_payload::refusal::RefusalCode;

use super::looks;
use super::state::Model;

/// Offers `vm` to the best host.
pub(crate) fn place(model: &Model, vm: &Vm) -> Result<Placement, RefusalCode> {
    looks::require(model, vm)?;
    let account = model.account(vm.account).expect("it has an account");
    let grants: Vec<&Grant> =
        account.grants.iter().filter(|grant| has_room(model, grant, vm)).collect();
    if grants.is_empty() {
        return Err(RefusalCode::GrantExceeded);
    }
    let counts_with = model.counts_with(vm);
    let mut grants = grants;
    grants
        .retain(|grant| counts_with == Some(grant.operator) || !model.is_burdened(grant.operator));
    if grants.is_empty() {
        return Err(RefusalCode::LimitExceeded);
    }
    looks::look(model, vm);
    let mut fitting: Vec<&Host> = model
        .hosts
        .iter()
        .filter(|host| grants.iter().any(|grant| grant.operator == host.operator))
        .filter(|host| fits(model, host, vm))
        .collect();
    // The best comes first.
    fitting.sort_by_key(|host| {
        let broken = breaks(model, host, vm, ApartStrength::Preferred);
        let share = free_share(model, host, vm);
        (broken, u64::MAX - share, u64::MAX - tie(vm, host), std::cmp::Reverse(host.id))
    });
    let host = fitting.first().ok_or(RefusalCode::NoHostFits)?;
    let address = free_address(model, host).expect("it was asked for");
    Ok(Placement::Offered { host: host.id, address, deadline: model.now.plus_ms(10_000) })
}

/// Whether `vm`, of its new size, may stay on `host`.
pub(crate) fn require_room(model: &Model, host: &Host, vm: &Vm) -> Result<(), RefusalCode> {
    require_share(model, vm.account, host, (Some(vm.id), &vm.size))
}

/// Whether `size` more fits on `host` and in a grant, beside all but one VM.
pub(crate) fn require_share(
    model: &Model,
    account: AccountId,
    host: &Host,
    (without, size): (Option<VmId>, &Capacity),
) -> Result<(), RefusalCode> {
    let wanted = model.sum_with(account, host.operator, without).0.plus(size);
    let account = model.account(account).expect("it is one");
    let is_granted = account.grants.iter().any(|grant| {
        grant.operator == host.operator && model.is_live(grant) && grant.capacity.covers(&wanted)
    });
    if !is_granted {
        return Err(RefusalCode::GrantExceeded);
    }
    let others = model.sum_on(host.id, without);
    // What asks for disk alone does not care what else is overdrawn.
    let has_it = host.capacity.minus(&host.reserve).minus(&others).covers(size);
    has_it.then_some(()).ok_or(RefusalCode::NoHostFits)
}

/// Whether `account` may have one thing more on the disk of `host`.
pub(crate) fn require_few_on_disk(
    model: &Model,
    account: AccountId,
    host: &Host,
) -> Result<(), RefusalCode> {
    let too_many = model.has_enough(account) || model.is_burdened(host.operator);
    if too_many { Err(RefusalCode::LimitExceeded) } else { Ok(()) }
}

fn has_room(model: &Model, grant: &Grant, vm: &Vm) -> bool {
    let (used, vms) = model.sum_with(vm.account, grant.operator, Some(vm.id));
    model.is_live(grant) && vms < grant.vms && grant.capacity.covers(&used.plus(&vm.size))
}

fn fits(model: &Model, host: &Host, vm: &Vm) -> bool {
    let used = used_on(model, host.id);
    host.duty == HostDuty::Open
        && !vm.tried.contains(&host.id)
        && !model.is_silent(host.id)
        && vm.pinned_host.is_none_or(|pinned| pinned == host.id)
        && vm.region.as_ref().is_none_or(|region| *region == host.region)
        && vm.host_labels.iter().all(|(name, value)| host.labels.get(name) == Some(value))
        && breaks(model, host, vm, ApartStrength::Required) == 0
        && (vm.network.forwards.is_empty() || host.forward_ports_first.is_some())
        && cards_on_bridges(vm).all(|card| host.bridges.contains(&card.bridge))
        && !cards_on_bridges(vm).any(|card| is_taken(model, host, vm, card))
        && host.capacity.minus(&host.reserve).covers(&used.plus(&vm.size))
        && free_address(model, host).is_some()
}

fn cards_on_bridges(vm: &Vm) -> impl Iterator<Item = &Bridged> {
    let cards = [&vm.network].into_iter().chain(vm.more_cards.iter());
    cards.filter_map(|card| card.bridge.as_ref())
}

/// Whether another VM of the account has the card's address on the same bridge of `host`.
fn is_taken(model: &Model, host: &Host, vm: &Vm, card: &Bridged) -> bool {
    let Some(wished) = card.address else { return false };
    model.vms.iter().any(|other| {
        let is_meant = other.id != vm.id && other.account == vm.account;
        let is_here = other.placement.host() == Some(host.id);
        let has_it = |theirs: &Bridged| {
            theirs.bridge == card.bridge
                && theirs.address.is_some_and(|address| address.address == wished.address)
        };
        is_meant && is_here && cards_on_bridges(other).any(has_it)
    })
}

fn used_on(model: &Model, host: HostId) -> Capacity {
    model.sum_on(host, None)
}

/// How many wishes of this strength the VM would break on `host`.
fn breaks(model: &Model, host: &Host, vm: &Vm, strength: ApartStrength) -> usize {
    let wishes = vm.apart.iter().filter(|apart| apart.strength == strength);
    wishes.filter(|apart| is_broken(model, host, vm, apart)).count()
}

fn is_broken(model: &Model, host: &Host, vm: &Vm, apart: &Apart) -> bool {
    model.vms.iter().any(|other| {
        let is_meant = other.id != vm.id
            && other.account == vm.account
            && apart.from.iter().all(|(name, value)| other.labels.get(name) == Some(value));
        let its_host = other.placement.host().and_then(|host| model.host(host));
        is_meant && its_host.is_some_and(|its_host| share(apart.by, host, its_host))
    })
}

fn share(by: ApartBy, one: &Host, other: &Host) -> bool {
    match by {
        ApartBy::Host => one.id == other.id,
        ApartBy::Operator => one.operator == other.operator,
        ApartBy::Site if one.id == other.id => true,
        ApartBy::Site => one.site.is_some() && one.site == other.site && one.region == other.region,
    }
}

/// Thousandths of the offered memory that stay free; every host of the model offers some.
fn free_share(model: &Model, host: &Host, vm: &Vm) -> u64 {
    let offered = host.capacity.memory_mib - host.reserve.memory_mib;
    let used = used_on(model, host.id).memory_mib + vm.size.memory_mib;
    offered.saturating_sub(used) * 1000 / offered
}

/// SplitMix64's finaliser over the first eight bytes of both ids.
fn tie(vm: &Vm, host: &Host) -> u64 {
    let first = |bytes: &[u8]| u64::from_be_bytes(bytes[..8].try_into().expect("eight"));
    let word = first(vm.id.as_bytes()) ^ first(host.id.as_bytes());
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The first address after the one that was given last that no guest has.
fn free_address(model: &Model, host: &Host) -> Option<Ipv4Addr> {
    let subnet = host.guest_subnet;
    let guests = (1_u32 << (32 - subnet.prefix_length)) - 3;
    let cursor = model.cursors.get(&host.id).copied().unwrap_or(0);
    let is_taken = |address: Ipv4Addr| {
        let place = Some((host.id, address));
        model.vms.iter().any(|vm| vm.placement.host().zip(vm.placement.address()) == place)
    };
    let all = (0..guests)
        .map(|step| Ipv4Addr::from(u32::from(subnet.network) + 2 + (cursor + step) % guests));
    all.into_iter().find(|address| !is_taken(*address))
}
