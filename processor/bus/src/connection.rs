//! One connection: frames of a 4-byte big-endian length and a CBOR message.
//!
//! Owns framing and its errors. Never retries and never waits for ever on its own: callers put a
//! deadline around what they await. Called by servers and clients of all three conversations.

use std::convert::Infallible;
use std::path::Path;

use bytes::{BufMut, BytesMut};
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::{Encoder, FramedRead, FramedWrite, LengthDelimitedCodec};

use crate::limits::MESSAGE_BYTES_MAX;

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The other daemon is not there, or went away.
    #[error("the other daemon closed the stream")]
    Closed,
    /// The socket failed.
    #[error("the stream failed: {0}")]
    Io(#[from] std::io::Error),
    /// The other daemon sent what is no message of this conversation: a defect or another version.
    #[error("the other daemon sent an unknown message; are all daemons of one version?")]
    Malformed,
    /// The other daemon belongs to another cluster.
    #[error("the other daemon serves another cluster; compare the genesis files")]
    ForeignCluster,
    /// No answer within the deadline.
    #[error("the other daemon did not answer in time")]
    TimedOut,
}

/// The sending half.
pub struct Sender {
    frames: FramedWrite<OwnedWriteHalf, Messages>,
}

/// Writes messages straight into what is sent next.
struct Messages;

/// Where a message is written to.
struct Buffer<'b>(&'b mut BytesMut);

impl minicbor::encode::Write for Buffer<'_> {
    type Error = Infallible;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

impl<M: minicbor::Encode<()>> Encoder<&M> for Messages {
    type Error = std::io::Error;

    fn encode(&mut self, message: &M, to: &mut BytesMut) -> std::io::Result<()> {
        let start = to.len();
        to.put_u32(0);
        minicbor::encode(message, Buffer(to)).expect("writing to memory cannot fail");
        let length = to.len() - start - LENGTH_BYTES;
        if length > MESSAGE_BYTES_MAX {
            to.truncate(start);
            return Err(std::io::Error::other("the message is over the limit"));
        }
        let length = u32::try_from(length).expect("at most 256 MiB");
        to[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }
}

/// The receiving half.
pub struct Receiver {
    frames: FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
}

/// Both halves.
pub struct Connection {
    /// To the other daemon.
    pub sender: Sender,
    /// From the other daemon.
    pub receiver: Receiver,
}

/// Before each message stands its length.
const LENGTH_BYTES: usize = 4;

fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder()
        .max_frame_length(MESSAGE_BYTES_MAX)
        .length_field_length(LENGTH_BYTES)
        .new_codec()
}

impl Connection {
    /// Speaks over an accepted or connected stream.
    pub fn new(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self {
            sender: Sender { frames: FramedWrite::new(write, Messages) },
            receiver: Receiver { frames: FramedRead::new(read, codec()) },
        }
    }

    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`BusError::Io`] when nobody listens there.
    pub async fn connect(path: &Path) -> Result<Self, BusError> {
        Ok(Self::new(UnixStream::connect(path).await?))
    }
}

impl Sender {
    /// Sends one message and flushes it.
    ///
    /// # Errors
    /// [`BusError::Io`].
    pub async fn send<M: minicbor::Encode<()>>(&mut self, message: &M) -> Result<(), BusError> {
        self.frames.send(message).await.map_err(BusError::Io)
    }

    /// Queues one message; [`Sender::flush`] sends what is queued.
    ///
    /// # Errors
    /// [`BusError::Io`].
    pub async fn feed<M: minicbor::Encode<()>>(&mut self, message: &M) -> Result<(), BusError> {
        self.frames.feed(message).await.map_err(BusError::Io)
    }

    /// Sends what was queued.
    ///
    /// # Errors
    /// [`BusError::Io`].
    pub async fn flush(&mut self) -> Result<(), BusError> {
        SinkExt::<&u8>::flush(&mut self.frames).await.map_err(BusError::Io)
    }
}

impl Receiver {
    /// Receives one message. Cancel-safe: a message is either returned or still unread.
    ///
    /// # Errors
    /// [`BusError::Closed`], [`BusError::Io`], [`BusError::Malformed`].
    pub async fn receive<M>(&mut self) -> Result<M, BusError>
    where
        M: for<'b> minicbor::Decode<'b, ()>,
    {
        self.receive_sized().await.map(|(message, _)| message)
    }

    /// The same, with the message's size in bytes.
    ///
    /// # Errors
    /// [`BusError::Closed`], [`BusError::Io`], [`BusError::Malformed`].
    pub async fn receive_sized<M>(&mut self) -> Result<(M, usize), BusError>
    where
        M: for<'b> minicbor::Decode<'b, ()>,
    {
        let frame = self.frames.next().await.ok_or(BusError::Closed)??;
        let message = minicbor::decode(&frame).map_err(|_| BusError::Malformed)?;
        Ok((message, frame.len()))
    }

    /// The same, if that needs no waiting.
    ///
    /// # Errors
    /// [`BusError::Closed`], [`BusError::Io`], [`BusError::Malformed`].
    pub fn receive_at_hand<M>(&mut self) -> Option<Result<(M, usize), BusError>>
    where
        M: for<'b> minicbor::Decode<'b, ()>,
    {
        self.receive_sized().now_or_never()
    }
}
