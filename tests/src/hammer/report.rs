//! What a run has shown: figures with stable names, for people and for programs.
//!
//! Owns their arithmetic and their form. Called by the run; written by the program.

use std::fmt;

use serde::Serialize;

use super::bounds::Bounds;
use super::cursor::Seen;
use super::load::Offered;
use super::usage::{ProcessUsage, Usage};
use super::{Demand, Plan};

/// The figures of one run. Rates are per second of measured time.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Ledgers.
    pub hosts: u8,
    /// Bytes of one payload.
    pub payload_bytes: usize,
    /// What was asked: a rate, or "max".
    pub demand: String,
    /// Measured seconds.
    pub seconds: f64,
    /// Payloads that were meant to be sent.
    pub offered_per_s: f64,
    /// Payloads at the delivery cursor of the slowest host.
    pub ordered_per_s: f64,
    /// The same, by host.
    pub ordered_per_s_by_host: Vec<f64>,
    /// From the intended time of sending to delivery by the host that was asked.
    pub latency_ms: Latency,
    /// Cores that all ledgers kept busy together.
    pub cpu_cores: f64,
    /// Cores that all ledgers kept busy after the load.
    pub cpu_cores_idle: f64,
    /// The most memory that one ledger held.
    pub rss_mib_max: f64,
    /// Bytes that all ledgers wrote to disk per payload byte ordered.
    pub written_per_payload_byte: f64,
    /// Bytes that all ledgers sent to each other per payload byte ordered.
    pub sent_per_payload_byte: f64,
    /// Payloads acknowledged, with warm-up; every host has delivered all of them.
    pub received: u64,
    /// Payloads that a ledger did not take, with warm-up.
    pub turned_away: u64,
    /// Position and prefix hash of all ledgers at the end.
    pub end: String,
    /// Each process.
    pub processes: Vec<Process>,
    /// What the machine can do.
    pub bounds: Bounds,
}

/// Latencies in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    /// Half are faster.
    pub p50: f64,
    /// Nine of ten are.
    pub p90: f64,
    /// Ninety-nine of a hundred are.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

/// One process of the run.
#[derive(Debug, Clone, Serialize)]
pub struct Process {
    /// `host1` and so on, or `hammer`.
    pub name: String,
    /// Cores that it kept busy.
    pub cpu_cores: f64,
    /// The most memory that it held.
    pub rss_mib_max: f64,
    /// Mebibytes that it wrote to disk a second.
    pub written_mib_per_s: f64,
}

/// A count as a number to calculate with; exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn number(count: u64) -> f64 {
    count as f64
}

impl Latency {
    fn of(mut microseconds: Vec<u32>) -> Self {
        microseconds.sort_unstable();
        let count = microseconds.len();
        let at = |hundredths: usize| {
            let index = (count * hundredths).div_ceil(100).saturating_sub(1);
            microseconds.get(index).map_or(0.0, |us| f64::from(*us) / 1000.0)
        };
        Self { p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }
}

impl Process {
    fn new(name: String, before: &ProcessUsage, after: &ProcessUsage, seconds: f64) -> Self {
        let written = number(after.written_bytes - before.written_bytes);
        Self {
            name,
            cpu_cores: (after.cpu_seconds - before.cpu_seconds) / seconds,
            rss_mib_max: after.rss_mib_max,
            written_mib_per_s: written / seconds / f64::from(1 << 20),
        }
    }
}

fn processes(before: &Usage, after: &Usage) -> Vec<Process> {
    let seconds = after.at.duration_since(before.at).as_secs_f64();
    let names = (1..).map(|host| format!("host{host}"));
    let pairs = before.ledgers.iter().zip(&after.ledgers);
    let ledgers = names.zip(pairs);
    let ledgers = ledgers.map(|(name, (from, to))| Process::new(name, from, to, seconds));
    let hammer = Process::new("hammer".to_owned(), &before.generator, &after.generator, seconds);
    ledgers.chain([hammer]).collect()
}

fn busy(processes: &[Process]) -> f64 {
    let ledgers = processes.iter().filter(|process| process.name != "hammer");
    ledgers.map(|process| process.cpu_cores).sum()
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        offered: &[Offered],
        mut seen: Vec<Seen>,
        (before, after): (&Usage, &Usage),
        (rest, idle): (&Usage, &Usage),
        bounds: Bounds,
    ) -> Self {
        let seconds = plan.measured.as_secs_f64();
        seen.sort_by_key(|seen| seen.host);
        let by_host: Vec<_> = seen.iter().map(|seen| number(seen.measured) / seconds).collect();
        let ordered_per_s = by_host.iter().copied().fold(f64::INFINITY, f64::min);
        let payload_bytes = u32::try_from(plan.payload_bytes).expect("at most 64 KiB");
        let ordered_bytes = ordered_per_s * seconds * f64::from(payload_bytes);
        let per_payload_byte = |bytes: u64| number(bytes) / ordered_bytes.max(1.0);
        let processes = processes(before, after);
        let written =
            |usage: &Usage| -> u64 { usage.ledgers.iter().map(|each| each.written_bytes).sum() };
        let written = written(after).saturating_sub(written(before));
        let sum = |of: fn(&Offered) -> u64| offered.iter().map(of).sum();
        let end = seen.iter().find_map(|seen| seen.end);
        Self {
            hosts: plan.hosts,
            payload_bytes: plan.payload_bytes,
            demand: match plan.demand {
                Demand::PerSecond(rate) => rate.to_string(),
                Demand::Max { .. } => "max".to_owned(),
            },
            seconds,
            offered_per_s: number(sum(|offered| offered.measured)) / seconds,
            ordered_per_s,
            ordered_per_s_by_host: by_host,
            cpu_cores: busy(&processes),
            cpu_cores_idle: busy(&self::processes(rest, idle)),
            rss_mib_max: after.ledgers.iter().map(|each| each.rss_mib_max).fold(0.0, f64::max),
            written_per_payload_byte: per_payload_byte(written),
            sent_per_payload_byte: per_payload_byte(
                after.sent_bytes.saturating_sub(before.sent_bytes),
            ),
            received: sum(|offered| offered.received),
            turned_away: sum(|offered| offered.turned_away),
            end: end
                .map_or_else(String::new, |end| format!("{} {}", end.position, end.prefix_hash)),
            latency_ms: Latency::of(seen.into_iter().flat_map(|seen| seen.latencies).collect()),
            processes,
            bounds,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency { p50, p90, p99, max } = self.latency_ms;
        let Bounds { verify_strict_per_s, blake3_gb_per_s, fsync_per_s, loopback_gb_per_s } =
            self.bounds;
        writeln!(out, "offered            {:10.0} /s  ({})", self.offered_per_s, self.demand)?;
        writeln!(out, "ordered            {:10.0} /s", self.ordered_per_s)?;
        writeln!(out, "latency    p50 {p50:.1}  p90 {p90:.1}  p99 {p99:.1}  max {max:.1} ms")?;
        for process in &self.processes {
            writeln!(
                out,
                "{:10} {:5.2} cores  {:6.0} MiB at most  {:6.1} MiB/s written",
                process.name, process.cpu_cores, process.rss_mib_max, process.written_mib_per_s
            )?;
        }
        writeln!(out, "idle       {:5.3} cores, all ledgers", self.cpu_cores_idle)?;
        writeln!(out, "written    {:5.2} bytes per payload byte", self.written_per_payload_byte)?;
        writeln!(out, "sent       {:5.2} bytes per payload byte", self.sent_per_payload_byte)?;
        writeln!(out, "received   {} (turned away: {})", self.received, self.turned_away)?;
        writeln!(out, "end        {} on all hosts", self.end)?;
        write!(
            out,
            "machine    {verify_strict_per_s:.0} verify_strict/s, BLAKE3 {blake3_gb_per_s:.1} GB/s, \
             {fsync_per_s:.0} fsync/s, loopback {loopback_gb_per_s:.1} GB/s"
        )
    }
}
