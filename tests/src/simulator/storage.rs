//! What befalls a host's memory: durable writes, submissions, power cuts, lost disks, old copies.
//!
//! Owns how each is carried out, and how many hosts may have forgotten something at a time: a host
//! that forgot is one of the f that a cluster bears, until it knows again what it knew. Never
//! decides when a fault comes: `faults` does. Called by the world and by faults.

use dagger_ledger_core::Core;
use dagger_ledger_core::interface::{HaltReason, Input, Memory, Output, Phase, WriteNumber};
use dagger_payload::id::CommitIndex;
use dagger_payload::payload::SignedPayload;

use super::disk::{PersistPoint, Replacement, WitnessFate};
use super::faults::{FaultKind, PlannedCrash};
use super::world::{Happening, HostHappening, SLOW_WRITE_US, Step, World};
use crate::promise::{Broken, Observed};

/// The host of a cluster that has only one.
const ALONE: usize = 0;
/// How long a host is down after a planned crash, from and to, in microseconds.
const DOWN_US: (u64, u64) = (10_000, 800_000);

/// How long a host speaks to nobody, in microseconds: by then the others' rounds are far ahead.
const LATE_US: u64 = 3_000_000;
/// Time between two payloads of the others meanwhile, in microseconds.
const WORK_GAP_US: u64 = 100_000;

impl World {
    /// Begins to make durable what waits, unless a flush is under way or there is no room.
    pub(super) fn flush(&mut self, host: usize) {
        let now = self.now();
        let state = &mut self.hosts[host];
        let (Some(through), false) = (state.disk.last_pending(), state.flushing) else {
            return;
        };
        state.flushing = true;
        let slow = now < state.disk_slow_until;
        let room_at = state.disk_full_until.max(now);
        let life = state.incarnation;
        let range = if slow { SLOW_WRITE_US } else { self.settings.write_us };
        let write_us = self.random.within(range);
        let written = Happening::Host(host, HostHappening::Written(life, through));
        self.schedule.at(room_at.plus_us(write_us), written);
    }

    pub(super) fn written(&mut self, host: usize, through: WriteNumber) -> Step {
        match self.hosts[host].planned_crash {
            Some(PlannedCrash::Write(point)) => return self.die_at(host, through, point),
            Some(PlannedCrash::Sync) => {
                let points = [PersistPoint::Data, PersistPoint::Meta];
                let point = self.random.choose(&points);
                return self.die_at(host, through, point);
            }
            Some(PlannedCrash::AfterReturn(number)) if number <= through => {
                return self.die_at(host, through, PersistPoint::WitnessSynced);
            }
            Some(
                PlannedCrash::BeforeReceipt
                | PlannedCrash::AfterReceipt
                | PlannedCrash::AfterReturn(_),
            )
            | None => {}
        }
        self.log.note(self.now(), host, "written", through.0);
        self.hosts[host].disk.commit(through);
        self.tell_kept(host)?;
        self.hosts[host].durable = through;
        self.hosts[host].flushing = false;
        self.release(host)?;
        self.feed(host, Input::WriteDurable(through))?;
        self.flush(host);
        Ok(())
    }

    /// Shows what others' events a disk took in.
    fn tell_kept(&mut self, host: usize) -> Step {
        for event in self.hosts[host].disk.take_news() {
            self.observe(host, &Observed::Keeps { event: &event })?;
        }
        Ok(())
    }

    /// The planned end comes.
    fn die_at(&mut self, host: usize, through: WriteNumber, point: PersistPoint) -> Step {
        if let Some(planned) = self.hosts[host].planned_crash {
            self.hit(planned.kind());
        }
        self.cut_power(host, through, point);
        self.tell_kept(host)?;
        let down_us = self.random.within(DOWN_US);
        self.go_down(host, down_us);
        Ok(())
    }

    fn cut_power(&mut self, host: usize, through: WriteNumber, point: PersistPoint) {
        let cut = self.hosts[host].disk.cut_power(through, point, &mut self.random);
        self.cuts.lost += u64::from(cut.lost > 0);
        self.cuts.torn += u64::from(cut.torn > 0);
        self.cuts.reordered += u64::from(cut.reordered > 0);
    }

    /// A host loses power for so many microseconds, wherever its write happens to be.
    pub(super) fn crash_somewhere(&mut self, host: usize, down_us: u64) {
        if self.hosts[host].core.is_none() {
            return;
        }
        self.hit(FaultKind::Crash);
        let through = self.hosts[host].disk.last_pending().unwrap_or_default();
        let point = self.random.choose(&PersistPoint::ALL);
        self.cut_power(host, through, point);
        self.go_down(host, down_us);
    }

    pub(super) fn go_down(&mut self, host: usize, down_us: u64) {
        let now = self.now();
        self.log.note(now, host, "crash", 0);
        self.hosts[host].stop();
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            self.reset(host, other);
        }
        self.schedule.after_us(down_us, Happening::Start(host));
    }

    /// A host will lose power at its next write or submission.
    pub(super) fn plan_crash(&mut self, host: usize, planned: PlannedCrash) {
        self.hosts[host].planned_crash = Some(planned);
    }

    /// Payloads of an own event that came too late wait again at `host`: if they do so in memory
    /// only, a power cut now loses them.
    pub(super) fn payloads_returned(&mut self, host: usize) {
        let permille = self.settings.crash_after_return_permille;
        if let Some(write) = self.hosts[host].disk.last_pending()
            && self.injecting
            && self.returns.happens(permille)
        {
            self.plan_crash(host, PlannedCrash::AfterReturn(write));
        }
    }

    /// A host's store has no room for so many microseconds.
    pub(super) fn fill_disk(&mut self, host: usize, length_us: u64) {
        self.hit(FaultKind::DiskFull);
        self.hosts[host].disk_full_until = self.now().plus_us(length_us);
    }

    /// A host loses its disk and comes back with an empty one, if the cluster can bear it now.
    pub(super) fn wipe(&mut self, host: usize, fate: WitnessFate, down_us: u64) {
        if !self.may_forget(host) {
            return;
        }
        if self.hosts.len() == 1 {
            self.replace_alone(Replacement::Empty, down_us);
            return;
        }
        self.hit(FaultKind::WipedStore);
        self.hosts[host].disk.wipe(fate, &mut self.random);
        self.forget(host, down_us, CommitIndex(0));
    }

    /// Copies a host's disk now; after a while the copy takes the place of what was written since.
    pub(super) fn back_up(&mut self, host: usize, fate: WitnessFate, after_us: u64) {
        self.hosts[host].disk.back_up();
        self.schedule.after_us(after_us, Happening::RestoreBackup(host, fate));
    }

    pub(super) fn restore_backup(&mut self, host: usize, fate: WitnessFate) -> Step {
        if !self.injecting || !self.may_forget(host) {
            return Ok(());
        }
        if self.hosts.len() == 1 {
            let down_us = self.random.within(DOWN_US);
            self.replace_alone(Replacement::OldCopy, down_us);
            return Ok(());
        }
        let disk = &mut self.hosts[host].disk;
        if !disk.restore_backup(fate) {
            return Ok(());
        }
        let last = disk.durable.commits.keys().next_back().copied().unwrap_or_default();
        let tolerated = self.faulty_max > 0 && fate == WitnessFate::Follows;
        let (kind, until) = match fate {
            WitnessFate::Stays => (FaultKind::BackupWithoutWitness, last),
            WitnessFate::Follows => (FaultKind::BackupWithWitness, last),
        };
        self.hit(kind);
        let down_us = self.random.within(DOWN_US);
        self.forget(host, down_us, until);
        if tolerated {
            // Nothing on the host shows that it forgot, and f + 1 peers need not know better: it
            // is one of the f for the rest of the run.
            self.forgetful.insert(host, CommitIndex(u64::MAX));
            self.promises.may_fall(self.hosts[host].me);
        }
        Ok(())
    }

    /// The store of a host without peers is replaced; its witness stays.
    fn replace_alone(&mut self, by: Replacement, down_us: u64) {
        if self.hosts[ALONE].disk.replace(by, &mut self.random) {
            self.go_down(ALONE, down_us);
        }
    }

    /// A host without peers starts with another store than its own. It must stop at once and leave
    /// nothing behind; then its operator puts the true store back.
    ///
    /// # Errors
    /// It goes on.
    pub(super) fn start_alone_in_doubt(&mut self) -> Step {
        let now = self.now();
        let memory = self.hosts[ALONE].start(now);
        let outputs = self.hosts[ALONE].handle(now, Input::Tick);
        let halts = matches!(outputs[..], [Output::Halted(HaltReason::NobodyToAsk)]);
        if memory == Memory::Doubtful && !halts {
            let (promise, host) = ("no_self_equivocation", self.hosts[ALONE].me);
            let detail = "goes on alone with a store that is not its own".to_owned();
            return Err(Broken { promise, host, detail });
        }
        if memory == Memory::Doubtful {
            // A copy of what nothing was signed after is as good as the store itself.
            let wiped = self.hosts[ALONE].disk.durable.commits.is_empty();
            let copy = FaultKind::BackupWithoutWitness;
            self.hit(if wiped { FaultKind::WipedStore } else { copy });
        }
        self.hosts[ALONE].disk.put_back();
        let down_us = self.random.within(DOWN_US);
        self.go_down(ALONE, down_us);
        Ok(())
    }

    /// Whether every other host runs and has accepted all events of `host`. Where nobody may fail,
    /// an event that only one disk held is lost to all with it, and only the operators can go on.
    fn others_have_all_of(&self, host: usize) -> bool {
        let status = |at: usize| self.hosts[at].core.as_ref().map(Core::status);
        let me = self.hosts[host].me;
        status(host).is_some_and(|own| {
            (0..self.hosts.len()).filter(|other| *other != host).all(|other| {
                let status = status(other).filter(|status| status.epoch == own.epoch);
                let known = status.map(|status| status.highest).unwrap_or_default();
                known.iter().any(|known| known.author == me && known.round >= own.round)
            })
        })
    }

    /// Whether the cluster bears that this host forgets something now.
    fn may_forget(&mut self, host: usize) -> bool {
        let knows_again = |host: &usize, all: &CommitIndex| {
            let state = &self.hosts[*host];
            let member = state.core.as_ref().is_some_and(|core| {
                let status = core.status();
                // What it signed since must be durable: a power cut would make it forget again.
                let signed = state.disk.durable.own_last(state.me);
                let kept = signed.is_some_and(|event| {
                    let header = &event.header;
                    (header.epoch, header.round) >= (status.epoch, status.round)
                });
                status.phase == Phase::Member && status.judged >= *all && kept
            });
            member && state.disk.durable.commits.keys().next_back() >= Some(all)
        };
        let known: Vec<usize> = self
            .forgetful
            .iter()
            .filter(|(host, all)| knows_again(host, all))
            .map(|(host, _)| *host)
            .collect();
        for host in known {
            self.forgetful.remove(&host);
        }
        if self.faulty_max == 0 && !self.others_have_all_of(host) {
            return false;
        }
        // Who has come to know again and asks once more, in an epoch that may have begun before, is
        // one of them too.
        let asks = |other: usize| {
            let core = self.hosts[other].core.as_ref();
            core.is_some_and(|core| core.status().phase == Phase::Recovering)
        };
        let others = (0..self.hosts.len())
            .filter(|other| *other != host && (self.forgetful.contains_key(other) || asks(*other)))
            .count();
        let faulty = others + self.liars.len();
        faulty < self.faulty_max.max(1)
    }

    fn forget(&mut self, host: usize, down_us: u64, last: CommitIndex) {
        let furthest = self.handed_on.iter().max().copied().unwrap_or_default();
        self.forgetful.insert(host, furthest);
        self.handed_on[host] = last;
        let author = self.hosts[host].me;
        self.promises.forgot(author);
        if self.hosts[host].core.is_some() {
            self.go_down(host, down_us);
        }
    }

    pub(super) fn submit(&mut self) {
        let Some((payload, gap_us)) = self.users.submit() else {
            return;
        };
        let honest = self.honest_hosts();
        let host = self.random.choose(&honest);
        self.submit_at(host, payload.clone());
        if self.random.happens(30) {
            let other = self.random.choose(&honest);
            if other != host {
                self.submit_at(other, payload);
            }
        }
        self.schedule.after_us(gap_us, Happening::Submit);
    }

    /// What a host says reaches nobody for a while, and it has something to say.
    pub(super) fn be_late(&mut self) {
        if !self.injecting || !self.is_founded() {
            return;
        }
        self.hit(FaultKind::LateEvents);
        let late = self.returns.choose(&self.honest_hosts());
        for to in (0..self.hosts.len()).filter(|to| *to != late) {
            self.close_later(0, (late, to), LATE_US);
        }
        if self.returns.happens(500) {
            self.slow_judge(late, LATE_US); // what returns is not packed again at once
        }
        let payload = self.users.payload();
        self.submit_at(late, payload);
        let payloads = u32::try_from(LATE_US / WORK_GAP_US).expect("a small number");
        self.schedule.after_us(0, Happening::WorkWithout(late, payloads));
    }

    /// The others order one more payload, and then the rest.
    pub(super) fn work_without(&mut self, late: usize, payloads: u32) {
        if !self.injecting || payloads == 0 {
            return;
        }
        let mut others = self.honest_hosts();
        others.retain(|host| *host != late);
        let host = self.returns.choose(&others);
        let payload = self.users.payload();
        self.submit_at(host, payload);
        self.schedule.after_us(WORK_GAP_US, Happening::WorkWithout(late, payloads - 1));
    }

    pub(super) fn submit_at(&mut self, host: usize, payload: SignedPayload) {
        let now = self.now();
        let state = &self.hosts[host];
        if state.core.is_none() || now < state.disk_full_until {
            return; // the user hears that it is unavailable
        }
        let life = state.incarnation;
        let write_us = self.random.within(self.settings.write_us);
        let submitted = Happening::Host(host, HostHappening::Submitted(life, payload));
        self.schedule.after_us(write_us, submitted);
    }

    pub(super) fn submitted(&mut self, host: usize, payload: SignedPayload) -> Step {
        let digest = payload.digest();
        let planned = self.hosts[host].planned_crash;
        let down_us = self.random.within(DOWN_US);
        let through = self.hosts[host].disk.last_pending().unwrap_or_default();
        match planned {
            Some(PlannedCrash::BeforeReceipt) => {
                self.hit(FaultKind::CrashBeforeReceipt);
                self.cut_power(host, through, PersistPoint::Data);
                self.tell_kept(host)?;
                self.go_down(host, down_us);
                return Ok(());
            }
            Some(PlannedCrash::AfterReceipt) => {
                self.hit(FaultKind::CrashAfterReceipt);
                self.hosts[host].disk.keep(payload);
                self.observe(host, &Observed::KeptUnsaid { digest })?;
                self.cut_power(host, through, PersistPoint::Data);
                self.tell_kept(host)?;
                self.go_down(host, down_us);
                return Ok(());
            }
            Some(PlannedCrash::Write(_) | PlannedCrash::Sync | PlannedCrash::AfterReturn(_))
            | None => {}
        }
        self.log.note(self.now(), host, "received", 0);
        self.hosts[host].disk.keep(payload.clone());
        self.users.received += 1;
        self.observe(host, &Observed::Received { digest })?;
        self.feed(host, Input::Submitted(payload))
    }
}
