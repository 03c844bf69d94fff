//! Who resolves names for guests: what the operator says, or else what this host itself asks.
//!
//! Owns the reading of the host's resolver files (resolv.conf(5)). Never asks a name server.
//! Called once at start, with the configuration.

use std::io::Read;
use std::net::Ipv4Addr;
use std::path::Path;

use dagger_payload::limits::NAMESERVERS_MAX;

/// Where the host says whom it asks. The second is where systemd-resolved says whom it asks in
/// turn, while the first names only itself, on an address that no guest reaches.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// Bytes of one such file that are read at most.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Those of this host that a guest can reach, perhaps none.
pub fn of_this_host() -> Vec<Ipv4Addr> {
    let read = |path: &&str| {
        let mut text = String::new();
        let file = std::fs::File::open(Path::new(path)).ok()?;
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
        Some(reachable(&text)).filter(|servers| !servers.is_empty())
    };
    FILES.iter().find_map(read).unwrap_or_default()
}

/// The IPv4 addresses that `text` names, without those that mean the host itself.
fn reachable(text: &str) -> Vec<Ipv4Addr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address: Ipv4Addr = words.by_ref().nth(1)?.parse().ok()?;
        let is_of_guests = !address.is_loopback() && !address.is_unspecified();
        (line.trim_start().starts_with("nameserver") && is_of_guests).then_some(address)
    };
    text.lines().filter_map(server).take(NAMESERVERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_of_name_servers_that_it_can_reach() {
        let text = "# nameserver 10.0.0.1\nsearch example.org\nnameserver 127.0.0.53\n\
                    nameserver 10.0.0.2 # ours\nnameserver fe80::1%eth0\n\
                    nameserver\t10.0.0.3\nnameserver 0.0.0.0\noptions edns0\n";
        let expected: Vec<Ipv4Addr> =
            vec!["10.0.0.2".parse().unwrap(), "10.0.0.3".parse().unwrap()];
        assert_eq!(reachable(text), expected);
        assert_eq!(reachable("nameserver 127.0.0.1\n"), Vec::<Ipv4Addr>::new());
        assert_eq!(reachable(&"nameserver 10.0.0.2\n".repeat(100)).len(), NAMESERVERS_MAX);
    }
}
