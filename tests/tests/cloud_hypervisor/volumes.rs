//! Volumes of a machine that runs: they come, go once the guest lets go of them, and grow; the
//! process reaches them by links of its own and no other disk.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use dagger_agent::hypervisor::{GivenVolume, Hypervisor, HypervisorError, Power};
use dagger_payload::id::{VmId, VolumeId};
use serde_json::{Value, json};

use super::host::{GREETING, Host, VM, call, stop_proof, until};
use super::program_under_test::real_program;
use super::versions::tags;

/// A volume of 4 MiB in the first place.
fn volume(host: &Host, name: &str) -> GivenVolume {
    let disk = host.path(name);
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&disk)
        .arg("4M")
        .status();
    assert!(made.unwrap().success());
    GivenVolume { volume: VolumeId([8; 16]), slot: 0, size_bytes: 4 << 20, disk }
}

/// The link by which the machine opens this disk.
fn link(host: &Host, vm: VmId, disk: &Path) -> PathBuf {
    host.path(&format!("attached/{vm}")).join(disk.file_name().unwrap())
}

/// How many links the machine has.
fn links(host: &Host, vm: VmId) -> usize {
    std::fs::read_dir(host.path(&format!("attached/{vm}"))).map_or(0, Iterator::count)
}

fn put(host: &Host, name: &str, body: &Value) -> (u16, String) {
    call(&host.place(VM, "api.sock"), "PUT", name, &body.to_string())
}

fn info(host: &Host) -> Value {
    serde_json::from_str(&call(&host.place(VM, "api.sock"), "GET", "vm.info", "").1).unwrap()
}

/// Whether the machine has it, by the process's own word.
fn is_told(host: &Host, given: &GivenVolume) -> bool {
    let disks = info(host)["config"]["disks"].as_array().unwrap().clone();
    disks.iter().any(|disk| {
        disk["id"] == format!("volume{}", given.slot)
            && disk["path"] == json!(link(host, VM, &given.disk))
            && disk["serial"] == given.serial()
    })
}

/// Whether the process has it open, by the kernel's.
fn is_open(host: &Host, disk: &Path) -> bool {
    let inode = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let open = std::fs::read_dir(format!("/proc/{}/fd", host.pid(VM))).unwrap();
    open.flatten().any(|entry| inode(&entry.path()) == inode(disk))
}

fn is_busy(given: &Result<(), HypervisorError>) -> bool {
    matches!(given, Err(HypervisorError::Failed(why)) if why.starts_with("volume_busy"))
}

/// The guest lets go of what it was asked for: the real one's by a reset.
fn eject(host: &Host) {
    let letter = if real_program().is_some() { b'r' } else { b'e' };
    host.type_until(VM, letter, || info(host)["device_tree"].get("volume0").is_none());
}

fn reset(host: &Host) {
    let before = host.console(VM).matches(GREETING).count();
    host.type_until(VM, b'r', || host.console(VM).matches(GREETING).count() > before);
}

fn size_bytes(disk: &Path) -> u64 {
    let output = Command::new("qemu-img").args(["info", "-U", "--output=json"]).arg(disk).output();
    let told: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    told["virtual-size"].as_u64().unwrap()
}

/// A machine that runs, whose guest is up.
fn up(host: &Host) -> i32 {
    let process = host.running(VM);
    until("the guest is up", || host.console(VM).contains(GREETING));
    process
}

#[test]
fn cloud_hypervisor_a_volume_comes_to_a_running_machine_once_and_outlives_its_reset_and_the_agent()
{
    let mut host = Host::new();
    let before = up(&host);
    let given = [volume(&host, "data.volume")];
    for _ in 0..2 {
        host.hypervisor.give(VM, &given).unwrap();
        assert!(is_told(&host, &given[0]) && is_open(&host, &given[0].disk));
        assert_eq!(links(&host, VM), 3, "its disk, its seed and its volume");
    }
    reset(&host);
    assert!(is_told(&host, &given[0]) && is_open(&host, &given[0].disk));
    host.restart_agent();
    host.hypervisor.give(VM, &given).unwrap();
    assert_eq!(host.pid(VM), before, "it was started again");
}

#[test]
fn cloud_hypervisor_a_volume_of_its_start_is_told_as_one_that_came_later_and_can_go() {
    let host = Host::new();
    let mut machine = host.specification(VM);
    let given = [volume(&host, "data.volume")];
    machine.volumes = given.to_vec();
    host.hypervisor.define(&machine).unwrap();
    // One that is off has what its next definition says.
    host.hypervisor.give(VM, &[]).unwrap();
    host.hypervisor.start(VM).unwrap();
    until("the guest is up", || host.console(VM).contains(GREETING));
    host.hypervisor.give(VM, &given).unwrap();
    assert!(is_told(&host, &given[0]) && is_open(&host, &given[0].disk));
    assert!(is_busy(&host.hypervisor.give(VM, &[])));
    eject(&host);
    host.hypervisor.give(VM, &[]).unwrap();
    assert!(!is_open(&host, &given[0].disk));
}

#[test]
fn cloud_hypervisor_a_volume_is_in_use_until_the_guest_lets_go_of_it_and_can_come_again_then() {
    let host = Host::new();
    let before = up(&host);
    let given = [volume(&host, "data.volume")];
    host.hypervisor.give(VM, &given).unwrap();
    for _ in 0..2 {
        // Also when it was asked before: that is an error of the process.
        assert!(is_busy(&host.hypervisor.give(VM, &[])));
        assert!(!is_told(&host, &given[0]), "the process does not tell it any more");
        assert!(is_open(&host, &given[0].disk), "and has it all the same");
        assert!(link(&host, VM, &given[0].disk).exists());
    }
    // Neither it nor another takes its place meanwhile.
    let other = [volume(&host, "other.volume")];
    assert!(is_busy(&host.hypervisor.give(VM, &given)));
    assert!(is_busy(&host.hypervisor.give(VM, &other)));
    assert!(!is_open(&host, &other[0].disk));
    eject(&host);
    host.hypervisor.give(VM, &[]).unwrap();
    assert!(!is_open(&host, &given[0].disk) && !link(&host, VM, &given[0].disk).exists());
    assert_eq!(links(&host, VM), 2, "a link was left");
    host.hypervisor.give(VM, &given).unwrap();
    assert!(is_told(&host, &given[0]) && is_open(&host, &given[0].disk));
    assert_eq!(host.pid(VM), before, "it was started again");
}

#[test]
fn cloud_hypervisor_a_guest_that_keeps_a_volume_loses_it_when_it_is_switched_off() {
    let host = Host::new();
    up(&host);
    let given = [volume(&host, "data.volume")];
    host.hypervisor.give(VM, &given).unwrap();
    // One that is halted lets go of nothing, and is not waited for.
    host.hypervisor.pause(VM).unwrap();
    assert!(is_busy(&host.hypervisor.give(VM, &[])));
    host.hypervisor.resume(VM).unwrap();
    assert!(is_busy(&host.hypervisor.give(VM, &[])));
    host.hypervisor.destroy(&stop_proof(VM)).unwrap();
    assert_eq!(links(&host, VM), 0, "one that is off reaches no disk");
    host.hypervisor.start(VM).unwrap();
    assert!(!is_open(&host, &given[0].disk));
    host.hypervisor.give(VM, &[]).unwrap();
}

#[test]
fn cloud_hypervisor_a_guest_that_switches_itself_off_leaves_no_link_once_its_tags_say_so() {
    let host = Host::new();
    up(&host);
    host.hypervisor.give(VM, &[volume(&host, "data.volume")]).unwrap();
    host.type_until(VM, b'p', || host.power(VM) == Some(Power::Stopped));
    host.hypervisor.tag(&tags(VM, 2)).unwrap();
    assert_eq!(links(&host, VM), 0);
    host.delete(VM);
    assert!(!host.path(&format!("attached/{VM}")).exists());
}

#[test]
fn cloud_hypervisor_a_volume_of_a_running_machine_grows_and_never_shrinks() {
    let host = Host::new();
    let before = up(&host);
    let given = volume(&host, "data.volume");
    let sized = |size_bytes| [GivenVolume { size_bytes, ..given.clone() }];
    host.hypervisor.give(VM, &sized(4 << 20)).unwrap();
    host.hypervisor.give(VM, &sized(3 << 30)).unwrap();
    assert_eq!(size_bytes(&given.disk), 3 << 30);
    for smaller in [4 << 20, 0] {
        host.hypervisor.give(VM, &sized(smaller)).unwrap();
        assert_eq!(size_bytes(&given.disk), 3 << 30);
    }
    assert_eq!(host.pid(VM), before);
    // What was written meanwhile is whole.
    host.hypervisor.destroy(&stop_proof(VM)).unwrap();
    let checked = Command::new("qemu-img").args(["check", "-q"]).arg(&given.disk).status();
    assert!(checked.unwrap().success());
}

#[test]
fn cloud_hypervisor_what_an_agent_left_in_the_middle_is_gone_on_with_or_taken_back() {
    let mut host = Host::new();
    up(&host);
    let given = [volume(&host, "data.volume")];
    let path = link(&host, VM, &given[0].disk);
    // Between the link and the disk.
    for wanted in [&[][..], &given] {
        std::fs::hard_link(&given[0].disk, &path).unwrap();
        host.restart_agent();
        host.hypervisor.give(VM, wanted).unwrap();
        assert_eq!(
            (is_open(&host, &path), path.exists()),
            (!wanted.is_empty(), !wanted.is_empty())
        );
    }
    // Between the disk and the report that it is there.
    host.restart_agent();
    host.hypervisor.give(VM, &given).unwrap();
    // Between the question to the guest and its answer.
    assert_eq!(put(&host, "vm.remove-device", &json!({ "id": "volume0" })).0, 204);
    host.restart_agent();
    assert!(is_busy(&host.hypervisor.give(VM, &[])));
    assert!(path.exists(), "unknown was taken for gone");
    // Between the answer and the link.
    eject(&host);
    host.restart_agent();
    host.hypervisor.give(VM, &[]).unwrap();
    assert!(!path.exists());
}

#[test]
fn cloud_hypervisor_a_process_opens_no_disk_but_its_machines() {
    let host = Host::new();
    up(&host);
    if info(&host)["config"]["landlock_enable"] != true {
        return; // this kernel confines nobody
    }
    let other = volume(&host, "other.volume");
    let given = [volume(&host, "data.volume")];
    let opens = |path: &Path| {
        let disk = json!({ "id": "taken", "path": path, "image_type": "Qcow2" });
        put(&host, "vm.add-disk", &disk)
    };
    let denied = |path: &Path| {
        let (status, why) = opens(path);
        assert!(status / 100 == 5 || status / 100 == 4, "it opened {}", path.display());
        assert!(why.contains("Permission denied"), "{why}");
    };
    denied(&other.disk);
    host.hypervisor.give(VM, &given).unwrap();
    // By its own path it is nobody's but the agent's, also when it was the machine's once.
    denied(&other.disk);
    assert!(is_busy(&host.hypervisor.give(VM, &[])));
    eject(&host);
    host.hypervisor.give(VM, &[]).unwrap();
    denied(&given[0].disk);
    let (status, why) = opens(&link(&host, VM, &given[0].disk));
    assert_ne!(status / 100, 2, "{why}");
    // The same of one that it was started with.
    host.hypervisor.destroy(&stop_proof(VM)).unwrap();
    let mut machine = host.specification(VM);
    machine.volumes = given.to_vec();
    host.hypervisor.define(&machine).unwrap();
    host.hypervisor.start(VM).unwrap();
    assert!(is_busy(&host.hypervisor.give(VM, &[])));
    eject(&host);
    host.hypervisor.give(VM, &[]).unwrap();
    denied(&given[0].disk);
}

#[test]
fn cloud_hypervisor_links_that_no_machine_has_are_told_and_go_with_the_vm() {
    let host = Host::new();
    up(&host);
    assert_eq!(host.hypervisor.strays().unwrap(), Vec::<String>::new());
    // As after a reboot of the host, which clears machines and leaves disks.
    host.signal(VM, nix::sys::signal::Signal::SIGKILL);
    until("it is gone", || host.power(VM) == Some(Power::Stopped));
    std::fs::remove_dir_all(host.place(VM, "")).unwrap();
    std::fs::remove_file(host.beside(VM, "json")).unwrap();
    until("its links are told", || {
        host.hypervisor.strays().unwrap()
            == [format!("links to disks of VM {VM}, which is not defined")]
    });
    host.hypervisor.define(&host.specification(VM)).unwrap();
    assert_eq!(links(&host, VM), 0);
    assert_eq!(host.hypervisor.strays().unwrap(), Vec::<String>::new());
    host.delete(VM);
    assert!(!host.path(&format!("attached/{VM}")).exists());
}
