//! The driver: the one thread that owns the consensus core, feeds it and carries out what it wants.
//!
//! Owns the core, the clocks that it is told, and the order of outputs: what must follow a write
//! waits here until the writer says that it is durable. Never decides anything that the core could.
//! There is no lock around the core; status and commits are published for others to read. Called by
//! the daemon.

pub mod commits;
mod serve;
pub mod start;
mod waiting;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dagger_ledger_core::{
    ClockDoubt, Core, CoreStatus, Input, Moment, Output, Record, WriteNumber,
};
use dagger_payload::id::{AuthorIndex, LedgerTime};
use dagger_payload::peer::PeerMessage;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::delivery::evidence::Evidence;
use crate::delivery::forwarding::Heard as Receipt;
use crate::delivery::handing::Hands;
use crate::exit::{Stop, StopHandle};
use crate::limits::{CORE_INPUTS_PER_TURN_MAX, DRIVER_SLEEP_MIN, HELD_BYTES_MAX, HELD_WAIT_MAX};
use crate::link::heard::Heard as LinksHeard;
use crate::link::inspect::KnownEvents;
use crate::link::share::Standing;
use crate::link::{LinkEvent, Links};
use crate::seats::Seats;
use crate::store::Change;
use crate::store::records::Recorder;
use crate::store::witness::Signed;
use crate::store::writer::{Waiter, WriterHandle};
use crate::transfer::inbox::Inbox;
use commits::Commits;
use serve::Servers;
use waiting::{Waiting, WaitingLine};

/// What delivery tells the core, over a bounded channel.
pub type LocalInputs = mpsc::Sender<Input>;

/// Changes that nothing waits for yet: they share the next write.
#[derive(Default)]
struct Held {
    changes: Vec<Change>,
    bytes: usize,
    number: WriteNumber,
    /// The highest own round or handover in them.
    signed: Option<Signed>,
    /// Since when; none when there is nothing.
    since: Option<Instant>,
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
    parts: Inbox,
    hands: Hands,
    receipts: mpsc::Sender<Receipt>,
    seats: Arc<Seats>,
    status: watch::Sender<Option<CoreStatus>>,
    stop: StopHandle,
    started: Instant,
    wake_at: Instant,
    waiting: WaitingLine,
    durable: WriteNumber,
    /// The newest write that the writer has.
    handed: WriteNumber,
    held: Held,
    outputs: Vec<Output>,
}

/// Where inputs come from.
pub struct Sources {
    /// From the links.
    pub links: LinksHeard,
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
        LinkEvent::Closing(header, signed) => Some(Input::ClosingShown { header, signed }),
        // A second Hello says nothing new, and events come in their own form; the driver passes
        // parts of snapshots on by itself.
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
                Some(event) = sources.links.recv() => self.input_of(event),
                Some(input) = sources.local.recv() => Some(input),
                Ok(()) = sources.durable.changed() => {
                    Some(self.became_durable(*sources.durable.borrow_and_update()))
                }
                () = tokio::time::sleep_until(self.look_at()) => Some(Input::Tick),
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
            let link = sources.links.try_recv();
            let local = sources.local.try_recv().ok();
            if link.is_none() && local.is_none() {
                return;
            }
            let link = link.and_then(|event| self.input_of(event));
            for input in [link, local].into_iter().flatten() {
                self.take(input);
            }
        }
    }

    /// What a link says to the core. What concerns snapshots or submissions alone goes by it.
    fn input_of(&mut self, event: LinkEvent) -> Option<Input> {
        match event {
            LinkEvent::Message(from, PeerMessage::AskPart { part }) => {
                self.servers.serve_part(&self.links, from, part);
                None
            }
            LinkEvent::Message(from, PeerMessage::Part { part, bytes }) => {
                let votes = self.seats.voters().contains(from);
                let standing = if votes { Standing::Votes } else { Standing::Follows };
                self.parts.take((from, standing), part, bytes);
                None
            }
            LinkEvent::Message(from, PeerMessage::Submit { payload }) => {
                self.hands.take(from, payload);
                None
            }
            LinkEvent::Message(from, PeerMessage::Taken { digest, receipt }) => {
                // When too many wait, the payload is handed to another member.
                let _ = self.receipts.try_send(Receipt { from, digest, receipt });
                None
            }
            event => input_of(event),
        }
    }

    fn take(&mut self, input: Input) {
        let elapsed = self.started.elapsed().as_millis();
        let now = Moment(u64::try_from(elapsed).unwrap_or(u64::MAX));
        self.core.handle(now, wall(), input, &mut self.outputs);
    }

    fn carry_out(&mut self) -> Turn {
        for output in std::mem::take(&mut self.outputs) {
            match output {
                Output::Write { number, records } => {
                    self.record(number, &records);
                }
                Output::Send { to, message, after } => {
                    self.wait_for(after, Waiting::Send(to, message));
                }
                Output::Broadcast { message, after } => {
                    self.wait_for(after, Waiting::Broadcast(message));
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
                Output::ServeEvents { to, events, epoch } => {
                    self.servers.serve_events(&self.links, to, events, epoch);
                }
                Output::WakeAt(moment) => {
                    // Never in the past: a wish that is due already is met by the next turn of the
                    // timer.
                    let at = self.started + Duration::from_millis(moment.0.min(FAR_AHEAD_MS));
                    self.wake_at = at.max(Instant::now() + DRIVER_SLEEP_MIN);
                }
                Output::Halted(reason) => {
                    self.stop.stop(Stop::Broken(Box::new(reason)));
                    return Turn::Ends;
                }
            }
        }
        if self.is_write_due() {
            let held = std::mem::take(&mut self.held);
            self.handed = held.number;
            let waiter = Waiter::Core { number: held.number, signed: held.signed };
            if self.writer.write(held.changes, waiter).is_err() {
                return Turn::Ends;
            }
        }
        self.release();
        self.publish();
        Turn::Goes
    }

    /// Whether something waits for what is held, or it is enough.
    ///
    /// What peers sent alone is not urgent: an own event that names it takes it along, in one
    /// durable write instead of several, and so does a commit.
    fn is_write_due(&self) -> bool {
        let Some(since) = self.held.since else {
            return false;
        };
        let mut waiting = self.waiting.beyond(self.handed);
        self.held.signed.is_some()
            || waiting.any(|what| !matches!(what, Waiting::Stored(_)))
            || self.held.bytes > HELD_BYTES_MAX
            || since.elapsed() >= HELD_WAIT_MAX
    }

    /// When to look again without an input.
    fn look_at(&self) -> Instant {
        let held = self.held.since.map(|since| since + HELD_WAIT_MAX);
        held.map_or(self.wake_at, |held| held.min(self.wake_at))
    }

    fn record(&mut self, number: WriteNumber, records: &[Record]) {
        let (mut changes, signed) = self.recorder.changes_of(records);
        self.held.bytes += changes.iter().map(Change::size_bytes).sum::<usize>();
        self.held.changes.append(&mut changes);
        self.held.number = number;
        self.held.signed = self.held.signed.max(signed);
        self.held.since.get_or_insert_with(Instant::now);
        for record in records {
            if let Record::Event(event) | Record::OwnEventReturned(event) = record {
                self.known.remember(event.digest);
                self.wait_for(number, Waiting::Stored(event.clone()));
            }
        }
    }

    fn wait_for(&mut self, after: WriteNumber, what: Waiting) {
        self.waiting.push(after, what);
    }

    fn became_durable(&mut self, number: WriteNumber) -> Input {
        self.durable = number;
        Input::WriteDurable(number)
    }

    /// Carries out, in order, everything whose write is durable.
    fn release(&mut self) {
        while let Some(what) = self.waiting.pop(self.durable) {
            match what {
                // Encoded only now, and for nobody who is gone: what a peer asks for again and
                // again shares its bytes until then.
                Waiting::Send(to, message) if self.may_send(to, &message) => {
                    self.links.send(to, message.to_bytes().into());
                }
                Waiting::Send(..) => {}
                Waiting::Broadcast(message) => self.links.broadcast(&message.to_bytes().into()),
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
                    self.seats.epoch_began(handover.committee);
                }
            }
        }
    }

    /// An event that a peer lacks is left out while much waits for it already: it asks again.
    fn may_send(&self, to: AuthorIndex, message: &PeerMessage) -> bool {
        match message {
            PeerMessage::Event { bytes } => self.links.has_room_for_answer(to, bytes.len()),
            _ => self.links.is_connected(to),
        }
    }

    fn publish(&self) {
        let status = Some(self.core.status());
        let doubt = status.as_ref().and_then(|status| status.clock_doubt);
        let known = self.status.borrow().as_ref().and_then(|status| status.clock_doubt);
        match doubt.filter(|_| doubt != known) {
            Some(ClockDoubt::Jumped { by_ms }) => tracing::error!(
                by_ms,
                "the clock jumped: no events are made until the operator confirms it (SIGHUP)"
            ),
            Some(ClockDoubt::Differs { ahead_ms }) => tracing::error!(
                ahead_ms,
                "the clock is not that of the peers: no events are made until the operator \
                 confirms it (SIGHUP)"
            ),
            None => {}
        }
        self.status.send_if_modified(|shown| {
            let changed = *shown != status;
            *shown = status;
            changed
        });
    }
}

/// Thirty years: as good as never.
const FAR_AHEAD_MS: u64 = 1_000_000_000_000;
