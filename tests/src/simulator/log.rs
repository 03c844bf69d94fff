//! The log of a run: a hash over everything that happened, and on request its lines.
//!
//! Owns the hash. Never influences the run. Called by the world. Same seed, same hash: a run that
//! differs from its replay has a source of chance that the seed does not decide.

use super::schedule::SimulatedTime;

/// Whether lines are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// Only the hash.
    Quiet,
    /// A line for each note, on standard error.
    Lines,
}

/// See the module.
pub(crate) struct Log {
    hasher: blake3::Hasher,
    verbosity: Verbosity,
    /// How many notes were taken.
    pub(crate) notes: u64,
}

impl Log {
    /// An empty log.
    pub(crate) fn new(verbosity: Verbosity) -> Self {
        Self {
            hasher: blake3::Hasher::new_derive_key("dagger simulator v1 log"),
            verbosity,
            notes: 0,
        }
    }

    /// Notes that something happened in a host.
    pub(crate) fn note(&mut self, now: SimulatedTime, host: usize, what: &str, number: u64) {
        self.notes += 1;
        let host_number = u64::try_from(host).expect("hosts are few");
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&now.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&host_number.to_be_bytes());
        bytes[16..].copy_from_slice(&number.to_be_bytes());
        self.hasher.update(&bytes).update(what.as_bytes());
        if self.verbosity == Verbosity::Lines {
            let milliseconds = now.0 as f64 / 1000.0;
            eprintln!("{milliseconds:>12.3} ms  host {host}  {what} {number}");
        }
    }

    /// Adds a digest to the hash.
    pub(crate) fn digest(&mut self, digest: &[u8; 32]) {
        self.hasher.update(digest);
    }

    /// A line that explains, kept out of the hash.
    pub(crate) fn explain(&self, now: SimulatedTime, host: usize, line: impl FnOnce() -> String) {
        if self.verbosity == Verbosity::Lines {
            let milliseconds = now.0 as f64 / 1000.0;
            eprintln!("{milliseconds:>12.3} ms  host {host}  {}", line());
        }
    }

    /// The hash so far.
    pub(crate) fn hash(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}
