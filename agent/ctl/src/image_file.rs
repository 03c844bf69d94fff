//! Reads what `image.register` says about a file: its format, its sizes and its digest.
//!
//! Owns reading the first bytes of a qcow2 header (QEMU's `docs/interop/qcow2.txt`) for the virtual
//! size, and nothing more: whether a file is safe to boot is checked by each host itself. Never
//! changes a file. Called by `image register`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use dagger_payload::id::ImageDigest;
use dagger_payload::kind::ImageFormat;

use crate::failure::Failure;
use crate::progress::Progress;
use crate::units::show_bytes;

/// `QFI\xfb`: the first bytes of a qcow2 file.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";
/// Up to and with the field `size`, at bytes 24 to 31, big-endian.
const HEADER_BYTES: usize = 32;
/// How much is read at a time.
const BLOCK_BYTES: usize = 1024 * 1024;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ImageFile {
    /// Its format.
    pub(crate) format: ImageFormat,
    /// Its size, in bytes.
    pub(crate) size_bytes: u64,
    /// What a guest would see, in bytes; of what is no disk, its size.
    pub(crate) virtual_size_bytes: u64,
    /// BLAKE3 of its bytes, as `b3sum` prints it.
    pub(crate) digest: ImageDigest,
}

/// The format as the user names it; a raw file is never told by its bytes, for a guest can write
/// any bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum NamedFormat {
    /// A plain disk image
    Raw,
    /// QEMU's copy-on-write format, without backing file
    Qcow2,
    /// A kernel that a VM boots directly: a bzImage, or a vmlinux with an entry for PVH
    Kernel,
    /// An initial RAM disk for such a kernel
    Initrd,
}

/// Reads and digests a file.
pub(crate) fn read(
    path: &Path,
    format: NamedFormat,
    progress: &Progress,
) -> Result<ImageFile, Failure> {
    let failed = |error: std::io::Error| Failure::file(path, &error);
    let mut file = File::open(path).map_err(failed)?;
    let mut header = Vec::with_capacity(HEADER_BYTES);
    (&mut file).take(HEADER_BYTES as u64).read_to_end(&mut header).map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header);
    let mut size_bytes = header.len() as u64;
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        let count = file.read(&mut block).map_err(failed)?;
        if count == 0 {
            break;
        }
        hasher.update(&block[..count]);
        size_bytes += count as u64;
        progress.working(format!("reading the image: {}", show_bytes(size_bytes)));
    }
    if size_bytes == 0 {
        let what = format!("{} is empty", path.display());
        return Err(Failure::refused("image_malformed", what, "Check that it is the right file."));
    }
    let (format, virtual_size_bytes) = match format {
        NamedFormat::Raw => (ImageFormat::Raw, size_bytes),
        NamedFormat::Qcow2 => (ImageFormat::Qcow2, qcow2_virtual_size(path, &header)?),
        NamedFormat::Kernel => (ImageFormat::Kernel, size_bytes),
        NamedFormat::Initrd => (ImageFormat::Initrd, size_bytes),
    };
    Ok(ImageFile {
        format,
        size_bytes,
        virtual_size_bytes,
        digest: ImageDigest(*hasher.finalize().as_bytes()),
    })
}

fn qcow2_virtual_size(path: &Path, header: &[u8]) -> Result<u64, Failure> {
    let size = header.get(24..32).and_then(|bytes| bytes.try_into().ok());
    match size.map(u64::from_be_bytes) {
        Some(size) if header.starts_with(&QCOW2_MAGIC) && size > 0 => Ok(size),
        _ => Err(Failure::refused(
            "image_malformed",
            format!("{} is no qcow2 file", path.display()),
            "Convert it with `qemu-img convert -O qcow2`, or say --format raw if it is a plain disk image.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), bytes).expect("write");
        file
    }

    #[test]
    fn a_qcow2_header_tells_the_virtual_size_and_the_digest_covers_every_byte() {
        let mut bytes = vec![0; 2 * BLOCK_BYTES + 7];
        bytes[..4].copy_from_slice(&QCOW2_MAGIC);
        bytes[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
        let file = file(&bytes);
        let progress = Progress::new(Format::Json);
        let image = read(file.path(), NamedFormat::Qcow2, &progress).expect("reads");
        assert_eq!(image.virtual_size_bytes, 1 << 30);
        assert_eq!(image.size_bytes, bytes.len() as u64);
        assert_eq!(image.digest.0, *blake3::hash(&bytes).as_bytes());
    }

    #[test]
    fn a_file_that_is_no_qcow2_is_refused_as_one_and_taken_as_raw() {
        let progress = Progress::new(Format::Json);
        for bytes in [&b""[..], b"QFI\xfb", &[0; 64]] {
            let file = file(bytes);
            assert!(read(file.path(), NamedFormat::Qcow2, &progress).is_err());
        }
        for format in [NamedFormat::Raw, NamedFormat::Kernel, NamedFormat::Initrd] {
            let failure = read(file(b"").path(), format, &progress).expect_err("it is empty");
            assert!(failure.to_text().contains("is empty"), "{}", failure.to_text());
        }
        let raw = read(file(&[0; 64]).path(), NamedFormat::Raw, &progress).expect("reads");
        assert_eq!(raw.virtual_size_bytes, 64);
    }
}
