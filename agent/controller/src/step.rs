//! Steps, what they are given and how they end.
//!
//! Owns these shapes. Made by the controller, carried out by the actuator.

use dagger_payload::id::{Generation, ImageDigest, VmId};
use dagger_payload::kind::{GuestSubnet, VmImage};
use dagger_payload::name::ImageSource;
use dagger_payload::object::Vm;
use serde::{Deserialize, Serialize};

use super::proof::{DeleteProof, StopProof};
use crate::machine::{Machine, Tags};
use crate::record::Record;

/// What can be done for a VM; each only makes sure that something holds, so it may be repeated
/// (R6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The image file is here and has its digest; so have kernel and initial RAM disk.
    Image,
    /// The VM's disk is here.
    Disk,
    /// The cloud-init seed is here.
    Seed,
    /// The guest has its network card, and that its filters.
    Network,
    /// The machine is defined.
    Define,
    /// The machine's tags name this generation.
    Tag,
    /// The machine is switched on.
    Start,
    /// The guest is in memory and does not run.
    Pause,
    /// A paused guest was told to go on.
    Resume,
    /// The machine has the volumes that it is to have, and no other.
    Volumes,
    /// The guest was asked to switch itself off.
    AskShutdown,
    /// The machine is switched off.
    Destroy,
    /// The machine is not defined any more.
    Undefine,
    /// Nothing is left of its network card.
    Disconnect,
    /// The disk is in quarantine, the seed gone.
    Quarantine,
}

/// A step with what it needs; destroying needs a proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// [`Step::Image`], with all files that the VM needs.
    Image(Vec<NeededImage>),
    /// [`Step::Disk`]
    Disk(DiskRule),
    /// [`Step::Seed`]
    Seed(GuestSubnet),
    /// [`Step::Network`]
    Network(Guests),
    /// [`Step::Define`]
    Define,
    /// [`Step::Tag`]
    Tag,
    /// [`Step::Start`]
    Start,
    /// [`Step::Pause`]
    Pause,
    /// [`Step::Resume`]
    Resume,
    /// [`Step::Volumes`]
    Volumes,
    /// [`Step::AskShutdown`]
    AskShutdown(StopProof),
    /// [`Step::Destroy`]
    Destroy(StopProof),
    /// [`Step::Undefine`]
    Undefine(DeleteProof),
    /// [`Step::Disconnect`]
    Disconnect(DeleteProof),
    /// [`Step::Quarantine`]
    Quarantine(DeleteProof),
}

impl Action {
    /// Which step this is.
    pub fn step(&self) -> Step {
        match self {
            Self::Image(_) => Step::Image,
            Self::Disk(_) => Step::Disk,
            Self::Seed(_) => Step::Seed,
            Self::Network(_) => Step::Network,
            Self::Define => Step::Define,
            Self::Tag => Step::Tag,
            Self::Start => Step::Start,
            Self::Pause => Step::Pause,
            Self::Resume => Step::Resume,
            Self::Volumes => Step::Volumes,
            Self::AskShutdown(_) => Step::AskShutdown,
            Self::Destroy(_) => Step::Destroy,
            Self::Undefine(_) => Step::Undefine,
            Self::Disconnect(_) => Step::Disconnect,
            Self::Quarantine(_) => Step::Quarantine,
        }
    }
}

/// A registered file that a VM needs on its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeededImage {
    /// Which.
    pub image: VmImage,
    /// The places where it may be had.
    pub sources: Vec<ImageSource>,
}

/// What the host's own object says of its guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guests {
    /// Their addresses.
    pub subnet: GuestSubnet,
    /// Where the host's ports for them begin, if it offers any.
    pub forward_ports_first: Option<u16>,
}

/// Whether a disk that is not there may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskRule {
    /// It never existed.
    MayMake,
    /// It existed: making an empty one now would hide a loss.
    MustExist,
}

/// One step to carry out. The record is made durable first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The VM as wanted.
    pub vm: Vm,
    /// What its machine is to carry.
    pub tags: Tags,
    /// What to write down before.
    pub record: Record,
    /// What to do.
    pub action: Action,
}

/// A machine to be switched off at the word of this host's operator, of which perhaps nothing else
/// is known. The record, which holds that word, is made durable first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaltJob {
    /// The generation that counts for this host now.
    pub generation: Generation,
    /// What to write down before.
    pub record: Record,
    /// How far to go.
    pub rung: Rung,
    /// Why it may.
    pub proof: StopProof,
}

/// How far a stop goes at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// [`Step::AskShutdown`]
    Ask,
    /// [`Step::Destroy`]
    Destroy,
}

impl Rung {
    /// Which step this is.
    pub fn step(self) -> Step {
        match self {
            Self::Ask => Step::AskShutdown,
            Self::Destroy => Step::Destroy,
        }
    }
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// What it ensures holds.
    Done,
    /// Not now; the reason begins with a stable code and a colon.
    Retryable(String),
    /// This image is not here, nor where this host may copy it from: it has to be fetched.
    ImageMissing(ImageDigest, String),
    /// Not ever in this generation.
    Terminal(String),
    /// Nobody can say whether it took effect: look before doing anything else.
    Unknown(String),
}

/// What is seen of one machine (R8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// The hypervisor could not be asked.
    Unknown,
    /// A full listing over a live connection does not show it.
    Absent,
    /// It is there.
    Present(Machine),
}

/// A look, and when it began: of two looks the one that began later counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Drawn from one growing counter before the hypervisor was asked.
    pub ticket: u64,
    /// What it gave.
    pub seen: Seen,
}

/// A step that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Whose.
    pub vm: VmId,
    /// In which generation it was begun: for a later one it ensures nothing.
    pub generation: Generation,
    /// Which.
    pub step: Step,
    /// How.
    pub outcome: Outcome,
    /// What the machine looked like afterwards, where the step may have changed that.
    pub sighting: Option<Sighting>,
}
