//! What a kernel and an initial RAM disk say of themselves, read by us before a hypervisor does.
//!
//! A hypervisor's own process reads a kernel's headers to find out how to start it, and QEMU tries
//! several formats one after the other. So only the two that are meant pass: a bzImage (Linux,
//! `Documentation/arch/x86/boot.rst`) and an ELF file with an entry for PVH (Xen,
//! `docs/misc/pvh.pandoc`). What would be taken for a Multiboot image is refused. An initial RAM
//! disk is parsed by nobody but the guest; its beginning is compared so that a file of another kind
//! is not registered in its place by mistake.
//!
//! Reads single fields at places within the file, and at most [`PROGRAM_HEADERS_MAX`] headers and
//! [`NOTES_BYTES_MAX`] bytes of notes. Called by [`crate::header`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use dagger_payload::limits::{INITRD_BYTES_MAX, KERNEL_BYTES_MAX};

use crate::header::{Geometry, HeaderRefusal};
use crate::limits::{NOTES_BYTES_MAX, PROGRAM_HEADERS_MAX};

/// Where a bzImage says what it is, and since which version of the protocol initial RAM disks have
/// a place of their own.
const BZIMAGE_BOOT_FLAG: (usize, [u8; 2]) = (0x1fe, [0x55, 0xaa]);
const BZIMAGE_MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
const BZIMAGE_VERSION: usize = 0x206;
const BZIMAGE_VERSION_MIN: u16 = 0x0206;
const BZIMAGE_LOAD_FLAGS: usize = 0x211;
/// The kernel proper is loaded high: all that are not forty years old.
const BZIMAGE_LOADED_HIGH: u8 = 1;
/// The least length that has all these fields.
const BZIMAGE_BYTES_MIN: usize = 0x268;

const ELF_MAGIC: &[u8] = b"\x7fELF";
const ELF_LITTLE_ENDIAN: u8 = 1;
const ELF_MACHINE_386: u16 = 3;
const ELF_MACHINE_X86_64: u16 = 62;
const PROGRAM_NOTES: u32 = 4;
/// The note that names a 32-bit entry for PVH.
const NOTE_OWNER: &[u8] = b"Xen\0";
const NOTE_PVH_ENTRY: u32 = 18;

/// Multiboot's magic number, and the part of a file in which it is looked for.
const MULTIBOOT_MAGIC: [u8; 4] = 0x1bad_b002_u32.to_le_bytes();
const MULTIBOOT_WITHIN: usize = 8192;

/// How initial RAM disks begin: an archive, or one that is compressed as Linux can undo it.
const INITRD_BEGINNINGS: [&[u8]; 9] = [
    b"070701",
    b"070702",
    b"\x1f\x8b",
    b"\xfd7zXZ\0",
    b"\x28\xb5\x2f\xfd",
    b"\x02\x21\x4c\x18",
    b"\x5d\0\0",
    b"BZh",
    b"\x89LZO",
];

/// Judges a kernel by its beginning and, if it is an ELF file, by its notes.
///
/// # Errors
/// Why it is refused.
pub(crate) fn judge_kernel(file: &File, beginning: &[u8]) -> Result<Geometry, HeaderRefusal> {
    let bytes = file.metadata()?.len();
    if bytes > KERNEL_BYTES_MAX {
        return Err(HeaderRefusal::Kernel("is larger than 256 MiB"));
    }
    if is_bzimage(beginning) {
        return Ok(Geometry { virtual_size_bytes: bytes });
    }
    let searched = &beginning[..beginning.len().min(MULTIBOOT_WITHIN)];
    if searched.chunks_exact(4).any(|word| word == MULTIBOOT_MAGIC) {
        return Err(HeaderRefusal::Kernel("is a Multiboot image"));
    }
    match Elf::read(beginning) {
        Some(elf) if elf.has_pvh_entry(file, bytes)? => Ok(Geometry { virtual_size_bytes: bytes }),
        Some(_) => Err(HeaderRefusal::Kernel("is an ELF file without an entry for PVH")),
        None => Err(HeaderRefusal::Kernel("is neither a bzImage nor an ELF file for x86")),
    }
}

/// Judges an initial RAM disk by its beginning and its length.
///
/// # Errors
/// Why it is refused.
pub(crate) fn judge_initrd(beginning: &[u8], bytes: u64) -> Result<Geometry, HeaderRefusal> {
    if bytes > INITRD_BYTES_MAX {
        return Err(HeaderRefusal::Initrd("is larger than 1 GiB"));
    }
    match INITRD_BEGINNINGS.iter().any(|magic| beginning.starts_with(magic)) {
        true => Ok(Geometry { virtual_size_bytes: bytes }),
        false => Err(HeaderRefusal::Initrd("begins like no cpio archive, compressed or not")),
    }
}

fn is_bzimage(beginning: &[u8]) -> bool {
    let has = |at: usize, bytes: &[u8]| beginning[at..].starts_with(bytes);
    beginning.len() >= BZIMAGE_BYTES_MIN
        && has(BZIMAGE_BOOT_FLAG.0, &BZIMAGE_BOOT_FLAG.1)
        && has(BZIMAGE_MAGIC.0, BZIMAGE_MAGIC.1)
        && number(beginning, BZIMAGE_VERSION).is_some_and(|version: u16| {
            (BZIMAGE_VERSION_MIN..=BZIMAGE_VERSION_MIN | 0xff).contains(&version)
        })
        && beginning[BZIMAGE_LOAD_FLAGS] & BZIMAGE_LOADED_HIGH != 0
}

/// A little-endian number of the length that its type has.
trait Number: Sized {
    fn read(bytes: &[u8]) -> Option<Self>;
}

macro_rules! numbers {
    ($($number:ty),*) => {
        $(impl Number for $number {
            fn read(bytes: &[u8]) -> Option<Self> {
                let bytes = bytes.get(..size_of::<$number>())?.try_into().ok()?;
                Some(<$number>::from_le_bytes(bytes))
            }
        })*
    };
}

numbers!(u16, u32, u64);

fn number<N: Number>(bytes: &[u8], at: usize) -> Option<N> {
    N::read(bytes.get(at..)?)
}

/// How wide an ELF file's addresses are.
#[derive(Clone, Copy)]
enum Width {
    Four,
    Eight,
}

/// Where an ELF file's program headers stand.
struct Elf {
    width: Width,
    headers_at: u64,
    header_bytes: u16,
    headers: u16,
}

impl Elf {
    fn read(beginning: &[u8]) -> Option<Self> {
        let width = match beginning.get(4)? {
            1 => Width::Four,
            2 => Width::Eight,
            _ => return None,
        };
        let machine: u16 = number(beginning, 18)?;
        let is_ours = beginning.starts_with(ELF_MAGIC)
            && beginning.get(5) == Some(&ELF_LITTLE_ENDIAN)
            && [ELF_MACHINE_386, ELF_MACHINE_X86_64].contains(&machine);
        if !is_ours {
            return None;
        }
        let (headers_at, sizes_at) = match width {
            Width::Four => (number::<u32>(beginning, 28)?.into(), 42),
            Width::Eight => (number::<u64>(beginning, 32)?, 54),
        };
        let (header_bytes, headers) =
            (number(beginning, sizes_at)?, number(beginning, sizes_at + 2)?);
        Some(Self { width, headers_at, header_bytes, headers })
    }

    fn has_pvh_entry(&self, file: &File, bytes: u64) -> Result<bool, HeaderRefusal> {
        if self.headers > PROGRAM_HEADERS_MAX {
            return Err(HeaderRefusal::Kernel("has more program headers than any kernel"));
        }
        let (least, range_at) = match self.width {
            Width::Four => (32, (4, 16)),
            Width::Eight => (56, (8, 32)),
        };
        if self.header_bytes < least {
            return Ok(false);
        }
        for index in 0..u64::from(self.headers) {
            let offset = index * u64::from(self.header_bytes);
            let Some(at) = self.headers_at.checked_add(offset) else { return Ok(false) };
            let Some(header) = read_at(file, bytes, (at, u64::from(least)))? else {
                return Ok(false);
            };
            if number(&header, 0) != Some(PROGRAM_NOTES) {
                continue;
            }
            let field = |at: usize| match self.width {
                Width::Four => number::<u32>(&header, at).map(u64::from),
                Width::Eight => number::<u64>(&header, at),
            };
            let (Some(at), Some(length)) = (field(range_at.0), field(range_at.1)) else {
                return Ok(false);
            };
            if length > NOTES_BYTES_MAX {
                return Err(HeaderRefusal::Kernel("has more notes than any kernel"));
            }
            let notes = read_at(file, bytes, (at, length))?;
            if notes.is_some_and(|notes| names_pvh_entry(&notes)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether one of the notes is the one that names an entry for PVH.
fn names_pvh_entry(mut notes: &[u8]) -> bool {
    let padded = |length: u32| usize::try_from(length).ok()?.checked_next_multiple_of(4);
    let next = |notes: &[u8]| {
        let (owner, value) = (padded(number(notes, 0)?)?, padded(number(notes, 4)?)?);
        let end = 12_usize.checked_add(owner)?.checked_add(value)?;
        let is_it = number(notes, 8) == Some(NOTE_PVH_ENTRY)
            && notes.get(12..12_usize.checked_add(owner)?)? == NOTE_OWNER
            && value >= 4;
        (end <= notes.len()).then_some((is_it, end))
    };
    while let Some((is_it, end)) = next(notes) {
        if is_it {
            return true;
        }
        notes = &notes[end..];
    }
    false
}

/// Bytes of the file; `None` if it does not reach so far. The length is bounded by the caller.
fn read_at(
    file: &File,
    file_bytes: u64,
    (at, length): (u64, u64),
) -> Result<Option<Vec<u8>>, io::Error> {
    if at.checked_add(length).is_none_or(|end| end > file_bytes) {
        return Ok(None);
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, at)?;
    Ok(Some(bytes))
}
