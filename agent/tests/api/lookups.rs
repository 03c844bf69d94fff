//! What the API shows: VMs by id and name, histories, payloads with long polls.

use dagger_agent::handover::VmSight;
use dagger_api::{
    AccountView, Attested, ClusterView, HistoryView, HostLink, HostView, LedgerView, OperatorView,
    PayloadState, PayloadView, Sight, VmView,
};
use dagger_payload::id::Generation;
use dagger_payload::kind::{Body, ReportPhase};
use dagger_payload::object::{Cause, Effect, Placement, VmState};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::Verdict;
use dagger_payload::sshsig::{self, Namespace};
use hyper::StatusCode;

use crate::agent::Agent;
use crate::support::{
    Chronicle, TIME, World, account_object, after_report, create_vm, host_object, key, name,
    refused, report, vm_create, vm_stop,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_in_two_accounts_must_be_told_apart_by_the_account() {
    let agent = Agent::start().await;
    let mut chronicle = Chronicle::new(&agent.world);
    let first = create_vm(&agent.world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    let second = create_vm(&agent.world, &mut chronicle, World::OTHER_DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 2).await;

    let answered = agent.unix.get("/v1/vms/web-1").await;
    let problem = answered.problem();
    assert_eq!((answered.status, problem.code.as_str()), (StatusCode::CONFLICT, "name_ambiguous"));
    assert!(problem.advice.contains("?account="));
    for vm in [&first, &second] {
        let path = format!("/v1/vms/web-1?account={}", vm.account);
        let view: VmView = agent.unix.get_json(&path).await;
        assert_eq!(view.vm, *vm);
        let view: VmView = agent.unix.get_json(&format!("/v1/vms/{}", vm.id)).await;
        assert_eq!((view.vm.id, view.state), (vm.id, VmState::Pending));
        assert_eq!(view.host_name, Some(name("host1")));
        let path = format!("/v1/vms?account={}", vm.account);
        assert_eq!(agent.unix.get_json::<Vec<VmView>>(&path).await.len(), 1);
    }
    assert_eq!(agent.unix.get_json::<Vec<VmView>>("/v1/vms").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_leads_from_the_signature_to_the_machine() {
    let agent = Agent::start().await;
    let world = &agent.world;
    let mut chronicle = Chronicle::new(world);
    let developer = key(World::DEVELOPER);
    let setup = world.sign(&key(1), vm_create("setup"));
    let cause = Cause { digest: setup.digest(), position: chronicle.next_position() };
    let objects = vec![host_object(world, 0, cause), account_object(&developer, cause)];
    chronicle.commit(vec![(setup, Verdict::Accepted, objects)], Vec::new());
    let vm = create_vm(world, &mut chronicle, World::DEVELOPER, "web-1");
    let accepts =
        world.sign(&World::agent_key(0), Body::ReportVm(report(vm.id, ReportPhase::Accepted)));
    let accepted = after_report(&vm, ReportPhase::Accepted, &accepts, chronicle.next_position());
    let effects = vec![Effect::Vm(Box::new(accepted.clone()))];
    chronicle.commit(vec![(accepts, Verdict::Accepted, effects)], Vec::new());
    let runs =
        world.sign(&World::agent_key(0), Body::ReportVm(report(vm.id, ReportPhase::Running)));
    let running = after_report(&accepted, ReportPhase::Running, &runs, chronicle.next_position());
    let effects = vec![Effect::Vm(Box::new(running.clone()))];
    chronicle.commit(vec![(runs, Verdict::Accepted, effects)], Vec::new());
    let meddling = world.sign(&key(World::OTHER_DEVELOPER), vm_stop(vm.id));
    let verdict = refused(RefusalCode::NotAuthorized);
    let end = chronicle.commit(vec![(meddling, verdict, Vec::new())], Vec::new());
    for release in &chronicle.releases {
        agent.ledger.say(crate::support::sealed_by(&key(World::SEAL), release));
    }
    agent.ledger.say(chronicle.attested(&[0, 1, 3], chronicle.releases[3].end));
    agent.until(|progress| progress.judged == end.index && progress.attested.0 == 4).await;

    let history: HistoryView = agent.unix.get_json("/v1/vms/web-1/history").await;
    let fingerprint = developer.public_key().fingerprint();
    let sentences: Vec<_> = history.entries.iter().map(|entry| entry.summary.as_str()).collect();
    let created = format!("created by account {} ({fingerprint} key), placed on host1", vm.account);
    assert_eq!(sentences[..3], [created.as_str(), "host1 accepted", "host1 reports running"]);
    assert!(sentences[3].starts_with("vm.stop by account "), "{}", sentences[3]);
    assert!(sentences[3].contains("was refused: not_authorized"), "{}", sentences[3]);
    let attesters = ["host1", "host2", "host4"].map(name);
    assert_eq!(history.entries[2].attested_by, attesters);
    assert!(history.entries[3].attested_by.is_empty());
    let first = history.entries[0].payload.as_ref().expect("a payload caused it");
    assert_eq!((first.kind.as_str(), first.digest), ("vm.create", vm.created.digest));
    assert_eq!(first.carried_by, name("host2"));
    // Anyone can check it: the exact text, the armour, the key.
    let read = sshsig::from_armor(&first.signature, Namespace::Payload).expect("armour");
    let text = first.document.as_bytes();
    assert!(sshsig::verifies(&read.signer, Namespace::Payload, text, &read.signature));
    assert_eq!(read.signer.to_openssh(), first.signer);

    let view: VmView = agent.unix.get_json("/v1/vms/web-1").await;
    assert!(matches!(view.vm.placement, Placement::Accepted { .. }));
    assert_eq!((view.state, view.sight), (VmState::Running, Sight::Unknown));
    agent.board.update(|sights| {
        let sight = VmSight {
            sight: Sight::Running,
            applied_generation: Some(Generation(1)),
            reason: None,
            awaits_image: false,
        };
        sights.vms.insert(vm.id, sight);
    });
    let view: VmView = agent.unix.get_json("/v1/vms/web-1").await;
    assert_eq!((view.sight, view.applied_generation), (Sight::Running, Some(Generation(1))));

    let hosts: Vec<HostView> = agent.unix.get_json("/v1/hosts").await;
    assert_eq!((hosts[0].vms, hosts[0].used.cpus, hosts[0].link), (1, 2, HostLink::Own));
    assert!(hosts[0].host.is_some() && hosts[1].host.is_none());
    let path = format!("/v1/accounts/{}", vm.account);
    let account: AccountView = agent.unix.get_json(&path).await;
    assert_eq!((account.vms, account.used.memory_mib), (1, 512));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_passed_stands_in_the_history_without_a_payload() {
    let agent = Agent::start().await;
    let mut chronicle = Chronicle::new(&agent.world);
    let vm = create_vm(&agent.world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    let mut moved = vm.clone();
    moved.generation = Generation(2);
    moved.tried = vec![agent.world.host_id(0)];
    moved.placement = Placement::Offered {
        host: agent.world.host_id(2),
        address: "10.78.0.2".parse().expect("an address"),
        deadline: TIME.plus_ms(30_000),
    };
    chronicle.commit(Vec::new(), vec![Effect::Vm(Box::new(moved.clone()))]);
    agent.ledger.say(chronicle.newest());
    moved.placement = Placement::NoHost {};
    chronicle.commit(Vec::new(), vec![Effect::Vm(Box::new(moved))]);
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 3).await;
    let history: HistoryView = agent.unix.get_json("/v1/vms/web-1/history").await;
    let entry = &history.entries[1];
    assert_eq!(entry.summary, "host1 did not accept in time; placed on host3");
    assert!(entry.payload.is_none() && entry.position.is_none());
    let last = &history.entries[2].summary;
    assert_eq!(last, "host3 did not accept in time; no host is left to take it");
    let view: VmView = agent.unix.get_json("/v1/vms/web-1").await;
    assert_eq!(view.state, VmState::Degraded);
    assert!(view.reason.expect("says why").starts_with("no host"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_poll_answers_when_the_payload_is_judged_and_attested() {
    let agent = Agent::start().await;
    let mut chronicle = Chronicle::new(&agent.world);
    let vm = create_vm(&agent.world, &mut chronicle, World::DEVELOPER, "web-1");
    let path = format!("/v1/payloads/{}", vm.created.digest);
    let (unix, accepted) = (agent.unix.clone(), format!("{path}?wait=accepted&timeout_ms=20000"));
    let waiting = tokio::spawn(async move { unix.get_json::<PayloadView>(&accepted).await });
    agent.ledger.say(chronicle.newest());
    let view = waiting.await.expect("answered");
    assert_eq!((view.state, view.attested), (PayloadState::Accepted, Attested::No));
    assert_eq!((view.vm, view.position), (Some(vm.id), Some(vm.created.position)));

    let short: PayloadView =
        agent.unix.get_json(&format!("{path}?wait=attested&timeout_ms=1")).await;
    assert_eq!(short.attested, Attested::No);
    let (unix, attested) = (agent.unix.clone(), format!("{path}?wait=attested"));
    let waiting = tokio::spawn(async move { unix.get_json::<PayloadView>(&attested).await });
    let end = chronicle.releases[0].end;
    agent.ledger.say(chronicle.attested(&[1, 2, 3], end));
    assert_eq!(waiting.await.expect("answered").attested, Attested::Yes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_their_signer_did_not_sign_poison_no_digest() {
    let agent = Agent::start().await;
    let mut chronicle = Chronicle::new(&agent.world);
    let developer = key(World::DEVELOPER);
    let mut forged = agent.world.sign(&developer, vm_create("web-1"));
    let genuine = forged.clone();
    forged.signature.0[0] ^= 1;
    let verdict = refused(RefusalCode::SignatureInvalid);
    chronicle.commit(vec![(forged, verdict, Vec::new())], Vec::new());
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;
    let path = format!("/v1/payloads/{}", genuine.digest());
    assert_eq!(agent.unix.get(&path).await.problem().code, "not_found");
    chronicle.commit(vec![(genuine, Verdict::Accepted, Vec::new())], Vec::new());
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 2).await;
    let view: PayloadView = agent.unix.get_json(&path).await;
    assert_eq!(view.state, PayloadState::Accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_and_the_ledger_say_what_a_client_needs() {
    let agent = Agent::start().await;
    let cluster: ClusterView = agent.tcp.get_json("/v1/cluster").await;
    assert_eq!(cluster.cluster, agent.world.cluster);
    assert_eq!((cluster.host_name, cluster.host), (name("host1"), agent.world.host_id(0)));
    let ledger: LedgerView = agent.tcp.get_json("/v1/ledger").await;
    assert_eq!((ledger.reached, ledger.quorum, ledger.faults_survived), (4, 3, 1));
    assert_eq!(ledger.dishonest_operators_survived, 1);
    let operators: Vec<OperatorView> = agent.tcp.get_json("/v1/operators").await;
    let shown = operators.iter().map(|view| (view.name.clone(), view.hosts.clone()));
    let expected = (1..=4).map(|i| (name(&format!("op{i}")), vec![name(&format!("host{i}"))]));
    assert!(shown.eq(expected), "{operators:?}");
    assert_eq!(operators[1].key, agent.world.genesis.operators[1].key);
    assert_eq!(ledger.members[1].link, HostLink::Connected);
}

/// The fake ledger says that host2 signed two events for round 3.
#[tokio::test]
async fn who_signed_two_events_for_one_round_is_named_with_both_and_counted() {
    let agent = Agent::start().await;
    let ledger: LedgerView = agent.tcp.get_json("/v1/ledger").await;
    let [fork] = &ledger.forks[..] else { panic!("{:?}", ledger.forks) };
    assert_eq!((fork.name.clone(), fork.host), (name("host2"), agent.world.host_id(1)));
    assert_eq!((fork.round, fork.events.len()), (Some(3), 2));
    assert_ne!(fork.events[0], fork.events[1]);
    let metrics = agent.unix.get("/metrics").await;
    let metrics = String::from_utf8(metrics.body.to_vec()).expect("text");
    assert!(metrics.contains("dagger_agent_members_forked 1\n"), "{metrics}");
}
