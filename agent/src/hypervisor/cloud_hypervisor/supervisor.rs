//! Who owns the processes: systemd where it runs the host, else nobody but the kernel.
//!
//! Owns starting and killing one machine's process. A process outlives the agent either way: as an
//! instance of the unit template, or in a session of its own. A signal is only ever sent to a
//! process that names the machine's own socket on its command line, found through that socket or,
//! where its process hangs, among all processes; never to a number that was written down. Never
//! talks to a machine.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dagger_payload::id::VmId;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::limits::KILL_WAIT_MAX;
use super::place::Place;
use super::socket::{connect_to, nobody_listens};

/// Starts and kills processes. Calls block and are bounded.
pub(super) trait Supervisor: Send + Sync {
    /// Starts the machine's process; it may serve later than this returns.
    fn start(&self, vm: VmId, place: &Place) -> io::Result<()>;

    /// Why the process that was started cannot come up any more, once that is known.
    fn failure(&self, vm: VmId) -> Option<String>;

    /// Kills the machine's process, if there is one, and sees that it is gone.
    fn kill(&self, vm: VmId, place: &Place) -> io::Result<()>;

    /// Whether a process of this machine may exist although nothing listens at its socket.
    fn may_live(&self, vm: VmId) -> io::Result<bool>;

    /// The VMs of which a process lives, whoever started it and whatever became of its place below
    /// this directory.
    fn living(&self, run_directory: &Path) -> io::Result<Vec<VmId>>;
}

/// Processes of their own session, started by the agent.
pub(super) struct Direct {
    program: PathBuf,
    /// Those that this agent started: they are its children, and somebody has to take their exit.
    children: Mutex<BTreeMap<VmId, Child>>,
}

impl Direct {
    pub(super) fn new(program: PathBuf) -> Self {
        Self { program, children: Mutex::default() }
    }

    /// Takes the exits of children that have ended.
    fn reap(&self) -> std::sync::MutexGuard<'_, BTreeMap<VmId, Child>> {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain(|vm, child| match child.try_wait() {
            Ok(Some(status)) => {
                tracing::info!(%vm, %status, "the machine's process ended");
                false
            }
            Ok(None) | Err(_) => true,
        });
        children
    }
}

/// The arguments of every process. What it says goes to its standard error, whose length is ours to
/// bound.
fn arguments(place: &Place) -> [String; 4] {
    [
        "--api-socket".to_owned(),
        format!("path={}", place.api().display()),
        "--event-monitor".to_owned(),
        format!("path={}", place.events().display()),
    ]
}

impl Supervisor for Direct {
    fn start(&self, vm: VmId, place: &Place) -> io::Result<()> {
        let mut children = self.reap();
        let output = output(&place.output())?;
        // A session of its own: what ends the agent's terminal or process group does not reach it.
        // Without any environment: RUST_BACKTRACE alone would paste stack traces into error
        // messages.
        let child = Command::new("setsid")
            .arg(&self.program)
            .args(arguments(place))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .current_dir(place.directory())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        children.insert(vm, child);
        Ok(())
    }

    fn failure(&self, vm: VmId) -> Option<String> {
        let children = self.reap();
        (!children.contains_key(&vm)).then(|| "the process ended at once".to_owned())
    }

    fn kill(&self, vm: VmId, place: &Place) -> io::Result<()> {
        let child = self.reap().remove(&vm);
        if let Some(mut child) = child {
            child.kill()?;
            child.wait()?;
        }
        match listener(&place.api())? {
            Listener::Nobody => Ok(()),
            Listener::Process(process) => end(&process),
            Listener::Unreachable => started_for(place)?.iter().try_for_each(end),
        }
    }

    fn may_live(&self, vm: VmId) -> io::Result<bool> {
        Ok(self.reap().contains_key(&vm))
    }

    fn living(&self, run_directory: &Path) -> io::Result<Vec<VmId>> {
        // Those of an earlier agent are nobody's children; only the kernel knows them.
        let mut living: BTreeSet<VmId> = self.reap().keys().copied().collect();
        for process in std::fs::read_dir("/proc")? {
            // Not a process, or one that ended meanwhile.
            let Ok(command_line) = std::fs::read(process?.path().join("cmdline")) else {
                continue;
            };
            living.extend(vm_of_command_line(&command_line, run_directory));
        }
        Ok(living.into_iter().collect())
    }
}

/// Where a process says what it has to say: appended, so that it may be cut.
fn output(path: &Path) -> io::Result<File> {
    File::create(path)?.set_len(0)?;
    OpenOptions::new().append(true).mode(0o600).open(path)
}

/// The VM of a process that was started with [`arguments`] for a place below this directory.
fn vm_of_command_line(command_line: &[u8], run_directory: &Path) -> Option<VmId> {
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let told = words.windows(2).find(|pair| pair[0] == b"--api-socket")?[1];
    let socket = Path::new(OsStr::from_bytes(told.strip_prefix(b"path=")?));
    let vm = socket.parent()?.file_name()?.to_str()?.parse().ok()?;
    (Place::of(run_directory, vm).api() == socket).then_some(vm)
}

/// Who listens at a machine's socket.
#[derive(Debug)]
pub(super) enum Listener {
    /// Nobody.
    Nobody,
    /// This process.
    Process(OwnedFd),
    /// Somebody may, but cannot be reached: the process hangs and its queue is full, or it has
    /// another thing in the place of its socket.
    Unreachable,
}

/// The process that listens at a machine's socket.
///
/// # Errors
/// Somebody listens whose command line does not name the socket: not ours to signal.
pub(super) fn listener(socket: &Path) -> io::Result<Listener> {
    let stream = match connect_to(socket) {
        Ok(stream) => stream,
        Err(error) if nobody_listens(&error) => return Ok(Listener::Nobody),
        Err(_) => return Ok(Listener::Unreachable),
    };
    let number = getsockopt(&stream, PeerCredentials)?.pid();
    let stranger = || io::Error::other(format!("process {number} is not this machine's"));
    let process = Pid::from_raw(number).ok_or_else(stranger)?;
    let process = match pidfd_open(process, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(Listener::Nobody),
        process => process?,
    };
    // Read after the descriptor was opened: the number cannot have gone to another process
    // unnoticed.
    let command_line = std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
    if command_line.is_empty() || names_socket(&command_line, socket) {
        Ok(Listener::Process(process))
    } else {
        Err(stranger())
    }
}

fn names_socket(command_line: &[u8], socket: &Path) -> bool {
    let own = format!("path={}", socket.display());
    command_line.split(|byte| *byte == 0).any(|word| word == own.as_bytes())
}

/// The processes that were started for this place, by their command lines alone.
fn started_for(place: &Place) -> io::Result<Vec<OwnedFd>> {
    let mut started = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(process) = number.and_then(Pid::from_raw) else { continue };
        // It has ended meanwhile.
        let Ok(process) = pidfd_open(process, PidfdFlags::empty()) else { continue };
        let command_line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if names_socket(&command_line, &place.api()) {
            started.push(process);
        }
    }
    Ok(started)
}

/// Kills and waits.
fn end(process: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(process, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    wait_end(process, KILL_WAIT_MAX)
}

/// Waits until the process has ended.
pub(super) fn wait_end(process: &OwnedFd, wait: Duration) -> io::Result<()> {
    let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    if nix::poll::poll(&mut fds, wait)? == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "the process does not end"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_that_was_started_for_a_place_of_this_directory_is_a_machines() {
        let (vm, here) = (VmId([7; 16]), Path::new("/run/dagger/vm"));
        let line = |words: &[String]| words.join("\0").into_bytes();
        let [option, socket, ..] = arguments(&Place::of(here, vm));
        let ours = line(&["/usr/bin/cloud-hypervisor".into(), option.clone(), socket.clone()]);
        assert_eq!(vm_of_command_line(&ours, here), Some(vm));
        assert_eq!(vm_of_command_line(&ours, Path::new("/run/other")), None);
        assert_eq!(vm_of_command_line(&line(&["grep".into(), socket.clone()]), here), None);
        assert_eq!(vm_of_command_line(&line(std::slice::from_ref(&option)), here), None);
        let elsewhere = socket.replace(&vm.to_string(), "db-1");
        assert_eq!(vm_of_command_line(&line(&[option, elsewhere]), here), None);
        // What is a zombie has none.
        assert_eq!(vm_of_command_line(b"", here), None);
    }
}
