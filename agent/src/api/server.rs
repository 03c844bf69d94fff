//! Serving the API on its sockets: HTTP/1.1 with a bound on connections, heads and waits.
//!
//! Owns connections. Called once by the daemon.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::{ApiParts, Door, TcpDoor, router};
use crate::configuration::ApiConfiguration;
use crate::daemon::Listeners;
use crate::limits::{
    ACCEPT_PAUSE, API_CONNECTIONS_MAX, API_HEAD_BYTES_MAX, API_HEAD_WAIT_MAX,
    API_IMAGE_CONNECTIONS_PER_ADDRESS_MAX, API_WRITE_WAIT_MAX, STOP_WAIT_MAX,
};
use crate::turns::Turns;

/// Serves until `stop`, then lets open requests end.
pub async fn serve(
    parts: ApiParts,
    configuration: ApiConfiguration,
    listeners: Listeners,
    stop: CancellationToken,
) {
    let (router, _) = router(parts, stop.clone());
    let tracker = TaskTracker::new();
    let unix = Socket::new(&router, Door::Unix, &tracker, &stop);
    info!("the API listens on its Unix socket");
    tokio::join!(
        unix.serve_unix(listeners.api),
        serve_tcp(&router, listeners.api_tcp, configuration, &tracker, &stop),
        serve_images(&router, listeners.images, &tracker, &stop),
    );
    tracker.close();
    if tokio::time::timeout(STOP_WAIT_MAX, tracker.wait()).await.is_err() {
        warn!("some API requests did not end in time");
    }
}

async fn serve_tcp(
    router: &Router,
    listener: Option<TcpListener>,
    configuration: ApiConfiguration,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) {
    let Some(listener) = listener else { return };
    let address = match listener.local_addr() {
        Ok(address) => address,
        Err(error) => {
            warn!(%error, "the API's TCP socket has no address; not serving it");
            return;
        }
    };
    info!(%address, "the API listens on TCP");
    let names = configuration.hosts.iter().map(|name| name.to_ascii_lowercase());
    let door = Door::Tcp(TcpDoor { port: address.port(), names: names.collect() });
    Socket::new(router, door, tracker, stop).serve_tcp(listener).await;
}

/// Other hosts, which take images.
async fn serve_images(
    router: &Router,
    listener: Option<TcpListener>,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) {
    let Some(listener) = listener else { return };
    info!(address = ?listener.local_addr().ok(), "images are served to other hosts");
    let socket = Socket::new(router, Door::Images, tracker, stop);
    let turns = Turns::new(API_IMAGE_CONNECTIONS_PER_ADDRESS_MAX);
    // Strangers reach this door: one of them does not fill it.
    let accept = || async {
        let (stream, from) = listener.accept().await?;
        Ok((stream, Some(turns.of(neighbourhood(from.ip())))))
    };
    socket.accept_all(accept).await;
}

/// What counts as one address: of IPv6 whoever has one has a whole /64.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// One listening socket's service.
struct Socket {
    router: Router,
    connections: Arc<Semaphore>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Socket {
    fn new(router: &Router, door: Door, tracker: &TaskTracker, stop: &CancellationToken) -> Self {
        Self {
            router: router.clone().layer(axum::Extension(door)),
            connections: Arc::new(Semaphore::new(API_CONNECTIONS_MAX)),
            tracker: tracker.clone(),
            stop: stop.clone(),
        }
    }

    async fn serve_unix(&self, listener: UnixListener) {
        let accept = || async { listener.accept().await.map(|(stream, _)| (stream, None)) };
        self.accept_all(accept).await;
    }

    async fn serve_tcp(&self, listener: TcpListener) {
        let accept = || async { listener.accept().await.map(|(stream, _)| (stream, None)) };
        self.accept_all(accept).await;
    }

    async fn accept_all<S, F>(&self, accept: impl Fn() -> F)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = std::io::Result<(S, Option<Arc<Semaphore>>)>>,
    {
        let work = async {
            loop {
                // Further connections wait in the kernel's queue, which is bounded too.
                let permits = Arc::clone(&self.connections);
                let Ok(permit) = permits.acquire_owned().await else {
                    return;
                };
                match accept().await {
                    Ok((stream, turns)) => {
                        let turn = turns.map(Semaphore::try_acquire_owned).transpose();
                        let Ok(turn) = turn else {
                            debug!("too many connections from one address");
                            continue;
                        };
                        let connection = self.connection(stream);
                        self.tracker.spawn(async move {
                            connection.await;
                            drop((permit, turn));
                        });
                    }
                    Err(error) => {
                        warn!(%error, "cannot take a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        self.stop.run_until_cancelled(work).await;
    }

    fn connection<S>(&self, stream: S) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = TowerToHyperService::new(self.router.clone());
        let stop = self.stop.clone();
        async move {
            let mut stream = TimeoutStream::new(stream);
            stream.set_write_timeout(Some(API_WRITE_WAIT_MAX));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(API_HEAD_WAIT_MAX)
                .max_buf_size(API_HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(Box::pin(stream)), service)
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                debug!(%error, "an API connection ended early");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_many_addresses_of_one_network_counts_once() {
        let of = |text: &str| neighbourhood(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:0:0:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
