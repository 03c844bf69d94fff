//! What the guest of a card by NAT is told when it asks by DHCP, as it stands in its tap's alias.
//!
//! Owns that text. The helper that makes the tap writes it; whoever answers the guest reads it
//! there, so that nobody keeps a list of guests, and what is answered by a tap is of that tap. The
//! agent never reads it.

use std::fmt;
use std::net::Ipv4Addr;

use dagger_payload::kind::GuestSubnet;
use dagger_payload::limits::NAMESERVERS_MAX;
use dagger_payload::name::Name;

use crate::names;
use crate::request::is_guest;

/// An alias, in bytes, as long as Linux takes it.
pub const ALIAS_BYTES_MAX: usize = 255;

/// The same as in the guest's seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Its address, decided in the ledger.
    pub address: Ipv4Addr,
    /// The host's guests.
    pub subnet: GuestSubnet,
    /// What the guest is called.
    pub hostname: Name,
    /// Who resolves names for it.
    pub nameservers: Vec<Ipv4Addr>,
}

impl Offer {
    /// What a tap's alias says; nothing if it is not the alias of a card by NAT, or the tap is
    /// called otherwise than such a card's.
    pub fn of_tap(tap: &str, alias: &str) -> Option<Self> {
        if !names::is_alias_of_first_card(alias, tap) {
            return None;
        }
        let (_, told) = alias.trim().split_once(',')?;
        let [address, hostname, nameservers] = told.split(',').collect::<Vec<_>>()[..] else {
            return None;
        };
        let (address, prefix_length) = address.split_once('/')?;
        let address: Ipv4Addr = address.parse().ok()?;
        let prefix_length: u8 = prefix_length.parse().ok()?;
        let mask = mask(prefix_length)?;
        let network = (u32::from(address) & u32::from(mask)).into();
        let offer = Self {
            address,
            subnet: GuestSubnet { network, prefix_length },
            hostname: hostname.parse().ok()?,
            nameservers: read_hex(nameservers)?,
        };
        let is_valid = offer.subnet.is_valid()
            && is_guest(&offer.subnet, address)
            && offer.nameservers.len() <= NAMESERVERS_MAX;
        is_valid.then_some(offer)
    }

    /// The host, as the guest sees it. A valid subnet has such an address.
    pub fn gateway(&self) -> Ipv4Addr {
        self.subnet.address(1).unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// The subnet's mask.
    pub fn mask(&self) -> Ipv4Addr {
        mask(self.subnet.prefix_length).unwrap_or(Ipv4Addr::BROADCAST)
    }
}

fn mask(prefix_length: u8) -> Option<Ipv4Addr> {
    let rest = 32_u32.checked_sub(prefix_length.into())?;
    Some(u32::MAX.checked_shl(rest).unwrap_or(0).into())
}

fn read_hex(text: &str) -> Option<Vec<Ipv4Addr>> {
    let of = |digits: &[u8]| {
        let is_whole = digits.len() == 8 && digits.iter().all(u8::is_ascii_hexdigit);
        let digits = std::str::from_utf8(digits).ok().filter(|_| is_whole)?;
        u32::from_str_radix(digits, 16).ok().map(Ipv4Addr::from)
    };
    text.as_bytes().chunks(8).map(of).collect()
}

/// What follows the ids in the alias. Name servers stand in hex, without anything between them:
/// an alias with all that it may name has to be short enough.
impl fmt::Display for Offer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, subnet, hostname, nameservers } = self;
        write!(out, ",{address}/{},{hostname},", subnet.prefix_length)?;
        nameservers.iter().try_for_each(|server| write!(out, "{:08x}", u32::from(*server)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use dagger_payload::id::{HostId, VmId};

    use super::*;

    const HERE: HostId = HostId([1; 16]);
    const VM: VmId = VmId([7; 16]);

    pub(crate) fn offer() -> Offer {
        Offer {
            address: [10, 77, 0, 5].into(),
            subnet: GuestSubnet { network: [10, 77, 0, 0].into(), prefix_length: 24 },
            hostname: "web-1".parse().unwrap(),
            nameservers: vec![[9, 9, 9, 9].into(), [192, 0, 2, 53].into()],
        }
    }

    fn read(told: &str) -> Option<Offer> {
        let alias = names::alias(HERE, VM, 0) + told;
        Offer::of_tap(&names::interface(HERE, VM, 0), &alias)
    }

    #[test]
    fn an_alias_holds_the_largest_offer_and_reads_back() {
        let largest = Offer {
            address: [192, 168, 199, 250].into(),
            subnet: GuestSubnet { network: [192, 168, 199, 248].into(), prefix_length: 29 },
            hostname: "a".repeat(63).parse().unwrap(),
            nameservers: vec![[255, 255, 255, 254].into(); NAMESERVERS_MAX],
        };
        let none = Offer { nameservers: Vec::new(), ..offer() };
        for offer in [offer(), largest, none] {
            let told = offer.to_string();
            assert!(names::alias(HERE, VM, 0).len() + told.len() <= ALIAS_BYTES_MAX);
            assert_eq!(read(&told), Some(offer.clone()));
            assert_eq!(read(&format!("{told}\n")), Some(offer), "as the kernel shows it");
        }
        assert_eq!(
            (offer().gateway(), offer().mask()),
            ([10, 77, 0, 1].into(), [255, 255, 255, 0].into())
        );
    }

    #[test]
    fn what_is_no_card_by_nat_tells_nothing() {
        let told = offer().to_string();
        let (alias, tap) = (names::alias(HERE, VM, 0) + &told, names::interface(HERE, VM, 0));
        assert!(Offer::of_tap(&tap, &alias).is_some());
        assert_eq!(Offer::of_tap("virbr0", &alias), None);
        assert_eq!(Offer::of_tap(&names::interface(HERE, VmId([8; 16]), 0), &alias), None);
        let bridged = names::alias(HERE, VM, 1);
        let tap = names::interface(HERE, VM, 1);
        assert_eq!(Offer::of_tap(&tap, &bridged), None);
        assert_eq!(Offer::of_tap(&tap, &(bridged + &told)), None);
        for wrong in [
            "",
            ",10.77.0.5/24,web-1",
            ",10.77.0.5/24,web-1,,",
            ",10.77.0.5,web-1,",
            ",10.77.0.5/33,web-1,",
            ",10.77.0.1/24,web-1,",
            ",10.77.0.255/24,web-1,",
            ",8.8.8.8/24,web-1,",
            ",10.77.0.5/24,,",
            ",10.77.0.5/24,web-1,0909090",
            ",10.77.0.5/24,web-1,0909090g",
            ",10.77.0.5/24,web-1,+9090909",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(read(&format!(",10.77.0.5/24,web-1,{}", "09".repeat(36))), None);
    }
}
