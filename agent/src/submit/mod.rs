//! Reports on their way to the ledger: signed with the agent key, submitted, and submitted again
//! until they are ordered.
//!
//! Owns signing and repeating ([`outbox`] decides, this module does). Never decides what is
//! reported. Called once by the daemon; reports come from the machines' half.

pub mod outbox;

use std::sync::Arc;
use std::time::Instant;

use dagger_bus::ledger::{Answer, Call};
use dagger_bus::limits::ANSWER_WAIT_MAX;
use dagger_payload::id::{ClusterId, LedgerTime, PayloadDigest};
use dagger_payload::key::SecretKey;
use dagger_payload::payload::SignedPayload;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock;
use crate::handover::HostReport;
use crate::limits::REPORTS_SUBMITTED_TOGETHER_MAX;
use crate::link::requests::{LedgerAway, LedgerClient};
use crate::model::SharedModel;
use outbox::{Outbox, SubmitOutcome};

/// What submitting needs.
pub struct Submitter {
    /// The cluster.
    pub cluster: ClusterId,
    /// Signs the reports.
    pub key: Arc<SecretKey>,
    /// To the ledger.
    pub ledger: LedgerClient,
    /// Shows what is ordered.
    pub model: SharedModel,
    /// Counts.
    pub metrics: Arc<crate::metrics::Metrics>,
}

impl Submitter {
    /// Submits what comes through `reports` until `stop`, or until nothing can come any more.
    pub async fn run(self, reports: mpsc::Receiver<HostReport>, stop: CancellationToken) {
        stop.run_until_cancelled(self.work(reports)).await;
    }

    async fn work(self, mut reports: mpsc::Receiver<HostReport>) {
        let mut outbox = Outbox::new(self.cluster, &self.key);
        let mut news = self.model.subscribe();
        let mut under_way = FuturesUnordered::new();
        loop {
            self.settle_ordered(&mut outbox).await;
            if self.ledger.reached().is_ok() {
                let room = REPORTS_SUBMITTED_TOGETHER_MAX - under_way.len();
                for payload in outbox.due(Instant::now(), self.now(), room) {
                    under_way.push(self.submit(payload));
                }
            }
            // What is due now waits for the ledger, or for room, and not for a time.
            let may_submit =
                self.ledger.reached().is_ok() && under_way.len() < REPORTS_SUBMITTED_TOGETHER_MAX;
            let wake = outbox.wake_at();
            tokio::select! {
                report = reports.recv() => match report {
                    Some(report) => outbox.put(report, Instant::now(), self.now()),
                    None => return,
                },
                Some((digest, answer)) = under_way.next() => {
                    self.note(&mut outbox, digest, answer);
                }
                changed = news.changed() => if changed.is_err() { return },
                () = sleep_until(wake), if may_submit => {}
                () = self.ledger.until_reached(), if self.ledger.reached().is_err() => {}
            }
        }
    }

    fn now(&self) -> LedgerTime {
        clock::now(self.model.read(crate::model::Model::ledger_time))
    }

    async fn settle_ordered(&self, outbox: &mut Outbox<'_>) {
        // Where there is no turn to look, the next news are looked at.
        let Ok(verdicts) = self.model.verdicts(outbox.digests()).await else { return };
        let verdict_on = |digest: &PayloadDigest| verdicts.get(digest).cloned();
        outbox.settle(verdict_on, Instant::now(), self.now());
    }

    async fn submit(&self, payload: SignedPayload) -> (PayloadDigest, Result<Answer, LedgerAway>) {
        let digest = payload.digest();
        let answer = self.ledger.ask(Call::Submit { payload }, ANSWER_WAIT_MAX).await;
        (digest, answer)
    }

    fn note(&self, outbox: &mut Outbox, digest: PayloadDigest, answer: Result<Answer, LedgerAway>) {
        let outcome = match answer {
            Ok(Answer::Receipt { .. }) => {
                info!(%digest, "a report is durable in the ledger");
                self.metrics.count_submission("report", "received");
                SubmitOutcome::Received
            }
            Ok(Answer::Refused { refusal }) => {
                warn!(%digest, %refusal, "a report was refused at the ledger's door");
                self.metrics.count_submission("report", "refused");
                SubmitOutcome::Refused(refusal.code)
            }
            Ok(Answer::Unavailable { reason }) => {
                info!(%digest, ?reason, "the ledger cannot take a report now");
                self.metrics.count_submission("report", "unavailable");
                SubmitOutcome::Unavailable
            }
            Ok(
                Answer::Standing { .. }
                | Answer::Status { .. }
                | Answer::Evidence { .. }
                | Answer::Prediction { .. }
                | Answer::Proof { .. },
            ) => {
                warn!(%digest, "the ledger answered something else than was asked");
                SubmitOutcome::Unavailable
            }
            Err(away) => {
                info!(%digest, %away, "a report waits for the ledger");
                self.metrics.count_submission("report", "unavailable");
                SubmitOutcome::Unavailable
            }
        };
        outbox.note(&digest, outcome, Instant::now(), self.now());
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}
