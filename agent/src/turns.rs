//! Turns: what many may do at the same time, each of them may do so often.
//!
//! Owns one count for each that has a turn or waits for one, and forgets it with the last. Called
//! by the model for looks at the past, by the API for its streams and doors, and by the actuator.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dagger_payload::id::AccountId;
use tokio::sync::Semaphore;

/// So many turns for each account; operators need none.
pub(crate) type AccountTurns = Turns<AccountId>;

/// So many turns for each.
#[derive(Debug)]
pub(crate) struct Turns<Of> {
    each_max: usize,
    taken: Mutex<BTreeMap<Of, Weak<Semaphore>>>,
}

impl<Of: Copy + Ord> Turns<Of> {
    /// Nobody has one yet.
    pub(crate) fn new(each_max: usize) -> Self {
        Self { each_max, taken: Mutex::default() }
    }

    /// The turns of one; they count for as long as anybody holds them or one of their permits.
    pub(crate) fn of(&self, one: Of) -> Arc<Semaphore> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|_, turns| turns.strong_count() > 0);
        taken.get(&one).and_then(Weak::upgrade).unwrap_or_else(|| {
            let turns = Arc::new(Semaphore::new(self.each_max));
            taken.insert(one, Arc::downgrade(&turns));
            turns
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_so_many_turns_and_what_it_holds_is_in_nobody_elses_way() {
        let turns = AccountTurns::new(2);
        let (one, other) = (AccountId([1; 16]), AccountId([2; 16]));
        let take = |account| turns.of(account).try_acquire_owned();
        let held = [take(one), take(one)].map(|permit| permit.expect("a turn"));
        assert!(take(one).is_err());
        assert!(take(other).is_ok());
        drop(held);
        assert!(take(one).is_ok());
    }
}
