//! Sums over many runs: what was hit, and how often.
//!
//! Owns the sums, and the demand that no kind of fault is too rare. Never judges a run. Called by
//! the `sim` program and by tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::possible_kinds;

/// Least faults of a run on average, not counting what befalls single messages and sectors, and not
/// counting lies.
const FAULTS_PER_RUN_MIN: u64 = 20;
/// A kind is too rare when it came fewer times than once in this many runs. The rarest, to begin
/// from a snapshot, comes eight times on average, and so never less by chance.
const RUNS_PER_KIND_MAX: u64 = 100;
/// A tally of fewer runs says nothing about kinds.
const RUNS_MIN: u64 = 100;
/// Of clusters that bear a liar, half of the runs have one; by chance never so few of a hundred.
const LIARS_PERCENT_MIN: u64 = 30;

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Hash over everything that happened.
    pub log_hash: String,
    /// Steps that were noted.
    pub steps: u64,
    /// Payloads reported received.
    pub received: u64,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// What befell single messages and sectors, and lies, by kind.
    pub misdeeds: BTreeMap<String, u64>,
    /// How many hosts lied.
    pub liars: usize,
    /// Simulated time, in milliseconds.
    pub simulated_ms: u64,
}

/// The sums of one size of cluster.
#[derive(Debug, Default, Clone)]
struct OfSize {
    runs: u64,
    runs_with_liars: u64,
    received: u64,
    steps: u64,
    simulated_ms: u64,
    faults: BTreeMap<String, u64>,
    misdeeds: BTreeMap<String, u64>,
}

/// See the module.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    sizes: BTreeMap<usize, OfSize>,
}

impl Tally {
    /// Adds a run of a cluster of `hosts`.
    pub fn add(&mut self, hosts: usize, summary: &Summary) {
        let sums = self.sizes.entry(hosts).or_default();
        sums.runs += 1;
        sums.runs_with_liars += u64::from(summary.liars > 0);
        sums.received += summary.received;
        sums.steps += summary.steps;
        sums.simulated_ms += summary.simulated_ms;
        for (kind, count) in &summary.faults {
            *sums.faults.entry(kind.clone()).or_default() += count;
        }
        for (kind, count) in &summary.misdeeds {
            *sums.misdeeds.entry(kind.clone()).or_default() += count;
        }
    }

    /// Payloads reported received, and so ordered, in all runs.
    pub fn received(&self) -> u64 {
        self.sizes.values().map(|sums| sums.received).sum()
    }

    /// What was hit too rarely to say anything about it; nothing in a tally of few runs.
    pub fn too_rare(&self) -> Vec<String> {
        let mut rare = Vec::new();
        for (hosts, sums) in self.sizes.iter().filter(|(_, sums)| sums.runs >= RUNS_MIN) {
            let mut say = |what: String| rare.push(format!("{hosts} hosts: {what}"));
            let faults: u64 = sums.faults.values().sum();
            if faults < FAULTS_PER_RUN_MIN * sums.runs {
                say(format!("only {faults} faults in {} runs", sums.runs));
            }
            if *hosts > 3 && sums.runs_with_liars * 100 < sums.runs * LIARS_PERCENT_MIN {
                say(format!("only {} of {} runs with liars", sums.runs_with_liars, sums.runs));
            }
            for kind in possible_kinds(*hosts) {
                let count = sums.faults.get(&kind).or_else(|| sums.misdeeds.get(&kind));
                let count = count.copied().unwrap_or(0);
                if count * RUNS_PER_KIND_MAX < sums.runs {
                    say(format!("{kind} only {count} times in {} runs", sums.runs));
                }
            }
        }
        rare
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (hosts, sums) in &self.sizes {
            let (runs, faults) = (sums.runs, sums.faults.values().sum::<u64>());
            writeln!(
                formatter,
                "{hosts} hosts: {runs} runs ({} with liars), {faults} faults ({:.1} a run), \
                 {} payloads ordered, {} steps, {} simulated s",
                sums.runs_with_liars,
                faults as f64 / runs.max(1) as f64,
                sums.received,
                sums.steps,
                sums.simulated_ms / 1000,
            )?;
        }
        for (what, of) in [("faults", 0), ("of messages, sectors and liars", 1)] {
            let sums = |sums: &OfSize| if of == 0 { &sums.faults } else { &sums.misdeeds }.clone();
            let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
            for (kind, count) in self.sizes.values().flat_map(sums) {
                *kinds.entry(kind).or_default() += count;
            }
            let words: BTreeSet<_> = kinds.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
            writeln!(formatter, "{what}: {}", Vec::from_iter(words).join(", "))?;
        }
        Ok(())
    }
}
