//! One host with the backend under test, and ways to reach behind it.
//!
//! Owns directories, disks and processes of one test; what is left of them ends with it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use dagger_agent::controller::proof::{DeleteProof, StopProof};
use dagger_agent::hypervisor::announcer::Announcer;
use dagger_agent::hypervisor::cloud_hypervisor::CloudHypervisor;
use dagger_agent::hypervisor::{Change, Hypervisor, Machine, MachineSpecification, Power};
use dagger_payload::id::VmId;
use dagger_payload::kind::ImageFormat;
use dagger_payload::object::Wanted;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::program_under_test::{configuration, contract_program, firmware, real_program};
use super::versions::{HERE, attested, tags};

pub(crate) const VM: VmId = VmId([7; 16]);
/// Longer than anything here takes on a busy machine.
const WAIT: Duration = Duration::from_secs(60);
/// What the guest says when it starts.
pub(crate) const GREETING: &str = "TINY-GUEST UP";

/// The program under test: the real one where it is named, else the one that behaves like it.
pub(crate) fn program() -> PathBuf {
    real_program().unwrap_or_else(contract_program)
}

fn delete_proof(vm: VmId) -> DeleteProof {
    DeleteProof::of(&attested(vm, Wanted::Deleted, 9), HERE).unwrap()
}

pub(crate) fn stop_proof(vm: VmId) -> StopProof {
    delete_proof(vm).stop().clone()
}

/// Waits until this holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + WAIT;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("the tool runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) struct Host {
    directory: TempDir,
    pub(crate) hypervisor: CloudHypervisor,
    changes: mpsc::Receiver<Change>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        firmware(directory.path());
        let (hypervisor, changes) = agent(directory.path());
        hypervisor.connect().unwrap();
        Self { directory, hypervisor, changes }
    }

    /// The agent goes, without a word to anybody, and another comes.
    pub(crate) fn restart_agent(&mut self) {
        (self.hypervisor, self.changes) = agent(self.directory.path());
        self.hypervisor.connect().unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file of the machine's own directory.
    pub(crate) fn place(&self, vm: VmId, name: &str) -> PathBuf {
        self.directory.path().join("vm").join(vm.to_string()).join(name)
    }

    /// A file of the agent's own beside it.
    pub(crate) fn beside(&self, vm: VmId, ending: &str) -> PathBuf {
        self.directory.path().join("vm").join(format!("{vm}.{ending}"))
    }

    pub(crate) fn specification(&self, vm: VmId) -> MachineSpecification {
        let path = |name: &str| self.path(&format!("{vm}.{name}"));
        let specification = MachineSpecification {
            tags: tags(vm, 1),
            title: "web-1".to_owned(),
            cpus: 1,
            memory_mib: 64,
            disk: path("qcow2"),
            image: self.path("image.raw"),
            image_format: ImageFormat::Raw,
            seed: path("seed"),
            volumes: Vec::new(),
            console: path("log"),
            cards: 0,
            boot: None,
        };
        if !specification.disk.exists() {
            std::fs::write(&specification.image, vec![0x5a; 1 << 20]).unwrap();
            std::fs::write(&specification.seed, vec![0; 1 << 20]).unwrap();
            run(Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
                .arg(&specification.image)
                .arg(&specification.disk)
                .arg("4M"));
        }
        specification
    }

    /// A machine that runs, and its process.
    pub(crate) fn running(&self, vm: VmId) -> i32 {
        self.hypervisor.define(&self.specification(vm)).unwrap();
        self.hypervisor.start(vm).unwrap();
        self.pid(vm)
    }

    pub(crate) fn power(&self, vm: VmId) -> Option<Power> {
        self.hypervisor.look(vm).unwrap().map(|machine| match machine {
            Machine::Ours { power, .. } => power,
            Machine::Foreign(why) => panic!("foreign: {why}"),
        })
    }

    pub(crate) fn console(&self, vm: VmId) -> String {
        std::fs::read_to_string(self.path(&format!("{vm}.log"))).unwrap_or_default()
    }

    /// The process that answers.
    pub(crate) fn pid(&self, vm: VmId) -> i32 {
        let (status, body) = call(&self.place(vm, "api.sock"), "GET", "vmm.ping", "");
        assert_eq!(status, 200, "{body}");
        let ping: serde_json::Value = serde_json::from_str(&body).unwrap();
        i32::try_from(ping["pid"].as_i64().unwrap()).unwrap()
    }

    pub(crate) fn signal(&self, vm: VmId, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid(vm)), signal).unwrap();
    }

    /// Types a letter at the console until it has this effect: a guest that boots misses some.
    pub(crate) fn type_until(&self, vm: VmId, letter: u8, mut effect: impl FnMut() -> bool) {
        until("the guest obeys", || {
            let console = self.hypervisor.open_console(vm);
            if let Ok(mut console) = console {
                let _ = console.write(&[letter]);
            }
            effect()
        });
    }

    /// Waits until something about the machine is announced.
    pub(crate) fn announced(&mut self, vm: VmId) {
        until("the change is announced", || {
            self.changes.try_recv().is_ok_and(|change| change == Change::Machine(vm))
        });
    }

    /// Forgets what was announced.
    pub(crate) fn forget_changes(&mut self) {
        while self.changes.try_recv().is_ok() {}
    }

    pub(crate) fn delete(&self, vm: VmId) {
        let proof = delete_proof(vm);
        self.hypervisor.destroy(proof.stop()).unwrap();
        self.hypervisor.undefine(&proof).unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let Ok(inventory) = self.hypervisor.list() else { return };
        for vm in inventory.into_keys() {
            let _ = self.hypervisor.destroy(&stop_proof(vm));
        }
    }
}

fn agent(directory: &Path) -> (CloudHypervisor, mpsc::Receiver<Change>) {
    let (announced, changes) = mpsc::channel(1024);
    let configuration = configuration(program(), directory);
    (
        CloudHypervisor::new(
            configuration,
            (directory.to_owned(), directory.to_owned()),
            Announcer::new(HERE, announced),
        ),
        changes,
    )
}

/// One call to a process, behind the agent's back.
pub(crate) fn call(socket: &Path, method: &str, name: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let length = match body.len() {
        0 => String::new(),
        length => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
    };
    let head = format!("{method} /api/v1/{name} HTTP/1.1\r\nHost: x\r\n{length}\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    answer(&mut stream)
}

/// Reads one answer.
pub(crate) fn answer(stream: &mut UnixStream) -> (u16, String) {
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            break;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let mut body = vec![0; if status == 204 { 0 } else { length.unwrap_or(0) }];
    stream.read_exact(&mut body).unwrap();
    (status, String::from_utf8(body).unwrap())
}
