//! Who has which addresses on a bridge of this host, as the taps' aliases say.
//!
//! Owns that text: the filters vouch for what a guest calls itself, so no two may be vouched for
//! alike. As with [`crate::offer`] there is no list: what a tap says goes with it. Other hosts
//! on the same bridge are out of sight. Called by [`crate::apply`].

use std::fmt;
use std::net::Ipv4Addr;

use crate::names;
use crate::request::BridgedCard;

/// What a card on a bridge has there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    mac: String,
    /// None that is known, if by DHCP.
    address: Option<Ipv4Addr>,
    /// The bridge's interface.
    device: String,
}

impl Claim {
    /// What `card` is to have on the bridge `device`.
    pub fn of(card: &BridgedCard, device: &str) -> Self {
        let address = card.bridge.address.map(|own| own.address);
        Self { mac: card.mac.clone(), address, device: device.to_owned() }
    }

    /// What a tap says; nothing if it is on no bridge, or was made before taps said this.
    pub fn of_alias(alias: &str) -> Option<Self> {
        let told = names::told_by_alias(alias)?;
        let [mac, address, device] = told.split(',').collect::<Vec<_>>()[..] else {
            return None;
        };
        let device = device.strip_prefix('@')?.to_owned();
        let address = (!address.is_empty()).then(|| address.parse()).transpose().ok()?;
        Some(Self { mac: mac.to_owned(), address, device })
    }

    /// Why it cannot be had beside another one: the text begins with a code and a colon.
    pub fn objection(&self, other: &Self) -> Option<String> {
        if self.device != other.device {
            None
        } else if self.mac == other.mac {
            let why = "another guest of this host has this MAC address on that bridge";
            Some(format!("bridge_mac_taken: {}: {why}", self.mac))
        } else {
            let address = self.address.filter(|own| other.address == Some(*own))?;
            let why = "another guest of this host has this address on that bridge";
            Some(format!("bridge_address_taken: {address}: {why}; choose another one"))
        }
    }

    /// The address that was chosen.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.address
    }
}

/// What follows the ids in the alias.
impl fmt::Display for Claim {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address.map(|address| address.to_string()).unwrap_or_default();
        write!(out, ",{},{address},@{}", self.mac, self.device)
    }
}

/// The host's own addresses and its gateways, in what `ip` says of an interface.
pub(crate) fn addresses_of_host(said: &str) -> Vec<Ipv4Addr> {
    let words: Vec<_> = said.split_whitespace().collect();
    let told = words.windows(2).filter(|pair| matches!(pair[0], "inet" | "via"));
    told.filter_map(|pair| pair[1].split('/').next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use dagger_payload::id::{HostId, VmId};

    use super::*;
    use crate::offer::Offer;

    fn claim(mac: u8, address: Option<[u8; 4]>, device: &str) -> Claim {
        let (mac, address) = (format!("52:54:00:00:00:{mac:02x}"), address.map(Into::into));
        Claim { mac, address, device: device.to_owned() }
    }

    #[test]
    fn a_claim_reads_back_from_an_alias_and_tells_nothing_by_dhcp() {
        let (host, vm) = (HostId([1; 16]), VmId([7; 16]));
        for claim in [claim(1, Some([192, 0, 2, 5]), "br0"), claim(1, None, "br-dmz.7")] {
            for card in [0, 1] {
                let alias = format!("{}{claim}\n", names::alias(host, vm, card));
                assert_eq!(Claim::of_alias(&alias), Some(claim.clone()));
                assert_eq!(names::vm_of_alias(host, &alias), Some(vm));
                assert_eq!(Offer::of_tap(&names::interface(host, vm, card), &alias), None);
            }
        }
        let nat = names::alias(host, vm, 0) + &crate::offer::tests::offer().to_string();
        assert_eq!(Claim::of_alias(&nat), None);
        assert_eq!(Claim::of_alias(&names::alias(host, vm, 1)), None);
    }

    #[test]
    fn nobody_has_what_another_one_has_on_the_same_bridge() {
        let one = claim(1, Some([192, 0, 2, 5]), "br0");
        let code = |other: Claim| {
            let why = other.objection(&one)?;
            why.split_once(':').map(|(code, _)| code.to_owned())
        };
        assert_eq!(code(claim(2, Some([192, 0, 2, 6]), "br0")), None);
        assert_eq!(code(claim(1, Some([192, 0, 2, 5]), "br1")), None);
        assert_eq!(code(claim(2, None, "br0")), None);
        let taken = |code: &str| Some(code.to_owned());
        assert_eq!(code(claim(2, Some([192, 0, 2, 5]), "br0")), taken("bridge_address_taken"));
        assert_eq!(code(claim(1, None, "br0")), taken("bridge_mac_taken"));
    }

    #[test]
    fn what_the_host_is_called_and_by_whom_it_gets_out_is_found() {
        let said = "4: br0: <UP> mtu 1500\n    link/ether fe:fe:00:00:00:01 brd ff:ff:ff:ff:ff:ff\n    \
                    inet 192.0.2.1/24 brd 192.0.2.255 scope global br0\n    inet6 fe80::1/64 scope link\n\
                    default via 192.0.2.2 dev br0\n192.0.2.0/24 proto kernel src 192.0.2.1\n";
        let found = addresses_of_host(said);
        assert_eq!(found, [Ipv4Addr::from([192, 0, 2, 1]), [192, 0, 2, 2].into()]);
    }
}
