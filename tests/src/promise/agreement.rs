//! Agreement: all honest hosts hand on the same commits, and each continues the chain that it had.

use std::collections::BTreeMap;

use dagger_payload::id::{AuthorIndex, CommitIndex, LedgerTime, Position, PrefixHash};
use dagger_payload::release::{OrderedCommit, extend_prefix, initial_prefix};

use super::{Observed, Promise, Setting};

struct ChainEnd {
    index: CommitIndex,
    position: Position,
    prefix_hash: PrefixHash,
    ledger_time: LedgerTime,
}

/// See the module.
pub(super) struct Agreement {
    reference: BTreeMap<CommitIndex, OrderedCommit>,
    end: ChainEnd,
}

impl Agreement {
    pub(super) fn new(setting: &Setting) -> Self {
        let end = ChainEnd {
            index: CommitIndex(0),
            position: Position(0),
            prefix_hash: initial_prefix(&setting.cluster),
            ledger_time: LedgerTime(0),
        };
        Self { reference: BTreeMap::new(), end }
    }

    /// A commit that no host had before: it must continue the chain, by the rules that a reader
    /// would apply.
    fn extend(&mut self, commit: &OrderedCommit) -> Result<(), String> {
        let payloads = commit.payloads.iter().map(|ordered| &ordered.payload);
        let prefix = extend_prefix(&self.end.prefix_hash, commit.ledger_time, payloads);
        let continues = commit.index == self.end.index.next()
            && commit.first_position == self.end.position.next()
            && commit.ledger_time >= self.end.ledger_time
            && commit.prefix_hash == prefix;
        if !continues {
            let index = commit.index;
            return Err(format!("commit {index} does not continue the chain"));
        }
        self.end = ChainEnd {
            index: commit.index,
            position: commit.last_position(),
            prefix_hash: prefix,
            ledger_time: commit.ledger_time,
        };
        self.reference.insert(commit.index, commit.clone());
        Ok(())
    }
}

impl Promise for Agreement {
    fn name(&self) -> &'static str {
        "agreement"
    }

    fn check(&mut self, _: AuthorIndex, observed: &Observed<'_>) -> Result<(), String> {
        let Observed::Ordered { commit, .. } = observed else {
            return Ok(());
        };
        match self.reference.get(&commit.index) {
            None => self.extend(commit),
            Some(reference) if reference == *commit => Ok(()),
            Some(reference) => Err(format!(
                "commit {}: leader round {} and {} payloads here, leader round {} and {} there",
                commit.index,
                commit.leader_round,
                commit.payloads.len(),
                reference.leader_round,
                reference.payloads.len()
            )),
        }
    }
}
