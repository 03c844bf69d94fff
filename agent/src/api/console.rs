//! `GET /v1/vms/{vm}/console`: a guest's serial console, as a WebSocket or as text.
//!
//! Owns the conversation: what the guest says goes out as binary messages, from the asked history
//! on; what comes in is typed. Without an upgrade the answer is the history alone. Ends with the
//! guest, and with the right of the reader's key. Consoles are on the VM's host and need no ledger.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use dagger_api::{Problem, Sight};
use dagger_payload::id::{AccountId, VmId};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use utoipa::IntoParams;

use super::Api;
use super::problem::ApiProblem;
use super::reader::{LongReader, Reader};
use super::request::{Path, Query};
use super::vms;
use crate::handover::{ConsoleProblem, ConsoleRequest, ConsoleTyping};
use crate::limits::{
    API_WRITE_WAIT_MAX, CONSOLE_CLOSE_WAIT_MAX, CONSOLE_HISTORY_BYTES_DEFAULT,
    CONSOLE_HISTORY_BYTES_MAX, CONSOLE_LOOK_EVERY, CONSOLE_MESSAGE_BYTES_MAX,
    CONSOLE_OPEN_WAIT_MAX, CONSOLE_PING_EVERY, CONSOLE_REASON_BYTES_MAX, CONSOLE_SILENCE_MAX,
};
use crate::model::{Model, VmQuery};
use crate::observation::ConsoleTail;

/// Query of the console.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ConsoleQuery {
    /// Only a VM of this account.
    #[param(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    account: Option<AccountId>,
    /// How much of what the guest has said before comes first, in bytes: at most 65536.
    history_bytes: Option<u64>,
}

/// A guest's serial console: a WebSocket to sit down at, or what it has said as plain text.
///
/// Binary messages from the server are what the guest says, binary messages to it are typed. Ask
/// the agent of the VM's host.
#[utoipa::path(
    get,
    path = "/v1/vms/{vm}/console",
    tag = "objects",
    params(("vm" = String, Path, description = "Its id, or its name"), ConsoleQuery),
    responses(
        (status = 101, description = "With `Upgrade: websocket`"),
        (status = 200, description = "The end of what the guest has said, as it said it",
            content_type = "application/octet-stream", body = String),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "`console_elsewhere`, `vm_not_running`, `name_ambiguous`"),
        (status = 503, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn console(
    State(api): State<Api>,
    long: LongReader,
    Path(vm): Path<String>,
    Query(query): Query<ConsoleQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiProblem> {
    let reader = long.reader;
    let asked = VmQuery { text: vm, account: reader.account(query.account)? };
    if upgrade.is_ok() {
        reader.require_hands()?;
    }
    let vm = here(&api, &asked, &reader).await?;
    let history = query.history_bytes.unwrap_or(CONSOLE_HISTORY_BYTES_DEFAULT);
    let history = history.min(CONSOLE_HISTORY_BYTES_MAX);
    let turn = take_turn(&api, reader)?;
    match upgrade {
        Ok(upgrade) => {
            let typing = open(&api, vm).await?;
            let tail = tail(&api, vm, history).await?;
            let upgrade = upgrade
                .max_message_size(CONSOLE_MESSAGE_BYTES_MAX)
                .max_frame_size(CONSOLE_MESSAGE_BYTES_MAX);
            let sitting = Sitting { api, vm, long, typing, tail, heard: Instant::now() };
            Ok(upgrade.on_upgrade(|socket| sitting.run(socket, turn)))
        }
        Err(_) => text(&api, vm, history).await,
    }
}

/// Who has one holds all of these.
type Turn = [Option<OwnedSemaphorePermit>; 2];

/// No account takes all of what all accounts have, and none takes what operators need.
fn take_turn(api: &Api, reader: Reader) -> Result<Turn, ApiProblem> {
    let too_many = |_| ApiProblem::overloaded("too many consoles are open");
    let take = |turns: &Arc<Semaphore>| Arc::clone(turns).try_acquire_owned().map_err(too_many);
    Ok(match reader.own() {
        None => [Some(take(&api.consoles_of_operators)?), None],
        Some(own) => [Some(take(&api.consoles_of.of(own))?), Some(take(&api.consoles)?)],
    })
}

/// The VM that is meant, if its machine is here. Before the history is known, who operates the host
/// names it by its id, and what is seen counts.
async fn here(api: &Api, query: &VmQuery, reader: &Reader) -> Result<VmId, ApiProblem> {
    let vm = match api.parts.model.find_vm(query).await? {
        Ok(vm) => vm,
        Err(problem) => {
            return seen(api, query, reader).ok_or_else(|| vms::problem(query, problem));
        }
    };
    match vm.placement.host() {
        Some(host) if host == api.me => Ok(vm.id),
        Some(host) => {
            let name = |model: &Model| model.host_name(&host).map(ToString::to_string);
            let name = api.parts.model.read(name);
            Err(ApiProblem::console_elsewhere(&name.unwrap_or_else(|| host.to_string())))
        }
        None => Err(ApiProblem::not_running("it has no host yet")),
    }
}

fn seen(api: &Api, query: &VmQuery, reader: &Reader) -> Option<VmId> {
    let vm = query.text.parse().ok().filter(|_| *reader == Reader::All)?;
    api.parts.board.read(|sights| sights.vms.contains_key(&vm)).then_some(vm)
}

async fn open(api: &Api, vm: VmId) -> Result<ConsoleTyping, ApiProblem> {
    let (reply, answer) = oneshot::channel();
    let away = || ApiProblem::console_unavailable("the machines' half does not answer");
    api.parts.consoles.try_send(ConsoleRequest { vm, reply }).map_err(|_| away())?;
    let answer = timeout(CONSOLE_OPEN_WAIT_MAX, answer).await.map_err(|_| away())?;
    answer.map_err(|_| away())?.map_err(|problem| match problem {
        ConsoleProblem::NotRunning => ApiProblem::not_running("its guest is switched off"),
        ConsoleProblem::Unavailable(why) => ApiProblem::console_unavailable(why),
    })
}

fn unreadable(error: std::io::Error) -> ApiProblem {
    ApiProblem::console_unavailable(format!("its file: {error}"))
}

async fn tail(api: &Api, vm: VmId, history_bytes: u64) -> Result<ConsoleTail, ApiProblem> {
    ConsoleTail::open(api.parts.console_files.of(vm), history_bytes).await.map_err(unreadable)
}

/// The history alone; also of a guest that does not run.
async fn text(api: &Api, vm: VmId, history_bytes: u64) -> Result<Response, ApiProblem> {
    let mut tail = tail(api, vm, history_bytes).await?;
    let mut said = Vec::new();
    // A guest that speaks meanwhile does not make the answer longer than what was asked.
    while (said.len() as u64) < history_bytes {
        let part = tail.ready().await.map_err(unreadable)?;
        if part.is_empty() {
            break;
        }
        said.extend_from_slice(&part);
    }
    said.truncate(usize::try_from(history_bytes).unwrap_or(usize::MAX));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], said).into_response())
}

/// Somebody sits at a console.
struct Sitting {
    api: Api,
    vm: VmId,
    long: LongReader,
    typing: ConsoleTyping,
    tail: ConsoleTail,
    /// When the client was heard of last.
    heard: Instant,
}

/// Why a sitting ends, as the client is told.
struct Ended(u16, Utf8Bytes);

impl Ended {
    const fn of(code: u16, reason: &'static str) -> Self {
        Self(code, Utf8Bytes::from_static(reason))
    }

    /// The frame has room for little more than the problem's code.
    fn refused(problem: &ApiProblem) -> Self {
        let mut reason = problem.line();
        reason.truncate(reason.floor_char_boundary(CONSOLE_REASON_BYTES_MAX));
        Self(close_code::POLICY, reason.into())
    }
}

const GUEST_GONE: Ended = Ended::of(close_code::NORMAL, "the guest does not run any more");
const LINE_GONE: Ended = Ended::of(close_code::ERROR, "the guest's console is gone");
const AGENT_STOPS: Ended = Ended::of(close_code::AWAY, "the agent stops; the guest runs on");
const CLIENT_GONE: Ended = Ended::of(close_code::NORMAL, "closed by the client");
const CLIENT_SILENT: Ended = Ended::of(close_code::POLICY, "the client was silent for too long");

impl Sitting {
    async fn run(mut self, mut socket: WebSocket, turn: Turn) {
        let stop = self.api.stop.clone();
        let talking = stop.run_until_cancelled(self.talk(&mut socket)).await;
        let Ended(code, reason) = talking.unwrap_or(AGENT_STOPS);
        let close = Message::Close(Some(CloseFrame { code, reason }));
        // Who has gone already need not be told. Who is there answers the close: a socket that went
        // away before that would take from him what he has not read yet (RFC 6455, 7.1.1).
        let _ = timeout(CONSOLE_CLOSE_WAIT_MAX, async {
            if socket.send(close).await.is_ok() {
                while let Some(Ok(_)) = socket.recv().await {}
            }
        })
        .await;
        drop(turn);
    }

    async fn talk(&mut self, socket: &mut WebSocket) -> Ended {
        let mut look = interval(CONSOLE_LOOK_EVERY);
        let mut ping = interval(CONSOLE_PING_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let message = tokio::select! {
                part = self.tail.next() => match part {
                    Ok(part) => Message::Binary(part),
                    Err(_) => return LINE_GONE,
                },
                received = socket.recv() => match received {
                    Some(Ok(message)) => match self.take(message).await {
                        Ok(()) => continue,
                        Err(ended) => return ended,
                    },
                    Some(Err(_)) | None => return CLIENT_GONE,
                },
                _ = look.tick() => {
                    if let Err(problem) = self.long.check(&self.api) {
                        return Ended::refused(&problem);
                    }
                    if self.runs() {
                        continue;
                    }
                    self.last_words(socket).await;
                    return GUEST_GONE;
                }
                _ = ping.tick() => {
                    if self.heard.elapsed() > CONSOLE_SILENCE_MAX {
                        return CLIENT_SILENT;
                    }
                    Message::Ping(Bytes::new())
                }
            };
            if !matches!(timeout(API_WRITE_WAIT_MAX, socket.send(message)).await, Ok(Ok(()))) {
                return CLIENT_GONE;
            }
        }
    }

    async fn take(&mut self, message: Message) -> Result<(), Ended> {
        self.heard = Instant::now();
        let typed = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            Message::Ping(_) | Message::Pong(_) => return Ok(()),
            Message::Close(_) => return Err(CLIENT_GONE),
        };
        self.typing.send(typed).await.map_err(|_| LINE_GONE)
    }

    /// What the hypervisor showed last; not knowing ends nothing.
    fn runs(&self) -> bool {
        let sight = self.api.parts.board.read(|sights| sights.vms.get(&self.vm).map(|vm| vm.sight));
        !matches!(sight, Some(Sight::Stopped | Sight::Absent))
    }

    /// To the end of the file.
    async fn last_words(&mut self, socket: &mut WebSocket) {
        while let Ok(part) = self.tail.ready().await {
            if part.is_empty() || socket.send(Message::Binary(part)).await.is_err() {
                return;
            }
        }
    }
}
