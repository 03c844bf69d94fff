//! One step for one VM, from its record in the journal to the look afterwards. Blocks.
//!
//! Owns how each step is made of calls to the hypervisor and the disks, and what their errors mean.
//! Never decides what is next, keeps no state. Called by the workers, and by tests that crash in
//! the middle.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dagger_net::request::Owner;
use dagger_payload::id::{AccountId, SnapshotId, VmId};
use dagger_payload::kind::{GuestSubnet, VmBoot};
use dagger_payload::object::Vm;
use dagger_payload::volume::{VmVolume, Volume};

use super::cards::{self, HostCard};
use super::disks::{DiskError, Disks, LiveCopyError, SeedContents};
use crate::controller::{
    Action, DiskRule, Finished, Guests, HaltJob, Job, NeededImage, Outcome, Rung, Seen, Sighting,
    Step, VolumeAction, VolumeFinished, VolumeJob,
};
use crate::hypervisor::names::HostNames;
use crate::hypervisor::{
    DirectBoot, GivenVolume, Hypervisor, HypervisorError, LiveCopy, Machine, MachineSpecification,
    Power, Tags,
};
use crate::journal::{Journal, Record};
use crate::network::{NetworkError, Networks};
use crate::observation::Tickets;

/// What steps are carried out with.
pub struct Performer {
    /// Where machines are.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Where images, disks and seeds are.
    pub disks: Arc<dyn Disks>,
    /// What is written before anything is done.
    pub journal: Journal,
    /// Numbers looks.
    pub tickets: Tickets,
    /// Names of this host.
    pub names: HostNames,
    /// What connects guests, and who opens their cards; `None` where guests have none.
    pub networks: Option<(Arc<dyn Networks>, Owner)>,
    /// Who resolves names for guests.
    pub nameservers: Vec<Ipv4Addr>,
    /// Where hypervisors write what guests say.
    pub consoles: PathBuf,
}

impl Performer {
    /// Writes the job's record, carries the job out, and looks at the machine where it may have
    /// changed.
    ///
    /// # Errors
    /// The record could not be made durable, for another reason than want of space; then nothing
    /// was done.
    pub fn perform(&self, job: &Job) -> std::io::Result<Finished> {
        let (vm, generation, step) = (job.vm.id, job.tags.generation, job.action.step());
        if let Some(outcome) = self.write_down(&job.record)? {
            return Ok(Finished { vm, generation, step, outcome, sighting: None });
        }
        let outcome = self.act(job);
        if let Action::Destroy(proof) | Action::AskShutdown(proof) = &job.action {
            tracing::info!(vm = %job.vm.id, ?step, by = %proof, ?outcome, "acted on an order to stop");
        }
        let (outcome, sighting) = self.checked(outcome, step, &job.tags);
        Ok(Finished { vm, generation, step, outcome, sighting })
    }

    /// Writes the job's record, switches the machine off as far as is asked, and looks at it.
    ///
    /// # Errors
    /// As [`Performer::perform`].
    pub fn halt(&self, job: &HaltJob) -> std::io::Result<Finished> {
        let (vm, generation, step) = (job.record.vm, job.generation, job.rung.step());
        if let Some(outcome) = self.write_down(&job.record)? {
            return Ok(Finished { vm, generation, step, outcome, sighting: None });
        }
        let done = match job.rung {
            Rung::Ask => self.hypervisor.ask_shutdown(&job.proof),
            Rung::Destroy => self.hypervisor.destroy(&job.proof),
        };
        let outcome = outcome(done, Refusal::Passing);
        tracing::warn!(%vm, ?step, by = %job.proof, ?outcome, "acted on a stop by hand");
        let (host, payload) = (job.record.host, job.record.payload);
        let tags = Tags { host, vm, generation, payload };
        let (outcome, sighting) = self.checked(outcome, step, &tags);
        Ok(Finished { vm, generation, step, outcome, sighting })
    }

    /// Makes the record durable. Where there is no space for it nothing may be done: how the step
    /// ended then.
    fn write_down(&self, record: &Record) -> std::io::Result<Option<Outcome>> {
        match self.journal.write(record) {
            Ok(()) => Ok(None),
            Err(error) if dagger_images::is_for_want_of_space(&error) => {
                let reason = format!("disk_full: the step cannot be written down: {error}");
                Ok(Some(Outcome::Retryable(reason)))
            }
            Err(error) => Err(error),
        }
    }

    /// Looks, and takes a step for done only if what is seen agrees.
    fn checked(&self, outcome: Outcome, step: Step, tags: &Tags) -> (Outcome, Option<Sighting>) {
        match self.look(tags.vm, step) {
            None => (outcome, None),
            Some(sighting) => (checked(outcome, step, tags, &sighting), Some(sighting)),
        }
    }

    fn act(&self, job: &Job) -> Outcome {
        let vm = &job.vm;
        match &job.action {
            Action::Image(needed) => self.ensure_images(needed),
            Action::Disk(rule) => {
                disk_outcome(self.disks.ensure_disk(vm.id, &vm.image, vm.size.disk_gib, *rule))
            }
            Action::Seed(subnet) => match self.seed(vm, subnet) {
                Some(seed) => disk_outcome(self.disks.ensure_seed(&seed)),
                None => Outcome::Terminal("address_missing: the placement has none".to_owned()),
            },
            Action::Network(guests) => self.connect(vm, guests),
            Action::Define => match self.ensure_volumes(vm).and_then(|()| self.require_boot(vm)) {
                Ok(()) => outcome(self.define(job), Refusal::Final),
                missing => disk_outcome(missing),
            },
            Action::Tag => outcome(self.hypervisor.tag(&job.tags), Refusal::Passing),
            Action::Start => outcome(self.hypervisor.start(vm.id), Refusal::Passing),
            Action::Pause => outcome(self.hypervisor.pause(vm.id), Refusal::Passing),
            Action::Resume => outcome(self.hypervisor.resume(vm.id), Refusal::Passing),
            Action::Volumes => match self.require_volumes(vm) {
                Ok(()) => outcome(self.hypervisor.give(vm.id, &self.volumes(vm)), Refusal::Final),
                missing => disk_outcome(missing),
            },
            Action::AskShutdown(proof) => {
                outcome(self.hypervisor.ask_shutdown(proof), Refusal::Passing)
            }
            Action::Destroy(proof) => outcome(self.hypervisor.destroy(proof), Refusal::Passing),
            Action::Undefine(proof) => outcome(self.hypervisor.undefine(proof), Refusal::Passing),
            Action::Disconnect(proof) => match &self.networks {
                Some((networks, _)) => network_outcome(networks.remove(proof), Refusal::Passing),
                None => Outcome::Done,
            },
            Action::Quarantine(proof) => match self.disks.quarantine(proof) {
                Ok(()) => Outcome::Done,
                Err(error) => Outcome::Retryable(error.to_string()),
            },
        }
    }

    /// One after the other, until one is not here.
    fn ensure_images(&self, needed: &[NeededImage]) -> Outcome {
        for NeededImage { image, sources } in needed {
            match self.disks.ensure_image(image, sources) {
                Ok(()) => {}
                Err(error @ (DiskError::ImageMissing(_) | DiskError::ImageDamaged(_))) => {
                    return Outcome::ImageMissing(image.digest, error.to_string());
                }
                refused => return disk_outcome(refused),
            }
        }
        Outcome::Done
    }

    /// Whether what the VM boots is still here: no disk lies over it, so it may have been collected
    /// since it was made sure of, for want of anybody who needed it.
    fn require_boot(&self, vm: &Vm) -> Result<(), DiskError> {
        let mut files = vm.boot.iter().flat_map(VmBoot::images);
        files.try_for_each(|image| self.disks.ensure_image(image, &[]))
    }

    fn seed(&self, vm: &Vm, subnet: &GuestSubnet) -> Option<SeedContents> {
        Some(SeedContents {
            vm: vm.id,
            name: vm.name.clone(),
            ssh_keys: vm.ssh_keys.clone(),
            public_user_data: vm.public_user_data.clone(),
            cards: cards::of_seed(vm, &self.names, subnet)?,
            nameservers: self.nameservers.clone(),
        })
    }

    fn connect(&self, vm: &Vm, guests: &Guests) -> Outcome {
        let Some((networks, owner)) = &self.networks else {
            // Lists let nobody in where nobody comes; a port that leads nowhere is another matter.
            return match cards::asks_for_more_than_nat(vm) {
                false => Outcome::Done,
                true => Outcome::Terminal(
                    "network_unsupported: guests of this host have no network card".to_owned(),
                ),
            };
        };
        let owned = (&self.names, *owner);
        let Some(wished) = cards::of_host(vm, owned, guests, &self.nameservers) else {
            return Outcome::Terminal("address_missing: the placement has none".to_owned());
        };
        let made = wished.into_iter().try_for_each(|card| match card {
            HostCard::Routed(card) => networks.ensure(*card),
            HostCard::Bridged(card) => networks.bridge(*card),
        });
        network_outcome(made, Refusal::Final)
    }

    /// Carries out a step for a volume.
    pub fn perform_for_volume(&self, job: &VolumeJob) -> VolumeFinished {
        let volume = &job.volume;
        let done = match &job.action {
            VolumeAction::Make(rule) => self.make_volume(volume, *rule),
            VolumeAction::Restore(proof) => {
                let restored = self.disks.restore_volume(proof);
                restored.and_then(|()| self.make_volume(volume, DiskRule::MustExist))
            }
            VolumeAction::Keep(snapshot, rule) => {
                return job.finished(self.keep(volume, *snapshot, *rule));
            }
            VolumeAction::QuarantineSnapshot(proof) => self.disks.quarantine_snapshot(proof),
            VolumeAction::Quarantine(proof) => self.disks.quarantine_volume(proof),
        };
        job.finished(disk_outcome(done))
    }

    /// If a machine in memory holds the volume its hypervisor copies it, while its guest goes on.
    /// Otherwise its file is copied, and no machine may begin to write to it meanwhile.
    fn keep(&self, volume: &Volume, snapshot: SnapshotId, rule: DiskRule) -> Outcome {
        if rule == DiskRule::MayMake {
            let there = self.disks.ensure_snapshot(volume.id, snapshot, DiskRule::MustExist);
            let may_make = self.require_to_make(volume.account, there);
            if may_make.is_err() {
                return disk_outcome(may_make);
            }
        }
        let user = volume.used_by.vm().filter(|_| rule == DiskRule::MayMake);
        let holder = match user.map(|vm| self.hypervisor.look(vm)) {
            None | Some(Ok(None)) => None,
            Some(Ok(Some(Machine::Ours { power: Power::Stopped, .. }))) => None,
            Some(Ok(Some(Machine::Ours { power: Power::Running | Power::Paused, .. }))) => user,
            Some(Ok(Some(Machine::Foreign(why)))) => {
                return Outcome::Retryable(format!("name_occupied: {why}"));
            }
            Some(Err(error)) => return Outcome::Unknown(error.to_string()),
        };
        let Some(vm) = holder else {
            return disk_outcome(self.disks.ensure_snapshot(volume.id, snapshot, rule));
        };
        let copy = |path: &Path| {
            self.hypervisor.copy_volume(&LiveCopy {
                vm,
                disk: self.disks.volume_path(volume.id),
                size_bytes: volume.size_gib << 30,
                copy: path.to_owned(),
            })
        };
        match self.disks.ensure_snapshot_by(volume.id, snapshot, volume.size_gib, &copy) {
            Ok(()) => Outcome::Done,
            Err(LiveCopyError::Disk(error)) => disk_outcome(Err(error)),
            // The reason begins with a code of its own.
            Err(LiveCopyError::Hypervisor(HypervisorError::Refused(why))) => Outcome::Terminal(why),
            Err(LiveCopyError::Hypervisor(error)) => outcome(Err(error), Refusal::Passing),
        }
    }

    /// What is there already is not made any more.
    fn require_to_make(
        &self,
        account: AccountId,
        there: Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        match there {
            Err(DiskError::DiskMissing(_)) => self.disks.require_quarantine_room(account),
            there => there,
        }
    }

    fn make_volume(&self, volume: &Volume, rule: DiskRule) -> Result<(), DiskError> {
        if rule == DiskRule::MayMake {
            self.require_to_make(volume.account, self.disks.require_volume(volume.id))?;
        }
        match (&volume.origin, rule) {
            (Some(origin), DiskRule::MayMake) => {
                self.disks.ensure_clone(volume.id, origin)?;
                self.disks.ensure_volume(volume.id, volume.size_gib, DiskRule::MustExist)
            }
            (_, rule) => self.disks.ensure_volume(volume.id, volume.size_gib, rule),
        }
    }

    /// Whether the disks of all volumes that the VM uses are here.
    fn require_volumes(&self, vm: &Vm) -> Result<(), DiskError> {
        vm.volumes.iter().try_for_each(|used| self.disks.require_volume(used.volume))
    }

    /// Whether they are here, and as large as they are to be: nothing holds them now.
    fn ensure_volumes(&self, vm: &Vm) -> Result<(), DiskError> {
        vm.volumes.iter().try_for_each(|used| {
            self.disks.ensure_volume(used.volume, used.size_gib, DiskRule::MustExist)
        })
    }

    fn volumes(&self, vm: &Vm) -> Vec<GivenVolume> {
        let given = |VmVolume { volume, slot, size_gib }: &VmVolume| GivenVolume {
            volume: *volume,
            slot: *slot,
            size_bytes: *size_gib << 30,
            disk: self.disks.volume_path(*volume),
        };
        vm.volumes.iter().map(given).collect()
    }

    fn define(&self, job: &Job) -> Result<(), HypervisorError> {
        let vm = &job.vm;
        self.hypervisor.define(&MachineSpecification {
            tags: job.tags.clone(),
            title: vm.name.to_string(),
            cpus: vm.size.cpus,
            memory_mib: vm.size.memory_mib,
            disk: self.disks.disk_path(vm.id),
            image: self.disks.image_path(&vm.image),
            image_format: vm.image.format,
            seed: self.disks.seed_path(vm.id),
            volumes: self.volumes(vm),
            console: self.consoles.join(format!("{}.log", vm.id)),
            cards: if self.networks.is_some() { cards::count(vm) } else { 0 },
            boot: vm.boot.as_ref().map(|boot| DirectBoot {
                kernel: self.disks.image_path(&boot.kernel),
                initrd: boot.initrd.as_ref().map(|initrd| self.disks.image_path(initrd)),
                command_line: boot.command_line.clone(),
            }),
        })
    }

    /// What the machine is now, if the step may have changed that and the hypervisor can be asked.
    fn look(&self, vm: VmId, step: Step) -> Option<Sighting> {
        match step {
            Step::Image
            | Step::Disk
            | Step::Seed
            | Step::Network
            | Step::Disconnect
            | Step::Quarantine => None,
            Step::Define
            | Step::Tag
            | Step::Start
            | Step::Pause
            | Step::Resume
            | Step::Volumes
            | Step::AskShutdown
            | Step::Destroy => {
                let ticket = self.tickets.draw();
                let machine = self.hypervisor.look(vm).ok()??;
                Some(Sighting { ticket, seen: Seen::Present(machine) })
            }
            // Only a full listing shows that something is absent.
            Step::Undefine => {
                let ticket = self.tickets.draw();
                let machine = self.hypervisor.list().ok()?.remove(&vm);
                Some(Sighting { ticket, seen: machine.map_or(Seen::Absent, Seen::Present) })
            }
        }
    }
}

/// A step is done only if the look agrees; otherwise it would be taken for done again and again
/// without a pause.
fn checked(outcome: Outcome, step: Step, tags: &Tags, sighting: &Sighting) -> Outcome {
    let agrees = match (step, &sighting.seen) {
        (Step::Define | Step::Tag, Seen::Present(Machine::Ours { tags: seen, .. })) => seen == tags,
        (Step::Destroy, Seen::Present(Machine::Ours { power, .. })) => *power == Power::Stopped,
        (Step::Undefine, seen) => *seen == Seen::Absent,
        (_, Seen::Present(Machine::Foreign(_))) => false,
        _ => true,
    };
    match outcome {
        Outcome::Done if !agrees => Outcome::Retryable(format!(
            "not_as_ensured: after {step:?} the machine looks otherwise"
        )),
        other => other,
    }
}

/// What a refusal by the hypervisor means for a step.
#[derive(Clone, Copy)]
enum Refusal {
    /// The same request will be refused for ever.
    Final,
    /// Worth another try: what stops or removes must never be given up.
    Passing,
}

fn outcome(result: Result<(), HypervisorError>, refusal: Refusal) -> Outcome {
    match (result, refusal) {
        (Ok(()), _) => Outcome::Done,
        (Err(error @ HypervisorError::Unavailable(_)), _) => Outcome::Unknown(error.to_string()),
        (Err(error @ HypervisorError::Refused(_)), Refusal::Final) => {
            Outcome::Terminal(error.to_string())
        }
        (Err(error), _) => Outcome::Retryable(error.to_string()),
    }
}

fn network_outcome(result: Result<(), NetworkError>, refusal: Refusal) -> Outcome {
    match (result, refusal) {
        (Ok(()), _) => Outcome::Done,
        (Err(NetworkError::Refused(why)), Refusal::Final) => Outcome::Terminal(why),
        (Err(error), _) => Outcome::Retryable(error.to_string()),
    }
}

fn disk_outcome(result: Result<(), DiskError>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(
            error @ (DiskError::ImageRefused(_)
            | DiskError::DiskRefused(_)
            | DiskError::DiskMissing(_)),
        ) => Outcome::Terminal(error.to_string()),
        // A file may come, or come again.
        Err(
            error @ (DiskError::ImageMissing(_)
            | DiskError::ImageDamaged(_)
            | DiskError::Full(_)
            | DiskError::QuarantineFull
            | DiskError::Failed(_)),
        ) => Outcome::Retryable(error.to_string()),
    }
}
