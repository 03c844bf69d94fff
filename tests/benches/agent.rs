//! What the agent costs: `cargo bench -p dagger-tests --bench agent` prints one JSON document.
//!
//! Each figure stands beside a bound that was measured in the same run: the plain libvirt client
//! starting the same machine, `qemu-img` making the same disk, libvirt's own share of the memory.
//! The memory is that of a daemon of its own: the programs have to be built before, in the same
//! profile.
//! Names after `--` choose parts: `history`, `memory`, `start`, `clone`; with `--test` each is only
//! tried.
//! `start` needs root, for a libvirtd of its own.

// What it meets and does not expect ends it.
#![allow(clippy::unwrap_used, missing_docs)]

// The lifecycle table asks more of it.
#[allow(dead_code)]
#[path = "../tests/shared/half.rs"]
mod half;
mod long_history;
#[path = "../tests/shared/versions.rs"]
mod versions;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use dagger_agent::actuator::disks::Disks;
use dagger_agent::actuator::store::StoredDisks;
use dagger_agent::controller::DiskRule;
use dagger_agent::handover::AttestedVm;
use dagger_agent::hypervisor::names::HostNames;
use dagger_agent::machines::{Accelerator, Backend};
use dagger_images::ImportDirectories;
use dagger_payload::id::VmId;
use dagger_payload::kind::{ReportPhase, StopManner, VmImage};
use dagger_payload::object::Wanted;
use dagger_tests::cluster::{Cluster, Role};
use dagger_tests::libvirtd::Libvirtd;
use serde_json::{Value, json};
use tempfile::TempDir;
use virt::connect::Connect;
use virt::sys;

use self::half::{Half, reported, store_image};
use self::versions::{HERE, attested};

/// Runs whose median counts.
const RUNS: usize = 20;
/// VMs whose memory is counted.
const VMS: usize = 200;
/// How much longer than the plain client the agent may take to start a machine.
const START_GOAL: Duration = Duration::from_millis(100);
/// How long a disk over an image of 2 GiB may take.
const CLONE_GOAL: Duration = Duration::from_millis(50);
/// What an agent without VMs may take, in MiB.
const MEMORY_GOAL_MIB: f64 = 40.0;
/// What each VM may take, in KiB.
const MEMORY_GOAL_KIB_PER_VM: f64 = 100.0;
/// libvirt's test driver, within this process.
const PAPER: &str = "test:///default";

/// Measures one thing; quickly, if only asked whether it works.
type Part = fn(&tokio::runtime::Runtime, Extent) -> Value;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Whole,
    Tried,
}

impl Extent {
    fn of(self, count: usize) -> usize {
        match self {
            Self::Whole => count,
            Self::Tried => 2,
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_trial = arguments.iter().any(|argument| argument == "--test");
    let extent = if is_trial { Extent::Tried } else { Extent::Whole };
    let names: Vec<_> = arguments.iter().filter(|name| !name.starts_with('-')).collect();
    // Memory first: what others leave behind would count.
    let parts: [(&str, Part); 4] =
        [("history", history), ("memory", memory), ("start", start), ("clone", clone)];
    let wanted =
        parts.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|it| it == name));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let report: serde_json::Map<_, _> =
        wanted.map(|(name, part)| ((*name).to_owned(), part(&runtime, extent))).collect();
    println!("{:#}", Value::from(report));
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("db").tempdir().unwrap()
}

fn vm(number: usize) -> VmId {
    let mut id = [7; 16];
    id[..8].copy_from_slice(&u64::try_from(number).unwrap().to_be_bytes());
    VmId(id)
}

fn version(image: &VmImage, number: usize, wanted: Wanted, generation: u64) -> AttestedVm {
    let mut version = attested(vm(number), wanted, generation);
    version.vm.image = image.clone();
    version.vm.size.memory_mib = 32;
    version.vm.stop_manner = StopManner::Forced;
    version
}

fn libvirt(uri: &str) -> Backend {
    Backend::Libvirt { uri: uri.to_owned(), accelerator: Accelerator::Tcg }
}

async fn ask(half: &mut Half, version: &AttestedVm, phase: ReportPhase) {
    half.vm(version).await;
    let report = half.report().await;
    assert_eq!((report.vm, report.phase), (version.vm.id, phase), "{report:?}");
}

/// From an attested version to a machine that was started and is seen running, beside the same
/// machine defined and started by the plain client, on QEMU.
fn start(runtime: &tokio::runtime::Runtime, extent: Extent) -> Value {
    let (base, host) = (directory(), directory());
    let libvirtd = Libvirtd::start(base.path()).expect("a libvirtd of its own, as root");
    let connection = Connect::open(Some(&libvirtd.uri())).unwrap();
    let image = store_image(host.path(), 1 << 20);
    let measured = runtime.block_on(async {
        let mut half = Half::start(host.path(), libvirt(&libvirtd.uri()), &[]).await;
        let mut measured = Vec::new();
        // The first one pays for what the hypervisor has to find out about itself.
        for number in 0..=extent.of(RUNS) {
            let began = Instant::now();
            let on = version(&image, number, Wanted::Running, 1);
            ask(&mut half, &on, ReportPhase::Running).await;
            let by_agent = began.elapsed();
            let off = version(&image, number, Wanted::Stopped, 2);
            ask(&mut half, &off, ReportPhase::Stopped).await;
            let by_client = start_plainly(&connection, vm(number));
            let gone = version(&image, number, Wanted::Deleted, 3);
            ask(&mut half, &gone, ReportPhase::Deleted).await;
            half.vm(&reported(&gone, ReportPhase::Deleted)).await;
            measured.push((by_agent, by_client));
        }
        half.end().await;
        measured.split_off(1)
    });
    let agent = median(measured.iter().map(|(agent, _)| *agent).collect());
    let plain = median(measured.iter().map(|(_, plain)| *plain).collect());
    let difference = agent.saturating_sub(plain);
    json!({
        "backend": "libvirt/QEMU with TCG", "runs": measured.len(),
        "agent_median_ms": milliseconds(agent),
        "bound_median_ms": milliseconds(plain),
        "difference_ms": milliseconds(difference),
        "goal_difference_ms_max": milliseconds(START_GOAL),
        "is_within_goal": difference <= START_GOAL,
        "note": "from the attested version, with the image in the store, to the report that it \
                 runs: image checked, disk and seed made, defined, started, looked at; the bound \
                 is define and start of the same machine by the plain client",
    })
}

/// The stopped machine of `vm` under another name, defined and started; then it goes.
fn start_plainly(connection: &Connect, vm: VmId) -> Duration {
    let name = HostNames::of(HERE).domain(vm);
    let ours = connection.lookup_domain_by_name(&name).unwrap();
    let uuid = ours.uuid_string().unwrap();
    let xml = ours.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE).unwrap();
    let xml = xml.replace(&format!("<uuid>{uuid}</uuid>"), "").replace(&name, "plain");
    let began = Instant::now();
    let domain = connection.define_domain_xml(&xml).unwrap();
    domain.create().unwrap();
    let took = began.elapsed();
    domain.destroy().unwrap();
    domain.undefine().unwrap();
    took
}

/// A VM's disk over an image of 2 GiB that is in the store and was verified.
fn clone(_: &tokio::runtime::Runtime, extent: Extent) -> Value {
    let size_gib = match extent {
        Extent::Whole => 2,
        Extent::Tried => 1,
    };
    let host = directory();
    let image = store_image(host.path(), size_gib << 30);
    let disks =
        StoredDisks::open(&host.path().join("storage"), HERE, ImportDirectories::new(Vec::new()));
    let disks = disks.unwrap();
    disks.ensure_image(&image, &[]).unwrap();
    let below = disks.image_path(&image);
    let runs = extent.of(RUNS);
    let (mut times, mut bounds) = (Vec::new(), Vec::new());
    for number in 0..runs {
        let began = Instant::now();
        disks.ensure_disk(vm(number), &image, size_gib, DiskRule::MayMake).unwrap();
        times.push(began.elapsed());
        bounds.push(overlay_by_hand(
            &below,
            &host.path().join(format!("{number}.qcow2")),
            size_gib,
        ));
    }
    let (time, bound) = (median(times), median(bounds));
    json!({
        "image_gib": size_gib, "runs": runs,
        "median_ms": milliseconds(time),
        "bound_median_ms": milliseconds(bound),
        "ratio_to_bound": time.as_secs_f64() / bound.as_secs_f64(),
        "goal_ms_max": milliseconds(CLONE_GOAL),
        "is_within_goal": time <= CLONE_GOAL,
        "note": "made, read back, synced and given its name; the bound is qemu-img alone",
    })
}

fn overlay_by_hand(image: &Path, overlay: &Path, size_gib: u64) -> Duration {
    let began = Instant::now();
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .arg(image)
        .arg(overlay)
        .arg(format!("{size_gib}G"))
        .status();
    let took = began.elapsed();
    assert!(made.unwrap().success());
    took
}

/// The memory of a process that no file stands behind, resident or swapped out: the resident pages
/// of the archive are the kernel's to take back, and grow with the history.
fn anonymous_kib(process: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap()
    };
    kib("RssAnon:") + kib("VmSwap:")
}

fn paper(number: usize) -> String {
    format!(
        "<domain type='test'><name>plain-{number}</name><memory unit='MiB'>32</memory>\
         <vcpu>1</vcpu><os><type>hvm</type><boot dev='hd'/></os><devices>\
         <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
         <source file='/a/{number}.qcow2'/><target dev='vda' bus='virtio'/></disk>\
         <disk type='file' device='disk'><driver name='qemu' type='raw'/>\
         <source file='/a/{number}.seed'/><target dev='vdb' bus='virtio'/></disk>\
         <serial type='pty'><target port='0'/></serial></devices></domain>"
    )
}

/// What libvirt's test driver keeps of each machine in the process that it is in, in KiB: it is a
/// part of this process while the plain client defines the machines, and a part of the agent when
/// that does. (Other drivers are in a daemon of libvirt's.)
fn libvirts_share_kib(vms: usize) -> f64 {
    let connection = Connect::open(Some(PAPER)).unwrap();
    let before = anonymous_kib("self");
    for number in 0..vms {
        connection.define_domain_xml(&paper(number)).unwrap().create().unwrap();
    }
    (anonymous_kib("self") - before) / vms as f64
}

/// Orders machines with these numbers and waits until all are reported running.
fn run_machines(cluster: &Cluster, numbers: std::ops::Range<usize>) {
    let key = cluster.file("keys/developer.pub");
    let all = numbers.end;
    for number in numbers {
        let name = format!("vm-{number}");
        let size = ["--cpus", "1", "--memory", "64MiB", "--disk", "1GiB"];
        let order = ["vm", "create", &name, "--image", "op1/small", "--ssh-key", &key];
        cluster.must(&[&order[..], &size, &["--wait", "ordered"]].concat());
    }
    cluster.until("all machines run", || {
        let shown = cluster.json(&["vm", "ls"]);
        let running = |vm: &&Value| vm["state"] == "running" && vm["sight"] == "running";
        let shown = shown.as_array().unwrap();
        (shown.iter().filter(running).count() == all).then_some(())
    });
}

/// The read model with a history ten times as long.
fn history(runtime: &tokio::runtime::Runtime, extent: Extent) -> Value {
    match extent {
        Extent::Whole => long_history::measure(runtime, 20_000, 200_000),
        Extent::Tried => long_history::measure(runtime, 20, 200),
    }
}

/// The whole daemon of a cluster of one host, with many machines on paper: its read model, its API
/// and its verification of the ledger, as it grows and as it is after it has begun anew.
fn memory(_: &tokio::runtime::Runtime, extent: Extent) -> Value {
    let vms = extent.of(VMS);
    let libvirts = libvirts_share_kib(vms);
    let room = ["--host-cpus", "512", "--host-memory", "64GiB", "--host-disk", "512GiB"];
    let cluster = Cluster::start_with(1, &[&["test"], &room[..]].concat(), &[]);
    let (developer, operator) = (cluster.file("keys/developer.pub"), cluster.file("keys/op1"));
    let quota = ["--cpus", "512", "--memory", "64GiB", "--disk", "512GiB", "--vms", "512"];
    let grant = ["account", "grant", &developer, "--operator-key", &operator];
    cluster.must(&[&grant[..], &quota].concat());
    cluster.register_paper_image();
    let anonymous = || anonymous_kib(&cluster.pid(Role::Agent, 1).to_string());
    // Once through everything, so that what is made once is there.
    run_machines(&cluster, 0..1);
    let idle = anonymous() - libvirts;
    run_machines(&cluster, 1..vms + 1);
    let grown = anonymous() - libvirts * (vms + 1) as f64;
    cluster.kill(Role::Agent, 1);
    cluster.restart(Role::Agent, 1);
    run_machines(&cluster, vms + 1..vms + 1);
    // Machines on paper went with the process that had them; all are made again.
    let again = anonymous() - libvirts * (vms + 1) as f64;
    let allowed = MEMORY_GOAL_MIB * 1024.0 + MEMORY_GOAL_KIB_PER_VM * vms as f64;
    let rounded = |value: f64| (value * 10.0).round() / 10.0;
    json!({
        "vms": vms,
        "idle_mib": rounded(idle / 1024.0),
        "goal_idle_mib_max": MEMORY_GOAL_MIB,
        "per_vm_kib": rounded((grown - idle) / vms as f64),
        "goal_per_vm_kib_max": MEMORY_GOAL_KIB_PER_VM,
        "with_vms_mib": rounded(grown / 1024.0),
        "with_vms_after_restart_mib": rounded(again / 1024.0),
        "goal_with_vms_mib_max": rounded(allowed / 1024.0),
        "libvirts_share_per_vm_kib": rounded(libvirts),
        "is_within_goal": grown <= allowed && again <= allowed && idle <= MEMORY_GOAL_MIB * 1024.0,
        "note": "anonymous memory of the daemon, without what libvirt's test driver keeps of each \
                 machine in the same process, which the plain client shows in another",
    })
}
