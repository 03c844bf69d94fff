//! Where a VM goes: the same host on every judge.
//!
//! Owns the filter, the preference and the tie-break. Uses only the state and ledger time. Called
//! when a VM is created, when an offer lapses or is refused, and when an owner starts a VM that
//! found no host.

use dagger_payload::id::{HostId, LedgerTime, VmId};
use dagger_payload::kind::Capacity;
use dagger_payload::limits::ACCEPTANCE_MS_MAX;
use dagger_payload::name::Labels;
use dagger_payload::object::{Grant, Host, Placement, Vm};
use dagger_payload::refusal::{Refusal, RefusalCode};

use super::state::{State, is_live};

/// Offers `vm` to the best host that it has not tried.
///
/// # Errors `grant_exceeded` when no grant has room, `no_host_fits` when grants have but no host
/// does; the detail counts why.
pub(crate) fn place(state: &State, vm: &Vm, now: LedgerTime) -> Result<Placement, Refusal> {
    let grants = state.accounts.get(&vm.account).map_or(&[][..], |account| &account.grants);
    let roomy: Vec<&Grant> =
        grants.iter().filter(|grant| has_room(state, grant, vm, now)).collect();
    if roomy.is_empty() {
        return Err(Refusal::new(RefusalCode::GrantExceeded, describe_grants(state, vm, now)));
    }
    let rejected = Rejected::default();
    let granted = |host: &&Host| roomy.iter().any(|grant| grant.operator == host.operator);
    let best = state
        .hosts
        .values()
        .filter(granted)
        .filter(|host| rejected.admit(reject(state, host, vm, now)))
        .filter_map(|host| Some((host, state.free_address(host)?)))
        .max_by_key(|(host, _)| (free_share(state, host, &vm.size), tie(&vm.id, &host.id)));
    match best {
        Some((host, address)) => Ok(Placement::Offered {
            host: host.id,
            address,
            deadline: now.plus_ms(ACCEPTANCE_MS_MAX),
        }),
        None => Err(Refusal::new(RefusalCode::NoHostFits, rejected.describe())),
    }
}

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    Tried,
    Silent,
    OtherHostAsked,
    OtherRegion,
    LabelsMissing,
    Full,
}

fn reject(state: &State, host: &Host, vm: &Vm, now: LedgerTime) -> Option<Reason> {
    let free = host.capacity.minus(&state.used_on(&host.id).capacity);
    if vm.tried.contains(&host.id) {
        Some(Reason::Tried)
    } else if state.silence.is_silent(&host.id, now) {
        Some(Reason::Silent)
    } else if vm.pinned_host.is_some_and(|pinned| pinned != host.id) {
        Some(Reason::OtherHostAsked)
    } else if vm.region.as_ref().is_some_and(|region| *region != host.region) {
        Some(Reason::OtherRegion)
    } else if !carries(&host.labels, &vm.host_labels) {
        Some(Reason::LabelsMissing)
    } else if !free.covers(&vm.size) || state.free_address(host).is_none() {
        Some(Reason::Full)
    } else {
        None
    }
}

fn carries(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// Thousandths of the host's memory that would stay free.
fn free_share(state: &State, host: &Host, size: &Capacity) -> u64 {
    let used = state.used_on(&host.id).capacity.plus(size);
    let free = u128::from(host.capacity.minus(&used).memory_mib);
    let share = free * 1000 / u128::from(host.capacity.memory_mib.max(1));
    u64::try_from(share).unwrap_or(1000)
}

fn tie(vm: &VmId, host: &HostId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("dagger v1 placement tie");
    *hasher.update(vm.as_bytes()).update(host.as_bytes()).finalize().as_bytes()
}

/// Counts of reasons, for the refusal's detail.
#[derive(Debug, Default)]
struct Rejected {
    reasons: std::cell::RefCell<std::collections::BTreeMap<Reason, usize>>,
}

impl Rejected {
    fn admit(&self, reason: Option<Reason>) -> bool {
        if let Some(reason) = reason {
            *self.reasons.borrow_mut().entry(reason).or_default() += 1;
        }
        reason.is_none()
    }

    fn describe(&self) -> String {
        let reasons = self.reasons.borrow();
        let parts: Vec<String> = reasons
            .iter()
            .map(|(reason, count)| {
                let why = match reason {
                    Reason::Tried => "did not take it",
                    Reason::Silent => "silent",
                    Reason::OtherHostAsked => "not the host asked for",
                    Reason::OtherRegion => "in another region",
                    Reason::LabelsMissing => "without the labels asked for",
                    Reason::Full => "too full",
                };
                format!("{count} {why}")
            })
            .collect();
        if parts.is_empty() {
            "no operator who granted you capacity has declared a host".to_owned()
        } else {
            format!("of the hosts that you may use: {}", parts.join(", "))
        }
    }
}
