//! What users of the other hosts notice when one host hangs, dies, or is the second to be away.
//!
//! Owns the three measurements. Each is taken beside the same cluster unhurt, so that the machine's
//! own speed falls out. Called by the program `endure`.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::clients::Clients;
use super::{HEAL_WAIT_MAX, LOOK_EVERY};
use crate::ledgers::{self, Ledgers};

/// Before anything is measured.
const WARM_UP: Duration = Duration::from_secs(2);
/// The others notice only after a while that a host hangs; how they do in it is not what is asked.
const FIRST_SECOND: Duration = Duration::from_secs(1);

/// What was measured; times in milliseconds, of payloads that were submitted at hosts which were
/// not hurt.
#[derive(Debug, Clone, Serialize)]
pub struct Outages {
    /// Payloads a second at all hosts together.
    pub per_second: u32,
    /// The slowest of a hundred, with nobody hurt.
    pub unhurt_p99_ms: f64,
    /// The same while one host stands still, from its first second on.
    pub paused_p99_ms: f64,
    /// The longest time without a delivery with nobody hurt.
    pub unhurt_silence_ms: f64,
    /// The same after one host was killed.
    pub killed_silence_ms: f64,
    /// From the start of the second of two dead hosts to the next delivery elsewhere.
    pub second_back_ms: f64,
}

/// Measures with four ledgers on loopback, each state for `span`.
///
/// # Errors
/// A ledger ends by itself, or the cluster does not go on.
pub async fn measure(
    per_second: u32,
    span: Duration,
    program: &Path,
    directory: &Path,
) -> anyhow::Result<Outages> {
    let ledgers = Arc::new(Ledgers::found(ledgers::on_loopback(4)?, program, directory)?);
    ledgers.start_all().await?;
    let mut clients = Clients::start(&ledgers, per_second.div_ceil(4));
    sleep(WARM_UP).await;

    let unhurt = Instant::now();
    sleep(span).await;
    let paused = Instant::now();
    ledgers.signal(3, Signal::SIGSTOP)?;
    sleep(span).await;
    let resumed = Instant::now();
    ledgers.signal(3, Signal::SIGCONT)?;
    ledgers.until_linked(3).await?;
    sleep(WARM_UP).await;

    let killed = Instant::now();
    ledgers.end(3, Signal::SIGKILL)?;
    sleep(span).await;
    let second = Instant::now();
    ledgers.end(2, Signal::SIGKILL)?;
    sleep(WARM_UP).await;
    let back = Instant::now();
    ledgers.start(2)?;
    let delivered = timeout(HEAL_WAIT_MAX, until_delivery_after(&clients, back)).await;
    let delivered = delivered.context("with three of four back the cluster does not go on")?;
    clients.check().await?;
    ledgers.check_alive()?;
    Ok(Outages {
        per_second,
        unhurt_p99_ms: p99(&clients, 0..3, unhurt, paused),
        paused_p99_ms: p99(&clients, 0..3, paused + FIRST_SECOND, resumed),
        unhurt_silence_ms: silence(&clients, unhurt, paused),
        killed_silence_ms: silence(&clients, killed, second),
        second_back_ms: milliseconds(delivered - back),
    })
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Of payloads that were meant to be sent in the time given; those that were never delivered count
/// as if they had been delivered now.
fn p99(clients: &Clients, hosts: std::ops::Range<u8>, from: Instant, until: Instant) -> f64 {
    let now = Instant::now();
    let mut ages = Vec::new();
    for host in hosts {
        let told = clients.told(host);
        let open = told.open().map(|intended| (intended, now));
        let times = told.times.iter().copied().chain(open);
        let meant = times.filter(|(intended, _)| (from..until).contains(intended));
        ages.extend(meant.map(|(intended, at)| at.saturating_duration_since(intended)));
    }
    ages.sort_unstable();
    let at = (ages.len() * 99).div_ceil(100).saturating_sub(1);
    ages.get(at).map_or(f64::INFINITY, |age| milliseconds(*age))
}

/// The longest time in which host1 delivered nothing.
fn silence(clients: &Clients, from: Instant, until: Instant) -> f64 {
    let told = clients.told(0);
    let within = told.times.iter().map(|(_, at)| *at).filter(|at| (from..until).contains(at));
    let times: Vec<Instant> = [from].into_iter().chain(within).chain([until]).collect();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    milliseconds(gaps.max().unwrap_or_default())
}

async fn until_delivery_after(clients: &Clients, moment: Instant) -> Instant {
    loop {
        let newest = clients.told(0).times.last().map(|(_, at)| *at);
        if let Some(at) = newest.filter(|at| *at > moment) {
            return at;
        }
        sleep(LOOK_EVERY).await;
    }
}

impl fmt::Display for Outages {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "load                       {} payloads/s", self.per_second)?;
        writeln!(out, "nobody hurt, p99           {:.1} ms", self.unhurt_p99_ms)?;
        writeln!(
            out,
            "one paused, p99            {:.1} ms ({:.2} times that)",
            self.paused_p99_ms,
            self.paused_p99_ms / self.unhurt_p99_ms
        )?;
        writeln!(out, "nobody hurt, silence       {:.0} ms", self.unhurt_silence_ms)?;
        writeln!(out, "one killed, silence        {:.0} ms", self.killed_silence_ms)?;
        write!(out, "second of two dead is back {:.0} ms after its start", self.second_back_ms)
    }
}
