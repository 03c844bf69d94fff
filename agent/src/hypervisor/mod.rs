//! What runs machines: one trait, real implementations behind it.
//!
//! Owns the words in which the rest of the agent speaks of machines: tags, power, sight, and three
//! kinds of failure. Never decides what should run. Every call blocks; callers put it on a thread
//! of its own with a deadline. Called by the actuator (changes) and the observation (looks).

pub mod announcer;
pub mod cloud_hypervisor;
pub mod libvirt;
pub mod names;

use std::path::PathBuf;

pub use dagger_controller::machine::{Inventory, Machine, Power, Tags};
use dagger_payload::id::{VmId, VolumeId};
use dagger_payload::kind::ImageFormat;
use dagger_payload::name::CommandLine;

use crate::controller::proof::{DeleteProof, StopProof};

/// A machine to be defined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpecification {
    /// What it will carry.
    pub tags: Tags,
    /// What people call it; only shown.
    pub title: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// The writable disk: a qcow2 overlay.
    pub disk: PathBuf,
    /// The image below it.
    pub image: PathBuf,
    /// The image's format.
    pub image_format: ImageFormat,
    /// The cloud-init seed: a raw, read-only disk.
    pub seed: PathBuf,
    /// Its volumes.
    pub volumes: Vec<GivenVolume>,
    /// The file that receives what the guest says on its serial console, where the hypervisor can
    /// write one.
    pub console: PathBuf,
    /// How many network cards it has, each on the tap that was made for it.
    pub cards: u8,
    /// What it boots directly; the boot loader on its disk, if nothing.
    pub boot: Option<DirectBoot>,
}

/// A kernel that is booted without a boot loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectBoot {
    /// Its file.
    pub kernel: PathBuf,
    /// The initial RAM disk's file.
    pub initrd: Option<PathBuf>,
    /// What it is told.
    pub command_line: Option<CommandLine>,
}

/// A volume that a machine is to have: a qcow2 without a backing file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenVolume {
    /// Which volume.
    pub volume: VolumeId,
    /// Which of the machine's places for volumes, from 0.
    pub slot: u8,
    /// The size that the guest is to see at least.
    pub size_bytes: u64,
    /// Its file.
    pub disk: PathBuf,
}

impl GivenVolume {
    /// What the guest sees as the disk's serial number: it finds the disk under
    /// `/dev/disk/by-id/virtio-SERIAL`. Virtio keeps 20 bytes of it.
    pub fn serial(&self) -> String {
        self.volume.to_string()[..20].to_owned()
    }
}

/// A copy that a hypervisor makes of a volume that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveCopy {
    /// Whose volume.
    pub vm: VmId,
    /// The volume's file.
    pub disk: PathBuf,
    /// Its size.
    pub size_bytes: u64,
    /// Where it is copied to: an empty qcow2 of that size.
    pub copy: PathBuf,
}

/// Why a hypervisor did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HypervisorError {
    /// It cannot be asked: nothing is known now.
    #[error("hypervisor_unavailable: {0}")]
    Unavailable(String),
    /// Another thing stands under the name.
    #[error("name_occupied: {0}")]
    Occupied(String),
    /// It will never do this as asked.
    #[error("hypervisor_refused: {0}")]
    Refused(String),
    /// It did not work this time.
    #[error("hypervisor_failed: {0}")]
    Failed(String),
}

/// What happened at the hypervisor on its own account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Something happened to this machine: look at it.
    Machine(VmId),
    /// The connection ended; nothing is known until the next full listing.
    ConnectionLost(String),
}

/// Somebody's hands at a guest's serial console; gone when dropped.
pub trait ConsoleInput: Send {
    /// Types `bytes`; waits a moment when the guest does not take them at once.
    ///
    /// # Errors
    /// `Failed`: the guest or its line is gone, or takes nothing.
    fn write(&mut self, bytes: &[u8]) -> Result<(), HypervisorError>;
}

/// A hypervisor on this host. All calls block and may hang; all of them may be repeated.
pub trait Hypervisor: Send + Sync + 'static {
    /// Opens a connection if none lives, and says what answers.
    ///
    /// # Errors
    /// `Unavailable`, or `Refused` for a driver that we do not know.
    fn connect(&self) -> Result<String, HypervisorError>;

    /// Gives the connection up; the next [`Hypervisor::connect`] opens another.
    fn disconnect(&self);

    /// Everything that stands under our names: complete or an error, never a part.
    ///
    /// # Errors
    /// `Unavailable` when any part of the answer is missing.
    fn list(&self) -> Result<Inventory, HypervisorError>;

    /// What carries this host's tags or a name of ours and stands where [`Hypervisor::list`] does
    /// not look, in words for people: nothing is ever done with it.
    ///
    /// # Errors
    /// `Unavailable` when any part of the answer is missing.
    fn strays(&self) -> Result<Vec<String>, HypervisorError>;

    /// What stands under the name of `vm`; `None` only when the hypervisor itself says that nothing
    /// does.
    ///
    /// # Errors
    /// `Unavailable`.
    fn look(&self, vm: VmId) -> Result<Option<Machine>, HypervisorError>;

    /// Defines the machine, switched off, or defines it anew while it is switched off.
    ///
    /// # Errors
    /// `Occupied`, `Refused`, `Failed`, `Unavailable`.
    fn define(&self, machine: &MachineSpecification) -> Result<(), HypervisorError>;

    /// Writes new tags on a machine of ours, running or not.
    ///
    /// # Errors
    /// `Occupied`, `Failed`, `Unavailable`.
    fn tag(&self, tags: &Tags) -> Result<(), HypervisorError>;

    /// Switches the machine on; one that runs already is left as it is.
    ///
    /// # Errors
    /// `Occupied`, `Failed`, `Unavailable`.
    fn start(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Halts the guest where it is, in memory; one that does not run is left as it is.
    ///
    /// # Errors
    /// `Occupied`, `Failed`, `Unavailable`.
    fn pause(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Lets a halted guest go on; any other is left as it is.
    ///
    /// # Errors
    /// `Occupied`, `Failed`, `Unavailable`.
    fn resume(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Gives a running machine these volumes, in their sizes, and takes away all others, and sees
    /// that it is so; one
    /// that is switched off gets them with its next definition.
    ///
    /// # Errors
    /// `Refused` where this hypervisor cannot do that to a running machine, `Occupied`; `Failed`,
    /// also while the guest does not let go of a volume; `Unavailable`.
    fn give(&self, vm: VmId, volumes: &[GivenVolume]) -> Result<(), HypervisorError>;

    /// Has what is on a volume of a machine in memory copied while its guest goes on, as it is at
    /// one moment: what a power cut would leave. Returns once all of it is in the copy.
    ///
    /// # Errors
    /// `Refused` where this hypervisor cannot do that, `Occupied`; `Failed`, also while the machine
    /// does not have the volume, or not in this size; `Unavailable`.
    fn copy_volume(&self, copy: &LiveCopy) -> Result<(), HypervisorError>;

    /// Asks the guest to switch itself off (ACPI power button).
    ///
    /// # Errors
    /// `Occupied`, `Failed`, `Unavailable`.
    fn ask_shutdown(&self, proof: &StopProof) -> Result<(), HypervisorError>;

    /// Switches the machine off at once and sees that it is off; one that is off or not there is
    /// left as it is.
    ///
    /// # Errors
    /// `Occupied`, `Failed`, `Unavailable`.
    fn destroy(&self, proof: &StopProof) -> Result<(), HypervisorError>;

    /// Removes the definition of a machine that is switched off and sees that it is gone; disks
    /// stay.
    ///
    /// # Errors
    /// `Occupied`, `Failed`, `Unavailable`.
    fn undefine(&self, proof: &DeleteProof) -> Result<(), HypervisorError>;

    /// Opens the serial console of a running machine of ours for typing. What the guest says goes
    /// to its console file in any case.
    ///
    /// # Errors
    /// `Occupied`; `Failed` when it does not run or somebody else sits there; `Refused` when this
    /// hypervisor has no consoles; `Unavailable`.
    fn open_console(&self, vm: VmId) -> Result<Box<dyn ConsoleInput>, HypervisorError>;
}
