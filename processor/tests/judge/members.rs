//! Who takes part: operators, hosts that come and go, and the epochs in which they vote.

use dagger_bus::judging::AdmissionOutcome;
use dagger_payload::committee::Committee;
use dagger_payload::handover::EpochEnd;
use dagger_payload::id::{CommitIndex, Epoch, OperatorId, PayloadDigest, ProtocolVersion};
use dagger_payload::kind::{
    HostChange, HostRotateLedgerKey, OperatorPropose, OperatorRotateKey, ProposalChange,
    VolumeCreate,
};
use dagger_payload::membership::{Change, OperatorStanding, Proposal, ProposalStanding};
use dagger_payload::object::HostDuty;
use dagger_payload::roster::{EpochMembers, SeatStanding};

use super::snapshot::copy;
use super::*;

/// Commits from a decision to the end of its epoch.
const DISTANCE: u64 = 10;

pub(super) fn propose(change: Change) -> Body {
    Body::OperatorPropose(Box::new(OperatorPropose { change, expected_epoch: None }))
}

pub(super) fn approve(proposal: PayloadDigest) -> Body {
    Body::OperatorApprove(ProposalChange { proposal })
}

fn withdraw(proposal: PayloadDigest) -> Body {
    Body::OperatorWithdraw(ProposalChange { proposal })
}

pub(super) fn add_operator(index: u8) -> Change {
    let name = format!("op{index}").parse().expect("a name");
    Change::AddOperator { name, key: operator(index).public_key() }
}

pub(super) fn id(index: u8) -> OperatorId {
    OperatorId::of(&operator(index).public_key())
}

pub(super) fn remove_operator(index: u8) -> Change {
    Change::RemoveOperator { operator: id(index) }
}

pub(super) fn voters(add: &[u8], remove: &[u8]) -> Change {
    let hosts = |indexes: &[u8]| indexes.iter().map(|index| host(*index)).collect();
    Change::Voters { add: hosts(add), remove: hosts(remove) }
}

pub(super) fn come(index: u8) -> Body {
    let Body::HostJoin(mut body) = join(index) else { panic!("a host.join") };
    body.address = Some("192.0.2.1:7400".parse().expect("an address"));
    Body::HostJoin(body)
}

/// Founders say that their hosts know the rules up to `version`.
fn declare(court: &mut Court, hosts: &[u8], version: u32) {
    for index in hosts {
        let Body::HostJoin(mut body) = join(*index) else { panic!("a host.join") };
        body.protocol_max = Some(ProtocolVersion(version));
        court.accept(&operator(*index), Body::HostJoin(body));
    }
}

fn protocol(version: u32) -> Change {
    Change::Protocol { version: ProtocolVersion(version) }
}

pub(super) fn leave(index: u8) -> Body {
    Body::HostLeave(HostChange { host: host(index), expected_generation: None })
}

pub(super) fn rotate(index: u8, to: &SecretKey) -> Body {
    let new_ledger_key = to.public_key();
    Body::HostRotateLedgerKey(HostRotateLedgerKey { host: host(index), new_ledger_key })
}

pub(super) fn committee(authors: impl IntoIterator<Item = u16>) -> Committee {
    Committee::of(authors.into_iter().map(AuthorIndex)).expect("in range")
}

pub(super) fn proposal(effects: &[Effect]) -> Proposal {
    let found = effects.iter().rev().find_map(|effect| match effect {
        Effect::Proposal(proposal) => Some((**proposal).clone()),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no proposal in {effects:?}"))
}

pub(super) fn epoch(release: &CommitRelease) -> Option<EpochMembers> {
    release.time_effects.iter().find_map(|effect| match effect {
        Effect::Epoch(members) => Some(**members),
        _ => None,
    })
}

impl Court {
    /// One payload that is accepted, with everything that its commit released.
    pub(super) fn whole(&mut self, key: &SecretKey, body: Body) -> CommitRelease {
        let payload = self.sign(key, body);
        let release = self.commit(vec![payload]);
        assert_eq!(release.releases[0].verdict, Verdict::Accepted);
        release
    }

    /// Proposed by the first of `by` and approved by the others; what the last one led to.
    pub(super) fn agree(&mut self, by: &[u8], change: Change) -> CommitRelease {
        let mut release = self.whole(&operator(by[0]), propose(change));
        let id = release.releases[0].digest;
        for index in &by[1..] {
            release = self.whole(&operator(*index), approve(id));
        }
        release
    }

    /// So many commits without content.
    pub(super) fn pass(&mut self, commits: u64) {
        for _ in 0..commits {
            assert!(self.commit(vec![]).is_empty());
        }
    }

    /// From the deciding commit to the last one of the epoch.
    pub(super) fn finish_epoch(&mut self) {
        let end = self.judge.epoch_end().expect("it ends");
        self.pass(end.last.0 - self.judge.end().index.0);
        assert_eq!(self.judge.epoch_end(), Some(end));
    }
}

#[test]
fn three_of_four_operators_admit_another_and_his_host_votes_from_the_next_epoch() {
    let mut court = Court::of(4);
    let proposed = proposal(&court.accept(&operator(0), propose(add_operator(4))));
    assert_eq!((proposed.standing, proposed.approvals.len()), (ProposalStanding::Open, 1));
    court.accept(&operator(1), approve(proposed.id));
    assert_eq!(court.submit(&operator(4), come(4)), Err(RefusalCode::NotAuthorized));
    let effects = court.accept(&operator(2), approve(proposed.id));
    let [Effect::Operator(admitted), Effect::Proposal(done)] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!((admitted.id, done.standing), (id(4), ProposalStanding::Done));
    let effects = court.accept(&operator(4), come(4));
    let [Effect::Seat(seat), Effect::Host(_)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((seat.index, seat.host), (AuthorIndex(4), host(4)));
    assert_eq!(court.judge.roster().seat(AuthorIndex(4)), Some(&**seat));
    assert_eq!(court.judge.epoch_end(), None);

    let release = court.agree(&[0, 1, 2, 3], voters(&[4], &[]));
    let last = CommitIndex(release.end.index.0 + DISTANCE);
    let members = epoch(&release).expect("decided");
    assert_eq!((members.epoch, members.begins_after), (Epoch(1), last));
    assert_eq!(members.committee, committee(0..5));
    let end = Some(EpochEnd { last, committee: members.committee });
    assert_eq!(court.judge.epoch_end(), end);
    court.pass(DISTANCE);
    assert_eq!((court.judge.end().index, court.judge.epoch_end()), (last, end));
    court.pass(1);
    assert_eq!(court.judge.epoch_end(), None);
}

#[test]
fn two_of_four_operators_change_nothing() {
    let mut court = Court::of(4);
    let release = court.agree(&[0, 1], add_operator(4));
    assert_eq!(proposal(&release.releases[0].effects).standing, ProposalStanding::Open);
    let id = proposal(&release.releases[0].effects).id;
    // Approving twice is one approval.
    assert_eq!(court.accept(&operator(1), approve(id)), Vec::new());
    assert_eq!(court.submit(&operator(4), approve(id)), Err(RefusalCode::NotAuthorized));
    assert_eq!(
        court.submit(&developer(), propose(add_operator(5))),
        Err(RefusalCode::NotAuthorized)
    );
    assert_eq!(court.submit(&operator(4), come(4)), Err(RefusalCode::NotAuthorized));
}

#[test]
fn approvals_of_an_operator_who_left_do_not_count() {
    let mut court = Court::of(4);
    declare(&mut court, &[0, 1, 2], 2);
    court.agree(&[0, 1, 2], add_operator(4));
    let next = protocol(2);
    let waiting = court.agree(&[4, 0, 1], next);
    let waiting = proposal(&waiting.releases[0].effects);
    assert_eq!((waiting.standing, waiting.approvals.len()), (ProposalStanding::Open, 3));
    let release = court.agree(&[0, 1, 2, 3], remove_operator(4));
    let effects = &release.releases[0].effects;
    let [Effect::Operator(left), Effect::Proposal(recounted), Effect::Proposal(_)] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!((left.standing, recounted.approvals.len()), (OperatorStanding::Left, 2));
    assert_eq!(court.submit(&operator(4), approve(waiting.id)), Err(RefusalCode::NotAuthorized));
    let passed = proposal(&court.accept(&operator(2), approve(waiting.id)));
    assert_eq!(passed.standing, ProposalStanding::Passed);
}

#[test]
fn nobody_gets_the_name_of_an_operator_who_left_and_he_comes_back_under_no_other() {
    let called = |name: &str, index: u8| Change::AddOperator {
        name: name.parse().expect("a name"),
        key: operator(index).public_key(),
    };
    let mut court = Court::of(4);
    court.agree(&[0, 1, 2], add_operator(4));
    court.accept(&operator(4), image("op4/small"));
    court.agree(&[0, 1, 2, 3], remove_operator(4));
    // Else `op4/...` would be another's from now on.
    let taken = court.submit(&operator(0), propose(called("op4", 5)));
    assert_eq!(taken, Err(RefusalCode::NameTaken));
    let renamed = court.submit(&operator(0), propose(called("op5", 4)));
    assert_eq!(renamed, Err(RefusalCode::Conflict));
    court.agree(&[0, 1, 2], called("op5", 5));
    court.agree(&[0, 1, 2, 3], add_operator(4));
    court.accept(&operator(4), image("op4/large"));
}

#[test]
fn fewer_operators_need_fewer_approvals_when_one_of_them_approves_again() {
    let mut court = Court::of(4);
    declare(&mut court, &[0, 1, 2], 2);
    court.agree(&[0, 1, 2], add_operator(4));
    let waiting = court.agree(&[0, 1, 2], protocol(2));
    let waiting = proposal(&waiting.releases[0].effects);
    court.agree(&[0, 1, 2, 3], remove_operator(4));
    assert_eq!(waiting.standing, ProposalStanding::Open);
    let passed = proposal(&court.accept(&operator(0), approve(waiting.id)));
    assert_eq!(passed.standing, ProposalStanding::Passed);
}

#[test]
fn no_operator_gets_more_votes_than_may_be_false_and_one_proposal_may_change_many() {
    let mut court = Court::of(4);
    for index in 0..4 {
        court.accept(&operator(index), come(4 + index));
    }
    let alone = court.submit(&operator(0), propose(voters(&[4], &[])));
    assert_eq!(alone, Err(RefusalCode::Unbalanced));
    let payload = court.sign(&operator(0), propose(voters(&[5], &[])));
    let AdmissionOutcome::Refused { refusal } = court.judge.admit(&verify(&payload), court.now)
    else {
        panic!("admitted")
    };
    assert!(refusal.detail.contains("operator op1 holds 2 of 5 votes"), "{refusal}");
    let release = court.agree(&[0, 1, 2], voters(&[4, 5, 6, 7], &[]));
    assert_eq!(epoch(&release).expect("decided").committee, committee(0..8));
}

#[test]
fn a_proposal_lapses_when_too_few_approve_in_time() {
    let mut court = Court::of(4);
    let waiting = proposal(&court.accept(&operator(0), propose(add_operator(4))));
    let due = court.judge.next_deadline().expect("the proposal lapses");
    assert_eq!(due, waiting.expires.plus_ms(1));
    court.now = waiting.expires;
    court.pass(1);
    court.now = due;
    let release = court.commit(vec![]);
    assert_eq!(proposal(&release.time_effects).standing, ProposalStanding::Lapsed);
    assert_eq!(court.submit(&operator(1), approve(waiting.id)), Err(RefusalCode::NotFound));
    assert_eq!(court.judge.next_deadline(), None);
}

#[test]
fn an_approval_is_taken_back_and_a_proposer_ends_what_he_proposed() {
    let mut court = Court::of(4);
    let waiting = proposal(&court.accept(&operator(0), propose(add_operator(4))));
    court.accept(&operator(1), approve(waiting.id));
    assert_eq!(court.accept(&operator(2), withdraw(waiting.id)), Vec::new());
    let less = proposal(&court.accept(&operator(1), withdraw(waiting.id)));
    assert_eq!((less.standing, less.approvals), (ProposalStanding::Open, vec![id(0)]));
    // The approval that was taken back is not among three.
    court.accept(&operator(2), approve(waiting.id));
    let ended = proposal(&court.accept(&operator(0), withdraw(waiting.id)));
    assert_eq!(ended.standing, ProposalStanding::Withdrawn);
    assert_eq!(court.submit(&operator(3), approve(waiting.id)), Err(RefusalCode::NotFound));
}

#[test]
fn what_passes_while_an_epoch_ends_is_decided_with_the_first_commit_of_the_next_one() {
    let mut court = Court::of(4);
    declare(&mut court, &[0, 1, 2], 2);
    let release = court.agree(&[0, 1, 2], voters(&[], &[3]));
    let first = epoch(&release).expect("decided");
    let release = court.agree(&[0, 1, 2], protocol(2));
    assert_eq!(proposal(&release.releases[0].effects).standing, ProposalStanding::Passed);
    assert!(release.time_effects.is_empty());
    let release = court.agree(&[0, 1, 2], voters(&[], &[2]));
    let id = proposal(&release.releases[0].effects).id;
    assert_eq!(court.submit(&operator(0), withdraw(id)), Err(RefusalCode::StateWrong));
    // It counts on what is decided and on what waits.
    let twice = court.submit(&operator(0), propose(voters(&[], &[3])));
    assert_eq!(twice, Err(RefusalCode::StateWrong));
    assert_eq!(court.judge.epoch_end().map(|end| end.last), Some(first.begins_after));

    let mut twin = copy(&court);
    court.finish_epoch();
    // Nobody has to send anything for it.
    assert_eq!(court.judge.next_deadline(), Some(court.now));
    let commit = court.next(vec![]);
    let release = court.judge.apply(commit, &[]).expect("the next commit");
    let second = epoch(&release).expect("decided");
    assert_eq!((second.epoch, second.committee), (Epoch(2), committee(0..2)));
    assert_eq!(second.protocol, ProtocolVersion(2));
    assert_eq!(second.begins_after.0, release.end.index.0 + DISTANCE);
    assert_eq!(court.judge.next_deadline(), None);

    // A judge begun in the middle knows the same.
    assert_eq!(twin.epoch_end().map(|end| end.last), Some(first.begins_after));
    let mut replay = Court::of(4);
    std::mem::swap(&mut replay.judge, &mut twin);
    (replay.now, replay.round) = (court.now, 1_000);
    replay.finish_epoch();
    let release = replay.commit(vec![]);
    assert_eq!(epoch(&release), Some(second));
}

#[test]
fn a_change_that_has_become_impossible_when_its_turn_comes_fails() {
    let mut court = Court::of(1);
    court.accept(&operator(0), come(1));
    court.whole(&operator(0), propose(voters(&[1], &[])));
    court.accept(&operator(0), come(2));
    let queued = court.whole(&operator(0), propose(voters(&[2], &[])));
    assert_eq!(proposal(&queued.releases[0].effects).standing, ProposalStanding::Passed);
    court.accept(&operator(0), leave(2));
    court.finish_epoch();
    let release = court.commit(vec![]);
    assert_eq!(proposal(&release.time_effects).standing, ProposalStanding::Failed);
    assert_eq!((epoch(&release), court.judge.epoch_end()), (None, None));
}

#[test]
fn the_last_voter_and_the_last_operator_stay() {
    let mut court = Court::of(1);
    court.accept(&operator(0), join(0));
    let last = court.submit(&operator(0), propose(voters(&[], &[0])));
    assert_eq!(last, Err(RefusalCode::StateWrong));
    assert_eq!(court.submit(&operator(0), leave(0)), Err(RefusalCode::StateWrong));
    let last = court.submit(&operator(0), propose(remove_operator(0)));
    assert_eq!(last, Err(RefusalCode::StateWrong));
    // In one step with another one that comes it goes.
    court.accept(&operator(0), come(1));
    let release = court.whole(&operator(0), propose(voters(&[1], &[0])));
    assert_eq!(epoch(&release).expect("decided").committee, committee([1]));
    assert_eq!(court.submit(&operator(0), leave(0)), Err(RefusalCode::StateWrong));
    court.finish_epoch();
    court.accept(&operator(0), leave(0));
}

#[test]
fn a_voter_signs_with_its_new_key_from_the_next_epoch_on_and_keeps_its_id() {
    let mut court = Court::furnished();
    let new = key(77);
    let release = court.whole(&operator(1), rotate(1, &new));
    assert_eq!(epoch(&release).expect("decided").committee, committee([0, 2, 3]));
    let roster = court.judge.roster().clone();
    let seat = roster.seat(AuthorIndex(3)).expect("given");
    assert_eq!((seat.host, &seat.ledger_key), (host(1), &new.public_key()));
    // Until then it votes with the old one.
    assert_eq!(roster.seat(AuthorIndex(1)).map(|seat| seat.standing), Some(SeatStanding::Present));
    assert_eq!(court.submit(&operator(1), rotate(1, &key(78))), Err(RefusalCode::StateWrong));
    assert_eq!(court.submit(&operator(0), rotate(0, &new)), Err(RefusalCode::Conflict));
    court.finish_epoch();
    let release = court.commit(vec![]);
    let [Effect::Seat(left)] = &release.time_effects[..] else { panic!("{release:?}") };
    assert_eq!((left.index, left.standing), (AuthorIndex(1), SeatStanding::Left));
    let vm = court.vm(&developer(), on("web", 1));
    assert_eq!(vm.placement.host(), Some(host(1)));
    // The old key is nobody's any more, and never anybody else's.
    assert_eq!(court.submit(&operator(1), join(1)), Err(RefusalCode::StateWrong));
    assert_eq!(court.submit(&operator(0), rotate(0, &ledger_key(1))), Err(RefusalCode::Conflict));
}

#[test]
fn a_follower_signs_with_its_new_key_at_once() {
    let mut court = Court::found();
    court.accept(&operator(0), come(3));
    let effects = court.accept(&operator(0), rotate(3, &key(77)));
    let [Effect::Seat(old), Effect::Seat(new), Effect::Host(host)] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!((old.standing, new.standing), (SeatStanding::Left, SeatStanding::Present));
    assert_eq!((&new.ledger_key, new.host), (&host.ledger_key, host.id));
    assert_eq!(court.judge.epoch_end(), None);
}

#[test]
fn after_an_operator_changed_his_key_the_old_one_is_refused_and_he_keeps_what_is_his() {
    let mut court = Court::furnished();
    let new = key(77);
    let rotate =
        |key: &SecretKey| Body::OperatorRotateKey(OperatorRotateKey { new_key: key.public_key() });
    for taken in [developer(), operator(1), operator(0), ledger_key(2), agent_key(2)] {
        assert_eq!(court.submit(&operator(0), rotate(&taken)), Err(RefusalCode::Conflict));
    }
    court.accept(&operator(0), rotate(&new));
    assert_eq!(court.submit(&operator(0), grant(9, 9)), Err(RefusalCode::NotAuthorized));
    let effects = court.accept(&new, grant(9, 9));
    let [Effect::Account(account)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(account.grants.iter().filter(|grant| grant.operator == id(0)).count(), 1);
    // His image is still his, and still trusted.
    assert_eq!(court.submit(&new, image("op0/small")), Err(RefusalCode::AlreadyExists));
    court.vm(&developer(), on("web", 1));
    // His first key is nobody else's, and may come back.
    let taken = court.submit(&operator(1), rotate(&operator(0)));
    assert_eq!(taken, Err(RefusalCode::Conflict));
    court.accept(&new, rotate(&operator(0)));
    court.accept(&operator(0), grant(8, 8));
}

#[test]
fn a_host_follows_by_its_operators_word_alone_and_leaves_when_it_carries_nothing() {
    let mut court = Court::furnished();
    assert_eq!(court.submit(&operator(0), join(3)), Err(RefusalCode::NotFound));
    assert_eq!(court.submit(&developer(), come(3)), Err(RefusalCode::NotAuthorized));
    let called = |index: u8, name: &str| {
        let Body::HostJoin(mut body) = come(index) else { panic!("a host.join") };
        body.name = name.parse().expect("a name");
        Body::HostJoin(body)
    };
    let taken = court.submit(&operator(0), called(3, "host1"));
    assert_eq!(taken, Err(RefusalCode::NameTaken));
    court.accept(&operator(0), come(3));
    assert_eq!(court.submit(&operator(0), come(3)), Err(RefusalCode::AlreadyExists));
    assert_eq!(court.submit(&operator(1), come(3)), Err(RefusalCode::NotAuthorized));
    assert_eq!(court.submit(&operator(0), called(3, "other")), Err(RefusalCode::Conflict));
    let Body::HostJoin(mut moved) = come(3) else { panic!("a host.join") };
    moved.address = Some("192.0.2.7:7400".parse().expect("an address"));
    let effects = court.accept(&operator(0), Body::HostJoin(moved));
    let [Effect::Seat(seat)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(seat.address.to_string(), "192.0.2.7:7400");

    let vm = court.vm(&developer(), on("web", 3));
    assert_eq!(court.submit(&operator(0), leave(3)), Err(RefusalCode::StateWrong));
    court.vm(&developer(), Body::VmDelete(change(&vm)));
    assert_eq!(court.submit(&operator(1), leave(3)), Err(RefusalCode::NotAuthorized));
    let effects = court.accept(&operator(0), leave(3));
    let [Effect::Seat(seat), Effect::Host(left)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((seat.standing, left.duty), (SeatStanding::Left, HostDuty::Left));
    assert_eq!(court.submit(&operator(0), leave(3)), Err(RefusalCode::NotFound));
    assert_eq!(court.submit(&operator(0), come(3)), Err(RefusalCode::StateWrong));
    assert_eq!(court.submit(&developer(), on("web", 3)), Err(RefusalCode::NoHostFits));
    let volume = VolumeCreate { name: "data".parse().expect("a name"), host: host(3), size_gib: 1 };
    let gone = court.submit(&developer(), Body::VolumeCreate(volume));
    assert_eq!(gone, Err(RefusalCode::NotFound));
    // Its name and its agent's key are free again.
    let Body::HostJoin(mut again) = called(4, "host3") else { panic!("a host.join") };
    again.agent_key = agent_key(3).public_key();
    court.accept(&operator(1), Body::HostJoin(again));
}

#[test]
fn a_member_of_another_epoch_is_not_silent() {
    let mut court = Court::furnished();
    court.accept(&operator(0), come(3));
    court.accept(&operator(0), grant(8, 8));
    // Followers make no events, and are offered VMs all the same.
    court.silent = vec![3];
    court.round += 50;
    court.pass(1);
    court.now = court.now.plus_ms(11_000);
    let vm = court.vm(&developer(), on("a", 3));
    court.vm(&developer(), Body::VmDelete(change(&vm)));
    // Host 1 falls silent, and the epoch ends.
    court.silent = vec![1, 3];
    court.agree(&[0, 1, 2], voters(&[3], &[2]));
    court.round += 50;
    court.pass(1);
    court.now = court.now.plus_ms(11_000);
    assert_eq!(court.submit(&developer(), on("b", 1)), Err(RefusalCode::NoHostFits));
    court.finish_epoch();
    // Rounds begin anew: nobody is behind, until the round shows it again.
    court.round = 0;
    court.pass(1);
    court.vm(&developer(), on("b", 1));
    court.round = 50;
    court.silent = vec![2, 3];
    court.pass(1);
    court.now = court.now.plus_ms(11_000);
    assert_eq!(court.submit(&developer(), on("c", 3)), Err(RefusalCode::NoHostFits));
    // Host 2 votes no more, so its silence is no sign.
    court.vm(&developer(), on("c", 2));
}

#[test]
fn a_proposal_that_expects_another_epoch_or_repeats_a_pending_one_is_refused() {
    let mut court = Court::of(4);
    let expecting = |epoch| {
        let (change, expected_epoch) = (voters(&[], &[3]), Some(Epoch(epoch)));
        Body::OperatorPropose(Box::new(OperatorPropose { change, expected_epoch }))
    };
    assert_eq!(court.submit(&operator(0), expecting(1)), Err(RefusalCode::Conflict));
    court.accept(&operator(0), expecting(0));
    assert_eq!(court.submit(&operator(1), expecting(0)), Err(RefusalCode::AlreadyExists));
    let skipped = propose(protocol(3));
    assert_eq!(court.submit(&operator(0), skipped), Err(RefusalCode::Conflict));
    for index in 40..47 {
        court.accept(&operator(0), propose(add_operator(index)));
    }
    let many = court.submit(&operator(0), propose(add_operator(47)));
    assert_eq!(many, Err(RefusalCode::LimitExceeded));
}

#[test]
fn a_judge_that_does_not_know_the_rules_of_an_epoch_judges_none_of_its_commits() {
    let mut court = Court::of(1);
    declare(&mut court, &[0], 2);
    let release = court.whole(&operator(0), propose(protocol(2)));
    let members = epoch(&release).expect("decided");
    assert_eq!((members.committee, members.protocol), (committee([0]), ProtocolVersion(2)));
    court.finish_epoch();
    let (end, commit) = (court.judge.end(), court.next(vec![]));
    for _ in 0..2 {
        let needs = CommitError::UpgradeNeeded { needs: ProtocolVersion(2) };
        assert_eq!(court.judge.apply(commit.clone(), &[]), Err(needs));
        assert_eq!(court.judge.end(), end);
    }
    let mut upgraded = copy(&court).knowing(ProtocolVersion(2));
    while upgraded.end().index < end.index {
        let mut commit = court.next(vec![]);
        commit.index = upgraded.end().index.next();
        upgraded.apply(commit, &[]).expect("the next commit");
    }
    assert!(upgraded.apply(commit, &[]).is_ok());
}

#[test]
fn rules_are_activated_only_once_more_than_two_thirds_of_the_voting_hosts_know_them() {
    let mut court = Court::of(4);
    assert_eq!(court.submit(&operator(0), propose(protocol(2))), Err(RefusalCode::StateWrong));
    declare(&mut court, &[0, 1], 2);
    let payload = court.sign(&operator(0), propose(protocol(2)));
    let AdmissionOutcome::Refused { refusal } = court.judge.admit(&verify(&payload), court.now)
    else {
        panic!("admitted")
    };
    assert_eq!(
        refusal.detail,
        "2 of 4 hosts that will vote declare that they know version 2 of the rules, and it takes \
         3; not: host2, host3"
    );
    // One that follows counts for nothing.
    court.accept(&operator(0), come(4));
    let Body::HostJoin(mut follower) = join(4) else { panic!("a host.join") };
    follower.protocol_max = Some(ProtocolVersion(2));
    court.accept(&operator(0), Body::HostJoin(follower));
    assert_eq!(court.submit(&operator(0), propose(protocol(2))), Err(RefusalCode::StateWrong));
    declare(&mut court, &[2], 2);
    let release = court.agree(&[0, 1, 2], protocol(2));
    assert_eq!(epoch(&release).expect("decided").protocol, ProtocolVersion(2));
    // No version is skipped, whoever knows it.
    assert_eq!(court.submit(&operator(0), propose(protocol(4))), Err(RefusalCode::Conflict));
    assert_eq!(court.submit(&operator(0), propose(protocol(3))), Err(RefusalCode::StateWrong));
}

#[test]
fn voters_change_only_so_that_enough_of_them_know_the_rules_that_count() {
    let mut court = Court::of(4);
    declare(&mut court, &[0, 1, 2], 2);
    court.agree(&[0, 1, 2], protocol(2));
    // Of three all must know them.
    let change = voters(&[], &[1]);
    assert_eq!(court.submit(&operator(0), propose(change)), Err(RefusalCode::StateWrong));
    court.submit(&operator(0), propose(voters(&[], &[3]))).expect("the one that does not");
    declare(&mut court, &[3], 2);
    court.submit(&operator(0), propose(voters(&[], &[1]))).expect("all know them now");
}

#[test]
fn rules_that_too_few_know_any_more_when_their_turn_comes_are_not_activated() {
    let mut court = Court::of(4);
    declare(&mut court, &[0, 1, 2], 2);
    court.agree(&[0, 1, 2], voters(&[], &[3]));
    let queued = court.agree(&[0, 1, 2], protocol(2));
    assert_eq!(proposal(&queued.releases[0].effects).standing, ProposalStanding::Passed);
    declare(&mut court, &[1], 1);
    court.finish_epoch();
    let release = court.commit(vec![]);
    assert_eq!(proposal(&release.time_effects).standing, ProposalStanding::Failed);
    assert_eq!((epoch(&release), court.judge.epoch_end()), (None, None));
}
