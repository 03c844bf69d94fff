//! Sitting down at a console through the API. The machines' half is a **fake**: the test answers
//! its requests and writes what the guest says.

use std::io::Write;

use bytes::Bytes;
use dagger_agent::handover::{ConsoleProblem, VmSight};
use dagger_agent::limits::CONSOLES_PER_ACCOUNT_MAX;
use dagger_api::Sight;
use dagger_payload::id::VmId;
use dagger_payload::key::SecretKey;
use dagger_payload::kind::KeyRole;
use dagger_payload::object::{Effect, Vm};
use dagger_payload::release::Verdict;
use futures_util::{SinkExt, StreamExt};
use hyper::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::agent::Agent;
use crate::http::{PATIENCE, Way};
use crate::sessions::{change_keys, session};
use crate::support::{Chronicle, World, create_vm, key, vm_create, vm_object};

/// An agent with one VM of this host, and a guest that has said `said`.
async fn with_guest(said: &str) -> (Agent, Vm) {
    let (agent, _, vm) = with_guest_and_history(said).await;
    (agent, vm)
}

async fn with_guest_and_history(said: &str) -> (Agent, Chronicle, Vm) {
    let agent = Agent::start().await;
    let mut chronicle = Chronicle::new(&agent.world);
    let vm = create_vm(&agent.world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;
    std::fs::create_dir(agent.directory.path().join("consoles")).expect("makes");
    say(&agent, &vm, said);
    (agent, chronicle, vm)
}

fn say(agent: &Agent, vm: &Vm, words: &str) {
    let path = agent.directory.path().join(format!("consoles/{}.log", vm.id));
    let mut file = std::fs::File::options().append(true).create(true).open(path).expect("opens");
    file.write_all(words.as_bytes()).expect("writes");
}

/// Opens the console, with the machines' half answering `answer`.
async fn sit_down(
    agent: &mut Agent,
    answer: Result<mpsc::Sender<Bytes>, ConsoleProblem>,
) -> Result<WebSocketStream<UnixStream>, StatusCode> {
    let Way::Unix(path) = agent.unix.clone() else { unreachable!("it is a Unix socket") };
    let stream = UnixStream::connect(path).await.expect("the API listens");
    let path = "ws://localhost/v1/vms/web-1/console?history_bytes=6";
    let request = path.into_client_request().expect("a request");
    let sitting = tokio_tungstenite::client_async(request, stream);
    let answering = async {
        let request = agent.consoles.recv().await.expect("it is asked for");
        let _ = request.reply.send(answer);
    };
    let (sitting, ()) = tokio::join!(sitting, answering);
    match sitting {
        Ok((socket, _)) => Ok(socket),
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => Err(response.status()),
        Err(other) => panic!("{other}"),
    }
}

/// Opens the console over TCP, with a session of `reader`.
async fn sit_down_as(
    agent: &mut Agent,
    reader: &SecretKey,
) -> Result<WebSocketStream<TcpStream>, StatusCode> {
    let Way::Tcp(address) = agent.tcp.clone() else { unreachable!("it is TCP") };
    let stream = TcpStream::connect(address).await.expect("the API listens");
    let path = format!("ws://{address}/v1/vms/web-1/console?history_bytes=6");
    let mut request = path.into_client_request().expect("a request");
    for (name, value) in session(agent, reader, 0) {
        request.headers_mut().insert(name, value.parse().expect("a header value"));
    }
    let sitting = tokio_tungstenite::client_async(request, stream);
    let answering = async {
        let request = agent.consoles.recv().await.expect("it is asked for");
        let (typing, _) = mpsc::channel(4);
        let _ = request.reply.send(Ok(typing));
        std::future::pending().await
    };
    let sitting = tokio::select! {
        sitting = sitting => sitting,
        () = answering => unreachable!("it goes on"),
    };
    match sitting {
        Ok((socket, _)) => Ok(socket),
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => Err(response.status()),
        Err(other) => panic!("{other}"),
    }
}

async fn next<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) -> Message {
    loop {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await.expect("in time");
        match message.expect("it goes on").expect("no error") {
            Message::Ping(_) => {}
            message => return message,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_shows_what_was_said_then_what_is_said_and_passes_on_what_is_typed() {
    let (mut agent, vm) = with_guest("long ago, before").await;
    let (typing, mut typed) = mpsc::channel(4);
    let mut socket = sit_down(&mut agent, Ok(typing)).await.expect("a console");
    assert_eq!(next(&mut socket).await, Message::Binary("before".into()));
    say(&agent, &vm, "login: ");
    assert_eq!(next(&mut socket).await, Message::Binary("login: ".into()));
    socket.send(Message::Binary("root\r".into())).await.expect("sends");
    assert_eq!(typed.recv().await.expect("typed"), "root\r");
    drop(socket);
    assert_eq!(typed.recv().await, None, "who leaves gives the line back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_ends_with_its_guest_after_its_last_words() {
    let (mut agent, vm) = with_guest("before").await;
    let (typing, _typed) = mpsc::channel(4);
    let mut socket = sit_down(&mut agent, Ok(typing)).await.expect("a console");
    assert_eq!(next(&mut socket).await, Message::Binary("before".into()));
    say(&agent, &vm, "halted");
    agent.board.update(|sights| {
        let sight = VmSight {
            sight: Sight::Stopped,
            applied_generation: None,
            reason: None,
            awaits_image: false,
        };
        sights.vms.insert(vm.id, sight);
    });
    assert_eq!(next(&mut socket).await, Message::Binary("halted".into()));
    let Message::Close(Some(frame)) = next(&mut socket).await else { panic!("it is not closed") };
    assert_eq!(frame.reason.as_str(), "the guest does not run any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_too_long_ends_the_sitting_and_nothing_of_it_is_typed() {
    let (mut agent, _) = with_guest("before").await;
    let (typing, mut typed) = mpsc::channel(4);
    let mut socket = sit_down(&mut agent, Ok(typing)).await.expect("a console");
    assert_eq!(next(&mut socket).await, Message::Binary("before".into()));
    let large = Message::Binary(vec![b'x'; 5000].into());
    // The other side may have closed before all of it was sent.
    let _ = socket.send(large).await;
    assert_eq!(typed.recv().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_ends_with_the_key_that_it_was_opened_by_also_when_that_may_only_read() {
    for role in [None, Some(KeyRole::Read)] {
        let (mut agent, mut chronicle, _) = with_guest_and_history("before").await;
        let (old, new) = (key(World::DEVELOPER), key(60));
        let mut socket = sit_down_as(&mut agent, &old).await.expect("a console");
        assert_eq!(next(&mut socket).await, Message::Binary("before".into()));
        let left = role.map(|role| (&old, role));
        let keys: Vec<_> = [(&new, KeyRole::Owner)].into_iter().chain(left).collect();
        change_keys(&agent.world, &mut chronicle, &keys);
        agent.ledger.say(chronicle.newest());
        let Message::Close(Some(frame)) = next(&mut socket).await else {
            panic!("it is not closed")
        };
        assert!(frame.reason.starts_with("session_refused: "), "{frame}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_sits_at_so_many_consoles_and_leaves_others_theirs() {
    let (mut agent, _) = with_guest("before").await;
    let developer = key(World::DEVELOPER);
    let mut open = Vec::new();
    for _ in 0..CONSOLES_PER_ACCOUNT_MAX {
        open.push(sit_down_as(&mut agent, &developer).await.expect("a console"));
    }
    let refused = sit_down_as(&mut agent, &developer).await.err();
    assert_eq!(refused, Some(StatusCode::SERVICE_UNAVAILABLE));
    assert!(sit_down_as(&mut agent, &key(1)).await.is_ok(), "an operator");
    open.pop();
    // What it held is given back once the agent sees that it is gone.
    let again = async {
        loop {
            if let Ok(socket) = sit_down_as(&mut agent, &developer).await {
                return socket;
            }
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_upgrade_the_answer_is_what_the_guest_said() {
    let (agent, _) = with_guest("long ago, before").await;
    let answered = agent.unix.get("/v1/vms/web-1/console?history_bytes=6").await;
    assert_eq!((answered.status, &answered.body[..]), (StatusCode::OK, &b"before"[..]));
    let refused = agent.tcp.get("/v1/vms/web-1/console").await;
    assert_eq!(refused.problem().code, "session_needed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_that_cannot_be_opened_is_refused_with_the_reason() {
    let (mut agent, _) = with_guest("before").await;
    let refused = sit_down(&mut agent, Err(ConsoleProblem::NotRunning)).await;
    assert_eq!(refused.err(), Some(StatusCode::CONFLICT));
    let busy = ConsoleProblem::Unavailable("somebody else sits there".to_owned());
    let refused = sit_down(&mut agent, Err(busy)).await;
    assert_eq!(refused.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_any_history_is_known_a_console_opens_by_its_id_for_who_operates_the_host() {
    let agent = Agent::start().await;
    let vm = VmId([7; 16]);
    std::fs::create_dir(agent.directory.path().join("consoles")).expect("makes");
    let log = agent.directory.path().join(format!("consoles/{vm}.log"));
    std::fs::write(log, "login: ").expect("writes");
    let path = format!("/v1/vms/{vm}/console");
    assert_eq!(agent.unix.get(&path).await.problem().code, "not_found", "it is not seen here");
    agent.board.update(|sights| {
        let sight = VmSight {
            sight: Sight::Running,
            applied_generation: None,
            reason: None,
            awaits_image: false,
        };
        sights.vms.insert(vm, sight);
    });
    let answered = agent.unix.get(&path).await;
    assert_eq!((answered.status, &answered.body[..]), (StatusCode::OK, &b"login: "[..]));
    assert_eq!(agent.tcp.get(&path).await.problem().code, "session_needed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_of_another_hosts_machine_is_refused_with_that_hosts_name() {
    let agent = Agent::start().await;
    let mut chronicle = Chronicle::new(&agent.world);
    let developer = key(World::DEVELOPER);
    let payload = agent.world.sign(&developer, vm_create("far"));
    let host = agent.world.host_id(2);
    let vm = vm_object(&developer, "far", &payload, chronicle.next_position(), host);
    let effects = vec![Effect::Vm(Box::new(vm))];
    chronicle.commit(vec![(payload, Verdict::Accepted, effects)], Vec::new());
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;
    let problem = agent.unix.get("/v1/vms/far/console").await.problem();
    assert_eq!(problem.code, "console_elsewhere");
    assert!(problem.detail.contains("host3"), "{}", problem.detail);
}
