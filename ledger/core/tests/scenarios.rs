//! Small fixed scenarios of the consensus, on a network where every message takes one millisecond
//! and every write two.
//!
//! Pinned here: how many rounds a lone payload costs, silence afterwards, dead and restarted
//! members, liars. The seeded simulator of `dagger-tests` does the same with chance in every place.

mod network;

use dagger_ledger_core::Phase;
use network::{Net, author};

#[test]
fn a_lone_payload_is_ordered_everywhere_attested_and_followed_by_silence() {
    for members in [1, 2, 3, 4, 7] {
        let mut net = Net::new(members);
        net.run(2_000);
        net.submit(0, "one");
        net.run(2_000);
        net.assert_all_ordered(&["one"]);
        for host in &net.hosts {
            assert_eq!(host.core.status().phase, Phase::Member);
        }
        let rounds: Vec<_> = net.hosts.iter().map(|host| host.core.status().round).collect();
        let frames = *net.frames.borrow();
        net.run(25_000);
        assert_eq!(*net.frames.borrow(), frames, "{members} members still talk: {rounds:?}");
        assert!(rounds[0].0 <= 9, "{members} members took {} rounds", rounds[0].0);
    }
}

#[test]
fn many_payloads_at_all_hosts_are_ordered_once_and_alike() {
    let mut net = Net::new(4);
    let texts: Vec<String> = (0..200).map(|number| format!("payload {number}")).collect();
    for (number, text) in texts.iter().enumerate() {
        net.submit(number % 4, text);
        net.run(3);
    }
    net.run(3_000);
    net.assert_all_ordered(&texts.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn one_dead_host_of_four_does_not_stop_the_others_and_catches_up_after_its_restart() {
    let mut net = Net::new(4);
    net.run(1_000);
    net.kill(3);
    for number in 0..50 {
        net.submit(number % 3, &format!("payload {number}"));
        net.run(50);
    }
    net.run(2_000);
    let texts: Vec<String> = (0..50).map(|number| format!("payload {number}")).collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    net.assert_all_ordered(&texts);
    net.restart(3);
    net.run(3_000);
    net.assert_all_ordered(&texts);
    assert_eq!(net.hosts[3].ordered.len(), 50);
}

#[test]
fn without_a_quorum_nothing_is_ordered_and_one_restart_resumes_by_itself() {
    let mut net = Net::new(4);
    net.run(1_000);
    net.kill(2);
    net.kill(3);
    net.submit(0, "waits");
    net.run(20_000);
    assert!(net.hosts[0].ordered.is_empty());
    net.restart(2);
    net.run(5_000);
    net.assert_all_ordered(&["waits"]);
}

#[test]
fn a_payload_survives_the_crash_of_its_host_before_and_after_packing() {
    for crash_after_ms in 0..30 {
        let mut net = Net::new(4);
        net.run(1_000);
        net.submit(3, "kept");
        net.run(crash_after_ms);
        net.kill(3);
        net.run(500);
        net.restart(3);
        net.run(5_000);
        net.assert_all_ordered(&["kept"]);
    }
}

#[test]
fn a_payload_after_a_minute_of_silence_is_judged_at_a_fresh_ledger_time() {
    for members in [1, 2, 3, 4, 7] {
        for host in 0..members {
            let mut net = Net::new(members);
            net.run(1_000);
            net.submit(0, "before the silence");
            net.run(60_000);
            net.submit(host, "after the silence");
            net.run(5_000);
            net.assert_all_ordered(&["before the silence", "after the silence"]);
            for judging in &net.hosts {
                let behind_ms = judging.judged_behind_ms;
                assert!(behind_ms <= 3_000, "{members} members: {behind_ms} ms behind");
            }
        }
    }
}

/// How long a payload takes to be ordered at the first host, in milliseconds.
fn ordered_after_ms(net: &mut Net, host: usize, text: &str) -> u64 {
    net.submit(host, text);
    let mut waited_ms = 0;
    while !net.has_ordered(0, text) {
        net.run(1);
        waited_ms += 1;
        assert!(waited_ms < 10_000, "{text} is not ordered");
    }
    waited_ms
}

#[test]
fn a_member_that_hangs_costs_the_others_a_few_waits_and_then_nothing() {
    // It stays connected, but nobody hears it, as a process that was stopped.
    let mut net = Net::new(4);
    net.run(1_000);
    let mut latencies_ms = |name: &str, muted: Option<usize>| -> Vec<u64> {
        net.muted = muted;
        let order =
            |number: usize| ordered_after_ms(&mut net, number % 3, &format!("{name} {number}"));
        (0..30).map(order).collect()
    };
    let usual = latencies_ms("usual", None);
    let hung = latencies_ms("hung", Some(3));
    let usual_ms = usual.iter().sum::<u64>() / 30;
    println!("usual {usual:?}\nhung {hung:?}");
    let lost_ms: u64 = hung.iter().map(|ms| ms.saturating_sub(usual_ms)).sum();
    assert!(lost_ms < 500, "{lost_ms} ms lost: {hung:?}");
    let after = &hung[10..];
    assert!(after.iter().all(|ms| *ms < 2 * usual_ms), "usually {usual_ms} ms: {after:?}");
}

#[test]
fn what_only_a_liar_had_is_asked_for_anew_once_another_shows_it() {
    let mut net = Net::new(4);
    net.run(1_000);
    net.kill(3);
    net.submit(0, "before");
    net.run(5_000);
    let top = net.hosts[..3].iter().map(|host| host.core.status().round.0).min().expect("three");
    let honest = |net: &Net, round| {
        let mut events = net.round(0, round);
        events.retain(|place| place.author != author(3));
        events
    };
    let hidden = net.forge((3, top - 1), honest(&net, top - 2), "");
    let parents = honest(&net, top - 1).into_iter().chain([hidden.as_parent()]).collect();
    let above = net.forge((3, top), parents, "");
    net.tell(3, 0, &above);
    // Both peers have been asked three times: the next time it would be given up.
    net.run(6_000);
    for host in 1..3 {
        net.tell(3, host, &hidden);
        net.tell(3, host, &above);
    }
    net.submit(1, "upon it");
    net.run(5_000);
    assert!(net.has(0, &hidden));
    net.assert_all_ordered(&["before", "upon it"]);
}
