//! A volume is written by one machine at most, and its file is left alone while one has it: only
//! that machine copies it, nothing is put in its place, and it does not go.

use super::super::metal::Deed;
use super::{Observed, Scene};

pub(super) fn watch(observed: &Observed<'_>, scene: &Scene<'_>) -> Result<(), String> {
    let Observed::Did(deed, _) = observed else { return Ok(()) };
    let metal = &scene.here().metal;
    match deed {
        Deed::Started(vm) | Deed::GivenVolumes(vm) => {
            let held = metal.domain(*vm).map(|domain| domain.held.clone()).unwrap_or_default();
            let others = metal.standing.keys().filter(|other| *other != vm);
            let mut others = others.filter_map(|other| metal.domain(*other));
            match others.find(|other| other.held.keys().any(|volume| held.contains_key(volume))) {
                Some(other) => Err(format!("VMs {vm} and {} have one volume", other.tags.vm)),
                None => Ok(()),
            }
        }
        Deed::VolumeRestored(volume, _)
        | Deed::VolumeQuarantined(volume)
        | Deed::SnapshotMade(volume, _) => match metal.holder(*volume) {
            Some(vm) => Err(format!("{deed:?} while VM {vm} has the volume")),
            None => Ok(()),
        },
        Deed::SnapshotCopied(volume, _, vm) if metal.holder(*volume) != Some(*vm) => {
            Err(format!("{deed:?}, which VM {vm} does not hold"))
        }
        _ => Ok(()),
    }
}
