//! The bridges of this host on which guests may be: a list that its operator alone writes.
//!
//! Owns the list's form and who may have written it. The agent names a bridge by the operator's
//! name for it and never by an interface: who has taken the agent over gets no further than the
//! list. Called by [`crate::apply`].

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use dagger_payload::bridge::Bridged;
use dagger_payload::name::Name;
use dagger_payload::network::Ipv4Prefix;

/// Where the list is, unless the helper is told another place.
pub const LIST: &str = "/etc/dagger-net.conf";
/// The list, in bytes.
const LIST_BYTES_MAX: u64 = 64 * 1024;
/// An interface's name, as Linux takes it.
const DEVICE_BYTES_MAX: usize = 15;

/// One line of the list: `NAME BRIDGE`, or `NAME BRIDGE NETWORK`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    name: Name,
    device: String,
    /// Guests have addresses of this network and no others, so none by DHCP.
    addresses: Option<Ipv4Prefix>,
}

/// The list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridges(Vec<Line>);

impl Bridges {
    /// Reads the list; where there is none, guests may be on no bridge.
    ///
    /// # Errors
    /// It cannot be read, does not read, or somebody besides root could have written it.
    pub fn read(path: &Path) -> io::Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self(Vec::new())),
            Err(error) => return Err(said(path, &error.to_string())),
        };
        let metadata = file.metadata()?;
        if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
            return Err(said(path, "it is not root's alone to write"));
        }
        let mut text = String::new();
        file.take(LIST_BYTES_MAX).read_to_string(&mut text)?;
        Self::parse(&text).map_err(|why| said(path, &why))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut lines: Vec<Line> = Vec::new();
        for (number, text) in (1..).zip(text.lines()) {
            let text = text.split('#').next().unwrap_or_default();
            let words: Vec<_> = text.split_whitespace().collect();
            if words.is_empty() {
                continue;
            }
            let line = line(&words)
                .filter(|line| lines.iter().all(|other| other.name != line.name))
                .ok_or_else(|| format!("line {number}: write NAME BRIDGE [NETWORK], NAME once"))?;
            lines.push(line);
        }
        Ok(Self(lines))
    }

    /// The interface of the bridge on which such a card may be.
    ///
    /// # Errors
    /// Why none may: the text begins with a code and a colon.
    pub fn find(&self, card: &Bridged) -> Result<&str, String> {
        let Some(line) = self.0.iter().find(|line| line.name == card.bridge) else {
            return Err(format!("bridge_unknown: guests of this host have no {}", card.bridge));
        };
        let (Some(addresses), name) = (line.addresses, &line.name) else {
            return Ok(&line.device);
        };
        match card.address {
            Some(own) if addresses.contains(own.address) => Ok(&line.device),
            Some(own) => Err(format!(
                "bridge_address_refused: on {name} this host's guests have addresses of \
                 {addresses}; {} is none",
                own.address
            )),
            None => Err(format!(
                "bridge_address_refused: on {name} this host's guests choose an address of \
                 {addresses}, and none comes by DHCP"
            )),
        }
    }
}

fn line(words: &[&str]) -> Option<Line> {
    let (name, device, addresses) = match words {
        [name, device] => (name, device, None),
        [name, device, network] => (name, device, Some(network.parse().ok()?)),
        _ => return None,
    };
    // It stands in what `ip` is told.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let begins = device.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let is_device = begins && device.len() <= DEVICE_BYTES_MAX && device.bytes().all(is_plain);
    is_device.then_some(())?;
    Some(Line { name: name.parse().ok()?, device: (*device).to_owned(), addresses })
}

fn said(path: &Path, why: &str) -> io::Error {
    io::Error::other(format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use dagger_payload::bridge::StaticAddress;

    use super::*;

    fn card(bridge: &str, address: Option<[u8; 4]>) -> Bridged {
        let at = |address: [u8; 4]| StaticAddress {
            address: address.into(),
            prefix_length: 24,
            gateway: None,
        };
        Bridged { bridge: bridge.parse().expect("a name"), address: address.map(at) }
    }

    #[test]
    fn a_card_is_on_a_bridge_of_the_list_or_on_none() {
        let list = Bridges::parse("# ours\n\nlan br0   # the office\ndmz br-dmz.7 192.0.2.64/26\n");
        let list = list.expect("it reads");
        assert_eq!(list.find(&card("lan", None)), Ok("br0"));
        assert_eq!(list.find(&card("lan", Some([10, 0, 0, 1]))), Ok("br0"));
        assert_eq!(list.find(&card("dmz", Some([192, 0, 2, 65]))), Ok("br-dmz.7"));
        for (refused, code) in [
            (card("storage", None), "bridge_unknown:"),
            (card("br0", None), "bridge_unknown:"),
            (card("dmz", None), "bridge_address_refused:"),
            (card("dmz", Some([192, 0, 2, 5])), "bridge_address_refused:"),
        ] {
            let why = list.find(&refused).expect_err("it was found");
            assert!(why.starts_with(code), "{why}");
        }
    }

    #[test]
    fn a_list_that_says_anything_else_is_none() {
        for text in [
            "lan",
            "lan br0 192.0.2.0/24 more",
            "lan br0 192.0.2.1/24",
            "LAN br0",
            "lan br0\nlan br1",
            "lan -br0",
            "lan br0;up",
            "lan ../br0",
            "lan abcdefghijklmnop",
        ] {
            assert!(Bridges::parse(text).is_err(), "{text}");
        }
    }
}
