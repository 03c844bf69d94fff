//! The agent's ledger-facing half, assembled as the daemon does it, with the test in place of the
//! machines' half.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dagger_agent::api::{self, ApiParts};
use dagger_agent::configuration::{ApiConfiguration, HostIdentity};
use dagger_agent::daemon::Listeners;
use dagger_agent::handover::{ConsoleRequest, HostReport, LocalStopRequest, Order, SightBoard};
use dagger_agent::link::orders::OrderTeller;
use dagger_agent::link::releases::Follower;
use dagger_agent::link::requests::LedgerClient;
use dagger_agent::link::seal;
use dagger_agent::metrics::Metrics;
use dagger_agent::model::{ArchiveError, Archives, Model, SharedModel};
use dagger_agent::observation::ConsoleFiles;
use dagger_agent::one_shot::HelperConfiguration;
use dagger_agent::submit::Submitter;
use dagger_agent::verify::mark::{Mark, MarkFile};
use dagger_agent::verify::reader::{Progress, Reader};
use dagger_images::ImageStore;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::fakes::{FakeLedger, FakeProcessor};
use crate::http::{PATIENCE, Way};
use crate::support::{World, key};

pub(crate) struct Agent {
    pub(crate) world: Arc<World>,
    pub(crate) ledger: FakeLedger,
    pub(crate) processor: FakeProcessor,
    pub(crate) unix: Way,
    pub(crate) tcp: Way,
    /// The door for other hosts.
    pub(crate) images: Way,
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) reports: mpsc::Sender<HostReport>,
    pub(crate) model: SharedModel,
    pub(crate) board: SightBoard,
    pub(crate) consoles: mpsc::Receiver<ConsoleRequest>,
    pub(crate) local_stops: mpsc::Receiver<LocalStopRequest>,
    pub(crate) directory: tempfile::TempDir,
    stream: watch::Receiver<Result<(), String>>,
    /// Follows the ledger's releases.
    following: JoinHandle<Result<(), ArchiveError>>,
    client: LedgerClient,
    _stop: DropGuard,
}

/// A directory with a ledger and a processor in it.
pub(crate) struct Surroundings {
    pub(crate) world: Arc<World>,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) ledger: FakeLedger,
    pub(crate) processor: FakeProcessor,
}

impl Surroundings {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let world = Arc::new(World::new());
        let ledger = FakeLedger::listen(&directory.path().join("ledger"), &world);
        let seal = key(World::SEAL).public_key();
        let processor = FakeProcessor::listen(&directory.path().join("seal"), &world, seal);
        Self { world, directory, ledger, processor }
    }
}

fn submitter(
    world: &World,
    ledger: &LedgerClient,
    model: &SharedModel,
    metrics: &Arc<Metrics>,
) -> Submitter {
    Submitter {
        cluster: world.cluster,
        key: Arc::new(World::agent_key(0)),
        ledger: ledger.clone(),
        model: model.clone(),
        metrics: Arc::clone(metrics),
    }
}

/// Nothing read yet, and nothing folded.
fn begin(world: &World, state: &Path, mark: Option<Mark>) -> (Reader, SharedModel, Arc<Archives>) {
    let mut reader = Reader::new(world.cluster, (*world.genesis).clone(), mark);
    let archives = Archives::below(state);
    let archive = archives.fresh().expect("room on the disk");
    let model = SharedModel::new(Model::new(&world.genesis), Some(archive), reader.progress());
    (reader, model, Arc::new(archives))
}

/// The host under test.
fn identity(world: &World) -> HostIdentity {
    let member = &world.genesis.hosts[0];
    HostIdentity { id: member.id(), name: member.name.clone() }
}

/// How far an earlier life of the agent has acted.
fn kept_mark(directory: &Path) -> (MarkFile, Option<Mark>) {
    let file = MarkFile::new(directory);
    let mark = file.read().expect("a readable mark");
    (file, mark)
}

impl Agent {
    pub(crate) async fn start() -> Self {
        Self::start_in(Surroundings::new()).await
    }

    pub(crate) async fn start_in(surroundings: Surroundings) -> Self {
        let Surroundings { world, directory, ledger, processor } = surroundings;
        let at = |name: &str| directory.path().join(name);
        let stop = CancellationToken::new();
        let (mark_file, mark) = kept_mark(directory.path());
        let (reader, model, archives) = begin(&world, directory.path(), mark);
        let (seal_sender, seal) = watch::channel(Err("not connected yet".to_owned()));
        let (state, stream) = watch::channel(Err("not connected yet".to_owned()));
        let (order_sender, orders) = mpsc::channel(64);
        let (reports, report_receiver) = mpsc::channel(64);
        let (client, client_work) = LedgerClient::new(at("ledger"), world.cluster, stop.clone());
        let (metrics, board) = (Arc::new(Metrics::new()), SightBoard::default());
        tokio::spawn(seal::keep(at("seal"), world.cluster, seal_sender, stop.clone()));
        tokio::spawn(client_work);
        let follower = Follower {
            path: at("ledger"),
            cluster: world.cluster,
            genesis: Arc::clone(&world.genesis),
            reader,
            model: model.clone(),
            archives,
            seal: seal.clone(),
            state,
        };
        let following = tokio::spawn(follower.run(stop.clone()));
        let host = identity(&world);
        let tell = OrderTeller::new(host.id, model.clone(), order_sender, mark_file, mark);
        tokio::spawn(tell.run(stop.clone()));
        let submit = submitter(&world, &client, &model, &metrics);
        tokio::spawn(submit.run(report_receiver, stop.clone()));
        client.until_reached().await;
        let (console_sender, consoles) = mpsc::channel(4);
        let (stop_sender, local_stops) = mpsc::channel(4);
        let parts = ApiParts {
            cluster: world.cluster,
            cluster_name: world.genesis.name.clone(),
            host,
            images: Arc::new(ImageStore::open(&at("images")).expect("a fresh store")),
            ledger: client.clone(),
            model: model.clone(),
            board: board.clone(),
            metrics,
            seal,
            stream: stream.clone(),
            consoles: console_sender,
            console_files: ConsoleFiles::new(directory.path(), &HelperConfiguration::default()),
            storage_directory: directory.path().to_owned(),
            local_stops: stop_sender,
        };
        let [unix, tcp, images] = serve(parts, at("api"), stop.clone()).await;
        Self {
            world,
            ledger,
            processor,
            unix,
            tcp,
            images,
            orders,
            reports,
            model,
            board,
            consoles,
            local_stops,
            directory,
            stream,
            following,
            client,
            _stop: stop.drop_guard(),
        }
    }

    /// Waits until progress is as wanted.
    pub(crate) async fn until(&self, wanted: impl FnMut(&Progress) -> bool) -> Progress {
        let mut news = self.model.subscribe();
        let reached = tokio::time::timeout(PATIENCE, news.wait_for(wanted)).await;
        let last = self.model.progress();
        let reached = reached.unwrap_or_else(|_| panic!("never reached; last {last:?}"));
        reached.expect("the model lives").clone()
    }

    /// The path of the API's Unix socket.
    pub(crate) fn unix_path(&self) -> Option<&std::path::Path> {
        match &self.unix {
            Way::Unix(path) => Some(path),
            Way::Tcp(_) => None,
        }
    }

    /// The ledger goes away and cannot be reached again.
    pub(crate) async fn remove_ledger(&self) {
        let path = self.directory.path().join("ledger");
        std::fs::remove_file(path).expect("it listened there");
        self.ledger.start_over(Vec::new());
        self.until_stream_fails().await;
        let work = async {
            while self.client.reached().is_ok() {
                tokio::task::yield_now().await;
            }
        };
        let gone = tokio::time::timeout(PATIENCE, work).await;
        gone.expect("the connection ends");
    }

    /// Waits until the release stream was given up for a reason that is not only the start, and
    /// returns it.
    pub(crate) async fn until_stream_fails(&self) -> String {
        let mut stream = self.stream.clone();
        let failed =
            |state: &Result<(), String>| matches!(state, Err(why) if why != "not connected yet");
        let reached = tokio::time::timeout(PATIENCE, stream.wait_for(failed)).await;
        let state = reached.expect("in time").expect("the stream lives").clone();
        state.expect_err("checked above")
    }

    /// Waits until the ledger's releases are followed no more.
    pub(crate) async fn until_unfollowed(&mut self) -> Result<(), ArchiveError> {
        let ended = tokio::time::timeout(PATIENCE, &mut self.following).await;
        ended.expect("it ends in time").expect("no panic")
    }

    pub(crate) async fn next_order(&mut self) -> Order {
        let order = tokio::time::timeout(PATIENCE, self.orders.recv()).await;
        order.expect("an order in time").expect("the agent lives")
    }
}

async fn serve(parts: ApiParts, socket: PathBuf, stop: CancellationToken) -> [Way; 3] {
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let tcp = tcp.expect("a free port");
    let address = tcp.local_addr().expect("bound");
    let images = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let images_address = images.local_addr().expect("bound");
    let listeners = Listeners {
        api: dagger_bus::listener::bind(&socket).expect("a fresh path"),
        api_tcp: Some(tcp),
        images: Some(images),
    };
    let configuration = ApiConfiguration {
        socket: socket.clone(),
        listen: Some(address),
        hosts: BTreeSet::from(["cloud.example".to_owned()]),
    };
    tokio::spawn(api::serve(parts, configuration, listeners, stop));
    [Way::Unix(socket), Way::Tcp(address), Way::Tcp(images_address)]
}
