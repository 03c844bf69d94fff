//! Who is answered over TCP, and that nobody can hold a connection for ever.

use dagger_agent::limits::{API_BODY_WAIT_MAX, API_REQUESTS_TOGETHER_MAX};
use hyper::StatusCode;
use hyper::header::{HOST, ORIGIN};
use tokio::io::AsyncWriteExt;

use crate::agent::Agent;
use crate::http::Way;

async fn ask(way: &Way, host: &str, origin: Option<&str>) -> (StatusCode, Option<String>) {
    let mut request = hyper::Request::builder().uri("/v1/cluster").header(HOST, host);
    if let Some(origin) = origin {
        request = request.header(ORIGIN, origin);
    }
    let request = request.body(http_body_util::Full::default());
    let answered = way.ask(request.expect("a request")).await;
    for header in answered.headers.keys() {
        assert!(!header.as_str().starts_with("access-control"), "{header}");
    }
    let code = (answered.status != StatusCode::OK).then(|| answered.problem().code);
    (answered.status, code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_requests_for_other_hosts_or_from_other_sites_are_refused() {
    let agent = Agent::start().await;
    let Way::Tcp(address) = agent.tcp.clone() else { unreachable!("it is TCP") };
    let own = address.to_string();
    assert_eq!(ask(&agent.tcp, &own, None).await, (StatusCode::OK, None));
    assert_eq!(ask(&agent.tcp, "cloud.example", None).await.0, StatusCode::OK);
    let same_site = format!("http://{own}");
    assert_eq!(ask(&agent.tcp, &own, Some(&same_site)).await.0, StatusCode::OK);
    let refused = |code: &str| (StatusCode::FORBIDDEN, Some(code.to_owned()));
    for host in ["rebound.example", "rebound.example:7480", "127.0.0.1:1"] {
        assert_eq!(ask(&agent.tcp, host, None).await, refused("host_refused"), "{host}");
    }
    for origin in ["https://evil.example", "null"] {
        let answer = ask(&agent.tcp, &own, Some(origin)).await;
        assert_eq!(answer, refused("origin_refused"), "{origin}");
    }
    // The file system guards the Unix socket; whatever the client calls it there is right.
    assert_eq!(ask(&agent.unix, "anything", None).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_sends_bodies_slowly_keeps_nobody_from_being_answered() {
    let agent = Agent::start().await;
    let Way::Tcp(address) = agent.tcp.clone() else { unreachable!("it is TCP") };
    let head =
        format!("POST /v1/payloads HTTP/1.1\r\nHost: {address}\r\nContent-Length: 99\r\n\r\n{{");
    let mut slow = Vec::new();
    for _ in 0..API_REQUESTS_TOGETHER_MAX {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("listens");
        stream.write_all(head.as_bytes()).await.expect("sent");
        slow.push(stream);
    }
    // Sooner than the first of them is given up.
    let both = async { (agent.tcp.get("/v1/hosts").await, agent.unix.get("/v1/hosts").await) };
    let (tcp, unix) = tokio::time::timeout(API_BODY_WAIT_MAX / 2, both).await.expect("in time");
    assert_eq!((tcp.status, unix.status), (StatusCode::OK, StatusCode::OK));
    drop(slow);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_too_large_or_no_http_ends_the_connection() {
    let agent = Agent::start().await;
    let Way::Tcp(address) = agent.tcp.clone() else { unreachable!("it is TCP") };
    let large =
        format!("GET / HTTP/1.1\r\nHost: {address}\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
    for text in [large.as_str(), "\u{16}\u{3}\u{1}\r\n\r\n"] {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("listens");
        let answer = crate::http::say_raw(&mut stream, text.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
}
