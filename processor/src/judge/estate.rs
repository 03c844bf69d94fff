//! What each account has: its VMs by name, and what it uses on the hosts of each operator.
//!
//! Owns these sums and names, all of one account in one place, since judging a request looks at
//! most of them. Kept in step by the state alone; read by the rules.

use std::collections::BTreeMap;

use dagger_payload::id::{OperatorId, VmId};
use dagger_payload::name::Name;

use super::state::Usage;

/// What one account has.
#[derive(Debug, Default)]
pub(crate) struct Estate {
    pub(crate) vms: BTreeMap<Name, VmId>,
    /// How many of them have no host, and count against no grant.
    pub(crate) homeless: usize,
    /// On the hosts of each operator on whose hosts it ever had anything.
    used: Vec<(OperatorId, Usage)>,
}

impl Estate {
    /// What it uses on the hosts of `operator`.
    pub(crate) fn used_by(&self, operator: &OperatorId) -> Usage {
        let found = self.used.iter().find(|(other, _)| other == operator);
        found.map_or_else(Usage::default, |(_, usage)| *usage)
    }

    /// The same, to be changed.
    pub(crate) fn used_by_mut(&mut self, operator: OperatorId) -> &mut Usage {
        let found = self.used.iter().position(|(other, _)| *other == operator);
        let at = found.unwrap_or_else(|| {
            self.used.push((operator, Usage::default()));
            self.used.len() - 1
        });
        &mut self.used[at].1
    }
}
