//! `/v1/hosts`, `/v1/operators` and `/v1/accounts`.

use axum::Json;
use axum::extract::State;
use dagger_api::{
    AccountSummary, AccountView, HostView, OperatorView, Problem, ProposalView, UsageView,
};
use dagger_payload::id::{AccountId, CommitIndex};
use dagger_payload::key::PublicKey;
use dagger_payload::roster::{Roster, Seat};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::cluster::Links;
use super::problem::ApiProblem;
use super::reader::Reader;
use super::request::{Path, Query};
use crate::model::LookBack;

/// The hosts, what their VMs take, and whether this host's ledger reaches them.
#[utoipa::path(
    get,
    path = "/v1/hosts",
    tag = "objects",
    responses((status = 200, body = Vec<HostView>))
)]
pub(super) async fn hosts(State(api): State<Api>) -> Json<Vec<HostView>> {
    // Without the ledger the hosts are still known, only the links are not.
    let status = api.ledger_status().await.ok();
    let judged = status.as_ref().map(|status| status.judged);
    let links = Links::of(status.as_ref());
    Json(api.parts.model.read(|model| {
        let judged = judged.unwrap_or_default().max(model.judged());
        model.host_views(judged, |host| links.to(host))
    }))
}

/// The operators, with their keys and hosts; those that left come last.
#[utoipa::path(
    get,
    path = "/v1/operators",
    tag = "objects",
    responses((status = 200, body = Vec<OperatorView>))
)]
pub(super) async fn operators(State(api): State<Api>) -> Json<Vec<OperatorView>> {
    let judged = api.ledger_status().await.map(|status| status.judged).unwrap_or_default();
    Json(api.parts.model.read(|model| {
        let judged = judged.max(model.judged());
        model.members().operator_views(judged)
    }))
}

/// What operators propose, who approves, and how it stands.
#[utoipa::path(
    get,
    path = "/v1/proposals",
    tag = "objects",
    responses((status = 200, body = Vec<ProposalView>))
)]
pub(super) async fn proposals(State(api): State<Api>) -> Json<Vec<ProposalView>> {
    Json(api.parts.model.read(|model| model.members().proposal_views()))
}

/// All seats ever given, by number: what the ledger of a new host needs to find its peers.
#[utoipa::path(
    get,
    path = "/v1/roster",
    tag = "objects",
    responses((status = 200, body = Vec<Seat>))
)]
pub(super) async fn roster(State(api): State<Api>) -> Json<Roster> {
    Json(api.parts.model.read(|model| model.members().roster().clone()))
}

/// Query of `GET /v1/accounts`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AccountsQuery {
    /// Only the account for which this key signs: `ssh-ed25519 ...`.
    #[param(value_type = Option<String>)]
    key: Option<PublicKey>,
}

/// The accounts.
#[utoipa::path(
    get,
    path = "/v1/accounts",
    tag = "objects",
    params(AccountsQuery),
    responses(
        (status = 200, body = Vec<AccountSummary>),
        (status = 401, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn accounts(
    State(api): State<Api>,
    reader: Reader,
    Query(query): Query<AccountsQuery>,
) -> Json<Vec<AccountSummary>> {
    let key = query.key.as_ref();
    let mut summaries = api.parts.model.read(|model| model.account_summaries(key));
    summaries.retain(|summary| reader.sees(summary.id));
    Json(summaries)
}

/// One account with its grants and what its VMs take.
#[utoipa::path(
    get,
    path = "/v1/accounts/{account}",
    tag = "objects",
    params(("account" = AccountId, Path, description = "Its id")),
    responses(
        (status = 200, body = AccountView),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn account(
    State(api): State<Api>,
    reader: Reader,
    Path(account): Path<AccountId>,
) -> Result<Json<AccountView>, ApiProblem> {
    reader.account(Some(account))?;
    let view = api.parts.model.read(|model| model.account_view(&account));
    let unknown = || ApiProblem::not_found(format!("there is no account {account}"));
    view.map(Json).ok_or_else(unknown)
}

/// Query of `GET /v1/accounts/{account}/usage`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UsageQuery {
    /// Read the meters after this commit; the newest one if not given.
    commit: Option<CommitIndex>,
}

/// What an account has used, by host and VM: the same from every host for the same commit.
#[utoipa::path(
    get,
    path = "/v1/accounts/{account}/usage",
    tag = "objects",
    params(("account" = AccountId, Path, description = "Its id"), UsageQuery),
    responses(
        (status = 200, body = UsageView),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`not_judged_yet`: this host has not come to that commit; `overloaded`")
    )
)]
pub(super) async fn usage(
    State(api): State<Api>,
    reader: Reader,
    Path(account): Path<AccountId>,
    Query(query): Query<UsageQuery>,
) -> Result<Json<UsageView>, ApiProblem> {
    reader.account(Some(account))?;
    let walk = move |back: &LookBack| back.usage(&account, query.commit);
    let usage = api.parts.model.look_back(reader.walk(), walk).await?;
    let later = || ApiProblem::not_judged("this host has not judged that commit yet");
    usage.map(Json).ok_or_else(later)
}
