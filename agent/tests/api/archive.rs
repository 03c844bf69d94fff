//! What the agent keeps of the past on disk: it is found there, and not in memory.

use std::sync::Arc;

use dagger_agent::limits::RELEASES_WRITTEN_TOGETHER_MAX;
use dagger_agent::model::{
    ArchiveError, Archives, LogQuery, LookBack, LookExtent, Model, SharedModel, Walker,
};
use dagger_agent::verify::reader::Reader;
use dagger_api::log::LogView;
use dagger_api::{HistoryView, LedgerView, VmView};
use dagger_payload::id::CommitIndex;
use dagger_payload::kind::{Body, ReportPhase};
use dagger_payload::object::{Cause, Effect, Vm, VmState, Wanted};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::{CommitRelease, Verdict};

use crate::agent::Agent;
use crate::http::PATIENCE;
use crate::support::{
    Chronicle, World, account_object, after_report, create_vm, host_object, key, refused, report,
    vm_create, vm_stop,
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
    let archive = Archives::below(place.path()).fresh().expect("an archive");
    let mut reader = Reader::new(world.cluster, (*world.genesis).clone(), None);
    let model = SharedModel::new(Model::new(&world.genesis), Some(archive), reader.progress());
    let mut chronicle = Chronicle::new(&world);
    let mut entries = Vec::new();
    for number in 0..300 {
        let vm = create_vm(&world, &mut chronicle, World::DEVELOPER, &format!("vm-{number}"));
        delete_vm(&world, &mut chronicle, &vm);
        let junk = world.sign(&key(World::DEVELOPER), vm_create(&format!("junk-{number}")));
        let verdict = refused(RefusalCode::PayloadMalformed);
        chronicle.commit(vec![(junk, verdict, Vec::new())], Vec::new());
        let releases: Vec<_> = chronicle.releases.drain(..).map(Arc::new).collect();
        model.take_in(&releases).expect("there is room").expect("no hole");
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
    let extent = LookExtent::Walk(Walker::Operator);
    let views = model.look_back(extent, look).await.expect("it reads");
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

/// What is told of a VM and of the log after these releases, taken in so many at a time.
async fn told_after(
    world: &World,
    releases: &[Arc<CommitRelease>],
    together: usize,
    vms: &[Vm],
) -> (usize, u64, Vec<HistoryView>, LogView) {
    let place = tempfile::tempdir().expect("a directory");
    let archive = Archives::below(place.path()).fresh().expect("an archive");
    let mut reader = Reader::new(world.cluster, (*world.genesis).clone(), None);
    let model = SharedModel::new(Model::new(&world.genesis), Some(archive), reader.progress());
    for some in releases.chunks(together) {
        model.take_in(some).expect("there is room").expect("no hole");
    }
    let (vms, query) =
        (vms.to_vec(), LogQuery { from: None, entries_max: 100, looked_at_max: 100 });
    let look = move |back: &LookBack| {
        let histories = vms.iter().map(|vm| back.history(vm, None, &Default::default()));
        let log = back.log(query, CommitIndex(0), &|_| true)?;
        Ok((histories.collect::<Result<Vec<_>, _>>()?, log))
    };
    let extent = LookExtent::Walk(Walker::Operator);
    let (histories, log) = model.look_back(extent, look).await.expect("it reads");
    let (entries, deleted) = model.read(|model| (model.entries(), model.deleted_vms()));
    (entries, deleted, histories, log)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn releases_that_are_taken_in_together_tell_the_same_as_one_by_one() {
    let world = World::new();
    let mut chronicle = Chronicle::new(&world);
    let cause = |chronicle: &Chronicle| Cause {
        digest: dagger_payload::id::PayloadDigest([9; 32]),
        position: chronicle.next_position(),
    };
    // Each sentence needs what those before it have changed: who signs, on which host, of which VM.
    let effects = vec![
        host_object(&world, 0, cause(&chronicle)),
        account_object(&key(World::DEVELOPER), cause(&chronicle)),
    ];
    chronicle.commit(Vec::new(), effects);
    let one = create_vm(&world, &mut chronicle, World::DEVELOPER, "web-1");
    delete_vm(&world, &mut chronicle, &one);
    let two = create_vm(&world, &mut chronicle, World::DEVELOPER, "web-2");
    for vm in [&one, &two] {
        let stop = world.sign(&key(World::OTHER_DEVELOPER), vm_stop(vm.id));
        chronicle.commit(vec![(stop, refused(RefusalCode::NotAuthorized), vec![])], Vec::new());
    }
    let says =
        world.sign(&World::agent_key(0), Body::ReportVm(report(two.id, ReportPhase::Running)));
    let at = chronicle.next_position();
    let after = after_report(&two, ReportPhase::Running, &says, at);
    let effects = vec![Effect::Vm(Box::new(after))];
    chronicle.commit(vec![(says, Verdict::Accepted, effects)], Vec::new());
    delete_vm(&world, &mut chronicle, &two);

    let releases: Vec<_> = chronicle.releases.drain(..).map(Arc::new).collect();
    let vms = [one, two];
    let alone = told_after(&world, &releases, 1, &vms).await;
    assert_eq!(alone.2.iter().map(|history| history.entries.len()).sum::<usize>(), 7);
    for together in 2..=releases.len() {
        let told = told_after(&world, &releases, together, &vms).await;
        assert_eq!(told, alone, "{together} together");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_history_that_is_all_at_hand_is_taken_in_whole_and_each_release_is_shown() {
    let agent = Agent::start().await;
    let world = &agent.world;
    let mut chronicle = Chronicle::new(world);
    let vm = create_vm(world, &mut chronicle, World::DEVELOPER, "web-1");
    let mut said = vec![chronicle.newest()];
    let count = 4 * RELEASES_WRITTEN_TOGETHER_MAX as u64 + 3;
    for number in 2..=count {
        let until = crate::support::TIME.plus_ms(number);
        let stop = world.sign_until(&key(World::OTHER_DEVELOPER), vm_stop(vm.id), until);
        chronicle.commit(vec![(stop, refused(RefusalCode::NotAuthorized), vec![])], Vec::new());
        said.push(chronicle.newest());
    }
    agent.ledger.say_all(said);
    agent.until(|progress| progress.judged.0 == count).await;
    let history: HistoryView = agent.unix.get_json("/v1/vms/web-1/history").await;
    assert_eq!(history.entries.len() as u64, count);
    assert_eq!(agent.model.progress().reading, 1, "it was read once");
}

/// The newest file of the archive.
fn archive_file(agent: &Agent) -> std::path::PathBuf {
    let mut archives = std::fs::read_dir(agent.directory.path().join("archive")).expect("there");
    archives.next().expect("one").expect("it reads").path().join("data.mdb")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_that_cannot_be_written_ends_the_agent_and_is_not_waited_for() {
    let mut agent = Agent::start().await;
    let world = Arc::clone(&agent.world);
    let mut chronicle = Chronicle::new(&world);
    create_vm(&world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;
    std::fs::remove_dir_all(agent.directory.path().join("archive")).expect("it was there");
    create_vm(&world, &mut chronicle, World::DEVELOPER, "web-2");
    agent.ledger.say(chronicle.newest());
    let ended = agent.until_unfollowed().await;
    assert!(matches!(ended, Err(ArchiveError::Failed { .. })), "{ended:?}");
    // What was not written is not shown.
    assert_eq!(agent.model.read(|model| model.vms().count()), 1);
    assert_eq!(agent.model.progress().judged, CommitIndex(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_does_not_read_is_told_as_a_defect_and_ends_the_agent() {
    let agent = Agent::start().await;
    let mut chronicle = Chronicle::new(&agent.world);
    let vm = create_vm(&agent.world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;
    let path = format!("/v1/payloads/{}", vm.created.digest);
    assert_eq!(agent.unix.get(&path).await.status, 200);

    // The document's length, before it, is one that nothing has.
    let document = &chronicle.releases[0].releases[0].ordered.payload.bytes;
    let file = archive_file(&agent);
    let bytes = std::fs::read(&file).expect("it reads");
    let places = (4..bytes.len() - document.len()).filter(|at| bytes[*at..].starts_with(document));
    let opened = std::fs::OpenOptions::new().write(true).open(&file).expect("it is there");
    for place in places {
        let before = u64::try_from(place - 3).expect("small");
        std::os::unix::fs::FileExt::write_all_at(&opened, &[0xff; 3], before).expect("it writes");
    }
    let answered = agent.unix.get(&path).await;
    assert_eq!((answered.status.as_u16(), answered.problem().code.as_str()), (500, "internal"));
    let why = tokio::time::timeout(PATIENCE, agent.model.until_broken()).await.expect("in time");
    assert!(why.contains("damaged"), "{why}");
}
