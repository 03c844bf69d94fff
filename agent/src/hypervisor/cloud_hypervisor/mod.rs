//! Cloud Hypervisor behind the trait: one process per machine, spoken to over its Unix socket.
//!
//! Owns what a machine is here (a definition, its process's directory, and the process while it is
//! on) and the order of calls that survives what the process is known to do. Never decides, never
//! touches a machine whose tags are not ours. A process is dead only when nobody listens at its
//! socket; one that does not answer is alive. Called through [`Hypervisor`] by the actuator and the
//! observation.

mod api;
mod attached;
mod ends;
mod events;
mod limits;
mod place;
mod program;
mod shapes;
mod socket;
mod supervisor;
mod systemd;
mod volumes;
mod watch;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dagger_net::request::Owner;
use dagger_payload::id::VmId;
use nix::unistd::Group;
use serde::{Deserialize, Serialize};

use self::api::{Api, ApiError};
use self::attached::Attached;
use self::limits::{
    ASK_WAIT_MAX, ASKED_TOGETHER_MAX, CHANGE_WAIT_MAX, SERVE_LOOK_EVERY, SERVE_WAIT_MAX,
    SOCKET_PATH_BYTES_MAX,
};
use self::place::{Definition, Place};
use self::program::{find_landlock, release};
use self::shapes::{Landlock, State, VmInfo};
use self::supervisor::{Direct, Listener, Supervisor, listener, wait_end};
use self::systemd::Systemd;
use self::volumes::Running;
use self::watch::{LineInput, Watch};
use super::announcer::Announcer;
use super::names::HostNames;
use super::{
    ConsoleInput, GivenVolume, Hypervisor, HypervisorError, Inventory, LiveCopy, Machine,
    MachineSpecification, Power, Tags,
};
use crate::controller::proof::{DeleteProof, StopProof};
use crate::service_manager;

/// The group that machines under systemd run in; disks and directories are opened to it.
const GROUP: &str = "dagger-vm";

/// What the operator says about Cloud Hypervisor.
#[derive(Debug, Clone)]
pub struct CloudHypervisorConfiguration {
    /// The `cloud-hypervisor` program.
    pub program: PathBuf,
    /// What a machine boots: the firmware that finds a boot loader on its disk.
    pub firmware: PathBuf,
    /// One directory per machine below it; short, since socket paths are.
    pub run_directory: PathBuf,
    /// Who owns the processes.
    pub supervision: Supervision,
}

impl CloudHypervisorConfiguration {
    /// Who opens the taps of its machines: under systemd they have a user of their own.
    pub fn card_owner(&self) -> Owner {
        match self.supervision.resolved() {
            Supervision::Systemd => Owner::Machines,
            Supervision::Auto | Supervision::Direct => Owner::Root,
        }
    }
}

/// Who owns the processes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Supervision {
    /// systemd where it is PID 1, the agent's own sessions elsewhere.
    #[default]
    Auto,
    /// Instances of `dagger-vm@.service`.
    Systemd,
    /// Sessions of their own, which outlive the agent.
    Direct,
}

impl Supervision {
    fn resolved(self) -> Self {
        match self {
            Self::Auto if service_manager::is_booted() => Self::Systemd,
            Self::Auto => Self::Direct,
            told => told,
        }
    }
}

/// Cloud Hypervisor on this host.
pub struct CloudHypervisor {
    names: HostNames,
    configuration: CloudHypervisorConfiguration,
    /// The directory of all disks.
    disks: PathBuf,
    /// The directory of what guests say, in a file each.
    consoles: PathBuf,
    supervision: Supervision,
    supervisor: Box<dyn Supervisor>,
    landlock: Landlock,
    announcer: Announcer,
    watch: Mutex<Option<Watch>>,
}

/// What is known of a machine's process.
#[derive(Debug)]
enum Process {
    /// Nobody listens.
    Gone,
    /// It is there and does not answer in time: busy or hung, its guest perhaps running.
    Silent,
    /// It is there and has no guest in memory.
    Idle,
    /// It is there with a guest in memory.
    Guest(Box<VmInfo>),
}

impl CloudHypervisor {
    /// Prepares; nothing is started yet. Every disk of a machine lies in `disks`, what its guest
    /// says in `consoles`.
    pub fn new(
        configuration: CloudHypervisorConfiguration,
        (disks, consoles): (PathBuf, PathBuf),
        announcer: Announcer,
    ) -> Self {
        let supervision = configuration.supervision.resolved();
        let supervisor: Box<dyn Supervisor> = match supervision {
            Supervision::Systemd => Box::new(Systemd),
            Supervision::Auto | Supervision::Direct => {
                Box::new(Direct::new(configuration.program.clone()))
            }
        };
        let names = announcer.names();
        let watch = Mutex::default();
        let landlock = find_landlock();
        Self {
            names,
            configuration,
            disks,
            consoles,
            supervision,
            supervisor,
            landlock,
            announcer,
            watch,
        }
    }

    fn place(&self, vm: VmId) -> Place {
        Place::of(&self.configuration.run_directory, vm)
    }

    fn attached(&self, vm: VmId) -> Attached {
        Attached::of(&self.disks, vm)
    }

    /// What the process of this place is doing.
    fn process(&self, place: &Place) -> Process {
        match Api::new(&place.api()).get("vm.info", ASK_WAIT_MAX) {
            Ok(answer) => match serde_json::from_slice::<VmInfo>(&answer) {
                Ok(info) if matches!(info.state, State::Created | State::Shutdown) => Process::Idle,
                Ok(info) => Process::Guest(Box::new(info)),
                Err(_) => Process::Silent,
            },
            Err(ApiError::Gone) => Process::Gone,
            // Without a machine it says so with an error, whose status differs from release to
            // release.
            Err(ApiError::Said { .. }) => Process::Idle,
            // It may just be ending: an end closes the conversation before the socket.
            Err(ApiError::Silent(_)) => match listener(&place.api()) {
                Ok(Listener::Nobody) => Process::Gone,
                Ok(Listener::Process(process)) if wait_end(&process, Duration::ZERO).is_ok() => {
                    Process::Gone
                }
                Ok(Listener::Process(_) | Listener::Unreachable) | Err(_) => Process::Silent,
            },
        }
    }

    /// What stands in this place; `None` when neither a definition nor a process does.
    fn machine(&self, vm: VmId) -> Result<Option<(Machine, Process)>, HypervisorError> {
        let place = self.place(vm);
        let process = self.process(&place);
        // One that cannot be read hides no other machine, and is not taken for none.
        let (tags, unread) = match place.read() {
            Ok(definition) => (definition.map(|definition| definition.tags()), None),
            Err(error) => (None, Some(error)),
        };
        // The running machine carries its tags too, so that a lost definition does not make it a
        // stranger.
        let tags = tags.or_else(|| match &process {
            Process::Guest(info) => info.tags(),
            Process::Gone | Process::Silent | Process::Idle => None,
        });
        let Some(tags) = tags else {
            let why = match (unread, &process) {
                (Some(error), _) => format!("the machine's definition cannot be read: {error}"),
                (None, Process::Gone) => return Ok(None),
                (None, _) => "a process in this place carries no tags of ours".to_owned(),
            };
            return Ok(Some((Machine::Foreign(why), process)));
        };
        if tags.host != self.names.host() || tags.vm != vm {
            let why = "a machine in this place carries another host's or VM's tags";
            return Ok(Some((Machine::Foreign(why.to_owned()), process)));
        }
        let power = match &process {
            Process::Gone | Process::Idle => Power::Stopped,
            Process::Guest(info) if info.state == State::Paused => Power::Paused,
            Process::Guest(_) | Process::Silent => Power::Running,
        };
        Ok(Some((Machine::Ours { power, tags }, process)))
    }

    /// Our machine and its process; `None` when nothing stands there.
    fn ours(&self, vm: VmId) -> Result<Option<(Power, Tags, Process)>, HypervisorError> {
        match self.machine(vm)? {
            Some((Machine::Ours { power, tags }, process)) => Ok(Some((power, tags, process))),
            Some((Machine::Foreign(why), _)) => Err(HypervisorError::Occupied(why)),
            None => Ok(None),
        }
    }

    fn existing(&self, vm: VmId) -> Result<(Power, Tags, Process), HypervisorError> {
        self.ours(vm)?
            .ok_or_else(|| HypervisorError::Failed("the machine is not defined".to_owned()))
    }

    /// Starts a process and waits until it serves.
    fn serve(&self, vm: VmId, place: &Place) -> Result<(), HypervisorError> {
        if self.supervisor.may_live(vm).map_err(|error| unavailable(&error))? {
            self.supervisor.kill(vm, place).map_err(|error| failed(&error))?;
        }
        let cleared = self.group().and_then(|group| place.clear(group));
        cleared.map_err(|error| failed(&error))?;
        self.supervisor.start(vm, place).map_err(|error| failed(&error))?;
        let end = Instant::now() + SERVE_WAIT_MAX;
        loop {
            match Api::new(&place.api()).get("vmm.ping", ASK_WAIT_MAX) {
                Ok(_) => return Ok(()),
                Err(error) => {
                    let failure = match error {
                        ApiError::Gone => self.supervisor.failure(vm),
                        ApiError::Silent(_) | ApiError::Said { .. } => None,
                    };
                    let late = (Instant::now() >= end).then(|| "it does not serve".to_owned());
                    if let Some(why) = failure.or(late) {
                        let words = place.last_words();
                        return Err(HypervisorError::Failed(format!("{why}: {words}")));
                    }
                }
            }
            std::thread::sleep(SERVE_LOOK_EVERY);
        }
    }

    /// Tells a fresh process its machine and switches that on. Volumes come as to one that runs.
    fn boot(&self, place: &Place, definition: &Definition) -> Result<(), HypervisorError> {
        let api = Api::new(&place.api());
        let told = |error: ApiError| HypervisorError::Failed(error.to_string());
        let (machine, volumes) = shapes::without_volumes(definition.config.clone());
        api.put_json("vm.create", &machine, CHANGE_WAIT_MAX).map_err(told)?;
        for volume in &volumes {
            api.put_json("vm.add-disk", volume, CHANGE_WAIT_MAX).map_err(told)?;
        }
        // It may be that quick: what comes of it is seen by looking.
        api.put("vm.boot", CHANGE_WAIT_MAX).map_err(told)
    }

    /// Lets the machine reach the disks that it is defined with, as they are now.
    fn link(&self, vm: VmId, definition: &Definition) -> Result<(), HypervisorError> {
        let attached = self.attached(vm);
        let linked = attached.clear().and_then(|()| {
            shapes::disks(&definition.config).iter().try_for_each(|disk| attached.link(disk))
        });
        linked.map_err(|error| failed(&error))
    }

    /// The group that machines run in, where they have a user of their own.
    fn group(&self) -> io::Result<Option<u32>> {
        if self.supervision != Supervision::Systemd {
            return Ok(None);
        }
        let group = Group::from_name(GROUP)?
            .ok_or_else(|| io::Error::other(format!("there is no group {GROUP}")))?;
        Ok(Some(group.gid.as_raw()))
    }

    /// Opens a machine's files to the group that its process runs in.
    fn share(&self, machine: &MachineSpecification, place: &Place) -> io::Result<()> {
        let Some(group) = self.group()? else { return Ok(()) };
        // The directory has the group by its parent's set-group bit; here it may only be opened to
        // it.
        open_to(group, place.directory(), 0o770)?;
        // Which disks it reaches is the agent's to say: it may go through, and no more.
        open_to(group, self.attached(machine.tags.vm).directory(), 0o710)?;
        let volumes = machine.volumes.iter().map(|given| given.disk.as_path());
        std::iter::once(machine.disk.as_path())
            .chain(volumes)
            .try_for_each(|disk| open_to(group, disk, 0o660))
    }

    /// The VMs that have a directory or a definition.
    fn places(&self) -> io::Result<Vec<VmId>> {
        let mut vms = BTreeSet::new();
        for entry in fs::read_dir(&self.configuration.run_directory)? {
            vms.extend(entry?.file_name().to_str().and_then(Place::vm_of));
        }
        Ok(vms.into_iter().collect())
    }

    /// A word to a running machine; one that has just gone needs none.
    fn tell(&self, vm: VmId, what: &str) -> Result<(), HypervisorError> {
        match Api::new(&self.place(vm).api()).put(what, ASK_WAIT_MAX) {
            Ok(()) | Err(ApiError::Gone) => Ok(()),
            Err(error) => Err(HypervisorError::Failed(error.to_string())),
        }
    }
}

impl Hypervisor for CloudHypervisor {
    fn connect(&self) -> Result<String, HypervisorError> {
        let release = release(&self.configuration.program)?;
        if !self.configuration.firmware.is_file() {
            return Err(HypervisorError::Unavailable(format!(
                "firmware_missing: {} is not there; install a firmware for Cloud Hypervisor, such as \
                 CLOUDHV.fd, and name it in the configuration",
                self.configuration.firmware.display()
            )));
        }
        let directory = &self.configuration.run_directory;
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(directory)
            .map_err(|error| unavailable(&error))?;
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if watch.is_none() {
            let consoles = self.consoles.clone();
            let started = Watch::start(directory, consoles, self.announcer.clone());
            *watch = Some(started.map_err(|error| unavailable(&error))?);
        }
        let owner = match self.supervision {
            Supervision::Systemd => "processes belong to systemd",
            Supervision::Auto | Supervision::Direct => "processes of their own",
        };
        let confined = match self.landlock {
            Landlock::On => "",
            Landlock::Off => ", not confined: this kernel has no Landlock",
        };
        Ok(format!("Cloud Hypervisor {release}, {owner}{confined}"))
    }

    fn disconnect(&self) {
        // There is no connection; the watch begins anew, in case it is what was lost.
        drop(self.watch.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn list(&self) -> Result<Inventory, HypervisorError> {
        let vms = self.places().map_err(|error| unavailable(&error))?;
        let mut inventory = Inventory::new();
        // Asked side by side, so that one that hangs costs its own deadline only.
        for together in vms.chunks(ASKED_TOGETHER_MAX) {
            let looks = std::thread::scope(|scope| {
                let asked: Vec<_> =
                    together.iter().map(|vm| (*vm, scope.spawn(|| self.look(*vm)))).collect();
                asked.into_iter().map(|(vm, look)| (vm, look.join())).collect::<Vec<_>>()
            });
            for (vm, look) in looks {
                let look = look.map_err(|_| {
                    HypervisorError::Unavailable("a look at a machine panicked".to_owned())
                })?;
                if let Some(machine) = look? {
                    inventory.insert(vm, machine);
                }
            }
        }
        Ok(inventory)
    }

    fn strays(&self) -> Result<Vec<String>, HypervisorError> {
        // Asked before the directories: a machine that is made meanwhile has its directory first.
        let living = self.supervisor.living(&self.configuration.run_directory);
        let living = living.map_err(|error| unavailable(&error))?;
        let linked = attached::vms(&self.disks).map_err(|error| unavailable(&error))?;
        let places = self.places().map_err(|error| unavailable(&error))?;
        let lost = living.iter().filter(|vm| !self.place(**vm).directory().is_dir());
        let lost = lost.map(|vm| format!("a process of VM {vm} has no directory any more"));
        let left = linked.iter().filter(|vm| !places.contains(vm) && !living.contains(vm));
        let left = left.map(|vm| format!("links to disks of VM {vm}, which is not defined"));
        Ok(lost.chain(left).collect())
    }

    fn look(&self, vm: VmId) -> Result<Option<Machine>, HypervisorError> {
        Ok(self.machine(vm)?.map(|(machine, _)| machine))
    }

    fn define(&self, machine: &MachineSpecification) -> Result<(), HypervisorError> {
        let place = self.place(machine.tags.vm);
        if place.serial().as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(HypervisorError::Refused(format!(
                "path_too_long: {} is too long for a socket; choose a shorter run directory",
                place.serial().display()
            )));
        }
        match self.ours(machine.tags.vm)? {
            Some((Power::Running | Power::Paused, ..)) => {
                return Err(HypervisorError::Failed("it runs".to_owned()));
            }
            Some((Power::Stopped, _, process)) => self.take_off(machine.tags.vm, &process)?,
            None => {}
        }
        let firmware = &self.configuration.firmware;
        let cards = shapes::cards(machine, &self.names);
        let attached = self.attached(machine.tags.vm);
        let paths = (firmware.as_path(), place.directory(), &attached);
        let config = shapes::configuration(machine, cards, paths, self.landlock);
        let config = serde_json::to_value(config)
            .map_err(|error| HypervisorError::Refused(error.to_string()))?;
        let definition = Definition::new(&machine.tags, config);
        place
            .make(0o700)
            .and_then(|()| attached.make(0o700))
            .and_then(|()| self.share(machine, &place))
            .and_then(|()| place.write(&definition))
            .map_err(|error| failed(&error))
    }

    fn tag(&self, tags: &Tags) -> Result<(), HypervisorError> {
        let (_, _, process) = self.existing(tags.vm)?;
        let place = self.place(tags.vm);
        self.take_off(tags.vm, &process)?;
        let definition = match (place.read(), process) {
            (Ok(Some(definition)), _) => definition.tagged(tags),
            // Its definition was lost: the running machine knows it.
            (_, Process::Guest(info)) => Definition::new(tags, info.config),
            (Ok(None), _) => return Err(HypervisorError::Failed("it is not defined".to_owned())),
            (Err(error), _) => return Err(failed(&error)),
        };
        place.write(&definition).map_err(|error| failed(&error))
    }

    fn start(&self, vm: VmId) -> Result<(), HypervisorError> {
        let (power, _, process) = self.existing(vm)?;
        if power != Power::Stopped {
            return Ok(());
        }
        let place = self.place(vm);
        let definition = place.read().map_err(|error| failed(&error))?.ok_or_else(|| {
            HypervisorError::Failed("the machine's definition is not there".to_owned())
        })?;
        if !matches!(process, Process::Gone) {
            // What a start that was cut off left behind: half-made machines cannot be used again.
            self.end(vm)?;
        }
        let started = self
            .link(vm, &definition)
            .and_then(|()| self.serve(vm, &place))
            .and_then(|()| self.boot(&place, &definition));
        if started.is_err() {
            // A failed create keeps its configuration and a failed boot half a machine: nothing of
            // either may stay.
            let _ = self.end(vm);
        }
        started
    }

    fn pause(&self, vm: VmId) -> Result<(), HypervisorError> {
        match self.existing(vm)? {
            (Power::Running, ..) => self.tell(vm, "vm.pause"),
            (Power::Paused | Power::Stopped, ..) => Ok(()),
        }
    }

    fn resume(&self, vm: VmId) -> Result<(), HypervisorError> {
        match self.existing(vm)? {
            (Power::Paused, ..) => self.tell(vm, "vm.resume"),
            (Power::Running | Power::Stopped, ..) => Ok(()),
        }
    }

    fn give(&self, vm: VmId, volumes: &[GivenVolume]) -> Result<(), HypervisorError> {
        let (power, _, process) = self.existing(vm)?;
        if power == Power::Stopped {
            return Ok(());
        }
        if !matches!(process, Process::Guest(_)) {
            return Err(HypervisorError::Failed("the process does not answer".to_owned()));
        }
        let share = |disk: &Path| match self.group()? {
            Some(group) => open_to(group, disk, 0o660),
            None => Ok(()),
        };
        let (api, attached) = (Api::new(&self.place(vm).api()), &self.attached(vm));
        Running { api, attached, share: &share }.give(volumes)
    }

    fn copy_volume(&self, copy: &LiveCopy) -> Result<(), HypervisorError> {
        self.existing(copy.vm)?;
        // It copies no disk itself, and pausing a guest does not write a qcow2's tables.
        Err(HypervisorError::Refused(
            "snapshot_while_off_only: Cloud Hypervisor cannot copy a disk that it holds; delete \
             the snapshot, stop the VM, and ask again"
                .to_owned(),
        ))
    }

    fn ask_shutdown(&self, proof: &StopProof) -> Result<(), HypervisorError> {
        match self.ours(proof.vm())? {
            Some((Power::Running, ..)) => self.tell(proof.vm(), "vm.power-button"),
            Some(_) | None => Ok(()),
        }
    }

    fn destroy(&self, proof: &StopProof) -> Result<(), HypervisorError> {
        if self.ours(proof.vm())?.is_none() {
            return Ok(());
        }
        self.end(proof.vm())?;
        match self.ours(proof.vm())? {
            Some((Power::Running | Power::Paused, ..)) => {
                Err(HypervisorError::Failed("it still runs after destroy".to_owned()))
            }
            Some((Power::Stopped, ..)) | None => Ok(()),
        }
    }

    fn undefine(&self, proof: &DeleteProof) -> Result<(), HypervisorError> {
        match self.ours(proof.vm())? {
            Some((Power::Running | Power::Paused, ..)) => {
                return Err(HypervisorError::Failed("it still runs".to_owned()));
            }
            Some((Power::Stopped, _, Process::Gone)) | None => {}
            Some(_) => self.end(proof.vm())?,
        }
        // The definition last: until then what is left is somebody's.
        let removed = self.attached(proof.vm()).remove();
        removed.and_then(|()| self.place(proof.vm()).remove()).map_err(|error| failed(&error))
    }

    fn open_console(&self, vm: VmId) -> Result<Box<dyn ConsoleInput>, HypervisorError> {
        self.ours(vm)?;
        let watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let writers = watch.as_ref().map(Watch::writers).ok_or_else(|| {
            HypervisorError::Unavailable("the machines are not watched yet".to_owned())
        })?;
        drop(watch);
        Ok(Box::new(LineInput::open(writers, vm).map_err(|error| unavailable(&error))?))
    }
}

/// Opens a file or directory of the agent's to this group.
fn open_to(group: u32, path: &Path, mode: u32) -> io::Result<()> {
    std::os::unix::fs::chown(path, None, Some(group))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn failed(error: &io::Error) -> HypervisorError {
    HypervisorError::Failed(error.to_string())
}

fn unavailable(error: &io::Error) -> HypervisorError {
    HypervisorError::Unavailable(error.to_string())
}
