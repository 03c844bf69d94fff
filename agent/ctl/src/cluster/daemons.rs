//! The processes of a development cluster: started, found again, and ended.
//!
//! Owns the pid files. A process counts as ours only while its command line names our own
//! configuration file, so a pid that was given to somebody else is never signalled. Called by
//! `cluster::dev`, `cluster::stop` and `cluster::libvirt`.

use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use dagger_api::HealthView;
use dagger_payload::name::Name;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::record::{Directory, Record};
use crate::client::Client;
use crate::endpoint::Endpoint;
use crate::failure::Failure;
use crate::limits::{DAEMON_START_MAX, DAEMON_STOP_MAX};
use crate::session::Pause;

/// Lines of a log that are shown when its daemon fails.
const LOG_LINES_SHOWN: usize = 8;

/// The three daemons of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Verifies and judges payloads, in a sandbox
    Processor,
    /// Orders them with the other hosts
    Ledger,
    /// Serves the API and runs the VMs
    Agent,
}

impl Role {
    /// As in file names.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Processor => "processor",
            Self::Ledger => "ledger",
            Self::Agent => "agent",
        }
    }

    /// The program.
    pub(crate) fn program(self) -> String {
        format!("dagger-{}", self.as_str())
    }

    /// The sockets that it listens on.
    fn sockets(self) -> &'static [&'static str] {
        match self {
            Self::Processor => &["processor.sock", "seal.sock"],
            Self::Ledger => &["ledger.sock"],
            Self::Agent => &["api.sock"],
        }
    }
}

/// One process of the cluster, running or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its name in `pids/` and `logs/`: `ledger-host2`.
    pub(crate) name: String,
    /// Its configuration file, which its command line names.
    pub(crate) configuration: PathBuf,
}

impl Process {
    /// A host's daemon.
    pub(crate) fn daemon(directory: &Directory, role: Role, host: &Name) -> Self {
        Self {
            name: format!("{}-{host}", role.as_str()),
            configuration: directory.configuration(role, host),
        }
    }

    /// Its pid, while it lives and is ours.
    pub(crate) fn find(&self, directory: &Directory) -> Option<Pid> {
        let text = std::fs::read_to_string(directory.pid(&self.name)).ok()?;
        let pid: i32 = text.trim().parse().ok().filter(|pid| *pid > 1)?;
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = self.configuration.as_os_str().as_bytes();
        let names_ours = arguments.split(|byte| *byte == 0).any(|argument| argument == ours);
        (names_ours && !is_zombie(pid)).then(|| Pid::from_raw(pid))
    }

    /// Starts it: in a process group of its own, its output in its log. The caller holds no claim
    /// on it afterwards but reaping it.
    pub(crate) fn spawn(
        &self,
        directory: &Directory,
        command: &mut Command,
    ) -> Result<Child, Failure> {
        let log_path = directory.log(&self.name);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&log_path)
            .map_err(|error| Failure::file(&log_path, &error))?;
        let errors = log.try_clone().map_err(|error| Failure::file(&log_path, &error))?;
        for name in ["JOURNAL_STREAM", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC"]
        {
            command.env_remove(name);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .current_dir("/")
            // Ctrl-C at the terminal is for daggerctl, which then stops the cluster in order.
            .process_group(0)
            .spawn()
            .map_err(|error| {
                let program = command.get_program().to_string_lossy().into_owned();
                let advice = "Build and install all of dagger's programs in one directory.";
                Failure::refused("program_missing", format!("{program}: {error}"), advice)
            })?;
        let path = directory.pid(&self.name);
        std::fs::write(&path, format!("{}\n", child.id()))
            .map_err(|error| Failure::file(&path, &error))?;
        Ok(child)
    }

    /// The failure of a process that ended or does not serve, with the end of its log.
    pub(crate) fn failure(&self, directory: &Directory, what: &str) -> Failure {
        let log = directory.log(&self.name);
        let text = std::fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().rev().take(LOG_LINES_SHOWN).collect();
        let mut shown = String::new();
        for line in lines.iter().rev() {
            shown.push_str("\n    ");
            shown.push_str(line);
        }
        Failure::unavailable(
            "daemon_failed",
            format!("{} {what}; its log ends with:{shown}", self.name),
            format!("Read the whole log: {}", log.display()),
        )
    }
}

fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the command name in parentheses, which may itself hold any character
    // (proc(5)).
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// Finds one of dagger's programs: beside this one, else in $PATH.
pub(crate) fn find_program(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| Failure::broken(format!("own path is unknown: {error}")))?;
    let beside = own.parent().map(|directory| directory.join(name));
    if let Some(path) = beside.filter(|path| path.is_file()) {
        return Ok(path);
    }
    find_in_path(name).ok_or_else(|| {
        Failure::refused(
            "program_missing",
            format!("{name} is neither beside daggerctl nor in $PATH"),
            "Build all of dagger: `make`, or `cargo build`.",
        )
    })
}

/// Finds a program in $PATH, and in the directories for administration, which are not in
/// everybody's.
pub(crate) fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let administration = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(administration)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

/// What starts the processor in fresh network, IPC and UTS namespaces, where the machine allows it.
/// It shuts itself in anyway; this keeps the network away from it before it has done so.
pub(crate) fn isolation() -> Vec<&'static str> {
    let candidates: [&[&str]; 2] = [
        &["unshare", "--net", "--ipc", "--uts", "--"],
        &["unshare", "--user", "--map-current-user", "--net", "--ipc", "--uts", "--"],
    ];
    let works = |words: &&[&str]| {
        Command::new(words[0])
            .args(&words[1..])
            .arg("true")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    candidates.into_iter().find(works).map(<[&str]>::to_vec).unwrap_or_default()
}

/// Starts a host's daemon and waits until it serves.
pub(crate) async fn start(
    directory: &Directory,
    record: &Record,
    role: Role,
    host: &Name,
) -> Result<Child, Failure> {
    let process = Process::daemon(directory, role, host);
    let program = find_program(&role.program())?;
    for socket in role.sockets() {
        // Left over from one that was killed: it would make the new one look ready before it is.
        let _ = std::fs::remove_file(directory.socket(record, host, socket));
    }
    let isolation = match role {
        Role::Processor => isolation(),
        Role::Ledger | Role::Agent => Vec::new(),
    };
    let mut command = match isolation.split_first() {
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.arg("--configuration").arg(&process.configuration);
    let mut child = process.spawn(directory, &mut command)?;
    let deadline = Instant::now() + DAEMON_START_MAX;
    let mut pause = Pause::new();
    while !serves(directory, record, role, host).await {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(process.failure(directory, &format!("ended at once ({status})")));
        }
        if Instant::now() >= deadline {
            return Err(process.failure(directory, "does not serve"));
        }
        pause.wait().await;
    }
    Ok(child)
}

async fn serves(directory: &Directory, record: &Record, role: Role, host: &Name) -> bool {
    let sockets = role.sockets();
    let listens = |name: &&str| directory.socket(record, host, name).exists();
    if !sockets.iter().all(listens) {
        return false;
    }
    match role {
        Role::Processor | Role::Ledger => true,
        Role::Agent => health(&directory.api_socket(record, host)).await.is_ok(),
    }
}

/// Asks an agent how it is.
pub(crate) async fn health(socket: &Path) -> Result<HealthView, Failure> {
    Client::new(vec![Endpoint::Unix(socket.to_owned())], None).get("/v1/health").await
}

/// Ends processes: all are told at once, then each is given its time, then killed.
pub(crate) async fn stop_all(directory: &Directory, processes: &[Process]) {
    let signal = |process: &Process, signal| {
        if let Some(pid) = process.find(directory) {
            // It may have ended in between, which is what we want.
            let _ = nix::sys::signal::kill(pid, signal);
        }
    };
    for process in processes {
        signal(process, Signal::SIGTERM);
    }
    let gone = |limit: Duration| async move {
        let deadline = Instant::now() + limit;
        let mut pause = Pause::new();
        while processes.iter().any(|process| process.find(directory).is_some()) {
            if Instant::now() >= deadline {
                return;
            }
            pause.wait().await;
        }
    };
    gone(DAEMON_STOP_MAX).await;
    for process in processes {
        signal(process, Signal::SIGKILL);
    }
    gone(DAEMON_STOP_MAX).await;
    for process in processes {
        if process.find(directory).is_none() {
            let _ = std::fs::remove_file(directory.pid(&process.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::arguments::DirectoryArguments;

    fn directory(root: &Path) -> Directory {
        let arguments = DirectoryArguments { directory: Some(root.to_owned()) };
        for name in ["pids", "logs"] {
            std::fs::create_dir_all(root.join(name)).expect("a directory");
        }
        Directory::of(&arguments).expect("a directory")
    }

    fn process(root: &Path) -> Process {
        Process { name: "test".into(), configuration: root.join("test.toml") }
    }

    #[test]
    fn a_pid_that_belongs_to_somebody_else_is_not_ours() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = directory(root.path());
        let process = process(root.path());
        let own = std::process::id();
        for text in [own.to_string(), "1".into(), "0".into(), "-1".into(), "x".into()] {
            std::fs::write(directory.pid("test"), text).expect("writes");
            assert_eq!(process.find(&directory), None);
        }
    }

    #[tokio::test]
    async fn a_process_of_ours_is_found_stopped_and_forgotten() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = directory(root.path());
        let process = process(root.path());
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 60 & wait", "sh"]).arg(&process.configuration);
        let mut child = process.spawn(&directory, &mut command).expect("starts");
        // Between fork and exec it still shows the command line of this test.
        while process.find(&directory).is_none() {
            assert!(child.try_wait().expect("ours").is_none(), "it ended");
            tokio::task::yield_now().await;
        }
        stop_all(&directory, std::slice::from_ref(&process)).await;
        assert_eq!(process.find(&directory), None);
        assert!(!directory.pid("test").exists());
        child.wait().expect("ended");
    }
}
