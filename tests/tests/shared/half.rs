//! The machines' half of the agent, whole and in this process: from orders to machines and back to
//! reports.
//!
//! Owns one run of it and the image in its store. Called by the lifecycle table and the benchmark.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use dagger_agent::controller::{LocalPolicy, Retention};
use dagger_agent::handover::{
    AttestedVm, AttestedVolume, ConsoleProblem, ConsoleRequest, ConsoleTyping, HostReport,
    LocalStopRequest, Order, Requests, SightBoard,
};
use dagger_agent::limits::{ORDERS_WAITING_MAX, REPORTS_WAITING_MAX};
use dagger_agent::machines::{Backend, Broken, MachineConfiguration, NetworkKind, run};
use dagger_agent::one_shot::HelperConfiguration;
use dagger_api::Sight;
use dagger_images::ImageStore;
use dagger_payload::id::{CommitIndex, Generation, OperatorId, VmId};
use dagger_payload::key::SecretKey;
use dagger_payload::kind::{
    Capacity, GuestSubnet, ImageFormat, ReportPhase, ReportSnapshot, ReportVm, ReportVolume,
    StopManner, VmImage,
};
use dagger_payload::object::{Agreement, Host, HostDuty, VmReport, Wanted};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::versions::{HERE, attested};

/// Longer than anything here takes on a busy machine.
const WAIT: Duration = Duration::from_secs(120);

/// A sector that firmware boots: it says `UP` on its serial line, and from then on sleeps, looks at
/// the power button with each tick of the clock, and switches itself off when that is pressed.
///
/// Stack; `UP\n` to port 3f8; the button's bit in the power management's enabled events (602);
/// `sti`; `hlt` until that bit is in its status (600); soft off to its control (604).
#[rustfmt::skip]
const GUEST: [u8; 48] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c,
    0xba, 0xf8, 0x03, 0xb0, 0x55, 0xee, 0xb0, 0x50, 0xee, 0xb0, 0x0a, 0xee,
    0xba, 0x02, 0x06, 0xb8, 0x00, 0x01, 0xef,
    0xfb, 0xf4, 0xba, 0x00, 0x06, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf6,
    0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4,
];

/// A host's object for the agent under test.
fn host() -> Host {
    let key = SecretKey::from_seed(&[3; 32].into()).public_key();
    Host {
        id: HERE,
        name: "host1".parse().unwrap(),
        operator: OperatorId([4; 16]),
        region: "eu".parse().unwrap(),
        labels: BTreeMap::new(),
        ledger_key: key.clone(),
        agent_key: key,
        capacity: Capacity { cpus: 8, memory_mib: 8192, disk_gib: 100 },
        site: None,
        forward_ports_first: None,
        protocol_max: None,
        bridges: Vec::new(),
        reserve: Capacity::default(),
        duty: HostDuty::Open,
        guest_subnet: GuestSubnet { network: [10, 77, 1, 0].into(), prefix_length: 24 },
        generation: Generation(1),
        cause: attested(VmId([0; 16]), Wanted::Running, 1).vm.changed,
    }
}

/// An image with the guest, as large as this, in the store of a host that lives in `directory`.
pub(crate) fn store_image(directory: &Path, size_bytes: u64) -> VmImage {
    let source = directory.join("image.raw");
    let mut sector = [0; 512];
    sector[..GUEST.len()].copy_from_slice(&GUEST);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(&source, sector).unwrap();
    std::fs::File::options().write(true).open(&source).unwrap().set_len(size_bytes).unwrap();
    let store = ImageStore::open(&directory.join("storage/images")).unwrap();
    let stored = store.import(&source, ImageFormat::Raw, None).unwrap();
    VmImage {
        digest: stored.digest,
        format: ImageFormat::Raw,
        virtual_size_bytes: stored.virtual_size_bytes,
    }
}

/// The version after this one in which this host has reported `phase`.
pub(crate) fn reported(version: &AttestedVm, phase: ReportPhase) -> AttestedVm {
    let mut next = version.clone();
    next.commit = next.commit.next();
    next.vm.reported = Some(VmReport {
        host: HERE,
        generation: next.vm.generation,
        phase,
        reason: None,
        cause: next.vm.changed,
        agreement: Agreement::WithOrder,
    });
    next
}

/// One run of the machines' half.
pub(crate) struct Half {
    orders: mpsc::Sender<Order>,
    reports: mpsc::Receiver<HostReport>,
    board: SightBoard,
    consoles: mpsc::Sender<ConsoleRequest>,
    local_stops: mpsc::Sender<LocalStopRequest>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), Broken>>,
}

impl Half {
    /// Starts it with this history; state and storage lie in `directory`.
    pub(crate) async fn start(directory: &Path, backend: Backend, history: &[AttestedVm]) -> Self {
        let (orders, orders_told) = mpsc::channel(ORDERS_WAITING_MAX);
        let (reports_told, reports) = mpsc::channel(REPORTS_WAITING_MAX);
        let stop = CancellationToken::new();
        let configuration = MachineConfiguration {
            host_id: HERE,
            state_directory: directory.join("state"),
            storage_directory: directory.join("storage"),
            import_directories: Vec::new(),
            downloads: dagger_agent::downloads::DownloadConfiguration::default(),
            backend,
            network_kind: NetworkKind::None,
            helpers: HelperConfiguration::default(),
            nameservers: Vec::new(),
            policy: LocalPolicy::default(),
            retention: Retention::default(),
        };
        let (consoles, consoles_asked) = mpsc::channel(1);
        let (local_stops, local_stops_asked) = mpsc::channel(1);
        let requests = Requests { consoles: consoles_asked, local_stops: local_stops_asked };
        let board = SightBoard::default();
        let work =
            run(configuration, orders_told, reports_told, board.clone(), requests, stop.clone());
        let running = tokio::spawn(work);
        let half = Self { orders, reports, board, consoles, local_stops, stop, running };
        half.order(Order::Host(Box::new(host()))).await;
        for version in history {
            half.vm(version).await;
        }
        half.order(Order::CaughtUp(CommitIndex(1))).await;
        half
    }

    async fn order(&self, order: Order) {
        self.orders.send(order).await.unwrap();
    }

    pub(crate) async fn vm(&self, version: &AttestedVm) {
        self.order(Order::Vm(Box::new(version.clone()))).await;
    }

    pub(crate) async fn volume(&self, version: &AttestedVolume) {
        self.order(Order::Volume(Box::new(version.clone()))).await;
    }

    async fn any_report(&mut self) -> HostReport {
        tokio::time::timeout(WAIT, self.reports.recv()).await.expect("no report came").unwrap()
    }

    /// The next report, which is about a VM.
    pub(crate) async fn report(&mut self) -> ReportVm {
        match self.any_report().await {
            HostReport::Vm(report) => report,
            other => panic!("{other:?}"),
        }
    }

    /// The next report, which is about a volume.
    pub(crate) async fn report_of_volume(&mut self) -> ReportVolume {
        match self.any_report().await {
            HostReport::Volume(report) => report,
            other => panic!("{other:?}"),
        }
    }

    /// The next report, which is about a snapshot.
    pub(crate) async fn report_of_snapshot(&mut self) -> ReportSnapshot {
        match self.any_report().await {
            HostReport::Snapshot(report) => report,
            other => panic!("{other:?}"),
        }
    }

    /// The operator switches a machine off by hand; for which generation that counts.
    pub(crate) async fn stop_by_hand(&self, vm: VmId, reason: &str) -> Generation {
        let (reply, replied) = oneshot::channel();
        let (manner, reason) = (StopManner::Forced, reason.to_owned());
        let request = LocalStopRequest { vm, manner, reason, reply };
        self.local_stops.send(request).await.unwrap();
        replied.await.unwrap().unwrap()
    }

    /// Somebody sits down at a guest's console.
    pub(crate) async fn console(&self, vm: VmId) -> Result<ConsoleTyping, ConsoleProblem> {
        let (reply, replied) = oneshot::channel();
        self.consoles.send(ConsoleRequest { vm, reply }).await.unwrap();
        replied.await.unwrap()
    }

    /// Whether something was said that nobody has read.
    pub(crate) fn has_said_more(&mut self) -> bool {
        self.reports.try_recv().is_ok()
    }

    /// Why the hypervisor cannot be asked, if that is what is shown.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.board.read(|contents| contents.hypervisor.clone())?.err()
    }

    /// What is shown of a VM.
    pub(crate) fn sight(&self, vm: VmId) -> Option<Sight> {
        self.board.read(|contents| contents.vms.get(&vm).map(|shown| shown.sight))
    }

    /// The agent goes; its machines stay.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}
