//! Offering payloads to one ledger: at given times (open loop), or as room is made (closed loop).
//!
//! Owns the payloads' bytes, which say who offered them and when they were meant to be sent, and
//! the counting of answers. When a ledger takes less than it is offered, sending falls behind, and
//! the wait counts: latency begins at the intended time. Called by the run, once per host.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use dagger_bus::Connection;
use dagger_bus::connection::{Receiver, Sender};
use dagger_bus::ledger::{Answer, Call, Request, Response};
use dagger_payload::key::Signature;
use dagger_payload::payload::{SignatureKind, SignedPayload};
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::time::sleep_until;

use super::{Demand, Measured, Plan};

/// Payloads that are sent with one flush at most.
const PER_FLUSH_MAX: u64 = 256;
/// What a payload begins with: host, number, intended time.
pub(super) const HEAD_BYTES: usize = 1 + 8 + 8;

/// When payloads are meant to be sent, and their times as nanoseconds since the run began.
#[derive(Clone)]
pub(super) struct Pace {
    begin: Instant,
    until: Instant,
    demand: Demand,
    hosts: u32,
    host: u8,
    /// Of a closed loop: how many more may be on their way.
    room: Arc<Semaphore>,
}

impl Pace {
    pub(super) fn new(plan: &Plan, host: u8, begin: Instant, measured: Measured) -> Self {
        let window = match plan.demand {
            Demand::PerSecond(_) => 0,
            Demand::Max { window } => usize::try_from(window).expect("32 bits fit"),
        };
        let room = Arc::new(Semaphore::new(window));
        let hosts = u32::from(plan.hosts);
        Self { begin, until: measured.until, demand: plan.demand, hosts, host, room }
    }

    /// When payload `number` of this host is meant to be sent, at `per_second` in all.
    fn intended(&self, number: u64, per_second: u32) -> Instant {
        let in_all = number * u64::from(self.hosts) + u64::from(self.host);
        let nanoseconds = u128::from(in_all) * 1_000_000_000 / u128::from(per_second);
        self.begin + Duration::from_nanos(u64::try_from(nanoseconds).expect("centuries"))
    }

    /// A payload of this host has been delivered, or was not taken.
    pub(super) fn done(&self, count: usize) {
        self.room.add_permits(count);
    }

    /// How long ago a payload of this host, delivered now, was meant to be sent, and when.
    pub(super) fn age(&self, payload: &[u8], now: Instant) -> Option<(Instant, Duration)> {
        let head = payload.get(..HEAD_BYTES)?;
        let intended = u64::from_be_bytes(head[9..].try_into().ok()?);
        let intended = self.begin + Duration::from_nanos(intended);
        (head[0] == self.host).then(|| (intended, now.saturating_duration_since(intended)))
    }
}

/// What was offered at one host.
#[derive(Debug, Default)]
pub(super) struct Offered {
    /// In the measured time.
    pub(super) measured: u64,
    /// Acknowledged as durable, in all.
    pub(super) received: u64,
    /// Answered "not now" or refused, in all.
    pub(super) turned_away: u64,
}

/// Offers payloads at one host.
pub(super) struct Offerer {
    pace: Pace,
    measured: Measured,
    /// Random bytes, of which each payload's head is overwritten.
    template: Vec<u8>,
    number: u64,
    offered: u64,
}

impl Offerer {
    pub(super) fn new(host: u8, payload_bytes: usize, pace: Pace, measured: Measured) -> Self {
        let mut template = vec![0; payload_bytes.max(HEAD_BYTES)];
        blake3::Hasher::new().update(&[host]).finalize_xof().fill(&mut template);
        template[0] = host;
        Self { pace, measured, template, number: 0, offered: 0 }
    }

    /// Offers until the measured time is over, and waits for all answers.
    pub(super) async fn run(mut self, connection: Connection) -> anyhow::Result<Offered> {
        let Connection { mut sender, receiver } = connection;
        let (sent, asked) = watch::channel(None);
        let answers = tokio::spawn(count_answers(receiver, self.pace.clone(), asked));
        let sending = async {
            match self.pace.demand {
                Demand::PerSecond(rate) => self.offer_in_time(&mut sender, rate).await,
                Demand::Max { .. } => self.offer_as_room_is_made(&mut sender).await,
            }
        };
        sending.await?;
        sent.send_replace(Some(self.number));
        let offered = answers.await.context("the task that reads answers died")??;
        Ok(Offered { measured: self.offered, ..offered })
    }

    async fn offer_in_time(&mut self, sender: &mut Sender, rate: u32) -> anyhow::Result<()> {
        loop {
            let intended = self.pace.intended(self.number, rate);
            if intended >= self.pace.until {
                return Ok(());
            }
            sleep_until(intended.into()).await;
            let now = Instant::now();
            for _ in 0..PER_FLUSH_MAX {
                let intended = self.pace.intended(self.number, rate);
                if intended > now || intended >= self.pace.until {
                    break;
                }
                self.feed(sender, intended).await?;
            }
            sender.flush().await?;
        }
    }

    async fn offer_as_room_is_made(&mut self, sender: &mut Sender) -> anyhow::Result<()> {
        let room = self.pace.room.clone();
        loop {
            let ended = sleep_until(self.pace.until.into());
            let first = tokio::select! {
                () = ended => return Ok(()),
                first = room.acquire() => first?,
            };
            first.forget();
            self.feed(sender, Instant::now()).await?;
            for _ in 1..PER_FLUSH_MAX {
                let Ok(more) = room.try_acquire() else {
                    break;
                };
                more.forget();
                self.feed(sender, Instant::now()).await?;
            }
            sender.flush().await?;
        }
    }

    async fn feed(&mut self, sender: &mut Sender, intended: Instant) -> anyhow::Result<()> {
        let since = intended.saturating_duration_since(self.pace.begin).as_nanos();
        let since = u64::try_from(since).expect("centuries");
        self.template[1..9].copy_from_slice(&self.number.to_be_bytes());
        self.template[9..HEAD_BYTES].copy_from_slice(&since.to_be_bytes());
        let payload = SignedPayload {
            signature_kind: SignatureKind::SshEd25519,
            // In mode `opaque` nobody looks at it.
            signature: Signature([7; 64]),
            bytes: Bytes::copy_from_slice(&self.template).into(),
        };
        self.number += 1;
        self.offered += u64::from(self.measured.contains(intended));
        let request = Request { id: self.number, call: Call::Submit { payload } };
        Ok(sender.feed(&request).await?)
    }
}

/// Counts answers until as many came as were `asked` for.
async fn count_answers(
    mut receiver: Receiver,
    pace: Pace,
    mut asked: watch::Receiver<Option<u64>>,
) -> anyhow::Result<Offered> {
    let mut offered = Offered::default();
    loop {
        let answered = offered.received + offered.turned_away;
        if *asked.borrow_and_update() == Some(answered) {
            return Ok(offered);
        }
        let response: Response = tokio::select! {
            response = receiver.receive() => response?,
            changed = asked.changed() => {
                changed?;
                continue;
            }
        };
        match response.answer {
            Answer::Receipt { .. } => offered.received += 1,
            Answer::Refused { .. } | Answer::Unavailable { .. } => {
                offered.turned_away += 1;
                pace.done(1);
            }
            other => bail!("no answer to a submission: {other:?}"),
        }
    }
}
