//! What must survive: ordered tables of bytes in one store, and the records in them.
//!
//! Owns the store's interface ([`Store`]), its two implementations (`lmdb`, and `memory` for
//! simulations and tests), the typed records with their checksums (`records`, `releases`,
//! `snapshots`, `frontier`, `forks`, `chain`, `pool`, `pruning`, `seats`), the thread that commits
//! groups of changes (`writer`), the search for damage (`scan`, `pages`) and the witness file
//! beside the store (`witness`). Never interprets an event. Called by driver and delivery.

pub mod chain;
pub mod forks;
pub mod frontier;
pub mod lmdb;
pub mod memory;
pub mod pages;
pub mod past;
pub mod pool;
pub mod pruning;
pub mod records;
pub mod releases;
pub mod scan;
pub mod seats;
pub mod snapshots;
pub mod witness;
pub mod writer;

use std::ops::ControlFlow;

/// The tables. Keys of the large ones grow with time, so that writes stay sequential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Single values: instance id, layout version, own last round.
    Meta,
    /// Events by (epoch, round, author, digest).
    Events,
    /// Signed headers of pruned events, under the keys that the events had.
    Headers,
    /// Commits by index.
    Commits,
    /// Position and commit of an ordered payload by its digest.
    Ordered,
    /// Judged commit ends by index.
    Judged,
    /// Sealed releases by commit.
    Releases,
    /// Own payloads that are not yet in an event, by order of arrival.
    Pool,
    /// Pairs of signed headers that prove a fork, by (author, round).
    Forks,
    /// Highest round of an author's events in an epoch, by (epoch, author).
    Highest,
    /// Certificates with which epochs began, by epoch.
    Handovers,
    /// Snapshots of the judged state, by (commit, chunk).
    Snapshots,
    /// What shows who votes in an epoch, by epoch.
    Chain,
    /// Releases that were fetched and are not shown to be true yet, by commit.
    Past,
}

impl Table {
    /// All tables.
    pub const ALL: [Self; 14] = [
        Self::Meta,
        Self::Events,
        Self::Headers,
        Self::Commits,
        Self::Ordered,
        Self::Judged,
        Self::Releases,
        Self::Pool,
        Self::Forks,
        Self::Highest,
        Self::Handovers,
        Self::Snapshots,
        Self::Chain,
        Self::Past,
    ];

    /// The table's name on disk.
    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Events => "events",
            Self::Headers => "headers",
            Self::Commits => "commits",
            Self::Ordered => "ordered",
            Self::Judged => "judged",
            Self::Releases => "releases",
            Self::Pool => "pool",
            Self::Forks => "forks",
            Self::Highest => "highest",
            Self::Handovers => "handovers",
            Self::Snapshots => "snapshots",
            Self::Chain => "chain",
            Self::Past => "past",
        }
    }
}

/// One change of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Writes a record, in place of an earlier one.
    Put {
        /// Where.
        table: Table,
        /// Under which key, 1 to 511 bytes.
        key: Vec<u8>,
        /// What.
        value: Vec<u8>,
    },
    /// Writes a record unless one is there.
    PutNew {
        /// Where.
        table: Table,
        /// Under which key, 1 to 511 bytes.
        key: Vec<u8>,
        /// What.
        value: Vec<u8>,
    },
    /// Removes a record if it is there.
    Delete {
        /// Where.
        table: Table,
        /// Under which key.
        key: Vec<u8>,
    },
}

impl Change {
    /// Roughly what the change takes on disk, in bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } | Self::PutNew { key, value, .. } => {
                key.len() + value.len() + 16
            }
            Self::Delete { key, .. } => key.len() + 16,
        }
    }
}

/// Which way a page is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Ascending keys.
    Forward,
    /// Descending keys.
    Backward,
}

/// A record as it stands in a table.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Why the store could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Unavailable: no room for more. Nothing of the commit was written; reads go on.
    #[error("the store is full: {0}")]
    Full(&'static str),
    /// Broken: a record does not match its checksum or does not decode.
    #[error("the store is damaged: record {key} of table {table} is not what was written")]
    Damaged {
        /// The table's name.
        table: &'static str,
        /// The key in hex.
        key: String,
    },
    /// Broken: a page of the store's file is not what was written.
    #[error("the store is damaged: page {page} of its file: {what}")]
    Page {
        /// Its number.
        page: u64,
        /// How that shows.
        what: &'static str,
    },
    /// Broken: the tree of a table no longer leads to all of its records.
    #[error(
        "the store is damaged: of {written} records of table {table} {found} can be found; a page \
         that leads to them is not what was written"
    )]
    Lost {
        /// The table's name.
        table: &'static str,
        /// How many were written.
        written: u64,
        /// How many are found.
        found: u64,
    },
    /// Broken: the disk or the store's files failed; what is on disk is uncertain.
    #[error("the store failed while it tried to {doing}; check the disk and its file system")]
    Failed {
        /// What was tried.
        doing: &'static str,
        /// The cause.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Refused: this process or another one has the store open.
    #[error("the store {0} is open already; does another ledger run with this state directory?")]
    OpenAlready(String),
}

/// How much more may be written, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// By which the store may still grow: on its disk, and in its map.
    pub new_bytes: u64,
    /// What was deleted leaves so much behind, in pieces.
    pub reusable_bytes: u64,
}

/// Looks at a record's key and value, and says whether to go on.
pub type Look<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Ordered tables of bytes with atomic, durable commits. All calls block and may be made from any
/// thread; commits are made by one thread at a time.
pub trait Store: Send + Sync {
    /// Applies all of `changes` or none, and returns once they survive a power cut.
    ///
    /// # Errors
    /// `Full` (nothing written, may be repeated) or `Failed` (broken).
    fn commit(&self, changes: &[Change]) -> Result<(), StoreError>;

    /// The value under `key`.
    ///
    /// # Errors
    /// `Failed`.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Whether there is a value under `key`.
    ///
    /// # Errors
    /// `Failed`.
    fn contains(&self, table: Table, key: &[u8]) -> Result<bool, StoreError> {
        Ok(self.get(table, key)?.is_some())
    }

    /// Up to `count_max` records from `from` (included) in `direction`; of forward pages `from`
    /// empty is the first record, of backward pages the last.
    ///
    /// # Errors
    /// `Failed`.
    fn page(
        &self,
        table: Table,
        from: &[u8],
        direction: Direction,
        count_max: usize,
    ) -> Result<Vec<Entry>, StoreError>;

    /// Shows `look` the records from `from` (included) on where they lie, until it wants no more:
    /// nothing is copied, so a large record costs no memory.
    ///
    /// # Errors
    /// `Failed`.
    fn visit(&self, table: Table, from: &[u8], look: &mut Look<'_>) -> Result<(), StoreError>;

    /// The first record of a table.
    ///
    /// # Errors
    /// `Failed`.
    fn first(&self, table: Table) -> Result<Option<Entry>, StoreError> {
        Ok(self.page(table, &[], Direction::Forward, 1)?.pop())
    }

    /// The last record of a table.
    ///
    /// # Errors
    /// `Failed`.
    fn last(&self, table: Table) -> Result<Option<Entry>, StoreError> {
        Ok(self.page(table, &[], Direction::Backward, 1)?.pop())
    }

    /// Up to `count_max` first keys of a table, if possible without reading their values.
    ///
    /// # Errors
    /// `Failed`.
    fn first_keys(&self, table: Table, count_max: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let page = self.page(table, &[], Direction::Forward, count_max)?;
        Ok(page.into_iter().map(|(key, _)| key).collect())
    }

    /// How much more may be written.
    ///
    /// # Errors
    /// `Failed`.
    fn room(&self) -> Result<Room, StoreError>;

    /// Bytes that the store takes on disk.
    ///
    /// # Errors
    /// `Failed`.
    fn used_bytes(&self) -> Result<u64, StoreError>;
}
