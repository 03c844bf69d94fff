//! Runs seeds of the simulator of machines, and replays one that failed.

use std::process::ExitCode;

use clap::Parser;
use dagger_tests::machines_simulator::Machines;
use dagger_tests::seeds::{Seeds, parse_hosts};

/// Simulates hosts with their controllers under faults and holds them to dagger's promises.
///
/// One seed decides everything: the same seed gives the same log hash. A seed that breaks a promise
/// prints the command that replays it.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    seeds: Seeds,
    /// How many hosts each cluster has (1 to 4); without it, each of them in turn.
    #[arg(long, value_parser = parse_hosts::<Machines>)]
    hosts: Option<usize>,
    /// Plant this bug (or each in turn: `all`) and run seeds until it is found.
    #[cfg(feature = "planted-bugs")]
    #[arg(long, value_name = "BUG")]
    planted: Option<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    #[cfg(feature = "planted-bugs")]
    if let Some(name) = &options.planted {
        let (first_seed, jobs) = (options.seeds.first_seed, options.seeds.jobs());
        return dagger_tests::hunt::hunt_all::<Machines>(name, first_seed, jobs);
    }
    options.seeds.run::<Machines>(options.hosts)
}
