//! The hunt for planted bugs: proof that the simulator finds what it is there to find.
//!
//! Owns how long is searched and in which clusters. Never part of a build without the feature.
//! Called by the `sim` program and by tests.

use std::fmt;

use dagger_ledger_core::planted::{self, Bug};

use super::log::Verbosity;
use super::{Failure, run};

/// Seeds that are tried for each bug.
pub const SEEDS_MAX: u64 = 2_000;
/// The cluster in which bugs are sought: the smallest that bears a liar.
const HOSTS: usize = 4;

/// What became of the hunt for one bug.
pub struct Hunt {
    /// The bug.
    pub bug: Bug,
    /// How many seeds were tried.
    pub seeds: u64,
    /// The first failure, if one was found.
    pub found: Option<Failure>,
}

/// Plants `bug` and runs seeds until one breaks a promise.
pub fn hunt(bug: Bug, first_seed: u64) -> Hunt {
    planted::plant(Some(bug));
    let mut seeds = 0;
    let mut found = None;
    while found.is_none() && seeds < SEEDS_MAX {
        found = run(first_seed + seeds, HOSTS, Verbosity::Quiet).err();
        seeds += 1;
    }
    planted::plant(None);
    Hunt { bug, seeds, found }
}

impl fmt::Display for Hunt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bug, seeds) = (format!("{:?}", self.bug), self.seeds);
        match &self.found {
            Some(failure) => {
                let (promise, seed) = (failure.broken.promise, failure.seed);
                write!(formatter, "{bug:<30} {seeds:>5} seeds  {promise:<22} seed {seed}")
            }
            None => write!(formatter, "{bug:<30} {seeds:>5} seeds  NOT FOUND"),
        }
    }
}
