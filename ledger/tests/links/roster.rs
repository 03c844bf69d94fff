//! Who is linked to while that changes: newcomers, members who leave, and members who move.
//!
//! Setting: real TCP with real TLS between the ledger under test and others that the test starts or
//! plays. Pins: a newcomer is dialled or let in at once; whose seat is left loses its link and is
//! refused, unless it votes still; a member that moves is dialled where it is now; an author whom
//! nobody has a seat for ends the link of whoever sends its events; and however often the list
//! changes, neither tasks nor sockets are left behind.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dagger_ledger::link::frames;
use dagger_ledger::link::heard::{self, Heard};
use dagger_ledger::link::inspect::KnownEvents;
use dagger_ledger::link::{LinkConfiguration, LinkEvent, Links};
use dagger_payload::committee::Committee;
use dagger_payload::id::{AuthorIndex, HostId, OperatorId};
use dagger_payload::peer::PeerMessage;
use dagger_payload::roster::{Roster, Seat, SeatStanding};
use futures_util::SinkExt;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::peers::{CLUSTER, dial, hello, key, listener};
use crate::{event, is_closed};

const PATIENCE: Duration = Duration::from_secs(20);

fn seat(index: u16, address: SocketAddr) -> Seat {
    let key = key(u8::try_from(index).expect("few")).public_key();
    Seat {
        index: AuthorIndex(index),
        host: HostId::of(&key),
        name: format!("host{index}").parse().expect("a name"),
        operator: OperatorId([1; 16]),
        ledger_key: key,
        address,
        standing: SeatStanding::Present,
    }
}

fn left(seat: Seat) -> Seat {
    Seat { standing: SeatStanding::Left, ..seat }
}

fn roster(seats: &[Seat]) -> Roster {
    Roster::try_from(seats.to_vec()).expect("in order")
}

fn voters(authors: &[u16]) -> Committee {
    Committee::of(authors.iter().copied().map(AuthorIndex)).expect("in range")
}

struct Side {
    links: Links,
    heard: Heard,
}

fn start(me: u16, listener: TcpListener) -> Side {
    let members = Vec::new();
    let configuration = LinkConfiguration { cluster: CLUSTER, me: AuthorIndex(me), members };
    let (sender, heard) = heard::channel(64);
    let known = Arc::new(KnownEvents::default());
    let own = key(u8::try_from(me).expect("few"));
    Side { links: Links::start(configuration, &own, known, listener, sender), heard }
}

impl Side {
    async fn next(&mut self) -> LinkEvent {
        timeout(PATIENCE, self.heard.recv()).await.expect("in time").expect("links run")
    }

    async fn connected(&mut self, to: u16) {
        let next = self.next().await;
        assert!(matches!(next, LinkEvent::Connected(AuthorIndex(peer)) if peer == to), "{next:?}");
    }

    async fn closed(&mut self, to: u16) {
        let next = self.next().await;
        assert!(matches!(next, LinkEvent::Closed(AuthorIndex(peer)) if peer == to), "{next:?}");
    }
}

#[tokio::test]
async fn a_newcomer_is_linked_to_as_soon_as_its_seat_is_known() {
    let listeners = [listener().await, listener().await, listener().await];
    let addresses: Vec<_> = listeners.iter().map(|(_, address)| *address).collect();
    let [zero, one, two] = listeners.map(|(listener, _)| listener);
    let (mut zero, mut one, mut two) = (start(0, zero), start(1, one), start(2, two));
    let seats: Vec<_> = (0..).zip(addresses).map(|(index, at)| seat(index, at)).collect();
    let first = voters(&[0, 1]);
    for side in [&zero, &one] {
        side.links.update(&roster(&seats[..2]), first);
    }
    zero.connected(1).await;
    one.connected(0).await;
    two.links.update(&roster(&seats), first);
    zero.links.update(&roster(&seats), first);
    zero.connected(2).await;
    two.connected(0).await;
    // The one who is let in and the one who dials learn of it in any order.
    one.links.update(&roster(&seats), first);
    one.connected(2).await;
    two.connected(1).await;
    for (side, peers) in [(&zero, [1, 2]), (&one, [0, 2]), (&two, [0, 1])] {
        assert!(peers.iter().all(|peer| side.links.is_connected(AuthorIndex(*peer))));
    }
    let frame: Bytes = PeerMessage::event(&event(0, 1)).to_bytes().into();
    zero.links.broadcast(&frame);
    assert!(matches!(two.next().await, LinkEvent::Event(AuthorIndex(0), _)), "followers hear it");
}

#[tokio::test]
async fn a_key_whose_seat_is_left_is_refused_unless_it_votes_still() {
    let (own, address) = listener().await;
    let nobody = "127.0.0.1:1".parse().expect("an address");
    let mut one = start(1, own);
    let seats = [seat(0, nobody), seat(1, address)];
    one.links.update(&roster(&seats), voters(&[0, 1]));
    let greeted = async || {
        let mut stream = dial(&key(0), address).await.expect("connects");
        // Who is refused may notice only when it reads.
        let _ = frames::writer(&mut stream).send(hello()).await;
        stream
    };
    let mut stream = greeted().await;
    one.connected(0).await;
    let gone = [left(seats[0].clone()), seats[1].clone()];
    one.links.update(&roster(&gone), voters(&[0, 1]));
    assert!(one.links.is_connected(AuthorIndex(0)), "its votes count until the epoch ends");
    one.links.update(&roster(&gone), voters(&[1]));
    one.closed(0).await;
    assert!(is_closed(&mut stream).await);
    assert!(!one.links.is_connected(AuthorIndex(0)));
    let mut again = greeted().await;
    assert!(timeout(PATIENCE, again.read_u8()).await.expect("in time").is_err());
    assert!(one.heard.try_recv().is_none(), "the driver hears nothing of it");

    // It may come back, and its place is free.
    one.links.update(&roster(&seats), voters(&[1]));
    let _back = greeted().await;
    one.connected(0).await;
}

#[tokio::test]
async fn a_member_that_moves_is_dialled_where_it_is_now() {
    let ((own, own_at), (before, before_at), (after, after_at)) =
        (listener().await, listener().await, listener().await);
    let (mut zero, mut there) = (start(0, own), start(1, before));
    let at = |address| roster(&[seat(0, own_at), seat(1, address)]);
    for side in [&zero, &there] {
        side.links.update(&at(before_at), voters(&[0, 1]));
    }
    zero.connected(1).await;
    there.connected(0).await;
    let mut here = start(1, after);
    here.links.update(&at(after_at), voters(&[0, 1]));
    zero.links.update(&at(after_at), voters(&[0, 1]));
    zero.closed(1).await;
    there.closed(0).await;
    zero.connected(1).await;
    here.connected(0).await;
    // Nothing changes for who is dialled when the other one says another address of itself.
    let moved = Seat { address: before_at, ..seat(0, own_at) };
    here.links.update(&roster(&[moved, seat(1, after_at)]), voters(&[0, 1]));
    assert!(here.links.is_connected(AuthorIndex(0)));
    assert!(here.heard.try_recv().is_none());
}

#[tokio::test]
async fn events_of_an_author_without_a_seat_end_the_link_and_those_of_a_left_seat_are_read() {
    let (own, address) = listener().await;
    let nobody = "127.0.0.1:1".parse().expect("an address");
    let mut two = start(2, own);
    let seats = [left(seat(0, nobody)), seat(1, nobody), seat(2, address)];
    two.links.update(&roster(&seats), voters(&[1, 2]));
    let members = vec![(AuthorIndex(2), key(2).public_key())];
    let identity = dagger_ledger::link::tls::Identity::new(&key(1), members);
    let stream = tokio::net::TcpStream::connect(address).await.expect("connects");
    let name = rustls::pki_types::ServerName::from(address.ip());
    let connector = tokio_rustls::TlsConnector::from(identity.client(AuthorIndex(2)));
    let mut stream = connector.connect(name, stream).await.expect("a member's key passes");
    frames::writer(&mut stream).send(hello()).await.expect("sends");
    two.connected(1).await;
    // An epoch before, the author of this one voted: whoever is behind needs it.
    let old: Bytes = PeerMessage::event(&event(0, 1)).to_bytes().into();
    frames::writer(&mut stream).send(old).await.expect("sends");
    assert!(matches!(two.next().await, LinkEvent::Event(AuthorIndex(1), _)));
    let stranger = crate::event_of(AuthorIndex(u16::MAX), 3, 1);
    let frame: Bytes = PeerMessage::event(&stranger).to_bytes().into();
    frames::writer(&mut stream).send(frame).await.expect("sends");
    two.closed(1).await;
    assert!(is_closed(&mut stream).await);
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("lists").count()
}

#[tokio::test]
async fn a_hundred_changes_leave_no_task_and_no_socket_behind() {
    let ((own, own_at), (first, first_at), (second, second_at)) =
        (listener().await, listener().await, listener().await);
    let mut zero = start(0, own);
    let mut places = [(start(1, first), first_at), (start(1, second), second_at)];
    for (side, at) in &places {
        side.links.update(&roster(&[seat(0, own_at), seat(1, *at)]), voters(&[0, 1]));
    }
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let mut counts = Vec::new();
    for _ in 0..25 {
        // It comes, moves, moves back, and leaves.
        for (round, at) in [0, 1, 0].into_iter().enumerate() {
            let seats = [seat(0, own_at), seat(1, places[at].1)];
            zero.links.update(&roster(&seats), voters(&[0]));
            if round > 0 {
                zero.closed(1).await;
                places[1 - at].0.closed(0).await;
            }
            zero.connected(1).await;
            places[at].0.connected(0).await;
            // The same again changes nothing.
            zero.links.update(&roster(&seats), voters(&[0]));
        }
        let gone = [seat(0, own_at), left(seat(1, first_at))];
        zero.links.update(&roster(&gone), voters(&[0]));
        zero.closed(1).await;
        places[0].0.closed(0).await;
        let settled = async {
            while alive() > 3 {
                // Three listen; what has been told to end needs its turn.
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, settled).await.unwrap_or_else(|_| panic!("{} tasks", alive()));
        counts.push(open_files());
    }
    assert_eq!(counts.first(), counts.last(), "sockets are left behind: {counts:?}");
}
