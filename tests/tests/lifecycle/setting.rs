//! One host with one backend, and what is seen and done there behind the agent's back.
//!
//! Owns the host's directory and, at the end, processes that a failed scenario left.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
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
use super::program_under_test::{configuration, contract_program, firmware};
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
    /// Cloud Hypervisor: this program.
    Real(PathBuf),
}

impl Backend {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Qemu(_) => "libvirt/QEMU",
            Self::Paper => "test:///",
            Self::Contract => "contract",
            Self::Real(_) => "cloud-hypervisor",
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
        if let Backend::Contract | Backend::Real(_) = backend {
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
        let cloud_hypervisor = |program: PathBuf| {
            machines::Backend::CloudHypervisor(configuration(program, self.path()))
        };
        let backend = match &self.backend {
            Backend::Qemu(uri) => libvirt(uri),
            Backend::Paper => libvirt(PAPER),
            Backend::Contract => cloud_hypervisor(contract_program()),
            Backend::Real(program) => cloud_hypervisor(program.clone()),
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
            Backend::Paper | Backend::Contract | Backend::Real(_) => PAPER,
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
            Backend::Contract | Backend::Real(_) => self.process_start(vm),
        }
    }

    /// Whether the guest switches itself off when its button is pressed. (On paper there is none,
    /// and libvirt does as it would.)
    pub(crate) fn guest_obeys(&self) -> bool {
        matches!(self.backend, Backend::Qemu(_) | Backend::Paper)
    }

    /// Whether there are machines in libvirt's memory only.
    pub(crate) fn is_on_paper(&self) -> bool {
        self.backend == Backend::Paper
    }

    /// Whether the guest says again what is typed.
    pub(crate) fn guest_echoes(&self) -> bool {
        matches!(self.backend, Backend::Contract | Backend::Real(_))
    }

    /// What the guest has said.
    pub(crate) fn said(&self, vm: VmId) -> String {
        let path = self.path().join(format!("storage/consoles/{vm}.log"));
        let said = std::fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&said).into_owned()
    }

    /// What the machine that runs has, by its hypervisor's own word.
    pub(crate) fn cpus_and_memory_mib(&self, vm: VmId) -> (u64, u64) {
        if let Backend::Paper | Backend::Qemu(_) = self.backend {
            let info = self.domain(vm).unwrap().info().unwrap();
            return (u64::from(info.nr_virt_cpu), info.max_mem >> 10);
        }
        let seen = vm_info(&self.path().join(format!("vm/{vm}/api.sock")));
        let number = |value: &serde_json::Value| value.as_u64().unwrap();
        let config = &seen["config"];
        (number(&config["cpus"]["boot_vcpus"]), number(&config["memory"]["size"]) >> 20)
    }

    /// How many files of this kind lie beside the disks.
    pub(crate) fn files_of_disks(&self, extension: &str) -> usize {
        let files = std::fs::read_dir(self.path().join("storage/disks")).unwrap();
        let is_one = |path: PathBuf| path.extension().is_some_and(|it| it == extension);
        files.filter(|entry| is_one(entry.as_ref().unwrap().path())).count()
    }

    /// The machine ends at once, and nobody says so.
    pub(crate) fn kill(&self, vm: VmId) {
        match &self.backend {
            Backend::Paper => self.domain(vm).unwrap().destroy().unwrap(),
            Backend::Qemu(_) | Backend::Contract | Backend::Real(_) => {
                kill(Pid::from_raw(self.process(vm).unwrap()), Signal::SIGKILL).unwrap();
            }
        }
    }

    /// Somebody takes the machine away, with its definition.
    pub(crate) fn lose(&self, vm: VmId) {
        match &self.backend {
            Backend::Paper | Backend::Qemu(_) => {
                let domain = self.domain(vm).unwrap();
                // It lives on without one, and with its end it is gone.
                domain.undefine().unwrap();
                domain.destroy().unwrap();
            }
            Backend::Contract | Backend::Real(_) => {
                let definition = self.path().join(format!("vm/{vm}.json"));
                std::fs::remove_file(definition).unwrap();
                self.kill(vm);
            }
        }
    }

    /// The VM's disk.
    pub(crate) fn disk(&self, vm: VmId) -> PathBuf {
        self.path().join(format!("storage/disks/{HERE}-{vm}.qcow2"))
    }

    /// Whether the machine that runs has this file.
    pub(crate) fn has_open(&self, vm: VmId, file: &Path) -> bool {
        if self.backend == Backend::Paper {
            let xml = self.domain(vm).unwrap().xml_desc(0).unwrap();
            return xml.contains(&*file.to_string_lossy());
        }
        let Some(process) = self.process(vm) else { return false };
        let open = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten();
        // By whichever of its names.
        let inode =
            |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        let wanted = inode(file);
        wanted.is_some() && open.flatten().any(|entry| inode(&entry.path()) == wanted)
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

/// What Cloud Hypervisor says of its machine. It ends its answer and not the connection.
fn vm_info(socket: &Path) -> serde_json::Value {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"GET /api/v1/vm.info HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = BufReader::new(stream);
    let mut line = String::new();
    while line.trim_end() != "" || line.is_empty() {
        line.clear();
        answer.read_line(&mut line).unwrap();
    }
    let mut values = serde_json::Deserializer::from_reader(answer).into_iter();
    values.next().unwrap().unwrap()
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
