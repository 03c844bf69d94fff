//! Members come, go, move and change keys while real ledgers run: real processes, real TLS, real
//! LMDB. Only the judge is a test's: payloads say who has a seat and who votes.
//!
//! Pins: a host from outside the genesis joins, follows, votes and is needed; who has left is
//! refused; ordering goes on all the while; what a host without a vote receives is ordered; a host
//! with another key is another member with the same history; and a false list of seats ends the
//! daemon in plain words.

mod common;

use std::time::Duration;

use common::{Cluster, Door, Host, PATIENCE, free_addresses, key};
use dagger_bus::ledger::{LedgerStatus, LinkStatus, Unavailable};
use dagger_payload::id::{AuthorIndex, PayloadDigest};
use dagger_payload::roster::{Roster, Seat, SeatStanding};
use nix::sys::signal::Signal;
use tokio::time::{Instant, timeout};

/// Ordering never stops for longer than this while members change, also on a busy machine: far
/// below what a missed message costs (30 s), well above a wait for a dead leader.
const PAUSE_MAX: Duration = Duration::from_secs(5);

fn in_epoch(number: u64) -> impl Fn(&LedgerStatus) -> bool {
    move |status| status.epoch.0 == number
}

fn has_seat(index: u16) -> impl Fn(&LedgerStatus) -> bool {
    move |status| status.members.iter().any(|member| member.author == AuthorIndex(index))
}

/// Has it ordered, at whichever host, and waits until the first host knows its place.
async fn ordered(host: &Door, text: &str) -> PayloadDigest {
    let digest = host.submitted(text).await;
    let deadline = Instant::now() + PATIENCE;
    while !host.knows(&digest).await {
        assert!(Instant::now() < deadline, "{text}\n{}", host.log());
        tokio::task::yield_now().await;
    }
    digest
}

/// Waits until the host signs events in its epoch.
async fn until_it_signs(host: &Door) {
    host.until(|status| status.round.0 > 0 && status.unavailable.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_without_a_vote_receives_is_ordered_although_the_first_one_asked_is_dead() {
    let mut cluster = Cluster::start(5).await;
    let mut digests = vec![cluster.hosts[0].submitted("members 0 1 2 3").await];
    for host in &cluster.hosts {
        host.until(in_epoch(1)).await;
    }
    // Its link stands, and it says nothing: the first payload of a follower goes to the second of
    // the four.
    cluster.hosts[1].signal(Signal::SIGSTOP);
    let asked = Instant::now();
    digests.push(ordered(&cluster.hosts[4], "by a follower").await);
    assert!(asked.elapsed() >= Duration::from_secs(2), "the dead one was never asked");
    for number in 0..20 {
        digests.push(cluster.hosts[4].submitted(&format!("more {number}")).await);
    }
    // What it gave a receipt for survives kill -9, wherever it was on its way.
    cluster.hosts[4].kill();
    cluster.hosts[4].start();
    cluster.hosts[4].until(|status| status.unavailable.is_none()).await;
    cluster.hosts[1].signal(Signal::SIGCONT);
    cluster.attested_everywhere(&digests).await;
    cluster.hosts[4].until(|status| status.waiting == 0).await;
    // Nothing of it is left for the next life.
    cluster.hosts[4].kill();
    cluster.hosts[4].start();
    cluster.hosts[4].until(|status| status.unavailable.is_none() && status.waiting == 0).await;
    // With a vote it packs its own.
    digests.push(cluster.hosts[4].submitted("members 0 1 2 3 4").await);
    cluster.hosts[4].until(in_epoch(2)).await;
    until_it_signs(&cluster.hosts[4]).await;
    digests.push(ordered(&cluster.hosts[4], "with a vote").await);
    cluster.attested_everywhere(&digests).await;
}

/// Submits one payload after another at a host, and says how long none was ordered at most.
async fn longest_pause(host: &Door, ended: tokio::sync::oneshot::Receiver<()>) -> Duration {
    let mut stream = host.stream(0).await;
    let (mut longest, mut last, mut number) = (Duration::ZERO, Instant::now(), 0);
    let mut ended = std::pin::pin!(ended);
    loop {
        number += 1;
        let text = format!("load {number}");
        let digest = tokio::select! {
            _ = &mut ended => return longest,
            digest = host.submitted(&text) => digest,
        };
        stream.until(|seen| seen.ordered.iter().any(|(_, known)| *known == digest)).await;
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
}

/// A fifth host joins, catches up, votes; the fourth leaves, and the fifth is needed.
async fn change_members(cluster: &mut Cluster, digests: &mut Vec<PayloadDigest>) {
    let address = free_addresses(1)[0];
    digests.push(cluster.hosts[0].submitted(&format!("seat 4 50 {address}")).await);
    cluster.hosts[0].until(has_seat(4)).await;
    cluster.add(4, 50, 0);
    cluster.hosts[4].start();
    cluster.hosts[4].until(has_seat(4)).await;
    let status = cluster.hosts[4].until(|status| status.unavailable.is_none()).await;
    assert_eq!(status.author, AuthorIndex(4));
    assert!(!status.committee.contains(AuthorIndex(4)));
    digests.push(ordered(&cluster.hosts[4], "from a follower").await);
    assert_eq!(cluster.hosts[4].judge.roster(), cluster.hosts[0].judge.roster());

    digests.push(cluster.hosts[1].submitted("members 0 1 2 3 4").await);
    for host in &cluster.hosts {
        let begun = |status: &LedgerStatus| {
            status.committee.contains(AuthorIndex(4)) && status.epoch_end.is_none()
        };
        host.until(|status| in_epoch(1)(status) && begun(status)).await;
    }
    until_it_signs(&cluster.hosts[4]).await;

    // The fourth sleeps while it is sent away, and learns nothing of it.
    cluster.hosts[3].kill();
    digests.push(cluster.hosts[4].submitted("leave 3").await);
    digests.push(cluster.hosts[4].submitted("members 0 1 2 4").await);
    for host in [0, 1, 2, 4] {
        cluster.hosts[host].until(in_epoch(2)).await;
        cluster.hosts[host].until(|status| !has_seat(3)(status)).await;
        cluster.hosts[host].until_log(|log| log.contains("has left; no link to it is kept")).await;
    }
    cluster.hosts[3].start();
    cluster.hosts[4].until_log(|log| log.contains("unknown_key")).await;
    let alone = |status: &LedgerStatus| {
        let linked = status.members.iter().any(|member| member.link == LinkStatus::Connected);
        !linked && matches!(status.unavailable, Some(Unavailable::NoQuorum { .. }))
    };
    cluster.hosts[3].until(alone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_from_outside_the_genesis_joins_and_votes_an_old_one_leaves_and_nothing_stops() {
    let mut cluster = Cluster::start(4).await;
    let mut digests = vec![cluster.hosts[0].submitted("before").await];
    let (end, ended) = tokio::sync::oneshot::channel();
    let loaded = cluster.hosts[2].door();
    let load = tokio::spawn(async move { longest_pause(&loaded, ended).await });
    change_members(&mut cluster, &mut digests).await;
    end.send(()).expect("the load goes on");
    let pause = timeout(PATIENCE, load).await.expect("in time").expect("nothing is lost");
    assert!(pause < PAUSE_MAX, "nothing was ordered for {pause:?}");

    // Of the four that vote now one may die: the fifth host is one of the three that are left.
    cluster.hosts[3].kill();
    cluster.hosts[0].kill();
    digests.push(cluster.hosts[1].submitted("without an old one").await);
    cluster.attested_everywhere(&digests).await;
    // It finds its seat, its peers and its vote again.
    cluster.hosts[4].kill();
    cluster.hosts[0].start();
    cluster.hosts[4].start();
    until_it_signs(&cluster.hosts[4]).await;
    digests.push(cluster.hosts[4].submitted("after a restart").await);
    cluster.attested_everywhere(&digests).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_another_key_is_another_member_and_keeps_its_history() {
    let mut cluster = Cluster::start(4).await;
    let mut digests = vec![cluster.hosts[3].submitted("with the old key").await];
    cluster.attested_everywhere(&digests).await;
    digests.push(cluster.hosts[0].submitted("rotate 4 60 3").await);
    digests.push(cluster.hosts[0].submitted("members 0 1 2 4").await);
    for host in &cluster.hosts[..3] {
        host.until(in_epoch(1)).await;
    }
    let life = cluster.hosts[3].judge.life();
    assert_eq!(cluster.hosts[3].stop().code(), Some(0));
    let last = &cluster.hosts[3];
    last.write_key(60);
    let path = last.directory.join("ledger.toml");
    let text = std::fs::read_to_string(&path).expect("reads");
    std::fs::write(&path, format!("roster = \"roster.json\"\n{text}")).expect("writes");
    last.write_roster(&cluster.hosts[0].judge.roster());
    cluster.hosts[3].start();
    let status = cluster.hosts[3].until(in_epoch(1)).await;
    assert_eq!(status.author, AuthorIndex(4));
    until_it_signs(&cluster.hosts[3]).await;
    assert_eq!(cluster.hosts[3].judge.life(), life, "what was judged needs no second judgement");
    digests.push(ordered(&cluster.hosts[3], "with the new key").await);
    // It counts: another one may be dead.
    cluster.hosts[1].kill();
    digests.push(ordered(&cluster.hosts[3], "it is needed").await);
    cluster.attested_everywhere(&digests).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_voter_is_no_burden_although_an_old_one_is_dead_when_the_epoch_begins() {
    let mut cluster = Cluster::start(4).await;
    let address = free_addresses(1)[0];
    let mut digests = vec![cluster.hosts[0].submitted(&format!("seat 4 50 {address}")).await];
    cluster.hosts[0].until(has_seat(4)).await;
    cluster.add(4, 50, 0);
    cluster.hosts[4].start();
    cluster.hosts[4].until(has_seat(4)).await;
    // It follows, and has had time to be told that it forgot nothing.
    digests.push(ordered(&cluster.hosts[4], "from a follower").await);
    cluster.attested_everywhere(&digests).await;
    cluster.hosts[1].kill();
    digests.push(cluster.hosts[0].submitted("members 0 1 2 3 4").await);
    for host in [0, 2, 3, 4] {
        cluster.hosts[host].until(in_epoch(1)).await;
    }
    // Four of five are there, the new one among them, and four are needed.
    until_it_signs(&cluster.hosts[4]).await;
    digests.push(ordered(&cluster.hosts[4], "four of five").await);
    cluster.hosts[1].start();
    cluster.attested_everywhere(&digests).await;
}

/// A roster in which a seat has another key than it should.
fn with_other_key(roster: &Roster, index: u16) -> Roster {
    let other = |seat: Seat| Seat { ledger_key: key(99).public_key(), ..seat };
    let seats = roster.seats().iter().cloned();
    let seats = seats.map(|seat| if seat.index == AuthorIndex(index) { other(seat) } else { seat });
    Roster::try_from(seats.collect::<Vec<_>>()).expect("no key twice")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_false_roster_ends_the_daemon_in_plain_words() {
    let mut cluster = Cluster::start(4).await;
    let addresses = free_addresses(2);
    for (seat, address) in (4..).zip(&addresses) {
        let text = format!("seat {seat} {} {address}", 46 + seat);
        cluster.hosts[0].submitted(&text).await;
    }
    cluster.hosts[0].until(has_seat(5)).await;
    cluster.add(5, 51, 0);
    let roster = cluster.hosts[0].judge.roster();
    let new = &mut cluster.hosts[4];
    let check = |host: &Host| host.command().arg("--check").output().expect("runs");
    let good = check(new);
    let said = String::from_utf8_lossy(&good.stdout).into_owned();
    assert!(said.starts_with("ok: host host6 of cluster test"), "{said}");

    new.write_roster(&with_other_key(&roster, 1));
    let refused = check(new);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(64), "{said}");
    assert!(said.contains("seat 1 is not that of host2 in the genesis"), "{said}");

    // Of seat 4 nobody knows better until the own judge has come so far.
    new.write_roster(&with_other_key(&roster, 4));
    new.start();
    assert_eq!(new.exit_code().await, Some(65), "{}", new.log());
    assert!(new.log().contains("gives seat 4 to another key"), "{}", new.log());

    // What it believed is nowhere: with the true list it joins.
    new.write_roster(&roster);
    new.start();
    new.until(has_seat(5)).await;
    let digest = ordered(&cluster.hosts[4], "with the true list").await;
    cluster.hosts[0].until(|status| status.waiting == 0).await;
    assert!(cluster.hosts[4].knows(&digest).await);
    let seat = roster.seat(AuthorIndex(5)).map(|seat| seat.standing);
    assert_eq!(seat, Some(SeatStanding::Present));
}
