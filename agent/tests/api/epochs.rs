//! Attestation across epochs, without sockets: founders 0 to 3; 0 to 4 vote in epoch 1, and 1 to 4
//! in epoch 2. An epoch is decided three commits before it begins.

use dagger_agent::verify::mark::Mark;
use dagger_agent::verify::reader::{Distrust, Progress, Reader, Taken, Trust};
use dagger_bus::ledger::StreamItem;
use dagger_payload::committee::Committee;
use dagger_payload::event::CommitEnd;
use dagger_payload::id::{
    AuthorIndex, CommitIndex, Epoch, HostId, OperatorId, ProtocolVersion, StateRoot,
};
use dagger_payload::object::Effect;
use dagger_payload::release::{CommitRelease, QuorumEvidence};
use dagger_payload::roster::{EpochMembers, Seat, SeatStanding};

use crate::support::{
    Chronicle, World, anchor_after, create_vm, header_in, key, name, past, sealed_by,
};

const DISTANCE: u64 = 3;

/// A history over three epochs.
struct Story {
    world: World,
    chronicle: Chronicle,
    /// The ends of the first two epochs.
    boundaries: Vec<CommitEnd>,
}

fn seat(author: u16) -> Effect {
    let ledger_key = World::ledger_key(author).public_key();
    Effect::Seat(Box::new(Seat {
        index: AuthorIndex(author),
        host: HostId::of(&ledger_key),
        name: name(&format!("host{}", author + 1)),
        operator: OperatorId([7; 16]),
        ledger_key,
        address: "192.0.2.1:7400".parse().expect("an address"),
        standing: SeatStanding::Present,
    }))
}

fn epoch(number: u64, voters: &[u16], begins_after: u64) -> Effect {
    Effect::Epoch(Box::new(EpochMembers {
        epoch: Epoch(number),
        committee: Committee::of(voters.iter().copied().map(AuthorIndex)).expect("in range"),
        begins_after: CommitIndex(begins_after),
        protocol: ProtocolVersion::FIRST,
    }))
}

impl Story {
    fn begun() -> Self {
        let world = World::new();
        let mut chronicle = Chronicle::new(&world);
        create_vm(&world, &mut chronicle, World::DEVELOPER, "first");
        Self { world, chronicle, boundaries: Vec::new() }
    }

    /// A commit that gives these seats and decides who votes next, and all commits up to the
    /// epoch's end; the last of them changed nothing.
    fn change(&mut self, number: u64, seats: &[u16], voters: &[u16]) {
        let decided = self.last().index.0 + 1;
        let mut effects: Vec<_> = seats.iter().copied().map(seat).collect();
        effects.push(epoch(number, voters, decided + DISTANCE));
        self.chronicle.commit(Vec::new(), effects);
        self.vm(&format!("before{number}"));
        self.chronicle.skip();
        let end = self.chronicle.skip();
        self.boundaries.push(end);
    }

    fn vm(&mut self, vm_name: &str) -> CommitEnd {
        create_vm(&self.world, &mut self.chronicle, World::DEVELOPER, vm_name);
        self.last()
    }

    fn last(&self) -> CommitEnd {
        self.chronicle.releases.last().expect("there is one").end
    }

    fn three_epochs() -> Self {
        let mut story = Self::begun();
        story.change(1, &[4], &[0, 1, 2, 3, 4]);
        story.vm("in-1");
        story.change(2, &[], &[1, 2, 3, 4]);
        story.vm("in-2");
        story
    }

    fn shown(&self, number: u64, authors: &[u16], end: CommitEnd) -> StreamItem {
        let cluster = self.world.cluster;
        let by = |author: &u16| {
            header_in(Epoch(number), cluster, *author, end, &World::ledger_key(*author))
        };
        let headers = authors.iter().map(by).collect();
        StreamItem::Attested { commit: end.index, evidence: QuorumEvidence { headers } }
    }

    fn reader(&self) -> Reader {
        Reader::new(self.world.cluster, (*self.world.genesis).clone(), None)
    }

    /// What an honest ledger sends to a reader who begins: releases, each boundary before what
    /// comes after it, and the newest evidence.
    fn stream(&self) -> Vec<StreamItem> {
        let mut items = Vec::new();
        let mut passed = 0;
        for release in &self.chronicle.releases {
            let boundary = self.boundaries.get(passed);
            if let Some(end) = boundary.filter(|end| end.index < release.end.index) {
                let (number, authors) = ([0, 1][passed], [&[0, 2, 3][..], &[0, 1, 2, 4]][passed]);
                items.push(self.shown(number, authors, *end));
                passed += 1;
            }
            items.push(sealed_by(&key(World::SEAL), release));
        }
        items
    }
}

fn take(reader: &mut Reader, item: StreamItem) -> Result<Taken, Distrust> {
    reader.take(item, &key(World::SEAL).public_key())
}

fn take_releases(reader: &mut Reader, releases: &[CommitRelease]) {
    for release in releases {
        take(reader, sealed_by(&key(World::SEAL), release)).expect("continues the chain");
    }
}

fn attested(reader: &mut Reader) -> CommitIndex {
    reader.progress().attested
}

#[test]
fn three_epochs_are_followed_from_the_founding_on() {
    let story = Story::three_epochs();
    let mut reader = story.reader();
    for item in story.stream() {
        assert!(!matches!(take(&mut reader, item).expect("in order"), Taken::Worthless(_)));
    }
    // Up to the last boundary all is attested by those who voted before it.
    let [_, second] = story.boundaries[..] else { unreachable!("two") };
    let before = story.chronicle.releases.iter().rfind(|each| each.end.index <= second.index);
    assert_eq!(attested(&mut reader), before.expect("there is one").end.index);
    let last = story.last();
    take(&mut reader, story.shown(2, &[1, 3, 4], last)).expect("in order");
    take(&mut reader, StreamItem::CaughtUp { commit: last.index }).expect("in order");
    let Progress { attested, trust, same, .. } = reader.progress();
    assert_eq!((attested, trust), (last.index, Trust::CaughtUp));
    // Whoever voted in an epoch is named for what he signed in it.
    assert_eq!(same[&AuthorIndex(4)], last.index);
    assert!(same[&AuthorIndex(0)] < last.index && same[&AuthorIndex(0)] > CommitIndex(0));
}

#[test]
fn what_is_attested_never_goes_back_while_epochs_pass_by() {
    let story = Story::three_epochs();
    let mut reader = story.reader();
    let mut highest = CommitIndex(0);
    let voters: [&[u16]; 3] = [&[0, 1, 2], &[0, 2, 3, 4], &[1, 2, 4]];
    let mut number = 0;
    for release in &story.chronicle.releases {
        if let Some(end) = story.boundaries.get(number).filter(|end| end.index < release.end.index)
        {
            let item = story.shown(number as u64, voters[number], *end);
            take(&mut reader, item).expect("in order");
            number += 1;
        }
        let item = sealed_by(&key(World::SEAL), release);
        take(&mut reader, item).expect("in order");
        let now = attested(&mut reader);
        assert!(now >= highest, "{now} after {highest}");
        take(&mut reader, story.shown(number as u64, voters[number], release.end))
            .expect("in order");
        highest = attested(&mut reader);
        assert_eq!(highest, release.end.index);
    }
    assert_eq!(number, 2);
    // A reading of its own begins with the founders again, and what was acted on stays a mark.
    reader.read_again();
    take_releases(&mut reader, &story.chronicle.releases);
    take(&mut reader, story.shown(2, &[1, 2, 3, 4], story.last())).expect("in order");
    assert_eq!(attested(&mut reader), CommitIndex(0));
    take(&mut reader, StreamItem::CaughtUp { commit: story.last().index }).expect("in order");
    assert!(matches!(reader.progress().trust, Trust::Reading(_)));
}

#[test]
fn voters_of_the_next_epoch_count_for_nothing_until_the_old_ones_attest_its_beginning() {
    let mut story = Story::begun();
    story.change(1, &[4, 5, 6], &[3, 4, 5, 6]);
    let last = story.vm("made-up");
    let mut reader = story.reader();
    take_releases(&mut reader, &story.chronicle.releases);
    take(&mut reader, story.shown(1, &[3, 4, 5, 6], last)).expect("in order");
    let end = story.boundaries[0];
    // Two of four founders are too few, and a third one's word about what lies before the end is
    // none about the end.
    assert!(matches!(take(&mut reader, story.shown(0, &[0, 1], end)), Ok(Taken::Worthless(_))));
    take(&mut reader, story.shown(0, &[0, 1, 2], story.chronicle.releases[2].end))
        .expect("in order");
    assert_eq!(attested(&mut reader), story.chronicle.releases[2].end.index);
    // Newcomers have no say in the epoch before theirs.
    take(&mut reader, story.shown(0, &[0, 1, 4, 5, 6], end)).expect("in order");
    assert_eq!(attested(&mut reader), story.chronicle.releases[2].end.index);
    take(&mut reader, story.shown(0, &[0, 1, 2], end)).expect("in order");
    assert_eq!(attested(&mut reader), last.index);
}

#[test]
fn members_that_left_attest_nothing_however_long_they_sign() {
    let story = Story::three_epochs();
    let last = story.last();
    let mut reader = story.reader();
    for item in story.stream() {
        take(&mut reader, item).expect("in order");
    }
    let before = attested(&mut reader);
    // Founder 0 does not vote in epoch 2; and what is signed in the name of an epoch that is over
    // says nothing about what came after it.
    for (number, authors) in [(2, &[0, 1, 2][..]), (1, &[0, 1, 2, 3, 4]), (0, &[0, 1, 2, 3])] {
        take(&mut reader, story.shown(number, authors, last)).expect("in order");
        assert_eq!(attested(&mut reader), before, "in epoch {number}");
    }
    // Nor while the epoch is not settled, its end being ahead of what was released.
    let mut story = Story::begun();
    story.change(1, &[4], &[0, 1, 2, 3, 4]);
    let mut reader = story.reader();
    take_releases(&mut reader, &story.chronicle.releases);
    take(&mut reader, story.shown(0, &[0, 1, 2, 3], story.boundaries[0])).expect("in order");
    let before = attested(&mut reader);
    let last = story.vm("later");
    take(&mut reader, story.shown(0, &[0, 1, 2, 3], last)).expect("in order");
    take(&mut reader, story.chronicle.newest()).expect("in order");
    assert_eq!(attested(&mut reader), before);
    take(&mut reader, story.shown(1, &[0, 1, 2, 4], last)).expect("in order");
    assert_eq!(attested(&mut reader), last.index);
}

#[test]
fn an_epoch_that_the_own_judge_did_not_decide_leads_nowhere() {
    // A captured ledger shows the true payloads of a past life, and that strangers vote from commit
    // 2 on.
    let mut story = Story::begun();
    story.vm("second");
    let truth = story.chronicle.releases.clone();
    let mut shown = truth.clone();
    shown[0].releases[0].effects.extend([seat(4), seat(5), epoch(1, &[4, 5], 1)]);
    let mut reader = story.reader();
    for release in &shown {
        take(&mut reader, past(release)).expect("continues the chain");
    }
    // The founders did attest this end, of the history without the strangers.
    take(&mut reader, story.shown(0, &[0, 1, 2], truth[0].end)).expect("in order");
    take(&mut reader, story.shown(1, &[4, 5], truth[1].end)).expect("in order");
    assert_eq!(attested(&mut reader), CommitIndex(0));
    let anchor = anchor_after(&key(World::SEAL), &truth);
    assert!(matches!(take(&mut reader, anchor), Err(Distrust::Anchor(_))));
    assert!(matches!(reader.progress().trust, Trust::Hold(_)));
    // With what the judge did decide it reads on, and the strangers are nobody.
    take_releases(&mut reader, &truth);
    let strangers = take(&mut reader, story.shown(1, &[4, 5], truth[1].end));
    assert!(matches!(strangers, Ok(Taken::Worthless(_))));
    take(&mut reader, story.shown(0, &[0, 1, 2], truth[1].end)).expect("in order");
    assert_eq!(attested(&mut reader), truth[1].end.index);
}

#[test]
fn who_attests_that_nothing_happened_vouches_for_no_epoch_that_was_slipped_in() {
    let mut story = Story::begun();
    let first = story.last();
    let mut reader = story.reader();
    take_releases(&mut reader, &story.chronicle.releases);
    // All founders say that nothing changed up to commit 40.
    let quiet = CommitEnd { index: CommitIndex(40), ..first };
    take(&mut reader, story.shown(0, &[0, 1, 2, 3], quiet)).expect("in order");
    assert_eq!(attested(&mut reader), first.index);
    // A captured ledger gives its own processor approvals that were never ordered, and it seals
    // what follows from them.
    story.change(1, &[4, 5], &[4, 5]);
    let last = story.vm("theirs");
    take_releases(&mut reader, &story.chronicle.releases[1..]);
    take(&mut reader, story.shown(1, &[4, 5], last)).expect("in order");
    assert_eq!(attested(&mut reader), first.index);
}

#[test]
fn how_many_may_contradict_is_counted_in_the_epoch_in_which_they_do() {
    let mut story = Story::begun();
    story.change(1, &[4, 5, 6], &[0, 1, 2, 3, 4, 5, 6]);
    let last = story.vm("seven");
    let mut reader = story.reader();
    for item in story.stream() {
        take(&mut reader, item).expect("in order");
    }
    take(&mut reader, StreamItem::CaughtUp { commit: last.index }).expect("in order");
    let lie = CommitEnd { state_root: StateRoot([9; 32]), ..last };
    let mixed = |liars: &[u16], honest: &[u16]| {
        let (StreamItem::Attested { evidence: lies, .. }, StreamItem::Attested { evidence, .. }) =
            (story.shown(1, liars, lie), story.shown(1, honest, last))
        else {
            unreachable!("made above")
        };
        let headers = lies.headers.into_iter().chain(evidence.headers).collect();
        StreamItem::Attested { commit: last.index, evidence: QuorumEvidence { headers } }
    };
    // Two of seven may lie; among four founders two were too many.
    take(&mut reader, mixed(&[4, 6], &[0, 1, 2, 3, 5])).expect("in order");
    let progress = reader.progress();
    assert_eq!((progress.attested, progress.trust), (last.index, Trust::CaughtUp));
    assert_eq!(progress.contradicting.len(), 2);
    take(&mut reader, mixed(&[1, 4, 6], &[0, 2, 3, 5])).expect("in order");
    let Trust::Hold(why) = reader.progress().trust else { panic!("not on hold") };
    assert!(why.contains("host2") && why.contains("host5") && why.contains("host7"), "{why}");
}

#[test]
fn a_mark_of_a_later_epoch_holds_until_all_epochs_before_it_are_attested() {
    let story = Story::three_epochs();
    let last = story.last();
    let genesis = (*story.world.genesis).clone();
    let mut reader = Reader::new(story.world.cluster, genesis, Some(Mark::from(&last)));
    take_releases(&mut reader, &story.chronicle.releases);
    take(&mut reader, StreamItem::CaughtUp { commit: last.index }).expect("in order");
    take(&mut reader, story.shown(2, &[1, 2, 3, 4], last)).expect("in order");
    assert!(matches!(reader.progress().trust, Trust::Reading(_)), "no boundary was shown");
    let [first, second] = story.boundaries[..] else { unreachable!("two") };
    take(&mut reader, story.shown(1, &[0, 1, 3, 4], second)).expect("in order");
    assert!(matches!(reader.progress().trust, Trust::Reading(_)), "one is missing");
    take(&mut reader, story.shown(0, &[1, 2, 3], first)).expect("in order");
    assert_eq!(reader.progress().trust, Trust::CaughtUp);
}
