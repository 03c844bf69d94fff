//! What reaches the machines' half, through real sockets: only what is sealed, attested and not
//! older than before.

use dagger_agent::handover::Order;
use dagger_agent::verify::mark::{Mark, MarkFile};
use dagger_agent::verify::reader::Trust;
use dagger_api::{HealthStatus, HealthView};
use dagger_bus::ledger::StreamItem;
use dagger_payload::event::CommitEnd;
use dagger_payload::id::{CommitIndex, PrefixHash};
use dagger_payload::object::Vm;

use crate::agent::{Agent, Surroundings};
use crate::support::{Chronicle, World, create_vm, key, sealed_by};

fn one_vm(world: &World) -> (Chronicle, Vm) {
    let mut chronicle = Chronicle::new(world);
    let vm = create_vm(world, &mut chronicle, World::DEVELOPER, "web-1");
    (chronicle, vm)
}

async fn health(agent: &Agent, part: &str) -> (HealthStatus, String) {
    let view: HealthView = agent.unix.get_json("/v1/health").await;
    let found = view.parts.into_iter().find(|found| found.name == part);
    let found = found.expect("the part is shown");
    (found.status, found.detail)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_is_handed_over_only_once_a_quorum_attests_it() {
    let mut agent = Agent::start().await;
    let (chronicle, vm) = one_vm(&agent.world);
    let end = chronicle.releases[0].end;
    agent.ledger.say(chronicle.newest());
    agent.ledger.caught_up(1);
    assert!(matches!(agent.next_order().await, Order::CaughtUp(CommitIndex(0))));
    agent.ledger.say(chronicle.attested(&[0, 2], end));
    agent.until(|progress| progress.judged == end.index).await;
    // The API shows it, marked as not attested.
    let digest = vm.created.digest;
    let view: dagger_api::PayloadView =
        agent.unix.get_json(&format!("/v1/payloads/{digest}")).await;
    assert_eq!(view.attested, dagger_api::Attested::No);
    assert!(agent.orders.try_recv().is_err());
    let mark_file = MarkFile::new(agent.directory.path());
    assert_eq!(mark_file.read().expect("readable"), None);

    agent.ledger.say(chronicle.attested(&[0, 2, 3], end));
    let Order::Vm(handed) = agent.next_order().await else {
        panic!("another order came first");
    };
    assert_eq!((handed.vm, handed.commit), (vm, end.index));
    assert!(matches!(agent.next_order().await, Order::LedgerTime(_)));
    // What is acted on is marked before.
    assert_eq!(mark_file.read().expect("readable"), Some(Mark::from(&end)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_under_a_foreign_seal_waits_until_the_processor_calls_it_its_own() {
    let agent = Agent::start().await;
    let (chronicle, vm) = one_vm(&agent.world);
    agent.ledger.say(sealed_by(&key(99), &chronicle.releases[0]));
    agent.ledger.caught_up(1);
    let down = agent.until_stream_fails().await;
    assert!(down.contains("seal"), "{down}");
    assert!(agent.model.read(|model| model.vm(&vm.id).is_none()));
    agent.processor.restart_with(key(99).public_key());
    agent.until(|progress| progress.judged == CommitIndex(1)).await;
    assert!(agent.model.read(|model| model.vm(&vm.id).is_some()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_attest_another_history_put_the_host_on_hold() {
    let mut agent = Agent::start().await;
    let (chronicle, _) = one_vm(&agent.world);
    let end = chronicle.releases[0].end;
    agent.ledger.say(chronicle.newest());
    agent.ledger.caught_up(1);
    assert!(matches!(agent.next_order().await, Order::CaughtUp(_)));
    let other = CommitEnd { prefix_hash: PrefixHash([9; 32]), ..end };
    agent.ledger.say(chronicle.attested(&[1, 2, 3], other));
    let Order::Hold(why) = agent.next_order().await else {
        panic!("no hold");
    };
    assert!(why.contains("another history"), "{why}");
    let (status, detail) = health(&agent, "history").await;
    assert_eq!(status, HealthStatus::Degraded);
    assert!(detail.contains("on hold"), "{detail}");
    // Even a quorum for the own history changes nothing while an honest member contradicts it.
    agent.ledger.say(chronicle.attested(&[0], end));
    assert!(agent.orders.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_that_lost_history_holds_the_host_until_it_has_caught_up() {
    let surroundings = Surroundings::new();
    let (mut chronicle, _) = one_vm(&surroundings.world);
    create_vm(&surroundings.world, &mut chronicle, World::DEVELOPER, "web-2");
    let [first, second] = [0, 1].map(|at| chronicle.releases[at].end);
    let mark_file = MarkFile::new(surroundings.directory.path());
    mark_file.write(&Mark::from(&second)).expect("writable");
    surroundings.ledger.say_all(vec![
        sealed_by(&key(World::SEAL), &chronicle.releases[0]),
        StreamItem::CaughtUp { commit: first.index },
        chronicle.attested(&[0, 1, 2], first),
    ]);
    let mut agent = Agent::start_in(surroundings).await;
    assert!(matches!(agent.next_order().await, Order::Hold(_)));
    agent.ledger.say(chronicle.newest());
    agent.ledger.say(chronicle.attested(&[0, 1, 2], second));
    let mut handed = 0;
    loop {
        match agent.next_order().await {
            Order::Vm(_) => handed += 1,
            Order::CaughtUp(commit) => {
                assert_eq!(commit, second.index);
                break;
            }
            _ => {}
        }
    }
    assert_eq!(handed, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_chain_is_read_again_and_holds_the_host_meanwhile() {
    let mut agent = Agent::start().await;
    let (mut chronicle, _) = one_vm(&agent.world);
    let end = chronicle.releases[0].end;
    agent.ledger.say(chronicle.newest());
    agent.ledger.caught_up(1);
    agent.ledger.say(chronicle.attested(&[0, 1, 2], end));
    agent.until(|progress| progress.attested == end.index).await;
    create_vm(&agent.world, &mut chronicle, World::DEVELOPER, "web-2");
    let mut broken = chronicle.releases[1].clone();
    broken.end.prefix_hash = PrefixHash([9; 32]);
    agent.ledger.say(sealed_by(&key(World::SEAL), &broken));
    loop {
        if let Order::Hold(why) = agent.next_order().await {
            assert!(why.contains("prefix"), "{why}");
            break;
        }
    }
    // The ledger comes to its senses: everything is read again, and the hold ends.
    let mut items: Vec<_> =
        chronicle.releases.iter().map(|release| sealed_by(&key(World::SEAL), release)).collect();
    let second = chronicle.releases[1].end;
    items.push(StreamItem::CaughtUp { commit: second.index });
    items.push(chronicle.attested(&[0, 1, 2], second));
    agent.ledger.start_over(items);
    let progress = agent.until(|progress| progress.trust == Trust::CaughtUp).await;
    assert_eq!(progress.attested, second.index);
    while !matches!(agent.next_order().await, Order::CaughtUp(_)) {}
}
