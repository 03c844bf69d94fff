//! Frames on a link: a 4-byte big-endian length and at most `FRAME_BYTES_MAX` bytes.
//!
//! Owns the length check (before anything is allocated) and the deadline of a frame that has begun.
//! Never reads a frame's content. Called by the link's sessions.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use bytes::{Buf, Bytes};
use dagger_payload::limits::FRAME_BYTES_MAX;
use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Sleep, sleep};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use crate::limits::FRAME_WAIT_MAX;

const LENGTH_BYTES: usize = 4;

/// The receiving half of a link.
pub struct FrameReader<R> {
    frames: FramedRead<R, LengthDelimitedCodec>,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// The sending half of a link.
pub type FrameWriter<W> = FramedWrite<W, LengthDelimitedCodec>;

/// The sending half over `stream`.
pub fn writer<W: AsyncWrite>(stream: W) -> FrameWriter<W> {
    let codec = LengthDelimitedCodec::builder().max_frame_length(FRAME_BYTES_MAX).new_codec();
    FramedWrite::new(stream, codec)
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// The receiving half over `stream`.
    pub fn new(stream: R) -> Self {
        // The length stays in the buffer until its frame is whole: so a frame that has begun is
        // always visible there.
        let codec = LengthDelimitedCodec::builder()
            .max_frame_length(FRAME_BYTES_MAX)
            .length_adjustment(isize::try_from(LENGTH_BYTES).expect("four"))
            .num_skip(0)
            .new_codec();
        Self { frames: FramedRead::new(stream, codec), deadline: None }
    }

    /// The next frame, without its length; `None` when the peer closed the link between two frames.
    ///
    /// # Errors The frame is too long, is cut off, or took longer than [`FRAME_WAIT_MAX`]; or the
    /// link failed.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let Self { frames, deadline } = self;
        let frame = poll_fn(|context| {
            match Pin::new(&mut *frames).poll_next(context) {
                Poll::Ready(frame) => return Poll::Ready(frame.transpose()),
                Poll::Pending if frames.read_buffer().is_empty() => *deadline = None,
                Poll::Pending => {
                    let over = deadline.get_or_insert_with(|| Box::pin(sleep(FRAME_WAIT_MAX)));
                    if over.as_mut().poll(context).is_ready() {
                        return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                    }
                }
            }
            Poll::Pending
        })
        .await?;
        *deadline = None;
        Ok(frame.map(|mut frame| {
            frame.advance(LENGTH_BYTES);
            frame.freeze()
        }))
    }
}
