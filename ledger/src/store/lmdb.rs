//! The store in LMDB. **The only file that imports `lmdb`** (a test keeps it so): the crate is
//! archived and unsound where an iterator outlives its cursor, so no iterator is used at all, and
//! no cursor or slice leaves the function that made it (`visit` lends one for a call).
//!
//! Owns the environment: opened once per path and process, with a sparse map of the configured size
//! that never changes, and LMDB's default, fully synchronous commits. Never sets `NOSYNC`,
//! `NOMETASYNC`, `WRITEMAP`, `MAPASYNC` or `NOLOCK`. Called through [`Store`]. Source: `lmdb.h` of
//! LMDB 0.9.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use lmdb::{
    Cursor, Database, DatabaseFlags, Environment, EnvironmentFlags, Transaction, WriteFlags,
};
use nix::fcntl::{Flock, FlockArg};

use super::{Change, Direction, Entry, Look, Room, Store, StoreError, Table};
use crate::limits::{STORE_READERS_MAX, STORE_RESERVE_BYTES};

/// `MDB_cursor_op` of `lmdb.h`: the five positions that are used here.
mod position {
    pub(super) const FIRST: u32 = 0;
    pub(super) const LAST: u32 = 6;
    pub(super) const NEXT: u32 = 8;
    pub(super) const PREVIOUS: u32 = 12;
    pub(super) const AT_OR_AFTER: u32 = 17;
}

/// Paths that this process has open: a second environment on one file would drop the first one's
/// file locks.
static OPEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// An open LMDB environment.
pub struct LmdbStore {
    environment: Environment,
    databases: Vec<Database>,
    directory: PathBuf,
    // Held for as long as the store is open; keeps a second process out.
    _lock: Flock<File>,
}

fn failed(doing: &'static str, cause: lmdb::Error) -> StoreError {
    match cause {
        lmdb::Error::MapFull => StoreError::Full("its map has reached `map_gib`"),
        other => failed_by(doing, other),
    }
}

fn failed_by(
    doing: &'static str,
    cause: impl std::error::Error + Send + Sync + 'static,
) -> StoreError {
    StoreError::Failed { doing, cause: Box::new(cause) }
}

impl LmdbStore {
    /// Opens the store in `directory` (made with mode 0700 when missing) with a sparse map of
    /// `map_bytes`.
    ///
    /// # Errors
    /// `OpenAlready`, or `Failed` when the files are damaged or cannot be used.
    pub fn open(directory: &Path, map_bytes: usize) -> Result<Self, StoreError> {
        let opening = |cause: std::io::Error| failed_by("open its directory", cause);
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory).map_err(opening)?;
        let directory = directory.canonicalize().map_err(opening)?;
        let shown = directory.display().to_string();
        let lock = File::create(directory.join("lock")).map_err(opening)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_| StoreError::OpenAlready(shown.clone()))?;
        let mut open = OPEN.lock().expect("no holder of this lock panics");
        if !open.insert(directory.clone()) {
            return Err(StoreError::OpenAlready(shown));
        }
        let opened = Self::open_environment(&directory, map_bytes);
        if opened.is_err() {
            open.remove(&directory);
        }
        let (environment, databases) = opened?;
        Ok(Self { environment, databases, directory, _lock: lock })
    }

    fn open_environment(
        directory: &Path,
        map_bytes: usize,
    ) -> Result<(Environment, Vec<Database>), StoreError> {
        let tables = u32::try_from(Table::ALL.len()).expect("a few");
        let environment = Environment::new()
            // Reader slots belong to transactions, not to threads: readers are many short-lived
            // pool threads.
            .set_flags(EnvironmentFlags::NO_TLS)
            .set_max_readers(STORE_READERS_MAX)
            .set_max_dbs(tables)
            .set_map_size(map_bytes)
            .open_with_permissions(directory, 0o600)
            .map_err(|cause| failed("open its files", cause))?;
        let mut databases = Vec::new();
        for table in Table::ALL {
            let database = environment
                .create_db(Some(table.name()), DatabaseFlags::empty())
                .map_err(|cause| failed("open its tables", cause))?;
            databases.push(database);
        }
        Ok((environment, databases))
    }

    /// Reads the list of free pages, which no table shows.
    ///
    /// # Errors
    /// `Failed`.
    pub fn read_free_pages(&self) -> Result<usize, StoreError> {
        self.environment.freelist().map_err(|cause| failed("read its free pages", cause))
    }

    /// How many records of `table` were written and not deleted, as LMDB counts them beside the
    /// tree that leads to them.
    ///
    /// # Errors
    /// `Failed`.
    pub fn count(&self, table: Table) -> Result<u64, StoreError> {
        let reading = |cause| failed("count its records", cause);
        let transaction = self.environment.begin_ro_txn().map_err(reading)?;
        let stat = transaction.stat(self.database(table)).map_err(reading)?;
        Ok(u64::try_from(stat.entries()).expect("a count fits into 64 bits"))
    }

    fn database(&self, table: Table) -> Database {
        let at = Table::ALL.iter().position(|each| *each == table);
        self.databases[at.expect("every table is listed")]
    }

    /// Refuses before anything is written, so that a failing commit always means a failing disk.
    fn check_room(&self, changes: &[Change]) -> Result<(), StoreError> {
        let wanted: usize = changes.iter().map(Change::size_bytes).sum();
        // Page splits, copied tree pages and overflow pages: thrice the bytes is an upper bound in
        // practice.
        let wanted = u64::try_from(wanted).expect("a length fits into 64 bits") * 3;
        let free = self.free_on_disk()?;
        let deletes_only = changes.iter().all(|change| matches!(change, Change::Delete { .. }));
        if free >= wanted.saturating_add(STORE_RESERVE_BYTES) || deletes_only {
            Ok(())
        } else {
            Err(StoreError::Full("its disk has no room left"))
        }
    }
}

impl LmdbStore {
    fn free_on_disk(&self) -> Result<u64, StoreError> {
        let room = nix::sys::statvfs::statvfs(&self.directory)
            .map_err(|cause| failed_by("ask for the room on its disk", cause))?;
        Ok(room.blocks_available().saturating_mul(room.fragment_size()))
    }
}

impl Drop for LmdbStore {
    fn drop(&mut self) {
        OPEN.lock().expect("no holder of this lock panics").remove(&self.directory);
    }
}

impl Store for LmdbStore {
    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.check_room(changes)?;
        let writing = |cause| failed("write", cause);
        let mut transaction = self.environment.begin_rw_txn().map_err(writing)?;
        for change in changes {
            match change {
                Change::Put { table, key, value } => transaction
                    .put(self.database(*table), key, value, WriteFlags::empty())
                    .map_err(writing)?,
                Change::PutNew { table, key, value } => {
                    let flags = WriteFlags::NO_OVERWRITE;
                    match transaction.put(self.database(*table), key, value, flags) {
                        Ok(()) | Err(lmdb::Error::KeyExist) => {}
                        Err(cause) => return Err(writing(cause)),
                    }
                }
                Change::Delete { table, key } => {
                    match transaction.del(self.database(*table), key, None) {
                        Ok(()) | Err(lmdb::Error::NotFound) => {}
                        Err(cause) => return Err(writing(cause)),
                    }
                }
            }
        }
        // A full map shows before the first page is written; every later error leaves the disk's
        // content uncertain.
        transaction.commit().map_err(|cause| failed("make a commit durable", cause))
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let reading = |cause| failed("read", cause);
        let transaction = self.environment.begin_ro_txn().map_err(reading)?;
        match transaction.get(self.database(table), &key) {
            Ok(value) => Ok(Some(value.to_vec())),
            Err(lmdb::Error::NotFound) => Ok(None),
            Err(cause) => Err(reading(cause)),
        }
    }

    fn contains(&self, table: Table, key: &[u8]) -> Result<bool, StoreError> {
        let reading = |cause| failed("read", cause);
        let transaction = self.environment.begin_ro_txn().map_err(reading)?;
        match transaction.get(self.database(table), &key) {
            Ok(_) => Ok(true),
            Err(lmdb::Error::NotFound) => Ok(false),
            Err(cause) => Err(reading(cause)),
        }
    }

    fn page(
        &self,
        table: Table,
        from: &[u8],
        direction: Direction,
        count_max: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let reading = |cause| failed("read", cause);
        let transaction = self.environment.begin_ro_txn().map_err(reading)?;
        let cursor = transaction.open_ro_cursor(self.database(table)).map_err(reading)?;
        let step = |key: Option<&[u8]>, to: u32| match cursor.get(key, None, to) {
            Ok((key, value)) => Ok(Some((key.unwrap_or_default().to_vec(), value.to_vec()))),
            Err(lmdb::Error::NotFound) => Ok(None),
            Err(cause) => Err(reading(cause)),
        };
        let mut entry = match (direction, from.is_empty()) {
            (Direction::Forward, true) => step(None, position::FIRST)?,
            (Direction::Forward, false) => step(Some(from), position::AT_OR_AFTER)?,
            (Direction::Backward, true) => step(None, position::LAST)?,
            (Direction::Backward, false) => match step(Some(from), position::AT_OR_AFTER)? {
                Some((key, value)) if key == from => Some((key, value)),
                Some(_) => step(None, position::PREVIOUS)?,
                None => step(None, position::LAST)?,
            },
        };
        let next = match direction {
            Direction::Forward => position::NEXT,
            Direction::Backward => position::PREVIOUS,
        };
        let mut page = Vec::new();
        while let Some(found) = entry {
            page.push(found);
            if page.len() >= count_max {
                break;
            }
            entry = step(None, next)?;
        }
        page.truncate(count_max);
        Ok(page)
    }

    fn visit(&self, table: Table, from: &[u8], look: &mut Look<'_>) -> Result<(), StoreError> {
        let reading = |cause| failed("read", cause);
        let transaction = self.environment.begin_ro_txn().map_err(reading)?;
        let cursor = transaction.open_ro_cursor(self.database(table)).map_err(reading)?;
        let (mut key, mut to) = match from.is_empty() {
            true => (None, position::FIRST),
            false => (Some(from), position::AT_OR_AFTER),
        };
        loop {
            match cursor.get(key, None, to) {
                Ok((found, value)) => {
                    if look(found.unwrap_or_default(), value).is_break() {
                        return Ok(());
                    }
                }
                Err(lmdb::Error::NotFound) => return Ok(()),
                Err(cause) => return Err(reading(cause)),
            }
            (key, to) = (None, position::NEXT);
        }
    }

    fn first_keys(&self, table: Table, count_max: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let reading = |cause| failed("read", cause);
        let transaction = self.environment.begin_ro_txn().map_err(reading)?;
        let cursor = transaction.open_ro_cursor(self.database(table)).map_err(reading)?;
        let (mut keys, mut to) = (Vec::new(), position::FIRST);
        while keys.len() < count_max {
            match cursor.get(None, None, to) {
                Ok((key, _)) => keys.push(key.unwrap_or_default().to_vec()),
                Err(lmdb::Error::NotFound) => break,
                Err(cause) => return Err(reading(cause)),
            }
            to = position::NEXT;
        }
        Ok(keys)
    }

    fn room(&self) -> Result<Room, StoreError> {
        let measuring = |cause| failed("measure its room", cause);
        let info = self.environment.info().map_err(measuring)?;
        let page = u64::from(self.environment.stat().map_err(measuring)?.page_size());
        let bytes = |pages: usize| u64::try_from(pages).unwrap_or(u64::MAX).saturating_mul(page);
        let in_map = u64::try_from(info.map_size()).unwrap_or(u64::MAX);
        let in_map = in_map.saturating_sub(bytes(info.last_pgno()));
        let new_bytes = in_map.min(self.free_on_disk()?);
        Ok(Room { new_bytes, reusable_bytes: bytes(self.read_free_pages()?) })
    }

    fn used_bytes(&self) -> Result<u64, StoreError> {
        use std::os::unix::fs::MetadataExt;
        let file = self.directory.join("data.mdb");
        let metadata =
            std::fs::metadata(file).map_err(|cause| failed_by("measure its file", cause))?;
        Ok(metadata.blocks() * 512)
    }
}
