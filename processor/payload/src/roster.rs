//! Who holds which place in the cluster: seats, and the epochs in which some of them vote.
//!
//! Owns the shape of seats and epochs and what a list of seats answers. Never decides who gets one
//! or votes: the judge does. Called by the judge (writes), by ledger and agent (whose signature is
//! whose, whom to link to), and by offline verifiers.
//!
//! A seat is a ledger key's place for ever: author index i never names another key, so an event of
//! any epoch is verified by its author's index alone. A host whose ledger key changes gets another
//! seat; the one it had is left empty.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::committee::Committee;
use crate::genesis::Genesis;
use crate::id::{AuthorIndex, CommitIndex, Epoch, HostId, OperatorId, ProtocolVersion};
use crate::key::PublicKey;
use crate::limits::SEATS_MAX;
use crate::name::Name;
use crate::strict_json;

/// Whether anybody sits there.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum SeatStanding {
    /// The host is a member: it has links, and votes in those epochs whose committee names it.
    #[n(0)]
    Present,
    /// The host has left, or sits elsewhere with another key.
    #[n(1)]
    Left,
}

/// A ledger key's place in the cluster.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cbor(map)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Seat {
    /// Its number.
    #[n(0)]
    pub index: AuthorIndex,
    /// Whose ledger it is.
    #[n(1)]
    pub host: HostId,
    /// What the host is called.
    #[n(2)]
    pub name: Name,
    /// Whose host it is.
    #[n(3)]
    pub operator: OperatorId,
    /// Signs its events and authenticates its links.
    #[n(4)]
    pub ledger_key: PublicKey,
    /// Where its ledger listens.
    #[n(5)]
    #[cbor(with = "socket_address")]
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub address: SocketAddr,
    /// Whether anybody sits there.
    #[n(6)]
    pub standing: SeatStanding,
}

/// An epoch: who votes in it, and by which rules payloads are judged in it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cbor(map)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct EpochMembers {
    /// Which one.
    #[n(0)]
    pub epoch: Epoch,
    /// Who votes.
    #[n(1)]
    #[cfg_attr(feature = "schema", schema(value_type = Vec<u16>))]
    pub committee: Committee,
    /// The last commit of the epoch before; 0 for the first epoch.
    #[n(2)]
    pub begins_after: CommitIndex,
    /// The rules that count from its first commit on.
    #[n(3)]
    pub protocol: ProtocolVersion,
}

/// All seats, by number: without gap from 0, at most [`SEATS_MAX`], no key twice.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<Seat>", try_from = "Vec<Seat>")]
pub struct Roster {
    seats: Vec<Seat>,
}

/// A seat that does not follow from those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("seat {0} has no seat before it, or another key than before")]
pub struct SeatMisplaced(pub AuthorIndex);

impl Roster {
    /// The seats of the founders, in the order of the genesis document.
    pub fn founding(genesis: &Genesis) -> Self {
        let operator_of = |name: &Name| {
            let owner = genesis.operators.iter().find(|operator| operator.name == *name);
            owner.expect("a genesis lists the operators of its hosts").id()
        };
        let seats = (0..).map(AuthorIndex).zip(&genesis.hosts).map(|(index, host)| Seat {
            index,
            host: host.id(),
            name: host.name.clone(),
            operator: operator_of(&host.operator),
            ledger_key: host.ledger_key.clone(),
            address: host.address,
            standing: SeatStanding::Present,
        });
        Self { seats: seats.collect() }
    }

    /// Reads the JSON list of all seats, as an operator hands it from host to host.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn from_document(bytes: &[u8]) -> Result<Self, String> {
        let text = strict_json::check(bytes).map_err(|error| error.to_string())?;
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    /// The first seat that both have with another key or host: then one of the two lies.
    pub fn contradiction(&self, other: &Self) -> Option<AuthorIndex> {
        let both = self.seats.iter().zip(&other.seats);
        let mut differing = both
            .filter(|(one, other)| (&one.ledger_key, one.host) != (&other.ledger_key, other.host));
        differing.next().map(|(seat, _)| seat.index)
    }

    /// Takes in the new version of a seat, or the next seat.
    ///
    /// # Errors
    /// [`SeatMisplaced`]; nothing has changed then.
    pub fn put(&mut self, seat: &Seat) -> Result<(), SeatMisplaced> {
        let taken_by = self.author_of(&seat.ledger_key);
        let next = self.next_index();
        match self.seats.get_mut(usize::from(seat.index.0)) {
            Some(known) if known.ledger_key == seat.ledger_key => *known = seat.clone(),
            None if next == Some(seat.index) && taken_by.is_none() => self.seats.push(seat.clone()),
            _ => return Err(SeatMisplaced(seat.index)),
        }
        Ok(())
    }

    /// All seats ever given, by number.
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// The seats of present members.
    pub fn present(&self) -> impl Iterator<Item = &Seat> {
        self.seats.iter().filter(|seat| seat.standing == SeatStanding::Present)
    }

    /// One seat.
    pub fn seat(&self, author: AuthorIndex) -> Option<&Seat> {
        self.seats.get(usize::from(author.0))
    }

    /// The key of a seat, whether or not anybody sits there.
    pub fn key(&self, author: AuthorIndex) -> Option<&PublicKey> {
        self.seat(author).map(|seat| &seat.ledger_key)
    }

    /// The seat that `key` has, whether or not anybody sits there.
    pub fn author_of(&self, key: &PublicKey) -> Option<AuthorIndex> {
        self.seats.iter().find(|seat| seat.ledger_key == *key).map(|seat| seat.index)
    }

    /// The seat on which a host sits now.
    pub fn seat_of(&self, host: &HostId) -> Option<&Seat> {
        self.present().find(|seat| seat.host == *host)
    }

    /// The next number that nobody ever had; none when all were given.
    pub fn next_index(&self) -> Option<AuthorIndex> {
        let next = u16::try_from(self.seats.len()).ok()?;
        (self.seats.len() < SEATS_MAX).then_some(AuthorIndex(next))
    }
}

impl TryFrom<Vec<Seat>> for Roster {
    type Error = SeatMisplaced;

    fn try_from(seats: Vec<Seat>) -> Result<Self, SeatMisplaced> {
        let mut roster = Self { seats: Vec::new() };
        for seat in &seats {
            if usize::from(seat.index.0) != roster.seats.len() {
                return Err(SeatMisplaced(seat.index));
            }
            roster.put(seat)?;
        }
        Ok(roster)
    }
}

impl From<Roster> for Vec<Seat> {
    fn from(roster: Roster) -> Self {
        roster.seats
    }
}

/// As the list of its seats.
impl<C> minicbor::Encode<C> for Roster {
    fn encode<W: minicbor::encode::Write>(
        &self,
        encoder: &mut minicbor::Encoder<W>,
        context: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        self.seats.encode(encoder, context)
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Roster {
    fn decode(
        decoder: &mut minicbor::Decoder<'b>,
        context: &mut C,
    ) -> Result<Self, minicbor::decode::Error> {
        let seats: Vec<Seat> = minicbor::Decode::decode(decoder, context)?;
        let misplaced = |_| minicbor::decode::Error::message("seats are not in their order");
        Self::try_from(seats).map_err(misplaced)
    }
}

impl EpochMembers {
    /// The first epoch: all founders vote, by the first rules.
    pub fn founding(genesis: &Genesis) -> Self {
        Self {
            epoch: Epoch(0),
            committee: genesis.committee(),
            begins_after: CommitIndex(0),
            protocol: ProtocolVersion::FIRST,
        }
    }
}

/// A socket address as its text: the one form that every language writes alike.
mod socket_address {
    use std::net::SocketAddr;

    pub(super) fn encode<C, W: minicbor::encode::Write>(
        value: &SocketAddr,
        encoder: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.str(&value.to_string())?.ok()
    }

    pub(super) fn decode<C>(
        decoder: &mut minicbor::Decoder<'_>,
        _: &mut C,
    ) -> Result<SocketAddr, minicbor::decode::Error> {
        let text = decoder.str()?;
        let address: SocketAddr = text
            .parse()
            .map_err(|_| minicbor::decode::Error::message("not an address and port"))?;
        if address.to_string() == text {
            Ok(address)
        } else {
            Err(minicbor::decode::Error::message("not the shortest form of an address"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::key::SecretKey;

    fn seat(index: u16, key: u8) -> Seat {
        let key = SecretKey::from_seed(&[key; 32].into()).public_key();
        Seat {
            index: AuthorIndex(index),
            host: HostId::of(&key),
            name: format!("host{index}").parse().expect("a name"),
            operator: OperatorId([1; 16]),
            ledger_key: key,
            address: "192.0.2.1:7400".parse().expect("an address"),
            standing: SeatStanding::Present,
        }
    }

    #[test]
    fn a_seat_keeps_its_key_for_ever_and_new_seats_follow_without_gap() {
        let mut roster = Roster::try_from(vec![seat(0, 1), seat(1, 2)]).expect("in order");
        assert_eq!(roster.next_index(), Some(AuthorIndex(2)));
        assert_eq!(roster.put(&seat(3, 3)), Err(SeatMisplaced(AuthorIndex(3))));
        assert_eq!(roster.put(&seat(1, 3)), Err(SeatMisplaced(AuthorIndex(1))));
        assert_eq!(roster.put(&seat(2, 1)), Err(SeatMisplaced(AuthorIndex(2))));
        let gone = Seat { standing: SeatStanding::Left, ..seat(1, 2) };
        roster.put(&gone).expect("the same key");
        roster.put(&seat(2, 3)).expect("the next one");
        assert_eq!(roster.present().count(), 2);
        assert_eq!(roster.author_of(&gone.ledger_key), Some(AuthorIndex(1)));
        assert_eq!(roster.seat_of(&gone.host), None);

        let founders = Roster::try_from(vec![seat(0, 1), seat(1, 2)]).expect("in order");
        assert_eq!(roster.contradiction(&founders), None);
        let others = Roster::try_from(vec![seat(0, 1), seat(1, 9)]).expect("in order");
        assert_eq!(others.contradiction(&roster), Some(AuthorIndex(1)));
    }

    #[test]
    fn a_roster_reads_back_and_a_false_list_is_none() {
        let seats = vec![seat(0, 1), seat(1, 2)];
        let roster = Roster::try_from(seats.clone()).expect("in order");
        let read: Roster = codec::decode(&codec::encode(&roster)).expect("canonical");
        assert_eq!(read, roster);
        let document = serde_json::to_vec_pretty(&roster).expect("names and numbers");
        assert_eq!(Roster::from_document(&document), Ok(roster.clone()));
        assert!(Roster::from_document(&document[1..]).is_err());
        let turned: Vec<_> = seats.into_iter().rev().collect();
        assert!(codec::decode::<Roster>(&codec::encode(&turned)).is_err());
        assert!(Roster::try_from(turned).is_err());
        assert!(Roster::try_from(vec![seat(0, 1), seat(1, 1)]).is_err());
    }
}
