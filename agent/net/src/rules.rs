//! The filters of one guest's card by NAT, as nftables' own text.
//!
//! Owns what a guest may send (its own MAC and address, IPv4 and ARP alone; before it has an
//! address, a question for it) and to whom, what may reach it, and which ports of the host lead to
//! it. Every guest has tables of its own, replaced as a whole in one transaction, so that no moment
//! lies between the old rules and the new ones. Pure; called by [`crate::apply`].

use std::fmt::Write as _;

use dagger_payload::id::HostId;
use dagger_payload::network::{Allowed, Ipv4Prefix, Protocol};

use crate::limits::{QUESTIONS_AT_ONCE_MAX, QUESTIONS_PER_SECOND_MAX};
use crate::names;
use crate::outward::{Outward, Way};
use crate::request::Card;

/// The families in which a guest has a table.
const FAMILIES: [&str; 2] = ["ip", "netdev"];

/// The transaction after which the guest's filters are these and no others.
pub fn ensure(host: HostId, card: &Card, outward: &Outward) -> String {
    let table = names::table(host, card.vm, 0);
    let interface = names::interface(host, card.vm, 0);
    let mut text = remove_tables(&FAMILIES, &table);
    let Card { mac, address, subnet, .. } = card;
    let questions = questions(card);
    let _ = write!(
        text,
        "table netdev {table} {{
  chain ingress {{
    type filter hook ingress device \"{interface}\" priority -500; policy drop;
    ether saddr != {mac} drop
    ether type arp arp saddr ether {mac} arp saddr ip {{ 0.0.0.0, {address} }} accept
{questions}    ip frag-off & 0x1fff == 0 udp sport 67 udp dport 68 drop
    ether type ip ip saddr {address} accept
  }}
}}
table ip {table} {{
  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
{}  }}
  chain output {{
    type nat hook output priority -100; policy accept;
{}  }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    iifname \"{interface}\" ct state invalid drop
    iifname \"{interface}\" ip daddr {}/{} oifname != \"{}*\" \
reject with icmp type host-unreachable
    iifname \"{interface}\" oifname != \"{}*\" ct direction original jump outward
    oifname != \"{interface}\" return
    ct state established,related accept
{}  }}
  chain outward {{
{}  }}
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr {address} oifname != \"{}*\" masquerade
  }}
}}
",
        forwards(card, "fib daddr type local"),
        forwards(card, "fib daddr type local ip daddr != 127.0.0.0/8"),
        subnet.network,
        subnet.prefix_length,
        names::BEGINNING,
        names::BEGINNING,
        allowed(card.network.allow.as_deref()),
        ways(card, outward),
        names::BEGINNING,
    );
    text
}

/// What leaves the host for a guest by NAT. The name servers that it is told of may be anywhere.
fn ways(card: &Card, outward: &Outward) -> String {
    let servers = card.nameservers.iter().fold(String::new(), |mut text, server| {
        let port = "meta l4proto { tcp, udp } th dport 53";
        let _ = writeln!(text, "    ip daddr {server} {port} return");
        text
    });
    outward.decisions().iter().fold(servers, |mut text, (network, way)| {
        let then = match way {
            Way::Open => "return",
            Way::Closed => "reject with icmp type admin-prohibited",
        };
        let _ = writeln!(text, "    ip daddr {network} {then}");
        text
    })
}

/// What a guest may ask its host by DHCP: so often, and with an address that is its own or none.
/// Nothing answers guests as a DHCP server but the host.
fn questions(card: &Card) -> String {
    let (address, gateway) = (card.address, card.offer().gateway());
    let to = format!("ip daddr {{ 255.255.255.255, {gateway} }} udp dport 67");
    format!(
        "    ip saddr {{ 0.0.0.0, {address} }} {to} udp sport 68 limit rate \
{QUESTIONS_PER_SECOND_MAX}/second burst {QUESTIONS_AT_ONCE_MAX} packets accept
    {to} drop
"
    )
}

/// Every one of these tables goes. One that is not there is made first: only what is there can be
/// deleted.
pub(crate) fn remove_tables(families: &[&str], table: &str) -> String {
    families.iter().fold(String::new(), |mut text, family| {
        let _ = writeln!(text, "add table {family} {table}\ndelete table {family} {table}");
        text
    })
}

fn forwards(card: &Card, condition: &str) -> String {
    card.network.forwards.iter().fold(String::new(), |mut text, forward| {
        if let Some(port) = card.port(forward.slot) {
            let (protocol, address) = (forward.protocol.word(), card.address);
            let to = forward.guest_port;
            let _ =
                writeln!(text, "    {condition} {protocol} dport {port} dnat to {address}:{to}");
        }
        text
    })
}

/// What ends a chain for what is on its way to a guest.
pub(crate) fn allowed(rules: Option<&[Allowed]>) -> String {
    let Some(rules) = rules else { return String::new() };
    let mut text = String::new();
    for rule in rules {
        text += "    ";
        if rule.from != Ipv4Prefix::ALL {
            let _ = write!(text, "ip saddr {} ", rule.from);
        }
        match (rule.protocol, rule.ports) {
            (Some(protocol @ (Protocol::Tcp | Protocol::Udp)), Some(ports)) => {
                let _ = write!(text, "{} dport {}-{} ", protocol.word(), ports.first, ports.last);
            }
            (Some(protocol), _) => {
                let _ = write!(text, "ip protocol {} ", protocol.word());
            }
            (None, _) => {}
        }
        text += "accept\n";
    }
    text + "    drop\n"
}

#[cfg(test)]
mod tests {
    use dagger_payload::network::PortRange;

    use super::*;
    use crate::request::tests::card;

    const HERE: HostId = HostId([1; 16]);

    #[test]
    fn without_a_list_nothing_is_dropped_on_its_way_to_the_guest() {
        let text = ensure(HERE, &card(), &Outward::default());
        assert!(text.contains("    ct state established,related accept\n  }"), "{text}");
        assert!(
            text.contains("fib daddr type local tcp dport 20025 dnat to 10.77.0.5:22"),
            "{text}"
        );
    }

    #[test]
    fn an_empty_list_lets_nothing_in_and_each_rule_what_it_says() {
        let mut card = card();
        card.network.allow = Some(Vec::new());
        assert!(ensure(HERE, &card, &Outward::default()).contains("accept\n    drop\n"));
        let from = "192.0.2.0/24".parse().expect("a prefix");
        let (protocol, ports) = (Some(Protocol::Tcp), Some(PortRange { first: 80, last: 81 }));
        card.network.allow = Some(vec![
            Allowed { from, protocol, ports },
            Allowed { from: Ipv4Prefix::ALL, protocol: Some(Protocol::Icmp), ports: None },
            Allowed { from, protocol: None, ports: None },
        ]);
        let text = ensure(HERE, &card, &Outward::default());
        for line in [
            "    ip saddr 192.0.2.0/24 tcp dport 80-81 accept\n",
            "    ip protocol icmp accept\n",
            "    ip saddr 192.0.2.0/24 accept\n    drop\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }
}
