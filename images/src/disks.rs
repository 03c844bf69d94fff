//! The disks, seeds and volumes of one host's virtual machines.
//!
//! Owns one directory. A disk is a qcow2 overlay over an image of the store, a volume a qcow2 of
//! its own; both are named from host id and their own, so that hosts that share a machine never
//! meet. A disk that exists is never overwritten, and none is ever deleted here: quarantine
//! renames. Called by the agent's actuator.

mod flat;
mod snapshots;

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use dagger_payload::id::{AccountId, HostId, SnapshotId, VmId, VolumeId};
use dagger_payload::kind::{ImageFormat, ImageUse};
use serde_json::json;

use crate::error::ImageError;
use crate::files::{self, Existing, Partial};
use crate::header::{self, Overlay};
use crate::limits::VIRTUAL_SIZE_BYTES_MAX;
use crate::seed::Seed;
use crate::store::StoredImage;
use crate::tool::Tool;

pub use flat::FlatDisk;
pub use snapshots::{ReplacedName, SnapshotName};

/// What a file is to its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    /// The writable disk, qcow2.
    Disk,
    /// The NoCloud seed, raw.
    Seed,
}

impl FileKind {
    fn extension(self) -> &'static str {
        match self {
            Self::Disk => "qcow2",
            Self::Seed => "seed",
        }
    }
}

/// A file's name: which host's VM it belongs to, and as what. The text form is `HOST-VM.qcow2` or
/// `HOST-VM.seed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileName {
    /// The host that made it.
    pub host: HostId,
    /// The VM.
    pub vm: VmId,
    /// What it is.
    pub kind: FileKind,
}

impl std::fmt::Display for FileName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}-{}.{}", self.host, self.vm, self.kind.extension())
    }
}

/// The extension of a volume's file.
const VOLUME: &str = "volume";

/// The name of a volume's file, in the text form `HOST-VOLUME.volume`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeName {
    /// The host that made it.
    pub host: HostId,
    /// The volume.
    pub volume: VolumeId,
}

impl std::fmt::Display for VolumeName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}-{}.{VOLUME}", self.host, self.volume)
    }
}

impl FromStr for VolumeName {
    type Err = ForeignName;

    fn from_str(text: &str) -> Result<Self, ForeignName> {
        let (ids, extension) = text.split_once('.').ok_or(ForeignName)?;
        let (host, volume) = ids.split_once('-').ok_or(ForeignName)?;
        if extension != VOLUME {
            return Err(ForeignName);
        }
        let host = host.parse().map_err(|_| ForeignName)?;
        let volume = volume.parse().map_err(|_| ForeignName)?;
        Ok(Self { host, volume })
    }
}

/// A name that is none of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a disk, seed or volume")]
pub struct ForeignName;

impl FromStr for FileName {
    type Err = ForeignName;

    fn from_str(text: &str) -> Result<Self, ForeignName> {
        let (ids, extension) = text.split_once('.').ok_or(ForeignName)?;
        let (host, vm) = ids.split_once('-').ok_or(ForeignName)?;
        let kind = match extension {
            "qcow2" => FileKind::Disk,
            "seed" => FileKind::Seed,
            _ => return Err(ForeignName),
        };
        let host = host.parse().map_err(|_| ForeignName)?;
        let vm = vm.parse().map_err(|_| ForeignName)?;
        Ok(Self { host, vm, kind })
    }
}

/// Whether something had to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was made now.
    Created,
    /// It was there and was left alone.
    Kept,
}

/// A VM's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its file.
    pub path: PathBuf,
    /// Whether it was made now.
    pub outcome: Outcome,
}

/// What the directory holds. What is being made, and files of other hosts, are not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// This host's disks and seeds, sorted.
    pub ours: Vec<FileName>,
    /// This host's volumes, sorted.
    pub volumes: Vec<VolumeId>,
    /// This host's snapshots of volumes, sorted.
    pub snapshots: Vec<(VolumeId, SnapshotId)>,
    /// Names that nobody here gives, sorted.
    pub foreign: Vec<String>,
}

/// The disks and seeds of one host.
#[derive(Debug)]
pub struct DiskStore {
    directory: PathBuf,
    host: HostId,
    tool: Tool,
}

impl DiskStore {
    /// Opens `directory`, which is made if missing, for the VMs of `host`.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn open(directory: &Path, host: HostId) -> Result<Self, ImageError> {
        Self::open_with(directory, host, Tool::qemu_img())
    }

    /// The same with another `qemu-img`.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn open_with(directory: &Path, host: HostId, tool: Tool) -> Result<Self, ImageError> {
        let directory =
            std::path::absolute(directory).map_err(ImageError::file("cannot find", directory))?;
        files::open_directory(&directory)?;
        Ok(Self { directory, host, tool })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the VM's disk is, if it is here.
    pub fn disk_path(&self, vm: VmId) -> PathBuf {
        self.path(vm, FileKind::Disk)
    }

    /// Where the VM's seed is, if it is here.
    pub fn seed_path(&self, vm: VmId) -> PathBuf {
        self.path(vm, FileKind::Seed)
    }

    fn path(&self, vm: VmId, kind: FileKind) -> PathBuf {
        self.directory.join(FileName { host: self.host, vm, kind }.to_string())
    }

    /// Where the volume's file is, if it is here.
    pub fn volume_path(&self, volume: VolumeId) -> PathBuf {
        self.directory.join(VolumeName { host: self.host, volume }.to_string())
    }

    /// Whether the VM has a disk here.
    ///
    /// # Errors
    /// [`ImageError::File`] when it cannot be seen: unknown is not absent.
    pub fn has_disk(&self, vm: VmId) -> Result<bool, ImageError> {
        is_here(&self.disk_path(vm))
    }

    /// Whether the volume's file is here.
    ///
    /// # Errors
    /// [`ImageError::File`] when it cannot be seen: unknown is not absent.
    pub fn has_volume(&self, volume: VolumeId) -> Result<bool, ImageError> {
        is_here(&self.volume_path(volume))
    }

    /// Makes sure that the volume has a file: an empty disk of `size_bytes` that names no other
    /// file. One that is here is kept as it is, whatever its size.
    ///
    /// # Errors
    /// [`ImageError::DiskSize`], [`ImageError::Header`], [`ImageError::Tool`],
    /// [`ImageError::ToolTooSlow`], [`ImageError::File`].
    pub fn ensure_volume(&self, volume: VolumeId, size_bytes: u64) -> Result<Disk, ImageError> {
        let path = self.volume_path(volume);
        if self.has_volume(volume)? {
            return Ok(Disk { path, outcome: Outcome::Kept });
        }
        let partial = self.empty(size_bytes)?;
        let outcome = match partial.finish(&path, Existing::Keep)? {
            true => Outcome::Created,
            false => Outcome::Kept,
        };
        Ok(Disk { path, outcome })
    }

    /// An empty disk of its own, under a temporary name.
    fn empty(&self, size_bytes: u64) -> Result<Partial, ImageError> {
        check_sectors(size_bytes)?;
        let partial = Partial::create(&self.directory)?;
        let mut command = self.tool.command();
        command.args(["create", "-q", "-f", "qcow2"]).arg(partial.path());
        self.tool.run(command.arg(size_bytes.to_string()))?;
        require_size(&partial, size_bytes)?;
        Ok(partial)
    }

    /// Makes sure that the volume's disk, which no machine holds, has at least `size_bytes`. It
    /// never becomes smaller.
    ///
    /// # Errors
    /// [`ImageError::DiskSize`], [`ImageError::Header`], [`ImageError::Tool`],
    /// [`ImageError::ToolTooSlow`], [`ImageError::File`].
    pub fn grow_volume(&self, volume: VolumeId, size_bytes: u64) -> Result<(), ImageError> {
        check_sectors(size_bytes)?;
        let path = self.volume_path(volume);
        let seen = || -> Result<u64, ImageError> {
            let file =
                files::open_regular(&path).map_err(ImageError::file("cannot open", &path))?;
            Ok(header::read_volume(&file)?.virtual_size_bytes)
        };
        if seen()? >= size_bytes {
            return Ok(());
        }
        // It takes the lock that a machine holds: a disk in use is left alone.
        let mut command = self.tool.command();
        command.args(["resize", "-q", "-f", "qcow2"]).arg(&path);
        self.tool.run(command.arg(size_bytes.to_string()))?;
        match seen()? {
            now if now >= size_bytes => Ok(()),
            now => Err(ImageError::DiskSize(now)),
        }
    }

    /// Moves the volume's file into quarantine, where it counts to its account; tells where it is
    /// now. Nothing here is no error.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn quarantine_volume(
        &self,
        volume: VolumeId,
        of: AccountId,
    ) -> Result<Option<PathBuf>, ImageError> {
        files::quarantine(&self.volume_path(volume), Some(of))
    }

    /// Makes sure that the VM has a disk of `size_bytes` over `image`, which the store has just
    /// verified. A disk that is here is kept as it is, whatever its size.
    ///
    /// # Errors
    /// [`ImageError::DiskTooSmall`], [`ImageError::DiskSize`], [`ImageError::DiskDiffers`],
    /// [`ImageError::Tool`], [`ImageError::ToolTooSlow`], [`ImageError::File`].
    pub fn ensure_disk(
        &self,
        vm: VmId,
        image: &StoredImage,
        size_bytes: u64,
    ) -> Result<Disk, ImageError> {
        let path = self.disk_path(vm);
        if self.has_disk(vm)? {
            check_kept(&path, image)?;
            return Ok(Disk { path, outcome: Outcome::Kept });
        }
        check_size(image, size_bytes)?;
        let partial = Partial::create(&self.directory)?;
        self.tool.run(
            self.tool
                .command()
                .args(["create", "-q", "-f", "qcow2", "-F", format_name(image.format), "-b"])
                .arg(&image.path)
                .arg(partial.path())
                .arg(size_bytes.to_string()),
        )?;
        let made = header::read_overlay(partial.file())?;
        if made != expected_overlay(image, size_bytes) {
            return Err(differs(partial.path(), &made, image));
        }
        let outcome = match partial.finish(&path, Existing::Keep)? {
            true => Outcome::Created,
            false => Outcome::Kept,
        };
        Ok(Disk { path, outcome })
    }

    /// Makes sure that the VM's seed is here with these contents.
    ///
    /// # Errors
    /// [`ImageError::Seed`], [`ImageError::File`].
    pub fn ensure_seed(&self, vm: VmId, seed: &Seed) -> Result<Disk, ImageError> {
        let path = self.seed_path(vm);
        let bytes = seed.volume()?;
        if fs::read(&path).is_ok_and(|there| there == bytes) {
            return Ok(Disk { path, outcome: Outcome::Kept });
        }
        let partial = Partial::create(&self.directory)?;
        io::Write::write_all(&mut partial.file(), &bytes)
            .map_err(ImageError::file("cannot write", partial.path()))?;
        partial.publish()?;
        partial.finish(&path, Existing::Replace)?;
        Ok(Disk { path, outcome: Outcome::Created })
    }

    /// Moves the VM's disk and seed into quarantine, where they count to its account; tells where
    /// they are now. Nothing here is no error.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn quarantine(&self, vm: VmId, of: AccountId) -> Result<Vec<PathBuf>, ImageError> {
        let mut moved = Vec::new();
        for kind in [FileKind::Disk, FileKind::Seed] {
            moved.extend(files::quarantine(&self.path(vm, kind), Some(of))?);
        }
        Ok(moved)
    }

    /// Everything in the directory: all of it or an error, so that what is not named is not there.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn survey(&self) -> Result<Survey, ImageError> {
        let mut survey = Survey::default();
        for name in files::names(&self.directory)? {
            if let Ok(snapshot) = name.parse::<SnapshotName>() {
                if snapshot.host == self.host {
                    survey.snapshots.push((snapshot.volume, snapshot.snapshot));
                }
                continue;
            }
            match (name.parse::<FileName>(), name.parse::<VolumeName>()) {
                (Ok(name), _) if name.host == self.host => survey.ours.push(name),
                (_, Ok(name)) if name.host == self.host => survey.volumes.push(name.volume),
                (Ok(_), _) | (_, Ok(_)) => {}
                (Err(_), Err(_)) if files::is_own_name(&name) => {}
                (Err(_), Err(_)) => survey.foreign.push(name),
            }
        }
        Ok(survey)
    }

    /// What all disks in the directory and its quarantine lie over, those of other hosts too: their
    /// VM, and the image's file where the disk can be read.
    ///
    /// # Errors
    /// [`ImageError::File`] when a directory cannot be read to its end.
    pub fn overlays(&self) -> Result<Vec<(VmId, Option<PathBuf>)>, ImageError> {
        let mut overlays = Vec::new();
        let quarantine = self.directory.join(files::QUARANTINE);
        for (directory, is_aside) in [(&self.directory, false), (&quarantine, true)] {
            for name in files::names(directory)? {
                let was = files::name_before(&name).filter(|_| is_aside).map(|(was, _)| was);
                let Ok(file) = was.unwrap_or(&name).parse::<FileName>() else { continue };
                if file.kind == FileKind::Disk {
                    overlays.push((file.vm, backing_path(&directory.join(&name))));
                }
            }
        }
        Ok(overlays)
    }

    /// This host's files in the directory. Those of other hosts and other names are none of ours.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn list(&self) -> Result<Vec<FileName>, ImageError> {
        let paths = files::list(&self.directory)?;
        let names = paths.iter().filter_map(|path| files::name_of(path).parse().ok());
        Ok(names.filter(|name: &FileName| name.host == self.host).collect())
    }
}

/// The name by which tools know a format.
pub fn format_name(format: ImageFormat) -> &'static str {
    match format {
        // No disk is made over the last two: to a tool they would be bytes as they stand.
        ImageFormat::Raw | ImageFormat::Kernel | ImageFormat::Initrd => "raw",
        ImageFormat::Qcow2 => "qcow2",
    }
}

/// The file that the disk lies over, if the disk can be read.
fn backing_path(disk: &Path) -> Option<PathBuf> {
    let overlay = header::read_overlay(&files::open_regular(disk).ok()?).ok()?;
    Some(overlay.backing_path.into())
}

/// Whether a regular file is at `path`; anything else there is an error.
fn is_here(path: &Path) -> Result<bool, ImageError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(true),
        Ok(_) => {
            let foreign = io::Error::other("not a regular file");
            Err(ImageError::file("cannot use", path)(foreign))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(ImageError::file("cannot see", path)(error)),
    }
}

/// What is being made is a whole disk of this size.
fn require_size(partial: &Partial, size_bytes: u64) -> Result<(), ImageError> {
    match header::inspect(partial.file(), ImageFormat::Qcow2)?.virtual_size_bytes {
        seen if seen == size_bytes => Ok(()),
        seen => Err(ImageError::DiskSize(seen)),
    }
}

fn check_sectors(size_bytes: u64) -> Result<(), ImageError> {
    match size_bytes.is_multiple_of(512) && size_bytes <= VIRTUAL_SIZE_BYTES_MAX {
        true => Ok(()),
        false => Err(ImageError::DiskSize(size_bytes)),
    }
}

fn check_size(image: &StoredImage, size_bytes: u64) -> Result<(), ImageError> {
    check_sectors(size_bytes)?;
    if image.format.use_of() != ImageUse::Disk {
        return Err(ImageError::NotADisk(image.digest));
    }
    let image_bytes = image.virtual_size_bytes;
    if size_bytes < image_bytes {
        return Err(ImageError::DiskTooSmall { size_bytes, image_bytes });
    }
    Ok(())
}

fn expected_overlay(image: &StoredImage, size_bytes: u64) -> Overlay {
    Overlay {
        virtual_size_bytes: size_bytes,
        backing_path: image.path.to_string_lossy().into_owned(),
        backing_format: Some(format_name(image.format).to_owned()),
    }
}

/// A disk over its image, as `qemu-img` opens it: told, whatever the disk's own header says of what
/// lies below it and in which format.
fn chain(disk: &Path, image: &StoredImage) -> String {
    let file = |path: &Path| json!({ "driver": "file", "filename": path.to_string_lossy() });
    let chain = json!({
        "driver": "qcow2",
        "file": file(disk),
        "backing": { "driver": format_name(image.format), "file": file(&image.path) },
    });
    format!("json:{chain}")
}

/// A disk that was here must lie over the same image. While its VM runs, a hypervisor may own it
/// and we may not be allowed to read it; its name then says enough.
///
/// The image's format may be lost: Cloud Hypervisor forgets it when it mends a disk that was not
/// closed. So nothing here lets a tool guess it: who opens the disk is told the image and its
/// format (see [`chain`]). Another format than the image's is refused.
fn check_kept(path: &Path, image: &StoredImage) -> Result<(), ImageError> {
    let file = match OpenOptions::new().read(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        Err(error) => return Err(ImageError::file("cannot open", path)(error)),
    };
    let there = header::read_overlay(&file)?;
    let expected = expected_overlay(image, there.virtual_size_bytes);
    let forgotten = Overlay { backing_format: None, ..expected.clone() };
    if there == expected || there == forgotten { Ok(()) } else { Err(differs(path, &there, image)) }
}

fn differs(path: &Path, found: &Overlay, image: &StoredImage) -> ImageError {
    let format = found.backing_format.as_deref().unwrap_or("a format to be guessed");
    ImageError::DiskDiffers {
        path: path.to_owned(),
        found: format!("{} ({format})", found.backing_path),
        expected: format!("{} ({})", image.path.display(), format_name(image.format)),
    }
}
