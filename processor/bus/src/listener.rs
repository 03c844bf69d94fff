//! Listening sockets: handed over by systemd (or by whoever started the daemon), else bound at a
//! path.
//!
//! Owns the mode of a bound socket (0660) and the removal of a stale one. Never accepts. Called by
//! the daemons at start.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use tokio::net::UnixListener;

/// Binds `path` with mode 0660, in place of a stale socket that nobody serves.
///
/// # Errors
/// The path is in use by a live daemon, is no socket, or cannot be written.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            let message = format!("{} exists and is no socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            let message = format!("{} is served by another process", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        std::fs::remove_file(path)?;
    }
    // Nobody can connect between bind and chmod who could not afterwards: the directory is the
    // guard.
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Takes over a listening socket that was handed to this process.
///
/// # Errors
/// It cannot be made non-blocking.
pub fn adopt(handed: std::os::unix::net::UnixListener) -> io::Result<UnixListener> {
    handed.set_nonblocking(true)?;
    UnixListener::from_std(handed)
}
