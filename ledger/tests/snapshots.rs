//! Judges that begin from a snapshot instead of the whole history: real ledgers, with a test's
//! judge.

mod common;

use common::{Cluster, Host};
use dagger_ledger::store::Store;
use dagger_ledger::store::lmdb::LmdbStore;
use dagger_ledger::store::records::Records;
use dagger_ledger::store::snapshots::SnapshotKey;
use dagger_payload::id::{CommitIndex, PayloadDigest};

/// Bytes of one payload; a snapshot is asked for every few mebibytes.
const PAYLOAD_BYTES: usize = 60 * 1024;

/// Submits until a snapshot newer than `after` is kept: how many commits that takes depends on how
/// payloads fall together.
async fn fill(host: &Host, name: &str, after: CommitIndex) -> (Vec<PayloadDigest>, CommitIndex) {
    let mut digests = Vec::new();
    for number in 0..1_000 {
        let text = format!("{name} {number} {}", "x".repeat(PAYLOAD_BYTES));
        digests.push(host.submitted(&text).await);
        let snapshot = host.status().await.snapshot;
        if snapshot > after {
            return (digests, snapshot);
        }
    }
    panic!("no snapshot after a thousand payloads\n{}", host.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_judge_begins_from_a_snapshot_and_readers_see_the_whole_history() {
    let mut cluster = Cluster::start(1).await;
    let host = &mut cluster.hosts[0];
    let (mut digests, first) = fill(host, "first", CommitIndex(0)).await;
    digests.push(host.submitted("after the snapshot").await);
    let mut before = host.stream(0).await;
    before.until_attested(&digests).await;
    assert_eq!(before.seen.anchor, None);

    host.judge.restart().await;
    let after = host.read(&digests, |seen| seen.anchor.is_some()).await;
    assert_eq!(after.seen.anchor, Some(first));
    assert_eq!((&after.seen.ordered, &after.seen.ends), (&before.seen.ordered, &before.seen.ends));
    // A reader that has what lies before it is told no past.
    let mut late = host.stream(first.0).await;
    late.until(|seen| seen.caught_up.is_some()).await;
    assert_eq!(
        (late.seen.anchor, late.seen.ends.first().map(|end| end.index > first)),
        (None, Some(true))
    );

    // The newer snapshot counts, also when ledger and judge are gone at the same time.
    host.until_linked().await;
    let (more, second) = fill(host, "second", first).await;
    digests.extend(more);
    host.kill();
    host.judge.restart().await;
    host.start();
    host.until_linked().await;
    digests.push(host.submitted("after the second").await);
    let last = host.read(&digests, |seen| seen.anchor.is_some()).await;
    assert_eq!(last.seen.anchor, Some(second));
    let ordered: Vec<_> = last.seen.ordered.iter().map(|(_, digest)| *digest).collect();
    assert_eq!(ordered.len(), digests.len());
    assert!(digests.iter().all(|digest| ordered.contains(digest)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_judge_that_refuses_its_snapshot_judges_the_history_again() {
    let mut cluster = Cluster::start(1).await;
    let host = &mut cluster.hosts[0];
    let (digests, _) = fill(host, "payload", CommitIndex(0)).await;
    host.judge.restart_that_refuses_snapshots().await;
    host.until(|status| status.snapshot == CommitIndex(0)).await;
    let stream = host.read(&digests, |_| true).await;
    assert_eq!(stream.seen.anchor, None);
    assert!(host.log().contains("the processor refuses the snapshot"), "{}", host.log());
}

/// Takes the last chunk of a stopped host's newest snapshot away.
fn lose_chunk(host: &Host) {
    let directory = host.directory.join("state/store");
    let store = std::sync::Arc::new(LmdbStore::open(&directory, 16 << 30).expect("opens"));
    let records = Records::new(store.clone());
    let head = records.newest_offer().expect("reads").expect("it has one").head;
    let removals = records.chunk_removals(SnapshotKey::own(head.made_after)).expect("reads");
    store.commit(&removals[removals.len() - 1..]).expect("commits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_lacks_a_chunk_is_forgotten_and_the_store_is_not_taken_for_damaged() {
    let mut cluster = Cluster::start(1).await;
    let host = &mut cluster.hosts[0];
    let (digests, _) = fill(host, "payload", CommitIndex(0)).await;
    host.stop();
    lose_chunk(host);
    host.judge.restart().await;
    host.start();
    let stream = host.read(&digests, |_| true).await;
    assert_eq!(stream.seen.anchor, None);
    assert!(host.log().contains("the snapshot lacks a chunk"), "{}", host.log());
}
