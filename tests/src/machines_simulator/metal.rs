//! What outlives an agent: machines, disks, volumes, seeds, cards and images of one host, in
//! memory.
//!
//! Owns what is there and what each call of a hypervisor or a store does to it, as the real ones
//! promise in `dagger-agent`: who is not ours is refused, what is locked does not start. Never
//! decides. Every change leaves a [`Deed`] for the promises to look at. Called by the world.

use std::collections::{BTreeMap, BTreeSet};

use dagger_controller::machine::{Inventory, Machine, Power, Tags};
use dagger_controller::order::ReportSubject;
use dagger_controller::proof::{RemainsProof, Remnant, RestoreProof};
use dagger_controller::{DiskRule, Stored, StoredOverlay};
use dagger_payload::id::{ImageDigest, SnapshotId, VmId, VolumeId};
use dagger_payload::object::Vm;
use dagger_payload::volume::{Origin, Volume};

/// Something that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    Defined(VmId),
    Started(VmId),
    GivenVolumes(VmId),
    PoweredOff(VmId),
    Undefined(VmId),
    DiskMade(VmId),
    DiskQuarantined(VmId),
    VolumeMade(VolumeId),
    VolumeRestored(VolumeId, SnapshotId),
    VolumeQuarantined(VolumeId),
    SnapshotMade(VolumeId, SnapshotId),
    /// By the machine that holds the volume.
    SnapshotCopied(VolumeId, SnapshotId, VmId),
    SnapshotQuarantined(VolumeId, SnapshotId),
    Removed(Remnant),
}

/// Why a call did nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    Occupied,
    Failed(&'static str),
    DiskMissing,
    ImageMissing(ImageDigest),
}

type Done = Result<(), Trouble>;

/// A machine of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Domain {
    pub(super) tags: Tags,
    pub(super) power: Power,
    /// What it gets when it is switched on.
    pub(super) defined: BTreeMap<VolumeId, u64>,
    /// What it has while it is in memory.
    pub(super) held: BTreeMap<VolumeId, u64>,
}

/// What stands under a name of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    Ours(Domain),
    /// Somebody else made it.
    Strange(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VolumeFile {
    pub(super) size_gib: u64,
    /// Changes with everything that a guest writes.
    pub(super) contents: u64,
}

#[derive(Debug, Default)]
pub(super) struct Metal {
    pub(super) standing: BTreeMap<VmId, Standing>,
    /// The image below each.
    pub(super) disks: BTreeMap<VmId, ImageDigest>,
    pub(super) seeds: BTreeSet<VmId>,
    pub(super) cards: BTreeSet<VmId>,
    pub(super) volumes: BTreeMap<VolumeId, VolumeFile>,
    pub(super) snapshots: BTreeMap<(VolumeId, SnapshotId), VolumeFile>,
    /// With the image below, where it is a VM's disk.
    pub(super) quarantine: BTreeMap<Remnant, Option<ImageDigest>>,
    pub(super) images: BTreeSet<ImageDigest>,
    /// Disks can take nothing more.
    pub(super) is_full: bool,
    deeds: Vec<Deed>,
}

impl Metal {
    pub(super) fn deeds(&mut self) -> Vec<Deed> {
        std::mem::take(&mut self.deeds)
    }

    pub(super) fn look(&self, vm: VmId) -> Option<Machine> {
        self.standing.get(&vm).map(|standing| match standing {
            Standing::Ours(domain) => {
                Machine::Ours { power: domain.power, tags: domain.tags.clone() }
            }
            Standing::Strange(why) => Machine::Foreign(why.clone()),
        })
    }

    pub(super) fn list(&self) -> Inventory {
        self.standing.keys().filter_map(|vm| Some((*vm, self.look(*vm)?))).collect()
    }

    pub(super) fn domain(&self, vm: VmId) -> Option<&Domain> {
        match self.standing.get(&vm) {
            Some(Standing::Ours(domain)) => Some(domain),
            Some(Standing::Strange(_)) | None => None,
        }
    }

    pub(super) fn is_in_memory(&self, vm: VmId) -> bool {
        self.domain(vm).is_some_and(|domain| domain.power != Power::Stopped)
    }

    /// The machine that has the volume now.
    pub(super) fn holder(&self, volume: VolumeId) -> Option<VmId> {
        let holds =
            |vm: &&VmId| self.domain(**vm).is_some_and(|one| one.held.contains_key(&volume));
        self.standing.keys().find(holds).copied()
    }

    fn ours(&mut self, vm: VmId) -> Result<&mut Domain, Trouble> {
        match self.standing.get_mut(&vm) {
            Some(Standing::Ours(domain)) => Ok(domain),
            Some(Standing::Strange(_)) => Err(Trouble::Occupied),
            None => Err(Trouble::Failed("hypervisor_failed: not defined")),
        }
    }

    fn room(&self) -> Done {
        if self.is_full { Err(Trouble::Failed("disk_failed: no space left")) } else { Ok(()) }
    }

    pub(super) fn ensure_image(&mut self, image: ImageDigest) -> Done {
        if self.images.contains(&image) { Ok(()) } else { Err(Trouble::ImageMissing(image)) }
    }

    pub(super) fn ensure_disk(&mut self, vm: &Vm, rule: DiskRule) -> Done {
        let here = self.disks.contains_key(&vm.id);
        if rule == DiskRule::MustExist && !here {
            return Err(Trouble::DiskMissing);
        }
        self.ensure_image(vm.image.digest).map_err(|_| Trouble::Failed("image_missing: gone"))?;
        if !here {
            self.room()?;
            self.disks.insert(vm.id, vm.image.digest);
            self.deeds.push(Deed::DiskMade(vm.id));
        }
        Ok(())
    }

    pub(super) fn ensure_seed(&mut self, vm: VmId) -> Done {
        self.room()?;
        self.seeds.insert(vm);
        Ok(())
    }

    fn require_volumes(&self, vm: &Vm) -> Done {
        let here = vm.volumes.iter().all(|used| self.volumes.contains_key(&used.volume));
        if here { Ok(()) } else { Err(Trouble::DiskMissing) }
    }

    /// Files grow as the machine's version says, unless another machine has them.
    fn grow_all(&mut self, vm: &Vm) -> Done {
        self.require_volumes(vm)?;
        for used in &vm.volumes {
            let holder = self.holder(used.volume);
            if holder.is_some_and(|holder| holder != vm.id) {
                return Err(Trouble::Failed("disk_failed: locked"));
            }
            let file = self.volumes.get_mut(&used.volume).expect("it is there");
            file.size_gib = file.size_gib.max(used.size_gib);
        }
        Ok(())
    }

    pub(super) fn define(&mut self, vm: &Vm, tags: &Tags) -> Done {
        self.grow_all(vm)?;
        let defined = vm.volumes.iter().map(|used| (used.volume, used.size_gib)).collect();
        match self.standing.get_mut(&vm.id) {
            Some(Standing::Strange(_)) => return Err(Trouble::Occupied),
            Some(Standing::Ours(domain)) => {
                (domain.tags, domain.defined) = (tags.clone(), defined);
            }
            None => {
                let (tags, held) = (tags.clone(), BTreeMap::new());
                let domain = Domain { tags, power: Power::Stopped, defined, held };
                self.standing.insert(vm.id, Standing::Ours(domain));
            }
        }
        self.deeds.push(Deed::Defined(vm.id));
        Ok(())
    }

    pub(super) fn tag(&mut self, tags: &Tags) -> Done {
        self.ours(tags.vm)?.tags = tags.clone();
        Ok(())
    }

    pub(super) fn start(&mut self, vm: VmId) -> Done {
        let domain = self.ours(vm)?.clone();
        if domain.power != Power::Stopped {
            return Ok(());
        }
        let whole = self.disks.contains_key(&vm)
            && self.seeds.contains(&vm)
            && self.cards.contains(&vm)
            && domain.defined.keys().all(|volume| self.volumes.contains_key(volume));
        if !whole {
            return Err(Trouble::Failed("hypervisor_failed: a disk or card is missing"));
        }
        if domain.defined.keys().any(|volume| self.holder(*volume).is_some()) {
            return Err(Trouble::Failed("hypervisor_failed: a volume is locked"));
        }
        let domain = self.ours(vm)?;
        (domain.power, domain.held) = (Power::Running, domain.defined.clone());
        self.write(vm);
        self.deeds.push(Deed::Started(vm));
        Ok(())
    }

    /// The guest writes to what it has.
    pub(super) fn write(&mut self, vm: VmId) {
        let Some(domain) = self.domain(vm) else { return };
        for volume in domain.held.keys().copied().collect::<Vec<_>>() {
            if let Some(file) = self.volumes.get_mut(&volume) {
                file.contents += 1;
            }
        }
    }

    pub(super) fn set_power(&mut self, vm: VmId, from: Power, to: Power) -> Done {
        let domain = self.ours(vm)?;
        if domain.power == from {
            domain.power = to;
        }
        Ok(())
    }

    pub(super) fn give(&mut self, vm: &Vm) -> Done {
        self.grow_all(vm)?;
        let domain = self.ours(vm.id)?;
        if domain.power != Power::Stopped {
            domain.held = vm.volumes.iter().map(|used| (used.volume, used.size_gib)).collect();
            self.write(vm.id);
            self.deeds.push(Deed::GivenVolumes(vm.id));
        }
        Ok(())
    }

    /// Off at once, by whatever cause.
    pub(super) fn lose_power(&mut self, vm: VmId) {
        if let Ok(domain) = self.ours(vm) {
            domain.power = Power::Stopped;
            domain.held.clear();
        }
    }

    pub(super) fn destroy(&mut self, vm: VmId) -> Done {
        if let Some(Standing::Strange(_)) = self.standing.get(&vm) {
            return Err(Trouble::Occupied);
        }
        if self.is_in_memory(vm) {
            self.lose_power(vm);
            self.deeds.push(Deed::PoweredOff(vm));
        }
        Ok(())
    }

    pub(super) fn undefine(&mut self, vm: VmId) -> Done {
        match self.standing.get(&vm) {
            Some(Standing::Strange(_)) => return Err(Trouble::Occupied),
            Some(Standing::Ours(domain)) if domain.power != Power::Stopped => {
                return Err(Trouble::Failed("hypervisor_failed: it runs"));
            }
            Some(Standing::Ours(_)) => {
                self.standing.remove(&vm);
                self.deeds.push(Deed::Undefined(vm));
            }
            None => {}
        }
        Ok(())
    }

    pub(super) fn quarantine(&mut self, vm: VmId) -> Done {
        self.seeds.remove(&vm);
        if let Some(image) = self.disks.remove(&vm) {
            self.quarantine.insert(Remnant::Of(ReportSubject::Vm(vm)), Some(image));
            self.deeds.push(Deed::DiskQuarantined(vm));
        }
        Ok(())
    }

    pub(super) fn make_volume(&mut self, volume: &Volume, rule: DiskRule) -> Done {
        let here = self.volumes.contains_key(&volume.id);
        match (here, rule, &volume.origin) {
            (true, _, _) => {}
            (false, DiskRule::MustExist, _) => return Err(Trouble::DiskMissing),
            (false, DiskRule::MayMake, origin) => {
                self.room()?;
                let contents = match origin {
                    Some(Origin { volume, snapshot }) => {
                        let source = self.snapshots.get(&(*volume, *snapshot));
                        source.ok_or(Trouble::DiskMissing)?.contents
                    }
                    None => 0,
                };
                let file = VolumeFile { size_gib: volume.size_gib, contents };
                self.volumes.insert(volume.id, file);
                self.deeds.push(Deed::VolumeMade(volume.id));
            }
        }
        let file = self.volumes.get_mut(&volume.id).expect("it is there");
        file.size_gib = file.size_gib.max(volume.size_gib);
        Ok(())
    }

    pub(super) fn restore(&mut self, proof: &RestoreProof) -> Done {
        let (volume, snapshot) = (proof.volume(), proof.snapshot());
        let source = *self.snapshots.get(&(volume, snapshot)).ok_or(Trouble::DiskMissing)?;
        let mark = Remnant::Replaced(volume, proof.generation());
        if self.quarantine.contains_key(&mark) && self.volumes.contains_key(&volume) {
            return Ok(());
        }
        self.room()?;
        self.quarantine.insert(mark, None);
        self.volumes.insert(volume, source);
        self.deeds.push(Deed::VolumeRestored(volume, snapshot));
        Ok(())
    }

    pub(super) fn keep(&mut self, volume: &Volume, snapshot: SnapshotId, rule: DiskRule) -> Done {
        let (volume, user) = (volume.id, volume.used_by.vm());
        if self.snapshots.contains_key(&(volume, snapshot)) {
            return Ok(());
        }
        if rule == DiskRule::MustExist {
            return Err(Trouble::DiskMissing);
        }
        self.room()?;
        let file = *self.volumes.get(&volume).ok_or(Trouble::DiskMissing)?;
        let in_memory = |vm: &VmId| self.domain(*vm).is_some_and(|it| it.power != Power::Stopped);
        let deed = match user.filter(in_memory) {
            // A machine copies what it holds.
            Some(vm) if self.holder(volume) != Some(vm) => {
                return Err(Trouble::Failed("hypervisor_failed: no such disk"));
            }
            Some(vm) => Deed::SnapshotCopied(volume, snapshot, vm),
            None if self.holder(volume).is_some() => {
                return Err(Trouble::Failed("disk_failed: another program has it open"));
            }
            None => Deed::SnapshotMade(volume, snapshot),
        };
        self.snapshots.insert((volume, snapshot), file);
        self.deeds.push(deed);
        Ok(())
    }

    pub(super) fn quarantine_snapshot(&mut self, volume: VolumeId, snapshot: SnapshotId) -> Done {
        if self.snapshots.remove(&(volume, snapshot)).is_some() {
            let of = Remnant::Of(ReportSubject::Snapshot(volume, snapshot));
            self.quarantine.insert(of, None);
            self.deeds.push(Deed::SnapshotQuarantined(volume, snapshot));
        }
        Ok(())
    }

    pub(super) fn quarantine_volume(&mut self, volume: VolumeId) -> Done {
        if self.volumes.remove(&volume).is_some() {
            self.quarantine.insert(Remnant::Of(ReportSubject::Volume(volume)), None);
            self.deeds.push(Deed::VolumeQuarantined(volume));
        }
        Ok(())
    }

    /// What lies in the stores, as the real store tells it: what was a volume's goes with it.
    pub(super) fn stored(&self) -> Stored {
        let whole = |remnant: &Remnant| {
            let volume = remnant.of_volume().map(|id| Remnant::Of(ReportSubject::Volume(id)));
            [Some(*remnant), volume].into_iter().flatten()
        };
        let quarantined = self.quarantine.iter().filter_map(|(remnant, image)| match remnant {
            Remnant::Of(ReportSubject::Vm(vm)) => Some(StoredOverlay { vm: *vm, image: *image }),
            Remnant::Of(_) | Remnant::Replaced(..) => None,
        });
        let live = self.disks.iter().map(|(vm, image)| StoredOverlay {
            vm: *vm,
            // A disk that a hypervisor has cannot be read.
            image: (!self.is_in_memory(*vm)).then_some(*image),
        });
        Stored {
            remains: self.quarantine.keys().flat_map(whole).collect(),
            images: self.images.clone(),
            overlays: live.chain(quarantined).collect(),
        }
    }

    pub(super) fn collect(&mut self, proof: &RemainsProof) {
        let subject = proof.subject();
        let goes = |remnant: &Remnant| {
            let volume = remnant.of_volume().map(|id| Remnant::Of(ReportSubject::Volume(id)));
            *remnant == subject || volume == Some(subject)
        };
        let gone: Vec<_> = self.quarantine.keys().filter(|one| goes(one)).copied().collect();
        for remnant in gone {
            self.quarantine.remove(&remnant);
            self.deeds.push(Deed::Removed(remnant));
        }
    }

    pub(super) fn collect_image(&mut self, image: ImageDigest) {
        let below = self.disks.values().chain(self.quarantine.values().flatten());
        if below.copied().any(|used| used == image) {
            return; // a disk lies over it now
        }
        self.images.remove(&image);
    }
}
