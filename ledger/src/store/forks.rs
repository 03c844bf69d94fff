//! Records of members who signed two events for one round.
//!
//! Owns how this evidence is read. Never decides what follows from it (the core does). Called by
//! delivery, which shows it.

use dagger_ledger_core::Fork;

use super::records::{Records, open_encoded};
use super::{Direction, StoreError, Table};
use crate::limits::FORKS_SHOWN_MAX;

impl Records {
    /// The evidence that is kept, by author and round.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forks(&self) -> Result<Vec<Fork>, StoreError> {
        let page = self.store.page(Table::Forks, &[], Direction::Forward, FORKS_SHOWN_MAX)?;
        page.into_iter().map(|(key, value)| open_encoded(Table::Forks, &key, value)).collect()
    }
}
