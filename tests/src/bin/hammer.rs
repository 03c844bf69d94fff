//! Puts a cluster of ledgers under load and says what they made of it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use dagger_tests::hammer::{self, Demand, Plan};

/// Starts ledgers of its own on loopback, each as a process, offers them payloads through their
/// local sockets and measures when each host has delivered them, after they were made durable
/// there.
///
/// With a rate payloads are sent at fixed times, whatever the ledgers do (open loop), and latency
/// counts from the time at which a payload was meant to be sent. With `max` each host always has
/// `--window` payloads on their way (closed loop). The ledgers must be equal at the end, or the run
/// fails.
///
/// Try: hammer --opaque --rate 10000 --seconds 20
#[derive(Debug, Parser)]
#[command(name = "hammer")]
struct Options {
    /// How many ledgers.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    hosts: u8,
    /// Payloads are ordered and delivered, not judged: what consensus engines are compared by, and
    /// so far the only kind of run.
    #[arg(long, required = true)]
    opaque: bool,
    /// Bytes of one payload, without its signature.
    #[arg(long, default_value_t = 512, value_parser = parse_payload_bytes)]
    payload_bytes: usize,
    /// Payloads a second over all hosts, or `max`.
    #[arg(long, default_value = "max", value_parser = parse_rate)]
    rate: Rate,
    /// With `max`: payloads on their way at each host.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    /// How long to measure.
    #[arg(long, default_value_t = 10.0, value_parser = parse_seconds)]
    seconds: f64,
    /// How long to load before that.
    #[arg(long, default_value_t = 2.0, value_parser = parse_seconds)]
    warm_up_seconds: f64,
    /// How long to measure the idle cluster after it.
    #[arg(long, default_value_t = 3.0, value_parser = parse_seconds)]
    idle_seconds: f64,
    /// Write the figures here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the stores stand during the run; without it, in the directory for temporary files.
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy)]
enum Rate {
    PerSecond(u32),
    Max,
}

fn parse_rate(text: &str) -> Result<Rate, String> {
    match (text, text.parse()) {
        ("max", _) => Ok(Rate::Max),
        (_, Ok(rate @ 1..)) => Ok(Rate::PerSecond(rate)),
        _ => Err("say a number from 1, or `max`".to_owned()),
    }
}

fn parse_payload_bytes(text: &str) -> Result<usize, String> {
    let bytes = text.parse().map_err(|_| "not a number".to_owned())?;
    // A payload carries who sent it and when.
    if (32..=65_536).contains(&bytes) { Ok(bytes) } else { Err("say 32 to 65536".to_owned()) }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("say 0.1 to 3600".to_owned()) }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let plan = Plan {
        hosts: options.hosts,
        payload_bytes: options.payload_bytes,
        demand: match options.rate {
            Rate::PerSecond(rate) => Demand::PerSecond(rate),
            Rate::Max => Demand::Max { window: options.window },
        },
        measured: Duration::from_secs_f64(options.seconds),
        warm_up: Duration::from_secs_f64(options.warm_up_seconds),
        idle: Duration::from_secs_f64(options.idle_seconds),
    };
    let program = std::env::current_exe().context("this program has a file")?;
    let parent = options.directory.clone().unwrap_or_else(std::env::temp_dir);
    let directory = tempfile::Builder::new().prefix("hammer").tempdir_in(parent)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(hammer::run(&plan, &program, directory.path()))?;
    println!("{report}");
    if let Some(path) = &options.json {
        let json = serde_json::to_vec_pretty(&report)?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    // The ledgers under load are this program again: so they are always as new as it is.
    if std::env::args_os().nth(1).is_some_and(|first| first == "ledger") {
        return dagger_ledger::program::main(std::env::args_os().skip(1));
    }
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hammer: {error:#}");
            ExitCode::FAILURE
        }
    }
}
