//! Starts helpers that do one thing for the agent and end: what needs the network, or a
//! capability, which the agent has not.
//!
//! Owns the beginning of a conversation over a Unix socket: one request, a line of JSON with open
//! files at its side, goes out; lines of JSON come back until the helper ends. Where systemd runs
//! the host, connecting to the helper's socket makes systemd start an instance of its unit with the
//! connection as its standard input; elsewhere the helper is a child of the agent with the same
//! socket in the same place. Dropping the conversation ends the helper either way, and so does the
//! agent's own end. Never decides what is asked.

use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::process::{Child, Command};
use tokio_util::codec::{FramedRead, LinesCodec};

use crate::hypervisor::cloud_hypervisor::Supervision;

/// Exists where systemd is PID 1 (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// Where the helpers' sockets are, each in a directory of its own.
const SOCKETS: &str = "/run/dagger";
/// Open files that may go with a request.
const FILES_MAX: usize = 1;
/// Bytes of one line that a helper says.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// How long a helper may take to take its request.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(10);
/// What of the agent's environment its children see: where certificates are, for one.
const ENVIRONMENT: [&str; 3] = ["PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"];

/// How helpers are started on this host.
#[derive(Debug, Clone, Default)]
pub struct HelperConfiguration {
    /// Who owns their processes.
    pub supervision: Supervision,
    /// Where their programs are, for those that the agent starts itself; beside its own if not
    /// named.
    pub programs: Option<PathBuf>,
}

/// One kind of helper.
#[derive(Debug, Clone)]
pub struct OneShot {
    start: Start,
}

#[derive(Debug, Clone)]
enum Start {
    /// systemd starts one for each connection to this socket.
    Socket(PathBuf),
    /// The agent starts this program.
    Program(PathBuf),
}

impl OneShot {
    /// The helper `dagger-NAME`, whose socket is `agent-NAME/NAME.sock`.
    pub fn new(name: &str, configuration: &HelperConfiguration) -> Self {
        let by_systemd = match configuration.supervision {
            Supervision::Auto => Path::new(BOOTED).is_dir(),
            Supervision::Systemd => true,
            Supervision::Direct => false,
        };
        let start = if by_systemd {
            Start::Socket(Path::new(SOCKETS).join(format!("agent-{name}/{name}.sock")))
        } else {
            let own = || Some(std::env::current_exe().ok()?.parent()?.to_owned());
            let programs = configuration.programs.clone().or_else(own).unwrap_or_default();
            Start::Program(programs.join(format!("dagger-{name}")))
        };
        Self { start }
    }

    /// Starts one and gives it its request. Within a runtime; blocks for a moment.
    ///
    /// # Errors
    /// It cannot be started, or does not take the request.
    pub fn begin(
        &self,
        request: &impl Serialize,
        files: &[BorrowedFd<'_>],
    ) -> io::Result<Conversation> {
        let (stream, child) = match &self.start {
            Start::Socket(path) => (UnixStream::connect(path)?, None),
            Start::Program(program) => {
                let (own, theirs) = UnixStream::pair()?;
                (own, Some(start(program, theirs)?))
            }
        };
        stream.set_write_timeout(Some(REQUEST_WAIT_MAX))?;
        send(&stream, request, files)?;
        stream.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(stream)?;
        let codec = LinesCodec::new_with_max_length(LINE_BYTES_MAX);
        Ok(Conversation { lines: FramedRead::new(stream, codec), child })
    }
}

fn start(program: &Path, socket: UnixStream) -> io::Result<Child> {
    let kept = ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    Command::new(program)
        .env_clear()
        .envs(kept)
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))
}

/// Sends the request's line, with the files beside its first bytes.
fn send(
    mut stream: &UnixStream,
    request: &impl Serialize,
    files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("too many files for one request"));
    }
    let pieces = [IoSlice::new(&line)];
    let sent = rustix::net::sendmsg(stream, &pieces, &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(&line[sent..])
}

/// A helper at work; dropped, it ends.
#[derive(Debug)]
pub struct Conversation {
    lines: FramedRead<tokio::net::UnixStream, LinesCodec>,
    child: Option<Child>,
}

impl Conversation {
    /// What it says next; `None` when it has ended.
    ///
    /// # Errors
    /// What it says is not in form.
    pub async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        match self.lines.next().await {
            Some(Ok(line)) => Ok(Some(serde_json::from_str(&line)?)),
            Some(Err(error)) => Err(io::Error::other(error)),
            None => {
                if let Some(child) = &mut self.child {
                    child.wait().await?;
                }
                Ok(None)
            }
        }
    }
}
