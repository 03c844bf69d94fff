//! Members enter and leave between two commits, and nobody else notices.

mod network;

use dagger_ledger_core::{Core, Phase};
use dagger_payload::id::{AuthorIndex, Epoch};
use network::Net;

fn epoch(core: &Core) -> Epoch {
    core.status().epoch
}

fn assert_epoch(net: &Net, wanted: u64) {
    for host in net.hosts.iter().filter(|host| host.alive) {
        assert_eq!(epoch(&host.core), Epoch(wanted));
    }
}

/// Nothing travels for a while but one exchange of what everybody has.
fn assert_silent(net: &mut Net) {
    let frames = *net.frames.borrow();
    net.run(25_000);
    let hosts = u64::try_from(net.hosts.len()).expect("few");
    assert!(*net.frames.borrow() - frames <= hosts * (hosts - 1), "somebody still talks");
}

#[test]
fn a_follower_becomes_a_member_and_orders_payloads_of_its_own() {
    for members in [1, 2, 3, 4, 6] {
        let mut net = Net::with_followers(members, 1);
        net.run(1_000);
        net.submit(0, "before");
        net.run(1_000);
        assert_eq!(net.hosts[members].core.status().phase, Phase::Follower);
        let all: Vec<String> = (0..=members).map(|index| index.to_string()).collect();
        let change = format!("members {}", all.join(" "));
        net.submit(0, &change);
        net.run(3_000);
        assert_epoch(&net, 1);
        net.submit(members, "from the new one");
        net.run(2_000);
        net.assert_all_ordered(&["before", &change, "from the new one"]);
        assert_eq!(net.hosts[members].core.status().phase, Phase::Member);
        assert_silent(&mut net);
    }
}

#[test]
fn payloads_under_way_survive_the_change_and_are_ordered_once() {
    let mut net = Net::with_followers(4, 1);
    net.run(1_000);
    let mut texts: Vec<String> = Vec::new();
    for number in 0..200 {
        let text = match number {
            60 => "members 0 1 2 3 4".to_owned(),
            140 => "members 1 2 3 4".to_owned(),
            _ => format!("payload {number}"),
        };
        net.submit(number % 4, &text);
        texts.push(text);
        net.run(4);
    }
    net.run(5_000);
    // What waited at the host that left is lost to nobody but to it: it has no vote any more.
    assert_epoch(&net, 2);
    let left = &net.hosts[0];
    assert_eq!(left.core.status().phase, Phase::Follower);
    let waiting = left.core.status().waiting;
    assert_eq!(left.ordered.len() + waiting, texts.len());
    for host in &net.hosts {
        assert_eq!(host.ordered, left.ordered);
    }
    let certificate = net.hosts[2].store.handovers.last().expect("two handovers");
    assert!(certificate.headers.len() >= 4);
    assert!(!certificate.committee.contains(AuthorIndex(0)));
}

#[test]
fn a_host_that_slept_through_epochs_follows_their_certificates() {
    let mut net = Net::with_followers(4, 2);
    net.run(1_000);
    net.kill(3);
    for change in ["members 0 1 2 3 4", "members 0 1 2 3 4 5"] {
        net.submit(0, change);
        net.run(3_000);
    }
    net.submit(5, "late");
    net.run(2_000);
    assert_epoch(&net, 2);
    net.restart(3);
    net.run(5_000);
    net.assert_all_ordered(&["members 0 1 2 3 4", "members 0 1 2 3 4 5", "late"]);
    assert_epoch(&net, 2);
    assert_eq!(net.hosts[3].core.status().phase, Phase::Member);
    net.submit(3, "again");
    net.run(2_000);
    assert_eq!(net.hosts[0].ordered.len(), 4);
    assert_silent(&mut net);
}

#[test]
fn a_crash_at_any_moment_of_the_change_loses_neither_the_change_nor_a_payload() {
    for crash_after_ms in (0..120).step_by(3) {
        let mut net = Net::with_followers(4, 1);
        net.run(1_000);
        net.submit(3, "members 0 1 2 3 4");
        net.run(crash_after_ms);
        net.kill(3);
        net.run(300);
        net.restart(3);
        net.submit(3, "after");
        net.run(8_000);
        net.assert_all_ordered(&["members 0 1 2 3 4", "after"]);
        assert_epoch(&net, 1);
    }
}

#[test]
fn a_new_member_that_followed_before_it_votes_is_no_burden_although_another_one_is_dead() {
    let mut net = Net::with_followers(4, 1);
    net.run(1_000);
    // Its store is new: for all that it knows it may have lost another one.
    net.kill(4);
    net.wipe(4);
    net.restart(4);
    net.run(3_000);
    net.kill(1);
    net.submit(0, "members 0 1 2 3 4");
    net.run(5_000);
    assert_epoch(&net, 1);
    net.submit(4, "four of five");
    net.run(3_000);
    net.assert_all_ordered(&["members 0 1 2 3 4", "four of five"]);
    assert_eq!(net.hosts[4].core.status().phase, Phase::Member);
    // Nor is it one when it starts again.
    net.kill(4);
    net.run(1_000);
    net.restart(4);
    net.run(5_000);
    net.submit(4, "again");
    net.run(3_000);
    net.assert_all_ordered(&["members 0 1 2 3 4", "four of five", "again"]);
}

#[test]
fn a_member_that_lost_its_store_is_not_taken_for_a_new_one_while_it_follows_its_own_past() {
    let mut net = Net::with_followers(4, 1);
    net.run(1_000);
    net.submit(0, "members 0 1 2 3 4");
    net.run(3_000);
    net.submit(4, "signed by the one that forgets");
    net.run(3_000);
    assert!(net.hosts[4].core.status().round.0 > 0);
    net.kill(4);
    net.wipe(4);
    net.kill(1);
    net.restart(4);
    net.run(20_000);
    // It has followed to the epoch in which it had signed, and waits for whoever is missing.
    let status = net.hosts[4].core.status();
    assert_eq!((status.epoch, status.phase), (Epoch(1), Phase::Recovering));
    assert_eq!(status.round.0, 0);
    net.restart(1);
    net.run(20_000);
    net.submit(4, "it remembers");
    net.run(5_000);
    net.assert_all_ordered(&[
        "members 0 1 2 3 4",
        "signed by the one that forgets",
        "it remembers",
    ]);
    assert_eq!(net.hosts[4].core.status().phase, Phase::Member);
}
