//! Keeps the processor's seal key: asked for over a socket that the ledger cannot open, valid while
//! that connection lives.
//!
//! Called once by the daemon; the release stream reads the key.

use std::path::PathBuf;

use dagger_bus::limits::OPEN_WAIT_MAX;
use dagger_bus::seal::SealKey;
use dagger_bus::{BusError, Connection};
use dagger_payload::id::ClusterId;
use dagger_payload::key::PublicKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Pauses;

/// The seal key, or why there is none.
pub type SealState = Result<PublicKey, String>;

/// Publishes the seal key to `state` until `stop`: connects, keeps the connection, and begins again
/// when it ends.
pub async fn keep(
    path: PathBuf,
    cluster: ClusterId,
    state: watch::Sender<SealState>,
    stop: CancellationToken,
) {
    let mut pauses = Pauses::new();
    let work = async {
        loop {
            let error = match hold_one(&path, &cluster, &state, &mut pauses).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            let had_key = state.borrow().is_ok();
            if had_key {
                warn!(%error, "the processor is gone, and its seal key with it");
            }
            let _ = state.send_replace(Err(format!("the processor cannot be reached: {error}")));
            tokio::time::sleep(pauses.next()).await;
        }
    };
    stop.run_until_cancelled(work).await;
}

async fn hold_one(
    path: &std::path::Path,
    cluster: &ClusterId,
    state: &watch::Sender<SealState>,
    pauses: &mut Pauses,
) -> Result<std::convert::Infallible, BusError> {
    let mut connection = Connection::connect(path).await?;
    let first = connection.receiver.receive::<SealKey>();
    let first = tokio::time::timeout(OPEN_WAIT_MAX, first).await;
    let seal = first.map_err(|_| BusError::TimedOut)??;
    if seal.cluster != *cluster {
        return Err(BusError::ForeignCluster);
    }
    info!(key = %seal.key.fingerprint(), "the processor seals releases with this key");
    let _ = state.send_replace(Ok(seal.key));
    pauses.reset();
    // Nothing more is ever sent: this ends when the processor does.
    match connection.receiver.receive::<SealKey>().await {
        Ok(_) => Err(BusError::Malformed),
        Err(error) => Err(error),
    }
}
