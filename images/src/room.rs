//! Whether there is room for what is about to be written.
//!
//! Owns the comparison with what the file system says is free, and the reserve that stays beside
//! it. Holds nothing back: what runs grows meanwhile without asking. Called by the stores before
//! they copy, and while an image comes from elsewhere.

use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::error::ImageError;
use crate::limits::{RESERVE_BYTES_MAX, RESERVE_SHARE};

/// What a file system has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total_bytes: u64,
    /// What may still be written.
    pub free_bytes: u64,
}

impl Space {
    /// That of the file system where `directory` lies.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn of(directory: &Path) -> Result<Self, ImageError> {
        let there = statvfs(directory)
            .map_err(|error| ImageError::file("cannot look at", directory)(error.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(there.fragment_size());
        let (total_bytes, free_bytes) = (bytes(there.blocks()), bytes(there.blocks_available()));
        Ok(Self { total_bytes, free_bytes })
    }

    /// What stays free for what runs there meanwhile.
    fn reserve_bytes(self) -> u64 {
        (self.total_bytes / RESERVE_SHARE).min(RESERVE_BYTES_MAX)
    }

    fn fits(self, bytes: u64, directory: &Path) -> Result<(), ImageError> {
        let (reserve_bytes, free_bytes) = (self.reserve_bytes(), self.free_bytes);
        if free_bytes < bytes.saturating_add(reserve_bytes) {
            let directory = directory.to_owned();
            return Err(ImageError::NoRoom { bytes, reserve_bytes, free_bytes, directory });
        }
        Ok(())
    }
}

/// Whether so many bytes may be written where `directory` lies.
///
/// # Errors
/// [`ImageError::NoRoom`], [`ImageError::File`].
pub(crate) fn require(directory: &Path, bytes: u64) -> Result<(), ImageError> {
    Space::of(directory)?.fits(bytes, directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_leaves_a_reserve_that_is_no_more_than_a_share_of_a_small_disk() {
        let code = |bytes, free_bytes, total_bytes| {
            let space = Space { total_bytes, free_bytes };
            space.fits(bytes, Path::new("/")).map_err(|error| error.code())
        };
        let (large, reserve) = (RESERVE_SHARE * RESERVE_BYTES_MAX, RESERVE_BYTES_MAX);
        for total in [large, 1 << 50] {
            assert_eq!(code(1 << 30, (1 << 30) + reserve, total), Ok(()));
            assert_eq!(code((1 << 30) + 1, (1 << 30) + reserve, total), Err("no_room"));
        }
        assert_eq!(code(10, 10 + (16 << 20) / RESERVE_SHARE, 16 << 20), Ok(()));
        assert_eq!(code(u64::MAX, u64::MAX - 1, 1 << 50), Err("no_room"));
    }
}
