//! The filters of a card on a bridge, as nftables' own text.
//!
//! Owns what the guest may send there (its own MAC, the address that its owner chose, IPv4 and ARP
//! alone) and what may reach it. No connection tracking of the bridge is needed: it would track
//! everybody's conversations there, and not every kernel has it. What a guest began is known by
//! TCP's own flags, and for the others by a set that its own packets fill. Pure; called by
//! [`crate::apply`].

use dagger_payload::id::HostId;

use crate::limits::{BEGUN_MAX, BEGUN_MINUTES};
use crate::names;
use crate::request::BridgedCard;
use crate::rules::{allowed, remove_tables};

/// The families in which a card on a bridge has a table.
const FAMILIES: [&str; 2] = ["netdev", "bridge"];

/// The transaction after which the card's filters are these and no others.
pub fn ensure(host: HostId, card: &BridgedCard) -> String {
    let table = names::table(host, card.vm, card.card);
    let interface = names::interface(host, card.vm, card.card);
    let mac = &card.mac;
    let (arp, ip) = match card.bridge.address {
        Some(own) => (
            format!(" arp saddr ip {{ 0.0.0.0, {} }}", own.address),
            format!(" ip saddr {}", own.address),
        ),
        // Nobody decided its address, so it cannot be held to one.
        None => (String::new(), String::new()),
    };
    let mut text = remove_tables(&FAMILIES, &table);
    text += &format!(
        "table netdev {table} {{
  chain ingress {{
    type filter hook ingress device \"{interface}\" priority -500; policy drop;
    ether saddr != {mac} drop
    ether type arp arp saddr ether {mac}{arp} accept
    ip frag-off & 0x1fff == 0 udp sport 67 udp dport 68 drop
    ether type ip{ip} accept
  }}
}}
"
    );
    if let Some(rules) = &card.allow {
        text += &guarded(&table, &interface, card, &allowed(Some(rules)));
    }
    text
}

/// A later fragment is let through: without its first one it is nothing.
fn guarded(table: &str, interface: &str, card: &BridgedCard, allowed: &str) -> String {
    let leases = match card.bridge.address {
        Some(_) => "",
        None => "    udp sport 67 udp dport 68 accept\n",
    };
    format!(
        "table bridge {table} {{
  set asked {{
    type ipv4_addr . inet_service . inet_service
    size {BEGUN_MAX}
    flags dynamic,timeout
    timeout {BEGUN_MINUTES}m
  }}
  set others {{
    type ipv4_addr . inet_proto
    size {BEGUN_MAX}
    flags dynamic,timeout
    timeout {BEGUN_MINUTES}m
  }}
  chain prerouting {{
    type filter hook prerouting priority 0; policy accept;
    iifname != \"{interface}\" return
    ip protocol udp update @asked {{ ip daddr . udp dport . udp sport }}
    ip protocol != {{ tcp, udp, icmp }} update @others {{ ip daddr . ip protocol }}
  }}
  chain postrouting {{
    type filter hook postrouting priority 0; policy accept;
    oifname != \"{interface}\" return
    ether type arp accept
    ether type != ip drop
    ip frag-off & 0x1fff > 1 accept
    tcp flags & (syn | ack) != syn accept
    ip saddr . udp sport . udp dport @asked accept
    ip saddr . ip protocol @others accept
    icmp type {{ echo-reply, destination-unreachable, time-exceeded, parameter-problem }} accept
{leases}{allowed}  }}
}}
"
    )
}
