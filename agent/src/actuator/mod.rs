//! Carries out steps: the only part of the agent that changes a machine or a disk.
//!
//! Owns the workers: one step at a time per VM and volume, a bounded number in all, each on a
//! thread of its own with a deadline, so that a hypervisor that hangs never holds up the agent.
//! What takes hours, and what must never wait for others, have workers of their own.
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

use self::limits::{
    COPIES_PER_ACCOUNT_MAX, COPIES_TOGETHER_MAX, HALTS_TOGETHER_MAX, STEPS_TOGETHER_MAX,
    STOPS_TOGETHER_MAX, TURN_WAIT_MAX, copies_volume, step_wait_max, volume_step_wait_max,
};
use crate::controller::{Finished, HaltJob, Job, Outcome, Step, VolumeFinished, VolumeJob};
use crate::handover::ReportSubject;
use crate::turns::AccountTurns;

pub use perform::Performer;

/// A step that ended.
#[derive(Debug)]
pub enum Ended {
    /// For a VM.
    Vm(Finished),
    /// For a volume.
    Volume(VolumeFinished),
}

/// Workers that one kind of step has for itself.
#[derive(Debug)]
struct Lanes {
    steps: Arc<Semaphore>,
    copies: Arc<Semaphore>,
    copies_of_account: AccountTurns,
    stops: Arc<Semaphore>,
    halts: Arc<Semaphore>,
}

impl Lanes {
    fn new() -> Self {
        let lane = |workers| Arc::new(Semaphore::new(workers));
        Self {
            steps: lane(STEPS_TOGETHER_MAX),
            copies: lane(COPIES_TOGETHER_MAX),
            copies_of_account: AccountTurns::new(COPIES_PER_ACCOUNT_MAX),
            stops: lane(STOPS_TOGETHER_MAX),
            halts: lane(HALTS_TOGETHER_MAX),
        }
    }

    /// What switches a machine off waits for nothing that makes one.
    fn of_step(&self, step: Step) -> Vec<Arc<Semaphore>> {
        let lane = match step {
            Step::AskShutdown | Step::Destroy => &self.stops,
            Step::Image
            | Step::Disk
            | Step::Seed
            | Step::Network
            | Step::Define
            | Step::Tag
            | Step::Start
            | Step::Pause
            | Step::Resume
            | Step::Volumes
            | Step::Undefine
            | Step::Disconnect
            | Step::Quarantine => &self.steps,
        };
        vec![Arc::clone(lane)]
    }

    /// Who waits for an account's turn takes none of the places that others may have.
    fn of_volume_step(&self, job: &VolumeJob) -> Vec<Arc<Semaphore>> {
        match copies_volume(job) {
            true => {
                let own = self.copies_of_account.of(job.volume.account);
                vec![own, Arc::clone(&self.copies)]
            }
            false => vec![Arc::clone(&self.steps)],
        }
    }
}

/// The workers.
pub struct Actuator {
    performer: Arc<Performer>,
    lanes: Lanes,
    /// One permit per VM or volume that has a worker or had one whose thread has not returned.
    turns: HashMap<ReportSubject, Arc<Semaphore>>,
    running: JoinSet<std::io::Result<Ended>>,
}

impl Actuator {
    /// Idle workers.
    pub fn new(performer: Arc<Performer>) -> Self {
        Self { performer, lanes: Lanes::new(), turns: HashMap::new(), running: JoinSet::new() }
    }

    /// Begins a step; its end comes from [`Actuator::next_finished`].
    pub fn begin(&mut self, job: Job) {
        let subject = ReportSubject::Vm(job.vm.id);
        let (vm, generation, step) = (job.vm.id, job.tags.generation, job.action.step());
        let performer = Arc::clone(&self.performer);
        let work = Work {
            lane: self.lanes.of_step(step),
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
            lane: vec![Arc::clone(&self.lanes.halts)],
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
            lane: self.lanes.of_volume_step(&job),
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
        self.running.spawn(carry_out(Arc::clone(turn), work));
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
    /// Where it needs a place, in this order.
    lane: Vec<Arc<Semaphore>>,
    name: String,
    wait_max: Duration,
    perform: P,
    failed: F,
}

/// A place in each.
async fn places(lane: &[Arc<Semaphore>]) -> Option<Vec<OwnedSemaphorePermit>> {
    let mut places = Vec::new();
    for semaphore in lane {
        places.push(Arc::clone(semaphore).acquire_owned().await.ok()?);
    }
    Some(places)
}

/// One step: wait for the turn, run on a thread, watch the deadline.
async fn carry_out<P, F>(turn: Arc<Semaphore>, work: Work<P, F>) -> std::io::Result<Ended>
where
    P: FnOnce() -> std::io::Result<Ended> + Send + 'static,
    F: Fn(Outcome) -> Ended + Send + Sync + 'static,
{
    let Work { lane, name, wait_max, perform, failed } = work;
    let ended = |outcome: Outcome| Ok(failed(outcome));
    let Ok(turn) = turn.try_acquire_owned() else {
        return ended(Outcome::Unknown(
            "hypervisor_hangs: an earlier call has not returned".to_owned(),
        ));
    };
    let Ok(Some(places)) = tokio::time::timeout(TURN_WAIT_MAX, places(&lane)).await else {
        return ended(Outcome::Retryable("host_busy: no worker became free".to_owned()));
    };
    let (sender, receiver) = oneshot::channel();
    let permits = (turn, places, lane);
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use dagger_payload::id::{AccountId, Generation, VmId};

    use super::*;

    type Job = Work<Box<dyn FnOnce() -> std::io::Result<Ended> + Send>, fn(Outcome) -> Ended>;

    fn ended(outcome: Outcome) -> Ended {
        let (generation, step) = (Generation(1), Step::Destroy);
        Ended::Vm(Finished { vm: VmId([1; 16]), generation, step, outcome, sighting: None })
    }

    /// A step in this lane that says when it begins and then waits for a word.
    fn step(lane: Vec<Arc<Semaphore>>, begun: &mpsc::Sender<()>) -> (Job, mpsc::Sender<()>) {
        let (go, word) = mpsc::channel();
        let begun = begun.clone();
        let perform = move || {
            let _ = begun.send(());
            let _ = word.recv();
            Ok(ended(Outcome::Done))
        };
        let (name, wait_max) = ("test".to_owned(), Duration::from_secs(60));
        (Work { lane, name, wait_max, perform: Box::new(perform), failed: ended }, go)
    }

    async fn begins(begun: mpsc::Receiver<()>) -> mpsc::Receiver<()> {
        let wait = move || {
            begun.recv_timeout(Duration::from_secs(20)).expect("it begins");
            begun
        };
        tokio::task::spawn_blocking(wait).await.expect("no panic")
    }

    #[tokio::test]
    async fn copies_of_all_accounts_hold_up_no_step_and_none_of_these_a_stop() {
        let lanes = Lanes::new();
        let (told, mut begun) = mpsc::channel();
        let mut words = Vec::new();
        let mut running = JoinSet::new();
        let mut run = |lane: Vec<Arc<Semaphore>>| {
            let (work, go) = step(lane, &told);
            words.push(go);
            running.spawn(carry_out(Arc::new(Semaphore::new(1)), work));
        };
        let copy = |account: u8| {
            let own = lanes.copies_of_account.of(AccountId([account; 16]));
            vec![own, Arc::clone(&lanes.copies)]
        };
        // One account's many copies leave a place to another's.
        for _ in 0..10 {
            run(copy(1));
        }
        run(copy(2));
        for _ in 0..COPIES_TOGETHER_MAX {
            begun = begins(begun).await;
        }
        for _ in 0..STEPS_TOGETHER_MAX {
            run(lanes.of_step(Step::Image));
            begun = begins(begun).await;
        }
        for _ in 0..STOPS_TOGETHER_MAX {
            run(lanes.of_step(Step::Destroy));
            begun = begins(begun).await;
        }
        run(vec![Arc::clone(&lanes.halts)]);
        begun = begins(begun).await;
        assert!(begun.try_recv().is_err(), "no other copy has begun");
        drop(words);
        while let Some(ended) = running.join_next().await {
            let Ok(Ok(Ended::Vm(finished))) = ended else { panic!("{ended:?}") };
            assert_eq!(finished.outcome, Outcome::Done);
        }
    }
}
