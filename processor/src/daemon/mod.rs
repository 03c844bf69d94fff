//! The shell around the judge: threads, sockets and the order of start.
//!
//! Owns nothing that must survive. The pure judge runs on one thread; signatures are checked on a
//! small pool. Called by `main`.

mod court;
mod notify;
mod pool;
mod proofs;
mod serve;

use std::cell::RefCell;
use std::rc::Rc;

use dagger_bus::handed::HandedSockets;
use dagger_bus::listener;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::ClusterId;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::configuration::{Configuration, Sockets};
use crate::sandbox::{self, FileWall};
use court::Court;
use notify::Supervisor;
use pool::Pool;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// No socket to listen on, or the sandbox cannot be closed.
pub fn run(
    configuration: &Configuration,
    genesis: Genesis,
    cluster: ClusterId,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let (ledger, seal) = listeners(&configuration.sockets)?;
        let supervisor = Supervisor::from_environment()?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let threads = pool::threads(); // by files that are closed next
        let wall = sandbox::close_files()?;
        let pool = Pool::start(threads)?;
        sandbox::close_calls()?;
        match wall {
            FileWall::Landlock => tracing::info!("sandbox closed: no files, sockets, processes"),
            FileWall::FilterOnly => tracing::warn!(
                "sandbox closed by the system call filter alone: this kernel has no Landlock"
            ),
        }
        let court = Rc::new(RefCell::new(Court::open(genesis, cluster)?));
        tokio::task::spawn_local(serve::accept_ledgers(ledger, court.clone(), pool));
        tokio::task::spawn_local(serve::accept_agents(seal, court));
        supervisor.ready();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = supervisor.feed_watchdog() => {}
        }
        supervisor.stopping();
        Ok(())
    })
}

/// The two listeners: handed over, else bound at their configured paths.
fn listeners(sockets: &Sockets) -> anyhow::Result<(UnixListener, UnixListener)> {
    let mut handed = HandedSockets::from_environment();
    let mut listen = |name: &str, path: &Option<std::path::PathBuf>| {
        if let Some(socket) = handed.unix(name)? {
            return Ok(listener::adopt(socket)?);
        }
        let path = path.as_ref().ok_or_else(|| {
            anyhow::anyhow!("no socket `{name}` was handed over and sockets.{name} is not set")
        })?;
        Ok::<_, anyhow::Error>(listener::bind(path)?)
    };
    Ok((listen("ledger", &sockets.ledger)?, listen("seal", &sockets.seal)?))
}
