//! No skipped round: above the collection round a host makes one event for every round, unless it
//! lost its memory and must leave out what it may have signed, also at the beginning of a later
//! epoch.

use std::collections::{BTreeMap, BTreeSet};

use dagger_ledger_core::interface::Memory;
use dagger_payload::id::{AuthorIndex, Epoch, Round};

use super::{Observed, Promise};

/// See the module.
#[derive(Default)]
pub(super) struct NoSkippedRound {
    newest: BTreeMap<AuthorIndex, (Epoch, Round)>,
    /// Hosts that may leave out rounds once.
    doubtful: BTreeSet<AuthorIndex>,
    /// Hosts that ever were: where an epoch may have ended meanwhile, they ask once more in the
    /// next.
    ever_doubtful: BTreeSet<AuthorIndex>,
}

impl Promise for NoSkippedRound {
    fn name(&self) -> &'static str {
        "no_skipped_round"
    }

    fn check(&mut self, host: AuthorIndex, observed: &Observed<'_>) -> Result<(), String> {
        match observed {
            Observed::Restarted { memory, disk } => {
                if *memory == Memory::Doubtful {
                    self.forgot(host);
                }
                // What is stored was made before; it may leave only now.
                let stored =
                    disk.own_last(host).map(|event| (event.header.epoch, event.header.round));
                let newest = self.newest.entry(host).or_default();
                *newest = stored.unwrap_or_default().max(*newest);
            }
            Observed::EventLeaves { event, disk } if event.header.author == host => {
                let (epoch, round) = (event.header.epoch, event.header.round);
                if self.newest.get(&host).is_some_and(|newest| *newest >= (epoch, round)) {
                    return Ok(());
                }
                self.newest.insert(host, (epoch, round));
                let own = event.header.parents.iter().find(|parent| parent.author == host);
                let before = own.map_or(Round(0), |parent| parent.round);
                let passed = before < disk.collection_round(epoch);
                let begins = before == Round(0) && self.ever_doubtful.contains(&host);
                if before.next() != round && !passed && !begins && !self.doubtful.remove(&host) {
                    return Err(format!("went from round {before} to {round}"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn forgot(&mut self, host: AuthorIndex) {
        self.doubtful.insert(host);
        self.ever_doubtful.insert(host);
    }
}
