//! Stores that were damaged or replaced while their ledger was down, in a cluster of real
//! processes.
//!
//! Pinned: each of them starts, says what happened, has all of history again from its peers, takes
//! part in ordering, and has signed no second event for any round.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::{Cluster, Host};
use dagger_bus::ledger::{Answer, LedgerStatus, Unavailable};
use dagger_ledger::store::lmdb::LmdbStore;
use dagger_ledger::store::records::{EventKey, Records};
use dagger_ledger::store::snapshots::{SnapshotKey, chunk_change};
use dagger_ledger::store::{Store, StoreError};
use dagger_payload::id::{AuthorIndex, CommitIndex, Epoch, EventDigest, PayloadDigest, Round};

fn store_of(host: &Host) -> PathBuf {
    host.directory.join("state/store")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("makes");
    for entry in fs::read_dir(from).expect("reads") {
        let entry = entry.expect("reads");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copies");
    }
}

/// Orders `count` payloads, submitted at `host`, and waits until they are attested there.
async fn order(host: &Host, name: &str, count: u32, digests: &mut Vec<PayloadDigest>) {
    host.until_linked().await;
    for number in 0..count {
        digests.push(host.submitted(&format!("{name} {number}")).await);
    }
    let mut stream = host.stream(0).await;
    stream.until_attested(digests).await;
}

/// All events of all stores: of no author two for one round.
fn nobody_signed_a_round_twice(cluster: &Cluster) {
    type Place = (Epoch, Round, AuthorIndex);
    let mut seen: BTreeMap<Place, BTreeSet<EventDigest>> = BTreeMap::new();
    for host in &cluster.hosts {
        let store = LmdbStore::open(&store_of(host), 16 << 30).expect("opens");
        let records = Records::new(std::sync::Arc::new(store));
        let (epoch, round, author) = (Epoch(0), Round(0), AuthorIndex(0));
        let mut next = Some(EventKey { epoch, round, author, digest: EventDigest::ZERO });
        while let Some(from) = next {
            let (events, following) = records.events(from).expect("reads");
            for event in events {
                let header = &event.header;
                let place = (header.epoch, header.round, header.author);
                seen.entry(place).or_default().insert(event.digest);
            }
            next = following;
        }
    }
    assert!(seen.len() > 20, "there are events: {}", seen.len());
    let twice: Vec<_> = seen.iter().filter(|(_, digests)| digests.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

/// Damages the stopped last host's store, starts it, and checks all that is promised. Returns what
/// it said.
async fn survives(damage: impl FnOnce(&Path)) -> String {
    let mut cluster = Cluster::start(4).await;
    let mut digests = Vec::new();
    order(&cluster.hosts[3], "before", 40, &mut digests).await;
    let last = cluster.hosts.last_mut().expect("four");
    assert_eq!(last.stop().code(), Some(0), "{}", last.log());
    copy(&store_of(last), &last.directory.join("copy"));
    last.start();
    // What the copy does not know, its witness does.
    order(&cluster.hosts[3], "after the copy", 10, &mut digests).await;
    let last = cluster.hosts.last_mut().expect("four");
    assert_eq!(last.stop().code(), Some(0), "{}", last.log());

    damage(&last.directory);
    last.start();
    order(&cluster.hosts[0], "meanwhile", 5, &mut digests).await;
    order(&cluster.hosts[3], "afterwards", 5, &mut digests).await;
    let mut streams = Vec::new();
    for host in &cluster.hosts {
        let mut stream = host.stream(0).await;
        stream.until_attested(&digests).await;
        streams.push(stream.seen.ordered.clone());
    }
    assert!(streams.iter().all(|ordered| *ordered == streams[0]), "{streams:?}");
    for host in &mut cluster.hosts {
        assert_eq!(host.stop().code(), Some(0), "{}", host.log());
    }
    nobody_signed_a_round_twice(&cluster);
    cluster.hosts[3].log()
}

#[tokio::test]
async fn a_store_with_its_last_seven_bytes_cut_starts_and_knows_all_again() {
    let log = survives(|directory| {
        let path = directory.join("state/store/data.mdb");
        let file = File::options().write(true).open(path).expect("opens");
        let length = file.metadata().expect("is there").len();
        file.set_len(length - 7).expect("cuts");
    })
    .await;
    assert!(!log.contains("cannot start"), "{log}");
    // The cut page may be one that no record uses: that is said, too.
    assert!(
        log.contains("4089 bytes into a page") || log.contains("505 bytes into a page"),
        "{log}"
    );
    let whole = log.contains("the store is whole: every record that was written can be read");
    let aside = log.contains("put aside: this host recovers from its peers");
    assert!(whole ^ aside, "{log}");
}

#[tokio::test]
async fn a_store_with_flipped_bytes_is_put_aside_and_recovered_from_peers() {
    let log = survives(|directory| {
        let path = directory.join("state/store/data.mdb");
        let file = File::options().read(true).write(true).open(path).expect("opens");
        let pages = file.metadata().expect("is there").len() / 4096;
        // A byte in every page but the two that say where the trees begin.
        for page in 2..pages {
            let mut byte = [0];
            let at = page * 4096 + 2000;
            file.read_exact_at(&mut byte, at).expect("reads");
            file.write_all_at(&[byte[0] ^ 0x10], at).expect("writes");
        }
    })
    .await;
    assert!(log.contains("the store is damaged"), "{log}");
    assert!(log.contains("put aside: this host recovers from its peers"), "{log}");
}

#[tokio::test]
async fn a_store_without_its_end_is_put_aside_and_recovered_from_peers() {
    let log = survives(|directory| {
        let path = directory.join("state/store/data.mdb");
        let file = File::options().write(true).open(path).expect("opens");
        let length = file.metadata().expect("is there").len();
        file.set_len(length / 2 / 4096 * 4096).expect("cuts");
    })
    .await;
    assert!(log.contains("put aside: this host recovers from its peers"), "{log}");
}

#[tokio::test]
async fn a_store_restored_from_a_copy_asks_its_peers_before_it_signs() {
    let log = survives(|directory| {
        fs::remove_dir_all(directory.join("state/store")).expect("removes");
        copy(&directory.join("copy"), &directory.join("state/store"));
    })
    .await;
    assert!(log.contains("memory=Doubtful"), "{log}");
}

/// The last host of a cluster of one has another store, or no witness, and must not start.
async fn refuses_alone(host: &mut Host) {
    host.start();
    assert_eq!(host.exit_code().await, Some(65), "{}", host.log());
    let log = host.log();
    assert!(log.contains("this host is the only member, and its store and its witness"), "{log}");
    assert!(log.contains("put back the state directory"), "{log}");
}

#[tokio::test]
async fn a_host_without_peers_never_signs_on_with_a_store_that_its_witness_does_not_know() {
    // Nobody but its operator can say what it signed; a new one founds its cluster.
    let mut cluster = Cluster::start(1).await;
    let mut digests = Vec::new();
    let host = &mut cluster.hosts[0];
    order(host, "first", 10, &mut digests).await;
    assert_eq!(host.stop().code(), Some(0), "{}", host.log());
    let (store, aside) = (store_of(host), host.directory.join("aside"));
    copy(&store, &host.directory.join("copy"));
    host.start();
    order(host, "second", 10, &mut digests).await;
    assert_eq!(host.stop().code(), Some(0), "{}", host.log());

    fs::rename(&store, &aside).expect("moves");
    refuses_alone(host).await;
    fs::remove_dir_all(&store).expect("removes");
    copy(&host.directory.join("copy"), &store);
    refuses_alone(host).await;
    let trust = |host: &Host| host.command().arg("--trust-store").output().expect("runs");
    assert_eq!(trust(host).status.code(), Some(64), "the witness knows better");
    fs::remove_dir_all(&store).expect("removes");
    fs::rename(&aside, &store).expect("moves");
    host.start();
    order(host, "third", 10, &mut digests).await;
    assert_eq!(host.stop().code(), Some(0), "{}", host.log());

    fs::remove_dir_all(host.directory.join("witness")).expect("removes");
    refuses_alone(host).await;
    let trusted = trust(host);
    assert_eq!(trusted.status.code(), Some(0), "{}", String::from_utf8_lossy(&trusted.stderr));
    host.start();
    order(host, "fourth", 10, &mut digests).await;
    assert_eq!(host.stop().code(), Some(0), "{}", host.log());
    nobody_signed_a_round_twice(&cluster);
}

/// What is in the store's file: the flipped byte's place, and what it was.
fn flip(directory: &Path, at: u64) {
    let path = directory.join("state/store/data.mdb");
    let file = File::options().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("reads");
    file.write_all_at(&[byte[0] ^ 0x04], at).expect("writes");
}

/// One byte at a time, in the middle of the file: in the header of a page (its flags, where its
/// free room begins and ends), in the list of its records, and in what they hold. The host is
/// stopped, damaged and started again for each, in one cluster.
#[tokio::test]
async fn a_store_with_one_flipped_byte_is_used_if_no_record_has_changed_and_else_put_aside() {
    const PAGE: u64 = 4096;
    let mut cluster = Cluster::start(4).await;
    let mut digests = Vec::new();
    order(&cluster.hosts[3], "before", 40, &mut digests).await;
    let mut damaged = 0;
    for (number, within) in [10, 12, 14, 17, 2000, PAGE - 3].into_iter().enumerate() {
        let last = cluster.hosts.last_mut().expect("four");
        assert_eq!(last.stop().code(), Some(0), "{}", last.log());
        let file = store_of(last).join("data.mdb");
        let pages = fs::metadata(file).expect("is there").len() / PAGE;
        let said_before = last.log().len();
        flip(&last.directory, (pages / 2 + u64::try_from(number).expect("few")) * PAGE + within);
        last.start();
        last.until_linked().await;
        let name = format!("after a flip at {within}");
        order(&cluster.hosts[0], &format!("meanwhile, {name}"), 3, &mut digests).await;
        order(&cluster.hosts[3], &name, 3, &mut digests).await;
        let said = cluster.hosts[3].log().split_off(said_before);
        let whole = said.contains("the store was scanned and is whole");
        let aside = said.contains("put aside: this host recovers from its peers");
        assert!(whole ^ aside, "byte {within} of a page: {said}");
        damaged += u32::from(aside);
    }
    let mut streams = Vec::new();
    for host in &cluster.hosts {
        let mut stream = host.stream(0).await;
        stream.until_attested(&digests).await;
        streams.push(stream.seen.ordered.clone());
    }
    assert!(streams.iter().all(|ordered| *ordered == streams[0]), "{streams:?}");
    for host in &mut cluster.hosts {
        assert_eq!(host.stop().code(), Some(0), "{}", host.log());
    }
    nobody_signed_a_round_twice(&cluster);
    assert!(damaged > 0, "no flip met a record: {}", cluster.hosts[3].log());
}

/// Gives a stopped host a map of so many GiB.
fn set_map(host: &Host, gib: usize) {
    let path = host.directory.join("ledger.toml");
    let text = fs::read_to_string(&path).expect("reads");
    let (before, rest) = text.split_once("map_gib = ").expect("stands there");
    let (_, after) = rest.split_once('\n').expect("a line");
    fs::write(&path, format!("{before}map_gib = {gib}\n{after}")).expect("writes");
}

/// Fills a stopped host's map of one GiB with parts of snapshots that were never finished.
fn fill(host: &Host) {
    let store = LmdbStore::open(&store_of(host), 1 << 30).expect("opens");
    let mut bytes = 64 << 20;
    let mut number = 0;
    // To the last page: not even a small record fits then.
    while bytes >= 64 {
        let chunk = bytes::Bytes::from(vec![0x5a; bytes]);
        let change = chunk_change(SnapshotKey::own(CommitIndex(u64::MAX - 1)), number, &chunk);
        match store.commit(&[change]) {
            Ok(()) => number += 1,
            Err(StoreError::Full(_)) => bytes /= 2,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(number > 10, "{number} chunks fit");
}

#[tokio::test]
async fn a_full_map_refuses_changes_serves_reads_and_is_enlarged_by_a_restart() {
    let mut cluster = Cluster::start(4).await;
    let mut digests = Vec::new();
    order(&cluster.hosts[3], "before", 10, &mut digests).await;
    let last = cluster.hosts.last_mut().expect("four");
    assert_eq!(last.stop().code(), Some(0), "{}", last.log());
    set_map(last, 1);
    fill(last);
    last.start();
    // It reads on: what it has, and how it is.
    assert!(last.knows(&digests[0]).await);
    let stream = last.stream(0).await;
    drop(stream);
    // Single pages may be left, which small writes use; a large one finds no room.
    let may_be_full = |status: &LedgerStatus| {
        matches!(status.unavailable, None | Some(Unavailable::StoreFull {}))
    };
    last.until(may_be_full).await;
    let refused = last.submit(&"much ".repeat(12_000)).await;
    let reason = Unavailable::StoreFull {};
    assert!(
        matches!(&refused, Answer::Unavailable { reason: said } if *said == reason),
        "{refused:?}"
    );
    assert!(last.log().contains("the store is full: nothing new is accepted"), "{}", last.log());
    // The others do not need it.
    let digest = cluster.hosts[0].submitted("without the full one").await;
    cluster.hosts[0].stream(0).await.until_attested(&[digest]).await;
    digests.push(digest);

    let last = cluster.hosts.last_mut().expect("four");
    last.stop();
    set_map(last, 2);
    last.start();
    order(&cluster.hosts[3], "with a larger map", 5, &mut digests).await;
    for host in &mut cluster.hosts {
        host.stream(0).await.until_attested(&digests).await;
        assert_eq!(host.stop().code(), Some(0), "{}", host.log());
    }
    nobody_signed_a_round_twice(&cluster);
}
