//! Links between real TCP sockets with real TLS: who is let in, and what ends a link.
//!
//! Setting: members 0 and 1 of a cluster of two; the test plays member 0 where it misbehaves. Pins:
//! only members' keys pass, a frame over the limit is refused by its length alone, garbage ends the
//! link and nothing else, and a newer link takes the place of an older one without the driver
//! hearing of two.

#[path = "../common/mod.rs"]
mod common;
mod floods;
mod hostile;
mod peers;
mod roster;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dagger_ledger::link::frames;
use dagger_ledger::link::heard::{self, Heard};
use dagger_ledger::link::inspect::KnownEvents;
use dagger_ledger::link::tls::Identity;
use dagger_ledger::link::{LinkConfiguration, LinkEvent, Links, Member};
use dagger_payload::event::{Attestation, CommitEnd, EVENT_VERSION, Event, Header};
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, Epoch, LedgerTime, MerkleRoot, Position, PrefixHash,
    Round, StateRoot,
};
use dagger_payload::key::Domain;
use dagger_payload::limits::FRAME_BYTES_MAX;
use dagger_payload::peer::{Highest, PeerMessage};
use futures_util::SinkExt;
use peers::{CLUSTER, dial, hello, key, listener};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const PATIENCE: Duration = Duration::from_secs(10);

struct Side {
    links: Links,
    events: Heard,
    known: Arc<KnownEvents>,
    address: SocketAddr,
}

fn start(me: u16, listener: TcpListener, addresses: [SocketAddr; 2]) -> Side {
    let members = (0_u8..).zip(addresses).map(|(index, address)| Member {
        name: format!("host{index}").parse().expect("a name"),
        key: key(index).public_key(),
        address,
    });
    let configuration =
        LinkConfiguration { cluster: CLUSTER, me: AuthorIndex(me), members: members.collect() };
    let (sender, events) = heard::channel(64);
    let known = Arc::new(KnownEvents::default());
    let own = key(u8::try_from(me).expect("small"));
    let address = addresses[usize::from(me)];
    let links = Links::start(configuration, &own, known.clone(), listener, sender);
    Side { links, events, known, address }
}

impl Side {
    async fn next(&mut self) -> LinkEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("in time").expect("links run")
    }

    async fn connected(&mut self) {
        assert!(matches!(self.next().await, LinkEvent::Connected(_)));
    }

    async fn closed(&mut self) {
        assert!(matches!(self.next().await, LinkEvent::Closed(_)));
    }
}

/// Member 1 alone; the test dials it as member 0.
async fn lone_listener() -> Side {
    let (listener, address) = listener().await;
    let nobody = "127.0.0.1:1".parse().expect("an address");
    start(1, listener, [nobody, address])
}

async fn greeted(address: SocketAddr) -> TlsStream<TcpStream> {
    let mut stream = dial(&key(0), address).await.expect("a member's key passes");
    frames::writer(&mut stream).send(hello()).await.expect("sends");
    stream
}

/// Waits until the other side has closed.
async fn is_closed(stream: &mut TlsStream<TcpStream>) -> bool {
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.is_ok()
}

fn event(signer: u8, timestamp: u64) -> Event {
    event_of(AuthorIndex(0), signer, timestamp)
}

fn event_of(author: AuthorIndex, signer: u8, timestamp: u64) -> Event {
    let end = CommitEnd {
        index: CommitIndex(0),
        position: Position(0),
        prefix_hash: PrefixHash::ZERO,
        state_root: StateRoot::ZERO,
    };
    let header = Header {
        version: EVENT_VERSION,
        cluster: CLUSTER,
        epoch: Epoch(0),
        round: Round(1),
        author,
        parents: vec![],
        payload_root: MerkleRoot::ZERO,
        payload_count: 0,
        timestamp: LedgerTime(timestamp),
        attestation: Attestation { newest: end, checkpoint: None },
    };
    Event::make(header, vec![], |digest| key(signer).sign_in(Domain::Event, digest.as_bytes()))
}

#[tokio::test]
async fn two_members_link_once_and_link_again_after_a_loss() {
    let ((first, first_at), (second, second_at)) = (listener().await, listener().await);
    let addresses = [first_at, second_at];
    let (mut zero, mut one) = (start(0, first, addresses), start(1, second, addresses));
    zero.connected().await;
    one.connected().await;
    let have = PeerMessage::Have {
        highest: vec![Highest { author: AuthorIndex(0), round: Round(3) }],
        epoch: Epoch(0),
    };
    zero.links.send(AuthorIndex(1), have.to_bytes().into());
    let LinkEvent::Message(AuthorIndex(0), message) = one.next().await else {
        panic!("expected the message");
    };
    assert_eq!(message, have);

    // The other host restarts on the same address.
    one.links.stop();
    zero.closed().await;
    drop(one);
    let listener = loop {
        match TcpListener::bind(second_at).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let mut one = start(1, listener, addresses);
    zero.connected().await;
    one.connected().await;
}

#[tokio::test]
async fn a_key_that_is_no_members_is_refused_and_so_is_a_member_who_must_not_dial() {
    let mut one = lone_listener().await;
    for stranger in [9, 1] {
        let refused = match dial(&key(stranger), one.address).await {
            // With TLS 1.3 the dialling side is ready before the other has judged its key.
            Ok(mut stream) => {
                let _ = frames::writer(&mut stream).send(hello()).await;
                stream.read_u8().await.is_err()
            }
            Err(_) => true,
        };
        assert!(refused);
    }
    // A listener with another key than the dialled member's is refused too.
    let members = vec![(AuthorIndex(1), key(7).public_key())];
    let stream = TcpStream::connect(one.address).await.expect("connects");
    let client = Identity::new(&key(0), members).client(AuthorIndex(1));
    let name = ServerName::from(one.address.ip());
    assert!(TlsConnector::from(client).connect(name, stream).await.is_err());
    assert!(one.events.try_recv().is_none(), "the driver hears of none of them");
}

#[tokio::test]
async fn a_peer_of_another_cluster_or_without_hello_is_refused() {
    let mut one = lone_listener().await;
    let foreign = PeerMessage::Hello { version: 1, cluster: ClusterId([2; 32]) };
    for first in [foreign, PeerMessage::AskRecovery { nonce: 1, epoch: Epoch(0) }] {
        let mut stream = dial(&key(0), one.address).await.expect("connects");
        let frame = Bytes::from(first.to_bytes());
        frames::writer(&mut stream).send(frame).await.expect("sends");
        assert!(is_closed(&mut stream).await);
    }
    assert!(one.events.try_recv().is_none());
}

#[tokio::test]
async fn a_frame_over_the_limit_is_refused_by_its_length_alone() {
    let mut one = lone_listener().await;
    let mut stream = greeted(one.address).await;
    one.connected().await;
    // Not one byte of the announced gigabyte follows.
    stream.write_u32(1 << 30).await.expect("sends");
    stream.flush().await.expect("sends");
    one.closed().await;
    assert!(is_closed(&mut stream).await);

    // A frame at the limit that is no message is refused as well, and the next link is welcome.
    let mut stream = greeted(one.address).await;
    one.connected().await;
    let large = Bytes::from(vec![0; FRAME_BYTES_MAX]);
    frames::writer(&mut stream).send(large).await.expect("sends");
    one.closed().await;
    let _welcome = greeted(one.address).await;
    one.connected().await;
}

#[tokio::test]
async fn an_event_with_a_bad_signature_ends_the_link_and_a_known_one_passes_unseen() {
    let mut one = lone_listener().await;
    let mut stream = greeted(one.address).await;
    one.connected().await;
    let good = event(0, 1);
    let message = Bytes::from(PeerMessage::event(&good).to_bytes());
    let mut writer = frames::writer(&mut stream);
    writer.send(message.clone()).await.expect("sends");
    let LinkEvent::Event(AuthorIndex(0), received) = one.next().await else {
        panic!("expected the event");
    };
    assert_eq!(*received, good);
    one.known.remember(good.digest);
    writer.send(message).await.expect("sends");
    let ask: Bytes = PeerMessage::AskRecovery { nonce: 5, epoch: Epoch(0) }.to_bytes().into();
    writer.send(ask).await.expect("sends");
    assert!(matches!(one.next().await, LinkEvent::Message(..)), "the copy was dropped");

    let forged: Bytes = PeerMessage::event(&event(3, 2)).to_bytes().into();
    writer.send(forged).await.expect("sends");
    one.closed().await;
    assert!(is_closed(&mut stream).await);
}

#[tokio::test]
async fn a_newer_link_of_the_same_member_takes_the_place_of_the_older() {
    let mut one = lone_listener().await;
    let mut older = greeted(one.address).await;
    one.connected().await;
    let _newer = greeted(one.address).await;
    one.closed().await;
    one.connected().await;
    assert!(is_closed(&mut older).await);
    assert!(one.links.is_connected(AuthorIndex(0)));
}

#[tokio::test]
async fn a_peer_that_takes_nothing_loses_its_link_and_costs_bounded_memory() {
    let mut one = lone_listener().await;
    let stuck = greeted(one.address).await;
    one.connected().await;
    let frame = Bytes::from(vec![0; FRAME_BYTES_MAX]);
    // Nothing is read on the other side: the queue fills after what the kernel takes.
    let mut sent = 0;
    while one.links.is_connected(AuthorIndex(0)) {
        one.links.send(AuthorIndex(0), frame.clone());
        tokio::task::yield_now().await;
        sent += 1;
        assert!(sent < 1_000, "the queue must have a bound");
    }
    one.closed().await;
    drop(stuck);
}
