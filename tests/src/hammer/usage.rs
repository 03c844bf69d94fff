//! What the ledgers and this program have used so far, as the kernel counts it.
//!
//! Owns the reading of proc(5) and of the kernel's TCP counters by way of ss(8). Called by the run,
//! before and after what it measures.

use std::process::Command;

use anyhow::{Context, ensure};
use nix::unistd::{SysconfVar, sysconf};

use crate::ledgers::Ledgers;

/// One process.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProcessUsage {
    /// User and system time together.
    pub(super) cpu_seconds: f64,
    /// The most memory it ever held.
    pub(super) rss_mib_max: f64,
    /// What it made the block layer write.
    pub(super) written_bytes: u64,
}

/// All of them at one moment.
#[derive(Debug)]
pub(super) struct Usage {
    /// When.
    pub(super) at: std::time::Instant,
    /// By host.
    pub(super) ledgers: Vec<ProcessUsage>,
    /// This program.
    pub(super) generator: ProcessUsage,
    /// Sent over the ledgers' links, from all ends together, without TCP and IP headers.
    pub(super) sent_bytes: u64,
}

impl Usage {
    pub(super) fn of(ledgers: &Ledgers) -> anyhow::Result<Self> {
        let of_ledgers = ledgers.pids().into_iter().map(|pid| process(&pid.to_string()));
        Ok(Self {
            at: std::time::Instant::now(),
            ledgers: of_ledgers.collect::<Result<_, _>>()?,
            generator: process("self")?,
            sent_bytes: sent_bytes(&ledgers.ports())?,
        })
    }
}

fn read(pid: &str, file: &str) -> anyhow::Result<String> {
    let path = format!("/proc/{pid}/{file}");
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
}

/// The number after `name:` in a file of such lines.
fn field(text: &str, name: &str) -> anyhow::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let word = line.and_then(|rest| rest.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).with_context(|| format!("no {name} in proc(5)"))
}

fn process(pid: &str) -> anyhow::Result<ProcessUsage> {
    let stat = read(pid, "stat")?;
    // Fields 14 and 15; what stands before the name's closing bracket may hold blanks.
    let after_name = stat.rsplit(')').next().context("proc(5) has a name in brackets")?;
    let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u32>);
    let ticks: f64 = ticks.map(|ticks| ticks.map(f64::from)).sum::<Result<_, _>>()?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the kernel has a clock tick")?;
    let kib = u32::try_from(field(&read(pid, "status")?, "VmHWM")?)?;
    Ok(ProcessUsage {
        cpu_seconds: ticks / f64::from(i32::try_from(per_second)?),
        rss_mib_max: f64::from(kib) / 1024.0,
        written_bytes: field(&read(pid, "io")?, "write_bytes")?,
    })
}

/// Sums `bytes_sent` of all connections with one of `ports` at either end.
fn sent_bytes(ports: &[u16]) -> anyhow::Result<u64> {
    let output = Command::new("ss")
        .args(["--tcp", "--info", "--numeric", "--no-header", "--oneline"])
        .args(["state", "established"])
        .output()
        .context("cannot run ss(8): install iproute2")?;
    ensure!(output.status.success(), "ss(8) failed: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let of_ledgers = text.lines().filter(|line| {
        let ends = line.split_whitespace().skip(2).take(2);
        let mut ends = ends.filter_map(|end| end.rsplit(':').next()?.parse().ok());
        ends.any(|port: u16| ports.contains(&port))
    });
    let sent = of_ledgers.filter_map(|line| {
        let mut words = line.split_whitespace();
        words.find_map(|word| word.strip_prefix("bytes_sent:")?.parse::<u64>().ok())
    });
    Ok(sent.sum())
}
