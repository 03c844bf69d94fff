//! The daemon `dagger-agent`: reads its configuration, takes its sockets, starts
//! [`dagger_agent::daemon`], and tells systemd how it is. Decides nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use dagger_agent::configuration::Configuration;
use dagger_agent::daemon::{self, Broken, Listeners};
use dagger_agent::limits::WATCHDOG_EVERY_MIN;
use dagger_agent::machines;
use dagger_bus::handed::HandedSockets;
use dagger_bus::listener;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The agent of one dagger host: serves the developers' API, follows the host's ledger, and works
/// on the host's virtual machines.
///
/// It connects to dagger-ledger and dagger-processor of the same host over Unix sockets, and to
/// the hypervisor. Each of them may be away: the agent tries again and says so under /v1/health.
/// Running VMs never depend on it.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Arguments {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE", default_value = "/etc/dagger/agent.toml")]
    configuration: PathBuf,
    /// Only read configuration, genesis and key, look for what they name, say whether that is in
    /// order, and exit.
    #[arg(long)]
    check: bool,
}

const EXIT_CODES: &str = "Exit codes: 0 stopped in order; 2 wrong usage; 64 the configuration, or a \
file or socket that it names, was refused; \
65 the state directory is damaged or cannot be written; 70 a defect of this program, or its archive of the history cannot be used (a fresh start builds it anew).";

/// Exit codes; units list which of them must not restart.
#[derive(Debug, Clone, Copy)]
enum Exit {
    Configuration = 64,
    State = 65,
    Internal = 70,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let configuration = match Configuration::read(&arguments.configuration) {
        Ok(configuration) => configuration,
        Err(error) => {
            eprintln!("dagger-agent: {:#}", anyhow::Error::from(error));
            return Exit::Configuration.into();
        }
    };
    let filter = match EnvFilter::try_new(&configuration.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("dagger-agent: `log` is no filter of tracing (try \"info\"): {error}");
            return Exit::Configuration.into();
        }
    };
    let missing = configuration.missing_files();
    if arguments.check {
        if !missing.is_empty() {
            eprintln!("dagger-agent: {}", missing.join("; "));
            return Exit::Configuration.into();
        }
        println!("ok: host {} of cluster {}", configuration.host.name, configuration.cluster);
        return ExitCode::SUCCESS;
    }
    start_log(filter);
    for what in missing {
        warn!("{what}: no machine can start");
    }
    match run(configuration) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = format!("{error:#}"), "stopping: cannot go on");
            exit_code(&error).into()
        }
    }
}

/// The sockets that this process was started with, or may bind, are not those that it needs.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen")]
struct NoSocket(#[source] anyhow::Error);

fn exit_code(error: &anyhow::Error) -> Exit {
    if error.is::<NoSocket>() {
        return Exit::Configuration;
    }
    match error.downcast_ref::<Broken>() {
        Some(Broken::State(_) | Broken::Machines(machines::Broken::StateDirectory(_))) => {
            Exit::State
        }
        // A fresh start builds the archive anew, so it is started again.
        Some(Broken::Archive(_) | Broken::ArchiveUnread(_)) => Exit::Internal,
        Some(Broken::Machines(_) | Broken::Part(_)) | None => Exit::Internal,
    }
}

fn start_log(filter: EnvFilter) {
    let registry = tracing_subscriber::registry().with(filter);
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journal) = tracing_journald::layer()
    {
        registry.with(journal).init();
    } else {
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        registry.with(layer.with_ansi(false)).init();
    }
}

#[tokio::main]
async fn run(configuration: Configuration) -> anyhow::Result<()> {
    let listeners = listen(&configuration).await.map_err(NoSocket)?;
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    keep_watchdog();
    // Only fails where no service manager listens.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let ended = daemon::run(configuration, listeners, stop).await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    info!("stopped");
    Ok(ended?)
}

async fn listen(configuration: &Configuration) -> anyhow::Result<Listeners> {
    let mut handed = HandedSockets::from_environment();
    let path = &configuration.api.socket;
    let api = match handed.unix("api")? {
        Some(socket) => listener::adopt(socket)?,
        None => {
            listener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?
        }
    };
    let api_tcp = tcp_listener(handed.tcp("api-tcp")?, configuration.api.listen).await?;
    let images = tcp_listener(handed.tcp("images")?, configuration.images_listen).await?;
    Ok(Listeners { api, api_tcp, images })
}

/// The socket that was handed over, else one at the address that is configured.
async fn tcp_listener(
    handed: Option<std::net::TcpListener>,
    address: Option<SocketAddr>,
) -> anyhow::Result<Option<TcpListener>> {
    Ok(match (handed, address) {
        (Some(socket), _) => {
            socket.set_nonblocking(true)?;
            Some(TcpListener::from_std(socket)?)
        }
        (None, Some(address)) => {
            let listener = TcpListener::bind(address).await;
            Some(listener.with_context(|| format!("cannot listen at {address}"))?)
        }
        (None, None) => None,
    })
}

fn stop_on_signals(stop: &CancellationToken) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let (mut signal, stop) = (signal(kind)?, stop.clone());
        tokio::spawn(async move {
            if signal.recv().await.is_some() {
                info!("told to stop");
                stop.cancel();
            }
        });
    }
    Ok(())
}

/// Pings the service manager's watchdog from the runtime that serves requests: when that hangs, the
/// pings end.
fn keep_watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let every = (limit / 2).max(WATCHDOG_EVERY_MIN);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(every);
        loop {
            ticks.tick().await;
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    });
}
