//! A host whose clock is ten minutes off: no request is lost or carried out twice for it, and who
//! is refused is told what time it is there.
//!
//! Setting: the machine's clock stays; the ledger's time is ten minutes before or after it.

use std::time::{SystemTime, UNIX_EPOCH};

use dagger_api::{ClusterView, PayloadState, PayloadView};
use dagger_payload::id::LedgerTime;
use dagger_payload::limits::NOT_AFTER_AHEAD_MS_MAX;
use dagger_payload::payload::SignedPayload;
use dagger_payload::release::Verdict;
use hyper::StatusCode;

use crate::agent::Agent;
use crate::support::{Chronicle, World, create_vm, key, vm_create};

const MINUTE_MS: u64 = 60 * 1000;
const OFF_MS: u64 = 10 * MINUTE_MS;

fn wall() -> LedgerTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    LedgerTime(u64::try_from(since.as_millis()).expect("not so far ahead"))
}

/// A host in a cluster whose time is this.
async fn agent_at(time: LedgerTime) -> (Agent, Chronicle) {
    let agent = Agent::start().await;
    let mut chronicle = Chronicle::new(&agent.world);
    chronicle.time = time;
    create_vm(&agent.world, &mut chronicle, World::DEVELOPER, "there-already");
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;
    (agent, chronicle)
}

fn request(agent: &Agent, name: &str, not_after: LedgerTime) -> SignedPayload {
    agent.world.sign_until(&key(World::DEVELOPER), vm_create(name), not_after)
}

/// From when this host lets requests be counted.
async fn hint(agent: &Agent) -> LedgerTime {
    agent.unix.get_json::<ClusterView>("/v1/cluster").await.ledger_time
}

/// Hands it in; how it stands here then.
async fn taken(agent: &Agent, payload: &SignedPayload) -> (StatusCode, PayloadState) {
    let answered = agent.unix.post_payload(payload).await;
    assert!(answered.status.is_success(), "{answered:?}");
    (answered.status, answered.json::<PayloadView>().state)
}

/// Hands it in, in vain; what is said.
async fn refused(agent: &Agent, payload: &SignedPayload) -> (String, String) {
    let answered = agent.unix.post_payload(payload).await;
    let problem = answered.problem();
    assert_eq!(answered.status, StatusCode::UNPROCESSABLE_ENTITY, "{problem:?}");
    (problem.code, problem.detail)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_clock_is_ten_minutes_behind_goes_by_the_ledgers() {
    let time = wall().plus_ms(OFF_MS);
    let (mut agent, _) = agent_at(time).await;
    assert_eq!(hint(&agent).await, time);
    // By its own clock the first is too far ahead, and the second is not over.
    let longest = request(&agent, "longest", time.plus_ms(NOT_AFTER_AHEAD_MS_MAX));
    let received = (StatusCode::ACCEPTED, PayloadState::Received);
    assert_eq!(taken(&agent, &longest).await, received);
    assert_eq!(agent.ledger.submitted.try_recv().expect("handed on").bytes, longest.bytes);
    let over = request(&agent, "over", LedgerTime(time.0 - 1));
    let (code, detail) = refused(&agent, &over).await;
    assert_eq!(code, "expired");
    assert_eq!(detail, format!("not_after_ms: {} has passed; it is {time} now", time.0 - 1));
    assert!(agent.ledger.submitted.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_made_on_a_host_ten_minutes_ahead_is_carried_out_once() {
    let time = LedgerTime(wall().0 - OFF_MS);
    let (mut agent, mut chronicle) = agent_at(time).await;
    let hint = hint(&agent).await;
    assert!(hint >= time.plus_ms(OFF_MS) && hint <= wall(), "{hint}");
    // As the command line signs: for ten minutes from what the host calls now.
    let payload = request(&agent, "web-1", hint.plus_ms(OFF_MS));
    let received = (StatusCode::ACCEPTED, PayloadState::Received);
    assert_eq!(taken(&agent, &payload).await, received);
    let seen = (StatusCode::OK, PayloadState::Received);
    assert_eq!(taken(&agent, &payload).await, seen);
    chronicle.commit(vec![(payload.clone(), Verdict::Accepted, Vec::new())], Vec::new());
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 2).await;
    let judged = (StatusCode::OK, PayloadState::Accepted);
    assert_eq!(taken(&agent, &payload).await, judged);
    assert_eq!(agent.ledger.submitted.try_recv().expect("handed on").bytes, payload.bytes);
    assert!(agent.ledger.submitted.try_recv().is_err(), "it was handed on twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_ten_minutes_ahead_refuses_only_what_it_does_not_know_and_tells_its_time() {
    let time = LedgerTime(wall().0 - OFF_MS);
    let (mut agent, mut chronicle) = agent_at(time).await;
    // Signed by the hint of a host whose clock is right, with half of the time left.
    let not_after = time.plus_ms(OFF_MS / 2);
    let elsewhere = request(&agent, "elsewhere", not_after);
    chronicle.commit(vec![(elsewhere.clone(), Verdict::Accepted, Vec::new())], Vec::new());
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 2).await;
    let judged = (StatusCode::OK, PayloadState::Accepted);
    assert_eq!(taken(&agent, &elsewhere).await, judged, "what was done was called too late");

    let unknown = request(&agent, "unknown", not_after);
    let (code, detail) = refused(&agent, &unknown).await;
    assert_eq!(code, "expired");
    let begin = format!("not_after_ms: {not_after} has passed; it is ");
    let told = detail.strip_prefix(&begin).and_then(|rest| rest.strip_suffix(" now"));
    let told: u64 = told.expect("its time").parse().expect("a number");
    assert!(told >= time.plus_ms(OFF_MS).0 && told <= wall().0, "{detail}");
    assert!(agent.ledger.submitted.try_recv().is_err());
}
