//! An agent whose state directory has no room for the history, at its start and while it runs, and
//! one that cannot write down how far it has acted.
//!
//! Setting: the real daemons of one host, whose agent's state directory lies on the small disk; and
//! the teller of orders alone.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dagger_agent::handover::Order;
use dagger_agent::limits::{ARCHIVE_RESERVE_BYTES, DISK_FULL_WAIT_MIN};
use dagger_agent::link::orders::OrderTeller;
use dagger_agent::model::{Archives, Model, SharedModel};
use dagger_agent::verify::mark::{Mark, MarkFile};
use dagger_agent::verify::reader::{Progress, Reader, Trust};
use dagger_payload::event::CommitEnd;
use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::id::{ClusterId, CommitIndex, LedgerTime, Position, PrefixHash, StateRoot};
use dagger_payload::key::SecretKey;
use dagger_payload::release::CommitRelease;
use dagger_tests::cluster::{Cluster, Machines, Role};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::small_disk::{Lack, PAGE_BYTES, SmallDisk};
use super::versions::HERE;

/// Room for the history of these tests and for everything else that the agent writes.
const ROOM_BYTES: u64 = 8 << 20;
/// So many pages are left that everything else still has room.
const PAGES_LEFT: u64 = (ARCHIVE_RESERVE_BYTES - (1 << 20)) / PAGE_BYTES;
/// What the log and health say.
const STANDS: &str = "the history is not read on";

/// What the first host's agent answers over its Unix socket.
fn get(cluster: &Cluster, path: &str) -> Value {
    let (socket, url) = (cluster.api(1), format!("http://localhost{path}"));
    let output = Command::new("curl").args(["-sS", "--unix-socket", &socket, &url]).output();
    serde_json::from_slice(&output.unwrap().stdout).unwrap()
}

fn says_that_it_stands(cluster: &Cluster) -> Option<()> {
    let health = get(cluster, "/v1/health");
    health["parts"].to_string().contains(STANDS).then_some(())
}

/// The agent's state directory, which must not be in use, goes to the small disk.
fn move_state(cluster: &Cluster, disk: &SmallDisk) {
    let (state, moved) = (cluster.path().join("hosts/host1/agent"), disk.path().join("state"));
    std::fs::remove_dir_all(state.join("archive")).unwrap();
    let copied = Command::new("cp").arg("-a").arg(&state).arg(&moved).status();
    assert!(copied.unwrap().success());
    std::fs::remove_dir_all(&state).unwrap();
    std::os::unix::fs::symlink(&moved, &state).unwrap();
}

/// How often the agent's log has this.
fn times_logged(cluster: &Cluster, words: &str) -> usize {
    let is_agents = |path: &Path| path.to_string_lossy().contains("agent-host1");
    let files = std::fs::read_dir(cluster.path().join("logs")).unwrap();
    let logs = files.map(|entry| entry.unwrap().path()).filter(|path| is_agents(path));
    logs.map(|path| std::fs::read_to_string(path).unwrap().matches(words).count()).sum()
}

#[test]
fn an_agent_whose_disk_is_full_says_so_once_answers_and_reads_the_history_on_once_there_is_room() {
    let disk = SmallDisk::holding(ARCHIVE_RESERVE_BYTES + ROOM_BYTES);
    let cluster = Cluster::start(1, Machines::Paper);
    cluster.grant(4);
    cluster.register_paper_image();
    assert!(cluster.create(1, "web-1", "applied", &[]).status.success());
    cluster.kill(Role::Agent, 1);
    move_state(&cluster, &disk);

    // At its start.
    disk.fill(Lack::Pages(PAGES_LEFT));
    cluster.restart(Role::Agent, 1);
    let agent = cluster.pid(Role::Agent, 1);
    cluster.until("it says that there is no room", || says_that_it_stands(&cluster));
    let unread = get(&cluster, &format!("/v1/payloads/{}", "0".repeat(64)));
    assert_eq!(unread["code"], "history_unread", "{unread}");
    cluster.json(&["ledger", "status"]);
    disk.free();
    cluster.until_state(1, "web-1", "running");
    assert_eq!((times_logged(&cluster, STANDS), cluster.pid(Role::Agent, 1)), (1, agent));

    // While it runs. What was read before is shown meanwhile.
    disk.fill(Lack::Pages(PAGES_LEFT));
    assert!(cluster.create(1, "web-2", "received", &[]).status.success());
    cluster.until("it says that there is no room", || says_that_it_stands(&cluster));
    assert_eq!(cluster.vm(1, "web-1")["state"], "running");
    assert!(!cluster.ctl(&["vm", "show", "web-2"]).status.success());
    disk.free();
    cluster.until_state(1, "web-2", "running");
    assert_eq!((times_logged(&cluster, STANDS), cluster.pid(Role::Agent, 1)), (2, agent));
    let history = cluster.json(&["vm", "history", "web-1"]);
    assert!(!history["entries"].as_array().unwrap().is_empty());
}

/// The founding document of a cluster of one host.
fn genesis() -> Genesis {
    let key = |byte: u8| SecretKey::from_seed(&[byte; 32].into()).public_key();
    let operator = GenesisOperator { name: "op1".parse().unwrap(), key: key(1) };
    let host = GenesisHost {
        name: "host1".parse().unwrap(),
        operator: operator.name.clone(),
        ledger_key: key(2),
        address: "127.0.0.1:7400".parse().unwrap(),
    };
    Genesis {
        dagger: 1,
        nonce: "0".repeat(32),
        name: "test".parse().unwrap(),
        mode: GenesisMode::Judged,
        operators: vec![operator],
        hosts: vec![host],
        collection_depth_rounds: 60,
        handover_distance_commits: 10,
        commit_bytes_max: None,
    }
}

/// One commit, folded and attested.
fn attested(place: &Path) -> SharedModel {
    let genesis = genesis();
    let mut reader = Reader::new(ClusterId::of(&genesis.to_bytes()), genesis.clone(), None);
    let archive = Archives::below(place).fresh().unwrap();
    let model = SharedModel::new(Model::new(&genesis), Some(archive), reader.progress());
    let end = CommitEnd {
        index: CommitIndex(1),
        position: Position(0),
        prefix_hash: PrefixHash::ZERO,
        state_root: StateRoot::ZERO,
    };
    let (releases, time_effects) = (Vec::new(), Vec::new());
    let commit = CommitRelease { end, ledger_time: LedgerTime(7), releases, time_effects };
    model.take_in(&[commit.into()]).unwrap().unwrap();
    model.publish(Progress {
        judged: end.index,
        attested: end.index,
        attested_mark: Some(Mark::from(&end)),
        trust: Trust::CaughtUp,
        ..reader.progress()
    });
    model
}

#[test]
fn no_order_is_told_before_there_is_room_to_write_down_how_far_this_host_has_acted() {
    let (disk, place) = (SmallDisk::new(), tempfile::tempdir().unwrap());
    let model = attested(place.path());
    disk.fill(Lack::Pages(0));
    super::run(async {
        let (sender, mut orders) = mpsc::channel(8);
        let file = MarkFile::new(disk.path());
        let stop = CancellationToken::new();
        let teller = OrderTeller::new(HERE, model, sender, file.clone(), None);
        let telling = tokio::spawn(teller.run(stop.clone()));
        let tried_twice = tokio::time::timeout(2 * DISK_FULL_WAIT_MIN, orders.recv());
        assert!(tried_twice.await.is_err(), "it waits, and has not ended");
        assert_eq!(file.read().unwrap(), None);
        disk.free();
        let soon = tokio::time::timeout(Duration::from_secs(60), orders.recv());
        assert!(matches!(soon.await, Ok(Some(Order::LedgerTime(LedgerTime(7))))));
        assert!(matches!(orders.recv().await, Some(Order::CaughtUp(CommitIndex(1)))));
        assert_eq!(file.read().unwrap().map(|mark| mark.commit), Some(CommitIndex(1)));
        stop.cancel();
        telling.await.unwrap().unwrap();
    });
}
