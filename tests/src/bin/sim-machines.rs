//! Runs seeds of the simulator of machines, and replays one that failed.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
#[cfg(feature = "planted-bugs")]
use dagger_controller::planted::{self, Bug};
use dagger_tests::machines_simulator::{self, HOSTS, Tally};
use dagger_tests::simulator::Verbosity;

/// Simulates hosts with their controllers under faults and holds them to dagger's promises.
///
/// One seed decides everything: the same seed gives the same log hash. A seed that breaks a promise
/// prints the command that replays it.
#[derive(Parser)]
struct Options {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first_seed: u64,
    /// How many hosts each cluster has (1 to 4); without it, each of them in turn.
    #[arg(long, value_parser = parse_hosts)]
    hosts: Option<usize>,
    /// Print a line for each step, on standard error.
    #[arg(long)]
    log: bool,
    /// Go on after a failure, and count.
    #[arg(long)]
    keep_going: bool,
    /// Print each run's log hash.
    #[arg(long)]
    hashes: bool,
    /// Plant this bug (or each in turn: `all`) and run seeds until it is found.
    #[cfg(feature = "planted-bugs")]
    #[arg(long, value_name = "BUG")]
    planted: Option<String>,
}

/// Hunts for the bugs of this name; fails unless each is found.
#[cfg(feature = "planted-bugs")]
fn hunt(name: &str, first_seed: u64) -> ExitCode {
    let named = |bug: &Bug| name == "all" || format!("{bug:?}") == name;
    let bugs: Vec<Bug> = planted::ALL.into_iter().filter(named).collect();
    let begin = Instant::now();
    let mut found: usize = 0;
    for bug in &bugs {
        let hunt = machines_simulator::hunt::hunt(*bug, first_seed);
        println!("{hunt}");
        found += usize::from(hunt.found.is_some());
    }
    let planted = bugs.len();
    println!("{found} of {planted} planted bugs found, {:.1} s", begin.elapsed().as_secs_f64());
    if planted == 0 {
        println!("there is no bug `{name}`; choose `all` or one of {:?}", planted::ALL);
    }
    ExitCode::from(u8::from(found < planted.max(1)))
}

fn parse_hosts(text: &str) -> Result<usize, String> {
    let hosts = text.parse().map_err(|_| "not a number".to_owned())?;
    if HOSTS.contains(&hosts) { Ok(hosts) } else { Err(format!("choose one of {HOSTS:?}")) }
}

fn main() -> ExitCode {
    let options = Options::parse();
    #[cfg(feature = "planted-bugs")]
    if let Some(name) = &options.planted {
        return hunt(name, options.first_seed);
    }
    let begin = Instant::now();
    let verbosity = if options.log { Verbosity::Lines } else { Verbosity::Quiet };
    let host_counts = options.hosts.map_or(HOSTS.to_vec(), |hosts| vec![hosts]);
    let mut tally = Tally::default();
    let mut failed: u64 = 0;
    for seed in options.first_seed..options.first_seed.saturating_add(options.seeds) {
        for &hosts in &host_counts {
            match machines_simulator::run(seed, hosts, verbosity) {
                Ok(summary) => {
                    if options.hashes {
                        println!("{seed} {hosts} {}", summary.log_hash);
                    }
                    tally.add(hosts, &summary);
                }
                Err(failure) => {
                    println!("{failure}");
                    failed += 1;
                    if !options.keep_going {
                        return ExitCode::FAILURE;
                    }
                }
            }
        }
    }
    print!("{tally}");
    println!("{failed} failed; {:.1} s", begin.elapsed().as_secs_f64());
    let rare = tally.too_rare();
    for rare in &rare {
        println!("too rare: {rare}");
    }
    ExitCode::from(u8::from(failed > 0 || !rare.is_empty()))
}
