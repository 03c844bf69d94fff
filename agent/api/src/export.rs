//! A whole VM as one file: what `GET /v1/vms/{vm}/export` gives and `daggerctl vm import` takes.
//!
//! Owns the file's layout, one part after the other: [`VM_FILE_MAGIC`]; the length of the head in
//! eight bytes, big-endian; the head, a [`VmExport`] in JSON; the disk, a qcow2 file that depends
//! on no other; and the BLAKE3 digest of all bytes before it. So whoever has read the file to its
//! end knows whether it is whole.

use dagger_payload::id::{ClusterId, Generation, HostId, VmId};
use dagger_payload::kind::VmCreate;
use serde::{Deserialize, Serialize};

/// How such a file begins; another layout will begin otherwise.
pub const VM_FILE_MAGIC: [u8; 17] = *b"dagger-vm-file 1\n";
/// Bytes of the head.
pub const VM_FILE_HEAD_BYTES_MAX: usize = 256 * 1024;
/// Bytes of the disk.
pub const VM_FILE_DISK_BYTES_MAX: u64 = 256 << 30;
/// Bytes of the digest at the end.
pub const VM_FILE_DIGEST_BYTES: usize = 32;

/// The head: what the VM was, and what of it is not in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmExport {
    /// Where it was.
    pub cluster: ClusterId,
    /// On which host.
    pub host: HostId,
    /// Which VM.
    pub vm: VmId,
    /// In which generation.
    pub generation: Generation,
    /// What would order it again. Its image is the one that it was made from; the disk in the file
    /// has everything of that. A kernel that it boots directly stands here by digest alone.
    pub create: VmCreate,
    /// Bytes of the disk's file.
    pub disk_bytes: u64,
    /// What a guest sees of it, in bytes.
    pub disk_virtual_size_bytes: u64,
    /// What belonged to the VM and is not in the file, in words for people.
    pub left_out: Vec<String>,
}
