//! What of the attested history concerns one host.
//!
//! Owns that choice. Called for each release, in order, by whoever tells the controller.

use std::collections::BTreeSet;

use dagger_payload::id::{HostId, VmId};
use dagger_payload::object::{Effect, Vm};
use dagger_payload::release::CommitRelease;

use crate::order::{AttestedVm, AttestedVolume, Order};

/// What of the history concerns one host.
#[derive(Debug, Clone)]
pub struct Selection {
    host: HostId,
    /// VMs that were placed here at some time.
    placed_here: BTreeSet<VmId>,
}

impl Selection {
    /// Nothing was told yet.
    pub fn new(host: HostId) -> Self {
        Self { host, placed_here: BTreeSet::new() }
    }

    /// What the machines' half must know of an attested release, in its order.
    pub fn orders(&mut self, release: &CommitRelease) -> Vec<Order> {
        let mut orders = Vec::new();
        for effect in release.effects() {
            match effect {
                Effect::Vm(vm) if self.concerns(vm) => {
                    orders.push(Order::Vm(Box::new(AttestedVm {
                        vm: (**vm).clone(),
                        commit: release.end.index,
                    })));
                }
                Effect::Volume(volume) if volume.host == self.host => {
                    orders.push(Order::Volume(Box::new(AttestedVolume {
                        volume: (**volume).clone(),
                        commit: release.end.index,
                    })));
                }
                Effect::Host(host) => orders.push(Order::Host(host.clone())),
                Effect::Image(image) => orders.push(Order::Image(image.clone())),
                Effect::Vm(_)
                | Effect::Volume(_)
                | Effect::Account(_)
                | Effect::Usage(_)
                | Effect::Seat(_)
                | Effect::Epoch(_)
                | Effect::Operator(_)
                | Effect::Proposal(_) => {}
            }
        }
        orders.push(Order::LedgerTime(release.ledger_time));
        orders
    }

    fn concerns(&mut self, vm: &Vm) -> bool {
        if vm.placement.host() == Some(self.host) {
            self.placed_here.insert(vm.id);
        }
        self.placed_here.contains(&vm.id)
    }
}
