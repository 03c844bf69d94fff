//! Makers of attested VM versions, and the world that the crash tests run in.
//!
//! The hypervisor and the disks here are fakes in memory and say so by their names; they refuse
//! what the real ones refuse, count what must happen once, and let the agent or the machine's
//! process die at a chosen call, before or after its effect.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Barrier, Mutex, MutexGuard};

use dagger_agent::actuator::disks::{Disks, SeedContents};
use dagger_agent::controller::proof::{DeleteProof, StopProof};
use dagger_agent::handover::AttestedVm;
use dagger_agent::hypervisor::{
    ConsoleInput, GivenVolume, Hypervisor, HypervisorError, Inventory, LiveCopy, Machine,
    MachineSpecification, Power, Tags,
};
use dagger_net::offer::Offer;
use dagger_payload::id::{
    AccountId, CommitIndex, Generation, HostId, ImageDigest, LedgerTime, OperatorId, PayloadDigest,
    Position, VmId, VolumeId,
};
use dagger_payload::key::SecretKey;
use dagger_payload::kind::{Capacity, GuestSubnet, ImageFormat, Protection, ReportPhase, VmImage};
use dagger_payload::network::VmNetwork;
use dagger_payload::object::{Cause, Host, HostDuty, Placement, Vm, VmReport, Wanted};

use super::kept::FakeKept;

/// The host under test.
pub(crate) const HERE: HostId = HostId([1; 16]);
/// Another host.
pub(crate) const ELSEWHERE: HostId = HostId([2; 16]);
/// The VM.
pub(crate) const VM: VmId = VmId([7; 16]);

/// The image that it boots.
pub(crate) const IMAGE: ImageDigest = ImageDigest([6; 32]);

/// The address that the ledger gave the guest.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 2);

/// The network of this host's guests.
pub(crate) fn subnet() -> GuestSubnet {
    GuestSubnet { network: Ipv4Addr::new(10, 77, 1, 0), prefix_length: 24 }
}

/// The payload that made this generation.
pub(crate) fn cause(generation: u64) -> Cause {
    let byte = u8::try_from(generation).unwrap();
    Cause { digest: PayloadDigest([byte; 32]), position: Position(generation) }
}

/// This host's own object.
pub(crate) fn host() -> Host {
    let key = SecretKey::from_seed(&[3; 32].into()).public_key();
    Host {
        id: HERE,
        name: "host1".parse().unwrap(),
        operator: OperatorId([4; 16]),
        region: "eu".parse().unwrap(),
        labels: BTreeMap::new(),
        ledger_key: key.clone(),
        agent_key: key,
        capacity: Capacity { cpus: 8, memory_mib: 8192, disk_gib: 100 },
        guest_subnet: subnet(),
        forward_ports_first: Some(20_000),
        protocol_max: None,
        bridges: Vec::new(),
        site: None,
        reserve: Capacity::default(),
        duty: HostDuty::Open,
        generation: Generation(1),
        cause: cause(1),
    }
}

/// A VM that was offered to `HERE`.
pub(crate) fn offered() -> AttestedVm {
    let vm = Vm {
        id: VM,
        account: AccountId([5; 16]),
        name: "web-1".parse().unwrap(),
        generation: Generation(1),
        created: cause(1),
        changed: cause(1),
        wanted: Wanted::Running,
        image: VmImage { digest: IMAGE, format: ImageFormat::Qcow2, virtual_size_bytes: 1 << 30 },
        size: Capacity { cpus: 1, memory_mib: 256, disk_gib: 1 },
        ssh_keys: Vec::new(),
        public_user_data: None,
        labels: BTreeMap::new(),
        region: None,
        host_labels: BTreeMap::new(),
        pinned_host: None,
        placement: Placement::Offered {
            host: HERE,
            address: ADDRESS,
            deadline: LedgerTime(10_000),
        },
        tried: Vec::new(),
        reported: None,
        guest_host_key: None,
        protection: Protection::Unprotected,
        booted_since: Generation(1),
        volumes: Vec::new(),
        volumes_since: Generation(1),
        meter: dagger_payload::usage::Meter::NEW,
        stop_manner: dagger_payload::kind::StopManner::Graceful,
        restart: dagger_payload::kind::RestartPolicy::Always,
        apart: Vec::new(),
        network: VmNetwork::default(),
        boot: None,
        more_cards: Vec::new(),
    };
    AttestedVm { vm, commit: CommitIndex(1) }
}

/// The version after `before` in which `change` happened.
pub(crate) fn after(before: &AttestedVm, change: impl FnOnce(&mut Vm)) -> AttestedVm {
    let mut next = before.clone();
    next.commit = CommitIndex(before.commit.0 + 1);
    change(&mut next.vm);
    next
}

/// The offer, accepted by `HERE`.
pub(crate) fn accepted() -> AttestedVm {
    after(&offered(), |vm| {
        vm.placement = Placement::Accepted { host: HERE, address: ADDRESS, position: Position(2) };
        vm.reported = Some(report(1, ReportPhase::Accepted));
    })
}

/// The next generation, in which its owner wants this.
pub(crate) fn wants(before: &AttestedVm, wanted: Wanted) -> AttestedVm {
    after(before, |vm| {
        vm.generation = Generation(vm.generation.0 + 1);
        vm.changed = cause(vm.generation.0);
        vm.wanted = wanted;
    })
}

/// Its owner asks for a reboot.
pub(crate) fn wants_reboot(before: &AttestedVm) -> AttestedVm {
    let mut version = wants(before, Wanted::Running);
    version.vm.booted_since = version.vm.generation;
    version
}

/// A report by `HERE`, as the ledger keeps it.
pub(crate) fn report(generation: u64, phase: ReportPhase) -> VmReport {
    VmReport {
        host: HERE,
        generation: Generation(generation),
        phase,
        reason: None,
        cause: cause(9),
        agreement: dagger_payload::object::Agreement::WithOrder,
    }
}

/// The tags of `VM` in a generation.
pub(crate) fn tags(generation: u64) -> Tags {
    Tags {
        host: HERE,
        vm: VM,
        generation: Generation(generation),
        payload: cause(generation).digest,
    }
}

/// Our machine in this power state and generation.
pub(crate) fn ours(power: Power, generation: u64) -> Machine {
    Machine::Ours { power, tags: tags(generation) }
}

/// Who dies when the fuse has burnt down.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The agent: nothing that it asks for happens any more.
    #[default]
    Agent,
    /// The hypervisor's process with the guest in it, once: a call that it carries out is cut off.
    Process,
}

/// When somebody dies.
#[derive(Debug, Default)]
pub(crate) struct Fuse {
    pub(crate) victim: Victim,
    /// Points that are left before that; `None`: never.
    pub(crate) left: Option<usize>,
    /// Points that were passed.
    pub(crate) passed: usize,
    /// The agent died.
    pub(crate) dead: bool,
    /// The process died, or would have if there was one.
    pub(crate) has_struck: bool,
}

impl Fuse {
    /// Passes a point; says who is dead, or dies now.
    fn burn(&mut self) -> Option<Victim> {
        if self.dead {
            return Some(Victim::Agent);
        }
        self.passed += 1;
        let is_down = self.left == Some(0);
        self.left = self.left.and_then(|left| left.checked_sub(1));
        if !is_down {
            return None;
        }
        match self.victim {
            Victim::Agent => self.dead = true,
            Victim::Process => self.has_struck = true,
        }
        Some(self.victim)
    }
}

/// Whether the fake guest switches itself off when asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guest {
    Obeys,
    Ignores,
}

/// What outlives the agent: machines, disks and the count of what happened to them.
#[derive(Debug)]
pub(crate) struct FakeHost {
    state: Mutex<FakeState>,
}

/// Contents of a [`FakeHost`].
#[derive(Debug)]
pub(crate) struct FakeState {
    pub(crate) fuse: Fuse,
    pub(crate) guest: Guest,
    pub(crate) machines: Inventory,
    /// Image files that are here.
    pub(crate) images: BTreeSet<ImageDigest>,
    pub(crate) images_fetched: usize,
    pub(crate) disks: BTreeSet<VmId>,
    pub(crate) seeds: BTreeMap<VmId, SeedContents>,
    pub(crate) quarantine: BTreeSet<VmId>,
    pub(crate) quarantine_full: bool,
    /// Volumes whose disk is here.
    pub(crate) volumes: BTreeMap<VolumeId, u64>,
    pub(crate) volumes_made: usize,
    pub(crate) volumes_quarantined: BTreeMap<VolumeId, u64>,
    /// What is on volumes and their snapshots.
    pub(crate) kept: FakeKept,
    /// By machine, while it is in memory.
    pub(crate) given: BTreeMap<VmId, BTreeSet<VolumeId>>,
    /// What each machine gets when it is switched on.
    defined: BTreeMap<VmId, BTreeSet<VolumeId>>,
    /// How many cards each machine is defined with.
    wired: BTreeMap<VmId, u8>,
    /// By machine, and by number.
    pub(crate) cards: BTreeMap<VmId, BTreeMap<u8, VmNetwork>>,
    /// What each guest is told when it asks by DHCP.
    pub(crate) offers: BTreeMap<VmId, Offer>,
    pub(crate) disks_made: usize,
    pub(crate) starts: usize,
    /// How often a machine was asked to copy a volume that it holds.
    pub(crate) live_copies: usize,
    pub(crate) power_cuts: usize,
    /// How many guests were lost with their process.
    pub(crate) processes_lost: usize,
    /// How many things were in quarantine and are gone for ever.
    pub(crate) collected: usize,
    /// Machines at which every look hangs, each until somebody else waits there too.
    pub(crate) hanging: BTreeMap<VmId, Arc<Barrier>>,
}

impl FakeHost {
    pub(crate) fn new(guest: Guest) -> Self {
        let state = FakeState {
            fuse: Fuse::default(),
            guest,
            machines: Inventory::new(),
            images: [IMAGE].into(),
            images_fetched: 0,
            disks: BTreeSet::new(),
            seeds: BTreeMap::new(),
            quarantine: BTreeSet::new(),
            quarantine_full: false,
            volumes: BTreeMap::new(),
            volumes_made: 0,
            volumes_quarantined: BTreeMap::new(),
            kept: FakeKept::default(),
            given: BTreeMap::new(),
            defined: BTreeMap::new(),
            wired: BTreeMap::new(),
            cards: BTreeMap::new(),
            offers: BTreeMap::new(),
            disks_made: 0,
            starts: 0,
            live_copies: 0,
            power_cuts: 0,
            processes_lost: 0,
            collected: 0,
            hanging: BTreeMap::new(),
        };
        Self { state: Mutex::new(state) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock().unwrap()
    }

    /// A changing call: the agent may die before it, or after it took effect.
    pub(crate) fn change<T, E>(
        &self,
        died: impl Fn() -> E,
        effect: impl FnOnce(&mut FakeState) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut state = self.state();
        if state.burn() == Some(Victim::Agent) {
            return Err(died());
        }
        let done = effect(&mut state);
        if state.burn() == Some(Victim::Agent) { Err(died()) } else { done }
    }

    /// A call to the hypervisor: it is cut off, whoever dies.
    fn machine<T>(
        &self,
        effect: impl FnOnce(&mut FakeState) -> Result<T, HypervisorError>,
    ) -> Result<T, HypervisorError> {
        let cut_off = |victim| HypervisorError::Unavailable(format!("cut off: {victim:?}"));
        let mut state = self.state();
        if let Some(victim) = state.burn() {
            return Err(cut_off(victim));
        }
        let done = effect(&mut state);
        state.burn().map_or(done, |victim| Err(cut_off(victim)))
    }
}

impl FakeState {
    /// Passes a point at which somebody may die.
    pub(crate) fn burn(&mut self) -> Option<Victim> {
        let victim = self.fuse.burn();
        if victim == Some(Victim::Process) {
            self.lose_processes();
        }
        victim
    }

    /// What is defined stays; what was in memory is gone.
    fn lose_processes(&mut self) {
        for machine in self.machines.values_mut() {
            if let Machine::Ours { power: power @ (Power::Running | Power::Paused), .. } = machine {
                *power = Power::Stopped;
                self.processes_lost += 1;
            }
        }
        self.given.clear();
    }

    pub(crate) fn is_given(&self, volume: VolumeId) -> bool {
        self.given.values().any(|given| given.contains(&volume))
    }

    /// A machine in memory gets these volumes and no other.
    fn take(&mut self, vm: VmId, volumes: BTreeSet<VolumeId>) {
        let here = |volume| self.volumes.contains_key(volume);
        assert!(volumes.iter().all(here), "a machine got a volume that is not there");
        let others = self.given.iter().filter(|(other, _)| **other != vm);
        let shared = others.into_iter().any(|(_, taken)| !taken.is_disjoint(&volumes));
        assert!(!shared, "two machines got one volume");
        volumes.iter().for_each(|volume| self.kept.write(*volume));
        self.given.insert(vm, volumes);
    }

    fn power(&mut self, vm: VmId) -> Result<&mut Power, HypervisorError> {
        match self.machines.get_mut(&vm) {
            Some(Machine::Ours { power, .. }) => Ok(power),
            Some(Machine::Foreign(why)) => Err(HypervisorError::Occupied(why.clone())),
            None => Err(HypervisorError::Failed("not defined".to_owned())),
        }
    }
}

impl Hypervisor for FakeHost {
    fn connect(&self) -> Result<String, HypervisorError> {
        Ok("a fake in memory".to_owned())
    }

    fn disconnect(&self) {}

    fn list(&self) -> Result<Inventory, HypervisorError> {
        Ok(self.state().machines.clone())
    }

    fn strays(&self) -> Result<Vec<String>, HypervisorError> {
        Ok(Vec::new())
    }

    fn look(&self, vm: VmId) -> Result<Option<Machine>, HypervisorError> {
        let hanging = self.state().hanging.get(&vm).cloned();
        if let Some(hanging) = hanging {
            hanging.wait();
        }
        Ok(self.state().machines.get(&vm).cloned())
    }

    fn define(&self, machine: &MachineSpecification) -> Result<(), HypervisorError> {
        self.machine(|state| {
            let tags = machine.tags.clone();
            let power = state.power(tags.vm).map_or(Power::Stopped, |power| *power);
            let volumes = machine.volumes.iter().map(|given| given.volume).collect();
            state.defined.insert(tags.vm, volumes);
            state.wired.insert(machine.tags.vm, machine.cards);
            state.machines.insert(tags.vm, Machine::Ours { power, tags });
            Ok(())
        })
    }

    fn tag(&self, tags: &Tags) -> Result<(), HypervisorError> {
        self.machine(|state| {
            let power = *state.power(tags.vm)?;
            state.machines.insert(tags.vm, Machine::Ours { power, tags: tags.clone() });
            Ok(())
        })
    }

    fn start(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.machine(|state| {
            assert!(state.disks.contains(&vm), "a machine was started without its disk");
            assert!(state.seeds.contains_key(&vm), "a machine was started without its seed");
            let cards: Vec<u8> = state.cards[&vm].keys().copied().collect();
            let wired: Vec<u8> = (0..state.wired[&vm]).collect();
            assert_eq!(cards, wired, "a machine was started without its cards");
            if *state.power(vm)? == Power::Stopped {
                *state.power(vm)? = Power::Running;
                state.starts += 1;
                let volumes = state.defined.get(&vm).cloned().unwrap_or_default();
                state.take(vm, volumes);
            }
            Ok(())
        })
    }

    fn pause(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.machine(|state| {
            if *state.power(vm)? == Power::Running {
                *state.power(vm)? = Power::Paused;
            }
            Ok(())
        })
    }

    fn resume(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.machine(|state| {
            if *state.power(vm)? == Power::Paused {
                *state.power(vm)? = Power::Running;
            }
            Ok(())
        })
    }

    fn give(&self, vm: VmId, volumes: &[GivenVolume]) -> Result<(), HypervisorError> {
        self.machine(|state| {
            if *state.power(vm)? != Power::Stopped {
                for given in volumes {
                    let size = state.volumes.get_mut(&given.volume).expect("it is there");
                    *size = (*size).max(given.size_bytes >> 30);
                }
                let volumes = volumes.iter().map(|given| given.volume).collect();
                state.take(vm, volumes);
            }
            Ok(())
        })
    }

    fn copy_volume(&self, copy: &LiveCopy) -> Result<(), HypervisorError> {
        self.machine(|state| {
            assert_ne!(*state.power(copy.vm)?, Power::Stopped, "nobody holds the disk");
            let path = |volume: &VolumeId| self.volume_path(*volume);
            let given = state.given.get(&copy.vm).into_iter().flatten().map(path);
            let is_given = given.into_iter().any(|given| given == copy.disk);
            assert!(is_given, "the machine does not hold the disk");
            state.live_copies += 1;
            Ok(())
        })
    }

    fn ask_shutdown(&self, proof: &StopProof) -> Result<(), HypervisorError> {
        self.machine(|state| {
            if state.guest == Guest::Obeys {
                *state.power(proof.vm())? = Power::Stopped;
                state.given.remove(&proof.vm());
            }
            Ok(())
        })
    }

    fn destroy(&self, proof: &StopProof) -> Result<(), HypervisorError> {
        self.machine(|state| {
            if let Ok(power) = state.power(proof.vm())
                && *power != Power::Stopped
            {
                *power = Power::Stopped;
                state.given.remove(&proof.vm());
                state.power_cuts += 1;
            }
            Ok(())
        })
    }

    fn undefine(&self, proof: &DeleteProof) -> Result<(), HypervisorError> {
        self.machine(|state| {
            if let Ok(power) = state.power(proof.vm()) {
                assert_eq!(*power, Power::Stopped, "a running machine was undefined");
            }
            state.machines.remove(&proof.vm());
            Ok(())
        })
    }

    fn open_console(&self, _vm: VmId) -> Result<Box<dyn ConsoleInput>, HypervisorError> {
        Err(HypervisorError::Refused("a fake has no consoles".to_owned()))
    }
}
