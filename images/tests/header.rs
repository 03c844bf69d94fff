//! Images as the real `qemu-img` makes them, and headers that lie.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use dagger_images::header::{inspect, judge_qcow2, judge_raw, read_overlay, read_volume};
use dagger_images::{Geometry, HeaderRefusal};
use dagger_payload::kind::ImageFormat;
use proptest::prelude::*;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn made(directory: &TempDir, arguments: &[&str]) -> PathBuf {
    let path = directory.path().join("image");
    let text = path.to_str().unwrap();
    let mut all = vec!["create", "-q"];
    all.extend_from_slice(arguments);
    all.extend_from_slice(&[text, "8M"]);
    qemu_img(&all);
    path
}

fn judged(path: &Path, format: ImageFormat) -> Result<Geometry, HeaderRefusal> {
    inspect(&File::open(path).unwrap(), format)
}

#[test]
fn a_volume_of_ours_may_say_that_it_was_not_closed_and_an_image_may_not() {
    let directory = TempDir::new().unwrap();
    let path = made(&directory, &["-f", "qcow2"]);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    // As Cloud Hypervisor marks a disk that it holds, and leaves it when it is killed.
    file.write_all_at(&[1], 79).unwrap();
    assert_eq!(code_of(&path, ImageFormat::Qcow2), "image_unclean");
    assert_eq!(read_volume(&file), Ok(Geometry { virtual_size_bytes: 8 * MIB }));
    // Whoever opens it for writing mends it.
    qemu_img(&["resize", "-q", "-f", "qcow2", path.to_str().unwrap(), "16M"]);
    assert_eq!(judged(&path, ImageFormat::Qcow2), read_volume(&file));
    // What is corrupt is nobody's to mend unseen.
    file.write_all_at(&[2], 79).unwrap();
    assert_eq!(read_volume(&file).unwrap_err().code(), "image_unclean");
}

fn code_of(path: &Path, format: ImageFormat) -> &'static str {
    judged(path, format).unwrap_err().code()
}

#[test]
fn plain_qcow2_of_every_usual_shape_is_accepted() {
    let shapes = [
        "compat=0.10",
        "compat=1.1",
        "compat=1.1,cluster_size=512",
        "compat=1.1,cluster_size=2M",
        "compat=1.1,refcount_bits=64",
        "compat=1.1,compression_type=zstd",
        "compat=1.1,extended_l2=on",
        "compat=1.1,lazy_refcounts=on",
    ];
    for shape in shapes {
        let directory = TempDir::new().unwrap();
        let path = made(&directory, &["-f", "qcow2", "-o", shape]);
        let geometry = judged(&path, ImageFormat::Qcow2);
        assert_eq!(geometry, Ok(Geometry { virtual_size_bytes: 8 * MIB }), "{shape}");
    }
}

/// Unsafe mode (-u) writes the header without opening what it names.
const OVER_PASSWD: [&str; 7] = ["-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/passwd"];

#[test]
fn an_image_with_a_backing_file_is_refused_whether_or_not_its_format_is_told() {
    let directory = TempDir::new().unwrap();
    let path = made(&directory, &OVER_PASSWD);
    assert_eq!(code_of(&path, ImageFormat::Qcow2), "image_has_backing_file");
    // The extension that tells the format, first after the header, becomes an unknown one.
    let mut bytes = fs::read(&path).unwrap();
    assert_eq!(bytes[112..116], 0xe279_2aca_u32.to_be_bytes());
    bytes[112] = 0;
    fs::write(&path, bytes).unwrap();
    assert_eq!(code_of(&path, ImageFormat::Qcow2), "image_has_backing_file");
}

#[test]
fn an_image_that_keeps_its_data_elsewhere_is_refused() {
    let directory = TempDir::new().unwrap();
    let options = format!("data_file={}/data", directory.path().display());
    let path = made(&directory, &["-f", "qcow2", "-o", &options]);
    assert_eq!(code_of(&path, ImageFormat::Qcow2), "image_has_data_file");
}

#[test]
fn an_encrypted_image_is_refused() {
    let directory = TempDir::new().unwrap();
    // Not LUKS: qemu-img measures its own CPU time for that and fails on a busy machine.
    let secret = ["--object", "secret,id=key,data=0123456789abcdef"];
    let options = ["-o", "encrypt.format=aes,encrypt.key-secret=key"];
    let path = made(&directory, &[secret.as_slice(), &["-f", "qcow2"], &options].concat());
    assert_eq!(code_of(&path, ImageFormat::Qcow2), "image_encrypted");
    // The method is the big-endian word at byte 32 (QEMU's docs/interop/qcow2.txt); 2 is LUKS.
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&2_u32.to_be_bytes(), 32).unwrap();
    assert_eq!(code_of(&path, ImageFormat::Qcow2), "image_encrypted");
}

#[test]
fn snapshots_and_bitmaps_are_refused() {
    let directory = TempDir::new().unwrap();
    let path = made(&directory, &["-f", "qcow2"]);
    let text = path.to_str().unwrap();
    qemu_img(&["bitmap", "--add", "-f", "qcow2", text, "changes"]);
    assert_eq!(code_of(&path, ImageFormat::Qcow2), "image_has_extras");
    let directory = TempDir::new().unwrap();
    let path = made(&directory, &["-f", "qcow2"]);
    qemu_img(&["snapshot", "-q", "-c", "before", path.to_str().unwrap()]);
    assert_eq!(code_of(&path, ImageFormat::Qcow2), "image_has_extras");
}

#[test]
fn a_file_is_only_what_it_is_declared_to_be() {
    for format in ["qcow2", "qed", "vmdk", "vhdx", "vpc", "vdi", "parallels"] {
        let directory = TempDir::new().unwrap();
        let path = made(&directory, &["-f", format]);
        assert_eq!(code_of(&path, ImageFormat::Raw), "image_raw_claims_format", "{format}");
    }
    let directory = TempDir::new().unwrap();
    let mut described = b"# Disk\n\n #\r\nversion=1\nRW 8 FLAT \"/etc/hostname\" 0\n".to_vec();
    described.resize(4096, 0);
    for beginning in [0, 6, 7] {
        let path = directory.path().join(format!("described-{beginning}"));
        std::fs::write(&path, &described[beginning..beginning + 3584]).unwrap();
        assert_eq!(code_of(&path, ImageFormat::Raw), "image_raw_claims_format", "{beginning}");
    }
    let fixed = made(&directory, &["-f", "vpc", "-o", "subformat=fixed,force_size=on"]);
    assert_eq!(code_of(&fixed, ImageFormat::Raw), "image_raw_claims_format");
    let directory = TempDir::new().unwrap();
    let raw = made(&directory, &["-f", "raw"]);
    assert_eq!(judged(&raw, ImageFormat::Raw), Ok(Geometry { virtual_size_bytes: 8 * MIB }));
    assert_eq!(code_of(&raw, ImageFormat::Qcow2), "image_not_qcow2");
}

#[test]
fn a_raw_disk_on_which_a_guest_wrote_a_qcow2_header_is_refused() {
    let directory = TempDir::new().unwrap();
    let path = made(&directory, &OVER_PASSWD);
    let mut bytes = fs::read(&path).unwrap();
    bytes.resize(8 * MIB as usize, 0);
    fs::write(&path, bytes).unwrap();
    assert_eq!(code_of(&path, ImageFormat::Raw), "image_raw_claims_format");
}

#[test]
fn an_overlay_tells_what_lies_below_it() {
    let directory = TempDir::new().unwrap();
    let base = made(&directory, &["-f", "raw"]);
    let overlay = directory.path().join("overlay");
    let (base, text) = (base.to_str().unwrap(), overlay.to_str().unwrap());
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, text, "16M"]);
    let read = read_overlay(&File::open(&overlay).unwrap()).unwrap();
    assert_eq!(read.backing_path, base);
    assert_eq!(read.backing_format.as_deref(), Some("raw"));
    assert_eq!(read.virtual_size_bytes, 16 * MIB);
}

fn good_header() -> Vec<u8> {
    let directory = TempDir::new().unwrap();
    let mut bytes = fs::read(made(&directory, &["-f", "qcow2"])).unwrap();
    bytes.truncate(64 * 1024);
    bytes
}

#[test]
fn impossible_numbers_are_refused() {
    let file_bytes = 4 * MIB;
    // Offset in the header, the four bytes written there, the code.
    let lies: [(usize, u32, &str); 15] = [
        (4, 4, "image_version_unknown"),
        (16, 1, "image_has_backing_file"),
        (20, 8, "image_header_invalid"),
        (20, 63, "image_header_invalid"),
        (24, 0x8000_0000, "image_header_invalid"),
        (28, 0, "image_header_invalid"),
        (28, 513, "image_header_invalid"),
        (32, 2, "image_encrypted"),
        (36, u32::MAX, "image_header_invalid"),
        (40, 0x8000_0000, "image_header_invalid"),
        (44, 1, "image_header_invalid"),
        (56, u32::MAX, "image_header_invalid"),
        (76, 1 << 1, "image_unclean"),
        (76, 1 << 7, "image_features_unknown"),
        (100, u32::MAX - 7, "image_header_invalid"),
    ];
    let good = good_header();
    assert!(judge_qcow2(&good, file_bytes).is_ok());
    for (offset, value, code) in lies {
        let mut bytes = good.clone();
        bytes[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
        let refusal = judge_qcow2(&bytes, file_bytes).unwrap_err();
        assert_eq!(refusal.code(), code, "{value:#x} at {offset}: {refusal}");
    }
}

#[test]
fn a_table_beyond_the_end_of_the_file_is_refused() {
    assert_eq!(judge_qcow2(&good_header(), 64 * 1024).unwrap_err().code(), "image_header_invalid");
}

#[test]
fn extensions_without_end_are_refused() {
    let mut bytes = good_header();
    for pair in bytes[112..].chunks_exact_mut(8) {
        pair.copy_from_slice(&[0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0]);
    }
    assert_eq!(judge_qcow2(&bytes, 4 * MIB).unwrap_err().code(), "image_header_invalid");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_changed_header_breaks_the_reader_or_brings_another_file_in(
        changes in prop::collection::vec((0_usize..200, any::<u8>()), 1..6),
        cut in 0_usize..4096,
    ) {
        static GOOD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut bytes = GOOD.get_or_init(good_header).clone();
        for (offset, value) in changes {
            bytes[offset] = value;
        }
        if cut < 256 {
            bytes.truncate(cut);
        }
        if judge_qcow2(&bytes, 4 * MIB).is_ok() {
            prop_assert_eq!(&bytes[8..20], &[0; 12]);
            prop_assert_eq!(bytes[79] & 0b111, 0);
        }
    }

    #[test]
    fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..512), size: u64) {
        let mut claimed = b"QFI\xfb\0\0\0\x03".to_vec();
        claimed.extend_from_slice(&bytes);
        let _ = judge_qcow2(&claimed, size);
        let _ = judge_raw(&bytes, &bytes, size);
    }
}
