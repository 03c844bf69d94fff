//! What users of the other hosts notice when one host hangs, dies, or is the second to be away.
//!
//! Owns the three measurements and what they may be at most. Each is taken beside the same cluster
//! unhurt, so that the machine's own speed falls out. Called by the program `endure`.

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

/// One paused host may make the slowest of a hundred payloads elsewhere so many times as slow,
/// beyond what the same run shows to be noise.
const PAUSED_TIMES_MAX: f64 = 2.0;
/// One killed host may silence the others for so long, in milliseconds.
const KILLED_SILENCE_MS_MAX: f64 = 500.0;
/// From the start of the second of two dead hosts, its process, its store and its links included,
/// the cluster goes on within this, in milliseconds.
const SECOND_BACK_MS_MAX: f64 = 3_000.0;
/// Into so many parts the time is cut in which nobody is hurt; how far their figures lie apart is
/// noise.
const PARTS: u32 = 4;

/// What was measured; times in milliseconds, of payloads that were submitted at hosts which were
/// not hurt.
#[derive(Debug, Clone, Serialize)]
pub struct Outages {
    /// Payloads a second at all hosts together.
    pub per_second: u32,
    /// The slowest of a hundred, with nobody hurt.
    pub unhurt_p99_ms: f64,
    /// How far this figure moves by itself: the greatest less the smallest of the four quarters of
    /// the time in which nobody is hurt.
    pub noise_ms: f64,
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
        noise_ms: noise(&clients, unhurt, paused),
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

/// How far the figure of unhurt hosts moves from one part of the time to the next.
fn noise(clients: &Clients, from: Instant, until: Instant) -> f64 {
    let part = (until - from) / PARTS;
    let parts = (0..PARTS).map(|number| {
        let begin = from + part * number;
        p99(clients, 0..3, begin, begin + part)
    });
    let (least, most) = parts
        .fold((f64::INFINITY, 0.0_f64), |(least, most), each| (least.min(each), most.max(each)));
    most - least
}

impl Outages {
    /// What is worse than it may be, in words; nothing when all is well.
    pub fn missed(&self) -> Vec<String> {
        let paused_max = self.unhurt_p99_ms * PAUSED_TIMES_MAX + self.noise_ms;
        let judged = [
            ("one paused, p99", self.paused_p99_ms, paused_max),
            ("one killed, silence", self.killed_silence_ms, KILLED_SILENCE_MS_MAX),
            ("second of two dead, back", self.second_back_ms, SECOND_BACK_MS_MAX),
        ];
        let missed = judged.into_iter().filter(|(_, measured, most)| measured > most);
        missed
            .map(|(what, measured, most)| {
                format!("{what}: {measured:.1} ms, at most {most:.1} ms are allowed")
            })
            .collect()
    }
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
        writeln!(out, "its noise                  {:.1} ms", self.noise_ms)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_threshold_is_missed_by_itself_and_noise_is_allowed_for() {
        let well = Outages {
            per_second: 1000,
            unhurt_p99_ms: 20.0,
            noise_ms: 5.0,
            paused_p99_ms: 45.0,
            unhurt_silence_ms: 30.0,
            killed_silence_ms: 500.0,
            second_back_ms: 3000.0,
        };
        assert!(well.missed().is_empty(), "{:?}", well.missed());
        let slow = Outages { paused_p99_ms: 45.1, ..well.clone() };
        let silent = Outages { killed_silence_ms: 500.1, ..well.clone() };
        let late = Outages { second_back_ms: f64::INFINITY, ..well };
        for (outages, what) in [(slow, "paused"), (silent, "killed"), (late, "second")] {
            let missed = outages.missed();
            assert!(missed.len() == 1 && missed[0].contains(what), "{missed:?}");
        }
    }
}
