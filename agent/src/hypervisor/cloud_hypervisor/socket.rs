//! Connecting to the sockets that a machine's process made.
//!
//! Owns two cautions. The process may write in the directory of its sockets, so a link there is
//! never followed: it would lead to another machine's process. And a process that hangs takes no
//! connection, so none is waited for: once its queue is full, that is said at once. Called by the
//! implementation's parts.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_PATH};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// A connection that does not block, to who listens at this socket.
///
/// # Errors
/// [`nobody_listens`] says whether nobody does. `WouldBlock`: somebody does, and takes nothing.
pub(super) fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let place =
        OpenOptions::new().read(true).custom_flags(O_PATH | O_NOFOLLOW | O_CLOEXEC).open(path)?;
    if !place.metadata()?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "what is there is no socket"));
    }
    // What was looked at and nothing else, whatever has its name by now.
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &address)?;
    Ok(socket.into())
}

/// Whether this is how it ends where there is no process. Anything else says nothing about that.
pub(super) fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_link_to_another_ones_socket_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (other, link) = (directory.path().join("other"), directory.path().join("link"));
        let _listener = UnixListener::bind(&other).unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();
        assert!(connect_to(&other).is_ok());
        let error = connect_to(&link).unwrap_err();
        assert!(!nobody_listens(&error), "a process may be there all the same: {error}");
    }

    #[test]
    fn a_full_queue_is_told_at_once_and_is_somebody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert!(nobody_listens(&connect_to(&path).unwrap_err()));
        let listener = UnixListener::bind(&path).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        let mut held = Vec::new();
        let error = loop {
            match connect_to(&path) {
                Ok(stream) => held.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!((error.kind(), nobody_listens(&error)), (io::ErrorKind::WouldBlock, false));
        drop(listener);
        assert!(nobody_listens(&connect_to(&path).unwrap_err()));
    }
}
