//! From what the store holds to a running driver.
//!
//! Owns the reading of the restored state and the verdict on this host's memory: whether store and
//! witness together still know everything that it ever signed. Called by the daemon once the
//! founding state is known.

use std::sync::Arc;

use dagger_ledger_core::{
    CommitRecord, Core, CoreConfiguration, CoreStatus, EventSigner, Memory, RestoredState,
};
use dagger_payload::committee::Committee;
use dagger_payload::event::{CommitEnd, Event};
use dagger_payload::genesis::Genesis;
use dagger_payload::handover::Founding;
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, Epoch, EventDigest, LedgerTime, Round,
};
use dagger_payload::key::{Domain, SecretKey, Signature};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::commits::Commits;
use super::serve::Servers;
use super::waiting::WaitingLine;
use super::{Driver, Sources};
use crate::delivery::evidence::Evidence;
use crate::delivery::forwarding::Heard as Receipt;
use crate::delivery::handing::Hands;
use crate::exit::StopHandle;
use crate::link::Links;
use crate::link::inspect::KnownEvents;
use crate::seats::Seats;
use crate::store::pool::Pool;
use crate::store::records::{EventKey, Instance, InstanceId, Recorder, Records};
use crate::store::witness::{Signed, Testimony};
use crate::store::writer::WriterHandle;
use crate::store::{Change, StoreError, seats};
use crate::transfer::inbox::Inbox;

/// The epoch in which a cluster is founded.
pub const FIRST_EPOCH: Epoch = Epoch(0);

/// Signs events with the ledger key.
pub struct LedgerSigner(pub Arc<SecretKey>);

impl EventSigner for LedgerSigner {
    fn sign(&self, digest: &EventDigest) -> Signature {
        self.0.sign_in(Domain::Event, digest.as_bytes())
    }
}

/// Whether store and witness together still know everything that this host ever signed.
pub fn memory(
    members: usize,
    instance: InstanceId,
    signed: Option<Signed>,
    testimony: Option<Testimony>,
) -> Memory {
    match (signed, testimony) {
        (Some(signed), Some(seen)) if seen.instance == instance && signed >= seen.signed => {
            Memory::Agrees
        }
        // A cluster of one has nobody to ask: without a trace of an earlier life this is its
        // founding.
        (None, None) if members == 1 => Memory::Agrees,
        (None, Some(seen)) if members == 1 && seen == founding_testimony(instance) => {
            Memory::Agrees
        }
        _ => Memory::Doubtful,
    }
}

/// How far the store says that this host has signed.
fn signed(records: &Records) -> Result<Option<Signed>, StoreError> {
    let handover = records.last_handover()?;
    let epoch = handover.as_ref().map_or(FIRST_EPOCH, |handover| handover.epoch);
    Ok(match (records.own_last()?, handover) {
        (Some(event), _) => Some(Signed { epoch, round: event.header.round }),
        (None, Some(_)) => Some(Signed { epoch, round: Round(0) }),
        (None, None) => None,
    })
}

/// What the witness of a host without peers says before it has signed anything.
fn founding_testimony(instance: InstanceId) -> Testimony {
    Testimony { instance, signed: Signed { epoch: FIRST_EPOCH, round: Round(0) } }
}

/// What the witness must show before anything leaves in this life: power went after the store's
/// last write and before the witness'. What the store holds is shown to peers from now on, and a
/// copy from before it must not pass for the truth. A host without peers, who could not ask
/// anybody about a first event without a testimony, names its store before it makes one.
///
/// # Errors
/// [`StoreError`].
pub fn overdue_testimony(
    records: &Records,
    founders: Committee,
    instance: InstanceId,
    testimony: Option<Testimony>,
) -> Result<Option<Testimony>, StoreError> {
    let behind = |seen: &Testimony, signed| seen.instance == instance && signed > seen.signed;
    Ok(match (signed(records)?, testimony) {
        (Some(signed), Some(seen)) if behind(&seen, signed) => Some(Testimony { instance, signed }),
        (None, None) if founders.members() == 1 => Some(founding_testimony(instance)),
        _ => None,
    })
}

/// What the witness shall say because its operator knows that the store is the newest; none when
/// the store does not know of anything signed.
///
/// # Errors
/// [`StoreError`].
pub fn trusted_testimony(
    records: &Records,
    instance: InstanceId,
) -> Result<Option<Testimony>, StoreError> {
    Ok(signed(records)?.map(|signed| Testimony { instance, signed }))
}

/// Whether `me` is the only member and does not know what it signed: then it may not start.
pub fn is_alone_in_doubt(committee: Committee, me: AuthorIndex, memory: Memory) -> bool {
    committee.members() == 1 && committee.contains(me) && memory == Memory::Doubtful
}

/// What is written when the host of a store goes on with another seat. Payloads of events that it
/// made on the seat before, which nobody may ever order, return to the pool.
///
/// # Errors
/// [`StoreError`].
pub fn new_seat_changes(
    records: &Records,
    founders: Committee,
    before: &Instance,
    author: AuthorIndex,
) -> Result<Vec<Change>, StoreError> {
    let state = restored_state(records, founders, before.id, None)?;
    let own = state.events.iter().filter(|event| event.header.author == before.author);
    let packed: Vec<_> = own.flat_map(|event| &event.payloads).cloned().collect();
    let instance = Instance { author, ..before.clone() };
    Ok(seats::new_seat_changes(&instance, &packed, &Pool::restore(records)?))
}

/// Reads what the core continues from: all but the number above which it asks, which is drawn.
///
/// # Errors
/// [`StoreError`].
pub fn restored_state(
    records: &Records,
    founders: Committee,
    instance: InstanceId,
    testimony: Option<Testimony>,
) -> Result<RestoredState, StoreError> {
    let handover = records.last_handover()?;
    let began = handover.as_ref().map_or(CommitIndex(0), |last| last.founding.end.index);
    let commits = recent_commits(records, began)?;
    let from = commits.last().map_or(Round(1), |commit| commit.floor.next());
    let epoch = handover.as_ref().map_or(FIRST_EPOCH, |handover| handover.epoch);
    Ok(RestoredState {
        events: events_from(records, epoch, from)?,
        commits,
        memory: memory(founders.members(), instance, signed(records)?, testimony),
        own_last: records.own_last()?,
        highest: records.highest()?,
        pool: records.pool()?,
        questions_above: 0,
    })
}

/// What the core is told of the epoch that the store is in.
///
/// # Errors
/// [`StoreError`].
pub fn configuration(
    records: &Records,
    genesis: &Genesis,
    (cluster, me): (ClusterId, AuthorIndex),
    founding: CommitEnd,
) -> Result<CoreConfiguration, StoreError> {
    let handover = records.last_handover()?;
    let first = Founding { end: founding, ledger_time: LedgerTime(0) };
    Ok(CoreConfiguration {
        cluster,
        epoch: handover.as_ref().map_or(FIRST_EPOCH, |last| last.epoch),
        committee: handover.as_ref().map_or(genesis.committee(), |last| last.committee),
        me,
        collection_depth_rounds: genesis.collection_depth_rounds,
        handover_distance_commits: genesis.handover_distance_commits,
        commit_bytes_max: genesis.commit_bytes_max(),
        founding: handover.map_or(first, |last| last.founding),
    })
}

/// The last commit after `began` and all before it whose leader's round is at or above its
/// collection round.
pub(crate) fn recent_commits(
    records: &Records,
    began: CommitIndex,
) -> Result<Vec<CommitRecord>, StoreError> {
    let mut commits = Vec::new();
    let mut next = records.last_commit()?;
    let lowest = next.as_ref().map_or(Round(0), |commit| commit.collection_round);
    while let Some(commit) = next {
        if commit.index <= began || commit.leader.round < lowest {
            break;
        }
        let before = commit.index.0.saturating_sub(1);
        commits.push(commit);
        next = records.commit(CommitIndex(before))?;
    }
    commits.reverse();
    Ok(commits)
}

fn events_from(
    records: &Records,
    epoch: Epoch,
    round: Round,
) -> Result<Vec<Arc<Event>>, StoreError> {
    let mut events = Vec::new();
    let mut next = Some(EventKey::first_of(epoch, round));
    while let Some(from) = next {
        let (page, following) = records.events(from)?;
        events.extend(page);
        next = following;
    }
    Ok(events)
}

/// What a driver is made of.
pub struct Parts {
    /// What never changes.
    pub configuration: CoreConfiguration,
    /// From [`restored_state`].
    pub state: RestoredState,
    /// The ledger key.
    pub key: Arc<SecretKey>,
    /// For stored events.
    pub records: Records,
    /// For writes.
    pub writer: WriterHandle,
    /// Shared with delivery.
    pub pool: Pool,
    /// For sending.
    pub links: Links,
    /// Shared with the links.
    pub known: Arc<KnownEvents>,
    /// Shared with delivery.
    pub commits: Arc<Commits>,
    /// Shared with delivery.
    pub evidence: Arc<Evidence>,
    /// Parts of snapshots from peers.
    pub parts: Inbox,
    /// Payloads that peers hand over.
    pub hands: Hands,
    /// What peers say of payloads that were handed to them.
    pub receipts: mpsc::Sender<Receipt>,
    /// Shared with delivery.
    pub seats: Arc<Seats>,
    /// Read by delivery.
    pub status: watch::Sender<Option<CoreStatus>>,
    /// For what is broken.
    pub stop: StopHandle,
}

/// Starts the driver on its own thread; it ends when `sources.stopping` is cancelled.
///
/// # Errors
/// The thread cannot be started.
pub fn start(
    parts: Parts,
    sources: Sources,
    runtime: Handle,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let Parts {
        configuration,
        state,
        key,
        records,
        writer,
        links,
        known,
        commits,
        evidence,
        parts,
        hands,
        receipts,
        seats,
        status,
        stop,
        pool,
    } = parts;
    for event in &state.events {
        known.remember(event.digest);
        evidence.note(event);
    }
    let recorder = Recorder::new(configuration.me, (configuration.epoch, &state.highest), pool);
    let servers = Servers::new(records, runtime, stop.clone());
    let core = Core::restore(configuration, Box::new(LedgerSigner(key)), state);
    std::thread::Builder::new().name("core".to_owned()).spawn(move || {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime without I/O needs nothing that can fail");
        runtime.block_on(async move {
            let started = Instant::now();
            let driver = Driver {
                core,
                links,
                known,
                recorder,
                writer,
                servers,
                commits,
                evidence,
                parts,
                hands,
                receipts,
                seats,
                status,
                stop,
                started,
                wake_at: started,
                waiting: WaitingLine::default(),
                durable: dagger_ledger_core::WriteNumber(0),
                handed: dagger_ledger_core::WriteNumber(0),
                held: super::Held::default(),
                outputs: Vec::new(),
            };
            driver.run(sources).await;
        });
    })
}
