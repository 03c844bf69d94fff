//! `vm.network`: how a VM's card is reached, and which hosts can make it so.
//!
//! Owns both rules. A port of a host follows from the guest's address, so none is given away here
//! and none is ever taken twice; where guests are is for `placement`.

use dagger_payload::kind::{VmChange, VmNetworkChange};
use dagger_payload::object::{Host, Vm};
use dagger_payload::refusal::RefusalCode;

use super::state::State;
use super::vms::{change, owned};
use super::{Case, Ruling, refuse};

/// Counts at once, for a running guest too.
pub(crate) fn reach(state: &State, case: &Case<'_>, body: &VmNetworkChange) -> Ruling {
    let expected_generation = body.expected_generation;
    let vm = owned(state, case, &VmChange { vm: body.vm, expected_generation })?;
    if vm.network == body.network {
        return Ok(Vec::new()); // it is as wished already
    }
    let vm = Vm { network: body.network.clone(), ..vm };
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
