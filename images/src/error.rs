//! Why an image, disk or seed is not as it was asked for. One type with stable codes, since callers
//! pass codes on.

use std::io;
use std::path::{Path, PathBuf};

use dagger_payload::id::ImageDigest;

use crate::header::HeaderRefusal;

/// How a caller should take an [`ImageError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What was asked for or found is wrong: asking again gives the same answer.
    Refused,
    /// It did not work this time: try again, with a bounded back-off.
    Unavailable,
}

/// Why an image, disk or seed is not as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The store has no such image.
    #[error("the image {0} is not in this host's store; import its file or name a source")]
    Missing(ImageDigest),
    /// The stored bytes are not those of the digest. The file is in quarantine and was not used.
    #[error("the stored image {digest} is damaged (its bytes are {found}); moved to {quarantined}")]
    Damaged {
        /// What it should be.
        digest: ImageDigest,
        /// What it is.
        found: ImageDigest,
        /// Where the file is now.
        quarantined: PathBuf,
    },
    /// The file to import is another one than expected.
    #[error("the file's digest is {found}, expected {expected}; nothing was stored")]
    DigestDiffers {
        /// What was asked for.
        expected: ImageDigest,
        /// What the bytes are.
        found: ImageDigest,
    },
    /// The file is too large.
    #[error("the image file is larger than {max_bytes} bytes")]
    TooLarge {
        /// The maximum.
        max_bytes: u64,
    },
    /// The path to import names a directory, device or pipe.
    #[error("{0} is not a regular file")]
    NotAFile(PathBuf),
    /// What the file says of itself is nothing that we let near a machine.
    #[error("{0}")]
    Header(#[from] HeaderRefusal),
    /// The disk would be smaller than its image.
    #[error("a disk of {size_bytes} bytes cannot hold the image's {image_bytes}; ask for more")]
    DiskTooSmall {
        /// The size asked for.
        size_bytes: u64,
        /// The image's virtual size.
        image_bytes: u64,
    },
    /// The image is a kernel or an initial RAM disk.
    #[error("the image {0} is no disk image, and no disk is made over it")]
    NotADisk(ImageDigest),
    /// The disk's size is no multiple of a sector, or over the maximum.
    #[error("a disk of {0} bytes cannot be made: multiples of 512 up to 64 TiB")]
    DiskSize(u64),
    /// A disk of this name exists and belongs over another image. It was left alone.
    #[error("the disk {path} lies over {found}, not {expected}; it was left alone")]
    DiskDiffers {
        /// The disk.
        path: PathBuf,
        /// Its backing file.
        found: String,
        /// The image that was asked for.
        expected: String,
    },
    /// A copy of the disk would be larger than any image may be.
    #[error(
        "a copy of the disk would have {bytes} bytes, and an image has at most {max_bytes}; free \
         space inside the guest (`fstrim`), or take its files away from inside"
    )]
    CopyTooLarge {
        /// What it would have.
        bytes: u64,
        /// The maximum.
        max_bytes: u64,
    },
    /// There is no room for a copy, or for what is to come from elsewhere.
    #[error(
        "{bytes} bytes and a reserve of {reserve_bytes} are needed in {directory}, and \
         {free_bytes} are free; make room there"
    )]
    NoRoom {
        /// What is to be written.
        bytes: u64,
        /// What has to stay free.
        reserve_bytes: u64,
        /// What is free.
        free_bytes: u64,
        /// Where.
        directory: PathBuf,
    },
    /// The seed's contents cannot be written.
    #[error("the seed cannot be made: {0}")]
    Seed(String),
    /// A tool ended badly.
    #[error("{program} failed: {message}")]
    Tool {
        /// Which.
        program: String,
        /// The end of what it said.
        message: String,
    },
    /// A tool did not end in time and was killed.
    #[error("{program} did not end within {seconds} s and was killed")]
    ToolTooSlow {
        /// Which.
        program: String,
        /// The deadline.
        seconds: u64,
    },
    /// The file system refused.
    #[error("{what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Whether the file system refused because it has no space, or none for this user.
pub fn is_for_want_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// How the C library puts the same.
const NO_SPACE: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

impl ImageError {
    /// Whether nothing more can be written where it was to be: there is no space, or none for this
    /// user. That passes.
    pub fn is_for_want_of_space(&self) -> bool {
        match self {
            Self::File { source, .. } => is_for_want_of_space(source),
            Self::NoRoom { .. } => true,
            // Tools end with one status for everything; ours speak English.
            Self::Tool { message, .. } => NO_SPACE.iter().any(|text| message.contains(text)),
            _ => false,
        }
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "image_missing",
            Self::Damaged { .. } => "image_damaged",
            Self::DigestDiffers { .. } => "image_digest_differs",
            Self::TooLarge { .. } => "image_too_large",
            Self::NotAFile(_) => "image_no_file",
            Self::Header(refusal) => refusal.code(),
            Self::DiskTooSmall { .. } => "disk_too_small",
            Self::NotADisk(_) => "image_no_disk",
            Self::DiskSize(_) => "disk_size_invalid",
            Self::DiskDiffers { .. } => "disk_differs",
            Self::CopyTooLarge { .. } => "copy_too_large",
            Self::NoRoom { .. } => "no_room",
            Self::Seed(_) => "seed_invalid",
            Self::Tool { .. } | Self::File { .. } if self.is_for_want_of_space() => "disk_full",
            Self::Tool { .. } => "disk_tool_failed",
            Self::ToolTooSlow { .. } => "disk_tool_too_slow",
            Self::File { .. } => "disk_file_failed",
        }
    }

    /// How a caller should take it.
    pub fn kind(&self) -> Kind {
        match self {
            // A missing image may come.
            Self::Missing(_)
            | Self::NoRoom { .. }
            | Self::Tool { .. }
            | Self::ToolTooSlow { .. }
            | Self::File { .. } => Kind::Unavailable,
            _ => Kind::Refused,
        }
    }

    /// Wraps an error of the file system.
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }
}
