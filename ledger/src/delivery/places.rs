//! Where payloads were ordered first.
//!
//! Digests are spread evenly over their table, so that writing one dirties a page of its own: for
//! small payloads that would be most of what a ledger writes. So the newest places stay in memory,
//! and when those are too many, one stretch of the digests after another goes to the table, many to
//! a page. What is in memory alone follows from stored commits or releases and is read from them at
//! the start. Owns that memory and the mark up to which the table is complete. Filled by judging,
//! asked by requests.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use dagger_payload::genesis::GenesisMode;
use dagger_payload::id::{CommitIndex, PayloadDigest};

use super::judging_session::places_in;
use crate::limits::{PLACE_STRETCHES, PLACES_IN_MEMORY_MAX, STORE_PAGE_RELEASES};
use crate::store::records::{self, OrderedAt, Records};
use crate::store::{Change, StoreError};

/// One stretch of the digests.
type Stretch = HashMap<PayloadDigest, OrderedAt>;

struct State {
    stretches: Vec<Stretch>,
    /// How many places they hold.
    count: usize,
    /// The stretch that goes to the table next.
    next: usize,
    /// The newest commit whose places have all been noted.
    noted: CommitIndex,
    /// The same when the sweep through all stretches began: after it the table has these.
    swept: CommitIndex,
}

/// All places.
pub struct Places {
    records: Records,
    state: Mutex<State>,
}

/// Places on their way to the table; they stay in memory until they are durable there.
pub struct Moving {
    stretches: Range<usize>,
    changes: Vec<Change>,
}

impl Moving {
    /// What is to be written.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }
}

/// In which stretch a digest lies.
fn stretch_of(digest: &PayloadDigest) -> usize {
    usize::from(digest.0[0]) * PLACE_STRETCHES / 256
}

/// Changes by digest: neighbours share a page.
fn changes_of(stretch: &Stretch) -> impl Iterator<Item = Change> {
    let mut places: Vec<_> = stretch.iter().collect();
    places.sort_unstable_by_key(|(digest, _)| **digest);
    places.into_iter().map(|(digest, at)| records::ordered_change(digest, at))
}

impl Places {
    /// Reads what the table lacks.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn restore(records: Records, mode: GenesisMode) -> Result<Self, StoreError> {
        let swept = records.placed()?;
        let stretches = vec![Stretch::new(); PLACE_STRETCHES];
        let state = State { stretches, count: 0, next: 0, noted: swept, swept };
        let places = Self { records, state: Mutex::new(state) };
        match mode {
            GenesisMode::Judged => places.restore_released()?,
            GenesisMode::Opaque => places.restore_ordered()?,
        }
        Ok(places)
    }

    fn restore_released(&self) -> Result<(), StoreError> {
        let Some(released) = self.records.released()? else {
            return Ok(());
        };
        let mut after = self.state().swept;
        loop {
            let page = self.records.releases(after, released.through, STORE_PAGE_RELEASES)?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = last.release.end.index;
            for sealed in page {
                self.note(&places_in(&sealed).collect::<Vec<_>>());
            }
        }
    }

    fn restore_ordered(&self) -> Result<(), StoreError> {
        let mut index = self.state().swept.next();
        let through = self.records.last_commit()?.map_or(CommitIndex(0), |commit| commit.index);
        while index <= through {
            let commit = self.records.ordered_commit(index)?;
            for (position, ordered) in commit.iter().flat_map(|commit| commit.placed()) {
                let at = OrderedAt { position, commit: index };
                self.note(&[(ordered.payload.digest(), at)]);
            }
            index = index.next();
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// The commit of the newest place that is known.
    pub(super) fn noted(&self) -> CommitIndex {
        self.state().noted
    }

    /// Where a payload was ordered first. May read from the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn find(&self, digest: &PayloadDigest) -> Result<Option<OrderedAt>, StoreError> {
        // Of two copies, far apart, the table has the older one.
        match self.records.ordered(digest)? {
            Some(at) => Ok(Some(at)),
            None => Ok(self.state().stretches[stretch_of(digest)].get(digest).copied()),
        }
    }

    /// Payloads were ordered; of copies the first one counts.
    pub(super) fn note(&self, placed: &[(PayloadDigest, OrderedAt)]) {
        let mut state = self.state();
        for (digest, at) in placed {
            state.noted = state.noted.max(at.commit);
            if let Entry::Vacant(place) = state.stretches[stretch_of(digest)].entry(*digest) {
                place.insert(*at);
                state.count += 1;
            }
        }
    }

    /// The next stretch, if too many are in memory.
    pub(super) fn too_many(&self) -> Option<Moving> {
        let mut state = self.state();
        if state.count <= PLACES_IN_MEMORY_MAX {
            return None;
        }
        let stretch = state.next;
        let mut changes: Vec<_> = changes_of(&state.stretches[stretch]).collect();
        state.next += 1;
        if state.next == PLACE_STRETCHES {
            state.next = 0;
            changes.push(records::placed_change(state.swept));
            state.swept = state.noted;
        }
        Some(Moving { stretches: stretch..stretch + 1, changes })
    }

    /// All that are in memory, before what they could be read from is removed.
    pub(super) fn all(&self) -> Moving {
        let mut state = self.state();
        let mut changes: Vec<_> = state.stretches.iter().flat_map(changes_of).collect();
        changes.push(records::placed_change(state.noted));
        state.next = 0;
        state.swept = state.noted;
        Moving { stretches: 0..PLACE_STRETCHES, changes }
    }

    /// These are durable in the table.
    pub(super) fn moved(&self, moving: &Moving) {
        let mut state = self.state();
        for stretch in moving.stretches.clone() {
            let moved = std::mem::take(&mut state.stretches[stretch]);
            state.count -= moved.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dagger_payload::id::Position;

    use super::*;
    use crate::store::Store;
    use crate::store::memory::MemoryStore;

    fn digest(number: u64) -> PayloadDigest {
        PayloadDigest::of(&number.to_be_bytes())
    }

    fn at(number: u64) -> OrderedAt {
        OrderedAt { position: Position(number), commit: CommitIndex(number / 100 + 1) }
    }

    #[test]
    fn a_place_is_found_before_while_and_after_it_moves_and_the_mark_never_runs_ahead() {
        let store = Arc::new(MemoryStore::default());
        let places =
            Places::restore(Records::new(store.clone()), GenesisMode::Opaque).expect("reads");
        let count = u64::try_from(PLACES_IN_MEMORY_MAX).expect("fits") + 20_000;
        for number in 0..count {
            places.note(&[(digest(number), at(number))]);
            // A later copy changes nothing, in memory or in the table.
            places.note(&[(digest(number / 2), at(number))]);
            if number % 100 == 99
                && let Some(mut moving) = places.too_many()
            {
                let changes = moving.take_changes();
                store.commit(&changes).expect("commits");
                assert_eq!(places.find(&digest(number)).expect("reads"), Some(at(number)));
                places.moved(&moving);
            }
        }
        let state = places.state();
        assert!(state.count <= PLACES_IN_MEMORY_MAX + 100, "memory is bounded");
        let left = state.stretches.iter().flat_map(Stretch::values);
        let oldest = left.map(|at| at.commit).min().expect("some");
        drop(state);
        assert!(places.records.placed().expect("reads") < oldest);
        for number in (0..count).step_by(97) {
            assert_eq!(places.find(&digest(number)).expect("reads"), Some(at(number)), "{number}");
        }
        store.commit(&places.all().take_changes()).expect("commits");
        let placed = places.records.placed().expect("reads");
        assert_eq!(placed, at(count - 1).commit);
        assert!(store.get(crate::store::Table::Ordered, digest(count - 1).as_bytes()).is_ok());
    }
}
