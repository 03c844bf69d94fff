//! Judges begun from snapshots.

use dagger_payload::snapshot::{SnapshotHead, extend_history};
use dagger_processor::judge::snapshot::{ReadChunk, Restoring, Snapshot, SnapshotError};

use super::*;

pub(super) fn write_down(judge: &Judge) -> (SnapshotHead, Vec<Vec<u8>>) {
    let mut making = Snapshot::begin(judge);
    let chunks: Vec<_> = std::iter::from_fn(|| making.next_chunk(judge)).collect();
    (making.finish(judge).expect("the judge stood still"), chunks)
}

pub(super) fn read(
    court: &Court,
    head: SnapshotHead,
    chunks: &[Vec<u8>],
) -> Result<Judge, SnapshotError> {
    let mut restoring = Restoring::begin(court.genesis.clone(), court.cluster, head);
    // They may be read in any order, by anybody.
    let read = chunks.iter().rev().map(|chunk| ReadChunk::read(chunk));
    let read: Vec<_> = read.collect::<Result<_, _>>()?;
    read.into_iter().rev().try_for_each(|chunk| restoring.take_read(chunk))?;
    restoring.finish()
}

pub(super) fn copy(court: &Court) -> Judge {
    let (head, chunks) = write_down(&court.judge);
    assert_eq!(head.made_after, court.judge.end().index);
    assert_eq!(head.end.state_root, court.judge.end().state_root);
    read(court, head, &chunks).expect("a true snapshot")
}

/// What somebody does next; the same for the same number.
fn act(court: &mut Court, vms: &[Vm], number: u64) -> Vec<SignedPayload> {
    let pick = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as usize;
    let named = format!("vm{}", pick % 5);
    let known = vms.get(pick % vms.len().max(1)).cloned();
    court.now = court.now.plus_ms([1, 500, 4_000, 11_000][pick % 4]);
    court.silent = if pick % 16 < 4 { vec![1] } else { Vec::new() };
    court.round += if pick % 16 < 4 { 20 } else { 0 };
    let by_owner = |body| (developer(), body);
    let reporting = |vm: &Vm, phase| {
        let at = (0..3).find(|index| Some(host(*index)) == vm.placement.host()).unwrap_or(0);
        (agent_key(at), report(vm.id, vm.generation, phase))
    };
    let (key, body) = match (pick / 4 % 10, &known) {
        (0 | 1, _) | (_, None) => by_owner(create(&named, 1)),
        (2, Some(vm)) => by_owner(Body::VmStop(change(vm).into())),
        (3, Some(vm)) => by_owner(Body::VmStart(change(vm))),
        (4, Some(vm)) => by_owner(Body::VmDelete(change(vm))),
        (5, Some(vm)) => reporting(vm, ReportPhase::Accepted),
        (6, Some(vm)) => reporting(vm, ReportPhase::Running),
        (7, Some(vm)) => reporting(vm, ReportPhase::Deleted),
        (8, Some(vm)) => reporting(vm, ReportPhase::Refused),
        (_, Some(_)) => (operator(2), grant(2 + u32::try_from(pick % 5).expect("few"), 6)),
    };
    vec![court.sign(&key, body)]
}

fn next_empty(court: &mut Court) -> OrderedCommit {
    court.now = court.now.plus_ms(1);
    let commit = court.next(Vec::new());
    let release = court.judge.apply(commit.clone(), &[]).expect("the next commit");
    assert!(release.is_empty(), "offers lapse later");
    commit
}

#[test]
fn a_judge_begun_from_a_snapshot_goes_on_like_the_one_that_wrote_it() {
    let mut court = Court::furnished();
    let mut twin = copy(&court);
    let mut vms: Vec<Vm> = Vec::new();
    let (mut accepted, mut lapsed) = (0, 0);
    for number in 0..1_500 {
        let payloads = act(&mut court, &vms, number);
        let commit = court.next(payloads);
        let verified: Vec<_> = commit.payloads.iter().map(|each| verify(&each.payload)).collect();
        let mut release = court.judge.apply(commit.clone(), &verified).expect("the next commit");
        assert_eq!(twin.apply(commit, &verified).as_ref(), Ok(&release), "after {number}");
        assert_eq!(twin.next_deadline(), court.judge.next_deadline());
        lapsed += release.time_effects.len();
        court.read(&mut release);
        let effects = release.releases.iter().flat_map(|each| &each.effects);
        for effect in effects.chain(&release.time_effects) {
            accepted += 1;
            if let Effect::Vm(vm) = effect {
                vms.retain(|known| known.id != vm.id);
                vms.push((**vm).clone());
            }
        }
        if number % 11 == 0 {
            // Commits without content follow before it is written down; the twin judges them again.
            let empty: Vec<_> = (0..number % 3).map(|_| next_empty(&mut court)).collect();
            twin = copy(&court);
            for commit in empty {
                twin.apply(commit, &[]).expect("the next commit");
            }
        }
    }
    assert!(accepted > 300 && lapsed > 20, "{accepted} effects, {lapsed} lapsed offers");
}

#[test]
fn the_root_covers_all_that_a_snapshot_carries() {
    let mut court = Court::furnished();
    court.vm(&developer(), on("web", 1));
    let (head, chunks) = write_down(&court.judge);
    assert_eq!(chunks.len(), 1);
    for at in 0..chunks[0].len() {
        let mut changed = chunks.clone();
        changed[0][at] ^= 1;
        let judge = read(&court, head.clone(), &changed);
        assert!(judge.is_err(), "byte {at} may be changed unnoticed");
    }
}

#[test]
fn a_snapshot_with_missing_doubled_or_foreign_parts_is_none() {
    let mut court = Court::furnished();
    court.vm(&developer(), on("web", 1));
    let (head, chunks) = write_down(&court.judge);
    assert!(read(&court, head.clone(), &[]).is_err());
    let twice = [chunks[0].clone(), chunks[0].clone()];
    assert!(read(&court, head.clone(), &twice).is_err());
    let more = SnapshotHead { chunks: 2, bytes: head.bytes * 2, ..head.clone() };
    assert_eq!(read(&court, more, &twice).err(), Some(SnapshotError::Disordered));
    let cut = chunks[0][..chunks[0].len() - 1].to_vec();
    let less = SnapshotHead { bytes: head.bytes - 1, ..head.clone() };
    assert_eq!(read(&court, less, &[cut]).err(), Some(SnapshotError::Malformed));
    court.vm(&developer(), on("other", 2));
    let (later, _) = write_down(&court.judge);
    let mixed = SnapshotHead { end: later.end, ..head };
    assert!(matches!(read(&court, mixed, &chunks), Err(SnapshotError::AnotherRoot { .. })));
}

#[test]
fn a_snapshot_is_given_up_when_the_judge_goes_on() {
    let mut court = Court::furnished();
    let mut making = Snapshot::begin(&court.judge);
    assert!(making.next_chunk(&court.judge).is_some());
    court.vm(&developer(), on("web", 1));
    assert!(making.next_chunk(&court.judge).is_none());
    assert_eq!(making.finish(&court.judge), None);
}

#[test]
fn the_anchor_names_the_history_that_a_reader_computes() {
    let mut court = Court::found();
    let mut history = court.judge.anchor().history;
    for payload in [join(0), grant(4, 4)] {
        let payload = court.sign(&operator(0), payload);
        let release = court.commit(vec![payload.clone(), payload]);
        history = extend_history(&history, &release);
    }
    let anchor = court.judge.anchor();
    assert_eq!((anchor.history, anchor.end), (history, court.judge.end()));
    assert_eq!(copy(&court).anchor(), anchor);
}
