//! Maxima of this package. Those that cross packages stand in `dagger_payload::limits`.

use std::time::Duration;

use dagger_payload::limits::VM_DISK_GIB_MAX;

/// An image file, in bytes.
pub const IMAGE_FILE_BYTES_MAX: u64 = 256 << 30;
/// A virtual disk, in bytes.
pub const VIRTUAL_SIZE_BYTES_MAX: u64 = VM_DISK_GIB_MAX << 30;
/// What is read from the beginning of an image file: a qcow2 header with its extensions must end
/// within.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Header extensions of one qcow2 file.
pub const HEADER_EXTENSIONS_MAX: usize = 64;
/// Program headers of a kernel that is an ELF file; Linux has five.
pub const PROGRAM_HEADERS_MAX: u16 = 64;
/// Notes of such a kernel, in bytes; Linux has some hundred.
pub const NOTES_BYTES_MAX: u64 = 64 * 1024;
/// The name of a backing file, in bytes (QEMU's own limit).
pub const BACKING_NAME_BYTES_MAX: usize = 1023;
/// A qcow2 file's first-level table, in bytes (QEMU's own limit).
pub const L1_TABLE_BYTES_MAX: u64 = 32 << 20;
/// A qcow2 file's refcount table, in bytes (QEMU's own limit).
pub const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
/// One piece of a file that is being copied or hashed, in bytes.
pub const COPY_BYTES_MAX: usize = 1 << 20;
/// How long one run of `qemu-img` may take. Making an overlay takes 10 ms.
pub const TOOL_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long copying a whole disk may take.
pub const FLATTEN_WAIT_MAX: Duration = Duration::from_secs(60 * 60);
/// What a copy, or an image that comes from elsewhere, leaves free on its file system at most, for
/// what runs there meanwhile.
pub const RESERVE_BYTES_MAX: u64 = 1 << 30;
/// Of a small file system it leaves one part of so many.
pub const RESERVE_SHARE: u64 = 64;
/// How long a file that an image is fetched into is kept while nothing is added to it, by its own
/// time: it is no more than some bytes that can be had again.
pub const INCOMING_KEPT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// What is kept of a tool's complaint, in bytes.
pub const TOOL_MESSAGE_BYTES_MAX: usize = 4096;
/// Entries that one directory may list.
pub const DIRECTORY_ENTRIES_MAX: usize = 100_000;
/// What one account has in quarantine takes at most one part of so many of the file system, before
/// nothing is made for it any more.
pub const QUARANTINE_SHARE: u64 = 4;
/// Quarantined files of one name.
pub const QUARANTINE_SAME_NAME_MAX: u32 = 10_000;
/// The seed's volume, in bytes: user-data, keys and room to spare.
pub const SEED_BYTES: usize = 1 << 20;
/// Between two looks at a tool that has closed its output and is about to end.
pub const TOOL_LOOK_AGAIN_AFTER: Duration = Duration::from_millis(1);
/// Bytes of a request for a console's file.
pub const CONSOLE_FILE_REQUEST_BYTES_MAX: usize = 256;
/// Bytes of the answer.
pub const CONSOLE_FILE_ANSWER_BYTES_MAX: usize = 4096;
