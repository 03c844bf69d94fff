//! Whom a recovering host believes, and when it may sign. Called by the test runner.

use super::*;

/// An answer of who has not attested the end of the epoch.
fn ahead(nonce: u64, highest_of_asker: u64, quorum_round: u64) -> RecoveryAnswer {
    let (highest_of_asker, quorum_round) = (Round(highest_of_asker), Round(quorum_round));
    RecoveryAnswer { nonce, highest_of_asker, quorum_round, end: EndOfEpoch::Ahead }
}

#[test]
fn a_host_without_a_past_signs_the_first_round_at_a_founding_only() {
    let committee = Committee::new(4).expect("four may vote");
    let floor = |beginning| {
        let vote = (committee, beginning);
        let mut recovery = Recovery::new(vote, AuthorIndex(0), Memory::Doubtful, 0);
        recovery.nonce = 1;
        for peer in 1..4 {
            recovery.answered(AuthorIndex(peer), ahead(1, 0, 0));
        }
        recovery.floor(Round(0), Round(0), Round(0))
    };
    assert_eq!(floor(Beginning::Founding), Some(Round(0)));
    assert_eq!(floor(Beginning::Handover), Some(Round(RECOVERY_MARGIN_ROUNDS)));
}

#[test]
fn a_peers_later_rounds_do_not_move_the_goal_of_a_host_that_follows_slowly() {
    let vote = (Committee::new(4).expect("four may vote"), Beginning::Handover);
    let mut recovery = Recovery::new(vote, AuthorIndex(0), Memory::Doubtful, 0);
    for asked in 1..10 {
        recovery.nonce = asked;
        for peer in 1..4 {
            recovery.answered(AuthorIndex(peer), ahead(asked, 0, 100 * asked));
        }
        let here = Round(50 * asked);
        let floor = recovery.floor(Round(0), Round(0), here);
        let expected = Round(here.0 + RECOVERY_MARGIN_ROUNDS);
        assert_eq!(floor, (asked > 1).then_some(expected));
    }
}

#[test]
fn a_peer_that_lost_what_it_claimed_is_believed_when_it_says_less() {
    let vote = (Committee::new(4).expect("four may vote"), Beginning::Handover);
    let mut recovery = Recovery::new(vote, AuthorIndex(0), Memory::Doubtful, 0);
    let mut floor = |asked: u64, own: u64, rounds: u64| {
        recovery.nonce = asked;
        for peer in 1..4 {
            recovery.answered(AuthorIndex(peer), ahead(asked, own, rounds));
        }
        recovery.floor(Round(0), Round(5), Round(20))
    };
    assert_eq!(floor(1, 9, 30), None, "neither its own events nor the rounds are here");
    assert_eq!(floor(2, 5, 30), None, "the rounds are not here");
    assert_eq!(floor(3, 5, 20), Some(Round(20 + RECOVERY_MARGIN_ROUNDS)));
    assert_eq!(floor(4, 6, 20), None, "more of the own events was shown to a peer");
}

#[test]
fn a_follower_is_sure_of_its_memory_once_a_quorum_says_that_its_epoch_goes_on() {
    let (four, five) = (Committee::new(4).expect("may vote"), Committee::new(5).expect("may vote"));
    let vote = (four, Beginning::Handover);
    let mut follower = Recovery::new(vote, AuthorIndex(4), Memory::Doubtful, 0);
    follower.nonce = 1;
    for peer in [0, 1, 1, 4, 7] {
        follower.answered(AuthorIndex(peer), ahead(1, 0, 0));
    }
    assert!(
        !follower.is_first_life(AuthorIndex(4)),
        "two of four, one of them twice, and two strangers"
    );
    // Nothing of an earlier question, or of one that was not asked yet.
    follower.answered(AuthorIndex(2), ahead(2, 0, 0));
    assert!(!follower.is_first_life(AuthorIndex(4)));
    let doubtful = follower.in_next_epoch(five, AuthorIndex(4), Moment(0));
    assert_eq!((doubtful.memory(), doubtful.is_over()), (Memory::Doubtful, false));
    follower.answered(AuthorIndex(2), ahead(1, 0, 0));
    assert!(follower.is_first_life(AuthorIndex(4)));
    (follower.memory, follower.state) = (Memory::Agrees, State::Over);
    // With a vote it asks as after a plain restart: f + 1 answers are enough.
    let mut votes = follower.in_next_epoch(five, AuthorIndex(4), Moment(0));
    assert_eq!((votes.memory(), votes.is_over()), (Memory::Agrees, false));
    votes.answered(AuthorIndex(0), ahead(1, 0, 0));
    assert_eq!(votes.floor(Round(0), Round(0), Round(0)), None);
    votes.answered(AuthorIndex(2), ahead(1, 0, 0));
    assert_eq!(votes.floor(Round(0), Round(0), Round(0)), Some(Round(0)));
}

#[test]
fn a_member_that_forgot_while_an_epoch_may_have_ended_asks_again_in_the_next() {
    let vote = (Committee::new(4).expect("four may vote"), Beginning::Founding);
    let next = |memory, rounds: Round, last| {
        let mut recovery = Recovery::new(vote, AuthorIndex(0), memory, 0);
        recovery.nonce = 1;
        for (peer, end) in [(1, EndOfEpoch::Ahead), (2, EndOfEpoch::Ahead), (3, last)] {
            let answer = RecoveryAnswer { end, ..ahead(1, 0, rounds.0) };
            recovery.answered(AuthorIndex(peer), answer);
        }
        let floor = recovery.floor(Round(0), Round(0), rounds).expect("all have answered");
        recovery.come_to_know(floor);
        let next = recovery.in_next_epoch(vote.0, AuthorIndex(0), Moment(0));
        (next.is_over(), next.memory())
    };
    // With a liar's word the third one may have ended the epoch with an earlier life of this
    // host, which then signed in the next.
    let (open, sure) = ((false, Memory::Doubtful), (true, Memory::Agrees));
    assert_eq!(next(Memory::Doubtful, Round(9), EndOfEpoch::MayHaveCome), open);
    assert_eq!(next(Memory::Doubtful, Round(9), EndOfEpoch::Ahead), sure);
    assert_eq!(next(Memory::Agrees, Round(9), EndOfEpoch::MayHaveCome), sure);
    // Who begins with all others has none.
    assert_eq!(next(Memory::Doubtful, Round(0), EndOfEpoch::MayHaveCome), sure);
}

#[test]
fn an_answer_to_an_earlier_life_counts_for_nothing() {
    let vote = (Committee::new(4).expect("four may vote"), Beginning::Handover);
    let mut recovery = Recovery::new(vote, AuthorIndex(0), Memory::Agrees, 1_000);
    recovery.nonce = 1_001;
    let mut floor = |nonce| {
        for peer in 1..4 {
            recovery.answered(AuthorIndex(peer), ahead(nonce, 0, 0));
        }
        recovery.floor(Round(7), Round(7), Round(7))
    };
    assert_eq!([1, 1_000, 1_002].map(&mut floor), [None; 3]);
    assert_eq!(floor(1_001), Some(Round(7)));
}

#[test]
fn a_lone_host_that_forgot_may_sign_nothing() {
    let committee = Committee::new(1).expect("one may vote");
    for beginning in [Beginning::Founding, Beginning::Handover] {
        let vote = (committee, beginning);
        let recovery = Recovery::new(vote, AuthorIndex(0), Memory::Doubtful, 0);
        assert!(!recovery.is_over());
        assert_eq!(recovery.floor(Round(7), Round(7), Round(7)), None);
    }
}
