//! The highest attested commit that this host has acted on, kept across restarts (design R3): what
//! lies below it may be shown again, but nothing may change until the ledger is there again.
//!
//! Owns one small file, replaced as a whole. Called by the daemon at start and by
//! [`crate::link::orders`].

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dagger_payload::event::CommitEnd;
use dagger_payload::id::{CommitIndex, Position, PrefixHash};
use serde::{Deserialize, Serialize};

/// Name of the file in the state directory.
const FILE_NAME: &str = "attested.json";
/// Bytes of the file that are read at most.
const FILE_BYTES_MAX: u64 = 4096;

/// A point of history that was attested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// The commit.
    pub commit: CommitIndex,
    /// The position of its last payload.
    pub position: Position,
    /// The chain there.
    pub prefix_hash: PrefixHash,
}

impl From<&CommitEnd> for Mark {
    fn from(end: &CommitEnd) -> Self {
        Self { commit: end.index, position: end.position, prefix_hash: end.prefix_hash }
    }
}

/// The file that holds the mark.
#[derive(Debug, Clone)]
pub struct MarkFile {
    directory: PathBuf,
}

impl MarkFile {
    /// The file in `state_directory`.
    pub fn new(state_directory: &Path) -> Self {
        Self { directory: state_directory.to_owned() }
    }

    /// The mark; none before the first.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged (`InvalidData`).
    pub fn read(&self) -> io::Result<Option<Mark>> {
        let path = self.directory.join(FILE_NAME);
        let length = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let damaged = |why: String| {
            let message = format!(
                "{} is damaged ({why}); it says up to where this host has acted. If you are sure \
                 that this host's ledger is whole, remove the file",
                path.display()
            );
            io::Error::new(io::ErrorKind::InvalidData, message)
        };
        if length > FILE_BYTES_MAX {
            return Err(damaged("too long".to_owned()));
        }
        let mark = serde_json::from_slice(&fs::read(&path)?);
        mark.map(Some).map_err(|error| damaged(error.to_string()))
    }

    /// Replaces the mark; durable when this returns.
    ///
    /// # Errors
    /// It cannot be written; the old mark still stands.
    pub fn write(&self, mark: &Mark) -> io::Result<()> {
        let path = self.directory.join(FILE_NAME);
        let fresh = self.directory.join(format!("{FILE_NAME}.new"));
        let mut file = fs::File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(mark)?)?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        fs::File::open(&self.directory)?.sync_all()
    }
}
