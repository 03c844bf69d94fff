//! What the helper is asked and what it answers, as JSON.
//!
//! Owns these shapes, their version and what a request must satisfy whoever wrote it. Called by the
//! agent (writes requests) and by the helper (reads them).

use std::net::Ipv4Addr;

use dagger_payload::bridge::Bridged;
use dagger_payload::id::{HostId, VmId};
use dagger_payload::kind::GuestSubnet;
use dagger_payload::limits::{NAMESERVERS_MAX, VM_CARDS_MAX};
use dagger_payload::name::Name;
use dagger_payload::network::{Allowed, VmNetwork, host_port};
use serde::{Deserialize, Serialize};

use crate::offer::Offer;

/// The version of these shapes; agent and helper are installed together.
pub const VERSION: u32 = 2;
/// A request, in bytes.
pub const REQUEST_BYTES_MAX: u64 = 64 * 1024;
/// An answer, in bytes.
pub const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// Which host asks: names are made from it.
    pub host: HostId,
    /// What for.
    pub action: Action,
}

/// What is to hold afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// The VM has this card by NAT, and no other filters for it.
    Ensure(Box<Card>),
    /// The VM has this card on a bridge, and no other filters for it.
    Bridge(Box<BridgedCard>),
    /// Nothing of the VM is left.
    Remove(VmId),
    /// Nothing changes; the answer names the VMs of which something is there.
    List,
}

/// A guest's first network card by NAT, seen from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Whose.
    pub vm: VmId,
    /// Its MAC address: six lower-case hex pairs with colons.
    pub mac: String,
    /// Its address, decided in the ledger.
    pub address: Ipv4Addr,
    /// The host's guests.
    pub subnet: GuestSubnet,
    /// What the guest is called.
    pub hostname: Name,
    /// Who resolves names for it.
    pub nameservers: Vec<Ipv4Addr>,
    /// Who opens the tap.
    pub owner: Owner,
    /// How it is reached.
    pub network: VmNetwork,
    /// Where the host's ports for guests begin.
    pub forward_ports_first: Option<u16>,
}

/// A guest's network card on a bridge, seen from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgedCard {
    /// Whose.
    pub vm: VmId,
    /// Which of its cards, from 0.
    pub card: u8,
    /// Its MAC address: six lower-case hex pairs with colons.
    pub mac: String,
    /// Who opens the tap.
    pub owner: Owner,
    /// Which bridge, by the operator's name for it, and the guest's address there.
    pub bridge: Bridged,
    /// What may begin a conversation with the guest; everything, if not given.
    pub allow: Option<Vec<Allowed>>,
}

/// Who opens a tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// Root, as libvirt's daemon is.
    Root,
    /// The user of machines under systemd.
    Machines,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// It holds.
    Done,
    /// Of these VMs something is there.
    Cards(Vec<VmId>),
    /// It will never be carried out: why.
    Refused(String),
    /// It did not work this time: why.
    Failed(String),
}

impl Request {
    /// A request of this version.
    pub fn new(host: HostId, action: Action) -> Self {
        Self { version: VERSION, host, action }
    }

    /// Why it is not carried out, if so.
    pub fn objection(&self) -> Option<String> {
        if self.version != VERSION {
            return Some(format!("version {} is not {VERSION}", self.version));
        }
        match &self.action {
            Action::Ensure(card) => card.objection(),
            Action::Bridge(card) => card.objection(),
            Action::Remove(_) | Action::List => None,
        }
    }
}

fn is_mac_of_ours(mac: &str) -> bool {
    let is_hex = |pair: &str| {
        pair.len() == 2 && pair.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    mac.starts_with("52:54:00:") && mac.len() == 17 && mac.split(':').all(is_hex)
}

/// Whether the address may be a guest's: it is in the subnet, and not the host's own.
pub(crate) fn is_guest(subnet: &GuestSubnet, address: Ipv4Addr) -> bool {
    let index = u32::from(address).checked_sub(u32::from(subnet.network));
    index.is_some_and(|index| index > 1 && subnet.address(index) == Some(address))
}

impl BridgedCard {
    fn objection(&self) -> Option<String> {
        let (allow, bridge) = (self.allow.clone(), Some(self.bridge.clone()));
        let network = VmNetwork { allow, bridge, ..VmNetwork::default() };
        if self.card >= VM_CARDS_MAX {
            Some(format!("card: {} is over the last", self.card))
        } else if !is_mac_of_ours(&self.mac) {
            Some(format!("mac: {:?} is none of ours", self.mac))
        } else {
            network.broken_rule().map(str::to_owned)
        }
    }
}

impl Card {
    fn objection(&self) -> Option<String> {
        if !is_mac_of_ours(&self.mac) {
            Some(format!("mac: {:?} is none of ours", self.mac))
        } else if !self.subnet.is_valid() {
            Some("subnet: not a private IPv4 network /16../29".to_owned())
        } else if !is_guest(&self.subnet, self.address) {
            Some(format!("address: {} is none of a guest", self.address))
        } else if self.nameservers.len() > NAMESERVERS_MAX {
            Some(format!("nameservers: a guest is told of {NAMESERVERS_MAX}"))
        } else if self.network.bridge.is_some() {
            Some("bridge: a card by NAT is on none".to_owned())
        } else if let Some(rule) = self.network.broken_rule() {
            Some(rule.to_owned())
        } else if self.network.forwards.iter().any(|forward| self.port(forward.slot).is_none()) {
            Some("forwards_unavailable: this host offers no ports for guests".to_owned())
        } else {
            None
        }
    }

    /// What the guest is answered when it asks by DHCP.
    pub fn offer(&self) -> Offer {
        Offer {
            address: self.address,
            subnet: self.subnet,
            hostname: self.hostname.clone(),
            nameservers: self.nameservers.clone(),
        }
    }

    /// The host's port of a slot; `None` where the host offers none.
    pub fn port(&self, slot: u8) -> Option<u16> {
        let first = self.forward_ports_first.filter(|first| *first >= 1024)?;
        host_port(first, &self.subnet, self.address, slot)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use dagger_payload::bridge::StaticAddress;
    use dagger_payload::network::{Forward, Protocol};

    use super::*;

    pub(crate) fn card() -> Card {
        let forwards = vec![Forward { slot: 1, protocol: Protocol::Tcp, guest_port: 22 }];
        Card {
            vm: VmId([7; 16]),
            mac: "52:54:00:01:02:ff".to_owned(),
            address: [10, 77, 0, 5].into(),
            subnet: GuestSubnet { network: [10, 77, 0, 0].into(), prefix_length: 24 },
            hostname: "web-1".parse().unwrap(),
            nameservers: vec![[192, 0, 2, 53].into()],
            owner: Owner::Root,
            network: VmNetwork { forwards, ..VmNetwork::default() },
            forward_ports_first: Some(20_000),
        }
    }

    fn objection(change: impl FnOnce(&mut Card)) -> Option<String> {
        let mut card = card();
        change(&mut card);
        Request::new(HostId([1; 16]), Action::Ensure(Box::new(card))).objection()
    }

    #[test]
    fn a_card_on_a_bridge_is_checked_again_too() {
        let address = Some(StaticAddress {
            address: [192, 0, 2, 5].into(),
            prefix_length: 24,
            gateway: None,
        });
        let card = BridgedCard {
            vm: VmId([7; 16]),
            card: 3,
            mac: "52:54:00:01:02:ff".to_owned(),
            owner: Owner::Machines,
            bridge: Bridged { bridge: "lan".parse().unwrap(), address },
            allow: Some(Vec::new()),
        };
        let objection = |card: BridgedCard| {
            Request::new(HostId([1; 16]), Action::Bridge(Box::new(card))).objection()
        };
        assert_eq!(objection(card.clone()), None);
        assert!(objection(BridgedCard { card: 4, ..card.clone() }).is_some());
        assert!(objection(BridgedCard { mac: "x".to_owned(), ..card.clone() }).is_some());
        let mut wrong = card;
        wrong.bridge.address.as_mut().unwrap().address = [192, 0, 2, 255].into();
        assert!(objection(wrong).is_some());
    }

    #[test]
    fn a_request_reads_back_and_nothing_may_stand_in_it_besides() {
        let request = Request::new(HostId([1; 16]), Action::Ensure(Box::new(card())));
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
        let more = text.replacen("\"mac\"", "\"interface\":\"eth0\",\"mac\"", 1);
        assert!(serde_json::from_str::<Request>(&more).is_err());
    }

    #[test]
    fn whoever_wrote_a_request_it_is_checked_again() {
        assert_eq!(objection(|_| {}), None);
        for (what, change) in [
            ("mac", (|card| card.mac = "52:54:00:01:02:f\"".to_owned()) as fn(&mut Card)),
            ("mac", |card| card.mac = "ff:ff:ff:ff:ff:ff".to_owned()),
            ("mac", |card| card.mac = "52:54:00:01:02:03:04".to_owned()),
            ("address", |card| card.address = [10, 77, 0, 1].into()),
            ("address", |card| card.address = [10, 77, 0, 255].into()),
            ("address", |card| card.address = [192, 0, 2, 1].into()),
            ("subnet", |card| card.subnet.network = [8, 8, 8, 0].into()),
            ("subnet", |card| card.subnet.prefix_length = 40),
            ("nameservers", |card| card.nameservers = vec![[9, 9, 9, 9].into(); 9]),
            ("forwards", |card| card.network.forwards[0].slot = 8),
            ("forwards", |card| card.forward_ports_first = None),
            ("forwards", |card| card.forward_ports_first = Some(1)),
        ] {
            let said = objection(change).unwrap_or_default();
            assert!(said.starts_with(what), "{what}: {said}");
        }
        let newer = Request { version: VERSION + 1, ..Request::new(HostId([1; 16]), Action::List) };
        assert!(newer.objection().is_some());
    }
}
