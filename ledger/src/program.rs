//! The program around the daemon: arguments, configuration, logging, exit code.
//!
//! Owns what a process has once, and what happens before and after the daemon's life: the store is
//! read in a child process, which is this program again. Called by `main`, and by the load
//! generator, whose ledgers are processes of its own program.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::configuration::{Configuration, ConfigurationError, Prepared};
use crate::exit::{Exit, in_words};
use crate::mend::{self, Doubt};
use crate::store::StoreError;
use crate::store::scan::{self, Depth};

/// Gossips signed events with the other operators' ledgers, agrees with them on one order, and
/// keeps everything.
///
/// Exit codes: 0 stopped as asked, 2 wrong usage, 64 configuration, key or genesis refused, 65
/// state broken (do not restart: read the last message), 66 store damaged (start again: it is put
/// aside and recovered from the other hosts), 70 internal defect.
///
/// Signals: TERM and INT stop; HUP says that the operator has looked at this host's clock and that
/// it is right. A ledger whose clock jumped by more than an hour, or is that far from its peers',
/// makes no events until then.
///
/// Disk space: the configuration's `[retention] event_bodies_hours` says how long the bodies of
/// events are kept (for ever when it is not set); headers, commits and releases always stay.
#[derive(Debug, Parser)]
#[command(name = "dagger-ledger", version)]
struct Arguments {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE", default_value = "/etc/dagger/ledger.toml")]
    configuration: PathBuf,
    /// Only check configuration, genesis and key, say what they are, and exit.
    #[arg(long)]
    check: bool,
    /// Only read the store of a stopped ledger, check its records, and exit: 0 whole, 66 damaged.
    #[arg(long, value_name = "DEPTH", conflicts_with = "check")]
    scan: Option<Depth>,
    /// Only state that the store of this stopped ledger, whose cluster has no other host, is the
    /// newest that ever was, so that its lost witness is written anew, and exit. Never do so with
    /// an old copy: the host would sign old rounds again.
    #[arg(long, conflicts_with_all = ["check", "scan"])]
    trust_store: bool,
}

fn prepare(arguments: &Arguments) -> Result<(Prepared, EnvFilter), String> {
    let in_words = |error: ConfigurationError| in_words(&error);
    let configuration = Configuration::read(&arguments.configuration).map_err(in_words)?;
    let filter = EnvFilter::try_new(&configuration.log)
        .map_err(|error| format!("`log` is no filter of tracing (try \"info\"): {error}"))?;
    let prepared = configuration.prepare().map_err(in_words)?;
    Ok((prepared, filter))
}

/// To the journal where there is one, else to stderr.
fn start_logging(filter: EnvFilter) {
    let registry = tracing_subscriber::registry().with(filter);
    let journal = std::env::var_os("JOURNAL_STREAM")
        .and_then(|_| tracing_journald::layer().ok())
        .map(|layer| layer.with_syslog_identifier("dagger-ledger".to_owned()));
    let plain = journal
        .is_none()
        .then(|| tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false));
    registry.with(journal).with(plain).init();
}

/// A defect in any thread ends the whole daemon: what it would have done next is unknown, and
/// nothing unwritten was sent.
fn stop_at_panics() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("stopped by a defect of this program: {panic}");
        std::process::exit(Exit::Internal as i32);
    }));
}

/// This program again, with the same arguments, told to scan.
fn scanner() -> Result<Command, mend::MendError> {
    let program = std::env::current_exe()
        .map_err(|cause| mend::MendError::Io { doing: "find this program's file", cause })?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).arg("--scan");
    Ok(command)
}

fn scan(prepared: &Prepared, depth: Depth) -> Exit {
    let configuration = &prepared.configuration;
    let directory = mend::store_directory(&configuration.state_directory);
    match scan::scan(&directory, configuration.map_gib << 30, depth) {
        Ok(count) => {
            println!("ok: {count} records were read and are whole");
            Exit::Ok
        }
        Err(error) => {
            eprintln!("{}", in_words(&error));
            match error {
                StoreError::Damaged { .. }
                | StoreError::Lost { .. }
                | StoreError::Page { .. }
                | StoreError::Failed { .. } => Exit::Damaged,
                StoreError::OpenAlready(_) | StoreError::Full(_) => Exit::Configuration,
            }
        }
    }
}

fn trust_store(prepared: &Prepared) -> Exit {
    match crate::daemon::trust_store(prepared) {
        Ok(signed) => {
            println!("ok: the witness says epoch {}, round {}", signed.epoch, signed.round);
            Exit::Ok
        }
        Err(error) => {
            eprintln!("dagger-ledger: {}", in_words(&error));
            error.exit()
        }
    }
}

/// Damage makes the next start look closely; an end before the store was read has said so already.
fn after_end(doubt: &Doubt, exit: Exit) {
    let noted = match exit {
        Exit::Ok => doubt.lay(),
        Exit::Damaged => doubt.raise(mend::FOUND_WHILE_IT_RAN),
        Exit::Configuration | Exit::Broken | Exit::Internal => Ok(()),
    };
    if let Err(error) = noted {
        tracing::error!(%error, "cannot note how the store was left");
    }
}

/// Runs the ledger as `arguments` say, of which the first is the program's name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = Arguments::parse_from(arguments);
    let (prepared, filter) = match prepare(&arguments) {
        Ok(prepared) => prepared,
        Err(error) => {
            eprintln!("dagger-ledger: {error}");
            return Exit::Configuration.into();
        }
    };
    if arguments.check {
        let (name, host) = (&prepared.genesis.name, prepared.seat().name);
        let count = prepared.roster().present().count();
        println!("ok: host {host} of cluster {name} ({}), {count} hosts", prepared.cluster);
        return Exit::Ok.into();
    }
    if let Some(depth) = arguments.scan {
        return scan(&prepared, depth).into();
    }
    if arguments.trust_store {
        return trust_store(&prepared).into();
    }
    start_logging(filter);
    stop_at_panics();
    let state_directory = prepared.configuration.state_directory.clone();
    let hosts = prepared.roster().present().count();
    let checked =
        scanner().and_then(|scanner| mend::before_start(&state_directory, hosts, scanner));
    if let Err(error) = checked {
        tracing::error!("cannot start: {}", in_words(&error));
        return error.exit().into();
    }
    let exit = run(prepared);
    after_end(&Doubt::of(&state_directory), exit);
    exit.into()
}

fn run(prepared: Prepared) -> Exit {
    match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("worker").build() {
        Ok(runtime) => crate::daemon::run(runtime, prepared),
        Err(error) => {
            tracing::error!("cannot start: {}", in_words(&error));
            Exit::Internal
        }
    }
}
