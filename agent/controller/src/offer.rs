//! Answers to offers: a host that was chosen accepts or refuses, and does nothing else (R4).
//!
//! Owns that answer. Called by the controller only.

use dagger_payload::id::VmId;
use dagger_payload::kind::{Capacity, ReportPhase};
use dagger_payload::object::{Placement, Wanted};

use super::entry::Entry;
use super::step::Seen;
use super::{Controller, Output, report};
use crate::machine::Machine;
use crate::order::AttestedVm;

impl Controller {
    /// Accepts or refuses, once the hypervisor could be asked; an offer whose time has passed is
    /// left alone.
    pub(super) fn answer_offer(&mut self, vm: VmId, outputs: &mut Vec<Output>) {
        let here = self.here;
        let (carried, used) = self.carried();
        let used = used.plus(&self.volumes_take(None));
        let promised = self.promised();
        let Some(entry) = self.entries.get_mut(&vm) else { return };
        let Some(wanted) = &entry.wanted else { return };
        let Placement::Offered { deadline, .. } = wanted.vm.placement else { return };
        let late = self.ledger_time > deadline;
        if late || wanted.vm.wanted == Wanted::Deleted || entry.hold.is_some() {
            return;
        }
        let answer = match &entry.sighting.seen {
            Seen::Unknown if entry.look_asked => return,
            Seen::Unknown => {
                entry.look_asked = true;
                outputs.push(Output::Look(vm));
                return;
            }
            Seen::Present(Machine::Foreign(why)) => Err(format!("name_occupied: {why}")),
            Seen::Absent | Seen::Present(Machine::Ours { .. }) if entry.accepted_already() => {
                Ok(())
            }
            Seen::Absent | Seen::Present(Machine::Ours { .. }) => {
                let (size, generation) = (wanted.vm.size, wanted.vm.generation);
                let is_new = entry.sighting.seen == Seen::Absent;
                match self.policy.admit(&size, carried, &used) {
                    // One that is here has its memory and its disk.
                    Ok(()) if is_new => {
                        let Some(room) = entry.room_for(generation, outputs) else { return };
                        room.admit(&size, &promised)
                    }
                    answer => answer,
                }
            }
        };
        let told = match &answer {
            Ok(()) => report::news(entry, here, ReportPhase::Accepted, None),
            Err(reason) => report::news(entry, here, ReportPhase::Refused, Some(reason)),
        };
        outputs.extend(told.map(Output::Report));
    }

    /// How many VMs this host carries or has offered to carry, and what they use together.
    pub(super) fn carried(&self) -> (usize, Capacity) {
        let mut carried = (0, Capacity::default());
        for entry in self.entries.values() {
            let Some(wanted) = &entry.wanted else { continue };
            if self.carries(entry) {
                carried = (carried.0 + 1, carried.1.plus(&wanted.vm.size));
            }
        }
        carried
    }

    /// Whether this host carries the VM or has offered to carry it.
    pub(super) fn carries(&self, entry: &Entry) -> bool {
        let counts = entry.is_accepted_by(self.here) || entry.accepted_already();
        let is_kept = |wanted: &AttestedVm| wanted.vm.wanted != Wanted::Deleted;
        counts && entry.wanted.as_ref().is_some_and(is_kept)
    }
}

impl Entry {
    /// Whether this host's answer to the offer of the wanted generation was yes.
    fn accepted_already(&self) -> bool {
        let generation = self.wanted.as_ref().map(|wanted| wanted.vm.generation);
        self.told.as_ref().is_some_and(|told| told.accepts(generation))
    }
}
