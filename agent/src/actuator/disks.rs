//! What the actuator asks of images, disks, seeds and volumes.
//!
//! Owns the words only; [`super::store`] says them to the image store. Every call blocks and may be
//! repeated.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use dagger_images::SeedCard;
use dagger_payload::id::{AccountId, SnapshotId, VmId, VolumeId};
use dagger_payload::kind::VmImage;
use dagger_payload::name::{ImageSource, Name, SshKeyLine};
use dagger_payload::volume::Origin;

use crate::controller::proof::{
    DeleteProof, RemainsProof, RestoreProof, SnapshotProof, UnusedProof, VolumeProof,
};
use crate::controller::{DiskRule, Stored};
use crate::hypervisor::HypervisorError;

/// What a guest reads at its first boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedContents {
    /// Which VM.
    pub vm: VmId,
    /// Its host name.
    pub name: Name,
    /// Keys that may log in.
    pub ssh_keys: Vec<SshKeyLine>,
    /// Public cloud-init user-data of its owner.
    pub public_user_data: Option<String>,
    /// Its network cards, and where each has its address from.
    pub cards: Vec<SeedCard>,
    /// Who resolves names for it.
    pub nameservers: Vec<Ipv4Addr>,
}

/// Why an image, disk or seed is not as it should be. Each message begins with a stable code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The image file is not here; it may come.
    #[error("image_missing: {0}")]
    ImageMissing(String),
    /// The image file is not what was registered, or nothing that we let near a machine.
    #[error("image_refused: {0}")]
    ImageRefused(String),
    /// The stored file was not what its digest says; it was not used and is out of the way.
    #[error("image_damaged: {0}")]
    ImageDamaged(String),
    /// The disk or seed cannot be made as asked.
    #[error("disk_refused: {0}")]
    DiskRefused(String),
    /// The disk existed and is gone: making an empty one would hide the loss.
    #[error("disk_missing: {0}")]
    DiskMissing(String),
    /// There is no space for it now; nothing of it is left.
    #[error("disk_full: {0}")]
    Full(String),
    /// What was deleted takes too much: it would only become more.
    #[error(
        "quarantine_full: what this account has deleted and put back takes more of this host than \
         it may; nothing is made for it here until this host's operator has removed some of that"
    )]
    QuarantineFull,
    /// It did not work this time.
    #[error("disk_failed: {0}")]
    Failed(String),
}

/// Why what a machine holds was not copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LiveCopyError {
    /// The place for it could not be made, or what came of it is no disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The hypervisor did not copy it.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
}

/// Images, disks and seeds of one host.
pub trait Disks: Send + Sync + 'static {
    /// Makes sure that the image file is here and has its digest, if need be from one of `sources`.
    ///
    /// # Errors
    /// `ImageMissing`, `ImageDamaged`, `ImageRefused`, `Failed`.
    fn ensure_image(&self, image: &VmImage, sources: &[ImageSource]) -> Result<(), DiskError>;

    /// Makes sure that the VM has its disk: an overlay of `size_gib` over the image.
    ///
    /// # Errors
    /// `DiskMissing` where it may not be made, `DiskRefused`, `Failed`, and those of the image.
    fn ensure_disk(
        &self,
        vm: VmId,
        image: &VmImage,
        size_gib: u64,
        rule: DiskRule,
    ) -> Result<(), DiskError>;

    /// Makes sure that the VM's seed is here with these contents.
    ///
    /// # Errors
    /// `DiskRefused`, `Failed`.
    fn ensure_seed(&self, seed: &SeedContents) -> Result<(), DiskError>;

    /// Puts the VM's disk into quarantine and removes its seed.
    ///
    /// # Errors
    /// `Failed`.
    fn quarantine(&self, proof: &DeleteProof) -> Result<(), DiskError>;

    /// Makes sure that the volume's disk is here, with at least `size_gib`: empty when it is made
    /// now. Only while no machine holds it.
    ///
    /// # Errors
    /// `DiskMissing` where it may not be made, `DiskRefused`, `Failed`.
    fn ensure_volume(
        &self,
        volume: VolumeId,
        size_gib: u64,
        rule: DiskRule,
    ) -> Result<(), DiskError>;

    /// Makes sure that the volume's disk is here; one that is made now is a copy of a snapshot.
    ///
    /// # Errors
    /// `DiskMissing` if the snapshot is not here, `Failed`.
    fn ensure_clone(&self, volume: VolumeId, origin: &Origin) -> Result<(), DiskError>;

    /// Makes sure that the volume's disk, which no machine holds, was put back once to the snapshot
    /// that the proof names. What it held is in quarantine.
    ///
    /// # Errors
    /// `DiskMissing` if the snapshot is not here, `QuarantineFull`, `Failed`.
    fn restore_volume(&self, proof: &RestoreProof) -> Result<(), DiskError>;

    /// Makes sure that the snapshot's file is here: a copy of the volume's disk, which no machine
    /// holds, when it is made now.
    ///
    /// # Errors
    /// `DiskMissing` where it may not be made, `Failed`.
    fn ensure_snapshot(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        rule: DiskRule,
    ) -> Result<(), DiskError>;

    /// Makes sure that the snapshot's file is here: what `copy` writes into the empty disk at this
    /// path, while a machine holds the volume.
    ///
    /// # Errors
    /// [`LiveCopyError`].
    fn ensure_snapshot_by(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        size_gib: u64,
        copy: &dyn Fn(&Path) -> Result<(), HypervisorError>,
    ) -> Result<(), LiveCopyError>;

    /// Puts the snapshot's file into quarantine.
    ///
    /// # Errors
    /// `Failed`.
    fn quarantine_snapshot(&self, proof: &SnapshotProof) -> Result<(), DiskError>;

    /// Sees that the account has not so much in quarantine that nothing may be made for it.
    ///
    /// # Errors
    /// `QuarantineFull`, `Failed`.
    fn require_quarantine_room(&self, account: AccountId) -> Result<(), DiskError>;

    /// Sees that the volume's disk is here, before a machine gets it.
    ///
    /// # Errors
    /// `DiskMissing`, `Failed`.
    fn require_volume(&self, volume: VolumeId) -> Result<(), DiskError>;

    /// Puts the volume's disk into quarantine.
    ///
    /// # Errors
    /// `Failed`.
    fn quarantine_volume(&self, proof: &VolumeProof) -> Result<(), DiskError>;

    /// What lies in the stores.
    ///
    /// # Errors
    /// `Failed` unless all of it could be seen.
    fn stored(&self) -> Result<Stored, DiskError>;

    /// Removes for ever what is in quarantine of a VM or volume: as much as can be.
    ///
    /// # Errors
    /// `Failed` for the first file that could not be removed.
    fn collect(&self, proof: &RemainsProof) -> Result<(), DiskError>;

    /// Removes an image's file for ever, unless a disk was made over it meanwhile.
    ///
    /// # Errors
    /// `Failed`.
    fn collect_image(&self, proof: &UnusedProof) -> Result<(), DiskError>;

    /// Where the volume's disk is.
    fn volume_path(&self, volume: VolumeId) -> PathBuf;

    /// Where the image's file is.
    fn image_path(&self, image: &VmImage) -> PathBuf;

    /// Where the VM's disk is.
    fn disk_path(&self, vm: VmId) -> PathBuf;

    /// Where the VM's seed is.
    fn seed_path(&self, vm: VmId) -> PathBuf;
}
