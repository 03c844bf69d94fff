//! The guest image of `recipes/small`, booted by QEMU with an emulated processor from files that
//! this package made.
//!
//! Slow: half a minute with everything. QEMU, `ssh` and the recipe's tools must be there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use dagger_images::{Addressing, DiskStore, ImageStore, Network, Seed, SeedCard};
use dagger_payload::id::{HostId, VmId};
use dagger_payload::kind::ImageFormat;
use serde_json::{Value, json};
use tempfile::TempDir;

const GIB: u64 = 1 << 30;
const MAC: &str = "52:54:00:12:34:56";
const FIXED_ADDRESS: &str = "10.0.2.77";
/// What QEMU's own DHCP server hands out first.
const LEASED_ADDRESS: &str = "10.0.2.15";
const VM: VmId = VmId([0x77; 16]);
/// A boot takes 5 s; machines that test are busy.
const BOOT_MAX: Duration = Duration::from_secs(120);
const STOP_MAX: Duration = Duration::from_secs(60);

fn image_file() -> PathBuf {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/small/build.sh");
    let output = Command::new(recipe).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "the recipe failed");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// One VM's files, and the key that may log in.
struct Files {
    directory: TempDir,
    disks: DiskStore,
}

impl Files {
    fn new(network: Network, user_data: Option<&str>) -> Self {
        let directory = TempDir::new().unwrap();
        let key = directory.path().join("key");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "a \"test\" key", "-f"])
            .arg(&key)
            .status();
        assert!(made.unwrap().success());
        let public_key = fs::read_to_string(key.with_extension("pub")).unwrap();

        let images = ImageStore::open(&directory.path().join("images")).unwrap();
        let image = images.import(&image_file(), ImageFormat::Qcow2, None).unwrap();
        let disks = DiskStore::open(&directory.path().join("disks"), HostId([1; 16])).unwrap();
        disks.ensure_disk(VM, &image, 3 * GIB).unwrap();
        let seed = Seed {
            instance_id: VM.to_string(),
            hostname: "web-1".parse().unwrap(),
            ssh_keys: vec![public_key.trim().parse().unwrap()],
            network,
            user_data: user_data.map(str::to_owned),
        };
        disks.ensure_seed(VM, &seed).unwrap();
        Self { directory, disks }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// A running guest; it does not outlive this.
struct Guest {
    process: Child,
    console: Receiver<String>,
    /// What it reported, without the beginning of each line.
    report: Vec<String>,
    monitor: BufReader<UnixStream>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Guest {
    fn boot(files: &Files, address: &str) -> Self {
        let monitor = files.path("monitor");
        let _ = fs::remove_file(&monitor);
        let disk = files.disks.disk_path(VM);
        let seed = files.disks.seed_path(VM);
        let mut process = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", "256", "-smp", "2", "-display", "none", "-no-reboot"])
            .args(["-nodefaults", "-serial", "stdio", "-device", "virtio-rng-pci"])
            // The seed comes first on the bus: the guest must find both by their labels.
            .arg("-drive")
            .arg(format!("file={},format=raw,if=none,id=seed,readonly=on", seed.display()))
            .arg("-drive")
            .arg(format!("file={},format=qcow2,if=none,id=disk", disk.display()))
            .args(["-device", "virtio-blk-pci,drive=seed"])
            .args(["-device", "virtio-blk-pci,drive=disk,bootindex=0"])
            .arg("-netdev")
            .arg(format!("user,id=net,hostfwd=tcp:127.0.0.1:0-{address}:22"))
            .args(["-device", &format!("virtio-net-pci,netdev=net,mac={MAC}")])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let console = lines_of(process.stdout.take().unwrap());
        let report = read_report(&console);
        let monitor = BufReader::new(UnixStream::connect(monitor).unwrap());
        let mut guest = Self { process, console, report, monitor };
        guest.monitor.get_ref().set_read_timeout(Some(STOP_MAX)).unwrap();
        guest.command("qmp_capabilities", &json!({}));
        guest
    }

    /// The value that the guest reported under `name`.
    fn reported(&self, name: &str) -> &str {
        let beginning = format!("{name}=");
        let found = self.report.iter().find_map(|line| line.strip_prefix(&beginning));
        found.unwrap_or_else(|| panic!("no {name} in {:?}", self.report))
    }

    fn command(&mut self, name: &str, arguments: &Value) -> Value {
        let request = json!({ "execute": name, "arguments": arguments });
        writeln!(self.monitor.get_mut(), "{request}").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.monitor.read_line(&mut line).unwrap(), 0, "the monitor was closed");
            let answer: Value = serde_json::from_str(&line).unwrap();
            assert!(answer.get("error").is_none(), "{answer}");
            if let Some(answer) = answer.get("return") {
                return answer.clone();
            }
        }
    }

    /// The port of this machine that leads to the guest's SSH server.
    fn ssh_port(&mut self) -> u16 {
        let line = json!({ "command-line": "info usernet" });
        let answer = self.command("human-monitor-command", &line);
        let text = answer.as_str().unwrap();
        let forward = text.lines().find(|line| line.contains("HOST_FORWARD")).unwrap();
        forward.split_whitespace().nth(3).unwrap().parse().unwrap()
    }

    /// Runs a command in the guest over SSH, trusting only the host key that it showed on its
    /// console.
    fn run(&mut self, files: &Files, user: &str, command: &str) -> String {
        let port = self.ssh_port();
        let host_key = self.reported("ssh").strip_prefix("ready host_key=").unwrap();
        let known = files.path("known-hosts");
        fs::write(&known, format!("[127.0.0.1]:{port} {host_key}\n")).unwrap();
        let output = Command::new("ssh")
            .args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"])
            .args(["-o", "ConnectTimeout=30", "-o", "ServerAliveInterval=15"])
            .args([
                "-o",
                "IdentitiesOnly=yes",
                "-o",
                &format!("UserKnownHostsFile={}", known.display()),
            ])
            .args(["-p", &port.to_string(), "-i"])
            .arg(files.path("key"))
            .args([&format!("{user}@127.0.0.1"), command])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{user}: {command}: {complaint}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Presses the power button and waits until the machine is off.
    fn press_power_button(mut self) {
        self.command("system_powerdown", &json!({}));
        self.wait_until_off();
    }

    /// The console ends when the machine is off; QEMU's own end follows at once.
    fn wait_until_off(mut self) {
        let deadline = Instant::now() + STOP_MAX;
        let mut stopped_in_order = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.console.recv_timeout(left) {
                Ok(line) => stopped_in_order |= line.ends_with("dagger-guest: stopping"),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(error) => panic!("the guest did not stop: {error}"),
            }
        }
        assert!(stopped_in_order, "the guest's own shutdown did not run");
        assert!(self.process.wait().unwrap().success());
    }
}

fn lines_of(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    receiver
}

/// The report, up to its last line.
fn read_report(console: &Receiver<String>) -> Vec<String> {
    let deadline = Instant::now() + BOOT_MAX;
    let mut report = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = console.recv_timeout(left).unwrap_or_else(|error| {
            panic!("the guest did not come up: {error}; it reported {report:?}")
        });
        let Some((_, fact)) = line.split_once("dagger-guest: ") else { continue };
        report.push(fact.to_owned());
        if fact.starts_with("ssh=") {
            return report;
        }
    }
}

fn fixed_network() -> Network {
    let addressing = Addressing::Static {
        address: FIXED_ADDRESS.parse().unwrap(),
        prefix_length: 24,
        gateway: Some("10.0.2.2".parse().unwrap()),
    };
    Network::Cards {
        cards: vec![SeedCard { mac: MAC.parse().unwrap(), addressing }],
        nameservers: vec!["10.0.2.3".parse().unwrap()],
    }
}

#[test]
fn the_guest_has_what_it_was_given_and_stops_at_the_power_button() {
    let files = Files::new(fixed_network(), None);
    let mut guest = Guest::boot(&files, FIXED_ADDRESS);
    assert_eq!(guest.reported("hostname"), "web-1");
    assert_eq!(guest.reported("memory_mib"), "256");
    assert_eq!(guest.reported("cpus"), "2");
    assert!(guest.report.contains(&format!("disk=vdb size_gib=3 size_bytes={}", 3 * GIB)));
    assert_eq!(guest.reported("address"), "10.0.2.77/24 interface=eth0");
    assert!(!guest.report.iter().any(|line| line.starts_with("problem=")), "{:?}", guest.report);

    assert_eq!(guest.run(&files, "root", "nproc; hostname"), "2\nweb-1\n");
    assert_eq!(guest.run(&files, "dagger", "id -un; cat /sys/block/vdb/size"), "dagger\n6291456\n");
    let resolver = guest.run(&files, "root", "cat /etc/resolv.conf; ip route");
    assert!(resolver.contains("nameserver 10.0.2.3\n") && resolver.contains("via 10.0.2.2"));
    let free_kib: u64 =
        guest.run(&files, "root", "df -k / | awk 'END { print $4 }'").trim().parse().unwrap();
    assert!(free_kib * 1024 > 5 * GIB / 2, "the file system did not grow: {free_kib} KiB free");
    assert!(guest.run(&files, "root", "free; lsblk").contains("vdb"));
    guest.press_power_button();
}

#[test]
fn a_reboot_keeps_host_key_and_files_and_runs_the_owners_script_only_once() {
    let script = "#!/bin/sh\necho \"once on $(hostname)\" >> /root/script-ran\n";
    let files = Files::new(Network::Dhcp, Some(script));
    let mut guest = Guest::boot(&files, LEASED_ADDRESS);
    assert!(guest.reported("address").starts_with(LEASED_ADDRESS));
    let host_key = guest.reported("ssh").to_owned();
    guest.run(&files, "root", "echo kept > /root/file; poweroff");
    guest.wait_until_off();

    let mut guest = Guest::boot(&files, LEASED_ADDRESS);
    assert_eq!(guest.reported("ssh"), host_key);
    assert_eq!(
        guest.run(&files, "root", "cat /root/file /root/script-ran"),
        "kept\nonce on web-1\n"
    );
    guest.press_power_button();
}

#[test]
fn nobody_enters_without_the_key() {
    let files = Files::new(fixed_network(), None);
    let mut guest = Guest::boot(&files, FIXED_ADDRESS);
    let port = guest.ssh_port().to_string();
    for authentication in ["password", "keyboard-interactive", "none"] {
        let output = Command::new("ssh")
            .args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=30"])
            .args(["-o", &format!("PreferredAuthentications={authentication}")])
            .args(["-p", &port, "root@127.0.0.1", "id"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(complaint.contains("Permission denied (publickey)"), "{complaint}");
        assert_eq!(output.stdout, b"");
    }
}
