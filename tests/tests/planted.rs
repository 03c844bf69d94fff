//! Bugs that are planted in the consensus and in the controller, and found.
//!
//! Setting: the bugs that the simulator of the ledger finds fastest, each one line behind a feature
//! of the core (`make soak` hunts for all of them), and all that are planted in the controller.
//! Pinned: a broken promise shows within the seeds that a hunt may take, and with no bug planted
//! the same seeds break nothing.

use std::num::NonZeroUsize;

use dagger_controller::planted as in_controller;
use dagger_ledger_core::planted::Bug;
use dagger_tests::hunt::{Hunting, hunt};
use dagger_tests::machines_simulator::Machines;
use dagger_tests::simulator::{Consensus, Verbosity};

fn is_found_and_its_seed_is_sound_without_it<S: Hunting>(bug: S::Bug) {
    let hunt = hunt::<S>(bug, 0, NonZeroUsize::MIN);
    println!("{hunt}");
    let Some((seed, _)) = hunt.found else {
        panic!("{bug:?} was not found");
    };
    if let Err(failure) = S::run(seed, S::BUG_HOSTS, Verbosity::Quiet) {
        panic!("without a bug: {failure}");
    }
}

#[test]
fn planted_bugs_are_found_and_the_same_seeds_are_sound_without_them() {
    let fast = [
        Bug::SendBeforePersist,
        Bug::HandOnBeforePersist,
        Bug::SkippedRound,
        Bug::ClosingEventIsWork,
        Bug::UnnameableTwinIsWork,
        Bug::NewestOfEqualsAttested,
        Bug::FatesForgotten,
        Bug::HandoverQuorumMinusOne,
    ];
    for bug in fast {
        is_found_and_its_seed_is_sound_without_it::<Consensus>(bug);
    }
}

#[test]
fn bugs_planted_in_the_controller_are_found_and_the_same_seeds_are_sound_without_them() {
    for bug in in_controller::ALL {
        is_found_and_its_seed_is_sound_without_it::<Machines>(bug);
    }
}
