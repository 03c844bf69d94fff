//! What the controller knows about one VM.
//!
//! Owns the state and the small rules about it: which look counts, what a finished step changes,
//! when to try again. [`super::decide`] reads it and says what to do. Called by the controller
//! only.

use std::collections::{BTreeSet, VecDeque};

use dagger_payload::id::{Generation, HostId, ImageDigest, VmId};
use dagger_payload::kind::{ReportPhase, RestartPolicy};
use dagger_payload::name::SshKeyLine;
use dagger_payload::object::{Placement, Wanted};
use dagger_payload::usage::Metered;

use super::limits::{RESTARTS_MAX, RETRY_WAIT_FIRST, RETRY_WAIT_MAX, SILENT_TRIES_MAX};
use super::room::RoomLook;
use super::step::{DiskRule, Finished, Outcome, Seen, Sighting, Step};
use super::{Monotonic, report::Told};
use crate::machine::{Machine, Tags};
use crate::order::AttestedVm;
use crate::record::{DiskMark, Evidence, Record};

/// One VM.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Which.
    pub(super) vm: VmId,
    /// The newest attested version.
    pub(super) wanted: Option<AttestedVm>,
    /// What is written down, or will be with the next step.
    pub(super) record: Option<Record>,
    /// The newest look.
    pub(super) sighting: Sighting,
    /// A look was asked for.
    pub(super) look_asked: bool,
    /// What this host has free for it, looked at once for each generation that is offered.
    pub(super) room: Option<(Generation, RoomLook)>,
    /// The step that is being carried out.
    pub(super) busy: Option<Step>,
    /// Steps ensured for this generation since the agent started.
    pub(super) ensured: BTreeSet<Step>,
    /// An image that it needs is not here and has to be fetched: which, and what was said of that.
    pub(super) missing_image: Option<(ImageDigest, String)>,
    /// The last failure, until something succeeds.
    pub(super) failure: Option<Failure>,
    /// The guest was asked to switch itself off.
    pub(super) asked: Option<Asked>,
    /// When it was started again after it stopped by itself; at most a handful.
    pub(super) restarts: VecDeque<Monotonic>,
    /// Nothing may be done any more: why.
    pub(super) hold: Option<String>,
    /// What was told to the ledger since the agent started.
    pub(super) told: Option<Told>,
    /// What the guest shows as its SSH host key.
    pub(super) guest_host_key: Option<SshKeyLine>,
    /// The generation for which the console is read.
    pub(super) console_watched: Option<Generation>,
    /// Why it is not as wanted, for people.
    pub(super) reason: Option<String>,
    /// When to look at this entry again.
    pub(super) wake: Option<Monotonic>,
}

/// A step that did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// Which step: only its own success ends the failure, since the steps before it succeed at
    /// every try.
    pub(super) step: Step,
    /// Why; begins with a stable code and a colon.
    pub(super) reason: String,
    /// How often without success.
    pub(super) tries: u32,
    /// What next.
    pub(super) then: Then,
}

/// What follows a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Another try at this time.
    Retry(Monotonic),
    /// Nothing, until the owner asks for something else.
    Stay,
}

/// When a guest was asked to switch itself off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    /// For the first time.
    pub(super) first: Monotonic,
    /// For the last time.
    pub(super) last: Monotonic,
}

/// What became of a version that was told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is the wanted one now.
    Newer,
    /// It is history: rejected.
    Older,
    /// Another payload claims a generation that is known: the known one stays, nothing is done any
    /// more.
    Conflict(Evidence),
}

impl Entry {
    /// Nothing is known yet.
    pub(super) fn new(vm: VmId, record: Option<Record>) -> Self {
        Self {
            vm,
            wanted: None,
            record,
            sighting: Sighting { ticket: 0, seen: Seen::Unknown },
            look_asked: false,
            room: None,
            busy: None,
            ensured: BTreeSet::new(),
            missing_image: None,
            failure: None,
            asked: None,
            restarts: VecDeque::new(),
            hold: None,
            told: None,
            guest_host_key: None,
            console_watched: None,
            reason: None,
            wake: None,
        }
    }

    /// Takes a version, by the rules of host acceptance (R3).
    pub(super) fn take(&mut self, attested: AttestedVm) -> Taken {
        if let Some(known) = &self.wanted {
            let (known_order, told_order) =
                ((known.vm.generation, known.commit), (attested.vm.generation, attested.commit));
            if told_order < known_order && !planted!(OlderVersionTaken) {
                return Taken::Older;
            }
            if attested.vm.generation > known.vm.generation {
                self.begin_generation();
            } else if attested.vm.changed.digest != known.vm.changed.digest {
                return Taken::Conflict(Evidence {
                    generation: known.vm.generation,
                    known: known.vm.changed.digest,
                    told: attested.vm.changed.digest,
                    commit: attested.commit,
                });
            }
        }
        if attested.vm.guest_host_key.is_some() {
            self.guest_host_key.clone_from(&attested.vm.guest_host_key);
        }
        self.wanted = Some(attested);
        self.note_ordered();
        Taken::Newer
    }

    fn begin_generation(&mut self) {
        self.ensured.clear();
        self.missing_image = None;
        self.failure = None;
        self.asked = None;
        self.restarts.clear();
        self.reason = None;
        self.wake = None;
    }

    /// Takes a look, unless a later one is known.
    pub(super) fn see(&mut self, sighting: Sighting) {
        if sighting.ticket > self.sighting.ticket {
            self.look_asked = false;
            self.sighting = sighting;
        }
    }

    /// Nothing is known any more; looks that began before `ticket` do not count.
    pub(super) fn lose_sight(&mut self, ticket: u64) {
        self.look_asked = false;
        let ticket = ticket.max(self.sighting.ticket);
        self.sighting = Sighting { ticket, seen: Seen::Unknown };
    }

    /// The highest generation that this host knows of: what is wanted, or, before it is told that,
    /// what it wrote down.
    pub(super) fn generation(&self) -> Option<Generation> {
        let wanted = self.wanted.as_ref().map(|wanted| wanted.vm.generation);
        wanted.max(self.record.as_ref().map(|record| record.generation))
    }

    /// The tags of our machine, if it is there.
    pub(super) fn tags(&self) -> Option<&Tags> {
        match &self.sighting.seen {
            Seen::Present(Machine::Ours { tags, .. }) => Some(tags),
            Seen::Present(Machine::Foreign(_)) | Seen::Absent | Seen::Unknown => None,
        }
    }

    /// Whether the order has seen the guest run. Then its disk was made, whatever is remembered or
    /// seen here: a VM that was accepted does not move.
    fn has_run(&self) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| {
            let meter = &wanted.vm.meter;
            matches!(meter.counts, Metered::Guest | Metered::Paused) || meter.used.cpu_ms > 0
        })
    }

    /// Whether this host carries the VM: its own acceptance is ordered (R4).
    pub(super) fn is_accepted_by(&self, here: HostId) -> bool {
        let placement = self.wanted.as_ref().map(|wanted| &wanted.vm.placement);
        matches!(placement, Some(Placement::Accepted { host, .. }) if *host == here)
    }

    /// The record for the wanted generation; a first one is made where there is none.
    pub(super) fn record_now(&mut self, here: HostId, wanted: &AttestedVm) -> &mut Record {
        let (generation, payload) = (wanted.vm.generation, wanted.vm.changed.digest);
        let existed = self.tags().is_some() || was_made_here(wanted, here);
        let record = self.record.get_or_insert_with(|| {
            let mut record = Record::new(here, wanted.vm.id, generation, payload);
            if existed {
                record.disk = DiskMark::Made;
            }
            if was_started_here(wanted, here) {
                record.done.insert(Step::Start);
            }
            record
        });
        record.take_up(generation, payload);
        record
    }

    /// Whether the VM's disk may be made.
    pub(super) fn disk_rule(&self) -> DiskRule {
        let made = self.record.as_ref().is_some_and(|record| record.disk == DiskMark::Made);
        if (made || self.tags().is_some() || self.has_run()) && !planted!(DiskMadeAnew) {
            DiskRule::MustExist
        } else {
            DiskRule::MayMake
        }
    }

    /// Takes the end of a step.
    pub(super) fn finish(&mut self, now: Monotonic, finished: Finished, ticket: u64) {
        let Finished { vm: _, generation, step, outcome, sighting } = finished;
        self.busy = None;
        if let Some(sighting) = sighting {
            self.see(sighting);
        }
        if self.generation() != Some(generation) {
            self.finish_older(step, &outcome, ticket);
            return;
        }
        if step == Step::AskShutdown {
            // However it ended: the ladder goes on, and its last rung needs nobody's consent.
            let first = self.asked.map_or(now, |asked| asked.first);
            self.asked = Some(Asked { first, last: now });
        }
        match outcome {
            Outcome::Done => self.succeed(step),
            Outcome::Retryable(reason) => self.fail(now, step, reason),
            Outcome::ImageMissing(image, reason) => self.missing_image = Some((image, reason)),
            Outcome::Terminal(reason) => self.give_up(step, reason),
            Outcome::Unknown(_) if planted!(UnknownIsDone) => self.succeed(step),
            Outcome::Unknown(reason) => {
                self.lose_sight(ticket);
                self.fail(now, step, reason);
            }
        }
    }

    /// A step that was begun for an older generation: what it did shows in what is seen, and
    /// neither its success nor its failure says anything about what is wanted now. Only a disk
    /// that was made stays made.
    fn finish_older(&mut self, step: Step, outcome: &Outcome, ticket: u64) {
        match outcome {
            Outcome::Done => {
                if let (Step::Disk, Some(record)) = (step, &mut self.record) {
                    record.disk = DiskMark::Made;
                }
            }
            Outcome::Unknown(_) => self.lose_sight(ticket),
            Outcome::Retryable(_) | Outcome::ImageMissing(..) | Outcome::Terminal(_) => {}
        }
    }

    fn succeed(&mut self, step: Step) {
        self.failure.take_if(|failure| failure.step == step);
        self.ensured.insert(step);
        if let Some(record) = &mut self.record {
            record.step = None;
            record.attempts = 0;
            record.done.insert(step);
            if step == Step::Disk {
                record.disk = DiskMark::Made;
            }
        }
    }

    pub(super) fn give_up(&mut self, step: Step, reason: String) {
        let tries = self.failure.as_ref().map_or(1, |failure| failure.tries + 1);
        self.failure = Some(Failure { step, reason, tries, then: Then::Stay });
    }

    pub(super) fn fail(&mut self, now: Monotonic, step: Step, reason: String) {
        let tries = self.failure.as_ref().map_or(1, |failure| failure.tries + 1);
        let doubled = RETRY_WAIT_FIRST * 2_u32.saturating_pow((tries - 1).min(16));
        let at = now.plus(doubled.min(RETRY_WAIT_MAX));
        self.fail_until(at, step, reason);
    }

    /// It is tried again at this time.
    pub(super) fn fail_until(&mut self, at: Monotonic, step: Step, reason: String) {
        let tries = self.failure.as_ref().map_or(1, |failure| failure.tries + 1);
        self.failure = Some(Failure { step, reason, tries, then: Then::Retry(at) });
        // What stood before may be what is missing now; reading a whole image again is too dear,
        // unless what rests on it could not be made: a disk lies over it, and a machine that boots
        // a kernel is defined with its file.
        let rests_on_images = match step {
            Step::Disk => true,
            Step::Define | Step::Start => {
                self.wanted.as_ref().is_some_and(|wanted| wanted.vm.boot.is_some())
            }
            _ => false,
        };
        self.ensured.retain(|ensured| *ensured == Step::Image && !rests_on_images);
    }

    /// Why the last step failed, once that is worth telling.
    pub(super) fn told_failure(&self) -> Option<String> {
        self.failure
            .as_ref()
            .filter(|failure| failure.then == Then::Stay || failure.tries >= SILENT_TRIES_MAX)
            .map(|failure| failure.reason.clone())
    }

    /// Counts a start after the guest stopped by itself; everything below it is ensured again.
    pub(super) fn restart(&mut self, now: Monotonic) {
        self.restarts.push_back(now);
        if self.restarts.len() > RESTARTS_MAX {
            self.restarts.pop_front();
        }
        self.ensured.clear();
    }

    /// Whether the guest was started, or seen running, in this generation, now or before a restart
    /// of the agent.
    pub(super) fn was_started(&self) -> bool {
        let generation = self.wanted.as_ref().map(|wanted| wanted.vm.generation);
        self.record.as_ref().is_some_and(|record| {
            Some(record.generation) == generation && record.done.contains(&Step::Start)
        })
    }

    /// Whether nothing of this VM concerns this host any more.
    pub(super) fn is_done_with(&self, here: HostId) -> bool {
        let elsewhere = self.wanted.as_ref().is_none_or(|wanted| {
            wanted.vm.placement.host() != Some(here)
                || (wanted.vm.wanted == Wanted::Deleted && !self.is_accepted_by(here))
        });
        elsewhere && self.record.is_none() && self.busy.is_none()
    }
}

/// Whether this host told the ledger that the VM existed, so that it has a disk somewhere.
fn was_made_here(wanted: &AttestedVm, here: HostId) -> bool {
    wanted.vm.reported.as_ref().is_some_and(|report| {
        let existed = match report.phase {
            ReportPhase::Running
            | ReportPhase::Stopped
            | ReportPhase::Paused
            | ReportPhase::Degraded => true,
            ReportPhase::Accepted | ReportPhase::Refused | ReportPhase::Deleted => false,
        };
        existed && report.host == here
    })
}

/// Whether this host told the ledger that a guest which is to be started only once ran in this
/// generation.
fn was_started_here(wanted: &AttestedVm, here: HostId) -> bool {
    wanted.vm.reported.as_ref().is_some_and(|report| {
        let ran = matches!(report.phase, ReportPhase::Running | ReportPhase::Stopped);
        let once = wanted.vm.wanted == Wanted::Running && wanted.vm.restart == RestartPolicy::Never;
        ran && once && report.host == here && report.generation == wanted.vm.generation
    })
}
