//! A development cluster of real processes, as a user starts it, for tests that break it.
//!
//! Owns one directory and everything in it; whatever happens, the cluster is stopped and deleted at
//! the end. Talks to it only by `daggerctl`, `curl` and `virsh`. Called by the whole-system tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::built::programs;

/// How long anything that is bound to happen may take on a busy machine.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// Pause between two looks at something that has no event to wait for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What runs the cluster's machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machines {
    /// libvirt's test driver: machines on paper.
    Paper,
    /// QEMU through a private libvirtd.
    Qemu,
}

/// A running cluster.
pub struct Cluster {
    directory: tempfile::TempDir,
    programs: PathBuf,
    hosts: usize,
    /// What its programs find in their environment.
    environment: Vec<(String, String)>,
}

/// A role of a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// dagger-agent
    Agent,
    /// dagger-ledger
    Ledger,
    /// dagger-processor
    Processor,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Ledger => "ledger",
            Self::Processor => "processor",
        }
    }
}

impl Cluster {
    /// Starts `hosts` hosts.
    pub fn start(hosts: usize, machines: Machines) -> Self {
        // What hosts offer is not left to how full this machine's disk is: disks are sparse.
        let hypervisor: &[&str] = match machines {
            Machines::Paper => &["test"],
            Machines::Qemu => &["qemu", "--host-disk", "16GiB"],
        };
        Self::start_with(hosts, hypervisor, &[])
    }

    /// Starts a cluster whose hypervisor is the first of these words, and its further options the
    /// others, in this environment.
    pub fn start_with(hosts: usize, hypervisor: &[&str], environment: &[(&str, String)]) -> Self {
        let directory = tempfile::Builder::new().prefix("dg").tempdir().expect("a directory");
        let programs = programs().expect("built before");
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let cluster = Self { directory, programs, hosts, environment: environment.collect() };
        let hosts = hosts.to_string();
        let arguments = ["cluster", "dev", "--detach", "--hosts", &hosts, "--hypervisor"];
        cluster.must(&[&arguments, hypervisor].concat());
        cluster
    }

    /// The cluster's directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Runs `daggerctl`; the first host's API is asked first.
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        self.ctl_from(1, arguments)
    }

    /// Runs `daggerctl` with the hosts' APIs in circular order from `first` (1 to n).
    pub fn ctl_from(&self, first: usize, arguments: &[&str]) -> Output {
        self.command_from(first, arguments).output().expect("daggerctl starts")
    }

    /// `daggerctl`, not started yet, with the hosts' APIs in circular order from `first` (1 to n).
    pub fn command_from(&self, first: usize, arguments: &[&str]) -> Command {
        let order = (0..self.hosts).map(|step| (first - 1 + step) % self.hosts + 1);
        let apis: Vec<String> = order.map(|host| format!("unix:{}", self.api(host))).collect();
        let keys: Vec<String> =
            (1..=self.hosts).map(|host| self.file(&format!("keys/op{host}"))).collect();
        let mut command = Command::new(self.programs.join("daggerctl"));
        command
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("DAGGER_DIRECTORY", self.path())
            .env("DAGGER_API", apis.join(","))
            .env("DAGGER_KEY", self.file("keys/developer"))
            .env("DAGGER_OPERATOR_KEYS", keys.join(","));
        command
    }

    /// Runs `daggerctl`, which must succeed; returns what it printed.
    pub fn must(&self, arguments: &[&str]) -> String {
        succeed(&self.ctl(arguments), arguments)
    }

    /// Runs `daggerctl --json`, which must succeed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        self.json_from(1, arguments)
    }

    /// Runs `daggerctl --json` against host `first` first.
    pub fn json_from(&self, first: usize, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--json"]].concat();
        let text = succeed(&self.ctl_from(first, &arguments), &arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }

    /// Runs `daggerctl`, which must fail; returns its exit code and what it said.
    pub fn refused(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.ctl(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments:?} succeeded");
        (output.status.code(), said)
    }

    /// A line of the file that a user sources.
    fn exported(&self, variable: &str) -> Option<String> {
        let environment = std::fs::read_to_string(self.path().join("environment")).ok()?;
        let begin = format!("export {variable}=");
        environment.lines().find_map(|line| line.strip_prefix(&begin)).map(str::to_owned)
    }

    /// The first host's API over TCP.
    pub fn http(&self) -> String {
        self.exported("DAGGER_HTTP").expect("the first host has one")
    }

    /// Path of a host's API socket.
    pub fn api(&self, host: usize) -> String {
        let line = self.exported("DAGGER_API");
        let listed = line.as_ref().and_then(|line| line.split(',').nth(host - 1));
        listed.and_then(|entry| entry.strip_prefix("unix:")).unwrap_or("/nowhere").to_owned()
    }

    /// A file below the cluster's directory.
    pub fn file(&self, name: &str) -> String {
        self.path().join(name).to_str().expect("plain names").to_owned()
    }

    /// All operators grant the developer this many VMs of each kind of resource in plenty.
    pub fn grant(&self, vms: u32) {
        let (key, vms) = (self.file("keys/developer.pub"), vms.to_string());
        let operators: Vec<String> =
            (1..=self.hosts).map(|host| self.file(&format!("keys/op{host}"))).collect();
        self.must(&[
            "account",
            "grant",
            &key,
            "--operator-key",
            &operators.join(","),
            "--cpus",
            "16",
            "--memory",
            "8GiB",
            "--disk",
            "40GiB",
            "--vms",
            &vms,
        ]);
    }

    /// Registers an image file as `op1/small`.
    pub fn register(&self, image: &Path) {
        self.register_as(image, "op1/small");
    }

    /// Registers an image file under a name of the first operator.
    pub fn register_as(&self, image: &Path, name: &str) {
        let image = image.to_str().expect("plain names");
        let key = self.file("keys/op1");
        self.must(&["image", "register", image, "--name", name, "--key", &key]);
    }

    /// Registers an empty disk: enough for machines on paper.
    pub fn register_paper_image(&self) {
        let image = self.path().join("paper.qcow2");
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&image)
            .arg("1M")
            .status();
        assert!(made.expect("qemu-img is there").success());
        self.register(&image);
    }

    /// Orders a VM with 1 CPU, 256 MiB and 1 GiB, and waits for `wait`.
    pub fn create(&self, first: usize, name: &str, wait: &str, more: &[&str]) -> Output {
        self.ask_to_create(first, name, &[&["--wait", wait][..], more].concat())
    }

    /// What would come of the same order.
    pub fn would_create(&self, first: usize, name: &str, more: &[&str]) -> Output {
        self.ask_to_create(first, name, &[&["--dry-run"][..], more].concat())
    }

    fn ask_to_create(&self, first: usize, name: &str, more: &[&str]) -> Output {
        let key = self.file("keys/developer.pub");
        let arguments = [
            &["vm", "create", name, "--image", "op1/small", "--cpus", "1"][..],
            &["--memory", "256MiB", "--disk", "1GiB", "--ssh-key", &key],
            more,
        ]
        .concat();
        self.ctl_from(first, &arguments)
    }

    /// Kills a daemon with SIGKILL and waits until it is gone.
    pub fn kill(&self, role: Role, host: usize) {
        let pid = self.pid(role, host);
        kill(pid, Signal::SIGKILL).expect("it runs");
        self.until("the killed daemon is gone", || {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
            state.is_none_or(|stat| stat.contains(") Z ")).then_some(())
        });
    }

    /// Starts a daemon that was killed.
    pub fn restart(&self, role: Role, host: usize) {
        self.must(&["cluster", "start-daemon", role.name(), &format!("host{host}")]);
    }

    /// Waits until every host reaches every other.
    pub fn until_linked(&self) {
        for host in 1..=self.hosts {
            self.until("every host reaches every other", || {
                let output = self.ctl_from(host, &["ledger", "status", "--json"]);
                let status: Value = serde_json::from_slice(&output.stdout).ok()?;
                (status["reached"] == self.hosts && status["unavailable"].is_null()).then_some(())
            });
        }
    }

    /// Process id of a daemon.
    pub fn pid(&self, role: Role, host: usize) -> Pid {
        let file = self.path().join("pids").join(format!("{}-host{host}", role.name()));
        let text = std::fs::read_to_string(file).expect("a pid file");
        Pid::from_raw(text.trim().parse().expect("a pid"))
    }

    /// The VM called `name` as host `host` shows it.
    pub fn vm(&self, host: usize, name: &str) -> Value {
        self.json_from(host, &["vm", "show", name])
    }

    /// Waits until the VM called `name` is in `state`, as host `host` shows it.
    pub fn until_state(&self, host: usize, name: &str, state: &str) -> Value {
        self.until(&format!("{name} is {state}"), || {
            let output = self.ctl_from(host, &["vm", "show", name, "--json"]);
            let vm: Value = serde_json::from_slice(&output.stdout).ok()?;
            (vm["state"] == state).then_some(vm)
        })
    }

    /// Looks until there is something to see.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            if let Some(seen) = look() {
                return seen;
            }
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Runs `virsh` with the cluster's own libvirt.
    pub fn virsh(&self, arguments: &[&str]) -> Output {
        let socket = self.path().join("run/libvirt/libvirt-sock");
        let uri = format!("qemu:///system?socket={}", socket.display());
        let output = Command::new("virsh").args(["-c", &uri]).args(arguments).output();
        output.expect("virsh is there")
    }

    /// Names and states of the cluster's domains, as `virsh list` shows them.
    pub fn domains(&self) -> Vec<(String, String)> {
        let text = succeed(&self.virsh(&["list", "--all"]), &["virsh", "list"]);
        text.lines()
            .skip(2)
            .filter_map(|line| {
                let mut words = line.split_whitespace().skip(1);
                let name = words.next()?.to_owned();
                Some((name, words.collect::<Vec<_>>().join(" ")))
            })
            .collect()
    }
}

fn succeed(output: &Output, what: &[&str]) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{what:?}: {:?}\n{text}\n{said}", output.status.code());
    text
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What the daemons said is the first thing that whoever reads the failure needs.
            for entry in std::fs::read_dir(self.path().join("logs")).into_iter().flatten().flatten()
            {
                let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("== {}", entry.path().display());
                lines.iter().skip(lines.len().saturating_sub(15)).for_each(|l| eprintln!("{l}"));
            }
        }
        let stopped = self.ctl(&["cluster", "stop"]);
        if !stopped.status.success() {
            eprintln!("the cluster did not stop: {}", String::from_utf8_lossy(&stopped.stderr));
        }
    }
}
