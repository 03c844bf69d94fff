//! Bodies of `host.*`: what an operator says about his hosts.
//!
//! Owns their fields and ranges. Judged by `dagger-processor`'s rules of hosts.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::capacity::Capacity;
use super::{Checked, require};
use crate::bridge::are_host_bridges;
use crate::id::{Generation, HostId, ProtocolVersion};
use crate::key::PublicKey;
use crate::name::{Labels, Name, labels_are_within_limits};
use crate::network::are_host_ports;
use crate::refusal::Refusal;

/// An IPv4 network for a host's guests: the network's first address and its prefix length. The host
/// itself takes the first usable address; guests get the others, decided by the judge.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct GuestSubnet {
    /// The network address; its host bits are zero.
    #[n(0)]
    #[cbor(with = "ipv4")]
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub network: std::net::Ipv4Addr,
    /// Prefix length, 16 to 29.
    #[n(1)]
    pub prefix_length: u8,
}

impl GuestSubnet {
    /// Address number `index` of the network (1 is the host's own); `None` outside it or for the
    /// broadcast address.
    pub fn address(&self, index: u32) -> Option<std::net::Ipv4Addr> {
        let size = self.size()?;
        let address = u32::from(self.network).checked_add(index)?;
        let usable = index > 0 && index < size.checked_sub(1)?;
        usable.then(|| std::net::Ipv4Addr::from(address))
    }

    /// How many addresses it has, network and broadcast among them; `None` when no prefix is that
    /// long or that short. Total over what a decoder lets through, which checks no range.
    pub fn size(&self) -> Option<u32> {
        1_u32.checked_shl(32_u32.checked_sub(self.prefix_length.into())?)
    }

    /// Whether it is a private network, without host bits, of 16 to 29 bits.
    pub fn is_valid(&self) -> bool {
        let in_range = (16..=29).contains(&self.prefix_length);
        in_range
            && u32::from(self.network) & ((1 << (32 - u32::from(self.prefix_length))) - 1) == 0
            && self.network.is_private()
    }
}

/// An IPv4 address as a CBOR unsigned integer.
pub(crate) mod ipv4 {
    use std::net::Ipv4Addr;

    pub(crate) fn encode<C, W: minicbor::encode::Write>(
        value: &Ipv4Addr,
        encoder: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.u32(u32::from(*value))?.ok()
    }

    pub(crate) fn decode<C>(
        decoder: &mut minicbor::Decoder<'_>,
        _: &mut C,
    ) -> Result<Ipv4Addr, minicbor::decode::Error> {
        Ok(Ipv4Addr::from(decoder.u32()?))
    }
}

/// `host.join`, signed by the host's operator: the host offers this from now on. With a ledger key
/// that no member has, and an address, the host becomes a follower: it has links, verifies and runs
/// VMs, and does not vote. Repeated to change the offer or the address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostJoin {
    /// Signs its events and authenticates its links: a member's key, or that of a new follower.
    pub ledger_key: PublicKey,
    /// Where its ledger listens, `address:port`; for a member as before where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// The key that signs the host's reports.
    pub agent_key: PublicKey,
    /// What the host is called.
    pub name: Name,
    /// Where it stands.
    pub region: Name,
    /// The building or fire compartment inside the region; a host without one is a site of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<Name>,
    /// What it has for guests and for itself.
    pub capacity: Capacity,
    /// How much of the capacity no VM may take.
    #[serde(default)]
    pub reserve: Capacity,
    /// Addresses for its guests.
    pub guest_subnet: GuestSubnet,
    /// Labels for placement.
    #[serde(default)]
    pub labels: Labels,
    /// The first of the host's own ports that lead to guests who wish for it; without one none
    /// does. Each guest address has eight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_ports_first: Option<u16>,
    /// The newest rules that its build knows; the first ones where it is left out. Rules can only
    /// be activated that enough hosts know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_max: Option<ProtocolVersion>,
    /// Bridges that guests may be on, by the names that the host's own list gives them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bridges: Vec<Name>,
}

/// `host.drain` and `host.resume`, signed by the host's operator: no VM is offered to the host, or
/// again. VMs that it carries stay. `host.leave`, signed by him: a host that carries nothing and
/// does not vote is a member no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostChange {
    /// Which host.
    pub host: HostId,
    /// Refuse with `conflict` unless the host is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// `host.rotate_ledger_key`, signed by the host's operator: its ledger signs with another key, a
/// follower's at once, a voter's from the next epoch on. The host keeps its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostRotateLedgerKey {
    /// Which host.
    pub host: HostId,
    /// The key that comes; one that has no other use in the cluster.
    pub new_ledger_key: PublicKey,
}

impl Checked for HostJoin {
    fn check(&self) -> Result<(), Refusal> {
        require(self.guest_subnet.is_valid(), "guest_subnet: a private IPv4 network /16../29")?;
        require(self.capacity.covers(&self.reserve), "reserve: no more than the capacity")?;
        let ports = self.forward_ports_first;
        let reach = ports.is_none_or(|first| are_host_ports(first, &self.guest_subnet));
        require(reach, "forward_ports_first: from 1024 on, eight ports for each guest address")?;
        let protocol = self.protocol_max;
        let is_one = protocol.is_none_or(|version| version >= ProtocolVersion::FIRST);
        require(is_one, "protocol_max: 1 is the first version")?;
        require(are_host_bridges(&self.bridges), "bridges: at most 16, each once")?;
        require(labels_are_within_limits(&self.labels), "labels: at most 32")
    }
}

impl Checked for HostChange {}

impl Checked for HostRotateLedgerKey {}
