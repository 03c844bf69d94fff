//! From what is wanted of a volume's snapshots to their files: made, found, or put into quarantine.
//!
//! Owns every decision about those files. One is made while no VM uses the volume and the volume's
//! own disk is as wanted, or while a VM has it that is not to lose it; it goes at any time, for no
//! machine ever has it. Keeps no
//! journal, like [`super::volumes`], which calls it.

use std::collections::BTreeMap;

use dagger_payload::id::{HostId, SnapshotId};
use dagger_payload::kind::{ReportSnapshot, VolumePhase};
use dagger_payload::volume::{Snapshot, Volume, VolumeDisk, VolumeWanted};

use super::proof::SnapshotProof;
use super::report::{code, shorten};
use super::step::{DiskRule, Outcome};
use super::volumes::{Failure, Next, Then, VolumeAction};
use super::{Monotonic, Output};
use crate::order::AttestedVolume;

/// Whether the volume's contents may be copied.
pub(super) enum Source {
    /// They are not there yet, or nobody knows who writes to them.
    Unsettled,
    /// They are there, and whoever copies them knows whether a machine holds them; this is why the
    /// host's operator takes no more, if so.
    There(Option<String>),
}

/// What the controller knows about a volume's snapshots.
#[derive(Debug, Default, Clone)]
pub(super) struct KeptEntries(BTreeMap<SnapshotId, KeptEntry>);

#[derive(Debug, Clone)]
struct KeptEntry {
    /// What the rest is about.
    wanted: VolumeWanted,
    is_done: bool,
    failure: Option<Failure>,
    /// A report's content; of a reason only its stable code.
    told: Option<(VolumePhase, Option<String>)>,
}

impl KeptEntry {
    fn new(wanted: VolumeWanted) -> Self {
        Self { wanted, is_done: false, failure: None, told: None }
    }

    /// The report to send, if `phase` is news.
    fn news(
        &mut self,
        volume: &Volume,
        snapshot: &Snapshot,
        phase: VolumePhase,
        reason: Option<&str>,
    ) -> Option<Output> {
        let now = (phase, reason.map(code));
        let ordered = snapshot.reported.as_ref();
        let ordered = ordered.map(|report| (report.phase, report.reason.as_deref().map(code)));
        if self.told == ordered {
            self.told = None; // it is under way no more
        }
        if self.told.as_ref().or(ordered.as_ref()) == Some(&now) {
            return None;
        }
        self.told = Some(now);
        let (volume, snapshot) = (volume.id, snapshot.id);
        let reason = reason.map(shorten);
        Some(Output::ReportSnapshot(ReportSnapshot { volume, snapshot, phase, reason }))
    }

    /// What is left to be tried: nothing once it is done, or while a failure rests.
    fn turn(
        &mut self,
        now: Monotonic,
        (volume, snapshot): (&Volume, &Snapshot),
        outputs: &mut Vec<Output>,
    ) -> Then {
        if self.is_done {
            let phase = match self.wanted {
                VolumeWanted::Kept => VolumePhase::Ready,
                VolumeWanted::Deleted => VolumePhase::Deleted,
            };
            outputs.extend(self.news(volume, snapshot, phase, None));
            return Then::Stay;
        }
        let Some(failure) = self.failure.clone() else { return Then::TryNow };
        if let Some(why) = failure.told() {
            outputs.extend(self.news(volume, snapshot, VolumePhase::Degraded, Some(why)));
        }
        failure.then(now)
    }
}

impl KeptEntries {
    /// Takes the end of a step.
    pub(super) fn finish(
        &mut self,
        now: Monotonic,
        (snapshot, wanted): (SnapshotId, VolumeWanted),
        outcome: Outcome,
    ) {
        let entry = self.0.get_mut(&snapshot).filter(|entry| entry.wanted == wanted);
        let Some(entry) = entry else { return };
        entry.failure = Failure::of(entry.failure.as_ref(), now, outcome);
        entry.is_done = entry.failure.is_none();
    }

    /// Whether a snapshot that is to go is not gone.
    pub(super) fn has_gone_due(&self, volume: &Volume) -> bool {
        let is_due = |snapshot: &&Snapshot| {
            let entry = self.0.get(&snapshot.id);
            let is_gone = |entry: &KeptEntry| entry.is_done && entry.wanted == snapshot.wanted;
            snapshot.wanted == VolumeWanted::Deleted && !entry.is_some_and(is_gone)
        };
        volume.snapshots.iter().any(|snapshot| is_due(&snapshot))
    }

    /// The next snapshot that is to go.
    pub(super) fn next_gone(
        &mut self,
        now: Monotonic,
        attested: &AttestedVolume,
        here: HostId,
        outputs: &mut Vec<Output>,
    ) -> Next {
        let volume = &attested.volume;
        self.0.retain(|id, _| volume.snapshot(*id).is_some());
        let gone = volume.snapshots.iter().filter(|one| one.wanted == VolumeWanted::Deleted);
        let mut next = Next::Nothing;
        for snapshot in gone {
            match self.entry(snapshot).turn(now, (volume, snapshot), outputs) {
                Then::TryNow => {
                    if let Some(proof) = SnapshotProof::of(attested, here, snapshot.id) {
                        return Next::Act(VolumeAction::QuarantineSnapshot(proof));
                    }
                }
                Then::Wait(until) => next = sooner(next, until),
                Then::Stay => {}
            }
        }
        next
    }

    /// The next snapshot that is to be made or found.
    pub(super) fn next_kept(
        &mut self,
        now: Monotonic,
        volume: &Volume,
        source: &Source,
        outputs: &mut Vec<Output>,
    ) -> Next {
        let mut next = Next::Nothing;
        let kept = volume.snapshots.iter().filter(|one| one.wanted == VolumeWanted::Kept);
        for snapshot in kept {
            let entry = self.entry(snapshot);
            let rule = match (snapshot.disk, source) {
                (VolumeDisk::Made, _) => DiskRule::MustExist,
                (VolumeDisk::NotReported, Source::Unsettled) | (VolumeDisk::Lost, _) => continue,
                (VolumeDisk::NotReported, Source::There(Some(refusal))) => {
                    let phase = VolumePhase::Degraded;
                    outputs.extend(entry.news(volume, snapshot, phase, Some(refusal)));
                    continue;
                }
                (VolumeDisk::NotReported, Source::There(None)) => DiskRule::MayMake,
            };
            match entry.turn(now, (volume, snapshot), outputs) {
                Then::TryNow => return Next::Act(VolumeAction::Keep(snapshot.id, rule)),
                Then::Wait(until) => next = sooner(next, until),
                Then::Stay => {}
            }
        }
        next
    }

    /// What is known about the snapshot since it is wanted so.
    fn entry(&mut self, snapshot: &Snapshot) -> &mut KeptEntry {
        let wanted = snapshot.wanted;
        let entry = self.0.entry(snapshot.id).or_insert_with(|| KeptEntry::new(wanted));
        if entry.wanted != wanted {
            *entry = KeptEntry::new(wanted);
        }
        entry
    }
}

fn sooner(next: Next, until: Monotonic) -> Next {
    match next {
        Next::Wait(at) => Next::Wait(at.min(until)),
        Next::Nothing | Next::Act(_) => Next::Wait(until),
    }
}
