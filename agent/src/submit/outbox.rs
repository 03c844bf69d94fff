//! Which report is to be submitted when.
//!
//! Owns one report per VM and volume: a later one takes the place of an earlier one. Pure
//! but for signing: time is an argument. Called by [`super::Submitter`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dagger_payload::id::{ClusterId, LedgerTime, PayloadDigest};
use dagger_payload::key::SecretKey;
use dagger_payload::payload::{Payload, SignedPayload};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::Verdict;
use tracing::{info, warn};

use crate::handover::{HostReport, ReportSubject};
use crate::limits::{
    REPORT_ORDER_WAIT_MAX, REPORT_REASON_BYTES_MAX, REPORT_VALID_MS, REPORTS_UNORDERED_MAX,
    RETRY_WAIT_MAX, RETRY_WAIT_MIN,
};

/// What the ledger said to a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubmitOutcome {
    /// Durable there; wait until it is ordered.
    Received,
    /// Not now, or no answer: try again.
    Unavailable,
    /// Refused.
    Refused(RefusalCode),
}

#[derive(Debug)]
struct Waiting {
    report: HostReport,
    payload: SignedPayload,
    digest: PayloadDigest,
    not_after: LedgerTime,
    pause: Duration,
    next: Next,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    SubmitAt(Instant),
    Answer,
}

/// Reports that are not ordered yet.
pub struct Outbox<'k> {
    cluster: ClusterId,
    key: &'k SecretKey,
    waiting: BTreeMap<ReportSubject, Waiting>,
}

impl<'k> Outbox<'k> {
    /// An empty outbox that signs with `key`.
    pub fn new(cluster: ClusterId, key: &'k SecretKey) -> Self {
        Self { cluster, key, waiting: BTreeMap::new() }
    }

    /// Takes in a report, in place of an earlier one about the same subject.
    pub fn put(&mut self, report: impl Into<HostReport>, now: Instant, time: LedgerTime) {
        let mut report = report.into();
        if let Some(reason) = report.reason_mut() {
            cut(reason, REPORT_REASON_BYTES_MAX);
        }
        let subject = report.subject();
        let same = self.waiting.get(&subject).is_some_and(|waiting| waiting.report == report);
        if same {
            return;
        }
        if self.waiting.len() == REPORTS_UNORDERED_MAX && !self.waiting.contains_key(&subject) {
            // The machines' half repeats what it finds unreported.
            warn!(%subject, "too many reports wait to be ordered; this one is dropped");
            return;
        }
        let waiting = self.sign(report, now, time);
        self.waiting.insert(subject, waiting);
    }

    fn sign(&self, report: HostReport, now: Instant, time: LedgerTime) -> Waiting {
        let not_after = time.plus_ms(REPORT_VALID_MS);
        let document = Payload {
            cluster: self.cluster,
            signer: self.key.public_key(),
            not_after,
            body: report.body(),
        };
        let payload = SignedPayload::sign(self.key, &document);
        Waiting {
            report,
            digest: payload.digest(),
            payload,
            not_after,
            pause: RETRY_WAIT_MIN,
            next: Next::SubmitAt(now),
        }
    }

    /// At most `count_max` payloads that are to be submitted now. Each is then waited for with
    /// [`Outbox::note`].
    pub fn due(&mut self, now: Instant, time: LedgerTime, count_max: usize) -> Vec<SignedPayload> {
        let is_due = |waiting: &Waiting| matches!(waiting.next, Next::SubmitAt(at) if at <= now);
        let due = self.waiting.iter().filter(|(_, waiting)| is_due(waiting));
        let due: Vec<ReportSubject> = due.map(|(subject, _)| *subject).take(count_max).collect();
        let mut payloads = Vec::with_capacity(due.len());
        for subject in due {
            let Some(mut waiting) = self.waiting.remove(&subject) else {
                continue;
            };
            if waiting.not_after < time {
                waiting = self.sign(waiting.report, now, time);
            }
            waiting.next = Next::Answer;
            payloads.push(waiting.payload.clone());
            self.waiting.insert(subject, waiting);
        }
        payloads
    }

    /// When something becomes due.
    pub fn wake_at(&self) -> Option<Instant> {
        let times = self.waiting.values().filter_map(|waiting| match waiting.next {
            Next::SubmitAt(at) => Some(at),
            Next::Answer => None,
        });
        times.min()
    }

    /// The ledger's answer to the submission of `digest`.
    pub fn note(
        &mut self,
        digest: &PayloadDigest,
        outcome: SubmitOutcome,
        now: Instant,
        time: LedgerTime,
    ) {
        let found = self.waiting.iter_mut().find(|(_, waiting)| waiting.digest == *digest);
        let Some((subject, waiting)) = found else {
            return;
        };
        let subject = *subject;
        match outcome {
            SubmitOutcome::Received => {
                waiting.pause = RETRY_WAIT_MIN;
                waiting.next = Next::SubmitAt(now + REPORT_ORDER_WAIT_MAX);
            }
            SubmitOutcome::Unavailable => {
                waiting.next = Next::SubmitAt(now + waiting.pause);
                waiting.pause = (waiting.pause * 2).min(RETRY_WAIT_MAX);
            }
            // Ledger time ran away from it (the host slept, or its clock is behind): the same
            // report, signed anew.
            SubmitOutcome::Refused(RefusalCode::Expired | RefusalCode::NotAfterTooFar) => {
                let (report, pause) = (waiting.report.clone(), waiting.pause);
                let mut fresh = self.sign(report, now + pause, time);
                fresh.pause = (pause * 2).min(RETRY_WAIT_MAX);
                self.waiting.insert(subject, fresh);
            }
            SubmitOutcome::Refused(
                RefusalCode::TooMuchUnordered | RefusalCode::TooManyRemembered,
            ) => {
                waiting.next = Next::SubmitAt(now + RETRY_WAIT_MAX);
            }
            SubmitOutcome::Refused(_) => {
                self.waiting.remove(&subject);
            }
        }
    }

    /// The digests of what waits.
    pub fn digests(&self) -> Vec<PayloadDigest> {
        self.waiting.values().map(|waiting| waiting.digest).collect()
    }

    /// Drops what is ordered; `verdict_on` shows the verdict on a payload once there is one. What
    /// was ordered too late to count, or found no room in its commit, is signed anew.
    pub fn settle(
        &mut self,
        verdict_on: impl Fn(&PayloadDigest) -> Option<Verdict>,
        now: Instant,
        time: LedgerTime,
    ) {
        let mut late = Vec::new();
        self.waiting.retain(|subject, waiting| match verdict_on(&waiting.digest) {
            None => true,
            Some(Verdict::Accepted) => {
                info!(%subject, report = ?waiting.report, "a report is ordered");
                false
            }
            Some(Verdict::Refused(refusal)) => {
                warn!(%subject, report = ?waiting.report, %refusal, "a report was ordered and refused");
                if matches!(refusal.code, RefusalCode::Expired | RefusalCode::CommitFull) {
                    late.push(waiting.report.clone());
                }
                false
            }
        });
        late.into_iter().for_each(|report| self.put(report, now, time));
    }

    /// How many reports wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Cuts `text` to at most `bytes_max` bytes, between two characters.
fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
    }
}
