//! From what is wanted of a volume to its disk: made, kept, put back, or put into quarantine.
//!
//! Owns every decision about a volume's file while no VM uses it, and when its snapshots
//! ([`super::kept`]) have their turn; giving it to a machine and taking
//! it away is a step of that VM ([`super::decide`]). Keeps no journal: the attested history says
//! whether the file was ever made, and each step only ensures (see `decisions.md`). Called by the
//! controller only.

use dagger_payload::id::{Generation, HostId, SnapshotId, VmId, VolumeId};
use dagger_payload::kind::{Capacity, ReportVolume, VolumePhase};
use dagger_payload::volume::{Volume, VolumeDisk, VolumeState, VolumeUse, VolumeWanted};

use super::kept::{KeptEntries, Source};
use super::limits::{RETRY_WAIT_FIRST, RETRY_WAIT_MAX, SILENT_TRIES_MAX};
use super::proof::{RestoreProof, SnapshotProof, VolumeProof};
use super::report::{code, shorten};
use super::step::{DiskRule, Outcome};
use super::{Controller, Mode, Monotonic, Output};
use crate::order::AttestedVolume;

/// One step for a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeJob {
    /// The volume as wanted.
    pub volume: Volume,
    /// What to do.
    pub action: VolumeAction,
}

impl VolumeJob {
    /// The end of this.
    pub fn finished(&self, outcome: Outcome) -> VolumeFinished {
        let snapshot = match &self.action {
            VolumeAction::Keep(snapshot, _) => Some((*snapshot, VolumeWanted::Kept)),
            VolumeAction::QuarantineSnapshot(proof) => {
                Some((proof.snapshot(), VolumeWanted::Deleted))
            }
            VolumeAction::Make(_) | VolumeAction::Restore(_) | VolumeAction::Quarantine(_) => None,
        };
        let (volume, generation) = (self.volume.id, self.volume.generation);
        VolumeFinished { volume, generation, snapshot, outcome }
    }
}

/// What can be done for a volume; each only makes sure that something holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeAction {
    /// Its disk is here; one that begins with a snapshot is a copy of that.
    Make(DiskRule),
    /// Its disk was put back to a snapshot, for this generation.
    Restore(RestoreProof),
    /// The snapshot's file is here.
    Keep(SnapshotId, DiskRule),
    /// The snapshot's file is in quarantine.
    QuarantineSnapshot(SnapshotProof),
    /// Its disk is in quarantine.
    Quarantine(VolumeProof),
}

/// Whose turn it is to be copied, of the volumes of one VM: a hypervisor copies one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CopyTurn {
    /// This one's.
    Own,
    /// Another one is being copied.
    Others,
}

/// What is next for a volume or one of its snapshots.
pub(super) enum Next {
    /// Nothing.
    Nothing,
    /// Nothing before this time.
    Wait(Monotonic),
    /// This.
    Act(VolumeAction),
}

/// A step for a volume that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFinished {
    /// Whose.
    pub volume: VolumeId,
    /// In which generation it was begun.
    pub generation: Generation,
    /// For which of its snapshots, if not for the volume itself, and what was wanted of it.
    pub snapshot: Option<(SnapshotId, VolumeWanted)>,
    /// How.
    pub outcome: Outcome,
}

/// What the controller knows about one volume.
#[derive(Debug, Clone)]
pub(super) struct VolumeEntry {
    wanted: AttestedVolume,
    /// The step that is being carried out.
    busy: Option<VolumeAction>,
    /// The generation whose step ended well.
    done: Option<Generation>,
    failure: Option<Failure>,
    /// Another payload claimed the known generation: nothing is done any more.
    is_held: bool,
    told: Option<Told>,
    kept: KeptEntries,
    pub(super) wake: Option<Monotonic>,
}

/// A step that did not work.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    reason: String,
    tries: u32,
    /// When to try again; never, before the owner asks for something else.
    again: Option<Monotonic>,
}

/// What a failure leaves to be done now.
pub(super) enum Then {
    /// Another try.
    TryNow,
    /// Nothing before this time.
    Wait(Monotonic),
    /// Nothing.
    Stay,
}

impl Failure {
    /// The failure after `known`, if the step ended so.
    pub(super) fn of(known: Option<&Self>, now: Monotonic, outcome: Outcome) -> Option<Self> {
        let tries = known.map_or(1, |failure| failure.tries + 1);
        let doubled = RETRY_WAIT_FIRST * 2_u32.saturating_pow((tries - 1).min(16));
        let again = Some(now.plus(doubled.min(RETRY_WAIT_MAX)));
        match outcome {
            Outcome::Done => None,
            Outcome::Terminal(reason) => Some(Self { reason, tries, again: None }),
            Outcome::Retryable(reason)
            | Outcome::ImageMissing(_, reason)
            | Outcome::Unknown(reason) => Some(Self { reason, tries, again }),
        }
    }

    /// Why, once that is worth telling.
    pub(super) fn told(&self) -> Option<&str> {
        (self.again.is_none() || self.tries >= SILENT_TRIES_MAX).then_some(self.reason.as_str())
    }

    pub(super) fn then(&self, now: Monotonic) -> Then {
        match self.again {
            None => Then::Stay,
            Some(again) if again > now => Then::Wait(again),
            Some(_) => Then::TryNow,
        }
    }
}

/// A report's content; of a reason only its stable code.
type Told = (Generation, VolumePhase, Option<String>);

impl VolumeEntry {
    fn new(wanted: AttestedVolume) -> Self {
        Self {
            wanted,
            busy: None,
            done: None,
            failure: None,
            is_held: false,
            told: None,
            kept: KeptEntries::default(),
            wake: None,
        }
    }

    /// Whether what is on it is being copied.
    fn is_copied(&self) -> bool {
        matches!(self.busy, Some(VolumeAction::Keep(_, DiskRule::MayMake)))
    }

    /// The newest version.
    pub(super) fn wanted(&self) -> &AttestedVolume {
        &self.wanted
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
        // What is ordered is under way no more: an older report that comes later is contradicted.
        if self.told == self.ordered() {
            self.told = None;
        }
        None
    }

    fn finish(&mut self, now: Monotonic, finished: VolumeFinished) {
        self.busy = None;
        if let Some((snapshot, wanted)) = finished.snapshot {
            self.kept.finish(now, (snapshot, wanted), finished.outcome);
            return;
        }
        if finished.generation != self.wanted.volume.generation {
            return; // its owner wants something else by now
        }
        self.failure = Failure::of(self.failure.as_ref(), now, finished.outcome);
        if self.failure.is_none() {
            self.done = Some(finished.generation);
        }
    }

    /// Whether its disk takes room here.
    fn takes(&self) -> Capacity {
        match self.wanted.volume.wanted {
            VolumeWanted::Kept => self.wanted.volume.size(),
            VolumeWanted::Deleted => Capacity::default(),
        }
    }

    /// The last report as the order has it.
    fn ordered(&self) -> Option<Told> {
        let report = self.wanted.volume.reported.as_ref()?;
        Some((report.generation, report.phase, report.reason.as_deref().map(code)))
    }

    /// The report to send, if `phase` is news about the wanted generation.
    fn news(&mut self, phase: VolumePhase, reason: Option<&str>) -> Option<ReportVolume> {
        let volume = &self.wanted.volume;
        let now: Told = (volume.generation, phase, reason.map(code));
        if self.told.as_ref().or(self.ordered().as_ref()) == Some(&now) {
            return None;
        }
        self.told = Some(now);
        let (volume, generation) = (volume.id, volume.generation);
        Some(ReportVolume { volume, generation, phase, reason: reason.map(shorten) })
    }

    /// Says what is next, while nothing is carried out; `refusal` says why this host's operator
    /// does not take it, if it is new, and `turn` whether it may be copied beside its VM.
    fn next(
        &mut self,
        now: Monotonic,
        here: HostId,
        (refusal, turn): (Option<String>, CopyTurn),
        outputs: &mut Vec<Output>,
    ) {
        self.wake = None;
        if self.is_held {
            return;
        }
        // Snapshots go first: a volume that is gone has nothing left that could name them.
        let gone = self.kept.next_gone(now, &self.wanted, here, outputs);
        if self.act(gone, outputs) {
            return;
        }
        let is_free = self.wanted.volume.used_by.vm().is_none();
        let waits = self.kept.has_gone_due(&self.wanted.volume);
        let is_gone = self.wanted.volume.wanted == VolumeWanted::Deleted;
        // What a machine may be writing to is left alone.
        if is_free && !(is_gone && waits) {
            let own = self.next_of_disk(now, here, refusal.as_deref(), outputs);
            if self.act(own, outputs) {
                return;
            }
        }
        let volume = &self.wanted.volume;
        let can_be_copied = match volume.used_by {
            VolumeUse::Free {} => self.done == Some(volume.generation),
            VolumeUse::Attached { .. } => turn == CopyTurn::Own,
            VolumeUse::Detaching { .. } => false,
        };
        let source = if can_be_copied { Source::There(refusal) } else { Source::Unsettled };
        let kept = self.kept.next_kept(now, &self.wanted.volume, &source, outputs);
        self.act(kept, outputs);
    }

    /// Begins what is next, if that is something to do now.
    fn act(&mut self, next: Next, outputs: &mut Vec<Output>) -> bool {
        let action = match next {
            Next::Nothing => return false,
            Next::Wait(until) => {
                self.wake = Some(self.wake.map_or(until, |wake| wake.min(until)));
                return false;
            }
            Next::Act(action) => action,
        };
        self.busy = Some(action.clone());
        let volume = self.wanted.volume.clone();
        outputs.push(Output::ActOnVolume(Box::new(VolumeJob { volume, action })));
        true
    }

    /// What is next for the volume's own disk.
    fn next_of_disk(
        &mut self,
        now: Monotonic,
        here: HostId,
        refusal: Option<&str>,
        outputs: &mut Vec<Output>,
    ) -> Next {
        let volume = &self.wanted.volume;
        let phase = match volume.wanted {
            VolumeWanted::Kept => VolumePhase::Ready,
            VolumeWanted::Deleted => VolumePhase::Deleted,
        };
        if self.done == Some(volume.generation) {
            outputs.extend(self.news(phase, None).map(Output::ReportVolume));
            return Next::Nothing;
        }
        if let Some(failure) = self.failure.clone() {
            let told = failure.told().and_then(|why| self.news(VolumePhase::Degraded, Some(why)));
            outputs.extend(told.map(Output::ReportVolume));
            match failure.then(now) {
                Then::TryNow => {}
                Then::Wait(until) => return Next::Wait(until),
                Then::Stay => return Next::Nothing,
            }
        }
        let volume = &self.wanted.volume;
        match (volume.wanted, volume.disk) {
            (VolumeWanted::Kept, VolumeDisk::Made) if volume.restoring.is_some() => {
                RestoreProof::of(&self.wanted, here)
                    .map_or(Next::Nothing, |proof| Next::Act(VolumeAction::Restore(proof)))
            }
            (VolumeWanted::Kept, VolumeDisk::Made) => {
                let anew = planted!(VolumeMadeAnew);
                let rule = if anew { DiskRule::MayMake } else { DiskRule::MustExist };
                Next::Act(VolumeAction::Make(rule))
            }
            // This host has left the cluster: what is here stays as it is.
            (VolumeWanted::Kept, VolumeDisk::Lost) => Next::Nothing,
            (VolumeWanted::Kept, VolumeDisk::NotReported) => match refusal {
                Some(reason) => {
                    let told = self.news(VolumePhase::Degraded, Some(reason));
                    outputs.extend(told.map(Output::ReportVolume));
                    Next::Nothing
                }
                None => Next::Act(VolumeAction::Make(DiskRule::MayMake)),
            },
            (VolumeWanted::Deleted, _) => VolumeProof::of(&self.wanted, here)
                .map_or(Next::Nothing, |proof| Next::Act(VolumeAction::Quarantine(proof))),
        }
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
        let Some(entry) = self.volumes.get_mut(&id) else { return };
        let was_copied = entry.is_copied();
        entry.finish(now, finished);
        let user = entry.wanted.volume.used_by.vm().filter(|_| was_copied);
        self.advance_volume(now, id, outputs);
        let Some(vm) = user else { return };
        // Its VM, and the volumes beside it, have waited for the end of that.
        let beside: Vec<_> = self.volumes_of(vm).filter(|other| *other != id).collect();
        beside.into_iter().for_each(|other| self.advance_volume(now, other, outputs));
        self.advance(now, vm, outputs);
    }

    /// Says what is next for one volume.
    pub(super) fn advance_volume(
        &mut self,
        now: Monotonic,
        id: VolumeId,
        outputs: &mut Vec<Output>,
    ) {
        if self.mode != Mode::Live && !planted!(VolumesActOnHold) {
            return;
        }
        let used = self.used_beside(id);
        let user = self.volumes.get(&id).and_then(|entry| entry.wanted.volume.used_by.vm());
        let turn = match user.is_some_and(|vm| self.copies_for(vm)) {
            true => CopyTurn::Others,
            false => CopyTurn::Own,
        };
        let Some(entry) = self.volumes.get_mut(&id) else { return };
        if entry.busy.is_some() {
            return;
        }
        if entry.wanted.volume.state() == VolumeState::Deleted {
            self.volumes.remove(&id);
            return;
        }
        let refusal = self.policy.admit_volume(&entry.wanted.volume.size(), &used).err();
        entry.next(now, self.here, (refusal, turn), outputs);
    }

    /// Whether what a VM is to be switched on with is being copied: nobody may write to it before
    /// that ends.
    pub(super) fn copies_for(&self, vm: VmId) -> bool {
        self.volumes_of(vm).any(|id| self.volumes.get(&id).is_some_and(VolumeEntry::is_copied))
    }

    fn volumes_of(&self, vm: VmId) -> impl Iterator<Item = VolumeId> + '_ {
        let wanted = self.entries.get(&vm).and_then(|entry| entry.wanted.as_ref());
        wanted.into_iter().flat_map(|wanted| &wanted.vm.volumes).map(|used| used.volume)
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
