//! How the daemon starts, refuses and stops: exit codes and plain words.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use common::{Cluster, Host, key, payload};
use dagger_bus::ledger::{Answer, Call, Standing, Unavailable};
use dagger_ledger::store::lmdb::LmdbStore;
use dagger_ledger::store::{Change, Store, Table};

fn check(host: &Host) -> Output {
    host.command().arg("--check").output().expect("runs")
}

fn refused(output: &Output, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains(words), "{said}");
}

fn edit(host: &Host, from: &str, to: &str) {
    let path = host.directory.join("ledger.toml");
    let text = std::fs::read_to_string(&path).expect("reads");
    assert!(text.contains(from));
    std::fs::write(&path, text.replacen(from, to, 1)).expect("writes");
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused_with_what_to_do() {
    let cluster = Cluster::found(4);
    let host = &cluster.hosts[0];
    let good = check(host);
    assert_eq!(good.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&good.stdout).starts_with("ok: host host1 of cluster test"));

    let key_file = host.directory.join("key");
    std::fs::set_permissions(&key_file, PermissionsExt::from_mode(0o640)).expect("changes");
    refused(&check(host), "chmod 600");
    std::fs::write(&key_file, key(99).to_openssh("other").as_str()).expect("writes");
    std::fs::set_permissions(&key_file, PermissionsExt::from_mode(0o600)).expect("changes");
    refused(&check(host), "no host of the genesis has the ledger key SHA256:");
    std::fs::write(&key_file, "garbage").expect("writes");
    refused(&check(host), "not an OpenSSH private key file");

    let host = &cluster.hosts[1];
    edit(host, "map_gib = 16", "map_gib = 0");
    refused(&check(host), "map_gib must be");
    edit(host, "map_gib = 0", "mapp = 1");
    refused(&check(host), "unknown field `mapp`");
    let host = &cluster.hosts[2];
    edit(host, "witness/last-round", "state/last-round");
    refused(&check(host), "lies inside the state directory");
    edit(host, "state/last-round", "witness/last-round");
    edit(host, "[sockets]", "[peers]\nhost9 = \"127.0.0.1:1\"\n[sockets]");
    refused(&check(host), "host9, which is no host");
    let host = &cluster.hosts[3];
    edit(host, "\"key\"", "\"credential:ledger_key\"");
    refused(&check(host), "$CREDENTIALS_DIRECTORY is not");
    edit(host, "genesis.json.sig", "genesis.json");
    refused(&check(host), "genesis signature file");
}

#[tokio::test]
async fn without_a_processor_or_peers_it_says_so_and_stops_as_asked() {
    let mut cluster = Cluster::found(4);
    let host = &mut cluster.hosts[0];
    host.start();
    let answer = host.submit("too early").await;
    let Answer::Unavailable { reason: Unavailable::NoQuorum { have: 1, need: 3, .. } } = answer
    else {
        panic!("{answer:?}");
    };
    assert_eq!(host.stop().code(), Some(0), "{}", host.log());
}

#[tokio::test]
async fn a_store_of_another_host_or_one_that_is_open_is_refused() {
    let mut cluster = Cluster::start(1).await;
    let host = &mut cluster.hosts[0];
    let second = host.command().output().expect("runs");
    assert_eq!(second.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&second.stderr).contains("open already"));
    assert_eq!(host.stop().code(), Some(0));

    let other = Cluster::found(1);
    let (from, to) = (host.directory.join("state"), other.hosts[0].directory.join("state"));
    std::fs::rename(from, to).expect("moves");
    let foreign = other.hosts[0].command().output().expect("runs");
    assert_eq!(foreign.status.code(), Some(64));
    let said = String::from_utf8_lossy(&foreign.stderr);
    assert!(said.contains("belongs to another cluster or host"), "{said}");
}

#[tokio::test]
async fn a_host_that_is_alone_keeps_its_damaged_store_and_says_what_can_be_done() {
    let mut cluster = Cluster::start(1).await;
    let host = &mut cluster.hosts[0];
    let digest = host.submitted("something").await;
    let mut stream = host.stream(0).await;
    stream.until_attested(&[digest]).await;
    assert_eq!(host.stop().code(), Some(0));
    {
        let directory = host.directory.join("state/store");
        let store = LmdbStore::open(&directory, 16 << 30).expect("opens");
        let (key, mut value) = store.last(Table::Events).expect("reads").expect("some");
        value[20] ^= 1;
        let table = Table::Events;
        store.commit(&[Change::Put { table, key, value }]).expect("commits");
    }
    host.start();
    assert_eq!(host.exit_code().await, Some(65), "{}", host.log());
    assert!(host.log().contains("the store is damaged: record"), "{}", host.log());
    assert!(host.log().contains("one host only"), "{}", host.log());
    assert!(host.log().contains("restore the state directory"), "{}", host.log());
    assert!(host.directory.join("state/store/data.mdb").exists());

    // The same is said to who asks without starting it.
    let scanned = host.command().args(["--scan", "newest"]).output().expect("runs");
    assert_eq!(scanned.status.code(), Some(66));
    let said = String::from_utf8_lossy(&scanned.stderr);
    assert!(said.starts_with("the store is damaged: record"), "{said}");
}

#[tokio::test]
async fn a_judge_that_judges_history_differently_ends_the_daemon() {
    let mut cluster = Cluster::start(1).await;
    let host = &mut cluster.hosts[0];
    for text in ["one", "two"] {
        let digest = host.submitted(text).await;
        let mut stream = host.stream(0).await;
        stream.until_attested(&[digest]).await;
    }
    host.judge.restart_with_other_rules().await;
    assert_eq!(host.exit_code().await, Some(65), "{}", host.log());
    assert!(host.log().contains("judged before with another result"), "{}", host.log());
}

#[tokio::test]
async fn a_receipt_survives_kill_9_even_when_nothing_could_be_ordered_any_more() {
    let mut cluster = Cluster::start(4).await;
    let digest = cluster.hosts[0].submitted("received").await;
    for host in &mut cluster.hosts {
        host.kill();
    }
    // Alone it cannot order, but it knows what it promised.
    cluster.hosts[0].start();
    let answer = cluster.hosts[0].ask(Call::Look { digest }).await;
    let Answer::Standing { standing } = answer else {
        panic!("{answer:?}");
    };
    assert_ne!(standing, Standing::Unknown {}, "{}", cluster.hosts[0].log());
    for host in &mut cluster.hosts[1..] {
        host.start();
    }
    let mut stream = cluster.hosts[2].stream(0).await;
    stream.until_attested(&[payload("received").digest()]).await;
}

#[tokio::test]
async fn a_hangup_is_the_operators_word_for_the_clock_and_ends_nothing() {
    let mut cluster = Cluster::start(1).await;
    let host = &mut cluster.hosts[0];
    let pid = host.process.as_ref().expect("runs").id().try_into().expect("a pid");
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).expect("signals");
    host.until_logged("the operator confirms the clock").await;
    host.until_linked().await;
    assert_eq!(host.stop().code(), Some(0), "{}", host.log());
}
