//! The disks, seeds, volumes and images of the fake host: what is made once, and never under a
//! machine.

use std::path::{Path, PathBuf};

use dagger_agent::actuator::disks::{DiskError, Disks, LiveCopyError, SeedContents};
use dagger_agent::controller::proof::{
    DeleteProof, RemainsProof, Remnant, RestoreProof, SnapshotProof, UnusedProof, VolumeProof,
};
use dagger_agent::controller::{DiskRule, Stored, StoredOverlay};
use dagger_agent::handover::ReportSubject;
use dagger_agent::hypervisor::HypervisorError;
use dagger_payload::id::{AccountId, ImageDigest, SnapshotId, VmId, VolumeId};
use dagger_payload::kind::VmImage;
use dagger_payload::name::ImageSource;
use dagger_payload::volume::Origin;

use super::support::{FakeHost, FakeState, IMAGE};

impl FakeHost {
    fn disk(
        &self,
        effect: impl FnOnce(&mut FakeState) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        self.change(|| DiskError::Failed("the agent is dead".to_owned()), effect)
    }

    /// The whole image comes from elsewhere; what came before the agent died is no image.
    pub(crate) fn fetch(&self, image: ImageDigest) -> Result<(), DiskError> {
        self.disk(|state| {
            state.images_fetched += usize::from(state.images.insert(image));
            Ok(())
        })
    }
}

impl FakeState {
    /// How many things lie in quarantine.
    pub(crate) fn remains(&self) -> usize {
        self.quarantine.len() + self.volumes_quarantined.len() + self.kept.remains().count()
    }
}

impl Disks for FakeHost {
    fn ensure_image(&self, image: &VmImage, _sources: &[ImageSource]) -> Result<(), DiskError> {
        self.disk(|state| {
            let here = state.images.contains(&image.digest).then_some(());
            here.ok_or_else(|| DiskError::ImageMissing("it is elsewhere".to_owned()))
        })
    }

    fn ensure_disk(
        &self,
        vm: VmId,
        _image: &VmImage,
        _size_gib: u64,
        rule: DiskRule,
    ) -> Result<(), DiskError> {
        self.disk(|state| {
            if state.disks.contains(&vm) {
                return Ok(());
            }
            if rule == DiskRule::MustExist {
                return Err(DiskError::DiskMissing("it was there".to_owned()));
            }
            state.disks.insert(vm);
            state.disks_made += 1;
            Ok(())
        })
    }

    fn ensure_seed(&self, seed: &SeedContents) -> Result<(), DiskError> {
        self.disk(|state| {
            state.seeds.insert(seed.vm, seed.clone());
            Ok(())
        })
    }

    fn quarantine(&self, proof: &DeleteProof) -> Result<(), DiskError> {
        self.disk(|state| {
            assert!(!state.machines.contains_key(&proof.vm()), "a disk was taken from a machine");
            if state.disks.remove(&proof.vm()) {
                state.quarantine.insert(proof.vm());
            }
            state.seeds.remove(&proof.vm());
            Ok(())
        })
    }

    fn ensure_volume(
        &self,
        volume: VolumeId,
        size_gib: u64,
        rule: DiskRule,
    ) -> Result<(), DiskError> {
        self.disk(|state| {
            if let Some(size) = state.volumes.get_mut(&volume) {
                *size = (*size).max(size_gib);
                return Ok(());
            }
            if rule == DiskRule::MustExist {
                return Err(DiskError::DiskMissing("it was there".to_owned()));
            }
            state.volumes.insert(volume, size_gib);
            state.volumes_made += 1;
            Ok(())
        })
    }

    fn ensure_clone(&self, volume: VolumeId, origin: &Origin) -> Result<(), DiskError> {
        self.disk(|state| {
            if !state.volumes.contains_key(&volume) {
                state.kept.clone(volume, origin.snapshot);
                state.volumes.insert(volume, 1);
                state.volumes_made += 1;
            }
            Ok(())
        })
    }

    fn restore_volume(&self, proof: &RestoreProof) -> Result<(), DiskError> {
        self.disk(|state| {
            assert!(!state.is_given(proof.volume()), "a volume was put back under a machine");
            state.kept.restore(proof);
            Ok(())
        })
    }

    fn ensure_snapshot(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        rule: DiskRule,
    ) -> Result<(), DiskError> {
        self.disk(|state| {
            assert!(rule == DiskRule::MustExist || !state.is_given(volume), "a torn snapshot");
            state.kept.keep(volume, snapshot, rule)
        })
    }

    fn ensure_snapshot_by(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        _size_gib: u64,
        copy: &dyn Fn(&Path) -> Result<(), HypervisorError>,
    ) -> Result<(), LiveCopyError> {
        if !self.state().kept.has(snapshot) {
            copy(&PathBuf::from(format!("/snapshots/{snapshot}")))?;
        }
        let kept = self.disk(|state| state.kept.keep(volume, snapshot, DiskRule::MayMake));
        kept.map_err(LiveCopyError::Disk)
    }

    fn quarantine_snapshot(&self, proof: &SnapshotProof) -> Result<(), DiskError> {
        self.disk(|state| {
            state.kept.quarantine(proof.snapshot());
            Ok(())
        })
    }

    fn require_quarantine_room(&self, _account: AccountId) -> Result<(), DiskError> {
        match self.state().quarantine_full {
            true => Err(DiskError::QuarantineFull),
            false => Ok(()),
        }
    }

    fn require_volume(&self, volume: VolumeId) -> Result<(), DiskError> {
        let here = self.state().volumes.contains_key(&volume).then_some(());
        here.ok_or_else(|| DiskError::DiskMissing("it was there".to_owned()))
    }

    fn quarantine_volume(&self, proof: &VolumeProof) -> Result<(), DiskError> {
        self.disk(|state| {
            let volume = proof.volume();
            assert!(!state.is_given(volume), "a volume was taken from a machine");
            if let Some(size) = state.volumes.remove(&volume) {
                state.volumes_quarantined.insert(volume, size);
            }
            Ok(())
        })
    }

    fn stored(&self) -> Result<Stored, DiskError> {
        let state = self.state();
        let vms = state.quarantine.iter().copied().map(ReportSubject::Vm);
        let volumes = state.volumes_quarantined.keys().copied().map(ReportSubject::Volume);
        let remains = vms.chain(volumes).map(Remnant::Of).chain(state.kept.remains()).collect();
        let disks = state.disks.iter().chain(&state.quarantine);
        let overlay = |vm: &VmId| StoredOverlay { vm: *vm, image: Some(IMAGE) };
        let overlays = disks.map(overlay).collect();
        Ok(Stored { remains, images: state.images.clone(), overlays })
    }

    fn collect(&self, proof: &RemainsProof) -> Result<(), DiskError> {
        self.disk(|state| {
            let (subject, before) = (proof.subject(), state.remains());
            match subject {
                Remnant::Of(ReportSubject::Vm(vm)) => {
                    state.quarantine.remove(&vm);
                }
                Remnant::Of(ReportSubject::Volume(volume)) => {
                    state.volumes_quarantined.remove(&volume);
                }
                Remnant::Of(ReportSubject::Snapshot(..)) | Remnant::Replaced(..) => {
                    state.kept.collect(subject);
                }
            }
            state.collected += before - state.remains();
            Ok(())
        })
    }

    fn collect_image(&self, proof: &UnusedProof) -> Result<(), DiskError> {
        self.disk(|state| {
            let is_used = !state.disks.is_empty() || !state.quarantine.is_empty();
            assert!(!is_used, "an image was removed under a disk");
            state.images.remove(&proof.image());
            Ok(())
        })
    }

    fn volume_path(&self, volume: VolumeId) -> PathBuf {
        PathBuf::from(format!("/volumes/{volume}"))
    }

    fn image_path(&self, image: &VmImage) -> PathBuf {
        PathBuf::from(format!("/images/{}", image.digest))
    }

    fn disk_path(&self, vm: VmId) -> PathBuf {
        PathBuf::from(format!("/disks/{vm}"))
    }

    fn seed_path(&self, vm: VmId) -> PathBuf {
        PathBuf::from(format!("/seeds/{vm}"))
    }
}
