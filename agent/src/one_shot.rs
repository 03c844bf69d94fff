//! Starts helpers that do one thing for the agent and end: what needs the network, or a
//! capability, which the agent has not.
//!
//! Owns the beginning of a conversation over a Unix socket: one request, a line of JSON with open
//! files at its side, goes out; lines of JSON come back until the helper ends. Where systemd runs
//! the host, connecting to the helper's socket makes systemd start an instance of its unit with the
//! connection as its standard input; elsewhere the helper is a child of the agent with the same
//! socket in the same place. Dropping the conversation ends the helper either way, and so does the
//! agent's own end, which each helper sees. Never decides what is asked. Called by `downloads`, in
//! a conversation, by `network`, for one answer, and by `observation`, for one with an open file.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::codec::{FramedRead, LinesCodec};

use crate::hypervisor::cloud_hypervisor::Supervision;
use crate::limits::{
    HELPER_FILES_MAX, HELPER_LINE_BYTES_MAX, HELPER_READ_WAIT_MIN, HELPER_REQUEST_WAIT_MAX,
};

/// Exists where systemd is PID 1 (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// Where the helpers' sockets are, each in a directory of its own.
const SOCKETS: &str = "/run/dagger";
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

impl HelperConfiguration {
    /// Where the helper `dagger-NAME` is, if the agent starts it itself; systemd does otherwise.
    pub(crate) fn program(&self, name: &str) -> Option<PathBuf> {
        let by_systemd = match self.supervision {
            Supervision::Auto => Path::new(BOOTED).is_dir(),
            Supervision::Systemd => true,
            Supervision::Direct => false,
        };
        let own = || Some(std::env::current_exe().ok()?.parent()?.to_owned());
        let programs = || self.programs.clone().or_else(own).unwrap_or_default();
        (!by_systemd).then(|| programs().join(format!("dagger-{name}")))
    }
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
        let socket = || Path::new(SOCKETS).join(format!("agent-{name}/{name}.sock"));
        let program = configuration.program(name);
        Self { start: program.map_or_else(|| Start::Socket(socket()), Start::Program) }
    }

    /// The helper `dagger-NAME`, if systemd starts it: elsewhere it would be a child of the agent's
    /// and could do no more than the agent.
    pub fn by_systemd(name: &str, configuration: &HelperConfiguration) -> Option<Self> {
        let helper = Self::new(name, configuration);
        matches!(helper.start, Start::Socket(_)).then_some(helper)
    }

    /// The helper behind this socket, as systemd would start it.
    #[cfg(test)]
    pub(crate) fn at(socket: PathBuf) -> Self {
        Self { start: Start::Socket(socket) }
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
        let (stream, child) = self.start(request, files)?;
        stream.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(stream)?;
        let codec = LinesCodec::new_with_max_length(HELPER_LINE_BYTES_MAX);
        Ok(Conversation { lines: FramedRead::new(stream, codec), _child: child })
    }

    /// Starts one, gives it its request and waits until it has said all that it says: at most
    /// `bytes_max` bytes within `wait_max`. Blocks.
    ///
    /// # Errors
    /// It cannot be started, does not take the request, or ends without an answer in form.
    pub fn ask<A: DeserializeOwned>(
        &self,
        request: &impl Serialize,
        bounds: (Duration, usize),
    ) -> io::Result<A> {
        self.listen(request, bounds, |mut stream, piece| stream.read(piece))
    }

    /// The same, with the open file that comes beside the answer, if there is one.
    ///
    /// # Errors
    /// The same, or more files come than one.
    pub fn ask_for_file<A: DeserializeOwned>(
        &self,
        request: &impl Serialize,
        bounds: (Duration, usize),
    ) -> io::Result<(A, Option<File>)> {
        let mut files = Vec::new();
        let answer = self.listen(request, bounds, |stream, piece| {
            let length = receive(stream, piece, &mut files)?;
            if files.len() > HELPER_FILES_MAX {
                return Err(io::Error::other("it hands over more than one file"));
            }
            Ok(length)
        })?;
        Ok((answer, files.pop()))
    }

    fn listen<A: DeserializeOwned>(
        &self,
        request: &impl Serialize,
        (wait_max, bytes_max): (Duration, usize),
        mut take: impl FnMut(&UnixStream, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<A> {
        let end = Instant::now() + wait_max;
        let (stream, _child) = self.start(request, &[])?;
        stream.shutdown(Shutdown::Write)?;
        let (mut answer, mut piece) = (Vec::new(), vec![0; HELPER_LINE_BYTES_MAX]);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // No time left would mean for ever.
            stream.set_read_timeout(Some(left.max(HELPER_READ_WAIT_MIN)))?;
            match take(&stream, &mut piece)? {
                0 if answer.is_empty() => return Err(io::Error::other("it ended without a word")),
                0 => return Ok(serde_json::from_slice(&answer)?),
                length if answer.len() + length <= bytes_max => {
                    answer.extend_from_slice(&piece[..length]);
                }
                _ => return Err(io::Error::other(format!("it says over {bytes_max} bytes"))),
            }
        }
    }

    fn start(
        &self,
        request: &impl Serialize,
        files: &[BorrowedFd<'_>],
    ) -> io::Result<(UnixStream, Option<Ended>)> {
        let named = |path: &Path, error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        let (stream, child) = match &self.start {
            Start::Socket(path) => {
                (UnixStream::connect(path).map_err(|error| named(path, error))?, None)
            }
            Start::Program(program) => {
                let (own, theirs) = UnixStream::pair()?;
                let child = spawn(program, theirs).map_err(|error| named(program, error))?;
                (own, Some(Ended(child)))
            }
        };
        stream.set_write_timeout(Some(HELPER_REQUEST_WAIT_MAX))?;
        send(&stream, request, files)?;
        Ok((stream, child))
    }
}

/// A child that is gone at the latest when this is.
#[derive(Debug)]
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(program: &Path, socket: UnixStream) -> io::Result<Child> {
    let socket = OwnedFd::from(socket);
    let kept = ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    Command::new(program)
        .env_clear()
        .envs(kept)
        .current_dir("/")
        .stdin(Stdio::from(socket.try_clone()?))
        .stdout(Stdio::from(socket))
        .spawn()
}

/// Sends the request's line, with the files beside its first bytes.
fn send(
    mut stream: &UnixStream,
    request: &impl Serialize,
    files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HELPER_FILES_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("too many files for one request"));
    }
    let pieces = [IoSlice::new(&line)];
    let sent = rustix::net::sendmsg(stream, &pieces, &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(&line[sent..])
}

/// Takes what there is of an answer, and the files beside it; none of them outlives an `exec`.
fn receive(stream: &UnixStream, piece: &mut [u8], files: &mut Vec<File>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HELPER_FILES_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut pieces = [IoSliceMut::new(piece)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(stream, &mut pieces, &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(each) = message {
            files.extend(each.map(File::from));
        }
    }
    // Files for which there was no room are closed by the kernel, and not to be missed silently.
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("it hands over more than one file"));
    }
    Ok(received.bytes)
}

/// A helper at work; dropped, it ends.
#[derive(Debug)]
pub struct Conversation {
    lines: FramedRead<tokio::net::UnixStream, LinesCodec>,
    _child: Option<Ended>,
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
            None => Ok(None),
        }
    }
}
