//! `/v1/images`: registered images, and taking image files of this host into its store.
//!
//! Only what is registered is taken in, so that nobody fills the store with anything else, and in
//! the registered format, which is never guessed. The store itself verifies the digest and reads
//! the header.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use dagger_api::{Held, ImageImport, ImageView, Problem};
use dagger_images::{ImageError, Kind};
use dagger_payload::id::ImageDigest;
use dagger_payload::object::Image;
use dagger_payload::refusal::{Refusal, RefusalCode};

use super::guard::Door;
use super::problem::ApiProblem;
use super::request::read_body;
use super::{Api, Shared};
use crate::limits::{API_IMPORT_REGISTER_WAIT_MAX, API_SMALL_BODY_BYTES_MAX};

/// Where images are imported.
pub(super) const PATH: &str = "/v1/images";

/// The registered images, and whether this host holds their files.
#[utoipa::path(
    get,
    path = "/v1/images",
    tag = "objects",
    responses((status = 200, body = Vec<ImageView>))
)]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<ImageView>>, ApiProblem> {
    let store = Arc::clone(&api.parts.images);
    let listed = tokio::task::spawn_blocking(move || store.list()).await;
    let entries = listed.map_err(ended)?.map_err(|error| image_problem(&error))?;
    let here: BTreeSet<ImageDigest> = entries.into_iter().map(|entry| entry.digest).collect();
    let downloads = api.parts.board.read(|contents| contents.downloads.clone());
    let view = |image: &Image| ImageView {
        held: if here.contains(&image.digest) { Held::Yes } else { Held::No },
        download: downloads.get(&image.digest).cloned(),
        image: image.clone(),
    };
    Ok(Json(api.parts.model.read(|model| model.images().map(view).collect())))
}

/// Takes a file of this host into its image store; only over the Unix socket.
///
/// The image must be registered (or become so within a few seconds).
#[utoipa::path(
    post,
    path = "/v1/images",
    tag = "objects",
    request_body(content = ImageImport),
    responses(
        (status = 200, body = ImageView, description = "It is in the store, verified"),
        (status = 403, body = Problem, content_type = "application/problem+json",
            description = "`unix_socket_only`"),
        (status = 422, body = Problem, content_type = "application/problem+json",
            description = "`image_unknown`: not registered; `image_refused`: the file is another one, or none that \
may be used")
    )
)]
pub(super) async fn import(
    State(api): State<Api>,
    request: Request,
) -> Result<Json<ImageView>, ApiProblem> {
    if !matches!(request.extensions().get::<Door>(), Some(Door::Unix)) {
        return Err(ApiProblem::unix_only("it works on files of this host"));
    }
    let body = read_body(request, API_SMALL_BODY_BYTES_MAX).await?;
    let import: ImageImport = serde_json::from_slice(&body)
        .map_err(|error| ApiProblem::malformed(format!("the body: {error}")))?;
    if !Path::new(&import.path).is_absolute() {
        let detail = format!("path: {} is not absolute", import.path);
        return Err(ApiProblem::malformed(detail));
    }
    let image = registered(&api, &import.digest).await?;
    let (store, format) = (Arc::clone(&api.parts.images), image.format);
    let work = move || store.import(Path::new(&import.path), format, Some(import.digest));
    let imported = tokio::task::spawn_blocking(work).await;
    imported.map_err(ended)?.map_err(|error| image_problem(&error))?;
    Ok(Json(ImageView { image, held: Held::Yes, download: None }))
}

/// The image with this digest, once it is registered; its registration may be on its way to this
/// host.
async fn registered(api: &Shared, digest: &ImageDigest) -> Result<Image, ApiProblem> {
    let find = || {
        let image = |model: &crate::model::Model| {
            model.images().find(|image| image.digest == *digest).cloned()
        };
        api.parts.model.read(image)
    };
    let mut news = api.parts.model.subscribe();
    let until = tokio::time::Instant::now() + API_IMPORT_REGISTER_WAIT_MAX;
    loop {
        news.mark_unchanged();
        if let Some(image) = find() {
            return Ok(image);
        }
        let changed = tokio::time::timeout_at(until, news.changed()).await;
        if !matches!(changed, Ok(Ok(()))) {
            let detail = format!("no registered image has the digest {digest}");
            return Err(Refusal::new(RefusalCode::ImageUnknown, detail).into());
        }
    }
}

fn image_problem(error: &ImageError) -> ApiProblem {
    let detail = format!("{}: {error}", error.code());
    let callers_fault = matches!(error, ImageError::File { source, .. }
        if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied));
    match error.kind() {
        Kind::Refused => ApiProblem::image(detail),
        Kind::Unavailable if callers_fault => ApiProblem::image(detail),
        Kind::Unavailable => ApiProblem::image_store(detail),
    }
}

fn ended(error: tokio::task::JoinError) -> ApiProblem {
    ApiProblem::internal(format!("the image store's work ended: {error}"))
}
