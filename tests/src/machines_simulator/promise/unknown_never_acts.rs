//! While nobody knows how a machine is, nothing is done with it: first it is looked at, by a look
//! that began after the sight was lost.

use std::collections::BTreeMap;

use dagger_controller::{Input, Outcome};
use dagger_payload::id::VmId;

use super::{Observed, Scene};

#[derive(Debug, Default)]
struct Known {
    /// The newest listing, and up to which ticket listings do not count any more.
    listed: u64,
    lost: u64,
    looked: BTreeMap<VmId, u64>,
    lost_one: BTreeMap<VmId, u64>,
}

pub(super) struct Watch(Vec<Known>);

impl Watch {
    pub(super) fn new(hosts: usize) -> Self {
        Self((0..hosts).map(|_| Known::default()).collect())
    }

    pub(super) fn watch(
        &mut self,
        observed: &Observed<'_>,
        scene: &Scene<'_>,
    ) -> Result<(), String> {
        let known = &mut self.0[scene.host];
        match observed {
            Observed::AgentBegan => *known = Known::default(),
            Observed::Told(Input::Inventory { ticket, .. }) => {
                known.listed = known.listed.max(*ticket);
            }
            Observed::Told(Input::Sighting(vm, sighting)) => known.look(*vm, sighting.ticket),
            Observed::Told(Input::SightLost { ticket }) => known.lost = known.lost.max(*ticket),
            Observed::Told(Input::Finished(finished, ticket)) => {
                if let Some(sighting) = &finished.sighting {
                    known.look(finished.vm, sighting.ticket);
                }
                if let Outcome::Unknown(_) = finished.outcome {
                    known.lost_one.insert(finished.vm, *ticket);
                }
            }
            Observed::Begins(work) => {
                if let Some(vm) = work.vm()
                    && !known.is_seen(vm)
                {
                    return Err(format!("{}, and nobody knows how it is", work.line()));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Known {
    fn look(&mut self, vm: VmId, ticket: u64) {
        let newest = self.looked.entry(vm).or_default();
        *newest = ticket.max(*newest);
    }

    fn is_seen(&self, vm: VmId) -> bool {
        let looked = self.looked.get(&vm).copied().unwrap_or(0).max(self.listed);
        let lost = self.lost_one.get(&vm).copied().unwrap_or(0).max(self.lost);
        looked > lost
    }
}
