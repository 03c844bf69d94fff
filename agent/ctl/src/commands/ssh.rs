//! `daggerctl ssh`: logs in to a VM by name, and checks that it is the VM's own host key that
//! answers.
//!
//! Owns the call of `ssh`. Never reads a private key. Called by `main`.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;
use dagger_payload::object::Vm;

use super::vm::find;
use crate::failure::Failure;
use crate::progress::say;
use crate::session::Session;
use crate::signer;

/// Arguments of `ssh`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  daggerctl ssh web-1\n  daggerctl ssh web-1 -- uname -a")]
pub(crate) struct SshArguments {
    /// Name of a VM of yours, or the id of any
    #[arg(value_name = "VM")]
    vm: String,
    /// User to log in as
    #[arg(short, long, default_value = "root")]
    login: String,
    /// SSH key to log in with [default: the --key if the VM lets it in, else what ssh chooses]
    #[arg(short, long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// A command to run instead of a shell
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs `ssh` and ends with its exit code.
pub(crate) async fn run(arguments: SshArguments, session: &Session) -> Result<(), Failure> {
    let view = find(session, &arguments.vm).await?;
    let address = view.vm.placement.address().ok_or_else(|| {
        Failure::refused(
            "state_wrong",
            format!("VM {} has no address yet", view.vm.name),
            format!("See `daggerctl vm why {}`.", view.vm.name),
        )
    })?;
    let mut known_hosts = tempfile::NamedTempFile::new()
        .map_err(|error| Failure::broken(format!("no temporary file: {error}")))?;
    // The address may be reused by another VM; the id never is.
    let alias = format!("dagger-{}", view.vm.id);
    let checking = match &view.vm.guest_host_key {
        Some(key) => {
            writeln!(known_hosts, "{alias} {key}")
                .map_err(|error| Failure::file(known_hosts.path(), &error))?;
            "yes"
        }
        None => {
            say(
                "note: the VM's host key is not reported yet; the key that answers is taken as it is",
            );
            "accept-new"
        }
    };
    let mut ssh = Command::new("ssh");
    ssh.arg("-l")
        .arg(&arguments.login)
        .arg("-o")
        .arg(format!("HostKeyAlias={alias}"))
        .arg("-o")
        .arg(format!("UserKnownHostsFile={}", known_hosts.path().display()))
        .args(["-o", "GlobalKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"])
        .arg("-o")
        .arg(format!("StrictHostKeyChecking={checking}"));
    if let Some(identity) = identity(&arguments, &view.vm, session) {
        ssh.args(["-o", "IdentitiesOnly=yes", "-i"]).arg(identity);
    }
    let status = ssh
        .arg(address.to_string())
        .arg("--")
        .args(&arguments.command)
        .status()
        .map_err(|error| Failure::broken(format!("ssh cannot be run: {error}")))?;
    match status.code().or(status.signal().map(|signal| 128 + signal)) {
        Some(0) => Ok(()),
        code => Err(Failure::Child(code.and_then(|c| u8::try_from(c).ok()).unwrap_or(255))),
    }
}

/// The key to log in with: as named, or the signing key where the VM lets it in.
fn identity(arguments: &SshArguments, vm: &Vm, session: &Session) -> Option<PathBuf> {
    if let Some(identity) = &arguments.identity {
        return Some(identity.clone());
    }
    let path = session.key.clone().or_else(|| signer::default_path().ok())?;
    let public = signer::read_public_key(&signer::with_pub(&path)).ok()?.to_openssh();
    let lets_in = vm.ssh_keys.iter().any(|line| line.as_str().starts_with(&public));
    lets_in.then_some(path)
}
