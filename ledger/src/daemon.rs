//! The running ledger: all parts, started in order and stopped in order.
//!
//! Owns the wiring and the lives of threads and tasks. Nothing is signed before store, witness and
//! the founding state are known; while the processor was never seen, only the agent is served.
//! Called by `main` and by tests.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use dagger_bus::handed::HandedSockets;
use dagger_bus::listener;
use dagger_ledger_core::{CoreStatus, HaltReason, Input, Memory as Trust, RestoredState};
use dagger_payload::event::CommitEnd;
use dagger_payload::genesis::GenesisMode;
use dagger_payload::roster::Roster;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::configuration::Prepared;
use crate::delivery::admission::{self, Admissions, Questions};
use crate::delivery::evidence::Evidence;
use crate::delivery::forwarding::{self, Forwarding};
use crate::delivery::handing::{self, Hands};
use crate::delivery::places::Places;
use crate::delivery::recent::RecentReleases;
use crate::delivery::snapshots::Snapshots;
use crate::delivery::submissions::Submissions;
use crate::delivery::{Delivery, agent, judging, opaque, pool, retention};
use crate::driver::Sources;
use crate::driver::commits::Commits;
use crate::driver::start::{self, Parts};
use crate::exit::{self, Exit, Stop, StopHandle, StopReceiver, in_words};
use crate::limits::{CORE_INPUTS_MAX, RECEIPTS_WAITING_MAX, STOP_WAIT_MAX};
use crate::link::inspect::KnownEvents;
use crate::link::{LinkConfiguration, Links, heard};
use crate::mend::{self, Doubt};
use crate::seats::{Contradiction, Seats};
use crate::store::lmdb::LmdbStore;
use crate::store::pool::Pool;
use crate::store::records::{self, Instance, InstanceId, Records};
use crate::store::witness::{Signed, Testimony, Witness};
use crate::store::writer::{self, WriterHandle};
use crate::store::{Change, Store, StoreError};
use crate::transfer::Fetched;
use crate::transfer::client::Client;
use crate::transfer::inbox;

/// Why a start failed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store is damaged or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store was made for something else.
    #[error(
        "the state directory belongs to another cluster or host; set another `state_directory`, or \
         correct genesis and key"
    )]
    ForeignStore,
    /// Broken: this host is alone and might sign an old round again.
    #[error(
        "{reason}: put back the state directory `{directory}` and the witness `{witness}` as they \
         were when it stopped last, or both from one copy of a stopped ledger that nothing was \
         submitted to since; if the store is the newest and only the witness is lost, say so with \
         `dagger-ledger --trust-store`; else found a new cluster", reason = HaltReason::NobodyToAsk
    )]
    NobodyToAsk {
        /// Where.
        directory: PathBuf,
        /// Where.
        witness: PathBuf,
    },
    /// An operator's word where it is not wanted.
    #[error(
        "there is nothing to trust: the store of a host without peers counts, as long as it knows \
         of something signed and the witness of nothing later; among peers the start asks them"
    )]
    NothingToTrust,
    /// A seat has two keys.
    #[error(transparent)]
    Seats(#[from] Contradiction),
    /// A file, socket or thread.
    #[error("cannot {doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        cause: io::Error,
    },
}

impl StartError {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Store(StoreError::OpenAlready(_) | StoreError::Full(_))
            | Self::ForeignStore
            | Self::NothingToTrust
            | Self::Seats(Contradiction::Told(_))
            | Self::Io { .. } => Exit::Configuration,
            Self::Seats(Contradiction::Judged(_)) => Exit::Broken,
            Self::Store(
                StoreError::Damaged { .. }
                | StoreError::Lost { .. }
                | StoreError::Page { .. }
                | StoreError::Failed { .. },
            ) => Exit::Damaged,
            Self::NobodyToAsk { .. } => Exit::Broken,
        }
    }
}

fn doing(doing: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |cause| StartError::Io { doing, cause }
}

/// The handed TCP socket `peers`, or one bound at `address`.
async fn peers_socket(handed: &mut HandedSockets, address: SocketAddr) -> io::Result<TcpListener> {
    match handed.tcp("peers")? {
        Some(listener) => {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        }
        None => TcpListener::bind(address).await,
    }
}

/// The handed Unix socket `agent`, or one bound at `path`.
fn agent_socket(handed: &mut HandedSockets, path: Option<&Path>) -> io::Result<UnixListener> {
    match (handed.unix("agent")?, path) {
        (Some(listener), _) => listener::adopt(listener),
        (None, Some(path)) => listener::bind(path),
        (None, None) => {
            let missing = "no socket `agent` was handed over: start dagger-ledger.socket, or set \
                           sockets.agent";
            Err(io::Error::other(missing))
        }
    }
}

/// Store, witness and writer.
struct Memory {
    records: Records,
    seats: Arc<Seats>,
    instance: InstanceId,
    testimony: Option<Testimony>,
    writer: WriterHandle,
    writer_thread: JoinHandle<()>,
}

fn open_memory(prepared: &Prepared, stop: &StopHandle) -> Result<Memory, StartError> {
    let configuration = &prepared.configuration;
    let directory = mend::store_directory(&configuration.state_directory);
    let store: Arc<dyn Store> = Arc::new(LmdbStore::open(&directory, configuration.map_gib << 30)?);
    let records = Records::new(store.clone());
    let handover = records.last_handover()?;
    let voters = handover.map_or(prepared.genesis.committee(), |last| last.committee);
    let seats = Arc::new(Seats::new(
        Roster::founding(&prepared.genesis),
        prepared.told.clone(),
        records.roster()?,
        configuration.peers.clone(),
        voters,
    )?);
    let founders = prepared.genesis.committee();
    let (cluster, author) = (prepared.cluster, prepared.me);
    let instance = match records.instance()? {
        Some(known) if (known.cluster, known.author) == (cluster, author) => known.id,
        // The same host with another key: its history is this store's, its own events are not.
        Some(known) if known.cluster == cluster && seats.same_host(known.author, author) => {
            store.commit(&start::new_seat_changes(&records, founders, &known, author)?)?;
            known.id
        }
        Some(_) => return Err(StartError::ForeignStore),
        None => {
            let id = InstanceId(random::<16>()?.into());
            let instance = Instance { id, cluster, author };
            store.commit(&[records::instance_change(&instance)])?;
            id
        }
    };
    let (mut witness, mut testimony) =
        Witness::open(&configuration.witness).map_err(doing("open the witness file"))?;
    // Only founders know that nobody has signed anything before.
    let knows = testimony.is_some() || founders.contains(author);
    let overdue = start::overdue_testimony(&records, founders, instance, testimony)?;
    if let Some(overdue) = overdue.filter(|_| knows) {
        witness.write(&overdue).map_err(doing("write the witness file"))?;
        testimony = Some(overdue);
    }
    let (writer, writer_thread) =
        writer::start(store, witness, instance, stop.clone()).map_err(doing("start the writer"))?;
    Ok(Memory { records, seats, instance, testimony, writer, writer_thread })
}

/// Writes the witness of a host without peers anew, because its operator says that the store of
/// this stopped ledger is the newest; gives what it says then.
///
/// # Errors
/// [`StartError`].
pub fn trust_store(prepared: &Prepared) -> Result<Signed, StartError> {
    let configuration = &prepared.configuration;
    let directory = mend::store_directory(&configuration.state_directory);
    let store = Arc::new(LmdbStore::open(&directory, configuration.map_gib << 30)?);
    let records = Records::new(store);
    let trusted = match records.instance()? {
        Some(known) if (known.cluster, known.author) == (prepared.cluster, prepared.me) => {
            start::trusted_testimony(&records, known.id)?
        }
        Some(_) => return Err(StartError::ForeignStore),
        None => None,
    };
    let (mut witness, seen) =
        Witness::open(&configuration.witness).map_err(doing("open the witness file"))?;
    let alone = records.roster()?.unwrap_or(prepared.roster()).present().count() == 1;
    let trusted = trusted.filter(|trusted| {
        let later = seen.filter(|seen| seen.instance == trusted.instance);
        alone && later.is_none_or(|seen| seen.signed <= trusted.signed)
    });
    let testimony = trusted.ok_or(StartError::NothingToTrust)?;
    // Both slots: what another store said is void.
    for _ in 0..2 {
        witness.write(&testimony).map_err(doing("write the witness file"))?;
    }
    Ok(testimony.signed)
}

/// What the core continues from, unless this host is alone and does not know what it signed; and
/// what is to be written before anything else.
fn restored(
    prepared: &Prepared,
    delivery: &Delivery,
    (instance, testimony): (InstanceId, Option<Testimony>),
) -> Result<(RestoredState, Vec<Change>), StartError> {
    let (records, founders) = (&delivery.records, prepared.genesis.committee());
    let mut state = start::restored_state(records, founders, instance, testimony)?;
    state.questions_above = u64::from_be_bytes(random()?) >> 1;
    if !founders.contains(prepared.me) && records.last_handover()?.is_none() {
        // Only founders know that nobody has signed anything before.
        state.memory = Trust::Doubtful;
    }
    let committee = delivery.committee();
    if start::is_alone_in_doubt(committee, prepared.me, state.memory) {
        let configuration = &prepared.configuration;
        let directory = configuration.state_directory.clone();
        return Err(StartError::NobodyToAsk { directory, witness: configuration.witness.clone() });
    }
    let changes = pool::settle(delivery, &mut state)?;
    Ok((state, changes))
}

fn random<const BYTES: usize>() -> Result<[u8; BYTES], StartError> {
    let mut random = [0; BYTES];
    getrandom::fill(&mut random)
        .map_err(|error| doing("draw random bytes")(io::Error::other(error)))?;
    Ok(random)
}

/// Where the own seat says that this ledger listens.
fn own_address(prepared: &Prepared, seats: &Seats) -> SocketAddr {
    let seat = seats.now().seat(prepared.me).map(|seat| seat.address);
    seat.unwrap_or(prepared.seat().address)
}

/// Writes what has to be on disk before anything else happens.
async fn store_first(delivery: &Delivery, changes: Vec<Change>) -> Result<(), StartError> {
    if changes.is_empty() {
        return Ok(());
    }
    let stored = delivery.writer.store(changes).await;
    stored.map_err(|gone| doing("write the store")(io::Error::other(gone)))
}

/// A started daemon.
pub struct Daemon {
    stopping: CancellationToken,
    links: watch::Receiver<Option<Links>>,
    stop: StopHandle,
    core: mpsc::Sender<Input>,
    reasons: StopReceiver,
    writer_thread: JoinHandle<()>,
    core_thread: mpsc::Receiver<JoinHandle<()>>,
}

/// What the core's start needs besides the founding state.
struct Later {
    prepared: Arc<Prepared>,
    delivery: Arc<Delivery>,
    state: RestoredState,
    peers: TcpListener,
    local: mpsc::Receiver<Input>,
    hands: Hands,
    receipts: mpsc::Sender<forwarding::Heard>,
    status: watch::Sender<Option<CoreStatus>>,
    links: watch::Sender<Option<Links>>,
    stopping: CancellationToken,
}

impl Daemon {
    /// Starts everything, on the current runtime.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(prepared: Prepared, mut handed: HandedSockets) -> Result<Self, StartError> {
        let (stop, reasons) = exit::channel();
        let prepared = Arc::new(prepared);
        let memory = open_memory(&prepared, &stop)?;
        let (configuration, seats) = (&prepared.configuration, memory.seats.clone());
        let address = configuration.listen.unwrap_or_else(|| own_address(&prepared, &seats));
        let peers = peers_socket(&mut handed, address).await.map_err(doing("listen for peers"))?;
        let agent_socket = agent_socket(&mut handed, configuration.sockets.agent.as_deref())
            .map_err(doing("listen for the agent"))?;

        let (core, local) = mpsc::channel(CORE_INPUTS_MAX);
        let (status, status_seen) = watch::channel(None);
        let (links, links_seen) = watch::channel(None);
        let (admissions, questions) = door(prepared.genesis.mode);
        let records = memory.records.clone();
        let delivery = Arc::new(Delivery {
            cluster: prepared.cluster,
            genesis: prepared.genesis.clone(),
            me: prepared.me,
            evidence: Arc::new(Evidence::new(records.clone(), seats.voters())?),
            seats,
            commits: Arc::new(Commits::new(records.clone())?),
            records,
            writer: memory.writer,
            submissions: Submissions::default(),
            forwarding: Forwarding::default(),
            recent: RecentReleases::default(),
            snapshots: Snapshots::restore(&memory.records)?,
            pool: Pool::restore(&memory.records)?,
            places: Places::restore(memory.records.clone(), prepared.genesis.mode)?,
            admissions,
            proofs: Default::default(),
            core,
            status: status_seen,
            links: links_seen.clone(),
            released: watch::Sender::new(None),
            upgrade_needed: watch::Sender::new(None),
            retention: configuration.retention.into(),
            stop: stop.clone(),
        });
        // Before the agent may ask: the first answer knows what an earlier life has promised.
        let (state, changes) = restored(&prepared, &delivery, (memory.instance, memory.testimony))?;
        store_first(&delivery, changes).await?;
        let (hands, handed) = handing::hands();
        let (receipts, heard) = mpsc::channel(RECEIPTS_WAITING_MAX);
        tokio::spawn(handing::run(delivery.clone(), handed));
        tokio::spawn(forwarding::run(delivery.clone(), heard));
        let stopping = CancellationToken::new();
        let later = Later {
            prepared: prepared.clone(),
            delivery: delivery.clone(),
            state,
            peers,
            local,
            hands,
            receipts,
            status,
            links,
            stopping: stopping.clone(),
        };
        tokio::spawn(agent::serve(delivery.clone(), agent_socket));
        let core_thread = spawn_rest(&prepared, &delivery, questions, later)?;
        Ok(Self {
            stopping,
            links: links_seen,
            stop,
            core: delivery.core.clone(),
            reasons,
            writer_thread: memory.writer_thread,
            core_thread,
        })
    }

    /// Asks for the end.
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// Waits until something asks for the end; then ends signing, links and writes, in this order.
    pub async fn run(mut self) -> (Stop, JoinHandle<()>) {
        let reason = self.reasons.wait().await;
        self.stopping.cancel();
        if let Some(links) = &*self.links.borrow() {
            links.stop();
        }
        if let Ok(thread) = self.core_thread.try_recv() {
            let joining = tokio::task::spawn_blocking(move || thread.join());
            // A core that does not end in time is ended with the process; nothing unwritten was
            // sent.
            let _ = tokio::time::timeout(STOP_WAIT_MAX, joining).await;
        }
        (reason, self.writer_thread)
    }
}

/// Starts what speaks with the processor (or stands in its place, where nothing is judged), and the
/// core as soon as the founding state is known.
fn spawn_rest(
    prepared: &Prepared,
    delivery: &Arc<Delivery>,
    questions: Option<Questions>,
    later: Later,
) -> Result<mpsc::Receiver<JoinHandle<()>>, StartError> {
    let socket = prepared.configuration.sockets.processor.clone();
    let (founding, mut founding_seen) = watch::channel(delivery.records.founding()?);
    // Where nothing is judged there is no snapshot to fetch.
    let fetched = match questions {
        Some(questions) => {
            let (fetched, taken) = mpsc::channel(1);
            tokio::spawn(judging::run(delivery.clone(), socket.clone(), founding, taken));
            tokio::spawn(retention::run(delivery.clone()));
            tokio::spawn(admission::run(delivery.clone(), socket, questions));
            Some(fetched)
        }
        None => {
            tokio::spawn(opaque::run(delivery.clone(), founding));
            None
        }
    };
    let (started, core_thread) = mpsc::channel(1);
    let stop = delivery.stop.clone();
    tokio::spawn(async move {
        let Ok(founding) = founding_seen.wait_for(Option::is_some).await.map(|known| *known) else {
            return;
        };
        let Some(founding) = founding else {
            return;
        };
        let starting = Handle::current();
        let result =
            tokio::task::spawn_blocking(move || start_core(later, founding, fetched, starting))
                .await;
        match result.expect("the core's start does not panic") {
            // The one receiver waits for this one thread.
            Ok(thread) => drop(started.try_send(thread)),
            Err(error @ StartError::Store(_)) => stop.stop(Stop::Broken(Box::new(error))),
            Err(error) => stop.stop(Stop::Internal(Box::new(error))),
        }
    });
    Ok(core_thread)
}

fn start_core(
    later: Later,
    founding: CommitEnd,
    fetched: Option<mpsc::Sender<Fetched>>,
    runtime: Handle,
) -> Result<JoinHandle<()>, StartError> {
    let Later { prepared, delivery, state, peers, local, hands, receipts, .. } = later;
    let (status, links, stopping) = (later.status, later.links, later.stopping);
    let records = delivery.records.clone();
    let own = (prepared.cluster, prepared.me);
    let configuration = start::configuration(&records, &prepared.genesis, own, founding)?;
    tracing::info!(
        host = delivery.seats.name(prepared.me),
        epoch = configuration.epoch.0,
        commits = state.commits.last().map_or(0, |commit| commit.index.0),
        memory = ?state.memory,
        "the store is read"
    );
    let (cluster, me) = own;
    let link_configuration = LinkConfiguration { cluster, me, members: Vec::new() };
    let known = Arc::new(KnownEvents::default());
    let (events, link_events) = heard::channel(CORE_INPUTS_MAX);
    let inside = runtime.enter();
    let key = prepared.key.clone();
    let started = Links::start(link_configuration, &key, known.clone(), peers, events);
    let (inbox, parts) = inbox::inbox();
    if let Some(fetched) = fetched {
        let (delivery, links) = (delivery.clone(), started.clone());
        tokio::spawn(Client::new(delivery, links, parts, fetched).run());
    }
    drop(inside);
    delivery.seats.follow(started.clone());
    links.send_replace(Some(started.clone()));
    let sources =
        Sources { links: link_events, local, durable: delivery.writer.durable(), stopping };
    let parts = Parts {
        configuration,
        state,
        key,
        records,
        writer: delivery.writer.clone(),
        pool: delivery.pool.clone(),
        links: started,
        known,
        commits: delivery.commits.clone(),
        evidence: delivery.evidence.clone(),
        parts: inbox,
        hands,
        receipts,
        seats: delivery.seats.clone(),
        status,
        stop: delivery.stop.clone(),
    };
    let core = start::start(parts, sources, runtime).map_err(doing("start the core"))?;
    let doubt = Doubt::of(&prepared.configuration.state_directory);
    doubt.lay().map_err(doing("remove the mark of a start"))?;
    Ok(core)
}

/// The way to the processor's door, and what serves it where anything is judged.
fn door(mode: GenesisMode) -> (Admissions, Option<admission::Questions>) {
    match mode {
        GenesisMode::Judged => {
            let (admissions, questions) = admission::door();
            (admissions, Some(questions))
        }
        GenesisMode::Opaque => (Admissions::open(), None),
    }
}

async fn wait_for_signals(stop: StopHandle, core: mpsc::Sender<Input>) -> io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hangup.recv() => {
                tracing::info!("the operator confirms the clock (SIGHUP)");
                // A core that takes no more inputs has no clock to confirm.
                let _ = core.send(Input::ClockConfirmed).await;
            }
        }
    }
    stop.stop(Stop::Asked);
    Ok(())
}

async fn watch_dog(interval: Duration) {
    loop {
        tokio::time::sleep(interval / 2).await;
        notify(sd_notify::NotifyState::Watchdog);
    }
}

fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot tell systemd");
    }
}

/// Runs the daemon on `runtime` until it is stopped, and says with which code to exit.
pub fn run(runtime: Runtime, prepared: Prepared) -> Exit {
    let ended = runtime.block_on(async {
        let daemon = Daemon::start(prepared, HandedSockets::from_environment()).await?;
        let (stop, core) = (daemon.stop_handle(), daemon.core.clone());
        tokio::spawn(async move {
            if let Err(error) = wait_for_signals(stop.clone(), core).await {
                stop.stop(Stop::Internal(Box::new(error)));
            }
        });
        if let Some(interval) = sd_notify::watchdog_enabled() {
            tokio::spawn(watch_dog(interval));
        }
        notify(sd_notify::NotifyState::Ready);
        let ended = daemon.run().await;
        notify(sd_notify::NotifyState::Stopping);
        Ok::<_, StartError>(ended)
    });
    // Tasks hold the writer's handles: without them it ends after its last write.
    runtime.shutdown_timeout(STOP_WAIT_MAX);
    match ended {
        Ok((reason, writer_thread)) => {
            let exit = reason.exit();
            match &reason {
                Stop::Asked => tracing::info!("stopped as asked"),
                Stop::Broken(error) | Stop::Internal(error) => {
                    tracing::error!("stopped: {}", in_words(error.as_ref()));
                }
            }
            if writer_thread.is_finished() && writer_thread.join().is_err() {
                return Exit::Internal;
            }
            exit
        }
        Err(error) => {
            tracing::error!("cannot start: {}", in_words(&error));
            error.exit()
        }
    }
}
