//! The conversation with one Cloud Hypervisor process: HTTP over its Unix socket.
//!
//! Owns the transport's rules (release 53, API 0.3.0): one connection per call, since the process
//! takes ten at most; a length on every body and no body where none belongs; a deadline on every
//! call. Says what happened and never what it means: a status is a hint only, since releases differ
//! in it. Called by the implementation.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;

use super::limits::{ANSWER_BYTES_MAX, REQUEST_BYTES_MAX};
use super::socket::{connect_to, nobody_listens};

/// Why a call gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    /// Nobody listens at the socket: the process is not there.
    #[error("no process listens at its socket")]
    Gone,
    /// Somebody listens and there is no whole answer: whether the call took effect is unknown.
    #[error("no answer: {0}")]
    Silent(String),
    /// It answered that it did not do it.
    #[error("{}", .chain.join(": "))]
    Said {
        /// A hint: releases differ in it.
        status: u16,
        /// The errors, outermost first.
        chain: Vec<String>,
    },
}

/// One process.
#[derive(Debug, Clone)]
pub(super) struct Api {
    socket: PathBuf,
}

impl Api {
    /// The process that listens here, if one does.
    pub(super) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks; blocks for at most `wait`.
    pub(super) fn get(&self, name: &str, wait: Duration) -> Result<Vec<u8>, ApiError> {
        self.call(Method::GET, name, Bytes::new(), wait)
    }

    /// Tells something that has no body; blocks for at most `wait`.
    pub(super) fn put(&self, name: &str, wait: Duration) -> Result<(), ApiError> {
        self.call(Method::PUT, name, Bytes::new(), wait).map(drop)
    }

    /// Tells something; blocks for at most `wait`. Some answers have a body and some have none:
    /// both mean done.
    pub(super) fn put_json(
        &self,
        name: &str,
        body: &impl Serialize,
        wait: Duration,
    ) -> Result<(), ApiError> {
        let said = |what: String| ApiError::Said { status: 0, chain: vec![what] };
        let body = serde_json::to_vec(body).map_err(|error| said(error.to_string()))?;
        if body.len() > REQUEST_BYTES_MAX {
            return Err(said(format!("a request of {} bytes is too long", body.len())));
        }
        self.call(Method::PUT, name, body.into(), wait).map(drop)
    }

    /// A runtime of its own for each call: callers are plain threads, and nothing stays open
    /// between calls.
    fn call(
        &self,
        method: Method,
        name: &str,
        body: Bytes,
        wait: Duration,
    ) -> Result<Vec<u8>, ApiError> {
        let silent = |error: io::Error| ApiError::Silent(error.to_string());
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(silent)?;
        runtime.block_on(async {
            let exchange = self.exchange(method, name, body);
            tokio::time::timeout(wait, exchange).await.unwrap_or_else(|_| {
                Err(ApiError::Silent(format!("{name} took longer than {} s", wait.as_secs())))
            })
        })
    }

    async fn exchange(&self, method: Method, name: &str, body: Bytes) -> Result<Vec<u8>, ApiError> {
        let silent = |error: hyper::Error| ApiError::Silent(error.to_string());
        let stream = connect_to(&self.socket).and_then(UnixStream::from_std).map_err(|error| {
            if nobody_listens(&error) {
                ApiError::Gone
            } else {
                ApiError::Silent(error.to_string())
            }
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(silent)?;
        let driver = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/api/v1/{name}"))
            .header(header::HOST, "localhost")
            .header(header::ACCEPT, "application/json");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| ApiError::Silent(format!("{name} is no request: {error}")))?;
        let answer = sender.send_request(request).await.map_err(silent)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| ApiError::Silent(error.to_string()))?
            .to_bytes();
        driver.abort();
        if status.is_success() { Ok(body.to_vec()) } else { Err(said(status, &body)) }
    }
}

/// The errors in an answer: a list of texts from the machine monitor, an object from its HTTP
/// server.
fn said(status: StatusCode, body: &[u8]) -> ApiError {
    let chain = serde_json::from_slice::<Vec<String>>(body).ok().filter(|chain| !chain.is_empty());
    let chain = chain.unwrap_or_else(|| {
        let text = serde_json::from_slice::<serde_json::Value>(body)
            .ok()
            .and_then(|value| value.get("error")?.as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
        vec![format!("status {}: {}", status.as_u16(), text.trim())]
    });
    ApiError::Said { status: status.as_u16(), chain }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_a_list_as_an_object_and_as_anything() {
        let text = |body: &[u8]| said(StatusCode::NOT_FOUND, body).to_string();
        assert_eq!(
            text(br#"["Error from API","The VM is not created"]"#),
            "Error from API: The VM is not created"
        );
        assert_eq!(text(br#"{ "error": "too long" }"#), "status 404: too long");
        assert_eq!(text(b"\xff?"), "status 404: \u{fffd}?");
    }

    #[test]
    fn a_socket_without_a_listener_is_gone_and_one_that_says_nothing_is_silent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let wait = Duration::from_millis(50);
        assert_eq!(Api::new(&path).get("vmm.ping", wait), Err(ApiError::Gone));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(Api::new(&path).get("vmm.ping", wait), Err(ApiError::Silent(_))));
        drop(listener);
        assert_eq!(Api::new(&path).get("vmm.ping", wait), Err(ApiError::Gone));
    }
}
