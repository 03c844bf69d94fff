//! One suite for both stores, and what only the one on disk can show.
//!
//! Pins: commits are whole and survive a reopening, pages are in order both ways, a full store
//! writes nothing and still reads, and a changed byte is found at the next read.

use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use dagger_ledger::store::lmdb::LmdbStore;
use dagger_ledger::store::memory::{Fault, MemoryStore};
use dagger_ledger::store::records::{self, OrderedAt, Records};
use dagger_ledger::store::{Change, Direction, Store, StoreError, Table, pages};
use dagger_payload::event::CommitEnd;
use dagger_payload::id::{CommitIndex, PayloadDigest, Position, PrefixHash, StateRoot};

const MAP_BYTES: usize = 1 << 30;

fn put(table: Table, key: &[u8], value: &[u8]) -> Change {
    Change::Put { table, key: key.to_vec(), value: value.to_vec() }
}

fn delete(table: Table, key: &[u8]) -> Change {
    Change::Delete { table, key: key.to_vec() }
}

fn keys(store: &dyn Store, from: &[u8], direction: Direction, count_max: usize) -> Vec<Vec<u8>> {
    let page = store.page(Table::Events, from, direction, count_max).expect("reads");
    page.into_iter().map(|(key, _)| key).collect()
}

/// The first `count` keys that a visitor from `from` on is shown, and their values.
fn visited(store: &dyn Store, from: &[u8], count: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut shown = Vec::new();
    let look = &mut |key: &[u8], value: &[u8]| {
        shown.push((key.to_vec(), value.to_vec()));
        if shown.len() < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    store.visit(Table::Events, from, look).expect("reads");
    shown
}

fn conforms(store: &dyn Store) {
    assert_eq!(store.get(Table::Meta, b"x").expect("reads"), None);
    assert_eq!(store.first(Table::Events).expect("reads"), None);
    assert_eq!(store.last(Table::Events).expect("reads"), None);
    store.commit(&[]).expect("an empty commit does nothing");

    let changes: Vec<_> = [b"b", b"d", b"f"].map(|key| put(Table::Events, key, key)).into();
    store.commit(&changes).expect("commits");
    assert_eq!(store.get(Table::Events, b"d").expect("reads"), Some(b"d".to_vec()));
    assert_eq!(store.get(Table::Commits, b"d").expect("reads"), None, "tables are apart");
    assert!(store.contains(Table::Events, b"d").expect("reads"));
    assert!(!store.contains(Table::Events, b"e").expect("reads"));

    use Direction::{Backward, Forward};
    assert_eq!(keys(store, b"", Forward, 9), [b"b", b"d", b"f"]);
    assert_eq!(keys(store, b"", Backward, 9), [b"f", b"d", b"b"]);
    assert_eq!(keys(store, b"d", Forward, 9), [b"d", b"f"]);
    assert_eq!(keys(store, b"d", Backward, 9), [b"d", b"b"]);
    assert_eq!(keys(store, b"c", Forward, 1), [b"d"]);
    assert_eq!(keys(store, b"e", Backward, 1), [b"d"]);
    assert_eq!(keys(store, b"g", Backward, 9), [b"f", b"d", b"b"]);
    assert!(keys(store, b"g", Forward, 9).is_empty());
    assert!(keys(store, b"a", Backward, 9).is_empty());
    assert!(keys(store, b"", Forward, 0).is_empty());
    let entry = |key: &[u8]| (key.to_vec(), key.to_vec());
    assert_eq!(visited(store, b"", 2), [entry(b"b"), entry(b"d")]);
    assert_eq!(visited(store, b"c", 9), [entry(b"d"), entry(b"f")]);
    assert_eq!(visited(store, b"f", 9), [entry(b"f")]);
    assert_eq!(visited(store, b"g", 9), []);
    assert_eq!(store.first(Table::Events).expect("reads").expect("some").0, b"b");
    assert_eq!(store.last(Table::Events).expect("reads").expect("some").0, b"f");

    // What is there stays when only a new record was to be written.
    let new = |key: &[u8], value: &[u8]| {
        let (table, key, value) = (Table::Meta, key.to_vec(), value.to_vec());
        Change::PutNew { table, key, value }
    };
    store.commit(&[put(Table::Meta, b"a", b"1"), new(b"a", b"2"), new(b"b", b"3")]).expect("keeps");
    assert_eq!(store.get(Table::Meta, b"a").expect("reads"), Some(b"1".to_vec()));
    assert_eq!(store.get(Table::Meta, b"b").expect("reads"), Some(b"3".to_vec()));

    // Within one commit the later change counts; deleting what is not there is nothing.
    let changes = [
        put(Table::Events, b"d", b"new"),
        delete(Table::Events, b"f"),
        delete(Table::Events, b"absent"),
        put(Table::Events, b"h", b"1"),
        put(Table::Events, b"h", b"2"),
    ];
    store.commit(&changes).expect("commits");
    assert_eq!(store.get(Table::Events, b"d").expect("reads"), Some(b"new".to_vec()));
    assert_eq!(store.get(Table::Events, b"h").expect("reads"), Some(b"2".to_vec()));
    assert_eq!(keys(store, b"", Forward, 9), [b"b", b"d", b"h"]);
    assert!(store.used_bytes().expect("measures") > 0);
}

#[test]
fn both_stores_keep_the_same_promises() {
    conforms(&MemoryStore::default());
    let directory = tempfile::tempdir().expect("a directory");
    conforms(&LmdbStore::open(directory.path(), MAP_BYTES).expect("opens"));
}

fn end(index: u64) -> CommitEnd {
    CommitEnd {
        index: CommitIndex(index),
        position: Position(index * 2),
        prefix_hash: PrefixHash([1; 32]),
        state_root: StateRoot([2; 32]),
    }
}

fn keeps_records(store: Arc<dyn Store>) {
    let digest = PayloadDigest([5; 32]);
    let at = OrderedAt { position: Position(3), commit: CommitIndex(2) };
    let changes = [
        records::judged_change(&end(0)),
        records::judged_change(&end(5)),
        records::ordered_change(&digest, &at),
    ];
    store.commit(&changes).expect("commits");
    let records = Records::new(store.clone());
    assert_eq!(records.ordered(&digest).expect("reads"), Some(at));
    assert_eq!(records.judged(CommitIndex(5)).expect("reads"), Some(end(5)));
    let between = CommitEnd { index: CommitIndex(4), ..end(0) };
    assert_eq!(records.judged(CommitIndex(4)).expect("reads"), Some(between));
    assert_eq!(records.last_judged().expect("reads"), Some(end(5)));

    // One flipped bit, and a value moved to another key, are both found.
    let (key, value) = store.last(Table::Judged).expect("reads").expect("some");
    for at in 0..value.len() {
        let mut flipped = value.clone();
        flipped[at] ^= 4;
        store.commit(&[put(Table::Judged, &key, &flipped)]).expect("commits");
        let read = records.last_judged();
        assert!(matches!(read, Err(StoreError::Damaged { .. })), "byte {at}");
    }
    store.commit(&[put(Table::Judged, &[9; 8], &value)]).expect("commits");
    assert!(matches!(records.last_judged(), Err(StoreError::Damaged { .. })));
}

#[test]
fn a_changed_or_moved_record_is_found_at_its_next_read() {
    keeps_records(Arc::new(MemoryStore::default()));
    let directory = tempfile::tempdir().expect("a directory");
    keeps_records(Arc::new(LmdbStore::open(directory.path(), MAP_BYTES).expect("opens")));
}

#[test]
fn what_was_committed_is_there_after_reopening_and_only_one_may_have_it_open() {
    let directory = tempfile::tempdir().expect("a directory");
    let open = || LmdbStore::open(directory.path(), MAP_BYTES);
    let store = open().expect("opens");
    store.commit(&[put(Table::Events, b"a", b"1")]).expect("commits");
    assert!(matches!(open(), Err(StoreError::OpenAlready(_))));
    drop(store);
    let store = open().expect("opens again");
    assert_eq!(store.get(Table::Events, b"a").expect("reads"), Some(b"1".to_vec()));
}

#[test]
fn a_full_map_writes_nothing_reads_on_and_takes_deletes() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = LmdbStore::open(directory.path(), 1 << 20).expect("opens");
    let mut kept = 0_u32;
    let refused = loop {
        let changes = [
            put(Table::Events, &kept.to_be_bytes(), &[7; 4096]),
            put(Table::Commits, &kept.to_be_bytes(), b"same commit"),
        ];
        match store.commit(&changes) {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 1000, "a map of 1 MiB must be full by now");
    };
    assert!(matches!(refused, StoreError::Full(_)), "{refused}");
    for number in 0..kept {
        let key = number.to_be_bytes();
        assert!(store.contains(Table::Events, &key).expect("reads"));
        assert!(store.contains(Table::Commits, &key).expect("reads"));
    }
    assert!(!store.contains(Table::Commits, &kept.to_be_bytes()).expect("reads"));
}

#[test]
fn planned_faults_of_the_memory_store_act_as_a_crashed_process_would_find_them() {
    let store = MemoryStore::default();
    store.commit(&[put(Table::Events, b"a", b"1")]).expect("commits");
    store.fail_next(Fault::Sync);
    assert!(store.commit(&[put(Table::Events, b"b", b"1")]).is_err());
    store.fail_next(Fault::CrashAfter);
    assert!(store.commit(&[put(Table::Events, b"c", b"1")]).is_err());
    store.fail_next(Fault::Full);
    let full = store.commit(&[put(Table::Events, b"d", b"1")]);
    assert!(matches!(full, Err(StoreError::Full(_))));
    assert_eq!(keys(&store.crash(), b"", Direction::Forward, 9), [b"a", b"c"]);
}

#[test]
fn only_one_file_imports_the_store_crate() {
    fn walk(directory: &Path, importing: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).expect("reads") {
            let path = entry.expect("reads").path();
            if path.is_dir() {
                walk(&path, importing);
            } else {
                let text = std::fs::read_to_string(&path).expect("is text");
                if text.contains("use lmdb::") || text.contains(" lmdb::Env") {
                    importing.push(path.file_name().expect("a name").display().to_string());
                }
            }
        }
    }
    let mut importing = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut importing);
    assert_eq!(importing, ["lmdb.rs"]);
}

/// Fills a store with small and large records, deletes some, and gives its file.
fn written_store(directory: &Path) -> std::path::PathBuf {
    let store = LmdbStore::open(directory, 1 << 30).expect("opens");
    for round in 0..40_u32 {
        let mut changes = Vec::new();
        for number in 0..60_u32 {
            let key = (round * 60 + number).to_be_bytes();
            let large = if number % 20 == 0 { 9_000 } else { 40 + number as usize };
            changes.push(put(Table::Events, &key, &vec![7; large]));
            changes.push(put(Table::Commits, &key, &[1; 30]));
        }
        store.commit(&changes).expect("writes");
        let old = (round * 37).to_be_bytes().to_vec();
        store.commit(&[Change::Delete { table: Table::Events, key: old }]).expect("deletes");
    }
    directory.join("data.mdb")
}

#[test]
fn a_whole_file_passes_and_a_flip_in_the_header_of_a_used_page_does_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = written_store(directory.path());
    pages::check(&path).expect("it is whole");
    let whole = std::fs::read(&path).expect("reads");
    let field = |page: usize, at: usize| {
        u16::from_ne_bytes([whole[page * 4096 + at], whole[page * 4096 + at + 1]])
    };
    let other = directory.path().join("flipped");
    let file = std::fs::File::create(&other).expect("makes");
    file.write_all_at(&whole, 0).expect("writes");
    let (mut found, mut unused) = (0, 0);
    for page in 2..whole.len() / 4096 {
        if ![1, 2].contains(&field(page, 10)) {
            continue;
        }
        // Number, flags, and the ends of the free room; what lies between is padding.
        for within in (0..8).chain(10..16) {
            let at = page * 4096 + within;
            file.write_all_at(&[whole[at] ^ 0x04], at as u64).expect("writes");
            match pages::check(&other) {
                Err(StoreError::Page { .. }) => found += 1,
                // A page of an older state, which nothing leads to.
                Ok(()) => unused += 1,
                Err(error) => panic!("{error}"),
            }
            file.write_all_at(&whole[at..=at], at as u64).expect("writes");
        }
    }
    pages::check(&other).expect("it is whole again");
    assert!(found > 500, "{found} flips were found, {unused} were in pages that nothing leads to");
    // Of one page all flips are found, or none.
    assert_eq!((found % 14, unused % 14), (0, 0), "{found} found, {unused} not");
}

/// Reads within a read within a read, so many in all.
fn read_within(store: &LmdbStore, depth: usize) {
    let mut seen = false;
    let mut look = |_: &[u8], _: &[u8]| {
        seen = true;
        if depth > 1 {
            read_within(store, depth - 1);
        }
        std::ops::ControlFlow::Break(())
    };
    store.visit(Table::Meta, &[], &mut look).expect("there is a place for one more reader");
    assert!(seen);
}

#[test]
fn every_thread_of_the_runtime_may_read_at_the_same_time() {
    // As many as tokio has that may block, and more workers than a host has cores.
    const THREADS: usize = 512 + 256;
    let directory = tempfile::tempdir().expect("a directory");
    let store = LmdbStore::open(directory.path(), 1 << 30).expect("opens");
    let (key, value) = (b"key".to_vec(), b"value".to_vec());
    store.commit(&[Change::Put { table: Table::Meta, key, value }]).expect("commits");
    read_within(&store, THREADS);
}
