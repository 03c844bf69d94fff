//! Releases that were fetched from another host and are not shown to be true yet.
//!
//! Owns where they wait: apart from the own ones, so that nobody reads them, and so that they can
//! be thrown away without touching what the own judge released meanwhile. Never checks one
//! (delivery's `beginning` does). Called by `transfer` and by delivery.

use dagger_payload::id::CommitIndex;
use dagger_payload::release::SealedRelease;

use super::records::{Records, index_key, open_encoded, put_encoded, release_change};
use super::{Change, Room, StoreError, Table};
use crate::limits::{FETCH_RESERVE_BYTES, STORE_PAGE_RECORDS, STORE_PAGE_RELEASES};

/// Keeps a release that nothing shows to be true yet.
pub fn fetched_release_change(sealed: &SealedRelease) -> Change {
    put_encoded(Table::Past, index_key(sealed.release.end.index), sealed)
}

impl Records {
    /// After which commit releases are to be fetched: those up to it are the own ones, or wait
    /// here already.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last_fetched(&self) -> Result<CommitIndex, StoreError> {
        let waiting = self.store.last(Table::Past)?;
        let waiting: Option<SealedRelease> =
            waiting.map(|(key, value)| open_encoded(Table::Past, &key, value)).transpose()?;
        let waiting = waiting.map_or(CommitIndex(0), |sealed| sealed.release.end.index);
        Ok(waiting.max(self.last_release()?))
    }

    /// A page of the releases after `after` and up to `through`: the own ones, and beyond them
    /// those that wait here. Empty when there are no more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn releases_with_fetched(
        &self,
        after: CommitIndex,
        through: CommitIndex,
    ) -> Result<Vec<SealedRelease>, StoreError> {
        let own = self.releases(after, through, STORE_PAGE_RELEASES)?;
        if own.is_empty() { self.fetched(after, through) } else { Ok(own) }
    }

    fn fetched(
        &self,
        after: CommitIndex,
        through: CommitIndex,
    ) -> Result<Vec<SealedRelease>, StoreError> {
        self.releases_in(Table::Past, (after, through), STORE_PAGE_RELEASES)
    }

    /// Changes that put a page of what waits here, which was found to be true up to `through`,
    /// among the own releases. What the own judge released stays as it is. Empty when all is done.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn fetched_is_true(&self, through: CommitIndex) -> Result<Vec<Change>, StoreError> {
        let own = self.last_release()?;
        let mut changes = Vec::new();
        for sealed in self.fetched(CommitIndex(0), through)? {
            let commit = sealed.release.end.index;
            if commit > own {
                changes.push(release_change(&sealed));
            }
            changes.push(Change::Delete { table: Table::Past, key: index_key(commit) });
        }
        Ok(changes)
    }

    /// Removals of up to a page of what waits here. Empty when nothing is left.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn fetched_removals(&self) -> Result<Vec<Change>, StoreError> {
        let keys = self.store.first_keys(Table::Past, STORE_PAGE_RECORDS)?.into_iter();
        Ok(keys.map(|key| Change::Delete { table: Table::Past, key }).collect())
    }

    /// Whether what a peer sends may be kept, so many bytes more: well before the store is full,
    /// for what a peer sends unproven must not stop this host.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn has_room_for_fetched(&self, bytes: usize) -> Result<bool, StoreError> {
        let Room { new_bytes, reusable_bytes } = self.store.room()?;
        // As the store counts them before it writes.
        let wanted = u64::try_from(bytes).expect("a length fits into 64 bits").saturating_mul(3);
        let all = new_bytes.saturating_add(reusable_bytes);
        // What was deleted is reused in pieces: some growth goes along with it.
        Ok(new_bytes >= FETCH_RESERVE_BYTES / 2
            && all >= FETCH_RESERVE_BYTES.saturating_add(wanted))
    }
}
