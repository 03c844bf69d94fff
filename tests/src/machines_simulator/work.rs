//! One step under way, and what each asks of the metal.
//!
//! Owns the translation from the controller's words to calls, and from what became of them to
//! outcomes, as the agent's performer does it. Never decides. Called by the world.

use dagger_controller::machine::{Machine, Power, Tags};
use dagger_controller::order::ReportSubject;
use dagger_controller::record::Record;
use dagger_controller::{
    Action, Finished, HaltJob, Input, Job, Outcome, Rung, Seen, Sighting, Step, VolumeAction,
    VolumeJob,
};
use dagger_payload::id::VmId;

use super::metal::{Metal, Trouble};

/// One step.
#[derive(Debug, Clone)]
pub(super) enum Work {
    Vm(Box<Job>),
    Halt(Box<HaltJob>),
    Volume(Box<VolumeJob>),
}

impl Work {
    pub(super) fn subject(&self) -> ReportSubject {
        match self {
            Self::Vm(job) => ReportSubject::Vm(job.vm.id),
            Self::Halt(job) => ReportSubject::Vm(job.record.vm),
            Self::Volume(job) => ReportSubject::Volume(job.volume.id),
        }
    }

    pub(super) fn vm(&self) -> Option<VmId> {
        match self {
            Self::Vm(job) => Some(job.vm.id),
            Self::Halt(job) => Some(job.record.vm),
            Self::Volume(_) => None,
        }
    }

    /// The step, for a VM.
    pub(super) fn step(&self) -> Option<Step> {
        match self {
            Self::Vm(job) => Some(job.action.step()),
            Self::Halt(job) => Some(job.rung.step()),
            Self::Volume(_) => None,
        }
    }

    /// What is to be made durable before.
    pub(super) fn record(&self) -> Option<&Record> {
        match self {
            Self::Vm(job) => Some(&job.record),
            Self::Halt(job) => Some(&job.record),
            Self::Volume(_) => None,
        }
    }

    /// In one line, for the log.
    pub(super) fn line(&self) -> String {
        match self {
            Self::Vm(job) => {
                let (vm, generation, step) = (job.vm.id, job.tags.generation, job.action.step());
                format!("{step:?} of VM {vm} in generation {generation}")
            }
            Self::Halt(job) => format!("halt {:?} of VM {}", job.rung, job.record.vm),
            Self::Volume(job) => {
                let (volume, generation) = (job.volume.id, job.volume.generation);
                format!("{:?} of volume {volume} in generation {generation}", job.action)
            }
        }
    }

    /// Whether it is a call to the hypervisor: such a call may outlive who made it.
    pub(super) fn is_call(&self) -> bool {
        self.step().is_some_and(|step| {
            !matches!(
                step,
                Step::Image
                    | Step::Disk
                    | Step::Seed
                    | Step::Network
                    | Step::Disconnect
                    | Step::Quarantine
            )
        })
    }

    /// Whether it may be refused for good.
    pub(super) fn may_be_terminal(&self) -> bool {
        match self {
            Self::Vm(job) => {
                let step = job.action.step();
                matches!(step, Step::Disk | Step::Network | Step::Define | Step::Volumes)
            }
            Self::Halt(_) => false,
            Self::Volume(job) => matches!(job.action, VolumeAction::Make(_)),
        }
    }

    /// Carries it out. Whether a guest obeys that is asked to switch itself off is the world's.
    pub(super) fn carry_out(&self, metal: &mut Metal) -> Outcome {
        let done = match self {
            Self::Vm(job) => act(job, metal),
            Self::Halt(job) => match job.rung {
                Rung::Ask => Ok(()),
                Rung::Destroy => metal.destroy(job.record.vm),
            },
            Self::Volume(job) => act_on_volume(job, metal),
        };
        outcome(done)
    }

    /// Takes it for done only if the look agrees.
    pub(super) fn checked(
        &self,
        outcome: Outcome,
        ticket: u64,
        metal: &Metal,
    ) -> (Outcome, Option<Sighting>) {
        let (Some(step), Some(vm)) = (self.step().filter(|_| self.is_call()), self.vm()) else {
            return (outcome, None);
        };
        let seen = match (metal.look(vm), step) {
            (Some(machine), _) => Seen::Present(machine),
            // Only a full listing shows that something is absent.
            (None, Step::Undefine) => Seen::Absent,
            (None, _) => return (outcome, None),
        };
        let agrees = match (step, &seen) {
            (Step::Define | Step::Tag, Seen::Present(Machine::Ours { tags, .. })) => {
                Some(tags) == self.tags()
            }
            (Step::Destroy, Seen::Present(Machine::Ours { power, .. })) => *power == Power::Stopped,
            (Step::Undefine, seen) => *seen == Seen::Absent,
            (_, Seen::Present(Machine::Foreign(_))) => false,
            _ => true,
        };
        let outcome = match outcome {
            Outcome::Done if !agrees => Outcome::Retryable("not_as_ensured: otherwise".to_owned()),
            other => other,
        };
        (outcome, Some(Sighting { ticket, seen }))
    }

    fn tags(&self) -> Option<&Tags> {
        match self {
            Self::Vm(job) => Some(&job.tags),
            Self::Halt(_) | Self::Volume(_) => None,
        }
    }

    /// What the controller is told of its end.
    pub(super) fn ended(&self, outcome: Outcome, sighting: Option<Sighting>, ticket: u64) -> Input {
        let (vm, generation, step) = match self {
            Self::Vm(job) => (job.vm.id, job.tags.generation, job.action.step()),
            Self::Halt(job) => (job.record.vm, job.generation, job.rung.step()),
            Self::Volume(job) => return Input::VolumeFinished(job.finished(outcome)),
        };
        Input::Finished(Finished { vm, generation, step, outcome, sighting }, ticket)
    }
}

fn act(job: &Job, metal: &mut Metal) -> Result<(), Trouble> {
    let vm = &job.vm;
    match &job.action {
        Action::Image(needed) => {
            needed.iter().try_for_each(|needed| metal.ensure_image(needed.image.digest))
        }
        Action::Disk(rule) => metal.ensure_disk(vm, *rule),
        Action::Seed(_) => metal.ensure_seed(vm.id),
        Action::Network(_) => {
            metal.cards.insert(vm.id);
            Ok(())
        }
        Action::Define => metal.define(vm, &job.tags),
        Action::Tag => metal.tag(&job.tags),
        Action::Start => metal.start(vm.id),
        Action::Pause => metal.set_power(vm.id, Power::Running, Power::Paused),
        Action::Resume => metal.set_power(vm.id, Power::Paused, Power::Running),
        Action::Volumes => metal.give(vm),
        Action::AskShutdown(_) => Ok(()),
        Action::Destroy(proof) => metal.destroy(proof.vm()),
        Action::Undefine(proof) => metal.undefine(proof.vm()),
        Action::Disconnect(proof) => {
            metal.cards.remove(&proof.vm());
            Ok(())
        }
        Action::Quarantine(proof) => metal.quarantine(proof.vm()),
    }
}

fn act_on_volume(job: &VolumeJob, metal: &mut Metal) -> Result<(), Trouble> {
    let volume = &job.volume;
    match &job.action {
        VolumeAction::Make(rule) => metal.make_volume(volume, *rule),
        VolumeAction::Restore(proof) => {
            metal.restore(proof)?;
            metal.make_volume(volume, dagger_controller::DiskRule::MustExist)
        }
        VolumeAction::Keep(snapshot, rule) => metal.keep(volume, *snapshot, *rule),
        VolumeAction::QuarantineSnapshot(proof) => {
            metal.quarantine_snapshot(proof.volume(), proof.snapshot())
        }
        VolumeAction::Quarantine(proof) => metal.quarantine_volume(proof.volume()),
    }
}

fn outcome(done: Result<(), Trouble>) -> Outcome {
    match done {
        Ok(()) => Outcome::Done,
        Err(Trouble::Occupied) => Outcome::Retryable("name_occupied: not ours".to_owned()),
        Err(Trouble::Failed(why)) => Outcome::Retryable(why.to_owned()),
        Err(Trouble::DiskMissing) => Outcome::Terminal("disk_missing: it is gone".to_owned()),
        Err(Trouble::ImageMissing(image)) => {
            Outcome::ImageMissing(image, "image_missing: not here".to_owned())
        }
    }
}
