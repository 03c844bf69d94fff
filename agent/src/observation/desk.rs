//! Gives consoles of this host's machines to whoever sits down at one.
//!
//! Owns the lines that are open for typing: one per machine, shared by everybody who types there,
//! closed when the last one leaves. Machines are opened beside each other, so that one that hangs
//! keeps nobody from another. Never reads what is typed. Started by [`crate::machines`], asked
//! through [`ConsoleRequest`]s by the API.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use dagger_payload::id::VmId;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::limits::{CONSOLE_INPUTS_MAX, CONSOLE_OPEN_WAIT_MAX, CONSOLE_OPENS_TOGETHER_MAX};
use crate::handover::{ConsoleProblem, ConsoleRequest, ConsoleTyping};
use crate::hypervisor::{ConsoleInput, Hypervisor, HypervisorError, Machine, Power};

/// The desk.
pub struct ConsoleDesk {
    /// Whose machines.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Who asks.
    pub requests: mpsc::Receiver<ConsoleRequest>,
}

type Opened = Result<ConsoleTyping, ConsoleProblem>;

/// What is open, and what is just being opened for those who wait for it.
#[derive(Default)]
struct Lines {
    open: BTreeMap<VmId, mpsc::WeakSender<Bytes>>,
    waiting: BTreeMap<VmId, Vec<oneshot::Sender<Opened>>>,
    opening: JoinSet<(VmId, Opened)>,
}

impl ConsoleDesk {
    /// Answers until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let turns = Arc::new(Semaphore::new(CONSOLE_OPENS_TOGETHER_MAX));
        let mut lines = Lines::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                request = self.requests.recv() => {
                    let Some(request) = request else { return };
                    lines.ask(request, &self.hypervisor, &turns);
                }
                Some(opened) = lines.opening.join_next() => {
                    // A task of ours panics only with the whole daemon.
                    if let Ok((vm, opened)) = opened {
                        lines.tell(vm, opened);
                    }
                }
            }
        }
    }
}

impl Lines {
    fn ask(
        &mut self,
        ConsoleRequest { vm, reply }: ConsoleRequest,
        hypervisor: &Arc<dyn Hypervisor>,
        turns: &Arc<Semaphore>,
    ) {
        self.open.retain(|_, input| input.upgrade().is_some_and(|input| !input.is_closed()));
        if let Some(input) = self.open.get(&vm).and_then(mpsc::WeakSender::upgrade) {
            let _ = reply.send(Ok(input));
        } else if let Some(waiting) = self.waiting.get_mut(&vm) {
            waiting.retain(|reply| !reply.is_closed());
            waiting.push(reply);
        } else {
            self.waiting.insert(vm, vec![reply]);
            let opening = open(vm, Arc::clone(hypervisor), Arc::clone(turns));
            self.opening.spawn(async move {
                let late = || ConsoleProblem::Unavailable("it does not open in time".to_owned());
                let opened = timeout(CONSOLE_OPEN_WAIT_MAX, opening).await;
                (vm, opened.unwrap_or_else(|_| Err(late())))
            });
        }
    }

    /// Who has gone away meanwhile leaves the line to be closed.
    fn tell(&mut self, vm: VmId, opened: Opened) {
        if let Ok(input) = &opened {
            self.open.insert(vm, input.downgrade());
        }
        for reply in self.waiting.remove(&vm).unwrap_or_default() {
            let _ = reply.send(opened.clone());
        }
    }
}

/// A call that hangs keeps its turn until it ends, though nobody waits for it any more.
async fn open(vm: VmId, hypervisor: Arc<dyn Hypervisor>, turns: Arc<Semaphore>) -> Opened {
    let unavailable =
        |error: &dyn std::fmt::Display| ConsoleProblem::Unavailable(error.to_string());
    let turn = turns.acquire_owned().await.map_err(|error| unavailable(&error))?;
    let opening = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        open_running(&*hypervisor, vm)
    });
    let mut line = opening.await.map_err(|error| unavailable(&error))??;
    let (input, mut typed) = mpsc::channel::<Bytes>(CONSOLE_INPUTS_MAX);
    let typing = move || {
        while let Some(bytes) = typed.blocking_recv() {
            if let Err(error) = line.write(&bytes) {
                tracing::debug!(%vm, %error, "a console takes nothing more");
                return;
            }
        }
    };
    let spawned = std::thread::Builder::new().name("console-in".to_owned()).spawn(typing);
    spawned.map_err(|error| unavailable(&error))?;
    Ok(input)
}

fn open_running(
    hypervisor: &dyn Hypervisor,
    vm: VmId,
) -> Result<Box<dyn ConsoleInput>, ConsoleProblem> {
    let unavailable = |error: HypervisorError| ConsoleProblem::Unavailable(error.to_string());
    match hypervisor.look(vm).map_err(unavailable)? {
        Some(Machine::Ours { power: Power::Running | Power::Paused, .. }) => {
            hypervisor.open_console(vm).map_err(unavailable)
        }
        Some(Machine::Ours { power: Power::Stopped, .. }) | None => Err(ConsoleProblem::NotRunning),
        Some(Machine::Foreign(why)) => Err(ConsoleProblem::Unavailable(why)),
    }
}
