//! From what is wanted of a volume to its disk: made, kept, or put into quarantine.
//!
//! Owns every decision about a volume's file while no VM uses it; giving it to a machine and taking
//! it away is a step of that VM ([`super::decide`]). Keeps no journal: the attested history says
//! whether the file was ever made, and each step only ensures (see `decisions.md`). Called by the
//! controller only.

use dagger_payload::id::{Generation, HostId, VolumeId};
use dagger_payload::kind::{Capacity, ReportVolume, VolumePhase};
use dagger_payload::volume::{Volume, VolumeDisk, VolumeState, VolumeWanted};

use super::limits::{RETRY_WAIT_FIRST, RETRY_WAIT_MAX, SILENT_TRIES_MAX};
use super::proof::VolumeProof;
use super::report::{code, shorten};
use super::step::{DiskRule, Outcome};
use super::{Controller, Mode, Monotonic, Output};
use crate::handover::AttestedVolume;

/// One step for a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeJob {
    /// The volume as wanted.
    pub volume: Volume,
    /// What to do.
    pub action: VolumeAction,
}

/// What can be done for a volume; each only makes sure that something holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeAction {
    /// Its disk is here.
    Make(DiskRule),
    /// Its disk is in quarantine.
    Quarantine(VolumeProof),
}

/// A step for a volume that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFinished {
    /// Whose.
    pub volume: VolumeId,
    /// In which generation it was begun.
    pub generation: Generation,
    /// How.
    pub outcome: Outcome,
}

/// What the controller knows about one volume.
#[derive(Debug, Clone)]
pub(super) struct VolumeEntry {
    wanted: AttestedVolume,
    /// A step is being carried out.
    is_busy: bool,
    /// The generation whose step ended well.
    done: Option<Generation>,
    failure: Option<Failure>,
    /// Another payload claimed the known generation: nothing is done any more.
    is_held: bool,
    told: Option<Told>,
    pub(super) wake: Option<Monotonic>,
}

#[derive(Debug, Clone)]
struct Failure {
    reason: String,
    tries: u32,
    /// When to try again; never, before the owner asks for something else.
    again: Option<Monotonic>,
}

/// A report's content; of a reason only its stable code.
type Told = (Generation, VolumePhase, Option<String>);

impl VolumeEntry {
    fn new(wanted: AttestedVolume) -> Self {
        Self {
            wanted,
            is_busy: false,
            done: None,
            failure: None,
            is_held: false,
            told: None,
            wake: None,
        }
    }

    /// Takes a version, by the rules of host acceptance (R3); gives the reason for an alarm.
    fn take(&mut self, told: AttestedVolume) -> Option<String> {
        let known = &self.wanted;
        let order = |version: &AttestedVolume| (version.volume.generation, version.commit);
        if order(&told) < order(known) {
            return None;
        }
        if told.volume.generation > known.volume.generation {
            (self.failure, self.wake) = (None, None);
        } else if told.volume.changed.digest != known.volume.changed.digest {
            self.is_held = true;
            return Some(format!(
                "conflicting_generation: payloads {} and {} both claim generation {}",
                known.volume.changed.digest, told.volume.changed.digest, known.volume.generation
            ));
        }
        self.wanted = told;
        None
    }

    fn finish(&mut self, now: Monotonic, finished: VolumeFinished) {
        self.is_busy = false;
        if finished.generation != self.wanted.volume.generation {
            return; // its owner wants something else by now
        }
        let tries = self.failure.as_ref().map_or(1, |failure| failure.tries + 1);
        let doubled = RETRY_WAIT_FIRST * 2_u32.saturating_pow((tries - 1).min(16));
        let again = Some(now.plus(doubled.min(RETRY_WAIT_MAX)));
        match finished.outcome {
            Outcome::Done => {
                (self.done, self.failure) = (Some(finished.generation), None);
            }
            Outcome::Terminal(reason) => {
                self.failure = Some(Failure { reason, tries, again: None });
            }
            Outcome::Retryable(reason) | Outcome::Unknown(reason) => {
                self.failure = Some(Failure { reason, tries, again });
            }
        }
    }

    /// Whether its disk takes room here.
    fn takes(&self) -> Capacity {
        match self.wanted.volume.wanted {
            VolumeWanted::Kept => self.wanted.volume.size(),
            VolumeWanted::Deleted => Capacity::default(),
        }
    }

    /// The report to send, if `phase` is news about the wanted generation.
    fn news(&mut self, phase: VolumePhase, reason: Option<&str>) -> Option<ReportVolume> {
        let volume = &self.wanted.volume;
        let now: Told = (volume.generation, phase, reason.map(code));
        let ordered = volume.reported.as_ref().map(|report| -> Told {
            (report.generation, report.phase, report.reason.as_deref().map(code))
        });
        if self.told.as_ref().or(ordered.as_ref()) == Some(&now) {
            return None;
        }
        self.told = Some(now);
        let (volume, generation) = (volume.id, volume.generation);
        Some(ReportVolume { volume, generation, phase, reason: reason.map(shorten) })
    }

    /// Says what is next, while nothing is carried out; `refusal` says why this host's operator
    /// does not take it, if it is new.
    fn next(
        &mut self,
        now: Monotonic,
        here: HostId,
        refusal: Option<String>,
        outputs: &mut Vec<Output>,
    ) {
        let volume = &self.wanted.volume;
        self.wake = None;
        if self.is_held || volume.used_by.vm().is_some() {
            return; // what a machine may be writing to is left alone
        }
        let phase = match volume.wanted {
            VolumeWanted::Kept => VolumePhase::Ready,
            VolumeWanted::Deleted => VolumePhase::Deleted,
        };
        if self.done == Some(volume.generation) {
            outputs.extend(self.news(phase, None).map(Output::ReportVolume));
            return;
        }
        if let Some(failure) = self.failure.clone() {
            if failure.again.is_none() || failure.tries >= SILENT_TRIES_MAX {
                let told = self.news(VolumePhase::Degraded, Some(&failure.reason));
                outputs.extend(told.map(Output::ReportVolume));
            }
            match failure.again {
                None => return,
                Some(again) if again > now => {
                    self.wake = Some(again);
                    return;
                }
                Some(_) => {}
            }
        }
        let volume = &self.wanted.volume;
        let action = match (volume.wanted, volume.disk) {
            (VolumeWanted::Kept, VolumeDisk::Made) => VolumeAction::Make(DiskRule::MustExist),
            (VolumeWanted::Kept, VolumeDisk::NotReported) => {
                if let Some(reason) = refusal {
                    let told = self.news(VolumePhase::Degraded, Some(&reason));
                    outputs.extend(told.map(Output::ReportVolume));
                    return;
                }
                VolumeAction::Make(DiskRule::MayMake)
            }
            (VolumeWanted::Deleted, _) => match VolumeProof::of(&self.wanted, here) {
                Some(proof) => VolumeAction::Quarantine(proof),
                None => return,
            },
        };
        self.is_busy = true;
        let volume = self.wanted.volume.clone();
        outputs.push(Output::ActOnVolume(Box::new(VolumeJob { volume, action })));
    }
}

impl Controller {
    /// Takes a version of a volume of this host.
    pub(super) fn take_volume(
        &mut self,
        now: Monotonic,
        told: AttestedVolume,
        outputs: &mut Vec<Output>,
    ) {
        let id = told.volume.id;
        if told.volume.host != self.here {
            return;
        }
        match self.volumes.get_mut(&id) {
            Some(entry) => {
                let alarm = entry.take(told);
                outputs.extend(alarm.map(|reason| Output::AlarmAboutVolume(id, reason)));
            }
            None => {
                self.volumes.insert(id, VolumeEntry::new(told));
            }
        }
        self.advance_volume(now, id, outputs);
    }

    /// Takes the end of a step for a volume.
    pub(super) fn finish_volume(
        &mut self,
        now: Monotonic,
        finished: VolumeFinished,
        outputs: &mut Vec<Output>,
    ) {
        let id = finished.volume;
        if let Some(entry) = self.volumes.get_mut(&id) {
            entry.finish(now, finished);
        }
        self.advance_volume(now, id, outputs);
    }

    /// Says what is next for one volume.
    pub(super) fn advance_volume(
        &mut self,
        now: Monotonic,
        id: VolumeId,
        outputs: &mut Vec<Output>,
    ) {
        if self.mode != Mode::Live {
            return;
        }
        let used = self.used_beside(id);
        let Some(entry) = self.volumes.get_mut(&id) else { return };
        if entry.is_busy {
            return;
        }
        if entry.wanted.volume.state() == VolumeState::Deleted {
            self.volumes.remove(&id);
            return;
        }
        let refusal = self.policy.admit_volume(&entry.wanted.volume.size(), &used).err();
        entry.next(now, self.here, refusal, outputs);
    }

    /// What all but one volume take of this host.
    pub(super) fn volumes_take(&self, but: Option<VolumeId>) -> Capacity {
        let others = self.volumes.iter().filter(|(id, _)| Some(**id) != but);
        others.fold(Capacity::default(), |sum, (_, entry)| sum.plus(&entry.takes()))
    }

    fn used_beside(&self, volume: VolumeId) -> Capacity {
        let (_, by_vms) = self.carried();
        by_vms.plus(&self.volumes_take(Some(volume)))
    }
}
