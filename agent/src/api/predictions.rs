//! `/v1/predictions`: what would come of a request if it were signed and ordered now.
//!
//! Owns who may ask: whoever may see the objects of the account that would sign. Has no rule of its
//! own: the processor answers. Nothing is kept, and nothing needs a signature or a quorum.

use axum::Json;
use axum::extract::{Request, State};
use dagger_api::{PredictionView, Problem};
use dagger_bus::ledger::{Answer, Call};
use dagger_bus::limits::ANSWER_WAIT_MAX;
use dagger_payload::limits::PAYLOAD_BYTES_MAX;
use dagger_payload::object::Effect;
use dagger_payload::payload::Payload;

use super::problem::ApiProblem;
use super::reader::Reader;
use super::request::read_body;
use super::{Api, mixed_up};

/// Says what would come of a document, without ordering it.
///
/// The body is the document that would be signed, without a signature: whoever got a signed one
/// could have it ordered. For a new VM the answer names each host and what speaks against it. The
/// prediction binds nobody; what is ordered meanwhile counts first.
#[utoipa::path(
    post,
    path = "/v1/predictions",
    tag = "payloads",
    request_body(
        content = String, content_type = "application/json",
        description = "The document, at most 64 KiB"
    ),
    responses(
        (status = 200, body = PredictionView, description = "Also when it would be refused: see `refusal`"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = "4XX", body = Problem, content_type = "application/problem+json",
            description = "The document is none"),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`ledger_unavailable`, `overloaded`: not now")
    )
)]
pub(super) async fn predict(
    State(api): State<Api>,
    reader: Reader,
    request: Request,
) -> Result<Json<PredictionView>, ApiProblem> {
    let document = read_body(request, PAYLOAD_BYTES_MAX).await?;
    let signer = Payload::read(&document)?.signer;
    reader.account(Some(api.parts.model.read(|model| model.account_signed_by(&signer))))?;
    match api.parts.ledger.ask(Call::Predict { document }, ANSWER_WAIT_MAX).await? {
        Answer::Prediction { prediction } => {
            let vm = prediction.effects.into_iter().find_map(|effect| match effect {
                Effect::Vm(vm) => Some(*vm),
                _ => None,
            });
            Ok(Json(PredictionView {
                refusal: prediction.refusal,
                vm,
                hosts: prediction.hosts,
                hosts_left_out: prediction.hosts_left_out,
            }))
        }
        Answer::Refused { refusal } => Err(refusal.into()),
        Answer::Unavailable { reason } => Err(reason.into()),
        Answer::Receipt { .. }
        | Answer::Standing { .. }
        | Answer::Status { .. }
        | Answer::Evidence { .. }
        | Answer::Proof { .. } => Err(mixed_up()),
    }
}
