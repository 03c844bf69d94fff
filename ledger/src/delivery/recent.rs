//! The newest releases, in memory, in the form in which streams send them.
//!
//! Owns them within bounds: a stream that keeps up never reads from the store what was just written
//! there. Filled by judging, in order; read by the streams.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use dagger_bus::ledger::StreamItem;
use dagger_payload::id::CommitIndex;
use dagger_payload::key::PublicKey;
use dagger_payload::release::SealedRelease;

use crate::limits::{RELEASES_IN_MEMORY, RELEASES_IN_MEMORY_BYTES};

/// A release with the commit that it follows from.
pub(super) type Sent = (CommitIndex, Arc<StreamItem>);

#[derive(Default)]
struct State {
    releases: VecDeque<(Sent, usize)>,
    bytes: usize,
    /// Of the commits after this one all releases of this life are here.
    life: Option<(PublicKey, CommitIndex)>,
}

/// The newest releases of the processor's present life.
#[derive(Default)]
pub struct RecentReleases {
    state: Mutex<State>,
}

fn bytes_of(sealed: &SealedRelease) -> usize {
    let releases = sealed.release.releases.iter();
    releases.map(|release| release.ordered.payload.bytes.len() + 256).sum()
}

/// A release as a stream sends it.
pub(super) fn sent(sealed: SealedRelease) -> Sent {
    let commit = sealed.release.end.index;
    (commit, Arc::new(StreamItem::Release { sealed: Box::new(sealed) }))
}

/// A release of an earlier life, as a stream sends it.
pub(super) fn past(sealed: SealedRelease) -> Sent {
    let commit = sealed.release.end.index;
    (commit, Arc::new(StreamItem::Past { release: Box::new(sealed.release) }))
}

impl RecentReleases {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// A life of the processor goes on after this commit.
    pub(super) fn begin(&self, seal_key: PublicKey, after: CommitIndex) {
        let life = Some((seal_key, after));
        *self.state() = State { releases: VecDeque::new(), bytes: 0, life };
    }

    /// The next release with content.
    pub(super) fn push(&self, sealed: SealedRelease) {
        let bytes = bytes_of(&sealed);
        let mut state = self.state();
        state.bytes += bytes;
        state.releases.push_back((sent(sealed), bytes));
        while state.releases.len() > RELEASES_IN_MEMORY || state.bytes > RELEASES_IN_MEMORY_BYTES {
            let Some(((commit, _), bytes)) = state.releases.pop_front() else {
                break;
            };
            state.bytes -= bytes;
            if let Some((_, after)) = &mut state.life {
                *after = commit;
            }
        }
    }

    /// Up to `count_max` releases of commits after `after` and up to `through`; none when they are
    /// not all here.
    pub(super) fn get(
        &self,
        seal_key: &PublicKey,
        after: CommitIndex,
        through: CommitIndex,
        count_max: usize,
    ) -> Option<Vec<Sent>> {
        let state = self.state();
        let whole = |(life, first): &(PublicKey, CommitIndex)| life == seal_key && *first <= after;
        if !state.life.as_ref().is_some_and(whole) {
            return None;
        }
        let start = state.releases.partition_point(|((commit, _), _)| *commit <= after);
        let from = state.releases.range(start..).map(|(sent, _)| sent.clone());
        Some(from.take_while(|(commit, _)| *commit <= through).take(count_max).collect())
    }
}
