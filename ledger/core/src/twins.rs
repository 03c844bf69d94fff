//! Second events of one author and round, and when one of them is taken in.
//!
//! Owns the twins that nobody needs yet, and how many a peer may make this host take in within a
//! time. Never keeps evidence and never decides who lies. Called by `intake`.
//!
//! A twin is taken in only as an ancestor of another author's event: a liar who names his own twins
//! makes nobody store them. Honest members name at most one branch of a liar each, so they bring in
//! few. A liar who names another liar's twins can bring in as many as he likes, but only so fast.

use std::collections::BTreeMap;
use std::sync::Arc;

use dagger_payload::event::Event;
use dagger_payload::id::{AuthorIndex, EventDigest, Round};

use crate::Moment;
use crate::allowance::Allowances;
use crate::limits::{
    TWIN_EVERY_MS, TWINS_AT_ONCE_MAX, TWINS_BYTES_PER_AUTHOR_MAX, TWINS_PER_AUTHOR_MAX,
};

/// Twins that nobody needs yet, and budgets.
#[derive(Debug)]
pub(crate) struct Twins {
    kept: BTreeMap<EventDigest, (AuthorIndex, Arc<Event>)>,
    allowances: Allowances,
}

impl Default for Twins {
    fn default() -> Self {
        let allowances = Allowances::new(TWINS_AT_ONCE_MAX, TWIN_EVERY_MS);
        Self { kept: BTreeMap::new(), allowances }
    }
}

impl Twins {
    /// Keeps a twin, and who sent it, until somebody names it. There is little room for each
    /// author; what finds none is asked for when it is named.
    pub(crate) fn keep(&mut self, from: AuthorIndex, event: Arc<Event>) {
        let author = event.header.author;
        let kept = self.kept.values().map(|(_, twin)| twin);
        let sizes = kept.filter(|twin| twin.header.author == author).map(|twin| twin.bytes.len());
        let (count, bytes) = sizes.fold((0, 0), |(count, sum), bytes| (count + 1, sum + bytes));
        let room =
            count < TWINS_PER_AUTHOR_MAX && bytes + event.bytes.len() <= TWINS_BYTES_PER_AUTHOR_MAX;
        if room {
            self.kept.insert(event.digest, (from, event));
        }
    }

    /// How many of one author are kept, at most.
    pub(crate) fn most_of_one(&self) -> usize {
        let mut of: BTreeMap<AuthorIndex, usize> = BTreeMap::new();
        for (_, twin) in self.kept.values() {
            *of.entry(twin.header.author).or_default() += 1;
        }
        of.values().copied().max().unwrap_or_default()
    }

    pub(crate) fn contains(&self, digest: &EventDigest) -> bool {
        self.kept.contains_key(digest)
    }

    /// Gives a twin back, and who sent it.
    pub(crate) fn take(&mut self, digest: &EventDigest) -> Option<(AuthorIndex, Arc<Event>)> {
        self.kept.remove(digest)
    }

    /// Forgets what nobody needs any more.
    pub(crate) fn collect(&mut self, floor: Round) {
        self.kept.retain(|_, (_, event)| event.header.round > floor);
    }

    /// Whether `peer` may bring in one more twin now; if so, it has.
    pub(crate) fn spend(&mut self, peer: AuthorIndex, now: Moment) -> bool {
        self.allowances.spend(peer, now)
    }
}
