//! What a newcomer types in his first hour, on machines on paper: the lines that a new cluster
//! shows, ids as tables show them, and what is said when something does not work.

use std::process::Command;

use dagger_tests::cluster::{Cluster, Machines};

const DEV: [&str; 6] = ["cluster", "dev", "--detach", "--hosts", "1", "--hypervisor"];

#[test]
fn the_lines_that_a_new_cluster_shows_can_be_pasted_one_after_the_other() {
    let cluster = Cluster::start(1, Machines::Paper);
    cluster.must(&["cluster", "stop"]);
    let shown = cluster.must(&[&DEV[..], &["test"]].concat());
    let (_, lines) = shown.split_once("In another shell:\n").expect("it shows lines");
    let image = cluster.file("newcomer.qcow2");
    let made =
        Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", &image, "1M"]).status();
    assert!(made.expect("qemu-img is there").success());
    let script = format!("set -e\n{}", lines.replace("IMAGE.qcow2", &image));
    let output = Command::new("bash").arg("-c").arg(&script).output().expect("bash is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{said}");
}

/// A VM on paper that has the volume `data`, whose snapshot `monday` cannot be made.
fn with_a_failed_snapshot() -> Cluster {
    let cluster = Cluster::start(1, Machines::Paper);
    cluster.grant(2);
    cluster.register_paper_image();
    let made = cluster.create(1, "web-1", "running", &[]);
    assert!(made.status.success(), "{made:?}");
    cluster.must(&[
        "volume", "create", "data", "--size", "1GiB", "--vm", "web-1", "--wait", "applied",
    ]);
    cluster.must(&["vm", "stop", "web-1", "--force", "--wait", "applied"]);
    cluster.must(&["volume", "attach", "data", "web-1", "--wait", "ordered"]);
    cluster.must(&["vm", "start", "web-1", "--wait", "applied"]);
    let snapshot = ["volume", "snapshot", "data", "monday", "--wait", "applied"];
    let (code, said) = cluster.refused(&snapshot);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the snapshot monday of volume data could not be made"), "{said}");
    assert!(said.contains("snapshot_while_off_only"), "{said}");
    cluster
}

#[test]
fn a_snapshot_that_fails_is_told_at_once_and_what_is_asked_for_beside_it_works() {
    let cluster = with_a_failed_snapshot();
    let (_, said) = cluster.refused(&["volume", "snapshot", "data", "tuesday"]);
    assert!(said.contains("the snapshot monday could not be made"), "{said}");
    cluster.must(&["volume", "protect", "data", "--wait", "applied"]);
    cluster.must(&["vm", "stop", "web-1", "--force", "--wait", "applied"]);
    cluster.must(&["volume", "detach", "data", "--wait", "applied"]);
    cluster.must(&["volume", "delete-snapshot", "data", "monday", "--wait", "applied"]);
    ids_are_taken_as_tables_show_them(&cluster);
    // A host of machines on paper has no cards, and so no ports that could lead to them.
    let forward = ["vm", "network", "web-1", "--forward", "tcp:22"];
    let (code, said) = cluster.refused(&forward);
    assert_eq!(code, Some(1), "{said}");
}

fn ids_are_taken_as_tables_show_them(cluster: &Cluster) {
    let last_word = |table: String| {
        let line = table.lines().nth(1).map(str::to_owned).expect("a line below the header");
        line.split_whitespace().last().expect("an id").to_owned()
    };
    let vm = last_word(cluster.must(&["vm", "ls"]));
    assert_eq!(vm.len(), 12, "{vm}");
    assert!(cluster.must(&["vm", "show", &vm]).contains("web-1"));
    let volume = last_word(cluster.must(&["volume", "ls"]));
    assert!(cluster.must(&["volume", "show", &volume]).contains("data"));
    let shown = cluster.must(&["account", "show"]);
    assert!(shown.contains("op1") && shown.contains("8 GiB"), "{shown}");
    let account = shown.lines().next().and_then(|line| line.split_whitespace().nth(1));
    let account = account.expect("its id").chars().take(12).collect::<String>();
    assert_eq!(cluster.must(&["account", "show", &account]), shown);
    let (_, said) = cluster.refused(&["vm", "show", "00000000"]);
    assert!(said.contains("not_found") && said.contains("daggerctl vm ls"), "{said}");
}
