//! The command line's grammar: what can be asked, and the help that teaches it.
//!
//! Owns the top of the tree and the options that every command has. Each group's own arguments
//! stand beside its code in `commands` and `cluster`. Never acts. Called by `main`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::cluster::arguments::ClusterCommand;
use crate::commands::account::AccountCommand;
use crate::commands::events::EventsArguments;
use crate::commands::genesis::GenesisCommand;
use crate::commands::host::HostCommand;
use crate::commands::image::ImageCommand;
use crate::commands::ledger::LedgerCommand;
use crate::commands::operator::OperatorCommand;
use crate::commands::payload::PayloadCommand;
use crate::commands::ssh::SshArguments;
use crate::commands::vm::VmCommand;
use crate::commands::volume::VolumeCommand;
use crate::endpoint;
use crate::units;

const EXAMPLES: &str = "\
Examples:
  # A cluster of four hosts on this machine, then a VM on it
  daggerctl cluster dev --hosts 4 --detach
  . ~/.local/state/dagger/dev/environment
  daggerctl account grant $DAGGER_KEY.pub --cpus 8 --memory 4GiB \\
      --disk 50GiB --operator-key $DAGGER_OPERATOR_KEYS
  daggerctl image register guest.qcow2 --name op1/tiny \\
      --key $DAGGER_DIRECTORY/keys/op1
  daggerctl vm create web-1 --image tiny --cpus 2 --memory 512MiB \\
      --disk 2GiB --ssh-key $DAGGER_KEY.pub --wait ssh
  daggerctl ssh web-1 -- uname -a
  daggerctl vm history web-1

Exit codes: 0 done, 1 refused, 2 wrong usage, 3 unavailable or not in time,
4 a check found something, 70 a defect.";

const COMPLETIONS_EXAMPLE: &str = "\
Example:
  daggerctl completions bash \\
      > ~/.local/share/bash-completion/completions/daggerctl";

/// Orders virtual machines from a cluster of independent operators, and shows who caused what.
#[derive(Parser)]
#[command(name = "daggerctl", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Arguments {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Agents to talk to, tried in this order: unix:/path/api.sock, http://127.0.0.1:7480 or
    /// https://HOST, separated by commas
    #[arg(
        long,
        global = true,
        env = "DAGGER_API",
        value_name = "ADDRESSES",
        default_value = "unix:/run/dagger/api/api.sock",
        value_parser = endpoint_list,
        help_heading = "Connection"
    )]
    pub(crate) api: EndpointList,

    /// SSH key to sign with: a private key file, or a .pub file whose private half your ssh-agent
    /// holds [default: ~/.ssh/id_ed25519]
    #[arg(long, global = true, env = "DAGGER_KEY", value_name = "FILE", help_heading = "Signing")]
    pub(crate) key: Option<PathBuf>,

    /// How long a signed request stays valid, counted from the cluster's ledger time; at most 24h
    #[arg(
        long,
        global = true,
        value_name = "SPAN",
        default_value = "10m",
        value_parser = units::validity,
        help_heading = "Signing"
    )]
    pub(crate) valid_for: Duration,

    /// Write JSON for programs instead of text for people
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Parsed `--api`.
#[derive(Debug, Clone)]
pub(crate) struct EndpointList(pub(crate) Vec<endpoint::Endpoint>);

fn endpoint_list(text: &str) -> Result<EndpointList, String> {
    endpoint::parse_list(text).map(EndpointList)
}

/// The groups of commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Create, change and look at virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// Order disks that outlive VMs, and give them to VMs that run
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Log in to a VM, or run a command in it
    Ssh(SshArguments),
    /// Register images and list them
    #[command(subcommand)]
    Image(ImageCommand),
    /// Grant accounts the use of your hosts, and look at them
    #[command(subcommand)]
    Account(AccountCommand),
    /// List hosts, and declare what a host of yours offers
    #[command(subcommand)]
    Host(HostCommand),
    /// List the operators and their keys
    #[command(subcommand)]
    Operator(OperatorCommand),
    /// Look at the ledger
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Make, sign, send and look up payloads by hand
    #[command(subcommand)]
    Payload(PayloadCommand),
    /// Follow what is ordered, as it happens
    Events(EventsArguments),
    /// Run a cluster on this machine for development
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Make and sign the document that founds a cluster
    #[command(subcommand)]
    Genesis(GenesisCommand),
    /// Print a completion script for your shell
    #[command(
        after_help = COMPLETIONS_EXAMPLE
    )]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// An argument with the id of one that every command has would silently take its place.
    fn assert_own_ids(command: &clap::Command, common: &[String]) {
        for own in command.get_arguments().filter(|own| !own.is_global_set()) {
            let id = own.get_id().to_string();
            assert!(!common.contains(&id), "{} has an argument `{id}`", command.get_name());
        }
        command.get_subcommands().for_each(|below| assert_own_ids(below, common));
    }

    /// Such lines are pasted: none may be broken by a terminal, or by the help's own width.
    fn assert_pasteable(command: &clap::Command) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in help.lines() {
            let length = line.chars().count();
            assert!(length <= 78, "{}: {length} characters: {line}", command.get_name());
        }
        command.get_subcommands().for_each(assert_pasteable);
    }

    #[test]
    fn every_example_fits_into_a_terminal_of_eighty_columns() {
        assert_pasteable(&Arguments::command());
    }

    #[test]
    fn no_command_has_an_argument_with_the_id_of_one_that_all_have() {
        let command = Arguments::command();
        let global = command.get_arguments().filter(|argument| argument.is_global_set());
        let common: Vec<_> = global.map(|argument| argument.get_id().to_string()).collect();
        assert!(common.contains(&"key".to_owned()), "{common:?}");
        assert_own_ids(&command, &common);
    }
}
