//! The machines' half of the agent, whole, on this backend: from orders to processes and back to
//! reports.

use std::path::Path;
use std::time::Duration;

use dagger_agent::controller::{LocalPolicy, Retention};
use dagger_agent::handover::{
    HostReport, ORDERS_WAITING_MAX, Order, REPORTS_WAITING_MAX, Requests, SightBoard,
};
use dagger_agent::machines::{Backend, Broken, MachineConfiguration, NetworkKind, run};
use dagger_agent::one_shot::HelperConfiguration;
use dagger_images::ImageStore;
use dagger_payload::id::{CommitIndex, Generation, OperatorId, PayloadDigest, Position};
use dagger_payload::key::SecretKey;
use dagger_payload::kind::{Capacity, GuestSubnet, ImageFormat, ReportPhase, VmImage};
use dagger_payload::object::{Cause, Host, HostDuty, VmReport, Wanted};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::host::{HERE, VM, attested, call, configuration, firmware};

/// Longer than anything here takes on a busy machine.
const WAIT: Duration = Duration::from_secs(60);

struct Half {
    orders: mpsc::Sender<Order>,
    reports: mpsc::Receiver<HostReport>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), Broken>>,
}

fn cause() -> Cause {
    Cause { digest: PayloadDigest([1; 32]), position: Position(1) }
}

fn host() -> Host {
    let key = SecretKey::from_seed(&[3; 32].into()).public_key();
    Host {
        id: HERE,
        name: "host1".parse().unwrap(),
        operator: OperatorId([4; 16]),
        region: "eu".parse().unwrap(),
        labels: std::collections::BTreeMap::new(),
        ledger_key: key.clone(),
        agent_key: key,
        capacity: Capacity { cpus: 8, memory_mib: 8192, disk_gib: 100 },
        site: None,
        forward_ports_first: None,
        reserve: Capacity::default(),
        duty: HostDuty::Open,
        guest_subnet: GuestSubnet { network: [10, 77, 1, 0].into(), prefix_length: 24 },
        generation: Generation(1),
        cause: cause(),
    }
}

impl Half {
    async fn start(directory: &Path) -> Self {
        let (orders, orders_told) = mpsc::channel(ORDERS_WAITING_MAX);
        let (reports_told, reports) = mpsc::channel(REPORTS_WAITING_MAX);
        let stop = CancellationToken::new();
        let configuration = MachineConfiguration {
            host_id: HERE,
            state_directory: directory.join("state"),
            storage_directory: directory.join("storage"),
            import_directories: Vec::new(),
            downloads: dagger_agent::downloads::DownloadConfiguration::default(),
            backend: Backend::CloudHypervisor(configuration(directory)),
            network_kind: NetworkKind::None,
            helpers: HelperConfiguration::default(),
            nameservers: Vec::new(),
            policy: LocalPolicy::default(),
            retention: Retention::default(),
        };
        let board = SightBoard::default();
        // Requests that nobody makes.
        let requests = Requests { consoles: mpsc::channel(1).1, local_stops: mpsc::channel(1).1 };
        let work = run(configuration, orders_told, reports_told, board, requests, stop.clone());
        let half = Self { orders, reports, stop, running: tokio::spawn(work) };
        half.order(Order::Host(Box::new(host()))).await;
        half
    }

    async fn order(&self, order: Order) {
        self.orders.send(order).await.unwrap();
    }

    async fn phase(&mut self) -> ReportPhase {
        let report = tokio::time::timeout(WAIT, self.reports.recv()).await;
        let HostReport::Vm(report) = report.expect("no report came").unwrap() else {
            panic!("nobody ordered a volume");
        };
        assert!(report.reason.is_none(), "{report:?}");
        report.phase
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

fn pid(directory: &Path) -> serde_json::Value {
    let socket = directory.join("vm").join(VM.to_string()).join("api.sock");
    let (_, body) = call(&socket, "GET", "vmm.ping", "");
    serde_json::from_str::<serde_json::Value>(&body).unwrap()["pid"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn cloud_hypervisor_an_order_becomes_a_machine_that_outlives_its_agent_and_its_journal() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    firmware(directory);
    let source = directory.join("image.raw");
    std::fs::write(&source, vec![0x5a; 1 << 20]).unwrap();
    let store = ImageStore::open(&directory.join("storage/images")).unwrap();
    let stored = store.import(&source, ImageFormat::Raw, None).unwrap();
    let version = |wanted, generation| {
        let mut version = attested(VM, wanted, generation);
        version.vm.image = VmImage {
            digest: stored.digest,
            format: ImageFormat::Raw,
            virtual_size_bytes: stored.virtual_size_bytes,
        };
        version
    };
    let mut half = Half::start(directory).await;
    half.order(Order::Vm(Box::new(version(Wanted::Running, 1)))).await;
    half.order(Order::CaughtUp(CommitIndex(1))).await;
    assert_eq!(half.phase().await, ReportPhase::Running);
    let before = pid(directory);
    half.end().await;
    assert_eq!(pid(directory), before, "the machine ended with its agent");

    std::fs::remove_dir_all(directory.join("state")).unwrap();
    let mut half = Half::start(directory).await;
    let mut reported = version(Wanted::Running, 1);
    reported.vm.reported = Some(VmReport {
        host: HERE,
        generation: Generation(1),
        phase: ReportPhase::Running,
        reason: None,
        cause: cause(),
        agreement: dagger_payload::object::Agreement::WithOrder,
    });
    half.order(Order::Vm(Box::new(reported))).await;
    half.order(Order::CaughtUp(CommitIndex(1))).await;
    let journal = directory.join(format!("state/journal/{VM}.json"));
    let adopted = async {
        while !journal.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT, adopted).await.expect("it was not adopted");
    assert_eq!(pid(directory), before, "a running machine was touched");
    half.order(Order::Vm(Box::new(version(Wanted::Deleted, 2)))).await;
    assert_eq!(half.phase().await, ReportPhase::Deleted);
    assert!(!directory.join("vm").join(VM.to_string()).exists());
    half.end().await;
}
