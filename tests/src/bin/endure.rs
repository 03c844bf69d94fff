//! Hurts clusters of real ledgers and says what they made of it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use dagger_tests::endure::{self, Storm, outages, schedule::Kind};
use serde::Serialize;

/// Starts ledgers of its own, each as a process, submits payloads through their local sockets, and
/// hurts them meanwhile.
#[derive(Debug, Parser)]
#[command(name = "endure")]
struct Options {
    #[command(subcommand)]
    run: Run,
    /// Write the figures here, as JSON.
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
    /// Where the stores stand during the run; without it, in the directory for temporary files.
    #[arg(long, value_name = "DIRECTORY", global = true)]
    directory: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Run {
    /// Kill, pause, cut and heal at random under load; all ledgers must be equal at the end.
    ///
    /// Cuts need root: each host then gets a network namespace, joined to the others by a switch.
    /// Fails when something that was acknowledged is lost, when two ledgers differ in a byte of
    /// their history, when a host has signed two events for one round, or when fewer faults took
    /// effect than were asked for.
    ///
    /// Try: endure storm --kinds kill,pause --seconds 20 --faults 20
    Storm {
        /// How many ledgers.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=8))]
        hosts: u8,
        /// Which faults, with commas between them; all without this.
        #[arg(long, value_delimiter = ',')]
        kinds: Vec<Kind>,
        /// How long.
        #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        seconds: u64,
        /// How many faults.
        #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..))]
        faults: u32,
        /// Payloads a second at each host.
        #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        per_second: u32,
        /// Decides which fault happens when; without it the time does.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Measure what users of the others notice when one of four hosts hangs, dies, or comes back.
    ///
    /// Fails when one paused host makes the slowest of a hundred payloads at the others more than
    /// twice as slow (its first second, and the noise of the same run, left out), when one killed
    /// host silences them for more than 500 ms, or when they do not go on within 3 s after the
    /// second of two dead hosts was started.
    Outages {
        /// Payloads a second at all hosts together.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(4..=100_000))]
        per_second: u32,
        /// How long each state is measured.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..=3600))]
        seconds: u64,
    },
}

fn write<T: Serialize>(report: &T, json: Option<&Path>) -> anyhow::Result<()> {
    let Some(path) = json else {
        return Ok(());
    };
    let bytes = serde_json::to_vec_pretty(report)?;
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn seed_of_now() -> anyhow::Result<u64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(now.as_secs())
}

fn run(options: Options) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("this program has a file")?;
    let parent = options.directory.unwrap_or_else(std::env::temp_dir);
    let directory = tempfile::Builder::new().prefix("endure").tempdir_in(parent)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let json = options.json.as_deref();
    match options.run {
        Run::Storm { hosts, mut kinds, seconds, faults, per_second, seed } => {
            if kinds.is_empty() {
                let all: &[Kind] = if hosts == 1 { &Kind::OF_PROCESSES } else { &Kind::ALL };
                kinds = all.to_vec();
            }
            let seed = seed.map_or_else(seed_of_now, Ok)?;
            let span = Duration::from_secs(seconds);
            let storm = Storm { hosts, kinds, seed, faults, span, per_second };
            eprintln!("seed {seed}");
            let survived = runtime.block_on(endure::storm(&storm, &program, directory.path()))?;
            println!("{survived}");
            write(&survived, json)
        }
        Run::Outages { per_second, seconds } => {
            let span = Duration::from_secs(seconds);
            let measuring = outages::measure(per_second, span, &program, directory.path());
            let measured = runtime.block_on(measuring)?;
            println!("{measured}");
            write(&measured, json)?;
            let missed = measured.missed();
            ensure!(missed.is_empty(), "{}", missed.join("; "));
            Ok(())
        }
    }
}

fn main() -> ExitCode {
    // The ledgers are this program again: so they are always as new as it is.
    if std::env::args_os().nth(1).is_some_and(|first| first == "ledger") {
        return dagger_ledger::program::main(std::env::args_os().skip(1));
    }
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("endure: {error:#}");
            ExitCode::FAILURE
        }
    }
}
