//! The hunt for planted bugs: proof that the simulators find what they are there to find.
//!
//! Owns how long is searched. Never part of a build without the feature. Called by the programs
//! `sim` and `sim-machines`, and by tests.

use std::fmt::{self, Debug, Display};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Instant;

use crate::seeds::{Simulator, in_order};
use crate::simulator::Verbosity;

/// Seeds that are tried for each bug.
pub const SEEDS_MAX: u64 = 2_000;

/// A simulator of code in which bugs are planted.
pub trait Hunting: Simulator {
    /// A bug.
    type Bug: Copy + Debug + 'static;

    /// All that it finds.
    const BUGS: &'static [Self::Bug];
    /// The number of hosts of the clusters in which they are sought.
    const BUG_HOSTS: usize;

    /// Turns one bug on, or all off; for the whole process.
    fn plant(bug: Option<Self::Bug>);

    /// Which promise a run broke.
    fn promise(failure: &Self::Failure) -> &'static str;
}

/// What became of the hunt for one bug.
pub struct Hunt<S: Hunting> {
    /// The bug.
    pub bug: S::Bug,
    /// How many seeds were tried.
    pub seeds: u64,
    /// The first seed that failed, and how, if one was found.
    pub found: Option<(u64, S::Failure)>,
}

/// Plants `bug` and runs seeds until one breaks a promise.
pub fn hunt<S: Hunting>(bug: S::Bug, first_seed: u64, jobs: NonZeroUsize) -> Hunt<S> {
    S::plant(Some(bug));
    let (mut seeds, mut found) = (0, None);
    let run = |seed| S::run(seed, S::BUG_HOSTS, Verbosity::Quiet).err();
    in_order(first_seed..first_seed.saturating_add(SEEDS_MAX), jobs, run, |seed, failure| {
        seeds += 1;
        found = failure.map(|failure| (seed, failure));
        if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    S::plant(None);
    Hunt { bug, seeds, found }
}

/// Hunts for the bugs of this name (`all`: each in turn); fails unless each is found.
pub fn hunt_all<S: Hunting>(name: &str, first_seed: u64, jobs: NonZeroUsize) -> ExitCode {
    let named = |bug: &&S::Bug| name == "all" || format!("{bug:?}") == name;
    let bugs: Vec<S::Bug> = S::BUGS.iter().filter(named).copied().collect();
    let begin = Instant::now();
    let mut found: usize = 0;
    for bug in &bugs {
        let hunt = hunt::<S>(*bug, first_seed, jobs);
        println!("{hunt}");
        found += usize::from(hunt.found.is_some());
    }
    let planted = bugs.len();
    println!("{found} of {planted} planted bugs found, {:.1} s", begin.elapsed().as_secs_f64());
    if planted == 0 {
        println!("there is no bug `{name}`; choose `all` or one of {:?}", S::BUGS);
    }
    ExitCode::from(u8::from(found < planted.max(1)))
}

impl<S: Hunting> Display for Hunt<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bug, seeds) = (format!("{:?}", self.bug), self.seeds);
        match &self.found {
            Some((seed, failure)) => {
                let promise = S::promise(failure);
                write!(formatter, "{bug:<30} {seeds:>5} seeds  {promise:<26} seed {seed}")
            }
            None => write!(formatter, "{bug:<30} {seeds:>5} seeds  NOT FOUND"),
        }
    }
}
