//! What was once made and may have been written to is never made anew: a loss is told. Only of a
//! VM whose record and definition are lost before its host was shown that it ran nobody can know.

use std::collections::BTreeSet;

use dagger_controller::Input;
use dagger_controller::order::Order;
use dagger_payload::id::{VmId, VolumeId};
use dagger_payload::usage::Metered;

use super::super::metal::Deed;
use super::{Observed, Scene};

#[derive(Default)]
pub(super) struct Watch {
    /// VMs that ran, by host.
    ran: BTreeSet<(usize, VmId)>,
    /// VMs of which a host was shown that they had run.
    shown: BTreeSet<(usize, VmId)>,
    /// Volumes whose making was ordered as told, or that a guest had.
    used: BTreeSet<VolumeId>,
}

impl Watch {
    pub(super) fn watch(
        &mut self,
        observed: &Observed<'_>,
        scene: &Scene<'_>,
    ) -> Result<(), String> {
        let deed = match observed {
            Observed::Did(deed, _) => deed,
            Observed::Told(Input::Order(Order::Vm(version))) => {
                let meter = &version.vm.meter;
                if meter.counts == Metered::Guest || meter.used.cpu_ms > 0 {
                    self.shown.insert((scene.host, version.vm.id));
                }
                return Ok(());
            }
            Observed::AgentBegan => {
                let (host, here) = (scene.host, scene.here());
                self.ran.retain(|(of, vm)| {
                    let is_remembered =
                        here.journal.contains_key(vm) || here.metal.domain(*vm).is_some();
                    *of != host || is_remembered || self.shown.contains(&(host, *vm))
                });
                return Ok(());
            }
            _ => return Ok(()),
        };
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
