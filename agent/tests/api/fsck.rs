//! What `/v1/fsck` says, with libvirt's own test driver and a real directory of disks below it.

use std::sync::Arc;

use dagger_agent::actuator::store::StoredDisks;
use dagger_agent::hypervisor::Hypervisor;
use dagger_agent::hypervisor::announcer::Announcer;
use dagger_agent::hypervisor::libvirt::Libvirt;
use dagger_agent::inspection::Inspector;
use dagger_agent::machines::Accelerator;
use dagger_agent::verify::reader::Trust;
use dagger_api::{FsckKind, FsckView};
use dagger_images::ImportDirectories;
use dagger_payload::id::VmId;
use dagger_payload::kind::{Body, ReportPhase};
use dagger_payload::object::Effect;
use dagger_payload::release::Verdict;
use tokio::sync::mpsc;

use crate::agent::Agent;
use crate::support::{Chronicle, World, after_report, create_vm, report};

/// Puts an inspector on the board, as the machines' half does; the hypervisor is not connected.
fn give_inspector(agent: &Agent) -> Arc<Libvirt> {
    let here = agent.world.host_id(0);
    let announcer = Announcer::new(here, mpsc::channel(1).0);
    let libvirt =
        Arc::new(Libvirt::new("test:///default".to_owned(), Accelerator::Auto, announcer));
    let disks = StoredDisks::open(agent.directory.path(), here, ImportDirectories::default());
    let disks = disks.expect("a fresh directory");
    let inspector = Inspector::new(libvirt.clone(), Arc::new(disks), None);
    agent.board.update(|contents| contents.inspector = Some(inspector));
    libvirt
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn until_history_and_hypervisor_are_there_everything_is_unknown_and_nothing_is_found() {
    let agent = Agent::start().await;
    let view: FsckView = agent.unix.get_json("/v1/fsck").await;
    assert!(view.findings.is_empty() && view.unknown.len() == 1, "{view:?}");
    give_inspector(&agent);
    let stray = agent.directory.path().join("disks/stray");
    std::fs::write(stray, "x").expect("a writable directory");
    let view: FsckView = agent.unix.get_json("/v1/fsck").await;
    assert!(view.findings.is_empty(), "{view:?}");
    assert!(view.unknown[0].starts_with("owners:"), "{view:?}");

    agent.ledger.caught_up(0);
    agent.until(|progress| progress.trust == Trust::CaughtUp).await;
    let view: FsckView = agent.unix.get_json("/v1/fsck").await;
    assert!(view.unknown[0].starts_with("machines: hypervisor_unavailable"), "{view:?}");
    assert_eq!(view.findings[0].kind, FsckKind::FileForeign);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_this_host_reported_and_does_not_have_and_a_disk_of_nobody_are_found() {
    let agent = Agent::start().await;
    let libvirt = give_inspector(&agent);
    libvirt.connect().expect("the driver is part of the library");
    let world = &agent.world;
    let mut chronicle = Chronicle::new(world);
    let vm = create_vm(world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    let mut last = vm.clone();
    for phase in [ReportPhase::Accepted, ReportPhase::Running] {
        let payload = world.sign(&World::agent_key(0), Body::ReportVm(report(vm.id, phase)));
        last = after_report(&last, phase, &payload, chronicle.next_position());
        let effects = vec![Effect::Vm(Box::new(last.clone()))];
        chronicle.commit(vec![(payload, Verdict::Accepted, effects)], Vec::new());
        agent.ledger.say(chronicle.newest());
    }
    agent.ledger.caught_up(3);
    agent.until(|progress| progress.trust == Trust::CaughtUp && progress.judged.0 == 3).await;
    let (here, nobody) = (world.host_id(0), VmId([0xee; 16]));
    let orphan = format!("{here}-{nobody}.qcow2");
    let path = agent.directory.path().join("disks").join(&orphan);
    std::fs::write(&path, "precious").expect("a writable directory");

    let view: FsckView = agent.unix.get_json("/v1/fsck").await;
    let found: Vec<_> = view.findings.iter().map(|found| (found.kind, found.vm)).collect();
    let expected = [
        (FsckKind::OwnerWithoutMachine, Some(vm.id)),
        (FsckKind::DiskWithoutOwner, Some(nobody)),
        (FsckKind::OwnerWithoutDisk, Some(vm.id)),
    ];
    assert_eq!((found.as_slice(), view.unknown.len()), (&expected[..], 0), "{view:?}");
    assert_eq!(view.findings[1].detail, orphan);
    assert_eq!((view.host, view.owners, view.machines, view.files), (here, 1, 0, 1));
    assert_eq!(std::fs::read(path).expect("it is still there"), b"precious");
}
