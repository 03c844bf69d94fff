//! Taking requests apart: paths, queries and bodies, with a problem for everything that is out of
//! form.
//!
//! Owns the bounds on bodies. Called by all handlers.

use axum::body::Body;
use axum::extract::{FromRequestParts, Request};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use dagger_payload::id::AccountId;
use futures_util::StreamExt;
use serde::Deserialize;
use utoipa::IntoParams;

use super::problem::ApiProblem;
use crate::limits::{API_BODY_WAIT_MAX, API_REFUSED_BODY_BYTES_MAX};

/// A path's parameters.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(ApiProblem))]
pub(super) struct Path<T>(pub(super) T);

/// A query's parameters; unknown ones are refused where their type says so.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(ApiProblem))]
pub(super) struct Query<T>(pub(super) T);

/// Reads a body of at most `bytes_max` bytes; a larger one is refused before it is read where its
/// length is told.
///
/// # Errors
/// `payload_too_large`, `too_slow`, `request_malformed`.
pub(super) async fn read_body(request: Request, bytes_max: usize) -> Result<Bytes, ApiProblem> {
    if let Some(length) = told_length(request.headers())?
        && length > bytes_max as u64
    {
        discard(request.into_body()).await;
        return Err(ApiProblem::too_large(bytes_max));
    }
    let read = collect(request.into_body(), bytes_max);
    tokio::time::timeout(API_BODY_WAIT_MAX, read)
        .await
        .unwrap_or_else(|_| Err(ApiProblem::slow("the body did not arrive in time")))
}

/// The request with all of its body.
///
/// # Errors
/// As [`read_body`].
pub(super) async fn received(request: Request, bytes_max: usize) -> Result<Request, ApiProblem> {
    let (head, body) = request.into_parts();
    let mut whole = Request::new(body);
    *whole.headers_mut() = head.headers.clone();
    let bytes = read_body(whole, bytes_max).await?;
    Ok(Request::from_parts(head, Body::from(bytes)))
}

/// Takes what comes of a body that is refused: who is still sending when its connection ends might
/// not hear why.
async fn discard(body: Body) {
    let all = async {
        let (mut chunks, mut bytes) = (body.into_data_stream(), 0);
        while bytes < API_REFUSED_BODY_BYTES_MAX
            && let Some(Ok(chunk)) = chunks.next().await
        {
            bytes += chunk.len();
        }
    };
    let _ = tokio::time::timeout(API_BODY_WAIT_MAX, all).await;
}

fn told_length(headers: &HeaderMap) -> Result<Option<u64>, ApiProblem> {
    let Some(value) = headers.get(header::CONTENT_LENGTH) else {
        return Ok(None);
    };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    let malformed = || ApiProblem::malformed("the Content-Length header is no number");
    length.map(Some).ok_or_else(malformed)
}

async fn collect(body: Body, bytes_max: usize) -> Result<Bytes, ApiProblem> {
    let mut chunks = body.into_data_stream();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        let cut = |_| ApiProblem::malformed("the connection ended before the body did");
        let chunk = chunk.map_err(cut)?;
        if bytes.len() + chunk.len() > bytes_max {
            return Err(ApiProblem::too_large(bytes_max));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

/// Query of what is listed by account and found by name.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AccountQuery {
    /// Only what belongs to this account.
    #[param(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    pub(super) account: Option<AccountId>,
}
