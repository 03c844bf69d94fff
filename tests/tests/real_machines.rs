//! Four hosts as real processes with real QEMU machines. One scenario after the other on one
//! cluster: starting one is the dear part.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use dagger_tests::built::image;
use dagger_tests::cluster::{Cluster, Machines, Role};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};

/// `virsh list` shows exactly the VMs that `daggerctl vm ls` shows as running.
fn assert_virsh_agrees(cluster: &Cluster) {
    cluster.until("virsh list agrees with daggerctl vm ls", || {
        let domains = cluster.domains();
        let vms = cluster.json(&["vm", "ls"]);
        let mut wanted: Vec<(String, String)> = vms
            .as_array()
            .into_iter()
            .flatten()
            .map(|vm| {
                let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
                let host = text(&vm["vm"]["placement"]["host"]);
                let name = format!("dagger-{}-{}", &host[..8], text(&vm["vm"]["id"]));
                let state = if vm["state"] == "running" { "running" } else { "shut off" };
                (name, state.to_owned())
            })
            .collect();
        wanted.sort();
        let mut seen = domains;
        seen.sort();
        (seen == wanted).then_some(())
    });
}

fn ok(output: std::process::Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Somebody sits down at the serial console of `web-1`, where this guest gives a shell: at a
/// terminal, which hands over every key meanwhile and is as before when he leaves.
fn assert_the_console_talks(cluster: &Cluster) {
    let OpenptyResult { master, slave } = openpty(None, None).expect("a terminal");
    let before = tcgetattr(&slave).expect("its settings");
    let end = || Stdio::from(slave.try_clone().expect("another end"));
    let mut sitting = cluster
        .command_from(1, &["vm", "console", "web-1", "--history", "1KiB"])
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .expect("daggerctl starts");
    let mut terminal = File::from(master);
    terminal.write_all(b"\recho dagger-$((40+2))\r").expect("types");
    let mut seen = String::new();
    let mut part = [0; 1024];
    // What is typed is echoed; only a shell makes this of it.
    while !seen.contains("dagger-42") {
        let count = terminal.read(&mut part).expect("reads");
        seen.push_str(&String::from_utf8_lossy(&part[..count]));
    }
    assert!(seen.contains("Ctrl-] ends it"), "{seen}");
    let kept = LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG;
    let meanwhile = tcgetattr(&slave).expect("its settings").local_flags;
    assert!(!meanwhile.intersects(kept), "the terminal keeps keys to itself: {meanwhile:?}");
    terminal.write_all(b"\x1d").expect("detaches");
    assert!(sitting.wait().expect("ends").success());
    assert_eq!(tcgetattr(&slave).expect("its settings"), before, "the terminal was left changed");

    // The same words are in the log; over TCP the command line shows a session by itself.
    let log = cluster.must(&["vm", "console", "web-1", "--log"]);
    assert!(log.contains("dagger-42"), "{log}");
    let listed = cluster.must(&["--api", &cluster.http(), "vm", "ls"]);
    assert!(listed.contains("web-1"), "{listed}");
}

/// What was used up to a commit, asked of each host, is the same text.
fn assert_every_host_writes_the_same_bill(cluster: &Cluster) {
    let newest = cluster.json(&["account", "usage"]);
    assert!(newest["used"]["cpu_ms"].as_u64().expect("a number") > 0, "{newest}");
    let commit = newest["commit"].to_string();
    let arguments = ["account", "usage", "--commit", &commit, "--json"];
    let bill = |host| {
        cluster.until("this host has judged that commit", || {
            let output = cluster.ctl_from(host, &arguments);
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        })
    };
    let first = bill(1);
    for host in 2..=4 {
        assert_eq!(bill(host), first, "host{host}");
    }
}

/// The developer's key gives way to a new one, which lets it back in.
fn assert_a_replaced_key_signs_no_more(cluster: &Cluster) {
    let new = cluster.file("keys/replacement");
    ok(Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f", &new])
        .output()
        .expect("ssh-keygen starts"));
    cluster.must(&["account", "key", "rotate", &format!("{new}.pub")]);
    let (_, said) = cluster.refused(&["vm", "stop", "web-1"]);
    assert!(said.contains("signs for its account no more"), "{said}");
    let listed = cluster.must(&["--key", &new, "vm", "ls"]);
    assert!(listed.contains("web-1"), "{listed}");
    let old = cluster.file("keys/developer.pub");
    cluster.must(&["--key", &new, "account", "key", "add", &old, "--role", "owner"]);
    let shown = cluster.must(&["account", "show"]);
    assert_eq!(shown.matches("owner").count(), 2, "{shown}");
}

/// A guest that writes without end is stopped by force: what it had synced is there, and its disk
/// is whole.
fn assert_a_forced_stop_leaves_the_disk_whole(cluster: &Cluster) {
    let inside = |script: &str| cluster.ctl(&["ssh", "--user", "root", "web-1", "--", script]);
    let writing = "echo precious >/root/kept; sync; \
        (while :; do dd if=/dev/zero of=/root/noise bs=64k count=32 conv=fsync; done) \
        >/dev/null 2>&1 </dev/null &";
    ok(inside(writing));
    cluster
        .until("the guest writes", || inside("test -s /root/noise").status.success().then_some(()));
    cluster.must(&["vm", "stop", "web-1", "--force", "--wait", "applied"]);
    let disks = std::fs::read_dir(cluster.path().join("hosts/host2/storage/disks"));
    let disks = disks.expect("the host has disks").map(|entry| entry.expect("readable").path());
    let is_disk = |path: &std::path::PathBuf| path.extension().is_some_and(|it| it == "qcow2");
    let disks: Vec<_> = disks.filter(is_disk).collect();
    assert_eq!(disks.len(), 1, "{disks:?}");
    let check = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&disks[0]).output();
    ok(check.expect("qemu-img is there"));
    cluster.must(&["vm", "start", "web-1", "--wait", "applied"]);
    let kept = cluster.until("the guest answers", || {
        let output = inside("cat /root/kept");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    assert_eq!(kept.trim(), "precious");
}

/// Paused, it holds still in memory; a forced stop asks no guest.
fn assert_it_is_paused_resumed_and_forced_off(cluster: &Cluster) {
    cluster.must(&["vm", "pause", "web-1", "--wait", "applied"]);
    cluster.until_state(1, "web-1", "paused");
    cluster.must(&["vm", "resume", "web-1", "--wait", "applied"]);
    cluster.must(&["ssh", "web-1", "--", "true"]);
    assert_a_forced_stop_leaves_the_disk_whole(cluster);
    assert_virsh_agrees(cluster);
}

/// A volume comes to a running guest, keeps what was written to it, and outlives reboots and users.
fn assert_a_volume_keeps_what_guests_write(cluster: &Cluster) {
    cluster.must(&[
        "volume", "create", "data", "--size", "1GiB", "--vm", "web-1", "--wait", "applied",
    ]);
    let attach = ["volume", "attach", "data", "web-1", "--wait", "applied"];
    cluster.must(&attach);
    let (_, said) = cluster.refused(&["volume", "delete", "data"]);
    assert!(said.contains("detach it first"), "{said}");
    let inside = |script: &str| cluster.must(&["ssh", "--user", "root", "web-1", "--", script]);
    // Written by the guest while it runs.
    cluster.until("the guest sees the disk", || {
        let seen = cluster.ctl(&["ssh", "web-1", "--", "test -b /dev/vdc"]);
        seen.status.success().then_some(())
    });
    inside("echo precious > /dev/vdc; sync");
    cluster.must(&["volume", "grow", "data", "--size", "2GiB", "--wait", "applied"]);
    let sectors = inside("cat /sys/class/block/vdc/size");
    assert_eq!(sectors.trim(), (2_u64 << 30 >> 9).to_string());
    cluster.must(&["volume", "detach", "data", "--wait", "applied"]);
    inside("test ! -e /dev/vdc");
    // Attached again, and there after the machine was switched off and on.
    cluster.must(&attach);
    cluster.must(&["vm", "stop", "web-1", "--force", "--wait", "applied"]);
    cluster.must(&["vm", "start", "web-1", "--wait", "applied"]);
    let kept = cluster.until("the guest answers", || {
        let output = cluster.ctl(&["ssh", "--user", "root", "web-1", "--", "head -n 1 /dev/vdc"]);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    assert_eq!(kept.trim(), "precious");
    // The host finds nothing without an owner, and no owner without its disk.
    let found = cluster.ctl_from(2, &["host", "fsck"]);
    let said = String::from_utf8_lossy(&found.stdout);
    assert!(said.contains("Compared 2 VMs and volumes"), "{said}");
    ok(found);
    cluster.must(&["volume", "detach", "data", "--wait", "applied"]);
    cluster.must(&["volume", "delete", "data", "--wait", "applied"]);
    assert_eq!(cluster.json(&["volume", "ls"]).as_array().map(Vec::len), Some(0));
}

/// A size that was asked for while it ran is there after the reboot, and shown as such.
fn assert_a_resize_is_there_after_the_next_start(cluster: &Cluster) {
    let until_shown = |host, cpus: &str| {
        cluster.until("every host shows the size that the guest has", || {
            let output = cluster.ctl_from(host, &["vm", "show", "web-1"]);
            let shown = String::from_utf8_lossy(&output.stdout).into_owned();
            let line = shown.lines().find(|line| line.starts_with("cpus "))?;
            (line.strip_prefix("cpus")?.trim() == cpus).then_some(())
        });
    };
    cluster.must(&["vm", "resize", "web-1", "--cpus", "2", "--wait", "applied"]);
    until_shown(1, "1, from its next start 2");
    until_shown(3, "1, from its next start 2");
    assert_eq!(cluster.vm(3, "web-1")["running_size"]["cpus"], 1);
    cluster.must(&["vm", "reboot", "web-1", "--wait", "applied"]);
    cluster.until("the guest has two CPUs", || {
        let output = cluster.ctl(&["ssh", "web-1", "--", "nproc"]);
        (output.status.success() && output.stdout.trim_ascii() == b"2").then_some(())
    });
    until_shown(1, "2");
    until_shown(3, "2");
}

#[test]
fn real_machines_survive_the_faults_of_everything_around_them() {
    let cluster = Cluster::start(4, Machines::Qemu);
    cluster.grant(8);
    let image = image("small");
    cluster.register(&image);

    // A dry run orders nothing, and its exit says what an order's would.
    let told = cluster.would_create(1, "web-1", &["--host", "host2"]);
    assert!(String::from_utf8_lossy(&told.stdout).contains("would be offered it"), "{told:?}");
    ok(told);
    let told = cluster.would_create(1, "web-1", &["--region", "nowhere"]);
    assert!(String::from_utf8_lossy(&told.stdout).contains("is in another region"), "{told:?}");
    assert!(!told.status.success());
    assert_eq!(cluster.json(&["vm", "ls"]).as_array().map(Vec::len), Some(0));

    // An agent is killed while its VM boots: exactly one VM after its restart.
    ok(cluster.create(1, "web-1", "ordered", &["--host", "host2"]));
    cluster.until("the domain is there", || (!cluster.domains().is_empty()).then_some(()));
    cluster.kill(Role::Agent, 2);
    cluster.restart(Role::Agent, 2);
    cluster.until_state(1, "web-1", "running");
    assert_virsh_agrees(&cluster);
    assert_eq!(cluster.domains().len(), 1);
    let inside = cluster.until("the guest answers", || {
        let output = cluster.ctl(&["ssh", "web-1", "--", "hostname; nproc"]);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    assert_eq!(inside.split_whitespace().collect::<Vec<_>>(), ["web-1", "1"]);

    assert_the_console_talks(&cluster);

    assert_a_resize_is_there_after_the_next_start(&cluster);
    assert_virsh_agrees(&cluster);

    assert_it_is_paused_resumed_and_forced_off(&cluster);
    assert_a_volume_keeps_what_guests_write(&cluster);

    // Two ledgers die: changes are refused, the VM runs on; one comes back, and changes go on.
    cluster.kill(Role::Ledger, 3);
    cluster.kill(Role::Ledger, 4);
    cluster.until("the loss is noticed", || {
        // Taken by a ledger that has not noticed yet it would wait for its order.
        let said = cluster.ctl(&["vm", "stop", "web-1", "--timeout", "2s"]);
        String::from_utf8_lossy(&said.stderr).contains("no_quorum").then_some(())
    });
    assert_virsh_agrees(&cluster);
    cluster.restart(Role::Ledger, 3);
    cluster.restart(Role::Ledger, 4);
    cluster.until("changes are possible again", || {
        let stopped = cluster.ctl(&["vm", "stop", "web-1", "--wait", "applied"]);
        stopped.status.success().then_some(())
    });
    assert_virsh_agrees(&cluster);
    cluster.must(&["vm", "start", "web-1", "--wait", "applied"]);
    assert_virsh_agrees(&cluster);

    // No machine boots from a damaged image file: it is put aside, and another host's is fetched.
    let store = cluster.path().join("hosts/host4/storage/images");
    let stored = std::fs::read_dir(store).expect("a store").flatten();
    let stored = stored.map(|entry| entry.path()).find(|path| path.is_file()).expect("the image");
    let whole = std::fs::read(&stored).expect("readable");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::remove_file(&stored).expect("removed");
    std::fs::write(&stored, damaged).expect("written");
    ok(cluster.create(1, "mended", "running", &["--host", "host4"]));
    assert!(std::fs::read(&stored).expect("readable") == whole, "it runs from a damaged image");

    assert_every_host_writes_the_same_bill(&cluster);
    assert_a_replaced_key_signs_no_more(&cluster);

    // Everything goes as it came.
    for name in ["mended", "web-1"] {
        cluster.must(&["vm", "delete", name, "--wait", "applied"]);
    }
    cluster.until("no domain is left", || cluster.domains().is_empty().then_some(()));
}
