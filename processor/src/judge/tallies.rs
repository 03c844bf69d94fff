//! How many lasting things each who may make them has made: accounts that an operator opened, image
//! names that a publisher gave; and how much stands on the hosts of each operator.
//!
//! Owns these counts alone: what they may grow to is for the rules that read them. Kept in step by
//! the state.

use std::collections::BTreeMap;

use dagger_payload::id::OperatorId;
use dagger_payload::key::PublicKey;
use dagger_payload::object::{Account, Image};

/// What stands on the hosts of one operator.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Burden {
    /// VMs, volumes and snapshots.
    pub(crate) objects: usize,
    /// Of the VMs, as they are kept.
    pub(crate) vm_bytes: usize,
}

impl Burden {
    pub(crate) fn add(&mut self, objects: usize, vm_bytes: usize) {
        self.objects = self.objects.saturating_add(objects);
        self.vm_bytes = self.vm_bytes.saturating_add(vm_bytes);
    }

    pub(crate) fn remove(&mut self, objects: usize, vm_bytes: usize) {
        self.objects = self.objects.saturating_sub(objects);
        self.vm_bytes = self.vm_bytes.saturating_sub(vm_bytes);
    }
}

/// The counts.
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    burdens: BTreeMap<OperatorId, Burden>,
    accounts: BTreeMap<OperatorId, usize>,
    images: BTreeMap<[u8; 32], usize>,
    images_together: BTreeMap<OperatorId, usize>,
}

impl Tallies {
    /// Counts an account that is new.
    pub(crate) fn add_account(&mut self, account: &Account) {
        *self.accounts.entry(account.opened_by).or_default() += 1;
    }

    /// Counts an image whose name is new; if it is an account's, `opened_by` says whose.
    pub(crate) fn add_image(&mut self, image: &Image, opened_by: Option<OperatorId>) {
        *self.images.entry(*image.publisher.as_bytes()).or_default() += 1;
        if let Some(operator) = opened_by {
            *self.images_together.entry(operator).or_default() += 1;
        }
    }

    pub(crate) fn burden(&self, operator: &OperatorId) -> Burden {
        self.burdens.get(operator).copied().unwrap_or_default()
    }

    /// The same, to be changed.
    pub(crate) fn burden_mut(&mut self, operator: OperatorId) -> &mut Burden {
        self.burdens.entry(operator).or_default()
    }

    pub(crate) fn accounts_opened_by(&self, operator: &OperatorId) -> usize {
        self.accounts.get(operator).copied().unwrap_or(0)
    }

    pub(crate) fn images_of(&self, publisher: &PublicKey) -> usize {
        self.images.get(publisher.as_bytes()).copied().unwrap_or(0)
    }

    /// Of all accounts that `operator` opened.
    pub(crate) fn images_of_accounts(&self, operator: &OperatorId) -> usize {
        self.images_together.get(operator).copied().unwrap_or(0)
    }
}
