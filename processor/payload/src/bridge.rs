//! Network cards that are plugged into a bridge of the host, beside or instead of the one by NAT.
//!
//! Owns their shape, their ranges and which cards one VM may have together. Never knows which
//! bridge of a host a name means: that host's helper does. Called by the bodies of `vm.create` and
//! `vm.network`, by objects, and by what sets a host's filters.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::limits::{HOST_BRIDGES_MAX, VM_CARDS_MAX};
use crate::name::Name;
use crate::network::VmNetwork;

/// A card on a bridge.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Bridged {
    /// What operators call the bridge on the hosts that offer it.
    #[n(0)]
    pub bridge: Name,
    /// The guest's address there; the guest asks the site's DHCP server, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[n(1)]
    pub address: Option<StaticAddress>,
}

/// An address that the owner of a VM chose.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StaticAddress {
    /// The address.
    #[n(0)]
    #[cbor(with = "crate::kind::ipv4")]
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub address: Ipv4Addr,
    /// How many bits of it are the network's, 1 to 30.
    #[n(1)]
    pub prefix_length: u8,
    /// The way out, on a VM's first card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[n(2)]
    #[cbor(with = "optional_ipv4", has_nil)]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub gateway: Option<Ipv4Addr>,
}

/// An IPv4 address that may be missing, as a CBOR unsigned integer.
mod optional_ipv4 {
    use std::net::Ipv4Addr;

    pub(super) fn encode<C, W: minicbor::encode::Write>(
        value: &Option<Ipv4Addr>,
        encoder: &mut minicbor::Encoder<W>,
        context: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        match value {
            Some(address) => crate::kind::ipv4::encode(address, encoder, context),
            None => encoder.null()?.ok(),
        }
    }

    pub(super) fn decode<C>(
        decoder: &mut minicbor::Decoder<'_>,
        _: &mut C,
    ) -> Result<Option<Ipv4Addr>, minicbor::decode::Error> {
        Ok(decoder.decode::<Option<u32>>()?.map(Ipv4Addr::from))
    }

    #[allow(clippy::unnecessary_wraps, clippy::option_option)] // the shape that the derive calls
    pub(super) fn nil() -> Option<Option<Ipv4Addr>> {
        Some(None)
    }

    pub(super) fn is_nil(value: &Option<Ipv4Addr>) -> bool {
        value.is_none()
    }
}

impl StaticAddress {
    /// Whether `other` is an address that a machine of the same network may have.
    fn reaches(&self, other: Ipv4Addr) -> bool {
        let Some(mask) = u32::MAX.checked_shl(32_u32.saturating_sub(self.prefix_length.into()))
        else {
            return false;
        };
        let (own, other) = (u32::from(self.address), u32::from(other));
        let host = other & !mask;
        own & mask == other & mask && host != 0 && host != !mask
    }

    fn broken_rule(&self) -> Option<&'static str> {
        let is_a_machines = !self.address.is_unspecified()
            && !self.address.is_loopback()
            && !self.address.is_multicast()
            && !self.address.is_link_local();
        if !(1..=30).contains(&self.prefix_length) {
            Some("address: a prefix length of 1 to 30")
        } else if !is_a_machines || !self.reaches(self.address) {
            Some("address: one that a machine of its network may have")
        } else if self.gateway.is_some_and(|way| way == self.address || !self.reaches(way)) {
            Some("gateway: another address of the same network")
        } else {
            None
        }
    }
}

impl fmt::Display for StaticAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix_length)
    }
}

impl Bridged {
    /// The first rule that this breaks, in words.
    pub(crate) fn broken_rule(&self) -> Option<&'static str> {
        self.address.as_ref().and_then(StaticAddress::broken_rule)
    }
}

/// The first rule that these cards break together, in words; each by itself is as it may be.
pub(crate) fn broken_rule_of_cards(first: &VmNetwork, more: &[VmNetwork]) -> Option<&'static str> {
    let bridged = || more.iter().filter_map(|card| card.bridge.as_ref());
    let on = |bridge: &Name| {
        let first = first.bridge.iter();
        first.chain(bridged()).filter(|card| card.bridge == *bridge).count()
    };
    let leads_out = |card: &Bridged| card.address.is_some_and(|at| at.gateway.is_some());
    if more.len() >= usize::from(VM_CARDS_MAX) {
        Some("more_cards: a VM has at most 4 cards in all")
    } else if bridged().count() < more.len() {
        Some("more_cards: each on a bridge; only the first card may be by NAT")
    } else if bridged().any(|card| on(&card.bridge) > 1) {
        Some("more_cards: each bridge once")
    } else if bridged().any(leads_out) {
        Some("more_cards: a gateway belongs to the first card")
    } else {
        None
    }
}

/// Whether a host may offer these: few, and each name once.
pub(crate) fn are_host_bridges(names: &[Name]) -> bool {
    let is_first = |(at, name): (usize, &Name)| !names[..at].contains(name);
    names.len() <= HOST_BRIDGES_MAX && names.iter().enumerate().all(is_first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Forward, Protocol};

    fn at(address: [u8; 4], prefix_length: u8, gateway: Option<[u8; 4]>) -> StaticAddress {
        StaticAddress { address: address.into(), prefix_length, gateway: gateway.map(Into::into) }
    }

    fn on(bridge: &str, address: Option<StaticAddress>) -> VmNetwork {
        let bridge = Some(Bridged { bridge: bridge.parse().expect("a name"), address });
        VmNetwork { bridge, ..VmNetwork::default() }
    }

    #[test]
    fn an_address_lies_in_its_network_and_so_does_its_gateway() {
        for good in [
            at([192, 0, 2, 5], 24, None),
            at([192, 0, 2, 5], 24, Some([192, 0, 2, 1])),
            at([192, 0, 2, 254], 24, Some([192, 0, 2, 1])),
            at([10, 0, 0, 1], 8, Some([10, 255, 255, 254])),
            at([192, 0, 2, 1], 30, Some([192, 0, 2, 2])),
        ] {
            assert_eq!(good.broken_rule(), None, "{good:?}");
        }
        for wrong in [
            at([192, 0, 2, 5], 0, None),
            at([192, 0, 2, 5], 31, None),
            at([192, 0, 2, 5], 255, None),
            at([192, 0, 2, 0], 24, None),
            at([192, 0, 2, 255], 24, None),
            at([0, 0, 0, 0], 24, None),
            at([127, 0, 0, 1], 8, None),
            at([224, 0, 0, 1], 24, None),
            at([169, 254, 0, 1], 16, None),
            at([192, 0, 2, 5], 24, Some([192, 0, 3, 1])),
            at([192, 0, 2, 5], 24, Some([192, 0, 2, 5])),
            at([192, 0, 2, 5], 24, Some([192, 0, 2, 255])),
        ] {
            assert!(wrong.broken_rule().is_some(), "{wrong:?}");
            assert!(on("lan", Some(wrong)).broken_rule().is_some());
        }
    }

    #[test]
    fn cards_that_one_vm_cannot_have_together_break_a_rule() {
        let (nat, lan, dmz) = (VmNetwork::default(), on("lan", None), on("dmz", None));
        let way_out = on("dmz", Some(at([192, 0, 2, 5], 24, Some([192, 0, 2, 1]))));
        assert_eq!(broken_rule_of_cards(&nat, &[]), None);
        assert_eq!(broken_rule_of_cards(&nat, &[lan.clone(), dmz.clone()]), None);
        assert_eq!(broken_rule_of_cards(&way_out, std::slice::from_ref(&lan)), None);
        for (first, more) in [
            (&nat, vec![nat.clone()]),
            (&lan, vec![lan.clone()]),
            (&nat, vec![lan.clone(), lan.clone()]),
            (&lan, vec![way_out]),
            (&nat, ["a", "b", "c", "d"].map(|name| on(name, None)).to_vec()),
        ] {
            assert!(broken_rule_of_cards(first, &more).is_some(), "{first:?} {more:?}");
        }
    }

    #[test]
    fn no_port_of_a_host_leads_to_a_card_on_a_bridge() {
        let forwards = vec![Forward { slot: 0, protocol: Protocol::Tcp, guest_port: 22 }];
        assert!(VmNetwork { forwards, ..on("lan", None) }.broken_rule().is_some());
    }

    #[test]
    fn a_host_offers_each_bridge_once_and_not_many() {
        let names = |count: usize| -> Vec<Name> {
            (0..count).map(|number| format!("lan{number}").parse().expect("a name")).collect()
        };
        assert!(are_host_bridges(&names(16)));
        assert!(!are_host_bridges(&names(17)));
        assert!(!are_host_bridges(&[names(1), names(1)].concat()));
    }

    #[test]
    fn what_was_written_before_there_were_bridges_is_written_and_read_as_it_was() {
        let old = crate::codec::encode(&VmNetwork::default());
        assert!(!old.is_empty() && crate::codec::encode(&on("lan", None)).len() > old.len());
        for card in [
            VmNetwork::default(),
            on("lan", None),
            on("lan", Some(at([192, 0, 2, 5], 24, None))),
            on("lan", Some(at([192, 0, 2, 5], 24, Some([192, 0, 2, 1])))),
        ] {
            let bytes = crate::codec::encode(&card);
            assert_eq!(crate::codec::decode::<VmNetwork>(&bytes).ok(), Some(card));
        }
    }
}
