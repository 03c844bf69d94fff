//! What comes back from a disk: records of the store, the witness file, image files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use dagger_images::header;
use dagger_ledger::store::memory::MemoryStore;
use dagger_ledger::store::pool::Pool;
use dagger_ledger::store::pruning::{Pruned, pruned_change};
use dagger_ledger::store::records::{
    self, EventKey, Instance, InstanceId, OrderedAt, Recorder, Records, Released,
};
use dagger_ledger::store::witness::{self, SLOT_BYTES, Signed, Testimony};
use dagger_ledger::store::{Change, Store, Table, snapshots};
use dagger_ledger_core::interface::{CommitRecord, Fork, Memory, Record};
use dagger_payload::event::{CommitEnd, SignedHeader};
use dagger_payload::handover::{EpochEnd, Handover};
use dagger_payload::id::{AuthorIndex, CommitIndex, Epoch, EventDigest, Position, Round};
use dagger_payload::kind::ImageFormat;
use dagger_payload::payload::SignedPayload;
use dagger_payload::peer::Highest;
use dagger_payload::release::{QuorumEvidence, SealedRelease};
use dagger_payload::snapshot::SnapshotHead;

use super::super::mutate::Form;
use super::super::samples::{World, key, world};
use super::{Answer, Target, answer, by_first_byte, numbered, require};

pub(super) const TARGETS: &[Target] = &[
    Target { name: "store", form: Form::Cbor, samples: stored_samples, read: store },
    Target { name: "record", form: Form::Cbor, samples: contents, read: content },
    Target { name: "witness", form: Form::Fixed, samples: slots, read: slot },
    Target { name: "image", form: Form::Fixed, samples: images, read: image },
    Target { name: "kernel", form: Form::Fixed, samples: kernels, read: kernel },
];

fn instance() -> InstanceId {
    InstanceId([7; 16].into())
}

fn end() -> CommitEnd {
    world().snapshot.0.end
}

/// Records of every table, as a store writes them.
fn changes(world: &World) -> Vec<Change> {
    let (cluster, author) = (world.cluster, AuthorIndex(3));
    let (commit, position) = (CommitIndex(7), Position(9));
    let fork = Fork {
        author: AuthorIndex(1),
        round: Round(2),
        first: world.events[1].signed_header(),
        second: world.events[2].signed_header(),
    };
    let handover = world.handover();
    let mut records: Vec<Record> =
        world.events.iter().map(|event| Record::Event(Arc::new(event.clone()))).collect();
    records.extend(world.frontier.commits.iter().cloned().map(Record::Commit));
    records.push(Record::Returned(world.lived.clone()));
    records.push(Record::Fork(fork));
    let (mut changes, _) =
        Recorder::new(author, (Epoch(0), &[]), Pool::default()).changes_of(&records);
    let began = [Record::Handover { handover, memory: Memory::Agrees }];
    changes.extend(Recorder::new(author, (Epoch(0), &[]), Pool::default()).changes_of(&began).0);
    let (head, chunks) = &world.snapshot;
    let kept = snapshots::Kept { head: head.clone(), source: snapshots::Source::Own };
    let digest = world.lived[0].digest();
    let through = Released { seal_key: key(9).public_key(), through: commit };
    changes.extend([
        records::instance_change(&Instance { id: instance(), cluster, author }),
        records::judged_change(&world.snapshot.0.end),
        records::epoch_end_change(&world.epoch_end()),
        records::released_change(&through),
        records::ordered_change(&digest, &OrderedAt { position, commit }),
        records::placed_change(commit),
        snapshots::chunk_change(kept.key(), 0, &Bytes::from(chunks[0].clone())),
        pruned_change(&Pruned { epoch: Epoch(0), round: Round(3) }),
    ]);
    changes.extend(snapshots::whole_changes(&kept, &world.evidence()));
    changes.extend(world.releases.iter().map(records::release_change));
    changes
}

/// Number of the table, length of the key, key and value.
fn stored(world: &World) -> Vec<Vec<u8>> {
    let as_bytes = |change: Change| match change {
        Change::Put { table, key, value } | Change::PutNew { table, key, value } => {
            let at = Table::ALL.iter().position(|each| *each == table).expect("one of all");
            let head = [u8::try_from(at).expect("few"), u8::try_from(key.len()).expect("short")];
            Some([&head[..], &key, &value].concat())
        }
        Change::Delete { .. } => None,
    };
    changes(world).into_iter().filter_map(as_bytes).collect()
}

/// A record whose checksum fits is the one that was written; whatever stands in a store, its
/// readers answer.
fn store(bytes: &[u8]) -> Result<Answer, String> {
    let [table, length, rest @ ..] = bytes else { return Ok(Answer::Refused) };
    let Some(table) = Table::ALL.get(usize::from(*table)).copied() else {
        return Ok(Answer::Refused);
    };
    let Some((key, value)) = rest.split_at_checked(usize::from(*length)) else {
        return Ok(Answer::Refused);
    };
    let checked = records::check(table, key, value.to_vec());
    if checked.is_ok() && table != Table::Headers {
        let known = stored_once().iter().any(|known| known == bytes);
        require(known, "a record that nobody wrote has a fitting checksum")?;
    }
    let store = MemoryStore::default();
    let (key, value) = (key.to_vec(), value.to_vec());
    store.commit(&[Change::Put { table, key, value }]).map_err(|error| error.to_string())?;
    read_all(&Records::new(Arc::new(store)));
    answer(checked)
}

fn stored_samples(_: &World) -> Vec<Vec<u8>> {
    stored_once().to_vec()
}

fn stored_once() -> &'static [Vec<u8>] {
    static STORED: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    STORED.get_or_init(|| stored(world()))
}

/// Every reader answers; what, is for others to test.
fn read_all(records: &Records) {
    let (commit, key) = (end().index, EventKey::of(&world().events[1]));
    let first = EventKey {
        epoch: Epoch(0),
        round: Round(0),
        author: AuthorIndex(0),
        digest: EventDigest([0; 32]),
    };
    let _ = (records.instance(), records.founding(), records.last_handover());
    let _ = (records.handover(Epoch(1)), records.epoch_end(), records.own_last());
    let _ = (records.event(key), records.events(first), records.last_commit());
    let _ = (records.ordered_commit(commit.next()), records.frontier(commit.next()));
    let _ = (records.ordered(&world().lived[0].digest()), records.placed(), records.highest());
    let _ = (records.judged(commit), records.last_judged(), records.released(), records.pool());
    let _ = (records.releases(CommitIndex(0), commit, 100), records.last_release());
    let _ = (records.snapshots(), records.pruned(), records.began());
}

/// What stands in records behind their checksums: a defect or a forger could have written it.
fn content(bytes: &[u8]) -> Result<Answer, String> {
    by_first_byte!(bytes, stable:
        0 => Instance,
        1 => Released,
        2 => OrderedAt,
        3 => CommitRecord,
        4 => Fork,
        5 => Highest,
        6 => Handover,
        7 => EpochEnd,
        8 => SnapshotHead,
        9 => QuorumEvidence,
        10 => SealedRelease,
        11 => SignedPayload,
        12 => CommitEnd,
        13 => SignedHeader,
        14 => CommitIndex,
        15 => Pruned,
    )
}

fn contents(world: &World) -> Vec<Vec<u8>> {
    let (cluster, author) = (world.cluster, AuthorIndex(3));
    let (commit, position, round) = (CommitIndex(7), Position(9), Round(2));
    let (first, second) = (world.events[1].signed_header(), world.events[2].signed_header());
    let mut samples = vec![
        numbered(0, &Instance { id: instance(), cluster, author }),
        numbered(1, &Released { seal_key: key(9).public_key(), through: commit }),
        numbered(2, &OrderedAt { position, commit }),
        numbered(3, &world.frontier.commits[0]),
        numbered(4, &Fork { author, round, first: first.clone(), second }),
        numbered(5, &Highest { author, round }),
        numbered(6, &world.handover()),
        numbered(7, &world.epoch_end()),
        numbered(8, &world.snapshot.0),
        numbered(9, &world.evidence()),
        numbered(12, &world.snapshot.0.end),
        numbered(13, &first),
        numbered(14, &commit),
        numbered(15, &Pruned { epoch: Epoch(0), round }),
    ];
    samples.extend(world.releases.iter().map(|sealed| numbered(10, sealed)));
    samples.extend(world.lived.iter().map(|signed| numbered(11, signed)));
    samples
}

fn testimony(round: u64) -> Testimony {
    Testimony { instance: instance(), signed: Signed { epoch: Epoch(1), round: Round(round) } }
}

fn slots(_: &World) -> Vec<Vec<u8>> {
    let slot = |round| witness::to_slot(&testimony(round));
    vec![[slot(7), slot(8)].concat(), [slot(9), slot(8)].concat()]
}

fn slot(bytes: &[u8]) -> Result<Answer, String> {
    let mut file = [0; 2 * SLOT_BYTES];
    let length = bytes.len().min(file.len());
    file[..length].copy_from_slice(&bytes[..length]);
    let (newest, next) = witness::newest_of(&file);
    require(next < 2, "there are two slots")?;
    let known = newest.is_none_or(|newest| (7..=9).map(testimony).any(|each| each == newest));
    require(known, "a testimony that nobody wrote has a fitting checksum")?;
    Ok(if newest.is_some() { Answer::Accepted } else { Answer::Refused })
}

/// The header of a small qcow2 image in clusters of 512 bytes, with its tables.
fn qcow2(version: u32) -> Vec<u8> {
    let mut bytes = vec![0; 2048];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, b"QFI\xfb");
    put(4, &version.to_be_bytes());
    put(20, &9_u32.to_be_bytes());
    put(24, &(64 * 1024_u64).to_be_bytes());
    put(36, &2_u32.to_be_bytes());
    put(40, &512_u64.to_be_bytes());
    put(48, &1024_u64.to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    if version == 3 {
        put(96, &4_u32.to_be_bytes());
        put(100, &104_u32.to_be_bytes());
        put(104, &0x6803_f857_u32.to_be_bytes());
        put(108, &8_u32.to_be_bytes());
    }
    bytes
}

/// A kernel that is an ELF file with an entry for PVH and nothing else.
fn pvh() -> Vec<u8> {
    let mut bytes = vec![0; 160];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, b"\x7fELF\x02\x01\x01");
    put(18, &62_u16.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &1_u16.to_le_bytes());
    put(64, &4_u32.to_le_bytes());
    put(72, &128_u64.to_le_bytes());
    put(96, &20_u64.to_le_bytes());
    put(128, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0]);
    bytes
}

fn images(_: &World) -> Vec<Vec<u8>> {
    vec![qcow2(2), qcow2(3)]
}

fn kernels(_: &World) -> Vec<Vec<u8>> {
    vec![pvh()]
}

thread_local! {
    /// One file for all inputs.
    static IMAGE: File = tempfile::tempfile().expect("a file without a name");
}

/// Lets the file hold these bytes; tells how many they are.
fn put(file: &File, bytes: &[u8]) -> Result<u64, String> {
    let length = u64::try_from(bytes.len()).expect("fits");
    let write = file.set_len(length).and_then(|()| file.write_all_at(bytes, 0));
    write.map(|()| length).map_err(|error| error.to_string())
}

fn image(bytes: &[u8]) -> Result<Answer, String> {
    IMAGE.with(|file| {
        let length = put(file, bytes)?;
        let _raw = header::inspect(file, ImageFormat::Raw);
        let _overlay = header::read_overlay(file);
        let judged = header::inspect(file, ImageFormat::Qcow2);
        let told = header::judge_qcow2(&bytes[..bytes.len().min(64 * 1024)], length);
        require(judged == told, "the file and its bytes are judged differently")?;
        answer(judged)
    })
}

fn kernel(bytes: &[u8]) -> Result<Answer, String> {
    IMAGE.with(|file| {
        let length = put(file, bytes)?;
        let _initrd = header::inspect(file, ImageFormat::Initrd);
        let judged = header::inspect(file, ImageFormat::Kernel);
        let size = judged.as_ref().map(|seen| seen.virtual_size_bytes);
        require(size.is_ok_and(|size| size == length) == judged.is_ok(), "it has another size")?;
        answer(judged)
    })
}
