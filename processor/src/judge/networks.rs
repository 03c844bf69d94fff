//! `vm.network`: how a VM's cards are reached, and which hosts can make them so.
//!
//! Owns both rules. A port of a host follows from the guest's address, so none is given away here
//! and none is ever taken twice; where guests are is for `placement`. An address on a bridge is its
//! owner's choice: only what he has given away himself is known, to `neighbours`.

use dagger_payload::bridge::Bridged;
use dagger_payload::kind::{VmChange, VmNetworkChange};
use dagger_payload::name::Name;
use dagger_payload::object::{Host, Vm};
use dagger_payload::refusal::RefusalCode;

use super::state::State;
use super::vms::{change, owned};
use super::{Case, Ruling, refuse};

/// Counts at once, for a running guest too.
pub(crate) fn reach(state: &State, case: &Case<'_>, body: &VmNetworkChange) -> Ruling {
    let expected_generation = body.expected_generation;
    let mut vm = owned(state, case, &VmChange { vm: body.vm, expected_generation })?;
    let card = match body.card.checked_sub(1) {
        None => Some(&mut vm.network),
        Some(more) => vm.more_cards.get_mut(usize::from(more)),
    };
    let Some(card) = card else {
        return refuse(RefusalCode::NotFound, format!("the VM has no card {}", body.card));
    };
    if *card == body.network {
        return Ok(Vec::new()); // it is as wished already
    }
    if card.bridge != body.network.bridge {
        let detail = "bridge: a card stays where it was when the VM was made";
        return refuse(RefusalCode::StateWrong, detail);
    }
    card.clone_from(&body.network);
    if let Some(host) = vm.placement.host().and_then(|host| state.hosts.get(&host))
        && !can_forward(host, &vm)
    {
        let detail = format!("{} offers no ports for guests", host.name);
        return refuse(RefusalCode::NoHostFits, detail);
    }
    let wanted = vm.wanted;
    Ok(change(vm, wanted, case))
}

/// Whether the host offers what the VM's forwards need.
pub(super) fn can_forward(host: &Host, vm: &Vm) -> bool {
    vm.network.forwards.is_empty() || host.forward_ports_first.is_some()
}

/// A bridge that the VM asks for and the host does not offer.
pub(super) fn missing_bridge<'a>(host: &Host, vm: &'a Vm) -> Option<&'a Name> {
    bridged(vm).map(|card| &card.bridge).find(|bridge| !host.bridges.contains(bridge))
}

/// The cards of a VM that are on bridges.
pub(super) fn bridged(vm: &Vm) -> impl Iterator<Item = &Bridged> {
    vm.cards().filter_map(|card| card.bridge.as_ref())
}
