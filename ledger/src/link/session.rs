//! One link from its TCP connection to its end: handshake, `Hello`, then frames both ways.
//!
//! Owns the deadlines and the order of a link's life: the driver hears `Connected`, then messages,
//! then `Closed`, and never of two links to one peer at a time. Never decides whom to dial (`super`
//! does) or what a message means. Called by the links' dialling and accepting tasks.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dagger_payload::peer::{PEER_VERSION, PeerMessage};
use futures_util::SinkExt;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, WriteHalf, split};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use super::frames::{self, FrameReader, FrameWriter};
use super::inspect::{Inbound, Refused};
use super::peers::Peer;
use super::queue::{Outgoing, queue};
use super::{LinkEvent, Shared};
use crate::limits::{
    HANDSHAKE_WAIT_MAX, KEEPALIVE_IDLE_SECONDS, KEEPALIVE_INTERVAL_SECONDS, KEEPALIVE_PROBES,
    SEND_FRAMES_PER_FLUSH, SEND_WAIT_MAX, UNACKNOWLEDGED_MS_MAX,
};

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// TCP failed, or a frame was too long or too slow.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The TLS handshake failed.
    #[error("the TLS handshake failed: {0}")]
    Tls(io::Error),
    /// Handshake and `Hello` took too long.
    #[error("the handshake took too long")]
    HandshakeTimedOut,
    /// The peer's key is no member's, or not the one that was dialled.
    #[error("the peer's key is not that of the expected member")]
    UnknownKey,
    /// The peer does not begin with `Hello`.
    #[error("the peer did not begin with Hello")]
    NoHello,
    /// The peer belongs to another cluster.
    #[error("the peer belongs to another cluster or version")]
    Foreign,
    /// The peer sent what no honest peer sends.
    #[error("the peer sent an invalid frame: {0}")]
    Refused(#[from] Refused),
    /// The peer took too long to take a frame.
    #[error("the peer takes no frames")]
    SendTimedOut,
    /// The peer closed the link.
    #[error("the peer closed the link")]
    Closed,
    /// This side gave the link up: a newer one took its place, too much waited for the peer, or the
    /// daemon stops.
    #[error("the link was given up on this side")]
    GivenUp,
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = stream.as_fd();
    setsockopt(&socket, sockopt::KeepAlive, &true)?;
    setsockopt(&socket, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_SECONDS)?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_SECONDS)?;
    setsockopt(&socket, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
    setsockopt(&socket, sockopt::TcpUserTimeout, &UNACKNOWLEDGED_MS_MAX)?;
    Ok(())
}

/// What a handshake's end means: the verifier's only objection to a key is that it is not expected.
fn handshake_error(error: io::Error) -> LinkError {
    let tls = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::ApplicationVerificationFailure,
        )) => LinkError::UnknownKey,
        Some(_) => LinkError::Tls(error),
        None => LinkError::Io(error),
    }
}

/// Dials `peer` and serves the link until it ends.
///
/// # Errors
/// Always: why it ended.
pub(super) async fn dial(shared: &Arc<Shared>, peer: &Arc<Peer>) -> Result<(), LinkError> {
    let address = peer.member.address;
    let opening = async {
        let stream = TcpStream::connect(address).await?;
        prepare(&stream)?;
        let connector = TlsConnector::from(shared.identity.client(peer.author));
        // No name takes part: the address only fills the place.
        let connecting = connector.connect(ServerName::from(address.ip()), stream);
        let stream = connecting.await.map_err(handshake_error)?;
        greet(shared, stream).await
    };
    let opened = tokio::select! {
        () = peer.leaving.cancelled() => return Err(LinkError::GivenUp),
        opened = timeout(HANDSHAKE_WAIT_MAX, opening) => opened,
    };
    let (reader, writer) = opened.map_err(|_| LinkError::HandshakeTimedOut)??;
    serve(shared, peer, reader, writer).await
}

/// Takes a connection's handshake; the caller frees its place among the handshakes and then calls
/// [`Accepted::serve`].
pub(super) struct Accepted {
    peer: Arc<Peer>,
    reader: FrameReader<tokio::io::ReadHalf<tokio_rustls::server::TlsStream<TcpStream>>>,
    writer: FrameWriter<WriteHalf<tokio_rustls::server::TlsStream<TcpStream>>>,
}

/// Authenticates who has connected.
///
/// # Errors
/// [`LinkError`].
pub(super) async fn accept(shared: &Arc<Shared>, stream: TcpStream) -> Result<Accepted, LinkError> {
    let opening = async {
        prepare(&stream)?;
        let accepting = TlsAcceptor::from(shared.server.clone()).accept(stream);
        let stream = accepting.await.map_err(handshake_error)?;
        let presented = stream.get_ref().1.peer_certificates();
        let author = shared.identity.author_of(presented).ok_or(LinkError::UnknownKey)?;
        let peer = shared.peers.expect(author)?;
        let (reader, writer) = greet(shared, stream).await?;
        Ok(Accepted { peer, reader, writer })
    };
    let opened = timeout(HANDSHAKE_WAIT_MAX, opening).await;
    opened.map_err(|_| LinkError::HandshakeTimedOut)?
}

impl Accepted {
    /// Serves the link until it ends.
    ///
    /// # Errors
    /// Always: why it ended.
    pub(super) async fn serve(self, shared: &Arc<Shared>) -> Result<(), LinkError> {
        serve(shared, &self.peer, self.reader, self.writer).await
    }
}

type Halves<S> = (FrameReader<tokio::io::ReadHalf<S>>, FrameWriter<WriteHalf<S>>);

async fn greet<S>(shared: &Shared, stream: S) -> Result<Halves<S>, LinkError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (read, write) = split(stream);
    let (mut reader, mut writer) = (FrameReader::new(read), frames::writer(write));
    let hello = PeerMessage::Hello { version: PEER_VERSION, cluster: shared.inspector.cluster };
    writer.send(Bytes::from(hello.to_bytes())).await?;
    let frame = reader.next().await?.ok_or(LinkError::Closed)?;
    match PeerMessage::read(&frame).map_err(Refused::from)? {
        theirs if theirs == hello => Ok((reader, writer)),
        PeerMessage::Hello { .. } => Err(LinkError::Foreign),
        _ => Err(LinkError::NoHello),
    }
}

async fn serve<S>(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    mut reader: FrameReader<tokio::io::ReadHalf<S>>,
    writer: FrameWriter<WriteHalf<S>>,
) -> Result<(), LinkError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (filling, emptying) = queue(peer.place.share.clone());
    let author = peer.author;
    let given_up = peer.leaving.child_token();
    // The newest link counts: only one side of a pair dials, and it dials only when its own link
    // has ended.
    let place = peer.take_place(filling, given_up.clone()).await?;
    tracing::info!(peer = %shared.name(author), "linked");
    let sending = tokio::spawn(send_all(writer, emptying, given_up.clone(), SEND_WAIT_MAX));
    let received = tokio::select! {
        () = given_up.cancelled() => Err(LinkError::GivenUp),
        received = async {
            shared.tell(LinkEvent::Connected(author)).await?;
            receive_all(shared, peer, &mut reader).await
        } => received,
    };
    given_up.cancel();
    let sent = sending.await.unwrap_or(Err(LinkError::GivenUp));
    place.leave();
    // A driver that is slow to hear of the end keeps no connection open.
    drop(reader);
    let told = shared.tell(LinkEvent::Closed(author)).await;
    // When sending failed, that is the cause; receiving was then only given up.
    match (sent, received) {
        (Err(error @ (LinkError::Io(_) | LinkError::SendTimedOut)), _) => Err(error),
        (_, received) => received.and(told),
    }
}

async fn receive_all<R: AsyncRead + Unpin>(
    shared: &Shared,
    peer: &Peer,
    reader: &mut FrameReader<R>,
) -> Result<(), LinkError> {
    loop {
        let frame = reader.next().await?.ok_or(LinkError::Closed)?;
        let event = match shared.inspector.inspect(&frame)? {
            Inbound::Known => continue,
            Inbound::Event(event) => LinkEvent::Event(peer.author, event),
            Inbound::Closing(header, signed) => LinkEvent::Closing(header, signed),
            Inbound::Message(message) => LinkEvent::Message(peer.author, message),
        };
        shared.pass_on(&peer.place.share, frame.len(), event).await?;
    }
}

/// Each step writes what was fed before it: hardly more than one frame.
async fn in_time(
    wait_max: Duration,
    step: impl Future<Output = io::Result<()>>,
) -> Result<(), LinkError> {
    let taken = timeout(wait_max, step).await;
    taken.map_err(|_| LinkError::SendTimedOut)?.map_err(LinkError::from)
}

async fn send_all<W: AsyncWrite + Unpin>(
    mut writer: FrameWriter<W>,
    mut outgoing: Outgoing,
    given_up: CancellationToken,
    wait_max: Duration,
) -> Result<(), LinkError> {
    let sending = async {
        while let Some(frame) = outgoing.next().await {
            in_time(wait_max, writer.feed(frame)).await?;
            for _ in 0..SEND_FRAMES_PER_FLUSH {
                let Some(frame) = outgoing.next_now() else {
                    break;
                };
                in_time(wait_max, writer.feed(frame)).await?;
            }
            in_time(wait_max, SinkExt::<Bytes>::flush(&mut writer)).await?;
        }
        Ok(())
    };
    let sent = tokio::select! {
        () = given_up.cancelled() => Ok(()),
        sent = sending => sent,
    };
    given_up.cancel();
    sent
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, duplex};
    use tokio::time::sleep;

    use super::super::share::{Share, Standing};
    use super::*;

    const FRAMES: u32 = 8;
    const WAIT_MAX: Duration = Duration::from_secs(2);

    /// Sends some frames to a peer that rests before it reads each of them; how many it got.
    async fn frames_taken(rest: Duration) -> (u32, Result<(), LinkError>) {
        let (ours, mut theirs) = duplex(16 * 1024);
        let (filling, outgoing) = queue(Arc::new(Share::of(Standing::Votes, 1)));
        let frame = Bytes::from(vec![7; 64 * 1024]);
        for _ in 0..FRAMES {
            filling.push(frame.clone()).expect("there is room");
        }
        drop(filling);
        let (_, writing) = split(ours);
        let given_up = CancellationToken::new();
        let sending = tokio::spawn(send_all(frames::writer(writing), outgoing, given_up, WAIT_MAX));
        let (mut taken, mut bytes) = (0, vec![0; frame.len() + 4]);
        while taken < FRAMES && !sending.is_finished() {
            sleep(rest).await;
            if theirs.read_exact(&mut bytes).await.is_err() {
                break;
            }
            taken += 1;
        }
        (taken, sending.await.expect("does not panic"))
    }

    #[tokio::test]
    async fn a_slow_peer_that_takes_each_frame_in_time_keeps_its_link_and_another_loses_it() {
        let (taken, sent) = frames_taken(WAIT_MAX / 4).await;
        assert!(sent.is_ok(), "{sent:?}");
        assert_eq!(taken, FRAMES);
        let (_, sent) = frames_taken(WAIT_MAX * 2).await;
        assert!(matches!(sent, Err(LinkError::SendTimedOut)), "{sent:?}");
    }
}
