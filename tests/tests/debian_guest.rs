//! A full Debian 12 cloud image, made by the recipe, as a guest of a real host under QEMU: that
//! what dagger promises of guests holds where cloud-init, systemd and OpenSSH do the guest's part.
//!
//! Slow where the processor is emulated: minutes. `make soak` runs it; its image is made by
//! `make debian-image`.

use std::path::Path;

use dagger_tests::built::image;
use dagger_tests::cluster::{Cluster, Machines};

/// What an owner says to cloud-init who has users of his own: `dagger` is none of them.
const USER_DATA: &str = "#cloud-config\nusers:\n- default\n- name: alice\n\
                         write_files:\n- path: /etc/motd\n  content: hello of alice\n";
/// How long a first boot may take on a busy machine that emulates the processor.
const BOOT_MAX: &str = "900s";

fn create(cluster: &Cluster) {
    let user_data = cluster.file("user-data");
    std::fs::write(&user_data, USER_DATA).expect("written");
    let key = cluster.file("keys/developer.pub");
    let arguments = [
        &["vm", "create", "web-1", "--image", "op1/debian-12", "--cpus", "2"][..],
        &["--memory", "1GiB", "--disk", "5GiB", "--ssh-key", &key],
        &["--user-data-public", &user_data, "--wait", "ssh", "--timeout", BOOT_MAX],
    ];
    let output = cluster.ctl(&arguments.concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("in its host's signed report"), "{said}");
}

/// Runs `script` in the guest, as `user`, trusting only the host key that its host has signed.
fn inside(cluster: &Cluster, user: &str, script: &str) -> String {
    cluster.must(&["ssh", "--user", user, "web-1", "--", script])
}

/// Name, disk, keys, users and name servers are what the seed says, whoever wrote which part of it.
fn assert_it_is_what_was_asked_for(cluster: &Cluster) {
    // Ends with another code than 0 where a module of cloud-init failed.
    let status = inside(cluster, "dagger", "cloud-init status --wait");
    assert!(status.contains("status: done"), "{status}");
    let seen = inside(cluster, "dagger", "hostname; nproc; sudo id -un; cat /etc/motd");
    assert_eq!(seen.lines().collect::<Vec<_>>(), ["web-1", "2", "root", "hello of alice"]);
    assert_eq!(inside(cluster, "debian", "id -un").trim(), "debian");
    assert_eq!(inside(cluster, "dagger", "id -un alice").trim(), "alice");
    let (_, said) = cluster.refused(&["ssh", "--user", "root", "web-1", "--", "true"]);
    assert!(!said.contains("host_key_differs"), "{said}");

    let size_mib = inside(cluster, "dagger", "df --output=size -m / | tail -n 1");
    let size_mib: u64 = size_mib.trim().parse().expect("a number");
    assert!((4700..5120).contains(&size_mib), "the file system has {size_mib} MiB of 5 GiB");

    let servers = dagger_agent::name_servers::of_this_host();
    let resolvers = inside(cluster, "dagger", "cat /run/systemd/resolve/resolv.conf");
    for server in servers {
        assert!(resolvers.contains(&format!("nameserver {server}")), "{resolvers}");
    }
    let failed = inside(cluster, "dagger", "systemctl --failed --no-legend --plain");
    assert_eq!(failed, "", "units failed");
    // What two guests of one image must not share was made by this guest.
    let own = inside(cluster, "dagger", "cat /etc/machine-id; ls /etc/ssh/ssh_host_*_key | wc -l");
    assert_eq!(own.lines().next().map(str::len), Some(32), "{own}");
}

/// The host's line to the agent in the guest is open.
fn assert_the_guest_agent_answers(cluster: &Cluster) {
    let domains = cluster.domains();
    let (name, _) = domains.first().expect("one domain");
    let ping = r#"{"execute":"guest-ping"}"#;
    cluster.until("the guest agent answers", || {
        let output = cluster.virsh(&["qemu-agent-command", name, ping]);
        output.status.success().then_some(())
    });
}

/// A volume that comes while the guest runs is found by its name, and keeps its files when it goes
/// and comes again. What a snapshot kept beside the guest that has it mounted comes back with it.
fn assert_a_volume_comes_hot_and_keeps_its_files(cluster: &Cluster) {
    cluster.must(&[
        "volume", "create", "data", "--size", "1GiB", "--vm", "web-1", "--wait", "applied",
    ]);
    let attach = ["volume", "attach", "data", "web-1", "--wait", "applied"];
    let volumes = cluster.json(&["volume", "ls"]);
    let id = volumes[0]["volume"]["id"].as_str().expect("an id");
    let disk = format!("/dev/disk/by-id/virtio-{}", &id[..20]);
    let until_seen = || {
        let script = format!("test -b {disk}");
        cluster.until("the guest sees the volume", || {
            let output = cluster.ctl(&["ssh", "web-1", "--", &script]);
            output.status.success().then_some(())
        });
    };
    cluster.must(&attach);
    until_seen();
    let write = format!(
        "sudo sh -ec 'mkfs.ext4 -q {disk}; mount {disk} /mnt; echo precious >/mnt/file; umount /mnt'"
    );
    inside(cluster, "dagger", &write);
    cluster.must(&["volume", "detach", "data", "--wait", "applied"]);
    inside(cluster, "dagger", &format!("test ! -e {disk}"));
    cluster.must(&attach);
    until_seen();
    let mount = format!("sudo sh -ec 'mount {disk} /mnt; cat /mnt/file; sync'");
    assert_eq!(inside(cluster, "dagger", &mount).trim(), "precious");
    cluster.must(&["volume", "snapshot", "data", "monday", "--wait", "applied"]);
    let change = "sudo sh -ec 'echo changed >/mnt/file; umount /mnt; mount $0 /mnt; cat /mnt/file; \
                  umount /mnt' ";
    assert_eq!(inside(cluster, "dagger", &format!("{change}{disk}")).trim(), "changed");
    cluster.must(&["volume", "detach", "data", "--wait", "applied"]);
    cluster.must(&["volume", "restore", "data", "monday", "--wait", "applied"]);
    cluster.must(&attach);
    until_seen();
    let read = format!("sudo sh -ec 'mount {disk} /mnt; cat /mnt/file; umount /mnt'");
    assert_eq!(inside(cluster, "dagger", &read).trim(), "precious");
    cluster.must(&["volume", "detach", "data", "--wait", "applied"]);
}

/// Whoever answers in the VM's place has another key, and gets no log-in.
fn assert_another_host_key_is_refused(cluster: &Cluster) {
    let reported = cluster.vm(1, "web-1")["vm"]["guest_host_key"].clone();
    let shown = inside(cluster, "dagger", "cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub");
    assert_eq!(reported.as_str(), Some(shown.trim()));
    inside(
        cluster,
        "dagger",
        "sudo sh -ec 'rm /etc/ssh/ssh_host_*; ssh-keygen -q -A; systemctl restart ssh'",
    );
    let (code, said) = cluster.refused(&["ssh", "web-1", "--", "echo", "logged", "in"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("host_key_differs") && said.contains("not logged in"), "{said}");
    // What was reported stays, whatever the console says now.
    assert_eq!(cluster.vm(1, "web-1")["vm"]["guest_host_key"], reported);
}

#[test]
#[ignore = "takes minutes where the processor is emulated; make soak runs it"]
fn a_debian_guest_has_what_was_asked_for_and_is_known_by_its_host_key() {
    let cluster = Cluster::start(1, Machines::Qemu);
    cluster.grant(2);
    cluster.register_as(Path::new(&image("debian-12")), "op1/debian-12");
    create(&cluster);
    assert_it_is_what_was_asked_for(&cluster);
    assert_the_guest_agent_answers(&cluster);
    assert_a_volume_comes_hot_and_keeps_its_files(&cluster);
    assert_another_host_key_is_refused(&cluster);

    // Asked to stop, it stops by itself: nobody pulls the plug.
    cluster.must(&["vm", "stop", "web-1", "--wait", "applied"]);
    let log = cluster.must(&["vm", "console", "web-1", "--log"]);
    assert!(log.contains("reboot: Power down"), "it did not switch itself off: {log}");
    cluster.must(&["vm", "delete", "web-1", "--wait", "applied"]);
    cluster.until("no domain is left", || cluster.domains().is_empty().then_some(()));
}
