//! Records of who has which seat, and of a host that has got another one.
//!
//! Owns the list of seats as the own judge had it last, and what a store writes when its host goes
//! on with another ledger key. Never decides who sits where. Called by delivery and at start.

use dagger_payload::payload::SignedPayload;
use dagger_payload::roster::Roster;

use super::pool::Pool;
use super::records::{Instance, OWN_LAST_KEY, Records, instance_change, put_encoded};
use super::{Change, StoreError, Table};

const ROSTER_KEY: &[u8] = b"roster";

/// Keeps all seats, in the write that holds the commit which changed one.
pub fn roster_change(roster: &Roster) -> Change {
    put_encoded(Table::Meta, ROSTER_KEY.to_vec(), roster)
}

/// What is written when the host goes on with another seat: history stays as it is, and events of
/// the seat before are another author's from now on. Payloads of those that may be `unordered`
/// return to the pool. Store and witness stay the host's: what was signed on the seat before counts
/// as signed.
pub(crate) fn new_seat_changes(
    instance: &Instance,
    unordered: &[SignedPayload],
    pool: &Pool,
) -> Vec<Change> {
    let own_last = Change::Delete { table: Table::Meta, key: OWN_LAST_KEY.to_vec() };
    let returned = unordered.iter().map(|payload| pool.entry(&payload.digest(), payload));
    [instance_change(instance), own_last].into_iter().chain(returned).collect()
}

impl Records {
    /// All seats as this host's judge had them last; none before it has said so.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn roster(&self) -> Result<Option<Roster>, StoreError> {
        self.get(Table::Meta, ROSTER_KEY)
    }
}
