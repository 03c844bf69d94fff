//! The hunt for bugs that are planted in the controller: proof that the simulator of machines finds
//! what it is there to find.
//!
//! Owns how long is searched and in which clusters. Never part of a build without the feature.
//! Called by the `sim-machines` program and by tests.

use std::fmt;

use dagger_controller::planted::{self, Bug};

use super::{Failure, run};
use crate::simulator::Verbosity;

/// Seeds that are tried for each bug.
pub const SEEDS_MAX: u64 = 2_000;
/// Hosts of the clusters in which bugs are sought.
const HOSTS: usize = 2;

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
                write!(formatter, "{bug:<24} {seeds:>5} seeds  {promise:<26} seed {seed}")
            }
            None => write!(formatter, "{bug:<24} {seeds:>5} seeds  NOT FOUND"),
        }
    }
}
