//! The conversation with whoever started this process, over the socket that is its standard input.
//!
//! Owns taking the request, and giving the answer with the open file beside it. Called by `main`.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use dagger_images::consoles::{ConsoleFileAnswer, ConsoleFileRequest};
use dagger_images::limits::CONSOLE_FILE_REQUEST_BYTES_MAX;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::limits::WORD_WAIT_MAX;

/// The socket at standard input; `None` where it is none, so that nobody asks.
///
/// # Errors
/// It is closed.
pub fn standard_input() -> io::Result<Option<UnixStream>> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    if rustix::net::sockopt::socket_type(&input).is_err() {
        return Ok(None);
    }
    let stream = UnixStream::from(input);
    stream.set_read_timeout(Some(WORD_WAIT_MAX))?;
    stream.set_write_timeout(Some(WORD_WAIT_MAX))?;
    Ok(Some(stream))
}

/// Takes the request; `None` where none comes.
///
/// # Errors
/// It cannot be read.
pub fn take_request(
    stream: &UnixStream,
) -> io::Result<Option<Result<ConsoleFileRequest, ConsoleFileAnswer>>> {
    let malformed = |why: &dyn std::fmt::Display| {
        ConsoleFileAnswer::Refused(format!("request_malformed: {why}"))
    };
    let (mut line, mut piece) = (Vec::new(), [0; CONSOLE_FILE_REQUEST_BYTES_MAX]);
    while !line.ends_with(b"\n") {
        match (&mut &*stream).read(&mut piece)? {
            0 if line.is_empty() => return Ok(None),
            0 => return Ok(Some(Err(malformed(&"it ends early")))),
            length => line.extend_from_slice(&piece[..length]),
        }
        if line.len() > CONSOLE_FILE_REQUEST_BYTES_MAX {
            let why = format!("over {CONSOLE_FILE_REQUEST_BYTES_MAX} bytes");
            return Ok(Some(Err(malformed(&why))));
        }
    }
    Ok(Some(serde_json::from_slice(&line).map_err(|error| malformed(&error))))
}

/// Gives the answer, with the file beside its first bytes.
///
/// # Errors
/// Nobody takes it.
pub fn give(
    mut stream: &UnixStream,
    answer: &ConsoleFileAnswer,
    file: Option<&File>,
) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::Error::other("there is no room for the file"));
    }
    let pieces = [IoSlice::new(&line)];
    let sent = rustix::net::sendmsg(stream, &pieces, &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(&line[sent..])
}
