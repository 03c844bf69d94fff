//! How many lasting things each who may make them has made: accounts that an operator opened, image
//! names that a publisher gave.
//!
//! Owns these counts alone: what they may grow to is for the rules that read them. Kept in step by
//! the state.

use std::collections::BTreeMap;

use dagger_payload::id::OperatorId;
use dagger_payload::key::PublicKey;
use dagger_payload::object::{Account, Image};

/// The counts.
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    accounts: BTreeMap<OperatorId, usize>,
    images: BTreeMap<[u8; 32], usize>,
}

impl Tallies {
    /// Counts an account that is new.
    pub(crate) fn add_account(&mut self, account: &Account) {
        *self.accounts.entry(account.opened_by).or_default() += 1;
    }

    /// Counts an image whose name is new.
    pub(crate) fn add_image(&mut self, image: &Image) {
        *self.images.entry(*image.publisher.as_bytes()).or_default() += 1;
    }

    pub(crate) fn accounts_opened_by(&self, operator: &OperatorId) -> usize {
        self.accounts.get(operator).copied().unwrap_or(0)
    }

    pub(crate) fn images_of(&self, publisher: &PublicKey) -> usize {
        self.images.get(publisher.as_bytes()).copied().unwrap_or(0)
    }
}
