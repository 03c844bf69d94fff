//! Taking image files into the store: only over the Unix socket, only what is registered, only what
//! has the digest.

use dagger_agent::limits::{API_IMAGE_CONNECTIONS_PER_ADDRESS_MAX, API_IMAGE_STREAMS_PER_KEY_MAX};
use dagger_api::{Held, ImageImport, ImageView};
use dagger_payload::id::{Generation, ImageDigest};
use dagger_payload::kind::ImageFormat;
use dagger_payload::object::{Cause, Effect, Image, ImageStatus};
use dagger_payload::release::Verdict;
use http_body_util::Full;
use hyper::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::agent::Agent;
use crate::http::{Answered, PATIENCE, Way};
use crate::sessions;
use crate::support::{Chronicle, World, host_object, key, vm_create};

async fn import(way: &Way, import: &ImageImport) -> Answered {
    let body = serde_json::to_vec(import).expect("plain data");
    let request = way.request("POST", "/v1/images").body(Full::new(body.into()));
    way.ask(request.expect("a request")).await
}

/// Registers an image with this digest.
async fn register(agent: &Agent, digest: ImageDigest, size_bytes: u64) {
    let mut chronicle = Chronicle::new(&agent.world);
    let publisher = key(1);
    // The fake judges nothing: any payload may carry the effect.
    let payload = agent.world.sign(&publisher, vm_create("any"));
    let image = Image {
        name: "op1/small".parse().expect("a name"),
        publisher: publisher.public_key(),
        digest,
        format: ImageFormat::Raw,
        size_bytes,
        virtual_size_bytes: size_bytes,
        sources: Vec::new(),
        status: ImageStatus::Offered,
        generation: Generation(1),
        cause: Cause { digest: payload.digest(), position: chronicle.next_position() },
    };
    let effects = vec![Effect::Image(Box::new(image))];
    chronicle.commit(vec![(payload, Verdict::Accepted, effects)], Vec::new());
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_registered_image_with_the_right_digest_is_taken_and_only_over_the_unix_socket() {
    let agent = Agent::start().await;
    let path = agent.directory.path().join("small.img");
    std::fs::write(&path, vec![0x5a; 4096]).expect("writable");
    let digest = dagger_images::store::digest_of(&path).expect("readable").expect("small");
    register(&agent, digest, 4096).await;
    let views: Vec<ImageView> = agent.unix.get_json("/v1/images").await;
    assert_eq!(views[0].held, Held::No);

    let wanted = |path: &std::path::Path| ImageImport { path: path.display().to_string(), digest };
    let refused = import(&agent.tcp, &wanted(&path)).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert_eq!(refused.problem().code, "unix_socket_only");
    let other = agent.directory.path().join("other.img");
    std::fs::write(&other, vec![0x5b; 4096]).expect("writable");
    for path in [other.as_path(), agent.directory.path(), &agent.directory.path().join("none")] {
        let refused = import(&agent.unix, &wanted(path)).await;
        assert_eq!(refused.problem().code, "image_refused", "{}", path.display());
    }
    let relative = import(&agent.unix, &wanted(std::path::Path::new("small.img"))).await;
    assert_eq!(relative.problem().code, "request_malformed");
    let views: Vec<ImageView> = agent.unix.get_json("/v1/images").await;
    assert_eq!(views[0].held, Held::No);

    let taken = import(&agent.unix, &wanted(&path)).await;
    assert_eq!(taken.json::<ImageView>().held, Held::Yes);
    let views: Vec<ImageView> = agent.unix.get_json("/v1/images").await;
    assert_eq!(views[0].held, Held::Yes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_images_bytes_are_for_hosts_and_operators_and_from_any_byte_on() {
    let agent = Agent::start().await;
    let bytes: Vec<u8> = (0..600_000_u32).map(|number| number as u8).collect();
    let path = agent.directory.path().join("small.img");
    std::fs::write(&path, &bytes).expect("writable");
    let digest = dagger_images::store::digest_of(&path).expect("readable").expect("small");
    let file = format!("/v1/images/{digest}");
    let mut chronicle = Chronicle::new(&agent.world);
    let payload = agent.world.sign(&key(1), vm_create("any"));
    let cause = Cause { digest: payload.digest(), position: chronicle.next_position() };
    let effects = vec![host_object(&agent.world, 1, cause)];
    chronicle.commit(vec![(payload, Verdict::Accepted, effects)], Vec::new());
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;

    let hosts_key = World::agent_key(1);
    let missing = sessions::get(&agent, &file, &hosts_key, 0).await;
    assert_eq!(missing.problem().code, "not_found");
    std::fs::copy(&path, agent.directory.path().join("images").join(digest.to_string()))
        .expect("writable");
    let taken = sessions::get(&agent, &file, &hosts_key, 0).await;
    assert_eq!(taken.status, StatusCode::OK);
    assert!(taken.body == bytes);

    assert_eq!(agent.tcp.get(&file).await.problem().code, "session_needed");
    for (stranger, author) in
        [(key(World::DEVELOPER), 0), (World::agent_key(3), 0), (World::agent_key(1), 1)]
    {
        let refused = sessions::get(&agent, &file, &stranger, author).await;
        assert_eq!(refused.problem().code, "session_refused");
    }

    for (range, begin) in [("bytes=0-", 0), ("bytes=599999-", 599_999), ("bytes=300000-", 300_000)]
    {
        let request = agent.unix.request("GET", &file).header("range", range);
        let part = agent.unix.ask(request.body(Full::default()).expect("a request")).await;
        assert_eq!(part.status, StatusCode::PARTIAL_CONTENT, "{range}");
        assert_eq!(part.headers["content-range"], format!("bytes {begin}-599999/600000"));
        assert!(part.body == bytes[begin..], "{range}");
    }
    for range in ["bytes=600000-", "bytes=1-2", "bytes=-5", "bytes=0-,5-", "lines=1-"] {
        let request = agent.unix.request("GET", &file).header("range", range);
        let refused = agent.unix.ask(request.body(Full::default()).expect("a request")).await;
        assert_eq!(refused.problem().code, "range_refused", "{range}");
    }
    for path in ["/v1/images/none", "/v1/images/..%2Fsecret", "/v1/images/"] {
        let refused = agent.unix.get(path).await;
        assert!(refused.status.is_client_error(), "{path}");
        refused.problem();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_door_for_other_hosts_nothing_but_image_files_is_served() {
    let agent = Agent::start().await;
    for path in ["/v1/cluster", "/v1/vms", "/v1/images", "/v1/openapi.json", "/"] {
        assert_eq!(agent.images.get(path).await.problem().code, "not_found", "{path}");
    }
    let file = format!("/v1/images/{}", ImageDigest([1; 32]));
    assert_eq!(agent.images.get(&file).await.problem().code, "session_needed");
}

/// A socket whose other end takes connections from `from`.
async fn connect(agent: &Agent, from: &str) -> tokio::net::TcpStream {
    let Way::Tcp(door) = &agent.images else { panic!("it is reached by TCP") };
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(format!("{from}:0").parse().expect("an address")).expect("all of 127/8 is ours");
    socket.connect(*door).await.expect("the agent listens")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_does_not_fill_the_door_for_other_hosts() {
    let agent = Agent::start().await;
    let mut held = Vec::new();
    for _ in 0..API_IMAGE_CONNECTIONS_PER_ADDRESS_MAX {
        let mut stream = connect(&agent, "127.0.0.2").await;
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        stream.write_all(head).await.expect("sent");
        // It was taken, and is kept for the next question.
        assert!(stream.read(&mut [0; 16]).await.expect("an answer") > 0);
        held.push(stream);
    }
    let mut refused = connect(&agent, "127.0.0.2").await;
    let read = tokio::time::timeout(PATIENCE, refused.read(&mut [0; 16])).await;
    assert!(matches!(read.expect("it is closed at once"), Ok(0) | Err(_)));
    let mut other = connect(&agent, "127.0.0.3").await;
    let head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    other.write_all(head).await.expect("sent");
    let mut answer = String::new();
    other.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_reads_slowly_takes_no_more_than_its_own_streams() {
    let agent = Agent::start().await;
    let digest = ImageDigest([7; 32]);
    let path = agent.directory.path().join("images").join(digest.to_string());
    // More than all buffers on the way hold; nobody here verifies it.
    std::fs::File::create(path).and_then(|file| file.set_len(256 << 20)).expect("writable");
    let file = format!("/v1/images/{digest}");
    let mut chronicle = Chronicle::new(&agent.world);
    let payload = agent.world.sign(&key(1), vm_create("any"));
    let cause = Cause { digest: payload.digest(), position: chronicle.next_position() };
    let effects = [1, 2].map(|author| host_object(&agent.world, author, cause));
    chronicle.commit(vec![(payload, Verdict::Accepted, effects.into())], Vec::new());
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;

    let mut held = Vec::new();
    for _ in 0..API_IMAGE_STREAMS_PER_KEY_MAX {
        let answer = sessions::open(&agent, &file, &World::agent_key(1), 0).await;
        assert_eq!(answer.status(), StatusCode::OK);
        held.push(answer);
    }
    let more = sessions::get(&agent, &file, &World::agent_key(1), 0).await;
    assert_eq!(more.problem().code, "overloaded");
    let other = sessions::open(&agent, &file, &World::agent_key(2), 0).await;
    assert_eq!(other.status(), StatusCode::OK);
    drop(held);
}
