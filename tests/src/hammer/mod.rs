//! The load generator: a cluster of real ledgers under a known load, and what it made of it.
//!
//! Owns the order of a run: bounds of the machine, founding, load, drain, silence, report. The
//! ledgers are processes of their own, run the daemon's own program in mode `opaque`, and are
//! spoken to only by their local stream. Nothing is counted before a host's release stream shows
//! it, which is after it was made durable there. Called by the program `hammer`.

mod bounds;
mod cursor;
mod load;
mod report;
mod usage;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use dagger_payload::id::CommitIndex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use crate::ledgers::{self, Ledgers};
use cursor::Seen;
use load::{Offered, Offerer, Pace};
pub use report::Report;
use usage::Usage;

/// How long all that was received may take to be delivered everywhere once the load has ended.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(120);
/// Rounds come to rest for so long before an idle cluster is measured.
const REST: Duration = Duration::from_secs(2);

/// What one run does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many ledgers.
    pub hosts: u8,
    /// Bytes of one payload, without its signature.
    pub payload_bytes: usize,
    /// How payloads are offered.
    pub demand: Demand,
    /// How long is measured.
    pub measured: Duration,
    /// How long the load runs before that.
    pub warm_up: Duration,
    /// How long an idle cluster is measured after it.
    pub idle: Duration,
}

/// How payloads are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// So many a second in all, whatever becomes of them (open loop).
    PerSecond(u32),
    /// As many as go with so many on their way at each host (closed loop).
    Max {
        /// Payloads on their way, at each host.
        window: u32,
    },
}

/// The part of the run that counts.
#[derive(Debug, Clone, Copy)]
struct Measured {
    from: Instant,
    until: Instant,
}

impl Measured {
    fn contains(&self, moment: Instant) -> bool {
        self.from <= moment && moment < self.until
    }
}

/// Runs `plan` with ledgers that keep their stores below `directory`. `program` is started as
/// `program ledger --configuration FILE` and must then be the ledger daemon.
///
/// # Errors
/// A ledger does not start or dies, something that was received is not delivered, or the ledgers
/// differ at the end.
pub async fn run(plan: &Plan, program: &Path, directory: &Path) -> anyhow::Result<Report> {
    let bounds = bounds::measure(directory)?;
    let places = ledgers::on_loopback(plan.hosts)?;
    let ledgers = Arc::new(Ledgers::found(places, program, directory)?);
    ledgers.start_all().await?;
    let begin = Instant::now();
    let measured =
        Measured { from: begin + plan.warm_up, until: begin + plan.warm_up + plan.measured };
    let (total, expected) = watch::channel(None);
    let mut cursors = JoinSet::new();
    let mut offerers = JoinSet::new();
    for host in 0..plan.hosts {
        let pace = Pace::new(plan, host, begin, measured);
        let stream = ledgers.stream(host, CommitIndex(0)).await?;
        cursors.spawn(cursor::follow(host, stream, pace.clone(), measured, expected.clone()));
        let offerer = Offerer::new(host, plan.payload_bytes, pace, measured);
        offerers.spawn(offerer.run(ledgers.requests(host).await?));
    }
    sleep_until(measured.from.into()).await;
    let before = Usage::of(&ledgers)?;
    sleep_until(measured.until.into()).await;
    let after = Usage::of(&ledgers)?;
    let offered: Vec<Offered> = all(offerers).await?;
    let received = offered.iter().map(|offered| offered.received).sum();
    total.send_replace(Some(received));
    let drained = tokio::time::timeout(DRAIN_WAIT_MAX, all::<Seen>(cursors)).await;
    let seen = drained.with_context(|| {
        format!("{received} payloads were received, and not all of them were ordered in time")
    })??;
    agree(&seen)?;
    sleep(REST).await;
    let rest = Usage::of(&ledgers)?;
    sleep(plan.idle).await;
    let idle = Usage::of(&ledgers)?;
    ledgers.check_alive()?;
    Ok(Report::new(plan, &offered, seen, (&before, &after), (&rest, &idle), bounds))
}

async fn all<T: 'static>(mut tasks: JoinSet<anyhow::Result<T>>) -> anyhow::Result<Vec<T>> {
    let mut results = Vec::new();
    while let Some(result) = tasks.join_next().await {
        results.push(result.context("a task of the load generator died")??);
    }
    Ok(results)
}

/// Every host has delivered the same history.
fn agree(seen: &[Seen]) -> anyhow::Result<()> {
    let ends = seen.iter().map(|seen| seen.end.map(|end| (end.position, end.prefix_hash)));
    let ends: Vec<_> = ends.collect();
    let same = ends.windows(2).all(|pair| pair[0] == pair[1]);
    ensure!(same, "the ledgers differ at the end: {ends:?}");
    Ok(())
}
