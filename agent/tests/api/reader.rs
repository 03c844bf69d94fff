//! Seals, the own chain and quorum evidence, without sockets.

use dagger_agent::verify::chain::ChainBreak;
use dagger_agent::verify::mark::{Mark, MarkFile};
use dagger_agent::verify::reader::{Distrust, Reader, Taken, Trust};
use dagger_bus::ledger::StreamItem;
use dagger_payload::event::CommitEnd;
use dagger_payload::id::{AuthorIndex, CommitIndex, LedgerTime, Position, PrefixHash, StateRoot};
use dagger_payload::key::PublicKey;
use dagger_payload::release::{CommitRelease, QuorumEvidence};

use crate::support::{
    Chronicle, TIME, World, anchor_after, create_vm, evidence, header_by, key, past, sealed_by,
    vm_stop,
};

type Change = fn(&mut CommitRelease);
type IsExpected = fn(&ChainBreak) -> bool;

fn seal_key() -> PublicKey {
    key(World::SEAL).public_key()
}

fn reader(world: &World, mark: Option<Mark>) -> Reader {
    Reader::new(world.cluster, (*world.genesis).clone(), mark)
}

/// A world, and a chronicle of three commits with a VM each.
fn three_commits() -> (World, Chronicle) {
    let world = World::new();
    let mut chronicle = Chronicle::new(&world);
    for vm in ["a", "b", "c"] {
        create_vm(&world, &mut chronicle, World::DEVELOPER, vm);
    }
    (world, chronicle)
}

fn take(reader: &mut Reader, item: StreamItem) -> Result<Taken, Distrust> {
    reader.take(item, &seal_key())
}

fn take_all(reader: &mut Reader, chronicle: &Chronicle) {
    for release in &chronicle.releases {
        let item = sealed_by(&key(World::SEAL), release);
        assert!(matches!(take(reader, item), Ok(Taken::Release(_))));
    }
}

fn attested(reader: &mut Reader) -> u64 {
    reader.progress().attested.0
}

#[test]
fn a_release_that_the_processor_did_not_seal_is_not_taken_in() {
    let (world, chronicle) = three_commits();
    let mut reader = reader(&world, None);
    let forged = sealed_by(&key(99), &chronicle.releases[0]);
    assert!(matches!(take(&mut reader, forged), Err(Distrust::Seal(_))));
    assert_eq!(reader.cursor(), CommitIndex(0));
    let StreamItem::Release { mut sealed } = sealed_by(&key(World::SEAL), &chronicle.releases[0])
    else {
        unreachable!("made above")
    };
    sealed.release.releases[0].effects.clear();
    let changed = take(&mut reader, StreamItem::Release { sealed });
    assert!(matches!(changed, Err(Distrust::Seal(_))));
}

#[test]
fn a_release_that_does_not_continue_the_chain_is_refused_and_all_is_read_again() {
    let changes: [(Change, IsExpected); 6] = [
        (
            |release| release.end.index = CommitIndex(1),
            |why| matches!(why, ChainBreak::NotLater { .. }),
        ),
        (
            |release| release.end.prefix_hash = PrefixHash([9; 32]),
            |why| matches!(why, ChainBreak::Prefix { .. }),
        ),
        (
            |release| release.releases[0].position = Position(3),
            |why| matches!(why, ChainBreak::Position { .. }),
        ),
        (
            |release| release.end.position = Position(7),
            |why| matches!(why, ChainBreak::Position { .. }),
        ),
        (
            |release| {
                let world = World::new();
                let other = vm_stop(dagger_payload::id::VmId([1; 16]));
                release.releases[0].ordered.payload = world.sign(&key(World::DEVELOPER), other);
            },
            |why| matches!(why, ChainBreak::Digest { .. }),
        ),
        (
            |release| release.ledger_time = LedgerTime(TIME.0 - 1),
            |why| matches!(why, ChainBreak::Time { .. }),
        ),
    ];
    for (change, expected) in changes {
        let (world, chronicle) = three_commits();
        let mut reader = reader(&world, None);
        let first = sealed_by(&key(World::SEAL), &chronicle.releases[0]);
        assert!(take(&mut reader, first).is_ok());
        let reading = reader.progress().reading;
        let mut second = chronicle.releases[1].clone();
        change(&mut second);
        let verdict = take(&mut reader, sealed_by(&key(World::SEAL), &second));
        assert!(matches!(&verdict, Err(Distrust::Chain(why)) if expected(why)), "{verdict:?}");
        let progress = reader.progress();
        assert_eq!(progress.reading, reading + 1);
        assert_eq!(progress.judged, CommitIndex(0));
        assert!(matches!(progress.trust, Trust::Hold(_)), "{:?}", progress.trust);
    }
}

#[test]
fn what_an_earlier_processor_judged_counts_once_the_present_one_began_with_it() {
    let (world, chronicle) = three_commits();
    let mut reader = reader(&world, None);
    let [first, second, third] = [0, 1, 2].map(|at| &chronicle.releases[at]);
    for release in [first, second] {
        assert!(matches!(take(&mut reader, past(release)), Ok(Taken::Release(_))));
    }
    take(&mut reader, chronicle.attested(&[0, 1, 2], second.end)).expect("counts later");
    let progress = reader.progress();
    assert_eq!((progress.attested, reader.is_unsealed()), (CommitIndex(0), true));
    assert!(matches!(progress.trust, Trust::Reading(_)), "{:?}", progress.trust);
    let anchor = anchor_after(&key(World::SEAL), &chronicle.releases[..2]);
    take(&mut reader, anchor).expect("the same history");
    assert_eq!(attested(&mut reader), second.end.index.0);
    take(&mut reader, sealed_by(&key(World::SEAL), third)).expect("goes on");
    take(&mut reader, StreamItem::CaughtUp { commit: third.end.index }).expect("in order");
    assert_eq!(reader.progress().trust, Trust::CaughtUp);
}

#[test]
fn a_past_that_the_processor_did_not_begin_with_is_read_again() {
    let seal = key(World::SEAL);
    let (world, chronicle) = three_commits();
    let (known, third) = (&chronicle.releases[..2], &chronicle.releases[2]);
    let mut changed = known.to_vec();
    changed[1].releases[0].effects.clear();
    for (shown, last) in [
        // Other effects of the same payloads.
        (&changed[..], anchor_after(&seal, known)),
        // More, or less, than it began with.
        (&chronicle.releases[..], anchor_after(&seal, known)),
        (&known[..1], anchor_after(&seal, known)),
        // No anchor at all.
        (known, sealed_by(&seal, third)),
    ] {
        let mut reader = reader(&world, None);
        for release in shown {
            take(&mut reader, past(release)).expect("continues the chain");
        }
        assert!(matches!(take(&mut reader, last), Err(Distrust::Anchor(_))));
        assert_eq!(reader.cursor(), CommitIndex(0));
        assert!(matches!(reader.progress().trust, Trust::Hold(_)));
    }
    let mut reader = reader(&world, None);
    take(&mut reader, past(&known[0])).expect("continues the chain");
    let foreign = anchor_after(&key(99), &known[..1]);
    assert!(matches!(take(&mut reader, foreign), Err(Distrust::Seal(_))));
}

#[test]
fn fewer_members_than_a_quorum_attest_nothing() {
    let (world, chronicle) = three_commits();
    let mut reader = reader(&world, None);
    take_all(&mut reader, &chronicle);
    let end = chronicle.releases[2].end;
    let two = chronicle.attested(&[0, 1], end);
    assert!(matches!(take(&mut reader, two), Ok(Taken::Worthless(_))));
    // The same member twice, a member's header signed by another, and a stranger add no vote.
    let mut padded = evidence(world.cluster, &[0, 1, 1], end);
    padded.headers.push(header_by(world.cluster, 2, end, &World::ledger_key(3)));
    padded.headers.push(header_by(world.cluster, 9, end, &key(99)));
    let other_cluster = dagger_payload::id::ClusterId([1; 32]);
    padded.headers.push(header_by(other_cluster, 3, end, &World::ledger_key(3)));
    let padded = StreamItem::Attested { commit: end.index, evidence: padded };
    assert!(matches!(take(&mut reader, padded), Ok(Taken::Worthless(_))));
    assert_eq!(attested(&mut reader), 0);
    let three = chronicle.attested(&[0, 1, 3], end);
    assert!(matches!(take(&mut reader, three), Ok(Taken::Noted)));
    assert_eq!(attested(&mut reader), 3);
}

#[test]
fn what_a_quorum_attests_ends_at_the_lowest_of_its_ends() {
    let (world, chronicle) = three_commits();
    let mut reader = reader(&world, None);
    take_all(&mut reader, &chronicle);
    let ends: Vec<CommitEnd> = chronicle.releases.iter().map(|release| release.end).collect();
    let headers = [(0, ends[2]), (1, ends[1]), (2, ends[2]), (3, ends[0])]
        .map(|(author, end)| header_by(world.cluster, author, end, &World::ledger_key(author)));
    let item = StreamItem::Attested {
        commit: CommitIndex(3),
        evidence: QuorumEvidence { headers: headers.to_vec() },
    };
    assert!(take(&mut reader, item).is_ok());
    assert_eq!(attested(&mut reader), 2);
    let same = reader.progress().same;
    assert_eq!(same[&AuthorIndex(3)], CommitIndex(1));
}

#[test]
fn an_end_that_is_ahead_counts_once_the_chain_has_grown_up_to_it() {
    let (world, chronicle) = three_commits();
    let mut reader = reader(&world, None);
    let item = chronicle.attested(&[0, 1, 2], chronicle.releases[1].end);
    assert!(take(&mut reader, item).is_ok());
    assert_eq!(attested(&mut reader), 0);
    take_all(&mut reader, &chronicle);
    assert_eq!(attested(&mut reader), 2);
}

#[test]
fn a_commit_that_changed_nothing_attests_the_one_before_it() {
    let (world, mut chronicle) = three_commits();
    let empty = chronicle.skip();
    let mut reader = reader(&world, None);
    take_all(&mut reader, &chronicle);
    let item = chronicle.attested(&[0, 1, 2], empty);
    assert!(take(&mut reader, item).is_ok());
    assert_eq!(attested(&mut reader), 3);
}

#[test]
fn a_commit_made_up_below_an_attested_one_is_not_attested() {
    let (world, mut chronicle) = three_commits();
    let mut reader = reader(&world, None);
    take_all(&mut reader, &chronicle);
    // The members say that nothing changed from commit 3 up to commit 103.
    let checkpoint = CommitEnd { index: CommitIndex(103), ..chronicle.releases[2].end };
    let item = chronicle.attested(&[0, 1, 2], checkpoint);
    take(&mut reader, item).expect("in order");
    assert_eq!(attested(&mut reader), 3);
    // A captured ledger lets its processor judge and seal what was never ordered, in between.
    create_vm(&world, &mut chronicle, World::DEVELOPER, "d");
    let made_up = sealed_by(&key(World::SEAL), &chronicle.releases[3]);
    take(&mut reader, made_up).expect("sealed and continuous");
    assert_eq!(attested(&mut reader), 3);
    // As soon as the history passes what they attest, they are seen to contradict it.
    for _ in 0..100 {
        chronicle.skip();
    }
    create_vm(&world, &mut chronicle, World::DEVELOPER, "e");
    let next = sealed_by(&key(World::SEAL), &chronicle.releases[4]);
    take(&mut reader, next).expect("sealed and continuous");
    let progress = reader.progress();
    assert_eq!(progress.contradicting.len(), 3);
    assert!(matches!(progress.trust, Trust::Hold(_)), "{:?}", progress.trust);
    assert_eq!(progress.attested, CommitIndex(3));
}

#[test]
fn one_liar_is_named_but_stops_nobody_and_two_put_the_host_on_hold() {
    let (world, chronicle) = three_commits();
    let mut reader = reader(&world, None);
    take_all(&mut reader, &chronicle);
    let end = chronicle.releases[2].end;
    let lie = CommitEnd { state_root: StateRoot([9; 32]), ..end };
    take(&mut reader, StreamItem::CaughtUp { commit: end.index }).expect("in order");
    let mut mixed = evidence(world.cluster, &[0, 1, 2], end);
    mixed.headers.extend(evidence(world.cluster, &[3], lie).headers);
    let mixed = StreamItem::Attested { commit: end.index, evidence: mixed };
    take(&mut reader, mixed).expect("in order");
    let progress = reader.progress();
    assert_eq!(progress.contradicting, [(AuthorIndex(3), CommitIndex(3))]);
    assert_eq!((progress.attested, progress.trust), (CommitIndex(3), Trust::CaughtUp));

    let another = CommitEnd { prefix_hash: PrefixHash([9; 32]), ..end };
    let item = chronicle.attested(&[1, 2, 3], another);
    take(&mut reader, item).expect("in order");
    let Trust::Hold(why) = reader.progress().trust else {
        panic!("not on hold");
    };
    assert!(why.contains("host2") && why.contains("host4"), "{why}");
}

#[test]
fn an_older_view_than_this_host_has_acted_on_holds_until_it_has_caught_up() {
    let (world, chronicle) = three_commits();
    let mut reader = reader(&world, Some(Mark::from(&chronicle.releases[2].end)));
    let short = &chronicle.releases[..2];
    for release in short {
        take(&mut reader, sealed_by(&key(World::SEAL), release)).expect("in order");
    }
    assert!(matches!(reader.progress().trust, Trust::Reading(_)));
    let commit = CommitIndex(2);
    take(&mut reader, StreamItem::CaughtUp { commit }).expect("in order");
    let item = chronicle.attested(&[0, 1, 2], short[1].end);
    take(&mut reader, item).expect("in order");
    let Trust::Hold(why) = reader.progress().trust else {
        panic!("not on hold");
    };
    assert!(why.contains("commit 2") && why.contains("commit 3"), "{why}");

    take(&mut reader, chronicle.newest()).expect("in order");
    assert!(matches!(reader.progress().trust, Trust::Reading(_)), "not attested yet");
    let item = chronicle.attested(&[0, 1, 2], chronicle.releases[2].end);
    take(&mut reader, item).expect("in order");
    assert_eq!(reader.progress().trust, Trust::CaughtUp);
}

#[test]
fn another_history_than_this_host_has_acted_on_holds() {
    let (world, chronicle) = three_commits();
    let mut mark = Mark::from(&chronicle.releases[1].end);
    mark.prefix_hash = PrefixHash([9; 32]);
    let mut reader = reader(&world, Some(mark));
    take_all(&mut reader, &chronicle);
    let commit = CommitIndex(3);
    take(&mut reader, StreamItem::CaughtUp { commit }).expect("in order");
    let item = chronicle.attested(&[0, 1, 2, 3], chronicle.releases[2].end);
    take(&mut reader, item).expect("in order");
    let trust = reader.progress().trust;
    assert!(matches!(&trust, Trust::Hold(why) if why.contains("another history")), "{trust:?}");
}

#[test]
fn a_mark_reads_back_and_a_damaged_one_is_told_apart_from_none() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = MarkFile::new(directory.path());
    assert_eq!(file.read().expect("readable"), None);
    let mark =
        Mark { commit: CommitIndex(4), position: Position(9), prefix_hash: PrefixHash([3; 32]) };
    file.write(&mark).expect("writable");
    assert_eq!(file.read().expect("readable"), Some(mark));
    std::fs::write(directory.path().join("attested.json"), b"{").expect("writable");
    let error = file.read().expect_err("damaged");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
}
