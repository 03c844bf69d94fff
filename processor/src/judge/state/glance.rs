//! The few fields of a VM that somebody looks at who looks at many, read where they stand.
//!
//! Owns a reader of canonical CBOR that copies nothing and steps over texts without looking into
//! them: a VM may have 64 KiB of those. It is handed only what the state keeps, which decodes.
//! Called by the state.

use std::net::Ipv4Addr;

use dagger_payload::bridge::StaticAddress;
use dagger_payload::id::{AccountId, HostId};
use dagger_payload::object::Placement;
use minicbor::{Decode, Decoder};

use super::kept::KeptVm;
use crate::judge::neighbours::{Met, Sought};

/// Keys of a VM's fields.
const ACCOUNT: u64 = 1;
const LABELS: u64 = 11;
const PLACEMENT: u64 = 15;
const APART: u64 = 20;
const NETWORK: u64 = 27;
const MORE_CARDS: u64 = 30;

/// Kinds of CBOR items.
const NUMBER: u8 = 0;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;

impl KeptVm {
    /// Its host, and what of `sought` it has; nothing if it has no host or nothing of that.
    pub(super) fn look(&self, sought: &Sought<'_>) -> Option<(HostId, Met)> {
        self.met(sought).expect("the state keeps what decodes")
    }

    fn met(&self, sought: &Sought<'_>) -> Option<Option<(HostId, Met)>> {
        let mut reader = Reader(self.bytes());
        let (mut met, mut host) = (Met::default(), None);
        for _ in 0..reader.length(MAP)? {
            let key = reader.length(NUMBER)?;
            let field = reader;
            match key {
                LABELS => {
                    met.wishes = sought.carried(field.labels()?);
                    if met.wishes == 0 && !sought.has_addresses() {
                        return Some(None);
                    }
                }
                PLACEMENT => {
                    host = minicbor::decode::<Placement>(field.0).ok()?.host();
                    if host.is_none() || !sought.has_addresses() {
                        break; // what comes later is of no interest
                    }
                }
                NETWORK => met.has_address |= Card::read(field)?.is(sought),
                MORE_CARDS => {
                    let mut cards = field.cards()?;
                    met.has_address |= cards.any(|card| card.is(sought));
                }
                _ => {}
            }
            reader.skip()?;
        }
        Some(host.filter(|_| met != Met::default()).map(|host| (host, met)))
    }

    /// Whose it is, and whether a search for its host looks at the account's other VMs.
    pub(super) fn seeker(&self) -> (AccountId, bool) {
        self.seeks().expect("the state keeps what decodes")
    }

    fn seeks(&self) -> Option<(AccountId, bool)> {
        let mut reader = Reader(self.bytes());
        let (mut account, mut seeks) = (None, false);
        for _ in 0..reader.length(MAP)? {
            let key = reader.length(NUMBER)?;
            let mut field = reader;
            match key {
                ACCOUNT => account = minicbor::decode(field.0).ok(),
                APART => seeks |= field.length(ARRAY)? > 0,
                NETWORK => seeks |= Card::read(field)?.address().is_some(),
                MORE_CARDS => seeks |= field.cards()?.any(|card| card.address().is_some()),
                _ => {}
            }
            reader.skip()?;
        }
        Some((account?, seeks))
    }
}

/// A network card, as far as it is on a bridge.
#[derive(Debug, Decode)]
struct Card<'b> {
    #[b(2)]
    bridge: Option<OnBridge<'b>>,
}

#[derive(Debug, Decode)]
struct OnBridge<'b> {
    #[b(0)]
    bridge: &'b str,
    #[n(1)]
    address: Option<StaticAddress>,
}

impl<'b> Card<'b> {
    fn read(from: Reader<'b>) -> Option<Self> {
        minicbor::decode(from.0).ok()
    }

    fn address(&self) -> Option<(&'b str, Ipv4Addr)> {
        let on = self.bridge.as_ref()?;
        Some((on.bridge, on.address?.address))
    }

    fn is(&self, sought: &Sought<'_>) -> bool {
        self.address().is_some_and(|(bridge, address)| sought.has(bridge, address))
    }
}

/// What is still to be read.
#[derive(Debug, Clone, Copy)]
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    /// The kind of the next item, and its number: how long it is, if it is no number itself.
    fn head(&mut self) -> Option<(u8, u64)> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        let number = match first & 0x1f {
            small @ 0..24 => u64::from(small),
            size @ 24..28 => {
                let (number, rest) = rest.split_at_checked(1 << (size - 24))?;
                self.0 = rest;
                number.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
            }
            _ => return None, // without a length, as nothing canonical is
        };
        Some((first >> 5, number))
    }

    /// The number of an item of this kind.
    fn length(&mut self, kind: u8) -> Option<u64> {
        self.head().filter(|(own, _)| *own == kind).map(|(_, number)| number)
    }

    fn take(&mut self, length: u64) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn text(&mut self) -> Option<&'b [u8]> {
        let length = self.length(TEXT)?;
        self.take(length)
    }

    /// Names and values of a map of texts.
    fn labels(mut self) -> Option<impl Iterator<Item = (&'b [u8], &'b [u8])>> {
        let count = self.length(MAP)?;
        Some((0..count).map_while(move |_| Some((self.text()?, self.text()?))))
    }

    fn cards(self) -> Option<impl Iterator<Item = Card<'b>>> {
        let mut decoder = Decoder::new(self.0);
        let count = decoder.array().ok()??;
        Some((0..count).map_while(move |_| decoder.decode().ok()))
    }

    /// Steps over one item and all that is in it.
    fn skip(&mut self) -> Option<()> {
        let mut items: u64 = 1;
        while items > 0 {
            items -= 1;
            items = match self.head()? {
                (BYTES | TEXT, length) => {
                    self.take(length)?;
                    items
                }
                (ARRAY, count) => items.checked_add(count)?,
                (MAP, pairs) => items.checked_add(pairs.checked_mul(2)?)?,
                (TAG, _) => items.checked_add(1)?,
                _ => items,
            };
        }
        Some(())
    }
}

#[cfg(test)]
pub(super) mod tests;
