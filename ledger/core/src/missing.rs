//! An event that others name and that is not here.
//!
//! Owns what is known of it: who names it, whom to ask, and who must have it. Never decides whether
//! it is worth asking for. Called by `intake`.

use std::collections::{BTreeMap, BTreeSet};

use dagger_payload::event::Parent;
use dagger_payload::id::{AuthorIndex, EventDigest, Round};

use crate::Moment;

/// See the module.
#[derive(Debug)]
pub(crate) struct Missing {
    pub(crate) children: BTreeSet<EventDigest>,
    /// Whom to ask next, counted from the peer who sent the child.
    pub(crate) ask: AuthorIndex,
    pub(crate) ask_at: Moment,
    /// How often it was asked for since it was last found to be worth asking for anew.
    pub(crate) asked: u32,
    /// Who showed an event above it: an honest one has it. What is below it bears his mark, too.
    pub(crate) shown_by: BTreeSet<AuthorIndex>,
    /// For whose sake it was asked for anew after all had been asked in vain: once for each, or a
    /// liar could keep it asked for for ever.
    pub(crate) believed: BTreeSet<AuthorIndex>,
    /// Whether an event of another author names it, directly or through events of its own author.
    /// That one may have been dropped since.
    pub(crate) is_named: bool,
    /// Where it stands as the authors of its children say: all honest ones say the same.
    pub(crate) places: BTreeMap<AuthorIndex, (Round, AuthorIndex)>,
}

impl Missing {
    /// One that `from` is asked for first, now.
    pub(crate) fn of(from: AuthorIndex, now: Moment) -> Self {
        Self {
            children: BTreeSet::new(),
            ask: from,
            ask_at: now,
            asked: 0,
            shown_by: BTreeSet::new(),
            believed: BTreeSet::new(),
            is_named: false,
            places: BTreeMap::new(),
        }
    }

    /// Whether one of its children takes it for something that nobody needs any more.
    pub(crate) fn has_sunk_below(&self, floor: Round) -> bool {
        self.places.values().any(|(round, _)| *round <= floor)
    }

    /// Begins to ask anew, the peer first who is believed now, if all were asked in vain and one is
    /// left: he may have got it since.
    pub(crate) fn believe_another(&mut self, peers: u32) {
        let all_in_vain = self.asked >= peers;
        let another = self.shown_by.difference(&self.believed).next().filter(|_| all_in_vain);
        if let Some(peer) = another.copied() {
            self.believed.insert(peer);
            (self.ask, self.asked) = (peer, 0);
        }
    }

    /// All that it may be.
    pub(crate) fn as_parents(&self, digest: EventDigest) -> impl Iterator<Item = Parent> {
        let places: BTreeSet<_> = self.places.values().copied().collect();
        places.into_iter().map(move |(round, author)| Parent { author, round, digest })
    }
}
