//! What guests say to their host, and what a host's taps say of its guests.

use std::net::Ipv4Addr;

use dagger_net::dhcp::answer::answer;
use dagger_net::dhcp::message::Question;
use dagger_net::names;
use dagger_net::offer::Offer;
use dagger_payload::id::{HostId, VmId};
use dagger_payload::kind::GuestSubnet;

use super::super::mutate::Form;
use super::super::samples::World;
use super::{Answer, Target, require};

pub(super) const TARGETS: &[Target] = &[
    Target { name: "dhcp", form: Form::Fixed, samples: questions, read: question },
    Target { name: "tap-alias", form: Form::Text, samples: aliases, read: alias },
];

const HERE: HostId = HostId([1; 16]);
const VM: VmId = VmId([7; 16]);
/// What every client takes.
const DATAGRAM_BYTES_MAX: usize = 548;

fn offer() -> Offer {
    Offer {
        address: Ipv4Addr::new(10, 77, 0, 5),
        subnet: GuestSubnet { network: Ipv4Addr::new(10, 77, 0, 0), prefix_length: 24 },
        hostname: "web-1".parse().expect("a name"),
        nameservers: vec![Ipv4Addr::new(9, 9, 9, 9); 8],
    }
}

fn questions(_: &World) -> Vec<Vec<u8>> {
    let [own, other, host] = [[10, 77, 0, 5], [10, 77, 0, 6], [10, 77, 0, 1]];
    let none = [0; 4];
    let said = |kind: u8, has: [u8; 4], options: &[(u8, &[u8])]| {
        let mut bytes = vec![0; 240];
        bytes[..8].copy_from_slice(&[1, 1, 6, 0, 1, 2, 3, 4]);
        bytes[12..16].copy_from_slice(&has);
        bytes[28..34].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 5]);
        bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
        for (number, data) in [(53, &[kind][..])].iter().chain(options) {
            bytes.extend([*number, u8::try_from(data.len()).expect("short")]);
            bytes.extend(*data);
        }
        bytes.push(255);
        bytes
    };
    vec![
        said(1, none, &[(61, b"\x01RT\0\0\0\x05"), (55, &[1, 3, 6]), (60, b"udhcp"), (0, b"")]),
        said(3, none, &[(50, &own), (54, &host), (12, b"web-1")]),
        said(3, none, &[(50, &other), (57, &[2, 64])]),
        said(3, own, &[(61, &[7; 128])]),
        said(7, own, &[(54, &host)]),
        said(8, own, &[]),
    ]
}

/// Whatever is a question can be answered, and only for the guest's own address.
fn question(bytes: &[u8]) -> Result<Answer, String> {
    let Some(question) = Question::read(bytes) else { return Ok(Answer::Refused) };
    let offer = offer();
    if let Some(said) = answer(&question, &offer) {
        let bytes = question.answer(said.kind, &offer).ok_or("it has no answer")?;
        require(bytes.len() <= DATAGRAM_BYTES_MAX, "the answer is too long")?;
        let given = [bytes[16], bytes[17], bytes[18], bytes[19]];
        let is_own = given == [0; 4] || given == offer.address.octets();
        require(is_own, "the answer gives another address")?;
        let is_near = said.to == offer.address || said.to.is_broadcast();
        require(is_near, "the answer goes elsewhere")?;
    }
    Ok(Answer::Accepted)
}

fn aliases(_: &World) -> Vec<Vec<u8>> {
    let alias = |offer: Offer| (names::alias(HERE, VM, 0) + &offer.to_string()).into_bytes();
    vec![alias(offer()), alias(Offer { nameservers: Vec::new(), ..offer() })]
}

fn alias(bytes: &[u8]) -> Result<Answer, String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(Answer::Refused) };
    let tap = names::interface(HERE, VM, 0);
    let Some(offer) = Offer::of_tap(&tap, text) else { return Ok(Answer::Refused) };
    let again = Offer::of_tap(&tap, &(names::alias(HERE, VM, 0) + &offer.to_string()));
    require(again.as_ref() == Some(&offer), "it reads what it wrote as something else")?;
    require(offer.subnet.is_valid(), "a subnet of guests is private")?;
    Ok(Answer::Accepted)
}
