//! Image files by the BLAKE3 digest of their bytes.
//!
//! Owns one directory: a file's name is its digest in hex; what a file's format is, its user
//! declares. A file is whole and on disk before it has its name, and it is hashed again before its
//! first use by a process and whenever size, times or inode have changed. A damaged file goes to
//! quarantine and is never handed out. Never fetches anything. Called by the agent's actuator and
//! by tests.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use dagger_payload::id::ImageDigest;
use dagger_payload::kind::ImageFormat;

use crate::error::ImageError;
use crate::files::{self, Existing, Partial};
use crate::header::{self, HeaderRefusal};
use crate::incoming::{self, Coming, Incoming};
use crate::limits::{COPY_BYTES_MAX, IMAGE_FILE_BYTES_MAX};
use crate::room;

/// A verified image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// Of its bytes.
    pub digest: ImageDigest,
    /// The format that it was judged by.
    pub format: ImageFormat,
    /// Its file.
    pub path: PathBuf,
    /// Size of the file, in bytes.
    pub file_bytes: u64,
    /// Size of the disk that a guest sees, in bytes.
    pub virtual_size_bytes: u64,
}

/// An image file in the store, as it is named; not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageEntry {
    /// The digest in its name.
    pub digest: ImageDigest,
    /// Size of the file, in bytes.
    pub file_bytes: u64,
}

/// What changes when a file's bytes may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// The store. One per directory and process, shared by reference.
#[derive(Debug)]
pub struct ImageStore {
    directory: PathBuf,
    /// What this process has hashed and found good.
    verified: Mutex<HashMap<ImageDigest, Fingerprint>>,
    coming: Arc<Coming>,
}

impl ImageStore {
    /// Opens the store in `directory`, which is made if missing.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn open(directory: &Path) -> Result<Self, ImageError> {
        let directory =
            std::path::absolute(directory).map_err(ImageError::file("cannot find", directory))?;
        files::open_directory(&directory)?;
        incoming::remove_abandoned(&directory)?;
        Ok(Self { directory, verified: Mutex::default(), coming: Arc::default() })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn coming(&self) -> &Arc<Coming> {
        &self.coming
    }

    /// Whether a file of so many bytes may be copied into the store.
    ///
    /// # Errors
    /// [`ImageError::NoRoom`], [`ImageError::File`].
    pub fn require_room(&self, bytes: u64) -> Result<(), ImageError> {
        room::require(&self.directory, bytes)
    }

    /// Where the image's file is, if it is here.
    pub fn path(&self, digest: ImageDigest) -> PathBuf {
        self.directory.join(digest.to_string())
    }

    /// The images that are here, by their names.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn list(&self) -> Result<Vec<ImageEntry>, ImageError> {
        let mut entries = Vec::new();
        for path in files::list(&self.directory)? {
            let Ok(digest) = files::name_of(&path).parse() else { continue };
            // A file may go between being listed and being looked at.
            if let Ok(metadata) = fs::metadata(&path) {
                entries.push(ImageEntry { digest, file_bytes: metadata.len() });
            }
        }
        Ok(entries)
    }

    /// Copies a local file into the store. With `expected`, other bytes are refused.
    ///
    /// # Errors
    /// [`ImageError::NotAFile`], and those of [`ImageStore::import_from`].
    pub fn import(
        &self,
        source: &Path,
        format: ImageFormat,
        expected: Option<ImageDigest>,
    ) -> Result<StoredImage, ImageError> {
        let file = files::open_regular(source).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => ImageError::NotAFile(source.to_owned()),
            _ => ImageError::file("cannot open", source)(error),
        })?;
        self.import_from(file, format, expected)
    }

    /// Copies a stream into the store. The copy is judged, not the source, which may change
    /// meanwhile.
    ///
    /// # Errors
    /// [`ImageError::DigestDiffers`], [`ImageError::TooLarge`], [`ImageError::Header`],
    /// [`ImageError::File`]. Nothing is stored then.
    pub fn import_from(
        &self,
        mut source: impl Read,
        format: ImageFormat,
        expected: Option<ImageDigest>,
    ) -> Result<StoredImage, ImageError> {
        let partial = Partial::create(&self.directory)?;
        let found = copy_and_hash(&mut source, partial.file())
            .map_err(ImageError::file("cannot copy an image to", partial.path()))?
            .ok_or(ImageError::TooLarge { max_bytes: IMAGE_FILE_BYTES_MAX })?;
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(ImageError::DigestDiffers { expected, found });
        }
        header::inspect(partial.file(), format)?;
        // A good copy that is here already stays; a damaged one makes way into quarantine.
        match self.verify(found, format) {
            Err(ImageError::Missing(_) | ImageError::Damaged { .. }) => {}
            result => return result,
        }
        // Nobody writes to an image again: guests write to overlays.
        partial.publish()?;
        partial.finish(&self.path(found), Existing::Keep)?;
        self.verify(found, format)
    }

    /// Copies a file that was fetched into the store. Its format is judged whenever it is used, as
    /// each user declares it.
    ///
    /// # Errors
    /// [`ImageError::DigestDiffers`], [`ImageError::TooLarge`], [`ImageError::File`]. Nothing is
    /// stored then.
    pub fn take_in(&self, incoming: &Incoming, expected: ImageDigest) -> Result<(), ImageError> {
        let failed = |error| ImageError::file("cannot read", incoming.path())(error);
        let mut fetched = files::open_regular(incoming.path()).map_err(failed)?;
        let max_bytes = incoming.size_bytes();
        if fetched.metadata().map_err(failed)?.len() > max_bytes {
            return Err(ImageError::TooLarge { max_bytes });
        }
        let partial = Partial::create(&self.directory)?;
        let found = copy_and_hash(&mut fetched, partial.file())
            .map_err(ImageError::file("cannot copy an image to", partial.path()))?
            .ok_or(ImageError::TooLarge { max_bytes: IMAGE_FILE_BYTES_MAX })?;
        if found != expected {
            return Err(ImageError::DigestDiffers { expected, found });
        }
        partial.publish()?;
        // One that is here already is hashed before it is used, like this one.
        partial.finish(&self.path(found), Existing::Keep)?;
        Ok(())
    }

    /// Opens an image's file for whoever verifies it himself, such as another host.
    ///
    /// # Errors
    /// [`ImageError::Missing`], [`ImageError::File`].
    pub fn open_file(&self, digest: ImageDigest) -> Result<File, ImageError> {
        let path = self.path(digest);
        files::open_regular(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ImageError::Missing(digest),
            _ => ImageError::file("cannot open", &path)(error),
        })
    }

    /// Makes sure that the image is here, whole, and of the declared format. Hashes the file unless
    /// this process has done so and nothing about the file has changed.
    ///
    /// # Errors
    /// [`ImageError::Missing`], [`ImageError::Damaged`], [`ImageError::Header`],
    /// [`ImageError::File`].
    pub fn verify(
        &self,
        digest: ImageDigest,
        format: ImageFormat,
    ) -> Result<StoredImage, ImageError> {
        let path = self.path(digest);
        let failed = |error| ImageError::file("cannot read", &path)(error);
        let file = match files::open_regular(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ImageError::Missing(digest));
            }
            Err(error) => return Err(failed(error)),
        };
        let before = Fingerprint::of(&file).map_err(failed)?;
        if !self.is_verified(digest, before) {
            self.forget(digest);
            let found = copy_and_hash(&mut &file, io::sink()).map_err(failed)?;
            let found = found.ok_or(ImageError::TooLarge { max_bytes: IMAGE_FILE_BYTES_MAX })?;
            if found != digest {
                let quarantined = files::quarantine(&path, None)?.unwrap_or_else(|| path.clone());
                return Err(ImageError::Damaged { digest, found, quarantined });
            }
            // A file that changed while it was read is looked at again next time.
            if Fingerprint::of(&file).map_err(failed)? == before {
                self.remember(digest, before);
            }
        }
        let geometry = header::inspect(&file, format).map_err(|refusal| match refusal {
            HeaderRefusal::Unreadable(reason) => failed(io::Error::other(reason)),
            refusal => refusal.into(),
        })?;
        Ok(StoredImage {
            digest,
            format,
            path,
            file_bytes: before.bytes,
            virtual_size_bytes: geometry.virtual_size_bytes,
        })
    }

    /// Removes the image's file for ever; that it is not here is no error.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn remove(&self, digest: ImageDigest) -> Result<(), ImageError> {
        self.forget(digest);
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Ok(()) => files::sync_directory_of(&path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(ImageError::file("cannot remove", &path)(error)),
        }
    }

    fn is_verified(&self, digest: ImageDigest, fingerprint: Fingerprint) -> bool {
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.get(&digest) == Some(&fingerprint)
    }

    fn remember(&self, digest: ImageDigest, fingerprint: Fingerprint) {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.insert(digest, fingerprint);
    }

    fn forget(&self, digest: ImageDigest) {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
    }
}

/// The digest of a file's bytes; `None` if it is over the maximum.
///
/// # Errors
/// The file system's.
pub fn digest_of(path: &Path) -> io::Result<Option<ImageDigest>> {
    copy_and_hash(&mut files::open_regular(path)?, io::sink())
}

/// Copies to the end, hashing; `None` if there is more than an image may have.
fn copy_and_hash(
    source: &mut impl Read,
    mut target: impl Write,
) -> io::Result<Option<ImageDigest>> {
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; COPY_BYTES_MAX];
    let mut total = 0_u64;
    loop {
        let length = match source.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        total += length as u64;
        if total > IMAGE_FILE_BYTES_MAX {
            return Ok(None);
        }
        hasher.update(&piece[..length]);
        target.write_all(&piece[..length])?;
    }
    Ok(Some(ImageDigest(*hasher.finalize().as_bytes())))
}
