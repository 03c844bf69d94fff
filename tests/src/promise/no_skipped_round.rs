//! No skipped round: above the collection round a host makes one event for every round, unless it
//! lost its memory and must leave out what it may have signed.

use std::collections::{BTreeMap, BTreeSet};

use dagger_ledger_core::interface::Memory;
use dagger_payload::id::{AuthorIndex, Round};

use super::{Observed, Promise};

/// See the module.
#[derive(Default)]
pub(super) struct NoSkippedRound {
    newest: BTreeMap<AuthorIndex, Round>,
    /// Hosts that may leave out rounds once.
    doubtful: BTreeSet<AuthorIndex>,
}

impl Promise for NoSkippedRound {
    fn name(&self) -> &'static str {
        "no_skipped_round"
    }

    fn check(&mut self, host: AuthorIndex, observed: &Observed<'_>) -> Result<(), String> {
        match observed {
            Observed::Restarted { memory, disk } => {
                if *memory == Memory::Doubtful {
                    self.doubtful.insert(host);
                }
                // What is stored was made before; it may leave only now.
                let stored = disk.own_last(host).map(|event| event.header.round);
                let newest = self.newest.entry(host).or_default();
                *newest = stored.unwrap_or_default().max(*newest);
            }
            Observed::EventLeaves { event, disk } if event.header.author == host => {
                let round = event.header.round;
                if self.newest.get(&host).is_some_and(|newest| *newest >= round) {
                    return Ok(());
                }
                self.newest.insert(host, round);
                let own = event.header.parents.iter().find(|parent| parent.author == host);
                let before = own.map_or(Round(0), |parent| parent.round);
                let collected = disk.commits.values().next_back().map(|c| c.collection_round);
                let passed = collected.is_some_and(|collected| before < collected);
                if before.next() != round && !passed && !self.doubtful.remove(&host) {
                    return Err(format!("went from round {before} to {round}"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn forgot(&mut self, host: AuthorIndex) {
        self.doubtful.insert(host);
    }
}
