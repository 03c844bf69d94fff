//! Image files that are on their way into the store.
//!
//! Owns one file per image while it is fetched: its name carries the digest, so that the next try,
//! or the next start, goes on where this one ended; its lock says that somebody fills it. Nothing
//! in it is believed: [`ImageStore::take_in`] copies and hashes it. Owns too what all of them will
//! still take, so that no two count on the same room. Called by the agent's downloads.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use dagger_payload::id::ImageDigest;
use nix::fcntl::OFlag;

use crate::error::ImageError;
use crate::files;
use crate::limits::INCOMING_KEPT_MAX;
use crate::room;
use crate::store::ImageStore;

/// Names begin with this, and go on with the digest.
const INCOMING: &str = ".fetching-";
/// What file systems count in.
const BLOCK_BYTES: u64 = 512;

/// How many bytes each file may come to that is filled now.
#[derive(Debug, Default)]
pub(crate) struct Coming(Mutex<BTreeMap<PathBuf, u64>>);

impl Coming {
    /// What they will still take: each is copied once when it is whole, so it lies here twice for
    /// a moment.
    fn to_come_bytes(&self) -> u64 {
        let coming = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let to_come = |(path, size_bytes): (&PathBuf, &u64)| {
            let here = fs::metadata(path).map_or(0, |file| file.blocks() * BLOCK_BYTES);
            size_bytes.saturating_mul(2).saturating_sub(here)
        };
        coming.iter().map(to_come).fold(0, u64::saturating_add)
    }
}

/// The room that a file which is being fetched counts on; given back when this is dropped.
#[derive(Debug)]
pub struct Claim {
    coming: Arc<Coming>,
    path: PathBuf,
}

impl Claim {
    fn new(coming: &Arc<Coming>, path: &Path, size_bytes: u64) -> Self {
        let mut all = coming.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(path.to_owned(), size_bytes);
        drop(all);
        Self { coming: Arc::clone(coming), path: path.to_owned() }
    }

    /// Whether there still is room for it and for all others that are being fetched.
    ///
    /// # Errors
    /// [`ImageError::NoRoom`], [`ImageError::File`].
    pub fn require_room(&self) -> Result<(), ImageError> {
        let directory = self.path.parent().unwrap_or_else(|| Path::new("/"));
        room::require(directory, self.coming.to_come_bytes())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut all = self.coming.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&self.path);
    }
}

/// A file that is being fetched. What it holds stays when this is dropped.
#[derive(Debug)]
pub struct Incoming {
    path: PathBuf,
    /// Holds the lock, together with whoever it was handed to.
    file: File,
    size_bytes: u64,
    claim: Arc<Claim>,
}

impl Incoming {
    /// The file, for whoever fills it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The most bytes that it may hold.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The room that it counts on.
    pub fn claim(&self) -> Arc<Claim> {
        Arc::clone(&self.claim)
    }

    /// Removes it with what it holds.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn discard(self) -> Result<(), ImageError> {
        remove(&self.path)
    }
}

/// Whether it may be made where there is none.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Leave,
}

/// Opens the file at `path` and takes its lock; nothing while somebody fills it, or where there is
/// none that may be made.
fn lock(path: &Path, missing: Missing) -> Result<Option<File>, ImageError> {
    let failed = |what, error| ImageError::file(what, path)(error);
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(missing == Missing::Make)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound && missing == Missing::Leave => {
            return Ok(None);
        }
        opened => opened.map_err(|error| failed("cannot make", error))?,
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(failed("cannot lock", error)),
    }
    // Whoever had it may have removed it meanwhile: then it is nobody's, and the next try makes
    // another one.
    let inode = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let own = inode(file.metadata().map_err(|error| failed("cannot see", error))?);
    let is_named = fs::symlink_metadata(path).is_ok_and(|named| inode(named) == own);
    Ok(is_named.then_some(file))
}

/// Removes what nobody has gone on with for a long time.
///
/// # Errors
/// [`ImageError::File`].
pub(crate) fn remove_abandoned(directory: &Path) -> Result<(), ImageError> {
    for path in files::list(directory)? {
        let Some(digest) = files::name_of(&path).strip_prefix(INCOMING) else { continue };
        if digest.parse::<ImageDigest>().is_err() {
            continue;
        }
        let old = || fs::metadata(&path)?.modified()?.elapsed().map_err(io::Error::other);
        if old().is_ok_and(|age| age > INCOMING_KEPT_MAX)
            && let Some(_unfilled) = lock(&path, Missing::Leave)?
        {
            tracing::info!(path = %path.display(), "removing a download that nobody went on with");
            remove(&path)?;
        }
    }
    Ok(())
}

impl ImageStore {
    /// The file into which an image of at most `size_bytes` is fetched, with what an earlier try
    /// left in it; `None` while somebody fills it.
    ///
    /// # Errors
    /// [`ImageError::NoRoom`], and what an earlier try left is removed then; [`ImageError::File`].
    pub fn incoming(
        &self,
        digest: ImageDigest,
        size_bytes: u64,
    ) -> Result<Option<Incoming>, ImageError> {
        remove_abandoned(self.directory())?;
        let path = path(self.directory(), digest);
        let Some(file) = lock(&path, Missing::Make)? else { return Ok(None) };
        let claim = Arc::new(Claim::new(self.coming(), &path, size_bytes));
        let incoming = Incoming { path, file, size_bytes, claim };
        match incoming.claim.require_room() {
            Ok(()) => Ok(Some(incoming)),
            Err(error) => {
                incoming.discard()?;
                Err(error)
            }
        }
    }

    /// Removes what has come of an image; whoever still fills it fills a file without a name.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn discard_incoming(&self, digest: ImageDigest) -> Result<(), ImageError> {
        remove(&path(self.directory(), digest))
    }

    /// The same, unless somebody fills it.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn discard_unfilled(&self, digest: ImageDigest) -> Result<(), ImageError> {
        let path = path(self.directory(), digest);
        match lock(&path, Missing::Leave)? {
            Some(_unfilled) => remove(&path),
            None => Ok(()),
        }
    }
}

fn path(directory: &Path, digest: ImageDigest) -> PathBuf {
    directory.join(format!("{INCOMING}{digest}"))
}

fn remove(path: &Path) -> Result<(), ImageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ImageError::file("cannot remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use dagger_payload::kind::ImageFormat;

    use super::*;

    /// Of the images here.
    const SIZE: u64 = 5;

    fn digest(bytes: &[u8]) -> ImageDigest {
        ImageDigest(*blake3::hash(bytes).as_bytes())
    }

    #[test]
    fn what_was_fetched_is_found_again_and_only_one_fills_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        let incoming = store.incoming(digest(b"image"), SIZE).unwrap().unwrap();
        incoming.file().write_all(b"ima").unwrap();
        assert!(store.incoming(digest(b"image"), SIZE).unwrap().is_none());
        // Whoever it was handed to holds it too.
        let handed = incoming.file().try_clone().unwrap();
        drop(incoming);
        assert!(store.incoming(digest(b"image"), SIZE).unwrap().is_none());
        drop(handed);
        let store = ImageStore::open(directory.path()).unwrap();
        let incoming = store.incoming(digest(b"image"), SIZE).unwrap().unwrap();
        assert_eq!(incoming.file().metadata().unwrap().len(), 3);
        assert_eq!(store.list().unwrap(), []);
    }

    #[test]
    fn what_was_fetched_is_stored_only_if_it_is_what_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        let incoming = store.incoming(digest(b"image"), SIZE).unwrap().unwrap();
        incoming.file().write_all(b"imagE").unwrap();
        let taken = store.take_in(&incoming, digest(b"image"));
        assert!(matches!(taken, Err(ImageError::DigestDiffers { .. })));
        assert_eq!(store.list().unwrap(), []);
        incoming.file().set_len(0).unwrap();
        fs::write(incoming.path(), b"image").unwrap();
        store.take_in(&incoming, digest(b"image")).unwrap();
        // Whoever still holds the fetched file changes nothing of what is stored.
        fs::write(incoming.path(), b"other").unwrap();
        assert_eq!(fs::read(store.path(digest(b"image"))).unwrap(), b"image");
        let path = incoming.path().to_owned();
        store.discard_incoming(digest(b"image")).unwrap();
        assert!(!path.exists());
        incoming.discard().unwrap();
    }

    #[test]
    fn what_was_fetched_is_handed_out_only_as_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        let mut bytes = b"QFI\xfb\0\0\0\x03".to_vec();
        bytes.resize(4096, 0);
        let incoming = store.incoming(digest(&bytes), 4096).unwrap().unwrap();
        incoming.file().write_all(&bytes).unwrap();
        store.take_in(&incoming, digest(&bytes)).unwrap();
        for format in [ImageFormat::Raw, ImageFormat::Qcow2] {
            let used = store.verify(digest(&bytes), format);
            assert!(matches!(used, Err(ImageError::Header(_))), "{format:?}: {used:?}");
        }
    }

    #[test]
    fn a_download_that_nobody_went_on_with_for_long_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        let (old, new) = (digest(b"old"), digest(b"new"));
        for digest in [old, new] {
            store.incoming(digest, SIZE).unwrap().unwrap();
        }
        let path = |digest| super::path(directory.path(), digest);
        let long_ago = std::time::SystemTime::now() - 2 * INCOMING_KEPT_MAX;
        File::open(path(old)).unwrap().set_modified(long_ago).unwrap();
        ImageStore::open(directory.path()).unwrap();
        assert!(!path(old).exists() && path(new).exists());
    }

    #[test]
    fn no_download_is_begun_without_room_for_it_twice_and_for_all_others_that_are_under_way() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        let free_bytes = room::Space::of(directory.path()).unwrap().free_bytes;
        let (large, other) = (digest(b"large"), digest(b"other"));
        let code = |digest, size| store.incoming(digest, size).map_err(|error| error.code());
        // What an earlier try left of it goes, too.
        let path = |digest| super::path(directory.path(), digest);
        fs::write(path(large), b"lar").unwrap();
        assert_eq!(code(large, free_bytes / 2).map(|_| ()), Err("no_room"));
        assert!(!path(large).exists());

        let held = code(large, free_bytes / 8).unwrap();
        assert_eq!(code(other, free_bytes * 3 / 8).map(|_| ()), Err("no_room"));
        drop(held);
        assert!(code(other, free_bytes * 3 / 8).unwrap().is_some());
    }

    #[test]
    fn what_came_of_an_image_is_removed_unless_somebody_fills_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        store.discard_unfilled(digest(b"image")).unwrap();
        let incoming = store.incoming(digest(b"image"), SIZE).unwrap().unwrap();
        let path = incoming.path().to_owned();
        store.discard_unfilled(digest(b"image")).unwrap();
        assert!(path.exists());
        drop(incoming);
        store.discard_unfilled(digest(b"image")).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn more_than_was_to_come_is_not_copied() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        let incoming = store.incoming(digest(b"image"), SIZE - 1).unwrap().unwrap();
        incoming.file().write_all(b"image").unwrap();
        let taken = store.take_in(&incoming, digest(b"image"));
        assert!(matches!(taken, Err(ImageError::TooLarge { max_bytes: 4 })), "{taken:?}");
    }
}
