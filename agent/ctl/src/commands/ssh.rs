//! `daggerctl ssh`: logs in to a VM by name, and checks that it is the VM's own host key that
//! answers.
//!
//! Owns the call of `ssh`, and what is said when another key answers. Never reads a private key.
//! Called by `main`.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use dagger_api::VmView;
use dagger_payload::object::Vm;

use super::lookup::find;
use crate::failure::Failure;
use crate::progress::say;
use crate::session::Session;
use crate::signer;

/// Arguments of `ssh`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  daggerctl ssh web-1\n  daggerctl ssh web-1 -- uname -a\n  \
                  daggerctl ssh --user debian web-1")]
pub(crate) struct SshArguments {
    /// Name of a VM of yours, or the id of any
    #[arg(value_name = "VM")]
    vm: String,
    /// User to log in as: `dagger` is on every guest; `root` only where the image lets it in
    #[arg(short, long, visible_alias = "user", value_name = "USER", default_value = "dagger")]
    login: String,
    /// SSH key to log in with [default: the --key if the VM lets it in, else what ssh chooses]
    #[arg(short, long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// A command to run instead of a shell
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What `ssh` says when the key that answers is not the one that it was told.
const KEY_REFUSED: &str = "Host key verification failed.";
/// Bytes of `ssh`'s complaints that are shown at most.
const COMPLAINT_BYTES_MAX: u64 = 16 * 1024;

/// Runs `ssh` and ends with its exit code.
pub(crate) async fn run(arguments: SshArguments, session: &Session) -> Result<(), Failure> {
    let view = find(session, &arguments.vm).await?;
    let address = view.vm.address().ok_or_else(|| {
        Failure::refused(
            "state_wrong",
            format!("VM {} has no address yet, or has it by DHCP alone", view.vm.name),
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
    let complaints = tempfile::NamedTempFile::new()
        .map_err(|error| Failure::broken(format!("no temporary file: {error}")))?;
    let mut ssh = Command::new("ssh");
    // What ssh itself complains of goes there; what the command in the guest says does not.
    ssh.arg("-E")
        .arg(complaints.path())
        .arg("-l")
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
    let complaint = read_complaint(complaints.path())?;
    if complaint.contains(KEY_REFUSED) {
        return Err(another_key(&view, &complaint));
    }
    if !complaint.is_empty() {
        say(complaint.trim_end());
    }
    match status.code().or(status.signal().map(|signal| 128 + signal)) {
        Some(0) => Ok(()),
        code => Err(Failure::Child(code.and_then(|c| u8::try_from(c).ok()).unwrap_or(255))),
    }
}

fn read_complaint(path: &Path) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(COMPLAINT_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|error| Failure::file(path, &error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Nothing was sent to whoever answers but our wish to talk.
fn another_key(view: &VmView, complaint: &str) -> Failure {
    let host = view.host_name.as_ref().map_or("its host", |name| name.as_str());
    let found = complaint.lines().find(|line| line.starts_with("SHA256:"));
    let found = found.map_or_else(String::new, |key| format!(" ({})", key.trim_end_matches('.')));
    Failure::refused(
        "host_key_differs",
        format!(
            "what answers at the address of VM {} shows another host key{found} than {host} \
             reported; not logged in",
            view.vm.name
        ),
        "Another machine may sit between you and the VM. If you changed the guest's host key \
         yourself, log in with ssh.",
    )
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
