//! Carries out steps: the only part of the agent that changes a machine or a disk.
//!
//! Owns the workers: one step at a time per VM and volume, a bounded number in all, each on a
//! thread of its own with a deadline, so that a hypervisor that hangs never holds up the agent.
//! Never decides: the controller does. A thread that missed its deadline keeps its VM until it
//! returns, so that a late call never crosses a newer one.

mod cards;
pub mod disks;
mod limits;
mod perform;
pub mod store;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;

use self::limits::{STEPS_TOGETHER_MAX, TURN_WAIT_MAX, step_wait_max, volume_step_wait_max};
use crate::controller::{Finished, HaltJob, Job, Outcome, VolumeFinished, VolumeJob};
use crate::handover::ReportSubject;

pub use perform::Performer;

/// A step that ended.
#[derive(Debug)]
pub enum Ended {
    /// For a VM.
    Vm(Finished),
    /// For a volume.
    Volume(VolumeFinished),
}

/// The workers.
pub struct Actuator {
    performer: Arc<Performer>,
    together: Arc<Semaphore>,
    /// One permit per VM or volume that has a worker or had one whose thread has not returned.
    turns: HashMap<ReportSubject, Arc<Semaphore>>,
    running: JoinSet<std::io::Result<Ended>>,
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
        let subject = ReportSubject::Vm(job.vm.id);
        let (vm, generation, step) = (job.vm.id, job.tags.generation, job.action.step());
        let performer = Arc::clone(&self.performer);
        let work = Work {
            name: format!("vm-{step:?}"),
            wait_max: step_wait_max(step),
            perform: move || performer.perform(&job).map(Ended::Vm),
            failed: move |outcome| {
                Ended::Vm(Finished { vm, generation, step, outcome, sighting: None })
            },
        };
        self.spawn(subject, work);
    }

    /// Begins to switch a machine off by its operator's word; the end comes from
    /// [`Actuator::next_finished`].
    pub fn begin_halt(&mut self, job: HaltJob) {
        let (vm, generation, step) = (job.record.vm, job.generation, job.rung.step());
        let performer = Arc::clone(&self.performer);
        let work = Work {
            name: format!("halt-{step:?}"),
            wait_max: step_wait_max(step),
            perform: move || performer.halt(&job).map(Ended::Vm),
            failed: move |outcome| {
                Ended::Vm(Finished { vm, generation, step, outcome, sighting: None })
            },
        };
        self.spawn(ReportSubject::Vm(vm), work);
    }

    /// Begins a step for a volume; its end comes from [`Actuator::next_finished`].
    pub fn begin_for_volume(&mut self, job: VolumeJob) {
        let volume = job.volume.id;
        let job = Arc::new(job);
        let (performer, begun) = (Arc::clone(&self.performer), Arc::clone(&job));
        let work = Work {
            name: "volume".to_owned(),
            wait_max: volume_step_wait_max(&job),
            perform: move || Ok(Ended::Volume(performer.perform_for_volume(&begun))),
            failed: move |outcome| Ended::Volume(job.finished(outcome)),
        };
        self.spawn(ReportSubject::Volume(volume), work);
    }

    fn spawn<P, F>(&mut self, subject: ReportSubject, work: Work<P, F>)
    where
        P: FnOnce() -> std::io::Result<Ended> + Send + 'static,
        F: Fn(Outcome) -> Ended + Send + Sync + 'static,
    {
        // A semaphore that only this table still holds belongs to one without any worker.
        self.turns.retain(|_, turn| Arc::strong_count(turn) > 1 || turn.available_permits() == 0);
        let turn = self.turns.entry(subject).or_insert_with(|| Arc::new(Semaphore::new(1)));
        let (turn, together) = (Arc::clone(turn), Arc::clone(&self.together));
        self.running.spawn(carry_out(together, turn, work));
    }

    /// The next step that ended; pending for ever while none runs.
    ///
    /// # Errors
    /// The journal could not be written, so nothing was done: the agent must stop.
    pub async fn next_finished(&mut self) -> std::io::Result<Ended> {
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

/// One step: what to do, for how long, and what to say if it was not done.
struct Work<P, F> {
    name: String,
    wait_max: Duration,
    perform: P,
    failed: F,
}

/// One step: wait for the turn, run on a thread, watch the deadline.
async fn carry_out<P, F>(
    together: Arc<Semaphore>,
    turn: Arc<Semaphore>,
    work: Work<P, F>,
) -> std::io::Result<Ended>
where
    P: FnOnce() -> std::io::Result<Ended> + Send + 'static,
    F: Fn(Outcome) -> Ended + Send + Sync + 'static,
{
    let Work { name, wait_max, perform, failed } = work;
    let ended = |outcome: Outcome| Ok(failed(outcome));
    let Ok(turn) = turn.try_acquire_owned() else {
        return ended(Outcome::Unknown(
            "hypervisor_hangs: an earlier call has not returned".to_owned(),
        ));
    };
    let Ok(Ok(together)) = tokio::time::timeout(TURN_WAIT_MAX, together.acquire_owned()).await
    else {
        return ended(Outcome::Retryable("host_busy: no worker became free".to_owned()));
    };
    let (sender, receiver) = oneshot::channel();
    let permits: [OwnedSemaphorePermit; 2] = [turn, together];
    let work = move || {
        let finished = perform();
        drop(permits);
        // Nobody listens any more when the deadline passed; what came of it is found by looking.
        let _ = sender.send(finished);
    };
    if let Err(error) = std::thread::Builder::new().name(name.clone()).spawn(work) {
        return ended(Outcome::Retryable(format!("host_busy: no thread could be made: {error}")));
    }
    match tokio::time::timeout(wait_max, receiver).await {
        Ok(Ok(finished)) => finished,
        Ok(Err(_)) => Err(std::io::Error::other(format!("the worker {name} panicked"))),
        Err(_) => ended(Outcome::Unknown(format!(
            "deadline_passed: {name} took longer than {} s",
            wait_max.as_secs()
        ))),
    }
}
