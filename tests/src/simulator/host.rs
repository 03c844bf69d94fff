//! An honest host: the core, its store, its judge, and what waits between them.
//!
//! Owns what a driver owns. Never draws chance and never knows other hosts: the world moves it.
//! Called by the world.

use std::collections::VecDeque;

use dagger_ledger_core::interface::{
    CoreConfiguration, Input, Memory, Moment, Output, WriteNumber,
};
use dagger_ledger_core::{Core, Held};
use dagger_payload::id::{AuthorIndex, LedgerTime};

use super::disk::Disk;
use super::faults::PlannedCrash;
use super::judge::Judge;
use super::keys::SimulatedKey;
use super::network::Connection;
use super::schedule::SimulatedTime;
use super::snapshots::Transfers;
use super::world::HostHappening;

/// Tells one life of a host, from start to crash, from the next.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Incarnation(pub u64);

/// Wall clocks at the start of a run, in milliseconds since 1970.
const WALL_START_MS: u64 = 1_750_000_000_000;

/// See the module.
pub(crate) struct Host {
    /// Its index.
    pub(crate) me: AuthorIndex,
    /// What its core is told at its first start.
    pub(crate) configuration: CoreConfiguration,
    key: SimulatedKey,
    /// The core, unless the host is down.
    pub(crate) core: Option<Core>,
    /// Which life this is.
    pub(crate) incarnation: Incarnation,
    started_at: SimulatedTime,
    /// How far its wall clock is ahead, in milliseconds.
    pub(crate) clock_ahead_ms: u64,
    /// How far it leapt on top of that.
    pub(crate) clock_leapt_ms: u64,
    /// Its store.
    pub(crate) disk: Disk,
    /// Up to where writes are known to be durable.
    pub(crate) durable: WriteNumber,
    /// Whether a flush is under way.
    pub(crate) flushing: bool,
    /// Outputs in order, of which the first waits for a write.
    pub(crate) held: VecDeque<Output>,
    /// The judge.
    pub(crate) judge: Judge,
    /// Whether it is at work.
    pub(crate) judging: bool,
    /// Counts the judge's beginnings in this life: what an earlier one did is void.
    pub(crate) judge_turn: u64,
    /// Snapshots of this and of other hosts.
    pub(crate) transfers: Transfers,
    /// The wish to be woken that counts.
    pub(crate) wake_token: u64,
    /// The connections that it knows of.
    pub(crate) connections: Vec<Option<Connection>>,
    /// Whether it stands still.
    pub(crate) paused: bool,
    /// What will reach it once it goes on.
    pub(crate) backlog: Vec<HostHappening>,
    /// Set if its next write or submission will be its last.
    pub(crate) planned_crash: Option<PlannedCrash>,
    /// Until when its writes take long.
    pub(crate) disk_slow_until: SimulatedTime,
    /// Until when its disk has no room.
    pub(crate) disk_full_until: SimulatedTime,
    /// Until when its judge stands still.
    pub(crate) judge_slow_until: SimulatedTime,
}

impl Host {
    /// A host that has not started yet.
    pub(crate) fn new(
        configuration: CoreConfiguration,
        key: SimulatedKey,
        clock_ahead_ms: u64,
    ) -> Self {
        Self {
            me: configuration.me,
            judge: Judge::new(configuration.founding.end),
            connections: vec![None; configuration.committee.members()],
            key,
            core: None,
            incarnation: Incarnation::default(),
            started_at: SimulatedTime::default(),
            clock_ahead_ms,
            clock_leapt_ms: 0,
            disk: Disk::new(configuration.me),
            configuration,
            durable: WriteNumber::default(),
            flushing: false,
            held: VecDeque::new(),
            judging: false,
            judge_turn: 0,
            transfers: Transfers::default(),
            wake_token: 0,
            paused: false,
            backlog: Vec::new(),
            planned_crash: None,
            disk_slow_until: SimulatedTime::default(),
            disk_full_until: SimulatedTime::default(),
            judge_slow_until: SimulatedTime::default(),
        }
    }

    /// The host's monotonic clock, which starts anew with each life.
    fn moment(&self, now: SimulatedTime) -> Moment {
        Moment(1 + (now.0 - self.started_at.0) / 1000)
    }

    /// When a moment of this host's clock comes.
    pub(crate) fn time_of(&self, moment: Moment) -> SimulatedTime {
        self.started_at.plus_us(moment.0.saturating_sub(1) * 1000)
    }

    /// Its wall clock.
    pub(crate) fn wall(&self, now: SimulatedTime) -> LedgerTime {
        let ahead_ms = self.clock_ahead_ms + self.clock_leapt_ms;
        LedgerTime(WALL_START_MS + now.milliseconds() + ahead_ms)
    }

    /// Starts the core from what the disk holds. The judge begins with the newest snapshot or anew,
    /// and judges the stored commits again. Says whether the disk can be trusted.
    pub(crate) fn start(&mut self, now: SimulatedTime) -> Memory {
        self.started_at = now;
        let snapshot = self.disk.durable.snapshots.values().next_back().cloned();
        self.judge = snapshot.unwrap_or_else(|| Judge::new(self.configuration.founding.end));
        let mut restored = self.disk.open(self.configuration.committee);
        restored.questions_above = self.incarnation.0 << 32;
        let mut configuration = self.configuration.clone();
        if let Some(handover) = self.disk.durable.handovers.values().next_back() {
            configuration.epoch = handover.epoch;
            configuration.committee = handover.committee;
            configuration.founding = handover.founding;
        }
        let memory = restored.memory;
        let signer = Box::new(self.key.clone());
        self.core = Some(Core::restore(configuration, signer, restored));
        memory
    }

    /// Ends this life: everything that is not on disk is gone.
    pub(crate) fn stop(&mut self) {
        self.core = None;
        self.incarnation.0 += 1;
        self.durable = WriteNumber::default();
        self.flushing = false;
        self.held.clear();
        self.judging = false;
        self.transfers = Transfers::default();
        self.wake_token += 1;
        self.connections.fill(None);
        self.paused = false;
        self.backlog.clear();
        self.planned_crash = None;
    }

    /// How many payloads wait in its core.
    pub(crate) fn waiting(&self) -> usize {
        self.core.as_ref().map_or(0, |core| core.status().waiting)
    }

    /// What its core holds for others.
    pub(crate) fn held(&self) -> Vec<Held> {
        self.core.as_ref().map_or(Vec::new(), |core| core.held().to_vec())
    }

    /// Gives the core an input; what it wants done follows.
    pub(crate) fn handle(&mut self, now: SimulatedTime, input: Input) -> Vec<Output> {
        let (moment, wall) = (self.moment(now), self.wall(now));
        let mut outputs = Vec::new();
        if let Some(core) = &mut self.core {
            core.handle(moment, wall, input, &mut outputs);
        }
        outputs
    }

    /// The next output whose write is durable.
    pub(crate) fn release(&mut self) -> Option<Output> {
        let durable = self.durable;
        self.held.pop_front_if(|output| {
            let after = match output {
                Output::Send { after, .. }
                | Output::Broadcast { after, .. }
                | Output::EpochBegan { after, .. }
                | Output::Committed { after, .. } => *after,
                Output::ServeStored { .. }
                | Output::ServeEvents { .. }
                | Output::Write { .. }
                | Output::WakeAt(_)
                | Output::Halted(_) => WriteNumber::default(),
            };
            after <= durable
        })
    }
}
