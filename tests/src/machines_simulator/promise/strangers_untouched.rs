//! What somebody else made under our name is left alone: nothing is tried with it once it was seen.
//! (What was begun before that is refused by the hypervisor.)

use std::collections::BTreeMap;

use dagger_controller::machine::Machine;
use dagger_controller::{Input, Seen};
use dagger_payload::id::VmId;

use super::{Observed, Scene};

/// By VM, the ticket of the newest look and whether it showed a stranger.
type Looks = BTreeMap<VmId, (u64, Shown)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Stranger,
    Other,
}

pub(super) struct Watch(Vec<Looks>);

impl Watch {
    pub(super) fn new(hosts: usize) -> Self {
        Self(vec![Looks::new(); hosts])
    }

    pub(super) fn watch(
        &mut self,
        observed: &Observed<'_>,
        scene: &Scene<'_>,
    ) -> Result<(), String> {
        let looks = &mut self.0[scene.host];
        match observed {
            Observed::AgentBegan => looks.clear(),
            Observed::Told(Input::Inventory { ticket, machines }) => {
                let known = looks.keys().chain(machines.keys()).copied();
                for vm in known.collect::<Vec<_>>() {
                    note(looks, vm, *ticket, machines.get(&vm));
                }
            }
            Observed::Told(Input::Sighting(vm, sighting)) => {
                let machine = match &sighting.seen {
                    Seen::Present(machine) => Some(machine),
                    Seen::Absent | Seen::Unknown => None,
                };
                note(looks, *vm, sighting.ticket, machine);
            }
            Observed::Begins(work) => {
                let shown = work.vm().and_then(|vm| looks.get(&vm)).map(|(_, shown)| *shown);
                if shown == Some(Shown::Stranger) {
                    return Err(format!("{}, and a stranger has the name", work.line()));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn note(looks: &mut Looks, vm: VmId, ticket: u64, machine: Option<&Machine>) {
    let shown = match machine {
        Some(Machine::Foreign(_)) => Shown::Stranger,
        Some(Machine::Ours { .. }) | None => Shown::Other,
    };
    let newest = looks.entry(vm).or_insert((0, Shown::Other));
    if ticket > newest.0 {
        *newest = (ticket, shown);
    }
}
