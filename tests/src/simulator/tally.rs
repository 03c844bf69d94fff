//! Sums over many runs: what was hit, and how often.
//!
//! Owns the sums. Never judges. Called by the `sim` program and by tests.

use std::collections::BTreeMap;
use std::fmt;

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
    /// Simulated time, in milliseconds.
    pub simulated_ms: u64,
}

/// See the module.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    /// Runs that kept all promises.
    pub runs: u64,
    /// Payloads received (and so ordered) in them.
    pub received: u64,
    /// Steps noted.
    pub steps: u64,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
}

impl Tally {
    /// Adds a run.
    pub fn add(&mut self, summary: &Summary) {
        self.runs += 1;
        self.received += summary.received;
        self.steps += summary.steps;
        self.simulated_ms += summary.simulated_ms;
        for (kind, count) in &summary.faults {
            *self.faults.entry(kind.clone()).or_default() += count;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "{} runs: {} payloads ordered, {} steps, {} simulated s",
            self.runs,
            self.received,
            self.steps,
            self.simulated_ms / 1000
        )?;
        write!(formatter, "faults:")?;
        for (kind, count) in &self.faults {
            write!(formatter, " {kind} {count}")?;
        }
        Ok(())
    }
}
