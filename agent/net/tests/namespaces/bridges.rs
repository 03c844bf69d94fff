//! Cards on a bridge of the host.
//!
//! Setting: a namespace for the host, whose way out is a port of the bridge `br0`; one for somebody
//! outside, and one for each guest, whose card is joined with the tap that the helper made. Pinned:
//! guests are neighbours of whoever is on the bridge, are reached as far as their lists allow,
//! cannot take another's address, are only where the operator's list says, and leave nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use dagger_net::names;
use dagger_net::request::{Action, Answer, BridgedCard};
use dagger_payload::network::{Allowed, Ipv4Prefix, PortRange, Protocol};

use super::support::{
    CLAIM, Guest, HOST, HOST_OUTSIDE, LEASE, Machine, OUTSIDE, PING, QUESTION, World, bridged,
    card, echo,
};

const OWN: &str = "192.0.2.5";
const OTHER: &str = "192.0.2.6";

fn rule(from: Ipv4Prefix, protocol: Protocol, port: Option<u16>) -> Allowed {
    let ports = port.map(|port| PortRange { first: port, last: port });
    Allowed { from, protocol: Some(protocol), ports }
}

fn refused(answer: Answer) -> String {
    match answer {
        Answer::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

/// Which MAC address somebody outside knows for an address.
fn known_outside(world: &World, address: &str) -> String {
    world.outside.run(&["ip", "neigh", "show", address])
}

/// The guest calls itself by an address and says so to everybody; what it says under its own name
/// afterwards arrives afterwards.
fn claim(world: &World, guest: &Guest, address: &str) {
    let mut service = world.outside.serve("udp", 53);
    guest.run(&["python3", "-c", CLAIM, &bridged(5).mac, address]);
    guest.say(OUTSIDE, 53, OWN);
    assert_eq!(service.heard(), OWN);
}

#[test]
fn a_guest_on_a_bridge_is_a_neighbour_of_whoever_is_there() {
    let world = World::bridged("b-there");
    let before = world.host.run(&["cat", "/sys/class/net/br0/address", "/sys/class/net/br0/mtu"]);
    let (guest, other) = (world.neighbour(5, |_| {}), world.neighbour(6, |_| {}));
    let (_shell, _service) = (guest.serve("tcp", 22), world.outside.serve("tcp", 80));
    assert_eq!(guest.ask(OUTSIDE, 80), OWN, "seen as who it is");
    assert_eq!(world.outside.ask(OWN, 22), OUTSIDE);
    assert_eq!(other.ask(OWN, 22), OTHER);
    assert_eq!(world.host.ask(OWN, 22), HOST_OUTSIDE);
    let after = world.host.run(&["cat", "/sys/class/net/br0/address", "/sys/class/net/br0/mtu"]);
    assert_eq!(after, before, "the bridge is as it was");
}

#[test]
fn frames_with_another_mac_or_another_address_are_dropped() {
    let world = World::bridged("b-spoof");
    let guest = world.neighbour(5, |_| {});
    let mut service = world.outside.serve("udp", 53);
    guest.run(&["ip", "address", "add", "192.0.2.9/32", "dev", "card"]);
    let say = |from: &str| guest.say(OUTSIDE, 53, from);
    say(OWN);
    assert_eq!(service.heard(), OWN);
    say("192.0.2.9");
    say(OWN);
    assert_eq!(service.heard(), OWN, "what was said under another address is lost");
    guest.run(&["ip", "link", "set", "card", "address", "52:54:00:00:00:99"]);
    say(OWN);
    guest.run(&["ip", "link", "set", "card", "address", &bridged(5).mac]);
    let forwarding = world.host.run(&["bridge", "fdb", "show", "br", "br0"]);
    assert!(!forwarding.contains("52:54:00:00:00:99"), "{forwarding}");

    // Without the filter it would have arrived, and the bridge would know the MAC.
    let table = names::table(HOST, bridged(5).vm, 1);
    world.host.run(&["nft", "delete", "table", "netdev", &table]);
    let mut again = world.outside.serve("udp", 54);
    guest.run(&["ip", "link", "set", "card", "address", "52:54:00:00:00:99"]);
    guest.say(OUTSIDE, 54, "192.0.2.9");
    assert_eq!(again.heard(), "192.0.2.9");
    let forwarding = world.host.run(&["bridge", "fdb", "show", "br", "br0"]);
    assert!(forwarding.contains("52:54:00:00:00:99"), "{forwarding}");
    guest.run(&["ip", "link", "set", "card", "address", &bridged(5).mac]);
    // And the next request brings the filter back.
    assert_eq!(world.change_bridged(5, |_| {}), Answer::Done);
    guest.say(OUTSIDE, 54, "192.0.2.9");
    guest.say(OUTSIDE, 54, OWN);
    assert_eq!(again.heard(), OWN);
}

#[test]
fn a_guest_cannot_claim_anothers_address_over_arp() {
    let world = World::bridged("b-claim");
    let (guest, other) = (world.neighbour(5, |_| {}), world.neighbour(6, |_| {}));
    let _service = other.serve("tcp", 80);
    assert_eq!(world.outside.ask(OTHER, 80), OUTSIDE);
    claim(&world, &guest, OTHER);
    assert!(known_outside(&world, OTHER).contains(&bridged(6).mac));

    // Without the filter it would have been believed.
    let table = names::table(HOST, bridged(5).vm, 1);
    world.host.run(&["nft", "delete", "table", "netdev", &table]);
    claim(&world, &guest, OTHER);
    assert!(known_outside(&world, OTHER).contains(&bridged(5).mac));
}

#[test]
fn a_list_holds_on_a_bridge_and_what_the_guest_begins_is_answered() {
    let world = World::bridged("b-list");
    let outside: Ipv4Prefix = OUTSIDE.parse().expect("one");
    let list = |rules: Vec<Allowed>| {
        let set = |card: &mut BridgedCard| card.allow = Some(rules.clone());
        assert_eq!(world.change_bridged(5, set), Answer::Done);
    };
    let (guest, other) = (world.neighbour(5, |_| {}), world.neighbour(6, |_| {}));
    let (_shell, _web) = (guest.serve("tcp", 22), guest.serve("tcp", 80));
    list(Vec::new());
    assert_eq!(world.outside.ask(OWN, 22), "TimeoutError");
    assert_eq!(world.host.ask(OWN, 22), "TimeoutError", "its host is like any other there");
    let _service = world.outside.serve("tcp", 80);
    assert_eq!(guest.ask(OUTSIDE, 80), OWN);
    // A question over UDP is answered, and nobody else's answer is taken.
    let echo = echo(&world.outside, 53);
    assert_eq!(guest.run(&["python3", "-c", QUESTION, OUTSIDE, "53"]), "answered\n");
    drop(echo);
    assert_eq!(guest.run(&["python3", "-c", PING, OUTSIDE]), "answered\n");
    assert_eq!(world.outside.run(&["python3", "-c", PING, OWN]), "TimeoutError\n");
    let mut heard = guest.serve("udp", 53);
    world.outside.say(OWN, 53, OUTSIDE);
    list(vec![rule(outside, Protocol::Tcp, Some(22)), rule(outside, Protocol::Udp, Some(53))]);
    world.outside.say(OWN, 53, OUTSIDE);
    other.say(OWN, 53, OTHER);
    assert_eq!(heard.heard(), OUTSIDE);
    assert_eq!(world.outside.ask(OWN, 22), OUTSIDE);
    assert_eq!(world.outside.ask(OWN, 80), "TimeoutError");
    assert_eq!(other.ask(OWN, 22), "TimeoutError");
    list(vec![rule(Ipv4Prefix::ALL, Protocol::Icmp, None)]);
    assert_eq!(world.outside.run(&["python3", "-c", PING, OWN]), "answered\n");
    assert_eq!(world.outside.ask(OWN, 22), "TimeoutError");
}

#[test]
fn a_guest_whose_address_comes_by_dhcp_keeps_its_mac_and_is_no_dhcp_server() {
    let world = World::bridged("b-dhcp");
    let guest = world.neighbour(5, |card| card.bridge.address = None);
    let mut service = world.outside.serve("udp", 53);
    guest.run(&["ip", "address", "add", "192.0.2.9/32", "dev", "card"]);
    guest.say(OUTSIDE, 53, "192.0.2.9");
    assert_eq!(service.heard(), "192.0.2.9", "whatever the server gave it");
    guest.run(&["ip", "link", "set", "card", "address", "52:54:00:00:00:99"]);
    guest.say(OUTSIDE, 53, OWN);
    guest.run(&["ip", "link", "set", "card", "address", &bridged(5).mac]);
    guest.say(OUTSIDE, 53, "192.0.2.9");
    assert_eq!(service.heard(), "192.0.2.9");
    let mut client = world.outside.serve("udp", 68);
    guest.run(&["python3", "-c", LEASE, OWN, "67", OUTSIDE]);
    guest.run(&["python3", "-c", LEASE, "192.0.2.9", "66", OUTSIDE]);
    assert_eq!(client.heard(), "192.0.2.9", "what came from a server's port is lost");
}

#[test]
fn nobody_is_called_like_another_guest_the_host_a_gateway_or_what_the_operator_keeps() {
    let world = World::bridged("b-taken");
    world.host.run(&["ip", "route", "add", "default", "via", "192.0.2.254"]);
    fs::write(world.list.path(), "lan br0\nRESERVED lan 192.0.2.240/29\n").expect("written");
    assert_eq!(world.change_bridged(5, |_| {}), Answer::Done);
    let called = |number: u8| {
        move |card: &mut BridgedCard| {
            card.bridge.address.as_mut().expect("one").address = [192, 0, 2, number].into();
        }
    };
    for (number, code) in [
        (5, "bridge_address_taken:"),
        (1, "bridge_address_reserved:"),
        (254, "bridge_address_reserved:"),
        (241, "bridge_address_reserved:"),
    ] {
        let why = refused(world.change_bridged(6, called(number)));
        assert!(why.starts_with(code), "{why}");
    }
    let mac = bridged(5).mac;
    let why = refused(world.change_bridged(6, |card| card.mac.clone_from(&mac)));
    assert!(why.starts_with("bridge_mac_taken:"), "{why}");
    assert_eq!(world.request(Action::List), Answer::Cards(vec![bridged(5).vm]));
    // Who has it keeps it, and who gives it up leaves it to others.
    assert_eq!(world.change_bridged(5, |_| {}), Answer::Done);
    assert_eq!(world.change_bridged(5, called(9)), Answer::Done);
    assert_eq!(world.change_bridged(6, called(5)), Answer::Done);
    refused(world.change_bridged(5, called(5)));
    assert_eq!(world.request(Action::Remove(bridged(6).vm)), Answer::Done);
    assert_eq!(world.change_bridged(5, called(5)), Answer::Done);
}

#[test]
fn guests_are_only_on_bridges_that_the_operators_list_names() {
    let world = World::bridged("b-refused");
    let asked = |change: fn(&mut BridgedCard)| world.change_bridged(5, change);
    let other = |card: &mut BridgedCard| card.bridge.bridge = "dmz".parse().expect("a name");
    assert!(refused(asked(other)).starts_with("bridge_unknown:"));
    assert!(refused(asked(|card| card.card = 4)).starts_with("card:"));
    let write = |text: &str| fs::write(world.list.path(), text).expect("written");
    write("lan br0 192.0.2.64/26\n");
    assert!(refused(asked(|_| {})).starts_with("bridge_address_refused:"));
    let dhcp = |card: &mut BridgedCard| card.bridge.address = None;
    assert!(refused(asked(dhcp)).starts_with("bridge_address_refused:"));
    // What is no bridge may become one.
    write("lan uplink\n");
    assert!(matches!(asked(|_| {}), Answer::Failed(why) if why.contains("is no bridge")));
    write("lan br0\n");
    let open = fs::Permissions::from_mode(0o666);
    fs::set_permissions(world.list.path(), open).expect("changed");
    assert!(matches!(asked(|_| {}), Answer::Failed(why) if why.contains("root's alone")));
    fs::remove_file(world.list.path()).expect("removed");
    assert!(refused(asked(|_| {})).starts_with("bridge_unknown:"));
    assert_eq!(world.request(Action::List), Answer::Cards(Vec::new()));
    assert!(!world.host.run(&["ip", "-brief", "link"]).contains("dgr-"));
}

#[test]
fn a_guest_with_several_cards_leaves_none_of_them() {
    let world = World::bridged("b-several");
    let before = world.host.run(&["nft", "list", "ruleset"]);
    let vm = bridged(5).vm;
    let two = |_: ()| {
        world.change(5, |_| {});
        let closed = |card: &mut BridgedCard| card.allow = Some(Vec::new());
        assert_eq!(world.change_bridged(5, closed), Answer::Done);
    };
    two(());
    let rules = || world.host.run(&["nft", "-s", "list", "ruleset"]);
    let made = rules();
    two(());
    assert_eq!(rules(), made, "once more changes nothing");
    assert_eq!(world.request(Action::List), Answer::Cards(vec![vm]));
    // Half of it is gone already: the request was cut off, or somebody had a hand in it.
    let tap = names::interface(HOST, vm, 1);
    world.host.run(&["ip", "link", "delete", &tap]);
    let filters = names::table(HOST, vm, 0);
    world.host.run(&["nft", "delete", "table", "ip", &filters]);
    two(());
    assert!(world.host.run(&["bridge", "link"]).contains(&tap));
    world.host.run(&["ip", "link", "delete", &names::interface(HOST, vm, 0)]);
    for _ in 0..2 {
        assert_eq!(world.request(Action::Remove(vm)), Answer::Done);
        assert_eq!(world.request(Action::List), Answer::Cards(Vec::new()));
    }
    assert_eq!(world.host.run(&["nft", "list", "ruleset"]), before);
    let links = world.host.run(&["ip", "-brief", "link"]);
    assert!(!links.contains("dgr-") && links.contains("br0"), "{links}");
    assert_eq!(card(5).vm, vm, "both were one guest's");
}
