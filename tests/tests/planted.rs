//! Bugs that are planted in the consensus and in the controller, and found.
//!
//! Setting: the bugs that the simulator of the ledger finds fastest, each one line behind a feature
//! of the core (`make soak` hunts for all of them), and all that are planted in the controller.
//! Pinned: a broken promise shows within the seeds that a hunt may take, and with no bug planted
//! the same seeds break nothing.

use dagger_controller::planted as in_controller;
use dagger_ledger_core::planted::{self, Bug};
use dagger_tests::machines_simulator;
use dagger_tests::simulator::hunt::hunt;
use dagger_tests::simulator::{Verbosity, run};

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
        let hunt = hunt(bug, 0);
        println!("{hunt}");
        let Some(failure) = hunt.found else {
            panic!("{bug:?} was not found");
        };
        planted::plant(None);
        if let Err(failure) = run(failure.seed, failure.hosts, Verbosity::Quiet) {
            panic!("without a bug: {failure}");
        }
    }
}

#[test]
fn bugs_planted_in_the_controller_are_found_and_the_same_seeds_are_sound_without_them() {
    for bug in in_controller::ALL {
        let hunt = machines_simulator::hunt::hunt(bug, 0);
        println!("{hunt}");
        let Some(failure) = hunt.found else {
            panic!("{bug:?} was not found");
        };
        in_controller::plant(None);
        if let Err(failure) = machines_simulator::run(failure.seed, failure.hosts, Verbosity::Quiet)
        {
            panic!("without a bug: {failure}");
        }
    }
}
