//! The controller's decisions about volumes, one sentence each: their files, and the machines that
//! use them. And makers of attested versions of volumes.

use std::collections::BTreeMap;
use std::time::Duration;

use dagger_agent::controller::proof::VolumeProof;
use dagger_agent::controller::{
    Controller, DiskRule, Finished, Input, LocalPolicy, Monotonic, Outcome, Output, Seen, Sighting,
    Step, VolumeAction, VolumeFinished,
};
use dagger_agent::handover::{AttestedVm, AttestedVolume, Order};
use dagger_agent::hypervisor::{Machine, Power};
use dagger_payload::id::{AccountId, CommitIndex, Generation, LedgerTime, SnapshotId, VolumeId};
use dagger_payload::kind::{Capacity, Protection, ReportPhase, VolumePhase};
use dagger_payload::volume::{
    Snapshot, SnapshotReport, VmVolume, Volume, VolumeDisk, VolumeReport, VolumeUse, VolumeWanted,
};

use super::support::{ELSEWHERE, HERE, VM, accepted, after, cause, host, ours, report, wants};

/// The volume.
pub(crate) const VOLUME: VolumeId = VolumeId([8; 16]);

/// Its snapshot.
pub(crate) const SNAPSHOT: SnapshotId = SnapshotId([7; 16]);

/// A new volume of `HERE`.
pub(crate) fn volume() -> AttestedVolume {
    let volume = Volume {
        id: VOLUME,
        account: AccountId([5; 16]),
        name: "data".parse().unwrap(),
        generation: Generation(1),
        created: cause(1),
        changed: cause(1),
        wanted: VolumeWanted::Kept,
        size_gib: 1,
        host: HERE,
        used_by: VolumeUse::Free {},
        disk: VolumeDisk::NotReported,
        reported: None,
        meter: dagger_payload::usage::Meter::NEW,
        protection: Protection::Unprotected,
        snapshots: Vec::new(),
        restoring: None,
        origin: None,
    };
    AttestedVolume { volume, commit: CommitIndex(1) }
}

/// What becomes of a volume.
pub(crate) trait NextVolume {
    /// The version after this one in which `change` happened.
    fn after(&self, change: impl FnOnce(&mut Volume)) -> AttestedVolume;

    /// `HERE` has reported this.
    fn reported(&self, phase: VolumePhase) -> AttestedVolume {
        self.after(|volume| {
            if phase == VolumePhase::Ready {
                volume.disk = VolumeDisk::Made;
                volume.restoring = None;
            }
            let (generation, reason) = (volume.generation, None);
            volume.reported = Some(VolumeReport { generation, phase, reason, cause: cause(9) });
        })
    }

    /// Its owner wants what is on it to be kept.
    fn asked_snapshot(&self) -> AttestedVolume {
        self.after(|volume| {
            volume.snapshots.push(Snapshot {
                id: SNAPSHOT,
                name: "monday".parse().unwrap(),
                size_gib: volume.size_gib,
                created: cause(20),
                created_at: LedgerTime(0),
                wanted: VolumeWanted::Kept,
                disk: VolumeDisk::NotReported,
                reported: None,
            });
        })
    }

    /// `HERE` has reported this about its snapshot.
    fn reported_snapshot(&self, phase: VolumePhase) -> AttestedVolume {
        self.after(|volume| {
            volume.snapshots.retain(|_| phase != VolumePhase::Deleted);
            for snapshot in &mut volume.snapshots {
                if phase == VolumePhase::Ready {
                    snapshot.disk = VolumeDisk::Made;
                }
                let (reason, cause) = (None, cause(21));
                snapshot.reported = Some(SnapshotReport { phase, reason, cause });
            }
        })
    }

    /// Its owner wants it to hold again what the snapshot does.
    fn put_back(&self) -> AttestedVolume {
        self.after(|volume| {
            volume.generation = volume.generation.next();
            volume.changed = cause(volume.generation.0);
            volume.restoring = Some(SNAPSHOT);
        })
    }

    /// Its owner wants the snapshot gone.
    fn without_snapshot(&self) -> AttestedVolume {
        self.after(|volume| {
            let snapshots = volume.snapshots.iter_mut();
            snapshots.for_each(|snapshot| snapshot.wanted = VolumeWanted::Deleted);
        })
    }

    /// Its owner wants it gone.
    fn deleted(&self) -> AttestedVolume {
        self.after(|volume| {
            volume.generation = volume.generation.next();
            volume.changed = cause(volume.generation.0);
            volume.wanted = VolumeWanted::Deleted;
        })
    }
}

impl NextVolume for AttestedVolume {
    fn after(&self, change: impl FnOnce(&mut Volume)) -> AttestedVolume {
        let mut next = self.clone();
        next.commit = self.commit.next();
        change(&mut next.volume);
        next
    }
}

/// The next generation of the VM, with these volumes.
pub(crate) fn with_volumes(before: &AttestedVm, volumes: &[VolumeId]) -> AttestedVm {
    let mut next = wants(before, before.vm.wanted);
    let slots = volumes.iter().zip(0..);
    let used = |(volume, slot): (&VolumeId, u8)| VmVolume { volume: *volume, slot, size_gib: 1 };
    next.vm.volumes = slots.map(used).collect();
    next.vm.volumes_since = next.vm.generation;
    next
}

/// A controller, and what it is told and says.
pub(crate) struct Desk {
    controller: Controller,
    now: Monotonic,
    ticket: u64,
    /// The generation of the VM's step that was begun last.
    begun: Generation,
}

impl Desk {
    pub(crate) fn new(policy: LocalPolicy) -> Self {
        let controller = Controller::new(HERE, policy, BTreeMap::new());
        let (now, begun) = (Monotonic::default(), Generation(0));
        let mut desk = Self { controller, now, ticket: 0, begun };
        desk.take(Input::Order(Order::Host(Box::new(host()))));
        desk
    }

    pub(crate) fn take(&mut self, input: Input) -> Vec<Output> {
        let outputs = self.controller.handle(self.now, input);
        for output in &outputs {
            if let Output::Act(job) = output {
                self.begun = job.tags.generation;
            }
        }
        outputs
    }

    pub(crate) fn volume(&mut self, version: &AttestedVolume) -> Vec<Output> {
        self.take(Input::Order(Order::Volume(Box::new(version.clone()))))
    }

    fn vm(&mut self, version: &AttestedVm) -> Vec<Output> {
        self.take(Input::Order(Order::Vm(Box::new(version.clone()))))
    }

    pub(crate) fn caught_up(&mut self) -> Vec<Output> {
        self.take(Input::Order(Order::CaughtUp(CommitIndex(100))))
    }

    pub(crate) fn finish(&mut self, of: &AttestedVolume, outcome: Outcome) -> Vec<Output> {
        let (volume, generation) = (of.volume.id, of.volume.generation);
        self.take(Input::VolumeFinished(VolumeFinished {
            volume,
            generation,
            snapshot: None,
            outcome,
        }))
    }

    /// The end of a step of the VM's, with what is seen then.
    fn finish_step(&mut self, step: Step, outcome: Outcome, seen: Machine) -> Vec<Output> {
        self.ticket += 2;
        let sighting = Sighting { ticket: self.ticket, seen: Seen::Present(seen) };
        let (generation, sighting) = (self.begun, Some(sighting));
        let finished = Finished { vm: VM, generation, step, outcome, sighting };
        self.take(Input::Finished(finished, self.ticket + 1))
    }

    pub(crate) fn wait(&mut self, seconds: u64) -> Vec<Output> {
        self.now = self.now.plus(Duration::from_secs(seconds));
        self.take(Input::Tick)
    }
}

pub(crate) fn actions(outputs: &[Output]) -> Vec<VolumeAction> {
    let action = |output: &Output| match output {
        Output::ActOnVolume(job) => Some(job.action.clone()),
        _ => None,
    };
    outputs.iter().filter_map(action).collect()
}

pub(crate) fn told(outputs: &[Output]) -> Vec<VolumePhase> {
    let phase = |output: &Output| match output {
        Output::ReportVolume(report) => Some(report.phase),
        _ => None,
    };
    outputs.iter().filter_map(phase).collect()
}

fn steps(outputs: &[Output]) -> Vec<Step> {
    let step = |output: &Output| match output {
        Output::Act(job) => Some(job.action.step()),
        _ => None,
    };
    outputs.iter().filter_map(step).collect()
}

fn phases(outputs: &[Output]) -> Vec<ReportPhase> {
    let phase = |output: &Output| match output {
        Output::Report(report) => Some(report.phase),
        _ => None,
    };
    outputs.iter().filter_map(phase).collect()
}

#[test]
fn a_volume_is_made_once_history_is_told_and_reported_once_it_is_there() {
    let mut desk = Desk::new(LocalPolicy::default());
    let new = volume();
    assert_eq!(desk.volume(&new), []);
    assert_eq!(actions(&desk.caught_up()), [VolumeAction::Make(DiskRule::MayMake)]);
    assert_eq!(told(&desk.finish(&new, Outcome::Done)), [VolumePhase::Ready]);
    let made = new.reported(VolumePhase::Ready);
    assert_eq!(desk.volume(&made), []);

    // After a restart it may only be found.
    let mut desk = Desk::new(LocalPolicy::default());
    desk.volume(&made);
    assert_eq!(actions(&desk.caught_up()), [VolumeAction::Make(DiskRule::MustExist)]);
    assert_eq!(desk.finish(&made, Outcome::Done), [], "it was reported before");
    let elsewhere = made.after(|volume| volume.host = ELSEWHERE);
    assert_eq!(desk.volume(&elsewhere), []);
}

#[test]
fn a_volume_goes_into_quarantine_only_on_an_order_and_while_no_machine_may_write_to_it() {
    let mut desk = Desk::new(LocalPolicy::default());
    let deleted = volume().reported(VolumePhase::Ready).deleted();
    for used_by in [VolumeUse::Attached { vm: VM }, VolumeUse::Detaching { vm: VM }] {
        let used = deleted.after(|volume| volume.used_by = used_by);
        assert_eq!(VolumeProof::of(&used, HERE), None);
        desk.volume(&used);
        assert_eq!(desk.caught_up(), []);
    }
    assert_eq!(VolumeProof::of(&deleted, ELSEWHERE), None);
    assert_eq!(VolumeProof::of(&volume(), HERE), None);
    let free = deleted.after(|volume| volume.used_by = VolumeUse::Free {});
    let outputs = desk.volume(&free);
    assert!(matches!(&actions(&outputs)[..], [VolumeAction::Quarantine(proof)]
        if proof.volume() == VOLUME));
    assert_eq!(told(&desk.finish(&free, Outcome::Done)), [VolumePhase::Deleted]);
    let gone = free.reported(VolumePhase::Deleted);
    assert_eq!(desk.volume(&gone), []);
    assert_eq!(desk.caught_up(), [], "it is forgotten");
}

#[test]
fn trouble_with_a_volume_is_told_once_it_lasts_and_tried_again_unless_it_is_final() {
    let mut desk = Desk::new(LocalPolicy::default());
    let new = volume();
    desk.volume(&new);
    desk.caught_up();
    let full = || Outcome::Retryable("disk_failed: no space".to_owned());
    for _ in 0..2 {
        assert_eq!(told(&desk.finish(&new, full())), []);
        assert_eq!(actions(&desk.wait(30)).len(), 1);
    }
    assert_eq!(told(&desk.finish(&new, full())), [VolumePhase::Degraded]);
    assert_eq!(actions(&desk.wait(30)).len(), 1);
    assert_eq!(told(&desk.finish(&new, Outcome::Done)), [VolumePhase::Ready]);

    let made = new.reported(VolumePhase::Ready);
    let mut desk = Desk::new(LocalPolicy::default());
    desk.volume(&made);
    desk.caught_up();
    let lost = Outcome::Terminal("disk_missing: gone".to_owned());
    assert_eq!(told(&desk.finish(&made, lost)), [VolumePhase::Degraded]);
    assert_eq!(desk.wait(600), []);
    assert_eq!(actions(&desk.volume(&made.deleted())).len(), 1, "it can still be deleted");
}

#[test]
fn an_operators_policy_bounds_volumes_and_vms_together() {
    let capacity_max = Some(Capacity { cpus: 8, memory_mib: 8192, disk_gib: 1 });
    let mut desk = Desk::new(LocalPolicy { capacity_max, ..LocalPolicy::default() });
    desk.volume(&volume());
    assert_eq!(actions(&desk.caught_up()).len(), 1);
    // The VM's one GiB is one too many beside it.
    let mut desk = Desk::new(LocalPolicy { capacity_max, ..LocalPolicy::default() });
    desk.vm(&accepted());
    desk.volume(&volume());
    let outputs = desk.caught_up();
    assert_eq!((actions(&outputs), told(&outputs)), (vec![], vec![VolumePhase::Degraded]));
}

#[test]
fn a_running_machine_is_reported_only_once_it_has_the_volumes_that_it_is_to_have() {
    let mut desk = Desk::new(LocalPolicy::default());
    let running = after(&accepted(), |vm| vm.reported = Some(report(1, ReportPhase::Running)));
    desk.vm(&running);
    desk.take(Input::Inventory { ticket: 1, machines: [(VM, ours(Power::Running, 1))].into() });
    assert_eq!(steps(&desk.caught_up()), [Step::Network]);
    desk.finish_step(Step::Network, Outcome::Done, ours(Power::Running, 1));
    let given = with_volumes(&running, &[VOLUME]);
    assert_eq!(steps(&desk.vm(&given)), [Step::Network]);
    let outputs = desk.finish_step(Step::Network, Outcome::Done, ours(Power::Running, 1));
    assert_eq!(steps(&outputs), [Step::Volumes]);
    let outputs = desk.finish_step(Step::Volumes, Outcome::Done, ours(Power::Running, 1));
    assert_eq!((steps(&outputs), phases(&outputs)), (vec![Step::Tag], vec![]));
    let outputs = desk.finish_step(Step::Tag, Outcome::Done, ours(Power::Running, 2));
    assert_eq!(phases(&outputs), [ReportPhase::Running]);

    // A guest that does not let go keeps the VM from being reported as wanted.
    let taken = with_volumes(&given, &[]);
    let mut begun = desk.vm(&taken);
    for tries in 1..6 {
        assert_eq!(steps(&begun), [Step::Network]);
        let outputs = desk.finish_step(Step::Network, Outcome::Done, ours(Power::Running, 2));
        assert_eq!(steps(&outputs), [Step::Volumes]);
        let busy = Outcome::Retryable("volume_busy: mounted".to_owned());
        let outputs = desk.finish_step(Step::Volumes, busy, ours(Power::Running, 2));
        let degraded = (tries == 3).then_some(ReportPhase::Degraded);
        assert_eq!(phases(&outputs), Vec::from_iter(degraded), "try {tries}");
        begun = desk.wait(30);
    }
}

#[test]
fn a_machine_that_is_off_gets_its_volumes_with_the_definition_of_its_next_start() {
    let mut desk = Desk::new(LocalPolicy::default());
    let given = with_volumes(&accepted(), &[VOLUME]);
    desk.vm(&given);
    desk.take(Input::Inventory { ticket: 1, machines: [(VM, ours(Power::Stopped, 1))].into() });
    assert_eq!(steps(&desk.caught_up()), [Step::Image]);
}
