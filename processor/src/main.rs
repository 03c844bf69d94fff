//! The daemon's `main`: arguments, configuration, exit codes. Everything else is in the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use dagger_processor::configuration::Configuration;
use tracing_subscriber::EnvFilter;

/// Verifies every payload before it is ordered, and judges it after, in a sandbox without files,
/// network or devices.
///
/// Exit codes: 0 stopped as asked, 2 wrong usage, 64 configuration or genesis refused, 70 internal
/// defect.
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

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let read = Configuration::read(&arguments.configuration)
        .and_then(|configuration| Ok((configuration.read_genesis()?, configuration)));
    let ((genesis, cluster), configuration) = match read {
        Ok(read) => read,
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
        .with_env_filter(EnvFilter::new(&configuration.log))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match dagger_processor::daemon::run(&configuration, genesis, cluster) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(EXIT_INTERNAL)
        }
    }
}
