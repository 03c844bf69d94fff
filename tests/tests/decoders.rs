//! Every decoder stands hostile bytes for a short while, with fresh seeds for each tree; what once
//! broke one stays here by its seed or its bytes.

use std::time::Duration;

use dagger_tests::fuzz::counting::Counting;
use dagger_tests::fuzz::targets::{self, Answer, Target};
use dagger_tests::fuzz::{self, Plan, mutate};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Where the seeds begin, so that `make test` tries others for every tree.
fn first_seed() -> u64 {
    let text = std::env::var("DAGGER_FIRST_SEED").unwrap_or_default();
    text.parse().unwrap_or(0)
}

#[test]
fn every_decoder_stands_hostile_bytes() {
    let plan =
        Plan { first_seed: first_seed(), inputs_max: 4_000, span: Duration::from_millis(1_500) };
    let mut failures = Vec::new();
    for target in targets::all() {
        match fuzz::run(target, plan) {
            // Most inputs are changed; unchanged ones must be read.
            Ok(tally) if tally.accepted == 0 => failures.push(format!("{}: deaf", target.name)),
            Ok(tally) => println!("{:<20} {tally}", target.name),
            Err(failure) => failures.push(failure.to_string()),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_same_seed_is_the_same_input_and_another_one_is_another() {
    for target in targets::all() {
        let samples = (target.samples)(fuzz::samples::world());
        let inputs: Vec<_> = (0..20).map(|seed| fuzz::input_of(target, &samples, seed)).collect();
        let again: Vec<_> = (0..20).map(|seed| fuzz::input_of(target, &samples, seed)).collect();
        assert_eq!(inputs, again, "{}", target.name);
        let changed = inputs.iter().filter(|input| !samples.contains(input)).count();
        assert!(changed >= 8, "{}: {changed} of 20 are changed", target.name);
    }
}

/// A decoder with every defect that is looked for.
static DEFECTIVE: Target = Target {
    name: "defective",
    form: mutate::Form::Fixed,
    samples: |_| vec![vec![0; 8]],
    read: |bytes| match bytes.first() {
        Some(1) => panic!("one"),
        Some(2) => {
            drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 24)));
            Ok(Answer::Accepted)
        }
        Some(3) => Err("other bytes".to_owned()),
        _ => Ok(Answer::Accepted),
    },
};

#[test]
fn a_panic_a_large_allocation_and_other_bytes_are_found() {
    let told = |byte: u8| fuzz::give(&DEFECTIVE, &[byte; 8]).map(|(answer, _)| answer);
    assert_eq!(told(0), Ok(Answer::Accepted));
    assert_eq!(told(1), Err("it panics: one".to_owned()));
    assert_eq!(told(2), Err("16777216 bytes of memory for an input of 8 bytes".to_owned()));
    assert_eq!(told(3), Err("other bytes".to_owned()));
    let plan = Plan { first_seed: 0, inputs_max: 10_000, span: Duration::from_secs(10) };
    let failure = fuzz::run(&DEFECTIVE, plan).expect_err("a defect").to_string();
    assert!(failure.contains("--target defective --first-seed "), "{failure}");
}
