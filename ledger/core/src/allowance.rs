//! How often each peer may make this host do something that costs it more than the peer.
//!
//! Owns the counts. Never decides what is counted, nor what happens to who has spent all. Called by
//! `twins` and `gossip`.

use std::collections::BTreeMap;

use dagger_payload::id::AuthorIndex;

use crate::Moment;

/// What one peer has left.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    left: u64,
    /// Since when more has been earned.
    since: Moment,
}

/// So many at once for each peer, and then one more each time so many milliseconds have passed.
#[derive(Debug)]
pub(crate) struct Allowances {
    at_once_max: u64,
    every_ms: u64,
    of: BTreeMap<AuthorIndex, Allowance>,
}

impl Allowances {
    pub(crate) fn new(at_once_max: u64, every_ms: u64) -> Self {
        Self { at_once_max, every_ms, of: BTreeMap::new() }
    }

    /// Whether `peer` may once more now; if so, it has.
    pub(crate) fn spend(&mut self, peer: AuthorIndex, now: Moment) -> bool {
        let full = Allowance { left: self.at_once_max, since: now };
        let allowance = self.of.entry(peer).or_insert(full);
        let earned = now.0.saturating_sub(allowance.since.0) / self.every_ms;
        allowance.left = allowance.left.saturating_add(earned).min(self.at_once_max);
        allowance.since = allowance.since.plus_ms(earned * self.every_ms);
        let may = allowance.left > 0;
        allowance.left = allowance.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_spends_many_at_once_and_then_one_at_a_time() {
        let mut allowances = Allowances::new(256, 50);
        let mut spend = |peer, at| allowances.spend(AuthorIndex(peer), Moment(at));
        assert_eq!((0..512).filter(|_| spend(1, 5)).count(), 256);
        assert!(!spend(1, 5 + 49));
        assert!(spend(1, 5 + 50) && !spend(1, 5 + 50));
        assert!(spend(2, 5), "another peer pays for itself");
        assert_eq!((0..512).filter(|_| spend(1, 50_000_000)).count(), 256);
    }
}
