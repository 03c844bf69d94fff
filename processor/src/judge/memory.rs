//! The payloads that the judge remembers, so that none is executed twice.
//!
//! Owns when one is forgotten (once it has expired by itself), and how many of one author, and of
//! all for whom one operator answers, may be remembered at a time: accepted and refused ones apart,
//! so that whoever may only be refused (a key that reads) never keeps its account from asking.
//! Strangers' payloads leave no trace. Kept by the state alone, which counts for each author; read
//! by the judge.

use std::collections::{BTreeMap, BTreeSet};

use dagger_payload::id::{LedgerTime, OperatorId, PayloadDigest};
use dagger_payload::kind::KeyRole;
use dagger_payload::limits::{
    ACCEPTED_REMEMBERED_ALWAYS, ACCEPTED_REMEMBERED_PER_AUTHOR_MAX,
    ACCEPTED_REMEMBERED_TOGETHER_MAX, REFUSED_REMEMBERED_ALWAYS, REFUSED_REMEMBERED_PER_AUTHOR_MAX,
    REFUSED_REMEMBERED_TOGETHER_MAX,
};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::state_tree::{Author, Judgement};

use super::digest_map::DigestMap;
use super::state::Signing;

/// What is remembered.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    judgements: DigestMap<PayloadDigest, Judgement>,
    expiring: Expiring,
    /// Of operators and hosts, of which there are few; of an account its estate says it.
    pub(crate) of_members: BTreeMap<Author, Remembered>,
    pub(crate) of_crowds: BTreeMap<Crowd, Remembered>,
}

/// Authors for whom one operator answers. What they have together has a maximum, else he could open
/// accounts, or bring hosts, until every host's memory is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Crowd {
    /// The accounts that he opened.
    Accounts(OperatorId),
    /// His hosts: apart, so that no account keeps them from reporting.
    Hosts(OperatorId),
}

/// When what expires: together what does so in about a second, in no order until then.
#[derive(Debug, Default)]
struct Expiring {
    later: BTreeMap<u64, Vec<(LedgerTime, PayloadDigest)>>,
    /// What expires before anything in `later`, and some of what comes next.
    soon: BTreeSet<(LedgerTime, PayloadDigest)>,
    /// The last second that was moved to `soon`.
    moved: Option<u64>,
}

/// How many payloads of one author, or of a crowd, are remembered.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    accepted: usize,
    refused: usize,
}

impl Remembered {
    /// Whether one more of an author, accepted or refused, may be; `together` is what his crowd
    /// has, if he is in one.
    pub(crate) fn has_room<'m>(
        &self,
        refused: Option<RefusalCode>,
        share: Share,
        together: impl FnOnce() -> Option<&'m Self>,
    ) -> bool {
        let (own_max, together_max, always) = maxima(refused);
        let (own_max, always) = (share.of(own_max), share.of(always));
        let own = self.of(refused);
        let has_share = || together().is_none_or(|all| all.of(refused) < together_max);
        own < own_max && (own < always || has_share())
    }

    fn of(&self, refused: Option<RefusalCode>) -> usize {
        if refused.is_none() { self.accepted } else { self.refused }
    }

    /// Of those that became what `judgement` says.
    pub(crate) fn count_mut(&mut self, judgement: &Judgement) -> &mut usize {
        if judgement.refused.is_none() { &mut self.accepted } else { &mut self.refused }
    }
}

/// Which part of what may be remembered of an author a key may fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    All,
    /// All but a quarter, which is left for the owners of an account: else a key that was stolen,
    /// whatever it may do, could keep them from removing it.
    WithoutOwners,
}

impl Share {
    fn of(self, whole: usize) -> usize {
        match self {
            Self::All => whole,
            Self::WithoutOwners => whole - whole / 4,
        }
    }
}

impl From<Option<Signing>> for Share {
    fn from(signing: Option<Signing>) -> Self {
        match signing.map(|signing| signing.role) {
            None | Some(KeyRole::Owner) => Self::All,
            Some(KeyRole::Operate | KeyRole::Read) => Self::WithoutOwners,
        }
    }
}

/// How many accepted or refused ones there may be: of one author, of a crowd, and of one author
/// however many the crowd has.
fn maxima(refused: Option<RefusalCode>) -> (usize, usize, usize) {
    match refused {
        None => (
            ACCEPTED_REMEMBERED_PER_AUTHOR_MAX,
            ACCEPTED_REMEMBERED_TOGETHER_MAX,
            ACCEPTED_REMEMBERED_ALWAYS,
        ),
        Some(_) => (
            REFUSED_REMEMBERED_PER_AUTHOR_MAX,
            REFUSED_REMEMBERED_TOGETHER_MAX,
            REFUSED_REMEMBERED_ALWAYS,
        ),
    }
}

impl Memory {
    pub(crate) fn get(&self, digest: &PayloadDigest) -> Option<&Judgement> {
        self.judgements.get(digest)
    }

    /// By digest.
    pub(crate) fn judgements(&self) -> &DigestMap<PayloadDigest, Judgement> {
        &self.judgements
    }

    /// Whether something has expired before `now` and is not forgotten yet.
    pub(crate) fn has_expired(&self, now: LedgerTime) -> bool {
        self.expiring.has(now)
    }

    pub(crate) fn insert(&mut self, digest: PayloadDigest, judgement: Judgement) {
        self.expiring.insert(judgement.not_after, digest);
        self.judgements.insert(digest, judgement);
    }

    /// Forgets one that has expired before `now`, if there is any.
    pub(crate) fn forget_next(&mut self, now: LedgerTime) -> Option<(PayloadDigest, Judgement)> {
        let digest = self.expiring.next(now)?;
        let judgement = self.judgements.remove(&digest);
        Some((digest, judgement.expect("what expires is remembered")))
    }

    /// See [`DigestMap::fetch`].
    pub(crate) fn fetch(&self, digest: &PayloadDigest) -> u64 {
        self.judgements.fetch(digest)
    }
}

/// Of ledger time, in units of 1,024 ms.
fn second(at: LedgerTime) -> u64 {
    at.0 >> 10
}

impl Expiring {
    fn insert(&mut self, at: LedgerTime, digest: PayloadDigest) {
        if self.moved.is_some_and(|moved| second(at) <= moved) {
            self.soon.insert((at, digest));
        } else {
            self.later.entry(second(at)).or_default().push((at, digest));
        }
    }

    /// Whether anything expires before `now`.
    fn has(&self, now: LedgerTime) -> bool {
        let soon = self.soon.first().is_some_and(|(at, _)| *at < now);
        let mut later = self.later.range(..=second(now)).flat_map(|(_, some)| some);
        soon || later.any(|(at, _)| *at < now)
    }

    /// Takes out what expires next, if it does so before `now`.
    fn next(&mut self, now: LedgerTime) -> Option<PayloadDigest> {
        while self.soon.is_empty()
            && let Some(next) = self.later.first_entry().filter(|next| *next.key() <= second(now))
        {
            self.moved = Some(*next.key());
            self.soon = next.remove().into_iter().collect();
        }
        self.soon.first().filter(|(at, _)| *at < now)?;
        self.soon.pop_first().map(|(_, digest)| digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_expires_comes_out_once_it_has_and_what_expires_first_comes_first() {
        let (mut expiring, mut model) = (Expiring::default(), BTreeSet::new());
        let mut random: u32 = 7;
        for step in 0..20_000_u32 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Time goes on by leaps, and some of what comes has passed already.
            let now = LedgerTime(u64::from(step / 100 * 700));
            let at = LedgerTime((now.0 + u64::from((random >> 16) % 9000)).saturating_sub(500));
            let digest = PayloadDigest([random.to_le_bytes()[3]; 32]);
            if model.insert((at, digest)) {
                expiring.insert(at, digest);
            }
            assert_eq!(expiring.has(now), model.first().is_some_and(|(at, _)| *at < now));
            while (random >> 8).is_multiple_of(3)
                && let Some(next) = expiring.next(now)
            {
                let first = model.pop_first().filter(|(at, _)| *at < now);
                assert_eq!(first.map(|(_, digest)| digest), Some(next));
            }
        }
        assert!(model.len() < 2000, "most have expired");
    }
}
