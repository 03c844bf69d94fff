//! Random payloads of all kinds, judged by the judge and by a slow model of the rules that keeps no
//! index and counts everything anew: equal verdicts, equal objects, equal roots.
//!
//! `DAGGER_FIRST_SEED` repeats a run; `DAGGER_MODEL_PAYLOADS` says how long it is.

mod accounts;
mod hosts;
mod images;
mod kinds;
mod people;
mod placement;
mod random;
mod reports;
mod run;
mod state;
mod vms;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use run::Run;

const PAYLOADS: u64 = 6_000;

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
    let mut run = Run::new(seed);
    while run.judged < payloads {
        run.commit();
    }
    println!("{} commits, verdicts: {:#?}", run.commits, run.verdicts);
    // A run that accepts or refuses nothing of a kind compares nothing.
    for kind in kinds::all() {
        let count = |is: fn(&str) -> bool| -> u64 {
            let of_kind = run.verdicts.iter().filter(|((name, _), _)| *name == kind.name);
            of_kind.filter(|((_, verdict), _)| is(verdict)).map(|(_, count)| count).sum()
        };
        assert!(count(|verdict| verdict == "accepted") > 0, "no {} was accepted", kind.name);
        assert!(count(|verdict| verdict != "accepted") > 0, "no {} was refused", kind.name);
    }
    assert!(run.lapsed > 0, "no offer lapsed");
}

#[test]
fn the_model_draws_every_kind_of_payload() {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("payload/src");
    let mut known = BTreeSet::new();
    let mut folders = vec![source];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                known.extend(kinds_in(&std::fs::read_to_string(path).expect("text")));
            }
        }
    }
    assert!(known.contains("vm.create"), "the arms of `Body::kind` were not found: {known:?}");
    let drawn: BTreeSet<_> = kinds::all().map(|kind| kind.name.to_owned()).collect();
    assert_eq!(drawn, known, "give each kind an entry in the file of its subject");
}

/// The texts on the right of arms like `Self::VmCreate(_) => "vm.create"`.
fn kinds_in(source: &str) -> impl Iterator<Item = String> {
    source.lines().filter_map(|line| {
        let text = line.trim().strip_prefix("Self::")?.split_once("=> \"")?.1.split_once('"')?.0;
        let is_kind = text.split_once('.').is_some_and(|(subject, verb)| {
            let is_word = |word: &str| {
                !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            };
            is_word(subject) && is_word(verb)
        });
        is_kind.then(|| text.to_owned())
    })
}
