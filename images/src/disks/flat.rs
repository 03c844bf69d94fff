//! A VM's disk as a file that depends on no other, to be taken elsewhere.
//!
//! Owns the copy: a qcow2 without a name, which is gone when its last reader is. It is made only
//! while no hypervisor holds the disk: `qemu-img` takes QEMU's own locks. Changes nothing.

use std::fs::{self, File};

use dagger_payload::id::VmId;
use dagger_payload::kind::ImageFormat;

use super::{DiskStore, chain, check_kept};
use crate::error::ImageError;
use crate::files::Partial;
use crate::header::{self, HeaderRefusal};
use crate::limits::{FLATTEN_WAIT_MAX, IMAGE_FILE_BYTES_MAX};
use crate::room;
use crate::store::StoredImage;

/// A disk without anything below it.
#[derive(Debug)]
pub struct FlatDisk {
    /// Its file, to be read from the beginning.
    pub file: File,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// What a guest sees, in bytes.
    pub virtual_size_bytes: u64,
}

impl DiskStore {
    /// Copies what a guest sees of the VM's disk over `image`, which the store has just verified.
    ///
    /// # Errors
    /// [`ImageError::DiskDiffers`], [`ImageError::CopyTooLarge`] and [`ImageError::NoRoom`] before
    /// anything is written, [`ImageError::Tool`] also while a machine holds the disk,
    /// [`ImageError::ToolTooSlow`], [`ImageError::File`].
    pub fn flatten(&self, vm: VmId, image: &StoredImage) -> Result<FlatDisk, ImageError> {
        let path = self.disk_path(vm);
        check_kept(&path, image)?;
        let chain = chain(&path, image);
        let copy_bytes = self.copy_bytes(&chain)?;
        require_image_size(copy_bytes)?;
        room::require(&self.directory, copy_bytes)?;
        let copy = Partial::create(&self.directory)?;
        let tool = self.tool.within(FLATTEN_WAIT_MAX);
        let mut command = tool.command();
        command.args(["convert", "-q", "-O", "qcow2", &chain]).arg(copy.path());
        tool.run(&mut command)?;
        let failed = |error| ImageError::file("cannot read", copy.path())(error);
        let geometry = header::inspect(copy.file(), ImageFormat::Qcow2);
        let geometry = geometry.map_err(|refusal| match refusal {
            HeaderRefusal::Unreadable(reason) => failed(std::io::Error::other(reason)),
            refusal => refusal.into(),
        })?;
        let file = File::open(copy.path()).map_err(failed)?;
        let file_bytes = file.metadata().map_err(failed)?.len();
        // Without a name nobody has to remember to remove it.
        fs::remove_file(copy.path()).map_err(failed)?;
        Ok(FlatDisk { file, file_bytes, virtual_size_bytes: geometry.virtual_size_bytes })
    }

    /// How large a copy of this disk, with all that lies below it, can become. Neither file's own
    /// size tells: what is compressed in the image is not in the copy.
    fn copy_bytes(&self, chain: &str) -> Result<u64, ImageError> {
        let mut command = self.tool.command();
        command.args(["measure", "--output=json", "-O", "qcow2", chain]);
        let answer = self.tool.ask(command)?;
        serde_json::from_str(&answer).map(|Measured { required }| required).map_err(|error| {
            let message = format!("what it measured does not read: {error}");
            ImageError::Tool { program: "qemu-img".to_owned(), message }
        })
    }
}

/// What `qemu-img measure` says.
#[derive(serde::Deserialize)]
struct Measured {
    required: u64,
}

/// Whether a copy of so many bytes may be an image.
fn require_image_size(bytes: u64) -> Result<(), ImageError> {
    match bytes > IMAGE_FILE_BYTES_MAX {
        true => Err(ImageError::CopyTooLarge { bytes, max_bytes: IMAGE_FILE_BYTES_MAX }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_refused_before_it_is_begun_when_it_could_be_too_large_for_an_image() {
        let code = |bytes| require_image_size(bytes).map_err(|error| error.code());
        assert_eq!(code(IMAGE_FILE_BYTES_MAX), Ok(()));
        assert_eq!(code(IMAGE_FILE_BYTES_MAX + 1), Err("copy_too_large"));
    }
}
