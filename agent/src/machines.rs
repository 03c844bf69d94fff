//! The half of the agent that works on machines, started as one piece.
//!
//! Owns the way from an order to a machine and back to a report: it wires controller, journal,
//! actuator, hypervisor and observation together. Never talks to the ledger, never serves a
//! request: the other half does, see [`crate::handover`]. Called once by the daemon, and by tests.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use dagger_images::ImportDirectories;
use dagger_net::request::Owner;
use dagger_payload::id::{AccountId, HostId, VmId};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::actuator::disks::Disks;
use crate::actuator::store::{StoredDisks, console_directory, disk_directory};
use crate::actuator::{Actuator, Ended, Performer};
use crate::controller::{
    Collection, Controller, Finished, Input, LocalPolicy, Monotonic, Outcome, Output, Retention,
    Room, VolumeFinished,
};
use crate::downloads::{DownloadConfiguration, Downloads};
use crate::exports::Exporter;
use crate::handover::{
    HostReport, LocalStopRequest, NoSuchMachine, Order, ReportSender, ReportSubject, Requests,
    SightBoard,
};
use crate::hypervisor::Hypervisor;
use crate::hypervisor::announcer::Announcer;
use crate::hypervisor::cloud_hypervisor::{CloudHypervisor, CloudHypervisorConfiguration};
use crate::hypervisor::libvirt::Libvirt;
use crate::hypervisor::names::HostNames;
use crate::inspection::Inspector;
use crate::journal::{Journal, Record};
use crate::limits::{
    INPUTS_WAITING_MAX, JOURNAL_SPACE_LOOK_EVERY, JOURNAL_SPACE_WAIT_MAX, ORDERS_TOGETHER_MAX,
    ROOM_LOOKS_TOGETHER_MAX, STEPS_END_WAIT_MAX,
};
use crate::network::{Helper, Networks, Responder};
use crate::observation::{
    CHANGES_WAITING_MAX, ConsoleDesk, ConsoleFiles, ConsoleReader, LOOKS_WAITING_MAX, Observation,
    Tickets,
};
use crate::one_shot::HelperConfiguration;
use crate::room;

/// What the machines' half needs to know.
#[derive(Debug, Clone)]
pub struct MachineConfiguration {
    /// This host.
    pub host_id: HostId,
    /// The journal lives below it.
    pub state_directory: PathBuf,
    /// Images, disks, seeds, consoles and quarantine live below it.
    pub storage_directory: PathBuf,
    /// From where files that registered images name as their source may be imported.
    pub import_directories: Vec<PathBuf>,
    /// How images are fetched.
    pub downloads: DownloadConfiguration,
    /// What runs machines.
    pub backend: Backend,
    /// How guests are connected.
    pub network_kind: NetworkKind,
    /// How helpers are started, what connects guests among them.
    pub helpers: HelperConfiguration,
    /// Who resolves names for guests.
    pub nameservers: Vec<Ipv4Addr>,
    /// What the operator lets this host take, beyond what the ledger says.
    pub policy: LocalPolicy,
    /// How long this host keeps what nobody needs any more.
    pub retention: Retention,
}

impl MachineConfiguration {
    /// What connects guests; nothing where they have no cards. Those that have one are answered
    /// until `stop` when they ask for their address.
    fn networks(&self, stop: &CancellationToken) -> Option<Arc<dyn Networks>> {
        match self.network_kind {
            NetworkKind::Nat => {
                if let Some(responder) = Responder::new(&self.helpers) {
                    tokio::spawn(responder.keep(stop.clone()));
                }
                Some(Arc::new(Helper::new(self.host_id, &self.helpers)))
            }
            NetworkKind::None => None,
        }
    }
}

/// What runs machines.
#[derive(Debug, Clone)]
pub enum Backend {
    /// libvirt.
    Libvirt {
        /// The connection, such as `qemu:///system` or `test:///default`.
        uri: String,
        /// What runs the guests' processors.
        accelerator: Accelerator,
    },
    /// Cloud Hypervisor.
    CloudHypervisor(CloudHypervisorConfiguration),
}

impl Backend {
    /// Who opens the taps of its machines.
    fn card_owner(&self) -> Owner {
        match self {
            Self::Libvirt { .. } => Owner::Root,
            Self::CloudHypervisor(configuration) => configuration.card_owner(),
        }
    }

    /// Where what is free on this host is free for its machines; nowhere for those of libvirt's
    /// test driver, which take nothing of it.
    fn takes_from(&self, storage: &Path) -> Option<PathBuf> {
        match self {
            Self::Libvirt { uri, .. } if uri.starts_with("test:") => None,
            Self::Libvirt { .. } | Self::CloudHypervisor(_) => Some(storage.to_owned()),
        }
    }

    fn hypervisor(&self, storage: &Path, announcer: Announcer) -> Arc<dyn Hypervisor> {
        match self.clone() {
            Self::Libvirt { uri, accelerator } => {
                Arc::new(Libvirt::new(uri, accelerator, announcer))
            }
            Self::CloudHypervisor(configuration) => {
                let disks = disk_directory(storage);
                let consoles = console_directory(storage);
                Arc::new(CloudHypervisor::new(configuration, (disks, consoles), announcer))
            }
        }
    }
}

/// What runs the guests' processors.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// KVM where the hypervisor says that it works, TCG elsewhere.
    #[default]
    Auto,
    /// The kernel's virtual machine.
    Kvm,
    /// QEMU's own translation: slow, works everywhere.
    Tcg,
}

/// How guests are connected.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkKind {
    /// Each by a card of its own on the host's guest subnet, whose way out is the host.
    #[default]
    Nat,
    /// Not at all.
    None,
}

/// The machines' half cannot go on: the daemon must stop loudly.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The journal or another directory of ours cannot be written.
    #[error("the state directory cannot be used: {0}")]
    StateDirectory(#[source] std::io::Error),
    /// The directories of images or disks cannot be used.
    #[error("the directories of images and disks cannot be used: {0}")]
    Disks(#[source] dagger_images::ImageError),
    /// A task of ours ended by panic.
    #[error("a part of the machines' half ended unexpectedly: {0}")]
    Task(String),
}

/// Works on machines until `stop` is cancelled or `orders` ends; running VMs are left running.
///
/// # Errors [`Broken`] when it cannot keep its journal; a hypervisor that does not answer is no
/// error but a sight.
pub async fn run(
    configuration: MachineConfiguration,
    orders: mpsc::Receiver<Order>,
    reports: ReportSender,
    board: SightBoard,
    requests: Requests,
    stop: CancellationToken,
) -> Result<(), Broken> {
    let stop = stop.child_token();
    let _stop_all = stop.clone().drop_guard();
    let networks = configuration.networks(&stop);
    let host_id = &configuration.host_id;
    let absolute = |path: &Path| std::path::absolute(path).map_err(Broken::StateDirectory);
    let state_directory = absolute(&configuration.state_directory)?;
    let storage_directory = absolute(&configuration.storage_directory)?;
    let journal =
        Journal::open(state_directory.join("journal"), *host_id).map_err(Broken::StateDirectory)?;
    let imports = ImportDirectories::new(configuration.import_directories);
    let disks = StoredDisks::open(&storage_directory, *host_id, imports).map_err(Broken::Disks)?;
    let disks = Arc::new(disks);
    let (announced, changes) = mpsc::channel(CHANGES_WAITING_MAX);
    let announcer = Announcer::new(*host_id, announced);
    let hypervisor = configuration.backend.hypervisor(&storage_directory, announcer.clone());
    let inspector = Inspector::new(Arc::clone(&hypervisor), Arc::clone(&disks), networks.clone());
    lay_out(&board, inspector, Exporter::new(Arc::clone(&disks)));
    let tickets = Tickets::default();
    let (looks, looks_asked) = mpsc::channel(LOOKS_WAITING_MAX);
    let (inputs, inputs_told) = mpsc::channel(INPUTS_WAITING_MAX);
    let observation = Observation {
        hypervisor: Arc::clone(&hypervisor),
        tickets: tickets.clone(),
        changes,
        announcer: announcer.clone(),
        looks: looks_asked,
        inputs: inputs.clone(),
        board: board.clone(),
    };
    let desk = ConsoleDesk { hypervisor: Arc::clone(&hypervisor), requests: requests.consoles };
    let performer = Performer {
        hypervisor,
        disks: Arc::clone(&disks) as Arc<dyn Disks>,
        journal: journal.clone(),
        tickets: tickets.clone(),
        names: HostNames::of(*host_id),
        networks: networks.map(|networks| (networks, configuration.backend.card_owner())),
        nameservers: configuration.nameservers.clone(),
        consoles: console_directory(&storage_directory),
    };
    let downloads = Downloads::new(configuration.downloads, &disks, &observation, &stop);
    let observing = tokio::spawn(observation.run(stop.clone()));
    let giving_consoles = tokio::spawn(desk.run(stop.clone()));
    let machines = Machines {
        controller: Controller::new(*host_id, configuration.policy, read_journal(&journal)?)
            .keeping(configuration.retention),
        disks,
        downloads,
        looks_here: LooksHere::new(configuration.backend.takes_from(&storage_directory)),
        actuator: Actuator::new(Arc::new(performer)),
        journal,
        tickets,
        announcer,
        looks,
        inputs,
        console_files: ConsoleFiles::new(&storage_directory, &configuration.helpers),
        console_readers: JoinSet::new(),
        outbox: BTreeMap::new(),
        board,
        began: Instant::now(),
        stop: stop.clone(),
    };
    let ended = machines.work((orders, inputs_told, requests.local_stops), reports).await;
    stop.cancel();
    observing.await.map_err(|error| Broken::Task(error.to_string()))?;
    giving_consoles.await.map_err(|error| Broken::Task(error.to_string()))?;
    ended
}

/// What the other half asks without waiting for the controller.
fn lay_out(board: &SightBoard, inspector: Inspector, exporter: Exporter) {
    board.update(|contents| {
        contents.inspector = Some(inspector);
        contents.exporter = Some(exporter);
    });
}

fn read_journal(journal: &Journal) -> Result<BTreeMap<VmId, Record>, Broken> {
    let found = journal.read_all().map_err(Broken::StateDirectory)?;
    for (path, reason) in &found.set_aside {
        tracing::error!(path = %path.display(), %reason,
            "a journal file does not read and was set aside; its VM is adopted from what is seen");
    }
    Ok(found.records)
}

/// Looks at what lies on this host and what is free there.
struct LooksHere {
    /// One look at the stores at a time: one that hangs is not joined by others.
    stores: Arc<Semaphore>,
    room: Arc<Semaphore>,
    takes_from: Option<PathBuf>,
}

impl LooksHere {
    fn new(takes_from: Option<PathBuf>) -> Self {
        let room = Arc::new(Semaphore::new(ROOM_LOOKS_TOGETHER_MAX));
        Self { stores: Arc::new(Semaphore::new(1)), room, takes_from }
    }
}

/// The running half.
struct Machines {
    controller: Controller,
    disks: Arc<StoredDisks>,
    downloads: Downloads,
    looks_here: LooksHere,
    actuator: Actuator,
    journal: Journal,
    tickets: Tickets,
    announcer: Announcer,
    looks: mpsc::Sender<VmId>,
    inputs: mpsc::Sender<Input>,
    console_files: ConsoleFiles,
    console_readers: JoinSet<()>,
    /// The newest report of each VM and volume that the other half has not taken yet: an older one
    /// is superseded.
    outbox: BTreeMap<ReportSubject, HostReport>,
    board: SightBoard,
    began: Instant,
    stop: CancellationToken,
}

impl Machines {
    async fn work(
        mut self,
        (mut orders, mut inputs, mut local_stops): (
            mpsc::Receiver<Order>,
            mpsc::Receiver<Input>,
            mpsc::Receiver<LocalStopRequest>,
        ),
        reports: ReportSender,
    ) -> Result<(), Broken> {
        let stop = self.stop.clone();
        loop {
            let wake = self.controller.next_wake().map(|at| self.began + at.0);
            let input = tokio::select! {
                () = stop.cancelled() => break,
                order = orders.recv() => match order {
                    Some(order) => Input::Order(order),
                    None => break,
                },
                Some(input) = inputs.recv() => input,
                Some(request) = local_stops.recv() => {
                    self.stop_by_hand(request).await?;
                    self.show();
                    continue;
                }
                finished = self.actuator.next_finished() => {
                    let finished = finished.map_err(Broken::StateDirectory)?;
                    log_trouble(&finished);
                    match finished {
                        Ended::Vm(finished) => Input::Finished(finished, self.tickets.draw()),
                        Ended::Volume(finished) => Input::VolumeFinished(finished),
                    }
                }
                () = sleep_until(wake) => Input::Tick,
                permit = reports.reserve(), if !self.outbox.is_empty() => {
                    let Ok(permit) = permit else { break };
                    if let Some((_, report)) = self.outbox.pop_first() {
                        permit.send(report);
                    }
                    continue;
                }
                Some(_) = self.console_readers.join_next() => continue,
            };
            self.take(input).await?;
            // A long history is taken in one go; what it comes to is shown once.
            for _ in 0..ORDERS_TOGETHER_MAX {
                let Ok(order) = orders.try_recv() else { break };
                self.take(Input::Order(order)).await?;
            }
            self.show();
        }
        self.actuator.end(STEPS_END_WAIT_MAX).await;
        Ok(())
    }

    async fn take(&mut self, input: Input) -> Result<(), Broken> {
        let now = Monotonic(self.began.elapsed());
        for output in self.controller.handle(now, input) {
            match output {
                Output::Act(job) => {
                    tracing::info!(vm = %job.vm.id, generation = job.tags.generation.0,
                        step = ?job.action.step(), attempt = job.record.attempts, "step");
                    self.actuator.begin(*job);
                }
                Output::Halt(job) => self.actuator.begin_halt(*job),
                Output::LookAtStores => self.look_at_stores(),
                Output::LookAtRoom(vm, account) => self.look_at_room(vm, account),
                Output::Collect(collection) => self.collect(*collection),
                Output::Fetch(job) => self.downloads.begin(*job),
                Output::StopFetching(image) => self.downloads.stop(image),
                Output::DiscardFetched(image) => self.downloads.discard(image),
                Output::ActOnVolume(job) => {
                    tracing::info!(volume = %job.volume.id, generation = job.volume.generation.0,
                        action = ?job.action, "step");
                    self.actuator.begin_for_volume(*job);
                }
                Output::Persist(record) => {
                    self.write(move |journal| journal.write(&record)).await?;
                }
                Output::Forget(vm) => self.write(move |journal| journal.forget(vm)).await?,
                Output::Report(report) => {
                    tracing::info!(vm = %report.vm, generation = report.generation.0,
                        phase = ?report.phase, reason = report.reason, "report");
                    self.put(report);
                }
                Output::ReportVolume(report) => {
                    tracing::info!(volume = %report.volume, generation = report.generation.0,
                        phase = ?report.phase, reason = report.reason, "report");
                    self.put(report);
                }
                Output::ReportSnapshot(report) => {
                    tracing::info!(volume = %report.volume, snapshot = %report.snapshot,
                        phase = ?report.phase, reason = report.reason, "report");
                    self.put(report);
                }
                Output::Look(vm) => {
                    if self.looks.try_send(vm).is_err() {
                        self.announcer.miss();
                    }
                }
                Output::ReadConsole(vm) => {
                    let file = self.console_files.of(vm);
                    let reader = ConsoleReader { vm, file, inputs: self.inputs.clone() };
                    self.console_readers.spawn(reader.run(self.stop.clone()));
                }
                Output::Alarm(vm, reason) => {
                    tracing::error!(%vm, %reason, "held: nothing is done with this VM");
                }
                Output::AlarmAboutVolume(volume, reason) => {
                    tracing::error!(%volume, %reason, "held: nothing is done with this volume");
                }
            }
        }
        Ok(())
    }

    /// What cannot be seen now is looked at again later.
    fn look_at_stores(&self) {
        let Ok(permit) = Arc::clone(&self.looks_here.stores).try_acquire_owned() else {
            tracing::warn!("an earlier look at the stores has not ended");
            return;
        };
        let (disks, inputs) = (Arc::clone(&self.disks), self.inputs.clone());
        tokio::task::spawn_blocking(move || {
            match disks.stored() {
                // The half that does not listen any more is stopping.
                Ok(stored) => drop(inputs.blocking_send(Input::Stored(stored))),
                Err(error) => tracing::warn!(%error, "it cannot be seen what lies in the stores"),
            }
            drop(permit);
        });
    }

    /// What cannot be seen now is unknown, which is no reason to refuse.
    fn look_at_room(&self, vm: VmId, account: AccountId) {
        let permit = Arc::clone(&self.looks_here.room).try_acquire_owned().ok();
        let (inputs, takes_from) = (self.inputs.clone(), self.looks_here.takes_from.clone());
        let disks = Arc::clone(&self.disks);
        tokio::spawn(async move {
            let room = match (permit, takes_from) {
                (Some(permit), Some(storage)) => {
                    let work = move || (room::look(&storage, &disks, account), permit);
                    tokio::task::spawn_blocking(work).await.map(|(room, _)| room)
                }
                _ => Ok(Room::default()),
            };
            // The half that does not listen any more is stopping.
            let _ = inputs.send(Input::Room(vm, room.unwrap_or_default())).await;
        });
    }

    fn collect(&self, collection: Collection) {
        let (disks, inputs) = (Arc::clone(&self.disks), self.inputs.clone());
        tokio::task::spawn_blocking(move || {
            let done = match &collection {
                Collection::Remains(proof) => disks.collect(proof),
                Collection::Image(proof) => disks.collect_image(proof),
            };
            if let Err(error) = done {
                tracing::warn!(?collection, %error, "not removed; the others are not held up");
            }
            drop(inputs.blocking_send(Input::Collected));
        });
    }

    /// Takes the operator's word; answered once it is durable.
    async fn stop_by_hand(&mut self, request: LocalStopRequest) -> Result<(), Broken> {
        let LocalStopRequest { vm, manner, reason, reply } = request;
        tracing::warn!(%vm, ?manner, reason, "the operator stops a machine by hand");
        self.take(Input::LocalStop(vm, manner, reason)).await?;
        let halted = self.controller.halt_of(&vm).map(|halt| halt.generation);
        // Who has gone away does not take his word back.
        let _ = reply.send(halted.ok_or(NoSuchMachine));
        Ok(())
    }

    fn put(&mut self, report: impl Into<HostReport>) {
        let report = report.into();
        self.outbox.insert(report.subject(), report);
    }

    /// Writes to the journal away from the other tasks, but before anything that follows: where
    /// there is no space for it, that has to wait for some.
    async fn write(
        &self,
        write: impl Fn(&Journal) -> std::io::Result<()> + Clone + Send + 'static,
    ) -> Result<(), Broken> {
        let began = Instant::now();
        loop {
            let (journal, write) = (self.journal.clone(), write.clone());
            let written = tokio::task::spawn_blocking(move || write(&journal)).await;
            let error = match written.map_err(|error| Broken::Task(error.to_string()))? {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let may_pass = dagger_images::is_for_want_of_space(&error);
            if !may_pass || began.elapsed() >= JOURNAL_SPACE_WAIT_MAX {
                return Err(Broken::StateDirectory(error));
            }
            tracing::error!(%error, "disk_full: nothing goes on before the journal is written");
            tokio::select! {
                () = tokio::time::sleep(JOURNAL_SPACE_LOOK_EVERY) => {}
                () = self.stop.cancelled() => return Err(Broken::StateDirectory(error)),
            }
        }
    }

    fn show(&self) {
        let (vms, hold) = (self.controller.sights(), self.controller.hold().map(str::to_owned));
        self.board.update(|contents| {
            contents.vms = vms;
            contents.hold = hold;
        });
    }
}

/// Trouble goes to the log at once; to the ledger only if it lasts.
fn log_trouble(ended: &Ended) {
    let (subject, outcome) = match ended {
        Ended::Vm(Finished { vm, step, outcome, .. }) => (format!("{step:?} of VM {vm}"), outcome),
        Ended::Volume(VolumeFinished { volume, outcome, .. }) => {
            (format!("volume {volume}"), outcome)
        }
    };
    match outcome {
        Outcome::Done => {}
        Outcome::Retryable(reason) => tracing::warn!(step = subject, %reason, "step failed"),
        Outcome::ImageMissing(_, reason) => tracing::info!(step = subject, %reason, "not here"),
        Outcome::Terminal(reason) => tracing::warn!(step = subject, %reason, "step was given up"),
        Outcome::Unknown(reason) => tracing::warn!(step = subject, %reason, "outcome unknown"),
    }
}

/// Pending for ever without a time.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
