//! The daemon's `main`: arguments, configuration, exit codes. Everything else is in the library.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::ClusterId;
use dagger_processor::configuration::Configuration;
use dagger_processor::daemon::RunError;
use tracing_subscriber::EnvFilter;

/// Verifies every payload before it is ordered, and judges it after, in a sandbox without files,
/// network or devices.
///
/// Exit codes: 0 stopped as asked, 2 wrong usage, 64 configuration, genesis or sockets refused, 70
/// internal defect.
#[derive(Debug, Parser)]
#[command(name = "dagger-processor", version)]
struct Arguments {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE", default_value = "/etc/dagger/processor.toml")]
    configuration: PathBuf,
    /// Only check configuration and genesis, say what they are, and exit.
    #[arg(long)]
    check: bool,
}

const EXIT_CONFIGURATION: u8 = 64;
const EXIT_INTERNAL: u8 = 70;

/// Everything that the configuration names, read before the sandbox closes.
struct Prepared {
    configuration: Configuration,
    genesis: Genesis,
    cluster: ClusterId,
    filter: EnvFilter,
}

fn prepare(arguments: &Arguments) -> anyhow::Result<Prepared> {
    let configuration = Configuration::read(&arguments.configuration)?;
    let filter = EnvFilter::try_new(&configuration.log)
        .context("`log` is no filter of tracing (try \"info\")")?;
    let (genesis, cluster) = configuration.read_genesis()?;
    Ok(Prepared { configuration, genesis, cluster, filter })
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Prepared { configuration, genesis, cluster, filter } = match prepare(&arguments) {
        Ok(prepared) => prepared,
        Err(error) => {
            eprintln!("dagger-processor: {error:#}");
            return ExitCode::from(EXIT_CONFIGURATION);
        }
    };
    if arguments.check {
        println!("ok: cluster {} ({cluster}), {} hosts", genesis.name, genesis.hosts.len());
        return ExitCode::SUCCESS;
    }
    // To stderr, which systemd takes into the journal: the journal's own socket would be one more
    // thing to hold.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match dagger_processor::daemon::run(&configuration, genesis, cluster) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = match error {
                RunError::Sockets(_) => EXIT_CONFIGURATION,
                RunError::Internal(_) => EXIT_INTERNAL,
            };
            tracing::error!("{:#}", anyhow::Error::from(error));
            ExitCode::from(code)
        }
    }
}
