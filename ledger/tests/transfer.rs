//! Hosts whose missing history nobody has any more begin from a peer's snapshot: real ledgers with
//! real links and stores, and a test's judge.

mod common;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::{Cluster, Host, Seen, peer};
use dagger_bus::ledger::LedgerStatus;
use dagger_ledger::limits::{HANDOVER_BYTES_MAX, PART_WAIT_MAX};
use dagger_ledger::link::frames;
use dagger_ledger::store::Store;
use dagger_ledger::store::chain::fetched_change;
use dagger_ledger::store::lmdb::LmdbStore;
use dagger_ledger::store::pool::Pool;
use dagger_ledger::store::records::{self, EventKey, Recorder, Records, handover_change};
use dagger_ledger::store::snapshots::{Kept, SnapshotKey, Source, chunk_change, head_change};
use dagger_ledger::transfer::Piece;
use dagger_ledger_core::Record;
use dagger_payload::codec;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, Epoch, EventDigest, PayloadDigest, Round,
};
use dagger_payload::limits::SNAPSHOT_CHUNK_BYTES_MAX;
use dagger_payload::peer::{Part, PeerMessage};
use dagger_payload::snapshot::SnapshotHead;
use futures_util::SinkExt;

/// Bytes of one payload; a snapshot is asked for every few mebibytes.
const PAYLOAD_BYTES: usize = 60 * 1024;

fn store_of(host: &Host) -> PathBuf {
    host.directory.join("state/store")
}

fn open(host: &Host) -> (Arc<LmdbStore>, Records) {
    let store = Arc::new(LmdbStore::open(&store_of(host), 16 << 30).expect("opens"));
    (store.clone(), Records::new(store))
}

/// Four hosts that keep no body longer than they must.
async fn pruning_cluster() -> Cluster {
    let mut cluster = Cluster::found(4);
    for host in &cluster.hosts {
        let mut options = std::fs::OpenOptions::new();
        let path = host.directory.join("ledger.toml");
        let mut file = options.append(true).open(path).expect("opens");
        file.write_all(b"\n[retention]\nevent_bodies_hours = 0\n").expect("writes");
    }
    cluster.start_all().await;
    cluster
}

/// Submits at the first host until all that run have pruned: nobody has the history any more.
async fn fill(cluster: &Cluster, digests: &mut Vec<PayloadDigest>) {
    let has_pruned =
        |host: &Host| !host.is_started() || host.log().contains("event bodies are pruned");
    for number in 0..2_000 {
        let text = format!("filling {number} {}", "x".repeat(PAYLOAD_BYTES));
        digests.push(cluster.hosts[0].submitted(&text).await);
        if number % 10 == 9 && cluster.hosts.iter().all(has_pruned) {
            return;
        }
    }
    panic!("nothing was pruned\n{}", cluster.hosts[0].log());
}

/// The last host loses its disk and its processor.
async fn wipe_the_last(cluster: &mut Cluster) {
    let last = &mut cluster.hosts[3];
    std::fs::remove_dir_all(last.directory.join("state")).expect("removes");
    std::fs::remove_dir_all(last.directory.join("witness")).expect("removes");
    last.judge.restart().await;
}

/// One order for both, as far as both were read: commits may follow what was waited for.
fn assert_same_order(own: &Seen, theirs: &Seen) {
    let shared = own.ends.len().min(theirs.ends.len());
    assert_eq!(own.ends[..shared], theirs.ends[..shared]);
    let shared = own.ordered.len().min(theirs.ordered.len());
    assert_eq!(own.ordered[..shared], theirs.ordered[..shared]);
}

/// The last host orders, and sees what all others see.
async fn assert_goes_on(cluster: &Cluster, digests: &mut Vec<PayloadDigest>) {
    let last = &cluster.hosts[3];
    last.until_linked().await;
    digests.push(last.submitted(&format!("from the host {}", digests.len())).await);
    let theirs = cluster.hosts[0].read(digests, |_| true).await;
    let own = last.read(digests, |seen| seen.anchor.is_some()).await;
    assert_same_order(&own.seen, &theirs.seen);
    let ordered: Vec<_> = own.seen.ordered.iter().map(|(_, digest)| *digest).collect();
    assert!(digests.iter().all(|digest| ordered.contains(digest)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_host_begins_from_a_snapshot_when_the_history_is_pruned() {
    let mut cluster = pruning_cluster().await;
    let mut digests = vec![cluster.hosts[3].submitted("before the loss").await];
    cluster.hosts[0].read(&digests, |_| true).await;
    cluster.hosts[3].kill();
    // It finds itself in a later epoch, too.
    digests.push(cluster.hosts[0].submitted("members 0 1 2 3").await);
    cluster.hosts[0].until(|status| status.epoch == Epoch(1)).await;
    fill(&cluster, &mut digests).await;
    wipe_the_last(&mut cluster).await;
    cluster.hosts[3].start();
    assert_goes_on(&cluster, &mut digests).await;
    let log = cluster.hosts[3].log();
    assert!(log.contains("begun from a peer's snapshot"), "{log}");
    // What was ordered before it is known, by digest too.
    assert!(cluster.hosts[3].knows(&digests[0]).await);

    // It begins there again, with another life of its judge.
    cluster.hosts[3].kill();
    cluster.hosts[3].judge.restart().await;
    cluster.hosts[3].start();
    assert_goes_on(&cluster, &mut digests).await;
    headers_stay_and_bodies_are_gone(&mut cluster.hosts[1]);
}

/// Every event up to the mark is a signed header now, also those of the epoch before.
fn headers_stay_and_bodies_are_gone(host: &mut Host) {
    host.stop();
    let (_, records) = open(host);
    let pruned = records.pruned().expect("reads");
    let handover = records.last_handover().expect("reads").expect("an epoch has ended");
    assert_eq!(handover.epoch, pruned.epoch);
    let (round, author) = (Round(0), AuthorIndex(0));
    let from = EventKey { epoch: pruned.epoch, round, author, digest: EventDigest::ZERO };
    let (events, _) = records.events(from).expect("reads");
    assert!(events.iter().all(|event| event.header.round > pruned.round));
    let last = records.last_commit().expect("reads").expect("commits");
    let mut headers = 0;
    for index in 1..=last.index.0 {
        let commit = records.commit(CommitIndex(index)).expect("reads").expect("kept");
        let epoch = commit.epoch;
        for event in commit.events.iter().filter(|event| pruned.covers(epoch, event.round)) {
            let key = EventKey::at(epoch, *event);
            assert!(records.event(key).expect("reads").is_none());
            let signed = records.signed_header(key).expect("reads").expect("kept");
            let own = common::key(u8::try_from(event.author.0).expect("few") + 10).public_key();
            assert_eq!(signed.verify(|_| Some(&own)).expect("signed").1, event.digest);
            headers += 1;
        }
    }
    assert!(headers > 8, "only {headers} headers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_was_away_for_too_long_begins_from_a_snapshot_too() {
    let mut cluster = pruning_cluster().await;
    let mut digests = vec![cluster.hosts[3].submitted("before the absence").await];
    cluster.hosts[3].read(&digests, |_| true).await;
    cluster.hosts[3].kill();
    fill(&cluster, &mut digests).await;
    cluster.hosts[3].start();
    assert_goes_on(&cluster, &mut digests).await;
}

/// A cluster whose last host has lost everything and finds two peers up, whose stores were damaged
/// so; and what was ordered.
async fn begin_again_from_damaged(damage: [fn(&Host); 2]) -> (Cluster, Vec<PayloadDigest>) {
    let mut cluster = pruning_cluster().await;
    cluster.hosts[3].kill();
    let mut digests = Vec::new();
    fill(&cluster, &mut digests).await;
    for host in &mut cluster.hosts[..3] {
        host.stop();
    }
    for (host, damage) in cluster.hosts.iter().zip(damage) {
        damage(host);
    }
    wipe_the_last(&mut cluster).await;
    for index in [0, 1, 3] {
        cluster.hosts[index].start();
    }
    (cluster, digests)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_one_peer_cannot_finish_goes_on_with_another() {
    // The one has only the first chunks, the other only the last ones as they should be.
    let (mut cluster, mut digests) = begin_again_from_damaged([lose_chunks, falsify]).await;
    cluster.hosts[3].until_log(|log| log.contains("begun from a peer's snapshot")).await;
    assert!(cluster.hosts[3].log().contains("it has not all parts any more"));
    cluster.hosts[2].start();
    assert_goes_on(&cluster, &mut digests).await;
}

/// Takes the end of a stopped host's newest snapshot away.
fn lose_chunks(host: &Host) {
    let (store, records) = open(host);
    let offer = records.newest_offer().expect("reads").expect("it has one");
    assert!(offer.head.chunks > 5, "{:?}", offer.head);
    let removals = records.chunk_removals(SnapshotKey::own(offer.head.made_after)).expect("reads");
    store.commit(&removals[4..]).expect("commits");
}

/// Puts something else in the place of a stopped host's newest snapshot and of its past.
fn falsify(host: &Host) {
    let (store, records) = open(host);
    let offer = records.newest_offer().expect("reads").expect("it has one");
    let own = SnapshotKey::own(offer.head.made_after);
    let chunk = records.snapshot_chunk(own, 1).expect("reads").expect("it has it");
    let other: Bytes = chunk.iter().map(|byte| byte ^ 1).collect();
    store.commit(&[chunk_change(own, 1, &other)]).expect("commits");
}

/// Changes what no header attests of the commit of a stopped host's newest snapshot.
fn falsify_frontier(host: &Host) {
    let (store, records) = open(host);
    let end = records.newest_offer().expect("reads").expect("it has one").head.end;
    let mut commit = records.commit(end.index).expect("reads").expect("it is kept");
    commit.floor = Round(commit.floor.0 - 1);
    let mut recorder = Recorder::new(AuthorIndex(0), (Epoch(0), &[]), Pool::default());
    let (changes, _) = recorder.changes_of(&[Record::Commit(commit)]);
    store.commit(&changes).expect("commits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_member_that_names_a_false_frontier_again_and_again_keeps_nobody_out() {
    let (mut cluster, mut digests) = begin_again_from_damaged([falsify_frontier, |_| {}]).await;
    let refused = "too few members say the same of its commit";
    cluster.hosts[3].until_log(|log| log.contains(refused)).await;
    cluster.hosts[2].start();
    cluster.hosts[3].until_log(|log| log.contains("begun from a peer's snapshot")).await;
    assert_goes_on(&cluster, &mut digests).await;
}

/// Takes a payload out of a stopped host's past.
fn falsify_past(host: &Host) {
    let (store, records) = open(host);
    let end = records.newest_offer().expect("reads").expect("it has one").head.end.index;
    let mut page = records.releases(CommitIndex(0), end, 1).expect("reads");
    let mut sealed = page.pop().expect("payloads were ordered");
    sealed.release.releases.clear();
    store.commit(&[records::release_change(&sealed)]).expect("commits");
}

/// Bytes of the map of a store that is small.
const SMALL_MAP_GIB: u64 = 1;

/// Puts so much into a stopped host's newest snapshot that no small store can hold it.
fn swell(host: &Host) {
    let (store, records) = open(host);
    let offer = records.newest_offer().expect("reads").expect("it has one");
    let chunk = Bytes::from(vec![7; 2 * SNAPSHOT_CHUNK_BYTES_MAX]);
    let bytes = u64::try_from(chunk.len()).expect("fits");
    let chunks = u32::try_from((SMALL_MAP_GIB << 30) / bytes).expect("fits") + 100;
    let own = SnapshotKey::own(offer.head.made_after);
    let numbers: Vec<_> = (0..chunks).collect();
    for some in numbers.chunks(64) {
        let changes = some.iter().map(|number| chunk_change(own, *number, &chunk));
        store.commit(&changes.collect::<Vec<_>>()).expect("commits");
    }
    let head = SnapshotHead { chunks, ..offer.head };
    store.commit(&[head_change(&Kept { head, source: Source::Own })]).expect("commits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_sends_more_than_there_is_room_for_is_left_and_its_parts_are_thrown_away() {
    let (mut cluster, mut digests) = begin_again_from_damaged([swell, |host| {
        // The last one's store is small; the second host's is as it was.
        let last = host.directory.with_file_name("h3").join("ledger.toml");
        let text = std::fs::read_to_string(&last).expect("reads");
        let small = text.replace("map_gib = 16", &format!("map_gib = {SMALL_MAP_GIB}"));
        assert_ne!(text, small);
        std::fs::write(last, small).expect("writes");
    }])
    .await;
    cluster.hosts[3].until_log(|log| log.contains("too little room for what it sends")).await;
    cluster.hosts[3].until_log(|log| log.contains("begun from a peer's snapshot")).await;
    assert!(!cluster.hosts[3].log().contains("the store is full"), "{}", cluster.hosts[3].log());
    cluster.hosts[2].start();
    assert_goes_on(&cluster, &mut digests).await;
}

/// Plays the first member: asked how an epoch began it sends a byte each time, just in time, of a
/// whole that is as long as may be.
async fn trickle(genesis: Genesis, cluster: ClusterId, asked: Arc<AtomicUsize>) {
    let stream = loop {
        match peer::link(&genesis, cluster, AuthorIndex(3)).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let (reading, writing) = tokio::io::split(stream);
    let (mut reader, mut writer) = (frames::FrameReader::new(reading), frames::writer(writing));
    while let Ok(Some(frame)) = reader.next().await {
        let message = PeerMessage::read(&frame).expect("an honest peer");
        if let PeerMessage::AskPart { part: part @ Part::Handover { .. } } = message {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PART_WAIT_MAX - Duration::from_secs(1)).await;
            let piece = Piece { total: HANDOVER_BYTES_MAX, bytes: Bytes::from_static(&[0]) };
            let bytes = codec::encode(&piece).into();
            let frame = Bytes::from(PeerMessage::Part { part, bytes }.to_bytes());
            if writer.send(frame).await.is_err() {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_shows_an_epoch_byte_by_byte_holds_a_newcomer_up_for_less_than_a_minute() {
    let mut cluster = pruning_cluster().await;
    cluster.hosts[3].kill();
    let mut digests = Vec::new();
    fill(&cluster, &mut digests).await;
    cluster.hosts[0].kill();
    let asked = Arc::new(AtomicUsize::new(0));
    let liar = tokio::spawn(trickle(cluster.genesis.clone(), cluster.id, asked.clone()));
    wipe_the_last(&mut cluster).await;
    cluster.hosts[3].start();
    cluster.hosts[3].until_log(|log| log.contains("begun from a peer's snapshot")).await;
    assert!(asked.load(Ordering::Relaxed) > 0, "the liar was not asked at all");
    liar.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_false_snapshot_and_a_false_past_are_found_and_another_peer_is_asked() {
    let (mut cluster, mut digests) = begin_again_from_damaged([falsify, falsify_past]).await;
    let both = |log: &str| {
        log.contains("its chunks do not lead to the attested state")
            && log.contains("its releases are not the history of the attested state")
    };
    cluster.hosts[3].until_log(both).await;
    cluster.hosts[2].start();
    assert_goes_on(&cluster, &mut digests).await;
}

/// Waits until all of these hosts are in an epoch.
async fn until_epoch(hosts: &[Host], epoch: u64) {
    for host in hosts {
        host.until(|status| status.epoch == Epoch(epoch)).await;
    }
}

/// Takes out of a stopped host's store who votes in the second epoch after the founding.
fn hide_voters(host: &Host) {
    let (store, records) = open(host);
    let mut beginning = records.beginning_of(Epoch(2)).expect("reads").expect("it was there");
    assert!(beginning.members.take().is_some());
    store.commit(&[fetched_change(beginning)]).expect("commits");
}

/// Takes one of the headers that certify that epoch out of a stopped host's store.
fn lose_header(host: &Host) {
    let (store, records) = open(host);
    let mut beginning = records.beginning_of(Epoch(2)).expect("reads").expect("it was there");
    // Three voted before, and all of them must say so.
    beginning.handover.headers.truncate(2);
    store.commit(&[fetched_change(beginning)]).expect("commits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_epoch_is_believed_for_every_handover_that_leads_there_and_for_none_less() {
    let mut cluster = pruning_cluster().await;
    let mut digests = Vec::new();
    for (epoch, members) in (1..).zip(["members 0 1 2", "members 0 1 2 3", "members 2 1 0"]) {
        digests.push(cluster.hosts[0].submitted(members).await);
        until_epoch(&cluster.hosts, epoch).await;
    }
    cluster.hosts[3].kill();
    fill(&cluster, &mut digests).await;
    for host in &mut cluster.hosts[..3] {
        host.stop();
    }
    hide_voters(&cluster.hosts[0]);
    lose_header(&cluster.hosts[1]);
    wipe_the_last(&mut cluster).await;
    for index in [0, 1, 3] {
        cluster.hosts[index].start();
    }
    let both = |log: &str| {
        log.contains("nothing shown proves who the members of epoch 2 are")
            && log.contains("the handover to epoch 2 is not certified")
    };
    cluster.hosts[3].until_log(both).await;
    assert_eq!(cluster.hosts[3].status().await.committed, CommitIndex(0));
    cluster.hosts[2].start();
    assert_goes_on(&cluster, &mut digests).await;
    until_epoch(&cluster.hosts[3..], 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_from_outside_the_genesis_begins_from_a_snapshot_in_a_later_epoch_and_votes() {
    let mut cluster = pruning_cluster().await;
    let mut digests = Vec::new();
    for (epoch, members) in (1..).zip(["members 0 1 2", "members 0 1 2 3"]) {
        digests.push(cluster.hosts[0].submitted(members).await);
        until_epoch(&cluster.hosts, epoch).await;
    }
    let address = common::free_addresses(1)[0];
    digests.push(cluster.hosts[0].submitted(&format!("seat 4 50 {address}")).await);
    cluster.hosts[0].until(|status| status.members.len() == 5).await;
    fill(&cluster, &mut digests).await;
    cluster.add(4, 50, 0);
    cluster.hosts[4].start();
    cluster.hosts[4].until(|status| status.epoch == Epoch(2)).await;
    assert!(cluster.hosts[4].log().contains("begun from a peer's snapshot"));
    digests.push(cluster.hosts[4].submitted("members 0 1 2 4").await);
    until_epoch(&cluster.hosts, 3).await;
    // It signs once the others have told it that nobody knows of events of its own.
    let signs = |status: &LedgerStatus| status.round.0 > 0 && status.unavailable.is_none();
    cluster.hosts[4].until(signs).await;
    // Without one of the four that vote it is needed.
    cluster.hosts[1].kill();
    digests.push(cluster.hosts[4].submitted("it votes").await);
    let theirs = cluster.hosts[0].read(&digests, |_| true).await;
    let own = cluster.hosts[4].read(&digests, |seen| seen.anchor.is_some()).await;
    assert_same_order(&own.seen, &theirs.seen);
}

/// A cluster in its second epoch whose last host has lost everything and finds two peers up, the
/// first of which was changed so; and what was ordered.
async fn begin_again_in_a_later_epoch(damage: fn(&Host)) -> (Cluster, Vec<PayloadDigest>) {
    let mut cluster = pruning_cluster().await;
    let mut digests = vec![cluster.hosts[0].submitted("members 0 1 2 3").await];
    until_epoch(&cluster.hosts, 1).await;
    cluster.hosts[3].kill();
    fill(&cluster, &mut digests).await;
    for host in &mut cluster.hosts[..3] {
        host.stop();
    }
    damage(&cluster.hosts[0]);
    wipe_the_last(&mut cluster).await;
    for index in [0, 1, 3] {
        cluster.hosts[index].start();
    }
    cluster.hosts[3].until_log(|log| log.contains("begun from a peer's snapshot")).await;
    cluster.hosts[2].start();
    (cluster, digests)
}

/// Shows how the epoch began as it was, but not in the frontier: there its headers certify nothing.
fn falsify_frontier_headers(host: &Host) {
    let (store, records) = open(host);
    let beginning = records.beginning_of(Epoch(1)).expect("reads").expect("it was there");
    let mut handover = beginning.handover.clone();
    handover.headers.truncate(1);
    let changes = [fetched_change(beginning), handover_change(&handover)];
    store.commit(&changes).expect("commits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_a_frontier_brings_is_never_shown_to_anybody_unchecked() {
    let (cluster, mut digests) = begin_again_in_a_later_epoch(falsify_frontier_headers).await;
    let begun = "a peer's snapshot is fetched";
    assert_eq!(cluster.hosts[3].log().matches(begun).count(), 1, "the first one asked is used");
    assert_goes_on(&cluster, &mut digests).await;
}

/// Shows a true certificate with a false ledger time, which nobody has signed.
fn falsify_ledger_time(host: &Host) {
    let (store, records) = open(host);
    let mut beginning = records.beginning_of(Epoch(1)).expect("reads").expect("it was there");
    beginning.handover.founding.ledger_time.0 += 1;
    store.commit(&[fetched_change(beginning)]).expect("commits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_false_ledger_time_beside_a_true_certificate_keeps_nobody_out() {
    let (cluster, mut digests) = begin_again_in_a_later_epoch(falsify_ledger_time).await;
    assert!(!cluster.hosts[3].log().contains("its epoch began otherwise"));
    assert_goes_on(&cluster, &mut digests).await;
}
