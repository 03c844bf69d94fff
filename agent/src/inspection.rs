//! Compares what stands on this host with what the ledger says belongs here.
//!
//! Owns the rule what is an owner, and what it means that something has none or that an owner lacks
//! something. Changes nothing, and never takes unknown for absent: what could not be seen is named
//! as such. Asked by the API through the [`SightBoard`](crate::handover::SightBoard).

use std::collections::BTreeMap;
use std::sync::Arc;

use dagger_api::{FsckFinding, FsckKind, FsckView};
use dagger_images::disks::{FileKind, Survey};
use dagger_payload::id::{HostId, VmId, VolumeId};
use dagger_payload::kind::ReportPhase;
use dagger_payload::object::{Placement, Vm, VmState, Wanted};
use dagger_payload::usage::Metered;
use dagger_payload::volume::{Volume, VolumeDisk, VolumeState, VolumeWanted};

use crate::actuator::store::StoredDisks;
use crate::hypervisor::{Hypervisor, Inventory, Machine};
use crate::observation::Calls;

/// What an owner must have on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Must {
    /// Nothing yet, or nothing any more: it is being made or deleted.
    Nothing,
    /// A disk and a machine: this host reported that they were there.
    DiskAndMachine,
}

/// The VMs and volumes that belong on one host, at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owners {
    vms: BTreeMap<VmId, Must>,
    volumes: BTreeMap<VolumeId, VolumeMust>,
}

/// What a volume must have on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VolumeMust {
    /// Nothing yet, or nothing any more.
    Nothing,
    /// A disk: this host reported that it was there.
    Disk,
}

impl Owners {
    /// Those among `vms` that `here` carries or is offered.
    pub fn among<'vm>(vms: impl Iterator<Item = &'vm Vm>, here: HostId) -> Self {
        let ours =
            vms.filter(|vm| vm.placement.host() == Some(here) && vm.state() != VmState::Deleted);
        let vms = ours.map(|vm| (vm.id, must(vm, here))).collect();
        Self { vms, volumes: BTreeMap::new() }
    }

    /// And those among `volumes` that are on `here`.
    #[must_use]
    pub fn and_volumes<'v>(self, volumes: impl Iterator<Item = &'v Volume>, here: HostId) -> Self {
        let is_ours =
            |volume: &&Volume| volume.host == here && volume.state() != VolumeState::Deleted;
        let must = |volume: &Volume| match (volume.disk, volume.wanted) {
            (VolumeDisk::Made, VolumeWanted::Kept) => VolumeMust::Disk,
            _ => VolumeMust::Nothing,
        };
        let volumes = volumes.filter(is_ours).map(|volume| (volume.id, must(volume))).collect();
        Self { volumes, ..self }
    }
}

fn must(vm: &Vm, here: HostId) -> Must {
    let accepted = matches!(vm.placement, Placement::Accepted { .. });
    let made = vm.reported.as_ref().is_some_and(|report| {
        let made = match report.phase {
            ReportPhase::Running | ReportPhase::Paused | ReportPhase::Stopped => true,
            // Perhaps nothing was made yet: only a guest that ran had all it needs.
            ReportPhase::Degraded => has_run(vm),
            ReportPhase::Accepted | ReportPhase::Refused | ReportPhase::Deleted => false,
        };
        made && report.host == here
    });
    if accepted && made && vm.wanted != Wanted::Deleted {
        Must::DiskAndMachine
    } else {
        Must::Nothing
    }
}

/// Whether the guest was ever reported in memory: its meter counted then.
fn has_run(vm: &Vm) -> bool {
    vm.meter.used.memory_mib_ms > 0 || matches!(vm.meter.counts, Metered::Guest | Metered::Paused)
}

/// What stands on a host; each part whole, or why it is unknown.
#[derive(Debug, Clone)]
pub struct Found {
    /// Domains or units.
    pub machines: Result<Inventory, String>,
    /// The directory of disks.
    pub files: Result<Survey, String>,
}

/// Looks at this host. Cheap to clone.
#[derive(Clone)]
pub struct Inspector {
    calls: Arc<Calls>,
    disks: Arc<StoredDisks>,
}

impl std::fmt::Debug for Inspector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Inspector").finish_non_exhaustive()
    }
}

impl Inspector {
    /// One that asks these two.
    pub fn new(hypervisor: Arc<dyn Hypervisor>, disks: Arc<StoredDisks>) -> Self {
        Self { calls: Arc::new(Calls::new(hypervisor)), disks }
    }

    /// Looks at everything now, within the time that a listing may take.
    pub async fn look(&self) -> Found {
        let machines = self.calls.list().await.map_err(|error| error.to_string());
        let disks = Arc::clone(&self.disks);
        let survey = tokio::task::spawn_blocking(move || disks.survey()).await;
        let files = match survey {
            Ok(Ok(survey)) => Ok(survey),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        Found { machines, files }
    }
}

/// Compares. Owners are asked `before` and `after` the look, so that what comes or goes meanwhile
/// is no finding: an owner counts if it was one at either time, and must have something only if
/// it must at both.
pub fn compare(here: HostId, before: &Owners, after: &Owners, found: Found) -> FsckView {
    let mut view = FsckView::of(here);
    let owned = |vm: &VmId| before.vms.contains_key(vm) || after.vms.contains_key(vm);
    let needy: Vec<VmId> = before
        .vms
        .iter()
        .filter(|(vm, must)| **must == Must::DiskAndMachine && after.vms.get(vm) == Some(must))
        .map(|(vm, _)| *vm)
        .collect();
    view.owners = count(after.vms.len() + after.volumes.len());
    match found.machines {
        Ok(machines) => compare_machines(&machines, owned, &needy, &mut view),
        Err(why) => view.unknown.push(format!("machines: {why}")),
    }
    match found.files {
        Ok(files) => {
            compare_volumes(&files, before, after, &mut view);
            compare_files(files, owned, &needy, &mut view);
        }
        Err(why) => view.unknown.push(format!("disks: {why}")),
    }
    view
}

fn compare_machines(
    machines: &Inventory,
    owned: impl Fn(&VmId) -> bool,
    needy: &[VmId],
    view: &mut FsckView,
) {
    view.machines = count(machines.len());
    for (vm, machine) in machines {
        match machine {
            Machine::Foreign(why) => {
                view.findings.push(finding(FsckKind::MachineForeign, Some(*vm), why));
            }
            Machine::Ours { power, .. } if !owned(vm) => {
                let detail = format!("{power:?}").to_lowercase();
                view.findings.push(finding(FsckKind::MachineWithoutOwner, Some(*vm), detail));
            }
            Machine::Ours { .. } => {}
        }
    }
    for vm in needy.iter().filter(|vm| !machines.contains_key(vm)) {
        let detail = "this host reported it, and the hypervisor does not have it";
        view.findings.push(finding(FsckKind::OwnerWithoutMachine, Some(*vm), detail));
    }
}

fn compare_files(
    files: Survey,
    owned: impl Fn(&VmId) -> bool,
    needy: &[VmId],
    view: &mut FsckView,
) {
    view.files = count(files.ours.len() + files.volumes.len());
    view.quarantined = count(files.quarantined);
    for name in files.ours.iter().filter(|name| !owned(&name.vm)) {
        let kind = FsckKind::DiskWithoutOwner;
        view.findings.push(finding(kind, Some(name.vm), name.to_string()));
    }
    let has_disk =
        |vm: &VmId| files.ours.iter().any(|name| name.vm == *vm && name.kind == FileKind::Disk);
    for vm in needy.iter().filter(|vm| !has_disk(vm)) {
        let detail = "this host reported it, and its disk is not in the directory";
        view.findings.push(finding(FsckKind::OwnerWithoutDisk, Some(*vm), detail));
    }
    for name in files.foreign {
        view.findings.push(finding(FsckKind::FileForeign, None, name));
    }
}

fn compare_volumes(files: &Survey, before: &Owners, after: &Owners, view: &mut FsckView) {
    let owned = |volume: &VolumeId| {
        before.volumes.contains_key(volume) || after.volumes.contains_key(volume)
    };
    let about = |kind, volume: VolumeId, detail: &str| FsckFinding {
        volume: Some(volume),
        ..finding(kind, None, detail)
    };
    for volume in files.volumes.iter().filter(|volume| !owned(volume)) {
        let detail = "a volume's disk";
        view.findings.push(about(FsckKind::DiskWithoutOwner, *volume, detail));
    }
    for (volume, must) in &before.volumes {
        let needs = *must == VolumeMust::Disk && after.volumes.get(volume) == Some(must);
        if needs && !files.volumes.contains(volume) {
            let detail = "this host reported it, and its disk is not in the directory";
            view.findings.push(about(FsckKind::OwnerWithoutDisk, *volume, detail));
        }
    }
}

fn finding(kind: FsckKind, vm: Option<VmId>, detail: impl Into<String>) -> FsckFinding {
    FsckFinding { kind, vm, volume: None, detail: detail.into() }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use dagger_images::disks::FileName;
    use dagger_payload::id::{Generation, PayloadDigest};

    use super::*;
    use crate::hypervisor::{Power, Tags};

    const HERE: HostId = HostId([1; 16]);
    const MADE: VmId = VmId([2; 16]);
    const OFFERED: VmId = VmId([3; 16]);
    const NOBODY: VmId = VmId([4; 16]);

    fn owners(owners: &[(VmId, Must)]) -> Owners {
        Owners { vms: owners.iter().copied().collect(), ..Owners::default() }
    }

    fn ours(vm: VmId) -> Machine {
        let (generation, payload) = (Generation(1), PayloadDigest([9; 32]));
        let tags = Tags { host: HERE, vm, generation, payload };
        Machine::Ours { power: Power::Running, tags }
    }

    fn found(machines: &[(VmId, Machine)], disks: &[VmId]) -> Found {
        let name = |vm: &VmId| FileName { host: HERE, vm: *vm, kind: FileKind::Disk };
        let ours = disks.iter().map(name).collect();
        Found {
            machines: Ok(machines.iter().cloned().collect()),
            files: Ok(Survey { ours, ..Survey::default() }),
        }
    }

    fn kinds(view: &FsckView) -> Vec<(FsckKind, Option<VmId>)> {
        view.findings.iter().map(|finding| (finding.kind, finding.vm)).collect()
    }

    #[test]
    fn a_host_on_which_everything_has_its_place_shows_no_finding() {
        let owners = owners(&[(MADE, Must::DiskAndMachine), (OFFERED, Must::Nothing)]);
        let found = found(&[(MADE, ours(MADE))], &[MADE]);
        let view = compare(HERE, &owners, &owners, found);
        assert_eq!((view.findings, view.unknown), (Vec::new(), Vec::new()));
        assert_eq!((view.owners, view.machines, view.files), (2, 1, 1));
    }

    #[test]
    fn what_has_no_owner_and_an_owner_that_lacks_something_are_found() {
        let owners = owners(&[(MADE, Must::DiskAndMachine), (OFFERED, Must::Nothing)]);
        let machines = [(NOBODY, ours(NOBODY)), (OFFERED, Machine::Foreign("no tags".to_owned()))];
        let view = compare(HERE, &owners, &owners, found(&machines, &[NOBODY, OFFERED]));
        assert_eq!(
            kinds(&view),
            [
                (FsckKind::MachineForeign, Some(OFFERED)),
                (FsckKind::MachineWithoutOwner, Some(NOBODY)),
                (FsckKind::OwnerWithoutMachine, Some(MADE)),
                (FsckKind::DiskWithoutOwner, Some(NOBODY)),
                (FsckKind::OwnerWithoutDisk, Some(MADE)),
            ]
        );
    }

    #[test]
    fn a_volume_without_owner_and_one_that_lost_its_disk_are_found() {
        let [kept, lost, new, stray] = [5, 6, 7, 8].map(|byte| VolumeId([byte; 16]));
        let volumes =
            [(kept, VolumeMust::Disk), (lost, VolumeMust::Disk), (new, VolumeMust::Nothing)];
        let owners = Owners { volumes: volumes.into(), ..Owners::default() };
        let files = Survey { volumes: vec![kept, stray], ..Survey::default() };
        let found = Found { machines: Ok(Inventory::new()), files: Ok(files) };
        let view = compare(HERE, &owners, &owners, found);
        let found: Vec<_> = view.findings.iter().map(|one| (one.kind, one.volume)).collect();
        let orphan = (FsckKind::DiskWithoutOwner, Some(stray));
        assert_eq!(found, [orphan, (FsckKind::OwnerWithoutDisk, Some(lost))]);
        assert_eq!((view.owners, view.files), (3, 2));
    }

    #[test]
    fn what_could_not_be_seen_is_unknown_and_never_missing() {
        let owners = owners(&[(MADE, Must::DiskAndMachine)]);
        let (machines, files) = (Err("libvirt hangs".to_owned()), Err("no right".to_owned()));
        let view = compare(HERE, &owners, &owners, Found { machines, files });
        assert!(view.findings.is_empty());
        assert_eq!(view.unknown, ["machines: libvirt hangs", "disks: no right"]);
    }

    #[test]
    fn what_comes_or_goes_during_the_look_is_no_finding() {
        let (with, without) = (owners(&[(MADE, Must::DiskAndMachine)]), Owners::default());
        let making = owners(&[(MADE, Must::Nothing)]);
        for (before, after) in [(&without, &with), (&with, &without), (&making, &with)] {
            let there = found(&[(MADE, ours(MADE))], &[MADE]);
            assert!(compare(HERE, before, after, there).findings.is_empty());
            assert!(compare(HERE, before, after, found(&[], &[])).findings.is_empty());
        }
    }
}
