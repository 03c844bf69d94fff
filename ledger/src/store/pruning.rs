//! Records of events without their bodies.
//!
//! Owns the mark below which this store has no bodies, and how an event becomes its signed header
//! under the same key. Never decides how far to prune (`delivery::retention` does) nor that history
//! begins here (`transfer` does). Called by both, and by whoever serves stored events.

use dagger_payload::event::SignedHeader;
use dagger_payload::id::{Epoch, Round};
use minicbor::{Decode, Encode};

use super::records::{EventKey, Records, open_event, put_encoded};
use super::{Change, Direction, StoreError, Table};
use crate::limits::{PRUNE_READ_BYTES, STORE_PAGE_EVENTS};

const PRUNED_KEY: &[u8] = b"pruned";

/// Bodies of events up to this round of this epoch, and of all earlier epochs, are gone or were
/// never here.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Pruned {
    /// The epoch.
    #[n(0)]
    pub epoch: Epoch,
    /// The round.
    #[n(1)]
    pub round: Round,
}

impl Pruned {
    /// Whether bodies of this round are gone.
    pub fn covers(self, epoch: Epoch, round: Round) -> bool {
        (epoch, round) <= (self.epoch, self.round)
    }
}

/// Keeps the mark. It is written before the first body goes.
pub fn pruned_change(pruned: &Pruned) -> Change {
    put_encoded(Table::Meta, PRUNED_KEY.to_vec(), pruned)
}

impl Records {
    /// Whether events of `epoch` above what a peer has are gone: nothing can be built on what
    /// comes after a gap.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn lacks_above(&self, epoch: Epoch, has: Round) -> Result<bool, StoreError> {
        Ok(self.pruned()?.covers(epoch, has.next()))
    }

    /// Up to where bodies are gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn pruned(&self) -> Result<Pruned, StoreError> {
        Ok(self.get(Table::Meta, PRUNED_KEY)?.unwrap_or_default())
    }

    /// The changes that prune the oldest events up to the mark, as many as may share one write;
    /// none when nothing is left to prune. The newest own event stays: the next one names it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn body_removals(&self, pruned: Pruned) -> Result<Vec<Change>, StoreError> {
        let own_last = self.own_last()?.map(|event| event.digest);
        let (mut changes, mut from, mut bytes) = (Vec::new(), Vec::new(), 0);
        loop {
            let page =
                self.store.page(Table::Events, &from, Direction::Forward, STORE_PAGE_EVENTS)?;
            let Some((last, _)) = page.last() else {
                return Ok(changes);
            };
            from = [&last[..], &[0]].concat();
            for (key, value) in page {
                bytes += value.len();
                let event = open_event(&key, value)?;
                if !pruned.covers(event.header.epoch, event.header.round) {
                    return Ok(changes);
                }
                if own_last == Some(event.digest) {
                    continue;
                }
                changes.push(put_encoded(Table::Headers, key.clone(), &event.signed_header()));
                changes.push(Change::Delete { table: Table::Events, key });
            }
            if bytes >= PRUNE_READ_BYTES {
                return Ok(changes);
            }
        }
    }

    /// The signed header of an event, whether its body is pruned or not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn signed_header(&self, key: EventKey) -> Result<Option<SignedHeader>, StoreError> {
        if let Some(header) = self.get(Table::Headers, &key.to_bytes())? {
            return Ok(Some(header));
        }
        let event = self.event(key)?;
        Ok(event.map(|event| event.signed_header()))
    }
}
