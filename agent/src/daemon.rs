//! The agent as one piece: its parts, started together and stopped together.
//!
//! Owns their wiring and nothing else. Ends only when told to, or when a part is broken: never
//! because ledger, processor or hypervisor are away. Called by `main`, and by tests.

use std::path::Path;
use std::sync::Arc;

use dagger_images::ImageStore;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::ClusterId;
use dagger_payload::key::SecretKey;
use dagger_payload::limits::SESSION_LIFE_MS_MAX;
use dagger_payload::session::SessionDocument;
use futures_util::FutureExt;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::api::{self, ApiParts};
use crate::clock;
use crate::configuration::Configuration;
use crate::handover::{Introduction, Requests, SightBoard};
use crate::limits::{
    CONSOLE_REQUESTS_WAITING_MAX, LOCAL_STOPS_WAITING_MAX, ORDERS_WAITING_MAX, REPORTS_WAITING_MAX,
    STOP_WAIT_MAX,
};
use crate::link::orders::OrderTeller;
use crate::link::releases::Follower;
use crate::link::requests::LedgerClient;
use crate::link::seal;
use crate::machines;
use crate::metrics::Metrics;
use crate::model::{ArchiveError, Archives, Model, SharedModel};
use crate::observation::ConsoleFiles;
use crate::submit::Submitter;
use crate::verify::mark::MarkFile;
use crate::verify::reader::{Progress, Reader};

/// Sockets that already listen.
pub struct Listeners {
    /// The API's Unix socket.
    pub api: UnixListener,
    /// The API's TCP socket, if any.
    pub api_tcp: Option<TcpListener>,
    /// The TCP socket at which other hosts get images, if any.
    pub images: Option<TcpListener>,
}

/// The agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// What this host keeps on disk is damaged or cannot be written.
    #[error("the state directory cannot be used")]
    State(#[source] std::io::Error),
    /// What is kept of the history on disk cannot be written or read. A new start builds it anew.
    #[error("the archive of the history cannot be used")]
    Archive(#[source] ArchiveError),
    /// It cannot be read; why was said.
    #[error("the archive of the history cannot be used: {0}")]
    ArchiveUnread(String),
    /// The machines' half is broken.
    #[error("the machines' half is broken")]
    Machines(#[source] machines::Broken),
    /// A part ended that never should: a defect.
    #[error("a part of the agent ended unexpectedly: {0}")]
    Part(String),
}

/// Runs the agent until `stop` is cancelled.
///
/// # Errors
/// [`Broken`].
pub async fn run(
    configuration: Configuration,
    listeners: Listeners,
    stop: CancellationToken,
) -> Result<(), Broken> {
    let mut parts = start(configuration, listeners, &stop)?;
    let ended = stop.run_until_cancelled(parts.join_next()).await.flatten();
    let mut verdict = ended.map_or(Ok(()), |ended| judge_end(ended, &stop));
    if verdict.is_err() {
        stop.cancel();
    }
    let rest = async {
        while let Some(ended) = parts.join_next().await {
            let ended = judge_end(ended, &stop);
            if verdict.is_ok() {
                verdict = ended;
            }
        }
    };
    if tokio::time::timeout(STOP_WAIT_MAX, rest).await.is_err() {
        error!("a part of the agent does not stop; leaving it behind");
    }
    verdict
}

type Ended = Result<(&'static str, Result<(), Broken>), tokio::task::JoinError>;

fn judge_end(ended: Ended, stop: &CancellationToken) -> Result<(), Broken> {
    match ended {
        Ok((_, Err(broken))) => Err(broken),
        Ok((_, Ok(()))) if stop.is_cancelled() => Ok(()),
        Ok((part, Ok(()))) => Err(Broken::Part(part.to_owned())),
        Err(panic) => Err(Broken::Part(panic.to_string())),
    }
}

type Parts = JoinSet<(&'static str, Result<(), Broken>)>;

fn start(
    configuration: Configuration,
    listeners: Listeners,
    stop: &CancellationToken,
) -> Result<Parts, Broken> {
    let (cluster, genesis) = (configuration.cluster, Arc::new(configuration.genesis));
    std::fs::create_dir_all(&configuration.state_directory).map_err(Broken::State)?;
    let storage_directory = &configuration.machines.storage_directory;
    let images = ImageStore::open(&storage_directory.join("images"));
    let images = Arc::new(images.map_err(|e| Broken::State(std::io::Error::other(e)))?);
    let mark_file = MarkFile::new(&configuration.state_directory);
    let mark = mark_file.read().map_err(Broken::State)?;
    info!(host = %configuration.host.name, ?mark, "starting");

    let mut reader = Reader::new(cluster, (*genesis).clone(), mark);
    let (model, archives) = model(&configuration.state_directory, &genesis, reader.progress())?;
    let (board, metrics) = (SightBoard::default(), Arc::new(Metrics::new()));
    let (order_sender, orders) = mpsc::channel(ORDERS_WAITING_MAX);
    let (report_sender, reports) = mpsc::channel(REPORTS_WAITING_MAX);
    let (seal_sender, seal) = watch::channel(Err("not connected yet".to_owned()));
    let (stream_sender, stream) = watch::channel(Err("not connected yet".to_owned()));
    let (ledger, ledger_work) =
        LedgerClient::new(configuration.ledger_socket.clone(), cluster, stop.clone());

    let follower = Follower {
        path: configuration.ledger_socket,
        cluster,
        genesis: Arc::clone(&genesis),
        reader,
        model: model.clone(),
        archives: Arc::new(archives),
        seal: seal.clone(),
        state: stream_sender,
    };
    let here = configuration.host.id;
    let teller = OrderTeller::new(here, model.clone(), order_sender, mark_file, mark);
    let key = Arc::new(configuration.key);
    let submitter = Submitter {
        cluster,
        key: Arc::clone(&key),
        ledger: ledger.clone(),
        model: model.clone(),
        metrics: Arc::clone(&metrics),
    };
    let (console_sender, console_requests) = mpsc::channel(CONSOLE_REQUESTS_WAITING_MAX);
    let (stop_sender, local_stops) = mpsc::channel(LOCAL_STOPS_WAITING_MAX);
    let api_parts = ApiParts {
        cluster,
        cluster_name: genesis.name.clone(),
        host: configuration.host,
        images,
        ledger,
        model,
        board: board.clone(),
        metrics,
        seal,
        stream,
        consoles: console_sender,
        local_stops: stop_sender,
        console_files: ConsoleFiles::new(storage_directory, &configuration.machines.helpers),
        storage_directory: configuration.machines.storage_directory.clone(),
    };
    let (configuration_api, mut machines) = (configuration.api, configuration.machines);
    machines.downloads.introduction = introduction(cluster, key, api_parts.model.clone());

    let mut parts = Parts::new();
    let keep_seal = seal::keep(configuration.seal_socket, cluster, seal_sender, stop.clone());
    parts.spawn(infallible("seal link", keep_seal));
    parts.spawn(infallible("ledger link", ledger_work));
    spawn_history(&mut parts, follower, stop.clone());
    parts.spawn(infallible("reports", submitter.run(reports, stop.clone())));
    let serve = api::serve(api_parts, configuration_api, listeners, stop.clone());
    parts.spawn(infallible("api", serve));
    parts.spawn(teller.run(stop.clone()).map(|told| ("orders", told.map_err(Broken::State))));
    let requests = Requests { consoles: console_requests, local_stops };
    let work = machines::run(machines, orders, report_sender, board, requests, stop.clone());
    parts.spawn(async move { ("machines", work.await.map_err(Broken::Machines)) });
    Ok(parts)
}

/// The read model with an empty archive, and where further ones are begun. Where there is no room
/// for one, it is begun by who follows the ledger, and everything else starts without it.
fn model(
    state_directory: &Path,
    genesis: &Genesis,
    progress: Progress,
) -> Result<(SharedModel, Archives), Broken> {
    let archives = Archives::below(state_directory);
    let archive = match archives.fresh() {
        Err(ArchiveError::Full(_)) => None,
        archive => Some(archive.map_err(Broken::Archive)?),
    };
    Ok((SharedModel::new(Model::new(genesis), archive, progress), archives))
}

/// Follows the ledger, and watches whether what is past can be read.
fn spawn_history(parts: &mut Parts, follower: Follower, stop: CancellationToken) {
    let (model, stopping) = (follower.model.clone(), stop.clone());
    let follow = follower.run(stop);
    parts.spawn(async move { ("release stream", follow.await.map_err(Broken::Archive)) });
    parts.spawn(async move {
        let broken = stopping.run_until_cancelled(model.until_broken()).await;
        ("archive", broken.map_or(Ok(()), |why| Err(Broken::ArchiveUnread(why))))
    });
}

/// Sessions of this host's own key, each for one other host and a few minutes.
fn introduction(cluster: ClusterId, key: Arc<SecretKey>, model: SharedModel) -> Introduction {
    Introduction::new(move |host| {
        let now = clock::now(model.read(Model::ledger_time));
        let document = SessionDocument {
            dagger: 1,
            cluster,
            host,
            key: key.public_key(),
            not_after_ms: now.plus_ms(SESSION_LIFE_MS_MAX / 2),
        };
        document.to_headers(&key)
    })
}

async fn infallible(
    name: &'static str,
    part: impl Future<Output = ()>,
) -> (&'static str, Result<(), Broken>) {
    part.await;
    (name, Ok(()))
}
