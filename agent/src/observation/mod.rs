//! Sees what the hypervisor shows, and says so.
//!
//! Owns the connection's life (open, watch, give up, open again with growing pauses), looks at
//! single machines after their events, and full listings: at the start, after every new connection,
//! and at times. Unknown is not absent: only a full listing over a live connection says that
//! something is not there. Never changes a machine, never decides. Feeds the controller; keeps the
//! hypervisor's line on the [`SightBoard`].

mod console;
mod desk;
mod files;
mod limits;
mod tail;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dagger_payload::id::VmId;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::limits::{
    CALL_WAIT_MAX, CALLS_HANGING_MAX, CONNECT_WAIT_MAX, LISTING_EVERY, RECONNECT_WAIT_FIRST,
    RECONNECT_WAIT_MAX,
};
use crate::controller::{Input, Seen, Sighting};
use crate::handover::SightBoard;
use crate::hypervisor::announcer::Announcer;
use crate::hypervisor::{Change, Hypervisor, HypervisorError, Inventory};

pub use console::{ConsoleReader, find_host_key};
pub use desk::ConsoleDesk;
pub use files::{ConsoleFile, ConsoleFiles};
pub use limits::{CHANGES_WAITING_MAX, LOOKS_WAITING_MAX};
pub use tail::ConsoleTail;

/// Numbers looks in the order in which they began.
#[derive(Debug, Clone, Default)]
pub struct Tickets {
    drawn: Arc<AtomicU64>,
}

impl Tickets {
    /// The next number; the first is 1.
    pub fn draw(&self) -> u64 {
        self.drawn.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// The observer of one host.
pub struct Observation {
    /// Who is asked.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Numbers looks.
    pub tickets: Tickets,
    /// What happens at the hypervisor.
    pub changes: mpsc::Receiver<Change>,
    /// Tells whether changes were missed.
    pub announcer: Announcer,
    /// What the controller wants looked at.
    pub looks: mpsc::Receiver<VmId>,
    /// To the controller.
    pub inputs: mpsc::Sender<Input>,
    /// Where the hypervisor's own line is shown.
    pub board: SightBoard,
}

/// What ended the watch.
enum End {
    /// The controller is gone.
    Stopped,
    /// The hypervisor cannot be asked.
    Lost(String),
}

/// What to do next while the hypervisor answers.
enum Next {
    Look(VmId),
    List,
    End(End),
}

impl Observation {
    /// Watches until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let calls = Calls::new(Arc::clone(&self.hypervisor));
        let mut pause = RECONNECT_WAIT_FIRST;
        while !stop.is_cancelled() {
            let connected = calls.run(CONNECT_WAIT_MAX, |hypervisor| hypervisor.connect());
            let Some(connected) = stop.run_until_cancelled(connected).await else { return };
            let end = match connected {
                Ok(description) => {
                    tracing::info!(%description, "the hypervisor answers");
                    pause = RECONNECT_WAIT_FIRST;
                    let shown = description.clone();
                    self.board.update(|contents| contents.hypervisor = Some(Ok(shown)));
                    let Some(end) = stop.run_until_cancelled(self.watch(&calls)).await else {
                        return;
                    };
                    end
                }
                Err(error) => End::Lost(error.to_string()),
            };
            let End::Lost(reason) = end else { return };
            self.lose(reason, &calls).await;
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            pause = (pause * 2).min(RECONNECT_WAIT_MAX);
        }
    }

    /// Says that nothing is known, and gives the connection up.
    async fn lose(&mut self, reason: String, calls: &Calls) {
        let news = self.board.read(|contents| !matches!(contents.hypervisor, Some(Err(_))));
        if news {
            tracing::warn!(%reason, "the hypervisor cannot be asked; nothing is changed until it can");
        }
        self.board.update(|contents| contents.hypervisor = Some(Err(reason)));
        let _ = self.inputs.send(Input::SightLost { ticket: self.tickets.draw() }).await;
        let disconnected = calls.run(CALL_WAIT_MAX, |hypervisor| {
            hypervisor.disconnect();
            Ok(())
        });
        let _ = disconnected.await;
        // What the old connection announced is covered by the next full listing.
        while self.changes.try_recv().is_ok() {}
    }

    /// Lists, then follows changes for as long as the hypervisor answers.
    async fn watch(&mut self, calls: &Calls) -> End {
        if let Err(end) = self.list(calls).await {
            return end;
        }
        let mut listing = tokio::time::interval(LISTING_EVERY);
        listing.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        listing.reset();
        loop {
            let next = tokio::select! {
                change = self.changes.recv() => match change {
                    Some(Change::Machine(vm)) => Next::Look(vm),
                    Some(Change::ConnectionLost(reason)) => Next::End(End::Lost(reason)),
                    None => Next::End(End::Stopped),
                },
                look = self.looks.recv() => look.map_or(Next::End(End::Stopped), Next::Look),
                _ = listing.tick() => Next::List,
            };
            let step = match next {
                Next::End(end) => Err(end),
                _ if self.announcer.take_missed() => self.list(calls).await,
                Next::List => self.list(calls).await,
                Next::Look(vm) => self.look(calls, vm).await,
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn list(&self, calls: &Calls) -> Result<(), End> {
        let ticket = self.tickets.draw();
        let machines = calls.run(CALL_WAIT_MAX, |hypervisor| hypervisor.list()).await;
        let machines = machines.map_err(|error| End::Lost(error.to_string()))?;
        self.say(Input::Inventory { ticket, machines }).await
    }

    async fn look(&self, calls: &Calls, vm: VmId) -> Result<(), End> {
        let ticket = self.tickets.draw();
        let machine = calls.run(CALL_WAIT_MAX, move |hypervisor| hypervisor.look(vm)).await;
        match machine.map_err(|error| End::Lost(error.to_string()))? {
            Some(machine) => {
                let sighting = Sighting { ticket, seen: Seen::Present(machine) };
                self.say(Input::Sighting(vm, sighting)).await
            }
            None => self.list(calls).await,
        }
    }

    async fn say(&self, input: Input) -> Result<(), End> {
        self.inputs.send(input).await.map_err(|_| End::Stopped)
    }
}

/// Calls that block, each on a thread of its own with a deadline; a few may hang, then no more are
/// begun.
pub(crate) struct Calls {
    hypervisor: Arc<dyn Hypervisor>,
    hanging: Arc<Semaphore>,
}

impl Calls {
    /// Calls to `hypervisor`.
    pub(crate) fn new(hypervisor: Arc<dyn Hypervisor>) -> Self {
        Self { hypervisor, hanging: Arc::new(Semaphore::new(CALLS_HANGING_MAX)) }
    }

    /// A full listing.
    pub(crate) async fn list(&self) -> Result<Inventory, HypervisorError> {
        self.run(CALL_WAIT_MAX, |hypervisor| hypervisor.list()).await
    }

    /// What stands where nothing of ours should.
    pub(crate) async fn strays(&self) -> Result<Vec<String>, HypervisorError> {
        self.run(CALL_WAIT_MAX, |hypervisor| hypervisor.strays()).await
    }

    async fn run<T: Send + 'static>(
        &self,
        wait: Duration,
        call: impl FnOnce(&dyn Hypervisor) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let unavailable = |why: &str| HypervisorError::Unavailable(why.to_owned());
        let Ok(permit) = Arc::clone(&self.hanging).try_acquire_owned() else {
            return Err(unavailable("too many calls to the hypervisor have not returned"));
        };
        let (sender, receiver) = oneshot::channel();
        let hypervisor = Arc::clone(&self.hypervisor);
        let work = move || {
            let answer = call(hypervisor.as_ref());
            drop(permit);
            // Nobody listens any more when the deadline passed; a look without a listener is lost,
            // not harmful.
            let _ = sender.send(answer);
        };
        std::thread::Builder::new()
            .name("observation".to_owned())
            .spawn(work)
            .map_err(|error| HypervisorError::Unavailable(format!("no thread: {error}")))?;
        match tokio::time::timeout(wait, receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(unavailable("the call ended without an answer")),
            Err(_) => Err(unavailable("the hypervisor does not answer in time")),
        }
    }
}
