//! The connection on which commits are judged: kept up, with back-off, for as long as the daemon
//! runs.
//!
//! Owns connecting, finding out where this processor's life stands compared with the store, and
//! learning the founding state. What happens on an open connection is in `judging_session`. Called
//! by the daemon.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dagger_bus::judging::{Open, Opened, Purpose};
use dagger_bus::limits::{JUDGED_KEPT_MAX, OPEN_WAIT_MAX};
use dagger_bus::{BusError, Connection};
use dagger_payload::event::CommitEnd;
use dagger_payload::id::CommitIndex;
use dagger_payload::snapshot::SnapshotHead;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::judging_session::{Keeping, Session};
use super::{Delivery, DeliveryError, snapshots};
use crate::exit::in_words;
use crate::limits::{PROCESSOR_WAIT_MAX, PROCESSOR_WAIT_MIN};
use crate::store::records;

/// Opens a conversation with the processor.
///
/// # Errors
/// [`BusError`]; `ForeignCluster` when it serves another one.
pub(super) async fn open(
    delivery: &Delivery,
    socket: &std::path::Path,
    purpose: Purpose,
) -> Result<(Connection, Opened), BusError> {
    let opening = async {
        let mut connection = Connection::connect(socket).await?;
        let cluster = delivery.cluster;
        connection.sender.send(&Open { cluster, purpose }).await?;
        let opened: Opened = connection.receiver.receive().await?;
        if opened.cluster == cluster {
            Ok((connection, opened))
        } else {
            Err(BusError::ForeignCluster)
        }
    };
    timeout(OPEN_WAIT_MAX, opening).await.map_err(|_| BusError::TimedOut)?
}

/// Waits before trying again, longer each time.
pub(super) struct Patience {
    wait: Duration,
    told: bool,
}

impl Default for Patience {
    fn default() -> Self {
        Self { wait: PROCESSOR_WAIT_MIN, told: false }
    }
}

impl Patience {
    /// Says once why, and waits.
    pub(super) async fn wait(&mut self, what: &str, error: String) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(error, "{what}; it is tried again and again");
        }
        sleep(self.wait).await;
        self.wait = (self.wait * 2).min(PROCESSOR_WAIT_MAX);
    }
}

/// What follows a connection that ended well.
enum Next {
    ComeAgain,
    Begin,
}

/// How a connection is opened.
enum How {
    /// With the life that the processor has.
    AsItStands,
    /// With a new one, from the founding.
    Anew,
    /// With a new one, from a snapshot.
    From(SnapshotHead),
}

/// Whether the processor must begin a new life before it is of use.
enum Standing {
    Continue(CommitIndex),
    Begin,
}

/// Keeps the judge busy until the daemon stops. The founding state is published as soon as it is
/// known.
pub async fn run(
    delivery: Arc<Delivery>,
    socket: PathBuf,
    founding: watch::Sender<Option<CommitEnd>>,
) {
    let mut patience = Patience::default();
    let mut how = How::AsItStands;
    loop {
        let ended = serve(&delivery, &socket, &how, &founding, &mut patience).await;
        how = How::AsItStands;
        match ended {
            Ok(Next::Begin) => {
                let newest = delivery.snapshots.newest();
                tracing::info!(
                    from = newest.as_ref().map_or(0, |head| head.end.index.0),
                    "the processor begins a new life"
                );
                how = newest.map_or(How::Anew, How::From);
            }
            Ok(Next::ComeAgain) => {}
            Err(error) => match delivery.is_fatal(error) {
                Ok(error) => patience.wait("no processor to judge", in_words(&error)).await,
                Err(()) => return,
            },
        }
    }
}

async fn serve(
    delivery: &Arc<Delivery>,
    socket: &std::path::Path,
    how: &How,
    founding: &watch::Sender<Option<CommitEnd>>,
    patience: &mut Patience,
) -> Result<Next, DeliveryError> {
    let purpose = match how {
        How::AsItStands => Purpose::Judgement,
        How::Anew => Purpose::JudgementAnew,
        How::From(_) => Purpose::JudgementFrom,
    };
    let (mut connection, mut opened) = open(delivery, socket, purpose).await?;
    if let How::From(head) = how {
        learn_founding(delivery, &opened, founding).await?;
        match snapshots::hand_in(delivery, &mut connection, head).await? {
            Some(begun) => opened = begun,
            None => return Ok(Next::Begin),
        }
    }
    let through = match (stands(delivery, &opened, how)?, how) {
        (Standing::Continue(through), _) => through,
        (Standing::Begin, How::AsItStands) => return Ok(Next::Begin),
        // Asked for and not done: without this the two would ask each other for ever, without a
        // wait.
        (Standing::Begin, How::Anew | How::From(_)) => return Err(BusError::Malformed.into()),
    };
    learn_founding(delivery, &opened, founding).await?;
    *patience = Patience::default();
    let session = Session::new(delivery.clone(), opened, through, Keeping::Releases)?;
    match session.run(connection).await {
        Err(DeliveryError::OutOfStep { .. }) if matches!(how, How::AsItStands) => Ok(Next::Begin),
        ended => ended.map(|()| Next::ComeAgain),
    }
}

/// Compares the processor's life with the store: up to where all its answers are here.
fn stands(delivery: &Delivery, opened: &Opened, how: &How) -> Result<Standing, DeliveryError> {
    let judged = opened.judged.index;
    let through = match (how, delivery.records.released()?) {
        (How::From(head), _) if head.end.index == judged => judged,
        (_, Some(stored)) if stored.seal_key == opened.seal_key => stored.through,
        _ => CommitIndex(0),
    };
    let kept = u64::try_from(JUDGED_KEPT_MAX).expect("sixty-four");
    let known = *delivery.commits.newest().borrow() >= judged
        && (judged.0 == 0 || delivery.records.founding()?.is_some());
    let near = through <= judged && judged.0 - through.0 <= kept;
    // A processor that has judged nothing is spared the history up to a snapshot.
    let spared = judged.0 == 0 && delivery.snapshots.newest().is_some();
    let begins = matches!(how, How::AsItStands) && spared;
    Ok(if known && near && !begins { Standing::Continue(through) } else { Standing::Begin })
}

async fn learn_founding(
    delivery: &Delivery,
    opened: &Opened,
    founding: &watch::Sender<Option<CommitEnd>>,
) -> Result<(), DeliveryError> {
    let known = match delivery.records.founding()? {
        None => {
            delivery.writer.store(vec![records::judged_change(&opened.judged)]).await?;
            opened.judged
        }
        Some(known) if opened.judged.index.0 == 0 && opened.judged != known => {
            let message = "its founding state is not the one that this host began with; was it \
                           replaced by another version, or the genesis changed?";
            return Err(DeliveryError::Judge(message.to_owned()));
        }
        Some(known) => known,
    };
    founding.send_if_modified(|shown| shown.replace(known).is_none());
    Ok(())
}
