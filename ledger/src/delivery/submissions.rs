//! Payloads of this host's users between their receipt and their place in the order.
//!
//! Owns the bounds on unordered bytes, per account and in all, and the answer to a repeated
//! submission. What is listed here is durable in the store's pool or in an own event. Never asks
//! the processor (`requests` does). Filled by requests and at start, emptied by judging.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

use dagger_payload::id::{AccountId, PayloadDigest};
use dagger_payload::limits::{UNORDERED_BYTES_MAX, UNORDERED_BYTES_PER_ACCOUNT_MAX};
use dagger_payload::payload::SignedPayload;

struct Waiting {
    account: Option<AccountId>,
    bytes: usize,
}

#[derive(Default)]
struct State {
    waiting: HashMap<PayloadDigest, Waiting>,
    bytes: usize,
    accounts: BTreeMap<AccountId, usize>,
}

/// The unordered payloads of this host.
#[derive(Default)]
pub struct Submissions {
    state: Mutex<State>,
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// Too much of this account waits.
    OfAccount,
    /// Too much waits in all.
    InAll,
}

/// Room that was found for a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// It is new here.
    New,
    /// It waits already.
    Known,
}

impl Submissions {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Lists what the store already had; these do not count against an account, which only the
    /// processor knows.
    pub fn restore<'p>(&self, payloads: impl IntoIterator<Item = &'p SignedPayload>) {
        for payload in payloads {
            self.state().add(payload.digest(), None, payload.bytes.len());
        }
    }

    /// Whether `digest` waits here.
    pub fn contains(&self, digest: &PayloadDigest) -> bool {
        self.state().waiting.contains_key(digest)
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.state().waiting.len()
    }

    /// Takes room for a payload, before it is made durable.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn reserve(
        &self,
        digest: PayloadDigest,
        account: Option<AccountId>,
        bytes: usize,
    ) -> Result<Reserved, NoRoom> {
        let mut state = self.state();
        if state.waiting.contains_key(&digest) {
            return Ok(Reserved::Known);
        }
        let of_account = account.and_then(|account| state.accounts.get(&account));
        if of_account.copied().unwrap_or(0) + bytes > UNORDERED_BYTES_PER_ACCOUNT_MAX {
            return Err(NoRoom::OfAccount);
        }
        if state.bytes + bytes > UNORDERED_BYTES_MAX {
            return Err(NoRoom::InAll);
        }
        state.add(digest, account, bytes);
        Ok(Reserved::New)
    }

    /// Gives room back: the payload could not be made durable.
    pub fn forget(&self, digest: &PayloadDigest) {
        self.state().remove(digest);
    }

    /// Payloads were ordered and judged, and these are their places for ever.
    pub(super) fn ordered(&self, digests: impl IntoIterator<Item = PayloadDigest>) {
        let mut state = self.state();
        for digest in digests {
            state.remove(&digest);
        }
    }
}

impl State {
    fn add(&mut self, digest: PayloadDigest, account: Option<AccountId>, bytes: usize) {
        if self.waiting.insert(digest, Waiting { account, bytes }).is_none() {
            self.bytes += bytes;
            if let Some(account) = account {
                *self.accounts.entry(account).or_insert(0) += bytes;
            }
        }
    }

    fn remove(&mut self, digest: &PayloadDigest) {
        let Some(waiting) = self.waiting.remove(digest) else {
            return;
        };
        self.bytes -= waiting.bytes;
        if let Some(account) = waiting.account
            && let Some(bytes) = self.accounts.get_mut(&account)
        {
            *bytes -= waiting.bytes;
            if *bytes == 0 {
                self.accounts.remove(&account);
            }
        }
    }
}
