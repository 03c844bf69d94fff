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
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::Context;
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

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Nobody can reach it as it was started; another start comes to the same.
    #[error("{0}")]
    Sockets(String),
    /// A thread, or the sandbox, which cannot be closed.
    #[error(transparent)]
    Internal(#[from] anyhow::Error),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// [`RunError`].
pub fn run(
    configuration: &Configuration,
    genesis: Genesis,
    cluster: ClusterId,
) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start a runtime")?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let (ledger, seal) = listeners(&configuration.sockets)?;
        Ok(serve_both(genesis, cluster, ledger, seal).await?)
    })
}

/// Closes the sandbox and serves both sockets.
async fn serve_both(
    genesis: Genesis,
    cluster: ClusterId,
    ledger: UnixListener,
    seal: UnixListener,
) -> anyhow::Result<()> {
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
}

/// The two listeners: handed over, else bound at their configured paths.
fn listeners(sockets: &Sockets) -> Result<(UnixListener, UnixListener), RunError> {
    let mut handed = HandedSockets::from_environment();
    let mut listen = |name: &str, path: &Option<PathBuf>| {
        let refused = |error| RunError::Sockets(format!("cannot listen as `{name}`: {error}"));
        if let Some(socket) = handed.unix(name).map_err(refused)? {
            return listener::adopt(socket).map_err(refused);
        }
        match path {
            Some(path) => listener::bind(path).map_err(refused),
            None => Err(RunError::Sockets(format!(
                "no socket `{name}` was handed over: start dagger-processor-{name}.socket, or set \
                 sockets.{name}"
            ))),
        }
    };
    Ok((listen("ledger", &sockets.ledger)?, listen("seal", &sockets.seal)?))
}
