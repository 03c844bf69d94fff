//! What judging costs: `cargo bench -p dagger-processor --bench judge` prints one JSON document.
//!
//! Every figure stands beside a bound that was measured in the same run, so that figures of
//! different machines can be compared: hashing a payload's record once, which no judge can do
//! without. Names after `--` choose parts: `vm_create`, `vm_create_at_10_000`, `placement`,
//! `neighbours`, `state_root`, `proof`, `restart`. Times are of this thread's processor, in
//! nanoseconds of the scheduler's own clock: what `getrusage` says advances with the tick, by 4 ms
//! on some machines.

mod world;

use std::hint::black_box;
use std::num::NonZero;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use dagger_payload::codec;
use dagger_payload::id::{PayloadDigest, VmId};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::Verdict;
use dagger_payload::snapshot::SnapshotHead;
use dagger_payload::state_tree::Subject;
use dagger_processor::judge::Judge;
use dagger_processor::judge::snapshot::{ReadChunk, Snapshot};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use world::World;

const COMMIT_PAYLOADS: usize = 1000;
/// Of things that take little, as many are measured as take so long together.
const MEASURED_MIN: Duration = Duration::from_millis(200);
const COMMITS_MIN: usize = 20;
const COMMITS_MAX: usize = 2000;

/// Measures one thing; quickly, if only asked whether it works.
type Part = fn(bool) -> Value;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = arguments.iter().any(|argument| argument == "--test");
    let names: Vec<_> = arguments.iter().filter(|name| !name.starts_with('-')).collect();
    let parts: [(&str, Part); 7] = [
        ("vm_create", vm_create),
        ("vm_create_at_10_000", vm_create_at),
        ("placement", placements),
        ("neighbours", neighbours),
        ("state_root", state_roots),
        ("proof", proofs),
        ("restart", restarts),
    ];
    let wanted =
        parts.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|n| n == name));
    let report: serde_json::Map<_, _> =
        wanted.map(|(name, part)| ((*name).to_owned(), part(quick))).collect();
    println!("{:#}", Value::from(report));
}

fn placements(quick: bool) -> Value {
    // A cluster gives 1,024 seats in all its life, and every host has one.
    let hosts: [usize; 3] = [10, 100, 1000];
    hosts.iter().map(|hosts| placement(if quick { 10 } else { *hosts })).collect()
}

fn state_roots(quick: bool) -> Value {
    let vms: [usize; 3] = [1000, 10_000, 100_000];
    let vms = vms.map(|vms| if quick { 100 } else { vms });
    let states = vms.map(state_root);
    let [smallest, .., largest] = &states;
    let ratios: Vec<_> = CHANGES
        .iter()
        .zip(largest.iter().zip(smallest))
        .map(|(changes, (large, small))| {
            let ratio = large.as_secs_f64() / small.as_secs_f64();
            json!({ "changes": changes, "ratio": (ratio * 100.0).round() / 100.0 })
        })
        .collect();
    let rows: Vec<_> = vms.iter().zip(&states).map(|(vms, times)| state_row(*vms, times)).collect();
    json!({
        "states": rows,
        "largest_state_to_smallest": ratios,
        "note": "the whole of judging such a commit, its root included, and forgetting as many \
                 payloads as it remembers: as much more as there is more to change, and up to twice as \
                 much in a state that is a hundred times as large (longer paths, colder memory)",
    })
}

fn state_row(vms: usize, times: &[Duration; CHANGES.len()]) -> Value {
    let commits: Vec<_> = CHANGES
        .iter()
        .zip(times)
        .map(|(changes, time)| {
            let each = *time / u32::try_from(*changes).expect("few");
            json!({
                "changes": changes,
                "microseconds": micros(*time),
                "microseconds_per_change": micros(each),
            })
        })
        .collect();
    json!({ "vms": vms, "commits": commits })
}

fn proofs(quick: bool) -> Value {
    let vms: [usize; 3] = [1000, 10_000, 100_000];
    vms.iter().map(|vms| proof(if quick { 100 } else { *vms })).collect()
}

fn restarts(quick: bool) -> Value {
    restart(if quick { 100 } else { 1_000_000 })
}

/// Processor time that this thread has used: others on the machine do not count.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has this clock");
    Duration::from(time)
}

/// 100 hosts, 1,000 accounts and 10,000 VMs, and little besides: as the goal has it. Whenever the
/// payloads of five commits are remembered they expire, which is not measured.
fn vm_create_at(quick: bool) -> Value {
    const TOGETHER: usize = 5;
    let (vms, count, passes) = if quick { (500, 100, 2) } else { (10_000, COMMIT_PAYLOADS, 9) };
    let mut world = World::furnished(100, 1000);
    world.create_plain(vms);
    world.let_payloads_live();
    let (mut spent, mut best) = (Duration::ZERO, Duration::MAX);
    for _ in 0..passes {
        for _ in 0..TOGETHER {
            let (commit, verified) = world.creations(count);
            let start = thread_time();
            let release = world.judge.apply(commit, &verified).expect("the next commit");
            let judging = thread_time() - start;
            (spent, best) = (spent + judging, best.min(judging));
            world.note(&release);
            world.delete_newest(&release);
        }
        world.let_payloads_expire();
    }
    assert_eq!(world.created(), vms);
    json!({
        "hosts": 100, "accounts": 1000, "vms": vms,
        "remembered_payloads_max": 2 * count * TOGETHER,
        "judged": count * TOGETHER * passes,
        "per_second": per_second(count * TOGETHER * passes, spent),
        "best_commit_per_second": per_second(count, best),
    })
}

/// 100 hosts, 1,000 accounts, at least 10,000 VMs: commits of a thousand creations. All payloads
/// stay remembered, some 120,000 in the end.
fn vm_create(quick: bool) -> Value {
    let count: usize = if quick { 500 } else { 50_000 };
    let mut world = World::furnished(100, 1000);
    let before = world.resident_bytes();
    world.create_all(if quick { 500 } else { 10_000 });
    let grown = world.resident_bytes().saturating_sub(before);
    let vms: usize = world.created();
    let remembered = remembered_bytes(&mut world, vms);
    let mut spent = Duration::ZERO;
    let mut bound = Duration::ZERO;
    let (mut accepted, mut best) = (0, Duration::MAX);
    for _ in 0..count.div_ceil(COMMIT_PAYLOADS) {
        let (commit, verified) = world.creations(COMMIT_PAYLOADS.min(count));
        let start = thread_time();
        for ordered in &commit.payloads {
            black_box(PayloadDigest::of(&ordered.payload.bytes));
        }
        bound += thread_time() - start;
        let start = thread_time();
        let release = world.judge.apply(commit, &verified).expect("the next commit");
        let judging = thread_time() - start;
        spent += judging;
        best = best.min(judging);
        let is_accepted = |verdict: &Verdict| matches!(verdict, Verdict::Accepted);
        accepted += release.releases.iter().filter(|each| is_accepted(&each.verdict)).count();
        world.note(&release);
        world.delete_newest(&release);
    }
    let judged = count.div_ceil(COMMIT_PAYLOADS) * COMMIT_PAYLOADS.min(count);
    json!({
        "hosts": 100, "accounts": 1000, "vms_in_state": world.created(),
        "judged": judged, "accepted": accepted,
        "per_second": per_second(judged, spent),
        "best_commit_per_second": per_second(COMMIT_PAYLOADS.min(count), best),
        "bound_per_second": per_second(judged, bound),
        "ratio_to_bound": spent.as_secs_f64() / bound.as_secs_f64(),
        "memory": {
            "bytes_per_vm": (grown / vms).saturating_sub(remembered),
            "string_bytes_per_vm": world.string_bytes_per_vm(),
            "bytes_per_remembered_payload": remembered,
            "note": "growth of the resident set over the creations: the object, its indexes and \
                     its leaf; each payload counts apart, since it is forgotten when it expires",
        },
    })
}

/// Growth of the resident set for each payload that changes what is there already.
fn remembered_bytes(world: &mut World, vms: usize) -> usize {
    let before = world.resident_bytes();
    for _ in 0..10 {
        let (commit, verified) = world.protections(vms.div_ceil(10));
        world.judge.apply(commit, &verified).expect("the next commit");
    }
    world.resident_bytes().saturating_sub(before) / vms
}

/// One VM at a time, each in a commit of its own.
fn placement(hosts: usize) -> Value {
    let mut world = World::furnished(hosts, 10);
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..200 {
        let (commit, verified) = world.creations(1);
        let start = thread_time();
        let release = world.judge.apply(commit, &verified).expect("the next commit");
        times.push(thread_time() - start);
        assert!(matches!(release.releases[0].verdict, Verdict::Accepted), "{release:?}");
        world.note(&release);
    }
    times.sort();
    json!({
        "hosts": hosts,
        "median_microseconds": micros(times[times.len() / 2]),
        "p99_microseconds": micros(times[times.len() * 99 / 100]),
    })
}

/// One VM that is to be kept away from all of its account's, which carry long labels.
fn neighbours(quick: bool) -> Value {
    let (vms, count) = if quick { (100, 3) } else { (9_900, 30) };
    let mut world = World::furnished(100, 1);
    world.create_labelled(vms);
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..count {
        let (commit, verified) = world.in_vain();
        let start = thread_time();
        let release = world.judge.apply(commit, &verified).expect("the next commit");
        times.push(thread_time() - start);
        assert!(matches!(&release.releases[0].verdict, Verdict::Refused(why)
            if why.code == RefusalCode::NoHostFits));
    }
    times.sort();
    let median = times[times.len() / 2];
    json!({
        "vms_of_the_account": vms,
        "median_microseconds": micros(median),
        "nanoseconds_per_vm": median.as_nanos() / vms as u128,
    })
}

/// So many changes are in a commit.
const CHANGES: [usize; 4] = [1, 10, 100, 1000];

/// Commits of 1, 10, 100 and 1,000 changes in a state of so many VMs, each time the median.
fn state_root(vms: usize) -> [Duration; CHANGES.len()] {
    let mut world = World::furnished_for(100, 1000, vms);
    world.create_plain(vms);
    CHANGES.map(|changes| {
        let mut times: Vec<Duration> = Vec::new();
        let mut spent = Duration::ZERO;
        while times.len() < COMMITS_MIN || (spent < MEASURED_MIN && times.len() < COMMITS_MAX) {
            world.pass_a_millisecond();
            let (commit, verified) = world.protections(changes);
            let start = thread_time();
            world.judge.apply(commit, &verified).expect("the next commit");
            let time = thread_time() - start;
            times.push(time);
            spent += time;
        }
        times.sort();
        times[times.len() / 2]
    })
}

/// Making, encoding and checking proofs of VMs that are there, and of as many that are not.
fn proof(vms: usize) -> Value {
    const PROOFS: usize = 2000;
    let mut world = World::furnished_for(100, 1000, vms);
    world.create_all(vms);
    let known = world.vm_ids();
    let there = (0..PROOFS).map(|at| Subject::Vm(known[at * 7919 % known.len()]));
    let elsewhere = (0..PROOFS).map(|at| {
        let mut id = [0xee; 16];
        id[..8].copy_from_slice(&u64::try_from(at).expect("few").to_be_bytes());
        Subject::Vm(VmId(id))
    });
    let parts = [("present", there.collect::<Vec<_>>()), ("absent", elsewhere.collect())];
    let rows = parts.map(|(what, subjects)| {
        let start = thread_time();
        let made: Vec<_> = subjects.iter().map(|subject| world.judge.prove(subject)).collect();
        let making = thread_time() - start;
        let encoded: Vec<_> = made.iter().map(|proof| codec::encode(&proof.state)).collect();
        let start = thread_time();
        for (proof, subject) in made.iter().zip(&subjects) {
            let shown = proof.state.verify(&proof.end.state_root, subject).expect("it holds");
            assert_eq!(shown.is_some(), what == "present");
        }
        let checking = thread_time() - start;
        let each = |spent: Duration| micros(spent / u32::try_from(PROOFS).expect("few"));
        let bytes: usize = encoded.iter().map(Vec::len).sum();
        let path: usize = made.iter().map(|proof| proof.state.path.0.len()).sum();
        let row = json!({
            "make_microseconds": each(making),
            "verify_microseconds": each(checking),
            "bytes": bytes / PROOFS,
            "bytes_max": encoded.iter().map(Vec::len).max(),
            "path_hashes": path as f64 / PROOFS as f64,
        });
        (what.to_owned(), row)
    });
    json!({ "vms": world.created(), "proofs": serde_json::Map::from_iter(rows) })
}

/// Writing down a state of so many VMs and beginning again from it, as a daemon does but without
/// socket and disk.
fn restart(vms: usize) -> Value {
    let mut world = World::furnished_for(100, 1000, vms);
    let before = world.resident_bytes();
    world.create_plain(vms);
    let grown = world.resident_bytes().saturating_sub(before);
    let start = thread_time();
    let mut making = Snapshot::begin(&world.judge);
    let chunks: Vec<_> = std::iter::from_fn(|| making.next_chunk(&world.judge)).collect();
    let head = making.finish(&world.judge).expect("the judge stood still");
    let writing = thread_time() - start;
    let start = thread_time();
    for chunk in &chunks {
        let each = chunk.len() * vms.div_ceil(chunks.len()) / vms.max(1);
        chunk.chunks(each.max(64)).for_each(|object| _ = black_box(PayloadDigest::of(object)));
    }
    let bound = thread_time() - start;
    let (mut reading, mut taking) = (Duration::ZERO, Duration::ZERO);
    let mut restoring = world.restoring(head.clone());
    for chunk in &chunks {
        let start = thread_time();
        let read = ReadChunk::read(chunk).expect("as it was written");
        reading += thread_time() - start;
        let start = thread_time();
        restoring.take_read(read).expect("in order");
        taking += thread_time() - start;
    }
    let start = thread_time();
    let again = restoring.finish().expect("it leads to the root");
    taking += thread_time() - start;
    assert_eq!(again.end(), world.judge.end());
    drop(again);
    let start = Instant::now();
    let again = begin_with_readers(&world, &head, &chunks);
    let with_readers = start.elapsed();
    assert_eq!(again.end(), world.judge.end());
    json!({
        "vms": world.created(),
        "bytes": head.bytes,
        "write_seconds": writing.as_secs_f64(),
        "bound_seconds": bound.as_secs_f64(),
        "begin_seconds": (reading + taking).as_secs_f64(),
        "of_which_any_thread_seconds": reading.as_secs_f64(),
        "elapsed_seconds_with_readers": with_readers.as_secs_f64(),
        "resident_bytes_per_vm": grown / vms,
    })
}

/// Begins again as the daemon does: other threads read the chunks, ahead of the one taken in.
fn begin_with_readers(world: &World, head: &SnapshotHead, chunks: &[Vec<u8>]) -> Judge {
    let readers = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        let reading: Vec<_> = (0..readers)
            .map(|reader| {
                let (read, arriving) = sync_channel(16 / readers);
                scope.spawn(move || {
                    for chunk in chunks.iter().skip(reader).step_by(readers) {
                        read.send(ReadChunk::read(chunk)).expect("it is waited for");
                    }
                });
                arriving
            })
            .collect();
        let mut restoring = world.restoring(head.clone());
        for arriving in reading.iter().cycle().take(chunks.len()) {
            let chunk = arriving.recv().expect("a chunk").expect("as it was written");
            restoring.take_read(chunk).expect("in order");
        }
        restoring.finish().expect("it leads to the root")
    })
}

fn per_second(count: usize, spent: Duration) -> f64 {
    (f64::from(u32::try_from(count).expect("few")) / spent.as_secs_f64()).round()
}

/// To nanoseconds: nothing that was measured is nothing.
fn micros(spent: Duration) -> f64 {
    assert!(!spent.is_zero(), "the clock is too coarse");
    (spent.as_secs_f64() * 1e9).round() / 1e3
}
