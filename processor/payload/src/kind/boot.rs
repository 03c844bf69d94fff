//! What a VM boots without a boot loader of its own: a kernel, by digest, as its host has it.
//!
//! Owns the fields, and how much memory such a VM needs at least. Judged by `dagger-processor`'s
//! rules of VMs.

use serde::{Deserialize, Serialize};

use super::vm::VmImage;
use crate::name::CommandLine;

/// A kernel that a VM boots directly; its disk is there like any other, and nothing on it is
/// started by the firmware.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmBoot {
    /// The kernel, as registered.
    #[n(0)]
    pub kernel: VmImage,
    /// The initial RAM disk, as registered.
    #[n(1)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<VmImage>,
    /// What the kernel is told. **Public**, like all of the request.
    #[n(2)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_line: Option<CommandLine>,
}

impl VmBoot {
    /// Its files.
    pub fn images(&self) -> impl Iterator<Item = &VmImage> {
        std::iter::once(&self.kernel).chain(&self.initrd)
    }

    /// Whether a guest with so much memory can hold its files, and what they unpack to: they may
    /// take half of it.
    pub fn fits_memory(&self, memory_mib: u64) -> bool {
        let bytes = self.images().map(|image| u128::from(image.virtual_size_bytes)).sum::<u128>();
        bytes * 2 <= u128::from(memory_mib) << 20
    }
}
