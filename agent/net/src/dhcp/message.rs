//! Questions and answers as bytes.
//!
//! Owns what of a packet is read, and what an answer holds. How fields and options lie in it is
//! smoltcp's. Pure; called by [`super::serve`], and by whoever tries it with hostile bytes.

use std::net::Ipv4Addr;

use smoltcp::wire::{
    ArpHardware, DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpOptionWriter, DhcpPacket,
    EthernetAddress,
};

use super::limits::{
    ANSWER_BYTES_MAX, ANSWER_BYTES_MIN, CLIENT_NAME_BYTES_MAX, LEASE, QUESTION_BYTES_MAX,
};
use crate::offer::Offer;

/// What makes a packet of BOOTP one of DHCP.
const MAGIC: u32 = 0x6382_5363;
/// The part before the options.
const FIXED_BYTES: usize = 240;

/// Numbers of options (RFC 2132).
mod option {
    pub(super) const MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const NAME_SERVERS: u8 = 6;
    pub(super) const HOST_NAME: u8 = 12;
    pub(super) const REQUESTED_ADDRESS: u8 = 50;
    pub(super) const LEASE_SECONDS: u8 = 51;
    pub(super) const KIND: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const CLIENT_NAME: u8 = 61;
}

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// An offer.
    Discover,
    /// This address.
    Request,
    /// What there is besides an address.
    Inform,
    /// No answer: it gives an address back, or refuses one.
    Nothing,
}

/// A client's question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What it wants.
    pub wish: Wish,
    /// Its number for this conversation.
    pub transaction: u32,
    /// Its flags, which the answer repeats.
    flags: DhcpFlags,
    /// The MAC address that it names; its tap knows the real one.
    mac: EthernetAddress,
    /// The address that it has; 0.0.0.0 for none.
    pub has: Ipv4Addr,
    /// The address that it asks for.
    pub requested: Option<Ipv4Addr>,
    /// The server whose offer it takes.
    pub server: Option<Ipv4Addr>,
    /// How it calls itself.
    client_name: Option<Vec<u8>>,
}

/// An answer's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// This address may be asked for.
    Offer,
    /// This address it is.
    Acknowledgement,
    /// What there is besides an address.
    Information,
    /// That address is not its own.
    Refusal,
}

impl Question {
    /// Reads a question; nothing if the bytes are none that is in form.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > QUESTION_BYTES_MAX {
            return None;
        }
        let packet = DhcpPacket::new_checked(bytes).ok()?;
        let is_ours = packet.opcode() == DhcpOpCode::Request
            && packet.hardware_type() == ArpHardware::Ethernet
            && packet.hardware_len() == 6
            && packet.magic_number() == MAGIC
            // No relay stands between a guest and its host.
            && packet.relay_agent_ip().is_unspecified();
        let (mut wish, mut requested, mut server, mut client_name) = (None, None, None, None);
        for DhcpOption { kind, data } in packet.options().take_while(|_| is_ours) {
            match kind {
                option::KIND => wish = Some(read_wish(data)?),
                option::REQUESTED_ADDRESS => requested = Some(read_address(data)?),
                option::SERVER => server = Some(read_address(data)?),
                option::CLIENT_NAME if data.len() > CLIENT_NAME_BYTES_MAX => return None,
                option::CLIENT_NAME => client_name = Some(data.to_vec()),
                _ => {}
            }
        }
        Some(Self {
            wish: wish?,
            transaction: packet.transaction_id(),
            flags: packet.flags(),
            mac: packet.client_hardware_address(),
            has: packet.client_ip(),
            requested,
            server,
            client_name,
        })
    }

    /// The bytes of an answer. `None` if they are too many, which those of a valid offer never are.
    pub fn answer(&self, kind: Kind, offer: &Offer) -> Option<Vec<u8>> {
        let mut bytes = vec![0; ANSWER_BYTES_MAX];
        let mut packet = DhcpPacket::new_unchecked(&mut bytes[..]);
        packet.set_opcode(DhcpOpCode::Reply);
        packet.set_hardware_type(ArpHardware::Ethernet);
        packet.set_hardware_len(6);
        packet.set_transaction_id(self.transaction);
        packet.set_flags(self.flags);
        packet.set_client_hardware_address(self.mac);
        packet.set_magic_number(MAGIC);
        match kind {
            Kind::Offer => packet.set_your_ip(offer.address),
            Kind::Acknowledgement => {
                packet.set_your_ip(offer.address);
                packet.set_client_ip(self.has);
            }
            Kind::Information => packet.set_client_ip(self.has),
            Kind::Refusal => {}
        }
        let mut left = Options { writer: packet.options_mut(), bytes: FIXED_BYTES };
        self.write_options(&mut left, kind, offer)?;
        left.writer.end().ok()?;
        let length = (left.bytes + 1).max(ANSWER_BYTES_MIN);
        bytes.truncate(length);
        Some(bytes)
    }

    fn write_options(&self, to: &mut Options<'_>, kind: Kind, offer: &Offer) -> Option<()> {
        let code = match kind {
            Kind::Offer => DhcpMessageType::Offer,
            Kind::Acknowledgement | Kind::Information => DhcpMessageType::Ack,
            Kind::Refusal => DhcpMessageType::Nak,
        };
        to.write(option::KIND, &[code.into()])?;
        to.write(option::SERVER, &offer.gateway().octets())?;
        if let Some(name) = &self.client_name {
            to.write(option::CLIENT_NAME, name)?;
        }
        if kind == Kind::Refusal {
            return Some(());
        }
        if kind != Kind::Information {
            let seconds = u32::try_from(LEASE.as_secs()).unwrap_or(u32::MAX);
            to.write(option::LEASE_SECONDS, &seconds.to_be_bytes())?;
        }
        to.write(option::MASK, &offer.mask().octets())?;
        to.write(option::ROUTER, &offer.gateway().octets())?;
        if !offer.nameservers.is_empty() {
            let servers: Vec<_> = offer.nameservers.iter().flat_map(Ipv4Addr::octets).collect();
            to.write(option::NAME_SERVERS, &servers)?;
        }
        to.write(option::HOST_NAME, offer.hostname.as_str().as_bytes())
    }
}

/// Where options are written, and how many bytes there are by now.
struct Options<'a> {
    writer: DhcpOptionWriter<'a>,
    bytes: usize,
}

impl Options<'_> {
    fn write(&mut self, kind: u8, data: &[u8]) -> Option<()> {
        self.bytes += 2 + data.len();
        self.writer.emit(DhcpOption { kind, data }).ok()
    }
}

fn read_address(data: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from)
}

fn read_wish(data: &[u8]) -> Option<Wish> {
    let [code] = data else { return None };
    match DhcpMessageType::from(*code) {
        DhcpMessageType::Discover => Some(Wish::Discover),
        DhcpMessageType::Request => Some(Wish::Request),
        DhcpMessageType::Inform => Some(Wish::Inform),
        DhcpMessageType::Release | DhcpMessageType::Decline => Some(Wish::Nothing),
        _ => None,
    }
}
