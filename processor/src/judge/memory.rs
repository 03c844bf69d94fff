//! The payloads that the judge remembers, so that none is executed twice.
//!
//! Owns when one is forgotten (once it has expired by itself), and how many of one author are
//! remembered at a time: accepted and refused ones apart, so that whoever may only be refused (a
//! key that reads) never keeps its account from asking. Strangers' payloads leave no trace. Kept by
//! the state alone; read by the judge.

use std::collections::{BTreeMap, BTreeSet};

use dagger_payload::id::{LedgerTime, PayloadDigest};
use dagger_payload::limits::{
    ACCEPTED_REMEMBERED_PER_AUTHOR_MAX, REFUSED_REMEMBERED_PER_AUTHOR_MAX,
};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::state_tree::{Author, Judgement};

/// What is remembered.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    judgements: BTreeMap<PayloadDigest, Judgement>,
    expiring: BTreeSet<(LedgerTime, PayloadDigest)>,
    by_author: BTreeMap<Author, Kept>,
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
    pub(crate) fn judgements(&self) -> &BTreeMap<PayloadDigest, Judgement> {
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
        let kept = self.by_author.get(author);
        let has_room = kept.is_none_or(|kept| match refused {
            None => kept.accepted < ACCEPTED_REMEMBERED_PER_AUTHOR_MAX,
            Some(_) => kept.refused < REFUSED_REMEMBERED_PER_AUTHOR_MAX,
        });
        has_room || self.expiring.first().is_some_and(|(at, _)| *at < now)
    }

    pub(crate) fn insert(&mut self, digest: PayloadDigest, judgement: Judgement) {
        self.expiring.insert((judgement.not_after, digest));
        *self.by_author.entry(judgement.author).or_default().count_mut(&judgement) += 1;
        self.judgements.insert(digest, judgement);
    }

    /// Forgets one that has expired before `now`, if there is any.
    pub(crate) fn forget_next(&mut self, now: LedgerTime) -> Option<PayloadDigest> {
        let (_, digest) = *self.expiring.first().filter(|(at, _)| *at < now)?;
        self.expiring.pop_first();
        if let Some(judgement) = self.judgements.remove(&digest)
            && let Some(kept) = self.by_author.get_mut(&judgement.author)
        {
            *kept.count_mut(&judgement) -= 1;
            if *kept == Kept::default() {
                self.by_author.remove(&judgement.author);
            }
        }
        Some(digest)
    }
}
