//! `/v1/vms`: virtual machines and their histories.

use axum::Json;
use axum::extract::State;
use dagger_api::{HistoryView, Problem, VmView};
use dagger_payload::id::AccountId;
use dagger_payload::object::Vm;
use serde::Deserialize;
use utoipa::IntoParams;

use super::cluster::Links;
use super::problem::ApiProblem;
use super::reader::Reader;
use super::request::{AccountQuery, Path, Query};
use super::{Api, Shared};
use crate::model::{LookBack, Model, NameProblem, VmQuery};

/// The VMs that exist (deleted ones have left the list, but not the history).
#[utoipa::path(
    get,
    path = "/v1/vms",
    tag = "objects",
    params(AccountQuery),
    responses(
        (status = 200, body = Vec<VmView>),
        (status = 401, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn list(
    State(api): State<Api>,
    reader: Reader,
    Query(query): Query<AccountQuery>,
) -> Result<Json<Vec<VmView>>, ApiProblem> {
    let account = reader.account(query.account)?;
    let links = Links::of(api.ledger_status().await.ok().as_ref());
    let views = api.parts.board.read(|sights| {
        let all = |model: &Model| model.vm_views(account, api.me, sights, |host| links.to(host));
        api.parts.model.read(all)
    });
    Ok(Json(views))
}

pub(super) fn problem(query: &VmQuery, problem: NameProblem) -> ApiProblem {
    match problem {
        NameProblem::Unknown => ApiProblem::not_found(format!("there is no VM {}", query.text)),
        NameProblem::Ambiguous(accounts) => ApiProblem::ambiguous(&query.text, &accounts),
    }
}

/// One VM, by id or name.
#[utoipa::path(
    get,
    path = "/v1/vms/{vm}",
    tag = "objects",
    params(("vm" = String, Path, description = "Its id, or its name"), AccountQuery),
    responses(
        (status = 200, body = VmView),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "`name_ambiguous`: give `account`")
    )
)]
pub(super) async fn show(
    State(api): State<Api>,
    reader: Reader,
    Path(vm): Path<String>,
    Query(query): Query<AccountQuery>,
) -> Result<Json<VmView>, ApiProblem> {
    let query = VmQuery { text: vm, account: reader.account(query.account)? };
    let links = Links::of(api.ledger_status().await.ok().as_ref());
    let vm = find(&api, &query).await?;
    let view = api.parts.board.read(|sights| {
        let view = |model: &Model| model.vm_view(&vm, api.me, sights, |host| links.to(host));
        api.parts.model.read(view)
    });
    Ok(Json(view))
}

/// The VM that is meant, also a deleted one.
pub(super) async fn find(api: &Shared, query: &VmQuery) -> Result<Vm, ApiProblem> {
    let found = api.parts.model.find_vm(query).await?;
    found.map_err(|error| problem(query, error))
}

/// Query of `GET /v1/vms/{vm}/history`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct HistoryQuery {
    /// Only of this account.
    account: Option<AccountId>,
    /// The steps before those of an earlier answer: its `earlier`.
    before: Option<u64>,
}

/// What happened to a VM, from the signatures that caused it to the reports of the machine: the
/// newest steps, as many as fit into one answer; `earlier` leads to those before.
#[utoipa::path(
    get,
    path = "/v1/vms/{vm}/history",
    tag = "objects",
    params(("vm" = String, Path, description = "Its id, or its name"), HistoryQuery),
    responses(
        (status = 200, body = HistoryView),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "`name_ambiguous`: give `account`")
    )
)]
pub(super) async fn history(
    State(api): State<Api>,
    reader: Reader,
    Path(vm): Path<String>,
    Query(query): Query<HistoryQuery>,
) -> Result<Json<HistoryView>, ApiProblem> {
    let asked = VmQuery { text: vm, account: reader.account(query.account)? };
    let vm = find(&api, &asked).await?;
    let same = api.parts.model.progress().same;
    let walk = move |back: &LookBack| back.history(&vm, query.before, &same);
    Ok(Json(api.parts.model.look_back(reader.walk(), walk).await?))
}
