//! Every error of the API is a problem document (RFC 9457) with a stable code.
//!
//! Owns the API's own codes, and the HTTP status of each refusal code. Called by all handlers.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dagger_api::{PROBLEM_MEDIA_TYPE, Problem, ProblemKind, QuorumProblem};
use dagger_bus::ledger::{ClockReference, Unavailable};
use dagger_payload::id::AccountId;
use dagger_payload::name::Name;
use dagger_payload::refusal::{Refusal, RefusalCode};

use crate::limits::RETRY_AFTER_SECONDS;
use crate::link::requests::LedgerAway;
use crate::model::LookProblem;

/// A problem on its way to the client.
#[derive(Debug, Clone)]
pub struct ApiProblem(Box<Problem>);

/// Codes that are the API's own, beside the refusal codes: code, status, title, advice.
struct Own {
    code: &'static str,
    status: StatusCode,
    title: &'static str,
    advice: &'static str,
}

macro_rules! own_codes {
    ($($name:ident = $code:literal, $status:ident, $title:literal, $advice:literal;)*) => {
        $(const $name: Own = Own {
            code: $code,
            status: StatusCode::$status,
            title: $title,
            advice: $advice,
        };)*

        const OWN: &[&Own] = &[$(&$name),*];
    };
}

own_codes! {
    MALFORMED = "request_malformed", BAD_REQUEST, "The request is not in form",
        "Correct what the detail names; GET /v1/openapi.json describes every request.";
    ROUTE_UNKNOWN = "not_found", NOT_FOUND, "There is no such path",
        "Check the path; GET /v1/openapi.json lists all.";
    UNKNOWN = "not_found", NOT_FOUND, "There is no such thing",
        "Check the name or id that the detail names; `daggerctl vm ls`, `volume ls`, `account ls` and `host ls` list \
         what this key may see.";
    NOT_JUDGED = "not_judged_yet", SERVICE_UNAVAILABLE, "This host has not come so far",
        "Ask again in a moment, or another host; `daggerctl ledger status` shows how far each has come.";
    METHOD = "method_not_allowed", METHOD_NOT_ALLOWED, "This path does not take this method",
        "GET /v1/openapi.json lists the methods of each path.";
    HOST = "host_refused", FORBIDDEN, "The Host header names another host",
        "Use a loopback address, or have the operator list the name under `api.hosts`.";
    ORIGIN = "origin_refused", FORBIDDEN, "Requests from other web sites are refused",
        "Call the API from a program, or have the operator list the name under `api.hosts`.";
    UNIX_ONLY = "unix_socket_only", FORBIDDEN, "This needs the host's Unix socket",
        "Call it on the host itself through the agent's API socket.";
    NO_SESSION = "session_needed", UNAUTHORIZED, "This shows what belongs to accounts",
        "Call it over the host's Unix socket, or send a session: sign {dagger, cluster, host, key, not_after_ms} with \
         `ssh-keygen -Y sign -n dagger-session` and send it as dagger-session and dagger-session-signature.";
    SESSION = "session_refused", UNAUTHORIZED, "The session was refused",
        "Sign a new one for this host, with a key of the account: GET /v1/cluster shows cluster, host and time.";
    CONSOLE_ELSEWHERE = "console_elsewhere", CONFLICT, "The VM's console is on another host",
        "Name the agent of the host that the detail names: --api.";
    NOT_RUNNING = "vm_not_running", CONFLICT, "There is no guest to sit down at",
        "Start the VM first; without `Upgrade: websocket` the answer is what it said before.";
    CONSOLE = "console_unavailable", SERVICE_UNAVAILABLE, "The console cannot be opened",
        "Look at the detail; somebody else may sit at it, or the hypervisor is away: try again in a moment.";
    VM_ELSEWHERE = "vm_elsewhere", CONFLICT, "The VM is on another host",
        "Ask on the host that the detail names, through its own agent's socket: --api unix:/run/dagger/api/api.sock.";
    NOT_STOPPED = "vm_not_stopped", CONFLICT, "The VM is not switched off",
        "Stop the VM with `daggerctl vm stop VM --wait applied`, then ask again.";
    EXPORT = "export_unavailable", SERVICE_UNAVAILABLE, "The disk could not be copied",
        "Look at the detail, the agent's log and the disk's free space, then ask again.";
    COPY_TOO_LARGE = "copy_too_large", CONFLICT, "A copy of the disk would be larger than any image",
        "Free space inside the guest (fstrim), or take its files away from inside.";
    AMBIGUOUS = "name_ambiguous", CONFLICT, "The name exists in several accounts",
        "Give ?account=ID, or the VM's id instead of its name.";
    NO_QUORUM = "no_quorum", SERVICE_UNAVAILABLE, "Too few hosts can be reached to change anything",
        "Running VMs run on. Start the missing hosts, then send the same bytes again.";
    LEDGER_AWAY = "ledger_unavailable", SERVICE_UNAVAILABLE, "This host's ledger does not answer",
        "Look at `systemctl status dagger-ledger` on this host; ask again, or another host: nothing is done twice.";
    PROCESSOR_AWAY = "processor_unavailable", SERVICE_UNAVAILABLE,
        "This host's payload processor does not answer",
        "Look at `systemctl status dagger-processor` on this host; ask again, or another host: nothing is done twice.";
    RECOVERING = "recovering", SERVICE_UNAVAILABLE, "This host's ledger is catching up",
        "Ask again in a moment, or another host: nothing is done twice.";
    OVERLOADED = "overloaded", SERVICE_UNAVAILABLE, "Too much is waiting already",
        "Ask again in a moment, or another host: nothing is done twice.";
    STORE_FULL = "store_full", SERVICE_UNAVAILABLE, "This host's ledger has no room left",
        "Tell the operator to make room; meanwhile use another host.";
    HISTORY_UNREAD = "history_unread", SERVICE_UNAVAILABLE, "This host has not read the history yet",
        "Tell the operator to make room; meanwhile use another host.";
    FOLLOWER = "follower", SERVICE_UNAVAILABLE, "This host has no vote now",
        "Send the same bytes to a member: daggerctl ledger status names them.";
    UPGRADE_NEEDED = "upgrade_needed", SERVICE_UNAVAILABLE, "This host's software is too old",
        "Upgrade dagger on this host; meanwhile use another one.";
    NOT_ATTESTED = "not_attested", SERVICE_UNAVAILABLE, "No quorum attests a state to prove it in",
        "Ask again in a moment; daggerctl ledger status says who is missing.";
    CLOCK = "clock_in_doubt", SERVICE_UNAVAILABLE, "This host's clock is in doubt",
        "Send the same bytes to another host; tell the operator of this one.";
    SLOW = "too_slow", REQUEST_TIMEOUT, "The request took too long",
        "Send the whole request at once; if it was, send it again in a moment.";
    IMAGE = "image_refused", UNPROCESSABLE_ENTITY, "The image file was refused",
        "Correct what the detail names, and import the file again.";
    IMAGE_STORE = "image_store_unavailable", SERVICE_UNAVAILABLE, "The image store did not work",
        "Look at the agent's log and the disk's free space, then import the file again.";
    RANGE = "range_refused", RANGE_NOT_SATISFIABLE, "The file has no such part",
        "Ask for `Range: bytes=N-` with N below the file's size, or for all of it.";
    INTERNAL = "internal", INTERNAL_SERVER_ERROR, "A defect of the agent",
        "Report it with the agent's log; the rest of the agent works on.";
}

impl ApiProblem {
    fn own(own: &Own, detail: impl Into<String>) -> Self {
        Self(Box::new(Problem {
            type_uri: type_uri(own.code),
            title: own.title.to_owned(),
            status: own.status.as_u16(),
            code: own.code.to_owned(),
            detail: detail.into(),
            rule: None,
            advice: own.advice.to_owned(),
            quorum: None,
        }))
    }

    /// In one line, for who is told in the middle of a conversation.
    pub(super) fn line(&self) -> String {
        format!("{}: {}", self.0.code, self.0.detail)
    }

    /// The request is not in form.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::own(&MALFORMED, detail)
    }

    /// No such path.
    pub fn no_path(detail: impl Into<String>) -> Self {
        Self::own(&ROUTE_UNKNOWN, detail)
    }

    /// No such object.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::own(&UNKNOWN, detail)
    }

    /// The object is known, or will be, but this host has not come so far.
    pub fn not_judged(detail: impl Into<String>) -> Self {
        Self::own(&NOT_JUDGED, detail)
    }

    /// The path does not take the method.
    pub fn method(detail: impl Into<String>) -> Self {
        Self::own(&METHOD, detail)
    }

    /// `Host` is none of ours.
    pub fn host(detail: impl Into<String>) -> Self {
        Self::own(&HOST, detail)
    }

    /// `Origin` is none of ours.
    pub fn origin(detail: impl Into<String>) -> Self {
        Self::own(&ORIGIN, detail)
    }

    /// Only over the Unix socket.
    pub fn unix_only(why: &str) -> Self {
        Self::own(&UNIX_ONLY, why)
    }

    /// No session came with a request that needs one.
    pub fn no_session() -> Self {
        Self::own(&NO_SESSION, "this came over TCP and without a session")
    }

    /// The session does not count, or not for this.
    pub fn session(detail: impl Into<String>) -> Self {
        Self::own(&SESSION, detail)
    }

    /// The VM is on the host `name`.
    pub fn console_elsewhere(name: &str) -> Self {
        Self::own(&CONSOLE_ELSEWHERE, format!("the VM is on host {name}"))
    }

    /// The VM is elsewhere.
    pub fn vm_elsewhere(detail: impl Into<String>) -> Self {
        Self::own(&VM_ELSEWHERE, detail)
    }

    /// Somebody may write to the VM's disk.
    pub fn not_stopped(detail: impl Into<String>) -> Self {
        Self::own(&NOT_STOPPED, detail)
    }

    /// The VM's disk could not be copied.
    pub fn export(detail: impl Into<String>) -> Self {
        Self::own(&EXPORT, detail)
    }

    /// The VM's disk is too large to be copied.
    pub fn copy_too_large(detail: impl Into<String>) -> Self {
        Self::own(&COPY_TOO_LARGE, detail)
    }

    /// There is no guest.
    pub fn not_running(detail: impl Into<String>) -> Self {
        Self::own(&NOT_RUNNING, detail)
    }

    /// The console did not open.
    pub fn console_unavailable(detail: impl Into<String>) -> Self {
        Self::own(&CONSOLE, detail)
    }

    /// An image file was refused.
    pub fn image(detail: impl Into<String>) -> Self {
        Self::own(&IMAGE, detail)
    }

    /// The image store did not work this time.
    pub fn image_store(detail: impl Into<String>) -> Self {
        Self::own(&IMAGE_STORE, detail)
    }

    /// A file has no such part.
    pub fn range(detail: impl Into<String>) -> Self {
        Self::own(&RANGE, detail)
    }

    /// No quorum attests any state of this host in time.
    pub fn not_attested() -> Self {
        let detail = "no state of this host was attested by a quorum while the request waited";
        Self::own(&NOT_ATTESTED, detail)
    }

    /// Took too long.
    pub fn slow(detail: impl Into<String>) -> Self {
        Self::own(&SLOW, detail)
    }

    /// Too many at once.
    pub fn overloaded(detail: impl Into<String>) -> Self {
        Self::own(&OVERLOADED, detail)
    }

    /// We are wrong.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::own(&INTERNAL, detail)
    }

    /// A name that exists in several accounts.
    pub fn ambiguous(name: &str, accounts: &[AccountId]) -> Self {
        let accounts: Vec<String> = accounts.iter().map(ToString::to_string).collect();
        let detail = format!("{name} exists in the accounts {}", accounts.join(", "));
        Self::own(&AMBIGUOUS, detail)
    }

    /// Over the size limit; `what` was to be read.
    pub fn too_large(bytes_max: usize) -> Self {
        let detail = format!("the body is larger than {bytes_max} bytes");
        Refusal::new(RefusalCode::PayloadTooLarge, detail).into()
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// A problem for a bare error status of the HTTP library.
    pub fn of_status(status: StatusCode) -> Self {
        let known = match status {
            StatusCode::NOT_FOUND => Some(&ROUTE_UNKNOWN),
            StatusCode::METHOD_NOT_ALLOWED => Some(&METHOD),
            StatusCode::REQUEST_TIMEOUT => Some(&SLOW),
            status if status.is_server_error() => Some(&INTERNAL),
            _ => None,
        };
        let detail = status.canonical_reason().unwrap_or("refused");
        let mut problem = Self::own(known.unwrap_or(&MALFORMED), detail);
        problem.0.status = status.as_u16();
        problem
    }
}

fn type_uri(code: &str) -> String {
    format!("urn:dagger:problem:{code}")
}

/// All codes that an answer can carry, in their order: one entry for each title.
pub(super) fn all_kinds() -> Vec<ProblemKind> {
    let own = OWN.iter().map(|own| ProblemKind {
        code: own.code.to_owned(),
        status: own.status.as_u16(),
        title: own.title.to_owned(),
        rule: None,
        advice: own.advice.to_owned(),
    });
    let refusals = RefusalCode::ALL.iter().map(|code| ProblemKind {
        code: code.as_str().to_owned(),
        status: refusal_status(*code).as_u16(),
        title: refusal_title(*code),
        rule: Some(code.rule().to_owned()),
        advice: code.advice().to_owned(),
    });
    let mut kinds: Vec<_> = own.chain(refusals).collect();
    kinds.sort_by(|one, other| one.code.cmp(&other.code));
    kinds
}

fn refusal_title(code: RefusalCode) -> String {
    format!("Refused: {}", code.as_str().replace('_', " "))
}

/// The HTTP status of a refusal.
fn refusal_status(code: RefusalCode) -> StatusCode {
    match code {
        RefusalCode::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        RefusalCode::SignatureInvalid
        | RefusalCode::SignerUnsupported
        | RefusalCode::AccountUnknown
        | RefusalCode::NotAuthorized
        | RefusalCode::GrantEnded
        | RefusalCode::HostPolicy => StatusCode::FORBIDDEN,
        RefusalCode::NotFound => StatusCode::NOT_FOUND,
        RefusalCode::Duplicate
        | RefusalCode::NameTaken
        | RefusalCode::Conflict
        | RefusalCode::StateWrong
        | RefusalCode::Protected
        | RefusalCode::Unbalanced
        | RefusalCode::AlreadyExists => StatusCode::CONFLICT,
        RefusalCode::TooMuchUnordered
        | RefusalCode::TooManyRemembered
        | RefusalCode::CommitFull => StatusCode::TOO_MANY_REQUESTS,
        RefusalCode::PayloadMalformed
        | RefusalCode::KindUnknown
        | RefusalCode::ClusterWrong
        | RefusalCode::Expired
        | RefusalCode::NotAfterTooFar
        | RefusalCode::GrantExceeded
        | RefusalCode::NoHostFits
        | RefusalCode::ImageUnknown
        | RefusalCode::ImageUseWrong
        | RefusalCode::LimitExceeded => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

impl From<Refusal> for ApiProblem {
    fn from(refusal: Refusal) -> Self {
        let code = refusal.code.as_str();
        Self(Box::new(Problem {
            type_uri: type_uri(code),
            title: refusal_title(refusal.code),
            status: refusal_status(refusal.code).as_u16(),
            code: code.to_owned(),
            detail: refusal.detail,
            rule: Some(refusal.code.rule().to_owned()),
            advice: refusal.code.advice().to_owned(),
            quorum: None,
        }))
    }
}

impl From<LedgerAway> for ApiProblem {
    fn from(away: LedgerAway) -> Self {
        Self::own(&LEDGER_AWAY, away.to_string())
    }
}

impl From<LookProblem> for ApiProblem {
    fn from(problem: LookProblem) -> Self {
        match problem {
            LookProblem::Busy => Self::overloaded(problem.to_string()),
            LookProblem::Unbegun => Self::own(&HISTORY_UNREAD, problem.to_string()),
            LookProblem::Broken(_) => Self::internal(problem.to_string()),
        }
    }
}

/// Why changes are not possible, in one sentence.
pub(super) fn unavailable_text(reason: &Unavailable) -> String {
    match reason {
        Unavailable::NoQuorum { have, need, missing } => {
            let missing: Vec<&str> = missing.iter().map(Name::as_str).collect();
            format!("no quorum: have {have}, need {need}, missing {}", missing.join(", "))
        }
        Unavailable::NoProcessor {} => "this host's payload processor is not there".to_owned(),
        Unavailable::Recovering {} => {
            "this host's ledger asks its peers about its own past, or catches up".to_owned()
        }
        Unavailable::Overloaded {} => "too many payloads wait to be ordered".to_owned(),
        Unavailable::StoreFull {} => {
            "the disk or the store of this host's ledger is full".to_owned()
        }
        Unavailable::ClockInDoubt { ahead_ms, compared_with } => {
            clock_text(*ahead_ms, *compared_with)
        }
        Unavailable::Follower {} => {
            "this host has no vote in the present epoch: it follows what others order".to_owned()
        }
        Unavailable::UpgradeNeeded { needs } => {
            format!(
                "version {needs} of the rules counts, which this host's processor does not know"
            )
        }
    }
}

fn clock_text(ahead_ms: i64, compared_with: ClockReference) -> String {
    let minutes = ahead_ms.unsigned_abs() / 60_000;
    let seen = match (compared_with, ahead_ms > 0) {
        (ClockReference::OwnMonotonic, true) => format!("jumped forward by {minutes} minutes"),
        (ClockReference::OwnMonotonic, false) => format!("jumped back by {minutes} minutes"),
        (ClockReference::Peers, true) => format!("is {minutes} minutes ahead of its peers'"),
        (ClockReference::Peers, false) => format!("is {minutes} minutes behind its peers'"),
    };
    format!(
        "this host's clock {seen}: its ledger makes no events until its operator sets the clock \
         right and confirms it (systemctl kill -s HUP dagger-ledger)"
    )
}

impl From<Unavailable> for ApiProblem {
    fn from(reason: Unavailable) -> Self {
        let own = match &reason {
            Unavailable::NoQuorum { .. } => &NO_QUORUM,
            Unavailable::NoProcessor {} => &PROCESSOR_AWAY,
            Unavailable::Recovering {} => &RECOVERING,
            Unavailable::Overloaded {} => &OVERLOADED,
            Unavailable::StoreFull {} => &STORE_FULL,
            Unavailable::Follower {} => &FOLLOWER,
            Unavailable::UpgradeNeeded { .. } => &UPGRADE_NEEDED,
            Unavailable::ClockInDoubt { .. } => &CLOCK,
        };
        let mut problem = Self::own(own, unavailable_text(&reason));
        if let Unavailable::NoQuorum { have, need, missing } = reason {
            problem.0.quorum = Some(QuorumProblem { have, need, missing });
        }
        problem
    }
}

impl From<axum::extract::rejection::PathRejection> for ApiProblem {
    fn from(rejection: axum::extract::rejection::PathRejection) -> Self {
        Self::malformed(rejection.body_text())
    }
}

impl From<axum::extract::rejection::QueryRejection> for ApiProblem {
    fn from(rejection: axum::extract::rejection::QueryRejection) -> Self {
        Self::malformed(rejection.body_text())
    }
}

/// The code of a problem response, for the metrics.
#[derive(Debug, Clone)]
pub struct ProblemCode(pub String);

impl IntoResponse for ApiProblem {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = serde_json::to_vec(&self.0).expect("plain data always writes");
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        let media_type = HeaderValue::from_static(PROBLEM_MEDIA_TYPE);
        headers.insert(header::CONTENT_TYPE, media_type);
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
        }
        response.extensions_mut().insert(ProblemCode(self.0.code));
        response
    }
}
