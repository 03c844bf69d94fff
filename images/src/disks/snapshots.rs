//! Snapshots of volumes, and volumes that are put back to one or begin with one.
//!
//! Owns the copies: each is a whole file of its own, made under a temporary name, so that what has
//! a final name is complete and depends on nothing. Where the file system shares blocks, a copy
//! costs none. A volume's file is copied only while no hypervisor holds it; while one does, it is
//! the hypervisor that copies. What a volume held
//! before it was put back goes into quarantine, and says there for which order that was.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use dagger_payload::id::{AccountId, Generation, HostId, SnapshotId, VolumeId};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::{Disk, DiskStore, ForeignName, Outcome, is_here, require_size};
use crate::error::ImageError;
use crate::files::{self, Existing, Partial};
use crate::header;
use crate::room;

/// The extension of a snapshot's file.
const SNAPSHOT: &str = "snapshot";
/// The extension of what a volume held before it was put back, in quarantine.
const REPLACED: &str = "replaced";
/// What file systems count in.
const BLOCK_BYTES: u64 = 512;
/// Where QEMU marks that somebody writes to an image (`RAW_PERM_BASE` and the bit for writing).
const QEMU_WRITES_AT: libc::off_t = 101;
/// Where QEMU marks that nobody else may write (`RAW_SHARED_BASE` and the same bit).
const QEMU_NO_WRITERS_AT: libc::off_t = 201;

/// The name of a snapshot's file, in the text form `HOST-VOLUME-SNAPSHOT.snapshot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotName {
    /// The host that made it.
    pub host: HostId,
    /// Of which volume.
    pub volume: VolumeId,
    /// Which snapshot.
    pub snapshot: SnapshotId,
}

impl std::fmt::Display for SnapshotName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}-{}-{}.{SNAPSHOT}", self.host, self.volume, self.snapshot)
    }
}

impl FromStr for SnapshotName {
    type Err = ForeignName;

    fn from_str(text: &str) -> Result<Self, ForeignName> {
        let (ids, extension) = text.split_once('.').ok_or(ForeignName)?;
        let mut ids = ids.splitn(3, '-');
        let mut next = || ids.next().ok_or(ForeignName);
        let (host, volume, snapshot) = (next()?, next()?, next()?);
        if extension != SNAPSHOT {
            return Err(ForeignName);
        }
        Ok(Self {
            host: host.parse().map_err(|_| ForeignName)?,
            volume: volume.parse().map_err(|_| ForeignName)?,
            snapshot: snapshot.parse().map_err(|_| ForeignName)?,
        })
    }
}

/// The name in quarantine of what a volume held before it was put back, in the text form
/// `HOST-VOLUME.replaced.ACCOUNT.GENERATION`: to which account it counts there, and the generation
/// of the volume that asked for it. Older ones name no account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplacedName {
    /// The host that had it.
    pub host: HostId,
    /// Of which volume.
    pub volume: VolumeId,
    /// To which account it counts.
    pub account: Option<AccountId>,
    /// By which generation.
    pub generation: Generation,
}

impl std::fmt::Display for ReplacedName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}-{}.{REPLACED}.", self.host, self.volume)?;
        if let Some(account) = self.account {
            write!(formatter, "{account}.")?;
        }
        write!(formatter, "{}", self.generation)
    }
}

impl FromStr for ReplacedName {
    type Err = ForeignName;

    fn from_str(text: &str) -> Result<Self, ForeignName> {
        let (ids, rest) = text.split_once('.').ok_or(ForeignName)?;
        let (host, volume) = ids.split_once('-').ok_or(ForeignName)?;
        let (extension, rest) = rest.split_once('.').ok_or(ForeignName)?;
        if extension != REPLACED {
            return Err(ForeignName);
        }
        let (account, generation) = match rest.split_once('.') {
            Some((account, rest)) => (Some(account.parse().map_err(|_| ForeignName)?), rest),
            None => (None, rest),
        };
        Ok(Self {
            host: host.parse().map_err(|_| ForeignName)?,
            volume: volume.parse().map_err(|_| ForeignName)?,
            account,
            generation: Generation(generation.parse().map_err(|_| ForeignName)?),
        })
    }
}

impl DiskStore {
    /// Where the snapshot's file is, if it is here.
    pub fn snapshot_path(&self, volume: VolumeId, snapshot: SnapshotId) -> PathBuf {
        self.directory.join(SnapshotName { host: self.host, volume, snapshot }.to_string())
    }

    /// Whether the snapshot's file is here.
    ///
    /// # Errors
    /// [`ImageError::File`] when it cannot be seen: unknown is not absent.
    pub fn has_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<bool, ImageError> {
        is_here(&self.snapshot_path(volume, snapshot))
    }

    /// Makes sure that the snapshot's file is here: a copy of the volume's, which no machine holds.
    /// One that is here is kept as it is.
    ///
    /// # Errors
    /// [`ImageError::NoRoom`], [`ImageError::Header`], [`ImageError::File`], also while somebody
    /// writes to the volume.
    pub fn ensure_snapshot(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<Disk, ImageError> {
        let path = self.snapshot_path(volume, snapshot);
        if self.has_snapshot(volume, snapshot)? {
            return Ok(Disk { path, outcome: Outcome::Kept });
        }
        publish(self.copy(&self.volume_path(volume))?, path)
    }

    /// Makes sure that the snapshot's file is here: what `copy` writes into an empty disk of the
    /// volume's size, while a machine holds the volume. One that is here is kept as it is.
    ///
    /// # Errors
    /// [`ImageError::NoRoom`] before anything is written, [`ImageError::Header`],
    /// [`ImageError::DiskSize`], [`ImageError::Tool`], [`ImageError::File`], and what `copy` says.
    pub fn ensure_snapshot_by<E: From<ImageError>>(
        &self,
        (volume, snapshot): (VolumeId, SnapshotId),
        size_bytes: u64,
        copy: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Disk, E> {
        let path = self.snapshot_path(volume, snapshot);
        if self.has_snapshot(volume, snapshot)? {
            return Ok(Disk { path, outcome: Outcome::Kept });
        }
        let from = self.volume_path(volume);
        let there = fs::metadata(&from).map_err(ImageError::file("cannot see", &from))?;
        // A copy has what is there when it begins, and a guest that finds no room waits for ever.
        room::require(&self.directory, there.blocks().saturating_mul(BLOCK_BYTES))?;
        let partial = self.empty(size_bytes)?;
        copy(partial.path())?;
        require_size(&partial, size_bytes)?;
        Ok(publish(partial, path)?)
    }

    /// Makes sure that the volume has a file: a copy of a snapshot's. One that is here is kept as
    /// it is.
    ///
    /// # Errors
    /// [`ImageError::NoRoom`], [`ImageError::Header`], [`ImageError::File`].
    pub fn ensure_clone(
        &self,
        volume: VolumeId,
        (source, snapshot): (VolumeId, SnapshotId),
    ) -> Result<Disk, ImageError> {
        let path = self.volume_path(volume);
        if self.has_volume(volume)? {
            return Ok(Disk { path, outcome: Outcome::Kept });
        }
        publish(self.copy(&self.snapshot_path(source, snapshot))?, path)
    }

    /// Makes sure that the volume, which no machine holds, was put back to the snapshot for
    /// `generation`: once, however often this is asked for. What it held is in quarantine then, and
    /// counts there to its account.
    ///
    /// # Errors
    /// [`ImageError::NoRoom`], [`ImageError::Header`], [`ImageError::File`], also while somebody
    /// writes to the volume.
    pub fn restore_volume(
        &self,
        (volume, snapshot): (VolumeId, SnapshotId),
        (generation, of): (Generation, AccountId),
    ) -> Result<Outcome, ImageError> {
        let path = self.volume_path(volume);
        let aside = self.replaced_path(volume, generation, Some(of));
        if self.has_volume(volume)? {
            if self.was_restored(volume, (generation, of))? {
                return Ok(Outcome::Kept);
            }
            // Nobody may begin to write between the look and the renames.
            let before = open_still(&path)?;
            let copy = self.copy(&self.snapshot_path(volume, snapshot))?;
            files::put_aside(&path, &aside)?;
            let made = publish(copy, path);
            drop(before);
            return made.map(|disk| disk.outcome);
        }
        // Died between the two renames, or the file was lost: the snapshot says what it is to hold.
        publish(self.copy(&self.snapshot_path(volume, snapshot))?, path).map(|disk| disk.outcome)
    }

    /// Whether what the volume held before it was put back for `generation` is in quarantine.
    ///
    /// # Errors
    /// [`ImageError::File`] when it cannot be seen: unknown is not absent.
    pub fn was_restored(
        &self,
        volume: VolumeId,
        (generation, of): (Generation, AccountId),
    ) -> Result<bool, ImageError> {
        let is_aside = |of| is_here(&self.replaced_path(volume, generation, of));
        Ok(is_aside(Some(of))? || is_aside(None)?)
    }

    fn replaced_path(
        &self,
        volume: VolumeId,
        generation: Generation,
        account: Option<AccountId>,
    ) -> PathBuf {
        let name = ReplacedName { host: self.host, volume, account, generation };
        self.directory.join(files::QUARANTINE).join(name.to_string())
    }

    /// Moves the snapshot's file into quarantine, where it counts to the volume's account; tells
    /// where it is now. Nothing here is no error.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn quarantine_snapshot(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        of: AccountId,
    ) -> Result<Option<PathBuf>, ImageError> {
        files::quarantine(&self.snapshot_path(volume, snapshot), Some(of))
    }

    /// A whole copy, under a temporary name. Nobody writes to the original meanwhile. Where the
    /// file system cannot share its blocks there has to be room for it.
    fn copy(&self, from: &Path) -> Result<Partial, ImageError> {
        let mut original = open_still(from)?;
        header::read_volume(&original)?;
        let copy = Partial::create(&self.directory)?;
        if rustix::fs::ioctl_ficlone(copy.file(), &original).is_err() {
            self.write_copy(&mut original, &copy)?;
        }
        header::read_volume(copy.file())?;
        Ok(copy)
    }

    fn write_copy(&self, original: &mut File, copy: &Partial) -> Result<(), ImageError> {
        let there = original
            .metadata()
            .map_err(ImageError::file("cannot look at the original of", copy.path()))?;
        // Its holes are written, too.
        room::require(&self.directory, there.len())?;
        io::copy(original, &mut copy.file())
            .map_err(ImageError::file("cannot write", copy.path()))?;
        Ok(())
    }
}

/// Gives a copy its final name, unless that is taken.
fn publish(copy: Partial, path: PathBuf) -> Result<Disk, ImageError> {
    let outcome = match copy.finish(&path, Existing::Keep)? {
        true => Outcome::Created,
        false => Outcome::Kept,
    };
    Ok(Disk { path, outcome })
}

/// Opens a disk to which nobody writes, and to which no hypervisor will while it is open: QEMU and
/// Cloud Hypervisor both hold, and respect, locks of this kind.
fn open_still(path: &Path) -> Result<File, ImageError> {
    let file = files::open_regular(path).map_err(ImageError::file("cannot open", path))?;
    let lock = |kind: libc::c_int, at: libc::off_t| libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or(libc::c_short::MAX),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or(0),
        l_start: at,
        l_len: 1,
        l_pid: 0,
    };
    let failed = |error: nix::Error| ImageError::file("cannot lock", path)(error.into());
    let in_use = || {
        let why = io::Error::new(io::ErrorKind::ResourceBusy, "a machine writes to it");
        ImageError::file("cannot copy", path)(why)
    };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock(libc::F_RDLCK, QEMU_NO_WRITERS_AT))) {
        Ok(_) => {}
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => return Err(in_use()),
        Err(error) => return Err(failed(error)),
    }
    let mut writer = lock(libc::F_WRLCK, QEMU_WRITES_AT);
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut writer)).map_err(failed)?;
    match i32::from(writer.l_type) == libc::F_UNLCK {
        true => Ok(file),
        false => Err(in_use()),
    }
}
