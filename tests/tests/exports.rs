//! A whole VM as one file: taken from its host, checked, and the beginning of another VM. Machines
//! on paper, everything else real; what a guest would have written is written by `qemu-io`.

use std::path::{Path, PathBuf};
use std::process::Command;

use dagger_tests::cluster::{Cluster, Machines};
use serde_json::Value;

fn ok(command: &mut Command) {
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
}

/// The only disk below the host's storage whose name ends so.
fn stored(cluster: &Cluster, directory: &str, vm: &str) -> PathBuf {
    let path = cluster.path().join("hosts/host1/storage").join(directory);
    let files = std::fs::read_dir(path).expect("a store").flatten().map(|entry| entry.path());
    let named = |path: &PathBuf| path.is_file() && path.to_string_lossy().contains(vm);
    let mut found: Vec<PathBuf> = files.filter(named).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn disk(cluster: &Cluster, name: &str) -> PathBuf {
    let id = cluster.vm(1, name)["vm"]["id"].as_str().expect("an id").to_owned();
    stored(cluster, "disks", &format!("{id}.qcow2"))
}

/// The fields by which a bzImage is known, and nothing behind them: enough for machines on paper.
fn register_paper_kernel(cluster: &Cluster) {
    let mut bytes = vec![0; 4096];
    bytes[0x1fe..0x208].copy_from_slice(b"\x55\xaa\xeb\x00HdrS\x0f\x02");
    bytes[0x211] = 1;
    let file = cluster.file("linux");
    std::fs::write(&file, bytes).expect("written");
    let key = cluster.file("keys/op1");
    let named = ["image", "register", &file, "--format", "kernel", "--name", "op1/linux"];
    cluster.must(&[&named[..], &["--key", &key]].concat());
}

fn import<'a>(file: &'a str, name: &'a str, image: &'a str) -> [&'a str; 9] {
    ["vm", "import", file, "--name", name, "--image", image, "--wait", "running"]
}

/// Nothing is left beside the files that were asked for.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("readable").flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_vm_that_is_taken_away_in_one_file_begins_another_and_a_file_that_is_not_whole_begins_none() {
    let cluster = Cluster::start(1, Machines::Paper);
    cluster.grant(4);
    cluster.register_paper_image();
    register_paper_kernel(&cluster);
    let more = ["--label", "tier=web", "--kernel", "op1/linux", "--command-line", "quiet"];
    let made = cluster.create(1, "web-1", "running", &more);
    assert!(made.status.success(), "{made:?}");
    let volume = ["volume", "create", "data", "--size", "1GiB", "--vm", "web-1"];
    cluster.must(&[&volume[..], &["--wait", "applied"]].concat());
    let files = tempfile::tempdir().expect("a directory");
    let file = files.path().join("web-1.vm").to_string_lossy().into_owned();

    let (_, said) = cluster.refused(&["vm", "export", "web-1", &file]);
    assert!(said.contains("vm_not_stopped"), "{said}");
    assert_eq!(names(files.path()), [""; 0]);
    cluster.must(&["vm", "stop", "web-1", "--force", "--wait", "applied"]);
    cluster.must(&["volume", "attach", "data", "web-1", "--wait", "applied"]);
    let ours = disk(&cluster, "web-1");
    let write = ["-f", "qcow2", "-c", "write -P 0x5a 500M 64k"];
    ok(Command::new("qemu-io").args(write).arg(&ours));
    let exported = cluster.json(&["vm", "export", "web-1", &file]);
    let left_out: Vec<&str> =
        exported["left_out"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    for left in ["volume data", "what it boots"] {
        assert!(left_out.iter().any(|what| what.contains(left)), "{left_out:?}");
    }
    assert_eq!(names(files.path()), ["web-1.vm"]);
    let (_, said) = cluster.refused(&["vm", "export", "web-1", &file]);
    assert!(said.contains("is there already"), "{said}");

    // A VM of its own, with what was on the disk, the size and the labels.
    let account = cluster.json(&["account", "show"])["account"]["id"].as_str().map(str::to_owned);
    let image = format!("{}/web-1", account.expect("an account"));
    cluster.must(&import(&file, "web-2", &image));
    assert_eq!(names(files.path()), ["web-1.vm"]);
    let (one, two) = (cluster.vm(1, "web-1"), cluster.vm(1, "web-2"));
    assert_eq!(one["vm"]["boot"]["command_line"], "quiet");
    for what in ["size", "labels", "ssh_keys", "boot"] {
        assert_eq!(one["vm"][what], two["vm"][what], "{what}");
    }
    assert_eq!(two["vm"]["volumes"], Value::Array(Vec::new()));
    let theirs = disk(&cluster, "web-2");
    let compare = ["compare", "-U", "-f", "qcow2", "-F", "qcow2"];
    ok(Command::new("qemu-img").args(compare).args([&ours, &theirs]));

    // Without its kernel nothing is published, let alone ordered.
    cluster.must(&["image", "retire", "op1/linux", "--key", &cluster.file("keys/op1")]);
    let (_, said) = cluster.refused(&import(&file, "web-3", &format!("{image}-3")));
    assert!(said.contains("the VM boots a kernel that no image"), "{said}");

    // What was cut or changed begins nothing, and registers nothing.
    let whole = std::fs::read(&file).expect("readable");
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    for (damaged, why) in [(&changed[..], "its digest is another"), (&whole[1..], "no VM's file")] {
        std::fs::write(&file, damaged).expect("written");
        let (_, said) = cluster.refused(&import(&file, "web-3", &format!("{image}-3")));
        assert!(said.contains("vm_file_refused") && said.contains(why), "{said}");
    }
    std::fs::write(&file, &whole[..whole.len() - 1]).expect("written");
    let (_, said) = cluster.refused(&import(&file, "web-3", &format!("{image}-3")));
    assert!(said.contains("ends too early"), "{said}");
    assert_eq!(cluster.json(&["image", "ls"]).as_array().map(Vec::len), Some(3));
    assert_eq!(names(files.path()), ["web-1.vm"]);
}
