//! The whole half on libvirt's built-in test driver: real controller, journal, actuator, image
//! store and `qemu-img`; the driver's machines exist in this process's memory only. The test keeps
//! a connection of its own open, since the driver forgets everything with the last one; through it
//! the test sees and disturbs the machines as an operator would.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use dagger_agent::controller::{LocalPolicy, Retention};
use dagger_agent::handover::{
    AttestedVm, AttestedVolume, HostReport, LocalStopRequest, LocalStopSender, NoSuchMachine,
    Order, Requests, SightBoard,
};
use dagger_agent::hypervisor::Inventory;
use dagger_agent::hypervisor::names::{HostNames, TAGS_NAMESPACE, uuid};
use dagger_agent::inspection::{Files, Found, Owners, compare};
use dagger_agent::limits::{ORDERS_WAITING_MAX, REPORTS_WAITING_MAX};
use dagger_agent::machines::{
    Accelerator, Backend, Broken, MachineConfiguration, NetworkKind, run,
};
use dagger_agent::one_shot::HelperConfiguration;
use dagger_api::{FsckKind, Sight};
use dagger_images::ImageStore;
use dagger_payload::id::{CommitIndex, Generation, LedgerTime, VmId};
use dagger_payload::kind::{ImageFormat, ReportPhase, ReportVm, StopManner, VmImage, VolumePhase};
use dagger_payload::object::{Image, Wanted};
use dagger_payload::usage::Metered;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use virt::connect::Connect;
use virt::domain::Domain;

use super::support::{HERE, VM, accepted, after, cause, host, offered, report, wants};
use super::volumes::{NextVolume, VOLUME, volume};

/// A helper that is never started: nothing here has a network card.
fn helper() -> HelperConfiguration {
    HelperConfiguration { programs: Some("/nonexistent".into()), supervision: Default::default() }
}

/// Requests that nobody makes.
fn nobody_asks() -> Requests {
    Requests { consoles: mpsc::channel(1).1, local_stops: mpsc::channel(1).1 }
}

const URI: &str = "test:///default";
/// Longer than anything here takes on a busy machine; a test that waits for this long has failed.
const WAIT: Duration = Duration::from_secs(60);

/// One run of the machines' half.
struct Half {
    orders: mpsc::Sender<Order>,
    local_stops: LocalStopSender,
    reports: mpsc::Receiver<HostReport>,
    board: SightBoard,
    stop: CancellationToken,
    running: JoinHandle<Result<(), Broken>>,
}

impl Half {
    fn start_without_ledger(directory: &Path) -> Self {
        // Shown only when the test fails.
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        let (orders, orders_told) = mpsc::channel(ORDERS_WAITING_MAX);
        let (reports_told, reports) = mpsc::channel(REPORTS_WAITING_MAX);
        let (board, stop) = (SightBoard::default(), CancellationToken::new());
        let configuration = MachineConfiguration {
            host_id: HERE,
            state_directory: directory.join("state"),
            storage_directory: directory.to_owned(),
            import_directories: vec![directory.join("import")],
            downloads: dagger_agent::downloads::DownloadConfiguration::default(),
            backend: Backend::Libvirt { uri: URI.to_owned(), accelerator: Accelerator::Auto },
            network_kind: NetworkKind::None,
            helpers: helper(),
            nameservers: Vec::new(),
            policy: LocalPolicy::default(),
            retention: Retention::default(),
        };
        let (local_stops, stops_asked) = mpsc::channel(1);
        let requests = Requests { local_stops: stops_asked, ..nobody_asks() };
        let work =
            run(configuration, orders_told, reports_told, board.clone(), requests, stop.clone());
        let running = tokio::spawn(work);
        Self { orders, local_stops, reports, board, stop, running }
    }

    async fn start(directory: &Path, history: &[AttestedVm]) -> Self {
        let half = Self::start_without_ledger(directory);
        half.catch_up(history).await;
        half
    }

    async fn catch_up(&self, history: &[AttestedVm]) {
        self.order(Order::Host(Box::new(host()))).await;
        for version in history {
            self.vm(version).await;
        }
        self.order(Order::CaughtUp(CommitIndex(1))).await;
    }

    async fn stop_by_hand(&self, vm: VmId) -> Result<Generation, NoSuchMachine> {
        let (reply, answer) = oneshot::channel();
        let (manner, reason) = (StopManner::Forced, "it mines coins".to_owned());
        let request = LocalStopRequest { vm, manner, reason, reply };
        self.local_stops.send(request).await.unwrap();
        tokio::time::timeout(WAIT, answer).await.expect("no answer").unwrap()
    }

    async fn order(&self, order: Order) {
        self.orders.send(order).await.unwrap();
    }

    async fn vm(&self, version: &AttestedVm) {
        self.order(Order::Vm(Box::new(version.clone()))).await;
    }

    async fn any_report(&mut self) -> HostReport {
        tokio::time::timeout(WAIT, self.reports.recv()).await.expect("no report came").unwrap()
    }

    async fn report(&mut self) -> ReportVm {
        match self.any_report().await {
            HostReport::Vm(report) => report,
            other => panic!("{other:?}"),
        }
    }

    async fn volume(&mut self, version: &AttestedVolume) -> VolumePhase {
        self.order(Order::Volume(Box::new(version.clone()))).await;
        match self.any_report().await {
            HostReport::Volume(report) => report.phase,
            other => panic!("{other:?}"),
        }
    }

    async fn phase(&mut self) -> ReportPhase {
        let report = self.report().await;
        assert_eq!(report.vm, VM);
        report.phase
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

/// An image file in the host's store, and the VM that boots it.
fn with_image(directory: &Path) -> (Image, impl Fn(AttestedVm) -> AttestedVm + use<>) {
    let store = ImageStore::open(&directory.join("elsewhere")).unwrap();
    fs::create_dir_all(directory.join("import")).unwrap();
    let source = directory.join("import/image.raw");
    fs::write(&source, vec![0x5a; 1 << 20]).unwrap();
    let stored = store.import(&source, ImageFormat::Raw, None).unwrap();
    let image = VmImage {
        digest: stored.digest,
        format: ImageFormat::Raw,
        virtual_size_bytes: stored.virtual_size_bytes,
    };
    let registered = Image {
        name: "tests/small".parse().unwrap(),
        publisher: host().agent_key,
        digest: image.digest,
        format: image.format,
        size_bytes: stored.file_bytes,
        virtual_size_bytes: image.virtual_size_bytes,
        sources: vec![source.to_str().unwrap().parse().unwrap()],
        generation: dagger_payload::id::Generation(1),
        status: dagger_payload::object::ImageStatus::Offered,
        cause: cause(1),
    };
    (registered, move |mut version| {
        version.vm.image = image.clone();
        version
    })
}

fn domain(connection: &Connect) -> Option<Domain> {
    connection.lookup_domain_by_name(&HostNames::of(HERE).domain(VM)).ok()
}

fn quarantined(directory: &Path) -> usize {
    fs::read_dir(directory.join("disks/quarantine")).unwrap().count()
}

#[tokio::test]
async fn a_vm_is_created_stopped_started_and_deleted() {
    let connection = Connect::open(Some(URI)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (image, vm) = with_image(directory.path());
    let mut half = Half::start(directory.path(), &[]).await;
    half.order(Order::Image(Box::new(image))).await;

    half.vm(&vm(offered())).await;
    assert_eq!(half.phase().await, ReportPhase::Accepted);
    assert!(domain(&connection).is_none(), "it acted before its acceptance was ordered");
    let first = vm(accepted());
    half.vm(&first).await;
    assert_eq!(half.phase().await, ReportPhase::Running);
    let seen = domain(&connection).unwrap();
    assert!(seen.is_active().unwrap() && !seen.autostart().unwrap());
    assert_eq!(seen.uuid_string().unwrap(), uuid(VM));
    let xml = seen.xml_desc(0).unwrap();
    for part in ["type='qcow2'", "<backingStore type='file'", "<format type='raw'/>"] {
        assert!(xml.contains(part), "{part} is missing in {xml}");
    }
    let sight = half.board.read(|contents| contents.vms[&VM].clone());
    assert_eq!(sight.sight, Sight::Running);
    assert_eq!(sight.applied_generation, Some(first.vm.generation));

    let second = wants(&first, Wanted::Stopped);
    half.vm(&second).await;
    assert_eq!(half.phase().await, ReportPhase::Stopped);
    assert!(!domain(&connection).unwrap().is_active().unwrap());
    let third = wants(&second, Wanted::Running);
    half.vm(&third).await;
    assert_eq!(half.phase().await, ReportPhase::Running);
    let xml = domain(&connection).unwrap().xml_desc(0).unwrap();
    assert!(xml.contains("generation=\"3\"") || xml.contains("generation='3'"), "{xml}");

    let fourth = wants(&third, Wanted::Deleted);
    half.vm(&fourth).await;
    assert_eq!(half.phase().await, ReportPhase::Deleted);
    assert!(domain(&connection).is_none());
    assert_eq!(quarantined(directory.path()), 2, "the disk and the seed");
    half.vm(&after(&fourth, |vm| vm.reported = Some(report(4, ReportPhase::Deleted)))).await;
    half.end().await;
    assert!(connection.lookup_domain_by_name("test").is_ok(), "another's domain was touched");
}

#[tokio::test]
async fn a_guest_that_is_switched_off_behind_our_back_runs_again() {
    let connection = Connect::open(Some(URI)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (image, vm) = with_image(directory.path());
    let mut half = Half::start(directory.path(), &[vm(accepted())]).await;
    half.order(Order::Image(Box::new(image))).await;
    let told = half.phase().await;
    if told == ReportPhase::Degraded {
        // The image's source was told after its VM: it was missing for a moment.
        assert_eq!(half.phase().await, ReportPhase::Running);
    }
    let before = domain(&connection).unwrap().id().unwrap();
    domain(&connection).unwrap().destroy().unwrap();
    let again = async {
        while domain(&connection).unwrap().id().is_none_or(|id| id == before) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT, again).await.expect("it was not started again");
    half.end().await;
}

#[tokio::test]
async fn an_agent_that_restarts_touches_no_running_vm_and_adopts_it_without_its_journal() {
    let connection = Connect::open(Some(URI)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (image, vm) = with_image(directory.path());
    let first = vm(accepted());
    let mut half = Half::start(directory.path(), &[]).await;
    half.order(Order::Image(Box::new(image))).await;
    half.vm(&first).await;
    assert_eq!(half.phase().await, ReportPhase::Running);
    half.end().await;
    let before = domain(&connection).unwrap().id();

    fs::remove_dir_all(directory.path().join("state")).unwrap();
    let told = after(&first, |vm| vm.reported = Some(report(1, ReportPhase::Running)));
    let mut half = Half::start(directory.path(), &[first, told.clone()]).await;
    // What is asked for next is answered after the adoption.
    let second = wants(&told, Wanted::Deleted);
    let adopted = async {
        while !directory.path().join(format!("state/journal/{VM}.json")).exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT, adopted).await.expect("it was not adopted");
    assert_eq!(domain(&connection).unwrap().id(), before, "a running VM was touched");
    half.vm(&second).await;
    assert_eq!(half.phase().await, ReportPhase::Deleted, "something was told about the adoption");
    half.end().await;
}

#[tokio::test]
async fn a_machine_is_stopped_by_hand_without_ledger_and_journal_and_told_when_it_is_back() {
    let connection = Connect::open(Some(URI)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (image, vm) = with_image(directory.path());
    let first = vm(accepted());
    let mut half = Half::start(directory.path(), &[]).await;
    half.order(Order::Image(Box::new(image))).await;
    half.vm(&first).await;
    assert_eq!(half.phase().await, ReportPhase::Running);
    half.end().await;

    fs::remove_dir_all(directory.path().join("state")).unwrap();
    let mut half = Half::start_without_ledger(directory.path());
    let seen = async {
        while half.board.read(|contents| !contents.vms.contains_key(&VM)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT, seen).await.expect("the machine is not seen");
    assert_eq!(half.stop_by_hand(VmId([9; 16])).await, Err(NoSuchMachine));
    assert_eq!(half.stop_by_hand(VM).await, Ok(Generation(1)));
    let journal = directory.path().join(format!("state/journal/{VM}.json"));
    assert!(fs::read_to_string(&journal).unwrap().contains("it mines coins"));
    let off = async {
        while domain(&connection).unwrap().is_active().unwrap() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT, off).await.expect("it still runs");

    let told = after(&first, |vm| vm.reported = Some(report(1, ReportPhase::Running)));
    half.catch_up(&[first, told.clone()]).await;
    let report = half.report().await;
    assert_eq!(report.phase, ReportPhase::Stopped);
    assert_eq!(report.reason.unwrap(), "local_stop: it mines coins");
    assert!(!domain(&connection).unwrap().is_active().unwrap());
    half.vm(&wants(&told, Wanted::Running)).await;
    assert_eq!(half.phase().await, ReportPhase::Running, "its owner cannot start it");
    half.end().await;
}

#[tokio::test]
async fn a_damaged_image_is_refused_before_boot() {
    let connection = Connect::open(Some(URI)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (mut image, vm) = with_image(directory.path());
    image.sources.clear();
    let version = vm(accepted());
    let store = directory.path().join("images");
    let path = ImageStore::open(&store).unwrap().path(version.vm.image.digest);
    fs::write(path, vec![0x5b; 1 << 20]).unwrap();
    let mut half = Half::start(directory.path(), &[version]).await;
    let report = half.report().await;
    assert_eq!(report.phase, ReportPhase::Degraded);
    assert!(report.reason.unwrap().starts_with("image_damaged:"));
    assert!(domain(&connection).is_none());
    half.end().await;
}

#[tokio::test]
async fn a_hypervisor_that_cannot_be_asked_is_shown_and_nothing_is_told_of_its_vms() {
    let directory = tempfile::tempdir().unwrap();
    let (orders, orders_told) = mpsc::channel(ORDERS_WAITING_MAX);
    let (reports_told, mut reports) = mpsc::channel(REPORTS_WAITING_MAX);
    let (board, stop) = (SightBoard::default(), CancellationToken::new());
    let socket = directory.path().join("no-such-socket");
    let configuration = MachineConfiguration {
        host_id: HERE,
        state_directory: directory.path().join("state"),
        storage_directory: directory.path().to_owned(),
        import_directories: Vec::new(),
        downloads: dagger_agent::downloads::DownloadConfiguration::default(),
        backend: Backend::Libvirt {
            uri: format!("qemu:///system?socket={}", socket.display()),
            accelerator: Accelerator::Tcg,
        },
        network_kind: NetworkKind::Nat,
        helpers: helper(),
        nameservers: vec![[10, 0, 0, 53].into()],
        policy: LocalPolicy::default(),
        retention: Retention::default(),
    };
    let work =
        run(configuration, orders_told, reports_told, board.clone(), nobody_asks(), stop.clone());
    let running = tokio::spawn(work);
    for order in [
        Order::Host(Box::new(host())),
        Order::Vm(Box::new(accepted())),
        Order::CaughtUp(CommitIndex(1)),
    ] {
        orders.send(order).await.unwrap();
    }
    let shown = async {
        let done = |board: &SightBoard| {
            board.read(|contents| {
                matches!(contents.hypervisor, Some(Err(_))) && contents.vms.contains_key(&VM)
            })
        };
        while !done(&board) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT, shown).await.expect("the trouble was not shown");
    assert_eq!(board.read(|contents| contents.vms[&VM].sight), Sight::Unknown);
    stop.cancel();
    running.await.unwrap().unwrap();
    assert!(reports.try_recv().is_err());
}

#[tokio::test]
async fn an_inspection_tells_what_has_no_owner_from_an_owner_without_its_disk_and_moves_nothing() {
    let connection = Connect::open(Some(URI)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (image, vm) = with_image(directory.path());
    let mut half = Half::start(directory.path(), &[]).await;
    half.order(Order::Image(Box::new(image.clone()))).await;
    let first = vm(accepted());
    half.vm(&first).await;
    assert_eq!(half.phase().await, ReportPhase::Running);
    let told = after(&first, |vm| vm.reported = Some(report(1, ReportPhase::Running)));
    let registered = || Owners::default().and_images([&image].into_iter());
    let owners = Owners::among([&told.vm].into_iter(), HERE).and_images([&image].into_iter());
    let nobody = registered();
    let inspector = half.board.read(|contents| contents.inspector.clone()).unwrap();
    let kinds = |owners: &Owners, found: Found| -> Vec<FsckKind> {
        let view = compare(HERE, owners, owners, found);
        assert_eq!(view.unknown, [""; 0]);
        view.findings.iter().map(|finding| finding.kind).collect()
    };

    assert_eq!(kinds(&owners, inspector.look().await), []);
    let disk = FsckKind::DiskWithoutOwner;
    let all = [FsckKind::MachineWithoutOwner, disk, disk];
    assert_eq!(kinds(&nobody, inspector.look().await), all, "machine, disk and seed");

    let disks = directory.path().join("disks");
    fs::rename(disks.join(format!("{HERE}-{VM}.qcow2")), disks.join("saved.qcow2")).unwrap();
    let found = inspector.look().await;
    assert_eq!(kinds(&owners, found), [FsckKind::OwnerWithoutDisk, FsckKind::FileForeign]);
    assert!(domain(&connection).unwrap().is_active().unwrap());
    assert!(disks.join("saved.qcow2").exists());
    assert_eq!(quarantined(directory.path()), 0);
    half.end().await;
}

/// Defines a domain by hand and switches it on.
fn by_hand(connection: &Connect, name: &str, metadata: &str) -> Domain {
    let xml = format!(
        "<domain type='test'><name>{name}</name><memory unit='MiB'>64</memory>\
         <os><type>hvm</type></os><metadata>{metadata}</metadata></domain>"
    );
    let domain = connection.define_domain_xml(&xml).unwrap();
    domain.create().unwrap();
    domain
}

#[tokio::test]
async fn what_somebody_defined_by_hand_is_neither_adopted_nor_ended_and_an_inspection_lists_it() {
    let connection = Connect::open(Some(URI)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (image, vm) = with_image(directory.path());
    // One has our tags and a name of its own, the other our name and no tags.
    let another = VmId([9; 16]);
    let payload = cause(1).digest;
    let tags = format!(
        "<dagger:domain xmlns:dagger='{TAGS_NAMESPACE}' host='{HERE}' vm='{another}' \
         generation='1' payload='{payload}'/>"
    );
    let tagged = by_hand(&connection, "by-hand", &tags);
    let named = by_hand(&connection, &HostNames::of(HERE).domain(VM), "");
    let state = || [&tagged, &named].map(|domain| (domain.is_active(), domain.id()));
    let before = state();

    let first = vm(accepted());
    let mut half = Half::start(directory.path(), &[]).await;
    half.order(Order::Image(Box::new(image.clone()))).await;
    half.vm(&first).await;
    let told = half.report().await;
    assert_eq!(told.phase, ReportPhase::Degraded);
    assert!(told.reason.unwrap().starts_with("name_occupied: "));
    assert_eq!(half.board.read(|contents| contents.vms[&VM].sight), Sight::Absent);
    assert!(half.board.read(|contents| !contents.vms.contains_key(&another)), "it was adopted");
    assert_eq!(half.stop_by_hand(another).await, Err(NoSuchMachine));
    assert_eq!(half.stop_by_hand(VM).await, Ok(Generation(1)), "of a VM that is to be here");

    let owners = Owners::among([&first.vm].into_iter(), HERE).and_images([&image].into_iter());
    let inspector = half.board.read(|contents| contents.inspector.clone()).unwrap();
    let found = compare(HERE, &owners, &owners, inspector.look().await).findings;
    let misplaced = found.iter().find(|finding| finding.kind == FsckKind::MachineMisplaced);
    assert!(misplaced.is_some_and(|finding| finding.detail.contains("by-hand")), "{found:?}");
    let foreign = found.iter().find(|finding| finding.kind == FsckKind::MachineForeign);
    assert_eq!(foreign.and_then(|finding| finding.vm), Some(VM), "{found:?}");
    assert_eq!(found.len(), 2, "{found:?}");

    // No accepted order touches what is not ours; once it has gone, the VM has its name.
    half.vm(&wants(&first, Wanted::Stopped)).await;
    let told = half.report().await;
    assert_eq!((told.generation, told.phase), (Generation(2), ReportPhase::Degraded));
    assert_eq!(state(), before, "another's domain was touched");
    named.destroy().unwrap();
    named.undefine().unwrap();
    half.vm(&wants(&wants(&first, Wanted::Stopped), Wanted::Running)).await;
    let mut told = half.phase().await;
    if told == ReportPhase::Degraded {
        // The order was taken before the look that shows it gone.
        told = half.phase().await;
    }
    assert_eq!(told, ReportPhase::Running);
    assert!(tagged.is_active().unwrap());
    half.end().await;
}

#[test]
fn a_vm_that_degraded_before_anything_was_made_lacks_nothing_and_one_that_ran_does() {
    let degraded = after(&accepted(), |vm| vm.reported = Some(report(1, ReportPhase::Degraded)));
    let ran = after(&degraded, |vm| {
        let on = vm.meter.turned(Metered::Guest, &vm.size, LedgerTime(1_000));
        vm.meter = on.turned(Metered::Disk, &vm.size, LedgerTime(2_000));
    });
    let lacks = |version: &AttestedVm| {
        let owners = Owners::among([&version.vm].into_iter(), HERE);
        let (machines, strays) = (Ok(Inventory::new()), Ok(Vec::new()));
        let (cards, files) = (Ok(BTreeSet::new()), Ok(Files::default()));
        let nothing = Found { machines, strays, cards, files };
        let view = compare(HERE, &owners, &owners, nothing);
        view.findings.iter().map(|finding| finding.kind).collect::<Vec<_>>()
    };
    assert_eq!(lacks(&degraded), []);
    assert_eq!(lacks(&ran), [FsckKind::OwnerWithoutMachine, FsckKind::OwnerWithoutDisk]);
}

#[tokio::test]
async fn a_volume_is_made_once_and_what_was_made_and_is_gone_is_told_and_never_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let mut half = Half::start(directory.path(), &[]).await;
    let new = volume();
    assert_eq!(half.volume(&new).await, VolumePhase::Ready);
    let disk = directory.path().join(format!("disks/{HERE}-{VOLUME}.volume"));
    assert!(disk.exists());
    half.end().await;

    // The agent starts again, and somebody has removed the file meanwhile.
    fs::remove_file(&disk).unwrap();
    let mut half = Half::start(directory.path(), &[]).await;
    let made = new.reported(VolumePhase::Ready);
    assert_eq!(half.volume(&made).await, VolumePhase::Degraded);
    assert!(!disk.exists());
    fs::write(&disk, "precious").unwrap();
    assert_eq!(half.volume(&made.deleted()).await, VolumePhase::Deleted);
    assert!(!disk.exists());
    assert_eq!(quarantined(directory.path()), 1);
    half.end().await;
}
