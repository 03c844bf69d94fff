//! The agent's Cloud Hypervisor backend and every trap of that program that it has to live with.
//!
//! Setting: the contract program, whose behaviour was copied from the real one; the real one where
//! `DAGGER_CLOUD_HYPERVISOR` names it (it needs /dev/kvm). Processes are started directly. The
//! guest is a few hundred instructions long, obeys single letters on its serial line and ignores
//! the power button.

// A test that meets what it does not expect has failed.
#![allow(clippy::unwrap_used)]

mod direct_boot;
mod host;
mod hostile;
mod program;
#[path = "../shared/program_under_test.rs"]
mod program_under_test;
#[path = "../shared/versions.rs"]
mod versions;
mod volumes;

use std::os::unix::net::UnixListener;
use std::process::Command;

use dagger_agent::hypervisor::names::HostNames;
use dagger_agent::hypervisor::{Hypervisor, HypervisorError, LiveCopy, Machine, Power, Tags};
use dagger_payload::id::{HostId, VmId};
use nix::sys::signal::Signal;

use self::host::{GREETING, Host, VM, call, stop_proof, until};
use self::program_under_test::real_program;
use self::versions::{HERE, tags};

#[test]
fn cloud_hypervisor_runs_a_machine_through_its_whole_life() {
    let host = Host::new();
    assert_eq!(host.power(VM), None);
    host.hypervisor.define(&host.specification(VM)).unwrap();
    assert_eq!(host.power(VM), Some(Power::Stopped));
    host.hypervisor.start(VM).unwrap();
    assert_eq!(host.power(VM), Some(Power::Running));
    until("the guest's words are kept", || host.console(VM).contains(GREETING));
    host.hypervisor.tag(&tags(VM, 2)).unwrap();
    let ours = Machine::Ours { power: Power::Running, tags: tags(VM, 2) };
    assert_eq!(host.hypervisor.list().unwrap().into_iter().collect::<Vec<_>>(), [(VM, ours)]);
    host.hypervisor.destroy(&stop_proof(VM)).unwrap();
    assert_eq!(host.power(VM), Some(Power::Stopped));
    host.hypervisor.start(VM).unwrap();
    assert_eq!(host.power(VM), Some(Power::Running));
    host.delete(VM);
    assert_eq!(host.power(VM), None);
    let left: Vec<_> = std::fs::read_dir(host.path("vm")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn cloud_hypervisor_guest_that_ignores_the_button_runs_on_until_it_is_switched_off() {
    let host = Host::new();
    host.running(VM);
    host.hypervisor.ask_shutdown(&stop_proof(VM)).unwrap();
    assert_eq!(host.power(VM), Some(Power::Running));
    host.hypervisor.destroy(&stop_proof(VM)).unwrap();
    assert_eq!(host.power(VM), Some(Power::Stopped));
    // What is off already stays so, however often it is asked.
    host.hypervisor.ask_shutdown(&stop_proof(VM)).unwrap();
    host.hypervisor.destroy(&stop_proof(VM)).unwrap();
}

#[test]
fn cloud_hypervisor_sockets_of_a_killed_process_do_not_keep_its_machine_down() {
    let mut host = Host::new();
    let before = host.running(VM);
    host.forget_changes();
    host.signal(VM, Signal::SIGKILL);
    host.announced(VM);
    until("the death is seen", || host.power(VM) == Some(Power::Stopped));
    assert!(host.place(VM, "serial.sock").exists(), "a killed process leaves its sockets");
    host.hypervisor.start(VM).unwrap();
    assert_ne!(host.pid(VM), before);
}

#[test]
fn cloud_hypervisor_a_guest_that_switches_itself_off_is_announced_and_seen_off() {
    let mut host = Host::new();
    host.running(VM);
    host.forget_changes();
    host.type_until(VM, b'p', || host.power(VM) == Some(Power::Stopped));
    host.announced(VM);
}

#[test]
fn cloud_hypervisor_a_guest_that_faults_is_seen_off_or_reset_but_never_hidden() {
    let host = Host::new();
    host.running(VM);
    until("the guest is up", || host.console(VM).contains(GREETING));
    host.type_until(VM, b't', || {
        host.power(VM) == Some(Power::Stopped) || host.console(VM).matches(GREETING).count() > 1
    });
}

#[test]
fn cloud_hypervisor_a_confined_guest_resets_in_the_same_process_and_its_console_keeps_both_boots() {
    let host = Host::new();
    let before = host.running(VM);
    until("the guest is up", || host.console(VM).contains(GREETING));
    host.type_until(VM, b'r', || host.console(VM).matches(GREETING).count() > 1);
    assert_eq!(host.pid(VM), before);
    assert_eq!(host.power(VM), Some(Power::Running));
}

#[test]
fn cloud_hypervisor_console_that_could_not_be_kept_for_a_while_is_kept_again_and_takes_typing() {
    let host = Host::new();
    host.running(VM);
    until("the guest is up", || host.console(VM).contains(GREETING));
    let console = host.specification(VM).console;
    let away = console.with_extension("away");
    std::fs::rename(&console, &away).unwrap();
    std::fs::create_dir(&console).unwrap();
    // What it says at each of these boots finds no file.
    let mut typed = 0;
    host.type_until(VM, b'r', || {
        typed += 1;
        typed > 20
    });
    std::fs::remove_dir(&console).unwrap();
    std::fs::rename(&away, &console).unwrap();
    let before = host.console(VM).matches(GREETING).count();
    host.type_until(VM, b'r', || host.console(VM).matches(GREETING).count() > before);
}

#[test]
fn cloud_hypervisor_a_process_that_does_not_answer_is_alive_and_can_be_ended() {
    let host = Host::new();
    host.running(VM);
    host.signal(VM, Signal::SIGSTOP);
    assert_eq!(host.power(VM), Some(Power::Running));
    host.hypervisor.start(VM).unwrap();
    host.hypervisor.destroy(&stop_proof(VM)).unwrap();
    assert_eq!(host.power(VM), Some(Power::Stopped));
}

#[test]
fn cloud_hypervisor_one_that_hangs_does_not_hide_the_others() {
    let host = Host::new();
    host.running(VM);
    let other = VmId([8; 16]);
    host.running(other);
    host.signal(VM, Signal::SIGSTOP);
    assert_eq!(host.hypervisor.list().unwrap().len(), 2);
    assert_eq!(host.power(other), Some(Power::Running));
}

#[test]
fn cloud_hypervisor_a_guest_is_paused_and_resumed_and_a_paused_one_can_be_ended() {
    let host = Host::new();
    host.running(VM);
    for _ in 0..2 {
        // Saying it again to one that is paused already is no error, though the program says so.
        host.hypervisor.pause(VM).unwrap();
        assert_eq!(host.power(VM), Some(Power::Paused));
    }
    for _ in 0..2 {
        host.hypervisor.resume(VM).unwrap();
        assert_eq!(host.power(VM), Some(Power::Running));
    }
    host.hypervisor.pause(VM).unwrap();
    host.hypervisor.destroy(&stop_proof(VM)).unwrap();
    assert_eq!(host.power(VM), Some(Power::Stopped));
}

#[test]
fn cloud_hypervisor_a_disk_that_another_machine_holds_fails_the_start_and_leaves_nothing_half_made()
{
    let host = Host::new();
    host.running(VM);
    let other = VmId([8; 16]);
    let mut thief = host.specification(other);
    thief.disk = host.specification(VM).disk;
    host.hypervisor.define(&thief).unwrap();
    let Err(HypervisorError::Failed(why)) = host.hypervisor.start(other) else {
        panic!("two machines write one disk");
    };
    assert!(why.contains("lock"), "{why}");
    assert_eq!(host.power(other), Some(Power::Stopped));
    assert!(std::os::unix::net::UnixStream::connect(host.place(other, "api.sock")).is_err());
    host.hypervisor.destroy(&stop_proof(VM)).unwrap();
    host.hypervisor.start(other).unwrap();
    assert_eq!(host.power(other), Some(Power::Running));
}

#[test]
fn cloud_hypervisor_a_missing_disk_fails_the_start_and_the_next_start_works() {
    let host = Host::new();
    let machine = host.specification(VM);
    host.hypervisor.define(&machine).unwrap();
    let away = host.path("away");
    std::fs::rename(&machine.disk, &away).unwrap();
    assert!(matches!(host.hypervisor.start(VM), Err(HypervisorError::Failed(_))));
    std::fs::rename(&away, &machine.disk).unwrap();
    host.hypervisor.start(VM).unwrap();
    assert_eq!(host.power(VM), Some(Power::Running));
}

#[test]
fn cloud_hypervisor_a_start_that_was_cut_off_is_begun_again_in_one_process() {
    let host = Host::new();
    let before = host.running(VM);
    // A process without a machine is what an agent leaves that dies between the process and its
    // machine.
    let socket = host.place(VM, "api.sock");
    assert_eq!(call(&socket, "PUT", "vm.delete", "").0, 204);
    assert_eq!(host.power(VM), Some(Power::Stopped));
    host.hypervisor.start(VM).unwrap();
    assert_eq!(host.power(VM), Some(Power::Running));
    assert_ne!(host.pid(VM), before);
    until("the first process is gone", || {
        !std::path::Path::new(&format!("/proc/{before}/exe")).exists()
    });
}

#[test]
fn cloud_hypervisor_twenty_machines_are_adopted_by_the_next_agent_and_none_is_touched() {
    let mut host = Host::new();
    let vms: Vec<_> = (10..30).map(|byte| VmId([byte; 16])).collect();
    let before: Vec<_> = vms.iter().map(|vm| host.running(*vm)).collect();
    host.restart_agent();
    let seen = host.hypervisor.list().unwrap();
    for (vm, pid) in vms.iter().zip(before) {
        assert_eq!(seen[vm], Machine::Ours { power: Power::Running, tags: tags(*vm, 1) });
        host.hypervisor.start(*vm).unwrap();
        assert_eq!(host.pid(*vm), pid, "a running machine was touched");
    }
    host.hypervisor.destroy(&stop_proof(vms[0])).unwrap();
    assert_eq!(host.power(vms[0]), Some(Power::Stopped), "what was adopted can be ended");
}

#[test]
fn cloud_hypervisor_a_running_machine_whose_definition_is_lost_is_known_by_its_own_tags() {
    let host = Host::new();
    host.running(VM);
    std::fs::remove_file(host.beside(VM, "json")).unwrap();
    let ours = |generation| Machine::Ours { power: Power::Running, tags: tags(VM, generation) };
    assert_eq!(host.hypervisor.look(VM).unwrap(), Some(ours(1)));
    host.hypervisor.tag(&tags(VM, 2)).unwrap();
    assert_eq!(host.hypervisor.look(VM).unwrap(), Some(ours(2)));
    host.hypervisor.destroy(&stop_proof(VM)).unwrap();
    host.hypervisor.start(VM).unwrap();
    assert_eq!(host.power(VM), Some(Power::Running));
}

#[test]
fn cloud_hypervisor_another_hosts_machine_is_never_touched() {
    let host = Host::new();
    let mut machine = host.specification(VM);
    machine.tags = Tags { host: HostId([2; 16]), ..tags(VM, 1) };
    host.hypervisor.define(&machine).unwrap();
    assert!(matches!(host.hypervisor.look(VM), Ok(Some(Machine::Foreign(_)))));
    let occupied = |result| matches!(result, Err(HypervisorError::Occupied(_)));
    assert!(occupied(host.hypervisor.start(VM)));
    assert!(occupied(host.hypervisor.tag(&tags(VM, 2))));
    assert!(occupied(host.hypervisor.define(&host.specification(VM))));
    assert!(occupied(host.hypervisor.ask_shutdown(&stop_proof(VM))));
    assert!(occupied(host.hypervisor.destroy(&stop_proof(VM))));
}

#[test]
fn cloud_hypervisor_a_process_without_its_directory_is_found_by_the_next_agent_too() {
    let mut host = Host::new();
    let process = host.running(VM);
    host.running(VmId([8; 16]));
    assert_eq!(host.hypervisor.strays().unwrap(), Vec::<String>::new());
    host.restart_agent();
    assert_eq!(host.hypervisor.strays().unwrap(), Vec::<String>::new());
    std::fs::remove_dir_all(host.place(VM, "")).unwrap();
    std::fs::remove_file(host.beside(VM, "json")).unwrap();
    let lost = format!("a process of VM {VM} has no directory any more");
    assert_eq!(host.power(VM), None);
    assert_eq!(host.hypervisor.strays().unwrap(), [lost]);
    // As the operator who reads that ends it.
    let process = nix::unistd::Pid::from_raw(process);
    nix::sys::signal::kill(process, Signal::SIGKILL).unwrap();
    let left = format!("links to disks of VM {VM}, which is not defined");
    until("it is gone", || host.hypervisor.strays().unwrap() == [left.clone()]);
}

#[test]
fn cloud_hypervisor_a_stranger_at_the_socket_is_not_signalled() {
    let host = Host::new();
    host.hypervisor.define(&host.specification(VM)).unwrap();
    // This very process: were it taken for the machine's, the test would not end well.
    let _listener = UnixListener::bind(host.place(VM, "api.sock")).unwrap();
    let Err(HypervisorError::Failed(why)) = host.hypervisor.destroy(&stop_proof(VM)) else {
        panic!("it was taken for the machine's process");
    };
    assert!(why.contains("is not this machine's"), "{why}");
    std::fs::remove_file(host.place(VM, "api.sock")).unwrap();
}

/// Taps as the helper makes them, which go with the test, however it ends.
struct Taps([String; 2]);

impl Taps {
    fn new(taps: [String; 2]) -> Self {
        // Dropped also where the second is not made.
        let taps = Self(taps);
        for tap in &taps.0 {
            assert!(ip(&["tuntap", "add", "dev", tap, "mode", "tap", "vnet_hdr"]), "{tap}");
        }
        taps
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        for tap in &self.0 {
            ip(&["link", "delete", "dev", tap]);
        }
    }
}

fn ip(words: &[&str]) -> bool {
    Command::new("ip").args(words).status().expect("ip runs").success()
}

#[test]
fn cloud_hypervisor_a_machine_starts_on_the_taps_that_were_made_for_it_and_not_without() {
    let host = Host::new();
    let names = HostNames::of(HERE);
    // Names of interfaces are the whole machine's: no other run of this test has these.
    let mut id = [7; 16];
    id[..4].copy_from_slice(&std::process::id().to_be_bytes());
    let vm = VmId(id);
    let mut machine = host.specification(vm);
    machine.cards = 2;
    host.hypervisor.define(&machine).unwrap();
    // The real one makes what is missing if it may, which it may as root only.
    if real_program().is_none() {
        assert!(matches!(host.hypervisor.start(vm), Err(HypervisorError::Failed(_))));
        assert_eq!(host.power(vm), Some(Power::Stopped));
    }

    let taps = Taps::new([0, 1].map(|card| names.tap(vm, card)));
    host.hypervisor.start(vm).unwrap();
    let seen = call(&host.place(vm, "api.sock"), "GET", "vm.info", "").1;
    let seen: serde_json::Value = serde_json::from_str(&seen).unwrap();
    let cards = serde_json::json!([
        { "id": "net0", "tap": taps.0[0], "mac": names.mac(vm, 0) },
        { "id": "net1", "tap": taps.0[1], "mac": names.mac(vm, 1) },
    ]);
    // The real one tells more of each.
    let seen: Vec<_> = seen["config"]["net"]
        .as_array()
        .unwrap()
        .iter()
        .map(|card| serde_json::json!({ "id": card["id"], "tap": card["tap"], "mac": card["mac"] }))
        .collect();
    assert_eq!(serde_json::Value::from(seen), cards);
    // And it keeps them when its guest resets.
    host.type_until(vm, b'r', || host.console(vm).matches(GREETING).count() > 1);
    assert_eq!(host.power(vm), Some(Power::Running));
}

#[test]
fn cloud_hypervisor_a_running_machine_is_not_defined_anew_nor_removed() {
    let host = Host::new();
    host.running(VM);
    assert!(matches!(
        host.hypervisor.define(&host.specification(VM)),
        Err(HypervisorError::Failed(_))
    ));
    assert_eq!(host.power(VM), Some(Power::Running));
}

#[test]
fn cloud_hypervisor_a_volume_of_a_machine_that_runs_is_not_copied_and_the_refusal_has_its_own_code()
{
    let host = Host::new();
    let before = host.running(VM);
    let (disk, copy) = (host.path("data.volume"), host.path("copy"));
    let refused =
        host.hypervisor.copy_volume(&LiveCopy { vm: VM, disk, size_bytes: 4 << 20, copy });
    assert!(
        matches!(&refused, Err(HypervisorError::Refused(why)) if why.starts_with("snapshot_while_off_only")),
        "{refused:?}"
    );
    assert_eq!((host.pid(VM), host.power(VM)), (before, Some(Power::Running)));
}
