//! What befalls hosts and links from outside: start, pause, clocks, connections, judging, lies.
//!
//! Owns how each is carried out. Never decides when a fault comes: `faults` does. Called by the
//! world and by faults.

use std::sync::Arc;

use dagger_ledger_core::Core;
use dagger_ledger_core::interface::Input;
use dagger_payload::id::{Epoch, Round};
use dagger_payload::peer::{Part, PeerMessage};

use super::faults::{self, FaultKind};
use super::host::{Host, Incarnation};
use super::judge::Judgement;
use super::liar::{Liar, Lie};
use super::network::Care;
use super::random::Random;
use super::world::{
    Happening, HostHappening, LINK_TIMEOUT_US, RECONNECT_US, REJUDGE_US, Step, World,
};
use crate::promise::{Broken, Observed};

/// Pause between two turns of a liar, from and to, in microseconds.
const LIAR_TURN_US: (u64, u64) = (2_000, 60_000);

/// How often a link to a victim is closed for a moment.
const GAPS_TO_VICTIM: usize = 30;
/// For how long, in microseconds: longer than a leader is waited for, too short for the connection
/// to break.
const GAP_TO_VICTIM_US: u64 = 150_000;
/// How often what a host says reaches the others late, so that a wedge can be driven between them.
const GAPS_FROM_APART: usize = 4;
/// How long that takes, in microseconds: some rounds.
const GAP_FROM_APART_US: u64 = 1_500_000;

impl World {
    /// How many hosts there are.
    pub(super) fn hosts_count(&self) -> usize {
        self.hosts.len()
    }

    /// Which hosts do not lie.
    pub(super) fn honest_hosts(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|host| !self.liars.contains_key(host)).collect()
    }

    /// Whether a host can make a connection now.
    fn is_up(&self, host: usize) -> bool {
        let state = &self.hosts[host];
        self.liars.contains_key(&host) || (state.core.is_some() && !state.paused)
    }

    pub(super) fn happen_in_liar(&mut self, host: usize, happening: HostHappening) {
        match happening {
            HostHappening::Arrives(from, connection, message) => {
                if self.hosts[host].connections[from] == Some(connection) {
                    self.tell_liar(host, from, &message);
                }
            }
            HostHappening::Connected(peer, connection) => {
                self.hosts[host].connections[peer] = Some(connection);
            }
            HostHappening::Disconnected(peer, connection) => {
                if self.hosts[host].connections[peer] == Some(connection) {
                    self.hosts[host].connections[peer] = None;
                }
            }
            HostHappening::Written(..)
            | HostHappening::Submitted(..)
            | HostHappening::Judged(..)
            | HostHappening::Fetch(_)
            | HostHappening::Fetched(..)
            | HostHappening::Adopted(..)
            | HostHappening::AskForOffers(_)
            | HostHappening::Wake(..) => {}
        }
    }

    fn tell_liar(&mut self, host: usize, from: usize, message: &PeerMessage) {
        let event = match message {
            PeerMessage::Event { bytes } => self.parse(bytes),
            _ => None,
        };
        // After the attack a liar only answers what it is asked: whoever speaks unasked breaks the
        // silence of others.
        let question =
            matches!(message, PeerMessage::Want { .. } | PeerMessage::AskRecovery { .. });
        let asked = self.injecting || question;
        let wall = self.hosts[host].wall(self.now());
        let founded = self.is_founded();
        let attacking = founded && self.injecting;
        let liar = self.liars.get_mut(&host).expect("the caller looked");
        let answers = match event {
            Some(event) => {
                liar.hear_event(event);
                if attacking { liar.vote_fast(wall) } else { Vec::new() }
            }
            None if asked && founded => liar.hear(from, message),
            None => liar.found(from, message),
        };
        self.send_lies(host, answers);
        let offers = match message {
            PeerMessage::Have { .. } => attacking,
            PeerMessage::AskPart { part: Part::Offer } => founded && self.settings.false_frontiers,
            _ => false,
        };
        if offers {
            let offer = self.offer_falsely(host);
            self.send_lies(host, offer.into_iter().map(|offer| (from, offer)).collect());
        }
    }

    pub(super) fn lie(&mut self, host: usize) {
        if !self.injecting {
            return; // the liars' attack ends with the other faults, so that silence can be told
        }
        let pause_us = self.random.within(LIAR_TURN_US);
        self.schedule.after_us(pause_us, Happening::Lie(host));
        if !self.is_founded() {
            return;
        }
        let wall = self.hosts[host].wall(self.now());
        let lies = self.liars.get_mut(&host).map(|liar| liar.lie(wall));
        self.send_lies(host, lies.unwrap_or_default());
    }

    /// Whether hosts may suffer: see [`Self::is_founded`].
    pub(super) fn bears_faults(&mut self) -> bool {
        self.epochs[&Epoch(0)].faulty_max() == 0 || self.is_founded()
    }

    /// Whether every honest host has a memory of its own: until then a host that is slow to found
    /// the cluster cannot be told from one that forgot, and is one of the f that a cluster bears.
    pub(super) fn is_founded(&mut self) -> bool {
        let remembers = |host: &Host| {
            let own = host.disk.durable.own_last(host.me);
            own.is_some_and(|event| (event.header.epoch, event.header.round) > (Epoch(0), Round(1)))
        };
        let honest = self.honest_hosts();
        self.founded = self.founded || honest.iter().all(|host| remembers(&self.hosts[*host]));
        self.founded
    }

    /// The last thing that a liar says unasked.
    pub(super) fn flood_late(&mut self, host: usize) {
        let lies = self.liars.get_mut(&host).map(Liar::flood);
        self.send_lies(host, lies.unwrap_or_default());
    }

    /// Some liars fork so that everybody will see it.
    pub(crate) fn confess(&mut self) {
        for host in self.liars.keys().copied().collect::<Vec<_>>() {
            let wall = self.hosts[host].wall(self.now());
            let lies = self.liars.get_mut(&host).map(|liar| liar.confess(wall));
            self.send_lies(host, lies.unwrap_or_default());
        }
    }

    /// Lets the network play into the hands of liars who plan for it.
    pub(super) fn help_liars(&mut self) {
        self.help_splits();
        self.help_wedges();
    }

    /// What one other host says reaches a victim late from time to time, so that it leaves him out.
    fn help_splits(&mut self) {
        let victims: Vec<_> = self.liars.values().filter_map(Liar::victim).collect();
        for victim in victims.into_iter().map(|victim| usize::from(victim.0)) {
            let mut others = self.honest_hosts();
            others.retain(|host| *host != victim);
            let late = self.returns.choose(&others);
            self.hit(FaultKind::FlappingLink);
            for _ in 0..GAPS_TO_VICTIM {
                let at_us = self.returns.within((500_000, self.settings.faults_us));
                self.close_later(at_us, (late, victim), GAP_TO_VICTIM_US);
            }
        }
    }

    /// What the host that a wedge is driven beside says reaches the others late from time to time,
    /// so that they go on without it.
    fn help_wedges(&mut self) {
        let apart: Vec<_> = self.liars.values().filter_map(Liar::apart).collect();
        for apart in apart.into_iter().map(|apart| usize::from(apart.0)) {
            let mut others = self.honest_hosts();
            others.retain(|host| *host != apart);
            for _ in 0..GAPS_FROM_APART {
                self.hit(FaultKind::OneWayPartition);
                let at_us = self.returns.within((500_000, self.settings.faults_us));
                for other in &others {
                    self.close_later(at_us, (apart, *other), GAP_FROM_APART_US);
                }
            }
        }
    }

    /// Each liar whom every other host knows as a forker shows an event with payloads, on top of
    /// all others: nobody may name it, so it is no work.
    pub(super) fn break_silence(&mut self) {
        for host in self.liars.keys().copied().collect::<Vec<_>>() {
            let liar = self.hosts[host].me;
            let knows = |honest: &usize| {
                let status = self.hosts[*honest].core.as_ref().map(Core::status);
                status.is_some_and(|status| status.forkers.contains(&liar))
            };
            if !self.honest_hosts().iter().all(knows) {
                continue;
            }
            let wall = self.hosts[host].wall(self.now());
            let lies = self.liars.get_mut(&host).map(|liar| liar.speak_unnamed(wall));
            self.send_lies(host, lies.unwrap_or_default());
        }
    }

    fn send_lies(&mut self, host: usize, lies: Vec<Lie>) {
        for (to, message) in lies {
            let connection = self.hosts[host].connections[to];
            if connection.is_none() || self.network.connection(host, to) != connection {
                continue;
            }
            let (now, message) = (self.now(), Arc::new(message));
            let arrivals = self.network.send(now, (host, to), Care::Usual, &message);
            for (at, connection) in arrivals.at.into_iter().zip(connection.iter().cycle()) {
                self.arrive_at(at, host, to, *connection, message.clone());
            }
        }
    }

    /// A generator of its own for one fault.
    pub(super) fn fork_random(&mut self) -> Random {
        Random::new(self.random.bits(), "fault")
    }

    /// Counts a fault that takes effect now.
    pub(super) fn hit(&mut self, kind: FaultKind) {
        *self.fault_counts.entry(kind).or_default() += 1;
        let now = self.now();
        self.log.explain(now, 0, || format!("fault {kind:?}"));
    }

    pub(super) fn fault(&mut self) {
        if !self.injecting || self.settings.faults.is_empty() {
            return;
        }
        let gap_us = self.random.within(self.settings.fault_gap_us);
        self.schedule.after_us(gap_us, Happening::Fault);
        if !self.bears_faults() {
            return;
        }
        let kind = self.random.choose(&self.settings.faults);
        faults::inject(self, kind);
    }

    pub(super) fn start(&mut self, host: usize) -> Step {
        if self.liars.contains_key(&host) {
            self.schedule.after_us(0, Happening::Lie(host));
            return Ok(());
        }
        if self.hosts[host].core.is_some() {
            return Ok(());
        }
        let now = self.now();
        self.log.note(now, host, "start", 0);
        if self.hosts[host].disk.is_replaced() {
            return self.start_alone_in_doubt();
        }
        let author = self.hosts[host].me;
        let memory = self.hosts[host].start(now);
        let restarted = Observed::Restarted { disk: &self.hosts[host].disk.durable, memory };
        self.promises.observe(author, &restarted)?;
        // What was durable and not said yet counts, too.
        let last = self.hosts[host].disk.durable.handovers.values().next_back().cloned();
        if let Some(handover) = last {
            self.epoch_began(host, &handover)?;
        }
        self.hand_on_stored(host)?;
        if !self.hosts[host].disk.durable.snapshots.is_empty() {
            self.tell_beginning(host)?;
        }
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            self.connect_later(host, other);
        }
        self.feed(host, Input::Tick)?;
        self.judge(host);
        Ok(())
    }

    /// A driver hands on what its store holds: also commits that became durable in the moment of a
    /// crash.
    fn hand_on_stored(&mut self, host: usize) -> Step {
        let author = self.hosts[host].me;
        let disk = &self.hosts[host].disk.durable;
        for index in disk.commits.keys().filter(|index| **index > self.handed_on[host]) {
            let commit = disk.commit(*index).ok_or_else(|| Broken {
                promise: "nothing_lost",
                host: author,
                detail: format!("commit {index} has events that are not stored"),
            })?;
            let commit = &commit;
            self.promises.observe(author, &Observed::Ordered { commit, disk })?;
        }
        self.handed_on[host] = disk.commits.keys().next_back().copied().unwrap_or_default();
        Ok(())
    }

    /// A host stands still for so many microseconds.
    pub(super) fn pause(&mut self, host: usize, length_us: u64) {
        self.hit(FaultKind::Pause);
        self.stand_still(host, length_us);
    }

    /// The same in a while, not counted.
    pub(super) fn pause_later(&mut self, host: usize, after_us: u64, length_us: u64) {
        self.schedule.after_us(after_us, Happening::Pause(host, length_us));
    }

    pub(super) fn stand_still(&mut self, host: usize, length_us: u64) {
        if !self.injecting {
            return;
        }
        let (now, incarnation) = (self.now(), self.hosts[host].incarnation);
        self.log.note(now, host, "pause", length_us);
        self.hosts[host].paused = true;
        let resume = Happening::Resume(host, incarnation);
        self.schedule.after_us(length_us, resume);
    }

    pub(super) fn resume(&mut self, host: usize, incarnation: Incarnation) -> Step {
        if self.hosts[host].incarnation != incarnation || !self.hosts[host].paused {
            return Ok(());
        }
        self.log.note(self.now(), host, "resume", 0);
        self.hosts[host].paused = false;
        for happening in std::mem::take(&mut self.hosts[host].backlog) {
            self.happen(Happening::Host(host, happening))?;
        }
        Ok(())
    }

    /// A host's wall clock is so far ahead of simulated time from now on.
    pub(super) fn set_clock(&mut self, host: usize, ahead_ms: u64) {
        self.hit(FaultKind::ClockJump);
        self.log.note(self.now(), host, "clock", ahead_ms);
        self.hosts[host].clock_ahead_ms = ahead_ms;
    }

    /// A host's links take up to `extra_us` longer for a while.
    pub(super) fn delay_links(&mut self, host: usize, length_us: u64, extra_us: u64) {
        let until = self.now().plus_us(length_us);
        self.network.delay(host, until, extra_us);
    }

    /// A host's writes take long for a while.
    pub(super) fn slow_disk(&mut self, host: usize, length_us: u64) {
        self.hit(FaultKind::SlowDisk);
        self.hosts[host].disk_slow_until = self.now().plus_us(length_us);
    }

    /// A host's judge stands still for a while.
    pub(super) fn slow_judge(&mut self, host: usize, length_us: u64) {
        self.hit(FaultKind::SlowJudge);
        self.hosts[host].judge_slow_until = self.now().plus_us(length_us);
    }

    /// Lets the judge begin with the next stored commit, if it is idle.
    pub(super) fn judge(&mut self, host: usize) {
        let now = self.now();
        let state = &mut self.hosts[host];
        let next = state.judge.end.index.next();
        if state.core.is_none() || state.judging || !state.disk.durable.commits.contains_key(&next)
        {
            return;
        }
        state.judging = true;
        let (life, turn) = (state.incarnation, state.judge_turn);
        let again = self.judged_before[host] >= next;
        let record = &state.disk.durable.commits[&next];
        let empty = record.first_position > record.last_position;
        let work_us =
            if again || empty { REJUDGE_US } else { self.random.within(self.settings.judge_us) };
        let begin = self.hosts[host].judge_slow_until.max(now);
        let judged = Happening::Host(host, HostHappening::Judged(life, turn));
        self.schedule.at(begin.plus_us(work_us), judged);
    }

    pub(super) fn judged(&mut self, host: usize) -> Step {
        let state = &mut self.hosts[host];
        state.judging = false;
        let next = state.judge.end.index.next();
        let Some(commit) = state.disk.durable.commit(next) else {
            return Ok(());
        };
        let before = state.judge.end;
        let Judgement { end, next_deadline, epoch_end } = state.judge.judge(&commit);
        self.judged_before[host] = self.judged_before[host].max(next);
        self.log.note(self.now(), host, "judged", end.index.0);
        self.observe(host, &Observed::Judged { end: &end, epoch_end })?;
        self.feed(host, Input::Judged { end, next_deadline, epoch_end })?;
        self.consider_snapshot(host, &before);
        self.judge(host);
        Ok(())
    }

    pub(super) fn connect_later(&mut self, a: usize, b: usize) {
        let delay_us = self.random.within(RECONNECT_US);
        let connect = Happening::Connect(a.min(b), a.max(b));
        self.schedule.after_us(delay_us, connect);
    }

    pub(super) fn connect(&mut self, a: usize, b: usize) {
        if self.network.connection(a, b).is_some() {
            return;
        }
        if !self.is_up(a) || !self.is_up(b) || !self.network.connect(a, b) {
            // A host that is down connects by itself once it starts.
            let down =
                |host: usize| self.hosts[host].core.is_none() && !self.liars.contains_key(&host);
            if !down(a) && !down(b) {
                self.connect_later(a, b);
            }
            return;
        }
        let connection = self.network.connection(a, b).expect("just made");
        for (host, peer) in [(a, b), (b, a)] {
            let connected = HostHappening::Connected(peer, connection);
            self.schedule.after_us(0, Happening::Host(host, connected));
        }
    }

    /// Breaks a connection with all that is under way on it.
    pub(super) fn reset(&mut self, a: usize, b: usize) {
        let Some(connection) = self.network.connection(a, b) else {
            return;
        };
        self.network.disconnect(a, b);
        for (host, peer) in [(a, b), (b, a)] {
            let disconnected = HostHappening::Disconnected(peer, connection);
            self.schedule.after_us(0, Happening::Host(host, disconnected));
        }
        self.connect_later(a, b);
    }

    /// Closes a direction in `begins_us` for `length_us` microseconds.
    pub(super) fn close_later(&mut self, begins_us: u64, link: (usize, usize), length_us: u64) {
        let close = Happening::Close(link.0, link.1, length_us);
        self.schedule.after_us(begins_us, close);
    }

    pub(super) fn close(&mut self, from: usize, to: usize, length_us: u64) {
        if !self.injecting {
            return;
        }
        self.network.close(from, to);
        *self.closed.entry((from, to)).or_default() += 1;
        self.schedule.after_us(length_us, Happening::Open(from, to));
        if let Some(connection) = self.network.connection(from, to) {
            let timeout_us = self.random.within(LINK_TIMEOUT_US);
            let timeout = Happening::TimeOut(from, to, connection);
            self.schedule.after_us(timeout_us, timeout);
        }
    }

    pub(super) fn open(&mut self, from: usize, to: usize) {
        let closed = self.closed.entry((from, to)).or_default();
        *closed = closed.saturating_sub(1);
        if *closed > 0 && self.injecting {
            return;
        }
        let now = self.now();
        let Some(connection) = self.network.connection(from, to) else {
            self.network.open(now, from, to);
            return;
        };
        for (at, message) in self.network.open(now, from, to) {
            self.arrive_at(at, from, to, connection, message);
        }
    }
}
