//! Proofs that wait for the state of the next checkpoint.
//!
//! Owns how many may wait: they are made between two commits, while nothing is judged. Never holds
//! an old state: a proof is of the state as it then is. Called by the court.

use std::collections::VecDeque;

use dagger_bus::judging::AdmissionOutcome;
use dagger_bus::limits::PROOFS_WAITING_MAX;
use dagger_payload::state_tree::Subject;
use tokio::sync::oneshot;

use crate::judge::Judge;

/// A proof that was asked for.
pub(super) enum Proving {
    /// It is made.
    Done(AdmissionOutcome),
    /// It comes here; an error means that it never will.
    Waits(oneshot::Receiver<AdmissionOutcome>),
}

/// Subjects that wait, the oldest first.
#[derive(Default)]
pub(super) struct WaitingProofs {
    subjects: VecDeque<(Subject, oneshot::Sender<AdmissionOutcome>)>,
}

impl WaitingProofs {
    /// One more; when too many wait, the oldest waits no longer. So nobody can keep others out by
    /// asking, and in a cluster that is silent for hours nothing gathers.
    pub(super) fn add(&mut self, subject: Subject) -> oneshot::Receiver<AdmissionOutcome> {
        if self.subjects.len() >= PROOFS_WAITING_MAX {
            self.subjects.pop_front();
        }
        let (answer, answered) = oneshot::channel();
        self.subjects.push_back((subject, answer));
        answered
    }

    /// Makes those for which somebody still waits.
    pub(super) fn answer(&mut self, judge: &mut Judge) {
        for (subject, answer) in self.subjects.drain(..) {
            if !answer.is_closed() {
                let proof = Box::new(judge.prove(&subject));
                // Whoever asked may go away in this moment.
                let _ = answer.send(AdmissionOutcome::Proven { proof });
            }
        }
    }
}
