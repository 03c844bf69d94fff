//! `/v1/cluster`, `/v1/ledger`, `/metrics`, `/v1/problems` and the OpenAPI document: how the
//! answering host is, and how it is spoken to. `/v1/health` is in `health`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use dagger_api::{
    ClusterView, ForkView, HostLink, JunkView, LedgerView, MemberView, Problem, ProblemKind,
};
use dagger_bus::ledger::{ForkStatus, LedgerStatus, LinkStatus, MemberStatus};
use dagger_payload::id::{CommitIndex, HostId, ProtocolVersion};

use super::problem::{ApiProblem, unavailable_text};
use super::{Api, Shared, health};
use crate::metrics::HostNow;
use crate::model::{JunkCount, Members, Model};
use crate::room;

/// Media type of the metrics.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a client needs to make a payload.
#[utoipa::path(
    get,
    path = "/v1/cluster",
    tag = "host",
    responses((status = 200, body = ClusterView))
)]
pub(super) async fn cluster(State(api): State<Api>) -> Json<ClusterView> {
    Json(ClusterView {
        cluster: api.parts.cluster,
        name: api.parts.cluster_name.clone(),
        host: api.me,
        host_name: api.parts.host.name.clone(),
        ledger_time: api.now(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol_max: ProtocolVersion::KNOWN,
    })
}

/// How this host's ledger is: commits, members, quorum.
#[utoipa::path(
    get,
    path = "/v1/ledger",
    tag = "host",
    responses(
        (status = 200, body = LedgerView),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`ledger_unavailable`")
    )
)]
pub(super) async fn ledger(State(api): State<Api>) -> Result<Json<LedgerView>, ApiProblem> {
    let status = api.ledger_status().await?;
    Ok(Json(ledger_view(&api, status)))
}

pub(super) fn ledger_view(api: &Shared, status: LedgerStatus) -> LedgerView {
    api.parts.model.read(|model| LedgerView {
        junk: junk_views(model),
        ..ledger_view_of(model.members(), status)
    })
}

fn ledger_view_of(members: &Members, status: LedgerStatus) -> LedgerView {
    let judged = status.judged;
    let voters = members.epoch_after(judged).committee;
    let is_reached = |member: &&MemberStatus| {
        member.link != LinkStatus::Missing && voters.contains(member.author)
    };
    let reached = status.members.iter().filter(is_reached).count();
    let votes = members.votes(judged);
    let fits = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
    LedgerView {
        epoch: members.epoch_view(members.epoch_after(judged)),
        next_epoch: members.epoch_to_come(judged).map(|next| members.epoch_view(next)),
        cluster: status.cluster,
        committed: status.committed,
        judged: status.judged,
        attested: status.attested,
        position: status.position,
        ledger_time: status.ledger_time,
        round: status.round.0,
        quorum: status.quorum,
        reached: fits(reached),
        faults_survived: fits(votes.hosts_survived()),
        dishonest_operators_survived: fits(votes.operators_survived()),
        waiting: status.waiting,
        store_bytes: status.store_bytes,
        snapshot: status.snapshot,
        pruned_round: status.pruned_round.0,
        pruned_epoch: status.pruned_epoch.0,
        unavailable: status.unavailable.as_ref().map(unavailable_text),
        members: {
            let shown = status.members.into_iter();
            shown.map(|member| member_view(member, members, judged)).collect()
        },
        forks: status.forks.into_iter().map(fork_view).collect(),
        junk: Vec::new(),
    }
}

fn junk_views(model: &Model) -> Vec<JunkView> {
    let views = model.junk().filter_map(|(author, JunkCount { payloads, bytes })| {
        let seat = model.members().roster().seat(author)?;
        let (name, host) = (seat.name.clone(), seat.host);
        Some(JunkView { name, host, seat: author, payloads, bytes })
    });
    views.collect()
}

fn fork_view(fork: ForkStatus) -> ForkView {
    let events = fork.evidence.map(|evidence| vec![evidence.first, evidence.second]);
    ForkView {
        name: fork.name,
        host: fork.host,
        round: fork.evidence.map(|evidence| evidence.round.0),
        events: events.unwrap_or_default(),
    }
}

fn member_view(member: MemberStatus, members: &Members, judged: CommitIndex) -> MemberView {
    MemberView {
        name: member.name,
        host: member.host,
        seat: member.author,
        vote: members.vote(member.author, judged),
        link: link(member.link),
        highest_round: member.highest_round.0,
    }
}

/// How the ledger sees each host.
pub(super) struct Links(BTreeMap<HostId, HostLink>);

impl Links {
    /// As `status` says; without one nothing is known.
    pub(super) fn of(status: Option<&LedgerStatus>) -> Self {
        let members = status.into_iter().flat_map(|status| &status.members);
        Self(members.map(|member| (member.host, link(member.link))).collect())
    }

    /// To this host.
    pub(super) fn to(&self, host: &HostId) -> HostLink {
        self.0.get(host).copied().unwrap_or(HostLink::Unknown)
    }
}

fn link(link: LinkStatus) -> HostLink {
    match link {
        LinkStatus::Own => HostLink::Own,
        LinkStatus::Connected => HostLink::Connected,
        LinkStatus::Missing => HostLink::Missing,
    }
}

/// Metrics for Prometheus (OpenMetrics text).
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "host",
    responses((status = 200, body = String, content_type = "application/openmetrics-text"))
)]
pub(super) async fn metrics(State(api): State<Api>) -> Response {
    let health = health::look(&api).await;
    let storage = api.parts.storage_directory.clone();
    let free = tokio::task::spawn_blocking(move || room::free_bytes(&storage)).await;
    let host = HostNow {
        health: &health.parts,
        ledger: health.ledger.as_ref().ok(),
        storage_free_bytes: free.ok().flatten(),
    };
    let text = api.parts.metrics.scrape(&api.parts.model, &api.parts.board, host);
    ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response()
}

/// This document.
#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    tag = "host",
    responses((status = 200, content_type = "application/json", description = "OpenAPI 3.1"))
)]
pub(super) async fn openapi(State(api): State<Api>) -> Response {
    let text = api.openapi.get().cloned().unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Every code that an error can carry, with what to do about it.
#[utoipa::path(
    get,
    path = "/v1/problems",
    tag = "host",
    responses((status = 200, body = Vec<ProblemKind>))
)]
pub(super) async fn problems() -> Json<Vec<ProblemKind>> {
    Json(super::problem::all_kinds())
}
