//! How many VMs are looked at, with one commit, to find hosts for other VMs.
//!
//! Owns these counts, for each account and for all accounts that one operator opened, and that a
//! search which would look at more is refused before it looks at any. They are a part of neither
//! state nor root: each commit begins with none, and so does each prediction, which is therefore
//! never refused for them. Made by the judge, handed to placement.

use std::cell::RefCell;
use std::collections::BTreeMap;

use dagger_payload::id::AccountId;
use dagger_payload::limits::{COMMIT_LOOKS_PER_ACCOUNT_MAX, COMMIT_LOOKS_TOGETHER_MAX};
use dagger_payload::refusal::{Refusal, RefusalCode};

use super::memory::Crowd;
use super::refuse;
use super::state::State;

/// With so many looks no further search begins; the last one may go beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LooksMax {
    /// For one account.
    pub account: usize,
    /// For all accounts that one operator opened.
    pub together: usize,
}

impl Default for LooksMax {
    fn default() -> Self {
        Self { account: COMMIT_LOOKS_PER_ACCOUNT_MAX, together: COMMIT_LOOKS_TOGETHER_MAX }
    }
}

/// The counts. A rule changes nothing, so that searches count behind its back.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    max: LooksMax,
    made: RefCell<Made>,
}

#[derive(Debug, Default)]
struct Made {
    accounts: BTreeMap<AccountId, usize>,
    crowds: BTreeMap<Crowd, usize>,
}

impl Looks {
    pub(crate) fn new(max: LooksMax) -> Self {
        Self { max, made: RefCell::default() }
    }

    /// Whether nothing more is looked at for an account.
    pub(crate) fn are_spent(&self, state: &State, account: &AccountId) -> bool {
        let made = self.made.borrow();
        let own = made.accounts.get(account).copied().unwrap_or(0);
        let together = crowd(state, account).and_then(|crowd| made.crowds.get(&crowd).copied());
        own >= self.max.account || together.unwrap_or(0) >= self.max.together
    }

    /// # Errors
    /// `commit_full`.
    pub(crate) fn require(&self, state: &State, account: &AccountId) -> Result<(), Refusal> {
        if !self.are_spent(state, account) {
            return Ok(());
        }
        let detail = "so many VMs were looked at with this commit, to keep yours or those of your \
                      operator's other accounts apart; nothing of this payload counts";
        refuse(RefusalCode::CommitFull, detail)
    }

    /// Counts the VMs that one search looks at.
    pub(crate) fn add(&self, state: &State, account: AccountId, vms: usize) {
        let made = &mut *self.made.borrow_mut();
        *made.accounts.entry(account).or_default() += vms;
        if let Some(crowd) = crowd(state, &account) {
            *made.crowds.entry(crowd).or_default() += vms;
        }
    }
}

fn crowd(state: &State, account: &AccountId) -> Option<Crowd> {
    state.accounts.get(account).map(|account| Crowd::Accounts(account.opened_by))
}
