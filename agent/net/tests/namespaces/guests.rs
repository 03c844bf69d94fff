//! Cards by NAT.
//!
//! Setting: a namespace for the host, one for somebody outside, and one for each guest, whose card
//! is joined with the tap that the helper made. Pinned: guests get out by NAT, are reached by their
//! forwards and as far as their lists allow, cannot use another's address, get to no private
//! network that is not opened to them, cannot use up what the host has for all, and leave nothing.

use dagger_net::flows::FlowLimits;
use dagger_net::names;
use dagger_net::request::{Action, Answer};
use dagger_payload::network::{Allowed, Forward, Ipv4Prefix, PortRange, Protocol, VmNetwork};

use super::support::{CLAIM, FLOOD, GATEWAY, HOST, HOST_OUTSIDE, Machine, OUTSIDE, World, card};

fn allow(rules: Vec<Allowed>) -> VmNetwork {
    VmNetwork { allow: Some(rules), ..VmNetwork::default() }
}

fn rule(from: &str, port: u16) -> Allowed {
    Allowed {
        from: from.parse().expect("a prefix"),
        protocol: Some(Protocol::Tcp),
        ports: Some(PortRange { first: port, last: port }),
    }
}

#[test]
fn a_guest_gets_out_by_its_host_and_is_reached_by_its_forward() {
    let world = World::new("out");
    let guest = world.guest(5, |card| {
        let forward = Forward { slot: 1, protocol: Protocol::Tcp, guest_port: 22 };
        card.network.forwards = vec![forward];
    });
    let _service = world.outside.serve("tcp", 80);
    assert_eq!(guest.ask(OUTSIDE, 80), HOST_OUTSIDE, "by the host's own address");

    let _shell = guest.serve("tcp", 22);
    // 20000, eight ports for each guest before it, its slot.
    let port = 20_000 + 3 * 8 + 1;
    assert_eq!(world.outside.ask(HOST_OUTSIDE, port), OUTSIDE, "seen as who it is");
    assert_eq!(world.host.ask(HOST_OUTSIDE, port), HOST_OUTSIDE, "also from the host itself");
    assert_eq!(world.outside.ask(HOST_OUTSIDE, port + 1), "ConnectionRefusedError");
    assert_eq!(world.host.ask("10.77.0.5", 22), GATEWAY, "the host reaches its guests");
}

#[test]
fn guests_of_one_host_reach_each_other_as_their_lists_allow() {
    let world = World::new("between");
    let (one, other) = (world.guest(5, |_| {}), world.guest(6, |_| {}));
    let (_shell, _web) = (one.serve("tcp", 22), one.serve("tcp", 80));
    assert_eq!(other.ask("10.77.0.5", 22), "10.77.0.6", "open, and seen as who it is");

    world.change(5, |card| card.network = allow(vec![rule("10.77.0.6", 22)]));
    assert_eq!(other.ask("10.77.0.5", 22), "10.77.0.6");
    assert_eq!(other.ask("10.77.0.5", 80), "TimeoutError");
    let third = world.guest(7, |_| {});
    assert_eq!(third.ask("10.77.0.5", 22), "TimeoutError");

    // What a closed guest begins is answered.
    world.change(5, |card| card.network = allow(Vec::new()));
    assert_eq!(other.ask("10.77.0.5", 22), "TimeoutError");
    let _service = other.serve("tcp", 80);
    assert_eq!(one.ask("10.77.0.6", 80), "10.77.0.5");
    // Nobody has that address: it is no way out to somebody else's network.
    assert_eq!(one.ask("10.77.0.9", 80), "OSError");
}

#[test]
fn a_list_holds_for_who_comes_by_a_forward_too() {
    let world = World::new("list");
    let guest = world.guest(5, |card| {
        let forward = |slot, guest_port| Forward { slot, protocol: Protocol::Tcp, guest_port };
        card.network.forwards = vec![forward(0, 22), forward(1, 80)];
        card.network.allow = Some(vec![rule("0.0.0.0/0", 22)]);
    });
    let (_shell, _web) = (guest.serve("tcp", 22), guest.serve("tcp", 80));
    assert_eq!(world.outside.ask(HOST_OUTSIDE, 20_024), OUTSIDE);
    assert_eq!(world.outside.ask(HOST_OUTSIDE, 20_025), "TimeoutError");
}

#[test]
fn a_guest_cannot_send_under_an_address_that_is_not_its_own() {
    let world = World::new("spoof");
    let guest = world.guest(5, |_| {});
    let mut service = world.outside.serve("udp", 53);
    guest.run(&["ip", "address", "add", "10.77.0.9/32", "dev", "card"]);
    let say = |from: &str| guest.say(OUTSIDE, 53, from);
    // What is sent last arrives last: so what was sent before it was lost.
    say("10.77.0.9");
    say("10.77.0.5");
    assert_eq!(service.heard(), HOST_OUTSIDE);
    // With another's MAC address nothing arrives at all.
    guest.run(&["ip", "link", "set", "card", "address", "52:54:00:00:00:99"]);
    say("10.77.0.5");
    guest.run(&["ip", "link", "set", "card", "address", &card(5).mac]);
    say("10.77.0.9");
    say("10.77.0.5");
    assert_eq!(service.heard(), HOST_OUTSIDE);

    // Without the filter it would have arrived.
    let table = dagger_net::names::table(HOST, card(5).vm, 0);
    world.host.run(&["nft", "delete", "table", "netdev", &table]);
    say("10.77.0.9");
    assert_eq!(service.heard(), "10.77.0.9");
    // And the next request brings the filter back.
    world.change(5, |_| {});
    say("10.77.0.9");
    say("10.77.0.5");
    assert_eq!(service.heard(), HOST_OUTSIDE);
}

#[test]
fn a_guest_cannot_claim_another_ones_address() {
    let world = World::new("claim");
    let (guest, other) = (world.guest(5, |_| {}), world.guest(6, |_| {}));
    let _service = other.serve("tcp", 80);
    assert_eq!(guest.ask("10.77.0.6", 80), "10.77.0.5");
    // It calls itself by the other's address and says so to everybody.
    guest.run(&["ip", "address", "add", "10.77.0.6/32", "dev", "card"]);
    guest.run(&["python3", "-c", CLAIM, &card(5).mac, "10.77.0.6"]);
    assert_eq!(world.host.ask("10.77.0.6", 80), GATEWAY, "the host still finds the other");
}

#[test]
fn what_is_removed_leaves_nothing_and_what_is_foreign_is_left_alone() {
    let world = World::new("remove");
    let (one, other) = (card(5).vm, card(6).vm);
    let before = world.host.run(&["nft", "list", "ruleset"]);
    drop((world.guest(5, |_| {}), world.guest(6, |_| {})));
    assert_eq!(world.request(Action::List), Answer::Cards(vec![one, other]));
    for _ in 0..2 {
        assert_eq!(world.request(Action::Remove(one)), Answer::Done);
        assert_eq!(world.request(Action::List), Answer::Cards(vec![other]));
    }
    // Half of it is gone already.
    let tap = dagger_net::names::interface(HOST, other, 0);
    world.host.run(&["ip", "link", "delete", &tap]);
    assert_eq!(world.request(Action::List), Answer::Cards(vec![other]));
    assert_eq!(world.request(Action::Remove(other)), Answer::Done);
    assert_eq!(world.request(Action::List), Answer::Cards(Vec::new()));
    assert_eq!(world.host.run(&["nft", "list", "ruleset"]), before);
    let links = world.host.run(&["ip", "-brief", "link"]);
    assert!(!links.contains("dgr-"), "{links}");

    // Somebody else's interface has the name.
    world.host.run(&["ip", "link", "add", &tap, "type", "veth"]);
    for action in [Action::Ensure(Box::new(card(6))), Action::Remove(other)] {
        let Answer::Refused(why) = world.request(action) else { panic!("it was touched") };
        assert!(why.starts_with("interface_occupied"), "{why}");
    }
    assert!(world.host.run(&["ip", "-brief", "link"]).contains(&tap));
}

#[test]
fn another_cards_tap_of_the_same_name_is_neither_taken_over_nor_removed() {
    let world = World::new("same");
    let (own, tap) = (card(5).vm, names::interface(HOST, card(5).vm, 0));
    world.host.run(&["ip", "tuntap", "add", "dev", &tap, "mode", "tap"]);
    let alias = names::alias(HOST, card(6).vm, 0);
    world.host.run(&["ip", "link", "set", "dev", &tap, "alias", &alias]);
    let Answer::Refused(why) = world.request(Action::Ensure(Box::new(card(5)))) else {
        panic!("it was taken over")
    };
    assert!(why.starts_with("interface_occupied"), "{why}");
    assert_eq!(world.request(Action::Remove(own)), Answer::Done);
    let shown = world.host.run(&["ip", "link", "show", &tap]);
    assert!(shown.contains(&alias), "{shown}");
    // One that was cut off before it could say whose it is goes on where it was.
    world.host.run(&["ip", "link", "delete", &tap]);
    let owner = ["user", "root", "vnet_hdr"];
    world.host.run(&[&["ip", "tuntap", "add", "dev", &tap, "mode", "tap"], &owner[..]].concat());
    world.change(5, |_| {});
    assert_eq!(world.request(Action::List), Answer::Cards(vec![own]));
}

#[test]
fn a_guest_gets_to_no_private_network_that_is_not_opened_and_to_its_name_servers() {
    const INNER: &str = "10.99.0.1";
    const METADATA: &str = "169.254.169.254";
    let world = World::new("inner");
    for address in [INNER, METADATA] {
        world.outside.run(&["ip", "address", "add", &format!("{address}/32"), "dev", "wire"]);
    }
    let forward = Forward { slot: 1, protocol: Protocol::Tcp, guest_port: 22 };
    let forwards = |card: &mut dagger_net::request::Card| {
        card.nameservers = vec![INNER.parse().expect("an address")];
        card.network.forwards = vec![forward];
    };
    let guest = world.guest(5, forwards);
    let (_service, _shell) = (world.outside.serve("tcp", 80), guest.serve("tcp", 22));
    let asked = |address: &str| guest.ask(address, 80);
    assert_eq!(asked(OUTSIDE), HOST_OUTSIDE);
    assert_eq!((asked(INNER), asked(METADATA)), ("OSError".to_owned(), "OSError".to_owned()));
    // Who is there asks the guest, which answers; and its name server answers it.
    assert_eq!(world.outside.ask_from((HOST_OUTSIDE, 20_025), INNER), INNER);
    let _names = world.outside.serve("tcp", 53);
    assert_eq!(guest.ask(INNER, 53), HOST_OUTSIDE);

    let write = |text: &str| std::fs::write(world.list.path(), text).expect("written");
    write("OPEN 10.99.0.0/16\nCLOSED 192.0.2.2\n");
    world.change(5, forwards);
    assert_eq!((asked(INNER), asked(METADATA)), (HOST_OUTSIDE.to_owned(), "OSError".to_owned()));
    assert_eq!(asked(OUTSIDE), "OSError");
    write("OPEN 169.254.0.0/16\n");
    let answer = world.request(Action::Ensure(Box::new(card(5))));
    assert!(matches!(&answer, Answer::Failed(why) if why.contains("never open")), "{answer:?}");
}

#[test]
fn a_guests_flood_leaves_room_for_the_conversations_of_others() {
    let world = World::new("flood");
    let (guest, other) = (world.guest(5, |_| {}), world.guest(6, |_| {}));
    let tracked = || {
        let said = world.host.run(&["cat", "/proc/sys/net/netfilter/nf_conntrack_count"]);
        said.trim().parse::<u32>().expect("a number")
    };
    let flood = |seconds: &str| guest.run(&["python3", "-c", FLOOD, OUTSIDE, seconds]);
    flood("1");
    let first = tracked();
    // At once, and in this second, the one before and the one after.
    assert!((1000..4000 + 3000 + 100).contains(&first), "{first}");
    flood("8");
    let limit = FlowLimits::of_host().begun;
    let then = tracked();
    assert!(then > first && then <= limit + 100, "{then} of {limit}");
    // New filters let it begin nothing more, and others begin what they like.
    world.change(5, |_| {});
    flood("2");
    let then = tracked();
    assert!(then <= limit + 100, "{then} of {limit}");
    let _service = world.outside.serve("tcp", 80);
    assert_eq!(other.ask(OUTSIDE, 80), HOST_OUTSIDE);
    assert_eq!(world.host.ask(OUTSIDE, 80), HOST_OUTSIDE);
    // What others begin with a guest is bounded, too.
    world.outside.run(&["ip", "route", "add", "10.77.0.0/24", "via", HOST_OUTSIDE]);
    let before = tracked();
    world.outside.run(&["python3", "-c", FLOOD, "10.77.0.6", "1"]);
    let more = tracked().saturating_sub(before);
    assert!(more < 4000 + 3000 + 100, "{more}");
}

#[test]
fn ports_without_a_host_that_offers_them_are_refused() {
    let world = World::new("refused");
    let mut wish = card(5);
    wish.forward_ports_first = None;
    wish.network.forwards = vec![Forward { slot: 0, protocol: Protocol::Udp, guest_port: 53 }];
    wish.network.allow = Some(vec![Allowed { from: Ipv4Prefix::ALL, protocol: None, ports: None }]);
    let answer = world.request(Action::Ensure(Box::new(wish)));
    let Answer::Refused(why) = answer else { panic!("{answer:?}") };
    assert!(why.starts_with("forwards_unavailable"), "{why}");
    assert_eq!(world.request(Action::List), Answer::Cards(Vec::new()));
}
