//! `daggerctl`: signs requests with an SSH key, hands them to agents, shows what became of them,
//! and runs development clusters on one machine.
//!
//! Owns nothing that must survive but the directories of development clusters. Never speaks to a
//! ledger, a processor or a hypervisor's library: everything goes through the agents' HTTP API.
//! Called by people and scripts.
#![forbid(unsafe_code)]

mod arguments;
mod client;
mod cluster;
mod commands;
mod endpoint;
mod failure;
mod image_file;
mod limits;
mod login;
mod output;
mod progress;
mod session;
mod signer;
mod tls;
mod units;
mod vm_file;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Format, Output};
use crate::session::Session;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let format = if arguments.json { Format::Json } else { Format::Text };
    match run(arguments, format) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = match (format, failure.to_json()) {
                (Format::Json, Some(json)) => json.to_string(),
                _ => failure.to_text(),
            };
            if !text.is_empty() {
                progress::say(&text);
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(arguments: Arguments, format: Format) -> Result<(), Failure> {
    // Before any other thread exists: it moves this process into namespaces of its own.
    if let Command::Cluster(command) = &arguments.command
        && let Some(namespace) = command.libvirt_namespace()
    {
        return cluster::libvirt::enter_and_run(namespace);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::broken(format!("cannot start the runtime: {error}")))?;
    let session = Session {
        client: Client::new(arguments.api.0, arguments.key.clone()),
        output: Output { format },
        key: arguments.key,
        valid_for: arguments.valid_for,
    };
    runtime.block_on(dispatch(arguments.command, &session))
}

async fn dispatch(command: Command, session: &Session) -> Result<(), Failure> {
    match command {
        Command::Vm(command) => commands::vm::run(command, session).await,
        Command::Volume(command) => commands::volume::run(command, session).await,
        Command::Ssh(arguments) => commands::ssh::run(arguments, session).await,
        Command::Image(command) => commands::image::run(command, session).await,
        Command::Account(command) => commands::account::run(command, session).await,
        Command::Host(command) => commands::host::run(command, session).await,
        Command::Operator(command) => commands::operator::run(command, session).await,
        Command::Ledger(command) => commands::ledger::run(command, session).await,
        Command::Payload(command) => commands::payload::run(command, session).await,
        Command::Events(arguments) => commands::events::run(arguments, session).await,
        Command::Cluster(command) => cluster::run(command, session).await,
        Command::Genesis(command) => commands::genesis::run(command, session),
        Command::Completions { shell } => commands::completions(shell, session),
    }
}
