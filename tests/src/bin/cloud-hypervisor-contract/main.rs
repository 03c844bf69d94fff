//! A program that behaves as Cloud Hypervisor 53 was seen to behave, without running any guest. For
//! tests only.
//!
//! Owns the outside of that program: arguments, socket, locks, answers, event file, serial line and
//! ends. Its guest is the one of the tests: it greets, echoes, ignores the power button, and obeys
//! `p` (power off), `r` (reset), `t` (fault), `h` (hang) and `e` (let go of the disks that it is
//! asked for). What it does on purpose and looks odd
//! is what the real one does. Run by the tests of the agent's backend, which also run against the
//! real program: that is what keeps this one honest.

mod disks;
mod machine;
mod server;

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, bail};
use nix::fcntl::{FcntlArg, fcntl};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use self::machine::Monitor;

struct Arguments {
    socket: PathBuf,
    events: PathBuf,
    /// Standard error, if nothing is named.
    log: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("--version") {
        println!("cloud-hypervisor v53.0\nMigration Protocol Versions: 0");
        return Ok(());
    }
    keep_files_to_oneself();
    let arguments = read_arguments()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, run(arguments))
}

/// As the real one: its sockets are its own user's, unless whoever started it forbids the call:
/// nobody notices that. (`nix::sys::stat::umask` would panic.)
fn keep_files_to_oneself() {
    // SAFETY: takes and gives a number, and touches no memory.
    let _ = unsafe { nix::libc::umask(0o077) };
}

fn read_arguments() -> anyhow::Result<Arguments> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = words.iter().position(|word| word == name).with_context(|| name.to_owned())?;
        let value = words.get(at + 1).with_context(|| name.to_owned())?;
        Ok::<_, anyhow::Error>(PathBuf::from(value.strip_prefix("path=").unwrap_or(value)))
    };
    let (socket, events) = (value("--api-socket")?, value("--event-monitor")?);
    Ok(Arguments { socket, events, log: value("--log-file").ok() })
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { socket, events, log } = arguments;
    let mut lock = socket.clone().into_os_string();
    lock.push(".lock");
    let lock = OpenOptions::new().write(true).create(true).truncate(false).open(lock)?;
    if !take_lock(&lock) {
        bail!("API socket {} is already in use by another running instance", socket.display());
    }
    remove(&socket)?;
    let listener = UnixListener::bind(&socket)?;
    let mut end = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let log: Box<dyn Write> = match log {
        Some(log) => Box::new(File::create(log)?),
        None => Box::new(std::io::stderr()),
    };
    let monitor = Monitor::new(File::create(events)?, log, socket);
    let monitor = Rc::new(RefCell::new(monitor));
    Monitor::run_guest(&monitor);
    monitor.borrow_mut().tell("vmm", "starting");
    let serving = Rc::clone(&monitor);
    tokio::task::spawn_local(async move { server::serve(listener, serving).await });
    tokio::select! {
        _ = end.0.recv() => {}
        _ = end.1.recv() => {}
    }
    // The guest is not asked.
    monitor.borrow_mut().power_off()
}

/// The lock of an open file, as the real one takes it on its socket and on disks.
fn take_lock(file: &File) -> bool {
    let whole = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole)).is_ok()
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
