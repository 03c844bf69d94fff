//! A host whose ledger lost its disk, among hosts that have pruned what it would have to replay.
//!
//! Setting: four hosts of three real daemons each, with machines on paper. Pinned: it begins from a
//! peer's snapshot, shows the same VMs and the same history as its peers, and carries out what it
//! is asked to. The ledger's own tests show what a false peer achieves.

use std::fs::{self, OpenOptions};
use std::io::Write;

use dagger_tests::cluster::{Cluster, Machines, Role};
use serde_json::Value;

/// VMs that exist at a time.
const VMS: usize = 16;
/// Orders after which a cluster has pruned, in any case; some 250 suffice.
const ORDERS_MAX: usize = 1_000;
/// Public user-data is what makes an order large; this is nearly the most.
const USER_DATA_BYTES: usize = 32_000;

const ROLES: [Role; 3] = [Role::Processor, Role::Ledger, Role::Agent];

fn log_of(cluster: &Cluster, host: usize) -> String {
    fs::read_to_string(cluster.file(&format!("logs/ledger-host{host}.log"))).unwrap_or_default()
}

/// Four hosts that keep no event's body longer than they must.
fn pruning_cluster() -> Cluster {
    let cluster = Cluster::start(4, Machines::Paper);
    for host in 1..=4 {
        cluster.kill(Role::Ledger, host);
        let path = cluster.file(&format!("hosts/host{host}/ledger.toml"));
        let mut file = OpenOptions::new().append(true).open(path).expect("it is there");
        file.write_all(b"\n[retention]\nevent_bodies_hours = 0\n").expect("writes");
        cluster.restart(Role::Ledger, host);
    }
    cluster.until_linked();
    cluster.grant(1_000);
    cluster.register_paper_image();
    cluster
}

/// Creates and deletes VMs until the first three hosts have pruned.
fn fill(cluster: &Cluster) {
    let data = cluster.path().join("user-data");
    fs::write(&data, format!("#cloud-config\n#{}", "x".repeat(USER_DATA_BYTES))).expect("writes");
    let more = ["--user-data-public", data.to_str().expect("plain names")];
    for number in 0..ORDERS_MAX {
        let created = cluster.create(1, &format!("filling-{number}"), "ordered", &more);
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        if let Some(old) = number.checked_sub(VMS) {
            cluster.must(&["vm", "delete", &format!("filling-{old}"), "--wait", "ordered"]);
        }
        let pruned = |host| log_of(cluster, host).contains("event bodies are pruned");
        if number % 10 == 9 && (1..=3).all(pruned) {
            return;
        }
    }
    panic!("nothing was pruned: {}", log_of(cluster, 1));
}

/// What identifies the steps of a VM's history.
fn steps(cluster: &Cluster, host: usize, name: &str) -> Vec<(Value, Value)> {
    let history = cluster.json_from(host, &["vm", "history", name]);
    let entries = history["entries"].as_array().expect("a list");
    let step = |entry: &Value| (entry["position"].clone(), entry["payload"]["document"].clone());
    entries.iter().map(step).collect()
}

#[test]
fn a_host_whose_ledger_lost_its_disk_begins_from_a_snapshot_and_works_on() {
    let cluster = pruning_cluster();
    let created = cluster.create(1, "web", "running", &["--host", "host1"]);
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    for role in ROLES {
        cluster.kill(role, 4);
    }
    fill(&cluster);
    // Its event's body is gone by now; who carried it is still proved.
    let history = cluster.json_from(1, &["vm", "history", "web"]);
    let digest = history["entries"][0]["payload"]["digest"].as_str().expect("a digest");
    let proof = cluster.json_from(1, &["ledger", "proof", "payload", digest]);
    assert!(proof["carried"].is_object(), "{proof}");
    for lost in ["ledger", "witness"] {
        fs::remove_dir_all(cluster.file(&format!("hosts/host4/{lost}"))).expect("removes");
    }
    for role in ROLES {
        cluster.restart(role, 4);
    }
    cluster.until("it begins from a snapshot", || {
        log_of(&cluster, 4).contains("begun from a peer's snapshot").then_some(())
    });
    cluster.until_linked();
    let status = cluster.json_from(4, &["ledger", "status"]);
    assert!(status["pruned_round"].as_u64() > Some(0), "it says from where on it has events");
    let last = cluster.create(1, "last", "running", &["--host", "host1"]);
    assert!(last.status.success(), "{}", String::from_utf8_lossy(&last.stderr));
    cluster.until_state(4, "last", "running");
    for name in ["web", "last"] {
        let theirs = steps(&cluster, 1, name);
        assert!(theirs.len() >= 2, "{theirs:?}");
        assert_eq!(steps(&cluster, 4, name), theirs);
    }
    // Others have seen it in the order again by now, so that it is offered VMs.
    cluster.until("a VM is made on it", || {
        let created = cluster.create(4, "own", "running", &["--host", "host4"]);
        created.status.success().then_some(())
    });
}
