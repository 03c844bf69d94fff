//! What was once made and may have been written to is never made anew: a loss is told.

use std::collections::BTreeSet;

use dagger_payload::id::{VmId, VolumeId};

use super::super::metal::Deed;
use super::{Observed, Scene};

#[derive(Default)]
pub(super) struct Watch {
    /// VMs that ran, by host.
    ran: BTreeSet<(usize, VmId)>,
    /// Volumes whose making was ordered as told, or that a guest had.
    used: BTreeSet<VolumeId>,
}

impl Watch {
    pub(super) fn watch(
        &mut self,
        observed: &Observed<'_>,
        scene: &Scene<'_>,
    ) -> Result<(), String> {
        let Observed::Did(deed, _) = observed else { return Ok(()) };
        match deed {
            Deed::Started(vm) | Deed::GivenVolumes(vm) => {
                self.ran.insert((scene.host, *vm));
                let domain = scene.here().metal.domain(*vm);
                self.used.extend(domain.iter().flat_map(|domain| domain.held.keys()));
            }
            Deed::DiskMade(vm) if self.ran.contains(&(scene.host, *vm)) => {
                return Err(format!("VM {vm} ran, and gets an empty disk"));
            }
            Deed::VolumeMade(volume) if self.used.contains(volume) => {
                return Err(format!("volume {volume} was used, and is made anew"));
            }
            _ => {}
        }
        Ok(())
    }
}
