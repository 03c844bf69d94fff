//! Compares what stands on this host with what the ledger says belongs here.
//!
//! Owns the rule what is an owner, and what it means that something has none or that an owner lacks
//! something. Changes nothing, and never takes unknown for absent: what could not be seen is named
//! as such. Asked by the API through the [`SightBoard`](crate::handover::SightBoard).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dagger_api::{FsckFinding, FsckKind, FsckView};
use dagger_images::disks::{FileKind, Survey};
use dagger_images::{Remains, RemainsOf};
use dagger_payload::id::{HostId, ImageDigest, SnapshotId, VmId, VolumeId};
use dagger_payload::kind::ReportPhase;
use dagger_payload::object::{Image, Placement, Vm, VmState, Wanted};
use dagger_payload::usage::Metered;
use dagger_payload::volume::{Volume, VolumeDisk, VolumeState, VolumeWanted};

use crate::actuator::store::StoredDisks;
use crate::hypervisor::{Hypervisor, Inventory, Machine};
use crate::network::Networks;
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
    snapshots: BTreeMap<(VolumeId, SnapshotId), VolumeMust>,
    /// Those that were deleted here, if they were asked for: what is left of them is rightly in
    /// quarantine.
    gone: BTreeSet<RemainsOf>,
    /// The files that registered images stand for.
    images: BTreeSet<ImageDigest>,
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
        let mut owners = Self::default();
        for vm in vms.filter(|vm| vm.placement.host() == Some(here)) {
            if vm.state() == VmState::Deleted {
                owners.gone.insert(RemainsOf::Vm(vm.id));
            } else {
                owners.vms.insert(vm.id, must(vm, here));
            }
        }
        owners
    }

    /// And these images.
    #[must_use]
    pub fn and_images<'i>(self, images: impl Iterator<Item = &'i Image>) -> Self {
        Self { images: images.map(|image| image.digest).collect(), ..self }
    }

    /// And those among `volumes` that are on `here`.
    #[must_use]
    pub fn and_volumes<'v>(
        mut self,
        volumes: impl Iterator<Item = &'v Volume>,
        here: HostId,
    ) -> Self {
        let must = |disk, wanted| match (disk, wanted) {
            (VolumeDisk::Made, VolumeWanted::Kept) => VolumeMust::Disk,
            _ => VolumeMust::Nothing,
        };
        for volume in volumes.filter(|volume| volume.host == here) {
            if volume.state() == VolumeState::Deleted {
                self.gone.insert(RemainsOf::Volume(volume.id));
            } else {
                self.volumes.insert(volume.id, must(volume.disk, volume.wanted));
                let snapshots = volume.snapshots.iter();
                self.snapshots.extend(snapshots.map(|snapshot| {
                    ((volume.id, snapshot.id), must(snapshot.disk, snapshot.wanted))
                }));
            }
        }
        self
    }
}

impl Owners {
    /// Whether what is in quarantine is there by an accepted order.
    fn has_proof(&self, of: RemainsOf) -> bool {
        let is_known = |volume: VolumeId| {
            self.volumes.contains_key(&volume) || self.gone.contains(&RemainsOf::Volume(volume))
        };
        match of {
            RemainsOf::Snapshot(volume, snapshot) => {
                let must = self.snapshots.get(&(volume, snapshot));
                is_known(volume) && must != Some(&VolumeMust::Disk)
            }
            RemainsOf::Replaced(volume, _) => is_known(volume),
            RemainsOf::Vm(_) | RemainsOf::Volume(_) | RemainsOf::Image(_) | RemainsOf::Unknown => {
                self.gone.contains(&of)
            }
        }
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
    /// Those that carry our tags, or a name of ours, where none should be.
    pub strays: Result<Vec<String>, String>,
    /// The VMs of which a network card or filters are there; none where guests have no cards.
    pub cards: Result<BTreeSet<VmId>, String>,
    /// The directories of disks, images and consoles.
    pub files: Result<Files, String>,
}

impl Found {
    /// Whose remains are in quarantine.
    pub fn in_quarantine(&self) -> (Vec<VmId>, Vec<VolumeId>) {
        let (mut vms, mut volumes) = (Vec::new(), Vec::new());
        for remains in self.files.iter().flat_map(|files| &files.remains) {
            match remains.of {
                RemainsOf::Vm(vm) => vms.push(vm),
                RemainsOf::Volume(volume)
                | RemainsOf::Snapshot(volume, _)
                | RemainsOf::Replaced(volume, _) => volumes.push(volume),
                RemainsOf::Image(_) | RemainsOf::Unknown => {}
            }
        }
        (vms, volumes)
    }
}

/// What the directories hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Disks, seeds and volumes.
    pub disks: Survey,
    /// Those of whose guests something was written down.
    pub consoles: Vec<VmId>,
    /// Image files.
    pub images: Vec<ImageDigest>,
    /// What is in quarantine.
    pub remains: Vec<Remains>,
}

/// Looks at this host. Cheap to clone.
#[derive(Clone)]
pub struct Inspector {
    calls: Arc<Calls>,
    disks: Arc<StoredDisks>,
    networks: Option<Arc<dyn Networks>>,
}

impl std::fmt::Debug for Inspector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Inspector").finish_non_exhaustive()
    }
}

impl Inspector {
    /// One that asks these; guests without networks have no cards.
    pub fn new(
        hypervisor: Arc<dyn Hypervisor>,
        disks: Arc<StoredDisks>,
        networks: Option<Arc<dyn Networks>>,
    ) -> Self {
        Self { calls: Arc::new(Calls::new(hypervisor)), disks, networks }
    }

    /// Looks at everything now, within the time that a listing may take.
    pub async fn look(&self) -> Found {
        let machines = self.calls.list().await.map_err(|error| error.to_string());
        let strays = self.calls.strays().await.map_err(|error| error.to_string());
        let disks = Arc::clone(&self.disks);
        let survey = tokio::task::spawn_blocking(move || disks.survey()).await;
        let files = match survey {
            Ok(Ok(survey)) => Ok(survey),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        Found { machines, strays, cards: self.cards().await, files }
    }
}

impl Inspector {
    async fn cards(&self) -> Result<BTreeSet<VmId>, String> {
        let Some(networks) = self.networks.clone() else { return Ok(BTreeSet::new()) };
        match tokio::task::spawn_blocking(move || networks.list()).await {
            Ok(cards) => cards.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
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
    match found.strays {
        Ok(strays) => {
            let stray = |detail| finding(FsckKind::MachineMisplaced, None, detail);
            view.findings.extend(strays.into_iter().map(stray));
        }
        Err(why) => view.unknown.push(format!("misplaced machines: {why}")),
    }
    match found.cards {
        Ok(cards) => {
            let stray = |vm: &VmId| finding(FsckKind::CardWithoutOwner, Some(*vm), "");
            view.findings.extend(cards.iter().filter(|vm| !owned(vm)).map(stray));
        }
        Err(why) => view.unknown.push(format!("network cards: {why}")),
    }
    match found.files {
        Ok(Files { disks, consoles, images, remains }) => {
            compare_volumes(&disks, before, after, &mut view);
            compare_snapshots(&disks, before, after, &mut view);
            compare_files(disks, owned, &needy, &mut view);
            let console = |vm: &VmId| finding(FsckKind::ConsoleWithoutOwner, Some(*vm), "its log");
            view.findings.extend(consoles.iter().filter(|vm| !owned(vm)).map(console));
            compare_images(&images, before, after, &mut view);
            compare_remains(&remains, after, &mut view);
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
    view.files = count(files.ours.len() + files.volumes.len() + files.snapshots.len());
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

fn compare_images(images: &[ImageDigest], before: &Owners, after: &Owners, view: &mut FsckView) {
    let is_known =
        |image: &ImageDigest| before.images.contains(image) || after.images.contains(image);
    for image in images.iter().filter(|image| !is_known(image)) {
        let detail = format!("image {image}");
        view.findings.push(finding(FsckKind::ImageUnregistered, None, detail));
    }
}

/// What is in quarantine without an accepted deletion stays there: nobody but the operator knows
/// what it is.
fn compare_remains(remains: &[Remains], after: &Owners, view: &mut FsckView) {
    view.quarantined = count(remains.len());
    for remains in remains.iter().filter(|remains| !after.has_proof(remains.of)) {
        let (vm, volume) = match remains.of {
            RemainsOf::Vm(vm) => (Some(vm), None),
            RemainsOf::Volume(volume)
            | RemainsOf::Snapshot(volume, _)
            | RemainsOf::Replaced(volume, _) => (None, Some(volume)),
            RemainsOf::Image(_) | RemainsOf::Unknown => (None, None),
        };
        let days = remains.since.elapsed().map_or(0, |age| age.as_secs() / 86_400);
        let detail = format!("{}, {} bytes, for {days} days", remains.name, remains.bytes);
        let kind = FsckKind::QuarantineWithoutProof;
        view.findings.push(FsckFinding { volume, ..finding(kind, vm, detail) });
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

fn compare_snapshots(files: &Survey, before: &Owners, after: &Owners, view: &mut FsckView) {
    let about = |kind, volume: VolumeId, detail: String| FsckFinding {
        volume: Some(volume),
        ..finding(kind, None, detail)
    };
    let owned = |key| before.snapshots.contains_key(key) || after.snapshots.contains_key(key);
    for (volume, snapshot) in files.snapshots.iter().filter(|key| !owned(*key)) {
        let detail = format!("the file of its snapshot {snapshot}");
        view.findings.push(about(FsckKind::DiskWithoutOwner, *volume, detail));
    }
    for (key, must) in &before.snapshots {
        let needs = *must == VolumeMust::Disk && after.snapshots.get(key) == Some(must);
        if needs && !files.snapshots.contains(key) {
            let detail = format!("its snapshot {} is not in the directory", key.1);
            view.findings.push(about(FsckKind::OwnerWithoutDisk, key.0, detail));
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

    fn files(disks: Survey) -> Files {
        Files { disks, ..Files::default() }
    }

    fn found(machines: &[(VmId, Machine)], disks: &[VmId]) -> Found {
        let name = |vm: &VmId| FileName { host: HERE, vm: *vm, kind: FileKind::Disk };
        let ours = disks.iter().map(name).collect();
        Found {
            machines: Ok(machines.iter().cloned().collect()),
            strays: Ok(Vec::new()),
            cards: Ok(BTreeSet::new()),
            files: Ok(files(Survey { ours, ..Survey::default() })),
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
        let cards = Ok([OFFERED, NOBODY].into());
        let found = Found { cards, ..found(&machines, &[NOBODY, OFFERED]) };
        let view = compare(HERE, &owners, &owners, found);
        assert_eq!(
            kinds(&view),
            [
                (FsckKind::MachineForeign, Some(OFFERED)),
                (FsckKind::MachineWithoutOwner, Some(NOBODY)),
                (FsckKind::OwnerWithoutMachine, Some(MADE)),
                (FsckKind::CardWithoutOwner, Some(NOBODY)),
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
        let disks = Survey { volumes: vec![kept, stray], ..Survey::default() };
        let found = Found { files: Ok(files(disks)), ..found(&[], &[]) };
        let view = compare(HERE, &owners, &owners, found);
        let found: Vec<_> = view.findings.iter().map(|one| (one.kind, one.volume)).collect();
        let orphan = (FsckKind::DiskWithoutOwner, Some(stray));
        assert_eq!(found, [orphan, (FsckKind::OwnerWithoutDisk, Some(lost))]);
        assert_eq!((view.owners, view.files), (3, 2));
    }

    #[test]
    fn images_nobody_registered_consoles_of_nobody_and_remains_without_a_deletion_are_found() {
        let (known, unknown) = (ImageDigest([5; 32]), ImageDigest([6; 32]));
        let owners = Owners {
            vms: [(OFFERED, Must::Nothing)].into(),
            gone: [RemainsOf::Vm(MADE)].into(),
            images: [known].into(),
            ..Owners::default()
        };
        let remains = |of| Remains {
            name: "its name".to_owned(),
            of,
            bytes: 7,
            since: std::time::SystemTime::now(),
        };
        let files = Files {
            consoles: vec![OFFERED, NOBODY],
            images: vec![known, unknown],
            remains: vec![remains(RemainsOf::Vm(MADE)), remains(RemainsOf::Vm(NOBODY))],
            ..Files::default()
        };
        let strays = Ok(vec!["a domain under another name".to_owned()]);
        let found = Found { strays, files: Ok(files), ..found(&[], &[]) };
        let view = compare(HERE, &owners, &owners, found);
        assert_eq!(
            kinds(&view),
            [
                (FsckKind::MachineMisplaced, None),
                (FsckKind::ConsoleWithoutOwner, Some(NOBODY)),
                (FsckKind::ImageUnregistered, None),
                (FsckKind::QuarantineWithoutProof, Some(NOBODY)),
            ]
        );
        assert_eq!(view.quarantined, 2);
    }

    #[test]
    fn snapshots_are_looked_for_and_what_was_put_aside_for_an_order_is_no_finding() {
        let volume = VolumeId([5; 16]);
        let [kept, lost, gone, stray] = [1, 2, 3, 4].map(|byte| SnapshotId([byte; 16]));
        let must =
            [(kept, VolumeMust::Disk), (lost, VolumeMust::Disk), (gone, VolumeMust::Nothing)];
        let owners = Owners {
            volumes: [(volume, VolumeMust::Nothing)].into(),
            snapshots: must.map(|(snapshot, must)| ((volume, snapshot), must)).into(),
            ..Owners::default()
        };
        let (bytes, since) = (7, std::time::SystemTime::now());
        let remains = [
            RemainsOf::Snapshot(volume, gone),
            RemainsOf::Snapshot(volume, lost),
            RemainsOf::Replaced(volume, Generation(4)),
            RemainsOf::Replaced(VolumeId([9; 16]), Generation(4)),
        ];
        let remains = remains.map(|of| Remains { name: "its name".to_owned(), of, bytes, since });
        let snapshots = vec![(volume, kept), (volume, stray)];
        let disks = Survey { snapshots, ..Survey::default() };
        let files = Files { disks, remains: remains.into(), ..Files::default() };
        let found = Found { files: Ok(files), ..found(&[], &[]) };
        let view = compare(HERE, &owners, &owners, found);
        let found: Vec<_> = view.findings.iter().map(|one| (one.kind, one.volume)).collect();
        assert_eq!(
            found,
            [
                (FsckKind::DiskWithoutOwner, Some(volume)),
                (FsckKind::OwnerWithoutDisk, Some(volume)),
                (FsckKind::QuarantineWithoutProof, Some(volume)),
                (FsckKind::QuarantineWithoutProof, Some(VolumeId([9; 16]))),
            ]
        );
    }

    #[test]
    fn what_could_not_be_seen_is_unknown_and_never_missing() {
        let owners = owners(&[(MADE, Must::DiskAndMachine)]);
        let hangs = || "libvirt hangs".to_owned();
        let (machines, strays) = (Err(hangs()), Err(hangs()));
        let found =
            Found { machines, strays, cards: Err(hangs()), files: Err("no right".to_owned()) };
        let view = compare(HERE, &owners, &owners, found);
        assert!(view.findings.is_empty());
        let unknown = [
            "machines: libvirt hangs",
            "misplaced machines: libvirt hangs",
            "network cards: libvirt hangs",
            "disks: no right",
        ];
        assert_eq!(view.unknown, unknown);
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
