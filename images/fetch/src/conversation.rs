//! The conversation with whoever started this process, over the socket that is its standard input.
//!
//! Owns taking the request with its file, and telling how it goes. Where the other side goes away,
//! so do we. Called by `main`.

use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use dagger_images::fetch::{FetchCode, FetchNews, FetchProblem, FetchRequest};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::limits::{REQUEST_BYTES_MAX, REQUEST_WAIT_MAX, SOURCES_MAX};

/// The socket at standard input.
///
/// # Errors
/// It is none, or closed.
pub fn standard_input() -> io::Result<UnixStream> {
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    stream.set_read_timeout(Some(REQUEST_WAIT_MAX))?;
    Ok(stream)
}

/// Takes the request and the file that comes with its first bytes.
///
/// # Errors
/// `request_malformed`.
pub fn take_request(stream: &mut UnixStream) -> Result<(FetchRequest, File), FetchProblem> {
    let malformed = |why: &dyn std::fmt::Display| {
        FetchProblem::new(FetchCode::RequestMalformed, format!("the request: {why}"))
    };
    let (mut line, file) = receive_first(stream).map_err(|error| malformed(&error))?;
    let file = file.ok_or_else(|| malformed(&"no open file came with it"))?;
    let mut piece = [0; 16 * 1024];
    while !line.ends_with(b"\n") {
        if line.len() > REQUEST_BYTES_MAX {
            return Err(malformed(&format!("over {REQUEST_BYTES_MAX} bytes")));
        }
        match stream.read(&mut piece).map_err(|error| malformed(&error))? {
            0 => return Err(malformed(&"it ends early")),
            length => line.extend_from_slice(&piece[..length]),
        }
    }
    let request: FetchRequest = serde_json::from_slice(&line).map_err(|error| malformed(&error))?;
    if request.sources.len() > SOURCES_MAX {
        return Err(malformed(&format!("over {SOURCES_MAX} sources")));
    }
    Ok((request, file))
}

fn receive_first(stream: &UnixStream) -> io::Result<(Vec<u8>, Option<File>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; 16 * 1024];
    let mut pieces = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(stream, &mut pieces, &mut control, flags)?;
    let mut file = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            file = files.map(File::from).last();
        }
    }
    bytes.truncate(received.bytes);
    Ok((bytes, file))
}

/// Tells how it goes.
#[derive(Debug)]
pub struct Teller {
    stream: OwnedWriteHalf,
}

impl Teller {
    /// Tells over this half.
    pub fn new(stream: OwnedWriteHalf) -> Self {
        Self { stream }
    }

    /// Tells one thing. That nobody listens is noticed elsewhere.
    pub async fn tell(&mut self, news: &FetchNews) {
        let mut line = serde_json::to_vec(news).expect("plain data always writes");
        line.push(b'\n');
        let _ = self.stream.write_all(&line).await;
    }
}

/// Returns when the other side has gone.
pub async fn gone(mut stream: OwnedReadHalf) {
    let mut piece = [0; 64];
    while stream.read(&mut piece).await.is_ok_and(|length| length > 0) {}
}
