//! The indexes of a state that is read from a snapshot, made at once when all of it is there.
//!
//! Owns that they are the same as if each VM had been taken in alone: putting a million keys into
//! maps one by one, in no order, is waiting for memory. Called where a snapshot is read.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dagger_payload::id::{HostId, VmId};

use super::State;
use super::holdings::Held;
use super::kept::KeptVm;
use crate::verify::NameWord;

/// What waits to become an index.
#[derive(Debug, Default)]
pub(crate) struct Loading {
    /// By id, as they come.
    vms: Vec<(VmId, KeptVm)>,
    held: Vec<Holder>,
}

/// What one of the VMs holds, what it is called, and how many bytes it has.
#[derive(Debug)]
struct Holder {
    held: Held,
    name: NameWord,
    bytes: usize,
}

impl State {
    /// Takes in a VM that comes after all others; it is found by nobody and counts nowhere before
    /// [`Self::finish_loading`].
    pub(super) fn load_vm(loading: &mut Loading, held: Held, name: NameWord, kept: KeptVm) {
        let bytes = kept.bytes().len();
        loading.vms.push((held.vm, kept));
        loading.held.push(Holder { held, name, bytes });
    }

    /// Makes the indexes.
    pub(crate) fn finish_loading(&mut self, loading: Loading) {
        let Loading { vms, mut held } = loading;
        // Collected, maps are built from what is sorted.
        self.vms = vms.into_iter().collect();
        // Account by account, so that what is an account's is near while its VMs are counted.
        held.sort_unstable_by_key(|holder| (holder.held.account, holder.name, holder.held.vm));
        let mut addresses: BTreeMap<HostId, Vec<Ipv4Addr>> = BTreeMap::new();
        let mut deadlines = Vec::new();
        for own in held.chunk_by(|one, next| one.held.account == next.held.account) {
            let names = own.iter().map(|holder| (holder.name, holder.held.vm)).collect();
            self.accounts.estate_mut(own[0].held.account).load_vms(names);
            for Holder { held, name: _, bytes } in own {
                self.weigh_in(held, *bytes);
                deadlines.extend(held.deadline.map(|deadline| (deadline, held.vm)));
                if let Some((host, address)) = self.count(held) {
                    addresses.entry(host).or_default().push(address);
                }
            }
        }
        self.deadlines = deadlines.into_iter().collect();
        self.silent = self.silent_at(self.time);
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
