//! `/v1/volumes`: disks that outlive the machines that use them.

use axum::Json;
use axum::extract::State;
use dagger_api::{Problem, VolumeView};

use super::Api;
use super::problem::ApiProblem;
use super::reader::Reader;
use super::request::{AccountQuery, Path, Query};
use crate::model::{NameProblem, VolumeQuery};

/// The volumes that exist.
#[utoipa::path(
    get,
    path = "/v1/volumes",
    tag = "objects",
    operation_id = "list_volumes",
    params(AccountQuery),
    responses(
        (status = 200, body = Vec<VolumeView>),
        (status = 401, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn list(
    State(api): State<Api>,
    reader: Reader,
    Query(query): Query<AccountQuery>,
) -> Result<Json<Vec<VolumeView>>, ApiProblem> {
    let account = reader.account(query.account)?;
    Ok(Json(api.parts.model.read(|model| model.volume_views(account))))
}

/// One volume, by id or name.
#[utoipa::path(
    get,
    path = "/v1/volumes/{volume}",
    tag = "objects",
    operation_id = "show_volume",
    params(("volume" = String, Path, description = "Its id, or its name"), AccountQuery),
    responses(
        (status = 200, body = VolumeView),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "`name_ambiguous`: give `account`")
    )
)]
pub(super) async fn show(
    State(api): State<Api>,
    reader: Reader,
    Path(volume): Path<String>,
    Query(query): Query<AccountQuery>,
) -> Result<Json<VolumeView>, ApiProblem> {
    let query = VolumeQuery { text: volume, account: reader.account(query.account)? };
    let found = api.parts.model.find_volume(&query).await?;
    let volume = found.map_err(|error| problem(&query, error))?;
    Ok(Json(api.parts.model.read(|model| model.volume_view(&volume))))
}

pub(super) fn problem(query: &VolumeQuery, problem: NameProblem) -> ApiProblem {
    match problem {
        NameProblem::Unknown => ApiProblem::not_found(format!("there is no volume {}", query.text)),
        NameProblem::Ambiguous(accounts) => ApiProblem::ambiguous(&query.text, &accounts),
    }
}
