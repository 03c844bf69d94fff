//! The sizes of guests that were resized while they were switched on.
//!
//! Owns one size for each of them, until a report says that the guest was switched off or on again.
//! Knows no more than reports tell: a host that switches a guest on again by itself says nothing.
//! Called by fold and views.

use std::collections::BTreeMap;

use dagger_payload::id::{Generation, VmId};
use dagger_payload::kind::{Capacity, ReportPhase};
use dagger_payload::object::{Placement, Vm};

/// By VM: what its guest was switched on with, and what made it another size first.
#[derive(Debug, Clone, Default)]
pub(super) struct RunningSizes(BTreeMap<VmId, (Capacity, Generation)>);

impl RunningSizes {
    /// Takes in the newest version of a VM.
    pub(super) fn note(&mut self, before: Option<&Vm>, after: &Vm) {
        if let Some(before) = before
            && before.size != after.size
            && is_on(before)
        {
            self.0.entry(after.id).or_insert((before.size, after.generation));
        }
        let ends = |(size, resized): &(Capacity, Generation)| {
            let reported = after.reported.as_ref().map(|report| report.generation);
            // Whoever reports about a version that asks for a reboot has carried it out.
            let rebooted = after.booted_since > *resized && reported >= Some(after.booted_since);
            *size == after.size || !is_on(after) || rebooted
        };
        if self.0.get(&after.id).is_some_and(ends) {
            self.0.remove(&after.id);
        }
    }

    /// The VM is no more.
    pub(super) fn forget(&mut self, vm: &VmId) {
        self.0.remove(vm);
    }

    /// What the guest has until its next start, where that is not what was ordered.
    pub(super) fn of(&self, vm: &Vm) -> Option<Capacity> {
        self.0.get(&vm.id).map(|(size, _)| *size)
    }
}

/// Whether its guest is in memory, as far as its host has said.
fn is_on(vm: &Vm) -> bool {
    let phase = vm.reported.as_ref().map(|report| report.phase);
    let in_memory = matches!(phase, Some(ReportPhase::Running | ReportPhase::Paused));
    in_memory && matches!(vm.placement, Placement::Accepted { .. })
}
