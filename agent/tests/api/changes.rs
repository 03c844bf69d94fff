//! Changes of VMs are told without what never changes: here they become whole VMs again.

use std::sync::Arc;

use dagger_agent::handover::Order;
use dagger_agent::model::{Archives, Model, SharedModel};
use dagger_agent::verify::reader::{Reader, Trust};
use dagger_api::bill::Bill;
use dagger_api::{StreamEvent, VmView};
use dagger_payload::changed_vm::{UnknownVm, WholeRelease};
use dagger_payload::id::CommitIndex;
use dagger_payload::kind::{Body, ReportPhase};
use dagger_payload::limits::USER_DATA_BYTES_MAX;
use dagger_payload::object::{Effect, Vm, VmState, Wanted};
use dagger_payload::release::{CommitRelease, Verdict};

use crate::agent::Agent;
use crate::events::EventReader;
use crate::support::{
    Chronicle, World, after_report, key, report, sealed_by, vm_create, vm_object,
};

/// A VM with long texts in the next commit, which its host says is running in the same one.
fn create_talkative(world: &World, chronicle: &mut Chronicle, name: &str) -> [Vm; 2] {
    let developer = key(World::DEVELOPER);
    let (payload, at) = (world.sign(&developer, vm_create(name)), chronicle.next_position());
    let vm = Vm {
        public_user_data: Some("x".repeat(USER_DATA_BYTES_MAX)),
        ..vm_object(&developer, name, &payload, at, world.host_id(0))
    };
    let says = report(vm.id, ReportPhase::Accepted);
    let says = world.sign(&World::agent_key(0), Body::ReportVm(says));
    let accepted = after_report(&vm, ReportPhase::Accepted, &says, at.next());
    let effect = |vm: &Vm| vec![Effect::Vm(Box::new(vm.clone()))];
    let judged = vec![
        (payload, Verdict::Accepted, effect(&vm)),
        (says, Verdict::Accepted, effect(&accepted)),
    ];
    chronicle.commit(judged, Vec::new());
    [vm, accepted]
}

/// The host says `phase` in the next commit, and the owner has wanted `wanted`.
fn change(
    world: &World,
    chronicle: &mut Chronicle,
    (vm, phase, wanted): (&Vm, ReportPhase, Wanted),
) -> Vm {
    let says = world.sign(&World::agent_key(0), Body::ReportVm(report(vm.id, phase)));
    let mut after = after_report(vm, phase, &says, chronicle.next_position());
    after.wanted = wanted;
    let effects = vec![Effect::Vm(Box::new(after.clone()))];
    chronicle.commit(vec![(says, Verdict::Accepted, effects)], Vec::new());
    after
}

fn is_short(release: &CommitRelease) -> bool {
    dagger_payload::codec::encode(release).len() < 2048
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_orders_and_views_show_whole_vms_also_of_one_that_is_gone() {
    let mut agent = Agent::start().await;
    let world = Arc::clone(&agent.world);
    let mut chronicle = Chronicle::new(&world);
    let [made, accepted] = create_talkative(&world, &mut chronicle, "web-1");
    let wanted = (&accepted, ReportPhase::Running, Wanted::Running);
    let running = change(&world, &mut chronicle, wanted);
    assert!(is_short(&chronicle.releases[1]));
    for release in &chronicle.releases {
        agent.ledger.say(sealed_by(&key(World::SEAL), release));
    }
    agent.until(|progress| progress.judged.0 == 2).await;
    let view: VmView = agent.unix.get_json("/v1/vms/web-1").await;
    assert_eq!((&view.vm, view.state), (&running, VmState::Running));

    let wanted = (&running, ReportPhase::Deleted, Wanted::Deleted);
    let gone = change(&world, &mut chronicle, wanted);
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 3).await;
    let view: VmView = agent.unix.get_json("/v1/vms/web-1").await;
    assert_eq!((&view.vm, view.state), (&gone, VmState::Deleted));

    let versions = [made, accepted, running, gone];
    let mut events =
        EventReader::open_with(&agent.unix, "/v1/events?after=0", Default::default()).await;
    for version in &versions {
        let vm = loop {
            if let StreamEvent::Vm { vm, .. } = events.next().await.event {
                break vm;
            }
        };
        assert_eq!(*vm, *version);
    }
    agent.ledger.caught_up(3);
    let end = chronicle.releases[2].end;
    agent.ledger.say(chronicle.attested(&[0, 1, 2], end));
    for version in &versions {
        let handed = loop {
            if let Order::Vm(handed) = agent.next_order().await {
                break handed;
            }
        };
        assert_eq!(handed.vm, *version);
    }
}

fn shared_model(world: &World, place: &std::path::Path) -> SharedModel {
    let archive = Archives::below(place).fresh().expect("an archive");
    let mut reader = Reader::new(world.cluster, (*world.genesis).clone(), None);
    SharedModel::new(Model::new(&world.genesis), Some(archive), reader.progress())
}

fn versions(releases: &[WholeRelease]) -> Vec<Vm> {
    let effects = releases
        .iter()
        .flat_map(|each| each.release().effects().map(|effect| each.whole(effect).into_owned()));
    let vm = |effect| match effect {
        Effect::Vm(vm) => Some(*vm),
        _ => None,
    };
    effects.filter_map(vm).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_from_the_archive_is_short_there_and_whole_for_who_asks() {
    let (world, place) = (World::new(), tempfile::tempdir().expect("a directory"));
    let model = shared_model(&world, place.path());
    let mut chronicle = Chronicle::new(&world);
    let mut expected = Vec::new();
    let many = dagger_agent::limits::RELEASES_TAIL_MAX;
    // More deleted ones than are looked up at once, and all of it older than what is in memory.
    for number in 0..dagger_agent::limits::GONE_VMS_TOGETHER_MAX + 10 {
        let [made, accepted] = create_talkative(&world, &mut chronicle, &format!("vm-{number}"));
        let wanted = (&accepted, ReportPhase::Deleted, Wanted::Deleted);
        let gone = change(&world, &mut chronicle, wanted);
        expected.extend([made, accepted, gone]);
    }
    let [made, mut last] = create_talkative(&world, &mut chronicle, "stays");
    expected.extend([made, last.clone()]);
    for _ in 0..many {
        let wanted = (&last, ReportPhase::Running, Wanted::Running);
        last = change(&world, &mut chronicle, wanted);
        expected.push(last.clone());
    }
    for release in &chronicle.releases {
        let taken = model.take_in(&[Arc::new(release.clone())]).expect("there is room");
        assert_eq!(taken, Ok(()));
    }
    let (mut after, mut told) = (CommitIndex(0), Vec::new());
    loop {
        let releases = model.whole_after(after, 100).await.expect("it reads");
        let Some(newest) = releases.last() else { break };
        after = newest.release().end.index;
        told.extend(versions(&releases));
    }
    assert!(told == expected, "{} versions instead of {}", told.len(), expected.len());
    let kept = model.releases_after(CommitIndex(0), 10).await.expect("it reads");
    assert!(kept.iter().map(|each| &**each).eq(&chronicle.releases[..kept.len()]));
    assert!(kept.iter().skip(1).step_by(2).all(|release| is_short(release)));
}

#[test]
fn a_change_of_a_vm_that_is_not_there_changes_nothing() {
    let (world, place) = (World::new(), tempfile::tempdir().expect("a directory"));
    let model = shared_model(&world, place.path());
    let mut chronicle = Chronicle::new(&world);
    let [_, accepted] = create_talkative(&world, &mut chronicle, "web-1");
    let wanted = (&accepted, ReportPhase::Deleted, Wanted::Deleted);
    let gone = change(&world, &mut chronicle, wanted);
    // After its last version there is no other.
    let wanted = (&gone, ReportPhase::Running, Wanted::Running);
    change(&world, &mut chronicle, wanted);
    let effects = &mut chronicle.releases[2].releases[0].effects;
    *effects = std::mem::take(effects).into_iter().map(Effect::told).collect();
    let take = |at: usize| model.take_in(&[Arc::new(chronicle.releases[at].clone())]);
    assert!(matches!(take(1), Ok(Err(UnknownVm(vm))) if vm == gone.id));
    assert_eq!(model.read(Model::judged), CommitIndex(0));
    assert!(matches!(take(0), Ok(Ok(()))));
    let mut of_another = chronicle.releases[1].clone();
    let account = dagger_payload::id::AccountId([9; 16]);
    let stolen = Effect::Vm(Box::new(Vm { account, ..accepted.clone() }));
    of_another.releases[0].effects = vec![stolen];
    assert!(matches!(model.take_in(&[Arc::new(of_another)]), Ok(Err(UnknownVm(_)))));
    assert!(matches!(take(1), Ok(Ok(()))));
    assert!(matches!(take(2), Ok(Err(UnknownVm(vm))) if vm == gone.id));
    assert_eq!(model.read(Model::judged), CommitIndex(2));
}

#[test]
fn a_bill_over_a_history_with_a_hole_is_none() {
    let world = World::new();
    let mut chronicle = Chronicle::new(&world);
    let [_, accepted] = create_talkative(&world, &mut chronicle, "web-1");
    let wanted = (&accepted, ReportPhase::Running, Wanted::Running);
    change(&world, &mut chronicle, wanted);
    let mut bill = Bill::new(accepted.account);
    assert_eq!(bill.take(&chronicle.releases[1]), Err(UnknownVm(accepted.id)));
    let mut bill = Bill::new(accepted.account);
    assert!(chronicle.releases.iter().all(|release| bill.take(release).is_ok()));
    let mut of_another = Bill::new(dagger_payload::id::AccountId([9; 16]));
    assert_eq!(of_another.take(&chronicle.releases[1]), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_with_a_hole_holds_the_host_until_it_is_told_whole() {
    let mut agent = Agent::start().await;
    let world = Arc::clone(&agent.world);
    let mut chronicle = Chronicle::new(&world);
    let [vm, accepted] = create_talkative(&world, &mut chronicle, "web-1");
    let mut torn = chronicle.releases[0].clone();
    // The seal of a false processor is as good as any.
    torn.releases[0].effects.clear();
    agent.ledger.say(sealed_by(&key(World::SEAL), &torn));
    let Order::Hold(why) = agent.next_order().await else { panic!("no hold") };
    assert!(why.contains("hole") && why.contains(&vm.id.to_string()), "{why}");
    assert!(agent.model.read(|model| model.vm(&vm.id).is_none()));

    let end = chronicle.releases[0].end;
    agent.ledger.start_over(vec![
        chronicle.newest(),
        dagger_bus::ledger::StreamItem::CaughtUp { commit: end.index },
        chronicle.attested(&[0, 1, 2], end),
    ]);
    agent.until(|progress| progress.trust == Trust::CaughtUp).await;
    assert_eq!(agent.model.read(|model| model.vm(&vm.id).cloned()), Some(accepted));
}
