//! Reading of releases: whole ones for this host, pieces of them for another ledger.
//!
//! Owns which releases share a page, and that a piece is cut out of the records where they lie: it
//! costs no more memory or time than its own bytes, however large a release is, for none is read
//! whole, decoded or written anew. Never decides who gets one. Called by delivery and by
//! `transfer`'s server.

use std::ops::{ControlFlow, Range};

use dagger_payload::id::CommitIndex;
use dagger_payload::release::SealedRelease;

use super::records::{CHECKSUM_BYTES, Records, content, index_key, open_encoded};
use super::{Direction, StoreError, Table};
use crate::limits::{PIECE_BYTES_MAX, STORE_PAGE_RELEASES, STORE_PAGE_RELEASES_BYTES};

/// A part of a whole that may be larger than one answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Cut {
    /// Bytes of the whole.
    pub total: usize,
    /// Those from the offset that was asked for, up to [`PIECE_BYTES_MAX`].
    pub bytes: Vec<u8>,
}

/// The head of a CBOR array of so many items.
fn array_head(items: usize) -> Vec<u8> {
    let mut head = Vec::new();
    let mut encoder = minicbor::Encoder::new(&mut head);
    let items = u64::try_from(items).expect("a count fits into 64 bits");
    encoder.array(items).expect("writing to memory cannot fail");
    head
}

/// The longest head of a page's array.
const HEAD_BYTES_MAX: usize = 2;

/// What is kept of a page while its records are shown one after the other.
struct Page {
    /// Of all records, without the head that tells their number.
    wanted: Range<usize>,
    found: Vec<u8>,
    bytes: usize,
    releases: usize,
}

impl Page {
    /// Whether a release of so many bytes is on the same page: one alone may be larger than it.
    fn has_room_for(&self, bytes: usize) -> bool {
        self.releases == 0
            || (self.releases < STORE_PAGE_RELEASES && self.bytes + bytes <= PIECE_BYTES_MAX)
    }

    fn add(&mut self, release: &[u8]) {
        let (start, end) = (self.bytes, self.bytes + release.len());
        let from = self.wanted.start.clamp(start, end) - start;
        let to = self.wanted.end.clamp(start, end) - start;
        self.found.extend_from_slice(&release[from..to]);
        (self.bytes, self.releases) = (end, self.releases + 1);
    }
}

impl Records {
    /// Up to `count_max` releases of the commits after `after` and up to `through`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn releases(
        &self,
        after: CommitIndex,
        through: CommitIndex,
        count_max: usize,
    ) -> Result<Vec<SealedRelease>, StoreError> {
        self.releases_in(Table::Releases, (after, through), count_max)
    }

    /// The same of any table that holds releases by commit. Reads one at a time: each may be large,
    /// and a peer may have made it so.
    pub(super) fn releases_in(
        &self,
        table: Table,
        (after, through): (CommitIndex, CommitIndex),
        count_max: usize,
    ) -> Result<Vec<SealedRelease>, StoreError> {
        let (mut from, last) = (index_key(after.next()), index_key(through));
        let (mut releases, mut bytes) = (Vec::new(), 0);
        while releases.len() < count_max && bytes < STORE_PAGE_RELEASES_BYTES {
            let next = self.store.page(table, &from, Direction::Forward, 1)?.pop();
            let Some((key, value)) = next.filter(|(key, _)| *key <= last) else {
                break;
            };
            bytes += value.len();
            releases.push(open_encoded(table, &key, value)?);
            // The first key that may follow.
            from = [&key[..], &[0]].concat();
        }
        Ok(releases)
    }

    /// The commit of the newest release that is stored; 0 for none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last_release(&self) -> Result<CommitIndex, StoreError> {
        let last = self.store.last(Table::Releases)?;
        let last: Option<SealedRelease> =
            last.map(|(key, value)| open_encoded(Table::Releases, &key, value)).transpose()?;
        Ok(last.map_or(CommitIndex(0), |sealed| sealed.release.end.index))
    }

    /// What follows `offset` in the next page of releases after `after` and up to `through`: the
    /// bytes of [`dagger_payload::snapshot::PastReleases`].
    ///
    /// The checksum of a release that is larger than a piece is not looked at, for that would cost
    /// the whole of it each time: who puts the pieces together finds a flipped byte as he finds a
    /// lie.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn past_piece(
        &self,
        (after, through): (CommitIndex, CommitIndex),
        offset: u64,
    ) -> Result<Cut, StoreError> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let wanted = offset.saturating_sub(HEAD_BYTES_MAX)..offset.saturating_add(PIECE_BYTES_MAX);
        let mut page = Page { wanted, found: Vec::new(), bytes: 0, releases: 0 };
        let (from, last) = (index_key(after.next()), index_key(through));
        let mut shown = Ok(());
        self.store.visit(Table::Releases, &from, &mut |key, value| {
            let length = value.len().saturating_sub(CHECKSUM_BYTES);
            if key > &last[..] || !page.has_room_for(length) {
                return ControlFlow::Break(());
            }
            let release = match length > PIECE_BYTES_MAX {
                true => Ok(&value[..length]),
                false => content(Table::Releases, key, value),
            };
            match release {
                Ok(release) => page.add(release),
                Err(error) => shown = Err(error),
            }
            if shown.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        shown?;
        let head = array_head(page.releases);
        let total = head.len() + page.bytes;
        // What was found begins with the head, or lies behind it by at most a head's length.
        let whole_from = page.wanted.start.min(page.bytes) + head.len();
        let found = match page.wanted.start {
            0 => [&head[..], &page.found].concat(),
            _ => page.found,
        };
        let begins = if page.wanted.start == 0 { 0 } else { whole_from };
        let skipped = offset.saturating_sub(begins).min(found.len());
        let end = skipped.saturating_add(PIECE_BYTES_MAX).min(found.len());
        Ok(Cut { total, bytes: found[skipped..end].to_vec() })
    }
}
