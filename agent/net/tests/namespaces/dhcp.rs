//! Guests that ask for their address.
//!
//! Setting: as for cards by NAT, and `dagger-dhcp` on the host, at its own socket. Pinned: each
//! guest gets its own address with what its seed says, whoever is no guest by NAT gets nothing,
//! nothing that a guest says ends the server or makes it say more than a little, and other servers
//! stand beside it.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Child, Stdio};
use std::time::Duration;

use dagger_net::names;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};

use super::client::{
    ACKNOWLEDGED, DECLINE, INFORM, OFFER, REFUSED, RELEASE, Told, discover, question, remember,
    renew, select,
};
use super::support::{HOST, LEASE, Machine, World, bridged, card};

const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 6);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const EVERYBODY: Ipv4Addr = Ipv4Addr::BROADCAST;
/// Far longer than an answer takes.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);

/// A server on the host of a world.
struct Server(Child);

impl Server {
    fn start(world: &World) -> Self {
        let mut child = world
            .host
            .command(&[env!("CARGO_BIN_EXE_dagger-dhcp"), "--bind"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        let said = child.stdout.as_mut().expect("piped");
        BufReader::new(said).read_line(&mut line).expect("it speaks");
        assert_eq!(line, "ready\n");
        Self(child)
    }

    /// It ends with its owner, and says what it did.
    fn end(mut self) -> String {
        drop(self.0.stdin.take());
        let mut said = String::new();
        self.0.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        assert!(self.0.wait().expect("it ends").success(), "{said}");
        said
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A socket of a namespace, at one interface of it. A socket stays where it was made.
fn socket_of(space: &str, interface: &str, (own, port): (Ipv4Addr, u16)) -> UdpSocket {
    let path = format!("/run/netns/{space}");
    let make = || {
        let space = File::open(path).expect("it is there");
        setns(&space, CloneFlags::CLONE_NEWNET).expect("root may");
        let flags = SockFlag::SOCK_CLOEXEC;
        let made = socket(AddressFamily::Inet, SockType::Datagram, flags, None).expect("made");
        setsockopt(&made, sockopt::ReuseAddr, &true).expect("set");
        setsockopt(&made, sockopt::Broadcast, &true).expect("set");
        setsockopt(&made, sockopt::BindToDevice, &interface.into()).expect("set");
        let place = SockaddrIn::from(SocketAddrV4::new(own, port));
        bind(made.as_raw_fd(), &place).expect("bound");
        let socket = UdpSocket::from(made);
        socket.set_read_timeout(Some(ANSWER_WAIT_MAX)).expect("set");
        socket
    };
    std::thread::scope(|scope| scope.spawn(make).join().expect("a socket"))
}

/// A guest's client.
struct Client(UdpSocket);

impl Client {
    fn of(machine: &impl Machine, interface: &str, own: Ipv4Addr) -> Self {
        Self(socket_of(machine.space(), interface, (own, 68)))
    }

    fn say(&self, words: &[u8], to: Ipv4Addr) {
        self.0.send_to(words, (to, 67)).expect("it goes");
    }

    fn hear(&self) -> (Told, Ipv4Addr) {
        let mut bytes = [0; 1500];
        let (length, from) = self.0.recv_from(&mut bytes).expect("an answer");
        let std::net::SocketAddr::V4(from) = from else { panic!("{from}") };
        assert_eq!(from.port(), 67);
        (Told::read(&bytes[..length]), *from.ip())
    }

    fn ask(&self, words: &[u8]) -> Told {
        self.say(words, EVERYBODY);
        self.hear().0
    }

    fn has_heard_nothing(&self) -> bool {
        self.0.set_nonblocking(true).expect("set");
        self.0.recv(&mut [0; 1]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

/// What guest number 5 is told.
fn as_in_the_seed(kind: u8) -> Told {
    let offer = card(5).offer();
    Told {
        kind,
        address: OWN,
        server: Some(GATEWAY),
        mask: Some([255, 255, 255, 0].into()),
        router: Some(GATEWAY),
        nameservers: offer.nameservers,
        hostname: Some(offer.hostname.to_string()),
        lease_seconds: Some(6 * 60 * 60),
        client_name: None,
    }
}

#[test]
fn a_guest_that_asks_gets_its_address_and_keeps_it() {
    let world = World::new("d-asks");
    let server = Server::start(&world);
    let guest = world.newcomer(5);
    let client = Client::of(&guest, "card", NONE);
    let offered = client.ask(&discover());
    assert_eq!(offered, Told { client_name: offered.client_name.clone(), ..as_in_the_seed(OFFER) });
    client.say(&select(OWN, GATEWAY), EVERYBODY);
    assert_eq!(client.hear(), (as_in_the_seed(ACKNOWLEDGED), GATEWAY));
    drop(client);

    // What it was told is what it needs.
    guest.is_called("10.77.0.5");
    guest.run(&["ip", "route", "add", "default", "via", &GATEWAY.to_string()]);
    assert_eq!(world.host.ask("10.77.0.5", 9), "ConnectionRefusedError", "it is reached");
    // At its own address alone, as some clients listen who have one.
    let client = Client::of(&guest, "card", OWN);
    client.say(&renew(OWN), GATEWAY);
    assert_eq!(client.hear(), (as_in_the_seed(ACKNOWLEDGED), GATEWAY));
    client.say(&renew(OWN), EVERYBODY);
    assert_eq!(client.hear().0, as_in_the_seed(ACKNOWLEDGED));
    // Given back, it is still its own.
    client.say(&question(RELEASE, OWN, &[(54, &GATEWAY.octets())]), GATEWAY);
    client.say(&question(DECLINE, NONE, &[(50, &OWN.octets())]), EVERYBODY);
    client.say(&renew(OWN), GATEWAY);
    assert_eq!(client.hear().0, as_in_the_seed(ACKNOWLEDGED));
    let told = client.ask(&question(INFORM, OWN, &[]));
    let rest = Told { address: NONE, lease_seconds: None, ..as_in_the_seed(ACKNOWLEDGED) };
    assert_eq!(told, rest);
    assert!(client.has_heard_nothing());

    // Another server would say the same: this one keeps nothing.
    let said = server.end();
    assert!(said.contains("6 answered") && said.contains("2 wanted no answer"), "{said}");
    let _another = Server::start(&world);
    let client = Client::of(&guest, "card", NONE);
    assert_eq!(client.ask(&remember(OWN)), as_in_the_seed(ACKNOWLEDGED));
    // What its operator names from now on, it hears with the next question.
    world.change(5, |card| card.nameservers.clear());
    assert_eq!(client.ask(&remember(OWN)).nameservers, Vec::<Ipv4Addr>::new());
}

#[test]
fn nobody_gets_or_hears_of_anothers_address() {
    let world = World::new("d-others");
    let _server = Server::start(&world);
    let (guest, other) = (world.newcomer(5), world.newcomer(6));
    let (client, listener) = (Client::of(&guest, "card", NONE), Client::of(&other, "card", NONE));
    for words in [select(OTHER, GATEWAY), remember(OTHER), renew(OTHER)] {
        let told = client.ask(&words);
        assert_eq!((told.kind, told.address), (REFUSED, NONE));
    }
    assert_eq!(client.ask(&discover()).address, OWN);
    // What it hears first is the answer to its own question: none of those before.
    assert_eq!(listener.ask(&remember(OTHER)).kind, ACKNOWLEDGED);
    // Under the other's MAC or address nothing leaves the guest.
    guest.run(&["ip", "link", "set", "card", "address", &card(6).mac]);
    client.say(&remember(OTHER), EVERYBODY);
    guest.run(&["ip", "link", "set", "card", "address", &card(5).mac]);
    guest.is_called("10.77.0.6");
    client.say(&renew(OTHER), EVERYBODY);
    guest.run(&["ip", "address", "flush", "dev", "card"]);
    assert_eq!(client.ask(&remember(OWN)).kind, ACKNOWLEDGED);
    assert!(client.has_heard_nothing() && listener.has_heard_nothing());
}

#[test]
fn who_is_no_guest_by_nat_is_not_answered() {
    let world = World::bridged("d-bridge");
    let server = Server::start(&world);
    let (guest, another) = (world.newcomer(5), world.newcomer(7));
    let neighbour = world.neighbour(6, |card| card.bridge.address = None);
    neighbour.run(&["ip", "address", "flush", "dev", "card"]);
    let elsewhere = [
        Client::of(&neighbour, "card", NONE),
        Client::of(&world.outside, "wire", NONE),
        Client::of(&world.host, "lo", NONE),
    ];
    for client in &elsewhere {
        client.say(&discover(), EVERYBODY);
    }
    let client = Client::of(&guest, "card", NONE);
    assert_eq!(client.ask(&remember(OWN)).kind, ACKNOWLEDGED);

    // A tap that calls itself otherwise than it is called.
    let tap = names::interface(HOST, card(5).vm, 0);
    let alias = names::alias(HOST, bridged(5).vm, 1) + &card(5).offer().to_string();
    world.host.run(&["ip", "link", "set", "dev", &tap, "alias", &alias]);
    client.say(&remember(OWN), EVERYBODY);
    // Once it is heard what the guest says next, its question waits before the other's.
    let mut service = world.host.serve("udp", 53);
    guest.is_called("10.77.0.5");
    guest.say("10.77.0.1", 53, "10.77.0.5");
    assert_eq!(service.heard(), "10.77.0.5");
    assert_eq!(Client::of(&another, "card", NONE).ask(&discover()).kind, OFFER);
    assert!(client.has_heard_nothing() && elsewhere.iter().all(Client::has_heard_nothing));
    let said = server.end();
    assert!(said.contains("2 answered") && said.contains("4 by no guest's tap"), "{said}");
}

#[test]
fn nothing_that_a_guest_says_ends_the_server_or_keeps_it_from_others() {
    let world = World::new("d-hostile");
    let server = Server::start(&world);
    let (guest, other) = (world.newcomer(5), world.newcomer(6));
    let (client, second) = (Client::of(&guest, "card", NONE), Client::of(&other, "card", NONE));
    let whole = discover();
    for words in [&b""[..], b"\xff", &[0xff; 1400], &whole[..100], &whole[..242], &[0; 241]] {
        client.say(words, EVERYBODY);
    }
    assert_eq!(client.ask(&discover()).kind, OFFER);
    for _ in 0..400 {
        client.say(&discover(), EVERYBODY);
    }
    assert_eq!(second.ask(&remember(OTHER)).kind, ACKNOWLEDGED);
    let said = server.end();
    assert!(said.contains("6 malformed"), "{said}");
    let answered =
        said.split_once(" answered").and_then(|(before, _)| before.split(' ').next_back());
    let answered: u32 = answered.and_then(|number| number.parse().ok()).expect(&said);
    // Both that were waited for, and few of those that nobody could wait for.
    assert!((2..200).contains(&answered), "{said}");
}

#[test]
fn a_guest_by_nat_is_no_dhcp_server_for_another() {
    let world = World::new("d-server");
    let (guest, other) = (world.guest(5, |_| {}), world.guest(6, |_| {}));
    let mut client = other.serve("udp", 68);
    guest.run(&["python3", "-c", LEASE, "10.77.0.5", "67", "10.77.0.6"]);
    guest.run(&["python3", "-c", LEASE, "10.77.0.5", "66", "10.77.0.6"]);
    assert_eq!(client.heard(), "10.77.0.5");
    world.host.run(&["nft", "delete", "table", "netdev", &names::table(HOST, card(5).vm, 0)]);
    guest.run(&["python3", "-c", LEASE, "10.77.0.5", "67", "10.77.0.6"]);
    assert_eq!(client.heard(), "10.77.0.5", "without the filter it would have been");
}

#[test]
fn servers_that_are_bound_to_interfaces_of_their_own_stand_beside_it() {
    let world = World::new("d-beside");
    // One that was there before, and one that comes later.
    let before = socket_of(world.host.space(), "uplink", (NONE, 67));
    let server = Server::start(&world);
    let after = socket_of(world.host.space(), "lo", (NONE, 67));
    let guest = world.newcomer(5);
    let client = Client::of(&guest, "card", NONE);
    assert_eq!(client.ask(&remember(OWN)).kind, ACKNOWLEDGED);
    let outside = Client::of(&world.outside, "wire", NONE);
    outside.say(b"hello", EVERYBODY);
    outside.say(b"hello", [192, 0, 2, 1].into());
    for _ in 0..2 {
        let mut word = [0; 9];
        assert_eq!(
            before.recv(&mut word).map(|length| word[..length] == *b"hello").ok(),
            Some(true)
        );
    }
    assert_eq!(client.ask(&discover()).kind, OFFER);
    drop(after);
    let said = server.end();
    assert!(said.contains("2 answered") && said.contains("1 by no guest's tap"), "{said}");
}
