//! The units, installed into a Debian machine and run by its systemd.
//!
//! Setting: a minimal Debian 12 tree, `make install` into it, systemd as PID 1 in a container, a
//! cluster of this one host, libvirt's daemon with QEMU, its test driver, or the program that
//! behaves like Cloud Hypervisor. Pinned: the units start in order with their sockets, keys and
//! directories, a VM is made through all of them, they come back by themselves after a reboot, the
//! walls around each daemon hold from inside, and Cloud Hypervisor's machines are units of their
//! own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "shared/program_under_test.rs"]
#[allow(dead_code, reason = "here the units start the program, not the backend")]
mod program_under_test;

use std::path::Path;
use std::time::Duration;

use dagger_tests::built;
use dagger_tests::nspawn::{Machine, Outcome, Tree};
use dagger_tests::tidy::root;

use program_under_test::{contract_program, firmware, real_program};

/// Generous: everything together takes seconds.
const WAIT_MAX: Duration = Duration::from_secs(180);
const FOUND: &str = include_str!("systemd/found.sh");

fn machine_of(tree: Tree) -> Machine {
    let programs = built::programs().expect("the programs are built");
    Machine::installed(tree, &programs).expect("a machine can be made")
}

fn machine() -> Machine {
    machine_of(Tree::Plain)
}

fn run(machine: &Machine, script: &str) -> Outcome {
    machine.run(&format!("{FOUND}\n{script}"), WAIT_MAX).expect("the machine runs the script")
}

#[test]
fn a_host_under_systemd_makes_a_vm_and_comes_back_by_itself_after_a_reboot() {
    let machine = machine();
    let question = root().join("tests/tests/systemd/question.pl");
    machine.add(&question, "srv/question.pl").expect("it is there");
    let outcome = run(&machine, include_str!("systemd/vm.sh"));
    let output = outcome.succeeded();
    assert!(output.contains("host1 reports running"), "{output}");
    let outcome = run(&machine, include_str!("systemd/again.sh"));
    let output = outcome.succeeded();
    assert!(output.contains("created by account"), "{output}");
}

#[test]
fn a_host_under_systemd_with_libvirts_own_daemon_makes_a_guest_that_is_logged_in_to() {
    let machine = machine_of(Tree::Libvirt);
    machine.add(&built::image("small"), "srv/small.qcow2").expect("it is there");
    run(&machine, include_str!("systemd/libvirt.sh")).succeeded();
}

#[test]
fn the_walls_around_each_daemon_hold_and_a_daemon_that_ends_comes_back() {
    run(&machine(), include_str!("systemd/walls.sh")).succeeded();
}

#[test]
fn machines_of_cloud_hypervisor_are_units_in_walls_that_outlive_the_agent_and_a_reboot() {
    let mut machine = machine();
    let made = tempfile::tempdir().expect("a directory");
    let guest = firmware(made.path());
    machine.add(&guest, "srv/firmware").expect("it is there");
    let program = real_program().unwrap_or_else(contract_program);
    machine.add(&program, "usr/bin/cloud-hypervisor").expect("it is installed");
    if real_program().is_some() {
        machine.lend(Path::new("/dev/kvm")).expect("it is there");
    }
    run(&machine, include_str!("systemd/machines.sh")).succeeded();
    run(&machine, include_str!("systemd/machines_again.sh")).succeeded();
}

#[test]
fn a_script_that_fails_is_seen_to_fail() {
    let outcome = machine().run("echo before; false; echo after", WAIT_MAX).unwrap();
    assert_ne!(outcome.status, 0);
    assert_eq!(outcome.output, "before\n");
}
