//! Who has which seat, as this host knows it now, and who votes.
//!
//! Owns the one place where that is kept while the daemon runs: what the own judge has said, and
//! before it has come that far what an operator's roster file says. Tells the links of every
//! change. Never gives a seat: the judge does. A seat whose key or host is another one than before
//! is broken, not news. Called by all parts of the daemon.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use dagger_payload::committee::Committee;
use dagger_payload::id::AuthorIndex;
use dagger_payload::key::PublicKey;
use dagger_payload::name::Name;
use dagger_payload::roster::{Roster, Seat};

use crate::link::Links;

/// Two lists of seats give one seat to different keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// The roster file and the judge.
    #[error(
        "the `roster` of the configuration gives seat {} to another key or host than was judged: \
         it is of another cluster, or false; take it anew from a member that you trust",
        .0.0
    )]
    Told(AuthorIndex),
    /// The judge and itself.
    #[error("seat {} was judged before with another key or host", .0.0)]
    Judged(AuthorIndex),
}

struct State {
    /// As the own judge said last.
    judged: Roster,
    /// What counts.
    used: Arc<Roster>,
    /// Who votes in the present epoch.
    voters: Committee,
    links: Option<Links>,
}

/// The seats.
pub struct Seats {
    founding: Roster,
    /// From a file.
    told: Option<Roster>,
    /// Other addresses than the seats name, by host name.
    addresses: BTreeMap<Name, SocketAddr>,
    state: Mutex<State>,
}

impl Seats {
    /// With the founders' seats, those of a roster file, and what the own judge has said in earlier
    /// lives.
    ///
    /// # Errors
    /// [`Contradiction`].
    pub fn new(
        founding: Roster,
        told: Option<Roster>,
        stored: Option<Roster>,
        addresses: BTreeMap<Name, SocketAddr>,
        voters: Committee,
    ) -> Result<Self, Contradiction> {
        let judged = stored.unwrap_or_else(|| founding.clone());
        let used = Arc::new(judged.clone());
        let state = Mutex::new(State { judged: judged.clone(), used, voters, links: None });
        let seats = Self { founding, told, addresses, state };
        seats.check(&seats.founding)?;
        seats.take(judged)?;
        Ok(seats)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// What counts now.
    pub fn now(&self) -> Arc<Roster> {
        self.state().used.clone()
    }

    /// The seats as the own judge has them.
    pub fn judged(&self) -> Roster {
        self.state().judged.clone()
    }

    /// The key of a seat.
    pub fn key(&self, author: AuthorIndex) -> Option<PublicKey> {
        self.state().used.key(author).cloned()
    }

    /// Who votes in the present epoch.
    pub fn voters(&self) -> Committee {
        self.state().voters
    }

    /// Whether both are seats of one host, as far as anybody has said.
    pub fn same_host(&self, one: AuthorIndex, other: AuthorIndex) -> bool {
        let lists = [Some(self.judged()), self.told.clone()];
        lists.iter().flatten().any(|list| match (list.seat(one), list.seat(other)) {
            (Some(one), Some(other)) => one.host == other.host,
            _ => false,
        })
    }

    /// What the host of a seat is called.
    pub fn name(&self, author: AuthorIndex) -> String {
        let used = self.now();
        used.seat(author).map_or_else(|| format!("host {}", author.0), |seat| seat.name.to_string())
    }

    /// Whether `judged`, of any time, contradicts what is known.
    ///
    /// # Errors
    /// [`Contradiction`].
    pub fn check(&self, judged: &Roster) -> Result<(), Contradiction> {
        if let Some(seat) = self.told.as_ref().and_then(|told| told.contradiction(judged)) {
            return Err(Contradiction::Told(seat));
        }
        match self.state().judged.contradiction(judged) {
            Some(seat) => Err(Contradiction::Judged(seat)),
            None => Ok(()),
        }
    }

    /// The own judge has come to these seats. The links know of it when this returns.
    ///
    /// # Errors
    /// [`Contradiction`].
    pub fn take(&self, judged: Roster) -> Result<(), Contradiction> {
        self.check(&judged)?;
        let mut state = self.state();
        // A file says no more than the judge once that knows as many seats and of any change.
        let told = self
            .told
            .as_ref()
            .filter(|told| judged.seats().len() < told.seats().len() || judged == self.founding);
        state.used = Arc::new(told.unwrap_or(&judged).clone());
        state.judged = judged;
        self.tell(&state);
        Ok(())
    }

    /// Another epoch has begun.
    pub fn epoch_began(&self, voters: Committee) {
        let mut state = self.state();
        state.voters = voters;
        self.tell(&state);
    }

    /// From now on these links follow every change.
    pub fn follow(&self, links: Links) {
        let mut state = self.state();
        state.links = Some(links);
        self.tell(&state);
    }

    fn tell(&self, state: &State) {
        let Some(links) = &state.links else {
            return;
        };
        let mut roster = Roster::clone(&state.used);
        for (name, address) in &self.addresses {
            let found = roster.present().find(|seat| seat.name == *name).cloned();
            if let Some(seat) = found {
                let moved = Seat { address: *address, ..seat };
                roster.put(&moved).expect("a known seat with its own key");
            }
        }
        links.update(&roster, state.voters);
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::id::{HostId, OperatorId};
    use dagger_payload::key::SecretKey;
    use dagger_payload::roster::SeatStanding;

    use super::*;

    fn seat(index: u16, key: u8, port: u16) -> Seat {
        let key = SecretKey::from_seed(&[key; 32].into()).public_key();
        Seat {
            index: AuthorIndex(index),
            host: HostId::of(&key),
            name: format!("host{index}").parse().expect("a name"),
            operator: OperatorId([1; 16]),
            ledger_key: key,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            standing: SeatStanding::Present,
        }
    }

    fn roster(seats: impl IntoIterator<Item = Seat>) -> Roster {
        Roster::try_from(seats.into_iter().collect::<Vec<_>>()).expect("in order")
    }

    fn seats(told: Option<Roster>, stored: Option<Roster>) -> Result<Seats, Contradiction> {
        let founding = roster([seat(0, 1, 10), seat(1, 2, 20)]);
        let voters = Committee::new(2).expect("two");
        Seats::new(founding, told, stored, BTreeMap::new(), voters)
    }

    fn port(seats: &Seats, author: u16) -> Option<u16> {
        seats.now().seat(AuthorIndex(author)).map(|seat| seat.address.port())
    }

    #[test]
    fn a_told_roster_counts_until_the_judge_knows_as_many_seats_and_a_change() {
        let told = roster([seat(0, 1, 11), seat(1, 2, 20), seat(2, 3, 30)]);
        let seats = seats(Some(told), None).expect("no contradiction");
        assert_eq!((port(&seats, 0), port(&seats, 2)), (Some(11), Some(30)));
        seats.take(roster([seat(0, 1, 12), seat(1, 2, 20)])).expect("on its way");
        assert_eq!((port(&seats, 0), port(&seats, 2)), (Some(11), Some(30)));
        seats.take(roster([seat(0, 1, 13), seat(1, 2, 20), seat(2, 3, 31)])).expect("there");
        assert_eq!((port(&seats, 0), port(&seats, 2)), (Some(13), Some(31)));
    }

    #[test]
    fn a_seat_with_another_key_than_before_is_a_contradiction_whoever_says_it() {
        let other = || roster([seat(0, 1, 10), seat(1, 9, 20)]);
        let told = seats(Some(other()), None).err();
        assert_eq!(told, Some(Contradiction::Told(AuthorIndex(1))));
        let stored = seats(None, Some(other())).err();
        assert_eq!(stored, Some(Contradiction::Judged(AuthorIndex(1))));
        let known = seats(None, None).expect("the founders");
        assert_eq!(known.take(other()), Err(Contradiction::Judged(AuthorIndex(1))));
        assert_eq!(known.check(&other()), Err(Contradiction::Judged(AuthorIndex(1))));
        assert_eq!(port(&known, 1), Some(20));
    }
}
