//! Reading a store to find damage, and nothing else.
//!
//! Owns what is read and how much of it. A damaged store can end the process that reads it (LMDB
//! follows page numbers in the map, and a shortened file faults), so this runs in a child process
//! that does nothing else. Called by `program`, on behalf of `mend`.

use std::path::Path;

use super::lmdb::LmdbStore;
use super::{Direction, Store, StoreError, Table};
use super::{pages, records};
use crate::limits::{STORE_PAGE_EVENTS, STORE_PAGE_RECORDS};

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Depth {
    /// The newest records of each table.
    Newest,
    /// Every record, and every page that leads to one.
    All,
}

impl Depth {
    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::All => "all",
        }
    }
}

/// Reads the store in `directory` and says how many records were read.
///
/// # Errors
/// `Damaged`, `Page`, `Lost` or `Failed`: the store cannot be trusted. `OpenAlready`: nothing was
/// read.
pub fn scan(directory: &Path, map_bytes: usize, depth: Depth) -> Result<u64, StoreError> {
    if depth == Depth::All {
        pages::check(&directory.join("data.mdb"))?;
    }
    let store = LmdbStore::open(directory, map_bytes)?;
    let mut count = 0;
    for table in Table::ALL {
        count += match depth {
            Depth::Newest => scan_newest(&store, table)?,
            Depth::All => {
                let (found, written) = (scan_all(&store, table)?, store.count(table)?);
                if found != written {
                    return Err(StoreError::Lost { table: table.name(), written, found });
                }
                found
            }
        };
    }
    store.read_free_pages()?;
    Ok(count)
}

/// Events and the chunks of snapshots are large.
fn page_size(table: Table) -> usize {
    match table {
        Table::Events | Table::Snapshots => STORE_PAGE_EVENTS,
        _ => STORE_PAGE_RECORDS,
    }
}

fn scan_newest(store: &dyn Store, table: Table) -> Result<u64, StoreError> {
    let page = store.page(table, &[], Direction::Backward, page_size(table))?;
    let mut count = 0;
    for (key, value) in page {
        records::check(table, &key, value)?;
        count += 1;
    }
    Ok(count)
}

fn scan_all(store: &dyn Store, table: Table) -> Result<u64, StoreError> {
    let mut count = 0;
    let mut from = Vec::new();
    loop {
        let page = store.page(table, &from, Direction::Forward, page_size(table))?;
        let Some((last, _)) = page.last() else {
            return Ok(count);
        };
        // The smallest key above it; a key that has already the greatest length has none so long.
        from = [&last[..], &[0]].concat();
        for (key, value) in page {
            records::check(table, &key, value)?;
            count += 1;
        }
    }
}
