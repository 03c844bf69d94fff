//! Random payloads of all kinds, judged by the judge and by a slow model of the rules that keeps no
//! index and counts everything anew: equal verdicts, equal objects, equal roots.
//!
//! `DAGGER_FIRST_SEED` repeats a run; `DAGGER_MODEL_PAYLOADS` says how long it is.

mod accounts;
mod boot;
mod changes;
mod door;
mod eviction;
mod history;
mod hostile;
mod hosts;
mod images;
mod kinds;
mod looks;
mod members;
mod networks;
mod people;
mod placement;
mod random;
mod reports;
mod run;
mod snapshots;
mod state;
mod vms;
mod volumes;

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use dagger_payload::kind::Body;
use dagger_processor::judge::LooksMax;
use run::{Run, Signing};

const PAYLOADS: u64 = 6_000;
/// Of a run in which little may be looked at.
const FEW_PAYLOADS: u64 = 3_000;
/// How many times as long a run may go on for want of a kind.
const LONGER: u64 = 5;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

#[test]
fn random_payloads_are_judged_as_a_slow_model_of_the_rules_judges_them() {
    let seed = number("DAGGER_FIRST_SEED").unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
    });
    let payloads = number("DAGGER_MODEL_PAYLOADS").unwrap_or(PAYLOADS);
    println!("DAGGER_FIRST_SEED={seed} DAGGER_MODEL_PAYLOADS={payloads}");
    let mut run = Run::new(seed, Signing::Sample);
    // A run that accepts or refuses nothing of a kind compares nothing: it goes on for a while.
    let longest = payloads.saturating_mul(LONGER);
    while run.judged < payloads || (lack(&run).is_some() && run.judged < longest) {
        let _ = run.commit();
    }
    println!(
        "{} commits, {} epochs, {} of other rules, verdicts: {:#?}",
        run.commits, run.epochs, run.versions, run.verdicts
    );
    assert_eq!(lack(&run), None);
}

/// How many payloads were refused because too much was looked at, or written anew.
fn full(run: &Run) -> u64 {
    let full = run.verdicts.iter().filter(|((_, verdict), _)| verdict == "commit_full");
    full.map(|(_, count)| count).sum()
}

/// What the run has not seen yet.
fn lack(run: &Run) -> Option<String> {
    for kind in kinds::all() {
        let count = |is: fn(&str) -> bool| -> u64 {
            let of_kind = run.verdicts.iter().filter(|((name, _), _)| *name == kind.name);
            of_kind.filter(|((_, verdict), _)| is(verdict)).map(|(_, count)| count).sum()
        };
        if count(|verdict| verdict == "accepted") == 0 {
            return Some(format!("no {} was accepted", kind.name));
        }
        if count(|verdict| verdict != "accepted") == 0 {
            return Some(format!("no {} was refused", kind.name));
        }
    }
    let lack = [
        (run.lapsed, "no offer lapsed"),
        (run.epochs / 3, "too few epochs"),
        (run.versions, "no other rules were activated"),
        (run.lost, "nothing was lost with its host"),
        (run.asked / 100, "the door was hardly asked"),
        (run.reborn, "no judge began from a snapshot"),
    ];
    lack.iter().find(|(times, _)| *times == 0).map(|(_, lack)| (*lack).to_owned())
}

#[test]
fn where_little_may_be_looked_at_payloads_are_refused_and_offers_wait_as_in_the_model() {
    let seed = number("DAGGER_FIRST_SEED").unwrap_or(1_796_060_000);
    for (account, together) in [(1, 1000), (1000, 1), (2, 3)] {
        let max = LooksMax { account, together };
        let mut run = Run::new(seed, Signing::Sample).looking_at(max);
        // Offers of one account are few at a time: they seldom wait for it alone.
        let lacks = |run: &Run| full(run) == 0 || (run.waited == 0 && account > 1);
        while run.judged < FEW_PAYLOADS || (lacks(&run) && run.judged < LONGER * FEW_PAYLOADS) {
            let _ = run.commit();
        }
        let (judged, full, waited) = (run.judged, full(&run), run.waited);
        println!("{max:?}: of {judged} {full} refused, {waited} times an offer waited");
        assert!(!lacks(&run), "DAGGER_FIRST_SEED={seed}");
    }
}

#[test]
fn where_little_may_be_written_anew_payloads_are_refused_as_in_the_model() {
    let seed = number("DAGGER_FIRST_SEED").unwrap_or(1_796_070_000);
    for bytes_max in [1, 600, 1_000] {
        let mut run = Run::new(seed, Signing::Sample).rewriting(bytes_max);
        while run.judged < FEW_PAYLOADS || (full(&run) == 0 && run.judged < LONGER * FEW_PAYLOADS) {
            let _ = run.commit();
        }
        let (judged, full) = (run.judged, full(&run));
        println!("{bytes_max}: of {judged} {full} refused");
        assert!(full > 0, "DAGGER_FIRST_SEED={seed}");
    }
}

#[test]
fn the_model_draws_every_kind_of_payload() {
    let known: BTreeSet<_> = Body::KINDS.iter().copied().collect();
    let drawn: BTreeSet<_> = kinds::all().map(|kind| kind.name).collect();
    assert_eq!(drawn, known, "give each kind an entry in the file of its subject");
}
