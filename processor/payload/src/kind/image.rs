//! Bodies of `image.*`: what may be booted, by digest.
//!
//! Owns their fields and ranges. Judged by `dagger-processor`'s rules of images.

use serde::{Deserialize, Serialize};

use super::{Checked, require};
use crate::id::{Generation, ImageDigest};
use crate::limits::IMAGE_SOURCES_MAX;
use crate::name::{ImageName, ImageSource};
use crate::refusal::Refusal;

/// Format of an image file; never guessed from its bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
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
    /// Size of the disk that the guest sees, in bytes.
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
        require(self.size_bytes > 0, "size_bytes: above 0")?;
        require(self.virtual_size_bytes > 0, "virtual_size_bytes: above 0")
    }
}

impl Checked for ImageRetire {}
