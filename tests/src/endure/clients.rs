//! What users and an agent of one host would do: submit payloads, and follow the release stream;
//! again and again, whatever becomes of the ledger.
//!
//! Owns what they were told: which payloads were acknowledged, and what was delivered in which
//! order. A delivery that is not the next one is an error at once. Called by the runs, once per
//! host.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use dagger_bus::Connection;
use dagger_bus::ledger::{Answer, Call, Consumed, Request, Response, StreamItem};
use dagger_payload::id::{CommitIndex, PayloadDigest};
use dagger_payload::key::Signature;
use dagger_payload::payload::{SignatureKind, SignedPayload};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use crate::ledgers::Ledgers;

/// Before connecting again.
const AGAIN_AFTER: Duration = Duration::from_millis(20);
/// Bytes of a payload.
const PAYLOAD_BYTES: usize = 256;

/// What the clients of one host have seen.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Payloads that the ledger said it keeps.
    pub(super) acknowledged: Vec<PayloadDigest>,
    /// Payloads that it could not take.
    pub(super) turned_away: u64,
    /// Payloads of which nobody knows: the connection ended before the answer.
    pub(super) unanswered: u64,
    /// Payloads in the order of their delivery.
    pub(super) delivered: Vec<PayloadDigest>,
    /// Of own payloads: when they were meant to be sent, and when they were delivered.
    pub(super) times: Vec<(Instant, Instant)>,
    under_way: HashMap<PayloadDigest, Instant>,
    after: CommitIndex,
}

impl Told {
    /// When the payloads that were not delivered so far were meant to be sent.
    pub(super) fn open(&self) -> impl Iterator<Item = Instant> {
        self.under_way.values().copied()
    }
}

/// The clients of all hosts.
pub(super) struct Clients {
    told: Vec<Arc<Mutex<Told>>>,
    tasks: JoinSet<anyhow::Result<()>>,
    submitting: watch::Sender<Offering>,
}

/// Whether payloads are submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offering {
    On,
    Off,
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clients {
    /// Starts clients of all hosts, which submit `per_second` payloads at each.
    pub(super) fn start(ledgers: &Arc<Ledgers>, per_second: u32) -> Self {
        let (submitting, offering) = watch::channel(Offering::On);
        let mut clients = Self { told: Vec::new(), tasks: JoinSet::new(), submitting };
        for host in ledgers.hosts() {
            let told = Arc::new(Mutex::new(Told::default()));
            clients.told.push(told.clone());
            clients.tasks.spawn(follow(ledgers.clone(), host, told.clone()));
            let every = Duration::from_secs(1) / per_second.max(1);
            clients.tasks.spawn(submit(ledgers.clone(), host, every, told, offering.clone()));
        }
        clients
    }

    /// Nothing more is submitted.
    pub(super) fn stop_submitting(&self) {
        self.submitting.send_replace(Offering::Off);
    }

    /// What the clients of `host` have seen so far.
    pub(super) fn told(&self, host: u8) -> MutexGuard<'_, Told> {
        lock(&self.told[usize::from(host)])
    }

    /// Fails if a client has found something wrong.
    pub(super) async fn check(&mut self) -> anyhow::Result<()> {
        match self.tasks.try_join_next() {
            Some(ended) => ended.context("a client died")?,
            None => Ok(()),
        }
    }
}

async fn submit(
    ledgers: Arc<Ledgers>,
    host: u8,
    every: Duration,
    told: Arc<Mutex<Told>>,
    mut offering: watch::Receiver<Offering>,
) -> anyhow::Result<()> {
    let mut number = 0;
    loop {
        let session = async {
            if let Ok(connection) = ledgers.requests(host).await {
                submit_over(connection, host, &mut number, every, &told).await;
            }
            sleep(AGAIN_AFTER).await;
        };
        tokio::select! {
            () = session => {}
            _ = offering.wait_for(|offering| *offering == Offering::Off) => break,
        }
    }
    // Followers go on; a task that ends is one that failed.
    std::future::pending().await
}

fn payload(host: u8, number: u64) -> SignedPayload {
    let mut bytes = vec![host; PAYLOAD_BYTES];
    bytes[1..9].copy_from_slice(&number.to_be_bytes());
    SignedPayload {
        signature_kind: SignatureKind::SshEd25519,
        // In mode `opaque` nobody looks at it.
        signature: Signature([7; 64]),
        bytes: bytes.into(),
    }
}

/// Submits at given times until the connection ends.
async fn submit_over(
    connection: Connection,
    host: u8,
    number: &mut u64,
    every: Duration,
    told: &Mutex<Told>,
) {
    let Connection { mut sender, mut receiver } = connection;
    let asked = Mutex::new(HashMap::new());
    let sending = async {
        let mut due = Instant::now();
        loop {
            sleep_until(due.into()).await;
            let payload = payload(host, *number);
            let digest = payload.digest();
            asked.lock().unwrap_or_else(PoisonError::into_inner).insert(*number, digest);
            lock(told).under_way.insert(digest, due);
            let request = Request { id: *number, call: Call::Submit { payload } };
            *number += 1;
            if sender.send(&request).await.is_err() {
                return;
            }
            due += every;
        }
    };
    let answers = async {
        while let Ok(response) = receiver.receive::<Response>().await {
            let digest = asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&response.id);
            let mut told = lock(told);
            match (digest, response.answer) {
                (Some(digest), Answer::Receipt { .. }) => told.acknowledged.push(digest),
                _ => told.turned_away += 1,
            }
        }
    };
    tokio::select! {
        () = sending => {}
        () = answers => {}
    }
    let left = asked.into_inner().unwrap_or_else(PoisonError::into_inner).len();
    lock(told).unanswered += u64::try_from(left).expect("a count fits");
}

/// Follows the stream from where it ended the last time, for ever.
async fn follow(ledgers: Arc<Ledgers>, host: u8, told: Arc<Mutex<Told>>) -> anyhow::Result<()> {
    loop {
        let after = lock(&told).after;
        if let Ok(connection) = ledgers.stream(host, after).await {
            follow_over(connection, host, &told).await?;
        }
        sleep(AGAIN_AFTER).await;
    }
}

/// Follows until the connection ends.
async fn follow_over(connection: Connection, host: u8, told: &Mutex<Told>) -> anyhow::Result<()> {
    let Connection { mut sender, mut receiver } = connection;
    while let Ok(item) = receiver.receive::<StreamItem>().await {
        let StreamItem::Release { sealed } = item else {
            continue;
        };
        let (release, now) = (sealed.release, Instant::now());
        {
            let mut told = lock(told);
            ensure!(release.end.index > told.after, "host{}: a commit came again", host + 1);
            told.after = release.end.index;
            for released in release.releases {
                told.delivered.push(released.digest);
                let position = u64::try_from(told.delivered.len()).expect("a count fits");
                ensure!(released.position.0 == position, "host{}: a gap at {position}", host + 1);
                if let Some(intended) = told.under_way.remove(&released.digest) {
                    told.times.push((intended, now));
                }
            }
        }
        if sender.send(&Consumed { commit: release.end.index }).await.is_err() {
            break;
        }
    }
    Ok(())
}
