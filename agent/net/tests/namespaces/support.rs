//! Network namespaces with a host, its guests and somebody outside, gone when dropped.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use dagger_net::names;
use dagger_net::request::{Action, Answer, BridgedCard, Card, Owner, Request};
use dagger_payload::bridge::{Bridged, StaticAddress};
use dagger_payload::id::{HostId, VmId};
use dagger_payload::kind::GuestSubnet;
use dagger_payload::network::VmNetwork;

pub(crate) const HOST: HostId = HostId([1; 16]);
/// The host as its guests see it.
pub(crate) const GATEWAY: &str = "10.77.0.1";
/// The host as others see it, and somebody else there.
pub(crate) const HOST_OUTSIDE: &str = "192.0.2.1";
pub(crate) const OUTSIDE: &str = "192.0.2.2";

/// Says to everybody that an address has this MAC.
pub(crate) const CLAIM: &str = "
import socket, sys
mac, address = bytes.fromhex(sys.argv[1].replace(':', '')), socket.inet_aton(sys.argv[2])
end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
end.bind(('card', 0))
for kind in (1, 2):
    arp = bytes.fromhex('00010800060400') + bytes([kind]) + mac + address + mac + address
    end.send(b'\\xff' * 6 + mac + b'\\x08\\x06' + arp)
";

/// Answers whoever says something over UDP.
const ECHO: &str = "
import socket, sys
end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end.bind(('0.0.0.0', int(sys.argv[1])))
print('ready', flush=True)
while True:
    word, whose = end.recvfrom(100)
    end.sendto(word, whose)
";

/// Says something over UDP and tells whether it was answered.
pub(crate) const QUESTION: &str = "
import socket, sys
end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end.settimeout(3)
end.sendto(b'hello', (sys.argv[1], int(sys.argv[2])))
try:
    print('answered' if end.recv(100) == b'hello' else 'otherwise')
except OSError as error:
    print(type(error).__name__)
";

/// Asks by ICMP whether somebody is there.
pub(crate) const PING: &str = "
import socket, sys
end = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
end.settimeout(3)
end.sendto(bytes.fromhex('0800f7fd00010001'), (sys.argv[1], 0))
try:
    while end.recv(100)[20] != 0:
        pass
    print('answered')
except OSError as error:
    print(type(error).__name__)
";

/// Says to a DHCP client, from an address and a port, what a server would.
pub(crate) const LEASE: &str = "
import socket, sys
end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end.bind((sys.argv[1], int(sys.argv[2])))
end.sendto(b'hello', (sys.argv[3], 68))
";

/// Begins as many conversations as it can for some seconds.
pub(crate) const FLOOD: &str = "
import itertools, socket, sys, time
end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
stop = time.monotonic() + float(sys.argv[2])
for port in itertools.cycle(range(1024, 65536)):
    try:
        end.sendto(b'hello', (sys.argv[1], port))
    except OSError:
        pass
    if time.monotonic() > stop:
        break
";

/// The card of the guest with this number.
pub(crate) fn card(number: u8) -> Card {
    Card {
        vm: VmId([number; 16]),
        mac: format!("52:54:00:00:00:{number:02x}"),
        address: [10, 77, 0, number].into(),
        subnet: GuestSubnet { network: [10, 77, 0, 0].into(), prefix_length: 24 },
        hostname: format!("web-{number}").parse().expect("a name"),
        nameservers: vec![[9, 9, 9, 9].into(), [192, 0, 2, 53].into()],
        owner: Owner::Root,
        network: VmNetwork::default(),
        forward_ports_first: Some(20_000),
    }
}

/// The second card of the guest with this number: on the bridge `lan`, with an address of its own.
pub(crate) fn bridged(number: u8) -> BridgedCard {
    let address =
        StaticAddress { address: [192, 0, 2, number].into(), prefix_length: 24, gateway: None };
    BridgedCard {
        vm: VmId([number; 16]),
        card: 1,
        mac: format!("52:54:00:00:01:{number:02x}"),
        owner: Owner::Root,
        bridge: Bridged { bridge: "lan".parse().expect("a name"), address: Some(address) },
        allow: None,
    }
}

fn script(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name).display().to_string()
}

/// A program that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Started, and waited for until it says that it is ready.
    fn start(command: &mut Command) -> (Self, BufReader<ChildStdout>) {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let mut said = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        said.read_line(&mut line).expect("it speaks");
        assert_eq!(line, "ready\n");
        (Self(child), said)
    }
}

/// Somebody who listens.
pub(crate) struct Service {
    _running: Running,
    said: BufReader<ChildStdout>,
}

impl Service {
    /// Who came next.
    pub(crate) fn heard(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("it speaks");
        line.trim().to_owned()
    }
}

/// Somebody who answers over UDP, until dropped.
pub(crate) struct Echo {
    _running: Running,
}

/// Starts to answer on this port.
pub(crate) fn echo(whose: &impl Machine, port: u16) -> Echo {
    let (running, _) =
        Running::start(&mut whose.command(&["python3", "-c", ECHO, &port.to_string()]));
    Echo { _running: running }
}

/// One namespace.
pub(crate) struct Space(String);

impl Space {
    fn new(name: String) -> Self {
        must(Command::new("ip").args(["netns", "add", &name]));
        let space = Self(name);
        space.run(&["ip", "link", "set", "lo", "up"]);
        space
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

/// Whoever lives in a namespace.
pub(crate) trait Machine {
    fn space(&self) -> &str;

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.space()]).args(words);
        command
    }

    fn run(&self, words: &[&str]) -> String {
        must(&mut self.command(words))
    }

    /// Listens, until dropped.
    fn serve(&self, protocol: &str, port: u16) -> Service {
        let (talk, port) = (script("talk.py"), port.to_string());
        let mut command = self.command(&["python3", &talk, "serve", protocol, &port]);
        let (running, said) = Running::start(&mut command);
        Service { _running: running, said }
    }

    /// As whom somebody is seen there, or why he does not get there.
    fn ask(&self, address: &str, port: u16) -> String {
        let (talk, port) = (script("talk.py"), port.to_string());
        self.run(&["python3", &talk, "ask", "tcp", address, &port]).trim().to_owned()
    }

    /// The same under one of several addresses of its own.
    fn ask_from(&self, (address, port): (&str, u16), from: &str) -> String {
        let (talk, port) = (script("talk.py"), port.to_string());
        self.run(&["python3", &talk, "ask", "tcp", address, &port, from]).trim().to_owned()
    }

    /// One datagram.
    fn say(&self, address: &str, port: u16, from: &str) {
        let (talk, port) = (script("talk.py"), port.to_string());
        self.run(&["python3", &talk, "ask", "udp", address, &port, from]);
    }
}

impl Machine for Space {
    fn space(&self) -> &str {
        &self.0
    }
}

/// A guest with its wire; the card stays when it goes.
pub(crate) struct Guest {
    space: Space,
    _wires: [Running; 2],
}

impl Guest {
    pub(crate) fn is_called(&self, address: &str) {
        self.run(&["ip", "address", "add", &format!("{address}/24"), "dev", "card"]);
    }
}

impl Machine for Guest {
    fn space(&self) -> &str {
        &self.space.0
    }
}

/// A host, and somebody outside.
pub(crate) struct World {
    pub(crate) host: Space,
    pub(crate) outside: Space,
    name: String,
    /// On which bridges guests may be.
    pub(crate) list: tempfile::NamedTempFile,
}

impl World {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("dgrtest-{}-{name}", std::process::id());
        let host = Space::new(format!("{name}-host"));
        let outside = Space::new(format!("{name}-outside"));
        let peer = ["peer", "name", "wire", "netns", &outside.0];
        host.run(&[&["ip", "link", "add", "uplink", "type", "veth"][..], &peer[..]].concat());
        for (space, wire, address) in [(&host, "uplink", HOST_OUTSIDE), (&outside, "wire", OUTSIDE)]
        {
            space.run(&["ip", "address", "add", &format!("{address}/24"), "dev", wire]);
            space.run(&["ip", "link", "set", wire, "up"]);
        }
        host.run(&["ip", "route", "add", "default", "via", OUTSIDE]);
        let mut list = tempfile::NamedTempFile::new().expect("a file");
        list.write_all(b"lan br0\n").expect("written");
        Self { host, outside, name, list }
    }

    /// The same, with the host's way out on a bridge.
    pub(crate) fn bridged(name: &str) -> Self {
        let world = Self::new(name);
        let host = &world.host;
        host.run(&["ip", "link", "add", "br0", "type", "bridge"]);
        host.run(&["ip", "address", "flush", "dev", "uplink"]);
        // A high address: the ports that are added must not have a lower one.
        host.run(&["ip", "link", "set", "uplink", "address", "fe:fe:00:00:00:01"]);
        host.run(&["ip", "link", "set", "uplink", "master", "br0"]);
        host.run(&["ip", "address", "add", &format!("{HOST_OUTSIDE}/24"), "dev", "br0"]);
        host.run(&["ip", "link", "set", "br0", "up"]);
        world
    }

    /// What the helper answers.
    pub(crate) fn request(&self, action: Action) -> Answer {
        let mut helper = self
            .host
            .command(&[env!("CARGO_BIN_EXE_dagger-net"), "--bridges"])
            .arg(self.list.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let request = serde_json::to_vec(&Request::new(HOST, action)).expect("JSON");
        helper.stdin.take().expect("piped").write_all(&request).expect("it reads");
        let output = helper.wait_with_output().expect("it ends");
        serde_json::from_slice(&output.stdout).expect("an answer")
    }

    /// Ensures the card of a guest, otherwise than usual.
    pub(crate) fn change(&self, number: u8, change: impl Fn(&mut Card)) {
        let mut card = card(number);
        change(&mut card);
        assert_eq!(self.request(Action::Ensure(Box::new(card))), Answer::Done);
    }

    /// A guest, configured as its seed says.
    pub(crate) fn guest(&self, number: u8, change: impl Fn(&mut Card)) -> Guest {
        self.change(number, change);
        let card = card(number);
        let tap = names::interface(HOST, card.vm, 0);
        let guest = self.plugged(number, &tap, &card.mac);
        guest.is_called(&card.address.to_string());
        guest.run(&["ip", "route", "add", "default", "via", GATEWAY]);
        guest
    }

    /// A guest that has read no seed.
    pub(crate) fn newcomer(&self, number: u8) -> Guest {
        self.change(number, |_| {});
        let card = card(number);
        self.plugged(number, &names::interface(HOST, card.vm, 0), &card.mac)
    }

    /// Ensures the card of a guest on the bridge, otherwise than usual.
    pub(crate) fn change_bridged(&self, number: u8, change: impl Fn(&mut BridgedCard)) -> Answer {
        let mut card = bridged(number);
        change(&mut card);
        self.request(Action::Bridge(Box::new(card)))
    }

    /// A guest on the bridge, with the address that its owner chose.
    pub(crate) fn neighbour(&self, number: u8, change: impl Fn(&mut BridgedCard)) -> Guest {
        assert_eq!(self.change_bridged(number, change), Answer::Done);
        let card = bridged(number);
        let tap = names::interface(HOST, card.vm, 1);
        let guest = self.plugged(number, &tap, &card.mac);
        guest.is_called(&format!("192.0.2.{number}"));
        guest
    }

    fn plugged(&self, number: u8, tap: &str, mac: &str) -> Guest {
        let space = Space::new(format!("{}-{number}", self.name));
        space.run(&["ip", "tuntap", "add", "dev", "card", "mode", "tap"]);
        space.run(&["ip", "link", "set", "card", "address", mac, "up"]);
        let (one, other) = UnixDatagram::pair().expect("a pair");
        let _wires = [join(&self.host, tap, one), join(&space, "card", other)];
        Guest { space, _wires }
    }
}

fn join(space: &Space, tap: &str, end: UnixDatagram) -> Running {
    let mut command = space.command(&["python3", &script("wire.py"), tap]);
    Running::start(command.stdin(Stdio::from(OwnedFd::from(end)))).0
}

fn must(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
