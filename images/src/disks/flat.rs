//! A VM's disk as a file that depends on no other, to be taken elsewhere.
//!
//! Owns the copy: a qcow2 without a name, which is gone when its last reader is. It is made only
//! while no hypervisor holds the disk: `qemu-img` takes QEMU's own locks. Changes nothing.

use std::fs::{self, File};

use dagger_payload::id::VmId;
use dagger_payload::kind::ImageFormat;

use super::{DiskStore, check_kept};
use crate::error::ImageError;
use crate::files::Partial;
use crate::header::{self, HeaderRefusal};
use crate::limits::FLATTEN_WAIT_MAX;
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
    /// [`ImageError::DiskDiffers`], [`ImageError::Tool`] also while a machine holds the disk,
    /// [`ImageError::ToolTooSlow`], [`ImageError::File`].
    pub fn flatten(&self, vm: VmId, image: &StoredImage) -> Result<FlatDisk, ImageError> {
        let path = self.disk_path(vm);
        check_kept(&path, image)?;
        let copy = Partial::create(&self.directory)?;
        let tool = self.tool.within(FLATTEN_WAIT_MAX);
        let mut command = tool.command();
        command.args(["convert", "-q", "-f", "qcow2", "-O", "qcow2"]).arg(&path).arg(copy.path());
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
}
