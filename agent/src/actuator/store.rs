//! Says what the actuator asks of images, disks and seeds to the image store.
//!
//! Owns nothing but the translation, and the memory of which images were found damaged: their files
//! are in quarantine then, and "missing" alone would hide why. The one file that knows the image
//! store's words.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use dagger_images::limits::QUARANTINE_SHARE;
use dagger_images::{
    ConsoleStore, DiskStore, FlatDisk, ImageError, ImageStore, ImportDirectories, Network,
    Outcome as FileOutcome, Quarantine, Remains, RemainsOf, Seed, Space, StoredImage,
};
use dagger_payload::id::{AccountId, HostId, ImageDigest, SnapshotId, VmId, VolumeId};
use dagger_payload::kind::{ImageFormat, VmImage};
use dagger_payload::name::ImageSource;
use dagger_payload::volume::Origin;

use super::disks::{DiskError, Disks, LiveCopyError, SeedContents};
use crate::controller::proof::{
    DeleteProof, RemainsProof, Remnant, RestoreProof, SnapshotProof, UnusedProof, VolumeProof,
};
use crate::controller::{DiskRule, Stored, StoredOverlay};
use crate::handover::ReportSubject;
use crate::hypervisor::HypervisorError;
use crate::inspection::Files;

/// The stores below one host's storage directory.
pub struct StoredDisks {
    images: Arc<ImageStore>,
    disks: DiskStore,
    consoles: ConsoleStore,
    imports: ImportDirectories,
    damaged: Mutex<BTreeSet<ImageDigest>>,
    /// Held while a disk is made over an image, and, by one alone, while an image is removed.
    images_in_use: RwLock<()>,
    host: HostId,
}

impl StoredDisks {
    /// Opens `images/`, `disks/` and `consoles/` below `storage_directory`, which has to be
    /// absolute: the paths go into disks. What a registered source names is imported from
    /// `imports` only.
    ///
    /// # Errors
    /// A directory cannot be made or read.
    pub fn open(
        storage_directory: &Path,
        host: HostId,
        imports: ImportDirectories,
    ) -> Result<Self, ImageError> {
        Ok(Self {
            images: Arc::new(ImageStore::open(&storage_directory.join("images"))?),
            disks: DiskStore::open(&disk_directory(storage_directory), host)?,
            consoles: ConsoleStore::open(&console_directory(storage_directory))?,
            imports,
            damaged: Mutex::default(),
            images_in_use: RwLock::default(),
            host,
        })
    }

    /// Where image files are.
    pub fn image_store(&self) -> Arc<ImageStore> {
        Arc::clone(&self.images)
    }

    /// What all directories hold, for people.
    ///
    /// # Errors
    /// One of them cannot be read to its end.
    pub fn survey(&self) -> Result<Files, ImageError> {
        Ok(Files {
            disks: self.disks.survey()?,
            consoles: self.consoles.list()?,
            images: self.images.list()?.into_iter().map(|entry| entry.digest).collect(),
            remains: self.remains()?.into_iter().map(|(_, remains)| remains).collect(),
        })
    }

    /// What is in quarantine, each with where that is.
    fn remains(&self) -> Result<Vec<(Quarantine, Remains)>, ImageError> {
        let mut all = Vec::new();
        let directories =
            [self.disks.directory(), self.consoles.directory(), self.images.directory()];
        for directory in directories {
            let quarantine = Quarantine::of(directory, self.host);
            let remains = quarantine.list()?;
            all.extend(remains.into_iter().map(|remains| (quarantine.clone(), remains)));
        }
        Ok(all)
    }

    /// A copy of what the guest of `vm`, which no machine holds, would see.
    ///
    /// # Errors
    /// Those of the image, and those of [`DiskStore::flatten`].
    pub fn flatten(&self, vm: VmId, image: &VmImage) -> Result<FlatDisk, ImageError> {
        // `images_in_use` is not held for as long as a copy takes: whoever waits to remove an image
        // would keep all others from making disks. The disk is there, and no image below one is
        // removed.
        let stored = self.verified(image)?;
        self.disks.flatten(vm, &stored)
    }

    fn require_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<(), DiskError> {
        let here = self.disks.has_snapshot(volume, snapshot);
        match here.map_err(|error| disk_error(&error))? {
            true => Ok(()),
            false => Err(DiskError::DiskMissing(format!(
                "the snapshot's file {} existed and is gone; put it back, or delete the snapshot",
                self.disks.snapshot_path(volume, snapshot).display()
            ))),
        }
    }

    /// Whether what the account has in quarantine takes all that it may of where disks are.
    ///
    /// # Errors
    /// It cannot be seen.
    pub fn is_quarantine_full(&self, account: AccountId) -> Result<bool, ImageError> {
        let space = Space::of(self.disks.directory())?;
        let mut taken_bytes = 0_u64;
        for directory in [self.disks.directory(), self.consoles.directory()] {
            let taken = Quarantine::of(directory, self.host).taken_by(account)?;
            taken_bytes = taken_bytes.saturating_add(taken);
        }
        let is_full = taken_bytes >= space.total_bytes / QUARANTINE_SHARE;
        if is_full {
            tracing::warn!(%account, taken_bytes, "nothing is made for this account before some of \
                what it has in quarantine is removed");
        }
        Ok(is_full)
    }

    fn overlays(&self) -> Result<Vec<StoredOverlay>, ImageError> {
        let image = |path: PathBuf| path.file_name()?.to_str()?.parse().ok();
        let overlay =
            |(vm, path): (VmId, Option<PathBuf>)| StoredOverlay { vm, image: path.and_then(image) };
        Ok(self.disks.overlays()?.into_iter().map(overlay).collect())
    }

    /// The verified image. The store reads the file again only if something about it has changed.
    fn verified(&self, image: &VmImage) -> Result<StoredImage, ImageError> {
        let stored = self.images.verify(image.digest, image.format)?;
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).remove(&image.digest);
        Ok(stored)
    }

    /// Copies the image from the first local source that has it, or says why none does. Whoever
    /// registers an image names its sources, so they are opened only where this host's operator
    /// allows it, and nothing of another file's contents is told. Sources on the network are not
    /// for the agent, which has none: what is in no file here is fetched by a helper.
    fn import(&self, image: &VmImage, sources: &[ImageSource]) -> Result<(), DiskError> {
        let mut last = ImageError::Missing(image.digest).to_string();
        for source in sources.iter().map(ImageSource::as_str).filter(|text| text.starts_with('/')) {
            let (format, digest) = (image.format, Some(image.digest));
            let told = match self.imports.open(Path::new(source)) {
                Ok(file) => match self.import_file(file, format, digest) {
                    Ok(_) => return Ok(()),
                    // No other source would help, nor a download.
                    Err(error) if error.is_for_want_of_space() => return Err(disk_error(&error)),
                    Err(error) => {
                        tracing::warn!(source, %error, "an image source does not serve");
                        told(&error)
                    }
                },
                Err(refusal) => {
                    tracing::warn!(source, %refusal, "an image source is not opened");
                    refusal.to_string()
                }
            };
            last = format!("{source}: {told}");
        }
        Err(self.missing(image, last))
    }

    fn import_file(
        &self,
        file: File,
        format: ImageFormat,
        digest: Option<ImageDigest>,
    ) -> Result<StoredImage, ImageError> {
        // One whose size cannot be told is found too large while it is copied.
        self.images.require_room(file.metadata().map_or(0, |metadata| metadata.len()))?;
        self.images.import_from(file, format, digest)
    }

    fn missing(&self, image: &VmImage, why: String) -> DiskError {
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        if damaged.contains(&image.digest) {
            return DiskError::ImageDamaged(format!(
                "the file of image {} was damaged and is in quarantine; import it again",
                image.digest
            ));
        }
        DiskError::ImageMissing(why)
    }
}

/// A file may have the digest that was registered and not the size: the digest was computed, the
/// size is the publisher's word, by which the ledger judged whether it fits the VM's disk.
fn as_registered(stored: &StoredImage, image: &VmImage) -> Result<(), DiskError> {
    if stored.virtual_size_bytes == image.virtual_size_bytes {
        return Ok(());
    }
    Err(DiskError::ImageRefused(format!(
        "its virtual size is {} bytes, and {} were registered",
        stored.virtual_size_bytes, image.virtual_size_bytes
    )))
}

/// Whose remains these are, for the collector.
fn subject(of: RemainsOf) -> Option<Remnant> {
    match of {
        RemainsOf::Vm(vm) => Some(Remnant::Of(ReportSubject::Vm(vm))),
        RemainsOf::Volume(volume) => Some(Remnant::Of(ReportSubject::Volume(volume))),
        RemainsOf::Snapshot(volume, snapshot) => {
            Some(Remnant::Of(ReportSubject::Snapshot(volume, snapshot)))
        }
        RemainsOf::Replaced(volume, generation) => Some(Remnant::Replaced(volume, generation)),
        RemainsOf::Image(_) | RemainsOf::Unknown => None,
    }
}

/// Of what proofs these remains may be removed: what was a volume's goes with the volume.
fn subjects(of: RemainsOf) -> impl Iterator<Item = Remnant> {
    let own = subject(of);
    let volume = own.and_then(Remnant::of_volume);
    own.into_iter().chain(volume.map(|volume| Remnant::Of(ReportSubject::Volume(volume))))
}

/// Where the disks are.
pub fn disk_directory(storage_directory: &Path) -> PathBuf {
    storage_directory.join("disks")
}

/// Where what guests say on their consoles is kept.
pub fn console_directory(storage_directory: &Path) -> PathBuf {
    storage_directory.join("consoles")
}

impl Disks for StoredDisks {
    fn ensure_image(&self, image: &VmImage, sources: &[ImageSource]) -> Result<(), DiskError> {
        match self.verified(image) {
            Ok(stored) => return as_registered(&stored, image),
            Err(error @ ImageError::Damaged { .. }) => {
                tracing::error!(%error, "an image was refused before use");
                self.damaged.lock().unwrap_or_else(PoisonError::into_inner).insert(image.digest);
            }
            Err(ImageError::Missing(_)) => {}
            Err(error) => return Err(disk_error(&error)),
        }
        self.import(image, sources)?;
        let stored = self.verified(image).map_err(|error| disk_error(&error))?;
        as_registered(&stored, image)
    }

    fn ensure_disk(
        &self,
        vm: VmId,
        image: &VmImage,
        size_gib: u64,
        rule: DiskRule,
    ) -> Result<(), DiskError> {
        let here = self.disks.has_disk(vm).map_err(|error| disk_error(&error))?;
        if rule == DiskRule::MustExist && !here {
            return Err(DiskError::DiskMissing(format!(
                "the VM's disk {} existed and is gone; put it back, or delete the VM",
                self.disks.disk_path(vm).display()
            )));
        }
        // The file is hashed here, before anybody is kept from removing images; below, where it
        // must stay, the store finds it unchanged.
        self.verified(image).map_err(|error| disk_error(&error))?;
        let _in_use = self.images_in_use.read().unwrap_or_else(PoisonError::into_inner);
        let stored = self.verified(image).map_err(|error| disk_error(&error))?;
        let disk = self
            .disks
            .ensure_disk(vm, &stored, size_gib << 30)
            .map_err(|error| disk_error(&error))?;
        if disk.outcome == FileOutcome::Created {
            tracing::info!(%vm, path = %disk.path.display(), "made a disk");
        }
        Ok(())
    }

    fn ensure_seed(&self, seed: &SeedContents) -> Result<(), DiskError> {
        let contents = Seed {
            instance_id: seed.vm.to_string(),
            hostname: seed.name.clone(),
            ssh_keys: seed.ssh_keys.clone(),
            network: Network::Cards {
                cards: seed.cards.clone(),
                nameservers: seed.nameservers.clone(),
            },
            user_data: seed.public_user_data.clone(),
        };
        self.disks.ensure_seed(seed.vm, &contents).map(|_| ()).map_err(|error| disk_error(&error))
    }

    fn quarantine(&self, proof: &DeleteProof) -> Result<(), DiskError> {
        let of = proof.account();
        let disks = self.disks.quarantine(proof.vm(), of).map_err(|error| disk_error(&error))?;
        let consoles =
            self.consoles.quarantine(proof.vm(), of).map_err(|error| disk_error(&error))?;
        for path in disks.into_iter().chain(consoles) {
            tracing::info!(vm = %proof.vm(), path = %path.display(), "moved into quarantine");
        }
        Ok(())
    }

    fn ensure_volume(
        &self,
        volume: VolumeId,
        size_gib: u64,
        rule: DiskRule,
    ) -> Result<(), DiskError> {
        match rule {
            DiskRule::MustExist => self.require_volume(volume)?,
            DiskRule::MayMake => {
                let made = self.disks.ensure_volume(volume, size_gib << 30);
                let disk = made.map_err(|error| disk_error(&error))?;
                if disk.outcome == FileOutcome::Created {
                    tracing::info!(%volume, path = %disk.path.display(), "made a volume");
                }
            }
        }
        self.disks.grow_volume(volume, size_gib << 30).map_err(|error| disk_error(&error))
    }

    fn ensure_clone(&self, volume: VolumeId, origin: &Origin) -> Result<(), DiskError> {
        if !self.disks.has_volume(volume).map_err(|error| disk_error(&error))? {
            self.require_snapshot(origin.volume, origin.snapshot)?;
        }
        let made = self.disks.ensure_clone(volume, (origin.volume, origin.snapshot));
        if made.map_err(|error| disk_error(&error))?.outcome == FileOutcome::Created {
            tracing::info!(%volume, snapshot = %origin.snapshot, "made a volume from a snapshot");
        }
        Ok(())
    }

    fn restore_volume(&self, proof: &RestoreProof) -> Result<(), DiskError> {
        let (volume, snapshot) = (proof.volume(), proof.snapshot());
        self.require_snapshot(volume, snapshot)?;
        let order = (proof.generation(), proof.account());
        // What was begun is brought to its end.
        if !self.disks.was_restored(volume, order).map_err(|error| disk_error(&error))? {
            self.require_quarantine_room(proof.account())?;
        }
        let restored = self.disks.restore_volume((volume, snapshot), order);
        if restored.map_err(|error| disk_error(&error))? == FileOutcome::Created {
            let generation = proof.generation().0;
            tracing::info!(%volume, %snapshot, generation, "put a volume back to a snapshot");
        }
        Ok(())
    }

    fn ensure_snapshot(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        rule: DiskRule,
    ) -> Result<(), DiskError> {
        if rule == DiskRule::MustExist {
            return self.require_snapshot(volume, snapshot);
        }
        let made = self.disks.ensure_snapshot(volume, snapshot);
        if made.map_err(|error| disk_error(&error))?.outcome == FileOutcome::Created {
            tracing::info!(%volume, %snapshot, "made a snapshot");
        }
        Ok(())
    }

    fn ensure_snapshot_by(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        size_gib: u64,
        copy: &dyn Fn(&Path) -> Result<(), HypervisorError>,
    ) -> Result<(), LiveCopyError> {
        let copy = |path: &Path| copy(path).map_err(StoredCopyError::Hypervisor);
        let of = (volume, snapshot);
        let made = self.disks.ensure_snapshot_by(of, size_gib << 30, copy);
        if made.map_err(LiveCopyError::from)?.outcome == FileOutcome::Created {
            tracing::info!(%volume, %snapshot, "made a snapshot beside a guest");
        }
        Ok(())
    }

    fn quarantine_snapshot(&self, proof: &SnapshotProof) -> Result<(), DiskError> {
        let (volume, snapshot) = (proof.volume(), proof.snapshot());
        let moved = self.disks.quarantine_snapshot(volume, snapshot, proof.account());
        if let Some(path) = moved.map_err(|error| disk_error(&error))? {
            tracing::info!(%volume, %snapshot, path = %path.display(), "moved into quarantine");
        }
        Ok(())
    }

    fn require_quarantine_room(&self, account: AccountId) -> Result<(), DiskError> {
        match self.is_quarantine_full(account).map_err(|error| disk_error(&error))? {
            true => Err(DiskError::QuarantineFull),
            false => Ok(()),
        }
    }

    fn require_volume(&self, volume: VolumeId) -> Result<(), DiskError> {
        match self.disks.has_volume(volume).map_err(|error| disk_error(&error))? {
            true => Ok(()),
            false => Err(DiskError::DiskMissing(format!(
                "the volume's disk {} existed and is gone; put it back, or delete the volume",
                self.disks.volume_path(volume).display()
            ))),
        }
    }

    fn quarantine_volume(&self, proof: &VolumeProof) -> Result<(), DiskError> {
        let moved = self.disks.quarantine_volume(proof.volume(), proof.account());
        if let Some(path) = moved.map_err(|error| disk_error(&error))? {
            let volume = proof.volume();
            tracing::info!(%volume, path = %path.display(), "moved into quarantine");
        }
        Ok(())
    }

    fn stored(&self) -> Result<Stored, DiskError> {
        let failed = |error: ImageError| disk_error(&error);
        let subjects = |(_, remains): (Quarantine, Remains)| subjects(remains.of);
        Ok(Stored {
            remains: self.remains().map_err(failed)?.into_iter().flat_map(subjects).collect(),
            images: self.images.list().map_err(failed)?.iter().map(|image| image.digest).collect(),
            overlays: self.overlays().map_err(failed)?,
        })
    }

    fn collect(&self, proof: &RemainsProof) -> Result<(), DiskError> {
        let mut done = Ok(());
        for (quarantine, remains) in self.remains().map_err(|error| disk_error(&error))? {
            if !subjects(remains.of).any(|subject| subject == proof.subject()) {
                continue;
            }
            match quarantine.remove(&remains) {
                Ok(()) => {
                    let (generation, payload) = proof.order();
                    let (of, name, bytes) = (proof.subject(), &remains.name, remains.bytes);
                    tracing::info!(%of, name, bytes, %generation, %payload,
                        "removed from quarantine for ever");
                }
                Err(error) => done = done.and(Err(disk_error(&error))),
            }
        }
        done
    }

    fn collect_image(&self, proof: &UnusedProof) -> Result<(), DiskError> {
        let image = proof.image();
        let _alone = self.images_in_use.write().unwrap_or_else(PoisonError::into_inner);
        let overlays = self.overlays().map_err(|error| disk_error(&error))?;
        if overlays.iter().any(|overlay| overlay.image == Some(image)) {
            return Err(DiskError::Failed(format!("a disk lies over image {image} now")));
        }
        self.images.remove(image).map_err(|error| disk_error(&error))?;
        tracing::info!(%image, "removed an image that nothing used");
        Ok(())
    }

    fn volume_path(&self, volume: VolumeId) -> PathBuf {
        self.disks.volume_path(volume)
    }

    fn image_path(&self, image: &VmImage) -> PathBuf {
        self.images.path(image.digest)
    }

    fn disk_path(&self, vm: VmId) -> PathBuf {
        self.disks.disk_path(vm)
    }

    fn seed_path(&self, vm: VmId) -> PathBuf {
        self.disks.seed_path(vm)
    }
}

/// What the store and the hypervisor may say of one copy.
enum StoredCopyError {
    Store(ImageError),
    Hypervisor(HypervisorError),
}

impl From<ImageError> for StoredCopyError {
    fn from(error: ImageError) -> Self {
        Self::Store(error)
    }
}

impl From<StoredCopyError> for LiveCopyError {
    fn from(error: StoredCopyError) -> Self {
        match error {
            StoredCopyError::Store(error) => Self::Disk(disk_error(&error)),
            StoredCopyError::Hypervisor(error) => Self::Hypervisor(error),
        }
    }
}

/// An error as everybody may read it: reports are public, and what digest a file was found to have
/// is nobody's business but the operator's.
fn told(error: &ImageError) -> String {
    match error {
        ImageError::DigestDiffers { .. } => {
            "the file there is another one than was registered".to_owned()
        }
        ImageError::Damaged { digest, .. } => {
            format!("the stored file of image {digest} was damaged and is in quarantine")
        }
        // How full a host is, is its operator's.
        ImageError::NoRoom { .. } => {
            tracing::warn!(%error, "not begun for want of room");
            "this host has less room now than this needs".to_owned()
        }
        other => other.to_string(),
    }
}

/// The store's errors in the actuator's words; its stable code goes in front where ours says less.
pub(crate) fn disk_error(error: &ImageError) -> DiskError {
    let text = told(error);
    match error {
        full if full.is_for_want_of_space() => DiskError::Full(match full.code() {
            "disk_full" => text,
            code => format!("{code}: {text}"),
        }),
        ImageError::Missing(_) => DiskError::ImageMissing(text),
        ImageError::Damaged { .. } => DiskError::ImageDamaged(text),
        ImageError::DigestDiffers { .. }
        | ImageError::TooLarge { .. }
        | ImageError::NotAFile(_)
        | ImageError::Header(_) => DiskError::ImageRefused(format!("{}: {text}", error.code())),
        ImageError::DiskTooSmall { .. }
        | ImageError::DiskSize(_)
        | ImageError::NotADisk(_)
        | ImageError::DiskDiffers { .. }
        | ImageError::CopyTooLarge { .. }
        | ImageError::Seed(_) => DiskError::DiskRefused(format!("{}: {text}", error.code())),
        ImageError::NoRoom { .. }
        | ImageError::Tool { .. }
        | ImageError::ToolTooSlow { .. }
        | ImageError::File { .. } => DiskError::Failed(format!("{}: {text}", error.code())),
    }
}
