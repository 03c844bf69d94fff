//! What the model keeps on disk and not in memory: a scratch store in LMDB. **The agent's only file
//! that imports `lmdb`** (a test keeps it so), with the ledger's rules: no iterator is used, and no
//! cursor or slice leaves the function that made it.
//!
//! Owns the directory, the tables and their bytes; what they mean says [`super::past`]. It is begun
//! anew with each reading of the history and is no second truth: nothing in it is ever synced, and
//! what an earlier life left behind is removed unread. Never sets `WRITEMAP`: a full disk would be
//! a signal instead of an error. Written by one thread at a time, read by as many as
//! [`ARCHIVE_READERS_MAX`] allows. Source: `lmdb.h` of LMDB 0.9.

use std::fs::{self, DirBuilder};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use dagger_payload::id::CommitIndex;
use lmdb::{
    Cursor, Database, DatabaseFlags, Environment, EnvironmentFlags, RoTransaction, Transaction,
    WriteFlags,
};
use nix::errno::Errno;

use crate::limits::{ARCHIVE_MAP_BYTES, ARCHIVE_READERS_MAX, ARCHIVE_RESERVE_BYTES};

/// `MDB_cursor_op` of `lmdb.h`: the four positions that are used here.
mod position {
    pub(super) const LAST: u32 = 6;
    pub(super) const NEXT: u32 = 8;
    pub(super) const PREVIOUS: u32 = 12;
    pub(super) const AT_OR_AFTER: u32 = 17;
}

/// Name of the directory below the agent's state directory.
const DIRECTORY_NAME: &str = "archive";

/// Why the past was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// *Unavailable*: nothing was written; it can be tried again.
    #[error("the archive of the history cannot grow: {0}")]
    Full(&'static str),
    /// *Broken*.
    #[error("cannot {doing} of the archive of the history")]
    Failed {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// *Broken*: what stands there is not what was written.
    #[error("the archive of the history is damaged: {0}")]
    Damaged(&'static str),
    /// Nobody waits for the answer any more.
    #[error("nobody waits for it any more")]
    GivenUp,
}

fn failed(doing: &'static str, cause: lmdb::Error) -> ArchiveError {
    match cause {
        lmdb::Error::MapFull => ArchiveError::Full("it has reached its largest size"),
        lmdb::Error::Other(code) if is_no_room(Errno::from_raw(code)) => {
            ArchiveError::Full("its disk has no room left")
        }
        cause => ArchiveError::Failed { doing, cause: Box::new(cause) },
    }
}

fn failed_by(doing: &'static str) -> impl Fn(io::Error) -> ArchiveError {
    move |cause| {
        let code = cause.raw_os_error().map(Errno::from_raw);
        if code.is_some_and(is_no_room) {
            return ArchiveError::Full("its disk has no room left");
        }
        ArchiveError::Failed { doing, cause: Box::new(cause) }
    }
}

fn is_no_room(code: Errno) -> bool {
    matches!(code, Errno::ENOSPC | Errno::EDQUOT)
}

/// The tables; keys are sorted by their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// Commit index: its end, its time, how many payloads it has, what time did.
    Commits,
    /// Position: the judged payload.
    Payloads,
    /// Digest: the position of the copy that counts.
    Digests,
    /// VM and number of the step: the step.
    Steps,
    /// Account and commit index: that the commit changed what the account uses.
    Accounts,
    /// The last version of each deleted VM.
    GoneVms,
    /// Name, position of creation and id of a deleted VM: its account.
    GoneVmNames,
    /// The last version of each deleted volume.
    GoneVolumes,
    /// Name, position of creation and id of a deleted volume: its account.
    GoneVolumeNames,
}

impl Table {
    const ALL: [(Self, &'static str); 9] = [
        (Self::Commits, "commits"),
        (Self::Payloads, "payloads"),
        (Self::Digests, "digests"),
        (Self::Steps, "steps"),
        (Self::Accounts, "accounts"),
        (Self::GoneVms, "gone_vms"),
        (Self::GoneVmNames, "gone_vm_names"),
        (Self::GoneVolumes, "gone_volumes"),
        (Self::GoneVolumeNames, "gone_volume_names"),
    ];
}

/// What becomes of a record that stands under the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Earlier {
    Replaced,
    Kept,
}

/// A record to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Put {
    pub(super) table: Table,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    pub(super) earlier: Earlier,
}

/// Which way a walk goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    Backward,
}

/// The place where archives are made, one for each reading of the history.
#[derive(Debug)]
pub struct Archives {
    directory: PathBuf,
    /// How many were begun; `None` until what an earlier life left there is removed.
    begun: Mutex<Option<u64>>,
}

impl Archives {
    /// The place below `state_directory`; nothing is touched yet.
    pub fn below(state_directory: &Path) -> Self {
        Self { directory: state_directory.join(DIRECTORY_NAME), begun: Mutex::new(None) }
    }

    /// An empty archive. Before the first one what an earlier life left is removed.
    ///
    /// # Errors
    /// `Full`, after which it can be tried again; `Failed`.
    pub fn fresh(&self) -> Result<Arc<Archive>, ArchiveError> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match *begun {
            Some(number) => number,
            None => {
                self.clear()?;
                0
            }
        };
        *begun = Some(number + 1);
        drop(begun);
        // LMDB writes its lock file through a mapping, where a full disk ends the process by
        // SIGBUS: so the room is asked for before.
        check_room(&self.directory, 0)?;
        let directory = self.directory.join(format!("{}-{number}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&directory).map_err(failed_by("make a part"))?;
        let opened = Archive::open(directory.clone(), ARCHIVE_MAP_BYTES);
        if opened.is_err() {
            // What stays is removed at the next start.
            let _ = fs::remove_dir_all(&directory);
        }
        opened.map(Arc::new)
    }

    fn clear(&self) -> Result<(), ArchiveError> {
        match fs::remove_dir_all(&self.directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed_by("remove what is left")(error)),
        }
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&self.directory).map_err(failed_by("make a part"))
    }
}

/// Refuses before anything is written: a write that fails half-way may leave the environment
/// unusable.
fn check_room(directory: &Path, bytes: usize) -> Result<(), ArchiveError> {
    let asking = |cause: Errno| ArchiveError::Failed {
        doing: "ask for the room on the disk",
        cause: Box::new(cause),
    };
    let room = nix::sys::statvfs::statvfs(directory).map_err(asking)?;
    let free = room.blocks_available().saturating_mul(room.fragment_size());
    // Page splits, copied tree pages and overflow pages, as in the ledger's store.
    let wanted = u64::try_from(bytes).expect("a length fits into 64 bits").saturating_mul(3);
    if free < wanted.saturating_add(ARCHIVE_RESERVE_BYTES) {
        return Err(ArchiveError::Full("its disk has no room left"));
    }
    Ok(())
}

/// An open archive; its files go with it.
pub struct Archive {
    environment: Environment,
    databases: Vec<Database>,
    directory: PathBuf,
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Archive({})", self.directory.display())
    }
}

impl Archive {
    fn open(directory: PathBuf, map_bytes: usize) -> Result<Self, ArchiveError> {
        let tables = u32::try_from(Table::ALL.len()).expect("a few");
        let environment = Environment::new()
            // Reader slots belong to transactions, not to threads: readers are pool threads.
            .set_flags(
                EnvironmentFlags::NO_TLS
                    | EnvironmentFlags::NO_SYNC
                    | EnvironmentFlags::NO_META_SYNC,
            )
            .set_max_readers(ARCHIVE_READERS_MAX)
            .set_max_dbs(tables)
            .set_map_size(map_bytes)
            .open_with_permissions(&directory, 0o600)
            .map_err(|cause| failed("open the files", cause))?;
        let mut databases = Vec::new();
        for (_, name) in Table::ALL {
            let database = environment.create_db(Some(name), DatabaseFlags::empty());
            databases.push(database.map_err(|cause| failed("open the tables", cause))?);
        }
        Ok(Self { environment, databases, directory })
    }

    fn database(&self, table: Table) -> Database {
        let at = Table::ALL.iter().position(|(each, _)| *each == table);
        self.databases[at.expect("every table is listed")]
    }

    /// Writes all of `puts`, in order, or nothing.
    ///
    /// # Errors
    /// `Full`, after which it can be tried again; `Failed`.
    pub(super) fn write<'p>(
        &self,
        puts: impl IntoIterator<Item = &'p Put, IntoIter: Clone>,
    ) -> Result<(), ArchiveError> {
        let puts = puts.into_iter();
        let bytes = puts.clone().map(|put| put.key.len() + put.value.len()).sum();
        check_room(&self.directory, bytes)?;
        let writing = |cause| failed("write a part", cause);
        let mut transaction = self.environment.begin_rw_txn().map_err(writing)?;
        for Put { table, key, value, earlier } in puts {
            let database = self.database(*table);
            let flags = match earlier {
                Earlier::Replaced => WriteFlags::empty(),
                Earlier::Kept => WriteFlags::NO_OVERWRITE,
            };
            match transaction.put(database, key, value, flags) {
                Ok(()) => {}
                Err(lmdb::Error::KeyExist) if *earlier == Earlier::Kept => {}
                Err(cause) => return Err(writing(cause)),
            }
        }
        transaction.commit().map_err(writing)
    }

    /// One look at what is written, as it is now: nothing later than commit `until` is shown.
    ///
    /// # Errors
    /// Those of `look`; `Failed`.
    pub(super) fn read<T>(
        &self,
        until: CommitIndex,
        look: impl FnOnce(&Reading<'_>) -> Result<T, ArchiveError>,
    ) -> Result<T, ArchiveError> {
        let reading = |cause| failed("read a part", cause);
        let transaction = self.environment.begin_ro_txn().map_err(reading)?;
        look(&Reading { archive: self, transaction, until })
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        // What stays is removed at the next start.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// One look at an archive.
pub(super) struct Reading<'a> {
    archive: &'a Archive,
    transaction: RoTransaction<'a>,
    /// The last commit that is shown.
    pub(super) until: CommitIndex,
}

impl Reading<'_> {
    /// What `read` makes of the record under `key`.
    pub(super) fn get<T>(
        &self,
        table: Table,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> Result<T, ArchiveError>,
    ) -> Result<Option<T>, ArchiveError> {
        match self.transaction.get(self.archive.database(table), &key) {
            Ok(value) => read(value).map(Some),
            Err(lmdb::Error::NotFound) => Ok(None),
            Err(cause) => Err(failed("read a part", cause)),
        }
    }

    /// Shows the records from `from` on (forward: the first is not before it, backward: not after
    /// it), until `visit` breaks off or none is left.
    pub(super) fn walk(
        &self,
        table: Table,
        from: &[u8],
        direction: Direction,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, ArchiveError>,
    ) -> Result<(), ArchiveError> {
        let reading = |cause| failed("read a part", cause);
        let database = self.archive.database(table);
        let cursor = self.transaction.open_ro_cursor(database).map_err(reading)?;
        let step = |key: Option<&[u8]>, to: u32| match cursor.get(key, None, to) {
            Ok((key, value)) => Ok(Some((key.unwrap_or_default(), value))),
            Err(lmdb::Error::NotFound) => Ok(None),
            Err(cause) => Err(reading(cause)),
        };
        let found = step(Some(from), position::AT_OR_AFTER)?;
        let (mut entry, next) = match (direction, found) {
            (Direction::Forward, found) => (found, position::NEXT),
            (Direction::Backward, Some((key, value))) if key == from => {
                (Some((key, value)), position::PREVIOUS)
            }
            (Direction::Backward, Some(_)) => (step(None, position::PREVIOUS)?, position::PREVIOUS),
            (Direction::Backward, None) => (step(None, position::LAST)?, position::PREVIOUS),
        };
        while let Some((key, value)) = entry {
            if visit(key, value)?.is_break() {
                break;
            }
            entry = step(None, next)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(number: u64, value: &[u8], earlier: Earlier) -> Put {
        let key = number.to_be_bytes().to_vec();
        Put { table: Table::Steps, key, value: value.to_vec(), earlier }
    }

    fn numbers(archive: &Archive, from: u64, direction: Direction) -> Vec<u64> {
        let mut seen = Vec::new();
        let visit = |key: &[u8], _: &[u8]| {
            seen.push(u64::from_be_bytes(key.try_into().expect("eight bytes")));
            Ok(if seen.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        let from = from.to_be_bytes();
        let walk = |reading: &Reading<'_>| reading.walk(Table::Steps, &from, direction, visit);
        archive.read(CommitIndex(0), walk).expect("it reads");
        seen
    }

    #[test]
    fn a_walk_goes_both_ways_from_where_a_record_is_or_would_be() {
        let place = tempfile::tempdir().expect("a directory");
        let archive = Archives::below(place.path()).fresh().expect("fresh");
        assert!(numbers(&archive, 1, Direction::Backward).is_empty());
        let puts = [2, 4, 6].map(|number| put(number, b"x", Earlier::Replaced));
        archive.write(&puts).expect("there is room");
        assert_eq!(numbers(&archive, 3, Direction::Forward), [4, 6]);
        assert_eq!(numbers(&archive, 4, Direction::Forward), [4, 6]);
        assert_eq!(numbers(&archive, 3, Direction::Backward), [2]);
        assert_eq!(numbers(&archive, 4, Direction::Backward), [4, 2]);
        assert_eq!(numbers(&archive, 9, Direction::Backward), [6, 4]);
    }

    #[test]
    fn an_earlier_record_is_kept_or_replaced_as_asked() {
        let place = tempfile::tempdir().expect("a directory");
        let archive = Archives::below(place.path()).fresh().expect("fresh");
        let value = || {
            let read = |bytes: &[u8]| Ok(bytes.to_vec());
            let look =
                |reading: &Reading<'_>| reading.get(Table::Steps, &1_u64.to_be_bytes(), read);
            archive.read(CommitIndex(0), look).expect("it reads").expect("it is there")
        };
        archive.write(&[put(1, b"first", Earlier::Kept)]).expect("there is room");
        archive.write(&[put(1, b"second", Earlier::Kept)]).expect("there is room");
        assert_eq!(value(), b"first");
        archive.write(&[put(1, b"third", Earlier::Replaced)]).expect("there is room");
        assert_eq!(value(), b"third");
    }

    #[test]
    fn what_an_earlier_life_left_is_removed_and_an_archive_takes_its_files_along() {
        let place = tempfile::tempdir().expect("a directory");
        let left = place.path().join(DIRECTORY_NAME).join("1-0");
        fs::create_dir_all(&left).expect("a directory");
        fs::write(left.join("data.mdb"), b"nothing that LMDB would read").expect("a file");
        let archives = Archives::below(place.path());
        let (one, other) = (archives.fresh().expect("fresh"), archives.fresh().expect("fresh"));
        let count =
            || fs::read_dir(place.path().join(DIRECTORY_NAME)).expect("it is there").count();
        assert_eq!((left.exists(), count()), (false, 2));
        drop(one);
        assert_eq!(count(), 1);
        other.write(&[put(1, b"x", Earlier::Kept)]).expect("its files are its own");
    }

    #[test]
    fn a_full_archive_refuses_and_goes_on_showing_what_it_has() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = place.path().join("small");
        fs::create_dir(&directory).expect("a directory");
        let archive = Archive::open(directory, 1 << 20).expect("it opens");
        archive.write(&[put(1, b"x", Earlier::Kept)]).expect("there is room");
        let large = put(2, &[0; 2 << 20], Earlier::Kept);
        assert!(matches!(archive.write(&[large]), Err(ArchiveError::Full(_))));
        assert_eq!(numbers(&archive, 0, Direction::Forward), [1]);
        archive.write(&[put(2, b"y", Earlier::Kept)]).expect("what fits is still taken");
        assert_eq!(numbers(&archive, 0, Direction::Forward), [1, 2]);
    }
}
