//! Volumes' snapshots in the controller and on disk: when they are made, put back, cloned, removed.

use std::collections::{BTreeMap, BTreeSet};

use dagger_agent::actuator::disks::DiskError;
use dagger_agent::controller::proof::{RemainsProof, Remnant, RestoreProof, SnapshotProof};
use dagger_agent::controller::{
    DiskRule, Input, LocalPolicy, Outcome, Output, Step, VolumeAction, VolumeFinished,
};
use dagger_agent::handover::{AttestedVm, AttestedVolume, Order, ReportSubject};
use dagger_agent::hypervisor::Power;
use dagger_payload::id::{Generation, SnapshotId, VolumeId};
use dagger_payload::kind::VolumePhase;
use dagger_payload::object::Wanted;
use dagger_payload::volume::{VolumeUse, VolumeWanted};

use super::desk::steps;
use super::support::{ELSEWHERE, HERE, VM, accepted, ours, wants};
use super::volumes::{Desk, NextVolume, SNAPSHOT, VOLUME, actions, told, volume, with_volumes};

/// What is on the volumes and snapshots of a fake host: how often somebody wrote to it.
#[derive(Debug, Default)]
pub(crate) struct FakeKept {
    bytes: BTreeMap<VolumeId, u32>,
    snapshots: BTreeMap<SnapshotId, u32>,
    /// What was on them when they were made, those that are gone too.
    taken: BTreeMap<SnapshotId, u32>,
    quarantined: BTreeSet<SnapshotId>,
    /// Which volume was put back in which generations, and of which what it held is still there.
    restored: BTreeSet<Generation>,
    replaced: BTreeSet<(VolumeId, Generation)>,
    cloned: BTreeMap<VolumeId, SnapshotId>,
    quarantines: usize,
}

/// What must have come of all snapshots in the end.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct KeptEnd {
    /// Made, and gone.
    pub(crate) snapshots: usize,
    /// How often a volume was put back, and is as it was then.
    pub(crate) restored: usize,
    /// Volumes that began with a snapshot.
    pub(crate) cloned: usize,
}

impl FakeKept {
    /// A machine that has the volume writes to it.
    pub(crate) fn write(&mut self, volume: VolumeId) {
        *self.bytes.entry(volume).or_default() += 1;
    }

    pub(crate) fn keep(
        &mut self,
        volume: VolumeId,
        snapshot: SnapshotId,
        rule: DiskRule,
    ) -> Result<(), DiskError> {
        if self.snapshots.contains_key(&snapshot) {
            return Ok(());
        }
        if rule == DiskRule::MustExist {
            return Err(DiskError::DiskMissing("the snapshot was there".to_owned()));
        }
        let bytes = self.bytes.get(&volume).copied().unwrap_or_default();
        self.snapshots.insert(snapshot, bytes);
        assert_eq!(self.taken.insert(snapshot, bytes), None, "a snapshot was made twice");
        Ok(())
    }

    /// Whether the snapshot's file is here.
    pub(crate) fn has(&self, snapshot: SnapshotId) -> bool {
        self.snapshots.contains_key(&snapshot)
    }

    pub(crate) fn clone(&mut self, volume: VolumeId, snapshot: SnapshotId) {
        self.bytes.insert(volume, self.snapshots[&snapshot]);
        assert_eq!(self.cloned.insert(volume, snapshot), None, "a clone was made twice");
    }

    pub(crate) fn restore(&mut self, proof: &RestoreProof) {
        if self.restored.insert(proof.generation()) {
            let before = self.bytes.insert(proof.volume(), self.snapshots[&proof.snapshot()]);
            assert!(before > self.bytes.get(&proof.volume()).copied(), "nothing was written since");
            self.replaced.insert((proof.volume(), proof.generation()));
        }
    }

    pub(crate) fn quarantine(&mut self, snapshot: SnapshotId) {
        if self.snapshots.remove(&snapshot).is_some() {
            self.quarantined.insert(snapshot);
            self.quarantines += 1;
        }
    }

    /// What lies in quarantine.
    pub(crate) fn remains(&self) -> impl Iterator<Item = Remnant> + '_ {
        let of = |snapshot: &SnapshotId| Remnant::Of(ReportSubject::Snapshot(VOLUME, *snapshot));
        let replaced =
            |(volume, generation): &(VolumeId, Generation)| Remnant::Replaced(*volume, *generation);
        self.quarantined.iter().map(of).chain(self.replaced.iter().map(replaced))
    }

    pub(crate) fn collect(&mut self, subject: Remnant) {
        self.quarantined
            .retain(|snapshot| Remnant::Of(ReportSubject::Snapshot(VOLUME, *snapshot)) != subject);
        self.replaced
            .retain(|(volume, generation)| Remnant::Replaced(*volume, *generation) != subject);
    }

    /// Each was made once, put back once, and went; and nothing that was written is lost.
    pub(crate) fn check(&self, end: KeptEnd) {
        assert!(self.snapshots.is_empty(), "{self:?}");
        let counts = (self.taken.len(), self.quarantines, self.restored.len(), self.cloned.len());
        let expected = (end.snapshots, end.snapshots, end.restored, end.cloned);
        assert_eq!(counts, expected, "{self:?}");
        if end.restored > 0 {
            assert_eq!(self.bytes.get(&VOLUME), self.taken.get(&SNAPSHOT), "{self:?}");
        }
        for (volume, snapshot) in &self.cloned {
            assert!(
                self.bytes[volume] > self.taken[snapshot],
                "what was written is lost: {self:?}"
            );
        }
    }
}

fn told_snapshot(outputs: &[Output]) -> Vec<VolumePhase> {
    let phase = |output: &Output| match output {
        Output::ReportSnapshot(report) => Some(report.phase),
        _ => None,
    };
    outputs.iter().filter_map(phase).collect()
}

impl Desk {
    fn finish_snapshot(
        &mut self,
        of: &AttestedVolume,
        wanted: VolumeWanted,
        outcome: Outcome,
    ) -> Vec<Output> {
        let (volume, generation) = (of.volume.id, of.volume.generation);
        let snapshot = Some((SNAPSHOT, wanted));
        let finished = VolumeFinished { volume, generation, snapshot, outcome };
        self.take(Input::VolumeFinished(finished))
    }
}

/// A volume that its host has made, at a desk that has looked for it.
fn made() -> (Desk, AttestedVolume) {
    let mut desk = Desk::new(LocalPolicy::default());
    let made = volume().reported(VolumePhase::Ready);
    desk.volume(&made);
    desk.caught_up();
    desk.finish(&made, Outcome::Done);
    (desk, made)
}

fn attached(volume: &AttestedVolume) -> AttestedVolume {
    volume.after(|volume| volume.used_by = VolumeUse::Attached { vm: VM })
}

#[test]
fn a_snapshot_is_made_once_and_from_then_on_only_found() {
    let (mut desk, made) = made();
    let asked = made.asked_snapshot();
    let outputs = desk.volume(&asked);
    assert_eq!(actions(&outputs), [VolumeAction::Keep(SNAPSHOT, DiskRule::MayMake)]);
    let outputs = desk.finish_snapshot(&asked, VolumeWanted::Kept, Outcome::Done);
    assert_eq!(told_snapshot(&outputs), [VolumePhase::Ready]);
    let kept = asked.reported_snapshot(VolumePhase::Ready);
    assert_eq!(desk.volume(&kept), []);

    // After a restart it is looked for, also while a machine has the volume.
    for known in [kept.clone(), attached(&kept)] {
        let mut desk = Desk::new(LocalPolicy::default());
        desk.volume(&known);
        let mut outputs = desk.caught_up();
        if known.volume.used_by == (VolumeUse::Free {}) {
            assert_eq!(actions(&outputs), [VolumeAction::Make(DiskRule::MustExist)]);
            outputs = desk.finish(&known, Outcome::Done);
        }
        assert_eq!(actions(&outputs), [VolumeAction::Keep(SNAPSHOT, DiskRule::MustExist)]);
        let lost = Outcome::Terminal("disk_missing: gone".to_owned());
        let outputs = desk.finish_snapshot(&known, VolumeWanted::Kept, lost);
        assert_eq!(told_snapshot(&outputs), [VolumePhase::Degraded]);
        assert_eq!(desk.wait(600), []);
    }
}

#[test]
fn what_a_machine_is_to_lose_or_what_is_not_as_wanted_is_not_copied() {
    let mut desk = Desk::new(LocalPolicy::default());
    let asked = volume().reported(VolumePhase::Ready).asked_snapshot();
    desk.volume(&asked.after(|volume| volume.used_by = VolumeUse::Detaching { vm: VM }));
    assert_eq!(desk.caught_up(), []);
    let free = attached(&asked).after(|volume| volume.used_by = VolumeUse::Free {});
    assert_eq!(actions(&desk.volume(&free)), [VolumeAction::Make(DiskRule::MustExist)]);
    let busy = Outcome::Retryable("disk_failed: a machine writes to it".to_owned());
    assert_eq!(actions(&desk.finish(&free, busy)), []);
    assert_eq!(actions(&desk.wait(30)).len(), 1);
    let outputs = desk.finish(&free, Outcome::Done);
    assert_eq!(actions(&outputs), [VolumeAction::Keep(SNAPSHOT, DiskRule::MayMake)]);
    let full = || Outcome::Retryable("disk_failed: no space".to_owned());
    for tries in 1..5 {
        let outputs = desk.finish_snapshot(&free, VolumeWanted::Kept, full());
        let degraded = (tries == 3).then_some(VolumePhase::Degraded);
        assert_eq!(told_snapshot(&outputs), Vec::from_iter(degraded), "try {tries}");
        assert_eq!(actions(&desk.wait(30)).len(), 1);
    }
    // Its owner gives up while it is being made: what was made goes.
    let given_up = free.without_snapshot();
    assert_eq!(desk.volume(&given_up), []);
    let outputs = desk.finish_snapshot(&free, VolumeWanted::Kept, Outcome::Done);
    assert_eq!(told_snapshot(&outputs), []);
    assert!(matches!(actions(&outputs)[..], [VolumeAction::QuarantineSnapshot(_)]));
}

#[test]
fn a_volume_is_put_back_on_an_order_only_while_no_machine_has_it() {
    let (mut desk, made) = made();
    let kept = made.asked_snapshot().reported_snapshot(VolumePhase::Ready);
    desk.volume(&kept);
    desk.finish_snapshot(&kept, VolumeWanted::Kept, Outcome::Done);
    let asked = kept.put_back();
    assert_eq!(RestoreProof::of(&kept, HERE), None);
    assert_eq!(RestoreProof::of(&attached(&asked), HERE), None);
    assert_eq!(RestoreProof::of(&asked, ELSEWHERE), None);
    let outputs = desk.volume(&asked);
    let proof = RestoreProof::of(&asked, HERE).unwrap();
    assert_eq!(actions(&outputs), [VolumeAction::Restore(proof)]);
    assert_eq!(told(&desk.finish(&asked, Outcome::Done)), [VolumePhase::Ready]);
    let back = asked.reported(VolumePhase::Ready);
    assert_eq!(desk.volume(&back), []);
    assert_eq!(RestoreProof::of(&back, HERE), None);
    let replaced = Remnant::Replaced(VOLUME, asked.volume.generation);
    let proofs = RemainsProof::between(&asked, &back, HERE);
    assert_eq!(proofs.iter().map(RemainsProof::subject).collect::<Vec<_>>(), [replaced]);
    assert_eq!(RemainsProof::between(&kept, &asked, HERE), []);
}

#[test]
fn a_snapshot_goes_on_an_order_also_while_a_machine_has_the_volume_and_before_the_volume_does() {
    let (mut desk, made) = made();
    let kept = made.asked_snapshot().reported_snapshot(VolumePhase::Ready);
    let used = attached(&kept);
    desk.volume(&used);
    desk.finish_snapshot(&used, VolumeWanted::Kept, Outcome::Done);
    assert_eq!(SnapshotProof::of(&used, HERE, SNAPSHOT), None);
    let asked = used.without_snapshot();
    let proof = SnapshotProof::of(&asked, HERE, SNAPSHOT).unwrap();
    assert_eq!(SnapshotProof::of(&asked, ELSEWHERE, SNAPSHOT), None);
    assert_eq!(actions(&desk.volume(&asked)), [VolumeAction::QuarantineSnapshot(proof)]);
    let outputs = desk.finish_snapshot(&asked, VolumeWanted::Deleted, Outcome::Done);
    assert_eq!((told_snapshot(&outputs), actions(&outputs)), (vec![VolumePhase::Deleted], vec![]));
    let gone = asked.reported_snapshot(VolumePhase::Deleted);
    let proofs = RemainsProof::between(&asked, &gone, HERE);
    let subject = Remnant::Of(ReportSubject::Snapshot(VOLUME, SNAPSHOT));
    assert_eq!(proofs.iter().map(RemainsProof::subject).collect::<Vec<_>>(), [subject]);

    let mut desk = Desk::new(LocalPolicy::default());
    let both = kept.without_snapshot().deleted();
    desk.volume(&both);
    let outputs = desk.caught_up();
    assert!(matches!(actions(&outputs)[..], [VolumeAction::QuarantineSnapshot(_)]));
    let failed = Outcome::Retryable("disk_failed: no right".to_owned());
    assert_eq!(actions(&desk.finish_snapshot(&both, VolumeWanted::Deleted, failed)), []);
    desk.wait(30);
    let outputs = desk.finish_snapshot(&both, VolumeWanted::Deleted, Outcome::Done);
    assert!(matches!(actions(&outputs)[..], [VolumeAction::Quarantine(_)]), "{outputs:?}");
}

/// A volume that a VM has and of which a snapshot is asked for.
fn asked_while_attached() -> AttestedVolume {
    attached(&volume().reported(VolumePhase::Ready)).asked_snapshot()
}

#[test]
fn what_a_vm_has_is_copied_at_once_and_a_host_that_cannot_says_why_and_does_not_try_again() {
    let asked = asked_while_attached();
    let mut desk = Desk::new(LocalPolicy::default());
    desk.volume(&asked);
    let begun = [VolumeAction::Keep(SNAPSHOT, DiskRule::MayMake)];
    assert_eq!(actions(&desk.caught_up()), begun);
    let outputs = desk.finish_snapshot(&asked, VolumeWanted::Kept, Outcome::Done);
    assert_eq!(told_snapshot(&outputs), [VolumePhase::Ready]);

    let mut desk = Desk::new(LocalPolicy::default());
    desk.volume(&asked);
    desk.caught_up();
    let cannot = Outcome::Terminal("snapshot_while_off_only: delete it".to_owned());
    let outputs = desk.finish_snapshot(&asked, VolumeWanted::Kept, cannot);
    assert_eq!(told_snapshot(&outputs), [VolumePhase::Degraded]);
    assert_eq!(desk.wait(600), []);
    // Once it was given up, there is nothing of it to keep.
    let given_up = asked.without_snapshot();
    assert!(matches!(actions(&desk.volume(&given_up))[..], [VolumeAction::QuarantineSnapshot(_)]));
}

/// The accepted VM with two volumes, switched off.
fn off_with_two() -> AttestedVm {
    let with = with_volumes(&accepted(), &[VOLUME, OTHER]);
    let mut off = wants(&with, Wanted::Stopped);
    off.vm.volumes_since = with.vm.generation;
    off
}

const OTHER: VolumeId = VolumeId([12; 16]);

fn other(volume: &AttestedVolume) -> AttestedVolume {
    volume.after(|volume| {
        volume.id = OTHER;
        volume.snapshots[0].id = SnapshotId([13; 16]);
    })
}

#[test]
fn a_vm_is_not_switched_on_while_a_volume_of_it_is_copied_and_its_volumes_take_turns() {
    let off = off_with_two();
    let generation = off.vm.generation.0;
    let (mut desk, _) =
        super::desk::Desk::live(std::slice::from_ref(&off), Some(ours(Power::Stopped, generation)));
    let asked = asked_while_attached();
    let order = |volume: &AttestedVolume| Order::Volume(Box::new(volume.clone()));
    assert_eq!(actions(&desk.order(order(&asked))).len(), 1);
    assert_eq!(actions(&desk.order(order(&other(&asked)))), [], "one at a time");

    desk.vm(&wants(&off, Wanted::Running));
    for step in [Step::Image, Step::Disk, Step::Seed] {
        desk.done(step, None);
    }
    assert_eq!(steps(&desk.done(Step::Network, None)), [], "it was defined under a copy");
    let finished = |of: &AttestedVolume| {
        let snapshot = Some((of.volume.snapshots[0].id, VolumeWanted::Kept));
        let (volume, generation) = (of.volume.id, of.volume.generation);
        let outcome = Outcome::Done;
        Input::VolumeFinished(VolumeFinished { volume, generation, snapshot, outcome })
    };
    let outputs = desk.take(finished(&asked));
    assert_eq!((actions(&outputs).len(), steps(&outputs)), (1, vec![]), "the other's turn");
    assert_eq!(steps(&desk.take(finished(&other(&asked)))), [Step::Define]);
}
