//! The network cards of a VM, in words: what `vm create` asks for and `vm show` shows.
//!
//! Owns how a card is written. Never decides which host has a bridge. Called by `commands::vm`,
//! `commands::vm_network` and `commands::vm_view`.

use std::str::FromStr;

use dagger_api::VmView;
use dagger_payload::bridge::{Bridged, StaticAddress};
use dagger_payload::network::VmNetwork;

use super::vm_network::allowed;

const FORM: &str = "write nat, bridge=lan, bridge=lan,address=192.0.2.5/24 or \
                    bridge=lan,address=192.0.2.5/24,gateway=192.0.2.1";

/// A card, as people write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish(pub(crate) Option<Bridged>);

impl FromStr for Wish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no network card; {FORM}");
        if text == "nat" {
            return Ok(Self(None));
        }
        let (mut bridge, mut address, mut gateway) = (None, None, None);
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(wrong)?;
            let place = match key {
                "bridge" => &mut bridge,
                "address" => &mut address,
                "gateway" => &mut gateway,
                _ => return Err(wrong()),
            };
            if place.replace(value).is_some() {
                return Err(wrong());
            }
        }
        let gateway = gateway.map(str::parse).transpose().map_err(|_| wrong())?;
        let address = match address.map(|address| address.split_once('/').ok_or_else(wrong)) {
            None if gateway.is_some() => return Err(wrong()),
            None => None,
            Some(parts) => {
                let (address, length) = parts?;
                Some(StaticAddress {
                    address: address.parse().map_err(|_| wrong())?,
                    prefix_length: length.parse().map_err(|_| wrong())?,
                    gateway,
                })
            }
        };
        let bridge = bridge.and_then(|name| name.parse().ok()).ok_or_else(wrong)?;
        let card = Bridged { bridge, address };
        let network = VmNetwork { bridge: Some(card.clone()), ..VmNetwork::default() };
        match network.broken_rule() {
            Some(rule) => Err(format!("{text:?}: {rule}; {FORM}")),
            None => Ok(Self(Some(card))),
        }
    }
}

/// Where a card is, for people.
fn place(view: &VmView, card: &VmNetwork) -> String {
    let Some(bridged) = &card.bridge else {
        let address = view.vm.placement.address();
        return address.map_or_else(|| "nat".to_owned(), |address| format!("nat {address}"));
    };
    match bridged.address {
        Some(own) => format!("bridge {} {own}", bridged.bridge),
        None => format!("bridge {} by DHCP", bridged.bridge),
    }
}

/// All cards, for people; nothing where there is only the usual one.
pub(super) fn show(view: &VmView) -> String {
    let vm = &view.vm;
    if vm.more_cards.is_empty() && vm.network.bridge.is_none() {
        return String::new();
    }
    let each = vm.cards().enumerate().map(|(number, card)| {
        let mut text = format!("{number}: {}", place(view, card));
        if number > 0 {
            text += &format!(" (allowed in: {})", allowed(card));
        }
        text
    });
    each.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_reads_as_it_is_written() {
        assert_eq!("nat".parse(), Ok(Wish(None)));
        let by_dhcp: Wish = "bridge=lan".parse().expect("a card");
        assert_eq!(by_dhcp.0.expect("on a bridge").address, None);
        let text = "bridge=lan,address=192.0.2.5/24,gateway=192.0.2.1";
        let chosen: Wish = text.parse().expect("a card");
        let chosen = chosen.0.expect("on a bridge").address.expect("chosen");
        assert_eq!(chosen.to_string(), "192.0.2.5/24");
        assert_eq!(chosen.gateway, Some([192, 0, 2, 1].into()));
        for wrong in [
            "",
            "bridge",
            "bridge=",
            "bridge=LAN",
            "bridge=lan,bridge=dmz",
            "address=192.0.2.5/24",
            "bridge=lan,gateway=192.0.2.1",
            "bridge=lan,address=192.0.2.5",
            "bridge=lan,address=192.0.2.0/24",
            "bridge=lan,address=192.0.2.5/24,gateway=198.51.100.1",
            "nat,address=192.0.2.5/24",
            "bridge=lan,mac=52:54:00:00:00:01",
        ] {
            assert!(wrong.parse::<Wish>().is_err(), "{wrong}");
        }
    }
}
