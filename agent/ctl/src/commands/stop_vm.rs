//! `daggerctl host stop-vm`: the operator of a host switches a machine off by hand.
//!
//! Owns the arguments and the words. Speaks only to hosts on this machine, through their own
//! sockets, and signs nothing: the host itself tells the ledger. Called by `commands::host`.

use clap::Args;
use dagger_api::{LocalStop, LocalStopView, Sight};
use dagger_payload::kind::StopManner;

use crate::client::Client;
use crate::endpoint::Endpoint;
use crate::failure::Failure;
use crate::session::Session;

/// Shown below the command's `--help`.
pub(super) const HELP: &str = "\
For when the owner cannot be asked, or the ledger has no quorum. It works on a
host of this machine, over its Unix socket, in any state of the ledger. The VM
stays off until its owner asks for something newer, such as `daggerctl vm
start`; the host signs a report with your reason, which is public.

Examples:
  daggerctl host stop-vm web-1 --reason 'abuse report 4711'
  daggerctl host stop-vm 5d41402abc4b2a76b9719d911017c592 \\
      --reason 'failing disk' --force";

/// What is stopped, and why.
#[derive(Debug, Clone, Args)]
pub(crate) struct StopVmArguments {
    /// Its name, or its id: without its history a host knows machines by their ids only
    #[arg(value_name = "VM")]
    vm: String,
    /// Why; everybody reads it in the VM's history
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Pull the plug; without this the guest is asked first, and has 30 seconds
    #[arg(long)]
    force: bool,
}

/// Asks the hosts of this machine one after the other, until one has it.
pub(super) async fn run(arguments: &StopVmArguments, session: &Session) -> Result<(), Failure> {
    let manner = if arguments.force { StopManner::Forced } else { StopManner::Graceful };
    let stop = LocalStop { reason: arguments.reason.clone(), manner };
    let is_here = |endpoint: &&Endpoint| matches!(endpoint, Endpoint::Unix(_));
    let mut last = Failure::usage(
        "none of the hosts that --api names is reached through its Unix socket",
        "Run it on the host itself, with --api unix:/run/dagger/api/api.sock.",
    );
    for endpoint in session.client.endpoints().iter().filter(is_here) {
        match Client::local_stop(endpoint, &arguments.vm, &stop).await {
            Ok(view) => return tell(&view, session),
            // Another host of this machine may have it.
            Err(failure) if failure.has_code("not_found") || failure.is_unavailable() => {
                last = failure;
            }
            Err(failure) => return Err(failure),
        }
    }
    Err(last)
}

fn tell(view: &LocalStopView, session: &Session) -> Result<(), Failure> {
    session.output.show(view, |view| {
        let until = format!("until its owner asks for more than generation {}", view.generation);
        match view.sight {
            Sight::Stopped | Sight::Absent => format!("VM {} is off, {until}", view.vm),
            Sight::Running | Sight::Unknown | Sight::Elsewhere => {
                format!("VM {} is not off yet; it is switched off, {until}", view.vm)
            }
        }
    })?;
    match view.sight {
        Sight::Stopped | Sight::Absent => Ok(()),
        Sight::Running | Sight::Unknown | Sight::Elsewhere => Err(Failure::unavailable(
            "not_off_yet",
            "the machine was not seen off in time",
            "The host goes on trying; look with `daggerctl host fsck`, or at the hypervisor.",
        )),
    }
}
