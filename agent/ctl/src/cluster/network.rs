//! Free ports and guest networks on this machine.
//!
//! Owns the choice of both for a new cluster. Never configures anything: cards are made by
//! `dagger-net`. Called by `cluster::identity`. Source of the routes: `/proc/net/route` (proc(5)).

use std::net::{Ipv4Addr, TcpListener};

use crate::failure::Failure;
use crate::limits::PORT_ATTEMPTS_MAX;

/// Below Linux's default range for outgoing connections (32768 and above), so that none of them
/// takes a port of ours while a host is down.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

fn random() -> Result<u32, Failure> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::broken(format!("no random numbers: {error}")))?;
    Ok(u32::from_be_bytes(bytes))
}

/// `count` different TCP ports on which nobody listens at 127.0.0.1. The start is random, so that
/// clusters that are founded at the same time do not choose alike.
pub(crate) fn free_ports(count: u16) -> Result<Vec<u16>, Failure> {
    let span = u32::from(PORTS.end - PORTS.start);
    let start = random()? % span;
    let mut ports = Vec::new();
    for offset in 0..u32::from(PORT_ATTEMPTS_MAX) {
        if ports.len() == usize::from(count) {
            return Ok(ports);
        }
        let offset = u16::try_from((start + offset) % span)
            .map_err(|_| Failure::broken("a port outside its range"))?;
        let port = PORTS.start + offset;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            ports.push(port);
        }
    }
    Err(Failure::unavailable(
        "no_free_ports",
        "no free TCP ports at 127.0.0.1",
        "Stop something that listens there, and try again.",
    ))
}

/// `count` different networks 10.77.X.0/24 to which this machine has no route yet.
pub(crate) fn guest_networks(count: u16) -> Result<Vec<Ipv4Addr>, Failure> {
    let table = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let routes = parse_routes(&table);
    let start = random()?;
    let candidates = (0..256).map(|offset| {
        let third = u8::try_from((start.wrapping_add(offset)) % 256).unwrap_or_default();
        Ipv4Addr::new(10, 77, third, 0)
    });
    let networks: Vec<_> = candidates
        .filter(|network| !routes.iter().any(|route| route.overlaps(*network)))
        .take(usize::from(count))
        .collect();
    if networks.len() == usize::from(count) {
        return Ok(networks);
    }
    Err(Failure::unavailable(
        "no_free_networks",
        "this machine has routes to nearly all of 10.77.0.0/16",
        "Remove the routes that are not needed: `ip route`.",
    ))
}

struct Route {
    network: u32,
    mask: u32,
}

impl Route {
    /// Whether it leads to any address of the /24 at `network`; a default route leads everywhere
    /// and does not count.
    fn overlaps(&self, network: Ipv4Addr) -> bool {
        let mask = self.mask & 0xffff_ff00;
        self.mask != 0 && u32::from(network) & mask == self.network & mask
    }
}

/// Columns: interface, destination, gateway, flags, reference count, use, metric, mask; addresses
/// in hex, as they lie in memory on this machine.
fn parse_routes(table: &str) -> Vec<Route> {
    let address = |text: &&str| u32::from_str_radix(text, 16).ok().map(u32::from_be);
    let lines = table.lines().skip(1);
    let routes = lines.filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        Some(Route { network: address(fields.get(1)?)?, mask: address(fields.get(7)?)? })
    });
    routes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_is_routed_already_is_not_chosen_and_the_default_route_does_not_count() {
        // On a little-endian machine: a default route, and 10.77.5.0/25.
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                     eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\n\
                     br0\t00054D0A\t00000000\t0001\t0\t0\t0\t80FFFFFF\n";
        let routes = parse_routes(table);
        assert_eq!(routes.len(), 2);
        let taken = |third| routes.iter().any(|r| r.overlaps(Ipv4Addr::new(10, 77, third, 0)));
        assert!(taken(5));
        assert!(!taken(6));
    }

    #[test]
    fn chosen_ports_and_networks_all_differ() {
        let distinct = |count: usize, mut all: Vec<u32>| {
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count);
        };
        let ports = free_ports(32).expect("ports");
        distinct(32, ports.into_iter().map(u32::from).collect());
        let networks = guest_networks(16).expect("networks");
        distinct(16, networks.into_iter().map(u32::from).collect());
    }
}
