//! `/v1/log`: the ordered history, payload by payload, for those who audit it.

use axum::Json;
use axum::extract::State;
use dagger_api::Problem;
use dagger_api::log::LogView;
use dagger_payload::id::Position;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::problem::ApiProblem;
use super::reader::Reader;
use super::request::Query;
use crate::limits::{LOG_ENTRIES_DEFAULT, LOG_ENTRIES_MAX, LOG_LOOKED_AT_MAX};
use crate::model::{LogQuery, LookBack};

/// Query of `GET /v1/log`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Part {
    /// From this position on; the newest payloads if not given.
    #[param(value_type = Option<u64>)]
    from: Option<Position>,
    /// How many payloads at most; 100 if not given, at most 1000.
    limit: Option<usize>,
}

/// What was ordered, by position: kind, signer and verdict of each payload, also of refused ones.
///
/// A session sees what its account has signed, and without an account nothing; an operator's key
/// and the Unix socket see all.
#[utoipa::path(
    get,
    path = "/v1/log",
    tag = "payloads",
    params(Part),
    responses(
        (status = 200, body = LogView),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`overloaded`")
    )
)]
pub(super) async fn log(
    State(api): State<Api>,
    reader: Reader,
    Query(part): Query<Part>,
) -> Result<Json<LogView>, ApiProblem> {
    let query = LogQuery {
        from: part.from,
        entries_max: part.limit.unwrap_or(LOG_ENTRIES_DEFAULT).min(LOG_ENTRIES_MAX),
        looked_at_max: LOG_LOOKED_AT_MAX,
    };
    // Of who has no account nothing is told, and nothing is looked through.
    if !reader.is_known(&api) {
        return Ok(Json(LogView { entries: Vec::new(), next: None }));
    }
    let attested = api.parts.model.progress().attested;
    let sees = move |account| reader.sees(account);
    let walk = move |back: &LookBack| back.log(query, attested, &sees);
    Ok(Json(api.parts.model.look_back(reader.walk(), walk).await?))
}
