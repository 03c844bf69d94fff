//! The model as the API shows it, together with what this host itself sees.
//!
//! Owns look-up by name and sums. Never decides. Called by the API.

use std::collections::BTreeMap;

use dagger_api::{
    AccountSummary, AccountView, HostForward, HostLink, HostView, Sight, Unproven, VmView,
};
use dagger_payload::id::{AccountId, CommitIndex, HostId, VmId};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::{Capacity, VmImage};
use dagger_payload::network::host_port;
use dagger_payload::object::{Account, Image, Placement, Vm, VmState};
use dagger_payload::roster::Seat;
use dagger_payload::volume::Volume;

use super::Model;
use crate::handover::{SightContents, VmSight};

/// Which VM is meant: an id, or a name that may exist in several accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmQuery {
    /// 32 hex digits or a name.
    pub text: String,
    /// Only VMs of this account.
    pub account: Option<AccountId>,
}

/// A VM's name does not lead to one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameProblem {
    /// To none.
    Unknown,
    /// To one in each of these accounts.
    Ambiguous(Vec<AccountId>),
}

impl Model {
    /// The VM that is meant, of those that exist; for others see [`super::SharedModel::find_vm`].
    ///
    /// # Errors
    /// [`NameProblem`].
    pub fn find_vm(&self, query: &VmQuery) -> Result<&Vm, NameProblem> {
        let of_account = |vm: &&Vm| query.account.is_none_or(|account| vm.account == account);
        if let Ok(id) = query.text.parse::<VmId>()
            && let Some(vm) = self.vm(&id).filter(of_account)
        {
            return Ok(vm);
        }
        let is_named = |vm: &&Vm| vm.name.as_str() == query.text;
        let named: Vec<&Vm> = self.vms().filter(is_named).filter(of_account).collect();
        let mut accounts: Vec<AccountId> = named.iter().map(|vm| vm.account).collect();
        accounts.sort_unstable();
        accounts.dedup();
        match accounts.len() {
            0 => Err(NameProblem::Unknown),
            1 => {
                let newest = named.into_iter().max_by_key(|vm| vm.created.position);
                newest.ok_or(NameProblem::Unknown)
            }
            _ => Err(NameProblem::Ambiguous(accounts)),
        }
    }

    /// What the API shows of a VM on the host `me`; `link` says how the ledger sees each host.
    pub fn vm_view(
        &self,
        vm: &Vm,
        me: HostId,
        sights: &SightContents,
        link: impl Fn(&HostId) -> HostLink,
    ) -> VmView {
        let here = vm.placement.host() == Some(me);
        let own = here.then(|| sights.vms.get(&vm.id)).flatten();
        let sight = match (here, own) {
            (false, _) => Sight::Elsewhere,
            (true, Some(own)) => own.sight,
            (true, None) => Sight::Unknown,
        };
        let host = vm.placement.host();
        let named = |image: &VmImage| {
            let is_it = |known: &&Image| {
                known.digest == image.digest && known.format.use_of() == image.format.use_of()
            };
            self.images.values().find(is_it).map(|known| known.name.clone())
        };
        let boot = vm.boot.as_ref();
        VmView {
            state: vm.state(),
            reason: reason(vm, own, here.then_some(sights)),
            host_name: host.and_then(|host| self.host_name(&host)).cloned(),
            image_name: named(&vm.image),
            kernel_name: boot.and_then(|boot| named(&boot.kernel)),
            initrd_name: boot.and_then(|boot| boot.initrd.as_ref()).and_then(named),
            forwards: self.forwards(vm),
            sight,
            unproven: if here { None } else { self.unproven(vm, link) },
            image_download: own.filter(|own| own.awaits_image).and_then(|_| {
                // One after the other is made sure of, so one of them at a time is fetched for it.
                vm.images().find_map(|image| sights.downloads.get(&image.digest).cloned())
            }),
            running_size: self.running_sizes.of(vm),
            applied_generation: own.and_then(|own| own.applied_generation),
            vm: vm.clone(),
        }
    }

    /// Why nothing proves that a VM of another host is still as that host reported it, if so.
    fn unproven(&self, vm: &Vm, link: impl Fn(&HostId) -> HostLink) -> Option<Unproven> {
        let Placement::Accepted { host, .. } = &vm.placement else {
            return None;
        };
        let link = link(host);
        let in_sight = matches!(link, HostLink::Own | HostLink::Connected);
        let reported_at = self.reported_at.get(&vm.id).copied();
        (!in_sight && vm.state() != VmState::Deleted).then_some(Unproven { link, reported_at })
    }

    /// The ports of its host that lead to a VM.
    fn forwards(&self, vm: &Vm) -> Vec<HostForward> {
        let host = vm.placement.host().and_then(|host| self.hosts.get(&host));
        let placed = host.zip(vm.placement.address());
        let each = vm.network.forwards.iter().filter_map(|forward| {
            let (host, address) = placed?;
            let first = host.forward_ports_first?;
            Some(HostForward {
                host_port: host_port(first, &host.guest_subnet, address, forward.slot)?,
                protocol: forward.protocol,
                guest_port: forward.guest_port,
            })
        });
        each.collect()
    }

    /// The VMs that still exist, all or those of one account.
    pub fn vm_views(
        &self,
        account: Option<AccountId>,
        me: HostId,
        sights: &SightContents,
        link: impl Fn(&HostId) -> HostLink,
    ) -> Vec<VmView> {
        self.vms
            .values()
            .filter(|vm| account.is_none_or(|account| vm.account == account))
            .map(|vm| self.vm_view(vm, me, sights, &link))
            .collect()
    }

    /// The hosts that are there, with what VMs and volumes take; `link` says how the ledger sees
    /// each, and who votes is said for the commit after `judged`.
    pub fn host_views(
        &self,
        judged: CommitIndex,
        link: impl Fn(&HostId) -> HostLink,
    ) -> Vec<HostView> {
        let view = |seat: &Seat| {
            let id = seat.host;
            let (used, vms) = sum(self.vms().filter(|vm| vm.placement.host() == Some(id)));
            let used = used.plus(&self.volumes_take(|volume| volume.host == id));
            Some(HostView {
                id,
                name: seat.name.clone(),
                operator: self.members.operator_name(&seat.operator)?.clone(),
                seat: seat.index,
                vote: self.members.vote(seat.index, judged),
                host: self.hosts.get(&id).cloned(),
                used,
                vms,
                link: link(&id),
            })
        };
        // A host that changes its key sits twice until the epoch ends: it is shown as it votes.
        let mut shown = BTreeMap::new();
        for seat in self.members.seats_shown(judged) {
            shown.entry(seat.host).or_insert(seat);
        }
        let mut seats: Vec<_> = shown.into_values().collect();
        seats.sort_by_key(|seat| seat.index);
        seats.into_iter().filter_map(view).collect()
    }

    /// An account, with what its VMs and volumes take.
    pub fn account_view(&self, id: &AccountId) -> Option<AccountView> {
        let account: &Account = self.accounts.get(id)?;
        let (used, vms) = sum(self.vms().filter(|vm| vm.account == *id));
        let used = used.plus(&self.volumes_take(|volume| volume.account == *id));
        Some(AccountView { account: account.clone(), used, vms })
    }

    fn volumes_take(&self, counts: impl Fn(&Volume) -> bool) -> Capacity {
        let counted = self.volumes.values().filter(|volume| counts(volume));
        counted.fold(Capacity::default(), |sum, volume| sum.plus(&volume.size()))
    }

    /// All accounts, or the one for which `key` signs.
    pub fn account_summaries(&self, key: Option<&PublicKey>) -> Vec<AccountSummary> {
        let summary = |account: &Account| AccountSummary {
            id: account.id,
            fingerprint: account.key.fingerprint(),
            vms: sum(self.vms().filter(|vm| vm.account == account.id)).1,
        };
        let meant = |account: &&Account| key.is_none_or(|key| account.role_of(key).is_some());
        self.accounts.values().filter(meant).map(summary).collect()
    }
}

fn sum<'v>(vms: impl Iterator<Item = &'v Vm>) -> (Capacity, u32) {
    vms.fold((Capacity::default(), 0), |(used, count), vm| (used.plus(&vm.size), count + 1))
}

fn reason(vm: &Vm, own: Option<&VmSight>, here: Option<&SightContents>) -> Option<String> {
    let held = here.and_then(|sights| sights.hold.clone());
    let seen = own.and_then(|own| own.reason.clone());
    let reported = vm.reported.as_ref().filter(|report| report.generation == vm.generation);
    let reported = reported.and_then(|report| report.reason.clone());
    let no_host = match vm.placement {
        Placement::NoHost {} if vm.state() == VmState::Degraded => {
            Some("no host: each that fits refused or did not accept in time".to_owned())
        }
        Placement::Lost { .. } => {
            let lost = "lost: its host left the cluster with its operator; it can be deleted";
            return Some(lost.to_owned());
        }
        Placement::NoHost {} | Placement::Offered { .. } | Placement::Accepted { .. } => None,
    };
    held.map(|why| format!("on hold: {why}")).or(seen).or(reported).or(no_host)
}
