//! Definitions of a host's guest network as typed values.
//!
//! Owns the shape of the XML (libvirt's manual, "Network XML format"). No DHCP and no DNS: guests
//! get their address from their seed, as the ledger decided it, so no dnsmasq runs. Never talks to
//! libvirt. Called by the libvirt implementation.

use std::net::Ipv4Addr;

use dagger_payload::kind::GuestSubnet;
use serde::{Deserialize, Serialize};

use crate::hypervisor::names::HostNames;

#[derive(Serialize)]
#[serde(rename = "network")]
struct Network {
    name: String,
    forward: Forward,
    bridge: Bridge,
    mac: Mac,
    dns: Dns,
    ip: Ip,
}

#[derive(Serialize)]
struct Forward {
    #[serde(rename = "@mode")]
    mode: &'static str,
}

#[derive(Serialize)]
struct Bridge {
    #[serde(rename = "@name")]
    name: String,
    #[serde(rename = "@stp")]
    spanning_tree: &'static str,
    #[serde(rename = "@delay")]
    delay: u8,
}

#[derive(Serialize)]
struct Mac {
    #[serde(rename = "@address")]
    address: String,
}

#[derive(Serialize)]
struct Dns {
    #[serde(rename = "@enable")]
    enable: &'static str,
}

#[derive(Serialize)]
struct Ip {
    #[serde(rename = "@address")]
    address: Ipv4Addr,
    #[serde(rename = "@prefix")]
    prefix: u8,
}

/// The definition of the host's network on `subnet`; `None` when the subnet has no room for the
/// host.
pub(super) fn network(names: &HostNames, subnet: &GuestSubnet) -> Option<String> {
    let definition = Network {
        name: names.network(),
        forward: Forward { mode: "nat" },
        bridge: Bridge { name: names.bridge(), spanning_tree: "off", delay: 0 },
        mac: Mac { address: names.bridge_mac() },
        dns: Dns { enable: "no" },
        ip: Ip { address: subnet.address(1)?, prefix: subnet.prefix_length },
    };
    quick_xml::se::to_string(&definition).ok()
}

/// What we ask of a network that is there already.
#[derive(Deserialize)]
struct SeenNetwork {
    ip: Option<SeenIp>,
}

#[derive(Deserialize)]
struct SeenIp {
    #[serde(rename = "@address")]
    address: Ipv4Addr,
    #[serde(rename = "@prefix")]
    prefix: Option<u8>,
}

/// Whether the network that libvirt shows as `xml` is the one of `subnet`.
pub(super) fn is_of(xml: &str, subnet: &GuestSubnet) -> bool {
    quick_xml::de::from_str::<SeenNetwork>(xml).is_ok_and(|seen| {
        seen.ip.is_some_and(|ip| {
            Some(ip.address) == subnet.address(1) && ip.prefix == Some(subnet.prefix_length)
        })
    })
}
