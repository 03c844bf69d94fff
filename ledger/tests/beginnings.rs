//! Records of a host that began from another one's snapshot, or that pruned.
//!
//! Pins: what such a host has it can give on at once, and pruning leaves what it needs to go on
//! itself.

use std::sync::Arc;

use dagger_ledger::driver::start::{FIRST_EPOCH, overdue_testimony};
use dagger_ledger::store::Store;
use dagger_ledger::store::memory::MemoryStore;
use dagger_ledger::store::past::fetched_release_change;
use dagger_ledger::store::pool::Pool;
use dagger_ledger::store::pruning::{Pruned, pruned_change};
use dagger_ledger::store::records::{EventKey, InstanceId, Recorder, Records, release_change};
use dagger_ledger::store::witness::{Signed, Testimony};
use dagger_ledger_core::interface::Record;
use dagger_ledger_core::{CommitRecord, Frontier};
use dagger_payload::committee::Committee;
use dagger_payload::event::{Attestation, CommitEnd, EVENT_VERSION, Event, Header, Parent};
use dagger_payload::handover::{Founding, Handover};
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, Epoch, EventDigest, LedgerTime, MerkleRoot, Position,
    PrefixHash, Round, StateRoot,
};
use dagger_payload::key::Signature;
use dagger_payload::payload::{SignatureKind, SignedPayload};
use dagger_payload::peer::Highest;
use dagger_payload::release::{CommitRelease, QuorumEvidence, SealedRelease};
use dagger_payload::snapshot::{SnapshotHead, SnapshotOffer};

fn end(index: u64) -> CommitEnd {
    CommitEnd {
        index: CommitIndex(index),
        position: Position(index),
        prefix_hash: PrefixHash([1; 32]),
        state_root: StateRoot([2; 32]),
    }
}

/// A commit of its index' round, which collects what lies four rounds below.
fn commit(index: u64) -> CommitRecord {
    let digest = EventDigest::ZERO;
    CommitRecord {
        index: CommitIndex(index),
        leader: Parent { author: AuthorIndex(0), round: Round(index), digest },
        slot: 0,
        events: Vec::new(),
        forked: Vec::new(),
        first_position: Position(index),
        last_position: Position(index),
        ledger_time: LedgerTime(index),
        prefix_hash: PrefixHash([1; 32]),
        collection_round: Round(index.saturating_sub(4)),
        floor: Round(index.saturating_sub(8)),
        epoch: FIRST_EPOCH,
    }
}

#[test]
fn who_began_from_a_snapshot_can_offer_it_to_the_next() {
    let store = Arc::new(MemoryStore::default());
    let records = Records::new(store.clone());
    let frontier = Frontier { handover: None, commits: (16..=20).map(commit).collect() };
    let head = SnapshotHead { end: end(20), chunks: 0, bytes: 0, made_after: CommitIndex(20) };
    let offer = SnapshotOffer { head, evidence: QuorumEvidence { headers: Vec::new() } };
    let own = (AuthorIndex(0), &Pool::default());
    let changes = records.beginning_changes(&offer, &frontier, own).expect("reads");
    store.commit(&changes).expect("commits");
    assert_eq!(records.newest_offer().expect("reads"), Some(offer));
    assert_eq!(records.frontier(CommitIndex(20)).expect("reads"), Some(frontier));
    assert_eq!(records.frontier(CommitIndex(19)).expect("reads"), None, "parts of it are not here");
    let (changes, _) = Recorder::new(AuthorIndex(0), (Epoch(0), &[]), Pool::default())
        .changes_of(&[Record::Commit(commit(21))]);
    store.commit(&changes).expect("commits");
    let next = records.frontier(CommitIndex(21)).expect("reads").expect("whole");
    assert_eq!(next.commits, (17..=21).map(commit).collect::<Vec<_>>());
}

fn event(author: u16, round: u64, parents: Vec<Parent>) -> Arc<Event> {
    carrying(Vec::new(), author, round, parents)
}

fn event_of(epoch: Epoch, author: u16, round: u64) -> Arc<Event> {
    let first = event(author, 1, Vec::new());
    let header = Header { epoch, ..event(author, round, vec![first.as_parent()]).header.clone() };
    Arc::new(Event::make(header, Vec::new(), |_| Signature([1; 64])))
}

fn carrying(
    payloads: Vec<SignedPayload>,
    author: u16,
    round: u64,
    parents: Vec<Parent>,
) -> Arc<Event> {
    let header = Header {
        version: EVENT_VERSION,
        cluster: ClusterId([3; 32]),
        epoch: FIRST_EPOCH,
        round: Round(round),
        author: AuthorIndex(author),
        parents,
        payload_root: MerkleRoot::ZERO,
        payload_count: 0,
        timestamp: LedgerTime(9),
        attestation: Attestation { newest: end(1), checkpoint: None },
    };
    Arc::new(Event::make(header, payloads, |_| Signature([1; 64])))
}

#[test]
fn what_a_snapshot_leaves_behind_is_back_in_the_pool_before_the_core_hears_of_it() {
    let payload = |text: &'static str| {
        let (signature_kind, signature) = (SignatureKind::SshEd25519, Signature([3; 64]));
        SignedPayload { signature_kind, signature, bytes: text.into() }
    };
    let carried = |text, author, round: u64| {
        let (by, digest) = (AuthorIndex(author), EventDigest::ZERO);
        let before = Parent { author: by, round: Round(round - 1), digest };
        carrying(vec![payload(text)], author, round, vec![before])
    };
    let (ordered, left) = (carried("ordered", 0, 2), carried("left behind", 0, 3));
    let (other, above) = (carried("another's", 1, 3), carried("may be ordered", 0, 18));
    let store = Arc::new(MemoryStore::default());
    let (records, pool) = (Records::new(store.clone()), Pool::default());
    let mut last = commit(4);
    last.events = vec![ordered.as_parent()];
    let kept = [&ordered, &left, &other, &above].map(|event| Record::Event(event.clone()));
    let kept: Vec<_> = kept.into_iter().chain([Record::Commit(last)]).collect();
    let (changes, _) =
        Recorder::new(AuthorIndex(0), (Epoch(0), &[]), pool.clone()).changes_of(&kept);
    store.commit(&changes).expect("commits");
    let begin = |frontier: &Frontier| {
        let head = SnapshotHead { end: end(20), chunks: 0, bytes: 0, made_after: CommitIndex(20) };
        let offer = SnapshotOffer { head, evidence: QuorumEvidence { headers: Vec::new() } };
        let changes = records.beginning_changes(&offer, frontier, (AuthorIndex(0), &pool));
        store.commit(&changes.expect("reads")).expect("commits");
    };
    begin(&Frontier { handover: None, commits: (16..=20).map(commit).collect() });
    assert_eq!(records.pool().expect("reads"), [payload("left behind")]);
    begin(&Frontier { handover: None, commits: (20..=24).map(commit).collect() });
    let both = [payload("left behind"), payload("may be ordered")];
    assert_eq!(records.pool().expect("reads"), both, "the first one only once");
}

#[test]
fn the_newest_own_event_is_not_pruned_until_there_is_a_newer_one() {
    let (own, other) = (event(0, 1, vec![]), event(1, 1, vec![]));
    let newer = event(0, 9, vec![own.as_parent()]);
    let store = Arc::new(MemoryStore::default());
    let records = Records::new(store.clone());
    let mut recorder = Recorder::new(AuthorIndex(0), (Epoch(0), &[]), Pool::default());
    let mut record = |event: &Arc<Event>| {
        let (changes, _) = recorder.changes_of(&[Record::Event(event.clone())]);
        store.commit(&changes).expect("commits");
    };
    record(&own);
    record(&other);
    let pruned = Pruned { epoch: FIRST_EPOCH, round: Round(5) };
    store.commit(&[pruned_change(&pruned)]).expect("commits");
    let prune = || {
        store.commit(&records.body_removals(pruned).expect("reads")).expect("commits");
        assert_eq!(records.body_removals(pruned).expect("reads"), [], "nothing is left to prune");
    };
    prune();
    assert_eq!(records.own_last().expect("reads"), Some(own.clone()));
    assert_eq!(records.event(EventKey::of(&other)).expect("reads"), None);
    record(&newer);
    prune();
    assert_eq!(records.own_last().expect("reads"), Some(newer));
    assert_eq!(records.event(EventKey::of(&own)).expect("reads"), None);
}

#[test]
fn what_the_core_writes_of_an_epoch_that_a_snapshot_left_behind_counts_for_nothing_in_the_next() {
    let store = Arc::new(MemoryStore::default());
    let records = Records::new(store.clone());
    let (me, pool) = (AuthorIndex(0), Pool::default());
    let mut recorder = Recorder::new(me, (FIRST_EPOCH, &[]), pool.clone());
    let mut write = |record: Record| {
        let (changes, signed) = recorder.changes_of(&[record]);
        store.commit(&changes).expect("commits");
        signed
    };
    let first = event(0, 1, vec![]).as_parent();
    write(Record::Event(event(0, 7, vec![first])));
    let committee = Committee::new(4).expect("four may vote");
    let (epoch, headers) = (Epoch(2), Vec::new());
    let founding = Founding { end: end(15), ledger_time: LedgerTime(15) };
    let handover = Handover { epoch, committee, founding, headers };
    let commits = (16..=20).map(|index| CommitRecord { epoch, ..commit(index) }).collect();
    let frontier = Frontier { handover: Some(handover.clone()), commits };
    let head = SnapshotHead { end: end(20), chunks: 0, bytes: 0, made_after: CommitIndex(20) };
    let offer = SnapshotOffer { head, evidence: QuorumEvidence { headers: Vec::new() } };
    let changes = records.beginning_changes(&offer, &frontier, (me, &pool)).expect("reads");
    store.commit(&changes).expect("commits");
    // The core has not heard of it yet when this becomes durable, and power goes.
    let signed = write(Record::Event(event(0, 8, vec![first])));
    let instance = InstanceId([7; 16].into());
    let testimony = signed.map(|signed| Testimony { instance, signed });
    assert_eq!(records.own_last().expect("reads"), None);
    assert_eq!(records.highest().expect("reads"), []);
    let overdue = overdue_testimony(&records, committee, instance, testimony).expect("reads");
    let began = Signed { epoch, round: Round(0) };
    assert_eq!(overdue, Some(Testimony { instance, signed: began }));
    // In the next life it goes on in that epoch.
    let mut recorder = Recorder::new(me, (epoch, &[]), pool);
    let own = event_of(epoch, 0, 3);
    let (changes, _) = recorder.changes_of(&[Record::Event(own.clone())]);
    store.commit(&changes).expect("commits");
    assert_eq!(records.own_last().expect("reads"), Some(own));
    assert_eq!(records.highest().expect("reads"), [Highest { author: me, round: Round(3) }]);
    assert_eq!(records.last_handover().expect("reads"), Some(handover));
}

/// What the judge called `by` released of a commit.
fn release(index: u64, by: u8) -> SealedRelease {
    let (releases, time_effects) = (Vec::new(), Vec::new());
    let ledger_time = LedgerTime(index);
    let release = CommitRelease { end: end(index), ledger_time, releases, time_effects };
    SealedRelease { release, seal: Signature([by; 64]) }
}

#[test]
fn what_was_fetched_is_read_by_nobody_and_replaces_nothing_until_it_is_found_to_be_true() {
    let (own, peer) = (1, 2);
    let store = Arc::new(MemoryStore::default());
    let records = Records::new(store.clone());
    let write = |changes: Vec<_>| store.commit(&changes).expect("commits");
    let all = || records.releases(CommitIndex(0), CommitIndex(9), 9).expect("reads");
    write((1..=2).map(|index| release_change(&release(index, own))).collect());
    write((3..=5).map(|index| fetched_release_change(&release(index, peer))).collect());
    assert_eq!(records.last_fetched().expect("reads"), CommitIndex(5));
    assert_eq!(all(), [release(1, own), release(2, own)]);
    // Meanwhile the own judge goes on.
    write(vec![release_change(&release(3, own))]);
    let page = |after| records.releases_with_fetched(CommitIndex(after), CommitIndex(5));
    assert_eq!(page(0).expect("reads").len(), 3);
    assert_eq!(page(3).expect("reads"), [release(4, peer), release(5, peer)]);
    // Thrown away it takes nothing of that along.
    write(records.fetched_removals().expect("reads"));
    assert_eq!(all(), [1, 2, 3].map(|index| release(index, own)));
    // Found to be true it follows that.
    write((3..=6).map(|index| fetched_release_change(&release(index, peer))).collect());
    write(records.fetched_is_true(CommitIndex(5)).expect("reads"));
    assert_eq!(records.fetched_is_true(CommitIndex(5)).expect("reads"), []);
    let expected = [(1, own), (2, own), (3, own), (4, peer), (5, peer)];
    assert_eq!(all(), expected.map(|(index, by)| release(index, by)));
    assert_eq!(records.last_fetched().expect("reads"), CommitIndex(6));
}
