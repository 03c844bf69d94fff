//! One `daggerctl` at a time starts, supervises or stops a cluster.
//!
//! Owns the file `lock`: whoever holds its lock (flock(2)) has written its pid into it, so that
//! `cluster stop` can ask it to end. The kernel releases the lock with its holder. Called by
//! `cluster::dev` and `cluster::stop`.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::record::Directory;
use crate::failure::Failure;
use crate::limits::CLUSTER_STOP_MAX;
use crate::session::Pause;

/// Held until dropped.
pub(crate) struct Lock {
    _file: File,
}

fn path(directory: &Directory) -> PathBuf {
    directory.join("lock")
}

/// The lock, or the pid of who holds it.
fn attempt(directory: &Directory) -> Result<Result<Lock, String>, Failure> {
    let path = path(directory);
    let failed = |error: std::io::Error| Failure::file(&path, &error);
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
            writeln!(file, "{}", std::process::id()).map_err(failed)?;
            Ok(Ok(Lock { _file: file }))
        }
        Err(TryLockError::WouldBlock) => {
            Ok(Err(std::fs::read_to_string(&path).unwrap_or_default().trim().to_owned()))
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

impl Lock {
    /// Takes the lock, which must be free.
    pub(crate) fn take(directory: &Directory) -> Result<Self, Failure> {
        attempt(directory)?.map_err(|holder| {
            Failure::refused(
                "already_running",
                format!("process {holder} runs the cluster in {}", directory.root().display()),
                "See `daggerctl cluster status`; `daggerctl cluster stop` ends it.",
            )
        })
    }

    /// Asks whoever holds the lock to end, and takes it afterwards.
    pub(crate) async fn take_over(directory: &Directory) -> Result<Self, Failure> {
        let deadline = Instant::now() + CLUSTER_STOP_MAX;
        let mut pause = Pause::new();
        let mut asked = None;
        loop {
            let holder = match attempt(directory)? {
                Ok(lock) => return Ok(lock),
                Err(holder) => holder,
            };
            if let Some(pid) = holder.parse::<i32>().ok().filter(|pid| *pid > 1)
                && asked != Some(pid)
            {
                // It may have ended in between, which is what we want.
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                asked = Some(pid);
            }
            if Instant::now() >= deadline {
                return Err(Failure::unavailable(
                    "not_in_time",
                    format!("process {holder} does not let go of the cluster"),
                    "End it, then run this again.",
                ));
            }
            pause.wait().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::arguments::DirectoryArguments;

    #[test]
    fn a_cluster_that_somebody_runs_is_not_started_twice() {
        let root = tempfile::tempdir().expect("a directory");
        let arguments = DirectoryArguments { directory: Some(root.path().to_owned()) };
        let directory = Directory::of(&arguments).expect("a directory");
        let first = Lock::take(&directory).expect("free");
        let failure = Lock::take(&directory).err().expect("held");
        assert!(failure.has_code("already_running"));
        assert!(failure.to_text().contains(&std::process::id().to_string()));
        drop(first);
        assert!(Lock::take(&directory).is_ok());
    }
}
