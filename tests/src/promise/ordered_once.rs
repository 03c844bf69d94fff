//! Ordered once: of one author's events for a round at most one is ever ordered, and no event
//! twice.

use std::collections::BTreeMap;

use dagger_payload::id::{AuthorIndex, CommitIndex, Epoch, Round};

use super::{Observed, Promise};

/// See the module.
#[derive(Default)]
pub(super) struct OrderedOnce {
    ordered: BTreeMap<(AuthorIndex, Epoch, Round), CommitIndex>,
    checked: CommitIndex,
}

impl Promise for OrderedOnce {
    fn name(&self) -> &'static str {
        "ordered_once"
    }

    fn check(&mut self, _: AuthorIndex, observed: &Observed<'_>) -> Result<(), String> {
        let Observed::Ordered { commit, disk } = observed else {
            return Ok(());
        };
        if commit.index <= self.checked {
            return Ok(());
        }
        self.checked = commit.index;
        let events = disk.commits.get(&commit.index).map(|record| record.events.as_slice());
        for place in events.unwrap_or_default() {
            let epoch = disk.places.get(&place.digest).map_or(Epoch(0), |(epoch, ..)| *epoch);
            let key = (place.author, epoch, place.round);
            if let Some(first) = self.ordered.insert(key, commit.index) {
                let (author, round, index) = (place.author, place.round, commit.index);
                return Err(format!("commits {first} and {index} both order {author}@{round}"));
            }
        }
        Ok(())
    }
}
