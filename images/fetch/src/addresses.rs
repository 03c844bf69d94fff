//! Which addresses may be asked: those of the public internet, and those that the operator lists.
//!
//! Owns that rule, and the look-up of names under it. A name is resolved once for each connection,
//! every address that it leads to is checked, and the connection goes to a checked address, never
//! to the name again. Called for every question and every redirect.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use dagger_images::fetch::{AddressRange, FetchCode, FetchProblem};

use crate::limits::{ADDRESSES_MAX, RESOLVE_WAIT_MAX};

/// Beginnings of IPv4 addresses that are nobody's public server.
const CLOSED_V4: [(Ipv4Addr, u32); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];
/// The same for IPv6, within the only block that is public at all, 2000::/3.
const CLOSED_V6: [(Ipv6Addr, u32); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];
/// Leads through a translator to the IPv4 address in its last bits (RFC 6052).
const TRANSLATED: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);

/// Whether the address is one of the public internet.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => {
            let begins = |(with, bits): (Ipv6Addr, u32)| {
                (address.to_bits() ^ with.to_bits()).leading_zeros() >= bits
            };
            if begins((TRANSLATED, 96)) {
                return is_public_v4(Ipv4Addr::from_bits(address.to_bits() as u32));
            }
            let global = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
            begins(global) && !CLOSED_V6.into_iter().any(begins)
        }
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let begins = |(with, bits): (Ipv4Addr, u32)| {
        (address.to_bits() ^ with.to_bits()).leading_zeros() >= bits
    };
    !CLOSED_V4.into_iter().any(begins)
}

/// Checks one address.
///
/// # Errors
/// `address_refused`.
pub fn check(address: IpAddr, allowed: &[AddressRange]) -> Result<(), FetchProblem> {
    let address = address.to_canonical();
    if is_public(address) || allowed.iter().any(|range| range.contains(address)) {
        return Ok(());
    }
    // What is told becomes a public report, and where names of a host's own network lead is not for
    // everybody: the address is for the host's log alone.
    eprintln!("dagger-fetch: {address} is no public address, and not listed for images");
    let detail = "it leads to an address that is not public, and this host's operator does not \
                  list it for images";
    Err(FetchProblem::new(FetchCode::AddressRefused, detail))
}

/// The addresses of a server, all of them checked: one that may not be asked refuses the name,
/// since who answers with a mixture means the other one.
///
/// # Errors
/// `address_refused`, `resolve_failed`.
pub async fn resolve(
    host: &str,
    port: u16,
    allowed: &[AddressRange],
) -> Result<Vec<SocketAddr>, FetchProblem> {
    let failed = |why: &dyn std::fmt::Display| {
        FetchProblem::new(FetchCode::ResolveFailed, format!("{host}: {why}"))
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let looked_up = tokio::net::lookup_host((bare, port));
    let found = tokio::time::timeout(RESOLVE_WAIT_MAX, looked_up).await;
    let found = found.map_err(|_| failed(&"no answer"))?.map_err(|error| failed(&error))?;
    let addresses: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
    for address in &addresses {
        check(address.ip(), allowed)?;
    }
    if addresses.is_empty() { Err(failed(&"no address")) } else { Ok(addresses) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(text: &str) -> bool {
        is_public(text.parse().unwrap())
    }

    #[test]
    fn addresses_of_this_host_its_neighbours_and_nobody_are_refused() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!public(text), "{text}");
        }
    }

    #[test]
    fn addresses_of_public_servers_are_not() {
        for text in [
            "1.1.1.1",
            "100.63.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "223.255.255.255",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert!(public(text), "{text}");
        }
    }

    #[test]
    fn what_the_operator_lists_is_allowed_however_it_is_written() {
        let listed = ["10.1.0.0/16".parse().unwrap()];
        for (text, allowed) in
            [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("10.2.0.1", false), ("::1", false)]
        {
            assert_eq!(check(text.parse().unwrap(), &listed).is_ok(), allowed, "{text}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_to_this_host_is_refused() {
        for name in ["localhost", "127.0.0.1", "[::1]", "0"] {
            let problem = resolve(name, 443, &[]).await.unwrap_err();
            assert_eq!(problem.code, FetchCode::AddressRefused, "{name}");
            let told = problem.to_string();
            assert!(!told.contains("127.") && !told.contains("::1"), "{told}");
        }
    }
}
