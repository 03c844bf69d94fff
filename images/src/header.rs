//! What an image file says of itself, read by us before any tool opens it.
//!
//! A qcow2 header can name other files of the host (a backing file, a data file); whoever opens
//! such an image reads them on the image's behalf. So only plain images pass. And a tool that
//! guesses formats takes a raw disk for qcow2 as soon as its guest writes such a header at its
//! beginning; so a format is declared, and bytes that claim another are refused. Source: QEMU's
//! `docs/interop/qcow2.txt`.
//!
//! Reads at most [`HEADER_BYTES_MAX`] bytes from the beginning and 512 from the end; allocates
//! nothing by what it reads. Called by [`crate::store`] and [`crate::disks`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use dagger_payload::kind::ImageFormat;

use crate::boot_files::{judge_initrd, judge_kernel};
use crate::limits::{
    BACKING_NAME_BYTES_MAX, HEADER_BYTES_MAX, HEADER_EXTENSIONS_MAX, L1_TABLE_BYTES_MAX,
    REFCOUNT_TABLE_BYTES_MAX, VIRTUAL_SIZE_BYTES_MAX,
};

const SECTOR_BYTES: u64 = 512;
const QCOW_MAGIC: &[u8] = b"QFI\xfb";
/// Header bytes of version 2, and the least of version 3.
const HEADER_LENGTH_V2: u32 = 72;
const HEADER_LENGTH_V3_MIN: u32 = 104;
const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;

/// Beginnings by which other formats are known; a raw disk may not begin so.
const FOREIGN_BEGINNINGS: [(usize, &[u8], &str); 16] = [
    (0, QCOW_MAGIC, "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vhd"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
    (0, b"#!/bin/sh\n#V2.0 Format", "cloop"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"\x1f\x8b\x08", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
];
/// The same for the last sector.
const FOREIGN_ENDS: [(&[u8], &str); 2] = [(b"conectix", "vhd"), (b"koly", "dmg")];

/// What a good image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the disk that a guest sees, in bytes; of what is no disk, the size of the file.
    pub virtual_size_bytes: u64,
}

/// Why an image is nothing that we let near a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderRefusal {
    /// It could not be read. Not a judgement.
    #[error("the image's header cannot be read: {0}")]
    Unreadable(String),
    /// Declared qcow2, but its bytes are not.
    #[error("the image is declared qcow2 but is none; declare its format as it is")]
    NotQcow2,
    /// Declared raw, but its bytes claim another format.
    #[error("the image is declared raw but claims to be {0}; declare its format as it is")]
    RawClaimsFormat(&'static str),
    /// Declared a kernel, but it is none that a machine boots directly.
    #[error(
        "the image is declared a kernel but {0}; name a bzImage (`/boot/vmlinuz-...`), or a \
         `vmlinux` with an entry for PVH"
    )]
    Kernel(&'static str),
    /// Declared an initial RAM disk, but it is none.
    #[error("the image is declared an initial RAM disk but {0}; declare its format as it is")]
    Initrd(&'static str),
    /// A version that we do not know.
    #[error("qcow2 version {0} is not accepted; convert the image to version 3 (compat=1.1)")]
    Version(u32),
    /// It names another file below itself.
    #[error("the image has a backing file; flatten it with `qemu-img convert`")]
    BackingFile,
    /// It names another file that holds its data.
    #[error("the image keeps its data in another file; flatten it with `qemu-img convert`")]
    DataFile,
    /// It is encrypted.
    #[error("the image is encrypted; encrypted images are not accepted")]
    Encrypted,
    /// It has internal snapshots or bitmaps, which nobody needs in an image.
    #[error("the image has {0}; make a clean one with `qemu-img convert`")]
    Extras(&'static str),
    /// It was not closed, or says that it is damaged.
    #[error("the image says that it is {0}; repair it with `qemu-img check -r all`")]
    Unclean(&'static str),
    /// It needs a feature that we do not know.
    #[error("the image needs unknown qcow2 features ({0:#x})")]
    UnknownFeatures(u64),
    /// A number in it is impossible or over a maximum.
    #[error("the image's header is invalid: {0}")]
    Invalid(&'static str),
}

impl HeaderRefusal {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "image_unreadable",
            Self::NotQcow2 => "image_not_qcow2",
            Self::RawClaimsFormat(_) => "image_raw_claims_format",
            Self::Kernel(_) => "image_not_kernel",
            Self::Initrd(_) => "image_not_initrd",
            Self::Version(_) => "image_version_unknown",
            Self::BackingFile => "image_has_backing_file",
            Self::DataFile => "image_has_data_file",
            Self::Encrypted => "image_encrypted",
            Self::Extras(_) => "image_has_extras",
            Self::Unclean(_) => "image_unclean",
            Self::UnknownFeatures(_) => "image_features_unknown",
            Self::Invalid(_) => "image_header_invalid",
        }
    }
}

impl From<io::Error> for HeaderRefusal {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// Judges an image file by its declared format.
///
/// # Errors
/// Why it is refused.
pub fn inspect(file: &File, declared: ImageFormat) -> Result<Geometry, HeaderRefusal> {
    let file_bytes = file.metadata()?.len();
    let beginning = read_beginning(file)?;
    match declared {
        ImageFormat::Qcow2 => judge_qcow2(&beginning, file_bytes),
        ImageFormat::Raw => {
            let mut end = [0; SECTOR_BYTES as usize];
            if file_bytes >= SECTOR_BYTES {
                file.read_exact_at(&mut end, file_bytes - SECTOR_BYTES)?;
            }
            judge_raw(&beginning, &end, file_bytes)
        }
        ImageFormat::Kernel => judge_kernel(file, &beginning),
        ImageFormat::Initrd => judge_initrd(&beginning, file_bytes),
    }
}

/// At most [`HEADER_BYTES_MAX`] bytes from the beginning of a file.
pub(crate) fn read_beginning(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER_BYTES_MAX];
    let mut length = 0;
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Judges a raw image by its first bytes, its last sector and its length.
///
/// # Errors
/// Why it is refused.
pub fn judge_raw(beginning: &[u8], end: &[u8], bytes: u64) -> Result<Geometry, HeaderRefusal> {
    for (offset, magic, format) in FOREIGN_BEGINNINGS {
        if beginning.get(offset..).is_some_and(|rest| rest.starts_with(magic)) {
            return Err(HeaderRefusal::RawClaimsFormat(format));
        }
    }
    if is_vmdk_text(beginning) {
        return Err(HeaderRefusal::RawClaimsFormat("vmdk"));
    }
    for (magic, format) in FOREIGN_ENDS {
        if end.starts_with(magic) {
            return Err(HeaderRefusal::RawClaimsFormat(format));
        }
    }
    checked_virtual_size(bytes)
}

/// Whether a tool that guesses takes this for the text that describes a VMDK, which names other
/// files: comments and blank lines, then a version. Source: `vmdk_probe` in QEMU's `block/vmdk.c`.
fn is_vmdk_text(mut beginning: &[u8]) -> bool {
    loop {
        beginning = beginning.trim_ascii_start();
        match beginning.iter().position(|byte| *byte == b'\n') {
            Some(end) if beginning.starts_with(b"#") => beginning = &beginning[end..],
            _ => return beginning.starts_with(b"version="),
        }
    }
}

fn checked_virtual_size(bytes: u64) -> Result<Geometry, HeaderRefusal> {
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(HeaderRefusal::Invalid("its size is zero or no multiple of 512 bytes"));
    }
    if bytes > VIRTUAL_SIZE_BYTES_MAX {
        return Err(HeaderRefusal::Invalid("its virtual size is over 64 TiB"));
    }
    Ok(Geometry { virtual_size_bytes: bytes })
}

/// The fields of a header; those that version 2 lacks have that version's meaning.
#[derive(Debug)]
struct Header<'a> {
    bytes: &'a [u8],
    version: u32,
    backing_name: (u64, u32),
    cluster_bits: u32,
    virtual_size_bytes: u64,
    encryption: u32,
    l1_entries: u32,
    l1_offset: u64,
    refcount_table_offset: u64,
    refcount_table_clusters: u32,
    snapshots: u32,
    incompatible: u64,
    refcount_order: u32,
    length: u32,
    compression: u8,
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<u32, HeaderRefusal> {
    let field = offset.checked_add(4).and_then(|end| bytes.get(offset..end));
    let field = field.and_then(|field| field.try_into().ok());
    field.map(u32::from_be_bytes).ok_or(HeaderRefusal::Invalid("it ends too early"))
}

fn u64_at(bytes: &[u8], offset: usize) -> Result<u64, HeaderRefusal> {
    let high = u32_at(bytes, offset)?;
    let low = u32_at(bytes, offset + 4)?;
    Ok(u64::from(high) << 32 | u64::from(low))
}

impl<'a> Header<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, HeaderRefusal> {
        if !bytes.starts_with(QCOW_MAGIC) {
            return Err(HeaderRefusal::NotQcow2);
        }
        let version = u32_at(bytes, 4)?;
        let mut header = Self {
            bytes,
            version,
            backing_name: (u64_at(bytes, 8)?, u32_at(bytes, 16)?),
            cluster_bits: u32_at(bytes, 20)?,
            virtual_size_bytes: u64_at(bytes, 24)?,
            encryption: u32_at(bytes, 32)?,
            l1_entries: u32_at(bytes, 36)?,
            l1_offset: u64_at(bytes, 40)?,
            refcount_table_offset: u64_at(bytes, 48)?,
            refcount_table_clusters: u32_at(bytes, 56)?,
            snapshots: u32_at(bytes, 60)?,
            incompatible: 0,
            refcount_order: 4,
            length: HEADER_LENGTH_V2,
            compression: 0,
        };
        match version {
            2 => {}
            3 => {
                header.incompatible = u64_at(bytes, 72)?;
                header.refcount_order = u32_at(bytes, 96)?;
                header.length = u32_at(bytes, 100)?;
                if header.length > HEADER_LENGTH_V3_MIN {
                    header.compression = (u32_at(bytes, 104)? >> 24) as u8;
                }
            }
            other => return Err(HeaderRefusal::Version(other)),
        }
        Ok(header)
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Features, in the order in which a reader would want to hear of them.
    fn check_features(&self) -> Result<(), HeaderRefusal> {
        if self.incompatible & INCOMPATIBLE_DATA_FILE != 0 {
            return Err(HeaderRefusal::DataFile);
        }
        if self.encryption != 0 {
            return Err(HeaderRefusal::Encrypted);
        }
        if self.incompatible & INCOMPATIBLE_CORRUPT != 0 {
            return Err(HeaderRefusal::Unclean("corrupt"));
        }
        if self.incompatible & INCOMPATIBLE_DIRTY != 0 {
            return Err(HeaderRefusal::Unclean("still in use"));
        }
        let known = INCOMPATIBLE_COMPRESSION | INCOMPATIBLE_EXTENDED_L2;
        match self.incompatible & !known {
            0 => {}
            unknown => return Err(HeaderRefusal::UnknownFeatures(unknown)),
        }
        // 0 is zlib, 1 is zstd; the feature bit stands exactly where it is not zlib.
        let says_other = self.incompatible & INCOMPATIBLE_COMPRESSION != 0;
        if self.compression > 1 || (self.compression != 0) != says_other {
            return Err(HeaderRefusal::Invalid("its compression type is unknown"));
        }
        if self.snapshots != 0 {
            return Err(HeaderRefusal::Extras("internal snapshots"));
        }
        Ok(())
    }

    fn check_sizes(&self, file_bytes: u64) -> Result<(), HeaderRefusal> {
        let invalid = |condition: bool, reason| {
            if condition { Err(HeaderRefusal::Invalid(reason)) } else { Ok(()) }
        };
        invalid(!(9..=21).contains(&self.cluster_bits), "its cluster size is not 512 B to 2 MiB")?;
        invalid(self.refcount_order > 6, "its refcounts are wider than 64 bits")?;
        let length = u64::from(self.length);
        let too_short = self.version == 3 && self.length < HEADER_LENGTH_V3_MIN;
        invalid(too_short || !length.is_multiple_of(8), "its header length is impossible")?;
        invalid(length > self.cluster_bytes(), "its header is longer than a cluster")?;
        checked_virtual_size(self.virtual_size_bytes)?;

        let entry_bytes = if self.incompatible & INCOMPATIBLE_EXTENDED_L2 == 0 { 8 } else { 16 };
        let bytes_per_table = self.cluster_bytes() / entry_bytes * self.cluster_bytes();
        let l1_bytes = u64::from(self.l1_entries) * 8;
        let l1_needed = self.virtual_size_bytes.div_ceil(bytes_per_table);
        invalid(l1_bytes > L1_TABLE_BYTES_MAX, "its first-level table is over 32 MiB")?;
        invalid(u64::from(self.l1_entries) < l1_needed, "its first-level table is too short")?;
        self.check_table(self.l1_offset, l1_bytes, file_bytes)?;
        let refcount_bytes = u64::from(self.refcount_table_clusters) * self.cluster_bytes();
        invalid(refcount_bytes == 0, "it has no refcount table")?;
        invalid(refcount_bytes > REFCOUNT_TABLE_BYTES_MAX, "its refcount table is over 8 MiB")?;
        self.check_table(self.refcount_table_offset, refcount_bytes, file_bytes)
    }

    /// A table begins on a cluster, not in the header's, and lies within the file.
    fn check_table(&self, offset: u64, bytes: u64, file_bytes: u64) -> Result<(), HeaderRefusal> {
        let aligned = offset.is_multiple_of(self.cluster_bytes()) && offset != 0;
        let within = offset.checked_add(bytes).is_some_and(|end| end <= file_bytes);
        if aligned && within {
            Ok(())
        } else {
            Err(HeaderRefusal::Invalid("a table of it lies outside the file or off a cluster"))
        }
    }

    /// Walks the header extensions; each is handed to `judge` with its type and bytes.
    fn each_extension(
        &self,
        mut judge: impl FnMut(u32, &[u8]) -> Result<(), HeaderRefusal>,
    ) -> Result<(), HeaderRefusal> {
        let room =
            self.bytes.len().min(usize::try_from(self.cluster_bytes()).unwrap_or(usize::MAX));
        let area = &self.bytes[..room];
        let mut offset = self.length as usize;
        for _ in 0..HEADER_EXTENSIONS_MAX {
            let kind = u32_at(area, offset)?;
            if kind == EXTENSION_END {
                return Ok(());
            }
            let length = u32_at(area, offset + 4)? as usize;
            let begin = offset + 8;
            let content = begin.checked_add(length).and_then(|end| area.get(begin..end));
            judge(kind, content.ok_or(HeaderRefusal::Invalid("an extension of it is too long"))?)?;
            offset = begin + length.next_multiple_of(8);
        }
        Err(HeaderRefusal::Invalid("it has too many extensions"))
    }
}

/// Judges a qcow2 image by its first bytes and the file's length.
///
/// # Errors
/// Why it is refused.
pub fn judge_qcow2(beginning: &[u8], file_bytes: u64) -> Result<Geometry, HeaderRefusal> {
    judge_plain(&Header::read(beginning)?, file_bytes)
}

/// Reads the header of one of our own volumes. A hypervisor that holds it, or that was killed while
/// it did, may have marked it as not closed: Cloud Hypervisor does so always, and whoever opens
/// such a disk for writing mends it first.
///
/// # Errors
/// Why it is none of ours.
pub fn read_volume(file: &File) -> Result<Geometry, HeaderRefusal> {
    let file_bytes = file.metadata()?.len();
    let beginning = read_beginning(file)?;
    let mut header = Header::read(&beginning)?;
    header.incompatible &= !INCOMPATIBLE_DIRTY;
    judge_plain(&header, file_bytes)
}

/// A disk that names no other file and has nothing besides what a guest sees.
fn judge_plain(header: &Header<'_>, file_bytes: u64) -> Result<Geometry, HeaderRefusal> {
    if header.backing_name != (0, 0) {
        return Err(HeaderRefusal::BackingFile);
    }
    header.check_features()?;
    header.check_sizes(file_bytes)?;
    header.each_extension(|kind, _| match kind {
        EXTENSION_BACKING_FORMAT => Err(HeaderRefusal::BackingFile),
        EXTENSION_DATA_FILE => Err(HeaderRefusal::DataFile),
        EXTENSION_ENCRYPTION => Err(HeaderRefusal::Encrypted),
        EXTENSION_BITMAPS => Err(HeaderRefusal::Extras("bitmaps")),
        // The format lets a reader pass over what it does not know here.
        _ => Ok(()),
    })?;
    Ok(Geometry { virtual_size_bytes: header.virtual_size_bytes })
}

/// What one of our own overlays says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Size of the disk, in bytes.
    pub virtual_size_bytes: u64,
    /// The file below it.
    pub backing_path: String,
    /// The format in which that file is opened; without it a tool would guess.
    pub backing_format: Option<String>,
}

/// Reads the header of an overlay. A guest writes into its disk's clusters, never into this header.
///
/// # Errors
/// Why it is none of ours.
pub fn read_overlay(file: &File) -> Result<Overlay, HeaderRefusal> {
    let file_bytes = file.metadata()?.len();
    let beginning = read_beginning(file)?;
    let mut header = Header::read(&beginning)?;
    // A disk that is in use, or was when the power went, may say so.
    header.incompatible &= !INCOMPATIBLE_DIRTY;
    header.check_features()?;
    header.check_sizes(file_bytes)?;
    let mut backing_format = None;
    header.each_extension(|kind, content| match kind {
        EXTENSION_BACKING_FORMAT => {
            backing_format = Some(String::from_utf8_lossy(content).into_owned());
            Ok(())
        }
        EXTENSION_DATA_FILE => Err(HeaderRefusal::DataFile),
        EXTENSION_ENCRYPTION => Err(HeaderRefusal::Encrypted),
        _ => Ok(()),
    })?;
    let (offset, length) = header.backing_name;
    if length as usize > BACKING_NAME_BYTES_MAX {
        return Err(HeaderRefusal::Invalid("its backing file's name is too long"));
    }
    let begin = usize::try_from(offset).unwrap_or(usize::MAX);
    let name = begin.checked_add(length as usize).and_then(|end| beginning.get(begin..end));
    let name = name.ok_or(HeaderRefusal::Invalid("its backing file's name lies outside"))?;
    Ok(Overlay {
        virtual_size_bytes: header.virtual_size_bytes,
        backing_path: String::from_utf8_lossy(name).into_owned(),
        backing_format,
    })
}
