//! `POST /v1/vms/{vm}/local-stop`: the operator of a host switches a machine off by hand.
//!
//! Owns the way in: only through the host's own socket, by id, or by name where the history is
//! known. Needs neither ledger nor quorum: the machines' half writes the word down and acts on it,
//! and the report follows when it can be ordered.

use axum::Json;
use axum::extract::{Request, State};
use dagger_api::{LocalStop, LocalStopView, Problem, Sight};
use dagger_payload::id::{Generation, VmId};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::guard::Door;
use super::problem::ApiProblem;
use super::request::{AccountQuery, Path, Query, read_body};
use super::{Api, Shared, vms};
use crate::handover::{LocalStopRequest, NoSuchMachine};
use crate::limits::{
    API_SMALL_BODY_BYTES_MAX, LOCAL_STOP_LOOK_EVERY, LOCAL_STOP_REASON_BYTES_MAX,
    LOCAL_STOP_TAKE_WAIT_MAX, LOCAL_STOP_WAIT_MAX,
};
use crate::model::{NameProblem, VmQuery};

/// Switches a machine of this host off, also without a ledger; only over the Unix socket.
///
/// It stays off until its owner asks for something newer. The host tells the ledger once that can
/// take it.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/local-stop",
    tag = "host",
    params(("vm" = String, Path, description = "Its id, or its name where the history is known"), AccountQuery),
    request_body(content = LocalStop),
    responses(
        (status = 200, body = LocalStopView, description = "It is written down; `sight` says whether it is off yet"),
        (status = 403, body = Problem, content_type = "application/problem+json",
            description = "`unix_socket_only`"),
        (status = 404, body = Problem, content_type = "application/problem+json",
            description = "This host has no such machine"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "`name_ambiguous`: give `account`"),
        (status = 503, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn local_stop(
    State(api): State<Api>,
    Path(vm): Path<String>,
    Query(query): Query<AccountQuery>,
    request: Request,
) -> Result<Json<LocalStopView>, ApiProblem> {
    if !matches!(request.extensions().get::<Door>(), Some(Door::Unix)) {
        return Err(ApiProblem::unix_only("it is for who operates this host"));
    }
    let body = read_body(request, API_SMALL_BODY_BYTES_MAX).await?;
    let stop: LocalStop = serde_json::from_slice(&body)
        .map_err(|error| ApiProblem::malformed(format!("the body: {error}")))?;
    let is_reason = (1..=LOCAL_STOP_REASON_BYTES_MAX).contains(&stop.reason.len())
        && !stop.reason.chars().any(char::is_control);
    if !is_reason {
        let rule = format!("reason: 1 to {LOCAL_STOP_REASON_BYTES_MAX} bytes on one line");
        return Err(ApiProblem::malformed(rule));
    }
    let vm = named(&api, &VmQuery { text: vm, account: query.account }).await?;
    let generation = take(&api, vm, stop).await?;
    let sight = until_off(&api, vm).await;
    Ok(Json(LocalStopView { vm, generation, sight }))
}

/// The VM that is meant; an id is taken at its word, since the history may not be known.
async fn named(api: &Shared, query: &VmQuery) -> Result<VmId, ApiProblem> {
    // The past stands on a disk, which may be what is in trouble: an id needs no look at it.
    let known = api.parts.model.read(|model| model.find_vm(query).map(|vm| vm.id));
    if let (Err(NameProblem::Unknown), Ok(id)) = (&known, query.text.parse()) {
        return Ok(id);
    }
    match api.parts.model.find_vm(query).await? {
        Ok(vm) => Ok(vm.id),
        Err(NameProblem::Unknown) => Err(ApiProblem::not_found(format!(
            "no VM called {} is known; without its history a machine is named by its id{}",
            query.text,
            seen_here(api)
        ))),
        Err(ambiguous) => Err(vms::problem(query, ambiguous)),
    }
}

/// What the operator may have meant.
fn seen_here(api: &Shared) -> String {
    let running = |sight: &Sight| *sight == Sight::Running;
    let ids: Vec<_> = api.parts.board.read(|sights| {
        let here = sights.vms.iter().filter(|(_, vm)| running(&vm.sight));
        here.map(|(id, _)| id.to_string()).collect()
    });
    match ids.is_empty() {
        true => String::new(),
        false => format!(": {} run here", ids.join(", ")),
    }
}

async fn take(api: &Shared, vm: VmId, stop: LocalStop) -> Result<Generation, ApiProblem> {
    let (reply, answer) = oneshot::channel();
    let away = || ApiProblem::overloaded("the machines' half does not answer");
    let request = LocalStopRequest { vm, manner: stop.manner, reason: stop.reason, reply };
    api.parts.local_stops.try_send(request).map_err(|_| away())?;
    let answer = timeout(LOCAL_STOP_TAKE_WAIT_MAX, answer).await.map_err(|_| away())?;
    answer.map_err(|_| away())?.map_err(|NoSuchMachine| {
        let what = "is neither seen on this host nor in its journal";
        ApiProblem::not_found(format!("the VM {vm} {what}{}", seen_here(api)))
    })
}

/// Waits until the machine is off, as long as the longest ladder takes.
async fn until_off(api: &Shared, vm: VmId) -> Sight {
    let end = Instant::now() + LOCAL_STOP_WAIT_MAX;
    let mut look = interval(LOCAL_STOP_LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let sight = api.parts.board.read(|sights| sights.vms.get(&vm).map(|vm| vm.sight));
        let sight = sight.unwrap_or(Sight::Unknown);
        let is_off = matches!(sight, Sight::Stopped | Sight::Absent);
        if is_off || Instant::now() >= end || api.stop.is_cancelled() {
            return sight;
        }
    }
}
