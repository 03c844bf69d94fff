//! Following one host's release stream, as its agent would.
//!
//! Owns the count at the host's delivery cursor, the latencies of the payloads that were offered
//! at this host, and the commit end that the stream leads to. Called by the run, once per host.

use std::time::Instant;

use anyhow::ensure;
use dagger_bus::Connection;
use dagger_bus::ledger::{Consumed, StreamItem};
use dagger_payload::event::CommitEnd;
use dagger_payload::release::CommitRelease;
use tokio::sync::watch;

use super::Measured;
use super::load::Pace;

/// What one host has delivered.
#[derive(Debug)]
pub(super) struct Seen {
    /// Which host.
    pub(super) host: u8,
    /// Payloads in all.
    pub(super) delivered: u64,
    /// Payloads in the measured time.
    pub(super) measured: u64,
    /// Of payloads that were meant to be sent at this host in the measured time: microseconds.
    pub(super) latencies: Vec<u32>,
    /// The last commit end with payloads.
    pub(super) end: Option<CommitEnd>,
}

/// Follows until as many payloads were seen as were received by all hosts together.
pub(super) async fn follow(
    host: u8,
    connection: Connection,
    pace: Pace,
    measured: Measured,
    mut expected: watch::Receiver<Option<u64>>,
) -> anyhow::Result<Seen> {
    let Connection { mut sender, mut receiver } = connection;
    let mut seen = Seen { host, delivered: 0, measured: 0, latencies: Vec::new(), end: None };
    loop {
        if *expected.borrow_and_update() == Some(seen.delivered) {
            return Ok(seen);
        }
        let item: StreamItem = tokio::select! {
            item = receiver.receive() => item?,
            changed = expected.changed() => {
                changed?;
                continue;
            }
        };
        if let StreamItem::Release { sealed } = item {
            seen.take(&sealed.release, &pace, measured)?;
            sender.send(&Consumed { commit: sealed.release.end.index }).await?;
        }
    }
}

impl Seen {
    fn take(
        &mut self,
        release: &CommitRelease,
        pace: &Pace,
        measured: Measured,
    ) -> anyhow::Result<()> {
        let now = Instant::now();
        let count = u64::try_from(release.releases.len()).expect("a count fits");
        self.delivered += count;
        let position = release.end.position.0;
        ensure!(position == self.delivered, "{} delivered up to {position}", self.delivered);
        self.end = Some(release.end);
        if measured.contains(now) {
            self.measured += count;
        }
        let mut own = 0;
        for released in &release.releases {
            let Some((intended, age)) = pace.age(&released.ordered.payload.bytes, now) else {
                continue;
            };
            own += 1;
            if measured.contains(intended) {
                self.latencies.push(u32::try_from(age.as_micros()).unwrap_or(u32::MAX));
            }
        }
        pace.done(own);
        Ok(())
    }
}
