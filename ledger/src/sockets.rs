//! The sockets that the daemon listens on: handed over by systemd under their names, else bound.
//!
//! Owns which is which. Never accepts. Called by the daemon at start.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use listenfd::ListenFd;
use tokio::net::{TcpListener, UnixListener};

/// Sockets that were handed over, by name.
pub struct Handed {
    sockets: ListenFd,
    names: Vec<String>,
}

impl Handed {
    /// Takes over what the environment names (`LISTEN_FDS`, `LISTEN_FDNAMES`).
    pub fn from_environment() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names = names.split(':').map(str::to_owned).collect();
        let sockets = ListenFd::from_env();
        Self { sockets, names }
    }

    fn index(&self, name: &str) -> Option<usize> {
        let at = self.names.iter().position(|each| each == name)?;
        (at < self.sockets.len()).then_some(at)
    }

    /// The TCP socket `peers`, or one bound at `address`.
    ///
    /// # Errors
    /// The address is taken, or the handed socket is of another kind.
    pub async fn peers(&mut self, address: SocketAddr) -> io::Result<TcpListener> {
        if let Some(at) = self.index("peers")
            && let Some(listener) = self.sockets.take_tcp_listener(at)?
        {
            listener.set_nonblocking(true)?;
            return TcpListener::from_std(listener);
        }
        TcpListener::bind(address).await
    }

    /// The Unix socket `agent`, or one bound at `path`.
    ///
    /// # Errors
    /// The path is served by another process, none is configured, or the handed socket is of another kind.
    pub fn agent(&mut self, path: Option<&Path>) -> io::Result<UnixListener> {
        if let Some(at) = self.index("agent")
            && let Some(listener) = self.sockets.take_unix_listener(at)?
        {
            return dagger_bus::listener::adopt(listener);
        }
        let missing = || io::Error::other("no socket `agent` was handed over: set sockets.agent");
        dagger_bus::listener::bind(path.ok_or_else(missing)?)
    }
}
