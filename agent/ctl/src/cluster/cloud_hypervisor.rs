//! Cloud Hypervisor for a development cluster: what it needs on this machine, and the end of its
//! processes.
//!
//! Owns the finding of program and firmware, and the ending of processes that name a machine's
//! socket of this cluster on their command line. Never installs anything. Called by `cluster::dev`
//! and `cluster::stop`.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::arguments::DevArguments;
use super::daemons::find_in_path;
use super::record::{Directory, Record};
use crate::failure::Failure;

/// Where releases of the firmware are put by people and packages.
const FIRMWARE: [&str; 3] = [
    "/usr/share/cloud-hypervisor/CLOUDHV.fd",
    "/usr/local/share/cloud-hypervisor/CLOUDHV.fd",
    "/usr/share/cloud-hypervisor/hypervisor-fw",
];
const WHERE_FROM: &str = "Install a release (version 53 or later) from \
    https://github.com/cloud-hypervisor/cloud-hypervisor/releases and a firmware such as CLOUDHV.fd from \
    https://github.com/cloud-hypervisor/edk2/releases; name them with --cloud-hypervisor and --firmware.";

/// What the agents are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Programs {
    /// `cloud-hypervisor`.
    pub(crate) program: PathBuf,
    /// What guests boot with.
    pub(crate) firmware: PathBuf,
}

/// Finds what is needed: as asked, as it was, or where it usually is.
///
/// # Errors
/// What is missing, and where it may be had.
pub(crate) fn find(
    arguments: &DevArguments,
    before: Option<&Programs>,
) -> Result<Programs, Failure> {
    let missing = |what: String| Failure::refused("program_missing", what, WHERE_FROM);
    let named = |path: &PathBuf| {
        let path = std::path::absolute(path).map_err(|error| Failure::file(path, &error))?;
        match path.is_file() {
            true => Ok(path),
            false => Err(missing(format!("{} is not there", path.display()))),
        }
    };
    let program = match (&arguments.cloud_hypervisor, before) {
        (Some(path), _) => named(path)?,
        (None, Some(before)) if before.program.is_file() => before.program.clone(),
        _ => find_in_path("cloud-hypervisor")
            .ok_or_else(|| missing("cloud-hypervisor is not installed".to_owned()))?,
    };
    let firmware =
        match (&arguments.firmware, before) {
            (Some(path), _) => named(path)?,
            (None, Some(before)) if before.firmware.is_file() => before.firmware.clone(),
            _ => FIRMWARE.map(PathBuf::from).into_iter().find(|path| path.is_file()).ok_or_else(
                || missing("no firmware for Cloud Hypervisor is installed".to_owned()),
            )?,
        };
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if let Err(error) = opened {
        return Err(Failure::refused(
            "kvm_missing",
            format!("Cloud Hypervisor needs KVM, and /dev/kvm cannot be opened: {error}"),
            "Run it as root or in group kvm on a machine with KVM, or use `--hypervisor qemu`.",
        ));
    }
    Ok(Programs { program, firmware })
}

/// Ends the cluster's machines and removes their run directories.
pub(crate) fn end(directory: &Directory, record: &Record) {
    for host in &record.hosts {
        let machines = directory.machines(record, &host.name);
        end_below(&machines);
        let _ = std::fs::remove_dir_all(&machines);
        // Succeeds for the last host's only.
        let _ = machines.parent().map(std::fs::remove_dir);
    }
}

/// Ends the processes that listen below this directory, known by the socket on their command line.
fn end_below(machines: &Path) {
    let beginning = format!("path={}/", machines.display());
    let Ok(entries) = std::fs::read_dir("/proc") else { return };
    for entry in entries.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        let is_ours = words.any(|word| word == b"--api-socket")
            && words.next().is_some_and(|word| word.starts_with(beginning.as_bytes()));
        if let (Some(pid), true) = (pid, is_ours) {
            // It switches its guest off at once. It may have ended in between, which is what we
            // want.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_processes_with_a_socket_of_this_cluster_are_ended() {
        let start = |socket: &str| {
            Command::new("sh")
                .args(["-c", "sleep 60 & wait", "sh", "--api-socket", socket])
                .spawn()
                .expect("sh runs")
        };
        let directory = tempfile::tempdir().expect("a directory");
        let machines = directory.path().join("vm");
        let mut ours = start(&format!("path={}/1/api.sock", machines.display()));
        let mut other = start(&format!("path={}-2/1/api.sock", machines.display()));
        let ended = || {
            end_below(&machines);
            ours.try_wait().expect("a child").is_some()
        };
        let mut ended = ended;
        while !ended() {
            std::thread::yield_now();
        }
        assert!(other.try_wait().expect("a child").is_none());
        other.kill().expect("ends");
        other.wait().expect("ends");
    }
}
