//! A VM's network cards, as its host makes them and as its guest is told of them.
//!
//! Owns how both follow from the VM's object and its host's. Never decides an address: the ledger
//! and the VM's owner do. Called by [`super::perform`].

use std::net::Ipv4Addr;

use dagger_images::{Addressing, MacAddress, SeedCard};
use dagger_net::request::{BridgedCard, Card, Owner};
use dagger_payload::kind::GuestSubnet;
use dagger_payload::network::VmNetwork;
use dagger_payload::object::Vm;

use crate::controller::Guests;
use crate::hypervisor::names::HostNames;

/// A card to be made.
pub(super) enum HostCard {
    /// By NAT.
    Routed(Box<Card>),
    /// On a bridge.
    Bridged(Box<BridgedCard>),
}

/// The cards of `vm`, with their numbers, from 0.
fn numbered(vm: &Vm) -> impl Iterator<Item = (u8, &VmNetwork)> {
    (0..).zip(vm.cards())
}

/// How many cards `vm` has.
pub(super) fn count(vm: &Vm) -> u8 {
    numbered(vm).last().map_or(0, |(last, _)| last + 1)
}

/// Whether some card of `vm` is more than one by NAT that is reached by nobody's wish.
pub(super) fn asks_for_more_than_nat(vm: &Vm) -> bool {
    vm.cards().any(|card| card.bridge.is_some() || !card.forwards.is_empty())
}

/// The cards as this host makes them; nothing if the placement lacks the address of one.
pub(super) fn of_host(
    vm: &Vm,
    (names, owner): (&HostNames, Owner),
    guests: &Guests,
    nameservers: &[Ipv4Addr],
) -> Option<Vec<HostCard>> {
    let each = numbered(vm).map(|(number, network)| {
        let mac = names.mac(vm.id, number);
        Some(match &network.bridge {
            Some(bridge) => HostCard::Bridged(Box::new(BridgedCard {
                vm: vm.id,
                card: number,
                mac,
                owner,
                bridge: bridge.clone(),
                allow: network.allow.clone(),
            })),
            None => HostCard::Routed(Box::new(Card {
                vm: vm.id,
                mac,
                address: vm.placement.address()?,
                subnet: guests.subnet,
                hostname: vm.name.clone(),
                nameservers: nameservers.to_vec(),
                owner,
                network: network.clone(),
                forward_ports_first: guests.forward_ports_first,
            })),
        })
    });
    each.collect()
}

/// The cards as the guest is told of them in its seed, which is what it is told of the first one by
/// DHCP, too; nothing if the placement lacks the address of one.
pub(super) fn of_seed(vm: &Vm, names: &HostNames, subnet: &GuestSubnet) -> Option<Vec<SeedCard>> {
    let each = numbered(vm).map(|(number, network)| {
        let mac: MacAddress = names.mac(vm.id, number).parse().ok()?;
        let decided = |address: Ipv4Addr, prefix_length, gateway| Addressing::Static {
            address,
            prefix_length,
            gateway,
        };
        let addressing = match &network.bridge {
            None => {
                let gateway = Some(subnet.address(1)?);
                decided(vm.placement.address()?, subnet.prefix_length, gateway)
            }
            Some(bridged) => bridged.address.map_or(Addressing::Dhcp, |own| {
                decided(own.address, own.prefix_length, own.gateway)
            }),
        };
        Some(SeedCard { mac, addressing })
    });
    each.collect()
}
