//! `/v1/health`: how each part of this host is.
//!
//! Owns what counts as well. The metrics say the same as numbers, so that an alert and a look
//! agree. Called by the router and by `cluster::metrics`.

use axum::Json;
use axum::extract::State;
use dagger_api::{HealthPart, HealthStatus, HealthView, LedgerView};

use super::cluster::ledger_view;
use super::{Api, Shared};
use crate::verify::reader::Trust;

/// Every part, and what the ledger said for it.
pub(super) struct Health {
    pub(super) parts: Vec<HealthPart>,
    /// Or why nothing is known of it.
    pub(super) ledger: Result<LedgerView, String>,
}

/// How each part of this host is, and why. Always 200: read `status`.
#[utoipa::path(
    get,
    path = "/v1/health",
    tag = "host",
    responses((status = 200, body = HealthView))
)]
pub(super) async fn health(State(api): State<Api>) -> Json<HealthView> {
    let parts = look(&api).await.parts;
    let well = parts.iter().all(|part| part.status == HealthStatus::Ok);
    let status = if well { HealthStatus::Ok } else { HealthStatus::Degraded };
    Json(HealthView { status, parts })
}

/// Asks the ledger once; everything else is at hand.
pub(super) async fn look(api: &Shared) -> Health {
    let ledger = match api.ledger_status().await {
        Ok(status) => Ok(ledger_view(api, status)),
        Err(_) => Err("unknown: the ledger does not answer".to_owned()),
    };
    let parts = vec![
        part("ledger", ledger_health(api)),
        part("quorum", quorum_health(&ledger)),
        part("processor", processor_health(api)),
        part("history", history_health(api)),
        part("hypervisor", hypervisor_health(api)),
    ];
    Health { parts, ledger }
}

fn part(name: &str, health: Result<String, String>) -> HealthPart {
    let (status, detail) = match health {
        Ok(detail) => (HealthStatus::Ok, detail),
        Err(detail) => (HealthStatus::Degraded, detail),
    };
    HealthPart { name: name.to_owned(), status, detail }
}

fn ledger_health(api: &Shared) -> Result<String, String> {
    api.parts.ledger.reached()?;
    let stream = api.parts.stream.borrow().clone();
    stream.map_err(|why| format!("the release stream is down: {why}"))?;
    Ok("answers, and its releases are followed".to_owned())
}

fn quorum_health(ledger: &Result<LedgerView, String>) -> Result<String, String> {
    let ledger = ledger.as_ref().map_err(Clone::clone)?;
    match &ledger.unavailable {
        Some(reason) => Err(reason.clone()),
        None => Ok(format!(
            "{} of {} voters reached, {} needed",
            ledger.reached,
            ledger.epoch.voters.len(),
            ledger.quorum
        )),
    }
}

fn processor_health(api: &Shared) -> Result<String, String> {
    let key = api.parts.seal.borrow().clone()?;
    Ok(format!("seals releases with {}", key.fingerprint()))
}

fn history_health(api: &Shared) -> Result<String, String> {
    let progress = api.parts.model.progress();
    match progress.trust {
        Trust::Hold(why) => return Err(format!("on hold: {why}")),
        Trust::Reading(what) => return Err(what),
        Trust::CaughtUp => {}
    }
    if let Some((author, commit)) = progress.contradicting.first() {
        let name = api.parts.model.read(|model| model.members().seat_name(*author).cloned());
        let name = name.map(|name| name.to_string());
        let name = name.unwrap_or_else(|| author.to_string());
        return Err(format!(
            "{name} attests another history at commit {commit}, a quorum attests this one: that \
             member is broken or lies"
        ));
    }
    Ok(format!(
        "judged up to commit {}, attested up to commit {}",
        progress.judged, progress.attested
    ))
}

fn hypervisor_health(api: &Shared) -> Result<String, String> {
    let (hypervisor, hold) =
        api.parts.board.read(|sights| (sights.hypervisor.clone(), sights.hold.clone()));
    if let Some(why) = hold {
        return Err(format!("on hold: {why}"));
    }
    hypervisor.unwrap_or_else(|| Err("not asked yet".to_owned()))
}
