//! `/v1/fsck`: what on the answering host has no owner, and which owner lacks what.
//!
//! Owns the order of the questions: whose, what is there, whose once more. Compares nothing itself:
//! [`crate::inspection`] does. Changes nothing.

use axum::Json;
use axum::extract::State;
use dagger_api::{FsckView, Problem};
use dagger_payload::object::Vm;
use dagger_payload::volume::Volume;

use super::problem::ApiProblem;
use super::reader::Reader;
use super::{Api, Shared};
use crate::inspection::{self, Found, Owners};
use crate::model::{LookBack, LookExtent, Walker};
use crate::verify::reader::Trust;

/// Disks, machines and units without an owner, and owners without theirs. Changes nothing; for the
/// host's operators.
#[utoipa::path(
    get,
    path = "/v1/fsck",
    tag = "host",
    responses(
        (status = 200, body = FsckView, description = "Read `findings` and `unknown`"),
        (status = 401, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn fsck(
    State(api): State<Api>,
    reader: Reader,
) -> Result<Json<FsckView>, ApiProblem> {
    if reader != Reader::All {
        return Err(ApiProblem::session("only operators see everything on a host"));
    }
    let Some(inspector) = api.parts.board.read(|sights| sights.inspector.clone()) else {
        return Ok(Json(unknown(&api, "machines and disks: the agent is still starting")));
    };
    let before = owners(&api, &Gone::default());
    let found = inspector.look().await;
    let gone = gone(&api, &found).await?;
    let after = owners(&api, &gone);
    let view = match (before, after) {
        (Ok(before), Ok(after)) => inspection::compare(api.me, &before, &after, found),
        (Err(why), _) | (_, Err(why)) => unknown(&api, &why),
    };
    let storage_directory = Some(api.parts.storage_directory.display().to_string());
    Ok(Json(FsckView { storage_directory, ..view }))
}

/// Deleted VMs and volumes of which something is left.
#[derive(Default)]
struct Gone {
    vms: Vec<Vm>,
    volumes: Vec<Volume>,
}

async fn gone(api: &Shared, found: &Found) -> Result<Gone, ApiProblem> {
    let (vms, volumes) = found.in_quarantine();
    let look = move |back: &LookBack| {
        Ok(Gone { vms: back.gone_vms(&vms)?, volumes: back.gone_volumes(&volumes)? })
    };
    Ok(api.parts.model.look_back(LookExtent::Walk(Walker::Operator), look).await?)
}

/// Without the whole history nothing is known to have no owner.
fn owners(api: &Shared, gone: &Gone) -> Result<Owners, String> {
    match api.parts.model.progress().trust {
        Trust::CaughtUp => Ok(api.parts.model.read(|model| {
            Owners::among(model.vms().chain(&gone.vms), api.me)
                .and_volumes(model.volumes().chain(&gone.volumes), api.me)
                .and_images(model.images())
        })),
        Trust::Reading(what) => Err(format!("owners: the history is being read: {what}")),
        Trust::Hold(why) => Err(format!("owners: on hold: {why}")),
    }
}

fn unknown(api: &Shared, why: &str) -> FsckView {
    FsckView { unknown: vec![why.to_owned()], ..FsckView::of(api.me) }
}
