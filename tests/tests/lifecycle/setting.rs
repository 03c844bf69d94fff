//! One host with one backend, and what is seen and done there behind the agent's back.
//!
//! Owns the host's directory and, at the end, processes that a failed scenario left.

use std::path::{Path, PathBuf};

use dagger_agent::handover::AttestedVm;
use dagger_agent::hypervisor::names::HostNames;
use dagger_agent::machines::{self, Accelerator};
use dagger_payload::id::VmId;
use dagger_payload::kind::VmImage;
use dagger_payload::object::Wanted;
use dagger_tests::libvirtd::processes_with;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use virt::connect::Connect;
use virt::domain::Domain;

use super::half::{Half, store_image};
use super::program_under_test::{configuration, firmware};
use super::scenarios::Scenario;
use super::versions::{HERE, attested};

/// libvirt's test driver, within this process.
pub(crate) const PAPER: &str = "test:///default";

/// What runs the machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Backend {
    /// QEMU, by the libvirt at this address.
    Qemu(String),
    /// libvirt's test driver.
    Paper,
    /// The program that behaves like Cloud Hypervisor.
    Contract,
    /// Cloud Hypervisor.
    Real,
}

impl Backend {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Qemu(_) => "libvirt/QEMU",
            Self::Paper => "test:///",
            Self::Contract => "contract",
            Self::Real => "cloud-hypervisor",
        }
    }
}

pub(crate) struct Setting {
    backend: Backend,
    directory: TempDir,
    image: VmImage,
    /// In every id, so that scenarios share a libvirt and no name.
    mark: [u8; 2],
}

impl Setting {
    pub(crate) fn new(backend: Backend, scenario: Scenario, at: usize) -> Self {
        let directory = tempfile::Builder::new().prefix("dl").tempdir().unwrap();
        if let Backend::Contract | Backend::Real = backend {
            firmware(directory.path());
        }
        let image = store_image(directory.path(), 1 << 20);
        let mark = [u8::try_from(at).unwrap() + 1, scenario as u8 + 1];
        Self { backend, directory, image, mark }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// An agent that is told this history.
    pub(crate) async fn agent(&self, history: &[AttestedVm]) -> Half {
        let libvirt = |uri: &str| machines::Backend::Libvirt {
            uri: uri.to_owned(),
            accelerator: Accelerator::Tcg,
        };
        let backend = match &self.backend {
            Backend::Qemu(uri) => libvirt(uri),
            Backend::Paper => libvirt(PAPER),
            Backend::Contract | Backend::Real => {
                machines::Backend::CloudHypervisor(configuration(self.path()))
            }
        };
        Half::start(self.path(), backend, history).await
    }

    /// The scenario's VM of this number.
    pub(crate) fn vm(&self, number: u8) -> VmId {
        let mut id = [number; 16];
        id[..2].copy_from_slice(&self.mark);
        VmId(id)
    }

    /// A version of a VM.
    pub(crate) fn version(&self, vm: VmId, wanted: Wanted, generation: u64) -> AttestedVm {
        let mut version = attested(vm, wanted, generation);
        version.vm.image = self.image.clone();
        version.vm.size.memory_mib = 32;
        version
    }

    fn domain(&self, vm: VmId) -> Option<Domain> {
        let uri = match &self.backend {
            Backend::Qemu(uri) => uri,
            Backend::Paper | Backend::Contract | Backend::Real => PAPER,
        };
        let connection = Connect::open(Some(uri)).unwrap();
        connection.lookup_domain_by_name(&HostNames::of(HERE).domain(vm)).ok()
    }

    /// The machine's process, if it has one.
    fn process(&self, vm: VmId) -> Option<i32> {
        let directory = self.path().to_string_lossy().into_owned();
        let mut found = processes_with(&[&directory, &vm.to_string()]);
        // A disk is made by a process that names it too.
        found.retain(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            !name.starts_with("qemu-img")
        });
        assert!(found.len() <= 1, "two machines of one VM: {found:?}");
        found.first().copied()
    }

    /// The machine's process and when it began, without asking its hypervisor.
    pub(crate) fn process_start(&self, vm: VmId) -> Option<String> {
        began(self.process(vm)?)
    }

    /// What one start of a machine has and no other: nothing while it is off.
    pub(crate) fn start_of(&self, vm: VmId) -> Option<String> {
        match &self.backend {
            Backend::Paper => Some(format!("domain {}", self.domain(vm)?.id()?)),
            Backend::Qemu(_) => {
                let (domain, process) = (self.domain(vm)?.id()?, self.process(vm)?);
                Some(format!("domain {domain}, {}", began(process)?))
            }
            Backend::Contract | Backend::Real => self.process_start(vm),
        }
    }

    /// The machine ends at once, and nobody says so.
    pub(crate) fn kill(&self, vm: VmId) {
        match &self.backend {
            Backend::Paper => self.domain(vm).unwrap().destroy().unwrap(),
            Backend::Qemu(_) | Backend::Contract | Backend::Real => {
                kill(Pid::from_raw(self.process(vm).unwrap()), Signal::SIGKILL).unwrap();
            }
        }
    }

    /// Whether the machine that runs has this file.
    pub(crate) fn has_open(&self, vm: VmId, file: &Path) -> bool {
        if self.backend == Backend::Paper {
            let xml = self.domain(vm).unwrap().xml_desc(0).unwrap();
            return xml.contains(&*file.to_string_lossy());
        }
        let Some(process) = self.process(vm) else { return false };
        let open = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten();
        let mut targets = open.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
        targets.any(|target| target == file)
    }

    /// Files in the host's quarantine.
    pub(crate) fn quarantined(&self) -> usize {
        std::fs::read_dir(self.path().join("storage/disks/quarantine")).unwrap().count()
    }

    /// What the agent has written down about a VM.
    pub(crate) fn journal(&self, vm: VmId) -> PathBuf {
        self.path().join(format!("state/journal/{vm}.json"))
    }
}

/// When a process began: another of its number began at another time.
fn began(process: i32) -> Option<String> {
    let line = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
    // One that has ended and that nobody has asked about is a machine no more.
    (fields[0] != "Z").then(|| format!("process {process} since {}", fields[19]))
}

impl Drop for Setting {
    fn drop(&mut self) {
        let directory = self.path().to_string_lossy().into_owned();
        for process in processes_with(&[&directory]) {
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
    }
}
