//! Image files that are on their way into the store.
//!
//! Owns one file per image while it is fetched: its name carries the digest, so that the next try,
//! or the next start, goes on where this one ended; its lock says that somebody fills it. Nothing
//! in it is believed: [`ImageStore::take_in`] copies and hashes it. Called by the agent's
//! downloads.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use dagger_payload::id::ImageDigest;
use nix::fcntl::OFlag;

use crate::error::ImageError;
use crate::files;
use crate::limits::INCOMING_ABANDONED_AFTER;
use crate::store::ImageStore;

/// Names begin with this, and go on with the digest.
const INCOMING: &str = ".fetching-";

/// A file that is being fetched. What it holds stays when this is dropped.
#[derive(Debug)]
pub struct Incoming {
    path: PathBuf,
    /// Holds the lock, together with whoever it was handed to.
    file: File,
}

impl Incoming {
    /// The file of one image in `directory`, with what an earlier try left in it; `None` while
    /// somebody fills it.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub(crate) fn open(directory: &Path, digest: ImageDigest) -> Result<Option<Self>, ImageError> {
        let path = path(directory, digest);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&path)
            .map_err(ImageError::file("cannot make", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { path, file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(ImageError::file("cannot lock", &path)(error)),
        }
    }

    /// The file, for whoever fills it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it with what it holds.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn discard(self) -> Result<(), ImageError> {
        remove(&self.path)
    }
}

/// Removes what nobody has gone on with for a long time.
///
/// # Errors
/// [`ImageError::File`].
pub(crate) fn remove_abandoned(directory: &Path) -> Result<(), ImageError> {
    for path in files::list(directory)? {
        let Some(digest) = files::name_of(&path).strip_prefix(INCOMING) else { continue };
        let Ok(digest) = digest.parse() else { continue };
        let old = || fs::metadata(&path)?.modified()?.elapsed().map_err(io::Error::other);
        if old().is_ok_and(|age| age > INCOMING_ABANDONED_AFTER)
            && let Some(incoming) = Incoming::open(directory, digest)?
        {
            tracing::info!(path = %path.display(), "removing a download that nobody went on with");
            incoming.discard()?;
        }
    }
    Ok(())
}

impl ImageStore {
    /// The file into which an image is fetched, with what an earlier try left in it; `None` while
    /// somebody fills it.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn incoming(&self, digest: ImageDigest) -> Result<Option<Incoming>, ImageError> {
        Incoming::open(self.directory(), digest)
    }

    /// Removes what has come of an image; whoever still fills it fills a file without a name.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn discard_incoming(&self, digest: ImageDigest) -> Result<(), ImageError> {
        remove(&path(self.directory(), digest))
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

    fn digest(bytes: &[u8]) -> ImageDigest {
        ImageDigest(*blake3::hash(bytes).as_bytes())
    }

    #[test]
    fn what_was_fetched_is_found_again_and_only_one_fills_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        let incoming = store.incoming(digest(b"image")).unwrap().unwrap();
        incoming.file().write_all(b"ima").unwrap();
        assert!(store.incoming(digest(b"image")).unwrap().is_none());
        // Whoever it was handed to holds it too.
        let handed = incoming.file().try_clone().unwrap();
        drop(incoming);
        assert!(store.incoming(digest(b"image")).unwrap().is_none());
        drop(handed);
        let store = ImageStore::open(directory.path()).unwrap();
        let incoming = store.incoming(digest(b"image")).unwrap().unwrap();
        assert_eq!(incoming.file().metadata().unwrap().len(), 3);
        assert_eq!(store.list().unwrap(), []);
    }

    #[test]
    fn what_was_fetched_is_stored_only_if_it_is_what_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        let incoming = store.incoming(digest(b"image")).unwrap().unwrap();
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
        let incoming = store.incoming(digest(&bytes)).unwrap().unwrap();
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
            store.incoming(digest).unwrap().unwrap();
        }
        let path = |digest| super::path(directory.path(), digest);
        let long_ago = std::time::SystemTime::now() - 2 * INCOMING_ABANDONED_AFTER;
        File::open(path(old)).unwrap().set_modified(long_ago).unwrap();
        ImageStore::open(directory.path()).unwrap();
        assert!(!path(old).exists() && path(new).exists());
    }
}
