//! What the program itself does: these hold the contract program and the real one to the same.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::Taps;
use super::host::program;
use super::host::{answer, call, until};
use super::program_under_test::firmware;

/// A process without the agent.
struct Process {
    directory: tempfile::TempDir,
    child: Child,
}

impl Process {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        firmware(directory.path());
        let child = command(directory.path()).spawn().unwrap();
        let process = Self { directory, child };
        until("it serves", || UnixStream::connect(process.socket()).is_ok());
        process
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("api.sock")
    }

    fn put(&self, name: &str, body: &str) -> (u16, String) {
        call(&self.socket(), "PUT", name, body)
    }

    fn config(&self) -> Value {
        json!({
            "cpus": { "boot_vcpus": 1, "max_vcpus": 1 },
            "memory": { "size": 64 << 20 },
            "payload": { "firmware": self.path("guest.elf") },
            "serial": { "mode": "Socket", "socket": self.path("serial.sock") },
            "console": { "mode": "Off" },
        })
    }

    fn create(&self) -> (u16, String) {
        self.put("vm.create", &self.config().to_string())
    }

    fn state(&self) -> Option<String> {
        let (status, body) = call(&self.socket(), "GET", "vm.info", "");
        let info: Value = serde_json::from_str(&body).unwrap();
        (status == 200).then(|| info["state"].as_str().unwrap().to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(directory: &std::path::Path) -> Command {
    let mut command = Command::new(program());
    command
        .arg("--api-socket")
        .arg(format!("path={}", directory.join("api.sock").display()))
        .arg("--event-monitor")
        .arg(format!("path={}", directory.join("events").display()))
        .env_clear()
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

#[test]
fn cloud_hypervisor_program_tells_states_and_ends_with_zero_when_told_to() {
    let mut process = Process::start();
    assert_eq!(process.state(), None);
    assert_eq!(process.create(), (204, String::new()));
    assert_eq!(process.state().as_deref(), Some("Created"));
    assert_eq!(process.put("vm.boot", "").0, 204);
    assert_eq!(process.state().as_deref(), Some("Running"));
    assert!(process.create().1.contains("already created"));
    assert_eq!(process.put("vm.boot", "").0 / 100, 5);
    assert_eq!(process.put("vm.power-button", "").0, 204);
    assert_eq!(process.state().as_deref(), Some("Running"));
    assert_eq!(process.put("vmm.shutdown", "").0, 200);
    assert!(process.child.wait().unwrap().success());
    let events = std::fs::read_to_string(process.path("events")).unwrap();
    for event in ["starting", "booting", "booted", "shutdown", "deleted"] {
        assert!(events.contains(&format!("\"event\": \"{event}\"")), "{event}: {events}");
    }
}

#[test]
fn cloud_hypervisor_program_keeps_the_configuration_of_a_create_that_failed() {
    let process = Process::start();
    std::fs::write(process.path("serial.sock"), "").unwrap();
    let (status, body) = process.create();
    assert_eq!(status, 500, "{body}");
    std::fs::remove_file(process.path("serial.sock")).unwrap();
    assert!(process.create().1.contains("already created"));
    assert_eq!(process.put("vm.delete", "").0, 204);
    assert_eq!(process.create().0, 204);
}

#[test]
fn cloud_hypervisor_program_does_not_check_what_it_is_told_before_it_boots() {
    let process = Process::start();
    let mut config = process.config();
    config["payload"]["firmware"] = json!("/nothing/here");
    assert_eq!(process.put("vm.create", &config.to_string()).0, 204);
    let (status, body) = process.put("vm.boot", "");
    assert_eq!(status, 500);
    let chain: Vec<String> = serde_json::from_str(&body).unwrap();
    assert_eq!(chain[0], "Error from API");
    assert_eq!(process.state().as_deref(), Some("Created"));
}

#[test]
fn cloud_hypervisor_program_refuses_bodies_where_none_belong_and_chunked_ones() {
    let process = Process::start();
    assert_eq!(process.create().0, 204);
    assert_eq!(process.put("vm.boot", "{}").0, 400);
    assert_eq!(process.state().as_deref(), Some("Created"));
    let mut stream = UnixStream::connect(process.socket()).unwrap();
    let head = "PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(format!("{head}2\r\n{{}}\r\n0\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(answer(&mut stream).0, 400);
}

#[test]
fn cloud_hypervisor_program_takes_ten_connections() {
    let process = Process::start();
    // Earlier connections may not be taken down yet: one that is turned away for them is closed.
    let ask = |stream: &mut UnixStream| {
        let asked = stream.write_all(b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: x\r\n\r\n");
        if asked.is_ok() { answer(stream).0 } else { 0 }
    };
    until("ten are open and served", || {
        let mut open: Vec<_> =
            (0..10).map(|_| UnixStream::connect(process.socket()).unwrap()).collect();
        if open.iter_mut().any(|stream| ask(stream) != 200) {
            return false;
        }
        let mut eleventh = UnixStream::connect(process.socket()).unwrap();
        assert_eq!(answer(&mut eleventh).0, 503);
        true
    });
}

#[test]
fn cloud_hypervisor_program_does_not_start_twice_on_one_socket() {
    let process = Process::start();
    let second = command(process.directory.path()).status().unwrap();
    assert_eq!(second.code(), Some(1));
    assert_eq!(call(&process.socket(), "GET", "vmm.ping", "").0, 200);
}

#[test]
fn cloud_hypervisor_program_that_is_confined_starts_on_taps_that_it_may_read_about() {
    let mark = std::process::id();
    let taps = Taps::new(["a", "b"].map(|end| format!("chtap{mark}{end}")));
    let rule = |path: PathBuf| json!({ "path": path, "access": "r" });
    let about = |tap: &String| rule(Path::new("/sys/devices/virtual/net").join(tap));
    let booted = |rules: Vec<Value>| {
        let process = Process::start();
        let mut config = process.config();
        config["net"] = taps.0.iter().map(|tap| json!({ "tap": tap })).collect();
        config["landlock_enable"] = true.into();
        config["landlock_rules"] = rules.into();
        config["serial"] = json!({ "mode": "Null" });
        assert_eq!(process.put("vm.create", &config.to_string()).0, 204);
        process.put("vm.boot", "")
    };
    let (status, why) = booted(vec![about(&taps.0[0])]);
    assert_eq!(status / 100, 5, "{why}");
    assert!(why.contains("TAP flags from sysfs"), "{why}");
    assert_eq!(booted(taps.0.iter().map(about).collect()), (204, String::new()));
}

#[test]
fn cloud_hypervisor_program_cuts_a_raw_disk_off_and_keeps_a_device_until_the_guest_ejects_it() {
    let process = Process::start();
    let disk = process.path("disk.raw");
    std::fs::write(&disk, vec![0; 8 << 20]).unwrap();
    let told = json!({ "id": "hot", "path": disk, "image_type": "Raw" }).to_string();
    let devices = || {
        let body = call(&process.socket(), "GET", "vm.info", "").1;
        serde_json::from_str::<Value>(&body).unwrap()["device_tree"].take()
    };
    assert_eq!(process.create().0, 204);
    assert!(devices().is_null(), "there is no machine yet");
    // Cold and hot differ in their answers.
    assert_eq!(process.put("vm.add-disk", &told).0, 204);
    let hot = json!({ "id": "hot" }).to_string();
    assert_eq!(process.put("vm.remove-device", &hot).0, 204);
    assert_eq!(process.put("vm.boot", "").0, 204);
    let (status, answer) = process.put("vm.add-disk", &told);
    assert_eq!(status, 200);
    assert!(answer.contains("\"bdf\""), "{answer}");
    let to = |size: u64| json!({ "id": "hot", "desired_size": size }).to_string();
    assert_eq!(process.put("vm.resize-disk", &to(4 << 20)).0, 204);
    assert_eq!(std::fs::metadata(&disk).unwrap().len(), 4 << 20, "it shrinks without complaint");
    assert_eq!(process.put("vm.remove-device", &hot).0, 204);
    assert!(devices().get("hot").is_some(), "it was only asked for");
    assert_ne!(process.put("vm.add-disk", &told).0 / 100, 2);
    assert_ne!(process.put("vm.resize-disk", &to(8 << 20)).0 / 100, 2);
    // Releases differ in what they say to that.
    process.put("vm.remove-device", &hot);
    assert_eq!(process.put("vm.reboot", "").0, 204);
    assert!(devices().get("hot").is_none(), "a reset ends it");
    assert_eq!(process.put("vm.add-disk", &told).0, 200);
}
