//! Where guests of this host may be and get to: a list that its operator alone writes.
//!
//! Owns the list's form and who may have written it. The agent names a bridge by the operator's
//! name for it and never by an interface, and says nothing of what guests get to: who has taken the
//! agent over gets no further than the list. What is no bridge begins with a word in capitals,
//! which is no name. Called by [`crate::apply`].

use std::fs::File;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use dagger_payload::bridge::Bridged;
use dagger_payload::name::Name;
use dagger_payload::network::Ipv4Prefix;

use crate::outward::Outward;

/// Where the list is, unless the helper is told another place.
pub const LIST: &str = "/etc/dagger-net.conf";
/// The list, in bytes.
const LIST_BYTES_MAX: u64 = 64 * 1024;
/// An interface's name, as Linux takes it.
const DEVICE_BYTES_MAX: usize = 15;

/// A bridge: `NAME BRIDGE`, or `NAME BRIDGE NETWORK`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bridge {
    name: Name,
    device: String,
    /// Guests have addresses of this network and no others, so none by DHCP.
    addresses: Option<Ipv4Prefix>,
}

/// The list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List {
    bridges: Vec<Bridge>,
    /// What guests of a bridge may not be called: `RESERVED NAME NETWORK`.
    reserved: Vec<(Name, Ipv4Prefix)>,
    /// What guests get to by NAT: `OPEN NETWORK`, `CLOSED NETWORK`.
    pub outward: Outward,
}

impl List {
    /// Reads the list; where there is none, guests may be on no bridge, and get to nothing that is
    /// private.
    ///
    /// # Errors
    /// It cannot be read, does not read, or somebody besides root could have written it.
    pub fn read(path: &Path) -> io::Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
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
        let mut list = Self::default();
        for (number, text) in (1..).zip(text.lines()) {
            let text = text.split('#').next().unwrap_or_default();
            let words: Vec<_> = text.split_whitespace().collect();
            list.take(&words).map_err(|why| format!("line {number}: {why}"))?;
        }
        let unknown = |name: &Name| list.bridges.iter().all(|bridge| bridge.name != *name);
        match list.reserved.iter().find(|(name, _)| unknown(name)) {
            Some((name, _)) => Err(format!("RESERVED {name}: there is no line of that bridge")),
            None => Ok(list),
        }
    }

    fn take(&mut self, words: &[&str]) -> Result<(), String> {
        let network = |text: &str| text.parse::<Ipv4Prefix>().map_err(str::to_owned);
        match words {
            [] => Ok(()),
            ["OPEN", text] => self.outward.open(network(text)?),
            ["CLOSED", text] => self.outward.close(network(text)?),
            ["RESERVED", name, text] => {
                let name = name.parse().map_err(|_| format!("{name} is no name"))?;
                self.reserved.push((name, network(text)?));
                Ok(())
            }
            words => {
                let bridge = bridge(words)
                    .filter(|new| self.bridges.iter().all(|other| other.name != new.name));
                self.bridges.push(bridge.ok_or(
                    "write NAME BRIDGE [NETWORK], NAME once; or RESERVED NAME NETWORK, \
                     OPEN NETWORK, CLOSED NETWORK",
                )?);
                Ok(())
            }
        }
    }

    /// The interface of the bridge on which such a card may be.
    ///
    /// # Errors
    /// Why none may: the text begins with a code and a colon.
    pub fn find(&self, card: &Bridged) -> Result<&str, String> {
        let Some(line) = self.bridges.iter().find(|line| line.name == card.bridge) else {
            return Err(format!("bridge_unknown: guests of this host have no {}", card.bridge));
        };
        let name = &line.name;
        if let Some(own) = card.address
            && self.reserved.iter().any(|(of, all)| of == name && all.contains(own.address))
        {
            return Err(reserved(own.address, name));
        }
        let Some(addresses) = line.addresses else { return Ok(&line.device) };
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

/// Why an address is no guest's.
pub(crate) fn reserved(address: Ipv4Addr, bridge: &Name) -> String {
    format!(
        "bridge_address_reserved: {address} on {bridge} is the host's, a gateway's, or kept by the \
         host's operator; choose another one"
    )
}

fn bridge(words: &[&str]) -> Option<Bridge> {
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
    Some(Bridge { name: name.parse().ok()?, device: (*device).to_owned(), addresses })
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
        let list = List::parse("# ours\n\nlan br0   # the office\ndmz br-dmz.7 192.0.2.64/26\n");
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
    fn what_the_operator_keeps_is_no_guests_address() {
        let text = "lan br0\nRESERVED lan 192.0.2.1 # the gateway\nRESERVED lan 192.0.2.240/28\n";
        let list = List::parse(text).expect("it reads");
        for address in [[192, 0, 2, 1], [192, 0, 2, 250]] {
            let why = list.find(&card("lan", Some(address))).expect_err("it was found");
            assert!(why.starts_with("bridge_address_reserved:"), "{why}");
        }
        assert_eq!(list.find(&card("lan", Some([192, 0, 2, 2]))), Ok("br0"));
        assert_eq!(list.find(&card("lan", None)), Ok("br0"));
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
            "RESERVED lan 192.0.2.1",
            "lan br0\nRESERVED lan 192.0.2.1/24",
            "OPEN",
            "OPEN 10.0.0.1/8",
            "open 10.0.0.0/8",
            "OPEN 169.254.169.254",
            "OPEN 0.0.0.0/0",
            "CLOSED 10.0.0.0/8 10.1.0.0/16",
        ] {
            assert!(List::parse(text).is_err(), "{text}");
        }
    }
}
