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
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::judging_session::{Keeping, Session};
use super::{Delivery, DeliveryError, beginning, snapshots};
use crate::exit::in_words;
use crate::limits::{PROCESSOR_WAIT_MAX, PROCESSOR_WAIT_MIN};
use crate::store::pruning::Pruned;
use crate::store::records;
use crate::store::snapshots::{Kept, Source};
use crate::transfer::{Fetched, Outcome};

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
    /// From another host's snapshot.
    Take(Box<Fetched>),
}

/// How a connection is opened.
enum How {
    /// With the life that the processor has.
    AsItStands,
    /// With a new one, from the founding.
    Anew,
    /// With a new one, from a snapshot.
    From(Kept),
    /// With a new one, from another host's snapshot.
    Fetched(Box<Fetched>),
}

impl How {
    /// The snapshot.
    fn snapshot(&self) -> Option<Kept> {
        match self {
            Self::AsItStands | Self::Anew => None,
            Self::From(kept) => Some(kept.clone()),
            Self::Fetched(fetched) => {
                Some(Kept { head: fetched.offer.head.clone(), source: Source::Fetched })
            }
        }
    }
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
    mut fetched: mpsc::Receiver<Fetched>,
) {
    let mut patience = Patience::default();
    let mut how = How::AsItStands;
    loop {
        // Whatever a connection was about when it is given up, the store knows.
        let ended = tokio::select! {
            ended = serve(&delivery, &socket, &how, &founding, &mut patience) => ended,
            Some(fetched) = fetched.recv() => Ok(take(&delivery, fetched)),
        };
        how = How::AsItStands;
        match ended {
            Ok(Next::Take(fetched)) => how = How::Fetched(fetched),
            Ok(Next::Begin) => {
                let newest = delivery.snapshots.newest();
                if newest.is_none() && has_no_beginning(&delivery) {
                    return;
                }
                tracing::info!(
                    from = newest.as_ref().map_or(0, |kept| kept.head.end.index.0),
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

/// Takes a snapshot that took its time to be fetched, if it is still ahead of what is here: to go
/// back to an older one would need what was ordered since, which may be pruned by now.
fn take(delivery: &Delivery, fetched: Fetched) -> Next {
    if fetched.offer.head.end.index > *delivery.commits.newest().borrow() {
        return Next::Take(Box::new(fetched));
    }
    // Who fetched it waits for this one answer.
    let _ = fetched.outcome.try_send(Outcome::NotAhead);
    Next::ComeAgain
}

/// Whether the history cannot be judged from the founding on; then the daemon stops.
fn has_no_beginning(delivery: &Delivery) -> bool {
    let pruned = delivery.records.pruned().map_err(DeliveryError::from);
    match pruned {
        Ok(pruned) if pruned == Pruned::default() => false,
        Ok(_) => delivery.is_fatal(DeliveryError::NoBeginning).is_err(),
        Err(error) => delivery.is_fatal(error).is_err(),
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
        How::From(_) | How::Fetched(_) => Purpose::JudgementFrom,
    };
    let (mut connection, mut opened) = open(delivery, socket, purpose).await?;
    if let Some(kept) = how.snapshot() {
        learn_founding(delivery, &opened, founding).await?;
        let begun = snapshots::hand_in(delivery, &mut connection, &kept).await?;
        let refused = begun.is_none();
        opened = begun.unwrap_or(opened);
        if let How::Fetched(fetched) = how {
            let outcome = match refused {
                true => Outcome::FalseSnapshot,
                false => beginning::settle(delivery, &opened, fetched).await?,
            };
            // Who fetched it waits for this one answer.
            let _ = fetched.outcome.try_send(outcome);
            if outcome != Outcome::Begun {
                return Ok(Next::ComeAgain);
            }
        } else if refused {
            return Ok(Next::Begin);
        }
    }
    let through = match (stands(delivery, &opened, how)?, how) {
        (Standing::Continue(through), _) => through,
        (Standing::Begin, How::AsItStands) => return Ok(Next::Begin),
        // Asked for and not done: without this the two would ask each other for ever, without a
        // wait.
        (Standing::Begin, How::Anew | How::From(_) | How::Fetched(_)) => {
            return Err(BusError::Malformed.into());
        }
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
    let through = match (how.snapshot(), delivery.records.released()?) {
        (Some(kept), _) if kept.head.end.index == judged => judged,
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
