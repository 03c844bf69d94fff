//! Bodies of `image.*`: what may be booted, by digest.
//!
//! Owns their fields and ranges. Judged by `dagger-processor`'s rules of images.

use serde::{Deserialize, Serialize};

use super::{Checked, require};
use crate::id::{Generation, ImageDigest};
use crate::limits::{IMAGE_SOURCES_MAX, INITRD_BYTES_MAX, KERNEL_BYTES_MAX};
use crate::name::{ImageName, ImageSource};
use crate::refusal::Refusal;

/// What an image file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageUse {
    /// A VM's disk begins with it.
    Disk,
    /// A VM boots it directly.
    Kernel,
    /// A kernel that is booted directly unpacks it into memory.
    InitialRamDisk,
}

impl ImageUse {
    /// What people call such a file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Disk => "disk image",
            Self::Kernel => "kernel",
            Self::InitialRamDisk => "initial RAM disk",
        }
    }
}

/// Format of an image file; never guessed from its bytes.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    minicbor::Encode,
    minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ImageFormat {
    /// A plain disk image.
    #[n(0)]
    Raw,
    /// QEMU's copy-on-write format, without backing file, data file or encryption.
    #[n(1)]
    Qcow2,
    /// A kernel for x86-64 that is booted without a boot loader: a bzImage, or an ELF file with an
    /// entry for PVH.
    #[n(2)]
    Kernel,
    /// An initial RAM disk: a cpio archive, compressed or not.
    #[n(3)]
    Initrd,
}

impl ImageFormat {
    /// What a file of this format is for.
    pub fn use_of(self) -> ImageUse {
        match self {
            Self::Raw | Self::Qcow2 => ImageUse::Disk,
            Self::Kernel => ImageUse::Kernel,
            Self::Initrd => ImageUse::InitialRamDisk,
        }
    }

    /// The word that stands for it in JSON and where people read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
        }
    }
}

/// `image.register`, signed by an operator or an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRegister {
    /// `publisher/name`.
    pub name: ImageName,
    /// Digest of the file.
    pub digest: ImageDigest,
    /// Format of the file.
    pub format: ImageFormat,
    /// Size of the file, in bytes.
    pub size_bytes: u64,
    /// Size of the disk that the guest sees, in bytes; of what is no disk, the size of the file.
    pub virtual_size_bytes: u64,
    /// Where hosts may fetch it.
    #[serde(default)]
    pub sources: Vec<ImageSource>,
}

/// `image.retire`, signed by the image's publisher: no new VM boots it. The name stays his.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRetire {
    /// `publisher/name`.
    pub name: ImageName,
    /// Refuse with `conflict` unless the image is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

impl Checked for ImageRegister {
    fn check(&self) -> Result<(), Refusal> {
        require(self.sources.len() <= IMAGE_SOURCES_MAX, "sources: at most 8")?;
        require(self.size_bytes > 0, "size_bytes must be above 0")?;
        require(self.virtual_size_bytes > 0, "virtual_size_bytes must be above 0")?;
        let bytes_max = match self.format.use_of() {
            ImageUse::Disk => return Ok(()),
            ImageUse::Kernel => KERNEL_BYTES_MAX,
            ImageUse::InitialRamDisk => INITRD_BYTES_MAX,
        };
        let rule = "size_bytes: of a kernel at most 256 MiB, of an initial RAM disk at most 1 GiB";
        require(self.size_bytes <= bytes_max, rule)?;
        let is_plain = self.virtual_size_bytes == self.size_bytes;
        require(is_plain, "virtual_size_bytes: of what is no disk, as size_bytes")
    }
}

impl Checked for ImageRetire {}
