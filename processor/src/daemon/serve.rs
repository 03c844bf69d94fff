//! The conversations: admissions and judgement with the ledger, the seal key for the agent.
//!
//! Owns who is answered when. Judgement is strictly in order on one connection; admissions and
//! proofs may overtake each other. Never decides: the court does. Called by the daemon for each
//! accepted connection.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use dagger_bus::judging::{
    Admission, AdmissionOutcome, Admit, Asked, Judge, Judged, Open, Purpose, Restore, Restored,
    Then,
};
use dagger_bus::limits::{CONNECTIONS_MAX, OPEN_WAIT_MAX, PROOFS_WAITING_MAX};
use dagger_bus::{BusError, Connection};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::court::Court;
use super::pool::Pool;
use super::proofs::Proving;
use crate::judge::snapshot::SnapshotError;
use crate::limits::{ACCEPT_PAUSE, CHUNKS_AHEAD_MAX};

type SharedCourt = Rc<RefCell<Court>>;

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error("the ledger sent a commit that contradicts what was judged")]
    Contradiction(#[from] crate::judge::CommitError),
    #[error("no new life could be begun")]
    NoLife(#[source] anyhow::Error),
    #[error("the ledger's snapshot is none")]
    FalseSnapshot(#[source] SnapshotError),
    #[error("another conversation went on judging, or the state is too large to be written down")]
    NoSnapshot,
}

pub(super) async fn accept_ledgers(listener: UnixListener, court: SharedCourt, pool: Pool) {
    accept(listener, |stream| {
        let (court, pool) = (court.clone(), pool.clone());
        async move { talk_to_ledger(Connection::new(stream), &court, &pool).await }
    })
    .await;
}

pub(super) async fn accept_agents(listener: UnixListener, court: SharedCourt) {
    accept(listener, |stream| {
        let court = court.clone();
        async move { hand_over_key(Connection::new(stream), &court).await }
    })
    .await;
}

async fn accept<F, T>(listener: UnixListener, talk: F)
where
    F: Fn(UnixStream) -> T,
    T: Future<Output = Result<(), Ended>> + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(stream) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Over the limit a connection is closed at once: its owner comes again.
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let conversation = talk(stream.0);
        tokio::task::spawn_local(async move {
            match conversation.await {
                Ok(()) | Err(Ended::Bus(BusError::Closed)) => {}
                Err(ended) => tracing::warn!(error = %ended, "a conversation ended"),
            }
            drop(place);
        });
    }
}

async fn talk_to_ledger(
    mut connection: Connection,
    court: &SharedCourt,
    pool: &Pool,
) -> Result<(), Ended> {
    let open = timeout(OPEN_WAIT_MAX, connection.receiver.receive::<Open>());
    let open = open.await.map_err(|_| BusError::TimedOut)??;
    if open.purpose == Purpose::JudgementAnew && open.cluster == court.borrow().cluster() {
        tracing::info!("the ledger asks for a new life of the judge");
        court.borrow_mut().reopen().map_err(Ended::NoLife)?;
    }
    let opened = court.borrow().opened();
    connection.sender.send(&opened).await?;
    if open.cluster != opened.cluster {
        return Err(BusError::ForeignCluster.into());
    }
    let mut life = court.borrow().life();
    if open.purpose == Purpose::JudgementFrom {
        restore(&mut connection, court, pool).await?;
        life = court.borrow().life();
        let opened = Box::new(court.borrow().opened());
        life.mark_unchanged();
        connection.sender.send(&Restored::Done { opened }).await?;
    } else if court.borrow().seal_key().key != opened.seal_key {
        return Ok(()); // another life has begun while this one was greeted
    }
    let conversation = async {
        match open.purpose {
            Purpose::Admissions => admit(connection, court, pool).await,
            Purpose::Judgement | Purpose::JudgementAnew | Purpose::JudgementFrom => {
                judge(connection, court, pool).await
            }
        }
    };
    tokio::select! {
        ended = conversation => ended,
        _ = life.changed() => Ok(()),
    }
}

async fn admit(mut connection: Connection, court: &SharedCourt, pool: &Pool) -> Result<(), Ended> {
    let (late, mut arriving) = mpsc::channel(PROOFS_WAITING_MAX);
    loop {
        let received = tokio::select! {
            received = connection.receiver.receive() => received,
            Some(admission) = arriving.recv() => {
                connection.sender.send::<Admission>(&admission).await?;
                continue;
            }
        };
        let Admit { id, asked, now } = received?;
        let outcome = match asked {
            Asked::Pack { payload } => {
                let verified = pool.verify(vec![payload]).await;
                let verified = verified.first().expect("one payload, one answer");
                court.borrow().admit(verified, now)
            }
            Asked::Predict { document } => court.borrow().predict(&document, now),
            Asked::Prove { subject, at } => match court.borrow_mut().prove(subject, at) {
                Proving::Done(outcome) => outcome,
                Proving::Waits(answered) => {
                    // The court bounds how many of these there are at a time.
                    let late = late.clone();
                    tokio::task::spawn_local(async move {
                        let outcome = answered.await.unwrap_or(AdmissionOutcome::NotProven);
                        // The conversation may be over.
                        let _ = late.send(Admission { id, outcome }).await;
                    });
                    continue;
                }
            },
        };
        connection.sender.send(&Admission { id, outcome }).await?;
    }
}

async fn judge(mut connection: Connection, court: &SharedCourt, pool: &Pool) -> Result<(), Ended> {
    loop {
        let Judge { commit, then } = connection.receiver.receive().await?;
        let payloads = commit.payloads.iter().map(|ordered| ordered.payload.clone()).collect();
        let verified = pool.verify(payloads).await;
        let judged = court.borrow_mut().judge(commit, &verified)?;
        connection.sender.send(&judged).await?;
        if then == Then::Snapshot && matches!(judged, Judged::Done { .. }) {
            write_down(&mut connection, court).await?;
        }
    }
}

/// Sends a snapshot of the state. Nothing is judged meanwhile, but everything is admitted as
/// always.
async fn write_down(connection: &mut Connection, court: &SharedCourt) -> Result<(), Ended> {
    let mut making = court.borrow().snapshot();
    loop {
        let part = court.borrow().snapshot_part(&mut making);
        let Some(part) = part else { break };
        connection.sender.send(&part).await?;
    }
    let head = court.borrow().snapshot_head(making).ok_or(Ended::NoSnapshot)?;
    connection.sender.send(&Judged::Snapshot { head }).await?;
    Ok(())
}

/// Takes in a whole snapshot and begins a new life with it. Chunks are read by the pool, ahead of
/// the one that is taken in.
async fn restore(
    connection: &mut Connection,
    court: &SharedCourt,
    pool: &Pool,
) -> Result<(), Ended> {
    let Restore::Head { head } = connection.receiver.receive().await? else {
        return Err(BusError::Malformed.into());
    };
    tracing::info!(commit = %head.end.index, bytes = head.bytes, "a snapshot is read");
    let mut restoring = court.borrow().restoring(head);
    let mut taken = Ok(());
    let (mut left, mut ahead) = (restoring.left(), VecDeque::new());
    while taken.is_ok() && (left > 0 || !ahead.is_empty()) {
        if left > 0 && ahead.len() < CHUNKS_AHEAD_MAX {
            let Restore::Chunk { bytes } = connection.receiver.receive().await? else {
                return Err(BusError::Malformed.into());
            };
            ahead.push_back(pool.read(bytes).await);
            left -= 1;
        } else if let Some(reading) = ahead.pop_front() {
            taken = reading.done().await.and_then(|chunk| restoring.take_read(chunk));
        }
    }
    match taken.and_then(|()| restoring.finish()) {
        Ok(judge) => court.borrow_mut().reopen_from(judge).map_err(Ended::NoLife),
        Err(error) => {
            let why = error.to_string();
            connection.sender.send(&Restored::Refused { why }).await?;
            Err(Ended::FalseSnapshot(error))
        }
    }
}

/// Sends the key, and keeps the connection open until this life or the agent ends.
async fn hand_over_key(mut connection: Connection, court: &SharedCourt) -> Result<(), Ended> {
    let (key, mut life) = {
        let court = court.borrow();
        (court.seal_key(), court.life())
    };
    life.mark_unchanged();
    connection.sender.send(&key).await?;
    tokio::select! {
        ended = connection.receiver.receive::<u8>() => ended.map(|_| ()).map_err(Ended::Bus),
        _ = life.changed() => Ok(()),
    }
}
