//! The payloads that the judge remembers, so that none is executed twice.
//!
//! Owns when one is forgotten (once it has expired by itself), and how many of one author, and of
//! all for whom one operator answers, are remembered at a time: accepted and refused ones apart, so
//! that whoever may only be refused (a key that reads) never keeps its account from asking.
//! Strangers' payloads leave no trace. Kept by the state alone; read by the judge.

use std::collections::{BTreeMap, BTreeSet};

use dagger_payload::id::{AccountId, LedgerTime, OperatorId, PayloadDigest};
use dagger_payload::limits::{
    ACCEPTED_REMEMBERED_ALWAYS, ACCEPTED_REMEMBERED_PER_AUTHOR_MAX,
    ACCEPTED_REMEMBERED_TOGETHER_MAX, REFUSED_REMEMBERED_ALWAYS, REFUSED_REMEMBERED_PER_AUTHOR_MAX,
    REFUSED_REMEMBERED_TOGETHER_MAX,
};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::state_tree::{Author, Judgement};

use super::digest_map::DigestMap;

/// What is remembered.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    judgements: DigestMap<PayloadDigest, Judgement>,
    expiring: BTreeSet<(LedgerTime, PayloadDigest)>,
    by_account: DigestMap<AccountId, Share>,
    /// Operators and hosts, of which there are few.
    by_others: BTreeMap<Author, Share>,
    by_crowd: BTreeMap<Crowd, Kept>,
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

/// How many are remembered.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Kept {
    accepted: usize,
    refused: usize,
}

/// What is remembered of one author.
#[derive(Debug)]
struct Share {
    own: Kept,
    /// An operator himself is in none.
    crowd: Option<Crowd>,
}

impl Kept {
    fn of(self, refused: Option<RefusalCode>) -> usize {
        if refused.is_none() { self.accepted } else { self.refused }
    }

    fn of_mut(&mut self, refused: Option<RefusalCode>) -> &mut usize {
        if refused.is_none() { &mut self.accepted } else { &mut self.refused }
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

    /// Whether one more payload of `author`, accepted or refused, may be remembered. What has
    /// expired by `now` and is not forgotten yet will be when the payload is judged, so it is in
    /// nobody's way: only the door ever sees such.
    pub(crate) fn has_room(
        &self,
        author: &Author,
        refused: Option<RefusalCode>,
        now: LedgerTime,
    ) -> bool {
        let share = match author {
            Author::Account(account) => self.by_account.get(account),
            Author::Operator(_) | Author::Host(_) => self.by_others.get(author),
        };
        let has_room = share.is_none_or(|share| {
            let (own_max, together_max, always) = maxima(refused);
            let own = share.own.of(refused);
            let together = share.crowd.and_then(|crowd| self.by_crowd.get(&crowd));
            let together = together.map_or(0, |kept| kept.of(refused));
            own < own_max && (own < always || together < together_max)
        });
        has_room || self.expiring.first().is_some_and(|(at, _)| *at < now)
    }

    /// `crowd` says who answers for the author; it is asked for the first of his alone, and never
    /// says another thing later.
    pub(crate) fn insert(
        &mut self,
        digest: PayloadDigest,
        judgement: Judgement,
        crowd: impl FnOnce(&Author) -> Option<Crowd>,
    ) {
        self.expiring.insert((judgement.not_after, digest));
        let author = judgement.author;
        let new = || Share { own: Kept::default(), crowd: crowd(&author) };
        let share = match author {
            Author::Account(account) => self.by_account.entry(account).or_insert_with(new),
            Author::Operator(_) | Author::Host(_) => {
                self.by_others.entry(author).or_insert_with(new)
            }
        };
        *share.own.of_mut(judgement.refused) += 1;
        if let Some(crowd) = share.crowd {
            *self.by_crowd.entry(crowd).or_default().of_mut(judgement.refused) += 1;
        }
        self.judgements.insert(digest, judgement);
    }

    /// Forgets one that has expired before `now`, if there is any.
    pub(crate) fn forget_next(&mut self, now: LedgerTime) -> Option<PayloadDigest> {
        let (_, digest) = *self.expiring.first().filter(|(at, _)| *at < now)?;
        self.expiring.pop_first();
        if let Some(judgement) = self.judgements.remove(&digest) {
            self.discount(&judgement);
        }
        Some(digest)
    }

    fn discount(&mut self, judgement: &Judgement) {
        let author = &judgement.author;
        let share = match author {
            Author::Account(account) => self.by_account.get_mut(account),
            Author::Operator(_) | Author::Host(_) => self.by_others.get_mut(author),
        };
        let Some(share) = share else { return };
        *share.own.of_mut(judgement.refused) -= 1;
        let kept = share.crowd.and_then(|crowd| self.by_crowd.get_mut(&crowd));
        if let Some(kept) = kept {
            *kept.of_mut(judgement.refused) -= 1;
        }
        if share.own == Kept::default() {
            match author {
                Author::Account(account) => _ = self.by_account.remove(account),
                Author::Operator(_) | Author::Host(_) => _ = self.by_others.remove(author),
            }
        }
    }

    /// See [`DigestMap::fetch`].
    pub(crate) fn fetch(&self, digest: &PayloadDigest) -> u64 {
        self.judgements.fetch(digest)
    }

    /// The same for what is counted of an account.
    pub(crate) fn fetch_account(&self, account: &AccountId) -> u64 {
        self.by_account.fetch(account)
    }
}
