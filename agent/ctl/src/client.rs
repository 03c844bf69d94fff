//! Speaks HTTP/1.1 with the agents that the user named, one after the other until one can answer.
//!
//! Owns deadlines, limits of answers and the reading of problem details. Trying another agent is
//! safe for every request: the same payload bytes have the same digest everywhere. An agent that
//! asks for a session gets one, once. Called by the commands.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dagger_api::{
    ClusterView, ImageImport, LocalStop, LocalStopView, PROBLEM_MEDIA_TYPE, PayloadView,
    PredictionView, Problem, SIGNATURE_HEADER,
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, CONTENT_TYPE, HOST, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::endpoint::Endpoint;
use crate::failure::Failure;
use crate::limits::{ANSWER_BYTES_MAX, ANSWER_MAX, EXPORT_MAX, IMPORT_MAX, LOCAL_STOP_MAX};
use crate::login::{Login, SESSION_NEEDED};

/// One request, before it is known who answers it.
#[derive(Clone)]
struct Ask<'a> {
    method: Method,
    path: &'a str,
    headers: Vec<(HeaderName, String)>,
    body: Bytes,
    deadline: Duration,
}

impl<'a> Ask<'a> {
    fn get(path: &'a str) -> Self {
        let (headers, body) = (Vec::new(), Bytes::new());
        Self { method: Method::GET, path, headers, body, deadline: ANSWER_MAX }
    }
}

/// Talks to the first of several agents that can answer.
pub(crate) struct Client {
    endpoints: Vec<Endpoint>,
    /// Index of the agent that answered last: it is asked first.
    preferred: AtomicUsize,
    login: Login,
}

impl Client {
    /// A client of these agents; at least one. `key` signs sessions.
    pub(crate) fn new(endpoints: Vec<Endpoint>, key: Option<PathBuf>) -> Self {
        Self { endpoints, preferred: AtomicUsize::new(0), login: Login::new(key) }
    }

    /// The agents that may be asked.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// `GET path`, read as `T`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.get_waiting(path, Duration::ZERO).await
    }

    /// `GET path`, where the agent may hold back its answer for `wait`.
    pub(crate) async fn get_waiting<T: DeserializeOwned>(
        &self,
        path: &str,
        wait: Duration,
    ) -> Result<T, Failure> {
        let ask = Ask { deadline: ANSWER_MAX + wait, ..Ask::get(path) };
        read(&self.ask_each(&ask).await?)
    }

    /// `POST /v1/payloads`: hands over the exact bytes that were signed. Safe to repeat anywhere.
    pub(crate) async fn submit(
        &self,
        bytes: &Bytes,
        signature: &str,
    ) -> Result<PayloadView, Failure> {
        let ask = Ask {
            method: Method::POST,
            path: "/v1/payloads",
            headers: vec![
                (HeaderName::from_static(SIGNATURE_HEADER), signature.to_owned()),
                (CONTENT_TYPE, "application/json".to_owned()),
            ],
            body: bytes.clone(),
            deadline: ANSWER_MAX,
        };
        read(&self.ask_each(&ask).await?)
    }

    /// `POST /v1/predictions`: what would come of a document that nobody has signed.
    pub(crate) async fn predict(&self, document: Bytes) -> Result<PredictionView, Failure> {
        let ask = Ask {
            method: Method::POST,
            path: "/v1/predictions",
            headers: vec![(CONTENT_TYPE, "application/json".to_owned())],
            body: document,
            deadline: ANSWER_MAX,
        };
        read(&self.ask_each(&ask).await?)
    }

    /// `POST /v1/images` at one agent: its host takes a file of its own into its store.
    pub(crate) async fn import_image(
        endpoint: &Endpoint,
        import: &ImageImport,
    ) -> Result<(), Failure> {
        let body = serde_json::to_vec(import)
            .map_err(|error| Failure::broken(format!("cannot write JSON: {error}")))?;
        let ask = Ask {
            method: Method::POST,
            path: "/v1/images",
            headers: vec![(CONTENT_TYPE, "application/json".to_owned())],
            body: body.into(),
            deadline: IMPORT_MAX,
        };
        ask_one(endpoint, &ask).await.map(|_| ())
    }

    /// `POST /v1/vms/{vm}/local-stop` at one agent: its operator switches a machine off.
    pub(crate) async fn local_stop(
        endpoint: &Endpoint,
        vm: &str,
        stop: &LocalStop,
    ) -> Result<LocalStopView, Failure> {
        let body = serde_json::to_vec(stop)
            .map_err(|error| Failure::broken(format!("cannot write JSON: {error}")))?;
        let ask = Ask {
            method: Method::POST,
            path: &format!("/v1/vms/{vm}/local-stop"),
            headers: vec![(CONTENT_TYPE, "application/json".to_owned())],
            body: body.into(),
            deadline: LOCAL_STOP_MAX,
        };
        let answer = ask_one(endpoint, &ask).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| Failure::broken(format!("the agent's answer does not read: {error}")))
    }

    /// Asks one agent after the other while they are unavailable.
    async fn ask_each(&self, ask: &Ask<'_>) -> Result<Bytes, Failure> {
        let count = self.endpoints.len();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failure = None;
        for offset in 0..count {
            let index = (first + offset) % count;
            match self.ask_with_session(&self.endpoints[index], ask).await {
                Err(error) if error.is_unavailable() => keep_telling(&mut failure, error),
                answered => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return answered;
                }
            }
        }
        Err(failure.unwrap_or_else(|| Failure::usage("no agent is named", "Give --api.")))
    }

    /// `GET path` as a WebSocket, from the agent whose host has it.
    pub(crate) async fn console(&self, path: &str) -> Result<Console, Failure> {
        let key = generate_key();
        let accept = derive_accept_key(key.as_bytes());
        let ask = Ask {
            headers: vec![
                (CONNECTION, "Upgrade".to_owned()),
                (UPGRADE, "websocket".to_owned()),
                (SEC_WEBSOCKET_VERSION, "13".to_owned()),
                (SEC_WEBSOCKET_KEY, key),
            ],
            ..Ask::get(path)
        };
        let upgrade = StatusCode::SWITCHING_PROTOCOLS;
        let response = self.open_at_its_host(&ask, upgrade).await?;
        if response.headers().get(SEC_WEBSOCKET_ACCEPT).is_none_or(|answer| *answer != accept) {
            return Err(Failure::broken("the answer is no WebSocket's"));
        }
        let upgraded = hyper::upgrade::on(response).await;
        let upgraded = upgraded
            .map_err(|error| Failure::broken(format!("the connection does not change: {error}")))?;
        Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await)
    }

    /// What a console has said, from the agent whose host has it.
    pub(crate) async fn console_log(&self, path: &str) -> Result<Bytes, Failure> {
        let ask = Ask::get(path);
        let response = self.open_at_its_host(&ask, StatusCode::OK).await?;
        body(response).await.map_err(Failure::broken)
    }

    /// A VM's file, piece by piece, from the agent whose host has it.
    pub(crate) async fn export(&self, path: &str) -> Result<Incoming, Failure> {
        let ask = Ask { deadline: EXPORT_MAX, ..Ask::get(path) };
        Ok(self.open_at_its_host(&ask, StatusCode::OK).await?.into_body())
    }

    /// Asks one agent after the other until one has what stays on its host.
    async fn open_at_its_host(
        &self,
        ask: &Ask<'_>,
        expected: StatusCode,
    ) -> Result<Response<Incoming>, Failure> {
        let mut failure = None;
        for endpoint in &self.endpoints {
            match self.open_with_session(endpoint, ask, expected).await {
                Ok(response) => return Ok(response),
                Err(error) if error.is_unavailable() || telling(&error) < Telling::Own => {
                    keep_telling(&mut failure, error);
                }
                Err(refused) => return Err(refused),
            }
        }
        Err(failure.unwrap_or_else(|| Failure::usage("no agent is named", "Give --api.")))
    }

    /// Asks one agent, and again with a session when it wants one.
    async fn ask_with_session(&self, endpoint: &Endpoint, ask: &Ask<'_>) -> Result<Bytes, Failure> {
        let first = ask_one(endpoint, &self.with_session(endpoint, ask)).await;
        match first {
            Err(failure) if failure.has_code(SESSION_NEEDED) => {
                self.log_in(endpoint).await?;
                ask_one(endpoint, &self.with_session(endpoint, ask)).await
            }
            answered => answered,
        }
    }

    fn with_session<'a>(&self, endpoint: &Endpoint, ask: &Ask<'a>) -> Ask<'a> {
        let mut ask = ask.clone();
        ask.headers.extend(self.login.known(endpoint));
        ask
    }

    /// Opens an answer of `expected` status, with a session when the agent wants one.
    async fn open_with_session(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        expected: StatusCode,
    ) -> Result<Response<Incoming>, Failure> {
        let first = open_expecting(endpoint, &self.with_session(endpoint, ask), expected).await;
        match first {
            Err(failure) if failure.has_code(SESSION_NEEDED) => {
                self.log_in(endpoint).await?;
                open_expecting(endpoint, &self.with_session(endpoint, ask), expected).await
            }
            answered => answered,
        }
    }

    async fn log_in(&self, endpoint: &Endpoint) -> Result<(), Failure> {
        let cluster: ClusterView = read(&ask_one(endpoint, &Ask::get("/v1/cluster")).await?)?;
        self.login.sign(endpoint, &cluster)
    }

    /// `GET path` as a stream of server-sent events, from the first agent that can answer.
    pub(crate) async fn stream(&self, path: &str) -> Result<Incoming, Failure> {
        let ask = Ask::get(path);
        let mut failure = None;
        for endpoint in &self.endpoints {
            match self.open_with_session(endpoint, &ask, StatusCode::OK).await {
                Ok(response) => return Ok(response.into_body()),
                Err(error) if error.is_unavailable() => keep_telling(&mut failure, error),
                Err(refused) => return Err(refused),
            }
        }
        Err(failure.unwrap_or_else(|| Failure::usage("no agent is named", "Give --api.")))
    }
}

/// A console's messages.
pub(crate) type Console = WebSocketStream<TokioIo<Upgraded>>;

/// Codes of an agent whose host does not have what stays on its host.
const ELSEWHERE: [&str; 2] = ["console_elsewhere", "vm_elsewhere"];
/// Code of an agent that hands it out by its host's own socket only.
const UNIX_SOCKET_ONLY: &str = "unix_socket_only";
/// Code of an agent that did not answer at all.
const UNREACHABLE: &str = "unreachable";
/// Code of a ledger that is well but reaches too few others.
pub(crate) const NO_QUORUM: &str = "no_quorum";

/// How much the failure of one agent tells about the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Telling {
    /// Nobody was asked yet.
    Nothing,
    /// It did not answer.
    Silence,
    /// It may be the right one, but not by this door.
    Door,
    /// It knows which host it is not.
    Elsewhere,
    /// It cannot, for a reason of its own.
    Own,
    /// It knows who is missing.
    Quorum,
}

fn telling(failure: &Failure) -> Telling {
    match failure {
        failure if failure.has_code(NO_QUORUM) => Telling::Quorum,
        failure if failure.has_code(UNREACHABLE) => Telling::Silence,
        failure if failure.has_code(UNIX_SOCKET_ONLY) => Telling::Door,
        failure if ELSEWHERE.iter().any(|code| failure.has_code(code)) => Telling::Elsewhere,
        _ => Telling::Own,
    }
}

/// Keeps the one that tells more; of two that tell as much, the first.
fn keep_telling(kept: &mut Option<Failure>, other: Failure) {
    let told = kept.as_ref().map_or(Telling::Nothing, telling);
    if telling(&other) > told {
        *kept = Some(other);
    }
}

fn unreachable(endpoint: &Endpoint, why: &dyn std::fmt::Display) -> Failure {
    Failure::unavailable(
        UNREACHABLE,
        format!("{endpoint} does not answer: {why}"),
        "Check that the agent runs there and that you may open its socket; name further agents with \
         --api A,B or $DAGGER_API.",
    )
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::refused(
            "answer_unreadable",
            format!("the agent's answer cannot be read: {error}"),
            "Use a daggerctl of the same version as the agent.",
        )
    })
}

/// Sends one request and waits for the head of its answer.
async fn open(endpoint: &Endpoint, ask: &Ask<'_>) -> Result<Response<Incoming>, Failure> {
    let stream = endpoint.connect().await.map_err(|error| unreachable(endpoint, &error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(endpoint, &error))?;
    // Ends with the response's body or with the sender, whichever is dropped last.
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::builder()
        .method(ask.method.clone())
        .uri(ask.path)
        .header(HOST, endpoint.authority());
    for (name, value) in &ask.headers {
        request = request.header(name, value);
    }
    let request = request
        .body(Full::new(ask.body.clone()))
        .map_err(|error| Failure::broken(format!("cannot build a request: {error}")))?;
    match tokio::time::timeout(ask.deadline, sender.send_request(request)).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(unreachable(endpoint, &error)),
        Err(_) => Err(unreachable(endpoint, &"no answer in time")),
    }
}

async fn open_expecting(
    endpoint: &Endpoint,
    ask: &Ask<'_>,
    expected: StatusCode,
) -> Result<Response<Incoming>, Failure> {
    let response = open(endpoint, ask).await?;
    if response.status() == expected { Ok(response) } else { Err(refusal(response).await) }
}

async fn body(response: Response<Incoming>) -> Result<Bytes, String> {
    let limited = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    match tokio::time::timeout(ANSWER_MAX, limited.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the answer stopped half-way".to_owned()),
    }
}

async fn ask_one(endpoint: &Endpoint, ask: &Ask<'_>) -> Result<Bytes, Failure> {
    let response = open(endpoint, ask).await?;
    if !response.status().is_success() {
        return Err(refusal(response).await);
    }
    body(response).await.map_err(|error| unreachable(endpoint, &error))
}

/// Turns an answer that is no success into a failure.
async fn refusal(response: Response<Incoming>) -> Failure {
    let status = response.status();
    let media_type = response.headers().get(CONTENT_TYPE);
    let is_problem = media_type
        .is_some_and(|kind| kind.to_str().is_ok_and(|kind| kind.starts_with(PROBLEM_MEDIA_TYPE)));
    let bytes = body(response).await.unwrap_or_default();
    if is_problem && let Ok(problem) = serde_json::from_slice::<Problem>(&bytes) {
        return problem.into();
    }
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let what = format!("the agent answered {status}: {text}");
    if status.is_server_error() {
        Failure::unavailable("agent_failed", what, "Look at the agent's log.")
    } else {
        Failure::refused("agent_refused", what, "Use a daggerctl of the agent's version.")
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// An agent that answers the first request with this problem.
    async fn agent(status: u16, code: &str, detail: &str) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let problem = serde_json::json!({
            "type": "", "title": "", "status": status, "code": code, "detail": detail, "advice": "",
        });
        let body = problem.to_string();
        let answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: {PROBLEM_MEDIA_TYPE}\r\ncontent-length: {}\r\n\
             \r\n{body}",
            body.len()
        );
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("asked");
            let (mut heard, mut part) = (Vec::new(), [0; 1024]);
            while !heard.ends_with(b"\r\n\r\n") {
                let count = stream.read(&mut part).await.expect("a request");
                heard.extend_from_slice(&part[..count]);
            }
            stream.write_all(answer.as_bytes()).await.expect("takes the answer");
        });
        format!("http://{address}").parse().expect("an address")
    }

    #[tokio::test]
    async fn what_the_vms_own_host_says_is_not_overruled_by_the_others() {
        for own_place in [0, 1] {
            let own = agent(503, "console_unavailable", "somebody sits at it").await;
            let mut agents = vec![agent(409, "console_elsewhere", "on host host1").await];
            agents.insert(own_place, own);
            let client = Client::new(agents, None);
            let failure =
                client.console_log("/v1/vms/web-1/console").await.expect_err("no console");
            assert!(failure.has_code("console_unavailable"), "{}", failure.to_text());
        }
    }

    #[tokio::test]
    async fn which_host_has_it_is_told_where_that_host_is_not_asked_or_does_not_answer() {
        let silent: Endpoint = "unix:/nonexistent/api.sock".parse().expect("an address");
        for place in [0, 1] {
            let mut agents = vec![agent(409, "vm_elsewhere", "on host host1").await];
            agents.insert(place, silent.clone());
            let failure = Client::new(agents, None).export("/v1/vms/a/export").await;
            assert!(failure.expect_err("elsewhere").has_code("vm_elsewhere"));
        }
    }
}
