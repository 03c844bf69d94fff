//! A VM runs on one host at most, and there only if its acceptance by that host is ordered.

use dagger_payload::object::Placement;

use super::super::metal::Deed;
use super::{Observed, Scene};

pub(super) fn watch(observed: &Observed<'_>, scene: &Scene<'_>) -> Result<(), String> {
    let Observed::Did(Deed::Started(vm), _) = observed else { return Ok(()) };
    let running = scene.hosts.iter().filter(|host| host.metal.is_in_memory(*vm)).count();
    if running > 1 {
        return Err(format!("VM {vm} runs on {running} hosts"));
    }
    let here = scene.here().id;
    match scene.court.vms.get(vm).map(|vm| &vm.placement) {
        Some(Placement::Accepted { host, .. }) if *host == here => Ok(()),
        other => Err(format!("VM {vm} runs here, and its placement is {other:?}")),
    }
}
