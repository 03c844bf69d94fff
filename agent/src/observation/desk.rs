//! Gives consoles of this host's machines to whoever sits down at one.
//!
//! Owns the lines that are open for typing: one per machine, shared by everybody who types there,
//! closed when the last one leaves. Never reads what is typed. Started by [`crate::machines`],
//! asked through [`ConsoleRequest`]s by the API.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use dagger_payload::id::VmId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::limits::CONSOLE_INPUTS_MAX;
use crate::handover::{ConsoleProblem, ConsoleRequest, ConsoleTyping};
use crate::hypervisor::{ConsoleInput, Hypervisor, HypervisorError, Machine, Power};

/// The desk.
pub struct ConsoleDesk {
    /// Whose machines.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Who asks.
    pub requests: mpsc::Receiver<ConsoleRequest>,
}

impl ConsoleDesk {
    /// Answers until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut open: BTreeMap<VmId, mpsc::WeakSender<Bytes>> = BTreeMap::new();
        while let Some(Some(request)) = stop.run_until_cancelled(self.requests.recv()).await {
            open.retain(|_, input| input.upgrade().is_some_and(|input| !input.is_closed()));
            let known = open.get(&request.vm).and_then(mpsc::WeakSender::upgrade);
            let opened = match known {
                Some(input) => Ok(input),
                None => self.open(request.vm).await,
            };
            if let Ok(input) = &opened {
                open.insert(request.vm, input.downgrade());
            }
            // Who has gone away meanwhile leaves the line to be closed.
            let _ = request.reply.send(opened);
        }
    }

    async fn open(&self, vm: VmId) -> Result<ConsoleTyping, ConsoleProblem> {
        let hypervisor = Arc::clone(&self.hypervisor);
        let opening = tokio::task::spawn_blocking(move || open_running(&*hypervisor, vm));
        let opened =
            opening.await.map_err(|error| ConsoleProblem::Unavailable(error.to_string()))?;
        let mut line = opened?;
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
        spawned.map_err(|error| ConsoleProblem::Unavailable(error.to_string()))?;
        Ok(input)
    }
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
