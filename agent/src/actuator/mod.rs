//! Carries out steps: the only part of the agent that changes a machine or a disk.
//!
//! Owns the workers: one step at a time per VM, a bounded number in all, each on a thread of its
//! own with a deadline, so that a hypervisor that hangs never holds up the agent. Never decides:
//! the controller does. A thread that missed its deadline keeps its VM until it returns, so that a
//! late call never crosses a newer one.

pub mod disks;
mod limits;
mod perform;
pub mod store;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dagger_payload::id::VmId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;

use self::limits::{STEPS_TOGETHER_MAX, TURN_WAIT_MAX, step_wait_max};
use crate::controller::{Finished, Job, Outcome};

pub use perform::Performer;

/// The workers.
pub struct Actuator {
    performer: Arc<Performer>,
    together: Arc<Semaphore>,
    /// One permit per VM that has a worker or had one whose thread has not returned.
    turns: HashMap<VmId, Arc<Semaphore>>,
    running: JoinSet<std::io::Result<Finished>>,
}

impl Actuator {
    /// Idle workers.
    pub fn new(performer: Arc<Performer>) -> Self {
        Self {
            performer,
            together: Arc::new(Semaphore::new(STEPS_TOGETHER_MAX)),
            turns: HashMap::new(),
            running: JoinSet::new(),
        }
    }

    /// Begins a step; its end comes from [`Actuator::next_finished`].
    pub fn begin(&mut self, job: Job) {
        // A semaphore that only this table still holds belongs to a VM without any worker.
        self.turns.retain(|_, turn| Arc::strong_count(turn) > 1 || turn.available_permits() == 0);
        let turn = self.turns.entry(job.vm.id).or_insert_with(|| Arc::new(Semaphore::new(1)));
        let (turn, together) = (Arc::clone(turn), Arc::clone(&self.together));
        self.running.spawn(carry_out(Arc::clone(&self.performer), together, turn, job));
    }

    /// The next step that ended; pending for ever while none runs.
    ///
    /// # Errors
    /// The journal could not be written, so nothing was done: the agent must stop.
    pub async fn next_finished(&mut self) -> std::io::Result<Finished> {
        match self.running.join_next().await {
            Some(Ok(ended)) => ended,
            Some(Err(error)) => Err(std::io::Error::other(error)),
            None => std::future::pending().await,
        }
    }

    /// Waits for the steps under way, but not longer than `wait`; what is left is found again by
    /// the next start.
    pub async fn end(mut self, wait: Duration) {
        let all = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(wait, all).await.is_err() {
            tracing::info!("left steps under way behind; the next start ensures them again");
        }
    }
}

/// One step: wait for the turn, run on a thread, watch the deadline.
async fn carry_out(
    performer: Arc<Performer>,
    together: Arc<Semaphore>,
    turn: Arc<Semaphore>,
    job: Job,
) -> std::io::Result<Finished> {
    let (vm, step) = (job.vm.id, job.action.step());
    let ended = |outcome: Outcome| Ok(Finished { vm, step, outcome, sighting: None });
    let Ok(turn) = turn.try_acquire_owned() else {
        return ended(Outcome::Unknown(
            "hypervisor_hangs: an earlier call for this VM has not returned".to_owned(),
        ));
    };
    let Ok(Ok(together)) = tokio::time::timeout(TURN_WAIT_MAX, together.acquire_owned()).await
    else {
        return ended(Outcome::Retryable("host_busy: no worker became free".to_owned()));
    };
    let (sender, receiver) = oneshot::channel();
    let permits: [OwnedSemaphorePermit; 2] = [turn, together];
    let work = move || {
        let finished = performer.perform(&job);
        drop(permits);
        // Nobody listens any more when the deadline passed; what came of it is found by looking.
        let _ = sender.send(finished);
    };
    if let Err(error) = std::thread::Builder::new().name(format!("vm-{step:?}")).spawn(work) {
        return ended(Outcome::Retryable(format!("host_busy: no thread could be made: {error}")));
    }
    match tokio::time::timeout(step_wait_max(step), receiver).await {
        Ok(Ok(finished)) => finished,
        Ok(Err(_)) => Err(std::io::Error::other(format!("the worker of step {step:?} panicked"))),
        Err(_) => ended(Outcome::Unknown(format!(
            "deadline_passed: {step:?} took longer than {} s",
            step_wait_max(step).as_secs()
        ))),
    }
}
