//! The program `dagger-dhcp`, which answers guests that ask for their address, as a child.
//!
//! Owns that one runs where systemd does not run the host, and ends with the agent. Never decides
//! what is answered: each guest's tap says it. Without it guests still have their seeds, so nothing
//! else waits for it. Started once by the machines' half.

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Instant;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::limits::{RESPONDER_WAIT_MAX, RESPONDER_WAIT_MIN};
use crate::one_shot::HelperConfiguration;

/// The program, where the agent starts it itself.
pub(crate) struct Responder {
    program: PathBuf,
}

impl Responder {
    /// Prepares; nothing if systemd starts it.
    pub(crate) fn new(configuration: &HelperConfiguration) -> Option<Self> {
        Some(Self { program: configuration.program("dhcp")? })
    }

    /// Lets one run until `stop` is cancelled.
    pub(crate) async fn keep(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            self.try_again_and_again(&stop).await;
        }
    }

    /// Until one has run for long, which makes its end news.
    async fn try_again_and_again(&self, stop: &CancellationToken) {
        let waits = ExponentialBuilder::new()
            .with_min_delay(RESPONDER_WAIT_MIN)
            .with_max_delay(RESPONDER_WAIT_MAX)
            .without_max_times()
            .build();
        for (number, wait) in waits.enumerate() {
            let begun = Instant::now();
            let Some(ended) = stop.run_until_cancelled(self.run()).await else { return };
            let why = match ended {
                Ok(status) => format!("it ended: {status}"),
                Err(error) => error.to_string(),
            };
            let has_run_long = begun.elapsed() > RESPONDER_WAIT_MAX;
            if number == 0 || has_run_long {
                tracing::warn!(program = %self.program.display(), %why,
                    "guests that ask for their address by DHCP are not answered; those that read \
                     their seed have it. Let UDP port 67 of this host be free, or shared \
                     (SO_REUSEADDR); it is tried again");
            }
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() || has_run_long {
                return;
            }
        }
    }

    /// It ends when the other end of its standard input does, however this process ends.
    async fn run(&self) -> io::Result<ExitStatus> {
        let mut child = Command::new(&self.program)
            .arg("--bind")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        // Waiting would close it.
        let _held = child.stdin.take();
        child.wait().await
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::hypervisor::cloud_hypervisor::Supervision;

    #[test]
    fn where_systemd_runs_the_host_the_agent_starts_none() {
        let of = |supervision| HelperConfiguration { supervision, programs: None };
        assert!(Responder::new(&of(Supervision::Systemd)).is_none());
        assert!(Responder::new(&of(Supervision::Direct)).is_some());
    }

    /// The program says that it runs into a pipe, which it holds until it ends.
    #[tokio::test]
    async fn the_program_is_started_again_when_it_has_ended_and_ends_with_the_agent() {
        let directory = tempfile::tempdir().unwrap();
        let (program, pipe) = (directory.path().join("dagger-dhcp"), directory.path().join("pipe"));
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        // The first ends by itself, the next with whoever holds its standard input.
        let script = format!(
            "#!/bin/sh\ncd {}\nexec >pipe\necho \"$*\"\n[ -e once ] || {{ : >once; exit 1; }}\n\
             exec /bin/cat\n",
            directory.path().display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let stop = CancellationToken::new();
        let keeping = tokio::spawn(Responder { program }.keep(stop.clone()));
        let said = tokio::task::spawn_blocking(move || {
            let first = io::read_to_string(File::open(&pipe).unwrap()).unwrap();
            let (mut second, mut line) = (File::open(&pipe).unwrap(), [0; 7]);
            second.read_exact(&mut line).unwrap();
            (first, line, second)
        });
        let (first, line, mut second) = said.await.unwrap();
        assert_eq!((first.as_str(), &line), ("--bind\n", b"--bind\n"));
        stop.cancel();
        keeping.await.unwrap();
        assert_eq!(second.read(&mut [0; 1]).unwrap(), 0, "it holds the pipe no more");
    }
}
