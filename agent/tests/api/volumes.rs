//! Volumes, as the API reads them from the judged objects.

use dagger_api::{HostView, VolumeView};
use dagger_payload::id::{AccountId, Generation, LedgerTime, SnapshotId, VolumeId};
use dagger_payload::kind::{
    Body, Protection, ReportVolume, VolumeCreate, VolumePhase, VolumeSnapshot,
};
use dagger_payload::object::{Cause, Effect};
use dagger_payload::release::Verdict;
use dagger_payload::usage::Meter;
use dagger_payload::volume::{
    Snapshot, SnapshotReport, SnapshotState, Volume, VolumeDisk, VolumeReport, VolumeState,
    VolumeUse, VolumeWanted,
};
use hyper::StatusCode;

use crate::agent::Agent;
use crate::support::{Chronicle, World, create_vm, key};

/// The developer's volume `data` on the host of member 0, created in a commit of its own.
fn create_volume(world: &World, chronicle: &mut Chronicle) -> Volume {
    let host = world.host_id(0);
    let developer = key(World::DEVELOPER);
    let name: dagger_payload::name::Name = "data".parse().expect("a name");
    let body = VolumeCreate { name: name.clone(), size_gib: 20, host };
    let payload = world.sign(&developer, Body::VolumeCreate(body));
    let cause = Cause { digest: payload.digest(), position: chronicle.next_position() };
    let volume = Volume {
        id: VolumeId::of(&payload.digest()),
        account: AccountId::of(&developer.public_key()),
        name,
        generation: Generation(1),
        created: cause,
        changed: cause,
        wanted: VolumeWanted::Kept,
        size_gib: 20,
        host,
        used_by: VolumeUse::Free {},
        disk: VolumeDisk::NotReported,
        reported: None,
        meter: Meter::NEW,
        protection: Protection::Unprotected,
        snapshots: Vec::new(),
        restoring: None,
        origin: None,
    };
    let effects = vec![Effect::Volume(Box::new(volume.clone()))];
    chronicle.commit(vec![(payload, Verdict::Accepted, effects)], Vec::new());
    volume
}

/// The volume with a snapshot of which its host says that it cannot be made.
fn keep(world: &World, chronicle: &mut Chronicle, volume: &Volume) -> Volume {
    let name: dagger_payload::name::Name = "monday".parse().expect("a name");
    let (volume_id, expected_generation) = (volume.id, None);
    let body = VolumeSnapshot { volume: volume_id, name: name.clone(), expected_generation };
    let payload = world.sign(&key(World::DEVELOPER), Body::VolumeSnapshot(body));
    let cause = Cause { digest: payload.digest(), position: chronicle.next_position() };
    let (phase, reason) = (VolumePhase::Degraded, Some("disk_failed: full".to_owned()));
    let snapshot = Snapshot {
        id: SnapshotId::of(&payload.digest()),
        name,
        size_gib: volume.size_gib,
        created: cause,
        created_at: LedgerTime(0),
        wanted: VolumeWanted::Kept,
        disk: VolumeDisk::NotReported,
        reported: Some(SnapshotReport { phase, reason, cause }),
    };
    let kept = Volume { snapshots: vec![snapshot], ..volume.clone() };
    let effects = vec![Effect::Volume(Box::new(kept.clone()))];
    chronicle.commit(vec![(payload, Verdict::Accepted, effects)], Vec::new());
    kept
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_shown_with_its_user_counts_on_its_host_and_leaves_the_list_when_gone() {
    let agent = Agent::start().await;
    let world = &agent.world;
    let mut chronicle = Chronicle::new(world);
    let vm = create_vm(world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    let volume = create_volume(world, &mut chronicle);
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 2).await;
    let listed: Vec<VolumeView> = agent.unix.get_json("/v1/volumes").await;
    assert_eq!((listed.len(), &listed[0].volume), (1, &volume));
    let shown: VolumeView = agent.unix.get_json("/v1/volumes/data").await;
    assert_eq!(shown.state, VolumeState::Pending);
    assert_eq!(shown.host_name, Some(world.genesis.hosts[0].name.clone()));
    let hosts: Vec<HostView> = agent.unix.get_json("/v1/hosts").await;
    assert_eq!(hosts[0].used.disk_gib, vm.size.disk_gib + 20);
    let missing = agent.unix.get("/v1/volumes/other").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);

    let says = |phase, volume: &Volume| {
        let (volume, generation) = (volume.id, volume.generation);
        let body = ReportVolume { volume, generation, phase, reason: None };
        world.sign(&World::agent_key(0), Body::ReportVolume(body))
    };
    let ready = says(VolumePhase::Ready, &volume);
    let attached = Volume { used_by: VolumeUse::Attached { vm: vm.id }, ..volume.clone() };
    let effects = vec![Effect::Volume(Box::new(attached))];
    chronicle.commit(vec![(ready, Verdict::Accepted, effects)], Vec::new());
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 3).await;
    let shown: VolumeView = agent.unix.get_json(&format!("/v1/volumes/{}", volume.id)).await;
    assert_eq!((shown.state, shown.vm_name), (VolumeState::Attached, Some(vm.name)));

    let kept = keep(world, &mut chronicle, &volume);
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 4).await;
    let shown: VolumeView = agent.unix.get_json("/v1/volumes/data").await;
    assert_eq!((shown.state, &shown.volume), (VolumeState::Degraded, &kept));
    assert_eq!(shown.reason.as_deref(), Some("disk_failed: full"));
    let (state, name) = (shown.snapshots[0].state, shown.snapshots[0].name.as_str());
    assert_eq!((state, name), (SnapshotState::Degraded, "monday"));
    assert_eq!(shown.snapshots[0].reason.as_deref(), Some("disk_failed: full"));

    let gone = says(VolumePhase::Deleted, &volume);
    let cause = Cause { digest: gone.digest(), position: chronicle.next_position() };
    let (generation, phase, reason) = (volume.generation, VolumePhase::Deleted, None);
    let deleted = Volume {
        wanted: VolumeWanted::Deleted,
        reported: Some(VolumeReport { generation, phase, reason, cause }),
        ..volume
    };
    let effects = vec![Effect::Volume(Box::new(deleted))];
    chronicle.commit(vec![(gone, Verdict::Accepted, effects)], Vec::new());
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 5).await;
    let listed: Vec<VolumeView> = agent.unix.get_json("/v1/volumes").await;
    assert!(listed.is_empty());
    let shown: VolumeView = agent.unix.get_json("/v1/volumes/data").await;
    assert_eq!(shown.state, VolumeState::Deleted);
}
