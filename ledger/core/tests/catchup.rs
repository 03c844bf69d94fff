//! A host that was away for long takes what it missed in stretches, from one peer at a time.

mod network;

use dagger_payload::id::Epoch;
use network::{Net, author};

/// Four members, of whom the last is gone while the others order `payloads`.
fn without_the_last(payloads: &[String]) -> Net {
    let mut net = Net::new(4);
    net.run(1_000);
    net.kill(3);
    for (number, text) in payloads.iter().enumerate() {
        net.submit(number % 3, text);
        net.run(20);
    }
    net.run(3_000);
    net
}

fn payloads(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{name} {number}")).collect()
}

fn assert_all_ordered(net: &Net, texts: &[String]) {
    net.assert_all_ordered(&texts.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn thousands_of_missed_rounds_come_from_one_peer_and_not_from_all() {
    let texts = payloads("payload", 400);
    let mut net = without_the_last(&texts);
    let rounds = net.hosts[0].core.status().round.0;
    assert!(rounds > 1_500, "only {rounds} rounds");
    net.restart(3);
    net.run(5_000);
    assert_all_ordered(&net, &texts);
    assert_eq!(net.hosts[3].core.status().fruitless, []);
    let served: u64 = net.served.iter().sum();
    // Each of three authors made an event for each round. The first stretch comes from every
    // peer, which hears what is missing as soon as it is connected; later ones overlap, for the
    // next is asked for before all of one has come.
    let needed = rounds * 3;
    assert!(served < needed * 5 / 2, "{served} events for {needed}: {:?}", net.served);
    assert!(net.served[0] > 2 * net.served[1], "{:?}", net.served);
}

#[test]
fn a_peer_that_withholds_the_history_is_counted_and_another_is_asked() {
    let texts = payloads("payload", 200);
    let mut net = without_the_last(&texts);
    net.withholding = Some(0);
    net.restart(3);
    net.run(30_000);
    assert_all_ordered(&net, &texts);
    let fruitless = net.hosts[3].core.status().fruitless;
    assert!(matches!(&fruitless[..], [(liar, _)] if *liar == author(0)), "{fruitless:?}");
}

#[test]
fn a_host_that_was_away_catches_up_across_the_end_of_an_epoch() {
    let mut texts = payloads("before", 150);
    let change = "members 0 1 2 3".to_owned();
    texts.push(change);
    texts.extend(payloads("after", 150));
    let mut net = without_the_last(&texts);
    assert_eq!(net.hosts[0].core.status().epoch, Epoch(1));
    net.restart(3);
    net.run(30_000);
    assert_eq!(net.hosts[3].core.status().epoch, Epoch(1));
    assert_all_ordered(&net, &texts);
}
