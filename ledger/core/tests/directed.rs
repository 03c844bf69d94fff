//! The wordings of the rules that failed once, each as a case of its own.
//!
//! Setting: four members (others where it says so) on a network where every message takes one
//! millisecond and every write two; a liar is a member whose core is dead and in whose name events
//! are forged. Pinned: when an event is made and when not, what is attested, what returns to the
//! pool, which twins are taken in, and how often a peer is shown what it lacks. Built with
//! `planted-bugs`, each case is also tried with the wrong rule, and must fail.

mod network;

use dagger_ledger_core::ClockDoubt;
#[cfg(feature = "planted-bugs")]
use dagger_ledger_core::planted::{Bug, plant};
use dagger_payload::event::Parent;
use dagger_payload::id::{EventDigest, Round};
use network::{Net, author};

const LIAR: usize = 3;

/// Holds the case with the right rule and, where it can be planted, fails it with the wrong one.
macro_rules! directed {
    ($($case:ident, $bug:ident;)*) => { $(
        #[test]
        fn $case() {
            #[cfg(feature = "planted-bugs")]
            let _one_at_a_time = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            cases::$case();
            #[cfg(feature = "planted-bugs")]
            {
                plant(Some(Bug::$bug));
                let failed = std::panic::catch_unwind(cases::$case).is_err();
                plant(None);
                assert!(failed, "it holds with the wrong rule, too");
            }
        }
    )* };
}

/// Which bug is planted counts for the whole process.
#[cfg(feature = "planted-bugs")]
static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

directed! {
    closing_events_are_not_closed_in_turn, CloseOnAnyCommit;
    what_is_ordered_and_not_judged_is_not_closed, CloseOnOrdered;
    the_payload_of_an_author_whom_nobody_may_name_is_no_work, UnnameableTwinIsWork;
    hosts_that_saw_unequally_many_empty_commits_attest_the_same, NewestOfEqualsAttested;
    a_payload_returns_as_often_as_its_event_comes_too_late, ReturnedOnceOnly;
    a_liar_who_attests_less_sets_nobodys_pace, AnswerAttestsLess;
    a_twin_is_taken_in_only_when_another_author_names_it, TwinsTakenUnnamed;
    a_branch_that_only_a_liar_names_is_not_shown_again_and_again, PassedOverNotTold;
    liars_who_name_each_others_twins_in_a_silence_do_not_fill_the_memory, CrowdIsNoWork;
    a_peer_that_says_without_end_that_it_has_nothing_is_answered_so_often, AnswersUnlimited;
    a_peer_that_asks_about_its_past_without_end_is_answered_so_often, QuestionsUnlimited;
    what_claims_to_stand_far_above_all_moves_nobodys_word, FarRoundsTold;
    a_false_place_below_the_floor_divides_nobody, OldParentsChecked;
    a_host_whose_clock_jumped_is_silent_until_its_operator_confirms_it, ClockNotDoubted;
    a_host_whose_clock_is_not_that_of_its_peers_is_silent_and_stops_nobody, ClockNotDoubted;
}

/// The highest round at which the first three members all are.
fn top(net: &Net) -> u64 {
    let rounds = net.hosts[..LIAR].iter().map(|host| host.core.status().round.0);
    rounds.min().expect("three")
}

/// Three members of four go on; the liar is silent so far.
fn with_a_liar(payloads: u32) -> Net {
    let mut net = Net::new(4);
    net.run(1_000);
    net.kill(LIAR);
    for number in 0..payloads {
        net.submit(0, &format!("payload {number}"));
        net.run(100);
    }
    net.run(5_000);
    net
}

/// What the others made for a round.
fn honest(net: &Net, round: u64) -> Vec<Parent> {
    let mut events = net.round(0, round);
    events.retain(|place| place.author != author(LIAR));
    events
}

fn tell_all(net: &mut Net, event: &network::Lie) {
    for to in 0..LIAR {
        net.tell(LIAR, to, event);
    }
}

/// Events that all members made within so many milliseconds.
fn rounds_within(net: &mut Net, for_ms: u64) -> u64 {
    let before = top(net);
    net.run(for_ms);
    top(net) - before
}

mod cases {
    use super::*;

    pub(super) fn closing_events_are_not_closed_in_turn() {
        for members in [1, 2, 3, 4, 7] {
            let mut net = Net::new(members);
            net.run(1_000);
            net.submit(0, "one");
            net.run(2_000);
            net.assert_all_ordered(&["one"]);
            let before = net.hosts[0].core.status().round;
            net.run(20_000);
            assert_eq!(net.hosts[0].core.status().round, before, "{members} members");
        }
    }

    pub(super) fn what_is_ordered_and_not_judged_is_not_closed() {
        let mut net = Net::new(4);
        net.run(1_000);
        net.judge_ms = (0..4).map(|host| (host, 3_000)).collect();
        net.submit(0, "one");
        while net.hosts[0].core.status().position.0 == 0 {
            net.run(10);
        }
        let rounds = rounds_within(&mut net, 2_500);
        assert!(net.hosts[0].ordered.is_empty(), "it is judged already");
        assert!(rounds <= 2, "{rounds} rounds for nothing");
        net.run(20_000);
        net.assert_all_ordered(&["one"]);
        for host in 0..4 {
            assert_eq!(net.newest(0, host).header.attestation.newest.position.0, 1);
        }
    }

    pub(super) fn the_payload_of_an_author_whom_nobody_may_name_is_no_work() {
        let mut net = with_a_liar(1);
        let round = top(&net);
        let parents = honest(&net, round);
        let one = net.forge((LIAR, round + 1), parents.clone(), "one twin");
        let other = net.forge((LIAR, round + 1), parents, "other twin");
        net.tell(LIAR, 0, &one);
        net.tell(LIAR, 1, &other);
        net.tell(LIAR, 2, &one);
        net.run(20_000);
        for host in &net.hosts[..LIAR] {
            assert_eq!(host.core.status().forkers, [author(LIAR)]);
        }
        let round = top(&net);
        let unnamed = net.forge((LIAR, round + 1), honest(&net, round), "unnamed");
        tell_all(&mut net, &unnamed);
        let rounds = rounds_within(&mut net, 20_000);
        assert!(net.has(0, &unnamed) && rounds == 0, "{rounds} rounds for nothing");
    }

    pub(super) fn hosts_that_saw_unequally_many_empty_commits_attest_the_same() {
        for late in 0..4 {
            let mut net = Net::new(4);
            net.judge_ms.insert(late, 40);
            net.run(1_000);
            for number in 0..4 {
                net.submit(number, &format!("payload {number}"));
                net.run(3_000);
                let attested = |host| net.newest(host, host).header.attestation.newest;
                for host in 0..4 {
                    assert_eq!(attested(host), attested(0), "host {host}, {late} is late");
                }
            }
        }
    }

    pub(super) fn a_payload_returns_as_often_as_its_event_comes_too_late() {
        let mut net = Net::new(4);
        net.run(1_000);
        let mut texts = vec!["late".to_owned()];
        net.muted = Some(3);
        net.submit(3, "late");
        // Far more rounds than are collected behind a leader, several times.
        for number in 0..60 {
            let text = format!("payload {number}");
            net.submit(number % 3, &text);
            texts.push(text);
            net.run(100);
        }
        assert!(net.hosts[0].core.status().round.0 > 150, "too few rounds");
        net.muted = None;
        net.run(60_000);
        net.assert_all_ordered(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    }

    pub(super) fn a_liar_who_attests_less_sets_nobodys_pace() {
        let mut net = with_a_liar(1);
        let begin = top(&net);
        let mut last = begin;
        for _ in 0..2_000 {
            let round = top(&net);
            let parents = honest(&net, round);
            if round >= last && parents.len() == LIAR {
                let event = net.forge((LIAR, round + 1), parents, "");
                tell_all(&mut net, &event);
                last = round + 1;
            }
            net.run(5);
        }
        let rounds = top(&net) - begin;
        assert!((5..30).contains(&rounds), "{rounds} rounds in ten seconds");
    }

    pub(super) fn a_twin_is_taken_in_only_when_another_author_names_it() {
        let mut net = with_a_liar(3);
        net.kill(2);
        let top = top(&net);
        let round = top - 3;
        let one = net.forge((LIAR, round), honest(&net, round - 1), "");
        let twin = net.forge((LIAR, round), honest(&net, round - 1), "twin");
        let parents = honest(&net, round).into_iter().chain([twin.as_parent()]).collect();
        let above = net.forge((LIAR, round + 1), parents, "");
        for to in 0..2 {
            net.tell(LIAR, to, &one);
            net.run(10);
            net.tell(LIAR, to, &above);
            net.tell(LIAR, to, &twin);
        }
        net.run(2_000);
        assert!(net.has(0, &one) && !net.has(0, &twin) && !net.has(0, &above));
        // The third member has both in its history.
        let parents = honest(&net, top).into_iter().chain([above.as_parent()]).collect();
        let naming = net.forge((2, top + 1), parents, "");
        net.tell(2, 0, &naming);
        net.tell(LIAR, 0, &above);
        net.run(2_000);
        assert!(net.has(0, &twin) && net.has(0, &above) && net.has(0, &naming));
    }

    pub(super) fn a_branch_that_only_a_liar_names_is_not_shown_again_and_again() {
        let mut net = with_a_liar(1);
        let round = top(&net) - 1;
        let one = net.forge((LIAR, round), honest(&net, round - 1), "");
        net.run(1); // another timestamp makes a twin
        let twin = net.forge((LIAR, round), honest(&net, round - 1), "");
        let parents = honest(&net, round).into_iter().chain([twin.as_parent()]).collect();
        let above = net.forge((LIAR, round + 1), parents, "");
        net.tell(LIAR, 0, &one);
        for to in [1, 2] {
            net.tell(LIAR, to, &twin);
            net.tell(LIAR, to, &above);
        }
        net.run(120_000);
        assert!(net.has(1, &above) && net.has(2, &above) && !net.has(0, &above));
        let before = net.bytes;
        net.run(600_000);
        let spoken = net.bytes - before;
        // One exchange each half minute, and nothing else.
        let (exchanges, have_bytes_max) = (20 * LIAR * LIAR, 40);
        assert!(spoken <= exchanges * have_bytes_max, "{spoken} bytes in ten silent minutes");
        // Once an honest member builds on it, the first one takes it, too.
        net.submit(1, "work");
        net.run(5_000);
        net.assert_all_ordered(&["payload 0", "work"]);
        assert!(net.has(0, &above));
    }

    pub(super) fn liars_who_name_each_others_twins_in_a_silence_do_not_fill_the_memory() {
        let (one, other, honest) = (5, 6, 0..5);
        let mut net = Net::new(7);
        net.run(1_000);
        net.kill(one);
        net.kill(other);
        net.submit(0, "payload");
        net.run(10_000);
        let mut most = 0;
        for number in 0..6_000_u32 {
            net.run(50); // another timestamp makes a twin, and another may be brought in
            let rounds = net.hosts[honest.clone()].iter().map(|host| host.core.status().round.0);
            let round = rounds.min().expect("five") - 1; // a higher one would be worth reaching
            let made = |net: &Net, round| -> Vec<Parent> {
                let events = net.round(0, round).into_iter();
                events.filter(|place| place.author < author(one)).collect()
            };
            let twin = net.forge((one, round), made(&net, round - 1), "");
            // What names it must never be accepted, or the next would be a twin as well.
            let mut named = made(&net, round);
            named[0].digest.0[..4].copy_from_slice(&number.to_be_bytes());
            named.push(twin.as_parent());
            let naming = net.forge((other, round + 1), named, "");
            net.tell(other, 0, &naming);
            net.tell(one, 0, &twin);
            let held = net.hosts[0].core.held();
            most = most.max(held.iter().find(|held| held.what == "twins").expect("listed").count);
        }
        assert!((512..2_048).contains(&most), "{most} twins in memory");
        net.run(60_000);
        assert_eq!(rounds_within(&mut net, 60_000), 0, "silence returns when they stop");
    }

    pub(super) fn a_peer_that_says_without_end_that_it_has_nothing_is_answered_so_often() {
        let mut net = with_a_liar(20);
        let before = net.bytes;
        net.tell_nothing(2, 0);
        let answer = net.bytes - before;
        assert!(answer > 10_000, "it lacks all: {answer} bytes");
        for _ in 0..10_000 {
            net.tell_nothing(2, 0);
        }
        let answers = (net.bytes - before) / answer;
        assert!((10..100).contains(&answers), "{answers} answers");
        net.run(10_000);
        let before = net.bytes;
        net.tell_nothing(2, 0);
        assert!(net.bytes - before >= answer, "who asks again later is answered");
    }

    /// An event that nobody has.
    fn invented(by: usize, round: u64, number: u64) -> Parent {
        let mut digest = [7; 32];
        digest[..8].copy_from_slice(&number.to_be_bytes());
        digest[8] = u8::try_from(by).expect("few");
        Parent { author: author(by), round: Round(round), digest: EventDigest(digest) }
    }

    pub(super) fn a_peer_that_asks_about_its_past_without_end_is_answered_so_often() {
        let mut net = with_a_liar(3);
        let top = top(&net);
        let asker = 2;
        for number in 0..1_000 {
            let parents = (0..=LIAR).map(|by| invented(by, top, number)).collect();
            let orphan = net.forge((asker, top + 1), parents, "");
            net.tell(asker, 0, &orphan);
        }
        let before = net.bytes;
        for nonce in 0..10_000 {
            net.ask_past(asker, 0, nonce);
        }
        // 32 times as much as 256 events.
        let answered = net.bytes - before;
        assert!((100_000..8_000_000).contains(&answered), "{answered} bytes");
    }

    pub(super) fn what_claims_to_stand_far_above_all_moves_nobodys_word() {
        let mut net = with_a_liar(3);
        let (top, far) = (top(&net), 1 << 60);
        let known = net.forge((LIAR, top - 1), honest(&net, top - 2), "");
        net.tell(LIAR, 0, &known);
        // It rests on a twin that nobody but its author names, and on what nobody has.
        let mut parents: Vec<_> = (0..LIAR).map(|by| invented(by, far - 1, 0)).collect();
        parents.push(invented(LIAR, top - 1, 0));
        let lie = net.forge((LIAR, far), parents, "");
        net.tell(LIAR, 0, &lie);
        net.run(120_000);
        for host in 1..LIAR {
            assert_eq!(net.hosts[host].core.status().fruitless, [], "the first was asked in vain");
        }
    }

    pub(super) fn a_false_place_below_the_floor_divides_nobody() {
        let mut net = with_a_liar(40);
        let top = top(&net);
        // Only the first member knows the event whose digest stands under a false place.
        let known = net.forge((LIAR, top - 5), honest(&net, top - 6), "");
        net.tell(LIAR, 0, &known);
        let false_place = Parent { author: author(LIAR), round: Round(1), digest: known.digest };
        let parents = honest(&net, top).into_iter().chain([false_place]).collect();
        let lie = net.forge((LIAR, top + 1), parents, "a lie");
        net.tell(LIAR, 1, &lie);
        net.tell(LIAR, 2, &lie);
        net.run(2_000);
        net.submit(1, "the truth");
        net.run(40_000);
        for host in 0..LIAR {
            assert!(net.has_ordered(host, "the truth"), "host {host} is left alone");
        }
    }

    const TWO_HOURS_MS: u64 = 2 * 3_600_000;

    pub(super) fn a_host_whose_clock_jumped_is_silent_until_its_operator_confirms_it() {
        for members in [1, 4] {
            let mut net = Net::new(members);
            net.run(1_000);
            net.submit(0, "before");
            net.run(2_000);
            net.ahead_ms.insert(0, TWO_HOURS_MS);
            let round = net.hosts[0].core.status().round;
            net.submit(0, "after");
            if members > 1 {
                net.submit(1, "meanwhile");
            }
            net.run(5_000);
            let status = net.hosts[0].core.status();
            assert!(matches!(status.clock_doubt, Some(ClockDoubt::Jumped { .. })));
            assert_eq!(status.round, round, "{members} members");
            assert_eq!(net.has_ordered(members - 1, "meanwhile"), members > 1);
            net.ahead_ms.clear();
            net.run(1_000);
            assert!(net.hosts[0].core.status().clock_doubt.is_some(), "it came back by itself");
            net.confirm_clock(0);
            net.run(5_000);
            assert!((0..members).all(|host| net.has_ordered(host, "after")));
        }
    }

    pub(super) fn a_host_whose_clock_is_not_that_of_its_peers_is_silent_and_stops_nobody() {
        for members in [3, 4, 7] {
            let last = members - 1;
            let mut net = Net::new(members);
            // From its start on: nothing jumps.
            net.kill(last);
            net.ahead_ms.insert(last, TWO_HOURS_MS);
            net.restart(last);
            net.run(1_000);
            net.submit(0, "one");
            net.run(3_000);
            let status = net.hosts[last].core.status();
            assert!(status.clock_doubt.is_some_and(is_ahead), "{:?}", status.clock_doubt);
            let round = status.round;
            net.submit(1, "two");
            net.run(5_000);
            assert_eq!(net.hosts[last].core.status().round, round);
            for host in 0..last {
                let doubt = net.hosts[host].core.status().clock_doubt;
                assert_eq!(doubt, None, "host {host} of {members}");
                assert_eq!(net.has_ordered(host, "two"), members > 3);
            }
            // Its operator may insist; then nobody asks again.
            net.confirm_clock(last);
            net.submit(last, "three");
            net.run(5_000);
            assert!((0..members).all(|host| net.has_ordered(host, "three")));
            assert_eq!(net.hosts[last].core.status().clock_doubt, None);
        }
    }

    fn is_ahead(doubt: ClockDoubt) -> bool {
        matches!(doubt, ClockDoubt::Differs { ahead_ms } if ahead_ms > 0)
    }
}
