//! Nothing is removed for ever before its deletion was reported and ordered and the retention time
//! has passed since in ledger time; no image goes that a VM of the host needs.

use std::collections::BTreeMap;

use dagger_controller::order::{Order, ReportSubject};
use dagger_controller::proof::Remnant;
use dagger_controller::{Collection, Input};
use dagger_payload::id::{CommitIndex, Generation, ImageDigest, LedgerTime, VmId};
use dagger_payload::object::{VmState, Wanted};
use dagger_payload::volume::VolumeState;

use super::super::metal::Deed;
use super::{Observed, Scene};

const HOUR_MS: u64 = 3_600_000;

/// What each VM that an agent was told of boots, while it is wanted there.
type Needed = BTreeMap<VmId, (Generation, CommitIndex, Option<ImageDigest>)>;

/// By host.
pub(super) struct Watch(Vec<Needed>);

impl Watch {
    pub(super) fn new(hosts: usize) -> Self {
        Self(vec![BTreeMap::new(); hosts])
    }

    pub(super) fn watch(
        &mut self,
        observed: &Observed<'_>,
        scene: &Scene<'_>,
    ) -> Result<(), String> {
        let needed = &mut self.0[scene.host];
        match observed {
            Observed::Did(Deed::Removed(remnant), _) => return remains(scene, *remnant),
            Observed::AgentBegan => needed.clear(),
            Observed::Told(Input::Order(Order::Vm(told))) => {
                let vm = &told.vm;
                let is_here = vm.placement.host() == Some(scene.here().id);
                let image = (is_here && vm.wanted != Wanted::Deleted).then_some(vm.image.digest);
                let told = (vm.generation, told.commit, image);
                let newest = needed.entry(vm.id).or_insert(told);
                if (newest.0, newest.1) < (told.0, told.1) {
                    *newest = told;
                }
            }
            Observed::Collects(Collection::Image(proof)) => {
                let is_it = |told: &&VmId| needed[*told].2 == Some(proof.image());
                if let Some(vm) = needed.keys().find(is_it) {
                    let image = proof.image();
                    return Err(format!("image {image} is removed, and VM {vm} needs it"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn remains(scene: &Scene<'_>, remnant: Remnant) -> Result<(), String> {
    let Some(hours) = scene.here().retention.quarantine_hours else {
        return Err(format!("{remnant} is removed, and everything is to be kept"));
    };
    let Some(since) = ended(scene, remnant) else {
        return Err(format!("{remnant} is removed, and its end was never ordered"));
    };
    let index = usize::try_from(scene.here().newest).expect("few");
    let now =
        scene.court.releases.get(index.saturating_sub(1)).map(|one| one.release().ledger_time);
    if now.is_none_or(|now| now < since.plus_ms(hours * HOUR_MS)) {
        return Err(format!("{remnant} is removed at {now:?}, kept since {since:?}"));
    }
    Ok(())
}

/// When the end of something was ordered: its own, or that of the volume with which it goes.
fn ended(scene: &Scene<'_>, remnant: Remnant) -> Option<LedgerTime> {
    let at = |commit: CommitIndex| {
        let index = usize::try_from(commit.0.saturating_sub(1)).expect("few");
        scene.court.releases.get(index).map(|release| release.release().ledger_time)
    };
    let versions = |volume| scene.court.volume_versions.get(&volume).into_iter().flatten();
    let own = match remnant {
        Remnant::Of(ReportSubject::Vm(id)) => {
            let mut versions = scene.court.vm_versions.get(&id).into_iter().flatten();
            versions.find(|(_, vm)| vm.state() == VmState::Deleted).and_then(|one| at(one.0))
        }
        Remnant::Of(ReportSubject::Volume(_)) => None,
        Remnant::Of(ReportSubject::Snapshot(volume, snapshot)) => {
            let mut versions =
                versions(volume).skip_while(|one| one.1.snapshot(snapshot).is_none());
            versions.find(|one| one.1.snapshot(snapshot).is_none()).and_then(|one| at(one.0))
        }
        Remnant::Replaced(volume, generation) => {
            let mut versions = versions(volume).filter(|one| one.1.generation == generation);
            versions.find(|one| one.1.restoring.is_none()).and_then(|one| at(one.0))
        }
    };
    let volume = match remnant {
        Remnant::Of(ReportSubject::Volume(volume)) => Some(volume),
        other => other.of_volume(),
    };
    let with_volume = volume.and_then(|volume| {
        let mut versions = versions(volume);
        versions.find(|one| one.1.state() == VolumeState::Deleted).and_then(|one| at(one.0))
    });
    [own, with_volume].into_iter().flatten().min()
}
