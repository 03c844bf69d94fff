//! Every bad request gets a problem with a stable code, and nothing of it reaches the ledger.

use dagger_api::{PayloadState, PayloadView};
use dagger_bus::ledger::Unavailable;
use dagger_payload::id::{LedgerTime, ProtocolVersion};
use dagger_payload::payload::SignedPayload;
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::sshsig::{self, Namespace};
use hyper::StatusCode;
use hyper::body::Bytes;

use crate::agent::Agent;
use crate::fakes::OnSubmit;
use crate::http::Answered;
use crate::support::{Chronicle, TIME, World, create_vm, key, name, vm_create};

/// An agent whose model has a commit, so that ledger time is [`TIME`].
async fn agent() -> Agent {
    let agent = Agent::start().await;
    let mut chronicle = Chronicle::new(&agent.world);
    create_vm(&agent.world, &mut chronicle, World::DEVELOPER, "there-already");
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;
    agent
}

fn payload(agent: &Agent) -> SignedPayload {
    agent.world.sign(&key(World::DEVELOPER), vm_create("web-1"))
}

/// Signs any bytes with the developer's key, as `ssh-keygen -Y sign` would.
fn signature_over(bytes: &[u8], signer: u8) -> String {
    let signer = key(signer);
    let signature = sshsig::sign(&signer, Namespace::Payload, bytes);
    sshsig::to_base64(&signer.public_key(), Namespace::Payload, &signature)
}

async fn post_text(agent: &Agent, text: String) -> Answered {
    let signature = signature_over(text.as_bytes(), World::DEVELOPER);
    agent.unix.post_bytes(text.into(), &signature).await
}

fn assert_refused(answered: &Answered, status: StatusCode, code: &str) {
    let problem = answered.problem();
    assert_eq!((answered.status, problem.code.as_str()), (status, code), "{problem:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_out_of_form_are_refused_before_the_ledger_hears_of_them() {
    let mut agent = agent().await;
    let good = String::from_utf8(payload(&agent).bytes.to_vec()).expect("JSON");
    let changed = |from: &str, to: &str| {
        assert!(good.contains(from));
        good.replacen(from, to, 1)
    };
    let deep = format!("{}1{}", "[".repeat(64), "]".repeat(64));
    let malformed = StatusCode::UNPROCESSABLE_ENTITY;
    let cases = [
        (changed("\"kind\"", "\"surprise\": 1,\"kind\""), "payload_malformed"),
        (changed("\"cpus\"", "\"surprise\": 1,\"cpus\""), "payload_malformed"),
        (changed("\"kind\"", "\"dagger\": 1,\"kind\""), "payload_malformed"),
        (changed("\"cpus\": 2", "\"cpus\": 2.0"), "payload_malformed"),
        (changed("\"cpus\": 2", &format!("\"cpus\": {deep}")), "payload_malformed"),
        ("{".to_owned(), "payload_malformed"),
        (String::new(), "payload_malformed"),
        (changed("vm.create", "vm.conjure"), "kind_unknown"),
        (changed("\"cpus\": 2", "\"cpus\": 100000"), "limit_exceeded"),
        (changed(&agent.world.cluster.to_string(), &"0".repeat(64)), "cluster_wrong"),
    ];
    for (text, code) in cases {
        let answered = post_text(&agent, text).await;
        assert_refused(&answered, malformed, code);
    }
    let sk = changed("ssh-ed25519 AAAA", "sk-ssh-ed25519@openssh.com AAAA");
    let answered = post_text(&agent, sk).await;
    assert_refused(&answered, StatusCode::FORBIDDEN, "signer_unsupported");
    assert!(agent.ledger.submitted.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signatures_that_do_not_count_are_refused() {
    let mut agent = agent().await;
    let payload = payload(&agent);
    let by_another = signature_over(&payload.bytes, World::OTHER_DEVELOPER);
    let over_other_bytes = signature_over(b"other", World::DEVELOPER);
    let developer = key(World::DEVELOPER);
    let for_genesis = sshsig::sign(&developer, Namespace::Genesis, &payload.bytes);
    let for_genesis = sshsig::to_base64(&developer.public_key(), Namespace::Genesis, &for_genesis);
    for signature in [&by_another, &over_other_bytes, &for_genesis, "", "AAAA", "!!", "-----"] {
        let answered = agent.unix.post_bytes(payload.bytes.shared(), signature).await;
        assert_refused(&answered, StatusCode::FORBIDDEN, "signature_invalid");
    }
    let without = agent.unix.request("POST", "/v1/payloads");
    let without = without.body(http_body_util::Full::new(payload.bytes.shared()));
    let answered = agent.unix.ask(without.expect("a request")).await;
    assert_refused(&answered, StatusCode::FORBIDDEN, "signature_invalid");
    assert!(agent.ledger.submitted.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_over_64_kib_is_refused_whether_its_length_is_told_or_not() {
    let mut agent = agent().await;
    let large = Bytes::from(vec![b' '; 64 * 1024 + 1]);
    let answered = agent.unix.post_bytes(large, "AAAA").await;
    assert_refused(&answered, StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large");

    let Some(path) = agent.unix_path() else { unreachable!("a Unix socket has a path") };
    let mut stream = tokio::net::UnixStream::connect(path).await.expect("listens");
    let head =
        "POST /v1/payloads HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let text = format!("{head}{chunk}{chunk}0\r\n\r\n");
    let answer = crate::http::say_raw(&mut stream, text.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("payload_too_large"), "{answer}");
    assert!(agent.ledger.submitted.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_time_is_over_or_too_far_ahead_is_refused() {
    let mut agent = agent().await;
    let day = 24 * 60 * 60 * 1000;
    for (not_after, code) in
        [(LedgerTime(TIME.0 - 1), "expired"), (LedgerTime(TIME.0 + day + 1), "not_after_too_far")]
    {
        let developer = key(World::DEVELOPER);
        let late = agent.world.sign_until(&developer, vm_create("late"), not_after);
        let answered = agent.unix.post_payload(&late).await;
        assert_refused(&answered, StatusCode::UNPROCESSABLE_ENTITY, code);
    }
    assert!(agent.ledger.submitted.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_processor_refuses_at_the_door_keeps_its_code_and_gets_its_status() {
    let agent = agent().await;
    for (code, status) in [
        (RefusalCode::GrantExceeded, StatusCode::UNPROCESSABLE_ENTITY),
        (RefusalCode::NoHostFits, StatusCode::UNPROCESSABLE_ENTITY),
        (RefusalCode::AccountUnknown, StatusCode::FORBIDDEN),
        (RefusalCode::NotAuthorized, StatusCode::FORBIDDEN),
        (RefusalCode::NotFound, StatusCode::NOT_FOUND),
        (RefusalCode::NameTaken, StatusCode::CONFLICT),
        (RefusalCode::TooMuchUnordered, StatusCode::TOO_MANY_REQUESTS),
    ] {
        agent.ledger.on_submit(OnSubmit::Refuse(Refusal::new(code, "because")));
        let answered = agent.unix.post_payload(&payload(&agent)).await;
        assert_refused(&answered, status, code.as_str());
        assert_eq!(answered.problem().rule.as_deref(), Some(code.rule()));
    }
    let metrics = agent.unix.get("/metrics").await;
    let text = String::from_utf8(metrics.body.to_vec()).expect("text");
    assert!(text.contains("dagger_agent_problems_total{code=\"grant_exceeded\"} 1"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_the_answer_says_who_is_missing() {
    let agent = agent().await;
    agent.ledger.on_submit(OnSubmit::Unavailable(Unavailable::NoQuorum {
        have: 2,
        need: 3,
        missing: vec![name("op3"), name("op4")],
    }));
    let answered = agent.unix.post_payload(&payload(&agent)).await;
    assert_refused(&answered, StatusCode::SERVICE_UNAVAILABLE, "no_quorum");
    assert!(answered.headers.contains_key("retry-after"));
    let problem = answered.problem();
    assert_eq!(problem.detail, "no quorum: have 2, need 3, missing op3, op4");
    let quorum = problem.quorum.expect("named");
    assert_eq!((quorum.have, quorum.need), (2, 3));
    assert_eq!(quorum.missing, [name("op3"), name("op4")]);
    let health: dagger_api::HealthView = agent.unix.get_json("/v1/health").await;
    let quorum = health.parts.iter().find(|part| part.name == "quorum");
    let detail = &quorum.expect("shown").detail;
    assert_eq!(detail, "no quorum: have 2, need 3, missing op3, op4");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_does_not_know_the_rules_takes_nothing_and_says_to_upgrade_it() {
    let agent = agent().await;
    let needs = ProtocolVersion(2);
    agent.ledger.on_submit(OnSubmit::Unavailable(Unavailable::UpgradeNeeded { needs }));
    let answered = agent.unix.post_payload(&payload(&agent)).await;
    assert_refused(&answered, StatusCode::SERVICE_UNAVAILABLE, "upgrade_needed");
    let problem = answered.problem();
    assert!(problem.detail.contains("version 2 of the rules counts"), "{problem:?}");
    assert!(problem.advice.starts_with("Upgrade dagger on this host"), "{problem:?}");
    let ledger: dagger_api::LedgerView = agent.unix.get_json("/v1/ledger").await;
    let why = ledger.unavailable.expect("nothing can be changed here");
    assert!(why.contains("version 2 of the rules counts"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_ledger_the_api_still_tells_what_is_wrong_with_a_request() {
    let agent = agent().await;
    agent.remove_ledger().await;
    let answered = agent.unix.post_payload(&payload(&agent)).await;
    assert_refused(&answered, StatusCode::SERVICE_UNAVAILABLE, "ledger_unavailable");
    let developer = key(World::DEVELOPER);
    let late = agent.world.sign_until(&developer, vm_create("late"), LedgerTime(1));
    let answered = agent.unix.post_payload(&late).await;
    assert_refused(&answered, StatusCode::UNPROCESSABLE_ENTITY, "expired");
    let bytes = payload(&agent).bytes;
    let answered = agent.unix.post_bytes(bytes.shared(), "AAAA").await;
    assert_refused(&answered, StatusCode::FORBIDDEN, "signature_invalid");
    // What was read before is still shown.
    let vms: Vec<dagger_api::VmView> = agent.unix.get_json("/v1/vms").await;
    assert_eq!(vms.len(), 1);
    let answered = agent.unix.get("/v1/ledger").await;
    assert_refused(&answered, StatusCode::SERVICE_UNAVAILABLE, "ledger_unavailable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_bytes_twice_are_one_payload_with_one_answer() {
    let mut agent = agent().await;
    let payload = payload(&agent);
    let first = agent.unix.post_payload(&payload).await;
    assert_eq!(first.status, StatusCode::ACCEPTED);
    let second = agent.tcp.post_payload(&payload).await;
    assert_eq!(second.status, StatusCode::OK);
    assert_eq!(first.json::<PayloadView>(), second.json::<PayloadView>());
    let view: PayloadView = first.json();
    assert_eq!((view.state, view.digest), (PayloadState::Received, payload.digest()));
    assert!(agent.ledger.submitted.try_recv().is_ok());
    assert!(agent.ledger.submitted.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_paths_methods_and_parameters_are_problems_too() {
    let agent = agent().await;
    let digest = payload(&agent).digest();
    for (method, path, status, code) in [
        ("GET", "/", StatusCode::NOT_FOUND, "not_found"),
        ("GET", "/v1/nothing", StatusCode::NOT_FOUND, "not_found"),
        ("GET", "/v1/vms/none", StatusCode::NOT_FOUND, "not_found"),
        ("GET", "/v1/vms/none/history", StatusCode::NOT_FOUND, "not_found"),
        ("DELETE", "/v1/vms", StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        ("OPTIONS", "/v1/payloads", StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        ("GET", "/v1/payloads/abc", StatusCode::BAD_REQUEST, "request_malformed"),
        ("GET", &format!("/v1/payloads/{digest}"), StatusCode::NOT_FOUND, "not_found"),
        ("GET", "/v1/accounts/zz", StatusCode::BAD_REQUEST, "request_malformed"),
        ("GET", "/v1/vms?account=zz", StatusCode::BAD_REQUEST, "request_malformed"),
        ("GET", "/v1/vms?surprise=1", StatusCode::BAD_REQUEST, "request_malformed"),
        ("GET", "/v1/events?after=-1", StatusCode::BAD_REQUEST, "request_malformed"),
    ] {
        let request = agent.unix.request(method, path).body(http_body_util::Full::default());
        let answered = agent.unix.ask(request.expect("a request")).await;
        assert_refused(&answered, status, code);
    }
}
