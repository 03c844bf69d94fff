//! What somebody else made under our name is left alone: nothing is tried with it once it was seen.
//! (What was begun before that is refused by the hypervisor.)

use std::collections::BTreeMap;

use dagger_controller::machine::Machine;
use dagger_controller::{Input, Seen};
use dagger_payload::id::VmId;

use super::{Observed, Scene};

/// What was seen of the machines of one host.
#[derive(Debug, Clone, Default)]
struct Looks {
    /// The ticket of the newest listing: what it does not show is not there, whether anything was
    /// known of it before or not.
    listed: u64,
    /// By VM, the ticket of the newest look and whether it showed a stranger.
    newest: BTreeMap<VmId, (u64, Shown)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Stranger,
    Other,
}

pub(super) struct Watch(Vec<Looks>);

impl Watch {
    pub(super) fn new(hosts: usize) -> Self {
        Self(vec![Looks::default(); hosts])
    }

    pub(super) fn watch(
        &mut self,
        observed: &Observed<'_>,
        scene: &Scene<'_>,
    ) -> Result<(), String> {
        let looks = &mut self.0[scene.host];
        match observed {
            Observed::AgentBegan => *looks = Looks::default(),
            Observed::Told(Input::Inventory { ticket, machines }) => {
                let known = looks.newest.keys().chain(machines.keys()).copied();
                for vm in known.collect::<Vec<_>>() {
                    looks.note(vm, *ticket, machines.get(&vm));
                }
                looks.listed = looks.listed.max(*ticket);
            }
            Observed::Told(Input::Sighting(vm, sighting)) => {
                let machine = match &sighting.seen {
                    Seen::Present(machine) => Some(machine),
                    Seen::Absent | Seen::Unknown => None,
                };
                looks.note(*vm, sighting.ticket, machine);
            }
            Observed::Begins(work) => {
                let shown = work.vm().and_then(|vm| looks.newest.get(&vm)).map(|(_, shown)| *shown);
                if shown == Some(Shown::Stranger) {
                    return Err(format!("{}, and a stranger has the name", work.line()));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Looks {
    fn note(&mut self, vm: VmId, ticket: u64, machine: Option<&Machine>) {
        let shown = match machine {
            Some(Machine::Foreign(_)) => Shown::Stranger,
            Some(Machine::Ours { .. }) | None => Shown::Other,
        };
        let newest = self.newest.entry(vm).or_insert((self.listed, Shown::Other));
        if ticket > newest.0 {
            *newest = (ticket, shown);
        }
    }
}
