//! The payloads that the judge remembers, so that none is executed twice.
//!
//! Owns when one is forgotten (once it has expired by itself), and how many of one author are
//! remembered at a time: accepted and refused ones apart, so that whoever may only be refused (a
//! key that reads) never keeps its account from asking. Strangers' payloads leave no trace. Kept by
//! the state alone; read by the judge.

use std::collections::{BTreeMap, BTreeSet};

use dagger_payload::id::{AccountId, LedgerTime, PayloadDigest};
use dagger_payload::limits::{
    ACCEPTED_REMEMBERED_PER_AUTHOR_MAX, REFUSED_REMEMBERED_PER_AUTHOR_MAX,
};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::state_tree::{Author, Judgement};

use super::digest_map::DigestMap;

/// What is remembered.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    judgements: DigestMap<PayloadDigest, Judgement>,
    expiring: BTreeSet<(LedgerTime, PayloadDigest)>,
    by_account: DigestMap<AccountId, Kept>,
    /// Operators and hosts, of which there are few.
    by_others: BTreeMap<Author, Kept>,
}

/// How many of one author are remembered.
#[derive(Debug, Default, PartialEq, Eq)]
struct Kept {
    accepted: usize,
    refused: usize,
}

impl Kept {
    fn count_mut(&mut self, judgement: &Judgement) -> &mut usize {
        if judgement.refused.is_none() { &mut self.accepted } else { &mut self.refused }
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
        let kept = match author {
            Author::Account(account) => self.by_account.get(account),
            Author::Operator(_) | Author::Host(_) => self.by_others.get(author),
        };
        let has_room = kept.is_none_or(|kept| match refused {
            None => kept.accepted < ACCEPTED_REMEMBERED_PER_AUTHOR_MAX,
            Some(_) => kept.refused < REFUSED_REMEMBERED_PER_AUTHOR_MAX,
        });
        has_room || self.expiring.first().is_some_and(|(at, _)| *at < now)
    }

    pub(crate) fn insert(&mut self, digest: PayloadDigest, judgement: Judgement) {
        self.expiring.insert((judgement.not_after, digest));
        let kept = match judgement.author {
            Author::Account(account) => self.by_account.entry(account).or_default(),
            author @ (Author::Operator(_) | Author::Host(_)) => {
                self.by_others.entry(author).or_default()
            }
        };
        *kept.count_mut(&judgement) += 1;
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
        let kept = match author {
            Author::Account(account) => self.by_account.get_mut(account),
            Author::Operator(_) | Author::Host(_) => self.by_others.get_mut(author),
        };
        let Some(kept) = kept else { return };
        *kept.count_mut(judgement) -= 1;
        if *kept == Kept::default() {
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
