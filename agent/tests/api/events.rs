//! The event stream: whole commits, resumed by commit.

use std::time::Duration;

use dagger_api::StreamEvent;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Response, StatusCode};

use crate::agent::Agent;
use crate::http::{PATIENCE, Way};
use crate::support::{Chronicle, World, create_vm};

/// Reads server-sent events.
pub(crate) struct EventReader {
    response: Response<Incoming>,
    text: String,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Told {
    pub(crate) id: Option<u64>,
    pub(crate) event: StreamEvent,
}

impl EventReader {
    async fn open(way: &Way, path: &str, last_event_id: Option<u64>) -> Self {
        let id = last_event_id.map(|id| ("Last-Event-ID", id.to_string()));
        Self::open_with(way, path, id.as_slice()).await
    }

    pub(crate) async fn open_with(
        way: &Way,
        path: &str,
        headers: &[(&'static str, String)],
    ) -> Self {
        let mut request = way.request("GET", path);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let response = way.open(request.body(Full::default()).expect("a request")).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, text: String::new() }
    }

    /// All that it says until it ends.
    pub(crate) async fn rest(&mut self) -> String {
        let read = async {
            while let Some(Ok(frame)) = self.response.frame().await {
                if let Ok(data) = frame.into_data() {
                    self.text.push_str(std::str::from_utf8(&data).expect("text"));
                }
            }
        };
        tokio::time::timeout(PATIENCE + Duration::from_secs(1), read).await.expect("it ends");
        std::mem::take(&mut self.text)
    }

    pub(crate) async fn next(&mut self) -> Told {
        let read = async {
            loop {
                if let Some((block, rest)) = self.text.split_once("\n\n") {
                    let told = parse(block);
                    self.text = rest.to_owned();
                    match told {
                        Some(told) => return told,
                        None => continue,
                    }
                }
                let frame = self.response.frame().await.expect("the stream goes on");
                let data = frame.expect("no error").into_data().expect("data");
                self.text.push_str(std::str::from_utf8(&data).expect("text"));
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("an event in time")
    }
}

fn parse(block: &str) -> Option<Told> {
    let field = |name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim_start().to_owned())
    };
    let event = serde_json::from_str(&field("data:")?).expect("an event");
    let id = field("id:").map(|id| id.parse().expect("a commit index"));
    Some(Told { id, event })
}

fn commit_of(event: &StreamEvent) -> u64 {
    match event {
        StreamEvent::Payload { commit, .. }
        | StreamEvent::Vm { commit, .. }
        | StreamEvent::Object { commit, .. }
        | StreamEvent::Attested { commit } => commit.0,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_resumes_by_commit_without_gap_or_repetition() {
    let agent = Agent::start().await;
    let mut chronicle = Chronicle::new(&agent.world);
    for vm in ["a", "b", "c"] {
        create_vm(&agent.world, &mut chronicle, World::DEVELOPER, vm);
        agent.ledger.say(chronicle.newest());
    }
    agent.until(|progress| progress.judged.0 == 3).await;

    let mut all = EventReader::open(&agent.unix, "/v1/events?after=0", None).await;
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.push(all.next().await);
    }
    // A payload and its VM for each commit; only the commit's last event carries the id.
    let commits: Vec<_> = seen.iter().map(|told| commit_of(&told.event)).collect();
    assert_eq!(commits, [1, 1, 2, 2, 3, 3]);
    let ids: Vec<_> = seen.iter().map(|told| told.id).collect();
    assert_eq!(ids, [None, Some(1), None, Some(2), None, Some(3)]);

    let mut resumed = EventReader::open(&agent.unix, "/v1/events", Some(1)).await;
    for expected in &seen[2..] {
        assert_eq!(resumed.next().await, *expected);
    }
    // `Last-Event-ID` is what a browser sends when it comes back; it counts before the address.
    let mut returned = EventReader::open(&agent.unix, "/v1/events?after=0", Some(2)).await;
    assert_eq!(returned.next().await, seen[4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_tells_new_commits_and_their_attestation_as_they_come() {
    let agent = Agent::start().await;
    let mut chronicle = Chronicle::new(&agent.world);
    create_vm(&agent.world, &mut chronicle, World::DEVELOPER, "before");
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;

    let mut fresh = EventReader::open(&agent.unix, "/v1/events", None).await;
    let vm = create_vm(&agent.world, &mut chronicle, World::DEVELOPER, "after");
    agent.ledger.say(chronicle.newest());
    let StreamEvent::Payload { commit, payload } = fresh.next().await.event else {
        panic!("another event came first");
    };
    assert_eq!((commit.0, payload.vm), (2, Some(vm.id)));
    assert!(matches!(fresh.next().await.event, StreamEvent::Vm { vm: told, .. } if *told == vm));
    let end = chronicle.releases[1].end;
    agent.ledger.say(chronicle.attested(&[0, 1, 2], end));
    assert_eq!(
        fresh.next().await,
        Told { id: None, event: StreamEvent::Attested { commit: end.index } }
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_the_agent_ends_its_streams_with_a_word() {
    let agent = Agent::start().await;
    let mut stream = EventReader::open(&agent.unix, "/v1/events", None).await;
    drop(agent);
    let told = stream.rest().await;
    assert!(told.contains("resume with Last-Event-ID"), "{told}");
}
