//! Accounts, each with all that is its: judging a request of one looks at most of it.
//!
//! Owns that one search finds the object, what the account has and how many of its payloads are
//! remembered, and for which account a key signs. Decides nothing. Kept in step by the state; read
//! by the rules.

use std::ops::Bound;

use dagger_payload::id::AccountId;
use dagger_payload::key::PublicKey;
use dagger_payload::object::Account;

use super::{KeyBytes, Signing};
use crate::judge::digest_map::DigestMap;
use crate::judge::estate::Estate;

/// All that is one account's.
#[derive(Debug, Default)]
struct OfAccount {
    /// None if only a snapshot that nobody attests speaks of such an account.
    object: Option<Account>,
    estate: Estate,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    /// Apart from their keys, which are searched: an account's own is long.
    by_id: DigestMap<AccountId, Box<OfAccount>>,
    keys: DigestMap<KeyBytes, Signing>,
}

impl Accounts {
    pub(crate) fn get(&self, id: &AccountId) -> Option<&Account> {
        self.by_id.get(id).and_then(|of| of.object.as_ref())
    }

    pub(crate) fn contains(&self, id: &AccountId) -> bool {
        self.get(id).is_some()
    }

    /// What an account has; nothing if it is none.
    pub(crate) fn estate(&self, id: &AccountId) -> Option<&Estate> {
        self.by_id.get(id).map(|of| &of.estate)
    }

    /// The same, to be changed.
    pub(super) fn estate_mut(&mut self, id: AccountId) -> &mut Estate {
        &mut self.by_id.entry(id).or_default().estate
    }

    /// For whom `key` signs.
    pub(super) fn signing(&self, key: &PublicKey) -> Option<Signing> {
        self.keys.get(&KeyBytes::from(key)).copied()
    }

    /// Takes in the new version of an account, and says whether it is the first one.
    pub(super) fn put(&mut self, account: Account) -> bool {
        let object = &mut self.by_id.entry(account.id).or_default().object;
        let is_first = object.is_none();
        for own in object.iter().flat_map(|old| &old.keys) {
            self.keys.remove(&KeyBytes::from(&own.key));
        }
        for own in &account.keys {
            let signing = Signing { account: account.id, role: own.role };
            self.keys.insert(KeyBytes::from(&own.key), signing);
        }
        *object = Some(account);
        is_first
    }

    /// The accounts from `from` on, by id.
    pub(super) fn iter_from<'a>(
        &'a self,
        from: Bound<&'a AccountId>,
    ) -> impl Iterator<Item = &'a Account> {
        self.by_id.iter_from(from).filter_map(|(_, of)| of.object.as_ref())
    }

    /// See [`DigestMap::fetch`].
    pub(super) fn fetch(&self, id: &AccountId) -> u64 {
        self.by_id.fetch(id)
    }

    /// The same for a key.
    pub(super) fn fetch_key(&self, key: &PublicKey) -> u64 {
        self.keys.fetch(&KeyBytes::from(key))
    }
}
