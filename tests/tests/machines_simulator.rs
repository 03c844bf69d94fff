//! Seeds of the simulator of machines that every test run tries.
//!
//! Setting: fresh seeds for each number of hosts, each with its own mixture of faults. Pinned:
//! every promise about machines holds at every event, everything converges and becomes quiet, and
//! a seed alone decides its run.

use std::time::{SystemTime, UNIX_EPOCH};

use dagger_tests::machines_simulator::{HOSTS, Tally, run};
use dagger_tests::simulator::Verbosity;

/// Fresh seeds for each size.
const SEEDS: u64 = 100;
/// Sets the first fresh seed; without it the clock does.
const FIRST_SEED: &str = "DAGGER_FIRST_SEED";

fn first_seed() -> u64 {
    let given = std::env::var(FIRST_SEED).ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        since.as_secs() * SEEDS
    })
}

fn fresh_seeds_keep_every_promise(hosts: usize) {
    let first = first_seed();
    println!("seeds from {first} on ({FIRST_SEED}={first} repeats them)");
    let mut tally = Tally::default();
    for seed in first..first + SEEDS {
        match run(seed, hosts, Verbosity::Quiet) {
            Ok(summary) => tally.add(hosts, &summary),
            Err(failure) => panic!("{failure}"),
        }
    }
    println!("{tally}");
    let rare = tally.too_rare();
    assert!(rare.is_empty(), "too rare: {rare:#?}");
}

#[test]
fn one_host_keeps_every_promise() {
    fresh_seeds_keep_every_promise(1);
}

#[test]
fn two_hosts_keep_every_promise() {
    fresh_seeds_keep_every_promise(2);
}

#[test]
fn three_hosts_keep_every_promise() {
    fresh_seeds_keep_every_promise(3);
}

#[test]
fn four_hosts_keep_every_promise() {
    fresh_seeds_keep_every_promise(4);
}

#[test]
fn the_same_seed_gives_the_same_log_hash() {
    for seed in 0..5 {
        for hosts in HOSTS {
            let hash = || run(seed, hosts, Verbosity::Quiet).map(|summary| summary.log_hash);
            assert_eq!(hash(), hash());
        }
    }
}
