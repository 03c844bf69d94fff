//! `/v1/vms`: virtual machines and their histories.

use axum::Json;
use axum::extract::State;
use dagger_api::{HistoryView, Problem, VmView};

use super::Api;
use super::cluster::Links;
use super::problem::ApiProblem;
use super::reader::Reader;
use super::request::{AccountQuery, Path, Query};
use crate::model::{Model, NameProblem, VmQuery};

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
    let view = api.parts.board.read(|sights| {
        api.parts.model.read(|model| {
            let vm = model.find_vm(&query)?;
            Ok(model.vm_view(vm, api.me, sights, |host| links.to(host)))
        })
    });
    view.map(Json).map_err(|error| problem(&query, error))
}

/// What happened to a VM, from the signatures that caused it to the reports of the machine.
#[utoipa::path(
    get,
    path = "/v1/vms/{vm}/history",
    tag = "objects",
    params(("vm" = String, Path, description = "Its id, or its name"), AccountQuery),
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
    Query(query): Query<AccountQuery>,
) -> Result<Json<HistoryView>, ApiProblem> {
    let query = VmQuery { text: vm, account: reader.account(query.account)? };
    let same = api.parts.model.progress().same;
    let view = api.parts.model.read(|model| {
        let vm = model.find_vm(&query)?;
        Ok(model.history(vm, &same))
    });
    view.map(Json).map_err(|error| problem(&query, error))
}
