//! Records of how epochs followed each other, for whoever begins elsewhere and has the genesis
//! only.
//!
//! Owns what the own judge showed of each next epoch's voters, and handovers of epochs that this
//! host never was in. Never checks one (`transfer` does, before it stores any). Called by delivery
//! and by `transfer`.

use dagger_payload::attested::EpochBeginning;
use dagger_payload::handover::{Handover, NextMembers};
use dagger_payload::id::Epoch;
use minicbor::{Decode, Encode};

use super::records::{Records, put_encoded};
use super::{Change, StoreError, Table};

/// What is kept of one epoch's beginning.
#[derive(Debug, Encode, Decode)]
enum Link {
    /// What the own judge showed; the handover stands among the others.
    #[n(0)]
    Judged(#[n(0)] NextMembers),
    /// All of it, from another host: this one was not there when it was made.
    #[n(1)]
    Fetched(#[n(0)] Box<EpochBeginning>),
}

fn key(epoch: Epoch) -> Vec<u8> {
    epoch.0.to_be_bytes().to_vec()
}

/// Keeps who votes in the next epoch, as the own judge showed it.
pub fn members_change(next: NextMembers) -> Change {
    let key = key(next.epoch);
    match put_encoded(Table::Chain, key, &Link::Judged(next)) {
        // One that was fetched says more.
        Change::Put { table, key, value } => Change::PutNew { table, key, value },
        other => other,
    }
}

/// Keeps a beginning that was fetched and checked.
pub fn fetched_change(beginning: EpochBeginning) -> Change {
    let key = key(beginning.handover.epoch);
    put_encoded(Table::Chain, key, &Link::Fetched(Box::new(beginning)))
}

impl Records {
    /// How an epoch began, with what shows who votes in it as far as that is known; none when this
    /// host knows nothing of it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn beginning_of(&self, epoch: Epoch) -> Result<Option<EpochBeginning>, StoreError> {
        let next = match self.get::<Link>(Table::Chain, &key(epoch))? {
            Some(Link::Fetched(beginning)) => return Ok(Some(*beginning)),
            Some(Link::Judged(next)) => Some(next),
            None => None,
        };
        let begun = |handover: Handover| {
            let (members, seats) = next.map(|next| (next.members, next.seats)).unzip();
            EpochBeginning { handover, members, seats: seats.unwrap_or_default() }
        };
        Ok(self.handover(epoch)?.map(begun))
    }
}
