//! Four real ledgers on loopback: real processes, real TLS, real LMDB. Only the judge is a test's:
//! it accepts everything once, deterministically, so that what is shown here is order, durability
//! and delivery.

mod common;

use common::{Cluster, Host, payload};
use dagger_bus::ledger::{Answer, Call, LedgerStatus, LinkStatus, Standing, Unavailable};
use dagger_payload::genesis::GenesisMode;
use dagger_payload::id::PayloadDigest;
use dagger_payload::payload::SignedPayload;
use dagger_payload::refusal::RefusalCode;

async fn attested_everywhere(cluster: &Cluster, digests: &[PayloadDigest]) {
    cluster.attested_everywhere(digests).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_hosts_order_what_any_of_them_receives_in_the_same_way() {
    let cluster = Cluster::start(4).await;
    let mut digests = Vec::new();
    for number in 0..40 {
        let host = &cluster.hosts[number % 4];
        digests.push(host.submitted(&format!("payload {number}")).await);
    }
    attested_everywhere(&cluster, &digests).await;

    // The same bytes again, here or elsewhere, get the same answer and no second place.
    for host in &cluster.hosts {
        let Answer::Receipt { digest, standing } = host.submit("payload 5").await else {
            panic!("a receipt is due");
        };
        assert_eq!(digest, digests[5]);
        assert!(matches!(standing, Standing::Ordered { .. }), "{standing:?}");
    }
    let refused = cluster.hosts[0].submit("refuse this").await;
    let Answer::Refused { refusal } = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(refusal.code, RefusalCode::NotAuthorized);
    let digest = payload("refuse this").digest();
    let standing = cluster.hosts[0].ask(Call::Look { digest }).await;
    assert!(matches!(standing, Answer::Standing { standing: Standing::Unknown {} }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_killed_in_the_middle_comes_back_and_nothing_is_lost_or_doubled() {
    let mut cluster = Cluster::start(4).await;
    let mut digests = Vec::new();
    for number in 0..10 {
        digests.push(cluster.hosts[3].submitted(&format!("before {number}")).await);
    }
    // What it gave a receipt for, ordered or not, must survive kill -9 right after the last one.
    cluster.hosts[3].kill();
    for number in 0..10 {
        digests.push(cluster.hosts[number % 3].submitted(&format!("without {number}")).await);
    }
    attested_everywhere(&cluster, &digests[10..]).await;
    cluster.hosts[3].start();
    cluster.hosts[3].until(|status| status.unavailable.is_none()).await;
    digests.push(cluster.hosts[3].submitted("after").await);
    attested_everywhere(&cluster, &digests).await;
    for host in &mut cluster.hosts {
        assert_eq!(host.stop().code(), Some(0), "{}", host.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_of_four_down_changes_are_answered_no_quorum_and_resume_with_the_third() {
    let mut cluster = Cluster::start(4).await;
    let before = cluster.hosts[0].submitted("before").await;
    attested_everywhere(&cluster, &[before]).await;
    cluster.hosts[2].kill();
    cluster.hosts[3].kill();
    let lost = |status: &LedgerStatus| {
        let missing = status.members.iter().filter(|member| member.link == LinkStatus::Missing);
        missing.count() == 2
    };
    cluster.hosts[0].until(lost).await;
    let answer = cluster.hosts[0].submit("nobody orders this").await;
    let Answer::Unavailable { reason: Unavailable::NoQuorum { have, need, missing } } = answer
    else {
        panic!("{answer:?}");
    };
    let missing: Vec<_> = missing.iter().map(|name| name.as_str()).collect();
    assert_eq!((have, need, missing.as_slice()), (2, 3, &["host3", "host4"][..]));
    // What was refused so is not kept; what was known before still gets its answer.
    let digest = payload("nobody orders this").digest();
    let standing = cluster.hosts[0].ask(Call::Look { digest }).await;
    assert!(matches!(standing, Answer::Standing { standing: Standing::Unknown {} }));
    assert_eq!(cluster.hosts[0].submitted("before").await, before);

    cluster.hosts[2].start();
    cluster.hosts[0].until(|status| status.unavailable.is_none()).await;
    let after = cluster.hosts[0].submitted("after").await;
    attested_everywhere(&cluster, &[before, after]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_judge_is_taught_all_history_and_the_agent_is_sent_away_meanwhile() {
    let mut cluster = Cluster::start(4).await;
    let mut digests = Vec::new();
    for number in 0..20 {
        digests.push(cluster.hosts[0].submitted(&format!("payload {number}")).await);
    }
    let mut stream = cluster.hosts[0].stream(0).await;
    stream.until_attested(&digests).await;
    cluster.hosts[0].judge.restart().await;
    while stream.take().await {}
    let mut again = cluster.hosts[0].stream(0).await;
    again.until_attested(&digests).await;
    assert_eq!(again.seen.ordered, stream.seen.ordered);
    assert_eq!(again.seen.ends, stream.seen.ends);
    // A reader who has it all gets nothing twice.
    let last = again.seen.ends.last().expect("some").index;
    let mut rest = cluster.hosts[0].stream(last.0).await;
    rest.until(|seen| seen.caught_up.is_some()).await;
    assert!(rest.seen.ordered.is_empty());
    let digest = cluster.hosts[0].submitted("one more").await;
    rest.until_attested(&[digest]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_store_was_lost_learns_all_from_its_peers_before_it_signs() {
    let mut cluster = Cluster::start(4).await;
    let mut digests = Vec::new();
    for number in 0..12 {
        digests.push(cluster.hosts[1].submitted(&format!("payload {number}")).await);
    }
    attested_everywhere(&cluster, &digests).await;
    let life = cluster.hosts[1].judge.life();
    cluster.hosts[1].kill();
    std::fs::remove_dir_all(cluster.hosts[1].directory.join("state")).expect("was there");
    cluster.hosts[1].start();
    cluster.hosts[1].until(|status| status.unavailable.is_none()).await;
    assert_ne!(cluster.hosts[1].judge.life(), life, "the judge began anew with the store");
    digests.push(cluster.hosts[1].submitted("after").await);
    // It signs only above rounds that it may have signed before: the others get there with their
    // own work.
    digests.push(cluster.hosts[0].submitted("others' work").await);
    attested_everywhere(&cluster, &digests).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_host_orders_alone() {
    let mut cluster = Cluster::start(1).await;
    let digest = cluster.hosts[0].submitted("alone").await;
    attested_everywhere(&cluster, &[digest]).await;
    cluster.hosts[0].kill();
    cluster.hosts[0].start();
    cluster.hosts[0].until(|status| status.unavailable.is_none()).await;
    let more = cluster.hosts[0].submitted("more").await;
    attested_everywhere(&cluster, &[digest, more]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_leave_and_return_between_two_commits_and_restarts_find_the_epoch_again() {
    let mut cluster = Cluster::start(4).await;
    let in_epoch = |number: u64| move |status: &LedgerStatus| status.epoch.0 == number;
    let mut digests = vec![cluster.hosts[0].submitted("before").await];
    digests.push(cluster.hosts[0].submitted("members 0 1 2").await);
    for host in &cluster.hosts {
        host.until(in_epoch(1)).await;
    }
    // Who has no vote has it ordered by those who have one.
    digests.push(cluster.hosts[3].submitted("no vote").await);
    digests.push(cluster.hosts[1].submitted("in the second epoch").await);
    attested_everywhere(&cluster, &digests).await;

    // One that sleeps through a change, and one that is killed and comes back in the new epoch.
    cluster.hosts[3].kill();
    cluster.hosts[0].kill();
    cluster.hosts[0].start();
    cluster.hosts[0].until(|status| status.unavailable.is_none()).await;
    digests.push(cluster.hosts[0].submitted("members 0 1 2 3").await);
    cluster.hosts[0].until(in_epoch(2)).await;
    cluster.hosts[3].start();
    cluster.hosts[3].until(in_epoch(2)).await;
    cluster.hosts[3].until(|status| status.unavailable.is_none()).await;
    digests.push(cluster.hosts[3].submitted("a vote again").await);
    attested_everywhere(&cluster, &digests).await;

    // A lost store: all epochs are learnt again before anything is signed.
    cluster.hosts[2].kill();
    std::fs::remove_dir_all(cluster.hosts[2].directory.join("state")).expect("was there");
    cluster.hosts[2].start();
    cluster.hosts[2].until(in_epoch(2)).await;
    cluster.hosts[2].until(|status| status.unavailable.is_none()).await;
    digests.push(cluster.hosts[2].submitted("after the loss").await);
    digests.push(cluster.hosts[0].submitted("others' work").await);
    attested_everywhere(&cluster, &digests).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_without_a_judge_orders_everything_as_it_is_and_goes_on_after_kill_9() {
    let mut cluster = Cluster::found_in(GenesisMode::Opaque, 4);
    cluster.start_all().await;
    let mut digests = Vec::new();
    for number in 0..20 {
        digests.push(cluster.hosts[number % 4].submitted(&format!("payload {number}")).await);
    }
    // A judge would not let this one in.
    digests.push(cluster.hosts[0].submitted("refuse this").await);
    attested_everywhere(&cluster, &digests).await;
    cluster.hosts[2].kill();
    cluster.hosts[2].start();
    cluster.hosts[2].until_linked().await;
    let Answer::Receipt { digest, standing } = cluster.hosts[2].submit("payload 6").await else {
        panic!("a receipt is due");
    };
    assert_eq!(digest, digests[6]);
    assert!(matches!(standing, Standing::Ordered { .. }), "{standing:?}");
    digests.push(cluster.hosts[2].submitted("after").await);
    attested_everywhere(&cluster, &digests).await;
}

/// How often the threads of a process have gone to sleep (proc(5)): with that many wake-ups it has
/// cost what it costs, however busy the machine is otherwise.
fn wake_ups(host: &Host) -> u64 {
    let pid = host.process.as_ref().expect("runs").id();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("runs");
    let of_task = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).expect("it stays");
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.expect("it is there").trim().parse::<u64>().expect("a number")
    };
    tasks.map(|task| of_task(task.expect("a thread"))).sum()
}

/// User and system time of a process, in clock ticks of 10 ms (proc(5): fields 14 and 15).
fn ticks(host: &Host) -> u64 {
    let pid = host.process.as_ref().expect("runs").id();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("runs");
    let after_name = stat.rsplit(')').next().expect("a name in brackets");
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    fields[11].parse::<u64>().expect("a number") + fields[12].parse::<u64>().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_cluster_makes_no_events_and_burns_next_to_nothing() {
    let cluster = Cluster::start(4).await;
    let digest = cluster.hosts[0].submitted("something").await;
    attested_everywhere(&cluster, &[digest]).await;
    // The last closing events may still be under way: rounds must come to rest, and stay there.
    let rounds = async || {
        let mut rounds = Vec::new();
        for host in &cluster.hosts {
            rounds.push(host.status().await.members.iter().map(|m| m.highest_round.0).max());
        }
        rounds
    };
    let mut before = rounds().await;
    loop {
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let now = rounds().await;
        if now == before {
            break;
        }
        before = now;
    }
    let used = || -> [u64; 2] {
        let sum = |of: fn(&Host) -> u64| cluster.hosts.iter().map(of).sum();
        [sum(wake_ups), sum(ticks)]
    };
    let ([wake_ups, ticks], sizes) = (used(), sizes_of(&cluster));
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    let [wake_ups_after, ticks_after] = used();
    let (wake_ups, ticks) = (wake_ups_after - wake_ups, ticks_after - ticks);
    eprintln!("four idle ledgers in ten seconds: {wake_ups} wake-ups, {ticks} ticks");
    assert_eq!(sizes, sizes_of(&cluster), "the stores must not grow");
    assert_eq!(before, rounds().await, "an idle cluster must be silent");
    assert!(wake_ups <= 400, "{wake_ups} wake-ups");
    // What never sleeps wakes up seldom, and takes a whole core: a thousand ticks.
    assert!(ticks <= 250, "{ticks} ticks");
}

fn sizes_of(cluster: &Cluster) -> Vec<u64> {
    let size = |host: &Host| {
        let file = host.directory.join("state/store/data.mdb");
        std::fs::metadata(file).expect("is there").len()
    };
    cluster.hosts.iter().map(size).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_one_host_after_another_under_load_loses_and_doubles_nothing() {
    let mut cluster = Cluster::start(4).await;
    let mut receipts = Vec::new();
    for round in 0..8_usize {
        let victim = (round * 3) % 4;
        for number in 0..8_usize {
            let host = &cluster.hosts[(victim + number) % 4];
            receipts.push(host.submitted(&format!("round {round} number {number}")).await);
        }
        // The last receipts are from others and from the victim itself, and nothing of them needs
        // to be ordered yet.
        receipts.push(cluster.hosts[victim].submitted(&format!("round {round} last")).await);
        cluster.hosts[victim].kill();
        let other = &cluster.hosts[(victim + 1) % 4];
        receipts.push(other.submitted(&format!("round {round} meanwhile")).await);
        if round % 3 == 2 {
            cluster.hosts[victim].judge.restart().await;
        }
        cluster.hosts[victim].start();
        // All links are up before the next one dies: otherwise two of four are out of reach at
        // once.
        cluster.hosts[victim].until_linked().await;
    }
    attested_everywhere(&cluster, &receipts).await;
    let mut stream = cluster.hosts[0].stream(0).await;
    stream.until_attested(&receipts).await;
    let mut places: Vec<_> = stream.seen.ordered.iter().map(|(_, digest)| *digest).collect();
    places.sort_unstable();
    let count = places.len();
    places.dedup();
    assert_eq!((places.len(), count), (receipts.len(), receipts.len()));
}

/// Something large that the key of number `signer` claims to have signed.
fn large(signer: u8, number: u32) -> SignedPayload {
    let key = common::key(signer).public_key();
    let mut text = format!("{{\"signer\":\"{key}\",\"number\":{number}}}");
    text.extend(std::iter::repeat_n(' ', 60 * 1024 - text.len()));
    common::payload(&text)
}

/// The test's judge knows no accounts: so these keys stand for operators' and hosts'.
#[tokio::test]
async fn a_key_that_submits_too_much_at_once_is_refused_and_takes_no_room_of_others() {
    let cluster = Cluster::start(4).await;
    let host = &cluster.hosts[1];
    // Four times what may wait: more than is ordered in between.
    let mut payloads: Vec<_> = (0..280).map(|number| large(60, number)).collect();
    payloads.push(large(61, 0));
    let answers = host.submit_together(&payloads).await;
    let (honest, flood) = answers.split_last().expect("some");
    assert!(matches!(honest, Answer::Receipt { .. }), "{honest:?}");
    let mut refused = 0;
    let mut kept = Vec::new();
    for answer in flood {
        match answer {
            Answer::Receipt { digest, .. } => kept.push(*digest),
            Answer::Refused { refusal } => {
                assert_eq!(refusal.code, RefusalCode::TooMuchUnordered);
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(refused > 0 && kept.len() >= 60, "{refused} refused, {} kept", kept.len());
    host.stream(0).await.until_attested(&kept).await;
    // What waited is ordered: there is room again.
    let again = host.submit_together(&[large(60, 1000)]).await;
    assert!(matches!(again[..], [Answer::Receipt { .. }]), "{again:?}");
}
