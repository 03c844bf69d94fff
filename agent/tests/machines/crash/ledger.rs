//! The ordered history of one VM and its volumes, and who asks for what next.
//!
//! Owns the versions, as the judge would make them. It outlives every agent.

use std::collections::BTreeSet;

use dagger_agent::controller::{Input, Job, Step};
use dagger_agent::handover::{AttestedVm, AttestedVolume, Order};
use dagger_agent::hypervisor::{Machine, Power};
use dagger_payload::id::{Generation, LedgerTime, VolumeId};
use dagger_payload::kind::{
    Protection, ReportPhase, ReportSnapshot, ReportVm, ReportVolume, RestartPolicy, StopManner,
};
use dagger_payload::object::{Agreement, Placement, Vm, VmReport, Wanted};
use dagger_payload::volume::{Origin, VmVolume, VolumeUse};

use super::super::cards::on_a_bridge;
use super::super::support::{FakeState, HERE, VM, after, cause, offered, wants, wants_reboot};
use super::super::volumes::{NextVolume, SNAPSHOT, VOLUME, volume, with_volumes};
use super::coverage::Death;
use super::lives::{COPY, Life, Told, Wish};

/// A version of the VM or of a volume.
#[derive(Debug, Clone)]
pub(super) enum Version {
    Vm(Box<AttestedVm>),
    Volume(Box<AttestedVolume>),
}

impl Version {
    pub(super) fn order(&self) -> Input {
        Input::Order(match self.clone() {
            Self::Vm(vm) => Order::Vm(vm),
            Self::Volume(volume) => Order::Volume(volume),
        })
    }

    fn vm(vm: AttestedVm) -> Self {
        Self::Vm(Box::new(vm))
    }

    fn volume(volume: AttestedVolume) -> Self {
        Self::Volume(Box::new(volume))
    }
}

/// What outlives the agent beside its host.
pub(super) struct Ledger {
    life: &'static [(Wish, Told)],
    pub(super) versions: Vec<Version>,
    /// How many wishes came before the one that is waited for.
    pub(super) asked: usize,
    /// The last one is carried out.
    pub(super) is_over: bool,
    pub(super) time: LedgerTime,
    /// A stop by hand that was not answered yet.
    pub(super) by_hand: Option<StopManner>,
    /// What agents began to do, in the words of [`super::coverage`].
    pub(super) lived: BTreeSet<&'static str>,
    pub(super) deaths: BTreeSet<Death>,
    /// A guest was lost with its process while this wish was waited for.
    process_lost_at: Option<usize>,
    /// In which generation nobody may switch the VM on again.
    stays_off_in: Option<Generation>,
}

impl Ledger {
    pub(super) fn new(life: &Life) -> Self {
        let mut first = offered();
        first.vm.more_cards = vec![on_a_bridge()];
        if let Placement::Offered { deadline, .. } = &mut first.vm.placement {
            *deadline = LedgerTime(u64::MAX);
        }
        Self {
            life: life.wishes,
            versions: vec![Version::vm(first)],
            asked: 0,
            is_over: false,
            time: LedgerTime(0),
            by_hand: None,
            lived: BTreeSet::new(),
            deaths: BTreeSet::new(),
            process_lost_at: None,
            stays_off_in: None,
        }
    }

    /// The hypervisor's process died, with a guest in it or without.
    pub(super) fn lose_process(&mut self, world: &FakeState) {
        if world.processes_lost == 0 {
            return;
        }
        self.process_lost_at = Some(self.asked);
        let vm = &self.last().vm;
        let has_run = vm.reported.as_ref().is_some_and(|report| {
            (report.generation, report.phase) == (vm.generation, ReportPhase::Running)
        });
        if vm.restart == RestartPolicy::Never && vm.wanted == Wanted::Running && has_run {
            self.stays_off_in = Some(vm.generation);
        }
    }

    pub(super) fn has_to_stay_off(&self) -> bool {
        self.stays_off_in.is_some()
    }

    /// A guest that ran and is to be started once is not started again by its host.
    pub(super) fn check_start(&self, job: &Job) {
        let starts = job.action.step() == Step::Start;
        let stays_off = self.stays_off_in == Some(job.tags.generation);
        assert!(!(starts && stays_off), "started again: {job:?}");
    }

    pub(super) fn last(&self) -> &AttestedVm {
        let vms = self.versions.iter().rev().find_map(|version| match version {
            Version::Vm(vm) => Some(&**vm),
            Version::Volume(_) => None,
        });
        vms.expect("it begins with one")
    }

    fn find_volume(&self, id: VolumeId) -> Option<&AttestedVolume> {
        self.versions.iter().rev().find_map(|version| match version {
            Version::Volume(volume) if volume.volume.id == id => Some(&**volume),
            Version::Volume(_) | Version::Vm(_) => None,
        })
    }

    fn last_volume(&self, id: VolumeId) -> &AttestedVolume {
        self.find_volume(id).expect("it was ordered")
    }

    /// Orders a report, as the judge would; gives the versions that it makes.
    pub(super) fn order(&mut self, report: &ReportVm, world: &FakeState) -> Vec<Version> {
        let before = self.versions.len();
        if report.generation != self.last().vm.generation {
            return Vec::new();
        }
        let told = after(self.last(), |vm| {
            vm.reported = Some(VmReport {
                host: HERE,
                generation: report.generation,
                phase: report.phase,
                reason: report.reason.clone(),
                cause: cause(9),
                agreement: Agreement::WithOrder,
            });
            if let (ReportPhase::Accepted, Some(address)) = (report.phase, vm.placement.address()) {
                let position = dagger_payload::id::Position(2);
                vm.placement = Placement::Accepted { host: HERE, address, position };
            }
        });
        self.versions.push(Version::vm(told));
        for id in [VOLUME, COPY] {
            let released = self.find_volume(id).filter(|last| match last.volume.used_by {
                VolumeUse::Detaching { .. } => {
                    matches!(report.phase, ReportPhase::Running | ReportPhase::Stopped)
                }
                VolumeUse::Attached { .. } => report.phase == ReportPhase::Deleted,
                VolumeUse::Free {} => false,
            });
            let free = released.map(|last| last.after(|it| it.used_by = VolumeUse::Free {}));
            self.versions.extend(free.map(Version::volume));
        }
        self.take(self.as_expected(Told::Vm(report.phase), world));
        self.versions[before..].to_vec()
    }

    /// What was in memory went with the process: that its guest is off is all that can come of a
    /// wish for a paused one, or for one that is started once. And it must be true.
    fn as_expected(&self, told: Told, world: &FakeState) -> Told {
        let (expected, vm) = (self.life[self.asked].1, &self.last().vm);
        let cannot_be = match expected {
            Told::Vm(ReportPhase::Paused) => true,
            Told::Vm(ReportPhase::Running) => vm.restart == RestartPolicy::Never,
            _ => false,
        };
        let lost_lately = self.process_lost_at.is_some_and(|lost| self.asked - lost <= 1);
        if told != Told::Vm(ReportPhase::Stopped) || !cannot_be || !lost_lately {
            return told;
        }
        let machine = &world.machines[&VM];
        assert!(matches!(machine, Machine::Ours { power: Power::Stopped, .. }), "{machine:?}");
        expected
    }

    /// The same about a volume.
    pub(super) fn order_volume(&mut self, report: &ReportVolume) -> Vec<Version> {
        let before = self.versions.len();
        let last = self.last_volume(report.volume);
        if report.generation != last.volume.generation {
            return Vec::new();
        }
        let told = last.reported(report.phase);
        self.versions.push(Version::volume(told));
        self.take(Told::Volume(report.volume, report.phase));
        self.versions[before..].to_vec()
    }

    /// The same about its snapshot.
    pub(super) fn order_snapshot(&mut self, report: &ReportSnapshot) -> Vec<Version> {
        let before = self.versions.len();
        let told = self.last_volume(report.volume).reported_snapshot(report.phase);
        self.versions.push(Version::volume(told));
        self.take(Told::Snapshot(report.phase));
        self.versions[before..].to_vec()
    }

    /// It is seen that the image takes its time.
    pub(super) fn order_fetching(&mut self) -> Vec<Version> {
        let before = self.versions.len();
        self.take(Told::Fetching);
        self.versions[before..].to_vec()
    }

    /// The next thing is asked for, if `told` is what the last one was to end with.
    fn take(&mut self, told: Told) {
        if told != self.life[self.asked].1 || self.is_over {
            return;
        }
        if self.asked + 1 == self.life.len() {
            self.is_over = true;
            return;
        }
        self.asked += 1;
        let next = match self.life[self.asked].0 {
            Wish::LocalStop(manner) => {
                self.by_hand = Some(manner);
                Vec::new()
            }
            wish => [self.of_volume(wish), self.of_vm(wish)].concat(),
        };
        self.versions.extend(next);
    }

    /// What a wish makes of the VM.
    fn of_vm(&self, wish: Wish) -> Vec<Version> {
        let vm = self.last();
        let changed = |change: &dyn Fn(&mut Vm)| {
            let mut version = wants(vm, vm.vm.wanted);
            change(&mut version.vm);
            vec![Version::vm(version)]
        };
        match wish {
            Wish::Be(wanted) => vec![Version::vm(wants(vm, wanted))],
            Wish::Reboot => vec![Version::vm(wants_reboot(vm))],
            Wish::ForcedStop => changed(&|vm| {
                vm.wanted = Wanted::Stopped;
                vm.stop_manner = StopManner::Forced;
            }),
            Wish::Resize => changed(&|vm| vm.size.cpus += 1),
            Wish::Protect => changed(&|vm| vm.protection = Protection::Protected),
            Wish::Close => changed(&|vm| vm.network.allow = Some(Vec::new())),
            Wish::Once => changed(&|vm| vm.restart = RestartPolicy::Never),
            Wish::Attach(volume) => {
                let given = with_volumes(vm, &[volume]);
                let size_gib = self.last_volume(volume).volume.size_gib;
                vec![Version::vm(after(&given, |vm| vm.volumes[0].size_gib = size_gib))]
            }
            Wish::Detach(_) => vec![Version::vm(with_volumes(vm, &[]))],
            Wish::Grow if !vm.vm.volumes.is_empty() => {
                let mut given = with_volumes(vm, &[VOLUME]);
                let larger = |used: &mut VmVolume| used.size_gib = self.larger();
                given.vm.volumes.iter_mut().for_each(larger);
                vec![Version::vm(given)]
            }
            Wish::Grow
            | Wish::LocalStop(_)
            | Wish::NewVolume
            | Wish::Snapshot
            | Wish::Restore
            | Wish::Clone
            | Wish::DeleteSnapshot
            | Wish::DeleteVolume(_) => Vec::new(),
        }
    }

    fn larger(&self) -> u64 {
        self.last_volume(VOLUME).volume.size_gib + 2
    }

    /// What a wish makes of a volume.
    fn of_volume(&self, wish: Wish) -> Vec<Version> {
        let next = match wish {
            Wish::NewVolume => volume(),
            Wish::Attach(id) => {
                self.last_volume(id).after(|volume| volume.used_by = VolumeUse::Attached { vm: VM })
            }
            Wish::Detach(id) => self
                .last_volume(id)
                .after(|volume| volume.used_by = VolumeUse::Detaching { vm: VM }),
            Wish::Grow => self.last_volume(VOLUME).after(|volume| {
                volume.generation = volume.generation.next();
                volume.changed = cause(volume.generation.0);
                volume.size_gib = self.larger();
            }),
            Wish::Clone => volume().after(|volume| {
                volume.id = COPY;
                volume.name = "copy".parse().expect("a name");
                volume.origin = Some(Origin { volume: VOLUME, snapshot: SNAPSHOT });
            }),
            Wish::Snapshot => self.last_volume(VOLUME).asked_snapshot(),
            Wish::Restore => self.last_volume(VOLUME).put_back(),
            Wish::DeleteSnapshot => self.last_volume(VOLUME).without_snapshot(),
            Wish::DeleteVolume(id) => self.last_volume(id).deleted(),
            Wish::Be(_)
            | Wish::Reboot
            | Wish::ForcedStop
            | Wish::LocalStop(_)
            | Wish::Resize
            | Wish::Protect
            | Wish::Close
            | Wish::Once => return Vec::new(),
        };
        vec![Version::volume(next)]
    }
}
