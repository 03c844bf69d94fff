//! The file that is being filled.
//!
//! Owns the rule that what is kept from an earlier try is hashed again before anything is added to
//! it, and that no byte over the registered size is written. Called by [`crate::fetch`].

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use dagger_images::fetch::{FetchCode, FetchProblem};
use dagger_payload::id::ImageDigest;

use crate::limits::PIECE_BYTES;

/// A file with the digest of what is in it.
#[derive(Debug)]
pub struct Partial {
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
    size_bytes: u64,
}

impl Partial {
    /// Reads and hashes what is kept. A file that is longer than what is wanted is begun anew.
    ///
    /// # Errors
    /// `file_failed`.
    pub fn open(file: File, size_bytes: u64) -> Result<Self, FetchProblem> {
        let mut partial = Self { file, hasher: blake3::Hasher::new(), bytes: 0, size_bytes };
        partial.read_kept().map_err(|error| failed(&error))?;
        Ok(partial)
    }

    fn read_kept(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() > self.size_bytes {
            return self.clear();
        }
        self.file.seek(SeekFrom::Start(0))?;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match self.file.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(length) => {
                    self.hasher.update(&piece[..length]);
                    self.bytes += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hasher.reset();
        self.bytes = 0;
        Ok(())
    }

    /// Begins anew.
    ///
    /// # Errors
    /// `file_failed`.
    pub fn begin_anew(&mut self) -> Result<(), FetchProblem> {
        self.clear().map_err(|error| failed(&error))
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// `too_large`: nothing of them is written then; `file_failed`.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), FetchProblem> {
        if self.bytes + bytes.len() as u64 > self.size_bytes {
            let detail =
                format!("there is more than the {} bytes that it may have", self.size_bytes);
            return Err(FetchProblem::new(FetchCode::TooLarge, detail));
        }
        self.file.write_all(bytes).map_err(|error| failed(&error))?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// How many bytes it holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What they are.
    pub fn digest(&self) -> ImageDigest {
        ImageDigest(*self.hasher.finalize().as_bytes())
    }
}

fn failed(error: &io::Error) -> FetchProblem {
    let code = match dagger_images::is_for_want_of_space(error) {
        true => FetchCode::DiskFull,
        false => FetchCode::FileFailed,
    };
    FetchProblem::new(code, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_counts_and_nothing_over_the_size_is_written() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"one").unwrap();
        let mut partial = Partial::open(file.try_clone().unwrap(), 6).unwrap();
        assert_eq!(partial.bytes(), 3);
        partial.add(b"two").unwrap();
        assert_eq!(partial.digest().0, *blake3::hash(b"onetwo").as_bytes());
        assert_eq!(partial.add(b"!").unwrap_err().code, FetchCode::TooLarge);
        assert_eq!(file.metadata().unwrap().len(), 6);
        assert_eq!(Partial::open(file, 5).unwrap().bytes(), 0);
    }
}
