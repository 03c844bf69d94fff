//! What the supervisor is told: ready, stopping, still alive (sd_notify(3)).
//!
//! Owns one datagram socket, connected before the sandbox closes, since none can be made after;
//! that is why the `sd-notify` crate, which makes one for each message, is not used here. Says
//! nothing where nobody listens.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// So often the supervisor hears from a daemon within the time after which it would end it: what
/// the judge's thread does at a stretch may take nearly all of that time, whenever it begins.
const FED_WITHIN_WATCHDOG: u32 = 10;

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
        let watchdog = std::env::var("WATCHDOG_USEC").ok().and_then(|text| feeding(&text));
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

/// How often the watchdog is fed that waits so many microseconds; one that waits none is none.
fn feeding(micros: &str) -> Option<Duration> {
    let micros = micros.parse().ok().filter(|micros| *micros > 0);
    micros.map(|micros| Duration::from_micros(micros) / FED_WITHIN_WATCHDOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_judge_does_at_a_stretch_may_take_nine_tenths_of_the_watchdogs_time() {
        assert_eq!(feeding("30000000"), Some(Duration::from_secs(3)));
        assert!(feeding("1").is_some_and(|every| every > Duration::ZERO));
        assert_eq!([feeding("0"), feeding("soon")], [None, None]);
    }
}
