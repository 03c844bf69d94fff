//! `/v1/payloads`: the door for signed requests, and what became of them.
//!
//! What can be told from the bytes alone is refused here, so that a bad request gets its answer
//! also while the rest of the cluster is away. Everything else is the processor's to judge.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use dagger_api::{Attested, PayloadState, PayloadView, Problem, SIGNATURE_HEADER};
use dagger_bus::ledger::{Answer, Call, Standing};
use dagger_bus::limits::ANSWER_WAIT_MAX;
use dagger_payload::id::{PayloadDigest, VmId};
use dagger_payload::limits::{NOT_AFTER_AHEAD_MS_MAX, PAYLOAD_BYTES_MAX};
use dagger_payload::payload::{Payload, SignatureKind, SignedPayload};
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::sshsig::{self, Namespace, SshSigError};
use serde::Deserialize;
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};

use super::problem::ApiProblem;
use super::request::{Path, Query, read_body};
use super::{Api, Shared, mixed_up};
use crate::limits::{
    API_POLL_LOOK_EVERY, API_POLL_WAIT_DEFAULT, API_POLL_WAIT_MAX, API_STATUS_WAIT_MAX,
};
use crate::model::{LookBack, LookExtent};

/// Gives a signed payload to the ledger.
///
/// The body is the exact text that was signed; the same bytes may be sent as often as you like, to
/// any host, and are carried out once.
#[utoipa::path(
    post,
    path = "/v1/payloads",
    tag = "payloads",
    params((
        "dagger-signature" = String, Header,
        description = "What stands between the first and the last line of the `.sig` file of \
`ssh-keygen -Y sign -n dagger`, on one line"
    )),
    request_body(
        content = String, content_type = "application/json",
        description = "The signed document, byte for byte, at most 64 KiB"
    ),
    responses(
        (status = 202, body = PayloadView, description = "Durable on this host, and on its way to be ordered"),
        (status = 200, body = PayloadView, description = "Known already"),
        (status = "4XX", body = Problem, content_type = "application/problem+json",
            description = "Refused; `code` is a refusal code, nothing was ordered"),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`no_quorum`, `ledger_unavailable`, `recovering`, `overloaded`: not now")
    )
)]
pub(super) async fn submit(
    State(api): State<Api>,
    request: Request,
) -> Result<Response, ApiProblem> {
    let headers = request.headers().clone();
    let bytes = read_body(request, PAYLOAD_BYTES_MAX).await?;
    let document = Payload::read(&bytes)?;
    let signature = read_signature(&headers, &document)?;
    let payload =
        SignedPayload { signature_kind: SignatureKind::SshEd25519, signature, bytes: bytes.into() };
    check_signature_and_cluster(&api, &document, &payload)?;
    let digest = payload.digest();
    let vm = document.body.vm(&digest);
    if let Some(view) = judged(&api, digest).await? {
        return Ok((StatusCode::OK, Json(view)).into_response());
    }
    match ask_standing(&api, digest).await {
        Ok(Standing::Unknown {}) => {}
        Ok(standing) => {
            let view = view_of(&api, digest, standing, vm).await?;
            return Ok((StatusCode::OK, Json(view)).into_response());
        }
        // What is too late or too early needs no ledger to be told so.
        Err(away) => return Err(check_time(&api, &document).err().unwrap_or(away)),
    }
    check_time(&api, &document)?;
    let view = submit_to_ledger(&api, payload, vm).await?;
    Ok((StatusCode::ACCEPTED, Json(view)).into_response())
}

fn read_signature(
    headers: &HeaderMap,
    document: &Payload,
) -> Result<dagger_payload::key::Signature, ApiProblem> {
    let refused = |code, detail: String| ApiProblem::from(Refusal::new(code, detail));
    let mut values = headers.get_all(SIGNATURE_HEADER).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        let detail = format!("the header {SIGNATURE_HEADER} must stand there once");
        return Err(refused(RefusalCode::SignatureInvalid, detail));
    };
    let text = value.to_str().unwrap_or_default();
    let read = sshsig::from_base64(text, Namespace::Payload).map_err(|error| {
        let code = match error {
            SshSigError::WrongKeyType => RefusalCode::SignerUnsupported,
            SshSigError::Malformed(_) | SshSigError::WrongNamespace(_) | SshSigError::WrongHash => {
                RefusalCode::SignatureInvalid
            }
        };
        refused(code, format!("{SIGNATURE_HEADER}: {error}"))
    })?;
    if read.signer == document.signer {
        return Ok(read.signature);
    }
    let detail = format!(
        "the signature is by {}, and the document names {} as its signer",
        read.signer.fingerprint(),
        document.signer.fingerprint()
    );
    Err(refused(RefusalCode::SignatureInvalid, detail))
}

fn check_signature_and_cluster(
    api: &Shared,
    document: &Payload,
    payload: &SignedPayload,
) -> Result<(), Refusal> {
    if document.cluster != api.parts.cluster {
        let detail = format!(
            "the document is for cluster {}, this is {}",
            document.cluster, api.parts.cluster
        );
        return Err(Refusal::new(RefusalCode::ClusterWrong, detail));
    }
    if payload.is_signed_by(&document.signer) {
        return Ok(());
    }
    let detail = format!(
        "the signature is not one over these {} bytes by {}",
        payload.bytes.len(),
        document.signer.fingerprint()
    );
    Err(Refusal::new(RefusalCode::SignatureInvalid, detail))
}

fn check_time(api: &Shared, document: &Payload) -> Result<(), ApiProblem> {
    let (now, not_after) = (api.now(), document.not_after);
    if not_after < now {
        let detail = format!("not_after_ms: {not_after} has passed; it is {now} now");
        return Err(Refusal::new(RefusalCode::Expired, detail).into());
    }
    if not_after > now.plus_ms(NOT_AFTER_AHEAD_MS_MAX) {
        let detail = format!("not_after_ms: {not_after} is over 24 hours after {now}");
        return Err(Refusal::new(RefusalCode::NotAfterTooFar, detail).into());
    }
    Ok(())
}

async fn judged(api: &Shared, digest: PayloadDigest) -> Result<Option<PayloadView>, ApiProblem> {
    let attested = api.parts.model.progress().attested;
    let look = move |back: &LookBack| back.payload_view(&digest, attested);
    Ok(api.parts.model.look_back(LookExtent::Glance, look).await?)
}

async fn ask_standing(api: &Shared, digest: PayloadDigest) -> Result<Standing, ApiProblem> {
    let answer = api.parts.ledger.ask(Call::Look { digest }, API_STATUS_WAIT_MAX).await?;
    match answer {
        Answer::Standing { standing } => Ok(standing),
        Answer::Unavailable { reason } => Err(reason.into()),
        Answer::Receipt { .. }
        | Answer::Status { .. }
        | Answer::Refused { .. }
        | Answer::Evidence { .. }
        | Answer::Prediction { .. }
        | Answer::Proof { .. } => Err(mixed_up()),
    }
}

async fn submit_to_ledger(
    api: &Shared,
    payload: SignedPayload,
    vm: Option<VmId>,
) -> Result<PayloadView, ApiProblem> {
    let count = |outcome| api.parts.metrics.count_submission("api", outcome);
    let asked = api.parts.ledger.ask(Call::Submit { payload }, ANSWER_WAIT_MAX).await;
    match asked.inspect_err(|_| count("unavailable"))? {
        Answer::Receipt { digest, standing } => {
            count("received");
            view_of(api, digest, standing, vm).await
        }
        Answer::Refused { refusal } => {
            count("refused");
            Err(refusal.into())
        }
        Answer::Unavailable { reason } => {
            count("unavailable");
            Err(reason.into())
        }
        Answer::Standing { .. }
        | Answer::Status { .. }
        | Answer::Evidence { .. }
        | Answer::Prediction { .. }
        | Answer::Proof { .. } => Err(mixed_up()),
    }
}

async fn view_of(
    api: &Shared,
    digest: PayloadDigest,
    standing: Standing,
    vm: Option<VmId>,
) -> Result<PayloadView, ApiProblem> {
    // It may have been judged while the ledger was asked.
    if let Some(view) = judged(api, digest).await? {
        return Ok(view);
    }
    let (state, position) = match standing {
        Standing::Unknown {} => {
            let detail = format!("this host knows no payload {digest}");
            return Err(ApiProblem::not_found(detail));
        }
        Standing::Received {} => (PayloadState::Received, None),
        Standing::Ordered { position, .. } => (PayloadState::Ordered, Some(position)),
    };
    Ok(PayloadView { digest, state, position, attested: Attested::No, refusal: None, vm })
}

/// What a long poll waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Wait {
    /// It has a position.
    Ordered,
    /// It is judged: accepted or refused.
    Accepted,
    /// It is judged, and a quorum attests that; or it is refused.
    Attested,
}

/// Query of `GET /v1/payloads/{digest}`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ShowQuery {
    /// Answer only when this is reached, or when the time is over.
    #[param(inline)]
    wait: Option<Wait>,
    /// How long to wait, in milliseconds; 30000 if not given, at most 60000.
    timeout_ms: Option<u64>,
}

/// Where a payload stands; with `wait`, as soon as it stands there, else after `timeout_ms` as it
/// then is.
#[utoipa::path(
    get,
    path = "/v1/payloads/{digest}",
    tag = "payloads",
    params(("digest" = PayloadDigest, Path, description = "The payload's digest"), ShowQuery),
    responses(
        (status = 200, body = PayloadView),
        (status = 404, body = Problem, content_type = "application/problem+json",
            description = "This host knows no such payload (yet)"),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`ledger_unavailable`: it is not judged here, and the ledger does not answer; \
                `overloaded`: too many wait for payloads")
    )
)]
pub(super) async fn show(
    State(api): State<Api>,
    Path(digest): Path<PayloadDigest>,
    Query(query): Query<ShowQuery>,
) -> Result<Json<PayloadView>, ApiProblem> {
    let Some(wait) = query.wait else {
        return look(&api, digest).await.map(Json);
    };
    let wait_max = query.timeout_ms.map_or(API_POLL_WAIT_DEFAULT, Duration::from_millis);
    let until = Instant::now() + wait_max.min(API_POLL_WAIT_MAX);
    let too_many = |_| ApiProblem::overloaded("too many wait for payloads");
    let _turn = api.polling.try_acquire().map_err(too_many)?;
    let mut turn_for_unknown = None;
    let mut news = api.parts.model.subscribe();
    loop {
        news.mark_unchanged();
        let seen = look(&api, digest).await;
        let done = seen.as_ref().is_ok_and(|view| is_reached(view, wait));
        if done || Instant::now() >= until {
            return seen.map(Json);
        }
        match (&seen, &turn_for_unknown) {
            (Ok(_), _) => turn_for_unknown = None,
            (Err(_), Some(_)) => {}
            (Err(_), None) => {
                let turn = api.polling_for_unknown.try_acquire().map_err(too_many)?;
                turn_for_unknown = Some(turn);
            }
        }
        let pause = until.min(Instant::now() + API_POLL_LOOK_EVERY);
        tokio::select! {
            _ = news.changed() => {}
            () = tokio::time::sleep_until(pause) => {}
            () = api.stop.cancelled() => return seen.map(Json),
        }
    }
}

async fn look(api: &Shared, digest: PayloadDigest) -> Result<PayloadView, ApiProblem> {
    match judged(api, digest).await? {
        Some(view) => Ok(view),
        None => {
            let standing = ask_standing(api, digest).await?;
            view_of(api, digest, standing, None).await
        }
    }
}

fn is_reached(view: &PayloadView, wait: Wait) -> bool {
    match (wait, view.state) {
        (_, PayloadState::Received) => false,
        (_, PayloadState::Refused) | (Wait::Ordered, _) => true,
        (Wait::Accepted | Wait::Attested, PayloadState::Ordered) => false,
        (Wait::Accepted, PayloadState::Accepted) => true,
        (Wait::Attested, PayloadState::Accepted) => view.attested == Attested::Yes,
    }
}
