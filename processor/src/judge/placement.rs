//! Where a VM goes: the same host on every judge.
//!
//! Owns the filter, the preference and the tie-break. Uses only the state, ledger time and what the
//! commit has looked at. Called when a VM is created or resized or a volume created, when an offer
//! lapses or is refused, and when an owner starts a VM that found no host.

use std::borrow::Cow;
use std::cmp::Reverse;

use dagger_payload::id::{AccountId, HostId, LedgerTime, OperatorId};
use dagger_payload::kind::{ApartBy, ApartStrength, Capacity};
use dagger_payload::limits::{ACCEPTANCE_MS_MAX, REASON_BYTES_MAX};
use dagger_payload::name::{Labels, Name};
use dagger_payload::object::{Grant, Host, HostDuty, Placement, Vm};
use dagger_payload::prediction::{HostFit, HostOutlook};
use dagger_payload::refusal::{Refusal, RefusalCode};

use super::burdens::{counting_host, require_unburdened};
use super::looks::Looks;
use super::neighbours::{Neighbours, takes_looking};
use super::networks::{bridged, can_forward, missing_bridge};
use super::rooms::{Among, Room, tie};
use super::state::{Means, State, Usage};

/// Offers `vm` to the best host that it has not tried; `means` are those of its account.
///
/// # Errors `grant_exceeded` when no grant has room, `limit_exceeded` when only those of operators
/// have whose hosts carry as many things as may be, `no_host_fits` when other grants have but no
/// host does; the detail says which host lacks what. `commit_full` when too much was looked at for
/// the account, before anything else.
pub(crate) fn place(
    state: &State,
    looks: &Looks,
    vm: &Vm,
    means: Means<'_>,
    now: LedgerTime,
) -> Result<Placement, Refusal> {
    let search = Search::begin(state, looks, vm, means, now)?;
    let best = search.best().and_then(|room| state.hosts.get(&room.host));
    match best.and_then(|host| Some((host.id, state.free_address(host)?))) {
        Some((host, address)) => {
            Ok(Placement::Offered { host, address, deadline: now.plus_ms(ACCEPTANCE_MS_MAX) })
        }
        None => Err(Refusal::new(RefusalCode::NoHostFits, search.describe_rejected())),
    }
}

/// What speaks for and against each host that a grant with room allows, the best first; nothing
/// when no grant has room.
pub(crate) fn outlook(
    state: &State,
    vm: &Vm,
    means: Means<'_>,
    now: LedgerTime,
) -> Vec<HostOutlook> {
    let looks = Looks::default();
    let Ok(search) = Search::begin(state, &looks, vm, means, now) else { return Vec::new() };
    let chosen = search.best().map(|room| room.host);
    let mut hosts: Vec<_> = search.granted().map(|(room, host)| search.look(room, host)).collect();
    hosts.sort_by_key(|(rank, outlook)| (Some(outlook.host) != chosen, Reverse(*rank)));
    if let Some((_, first)) = hosts.first_mut().filter(|(_, first)| Some(first.host) == chosen) {
        first.fit = HostFit::Chosen;
    }
    hosts.into_iter().map(|(_, outlook)| outlook).collect()
}

/// Whether `vm` may be of `size` where it is.
///
/// # Errors `grant_exceeded` when no live grant of its host's operator covers that, `no_host_fits`
/// when its host has not got it. A VM without a host may wish for anything.
pub(crate) fn require_room(
    state: &State,
    vm: &Vm,
    size: &Capacity,
    now: LedgerTime,
) -> Result<(), Refusal> {
    let Some(host) = vm.placement.host().and_then(|host| state.hosts.get(&host)) else {
        return Ok(());
    };
    require_share(state, (&vm.account, host), (&vm.size, size), now)
}

/// Whether what `account` has on `host` may grow from `before` to `size`.
///
/// # Errors
/// `grant_exceeded` when no live grant of the host's operator covers that, `no_host_fits` when the
/// host has not got it.
pub(crate) fn require_share(
    state: &State,
    (account, host): (&AccountId, &Host),
    (before, size): (&Capacity, &Capacity),
    now: LedgerTime,
) -> Result<(), Refusal> {
    let used = state.used_by(account, &host.operator).capacity;
    let wanted = used.minus(before).plus(size);
    let grants = state.accounts.get(account).map_or(&[][..], |account| &account.grants);
    let mut of_operator =
        grants.iter().filter(|grant| grant.operator == host.operator && state.is_live(grant, now));
    if !of_operator.any(|grant| grant.capacity.covers(&wanted)) {
        let detail = describe_grants(state, account, size, now);
        return Err(Refusal::new(RefusalCode::GrantExceeded, detail));
    }
    let free = host.offered().minus(&state.used_on(&host.id).capacity.minus(before));
    if !free.covers(size) {
        let lack = Reason::Full(size.minus(&free));
        let only = std::iter::once((&host.name, lack));
        return Err(Refusal::new(RefusalCode::NoHostFits, describe(1, only)));
    }
    Ok(())
}

/// How good a host is: the greatest wins, and of equal ones the host with the greatest id. Fewest
/// broken preferences, most memory left, and a mix of VM and host, so that no host wins every tie.
type Rank = (Reverse<usize>, u64, u64);

/// Whether `grant`, of which the VM's account uses `used`, covers one more VM. `placed` is the host
/// that the VM is on.
fn has_room(grant: &Grant, mut used: Usage, vm: &Vm, placed: Option<&Host>) -> bool {
    // An offer that moves on no longer counts where it was.
    if placed.is_some_and(|host| host.operator == grant.operator) {
        used.capacity = used.capacity.minus(&vm.size);
        used.vms = used.vms.saturating_sub(1);
    }
    used.vms < grant.vms && grant.capacity.covers(&used.capacity.plus(&vm.size))
}

/// Takes those out on whose hosts no further VM may stand.
///
/// # Errors
/// `limit_exceeded` when none is left.
fn keep_unburdened(state: &State, vm: &Vm, operators: &mut Vec<OperatorId>) -> Result<(), Refusal> {
    // One that moves on among the hosts of its operator counts there already.
    let counting = counting_host(&vm.placement, &vm.tried).and_then(|host| state.hosts.get(&host));
    let mut refusal = None;
    operators.retain(|operator| {
        let counts = counting.is_some_and(|host| host.operator == *operator);
        match require_unburdened(state, operator) {
            Err(burdened) if !counts => {
                refusal = Some(burdened);
                false
            }
            _ => true,
        }
    });
    refusal.filter(|_| operators.is_empty()).map_or(Ok(()), Err)
}

fn describe_grants(
    state: &State,
    account: &AccountId,
    wanted: &Capacity,
    now: LedgerTime,
) -> String {
    let grants = state.accounts.get(account);
    let live = grants.into_iter().flat_map(|account| &account.grants);
    let left: Vec<String> = live
        .filter(|grant| state.is_live(grant, now))
        .map(|grant| {
            let used = state.used_by(account, &grant.operator);
            let left = grant.capacity.minus(&used.capacity);
            let vms = grant.vms.saturating_sub(used.vms);
            format!("{} CPUs, {} MiB, {} GiB, {vms} VMs", left.cpus, left.memory_mib, left.disk_gib)
        })
        .collect();
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
enum Reason<'a> {
    Tried,
    Silent,
    Draining,
    OtherHostAsked,
    OtherRegion,
    LabelsMissing,
    NoPorts,
    NoBridge(&'a Name),
    AddressTaken,
    NotApart(ApartBy),
    Full(Capacity),
    NoAddress,
}

/// One search for a host.
struct Search<'a> {
    state: &'a State,
    vm: &'a Vm,
    /// Those whose grant has room.
    operators: Among,
    silent: Cow<'a, [HostId]>,
    /// Those that did not take it, by id.
    tried: Vec<HostId>,
    neighbours: Neighbours<'a>,
}

impl<'a> Search<'a> {
    /// # Errors `commit_full` when too much was looked at for the account, `grant_exceeded` when no
    /// grant has room, `limit_exceeded` when only those of operators have whose hosts carry as many
    /// things as may be.
    fn begin(
        state: &'a State,
        looks: &Looks,
        vm: &'a Vm,
        means: Means<'_>,
        now: LedgerTime,
    ) -> Result<Self, Refusal> {
        if takes_looking(vm) {
            looks.require(state, &vm.account)?;
        }
        // `vm` still names the host that it is to leave, if it has one.
        let placed = vm.placement.host().and_then(|host| state.hosts.get(&host));
        let roomy = means
            .grants
            .iter()
            .filter(|grant| state.is_live(grant, now))
            .filter(|grant| has_room(grant, means.used_by(&grant.operator), vm, placed));
        let mut operators: Vec<_> = roomy.map(|grant| grant.operator).collect();
        if operators.is_empty() {
            let detail = describe_grants(state, &vm.account, &vm.size, now);
            return Err(Refusal::new(RefusalCode::GrantExceeded, detail));
        }
        keep_unburdened(state, vm, &mut operators)?;
        Ok(Self {
            state,
            vm,
            operators: state.rooms.among(&operators),
            silent: state.silent(now),
            tried: sorted(&vm.tried),
            neighbours: Neighbours::of(state, looks, vm),
        })
    }

    fn granted(&self) -> impl Iterator<Item = (&'a Room, &'a Host)> {
        let granted = self.state.rooms.iter().filter(|room| self.operators.contains(room.operator));
        granted.filter_map(|room| Some((room, self.state.hosts.get(&room.host)?)))
    }

    /// The best host that fits.
    fn best(&self) -> Option<&'a Room> {
        let (rooms, size) = (&self.state.rooms, &self.vm.size);
        if self.neighbours.has(ApartStrength::Preferred) {
            let fitting = rooms.iter().filter(|room| self.fits(room));
            return fitting.max_by_key(|room| self.rank(room, room.free_share(size)));
        }
        rooms.best(&self.vm.id, size.memory_mib, |room| self.fits(room))
    }

    fn fits(&self, room: &Room) -> bool {
        self.operators.contains(room.operator)
            && room.fits(&self.vm.size)
            && self.reason_against(room).is_none()
    }

    fn rank(&self, room: &Room, share: u64) -> Rank {
        let broken = if self.neighbours.is_empty() { 0 } else { self.broken_preferences(room) };
        (Reverse(broken), share, tie(&self.vm.id, &room.host))
    }

    /// The first thing that speaks against each granted host, as far as there is room to say it.
    fn describe_rejected(&self) -> String {
        let rejected = self.granted().map(|(room, host)| (&host.name, self.rejection(room, host)));
        describe(self.granted().count(), rejected)
    }

    /// Why a host that does not fit does not.
    fn rejection(&self, room: &Room, host: &Host) -> Reason<'a> {
        self.reason_against(room).unwrap_or_else(|| {
            let free = host.offered().minus(&room.used.capacity);
            match free.covers(&self.vm.size) {
                true => Reason::NoAddress,
                false => Reason::Full(self.vm.size.minus(&free)),
            }
        })
    }

    /// How a host fits, and how good it is among those that do.
    fn look(&self, room: &Room, host: &Host) -> (Option<Rank>, HostOutlook) {
        let fits = room.fits(&self.vm.size) && self.reason_against(room).is_none();
        let rank = fits.then(|| self.rank(room, room.free_share(&self.vm.size)));
        let (broken, free_memory_permille) =
            rank.map_or((0, 0), |(Reverse(broken), share, _)| (broken, share));
        let fit = match rank {
            Some(_) => HostFit::Fits,
            None => HostFit::Unfit { why: self.rejection(room, host).words() },
        };
        let broken_preferences = u64::try_from(broken).unwrap_or(u64::MAX);
        let (id, name) = (host.id, host.name.clone());
        (rank, HostOutlook { host: id, name, fit, free_memory_permille, broken_preferences })
    }

    /// What speaks against a host, apart from how much room it has.
    fn reason_against(&self, room: &Room) -> Option<Reason<'a>> {
        let vm = self.vm;
        if self.tried.binary_search(&room.host).is_ok() {
            return Some(Reason::Tried);
        } else if self.silent.binary_search(&room.host).is_ok() {
            return Some(Reason::Silent);
        } else if room.duty == HostDuty::Draining {
            return Some(Reason::Draining);
        } else if vm.pinned_host.is_some_and(|pinned| pinned != room.host) {
            return Some(Reason::OtherHostAsked);
        } else if vm.region.is_none()
            && vm.host_labels.is_empty()
            && vm.apart.is_empty()
            && vm.network.forwards.is_empty()
            && bridged(vm).next().is_none()
        {
            return None; // nothing that the host itself would have to be looked at for
        }
        let host = self.state.hosts.get(&room.host)?;
        if vm.region.as_ref().is_some_and(|region| *region != host.region) {
            Some(Reason::OtherRegion)
        } else if !carries(&host.labels, &vm.host_labels) {
            Some(Reason::LabelsMissing)
        } else if !can_forward(host, vm) {
            Some(Reason::NoPorts)
        } else if let Some(bridge) = missing_bridge(host, vm) {
            Some(Reason::NoBridge(bridge))
        } else if self.neighbours.contest(&host.id) {
            Some(Reason::AddressTaken)
        } else {
            let required = self.neighbours.broken(host, ApartStrength::Required).next();
            required.map(Reason::NotApart)
        }
    }

    fn broken_preferences(&self, room: &Room) -> usize {
        let host = self.state.hosts.get(&room.host);
        host.map_or(0, |host| self.neighbours.broken(host, ApartStrength::Preferred).count())
    }
}

fn sorted(hosts: &[HostId]) -> Vec<HostId> {
    let mut hosts = hosts.to_vec();
    hosts.sort_unstable();
    hosts
}

fn carries(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// Which of so many hosts lacks what, as far as the refusal has room for it; the others are not
/// looked at.
fn describe<'a>(count: usize, rejected: impl Iterator<Item = (&'a Name, Reason<'a>)>) -> String {
    if count == 0 {
        return "no operator whose grant has room for it has declared a host".to_owned();
    }
    let mut text = String::new();
    for (at, (host, reason)) in rejected.enumerate() {
        let part = format!("{}{host} {}", if at == 0 { "" } else { "; " }, reason.words());
        let left = count - at;
        let more = format!("; and {left} more");
        if text.len() + part.len() + more.len() > REASON_BYTES_MAX {
            return text + &more;
        }
        text += &part;
    }
    text
}

impl Reason<'_> {
    fn words(self) -> String {
        match self {
            Self::Tried => "did not take it".to_owned(),
            Self::Silent => "is silent".to_owned(),
            Self::Draining => "is draining".to_owned(),
            Self::OtherHostAsked => "is not the host asked for".to_owned(),
            Self::OtherRegion => "is in another region".to_owned(),
            Self::LabelsMissing => "does not carry the labels asked for".to_owned(),
            Self::NoPorts => "offers no ports for guests".to_owned(),
            Self::NoBridge(bridge) => format!("offers no bridge {bridge}"),
            Self::AddressTaken => "carries a VM of yours with this address".to_owned(),
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn of_many_hosts_only_those_are_asked_of_which_there_is_room_to_tell() {
        let name: Name = "host".parse().expect("a name");
        let asked = Cell::new(0);
        let reason = |_| {
            asked.set(asked.get() + 1);
            (&name, Reason::Draining)
        };
        let all = describe(3, (0..3).map(reason));
        assert_eq!(all, "host is draining; host is draining; host is draining");
        asked.set(0);
        let text = describe(1000, (0..1000).map(reason));
        let told = text.matches("is draining").count();
        assert!(text.len() <= REASON_BYTES_MAX, "{text}");
        assert!(text.ends_with(&format!("; and {} more", 1000 - told)), "{text}");
        assert_eq!(asked.get(), told + 1);
    }
}
