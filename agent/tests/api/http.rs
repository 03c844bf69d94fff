//! A small HTTP client over either socket.

use std::path::PathBuf;
use std::time::Duration;

use dagger_api::{PROBLEM_MEDIA_TYPE, Problem, SIGNATURE_HEADER};
use dagger_payload::payload::SignedPayload;
use dagger_payload::sshsig::{self, Namespace};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long any test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Which socket to use.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    Unix(PathBuf),
    Tcp(std::net::SocketAddr),
}

#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) headers: hyper::HeaderMap,
    pub(crate) body: Bytes,
}

impl Answered {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("{error}: {}", String::from_utf8_lossy(&self.body));
        })
    }

    /// The problem document; every error must be one.
    pub(crate) fn problem(&self) -> Problem {
        let media_type = self.headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
        assert_eq!(media_type, Some(PROBLEM_MEDIA_TYPE.as_bytes()), "{self:?}");
        let problem: Problem = self.json();
        assert_eq!(problem.status, self.status.as_u16());
        assert!(problem.type_uri.ends_with(&problem.code));
        assert!(!problem.detail.is_empty() && !problem.advice.is_empty());
        problem
    }
}

impl Way {
    pub(crate) async fn open(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        match self {
            Self::Unix(path) => {
                let stream = tokio::net::UnixStream::connect(path).await;
                send(stream.expect("the API listens"), request).await
            }
            Self::Tcp(address) => {
                let stream = tokio::net::TcpStream::connect(address).await;
                send(stream.expect("the API listens"), request).await
            }
        }
    }

    pub(crate) async fn ask(&self, request: Request<Full<Bytes>>) -> Answered {
        let work = async {
            let response = self.open(request).await;
            let (head, body) = response.into_parts();
            let body = body.collect().await.expect("a whole body").to_bytes();
            Answered { status: head.status, headers: head.headers, body }
        };
        let answered = tokio::time::timeout(PATIENCE, work).await;
        answered.expect("an answer in time")
    }

    fn host(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Tcp(address) => address.to_string(),
        }
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> hyper::http::request::Builder {
        Request::builder().method(method).uri(path).header(HOST, self.host())
    }

    pub(crate) async fn get(&self, path: &str) -> Answered {
        let request = self.request("GET", path).body(Full::default());
        self.ask(request.expect("a request")).await
    }

    pub(crate) async fn get_json<T: DeserializeOwned>(&self, path: &str) -> T {
        let answered = self.get(path).await;
        assert_eq!(answered.status, StatusCode::OK, "{path}: {answered:?}");
        answered.json()
    }

    pub(crate) async fn post_payload(&self, payload: &SignedPayload) -> Answered {
        let signer = payload.read().expect("in form").signer;
        let signature = sshsig::to_base64(&signer, Namespace::Payload, &payload.signature);
        self.post_bytes(payload.bytes.shared(), &signature).await
    }

    pub(crate) async fn post(&self, path: &str, body: &'static str) -> Answered {
        let request =
            self.request("POST", path).body(Full::new(Bytes::from_static(body.as_bytes())));
        self.ask(request.expect("a request")).await
    }

    pub(crate) async fn post_bytes(&self, bytes: Bytes, signature: &str) -> Answered {
        let request = self
            .request("POST", "/v1/payloads")
            .header(SIGNATURE_HEADER, signature)
            .body(Full::new(bytes));
        self.ask(request.expect("a request")).await
    }
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Response<Incoming>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.expect("HTTP/1.1");
    tokio::spawn(connection);
    sender.send_request(request).await.expect("a response")
}

/// Sends bytes as they are, and returns what comes back until the connection ends or nothing more
/// comes.
pub(crate) async fn say_raw<S>(stream: &mut S, bytes: &[u8]) -> String
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // The other side may answer and close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}
