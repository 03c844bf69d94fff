//! The small guest with its own kernel, handed over by QEMU without a boot loader: its disk is the
//! root as always, and everything that is done with a VM is done with this one.
//!
//! Setting: one host as real processes with real QEMU. A word that stands on no boot loader's
//! command line shows who started the kernel. It is also known by the host key that its host has
//! signed, and by no other.

use std::path::Path;

use dagger_tests::built::image;
use dagger_tests::cluster::{Cluster, Machines, Role};

const WORD: &str = "dagger.direct=1";

/// Shows the guest's public host key.
const SHOW_KEY: &str =
    "grep -h ^ssh-ed25519 /var/lib/dagger/host-key-ed25519.public | cut -d' ' -f1,2";
/// Gives the guest another host key, with which it answers from then on.
const CHANGE_KEY: &str = "set -e; key=/var/lib/dagger/another-key; pid=$(cat /run/dropbear.pid); \
    dropbearkey -t ed25519 -f $key >/dev/null 2>&1; kill $pid; \
    while kill -0 $pid 2>/dev/null; do :; done; dropbear -s -r $key -P /run/dropbear.pid";

/// Registers what the recipe keeps beside the image.
fn register(cluster: &Cluster, file: &Path, format: &str, name: &str) {
    let (file, key) = (file.to_str().expect("plain names"), cluster.file("keys/op1"));
    let named = ["image", "register", file, "--format", format, "--name", name, "--key", &key];
    cluster.must(&named);
}

fn until_told(cluster: &Cluster) -> String {
    cluster.until("the guest answers", || {
        let output = cluster.ctl(&["ssh", "web-1", "--", "cat /proc/cmdline; df -P / | tail -n 1"]);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    })
}

/// What speaks against each of these is said before anything is ordered.
fn assert_each_file_stands_in_its_own_place(cluster: &Cluster) {
    let refused = |more: &[&str], said: &str| {
        let output = cluster.would_create(1, "wrong", more);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(said), "{more:?}: {text}");
    };
    refused(&["--kernel", "op1/small"], "of the format qcow2, and no kernel");
    refused(&["--kernel", "op1/linux", "--initrd", "op1/linux"], "no initial RAM disk");
    refused(&["--initrd", "op1/initrd"], "--kernel");
    refused(&["--kernel", "op1/linux", "--command-line", "a\nb"], "printable ASCII");
    let told = cluster.would_create(1, "right", &["--kernel", "op1/linux"]);
    assert!(told.status.success(), "{told:?}");
}

/// At the first contact the key that answers is checked against the one in the host's report.
fn assert_it_is_known_by_the_key_that_its_host_has_signed(cluster: &Cluster) {
    let first = cluster.ctl(&["ssh", "--user", "root", "web-1", "--", SHOW_KEY]);
    let said = String::from_utf8_lossy(&first.stderr);
    assert!(first.status.success() && !said.contains("not reported yet"), "{said}");
    let shown = String::from_utf8_lossy(&first.stdout);
    let reported = cluster.vm(1, "web-1")["vm"]["guest_host_key"].clone();
    assert_eq!(reported.as_str(), Some(shown.trim()));
    // This command fails where a signature does not hold.
    let history = cluster.json(&["vm", "history", "web-1"]);
    let mut signed = history["entries"].as_array().into_iter().flatten().map(|it| &it["payload"]);
    let carries_it = |payload: &serde_json::Value| {
        payload["document"].as_str().is_some_and(|text| text.contains(shown.trim()))
    };
    let report = signed.find(|payload| carries_it(payload)).expect("a report carries the key");
    assert_eq!(report["signer_name"], "host host1", "{report}");
}

/// Whoever answers in the VM's place has another key, and gets no log-in.
fn assert_another_host_key_is_refused(cluster: &Cluster) {
    let reported = cluster.vm(1, "web-1")["vm"]["guest_host_key"].clone();
    cluster.must(&["ssh", "--user", "root", "web-1", "--", CHANGE_KEY]);
    let (code, said) = cluster.refused(&["ssh", "web-1", "--", "echo", "logged", "in"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("host_key_differs") && said.contains("not logged in"), "{said}");
    assert_eq!(cluster.vm(1, "web-1")["vm"]["guest_host_key"], reported);
}

#[test]
fn a_guest_boots_its_kernel_directly_and_again_after_a_reboot_and_a_crash_of_the_agent() {
    let cluster = Cluster::start(1, Machines::Qemu);
    cluster.grant(2);
    let image = image("small");
    let beside = |extension: &str| image.with_extension(extension);
    cluster.register(&image);
    register(&cluster, &beside("kernel"), "kernel", "op1/linux");
    register(&cluster, &beside("initrd"), "initrd", "op1/initrd");
    let listed = cluster.must(&["image", "ls"]);
    assert!(listed.contains("kernel") && listed.contains("initrd"), "{listed}");
    assert_each_file_stands_in_its_own_place(&cluster);

    let line = std::fs::read_to_string(beside("command-line")).expect("the recipe wrote it");
    let line = format!("{} {WORD}", line.trim());
    let boot = ["--kernel", "op1/linux", "--initrd", "op1/initrd", "--command-line", &line];
    let made = cluster.create(1, "web-1", "ssh", &boot);
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success() && said.contains("in its host's signed report"), "{said}");
    assert_it_is_known_by_the_key_that_its_host_has_signed(&cluster);
    let told = until_told(&cluster);
    assert!(told.contains(WORD), "{told}");
    assert!(told.contains("/dev/vda2") || told.contains("/dev/root"), "{told}");
    let console = cluster.must(&["vm", "console", "web-1", "--log"]);
    assert!(!console.contains("SYSLINUX"), "a boot loader had a part in it: {console}");
    let shown = cluster.must(&["vm", "show", "web-1"]);
    for what in ["op1/linux", "op1/initrd", WORD] {
        assert!(shown.contains(what), "{shown}");
    }

    // The agent dies: the machine is found again as it runs.
    let boot_id = ["ssh", "web-1", "--", "cat /proc/sys/kernel/random/boot_id"];
    let before = cluster.must(&boot_id);
    cluster.kill(Role::Agent, 1);
    cluster.restart(Role::Agent, 1);
    cluster.until_state(1, "web-1", "running");
    assert_eq!((cluster.domains().len(), cluster.must(&boot_id)), (1, before.clone()));

    // Larger, and switched off and on: the same kernel.
    cluster.must(&["vm", "resize", "web-1", "--memory", "320MiB"]);
    cluster.must(&["vm", "reboot", "web-1", "--wait", "applied"]);
    cluster.until("it was switched off and on", || {
        let seen = cluster.ctl(&boot_id);
        (seen.status.success() && seen.stdout != before.as_bytes()).then_some(())
    });
    assert!(until_told(&cluster).contains(WORD));
    let (_, said) = cluster.refused(&["vm", "resize", "web-1", "--memory", "64MiB"]);
    assert!(said.contains("can only grow"), "{said}");

    assert_another_host_key_is_refused(&cluster);
    let found = cluster.ctl_from(1, &["host", "fsck"]);
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stdout));
    cluster.must(&["vm", "delete", "web-1", "--wait", "applied"]);
}
