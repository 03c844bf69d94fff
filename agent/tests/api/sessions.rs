//! What a reader over TCP sees of accounts' objects, and what he must show for it.

use dagger_agent::limits::EVENT_STREAMS_PER_ACCOUNT_MAX;
use dagger_api::{AccountSummary, PredictionView, StreamEvent, VmView};
use dagger_payload::id::AccountId;
use dagger_payload::key::SecretKey;
use dagger_payload::kind::{AccountRotateKey, Body, KeyRole};
use dagger_payload::limits::SESSION_LIFE_MS_MAX;
use dagger_payload::object::{AccountKey, Cause, Effect};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::Verdict;
use dagger_payload::session::{SESSION_HEADER, SESSION_SIGNATURE_HEADER, SessionDocument};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};

use crate::agent::Agent;
use crate::events::EventReader;
use crate::http::Answered;
use crate::support::{
    Chronicle, TIME, World, account_object, create_vm, key, open_accounts, vm_create,
};

/// The headers of a session of `reader` with the host of member `author`.
pub(crate) fn session(
    agent: &Agent,
    reader: &SecretKey,
    author: u16,
) -> [(&'static str, String); 2] {
    let document = SessionDocument {
        dagger: 1,
        cluster: agent.world.cluster,
        host: agent.world.host_id(author),
        key: reader.public_key(),
        not_after_ms: TIME.plus_ms(SESSION_LIFE_MS_MAX),
    };
    let (text, signature) = document.to_headers(reader);
    [(SESSION_HEADER, text), (SESSION_SIGNATURE_HEADER, signature)]
}

/// What the host of member `author` answers over TCP to a session of `reader`.
pub(crate) async fn get(agent: &Agent, path: &str, reader: &SecretKey, author: u16) -> Answered {
    agent.tcp.ask(request(agent, path, reader, author)).await
}

/// The same, of which nothing is read but the head.
pub(crate) async fn open(
    agent: &Agent,
    path: &str,
    reader: &SecretKey,
    author: u16,
) -> Response<Incoming> {
    agent.tcp.open(request(agent, path, reader, author)).await
}

fn request(agent: &Agent, path: &str, reader: &SecretKey, author: u16) -> Request<Full<Bytes>> {
    let mut request = agent.tcp.request("GET", path);
    for (name, value) in session(agent, reader, author) {
        request = request.header(name, value);
    }
    request.body(Full::default()).expect("a request")
}

/// The developer's account has these keys from now on, and no others.
pub(crate) fn change_keys(
    world: &World,
    chronicle: &mut Chronicle,
    keys: &[(&SecretKey, KeyRole)],
) {
    let old = key(World::DEVELOPER);
    let rotate = AccountRotateKey { new_key: keys[0].0.public_key(), expected_generation: None };
    let payload = world.sign(&old, Body::AccountRotateKey(rotate));
    let cause = Cause { digest: payload.digest(), position: chronicle.next_position() };
    let Effect::Account(before) = account_object(&old, cause) else { panic!("an account") };
    let mut after = before.clone();
    let account_key = |(key, role): &(&SecretKey, KeyRole)| AccountKey {
        key: key.public_key(),
        role: *role,
        cause,
    };
    after.keys = keys.iter().map(account_key).collect();
    let effects = vec![Effect::Account(before), Effect::Account(after)];
    chronicle.commit(vec![(payload, Verdict::Accepted, effects)], Vec::new());
}

/// An agent that knows a VM of each of two developers.
pub(crate) async fn two_accounts() -> Agent {
    let agent = Agent::start().await;
    let mut chronicle = Chronicle::new(&agent.world);
    create_vm(&agent.world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    create_vm(&agent.world, &mut chronicle, World::OTHER_DEVELOPER, "web-2");
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 2).await;
    agent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_to_accounts_is_shown_over_tcp_to_sessions_only() {
    let agent = two_accounts().await;
    let account = AccountId::of(&key(World::DEVELOPER).public_key());
    let account = format!("/v1/accounts/{account}");
    let paths = [
        "/v1/vms",
        "/v1/vms/web-1",
        "/v1/vms/web-1/history",
        "/v1/accounts",
        &account,
        "/v1/events",
        "/v1/fsck",
        "/v1/volumes",
        "/v1/volumes/data",
        "/v1/log",
        "/v1/proofs/vm/web-1",
        "/v1/proofs/volume/data",
    ];
    for path in paths {
        let answered = agent.tcp.get(path).await;
        assert_eq!(answered.status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(answered.problem().code, "session_needed", "{path}");
        // A session with another host is none here.
        let answered = get(&agent, path, &key(World::DEVELOPER), 1).await;
        assert_eq!(answered.problem().code, "session_refused", "{path}");
    }
    for path in ["/v1/cluster", "/v1/hosts", "/v1/operators", "/v1/images", "/v1/health"] {
        assert_eq!(agent.tcp.get(path).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_shows_its_own_account_and_an_operator_sees_all() {
    let agent = two_accounts().await;
    let names = |answered: &Answered| -> Vec<String> {
        let views: Vec<VmView> = answered.json();
        views.iter().map(|view| view.vm.name.to_string()).collect()
    };
    let developer = key(World::DEVELOPER);
    assert_eq!(names(&get(&agent, "/v1/vms", &developer, 0).await), ["web-1"]);
    assert_eq!(get(&agent, "/v1/vms/web-1", &developer, 0).await.status, StatusCode::OK);
    for path in ["/v1/vms/web-2", "/v1/vms/web-2/history"] {
        let answered = get(&agent, path, &developer, 0).await;
        assert_eq!(answered.status, StatusCode::NOT_FOUND, "{path}");
    }
    let other = AccountId::of(&key(World::OTHER_DEVELOPER).public_key());
    for path in [format!("/v1/vms?account={other}"), format!("/v1/accounts/{other}")] {
        let answered = get(&agent, &path, &developer, 0).await;
        assert_eq!(answered.problem().code, "session_refused", "{path}");
    }
    let refused = get(&agent, "/v1/fsck", &developer, 0).await;
    assert_eq!(refused.problem().code, "session_refused");
    let operator = key(1);
    assert_eq!(get(&agent, "/v1/fsck", &operator, 0).await.status, StatusCode::OK);
    assert_eq!(names(&get(&agent, "/v1/vms", &operator, 0).await).len(), 2);
    let stranger = key(99);
    assert!(names(&get(&agent, "/v1/vms", &stranger, 0).await).is_empty());
    let accounts: Vec<AccountSummary> = get(&agent, "/v1/accounts", &stranger, 0).await.json();
    assert!(accounts.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_stream_over_tcp_tells_of_the_own_account_only() {
    let agent = two_accounts().await;
    let headers = session(&agent, &key(World::OTHER_DEVELOPER), 0);
    let mut reader = EventReader::open_with(&agent.tcp, "/v1/events?after=0", &headers).await;
    let mut told = Vec::new();
    for _ in 0..2 {
        told.push(reader.next().await.event);
    }
    assert!(matches!(&told[0], StreamEvent::Payload { commit, .. } if commit.0 == 2), "{told:?}");
    let own = |event: &StreamEvent| matches!(event, StreamEvent::Vm { vm, .. } if vm.name.as_str() == "web-2");
    assert!(own(&told[1]), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_follows_so_many_streams_and_who_has_none_shares_one_accounts() {
    let agent = Agent::start().await;
    let mut chronicle = Chronicle::new(&agent.world);
    open_accounts(&mut chronicle, &[World::DEVELOPER, World::OTHER_DEVELOPER]);
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;
    let strangers = (0..=EVENT_STREAMS_PER_ACCOUNT_MAX).map(|number| 200 + number as u8);
    let developer = [World::DEVELOPER; EVENT_STREAMS_PER_ACCOUNT_MAX + 1];
    for readers in [strangers.collect(), developer.to_vec()] {
        let mut open = Vec::new();
        for reader in &readers[..EVENT_STREAMS_PER_ACCOUNT_MAX] {
            let headers = session(&agent, &key(*reader), 0);
            open.push(EventReader::open_with(&agent.tcp, "/v1/events", &headers).await);
        }
        let last = &key(readers[EVENT_STREAMS_PER_ACCOUNT_MAX]);
        let refused = get(&agent, "/v1/events", last, 0).await;
        assert_eq!(refused.problem().code, "overloaded");
        let headers = session(&agent, &key(World::OTHER_DEVELOPER), 0);
        EventReader::open_with(&agent.tcp, "/v1/events", &headers).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_with_the_key_that_it_was_opened_by_and_others_go_on() {
    let agent = Agent::start().await;
    let mut chronicle = Chronicle::new(&agent.world);
    create_vm(&agent.world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;
    let headers = session(&agent, &key(World::DEVELOPER), 0);
    let mut taken_away = EventReader::open_with(&agent.tcp, "/v1/events", &headers).await;
    let headers = session(&agent, &key(1), 0);
    let mut operators = EventReader::open_with(&agent.tcp, "/v1/events", &headers).await;
    change_keys(&agent.world, &mut chronicle, &[(&key(60), KeyRole::Owner)]);
    agent.ledger.say(chronicle.newest());
    let told = taken_away.rest().await;
    assert!(told.contains("session_refused: ") && !told.contains("data:"), "{told}");
    let StreamEvent::Payload { commit, .. } = operators.next().await.event else {
        panic!("another event came first")
    };
    assert_eq!(commit.0, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prediction_is_made_for_whoever_may_see_the_account_and_needs_no_signature() {
    let agent = two_accounts().await;
    let document = agent.world.sign(&key(World::DEVELOPER), vm_create("web-3")).bytes;
    let ask = async |reader: Option<u8>| {
        let mut request = agent.tcp.request("POST", "/v1/predictions");
        for (name, value) in reader.iter().flat_map(|reader| session(&agent, &key(*reader), 0)) {
            request = request.header(name, value);
        }
        let body = http_body_util::Full::from(document.shared());
        agent.tcp.ask(request.body(body).expect("a request")).await
    };
    assert_eq!(ask(None).await.problem().code, "session_needed");
    assert_eq!(ask(Some(World::OTHER_DEVELOPER)).await.problem().code, "session_refused");
    let view: PredictionView = ask(Some(World::DEVELOPER)).await.json();
    assert_eq!(view.refusal.map(|refusal| refusal.code), Some(RefusalCode::NoHostFits));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_of_an_account_sees_it_and_one_that_was_replaced_does_not() {
    let agent = two_accounts().await;
    let world = &agent.world;
    let mut chronicle = Chronicle::new(world);
    create_vm(world, &mut chronicle, World::DEVELOPER, "web-1");
    create_vm(world, &mut chronicle, World::OTHER_DEVELOPER, "web-2");
    let old = key(World::DEVELOPER);
    let (new, reads) = (key(60), key(61));
    change_keys(world, &mut chronicle, &[(&new, KeyRole::Owner), (&reads, KeyRole::Read)]);
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 3).await;

    for reader in [&new, &reads] {
        let views: Vec<VmView> = get(&agent, "/v1/vms", reader, 0).await.json();
        assert_eq!(views[0].vm.name.as_str(), "web-1");
    }
    // To sit down at a console is to change the guest: a key that reads may see what it said.
    for (reader, may_type) in [(&new, true), (&reads, false)] {
        let mut request = agent.tcp.request("GET", "/v1/vms/web-1/console");
        let upgrade = [
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
        ];
        for (name, value) in upgrade {
            request = request.header(name, value);
        }
        for (name, value) in session(&agent, reader, 0) {
            request = request.header(name, value);
        }
        let request = request.body(http_body_util::Full::default()).expect("a request");
        let code = agent.tcp.ask(request).await.problem().code;
        assert_eq!(code != "session_refused", may_type, "{code}");
        let looked = get(&agent, "/v1/vms/web-1/console", reader, 0).await;
        assert_ne!(looked.status, StatusCode::UNAUTHORIZED);
    }
    let refused = get(&agent, "/v1/vms", &old, 0).await;
    assert_eq!(refused.problem().code, "session_refused");
    let asked = new.public_key().to_string().replace(' ', "%20").replace('+', "%2B");
    let path = format!("/v1/accounts?key={asked}");
    let found: Vec<AccountSummary> = get(&agent, &path, &reads, 0).await.json();
    assert_eq!(found[0].id, AccountId::of(&old.public_key()));
}
