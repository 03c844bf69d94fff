//! `/v1/proofs`: what stands in the judged state, for somebody who believes nobody.
//!
//! Owns who may ask (whoever may see the object itself) and which documents go with a proof. Makes
//! none: the processor does, and the ledger adds the headers of a quorum. Whoever gets one checks
//! it with the genesis alone.

use axum::Json;
use axum::extract::State;
use dagger_api::Problem;
use dagger_api::proof::{ProofDocument, ProofView};
use dagger_bus::ledger::{Answer, Call};
use dagger_bus::limits::ANSWER_WAIT_MAX;
use dagger_payload::attested::AttestedProof;
use dagger_payload::id::{
    AccountId, AuthorIndex, Epoch, HostId, OperatorId, PayloadDigest, VmId, VolumeId,
};
use dagger_payload::name::{ImageName, Name};
use dagger_payload::proven::Proven;
use dagger_payload::state_tree::Subject;

use super::problem::ApiProblem;
use super::reader::Reader;
use super::request::{AccountQuery, Path, Query};
use super::{Api, Shared, mixed_up, vms, volumes};
use crate::model::{LookBack, LookExtent, NameProblem, VmQuery, VolumeQuery};

/// Proves what a VM is; by the id of none that there is no such VM.
///
/// Of a VM of somebody else a session learns as little here as elsewhere.
#[utoipa::path(
    get,
    path = "/v1/proofs/vm/{vm}",
    tag = "proofs",
    operation_id = "prove_vm",
    params(("vm" = String, Path, description = "Its id, or its name"), AccountQuery),
    responses(
        (status = 200, body = ProofView),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "`name_ambiguous`: give `account`"),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`not_attested`, `ledger_unavailable`: not now")
    )
)]
pub(super) async fn vm(
    State(api): State<Api>,
    reader: Reader,
    Path(vm): Path<String>,
    Query(query): Query<AccountQuery>,
) -> Result<Json<ProofView>, ApiProblem> {
    let query = VmQuery { text: vm, account: reader.account(query.account)? };
    let found = api.parts.model.find_vm(&query).await?.map(|vm| vm.id);
    let id = match (found, query.text.parse::<VmId>()) {
        (Ok(id), _) => id,
        (Err(NameProblem::Unknown), Ok(id)) if reader == Reader::All => id,
        (Err(problem), _) => return Err(vms::problem(&query, problem)),
    };
    prove(&api, Subject::Vm(id)).await
}

/// Proves what a volume is; by the id of none that there is no such volume.
#[utoipa::path(
    get,
    path = "/v1/proofs/volume/{volume}",
    tag = "proofs",
    operation_id = "prove_volume",
    params(("volume" = String, Path, description = "Its id, or its name"), AccountQuery),
    responses(
        (status = 200, body = ProofView),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "`name_ambiguous`: give `account`"),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`not_attested`, `ledger_unavailable`: not now")
    )
)]
pub(super) async fn volume(
    State(api): State<Api>,
    reader: Reader,
    Path(volume): Path<String>,
    Query(query): Query<AccountQuery>,
) -> Result<Json<ProofView>, ApiProblem> {
    let query = VolumeQuery { text: volume, account: reader.account(query.account)? };
    let found = api.parts.model.find_volume(&query).await?.map(|volume| volume.id);
    let id = match (found, query.text.parse::<VolumeId>()) {
        (Ok(id), _) => id,
        (Err(NameProblem::Unknown), Ok(id)) if reader == Reader::All => id,
        (Err(problem), _) => return Err(volumes::problem(&query, problem)),
    };
    prove(&api, Subject::Volume(id)).await
}

/// Proves what an account is: its keys and grants.
#[utoipa::path(
    get,
    path = "/v1/proofs/account/{account}",
    tag = "proofs",
    operation_id = "prove_account",
    params(("account" = AccountId, Path, description = "Its id")),
    responses(
        (status = 200, body = ProofView),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`not_attested`, `ledger_unavailable`: not now")
    )
)]
pub(super) async fn account(
    State(api): State<Api>,
    reader: Reader,
    Path(account): Path<AccountId>,
) -> Result<Json<ProofView>, ApiProblem> {
    reader.account(Some(account))?;
    prove(&api, Subject::Account(account)).await
}

/// Proves what an account's deleted VMs and volumes have used on one host.
#[utoipa::path(
    get,
    path = "/v1/proofs/usage/{account}/{host}",
    tag = "proofs",
    operation_id = "prove_usage",
    params(
        ("account" = AccountId, Path, description = "Its id"),
        ("host" = HostId, Path, description = "The host's id")
    ),
    responses(
        (status = 200, body = ProofView),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`not_attested`, `ledger_unavailable`: not now")
    )
)]
pub(super) async fn usage(
    State(api): State<Api>,
    reader: Reader,
    Path((account, host)): Path<(AccountId, HostId)>,
) -> Result<Json<ProofView>, ApiProblem> {
    reader.account(Some(account))?;
    prove(&api, Subject::Usage(account, host)).await
}

/// Proves what a host offers and with which keys it signs.
#[utoipa::path(
    get,
    path = "/v1/proofs/host/{host}",
    tag = "proofs",
    operation_id = "prove_host",
    params(("host" = String, Path, description = "Its id, or its name")),
    responses(
        (status = 200, body = ProofView),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`not_attested`, `ledger_unavailable`: not now")
    )
)]
pub(super) async fn host(
    State(api): State<Api>,
    Path(host): Path<String>,
) -> Result<Json<ProofView>, ApiProblem> {
    let named = |name: &Name| api.parts.model.read(|model| model.host_named(name));
    let id = host.parse::<HostId>().ok().or_else(|| named(&host.parse().ok()?));
    let unknown = || ApiProblem::not_found(format!("there is no host {host}"));
    prove(&api, Subject::Host(id.ok_or_else(unknown)?)).await
}

/// Proves which file an image is, and who says so.
#[utoipa::path(
    get,
    path = "/v1/proofs/image/{publisher}/{image}",
    tag = "proofs",
    operation_id = "prove_image",
    params(
        ("publisher" = String, Path, description = "What stands before the slash of its name"),
        ("image" = String, Path, description = "What stands behind it")
    ),
    responses(
        (status = 200, body = ProofView),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`not_attested`, `ledger_unavailable`: not now")
    )
)]
pub(super) async fn image(
    State(api): State<Api>,
    Path((publisher, image)): Path<(String, String)>,
) -> Result<Json<ProofView>, ApiProblem> {
    let name = format!("{publisher}/{image}");
    let name: ImageName =
        name.parse().map_err(|error| ApiProblem::malformed(format!("{name}: {error}")))?;
    prove(&api, Subject::Image(name)).await
}

/// Proves that a payload was ordered, where, and what was decided; or that none is remembered.
///
/// The state remembers a payload until its own `not_after_ms`. Afterwards what it made still names
/// it: prove that.
#[utoipa::path(
    get,
    path = "/v1/proofs/payload/{digest}",
    tag = "proofs",
    operation_id = "prove_payload",
    params(("digest" = PayloadDigest, Path, description = "The payload's digest")),
    responses(
        (status = 200, body = ProofView),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`not_attested`, `ledger_unavailable`: not now")
    )
)]
pub(super) async fn payload(
    State(api): State<Api>,
    Path(digest): Path<PayloadDigest>,
) -> Result<Json<ProofView>, ApiProblem> {
    prove(&api, Subject::Payload(digest)).await
}

/// Proves whose seat it is, with which key its ledger signs, and whether anybody sits there.
#[utoipa::path(
    get,
    path = "/v1/proofs/seat/{seat}",
    tag = "proofs",
    operation_id = "prove_seat",
    params(("seat" = String, Path, description = "Its number, or the name of its host")),
    responses(
        (status = 200, body = ProofView),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`not_attested`, `ledger_unavailable`: not now")
    )
)]
pub(super) async fn seat(
    State(api): State<Api>,
    Path(seat): Path<String>,
) -> Result<Json<ProofView>, ApiProblem> {
    let named = |name: &Name| api.parts.model.read(|model| model.members().seat_named(name));
    let number = seat.parse::<u16>().ok().map(AuthorIndex);
    let index = number.or_else(|| named(&seat.parse().ok()?));
    let unknown = || ApiProblem::not_found(format!("no host is or was called {seat}"));
    prove(&api, Subject::Seat(index.ok_or_else(unknown)?)).await
}

/// Proves who votes in an epoch, and by which version of the rules it is judged.
#[utoipa::path(
    get,
    path = "/v1/proofs/epoch/{epoch}",
    tag = "proofs",
    operation_id = "prove_epoch",
    params(("epoch" = u64, Path, description = "Its number; the first one is 0")),
    responses(
        (status = 200, body = ProofView),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`not_attested`, `ledger_unavailable`: not now")
    )
)]
pub(super) async fn epoch(
    State(api): State<Api>,
    Path(epoch): Path<Epoch>,
) -> Result<Json<ProofView>, ApiProblem> {
    prove(&api, Subject::Epoch(epoch)).await
}

/// Proves who an operator is, which key signs for him, and whether he takes part.
#[utoipa::path(
    get,
    path = "/v1/proofs/operator/{operator}",
    tag = "proofs",
    operation_id = "prove_operator",
    params(("operator" = String, Path, description = "His id, or his name")),
    responses(
        (status = 200, body = ProofView),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`not_attested`, `ledger_unavailable`: not now")
    )
)]
pub(super) async fn operator(
    State(api): State<Api>,
    Path(operator): Path<String>,
) -> Result<Json<ProofView>, ApiProblem> {
    let named = |name: &Name| api.parts.model.read(|model| model.members().operator_named(name));
    let id = operator.parse::<OperatorId>().ok().or_else(|| named(&operator.parse().ok()?));
    let unknown = || ApiProblem::not_found(format!("no operator is or was called {operator}"));
    prove(&api, Subject::Operator(id.ok_or_else(unknown)?)).await
}

/// Proves what is proposed and who has approved; or that no such proposal is pending.
#[utoipa::path(
    get,
    path = "/v1/proofs/proposal/{proposal}",
    tag = "proofs",
    operation_id = "prove_proposal",
    params(("proposal" = PayloadDigest, Path, description = "Its id")),
    responses(
        (status = 200, body = ProofView),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`not_attested`, `ledger_unavailable`: not now")
    )
)]
pub(super) async fn proposal(
    State(api): State<Api>,
    Path(proposal): Path<PayloadDigest>,
) -> Result<Json<ProofView>, ApiProblem> {
    prove(&api, Subject::Proposal(proposal)).await
}

/// Proves what everything ordered and judged so far adds up to, so that an exported history is
/// believed without believing whoever exported it.
#[utoipa::path(
    get,
    path = "/v1/proofs/order",
    tag = "proofs",
    operation_id = "prove_order",
    responses(
        (status = 200, body = ProofView),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`not_attested`, `ledger_unavailable`: not now")
    )
)]
pub(super) async fn order(State(api): State<Api>) -> Result<Json<ProofView>, ApiProblem> {
    prove(&api, Subject::Order).await
}

async fn prove(api: &Shared, subject: Subject) -> Result<Json<ProofView>, ApiProblem> {
    let call = Call::Prove { subject: subject.clone() };
    let proof = match api.parts.ledger.ask(call, ANSWER_WAIT_MAX).await? {
        Answer::Proof { proof: Some(proof) } => proof,
        Answer::Proof { proof: None } => return Err(ApiProblem::not_attested()),
        Answer::Unavailable { reason } => return Err(reason.into()),
        Answer::Receipt { .. }
        | Answer::Standing { .. }
        | Answer::Status { .. }
        | Answer::Refused { .. }
        | Answer::Evidence { .. }
        | Answer::Prediction { .. } => return Err(mixed_up()),
    };
    let documents = documents(api, &subject, &proof).await?;
    Ok(Json(ProofView::new(api.parts.cluster, subject, &proof, documents)))
}

/// The documents that the proven object names.
async fn documents(
    api: &Shared,
    subject: &Subject,
    proof: &AttestedProof,
) -> Result<Vec<ProofDocument>, ApiProblem> {
    let defect = |why: &dyn std::fmt::Display| {
        ApiProblem::internal(format!("this host's own proof does not hold: {why}"))
    };
    let root = &proof.attested.end.state_root;
    let shown = proof.state.verify(root, subject).map_err(|error| defect(&error))?;
    let Some(value) = shown else { return Ok(Vec::new()) };
    let object = Proven::read(subject, value).map_err(|error| defect(&error))?;
    let mut digests: Vec<_> =
        object.causes(subject).into_iter().map(|(_, cause)| cause.digest).collect();
    digests.sort_unstable();
    digests.dedup();
    let look = move |back: &LookBack| {
        let signed = digests.iter().filter_map(|each| back.signed_document(each).transpose());
        let document = |(document, signature)| ProofDocument { document, signature };
        signed.map(|signed| signed.map(document)).collect()
    };
    Ok(api.parts.model.look_back(LookExtent::Glance, look).await?)
}
