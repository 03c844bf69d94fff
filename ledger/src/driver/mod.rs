//! The driver: the one thread that owns the consensus core, feeds it and carries out what it wants.
//!
//! Owns the core, the clocks that it is told, and the order of outputs: what must follow a write
//! waits here until the writer says that it is durable. Never decides anything that the core could.
//! There is no lock around the core; status and commits are published for others to read. Called by
//! the daemon.

pub mod commits;
mod serve;
pub mod start;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use dagger_ledger_core::{Core, CoreStatus, Input, Moment, Output, Record, WriteNumber};
use dagger_payload::event::Event;
use dagger_payload::handover::Handover;
use dagger_payload::id::{AuthorIndex, LedgerTime};
use dagger_payload::release::OrderedCommit;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::delivery::evidence::Evidence;
use crate::exit::{Stop, StopHandle};
use crate::limits::CORE_INPUTS_PER_TURN_MAX;
use crate::link::inspect::KnownEvents;
use crate::link::{LinkEvent, Links};
use crate::store::Change;
use crate::store::records::Recorder;
use crate::store::witness::Signed;
use crate::store::writer::{Waiter, WriterHandle};
use commits::Commits;
use serve::Servers;

/// What delivery tells the core, over a bounded channel.
pub type LocalInputs = mpsc::Sender<Input>;

/// What waits until a write is durable.
enum Waiting {
    Send(AuthorIndex, Bytes),
    Broadcast(Bytes),
    Committed(OrderedCommit),
    Stored(Arc<Event>),
    EpochBegan(Handover),
}

/// All that the driver works with.
pub struct Driver {
    core: Core,
    links: Links,
    known: Arc<KnownEvents>,
    recorder: Recorder,
    writer: WriterHandle,
    servers: Servers,
    commits: Arc<Commits>,
    evidence: Arc<Evidence>,
    status: watch::Sender<Option<CoreStatus>>,
    stop: StopHandle,
    started: Instant,
    wake_at: Instant,
    waiting: VecDeque<(WriteNumber, Waiting)>,
    durable: WriteNumber,
    outputs: Vec<Output>,
}

/// Where inputs come from.
pub struct Sources {
    /// From the links.
    pub links: mpsc::Receiver<LinkEvent>,
    /// From delivery.
    pub local: mpsc::Receiver<Input>,
    /// From the writer.
    pub durable: watch::Receiver<WriteNumber>,
    /// Ends the driver.
    pub stopping: CancellationToken,
}

/// Only one of the daemon's states ends the driver early.
enum Turn {
    Goes,
    Ends,
}

fn wall() -> LedgerTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    LedgerTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn input_of(event: LinkEvent) -> Option<Input> {
    match event {
        LinkEvent::Connected(peer) => Some(Input::PeerConnected(peer)),
        LinkEvent::Closed(peer) => Some(Input::PeerDisconnected(peer)),
        LinkEvent::Event(from, event) => Some(Input::EventReceived { from, event }),
        // A second Hello says nothing new, and events come in their own form.
        LinkEvent::Message(from, message) => Input::of_message(from, message),
    }
}

impl Driver {
    /// Takes inputs and carries out outputs until told to stop.
    pub async fn run(mut self, mut sources: Sources) {
        self.take(Input::Tick);
        while let Turn::Goes = self.carry_out() {
            let input = tokio::select! {
                () = sources.stopping.cancelled() => return,
                Some(event) = sources.links.recv() => input_of(event),
                Some(input) = sources.local.recv() => Some(input),
                Ok(()) = sources.durable.changed() => {
                    Some(self.became_durable(*sources.durable.borrow_and_update()))
                }
                () = tokio::time::sleep_until(self.wake_at) => Some(Input::Tick),
            };
            if let Some(input) = input {
                self.take(input);
            }
            self.take_waiting(&mut sources);
        }
    }

    /// Takes what else waits, so that one write covers it all.
    fn take_waiting(&mut self, sources: &mut Sources) {
        for _ in 0..CORE_INPUTS_PER_TURN_MAX {
            let link = sources.links.try_recv().ok();
            let local = sources.local.try_recv().ok();
            if link.is_none() && local.is_none() {
                return;
            }
            for input in [link.and_then(input_of), local].into_iter().flatten() {
                self.take(input);
            }
        }
    }

    fn take(&mut self, input: Input) {
        let elapsed = self.started.elapsed().as_millis();
        let now = Moment(u64::try_from(elapsed).unwrap_or(u64::MAX));
        self.core.handle(now, wall(), input, &mut self.outputs);
    }

    fn carry_out(&mut self) -> Turn {
        let mut changes = Vec::new();
        let mut signed = None;
        let mut newest = None;
        for output in std::mem::take(&mut self.outputs) {
            match output {
                Output::Write { number, records } => {
                    newest = Some(number);
                    signed = signed.max(self.record(number, &records, &mut changes));
                }
                Output::Send { to, message, after } => {
                    self.wait_for(after, Waiting::Send(to, message.to_bytes().into()));
                }
                Output::Broadcast { message, after } => {
                    self.wait_for(after, Waiting::Broadcast(message.to_bytes().into()));
                }
                Output::Committed { commit, after } => {
                    self.wait_for(after, Waiting::Committed(commit));
                }
                Output::ServeStored { to, epoch, above, below } => {
                    self.servers.serve_stored(&self.links, to, epoch, &above, below);
                }
                Output::EpochBegan { handover, after } => {
                    self.wait_for(after, Waiting::EpochBegan(handover));
                }
                Output::ServeDigests { to, digests } => {
                    self.servers.serve_digests(&self.links, to, digests);
                }
                Output::WakeAt(moment) => {
                    // Never in the past: a wish that is due already is met by the next turn of the
                    // timer.
                    let at = self.started + Duration::from_millis(moment.0.min(FAR_AHEAD_MS));
                    self.wake_at = at.max(Instant::now() + Duration::from_millis(1));
                }
                Output::Halted(reason) => {
                    self.stop.stop(Stop::Broken(Box::new(reason)));
                    return Turn::Ends;
                }
            }
        }
        if let Some(number) = newest {
            let waiter = Waiter::Core { number, signed };
            if self.writer.write(changes, waiter).is_err() {
                return Turn::Ends;
            }
        }
        self.release();
        self.publish();
        Turn::Goes
    }

    fn record(
        &mut self,
        number: WriteNumber,
        records: &[Record],
        changes: &mut Vec<Change>,
    ) -> Option<Signed> {
        let (mut more, signed) = self.recorder.changes_of(records);
        changes.append(&mut more);
        for record in records {
            if let Record::Event(event) | Record::OwnEventReturned(event) = record {
                self.known.remember(event.digest);
                self.wait_for(number, Waiting::Stored(event.clone()));
            }
        }
        signed
    }

    fn wait_for(&mut self, after: WriteNumber, what: Waiting) {
        self.waiting.push_back((after, what));
    }

    fn became_durable(&mut self, number: WriteNumber) -> Input {
        self.durable = number;
        Input::WriteDurable(number)
    }

    /// Carries out, in order, everything whose write is durable.
    fn release(&mut self) {
        while let Some((after, _)) = self.waiting.front()
            && *after <= self.durable
            && let Some((_, what)) = self.waiting.pop_front()
        {
            match what {
                Waiting::Send(to, frame) => self.links.send(to, frame),
                Waiting::Broadcast(frame) => self.links.broadcast(&frame),
                Waiting::Committed(commit) => self.commits.publish(commit),
                Waiting::Stored(event) => self.evidence.note(&event),
                Waiting::EpochBegan(handover) => {
                    tracing::info!(
                        epoch = handover.epoch.0,
                        members = handover.committee.members(),
                        after = handover.founding.end.index.0,
                        "a new epoch begins"
                    );
                    self.evidence.epoch_began(&handover);
                }
            }
        }
    }

    fn publish(&self) {
        let status = Some(self.core.status());
        self.status.send_if_modified(|shown| {
            let changed = *shown != status;
            *shown = status;
            changed
        });
    }
}

/// Thirty years: as good as never.
const FAR_AHEAD_MS: u64 = 1_000_000_000_000;
