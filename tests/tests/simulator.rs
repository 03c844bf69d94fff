//! Seeds of the simulator that every test run tries.
//!
//! Setting: 100 fresh seeds for each number of hosts, each with its own mixture of faults, and the
//! seeds that once found something. Pinned: every promise holds at every step, the cluster heals
//! and returns to silence, and a seed alone decides its run.

use std::time::{SystemTime, UNIX_EPOCH};

use dagger_tests::simulator::{Tally, Verbosity, run};

/// Fresh seeds for each size.
const SEEDS: u64 = 100;
/// Sets the first fresh seed; without it the clock does.
const FIRST_SEED: &str = "DAGGER_FIRST_SEED";

/// Seeds that broke a promise once, with the number of hosts; the defect that each showed is
/// mended.
const KEPT: [(u64, usize); 12] = [
    // A lost memory was forgotten at the second restart: the host signed a round twice.
    (1193, 4),
    // Three hosts that forgot waited for rounds that nobody made.
    (31, 7),
    // A host waited for ever for an own event that rests on one that every disk lost.
    (179546600669, 7),
    // A liar's twin certified the end of an epoch; who had its other twin stayed behind for ever.
    (12084, 4),
    // The witness was behind a store that had shown an event: a copy of the store passed for true.
    (12953, 4),
    // Who helped a host without a past was held up by a lost event, and stopped helping.
    (23493, 4),
    // A host that had no vote for an epoch was never asked for its past, and signed a round twice.
    (46401, 4),
    // A host that began from the last commit of an epoch did not know it for the last, and
    // committed what it had beyond it.
    (391932536342, 7),
    // What only liars had was asked for in vain; when others had it too, what they built upon it
    // was dropped for that, and came again half a minute later.
    (179596404404, 10),
    // A snapshot that took long to be fetched was begun with although the host had come further by
    // itself, and pruned what it would have had to judge again.
    (179596966747, 4),
    // A host crashed between the write with which it began from a snapshot and the core's word on
    // what that left behind: a payload in an old event of its own was in no pool and in no order.
    (179597788290, 10),
    // Events on a liar's twin that nobody else names were shown at each exchange in silence to who
    // could not accept them.
    (370298536651, 7),
];

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
    assert!(tally.received() > SEEDS * 20, "too little was ordered");
    let rare = tally.too_rare();
    assert!(rare.is_empty(), "too rare: {rare:#?}");
}

#[test]
fn kept_seeds_keep_every_promise() {
    for (seed, hosts) in KEPT {
        if let Err(failure) = run(seed, hosts, Verbosity::Quiet) {
            panic!("{failure}");
        }
    }
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
fn seven_hosts_keep_every_promise() {
    fresh_seeds_keep_every_promise(7);
}

#[test]
fn the_same_seed_gives_the_same_log_hash() {
    for seed in 0..10 {
        let hash = || run(seed, 4, Verbosity::Quiet).map(|summary| summary.log_hash);
        assert_eq!(hash(), hash());
    }
}
