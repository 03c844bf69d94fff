//! What each account has: its VMs by name, what it uses on the hosts of each operator, and how many
//! of its payloads are remembered.
//!
//! Owns these sums and names, all of one account in one place, since judging a request looks at
//! most of them. Kept in step by the state alone; read by the rules.

use std::collections::BTreeSet;

use dagger_payload::id::{OperatorId, VmId};

use super::memory::Remembered;
use super::state::Usage;
use crate::verify::NameWord;

/// What one account has.
#[derive(Debug, Default)]
pub(crate) struct Estate {
    /// Its VMs, each after a word of its name's digest: comparing words reads no other memory, as
    /// comparing texts would.
    vms: BTreeSet<(NameWord, VmId)>,
    /// How many of them have no host, and count against no grant.
    pub(crate) homeless: usize,
    /// How many volumes and snapshots of volumes it has.
    pub(crate) on_disk: usize,
    /// How many of its payloads are remembered.
    pub(crate) remembered: Remembered,
    /// On the hosts of each operator on whose hosts it ever had anything.
    used: Vec<(OperatorId, Usage)>,
}

impl Estate {
    pub(crate) fn add_vm(&mut self, name: NameWord, vm: VmId) {
        self.vms.insert((name, vm));
    }

    /// All its VMs at once, where it had none.
    pub(crate) fn load_vms(&mut self, vms: Vec<(NameWord, VmId)>) {
        self.vms = vms.into_iter().collect();
    }

    pub(crate) fn remove_vm(&mut self, name: NameWord, vm: VmId) {
        self.vms.remove(&(name, vm));
    }

    /// The VMs whose names have this word: hardly ever more than one.
    pub(crate) fn vms_named(&self, word: NameWord) -> impl Iterator<Item = VmId> {
        let from = self.vms.range((word, VmId::ZERO)..);
        from.take_while(move |(other, _)| *other == word).map(|(_, vm)| *vm)
    }

    /// All its VMs.
    pub(crate) fn vms(&self) -> impl Iterator<Item = VmId> {
        self.vms.iter().map(|(_, vm)| *vm)
    }

    /// How many VMs it has.
    pub(crate) fn vms_count(&self) -> usize {
        self.vms.len()
    }

    /// How many VMs, volumes and snapshots it has.
    pub(crate) fn objects(&self) -> usize {
        self.vms.len().saturating_add(self.on_disk)
    }

    /// Reads what is asked for when it gets a VM, so that it is near then.
    pub(crate) fn fetch(&self) -> u64 {
        let ends = [self.vms.first(), self.vms.last()];
        let names = ends.into_iter().flatten().fold(0, |sum, (NameWord(word), _)| sum ^ word);
        self.used.iter().fold(names, |sum, (_, usage)| sum ^ u64::from(usage.vms))
    }

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
