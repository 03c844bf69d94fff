//! The socket that the agent connects to.
//!
//! Owns accepting, the first message, and the bounds on connections and requests under way.
//! Requests that came together are answered together, all others (and proofs) in any order; release
//! streams run in `stream`. Called by the daemon.

use std::sync::Arc;

use dagger_bus::ledger::{Call, Open, Opened, Purpose, Request, Response};
use dagger_bus::limits::{CONNECTIONS_MAX, OPEN_WAIT_MAX, REQUESTS_UNDER_WAY_MAX};
use dagger_bus::{BusError, Connection};
use dagger_payload::id::HostId;
use futures_util::FutureExt;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};

use super::{Delivery, requests, stream};
use crate::limits::{PROCESSOR_WAIT_MIN, REQUESTS_TOGETHER_MAX};

/// Serves agents until the daemon stops.
pub async fn serve(delivery: Arc<Delivery>, listener: UnixListener) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let delivery = delivery.clone();
                tokio::spawn(async move {
                    let ended = converse(&delivery, Connection::new(stream)).await;
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a conversation with the agent ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept the agent's connection");
                sleep(PROCESSOR_WAIT_MIN).await;
            }
        }
    }
}

async fn converse(delivery: &Arc<Delivery>, mut connection: Connection) -> Result<(), BusError> {
    let opening = connection.receiver.receive::<Open>();
    let open = timeout(OPEN_WAIT_MAX, opening).await.map_err(|_| BusError::TimedOut)??;
    let host = delivery.seats.now().seat(delivery.me).map_or(HostId::ZERO, |seat| seat.host);
    let cluster = delivery.cluster;
    connection.sender.send(&Opened { cluster, host }).await?;
    if open.cluster != cluster {
        return Err(BusError::ForeignCluster);
    }
    match open.purpose {
        Purpose::Requests {} => serve_requests(delivery, connection).await,
        Purpose::Releases { after, window } => {
            stream::serve(delivery, connection, after, window).await
        }
    }
}

async fn serve_requests(delivery: &Arc<Delivery>, connection: Connection) -> Result<(), BusError> {
    let Connection { mut sender, mut receiver } = connection;
    let (answered, mut answers) = mpsc::channel::<Vec<Response>>(REQUESTS_UNDER_WAY_MAX);
    let under_way = Arc::new(Semaphore::new(REQUESTS_UNDER_WAY_MAX));
    let answering = async {
        while let Some(mut responses) = answers.recv().await {
            while let Ok(mut more) = answers.try_recv() {
                responses.append(&mut more);
            }
            for response in responses {
                sender.feed(&response).await?;
            }
            sender.flush().await?;
        }
        Ok(())
    };
    let receiving = async {
        loop {
            let Ok(mut permits) = under_way.clone().acquire_owned().await else {
                return Ok(());
            };
            let mut together: Vec<Request> = vec![receiver.receive().await?];
            while together.len() < REQUESTS_TOGETHER_MAX
                && let Ok(permit) = under_way.clone().try_acquire_owned()
                && let Some(request) = receiver.receive().now_or_never()
            {
                together.push(request?);
                permits.merge(permit);
            }
            // Proofs wait until others attest something: nobody else waits with them.
            let waits = |request: &mut Request| matches!(request.call, Call::Prove { .. });
            let alone: Vec<Request> = together.extract_if(.., waits).collect();
            let groups = alone.into_iter().map(|request| vec![request]).chain([together]);
            for group in groups.filter(|group| !group.is_empty()) {
                let permit = permits.split(group.len());
                let (delivery, answered) = (delivery.clone(), answered.clone());
                tokio::spawn(async move {
                    let responses = requests::answer_all(&delivery, group).await;
                    // The agent may have gone away meanwhile.
                    let _ = answered.send(responses).await;
                    drop(permit);
                });
            }
        }
    };
    tokio::select! {
        ended = answering => ended,
        ended = receiving => ended,
    }
}
