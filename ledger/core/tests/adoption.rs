//! A host that begins from a snapshot, because nobody has the events any more that it would replay.

mod network;

use network::Net;

/// Four members; the last one loses everything while the others order more than is kept.
fn without_the_last(count: usize) -> (Net, Vec<String>) {
    let texts: Vec<_> = (0..count).map(|number| format!("payload {number}")).collect();
    let mut net = Net::new(4);
    net.run(1_000);
    net.kill(3);
    for (number, text) in texts.iter().enumerate() {
        net.submit(number % 3, text);
        net.run(20);
    }
    net.run(1_000);
    (net, texts)
}

fn assert_goes_on(net: &mut Net, texts: Vec<String>) {
    let more = ["one more".to_owned(), "from the host itself".to_owned()];
    net.submit(0, &more[0]);
    net.submit(3, &more[1]);
    net.run(10_000);
    let all: Vec<_> = texts.iter().chain(&more).map(String::as_str).collect();
    net.assert_all_ordered(&all);
    assert!(net.hosts.iter().all(|host| host.core.status().forkers.is_empty()));
}

#[test]
fn a_wiped_host_goes_on_from_a_frontier_and_takes_part_again() {
    let (mut net, texts) = without_the_last(300);
    let adopted = net.prune_below_a_frontier(0, 100);
    net.wipe(3);
    net.restart(3);
    net.run(5_000);
    assert_eq!(net.hosts[3].core.status().committed.0, 0, "nobody has what it asks for");
    net.adopt(3, adopted);
    net.run(5_000);
    let round = net.hosts[3].core.status().round;
    assert!(round.0 > 100, "it signs again, in round {round}");
    assert_goes_on(&mut net, texts);
}

#[test]
fn a_host_that_adopted_and_restarts_at_once_goes_on_from_there() {
    let (mut net, texts) = without_the_last(300);
    let adopted = net.prune_below_a_frontier(0, 100);
    net.wipe(3);
    net.restart(3);
    net.adopt(3, adopted);
    net.kill(3);
    net.restart(3);
    net.run(5_000);
    assert_goes_on(&mut net, texts);
}

#[test]
fn a_host_that_was_away_keeps_its_own_chain_and_goes_on_from_a_frontier() {
    let (mut net, texts) = without_the_last(300);
    let adopted = net.prune_below_a_frontier(0, 100);
    net.restart(3);
    net.adopt(3, adopted);
    net.run(5_000);
    assert_eq!(net.hosts[3].core.status().forkers, []);
    assert_goes_on(&mut net, texts);
}

#[test]
fn a_wiped_host_adopts_a_frontier_of_a_later_epoch() {
    let (mut net, mut texts) = without_the_last(100);
    let change = "members 0 1 2 3".to_owned();
    net.submit(0, &change);
    texts.push(change);
    net.run(1_000);
    for number in 0..200 {
        let text = format!("later {number}");
        net.submit(number % 3, &text);
        texts.push(text);
        net.run(20);
    }
    let adopted = net.prune_below_a_frontier(0, 50);
    net.wipe(3);
    net.restart(3);
    net.adopt(3, adopted);
    net.run(5_000);
    assert_eq!(net.hosts[3].core.status().epoch, net.hosts[0].core.status().epoch);
    assert_goes_on(&mut net, texts);
}

#[test]
fn a_frontier_that_is_not_ahead_changes_nothing() {
    let (mut net, texts) = without_the_last(100);
    let before = net.hosts[1].core.status();
    let adopted = net.frontier_before_the_last(0, 30);
    net.adopt_only(1, adopted);
    assert_eq!(net.hosts[1].core.status(), before);
    net.restart(3);
    net.run(5_000);
    assert_goes_on(&mut net, texts);
}
