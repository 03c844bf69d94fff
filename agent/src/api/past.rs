//! `GET /v1/history`: everything that was judged, as one file that whoever reads it can check.
//!
//! Owns who may have it: it names every account's objects, so whoever may see all of them. Its
//! layout stands in [`dagger_payload::history`].

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use dagger_api::Problem;
use dagger_payload::history::{self, HISTORY_MAGIC};
use dagger_payload::id::CommitIndex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::problem::ApiProblem;
use super::reader::Reader;
use super::{Api, Shared};
use crate::limits::{API_EXPORT_STREAM_WAIT_MAX, API_HISTORY_TOGETHER_MAX};

/// All releases so far that have content, in order. With a proof of the order it needs no trust.
///
/// Whoever may see every account's objects gets it: over the Unix socket, or with an operator's
/// session.
#[utoipa::path(
    get,
    path = "/v1/history",
    tag = "proofs",
    responses(
        (status = 200, body = [u8], content_type = "application/octet-stream"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`overloaded`: too many streams are open")
    )
)]
pub(super) async fn history(
    State(api): State<Api>,
    reader: Reader,
) -> Result<Response, ApiProblem> {
    if reader != Reader::All {
        return Err(ApiProblem::session(
            "the history names every account's objects: an operator exports it".to_owned(),
        ));
    }
    let permits = std::sync::Arc::clone(&api.streaming);
    let permit = permits
        .try_acquire_owned()
        .map_err(|_| ApiProblem::overloaded("too many event streams are open"))?;
    let telling = Telling {
        until: api.parts.model.read(|model| model.judged()),
        told: None,
        deadline: Instant::now() + API_EXPORT_STREAM_WAIT_MAX,
        api,
        _permit: permit,
    };
    let body = futures_util::stream::try_unfold(telling, Telling::next);
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from_stream(body)).into_response())
}

/// How far one reader has come.
struct Telling {
    api: Api,
    /// The last commit that was told; none before the file's beginning.
    told: Option<CommitIndex>,
    /// The last commit that is to be told.
    until: CommitIndex,
    deadline: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Telling {
    /// The next piece; a reader gets it when he has taken the one before.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, std::io::Error> {
        if self.api.stop.is_cancelled() || Instant::now() >= self.deadline {
            return Err(std::io::Error::other("the agent stops, or the reader is too slow"));
        }
        let Some(told) = self.told else {
            self.told = Some(CommitIndex(0));
            return Ok(Some((Bytes::from_static(&HISTORY_MAGIC), self)));
        };
        let (piece, last) = piece(&self.api, told, self.until).await?;
        Ok(last.map(|last| {
            self.told = Some(last);
            (piece.into(), self)
        }))
    }
}

/// The next releases, and the last commit of them; none at the end.
async fn piece(
    api: &Shared,
    told: CommitIndex,
    until: CommitIndex,
) -> Result<(Vec<u8>, Option<CommitIndex>), std::io::Error> {
    let releases = api.parts.model.releases_after(told, API_HISTORY_TOGETHER_MAX).await;
    let releases = releases.map_err(std::io::Error::other)?;
    let releases = releases.iter().take_while(|release| release.end.index <= until);
    let (mut bytes, mut last) = (Vec::new(), None);
    for release in releases {
        last = Some(release.end.index);
        if !release.is_empty() {
            history::write(release, &mut bytes);
        }
    }
    Ok((bytes, last))
}
