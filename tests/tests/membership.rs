//! Operators and hosts come and go in a cluster of real processes, with machines on paper: a fifth
//! operator and his host are admitted, the host votes, a founder's host leaves. Pinned: somebody
//! orders all the time and is never refused; an agent that has lost its state verifies the history
//! across all epochs.

use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dagger_tests::cluster::{Cluster, Machines, Role};
use serde_json::Value;

/// The longest that a client may have to wait for one request while members change, on a busy
/// machine.
const GAP_MAX: Duration = Duration::from_secs(20);

/// Ends the client's orders, also when the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What a client saw who orders one change after the other.
#[derive(Debug, Default)]
struct Seen {
    ordered: u64,
    longest: Duration,
}

/// Protects and unprotects a VM in turn, at one host after the other, until the end.
fn order_without_pause(cluster: &Cluster, end: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut before = Instant::now();
    while !end.load(Ordering::SeqCst) {
        let what = if seen.ordered.is_multiple_of(2) { "protect" } else { "unprotect" };
        let first = usize::try_from(seen.ordered % 3).expect("below three") + 1;
        let output = cluster.ctl_from(first, &["vm", what, "steady"]);
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        seen.ordered += 1;
        seen.longest = seen.longest.max(before.elapsed());
        before = Instant::now();
    }
    seen
}

/// `daggerctl` against one host alone.
fn at(cluster: &Cluster, host: usize, arguments: &[&str]) -> Output {
    let api = format!("unix:{}", cluster.api(host));
    let mut command = cluster.command_from(1, arguments);
    command.env("DAGGER_API", api).output().expect("daggerctl starts")
}

fn json_at(cluster: &Cluster, host: usize, arguments: &[&str]) -> Value {
    let output = at(cluster, host, &[arguments, &["--json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn key(cluster: &Cluster, operator: &str) -> String {
    cluster.file(&format!("keys/{operator}"))
}

/// Proposes with the first operator's key and approves with the others', until the change counts.
fn decide(cluster: &Cluster, what: &[&str], operators: &[&str]) -> Value {
    let [proposer, others @ ..] = operators else { panic!("nobody proposes") };
    let own = key(cluster, proposer);
    let proposed = cluster.json(&[&["operator", "propose"], what, &["--key", &own]].concat());
    let id = proposed["proposal"]["id"].as_str().expect("an id");
    assert_eq!(proposed["proposal"]["standing"], "open", "{proposed}");
    let keys: Vec<_> = others.iter().map(|other| key(cluster, other)).collect();
    let keys = keys.join(",");
    cluster.json(&["operator", "approve", id, "--operator-key", &keys, "--wait", "applied"])
}

fn voters(status: &Value) -> Vec<&str> {
    status["epoch"]["voters"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn until_voters(cluster: &Cluster, hosts: &[usize], expected: &[&str]) {
    for host in hosts {
        cluster.until(&format!("host{host} sees who votes"), || {
            let status = json_at(cluster, *host, &["ledger", "status"]);
            (voters(&status) == expected && status["unavailable"].is_null()).then_some(())
        });
    }
}

/// A fifth operator, admitted by three of four, and his host, which follows and then votes.
fn a_fifth_comes(cluster: &Cluster) {
    let waits = cluster.json(&["cluster", "add-host", "--name", "host5"]);
    assert_eq!(waits["waits_for"], "op5 is no operator of this cluster yet");
    let public = cluster.file("keys/op5.pub");
    let what = ["add-operator", "op5", &public];
    let first = key(cluster, "op1");
    let propose = [&["operator", "propose"], &what[..], &["--key", &first]].concat();
    let proposed = cluster.json(&propose);
    let id = proposed["proposal"]["id"].as_str().expect("an id");
    let second = cluster.json(&["operator", "approve", id, "--key", &key(cluster, "op2")]);
    assert_eq!(second["proposal"]["standing"], "open", "two of four are not enough: {second}");
    let third = cluster.json(&["operator", "approve", id, "--key", &key(cluster, "op4")]);
    assert_eq!(third["proposal"]["standing"], "done", "{third}");

    let follows = cluster.json(&["cluster", "add-host", "--name", "host5"]);
    let what = follows["waits_for"].as_str().expect("its vote is waited for");
    assert!(what.contains("follows"), "{what}");
    until_voters(cluster, &[1, 5], &["host1", "host2", "host3", "host4"]);
    // It runs VMs before it votes.
    let (developer, five) = (cluster.file("keys/developer.pub"), key(cluster, "op5"));
    // Registered already: the new host gets the file.
    let (image, first) = (cluster.file("paper.qcow2"), key(cluster, "op1"));
    let register = ["image", "register", &image, "--name", "op1/small", "--key", &first];
    let taken = at(cluster, 5, &register);
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    let limits = ["--cpus", "4", "--memory", "4GiB", "--disk", "20GiB", "--vms", "4"];
    let grant = [&["account", "grant", &developer, "--key", &five][..], &limits].concat();
    cluster.must(&grant);
    let created = cluster.create(2, "web-5", "running", &["--host", "host5"]);
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));

    decide(cluster, &["add-voter", "host5"], &["op5", "op1", "op2", "op3"]);
    let five = ["host1", "host2", "host3", "host4", "host5"];
    until_voters(cluster, &[1, 2, 3, 4, 5], &five);
}

/// A founder's host leaves: it votes no more, carries nothing, and goes.
fn a_founder_leaves(cluster: &Cluster) {
    let own = key(cluster, "op4");
    let (_, said) = cluster.refused(&["host", "leave", "host4", "--key", &own]);
    assert!(said.contains("votes"), "{said}");
    cluster.must(&["host", "drain", "host4", "--key", &own]);
    decide(cluster, &["remove-voter", "host4"], &["op4", "op1", "op2", "op5"]);
    until_voters(cluster, &[1, 2, 3, 5], &["host1", "host2", "host3", "host5"]);
    cluster.must(&["host", "leave", "host4", "--key", &own]);
    let hosts = cluster.json(&["host", "ls"]);
    let names = hosts.as_array().into_iter().flatten().map(|host| host["name"].as_str());
    assert!(!names.collect::<Vec<_>>().contains(&Some("host4")), "{hosts}");
    for role in [Role::Agent, Role::Ledger, Role::Processor] {
        cluster.kill(role, 4);
    }
}

/// An agent with an empty state directory reads and verifies everything anew.
fn an_agent_begins_anew(cluster: &Cluster, host: usize) {
    cluster.kill(Role::Agent, host);
    let state = cluster.path().join(format!("hosts/host{host}/agent"));
    std::fs::remove_dir_all(&state).expect("it exists");
    std::fs::create_dir(&state).expect("it is gone");
    let newest = cluster.json(&["ledger", "status"])["attested"].as_u64().expect("a number");
    cluster.restart(Role::Agent, host);
    cluster.until("the agent has verified all epochs", || {
        let history = json_at(cluster, host, &["vm", "history", "steady"]);
        let last = history["entries"]
            .as_array()?
            .iter()
            .rev()
            .find(|entry| entry["commit"].as_u64().is_some_and(|commit| commit <= newest))?;
        let by: Vec<_> = last["attested_by"].as_array()?.iter().filter_map(Value::as_str).collect();
        (by.len() >= 3 && !by.contains(&"host4")).then_some(())
    });
}

#[test]
fn a_fifth_operator_and_his_host_come_and_a_founders_host_leaves_while_somebody_orders() {
    let cluster = Cluster::start(4, Machines::Paper);
    cluster.grant(20);
    cluster.register_paper_image();
    let created = cluster.create(1, "steady", "running", &["--host", "host2"]);
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    let end = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let client = scope.spawn(|| order_without_pause(&cluster, &end));
        {
            let _end = End(&end);
            a_fifth_comes(&cluster);
            // With four of five it goes on only because the fifth one votes.
            cluster.kill(Role::Ledger, 4);
            let stopped = cluster.ctl(&["vm", "stop", "web-5", "--wait", "applied"]);
            assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
            cluster.restart(Role::Ledger, 4);
            a_founder_leaves(&cluster);
            let started = cluster.ctl(&["vm", "start", "web-5", "--wait", "applied"]);
            assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        }
        client.join().expect("every order was taken")
    });
    println!("{} requests ordered, the longest took {:?}", seen.ordered, seen.longest);
    assert!(seen.ordered > 10 && seen.longest < GAP_MAX, "{seen:?}");
    an_agent_begins_anew(&cluster, 3);
    let epoch = json_at(&cluster, 3, &["ledger", "status"])["epoch"]["epoch"].clone();
    assert_eq!(epoch, 2);
    // The last word is the newcomer's too: what he attests counts.
    let history = json_at(&cluster, 5, &["vm", "history", "web-5"]);
    let entries = history["entries"].as_array().expect("entries");
    assert!(entries.iter().any(|entry| entry["attested_by"].to_string().contains("host5")));
}
