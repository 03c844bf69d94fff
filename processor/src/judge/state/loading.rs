//! The indexes of a state that is read from a snapshot, made at once when all of it is there.
//!
//! Owns that they are the same as if each VM had been taken in alone: putting a million keys into
//! maps one by one, in no order, is waiting for memory. Called where a snapshot is read.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dagger_payload::id::{AccountId, HostId, LedgerTime, VmId};

use super::State;
use super::holdings::Held;
use super::kept::KeptVm;
use crate::verify::NameWord;

/// What waits to become an index.
#[derive(Debug, Default)]
pub(crate) struct Loading {
    /// By id, as they come.
    vms: Vec<(VmId, KeptVm)>,
    names: BTreeMap<AccountId, Vec<(NameWord, VmId)>>,
    addresses: BTreeMap<HostId, Vec<Ipv4Addr>>,
    deadlines: Vec<(LedgerTime, VmId)>,
}

impl State {
    /// Takes in a VM that comes after all others; it is found by nobody before
    /// [`Self::finish_loading`].
    pub(super) fn load_vm(
        &mut self,
        loading: &mut Loading,
        held: &Held,
        (name, kept): (NameWord, KeptVm),
    ) {
        self.weigh_in(held, kept.bytes().len());
        loading.vms.push((held.vm, kept));
        loading.names.entry(held.account).or_default().push((name, held.vm));
        loading.deadlines.extend(held.deadline.map(|deadline| (deadline, held.vm)));
        if let Some((host, address)) = self.count(held) {
            loading.addresses.entry(host).or_default().push(address);
        }
    }

    /// Makes the indexes.
    pub(crate) fn finish_loading(&mut self, loading: Loading) {
        let Loading { vms, names, addresses, deadlines } = loading;
        // Collected, maps are built from what is sorted.
        self.vms = vms.into_iter().collect();
        self.deadlines = deadlines.into_iter().collect();
        self.silent = self.silent_at(self.time);
        for (account, names) in names {
            self.accounts.estate_mut(account).load_vms(names);
        }
        for (host, addresses) in addresses {
            let of_host = self.addresses.entry(host).or_default();
            addresses.into_iter().for_each(|address| _ = of_host.taken.insert(address));
            let given = of_host.taken.count();
            if let Some(room) = self.rooms.get_mut(&host) {
                room.addresses_left = room.addresses_left.saturating_sub(given);
            }
        }
    }
}
