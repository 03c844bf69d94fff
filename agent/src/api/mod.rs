//! The developers' HTTP API.
//!
//! Owns routes, their documentation (the OpenAPI document is made from the same lines as the
//! router) and everything that is checked before a request may cost anything. Never decides what is
//! allowed: it refuses early what the judge would refuse too, and hands the rest to the ledger.
//! Called once by the daemon ([`serve`]), and by tests ([`router`]).

mod cluster;
mod console;
mod events;
mod exports;
mod fsck;
mod guard;
mod health;
mod image_files;
mod images;
mod local_stop;
mod log;
mod objects;
mod past;
mod payloads;
mod predictions;
mod problem;
mod proofs;
mod reader;
mod request;
mod server;
mod vms;
mod volumes;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use dagger_bus::ledger::{Answer, Call, LedgerStatus};
use dagger_images::ImageStore;
use dagger_payload::id::{ClusterId, HostId, LedgerTime};
use dagger_payload::limits::PAYLOAD_BYTES_MAX;
use dagger_payload::name::Name;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::clock;
use crate::configuration::HostIdentity;
use crate::handover::{ConsoleSender, LocalStopSender, SightBoard};
use crate::limits::{
    API_IMAGE_STREAMS_MAX, API_IMAGE_STREAMS_PER_KEY_MAX, API_IMPORTS_TOGETHER_MAX,
    API_POLLS_FOR_UNKNOWN_MAX, API_POLLS_MAX, API_REQUESTS_TOGETHER_MAX, API_STATUS_WAIT_MAX,
    API_WORK_WAIT_MAX, CONSOLES_MAX, CONSOLES_OF_OPERATORS_MAX, CONSOLES_PER_ACCOUNT_MAX,
    EVENT_STREAMS_MAX, EVENT_STREAMS_PER_ACCOUNT_MAX,
};
use crate::link::releases::StreamState;
use crate::link::requests::LedgerClient;
use crate::link::seal::SealState;
use crate::metrics::Metrics;
use crate::model::{Model, SharedModel};
use crate::observation::ConsoleFiles;
use crate::turns::{AccountTurns, Turns};

pub use guard::{Door, TcpDoor};
pub use problem::{ApiProblem, ProblemCode};
pub use server::serve;

/// What the API shows and asks.
pub struct ApiParts {
    /// The cluster.
    pub cluster: ClusterId,
    /// What the cluster is called.
    pub cluster_name: Name,
    /// This host.
    pub host: HostIdentity,
    /// This host's image files.
    pub images: Arc<ImageStore>,
    /// To the ledger.
    pub ledger: LedgerClient,
    /// What is folded.
    pub model: SharedModel,
    /// What is seen of the machines.
    pub board: SightBoard,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The processor's key, or why there is none.
    pub seal: watch::Receiver<SealState>,
    /// How the release stream is.
    pub stream: watch::Receiver<StreamState>,
    /// To the consoles of this host's machines.
    pub consoles: ConsoleSender,
    /// What the guests of this host's machines have said.
    pub console_files: ConsoleFiles,
    /// Where everything that VMs are made of lies.
    pub storage_directory: PathBuf,
    /// To the switches of this host's machines.
    pub local_stops: LocalStopSender,
}

/// What handlers share.
struct Shared {
    parts: ApiParts,
    me: HostId,
    openapi: OnceLock<String>,
    working: Semaphore,
    working_here: Semaphore,
    importing: Semaphore,
    polling: Semaphore,
    polling_for_unknown: Semaphore,
    streaming: Arc<Semaphore>,
    streams: AccountTurns,
    consoles: Arc<Semaphore>,
    consoles_of_operators: Arc<Semaphore>,
    consoles_of: AccountTurns,
    image_streams: Arc<Semaphore>,
    image_streams_of: Turns<[u8; 32]>,
    stop: CancellationToken,
}

type Api = Arc<Shared>;

impl Shared {
    /// The later of ledger time and this host's clock.
    fn now(&self) -> LedgerTime {
        clock::now(self.parts.model.read(Model::ledger_time))
    }

    async fn ledger_status(&self) -> Result<LedgerStatus, ApiProblem> {
        let answer = self.parts.ledger.ask(Call::Status {}, API_STATUS_WAIT_MAX).await?;
        match answer {
            Answer::Status { status } => Ok(*status),
            Answer::Unavailable { reason } => Err(reason.into()),
            Answer::Receipt { .. }
            | Answer::Standing { .. }
            | Answer::Refused { .. }
            | Answer::Evidence { .. }
            | Answer::Prediction { .. }
            | Answer::Proof { .. } => Err(mixed_up()),
        }
    }
}

/// The ledger answered another question.
fn mixed_up() -> ApiProblem {
    ApiProblem::internal("the ledger answered another question than was asked")
}

/// The document's head; paths and shapes come from the handlers.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "dagger",
        description = "The API of one dagger host. Changes are signed payloads: POST /v1/payloads takes the exact \
signed bytes and their OpenSSH signature; everything else reads. Errors are problem documents (RFC 9457) with a \
stable `code`, the `rule` that was broken if the cluster refused, and the `advice` what to do next; GET /v1/problems \
lists all codes."
    ),
    tags(
        (name = "payloads", description = "Signed requests and what became of them"),
        (name = "objects", description = "What the ordered history has made"),
        (name = "proofs", description = "The same, checkable offline with the genesis alone"),
        (name = "host", description = "How the answering host is")
    )
)]
struct Document;

/// All routes, with their documentation.
fn documented() -> OpenApiRouter<Api> {
    let working = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(cluster::cluster))
        .routes(routes!(cluster::ledger))
        .routes(routes!(health::health))
        .routes(routes!(cluster::metrics))
        .routes(routes!(cluster::openapi))
        .routes(routes!(cluster::problems))
        .routes(routes!(payloads::submit))
        .routes(routes!(predictions::predict))
        .routes(routes!(fsck::fsck))
        .routes(routes!(vms::list))
        .routes(routes!(vms::show))
        .routes(routes!(vms::history))
        .routes(routes!(volumes::list))
        .routes(routes!(volumes::show))
        .routes(routes!(objects::hosts))
        .routes(routes!(objects::operators))
        .routes(routes!(objects::proposals))
        .routes(routes!(objects::roster))
        .routes(routes!(objects::accounts))
        .routes(routes!(objects::account))
        .routes(routes!(objects::usage))
        .routes(routes!(images::list, images::import))
        .routes(routes!(log::log))
        .routes(routes!(proofs::vm))
        .routes(routes!(proofs::volume))
        .routes(routes!(proofs::account))
        .routes(routes!(proofs::usage))
        .routes(routes!(proofs::host))
        .routes(routes!(proofs::image))
        .routes(routes!(proofs::payload))
        .routes(routes!(proofs::seat))
        .routes(routes!(proofs::epoch))
        .routes(routes!(proofs::operator))
        .routes(routes!(proofs::proposal))
        .routes(routes!(proofs::order))
        .layer(middleware::from_fn(bound_work));
    // These wait by their nature, and are bounded each in its own way.
    let waiting = OpenApiRouter::new()
        .routes(routes!(payloads::show))
        .routes(routes!(image_files::show))
        .routes(routes!(exports::export))
        .routes(routes!(past::history))
        .routes(routes!(events::events))
        .routes(routes!(console::console))
        .routes(routes!(local_stop::local_stop));
    working.merge(waiting)
}

/// The routes as they are documented, and the document.
///
/// `stop` ends event streams.
pub fn router(parts: ApiParts, stop: CancellationToken) -> (Router, utoipa::openapi::OpenApi) {
    let shared: Api = Arc::new(Shared {
        me: parts.host.id,
        parts,
        openapi: OnceLock::new(),
        working: Semaphore::new(API_REQUESTS_TOGETHER_MAX),
        working_here: Semaphore::new(API_REQUESTS_TOGETHER_MAX),
        importing: Semaphore::new(API_IMPORTS_TOGETHER_MAX),
        polling: Semaphore::new(API_POLLS_MAX),
        polling_for_unknown: Semaphore::new(API_POLLS_FOR_UNKNOWN_MAX),
        streaming: Arc::new(Semaphore::new(EVENT_STREAMS_MAX)),
        streams: AccountTurns::new(EVENT_STREAMS_PER_ACCOUNT_MAX),
        consoles: Arc::new(Semaphore::new(CONSOLES_MAX)),
        consoles_of_operators: Arc::new(Semaphore::new(CONSOLES_OF_OPERATORS_MAX)),
        consoles_of: AccountTurns::new(CONSOLES_PER_ACCOUNT_MAX),
        image_streams: Arc::new(Semaphore::new(API_IMAGE_STREAMS_MAX)),
        image_streams_of: Turns::new(API_IMAGE_STREAMS_PER_KEY_MAX),
        stop,
    });
    let (router, document) = documented().split_for_parts();
    let text = document.to_json().expect("the document is plain data");
    // Set once: nobody else holds the cell yet.
    let _ = shared.openapi.set(text);
    let router = router
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn(check_door))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), finish))
        .layer(axum::Extension(Arc::clone(&shared)))
        .with_state(shared);
    (router, document)
}

async fn no_such_path(request: Request) -> ApiProblem {
    ApiProblem::no_path(format!("there is no path {}", request.uri().path()))
}

async fn no_such_method(request: Request) -> ApiProblem {
    let detail = format!("{} does not take {}", request.uri().path(), request.method());
    ApiProblem::method(detail)
}

/// Requests by TCP pass the guard first.
async fn check_door(request: Request, next: Next) -> Response {
    let verdict = match request.extensions().get::<Door>() {
        Some(Door::Unix) => Ok(()),
        Some(Door::Tcp(door)) => door.check(request.uri(), request.headers()),
        Some(Door::Images) if request.uri().path().starts_with(image_files::PATH_BEGIN) => Ok(()),
        Some(Door::Images) => Err(ApiProblem::no_path("only image files are served here")),
        None => Err(ApiProblem::internal("the request came through no door")),
    };
    match verdict {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Bounds how many requests are worked on at a time, and how long. Work begins when all of a
/// request is there: who sends it slowly takes nobody's turn meanwhile, and who calls from the host
/// itself waits for nobody who does not.
async fn bound_work(request: Request, next: Next) -> Response {
    let request = match request::received(request, PAYLOAD_BYTES_MAX).await {
        Ok(request) => request,
        Err(problem) => return problem.into_response(),
    };
    let Some(shared) = request.extensions().get::<Api>().cloned() else {
        return ApiProblem::internal("the request came without its state").into_response();
    };
    let importing = request.uri().path() == images::PATH && request.method() == "POST";
    let (semaphore, wait_max) = match request.extensions().get::<Door>() {
        _ if importing => (&shared.importing, crate::limits::API_IMPORT_WAIT_MAX),
        Some(Door::Unix) => (&shared.working_here, API_WORK_WAIT_MAX),
        Some(Door::Tcp(_) | Door::Images) | None => (&shared.working, API_WORK_WAIT_MAX),
    };
    let work = async {
        match semaphore.acquire().await {
            Ok(_permit) => next.run(request).await,
            Err(_) => ApiProblem::overloaded("the agent is stopping").into_response(),
        }
    };
    tokio::time::timeout(wait_max, work)
        .await
        .unwrap_or_else(|_| ApiProblem::slow("it was not done in time").into_response())
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    ApiProblem::internal("a handler panicked").into_response()
}

/// Makes a problem of every bare error of the HTTP library, counts problems, and keeps answers out
/// of caches.
async fn finish(State(api): State<Api>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        if response.extensions().get::<ProblemCode>().is_none() {
            let allow = response.headers().get(header::ALLOW).cloned();
            response = ApiProblem::of_status(status).into_response();
            if let Some(allow) = allow {
                response.headers_mut().insert(header::ALLOW, allow);
            }
        }
        if let Some(code) = response.extensions().get::<ProblemCode>() {
            api.parts.metrics.count_problem(&code.0);
        }
    }
    let headers = response.headers_mut();
    let set = |value| header::HeaderValue::from_static(value);
    headers.entry(header::CACHE_CONTROL).or_insert(set("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, set("nosniff"));
    response
}
