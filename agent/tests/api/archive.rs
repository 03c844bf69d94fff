//! What the agent keeps of the past on disk: it is found there, and not in memory.

use std::sync::Arc;

use dagger_agent::model::{Archives, LookExtent, Model, SharedModel};
use dagger_agent::verify::reader::Reader;
use dagger_api::{HistoryView, LedgerView, VmView};
use dagger_payload::id::CommitIndex;
use dagger_payload::kind::{Body, ReportPhase};
use dagger_payload::object::{Effect, Vm, VmState, Wanted};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::Verdict;

use crate::agent::Agent;
use crate::support::{
    Chronicle, World, after_report, create_vm, key, refused, report, vm_create, vm_stop,
};

/// The host of a VM says that it is deleted, as was asked.
fn delete_vm(world: &World, chronicle: &mut Chronicle, vm: &Vm) {
    let says =
        world.sign(&World::agent_key(0), Body::ReportVm(report(vm.id, ReportPhase::Deleted)));
    let at = chronicle.next_position();
    let mut after = after_report(vm, ReportPhase::Deleted, &says, at);
    after.wanted = Wanted::Deleted;
    let effects = vec![Effect::Vm(Box::new(after))];
    chronicle.commit(vec![(says, Verdict::Accepted, effects)], Vec::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_holds_no_more_after_a_long_history_than_after_a_short_one() {
    let (world, place) = (World::new(), tempfile::tempdir().expect("a directory"));
    let archive = Archives::begin(place.path()).and_then(|it| it.fresh()).expect("an archive");
    let mut reader = Reader::new(world.cluster, (*world.genesis).clone(), None);
    let model = SharedModel::new(Model::new(&world.genesis), archive, reader.progress());
    let mut chronicle = Chronicle::new(&world);
    let mut entries = Vec::new();
    for number in 0..300 {
        let vm = create_vm(&world, &mut chronicle, World::DEVELOPER, &format!("vm-{number}"));
        delete_vm(&world, &mut chronicle, &vm);
        let junk = world.sign(&key(World::DEVELOPER), vm_create(&format!("junk-{number}")));
        let verdict = refused(RefusalCode::PayloadMalformed);
        chronicle.commit(vec![(junk, verdict, Vec::new())], Vec::new());
        for release in chronicle.releases.split_off(chronicle.releases.len() - 3) {
            model.take_in(&Arc::new(release)).expect("there is room").expect("no hole");
        }
        chronicle.releases.clear();
        entries.push(model.read(Model::entries));
    }
    assert_eq!(entries[299], entries[150], "{entries:?}");
    assert_eq!(model.read(Model::deleted_vms), 300);

    // And all of it is there.
    let mut after = CommitIndex(0);
    let mut payloads = Vec::new();
    loop {
        let releases = model.releases_after(after, 100).await.expect("it reads");
        let Some(last) = releases.last() else { break };
        after = last.end.index;
        payloads.extend(releases.iter().flat_map(|each| &each.releases).map(|each| each.digest));
    }
    assert_eq!((after.0, payloads.len()), (900, 900));
    let look = move |back: &dagger_agent::model::LookBack| {
        let found = payloads.iter().map(|each| back.payload_view(each, CommitIndex(0)));
        found.collect::<Result<Vec<_>, _>>()
    };
    let views = model.look_back(LookExtent::Walk, look).await.expect("it reads");
    let positions = views.into_iter().map(|view| view.and_then(|view| view.position));
    assert!(positions.eq((1..=900).map(|at| Some(dagger_payload::id::Position(at)))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_vm_leaves_the_list_and_is_still_found_with_its_history() {
    let agent = Agent::start().await;
    let world = &agent.world;
    let mut chronicle = Chronicle::new(world);
    let vm = create_vm(world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    delete_vm(world, &mut chronicle, &vm);
    agent.ledger.say(chronicle.newest());
    // Somebody still names it.
    let stop = world.sign(&key(World::DEVELOPER), vm_stop(vm.id));
    chronicle.commit(vec![(stop, refused(RefusalCode::NotFound), Vec::new())], Vec::new());
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 3).await;

    assert!(agent.model.read(|model| model.vm(&vm.id).is_none()));
    assert!(agent.unix.get_json::<Vec<VmView>>("/v1/vms").await.is_empty());
    for path in ["/v1/vms/web-1".to_owned(), format!("/v1/vms/{}", vm.id)] {
        let view: VmView = agent.unix.get_json(&path).await;
        assert_eq!((view.vm.id, view.state), (vm.id, VmState::Deleted));
        let history: HistoryView = agent.unix.get_json(&format!("{path}/history")).await;
        let positions: Vec<_> = history.entries.iter().map(|entry| entry.position).collect();
        assert_eq!(positions.len(), 3, "{history:?}");
        assert_eq!(history.earlier, None);
    }
    // One that exists comes first.
    let fresh = create_vm(world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 4).await;
    let view: VmView = agent.unix.get_json("/v1/vms/web-1").await;
    assert_eq!(view.vm.id, fresh.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_that_does_not_fit_into_one_answer_is_told_in_parts() {
    let agent = Agent::start().await;
    let world = &agent.world;
    let mut chronicle = Chronicle::new(world);
    let vm = create_vm(world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    let until = dagger_agent::limits::HISTORY_STEPS_MAX + 5;
    let meddle = |number: usize| {
        let ahead = u64::try_from(number).expect("small");
        let until = crate::support::TIME.plus_ms(1_000 + ahead);
        let stop = world.sign_until(&key(World::OTHER_DEVELOPER), vm_stop(vm.id), until);
        (stop, refused(RefusalCode::NotAuthorized), Vec::new())
    };
    chronicle.commit((0..until).map(meddle).collect(), Vec::new());
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 2).await;

    let newest: HistoryView = agent.unix.get_json("/v1/vms/web-1/history").await;
    let before = newest.earlier.expect("there are earlier ones");
    let path = format!("/v1/vms/web-1/history?before={before}");
    let oldest: HistoryView = agent.unix.get_json(&path).await;
    assert_eq!(oldest.earlier, None);
    let all = oldest.entries.iter().chain(&newest.entries);
    let positions: Vec<_> = all.filter_map(|entry| entry.position).map(|at| at.0).collect();
    let expected: Vec<_> = (1..=u64::try_from(until).expect("small") + 1).collect();
    assert_eq!(positions, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_carried_what_no_honest_host_takes_in_is_named_with_the_count() {
    let agent = Agent::start().await;
    let world = &agent.world;
    let mut chronicle = Chronicle::new(world);
    let bytes = |text: &str| world.sign(&key(World::DEVELOPER), vm_create(text));
    let codes = [
        RefusalCode::SignatureInvalid,
        RefusalCode::PayloadMalformed,
        // An honest host may know newer rules, and may not know yet what others have.
        RefusalCode::KindUnknown,
        RefusalCode::NameTaken,
    ];
    let payloads = ["a", "b", "c", "d"].map(bytes);
    let junk = payloads[0].bytes.len() + payloads[1].bytes.len();
    let judged = payloads.into_iter().zip(codes).map(|(it, code)| (it, refused(code), vec![]));
    chronicle.commit(judged.collect(), Vec::new());
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;

    let view: LedgerView = agent.unix.get_json("/v1/ledger").await;
    let told: Vec<_> =
        view.junk.iter().map(|each| (each.name.as_str(), each.payloads, each.bytes)).collect();
    assert_eq!(told, [("host2", 2, u64::try_from(junk).expect("small"))]);
    let metrics = agent.unix.get("/metrics").await;
    let text = String::from_utf8(metrics.body.to_vec()).expect("text");
    let line = "dagger_agent_member_junk_payloads{seat=\"1\",member=\"host2\"} 2";
    assert!(text.contains(line), "{text}");
}
