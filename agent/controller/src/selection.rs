//! What of the attested history concerns one host.
//!
//! Owns that choice. Called for each release, in order, by whoever tells the controller.

use std::collections::BTreeSet;

use dagger_payload::changed_vm::WholeRelease;
use dagger_payload::id::{HostId, VmId};
use dagger_payload::object::{Effect, Placement};

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

    /// What the machines' half must know of an attested release.
    pub fn concerning<'r>(&mut self, release: &'r WholeRelease) -> Concerning<'r> {
        let effects = release.release().effects().filter(|effect| match effect {
            Effect::Vm(vm) => self.concerns(&vm.id, &vm.placement),
            Effect::VmChanged(change) => self.concerns(&change.id, &change.placement),
            Effect::Volume(volume) => volume.host == self.host,
            Effect::Host(_) | Effect::Image(_) => true,
            Effect::Account(_)
            | Effect::Usage(_)
            | Effect::Seat(_)
            | Effect::Epoch(_)
            | Effect::Operator(_)
            | Effect::Proposal(_) => false,
        });
        Concerning { effects: effects.collect(), release }
    }

    fn concerns(&mut self, vm: &VmId, placement: &Placement) -> bool {
        if placement.host() == Some(self.host) {
            self.placed_here.insert(*vm);
        }
        self.placed_here.contains(vm)
    }
}

/// What of one release concerns a host.
#[derive(Debug)]
pub struct Concerning<'r> {
    release: &'r WholeRelease,
    effects: Vec<&'r Effect>,
}

impl<'r> Concerning<'r> {
    /// Whether nothing but the passing of ledger time does.
    pub fn is_nothing(&self) -> bool {
        self.effects.is_empty()
    }

    /// What the machines' half is told, in its order; each order is made when it is asked for.
    pub fn into_orders(self) -> impl Iterator<Item = Order> + 'r {
        let Self { release, effects } = self;
        let commit = release.release().end.index;
        let orders = effects.into_iter().filter_map(move |effect| {
            Some(match release.whole(effect).into_owned() {
                Effect::Vm(vm) => Order::Vm(Box::new(AttestedVm { vm: *vm, commit })),
                Effect::Volume(volume) => {
                    Order::Volume(Box::new(AttestedVolume { volume: *volume, commit }))
                }
                Effect::Host(host) => Order::Host(host),
                Effect::Image(image) => Order::Image(image),
                _ => return None,
            })
        });
        orders.chain(std::iter::once(Order::LedgerTime(release.release().ledger_time)))
    }
}
