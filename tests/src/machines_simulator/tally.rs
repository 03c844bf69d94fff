//! Sums over many runs: what was hit, and how often.
//!
//! Owns the sums, and the demand that no kind of fault and no kind of request is too rare, and that
//! not everything ends degraded. Never judges a run. Called by the `sim-machines` program and by
//! tests.

use std::collections::BTreeMap;
use std::fmt;

use super::possible_kinds;

/// A kind is too rare when it came fewer times than once in this many runs.
const RUNS_PER_KIND_MAX: u64 = 50;
/// A tally of fewer runs says nothing about kinds.
const RUNS_MIN: u64 = 100;
/// Of all VMs so many may end degraded, in hundredths: a run in which nothing works proves nothing.
const DEGRADED_PERCENT_MAX: usize = 30;
/// What owners and operators ask for, and hosts report.
const ASKED: [&str; 23] = [
    "account.grant",
    "account.revoke",
    "host.drain",
    "host.resume",
    "report.snapshot",
    "report.vm",
    "report.volume",
    "snapshot.delete",
    "vm.create",
    "vm.delete",
    "vm.pause",
    "vm.protect",
    "vm.reboot",
    "vm.resize",
    "vm.resume",
    "vm.start",
    "vm.stop",
    "volume.attach",
    "volume.create",
    "volume.delete",
    "volume.detach",
    "volume.restore",
    "volume.snapshot",
];

/// What a run did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Hash over everything that happened.
    pub log_hash: String,
    /// What was noted.
    pub notes: u64,
    /// Steps that controllers began.
    pub steps: u64,
    /// Commits.
    pub commits: usize,
    /// VMs that there ever were.
    pub vms: usize,
    /// VMs that ended degraded.
    pub vms_degraded: usize,
    /// VMs that are gone.
    pub vms_deleted: usize,
    /// Volumes that there ever were.
    pub volumes: usize,
    /// Volumes that ended degraded.
    pub volumes_degraded: usize,
    /// Accepted payloads by kind.
    pub accepted: BTreeMap<String, u64>,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
}

/// See the module.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    sizes: BTreeMap<usize, (u64, Summary)>,
}

impl Tally {
    /// Adds a run of so many hosts.
    pub fn add(&mut self, hosts: usize, run: &Summary) {
        let (runs, sums) = self.sizes.entry(hosts).or_default();
        *runs += 1;
        sums.notes += run.notes;
        sums.steps += run.steps;
        sums.commits += run.commits;
        sums.vms += run.vms;
        sums.vms_degraded += run.vms_degraded;
        sums.vms_deleted += run.vms_deleted;
        sums.volumes += run.volumes;
        sums.volumes_degraded += run.volumes_degraded;
        for (kind, count) in &run.accepted {
            *sums.accepted.entry(kind.clone()).or_default() += count;
        }
        for (kind, count) in &run.faults {
            *sums.faults.entry(kind.clone()).or_default() += count;
        }
    }

    /// What was hit too rarely to say anything about it; nothing in a tally of few runs.
    pub fn too_rare(&self) -> Vec<String> {
        let mut rare = Vec::new();
        for (hosts, (runs, sums)) in self.sizes.iter().filter(|(_, (runs, _))| *runs >= RUNS_MIN) {
            let faults = possible_kinds(*hosts).into_iter().map(|kind| (kind, &sums.faults));
            let asked = ASKED.iter().map(|kind| ((*kind).to_owned(), &sums.accepted));
            for (kind, counts) in faults.chain(asked) {
                let count = counts.get(&kind).copied().unwrap_or(0);
                if count * RUNS_PER_KIND_MAX < *runs {
                    rare.push(format!("{hosts} hosts: {kind} only {count} times in {runs} runs"));
                }
            }
            if sums.vms_degraded * 100 > sums.vms * DEGRADED_PERCENT_MAX {
                let (degraded, vms) = (sums.vms_degraded, sums.vms);
                rare.push(format!("{hosts} hosts: {degraded} of {vms} VMs ended degraded"));
            }
        }
        rare
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (hosts, (runs, sums)) in &self.sizes {
            writeln!(
                formatter,
                "{hosts} hosts: {runs} runs, {} faults, {} commits, {} steps, {} VMs ({} deleted, \
                 {} degraded), {} volumes ({} degraded)",
                sums.faults.values().sum::<u64>(),
                sums.commits,
                sums.steps,
                sums.vms,
                sums.vms_deleted,
                sums.vms_degraded,
                sums.volumes,
                sums.volumes_degraded,
            )?;
            let words = |counts: &BTreeMap<String, u64>| {
                let words = counts.iter().map(|(kind, count)| format!("{kind} {count}"));
                words.collect::<Vec<_>>().join(", ")
            };
            writeln!(formatter, "  faults: {}", words(&sums.faults))?;
            writeln!(formatter, "  accepted: {}", words(&sums.accepted))?;
        }
        Ok(())
    }
}
