//! Seeds of the simulator that every test run repeats.
//!
//! Setting: 100 seeds for each number of hosts, each with its own mixture of faults. Pinned: every
//! promise holds at every step, the cluster heals and returns to silence, and a seed alone decides
//! its run.

use dagger_tests::simulator::{Tally, Verbosity, run};

const SEEDS: u64 = 100;

fn all_seeds_keep_every_promise(hosts: usize) {
    let mut tally = Tally::default();
    for seed in 0..SEEDS {
        match run(seed, hosts, Verbosity::Quiet) {
            Ok(summary) => tally.add(&summary),
            Err(failure) => panic!("{failure}"),
        }
    }
    println!("{tally}");
    assert!(tally.received > SEEDS * 20, "too little was ordered");
    // Three hosts and fewer survive no liar, so none lies there.
    let possible = |kind: &str| hosts > 3 || !["LiarsEvent", "Twin"].contains(&kind);
    let unseen = tally.faults.iter().filter(|(_, count)| **count == 0);
    let never: Vec<_> = unseen.map(|(kind, _)| kind).filter(|kind| possible(kind)).collect();
    assert!(hosts == 1 || never.is_empty(), "never hit: {never:?}");
}

#[test]
fn one_host_keeps_every_promise() {
    all_seeds_keep_every_promise(1);
}

#[test]
fn two_hosts_keep_every_promise() {
    all_seeds_keep_every_promise(2);
}

#[test]
fn three_hosts_keep_every_promise() {
    all_seeds_keep_every_promise(3);
}

#[test]
fn four_hosts_keep_every_promise() {
    all_seeds_keep_every_promise(4);
}

#[test]
fn seven_hosts_keep_every_promise() {
    all_seeds_keep_every_promise(7);
}

#[test]
fn the_same_seed_gives_the_same_log_hash() {
    for seed in 0..10 {
        let hash = || run(seed, 4, Verbosity::Quiet).map(|summary| summary.log_hash);
        assert_eq!(hash(), hash());
    }
}
