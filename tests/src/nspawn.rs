//! A Debian machine with systemd as PID 1, in a container (systemd-nspawn(1)).
//!
//! Owns the copy of the tree, booting it with one script to run, and its end within a deadline. Has
//! no network but its own loopback. Needs root, itself or by sudo. Called by the tests of the
//! units.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{major, minor};
use nix::unistd::{Pid, Uid};

use crate::tidy;

/// How long a machine that was told to stop may take.
const STOP_WAIT_MAX: Duration = Duration::from_secs(15);
/// Where, inside the machine, the script and what it leaves stand.
const FOLDER: &str = "dagger-test";

const UNIT: &str = "\
[Unit]
Description=the script of a test
After=multi-user.target
SuccessAction=poweroff
FailureAction=poweroff

[Service]
Type=exec
Environment=HOME=/root
ExecStart=/bin/bash /dagger-test/run

[Install]
WantedBy=multi-user.target
";

const RUN: &str = "\
cd /dagger-test
bash -euo pipefail script >output 2>&1
echo $? >status
journalctl --no-pager --output=short-monotonic >journal 2>&1
";

/// A machine; its disk goes with it.
#[derive(Debug)]
pub struct Machine {
    root: PathBuf,
    /// Devices of this host, by the names that they have inside.
    devices: Vec<PathBuf>,
}

/// What is in a machine besides systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tree {
    /// What every host has.
    Plain,
    /// libvirt's daemon and QEMU, too.
    Libvirt,
}

/// What a script left.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit status.
    pub status: i32,
    /// What it wrote, both streams.
    pub output: String,
    /// What the machine's journal holds.
    pub journal: String,
}

/// `program` with the rights of root.
fn privileged(program: &str) -> Command {
    if Uid::effective().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["--non-interactive", program]);
    command
}

fn succeed(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed with {}: {said}", output.status);
    String::from_utf8(output.stdout).context("it answers in UTF-8")
}

/// Where large files are kept between runs: `$DAGGER_CACHE`, else `.cache` in the workspace.
fn cache() -> PathBuf {
    std::env::var_os("DAGGER_CACHE").map_or_else(|| tidy::root().join(".cache"), PathBuf::from)
}

impl Machine {
    /// A fresh Debian machine of this kind with `programs` installed as `make install` does it.
    ///
    /// # Errors
    /// No root, no debootstrap, no mirror of Debian, or no space.
    pub fn installed(tree: Tree, programs: &Path) -> anyhow::Result<Self> {
        let (workspace, cache) = (tidy::root(), cache());
        let mut make = Command::new(workspace.join("scripts/debian-tree.sh"));
        let answer = succeed(make.arg(&cache).arg(match tree {
            Tree::Plain => "plain",
            Tree::Libvirt => "libvirt",
        }))?;
        let tree = answer.lines().last().context("debian-tree.sh prints the tree's path")?;
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("machine-{}-{number}", std::process::id());
        let machine = Self { root: cache.join(name), devices: Vec::new() };
        machine.remove()?;
        succeed(privileged("cp").args(["-a", "--reflink=auto", tree]).arg(&machine.root))?;
        let install = workspace.join("scripts/install.sh");
        let install = install.to_str().context("the workspace's path is UTF-8")?;
        succeed(privileged(install).arg(programs).arg(&machine.root).args(["/usr", "/etc"]))?;
        Ok(machine)
    }

    /// Boots, runs `script` with bash once the machine is up, and powers off.
    ///
    /// # Errors
    /// The machine does not boot or end within `wait_max`; the message holds what the script wrote.
    pub fn run(&self, script: &str, wait_max: Duration) -> anyhow::Result<Outcome> {
        for name in ["output", "status", "journal"] {
            succeed(privileged("rm").arg("-f").arg(self.left(name)))?;
        }
        self.write(&format!("{FOLDER}/script"), script)?;
        self.write(&format!("{FOLDER}/run"), RUN)?;
        self.write("etc/systemd/system/dagger-test.service", UNIT)?;
        let root = format!("--root={}", self.root.display());
        succeed(privileged("systemctl").args([&root, "enable", "--quiet", "dagger-test.service"]))?;
        let console = self.boot(wait_max)?;
        let read = |name| std::fs::read_to_string(self.left(name)).unwrap_or_default();
        let (status, output, journal) = (read("status"), read("output"), read("journal"));
        let Ok(status) = status.trim().parse() else {
            bail!("the script did not end\n{output}\nconsole:\n{console}");
        };
        Ok(Outcome { status, output, journal })
    }

    fn left(&self, name: &str) -> PathBuf {
        self.root.join(FOLDER).join(name)
    }

    /// Installs a program at this path below the machine's root.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn add(&self, program: &Path, path: &str) -> anyhow::Result<()> {
        let to = self.root.join(path);
        succeed(privileged("install").args(["-D", "-m", "755"]).arg(program).arg(to)).map(drop)
    }

    /// Lends it a character device of this host, under the same name and open to all its users:
    /// no udev is inside that would give it to a group.
    ///
    /// # Errors
    /// There is no such device, or no other node of it can be made.
    pub fn lend(&mut self, device: &Path) -> anyhow::Result<()> {
        let number = std::fs::metadata(device).context("there is no such device")?.rdev();
        let numbers = [major(number), minor(number)].map(|number| number.to_string());
        let node = self.node(device);
        succeed(privileged("mkdir").args(["-p"]).arg(node.parent().context("a folder")?))?;
        let mut make = privileged("mknod");
        succeed(make.args(["-m", "666"]).arg(&node).arg("c").args(&numbers))?;
        self.devices.push(device.to_owned());
        Ok(())
    }

    /// Where the node of a lent device stands.
    fn node(&self, device: &Path) -> PathBuf {
        self.root.join(FOLDER).join(device.strip_prefix("/").unwrap_or(device))
    }

    /// Writes a file below the machine's root, readable by all.
    fn write(&self, path: &str, text: &str) -> anyhow::Result<()> {
        let mut file = tempfile::NamedTempFile::new().context("cannot make a file")?;
        file.write_all(text.as_bytes()).context("cannot write a file")?;
        succeed(
            privileged("install")
                .args(["-D", "-m", "644"])
                .arg(file.path())
                .arg(self.root.join(path)),
        )?;
        Ok(())
    }

    fn boot(&self, wait_max: Duration) -> anyhow::Result<String> {
        let mut command = privileged("env");
        if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            // This host has control groups of the first version; the machine must use them too.
            command.arg("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=0");
        }
        command
            .args(["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"])
            .args(["--private-network", "--link-journal=no", "--console=pipe"])
            .args(self.devices.iter().map(|device| {
                format!("--bind={}:{}", self.node(device).display(), device.display())
            }))
            .arg("--directory")
            .arg(&self.root)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().context("cannot run systemd-nspawn")?;
        let pid = Pid::from_raw(child.id().try_into().context("a pid fits")?);
        let (ended, wait) = mpsc::channel();
        std::thread::spawn(move || ended.send(child.wait_with_output()));
        let output = match wait.recv_timeout(wait_max) {
            Ok(output) => output.context("cannot wait for systemd-nspawn")?,
            Err(_) => {
                // It powers the machine off in order at the first signal.
                for signal in [Signal::SIGTERM, Signal::SIGKILL] {
                    kill(pid, signal).context("cannot end systemd-nspawn")?;
                    if wait.recv_timeout(STOP_WAIT_MAX).is_ok() {
                        break;
                    }
                }
                let output = std::fs::read_to_string(self.left("output")).unwrap_or_default();
                bail!("the machine did not end within {} s\n{output}", wait_max.as_secs());
            }
        };
        let console = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(ExitStatus::success(&output.status), "systemd-nspawn failed: {said}\n{console}");
        Ok(console)
    }

    fn remove(&self) -> anyhow::Result<()> {
        succeed(privileged("rm").args(["-rf", "--one-file-system"]).arg(&self.root))?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Otherwise it is left in the cache, where `debian-tree.sh` finds it.
        let _ = self.remove();
    }
}

impl Outcome {
    /// The output of a script that ended well.
    ///
    /// # Panics
    /// It did not; the message holds output and journal.
    #[track_caller]
    pub fn succeeded(&self) -> &str {
        let Self { status, output, journal } = self;
        let ours = journal.lines().filter(|line| line.contains("dagger"));
        let ours = ours.collect::<Vec<_>>().join("\n");
        assert!(*status == 0, "the script ended with {status}:\n{output}\njournal:\n{ours}");
        output
    }
}
