//! Kernels and initial RAM disks, real beginnings and ones that lie.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::os::unix::fs::FileExt;

use dagger_images::header::inspect;
use dagger_images::{DiskStore, Geometry, HeaderRefusal, ImageError, ImageStore};
use dagger_payload::id::{HostId, VmId};
use dagger_payload::kind::ImageFormat;
use proptest::prelude::*;

fn file_of(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn judged(bytes: &[u8], format: ImageFormat) -> Result<Geometry, HeaderRefusal> {
    inspect(&file_of(bytes), format)
}

fn is_kernel(bytes: &[u8]) -> bool {
    match judged(bytes, ImageFormat::Kernel) {
        Ok(Geometry { virtual_size_bytes }) => virtual_size_bytes == bytes.len() as u64,
        Err(refusal) => {
            assert_eq!(refusal.code(), "image_not_kernel");
            false
        }
    }
}

/// The fields by which a bzImage is known, of version 2.15.
fn bzimage() -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    bytes[0x211] = 1;
    bytes
}

const NOTES_AT: usize = 256;

fn note(owner: &[u8], kind: u32, value: &[u8]) -> Vec<u8> {
    let words = [owner.len() as u32, value.len() as u32, kind];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    for part in [owner, value] {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// An ELF file for x86-64 whose second program header leads to these notes.
fn elf(notes: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; NOTES_AT];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[18] = 62;
    bytes[32] = 64;
    (bytes[54], bytes[56]) = (56, 2);
    bytes[64] = 1;
    bytes[120] = 4;
    bytes[128..136].copy_from_slice(&(NOTES_AT as u64).to_le_bytes());
    bytes[152..160].copy_from_slice(&(notes.len() as u64).to_le_bytes());
    bytes.extend_from_slice(notes);
    bytes
}

/// The same with addresses of four bytes.
fn elf_of_32_bits(notes: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; NOTES_AT];
    bytes[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
    bytes[18] = 3;
    bytes[28] = 64;
    (bytes[42], bytes[44]) = (32, 1);
    bytes[64] = 4;
    bytes[68..72].copy_from_slice(&(NOTES_AT as u32).to_le_bytes());
    bytes[80..84].copy_from_slice(&(notes.len() as u32).to_le_bytes());
    bytes.extend_from_slice(notes);
    bytes
}

fn pvh() -> Vec<u8> {
    let build = note(b"GNU\0", 3, &[7; 20]);
    [build, note(b"Xen\0", 18, &0x10_0000_u32.to_le_bytes())].concat()
}

#[test]
fn a_bzimage_and_an_elf_file_with_an_entry_for_pvh_are_kernels() {
    assert!(is_kernel(&bzimage()));
    assert!(is_kernel(&elf(&pvh())) && is_kernel(&elf_of_32_bits(&pvh())));
}

#[test]
fn what_a_hypervisor_would_take_for_something_else_is_no_kernel() {
    let without = note(b"GNU\0", 3, &[7; 20]);
    let other = note(b"Xen\0", 6, b"linux");
    let mut multiboot = elf(&pvh());
    multiboot.extend_from_slice(&0x1bad_b002_u32.to_le_bytes());
    let mut low = bzimage();
    low[0x211] = 0;
    let mut old = bzimage();
    old[0x206] = 0x05;
    let mut arm = elf(&pvh());
    arm[18] = 183;
    let mut outside = elf(&pvh());
    outside[135] = 0xff;
    let mut endless = elf(&pvh());
    endless[57] = 0xff;
    let mut cut = note(b"Xen\0", 18, &[0; 4]);
    cut.truncate(15);
    let disk = [b"QFI\xfb\0\0\0\x03".to_vec(), vec![0; 4096]].concat();
    for bytes in [
        Vec::new(),
        b"\x7fELF".to_vec(),
        vec![0; 8192],
        disk,
        bzimage()[..0x212].to_vec(),
        elf(&without),
        elf(&other),
        elf(&cut),
        multiboot,
        low,
        old,
        arm,
        outside,
        endless,
    ] {
        assert!(!is_kernel(&bytes), "{:?}", &bytes[..bytes.len().min(80)]);
    }
}

#[test]
fn an_initial_ram_disk_begins_as_linux_can_unpack_it() {
    let begins: [&[u8]; 4] = [b"070701", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18"];
    for begin in begins {
        let bytes = [begin, &[0; 64]].concat();
        let geometry = judged(&bytes, ImageFormat::Initrd);
        assert_eq!(geometry, Ok(Geometry { virtual_size_bytes: bytes.len() as u64 }));
    }
    for bytes in [Vec::new(), bzimage(), elf(&pvh()), vec![0; 512]] {
        let refused = judged(&bytes, ImageFormat::Initrd).unwrap_err();
        assert_eq!(refused.code(), "image_not_initrd");
    }
}

#[test]
fn no_disk_is_made_over_a_kernel() {
    let directory = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&directory.path().join("images")).unwrap();
    let kernel = store.import_from(&bzimage()[..], ImageFormat::Kernel, None).unwrap();
    let disks = DiskStore::open(&directory.path().join("disks"), HostId([1; 16])).unwrap();
    let refused = disks.ensure_disk(VmId([2; 16]), &kernel, 1 << 30);
    assert!(matches!(refused, Err(ImageError::NotADisk(digest)) if digest == kernel.digest));
    assert!(!disks.has_disk(VmId([2; 16])).unwrap());
}

proptest! {
    #[test]
    fn no_bytes_stop_the_reader(
        wide in any::<bool>(),
        at in 0_usize..400,
        change in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut bytes = if wide { elf(&pvh()) } else { elf_of_32_bits(&pvh()) };
        let end = bytes.len().min(at + change.len());
        if at < end {
            bytes[at..end].copy_from_slice(&change[..end - at]);
        }
        for format in [ImageFormat::Kernel, ImageFormat::Initrd] {
            if let Ok(geometry) = judged(&bytes, format) {
                prop_assert_eq!(geometry.virtual_size_bytes, bytes.len() as u64);
            }
        }
    }
}
