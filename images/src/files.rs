//! How files of ours come and go: whole or not at all.
//!
//! Owns temporary names, the rename that never overwrites, and quarantine. A file under a final
//! name is always whole and on disk; what a crash leaves behind carries a temporary name and is
//! removed at the next opening. Called by [`crate::store`] and [`crate::disks`].

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use dagger_payload::id::AccountId;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};

use crate::error::ImageError;
use crate::limits::{DIRECTORY_ENTRIES_MAX, QUARANTINE_SAME_NAME_MAX};

/// Temporary names begin with this.
const PARTIAL: &str = ".partial-";
/// The directory, below each of ours, for what is no longer used and not yet deleted.
pub const QUARANTINE: &str = "quarantine";
/// The directory, below that of disks, for the links by which machines open theirs.
pub const ATTACHED: &str = "attached";

/// Mode of our directories: QEMU, under a user of its own, walks through them to the one file that
/// libvirt hands it; nobody else learns what is there.
const DIRECTORY_MODE: u32 = 0o711;
/// Mode of our files: a guest's disk is for its host's agent and, while it runs, for its QEMU, to
/// whom libvirt gives it.
const FILE_MODE: u32 = 0o600;

/// Makes a directory and its quarantine, and removes what a crash left half-made.
///
/// # Errors
/// [`ImageError::File`].
pub fn open_directory(directory: &Path) -> Result<(), ImageError> {
    let quarantine = directory.join(QUARANTINE);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(&quarantine)
        .map_err(ImageError::file("cannot make", &quarantine))?;
    for path in list(directory)? {
        if name_of(&path).starts_with(PARTIAL) && is_abandoned(&path) {
            tracing::info!(path = %path.display(), "removing a file that was never finished");
            fs::remove_file(&path).map_err(ImageError::file("cannot remove", &path))?;
        }
    }
    Ok(())
}

/// Whoever makes a temporary file holds its lock; the kernel drops the lock with the process.
fn is_abandoned(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| file.try_lock().is_ok())
}

/// The regular files of a directory, without its quarantine, sorted by name.
///
/// # Errors
/// [`ImageError::File`].
pub fn list(directory: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let failed = |error| ImageError::file("cannot list", directory)(error);
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)?.take(DIRECTORY_ENTRIES_MAX) {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_file() {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// The names of everything in a directory, of whatever type, sorted: all of them or an error.
///
/// # Errors
/// [`ImageError::File`], also when there are more than [`DIRECTORY_ENTRIES_MAX`].
pub fn names(directory: &Path) -> Result<Vec<String>, ImageError> {
    let failed = |error| ImageError::file("cannot list", directory)(error);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        if names.len() == DIRECTORY_ENTRIES_MAX {
            let many = format!("more than {DIRECTORY_ENTRIES_MAX} entries");
            return Err(failed(io::Error::other(many)));
        }
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Whether an entry is the quarantine, the links of machines, or a file that is being made.
pub fn is_own_name(name: &str) -> bool {
    name == QUARANTINE || name == ATTACHED || name.starts_with(PARTIAL)
}

/// The last part of a path, as text; empty if it is none.
pub fn name_of(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}

/// A file that is being made. Dropped without [`Partial::finish`], it is removed.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    /// Holds the lock by which others see that it is in use.
    file: File,
    finished: bool,
}

/// What happens if the final name is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It stays; the new file is removed.
    Keep,
    /// It is replaced, in one step.
    Replace,
}

impl Partial {
    /// A new empty file in `directory`.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn create(directory: &Path) -> Result<Self, ImageError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("{PARTIAL}{}-{number}", std::process::id()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(ImageError::file("cannot make", &path))?;
        file.try_lock().map_err(|error| ImageError::file("cannot lock", &path)(error.into()))?;
        Ok(Self { path, file, finished: false })
    }

    /// Where it is until it is finished.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes it readable for everybody, and with that also for hypervisors: for what is no secret
    /// and never written again.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn publish(&self) -> Result<(), ImageError> {
        self.file
            .set_permissions(Permissions::from_mode(0o444))
            .map_err(ImageError::file("cannot protect", &self.path))
    }

    /// Puts it on disk under its final name, in the same directory. Tells whether the name was
    /// free.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn finish(mut self, path: &Path, existing: Existing) -> Result<bool, ImageError> {
        self.file.sync_all().map_err(ImageError::file("cannot write", &self.path))?;
        let moved = match existing {
            Existing::Keep => rename_to_free_name(&self.path, path)?,
            Existing::Replace => {
                fs::rename(&self.path, path).map_err(ImageError::file("cannot rename to", path))?;
                true
            }
        };
        self.finished = moved;
        sync_directory_of(path)?;
        Ok(moved)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            // The next opening removes what could not be removed now.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Renames unless the new name is taken; tells whether it did.
fn rename_to_free_name(from: &Path, to: &Path) -> Result<bool, ImageError> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(error) => Err(ImageError::file("cannot rename to", to)(error.into())),
    }
}

pub(crate) fn sync_directory_of(path: &Path) -> Result<(), ImageError> {
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(ImageError::file("cannot write", directory))
}

/// Moves a file into its directory's quarantine, under its own name, the account to which it counts
/// there if there is one, and a number. `None` if there is no such file.
///
/// # Errors
/// [`ImageError::File`].
pub fn quarantine(path: &Path, of: Option<AccountId>) -> Result<Option<PathBuf>, ImageError> {
    let directory = path.parent().unwrap_or_else(|| Path::new("/")).join(QUARANTINE);
    let of = of.map(|account| format!(".{account}")).unwrap_or_default();
    for number in 0..QUARANTINE_SAME_NAME_MAX {
        let to = directory.join(format!("{}{of}.{number}", name_of(path)));
        match rename_to_free_name(path, &to) {
            Ok(true) => {
                sync_directory_of(&to)?;
                sync_directory_of(path)?;
                tracing::warn!(from = %path.display(), to = %to.display(), "moved to quarantine");
                return Ok(Some(to));
            }
            Ok(false) => {}
            Err(ImageError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
    }
    let full = io::Error::other("too many of this name");
    Err(ImageError::file("cannot quarantine", path)(full))
}

/// What a file in quarantine was called before, and to which account it counts; `None` if its name
/// was not given by [`quarantine`].
pub(crate) fn name_before(name: &str) -> Option<(&str, Option<AccountId>)> {
    let (was, number) = name.rsplit_once('.')?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let of = was.rsplit_once('.').and_then(|(was, of)| Some((was, of.parse().ok()?)));
    Some(of.map_or((was, None), |(was, account)| (was, Some(account))))
}

/// Moves a file to this place in its directory's quarantine, whose name was free.
///
/// # Errors
/// [`ImageError::File`].
pub fn put_aside(path: &Path, to: &Path) -> Result<(), ImageError> {
    if !rename_to_free_name(path, to)? {
        let taken = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(ImageError::file("cannot quarantine", path)(taken));
    }
    sync_directory_of(to)?;
    sync_directory_of(path)?;
    tracing::warn!(from = %path.display(), to = %to.display(), "moved to quarantine");
    Ok(())
}

/// Opens a regular file for reading, following no link at its end and waiting for no pipe.
///
/// # Errors
/// The file system's; `InvalidInput` if it is no regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_was_never_finished_is_removed_at_the_next_opening_unless_in_use() {
        let directory = tempfile::tempdir().unwrap();
        open_directory(directory.path()).unwrap();
        let in_use = Partial::create(directory.path()).unwrap();
        let left = directory.path().join(".partial-1-0");
        fs::write(&left, "half").unwrap();
        open_directory(directory.path()).unwrap();
        assert!(!left.exists());
        assert!(in_use.path().exists());
    }

    #[test]
    fn other_users_can_neither_list_nor_read_what_is_kept() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("disks");
        open_directory(&directory).unwrap();
        let disk = directory.join("disk");
        let partial = Partial::create(&directory).unwrap();
        assert!(partial.finish(&disk, Existing::Keep).unwrap());
        for (path, mode) in
            [(&directory, 0o711), (&directory.join(QUARANTINE), 0o711), (&disk, 0o600)]
        {
            let found = fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{}", path.display());
        }
    }

    #[test]
    fn finishing_never_overwrites_where_the_existing_file_is_to_be_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        fs::write(&path, "precious").unwrap();
        let partial = Partial::create(directory.path()).unwrap();
        let temporary = partial.path().to_owned();
        assert!(!partial.finish(&path, Existing::Keep).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert!(!temporary.exists());
    }

    #[test]
    fn quarantined_files_of_one_name_do_not_replace_each_other() {
        let directory = tempfile::tempdir().unwrap();
        open_directory(directory.path()).unwrap();
        let path = directory.path().join("disk");
        let places = ["first", "second"].map(|text| {
            fs::write(&path, text).unwrap();
            quarantine(&path, None).unwrap().unwrap()
        });
        assert_eq!(fs::read_to_string(&places[0]).unwrap(), "first");
        assert_eq!(fs::read_to_string(&places[1]).unwrap(), "second");
        assert_eq!(quarantine(&path, None).unwrap(), None);
    }
}
