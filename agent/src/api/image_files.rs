//! `/v1/images/{digest}`: an image's bytes, for the other hosts of the cluster.
//!
//! Owns who may read (hosts of the cluster by their agent keys, operators, and whoever holds the
//! Unix socket) and how many at a time, in all and for each. What is sent is not verified here: who
//! asks by digest verifies it himself. The one path that is served at the hosts' own door.

use std::io::SeekFrom;

use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use dagger_api::Problem;
use dagger_images::ImageError;
use dagger_payload::id::ImageDigest;
use dagger_payload::key::PublicKey;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::problem::ApiProblem;
use super::reader::{Reader, session_key};
use super::request::Path;
use super::{Api, Door};
use crate::limits::{API_IMAGE_PIECE_BYTES, API_IMAGE_STREAM_WAIT_MAX};

/// Paths of image files begin with this.
pub(super) const PATH_BEGIN: &str = "/v1/images/";

/// Whoever may read image files: by which key, unless he came through the Unix socket.
pub(super) struct ImageReader(Option<PublicKey>);

impl FromRequestParts<Api> for ImageReader {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiProblem> {
        let door = parts.extensions.get::<Door>().cloned();
        match door {
            Some(Door::Unix) => return Ok(Self(None)),
            Some(Door::Tcp(_) | Door::Images) => {}
            None => return Err(ApiProblem::internal("the request came through no door")),
        }
        let key = session_key(&parts.headers, api)?;
        if api.parts.model.read(|model| model.host_signed_by(&key).is_some()) {
            return Ok(Self(Some(key)));
        }
        match Reader::from_request_parts(parts, api).await? {
            Reader::All => Ok(Self(Some(key))),
            Reader::Account(_) | Reader::Onlooker(_) => Err(ApiProblem::session(
                "image files are for the cluster's hosts and operators".to_owned(),
            )),
        }
    }
}

/// An image's file, or its end from a byte on (`Range: bytes=N-`).
#[utoipa::path(
    get,
    path = "/v1/images/{digest}",
    tag = "objects",
    params(
        ("digest" = ImageDigest, Path, description = "The BLAKE3 digest of the file"),
        ("range" = Option<String>, Header, description = "`bytes=N-`; other ranges are not given")
    ),
    responses(
        (status = 200, body = [u8], content_type = "application/octet-stream"),
        (status = 206, body = [u8], content_type = "application/octet-stream"),
        (status = 401, body = Problem, content_type = "application/problem+json",
            description = "`session_needed`: of a host of the cluster, or of an operator"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 416, body = Problem, content_type = "application/problem+json",
            description = "`range_refused`: there is nothing from there on"),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`overloaded`: others are served, or who asks; try again, or elsewhere")
    )
)]
pub(super) async fn show(
    State(api): State<Api>,
    ImageReader(key): ImageReader,
    Path(digest): Path<ImageDigest>,
    headers: HeaderMap,
) -> Result<Response, ApiProblem> {
    let own = key.map(|key| api.image_streams_of.of(*key.as_bytes()).try_acquire_owned());
    let own = own.transpose().map_err(|_| ApiProblem::overloaded("this host is served already"))?;
    let permit = std::sync::Arc::clone(&api.image_streams).try_acquire_owned();
    let permit = permit.map_err(|_| ApiProblem::overloaded("other hosts are served"))?;
    let failed = |error: std::io::Error| ApiProblem::image_store(error.to_string());
    let store = std::sync::Arc::clone(&api.parts.images);
    let opened = tokio::task::spawn_blocking(move || store.open_file(digest)).await;
    let opened = opened.map_err(|error| ApiProblem::internal(error.to_string()))?;
    let file = opened.map_err(|error| match error {
        ImageError::Missing(_) => ApiProblem::not_found(format!("this host has no image {digest}")),
        other => ApiProblem::image_store(other.to_string()),
    })?;
    let mut file = File::from_std(file);
    let size = file.metadata().await.map_err(failed)?.len();
    let range = headers.get(header::RANGE).map(|range| range.to_str().unwrap_or_default());
    let begin = range.map_or(Some(0), first_byte);
    let begin = begin.filter(|begin| *begin < size || *begin == 0).ok_or_else(|| {
        ApiProblem::range(format!("the file has {size} bytes; ask for `bytes=N-` below that"))
    })?;
    file.seek(SeekFrom::Start(begin)).await.map_err(failed)?;
    let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let part = format!("bytes {begin}-{}/{size}", size.saturating_sub(1));
    let stream = Sending {
        file,
        left: size - begin,
        until: Instant::now() + API_IMAGE_STREAM_WAIT_MAX,
        stop: api.stop.clone(),
        _permits: (own, permit),
    };
    let body = futures_util::stream::try_unfold(stream, Sending::next);
    let mut response = (
        status,
        [
            (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
            (header::CONTENT_LENGTH, (size - begin).to_string()),
            (header::ACCEPT_RANGES, "bytes".to_owned()),
        ],
        Body::from_stream(body),
    )
        .into_response();
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(part) = part.parse()
    {
        response.headers_mut().insert(header::CONTENT_RANGE, part);
    }
    Ok(response)
}

/// The `N` of `bytes=N-`.
fn first_byte(range: &str) -> Option<u64> {
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

/// A file on its way; what of it was announced and is not there any more ends it early.
struct Sending {
    file: File,
    left: u64,
    until: Instant,
    stop: tokio_util::sync::CancellationToken,
    _permits: (Option<OwnedSemaphorePermit>, OwnedSemaphorePermit),
}

impl Sending {
    async fn next(mut self) -> std::io::Result<Option<(Bytes, Self)>> {
        if self.left == 0 {
            return Ok(None);
        }
        if self.stop.is_cancelled() || Instant::now() > self.until {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(API_IMAGE_PIECE_BYTES);
        let mut piece = BytesMut::zeroed(room);
        let length = self.file.read(&mut piece).await?;
        if length == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        piece.truncate(length);
        self.left -= length as u64;
        Ok(Some((piece.freeze(), self)))
    }
}
