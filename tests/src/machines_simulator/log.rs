//! The log of a run: a hash over everything that happened, and on request its lines.
//!
//! Owns the hash. Never influences the run. Same seed, same hash: a run that differs from its
//! replay has a source of chance that the seed does not decide.

use crate::simulator::Verbosity;

/// See the module.
pub(super) struct Log {
    hasher: blake3::Hasher,
    verbosity: Verbosity,
    /// How many notes were taken.
    pub(super) notes: u64,
}

impl Log {
    pub(super) fn new(verbosity: Verbosity) -> Self {
        let hasher = blake3::Hasher::new_derive_key("dagger machines simulator v1 log");
        Self { hasher, verbosity, notes: 0 }
    }

    /// Notes that something happened at a host.
    pub(super) fn note(&mut self, now_ms: u64, host: usize, what: &str) {
        self.notes += 1;
        let host_number = u64::try_from(host).expect("hosts are few");
        self.hasher.update(&now_ms.to_be_bytes()).update(&host_number.to_be_bytes());
        self.hasher.update(what.as_bytes()).update(&[0]);
        if self.verbosity == Verbosity::Lines {
            eprintln!("{now_ms:>9} ms  host {host}  {what}");
        }
    }

    /// The hash so far.
    pub(super) fn hash(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}
