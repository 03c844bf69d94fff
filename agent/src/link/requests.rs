//! Requests to the ledger: each with an id and a deadline, answered in any order, over one
//! connection that is renewed when it ends.
//!
//! Never repeats a request: who asked is told that the ledger is unavailable and decides. Called by
//! API and reports.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dagger_bus::ledger::{Answer, Call, Open, Opened, Purpose, Request, Response};
use dagger_bus::limits::{ANSWER_WAIT_MAX, OPEN_WAIT_MAX, REQUESTS_UNDER_WAY_MAX};
use dagger_bus::{BusError, Connection};
use dagger_payload::id::ClusterId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Pauses;

/// The ledger did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the ledger cannot be reached: {reason}")]
pub struct LedgerAway {
    /// Why, in one sentence.
    pub reason: String,
}

impl LedgerAway {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

struct Asked {
    call: Call,
    answer: oneshot::Sender<Result<Answer, LedgerAway>>,
}

/// Asks the ledger; cheap to clone.
#[derive(Clone)]
pub struct LedgerClient {
    asked: mpsc::Sender<Asked>,
    reached: watch::Receiver<Result<(), String>>,
}

impl LedgerClient {
    /// A client, and the work that keeps its connection to the socket at `path` until `stop`.
    pub fn new(
        path: PathBuf,
        cluster: ClusterId,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (asked, asked_receiver) = mpsc::channel(REQUESTS_UNDER_WAY_MAX);
        let (reached_sender, reached) = watch::channel(Err("not connected yet".to_owned()));
        let work = async move {
            let keep = keep(path, cluster, asked_receiver, reached_sender);
            stop.run_until_cancelled(keep).await;
        };
        (Self { asked, reached }, work)
    }

    /// Asks, and waits for the answer for at most `wait_max` (and never longer than
    /// [`ANSWER_WAIT_MAX`]).
    ///
    /// # Errors
    /// [`LedgerAway`]: whether the ledger took the request is then unknown.
    pub async fn ask(&self, call: Call, wait_max: Duration) -> Result<Answer, LedgerAway> {
        if let Err(reason) = self.reached.borrow().as_ref() {
            return Err(LedgerAway::new(reason.clone()));
        }
        let (answer, answered) = oneshot::channel();
        let ask = async {
            let gone = || LedgerAway::new("the agent is stopping");
            self.asked.send(Asked { call, answer }).await.map_err(|_| gone())?;
            answered.await.unwrap_or_else(|_| Err(gone()))
        };
        tokio::time::timeout(wait_max.min(ANSWER_WAIT_MAX), ask)
            .await
            .unwrap_or_else(|_| Err(LedgerAway::new(BusError::TimedOut.to_string())))
    }

    /// Whether the connection stands, and if not why.
    pub fn reached(&self) -> Result<(), String> {
        self.reached.borrow().clone()
    }

    /// Waits until the connection stands.
    pub async fn until_reached(&self) {
        // An error means that the agent is stopping; whoever waits is stopped as well.
        let _ = self.reached.clone().wait_for(Result::is_ok).await;
    }
}

async fn keep(
    path: PathBuf,
    cluster: ClusterId,
    mut asked: mpsc::Receiver<Asked>,
    reached: watch::Sender<Result<(), String>>,
) {
    let mut pauses = Pauses::new();
    loop {
        let error = match open(&path, cluster, Purpose::Requests {}).await {
            Ok(connection) => {
                info!("connected to the ledger for requests");
                pauses.reset();
                let _ = reached.send_replace(Ok(()));
                let error = serve(connection, &mut asked).await;
                warn!(%error, "the ledger's request stream ended");
                error
            }
            Err(error) => error,
        };
        let _ = reached.send_replace(Err(error.to_string()));
        let until = tokio::time::Instant::now() + pauses.next();
        // Whoever asked between the two is told at once.
        while let Ok(Some(late)) = tokio::time::timeout_at(until, asked.recv()).await {
            let _ = late.answer.send(Err(LedgerAway::new(error.to_string())));
        }
        if asked.is_closed() {
            return;
        }
    }
}

/// Connects to the ledger and agrees on cluster and purpose.
pub(super) async fn open(
    path: &Path,
    cluster: ClusterId,
    purpose: Purpose,
) -> Result<Connection, BusError> {
    let work = async {
        let mut connection = Connection::connect(path).await?;
        connection.sender.send(&Open { cluster, purpose }).await?;
        let opened: Opened = connection.receiver.receive().await?;
        if opened.cluster == cluster { Ok(connection) } else { Err(BusError::ForeignCluster) }
    };
    tokio::time::timeout(OPEN_WAIT_MAX, work).await.unwrap_or(Err(BusError::TimedOut))
}

/// Serves requests until the connection ends, and says why it did.
async fn serve(connection: Connection, asked: &mut mpsc::Receiver<Asked>) -> BusError {
    let Connection { mut sender, mut receiver } = connection;
    let mut waiting: HashMap<u64, oneshot::Sender<Result<Answer, LedgerAway>>> = HashMap::new();
    let mut next_id: u64 = 0;
    let error = loop {
        tokio::select! {
            next = asked.recv() => {
                let Some(next) = next else { break BusError::Closed };
                // Whoever asked may have given up by now.
                waiting.retain(|_, answer| !answer.is_closed());
                if waiting.len() == REQUESTS_UNDER_WAY_MAX {
                    let away = LedgerAway::new("too many requests wait for it");
                    let _ = next.answer.send(Err(away));
                    continue;
                }
                next_id += 1;
                waiting.insert(next_id, next.answer);
                let request = Request { id: next_id, call: next.call };
                if let Err(error) = sender.send(&request).await {
                    break error;
                }
            }
            response = receiver.receive::<Response>() => match response {
                Ok(response) => {
                    if let Some(answer) = waiting.remove(&response.id) {
                        let _ = answer.send(Ok(response.answer));
                    }
                }
                Err(error) => break error,
            },
        }
    };
    for answer in waiting.into_values() {
        let _ = answer.send(Err(LedgerAway::new(error.to_string())));
    }
    error
}
