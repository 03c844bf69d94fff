//! A DHCP client's words, put together and taken apart byte by byte, so that no library of the
//! server's has a part in it.

use std::net::Ipv4Addr;

/// The client's kinds of messages (RFC 2132, 9.6).
pub(crate) const DISCOVER: u8 = 1;
pub(crate) const REQUEST: u8 = 3;
pub(crate) const DECLINE: u8 = 4;
pub(crate) const RELEASE: u8 = 7;
pub(crate) const INFORM: u8 = 8;
/// The server's.
pub(crate) const OFFER: u8 = 2;
pub(crate) const ACKNOWLEDGED: u8 = 5;
pub(crate) const REFUSED: u8 = 6;

pub(crate) const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 5];
pub(crate) const TRANSACTION: u32 = 0x1234_5678;

const ADDRESS_REQUESTED: u8 = 50;
const SERVER: u8 = 54;

/// What a client says.
pub(crate) fn question(kind: u8, has: Ipv4Addr, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
    bytes[4..8].copy_from_slice(&TRANSACTION.to_be_bytes());
    bytes[12..16].copy_from_slice(&has.octets());
    bytes[28..34].copy_from_slice(&MAC);
    bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
    for (number, data) in [(53, &[kind][..])].iter().chain(options) {
        bytes.extend([*number, u8::try_from(data.len()).expect("short")]);
        bytes.extend(*data);
    }
    bytes.push(255);
    bytes
}

pub(crate) fn discover() -> Vec<u8> {
    // What it calls itself, and what it would like to know.
    question(DISCOVER, Ipv4Addr::UNSPECIFIED, &[(61, b"\x01RT\0\0\0\x05"), (55, &[1, 3, 6, 12])])
}

/// It takes the offer of this server.
pub(crate) fn select(address: Ipv4Addr, server: Ipv4Addr) -> Vec<u8> {
    let options = [(ADDRESS_REQUESTED, &address.octets()[..]), (SERVER, &server.octets()[..])];
    question(REQUEST, Ipv4Addr::UNSPECIFIED, &options)
}

/// It had this address before it started again.
pub(crate) fn remember(address: Ipv4Addr) -> Vec<u8> {
    question(REQUEST, Ipv4Addr::UNSPECIFIED, &[(ADDRESS_REQUESTED, &address.octets()[..])])
}

/// It wants to go on with the address that it has.
pub(crate) fn renew(address: Ipv4Addr) -> Vec<u8> {
    question(REQUEST, address, &[])
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) kind: u8,
    pub(crate) address: Ipv4Addr,
    pub(crate) server: Option<Ipv4Addr>,
    pub(crate) mask: Option<Ipv4Addr>,
    pub(crate) router: Option<Ipv4Addr>,
    pub(crate) nameservers: Vec<Ipv4Addr>,
    pub(crate) hostname: Option<String>,
    pub(crate) lease_seconds: Option<u32>,
    pub(crate) client_name: Option<Vec<u8>>,
}

impl Told {
    /// Reads an answer to the questions of this client.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        assert!(bytes.len() >= 300, "some clients take nothing shorter");
        assert_eq!(bytes[..4], [2, 1, 6, 0]);
        assert_eq!(bytes[4..8], TRANSACTION.to_be_bytes());
        assert_eq!(bytes[28..34], MAC);
        assert_eq!(bytes[236..240], [99, 130, 83, 99]);
        let mut options = Vec::new();
        let mut rest = &bytes[240..];
        while let [number, length, ..] = *rest
            && number != 255
        {
            let (data, more) = rest[2..].split_at(length.into());
            options.push((number, data.to_vec()));
            rest = more;
        }
        assert_eq!(rest.first(), Some(&255), "the options end");
        let get = |number| options.iter().find(|(own, _)| *own == number).map(|(_, data)| data);
        let address = |data: &[u8]| Ipv4Addr::from(<[u8; 4]>::try_from(data).expect("four"));
        let one = |number| get(number).map(|data| address(data));
        Self {
            kind: get(53).expect("a kind")[0],
            address: address(&bytes[16..20]),
            server: one(SERVER),
            mask: one(1),
            router: one(3),
            nameservers: get(6).into_iter().flat_map(|data| data.chunks(4)).map(address).collect(),
            hostname: get(12).map(|data| String::from_utf8(data.clone()).expect("text")),
            lease_seconds: one(51).map(u32::from),
            client_name: get(61).cloned(),
        }
    }
}
