//! Listening sockets that systemd (or whoever started the daemon) handed over, by name
//! (sd_listen_fds_with_names(3)).
//!
//! Owns the pairing of `LISTEN_FDNAMES` with what was handed. Never binds. Called once at the start
//! of each daemon.

use std::io;

use listenfd::ListenFd;

/// The handed sockets, each taken once.
pub struct HandedSockets {
    names: Vec<String>,
    handed: ListenFd,
}

impl HandedSockets {
    /// What this process was started with.
    pub fn from_environment() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        Self { names: names.split(':').map(str::to_owned).collect(), handed: ListenFd::from_env() }
    }

    /// The Unix listener that is called `name`, if one was handed over.
    ///
    /// # Errors
    /// It is a socket of another type.
    pub fn unix(&mut self, name: &str) -> io::Result<Option<std::os::unix::net::UnixListener>> {
        self.index(name).map_or(Ok(None), |index| self.handed.take_unix_listener(index))
    }

    /// The TCP listener that is called `name`, if one was handed over.
    ///
    /// # Errors
    /// It is a socket of another type.
    pub fn tcp(&mut self, name: &str) -> io::Result<Option<std::net::TcpListener>> {
        self.index(name).map_or(Ok(None), |index| self.handed.take_tcp_listener(index))
    }

    fn index(&self, name: &str) -> Option<usize> {
        let index = self.names.iter().position(|handed| handed == name)?;
        (index < self.handed.len()).then_some(index)
    }
}
