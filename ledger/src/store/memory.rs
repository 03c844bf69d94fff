//! The store in memory, for simulations and tests: the same interface, with crashes and faults on
//! demand.
//!
//! Owns its tables and the planned faults. A commit is whole or not at all, and what a returned
//! commit wrote survives [`MemoryStore::crash`]. Never used by the daemon.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard};

use super::{Change, Direction, Entry, Look, Room, Store, StoreError, Table};

/// What goes wrong in the next commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// There is no room: nothing is written, and it may be tried again.
    Full,
    /// Making it durable fails: nobody knows what is on disk (here: nothing).
    Sync,
    /// The process dies after the commit became durable and before anyone hears of it.
    CrashAfter,
}

#[derive(Default)]
struct State {
    tables: BTreeMap<Table, BTreeMap<Vec<u8>, Vec<u8>>>,
    fault: Option<Fault>,
}

/// Tables in memory.
#[derive(Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

impl MemoryStore {
    /// Plans a fault for the next commit.
    pub fn fail_next(&self, fault: Fault) {
        self.state().fault = Some(fault);
    }

    /// What another process finds after this one died: everything that was durable.
    #[must_use]
    pub fn crash(&self) -> Self {
        let tables = self.state().tables.clone();
        let fault = None;
        Self { state: Mutex::new(State { tables, fault }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

fn failed() -> StoreError {
    StoreError::Failed { doing: "commit", cause: "a planned fault".into() }
}

impl Store for MemoryStore {
    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut state = self.state();
        let fault = state.fault.take();
        match fault {
            Some(Fault::Full) => return Err(StoreError::Full("a planned fault")),
            Some(Fault::Sync) => return Err(failed()),
            Some(Fault::CrashAfter) | None => {}
        }
        for change in changes {
            match change {
                Change::Put { table, key, value } => {
                    let records = state.tables.entry(*table).or_default();
                    records.insert(key.clone(), value.clone());
                }
                Change::PutNew { table, key, value } => {
                    let records = state.tables.entry(*table).or_default();
                    records.entry(key.clone()).or_insert_with(|| value.clone());
                }
                Change::Delete { table, key } => {
                    state.tables.entry(*table).or_default().remove(key);
                }
            }
        }
        match fault {
            Some(_) => Err(failed()),
            None => Ok(()),
        }
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let state = self.state();
        Ok(state.tables.get(&table).and_then(|records| records.get(key)).cloned())
    }

    fn page(
        &self,
        table: Table,
        from: &[u8],
        direction: Direction,
        count_max: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let state = self.state();
        let Some(records) = state.tables.get(&table) else {
            return Ok(Vec::new());
        };
        let own = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), value.clone());
        let page = match direction {
            Direction::Forward => {
                let range = (Bound::Included(from), Bound::Unbounded);
                records.range::<[u8], _>(range).take(count_max).map(own).collect()
            }
            Direction::Backward => {
                let end = if from.is_empty() { Bound::Unbounded } else { Bound::Included(from) };
                let range = records.range::<[u8], _>((Bound::Unbounded, end));
                range.rev().take(count_max).map(own).collect()
            }
        };
        Ok(page)
    }

    fn visit(&self, table: Table, from: &[u8], look: &mut Look<'_>) -> Result<(), StoreError> {
        let state = self.state();
        let records = state.tables.get(&table).into_iter();
        let range = (Bound::Included(from), Bound::Unbounded);
        for (key, value) in records.flat_map(|records| records.range::<[u8], _>(range)) {
            if look(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn room(&self) -> Result<Room, StoreError> {
        Ok(Room { new_bytes: u64::MAX, reusable_bytes: 0 })
    }

    fn used_bytes(&self) -> Result<u64, StoreError> {
        let state = self.state();
        let records = state.tables.values().flatten();
        let bytes: usize = records.map(|(key, value)| key.len() + value.len()).sum();
        Ok(u64::try_from(bytes).expect("a length fits into 64 bits"))
    }
}
