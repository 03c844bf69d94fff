//! How a VM's network card is reached: who may, and by which ports of its host.
//!
//! Owns the shape of both and their ranges. Never decides a change: the judge in
//! `dagger-processor` does. Called by the bodies of `vm.create` and `vm.network`, by objects, and
//! by what sets a host's filters.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bridge::Bridged;
use crate::kind::GuestSubnet;
use crate::limits::{VM_ALLOW_MAX, VM_FORWARDS_MAX};

/// The first address of a host's guests: the network's own comes before it, and the host's.
const GUEST_ADDRESS_FIRST: u32 = 2;

/// IPv4 addresses that begin alike; `0.0.0.0/0` is all of them.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Ipv4Prefix {
    /// The first of them; its host bits are zero.
    #[n(0)]
    #[cbor(with = "crate::kind::ipv4")]
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub network: Ipv4Addr,
    /// How many bits they have in common, 0 to 32.
    #[n(1)]
    pub prefix_length: u8,
}

impl Ipv4Prefix {
    /// All addresses.
    pub const ALL: Self = Self { network: Ipv4Addr::UNSPECIFIED, prefix_length: 0 };

    /// Whether it is one of them.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let differing = u32::from(self.network) ^ u32::from(address);
        differing.leading_zeros() >= self.prefix_length.into()
    }

    fn is_valid(&self) -> bool {
        let host_bits = 32_u32.checked_sub(self.prefix_length.into());
        host_bits
            .is_some_and(|bits| u64::from(u32::from(self.network)) & ((1_u64 << bits) - 1) == 0)
    }
}

impl fmt::Display for Ipv4Prefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.network, self.prefix_length)
    }
}

/// `ADDRESS/LENGTH`, or one address.
impl FromStr for Ipv4Prefix {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "an IPv4 address or network, such as 192.0.2.0/24, without host bits";
        let (network, length) = text.split_once('/').unwrap_or((text, "32"));
        let prefix = Self {
            network: network.parse().map_err(|_| FORM)?,
            prefix_length: length.parse().map_err(|_| FORM)?,
        };
        if prefix.is_valid() { Ok(prefix) } else { Err(FORM) }
    }
}

/// Protocols over IPv4.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Protocol {
    /// TCP.
    #[n(0)]
    Tcp,
    /// UDP.
    #[n(1)]
    Udp,
    /// ICMP; it has no ports.
    #[n(2)]
    Icmp,
}

impl Protocol {
    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

/// Ports from one to another, both among them.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PortRange {
    /// The first.
    #[n(0)]
    pub first: u16,
    /// The last.
    #[n(1)]
    pub last: u16,
}

/// What may begin a conversation with a guest.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Allowed {
    /// From where.
    #[n(0)]
    pub from: Ipv4Prefix,
    /// By which protocol; any, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[n(1)]
    pub protocol: Option<Protocol>,
    /// To which ports of the guest; any, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[n(2)]
    pub ports: Option<PortRange>,
}

/// A port of the host that leads to one of the guest. Which one it is follows from the guest's
/// address and the slot: see [`host_port`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Forward {
    /// Which of the guest's ports of the host, from 0.
    #[n(0)]
    pub slot: u8,
    /// TCP or UDP.
    #[n(1)]
    pub protocol: Protocol,
    /// Where it leads.
    #[n(2)]
    pub guest_port: u16,
}

/// How a VM's network card is reached.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(minicbor::Encode, minicbor::Decode)]
pub struct VmNetwork {
    /// What may begin a conversation with the guest, besides its host; everything, if not given,
    /// and nothing if the list is empty. What the guest begins itself is answered in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[n(0)]
    pub allow: Option<Vec<Allowed>>,
    /// Ports of the host that lead to the guest; what comes by them must be allowed too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[n(1)]
    pub forwards: Vec<Forward>,
    /// On which bridge of the host it is; by NAT, if not given. Decided when the VM is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[n(2)]
    pub bridge: Option<Bridged>,
}

impl VmNetwork {
    /// The first rule that this breaks, in words.
    pub fn broken_rule(&self) -> Option<&'static str> {
        let allow = self.allow.as_deref().unwrap_or_default();
        let is_well_formed = |rule: &Allowed| {
            let has_ports = matches!(rule.protocol, Some(Protocol::Tcp | Protocol::Udp));
            let ports = rule.ports.map(|ports| 0 < ports.first && ports.first <= ports.last);
            rule.from.is_valid() && ports.is_none_or(|in_order| in_order && has_ports)
        };
        let is_forwarded = |forward: &Forward| {
            forward.slot < VM_FORWARDS_MAX
                && forward.guest_port > 0
                && forward.protocol != Protocol::Icmp
        };
        let is_twice = |(at, forward): (usize, &Forward)| {
            self.forwards[..at].iter().any(|other| other.slot == forward.slot)
        };
        if allow.len() > VM_ALLOW_MAX {
            Some("allow: at most 32")
        } else if !allow.iter().all(is_well_formed) {
            Some(
                "allow: a network must have no host bits; ports are 1 to 65535, first to last, and \
                 only with tcp or udp",
            )
        } else if !self.forwards.iter().all(is_forwarded) {
            Some("forwards: slot 0 to 7, tcp or udp, a port above 0")
        } else if self.forwards.iter().enumerate().any(is_twice) {
            Some("forwards: each slot once")
        } else if self.bridge.is_some() && !self.forwards.is_empty() {
            Some("forwards: of a card by NAT alone")
        } else {
            self.bridge.as_ref().and_then(Bridged::broken_rule)
        }
    }

    /// The lowest slot that no forward takes; `None` when all are taken.
    pub fn free_slot(&self) -> Option<u8> {
        (0..VM_FORWARDS_MAX).find(|slot| self.forwards.iter().all(|used| used.slot != *slot))
    }
}

/// The port of a host that leads to the guest with `address`, when the host's ports for guests
/// begin at `first`: every address has ports of its own, so no two guests ever share one, and one
/// that was given back rests for as long as its address does.
pub fn host_port(first: u16, subnet: &GuestSubnet, address: Ipv4Addr, slot: u8) -> Option<u16> {
    let index = u32::from(address).checked_sub(u32::from(subnet.network))?;
    let guest = index.checked_sub(GUEST_ADDRESS_FIRST)?;
    let offset = guest.checked_mul(VM_FORWARDS_MAX.into())?.checked_add(slot.into())?;
    let is_guest = subnet.address(index) == Some(address) && slot < VM_FORWARDS_MAX;
    let port = u32::from(first).checked_add(offset)?;
    is_guest.then_some(port)?.try_into().ok()
}

/// Whether every guest of `subnet` has its ports when they begin at `first`.
pub(crate) fn are_host_ports(first: u16, subnet: &GuestSubnet) -> bool {
    let last = subnet.size().and_then(|size| subnet.address(size.checked_sub(2)?));
    first >= 1024
        && last
            .is_some_and(|address| host_port(first, subnet, address, VM_FORWARDS_MAX - 1).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(prefix_length: u8) -> GuestSubnet {
        GuestSubnet { network: [10, 77, 0, 0].into(), prefix_length }
    }

    #[test]
    fn every_guest_has_ports_of_its_own() {
        let port = |address: [u8; 4], slot| host_port(20_000, &subnet(24), address.into(), slot);
        assert_eq!(port([10, 77, 0, 2], 0), Some(20_000));
        assert_eq!(port([10, 77, 0, 3], 7), Some(20_015));
        assert_eq!(port([10, 77, 0, 254], 7), Some(22_023));
        for (address, slot) in
            [([10, 77, 0, 1], 0), ([10, 77, 0, 255], 0), ([10, 77, 1, 2], 0), ([10, 77, 0, 2], 8)]
        {
            assert_eq!(port(address, slot), None, "{address:?} {slot}");
        }
    }

    #[test]
    fn ports_that_do_not_reach_for_all_guests_are_none() {
        assert!(are_host_ports(63_512, &subnet(24)));
        assert!(!are_host_ports(63_513, &subnet(24)));
        assert!(!are_host_ports(1023, &subnet(24)));
        assert!(!are_host_ports(1024, &subnet(16)));
        assert!(are_host_ports(32_768, &subnet(20)));
    }

    #[test]
    fn a_prefix_reads_as_it_is_written_and_has_no_host_bits() {
        for text in ["0.0.0.0/0", "192.0.2.0/24", "192.0.2.7/32"] {
            assert_eq!(text.parse::<Ipv4Prefix>().expect("a prefix").to_string(), text);
        }
        assert_eq!("192.0.2.7".parse::<Ipv4Prefix>().expect("one").prefix_length, 32);
        let network: Ipv4Prefix = "192.0.2.64/26".parse().expect("one");
        for (address, is_in) in [(63, false), (64, true), (127, true), (128, false)] {
            assert_eq!(network.contains([192, 0, 2, address].into()), is_in, "{address}");
        }
        assert!(Ipv4Prefix::ALL.contains([255, 255, 255, 255].into()));
        for text in ["192.0.2.1/24", "192.0.2.0/33", "::/0", "", "/"] {
            assert!(text.parse::<Ipv4Prefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_carried_out_breaks_a_rule() {
        let forward = |slot, protocol, guest_port| Forward { slot, protocol, guest_port };
        let forwards = |forwards| VmNetwork { forwards, ..VmNetwork::default() };
        let tcp = Protocol::Tcp;
        assert_eq!(forwards(vec![forward(0, tcp, 22), forward(7, tcp, 22)]).broken_rule(), None);
        for wrong in [
            vec![forward(8, tcp, 22)],
            vec![forward(0, tcp, 0)],
            vec![forward(0, Protocol::Icmp, 1)],
            vec![forward(1, tcp, 22), forward(1, Protocol::Udp, 53)],
        ] {
            assert!(forwards(wrong.clone()).broken_rule().is_some(), "{wrong:?}");
        }
        let rule = |protocol, ports: Option<(u16, u16)>| Allowed {
            from: Ipv4Prefix::ALL,
            protocol,
            ports: ports.map(|(first, last)| PortRange { first, last }),
        };
        let allow = |rule| VmNetwork { allow: Some(vec![rule]), ..VmNetwork::default() };
        assert_eq!(allow(rule(Some(tcp), Some((22, 22)))).broken_rule(), None);
        assert_eq!(allow(rule(None, None)).broken_rule(), None);
        for wrong in [
            rule(None, Some((22, 22))),
            rule(Some(Protocol::Icmp), Some((1, 2))),
            rule(Some(tcp), Some((23, 22))),
            rule(Some(tcp), Some((0, 22))),
        ] {
            assert!(allow(wrong).broken_rule().is_some(), "{wrong:?}");
        }
    }
}
