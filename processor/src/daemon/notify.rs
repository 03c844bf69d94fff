//! What the supervisor is told: ready, stopping, still alive (sd_notify(3)).
//!
//! Owns one datagram socket, connected before the sandbox closes, since none can be made after;
//! that is why the `sd-notify` crate, which makes one for each message, is not used here. Says
//! nothing where nobody listens.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The supervisor, if there is one.
pub(super) struct Supervisor {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Supervisor {
    pub(super) fn from_environment() -> std::io::Result<Self> {
        let socket = match std::env::var("NOTIFY_SOCKET") {
            Ok(name) => {
                let address = match name.strip_prefix('@') {
                    Some(name) => SocketAddr::from_abstract_name(name)?,
                    None => SocketAddr::from_pathname(name)?,
                };
                let socket = UnixDatagram::unbound()?;
                socket.connect_addr(&address)?;
                Some(socket)
            }
            Err(_) => None,
        };
        let micros = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        let watchdog = micros.map(|micros| Duration::from_micros(micros) / 2);
        Ok(Self { socket, watchdog })
    }

    pub(super) fn ready(&self) {
        self.say("READY=1");
    }

    pub(super) fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// Says for ever that the judge's thread is alive; waits for ever where nobody asked.
    pub(super) async fn feed_watchdog(&self) {
        let Some(every) = self.watchdog else { return std::future::pending().await };
        let mut interval = tokio::time::interval(every);
        loop {
            interval.tick().await;
            self.say("WATCHDOG=1");
        }
    }

    fn say(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            tracing::warn!(%error, "the supervisor could not be told {message}");
        }
    }
}
