//! What an account has used, as the API reads it from the judged objects.

use dagger_api::UsageView;
use dagger_api::bill::Bill;
use dagger_payload::history::{self, Chains, HISTORY_MAGIC};
use dagger_payload::id::LedgerTime;
use dagger_payload::kind::{Body, ReportPhase};
use dagger_payload::object::{Effect, Placement, Vm, Wanted};
use dagger_payload::release::{CommitRelease, Verdict};
use dagger_payload::usage::{Meter, Metered, PastUsage, Used};
use hyper::StatusCode;

use crate::agent::Agent;
use crate::sessions::{get, two_accounts};
use crate::support::{Chronicle, TIME, World, after_report, create_vm, key, report};

/// The host says `phase`, and the judge makes `change` of the VM, and perhaps more.
fn commit_report(
    world: &World,
    chronicle: &mut Chronicle,
    (vm, phase): (&Vm, ReportPhase),
    change: impl FnOnce(&mut Vm),
    more: Option<Effect>,
) -> Vm {
    let says = world.sign(&World::agent_key(0), Body::ReportVm(report(vm.id, phase)));
    let mut after = after_report(vm, phase, &says, chronicle.next_position());
    change(&mut after);
    let effects = [Effect::Vm(Box::new(after.clone()))].into_iter().chain(more).collect();
    chronicle.commit(vec![(says, Verdict::Accepted, effects)], Vec::new());
    after
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_read_as_of_any_judged_commit() {
    let agent = Agent::start().await;
    let world = &agent.world;
    let mut chronicle = Chronicle::new(world);
    let vm = create_vm(world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    let since = LedgerTime(TIME.0 - 5_000);
    let used = Used { cpu_ms: 1, memory_mib_ms: 2, disk_gib_ms: 3 };
    let on = |vm: &mut Vm| vm.meter = Meter { counts: Metered::Guest, since, used };
    let vm = commit_report(world, &mut chronicle, (&vm, ReportPhase::Accepted), on, None);
    agent.ledger.say(chronicle.newest());
    let host = world.host_id(0);
    let past = PastUsage { account: vm.account, host, vms: 1, used };
    let past = Some(Effect::Usage(Box::new(past)));
    let gone = |vm: &mut Vm| vm.wanted = Wanted::Deleted;
    commit_report(world, &mut chronicle, (&vm, ReportPhase::Deleted), gone, past);
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 3).await;

    let path = format!("/v1/accounts/{}/usage", vm.account);
    let second: UsageView = agent.unix.get_json(&format!("{path}?commit=2")).await;
    let size = vm.size;
    let expected = Used {
        cpu_ms: 1 + 5_000 * u64::from(size.cpus),
        memory_mib_ms: 2 + 5_000 * size.memory_mib,
        disk_gib_ms: 3 + 5_000 * size.disk_gib,
    };
    assert_eq!((second.used, second.hosts[0].vms[0].used), (expected, expected));
    assert_eq!((second.commit.0, second.hosts[0].deleted_vms), (2, 0));
    let first: UsageView = agent.unix.get_json(&format!("{path}?commit=1")).await;
    assert_eq!(first.used, Used::default());
    let newest: UsageView = agent.unix.get_json(&path).await;
    assert_eq!((newest.commit.0, newest.used), (3, used));
    assert_eq!((newest.hosts[0].vms.len(), newest.hosts[0].deleted_vms), (0, 1));
    let [gone] = &newest.hosts[0].deleted[..] else { panic!("{newest:?}") };
    assert_eq!((gone.vm, gone.name.as_str(), gone.used), (vm.id, "web-1", used));
    let later = agent.unix.get(&format!("{path}?commit=4")).await;
    let problem = (later.status, later.problem().code);
    assert_eq!(problem, (StatusCode::SERVICE_UNAVAILABLE, "not_judged_yet".to_owned()));
    let stranger = agent.tcp.get(&path).await;
    assert_eq!(stranger.problem().code, "session_needed");
}

/// The releases of an exported history, and what they add up to.
fn read(world: &World, file: &[u8]) -> (Vec<CommitRelease>, Chains) {
    let mut left = file.strip_prefix(&HISTORY_MAGIC).expect("it begins so");
    let (mut releases, mut chains) = (Vec::new(), Chains::founding(&world.cluster));
    while let Some((head, rest)) = left.split_first_chunk() {
        let (bytes, rest) = rest.split_at(history::length(*head).expect("a release"));
        releases.push(chains.take(bytes).expect("the next one"));
        left = rest;
    }
    assert_eq!(left.len(), 0);
    (releases, chains)
}

#[test]
fn what_a_vm_had_used_stays_in_the_bill_when_it_is_lost_with_its_host() {
    let (world, host) = (World::new(), World::new().host_id(0));
    let mut chronicle = Chronicle::new(&world);
    let vm = create_vm(&world, &mut chronicle, World::DEVELOPER, "web-1");
    let used = Used { cpu_ms: 1, memory_mib_ms: 2, disk_gib_ms: 3 };
    let meter = Meter { counts: Metered::Nothing, since: TIME, used };
    let lost = Vm { placement: Placement::Lost { host }, meter, ..vm.clone() };
    chronicle.commit(Vec::new(), vec![Effect::VmChanged(Box::new(lost.change()))]);
    let mut bill = Bill::new(vm.account);
    for release in &chronicle.releases {
        bill.take(release).expect("no hole");
    }
    let told = bill.read(|_| None);
    assert_eq!((told.used, told.hosts[0].vms[0].used), (used, used));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_the_exported_history_comes_to_the_same_bill_byte_for_byte() {
    let agent = two_accounts().await;
    let world = &agent.world;
    let exported = agent.unix.get("/v1/history").await;
    assert_eq!(exported.status, StatusCode::OK);
    let (releases, chains) = read(world, &exported.body);
    assert_eq!((releases.len(), chains.at.0), (2, 2));
    let vms = agent.model.read(|model| model.vms().cloned().collect::<Vec<_>>());
    for vm in vms {
        let mut bill = Bill::new(vm.account);
        for (release, commit) in releases.iter().zip(1..) {
            bill.take(release).expect("no hole");
            let path = format!("/v1/accounts/{}/usage?commit={commit}", vm.account);
            let told = agent.unix.get(&path).await;
            let own = bill.read(|host| agent.model.read(|model| model.host_name(host).cloned()));
            assert_eq!(serde_json::to_vec(&own).ok().as_deref(), Some(&told.body[..]), "{commit}");
        }
    }
    // It names all accounts' objects.
    let developer = get(&agent, "/v1/history", &key(World::DEVELOPER), 0).await;
    assert_eq!(developer.problem().code, "session_refused");
    let operator = get(&agent, "/v1/history", &key(1), 0).await;
    assert_eq!((operator.status, operator.body), (StatusCode::OK, exported.body));
    assert_eq!(agent.tcp.get("/v1/history").await.problem().code, "session_needed");
}
