//! Taking in hosts, VMs and volumes: what each of them holds, and the indexes over that.
//!
//! Owns that what a version held is given back before its successor's is taken. Called by
//! [`State::absorb`] and where a snapshot is read.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use dagger_payload::id::{AccountId, HostId, LedgerTime, VmId};
use dagger_payload::kind::{Capacity, GuestSubnet};
use dagger_payload::object::{Host, HostDuty, Placement, Vm, VmState};
use dagger_payload::state_tree::Subject;
use dagger_payload::volume::{Volume, VolumeDisk, VolumeState};

use super::super::burdens::counting_host;
use super::super::tallies::Burden;
use super::kept::{Holding, KeptVm, Placed};
use super::{GUEST_ADDRESS_FIRST, KeyBytes, State, Usage, guest_addresses};
use crate::verify::{NameWord, Newborn};

/// What a version of a VM holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) vm: VmId,
    pub(super) account: AccountId,
    size: Capacity,
    /// Its host, accepted or not, and its address there.
    place: Option<(HostId, Ipv4Addr)>,
    /// When its offer lapses.
    pub(super) deadline: Option<LedgerTime>,
    is_homeless: bool,
    /// With whose operator it counts.
    counting: Option<HostId>,
}

impl Held {
    pub(super) fn of(vm: &Vm) -> Self {
        Self::new((vm.id, vm.account), vm.size, (&vm.placement, &vm.tried))
    }

    fn by(kept: &KeptVm) -> Self {
        let Holding { id, account, size, placement, tried } = kept.some();
        Self::new((id, account), size, (&placement, &tried))
    }

    fn new(
        (vm, account): (VmId, AccountId),
        size: Capacity,
        (placement, tried): (&Placement, &[HostId]),
    ) -> Self {
        let deadline = match placement {
            Placement::Offered { deadline, .. } => Some(*deadline),
            Placement::Accepted { .. } | Placement::NoHost {} | Placement::Lost { .. } => None,
        };
        let place = placement.host().zip(placement.address());
        let is_homeless = *placement == Placement::NoHost {};
        let counting = counting_host(placement, tried);
        Self { vm, account, size, place, deadline, is_homeless, counting }
    }
}

impl State {
    /// A host that has left is kept, and has neither room nor an agent.
    pub(super) fn absorb_host(&mut self, host: &Host, object: &[u8]) {
        self.tree.set(&Subject::Host(host.id), object);
        if let Some(old) = self.hosts.insert(host.id, host.clone())
            && self.agent_keys.get(&KeyBytes::from(&old.agent_key)) == Some(&host.id)
        {
            self.agent_keys.remove(&KeyBytes::from(&old.agent_key));
        }
        if host.duty == HostDuty::Left {
            let carried =
                self.rooms.get(&host.id).is_some_and(|room| room.used != Usage::default());
            if carried {
                self.left_carrying.push(host.id);
            }
            self.rooms.remove(&host.id);
            return;
        }
        let given = self.addresses.get(&host.id).map_or(0, |addresses| addresses.taken.count());
        let all = guest_addresses(&host.guest_subnet);
        self.rooms.declare(host, all.saturating_sub(given));
        self.agent_keys.insert(KeyBytes::from(&host.agent_key), host.id);
    }

    /// Finds what is on hosts that have left since this was called last: with one look at
    /// everything for all of them, since many leave together with their operator.
    pub(crate) fn find_stranded(&mut self) {
        if self.left_carrying.is_empty() {
            return;
        }
        let left: BTreeSet<HostId> = std::mem::take(&mut self.left_carrying).into_iter().collect();
        let vms = self.vms.values().map(KeptVm::some);
        let carried = vms.filter(|Placed { placement, .. }| {
            placement.host().is_some_and(|host| left.contains(&host))
        });
        self.stranded.0.extend(carried.map(|vm| vm.id));
        let volumes = self.volumes.values().filter(|volume| left.contains(&volume.host));
        self.stranded.1.extend(volumes.map(|volume| volume.id));
    }

    pub(super) fn absorb_vm(&mut self, vm: &Vm, object: &[u8]) {
        let subject = Subject::Vm(vm.id);
        if vm.state() == VmState::Deleted {
            if let Some(kept) = self.vms.remove(&vm.id) {
                let old = Held::by(&kept);
                self.release(&old);
                self.weigh_out(&old, kept.bytes().len());
                // A VM keeps its name.
                let estate = self.accounts.estate_mut(old.account);
                estate.remove_vm(NameWord::from(&vm.name), vm.id);
            }
            self.tree.remove(&subject);
            return;
        }
        self.tree.set(&subject, object);
        let held = Held::of(vm);
        match self.vms.insert(vm.id, KeptVm::new(object)) {
            Some(old) => {
                let (before, bytes) = (Held::by(&old), old.bytes().len());
                if (before.counting, bytes) != (held.counting, object.len()) {
                    self.weigh_out(&before, bytes);
                    self.weigh_in(&held, object.len());
                }
                self.move_vm(&before, &held);
            }
            None => self.add_vm(&held, NameWord::from(&vm.name), object.len()),
        }
    }

    /// The same for a VM that was just made.
    pub(crate) fn absorb_newborn(&mut self, vm: &Vm, object: &[u8], newborn: &Newborn) {
        self.tree.set_at(newborn.place, object);
        self.vms.insert(vm.id, KeptVm::new(object));
        self.add_vm(&Held::of(vm), newborn.name, object.len());
    }

    fn add_vm(&mut self, held: &Held, name: NameWord, bytes: usize) {
        self.weigh_in(held, bytes);
        self.accounts.estate_mut(held.account).add_vm(name, held.vm);
        self.take(held, None);
    }

    fn move_vm(&mut self, before: &Held, held: &Held) {
        if before == held {
            return; // most changes are of what a VM is told to do where it is
        }
        self.release(before);
        self.take(held, before.place);
    }

    pub(super) fn absorb_volume(&mut self, volume: &Volume, object: &[u8]) {
        if let Some(old) = self.volumes.remove(&volume.id) {
            self.volume_names.remove(&(old.account, old.name.clone()));
            self.snapshots.remove(&old);
            self.stranded.1.remove(&old.id);
            let objects = 1 + old.snapshots.len();
            let estate = self.accounts.estate_mut(old.account);
            estate.on_disk = estate.on_disk.saturating_sub(objects);
            if let Some(burden) = self.burden_mut(Some(old.host)) {
                burden.remove(objects, 0);
            }
            self.change_usage(old.account, old.host, |usage| {
                usage.capacity = usage.capacity.minus(&old.size());
            });
            if let Some(vm) = old.used_by.vm()
                && let Some(used) = self.volumes_used_by.get_mut(&vm)
            {
                used.remove(&old.id);
                if used.is_empty() {
                    self.volumes_used_by.remove(&vm);
                }
            }
        }
        if volume.state() == VolumeState::Deleted {
            self.tree.remove(&Subject::Volume(volume.id));
            return;
        }
        self.tree.set(&Subject::Volume(volume.id), object);
        self.volume_names.insert((volume.account, volume.name.clone()), volume.id);
        self.snapshots.insert(volume);
        let objects = 1 + volume.snapshots.len();
        self.accounts.estate_mut(volume.account).on_disk += objects;
        if let Some(burden) = self.burden_mut(Some(volume.host)) {
            burden.add(objects, 0);
        }
        self.change_usage(volume.account, volume.host, |usage| {
            usage.capacity = usage.capacity.plus(&volume.size());
        });
        if let Some(vm) = volume.used_by.vm() {
            self.volumes_used_by.entry(vm).or_default().insert(volume.id);
        }
        if volume.disk != VolumeDisk::Lost && self.has_left(&volume.host) {
            self.stranded.1.insert(volume.id);
        }
        self.volumes.insert(volume.id, volume.clone());
    }

    pub(super) fn set_cursor(&mut self, host: HostId, cursor: u32) {
        if self.addresses.entry(host).or_default().move_to(cursor) {
            self.moved.push(host);
        }
    }

    /// Takes what a VM holds; the version before it was at `before`.
    fn take(&mut self, held: &Held, before: Option<(HostId, Ipv4Addr)>) {
        if let Some(deadline) = held.deadline {
            self.deadlines.insert((deadline, held.vm));
        }
        let Some((host, address)) = self.count(held) else { return };
        let of_host = self.addresses.entry(host).or_default();
        if of_host.taken.insert(address)
            && let Some(room) = self.rooms.get_mut(&host)
        {
            room.addresses_left = room.addresses_left.saturating_sub(1);
        }
        if before != held.place
            && let Some(known) = self.hosts.get(&host)
            && of_host.move_to(cursor_after(&known.guest_subnet, address))
        {
            self.moved.push(host);
        }
    }

    /// Counts a VM in all sums; its place is still to be taken.
    pub(super) fn count(&mut self, held: &Held) -> Option<(HostId, Ipv4Addr)> {
        if held.is_homeless {
            self.accounts.estate_mut(held.account).homeless += 1;
        }
        let (host, address) = held.place?;
        self.change_usage(held.account, host, |usage| {
            usage.capacity = usage.capacity.plus(&held.size);
            usage.vms = usage.vms.saturating_add(1);
        });
        if self.has_left(&host) {
            self.stranded.0.insert(held.vm);
        }
        Some((host, address))
    }

    fn release(&mut self, held: &Held) {
        if held.is_homeless {
            self.accounts.estate_mut(held.account).homeless -= 1;
        }
        self.stranded.0.remove(&held.vm);
        if let Some(deadline) = held.deadline {
            self.deadlines.remove(&(deadline, held.vm));
        }
        let Some((host, address)) = held.place else { return };
        self.change_usage(held.account, host, |usage| {
            usage.capacity = usage.capacity.minus(&held.size);
            usage.vms = usage.vms.saturating_sub(1);
        });
        let taken = self.addresses.get_mut(&host);
        if taken.is_some_and(|addresses| addresses.taken.remove(address))
            && let Some(room) = self.rooms.get_mut(&host)
        {
            room.addresses_left = room.addresses_left.saturating_add(1);
        }
    }

    /// Counts a VM of so many bytes with its operator.
    pub(super) fn weigh_in(&mut self, held: &Held, bytes: usize) {
        if let Some(burden) = self.burden_mut(held.counting) {
            burden.add(1, bytes);
        }
    }

    fn weigh_out(&mut self, held: &Held, bytes: usize) {
        if let Some(burden) = self.burden_mut(held.counting) {
            burden.remove(1, bytes);
        }
    }

    /// What stands on the hosts of the operator of `host`.
    fn burden_mut(&mut self, host: Option<HostId>) -> Option<&mut Burden> {
        let operator = self.hosts.get(&host?)?.operator;
        Some(self.tallies.burden_mut(operator))
    }

    /// Changes the two sums that what an account has on `host` counts in.
    fn change_usage(&mut self, account: AccountId, host: HostId, change: impl Fn(&mut Usage)) {
        if let Some(known) = self.hosts.get(&host) {
            change(self.accounts.estate_mut(account).used_by_mut(known.operator));
        }
        self.rooms.change_used(&host, change);
    }
}

/// Where the search for the next guest's address begins, after this one was given.
fn cursor_after(subnet: &GuestSubnet, address: Ipv4Addr) -> u32 {
    let index = u32::from(address).saturating_sub(u32::from(subnet.network));
    let next = index.saturating_sub(GUEST_ADDRESS_FIRST).saturating_add(1);
    next % guest_addresses(subnet).max(1)
}

#[cfg(test)]
mod tests;
