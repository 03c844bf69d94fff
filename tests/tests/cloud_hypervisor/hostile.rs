//! A machine's process that its guest has taken over, or that writes and hangs as its guest likes.
//!
//! Setting: the test does in the machine's directory what its process may do there. Pinned: nothing
//! that is found there leads the agent to another file, machine or process, the host's memory is
//! not filled, and no machine hides another.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixStream;

use dagger_agent::hypervisor::{Hypervisor, Machine, Power};
use dagger_payload::id::VmId;
use nix::sys::signal::Signal;

use super::host::{GREETING, Host, VM, stop_proof, until};

const OTHER: VmId = VmId([8; 16]);

#[test]
fn cloud_hypervisor_what_a_process_writes_is_cut_off_and_its_end_is_seen_all_the_same() {
    let mut host = Host::new();
    host.running(VM);
    // As many resets of devices do, and as many complaints.
    for path in [host.place(VM, "events"), host.beside(VM, "output")] {
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&vec![b'\n'; 3 << 20]).unwrap();
    }
    let taken = |path| fs::metadata(path).unwrap().blocks() * 512;
    until("both are cut off", || {
        taken(host.place(VM, "events")) < 1 << 20 && taken(host.beside(VM, "output")) < 1 << 20
    });
    host.forget_changes();
    host.signal(VM, Signal::SIGKILL);
    host.announced(VM);
    until("the death is seen", || host.power(VM) == Some(Power::Stopped));
}

#[test]
fn cloud_hypervisor_a_process_finds_nothing_but_its_own_files_in_its_directory() {
    let host = Host::new();
    host.running(VM);
    let entries = fs::read_dir(host.place(VM, "")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["api.sock", "api.sock.lock", "events", "serial.sock"]);
}

#[test]
fn cloud_hypervisor_a_definition_that_a_process_writes_is_none() {
    let host = Host::new();
    host.running(VM);
    let stolen = host.path("stolen");
    let definition = fs::read_to_string(host.beside(VM, "json")).unwrap();
    let forged = definition.replacen('{', &format!("{{\"console\":{stolen:?},"), 1);
    for name in ["machine.json", "json"] {
        fs::write(host.place(VM, name), &forged).unwrap();
    }
    until("the guest is up", || host.console(VM).contains(GREETING));
    host.type_until(VM, b'r', || host.console(VM).matches(GREETING).count() > 1);
    assert!(!stolen.exists());
    host.delete(VM);
    assert_eq!(host.power(VM), None);
}

#[test]
fn cloud_hypervisor_a_definition_that_cannot_be_read_hides_no_other_machine() {
    let host = Host::new();
    host.hypervisor.define(&host.specification(VM)).unwrap();
    host.running(OTHER);
    for broken in ["", "{", "[]"] {
        fs::write(host.beside(VM, "json"), broken).unwrap();
        let seen = host.hypervisor.list().unwrap();
        assert!(matches!(&seen[&VM], Machine::Foreign(why) if why.contains("definition")));
        assert!(matches!(seen[&OTHER], Machine::Ours { power: Power::Running, .. }));
    }
    fs::remove_file(host.beside(VM, "json")).unwrap();
    fs::create_dir(host.beside(VM, "json")).unwrap();
    assert_eq!(host.hypervisor.list().unwrap().len(), 2);
}

#[test]
fn cloud_hypervisor_sockets_that_are_links_lead_to_no_other_machine() {
    let host = Host::new();
    host.running(VM);
    let other = host.running(OTHER);
    until("the other is up", || host.console(OTHER).contains(GREETING));
    for name in ["api.sock", "serial.sock"] {
        fs::remove_file(host.place(VM, name)).unwrap();
        symlink(host.place(OTHER, name), host.place(VM, name)).unwrap();
    }
    // Its own process is not reached any more, and is ended without.
    assert_eq!(host.power(VM), Some(Power::Running));
    host.hypervisor.destroy(&stop_proof(VM)).unwrap();
    assert_eq!((host.pid(OTHER), host.power(OTHER)), (other, Some(Power::Running)));
    let said = host.console(VM);
    host.type_until(OTHER, b'r', || host.console(OTHER).matches(GREETING).count() > 1);
    assert_eq!(host.console(VM), said, "it hears nothing of the other");
    host.hypervisor.start(VM).unwrap();
    assert_eq!(host.power(VM), Some(Power::Running));
}

#[test]
fn cloud_hypervisor_a_hung_process_whose_queue_is_full_is_alive_and_ended_by_the_next_agent_too() {
    let mut host = Host::new();
    host.running(VM);
    host.signal(VM, Signal::SIGSTOP);
    // A connection that nobody takes stays in the queue, also when it is given up.
    let socket = host.place(VM, "api.sock");
    let fill = std::thread::spawn(move || while UnixStream::connect(&socket).is_ok() {});
    until("its queue is full", || is_full(&host));
    assert_eq!(host.power(VM), Some(Power::Running));
    assert_eq!(host.hypervisor.list().unwrap().len(), 1);
    host.restart_agent();
    assert_eq!(host.power(VM), Some(Power::Running));
    host.hypervisor.destroy(&stop_proof(VM)).unwrap();
    assert_eq!(host.power(VM), Some(Power::Stopped));
    fill.join().unwrap();
}

#[test]
fn cloud_hypervisor_a_process_that_hides_is_ended_before_what_it_has_may_be_anothers() {
    let host = Host::new();
    for settle in [Settle::Tag, Settle::Define] {
        host.running(VM);
        let process = host.pid(VM);
        fs::remove_file(host.place(VM, "api.sock")).unwrap();
        assert_eq!(host.power(VM), Some(Power::Stopped), "nobody listens");
        assert!(is_alive(process));
        let specification = host.specification(VM);
        match settle {
            Settle::Tag => host.hypervisor.tag(&specification.tags).unwrap(),
            Settle::Define => host.hypervisor.define(&specification).unwrap(),
        }
        assert!(!is_alive(process));
    }
}

enum Settle {
    Tag,
    Define,
}

fn is_alive(process: i32) -> bool {
    fs::exists(format!("/proc/{process}")).unwrap()
}

/// Whether no connection is taken any more.
fn is_full(host: &Host) -> bool {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    let address = UnixAddr::new(&host.place(VM, "api.sock")).unwrap();
    connect(stream.as_raw_fd(), &address) == Err(nix::errno::Errno::EAGAIN)
}
