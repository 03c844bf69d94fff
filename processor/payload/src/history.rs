//! The whole history as one file, and the chains that show whether any of it was changed.
//!
//! Owns the file's layout, and what a reader has to add up to believe it. Never says which state is
//! true: a proof of [`Subject::Order`](crate::state_tree::Subject::Order) does. Written by the
//! agent, read by whoever recomputes something without asking anybody.
//!
//! Layout: [`HISTORY_MAGIC`], then each release that has content, in order: its length as four
//! bytes, highest first, and its canonical bytes.

use crate::codec::{self, CodecError};
use crate::event::CommitEnd;
use crate::id::{ClusterId, CommitIndex, HistoryHash, LedgerTime, PrefixHash};
use crate::limits::RELEASE_BYTES_MAX;
use crate::release::{CommitRelease, extend_prefix, initial_prefix};
use crate::snapshot::extend_history;
use crate::state_tree::Ordered;

/// How the file begins.
pub const HISTORY_MAGIC: [u8; 16] = *b"dagger history 1";
/// Bytes before each release.
pub const LENGTH_BYTES: usize = 4;

/// Appends a release as it stands in the file.
pub fn write(release: &CommitRelease, file: &mut Vec<u8>) {
    let bytes = codec::encode(release);
    let length = u32::try_from(bytes.len()).expect("a release was carried as one message");
    file.extend(length.to_be_bytes());
    file.extend(bytes);
}

/// How many bytes the next release has; none when no release has so many.
pub fn length(head: [u8; LENGTH_BYTES]) -> Option<usize> {
    let length = usize::try_from(u32::from_be_bytes(head)).ok()?;
    (length <= RELEASE_BYTES_MAX).then_some(length)
}

/// Why a part of a history is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// No release.
    #[error("after commit {after}: {why}")]
    Release {
        /// The last commit before it.
        after: CommitIndex,
        /// Why.
        why: CodecError,
    },
    /// A commit that was there, or one without content.
    #[error("commit {0} does not continue the history")]
    Misplaced(CommitIndex),
    /// A payload's bytes under another digest.
    #[error("commit {0} has a payload that is not the one that was judged")]
    PayloadChanged(CommitIndex),
}

/// What all releases so far add up to: two chains, of everything ordered and of everything judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chains {
    /// The last release.
    pub at: CommitIndex,
    /// Its ledger time.
    pub time: LedgerTime,
    prefix: PrefixHash,
    history: HistoryHash,
}

impl Chains {
    /// Before the first commit.
    pub fn founding(cluster: &ClusterId) -> Self {
        Self {
            at: CommitIndex(0),
            time: LedgerTime(0),
            prefix: initial_prefix(cluster),
            history: HistoryHash::ZERO,
        }
    }

    /// Reads the next release and takes it in. That nothing in it was changed is shown only once
    /// [`Chains::lead_to`] holds at it or at a later one.
    ///
    /// # Errors
    /// [`HistoryError`].
    pub fn take(&mut self, bytes: &[u8]) -> Result<CommitRelease, HistoryError> {
        let release: CommitRelease =
            codec::decode(bytes).map_err(|why| HistoryError::Release { after: self.at, why })?;
        let index = release.end.index;
        if index <= self.at || release.is_empty() {
            return Err(HistoryError::Misplaced(index));
        }
        let judged = &release.releases;
        if judged.iter().any(|judged| judged.ordered.payload.digest() != judged.digest) {
            return Err(HistoryError::PayloadChanged(index));
        }
        let payloads = judged.iter().map(|judged| &judged.ordered.payload);
        self.prefix = extend_prefix(&self.prefix, release.ledger_time, payloads);
        self.history = extend_history(&self.history, &release);
        (self.at, self.time) = (index, release.ledger_time);
        Ok(release)
    }

    /// Whether everything so far is what was ordered and judged up to `end`, whose state says
    /// `ordered` of itself.
    pub fn lead_to(&self, end: &CommitEnd, ordered: &Ordered) -> bool {
        (self.at, self.prefix) == (end.index, end.prefix_hash)
            && (self.time, self.history) == (ordered.time, ordered.history)
    }
}
