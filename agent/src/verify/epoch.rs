//! What the voters of one epoch attest: for each, the highest commit up to which he signed the same
//! history as this agent computed.
//!
//! Owns one epoch's count. Knows neither keys nor which epoch counts now. Called by
//! [`super::quorum`].

use std::collections::BTreeMap;

use dagger_payload::event::CommitEnd;
use dagger_payload::id::{AuthorIndex, CommitIndex};
use dagger_payload::roster::EpochMembers;

use super::chain::{Chain, Comparison};

/// Whether the epoch's voters count yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// The own chain names it, and no quorum of the epoch before attests that end.
    Announced,
    /// The epoch before is attested up to its end, this one with it.
    Begun,
}

/// What one voter attested.
#[derive(Debug, Clone, Default)]
struct Voter {
    /// The highest own release up to which his history is ours.
    same: CommitIndex,
    /// The highest end of his that said the same as our chain when it was shown.
    agreed: Option<CommitEnd>,
    /// The highest end of his that cannot be compared yet.
    ahead: Option<CommitEnd>,
    /// The end by which he contradicts us, until he attests our history above it.
    other: Option<CommitEnd>,
}

/// One epoch and its voters' attestations, as far as they were shown.
#[derive(Debug, Clone)]
pub(super) struct EpochVotes {
    pub(super) members: EpochMembers,
    /// The own release that named it; 0 for the founding.
    pub(super) decided: CommitIndex,
    pub(super) standing: Standing,
    voters: BTreeMap<AuthorIndex, Voter>,
}

impl EpochVotes {
    /// An epoch that the release of `decided` named; nothing was shown of it.
    pub(super) fn new(members: EpochMembers, decided: CommitIndex, standing: Standing) -> Self {
        Self { members, decided, standing, voters: BTreeMap::new() }
    }

    /// Takes in ends that `author`, a voter, signed in this epoch.
    pub(super) fn take(&mut self, author: AuthorIndex, ends: &[CommitEnd], chain: &Chain) {
        let voter = self.voters.entry(author).or_default();
        ends.iter().for_each(|end| voter.take(end, chain));
    }

    /// Takes over that `author` contradicted us in an epoch that is over, if he votes on.
    pub(super) fn remember_contradiction(&mut self, author: AuthorIndex, end: CommitEnd) {
        if self.members.committee.contains(author) {
            let voter = self.voters.entry(author).or_default();
            let attests_above = voter.agreed.is_some_and(|agreed| agreed.index >= end.index);
            if !attests_above {
                voter.other = voter.other.or(Some(end));
            }
        }
    }

    /// Compares again what could not be compared before the chain grew.
    pub(super) fn chain_grew(&mut self, chain: &Chain) {
        for voter in self.voters.values_mut() {
            if let Some(end) = voter.ahead.take() {
                voter.take(&end, chain);
            }
        }
    }

    /// The highest commit such that a quorum attests the own history up to it or further.
    pub(super) fn attested(&self) -> CommitIndex {
        let mut same: Vec<CommitIndex> = self.voters.values().map(|voter| voter.same).collect();
        same.sort_unstable_by(|a, b| b.cmp(a));
        let quorum = self.members.committee.quorum();
        same.get(quorum - 1).copied().unwrap_or_default()
    }

    /// Whether a quorum attests that the own history up to and with the end of this epoch, where
    /// `next` begins, is theirs.
    pub(super) fn attests_beginning_of(&self, next: &EpochVotes, chain: &Chain) -> bool {
        let covers = |voter: &&Voter| {
            let Some(end) = voter.agreed.filter(|end| end.index >= next.members.begins_after)
            else {
                return false;
            };
            // Compared anew: when it was shown the release that names the next epoch may not have
            // been here yet, and an end that says that nothing happened does not stand for it.
            match chain.compare(&end) {
                Comparison::Same { up_to } => up_to >= next.decided,
                Comparison::Other | Comparison::Unknown => false,
            }
        };
        let certifying = self.voters.values().filter(covers).count();
        certifying >= self.members.committee.quorum()
    }

    /// For each voter the highest commit up to which he attests the own history.
    pub(super) fn same(&self) -> impl Iterator<Item = (AuthorIndex, CommitIndex)> + '_ {
        self.voters.iter().map(|(author, voter)| (*author, voter.same))
    }

    /// Voters who signed another history.
    pub(super) fn contradicting(&self) -> impl Iterator<Item = (AuthorIndex, CommitEnd)> + '_ {
        self.voters.iter().filter_map(|(author, voter)| Some((*author, voter.other?)))
    }

    /// Whether so many voters contradict that at least one of them is honest.
    pub(super) fn is_contradicted_by_an_honest_voter(&self) -> bool {
        self.contradicting().count() > self.members.committee.faulty_max()
    }
}

impl Voter {
    fn take(&mut self, end: &CommitEnd, chain: &Chain) {
        match chain.compare(end) {
            Comparison::Same { up_to } => {
                self.same = self.same.max(up_to);
                let higher = self.agreed.filter(|agreed| agreed.index > end.index);
                self.agreed = Some(higher.unwrap_or(*end));
                // His end says that nothing changed up to it: what is released below it later
                // contradicts him, and must not pass for what he attested.
                if end.index > chain.last() {
                    self.keep_ahead(end);
                }
                // The prefix covers everything before it: an earlier contradiction was ours or is
                // undone.
                if self.other.is_some_and(|other| other.index <= end.index) {
                    self.other = None;
                }
            }
            Comparison::Other => {
                let earlier = self.other.filter(|other| other.index >= end.index);
                self.other = Some(earlier.unwrap_or(*end));
            }
            Comparison::Unknown => self.keep_ahead(end),
        }
    }

    fn keep_ahead(&mut self, end: &CommitEnd) {
        let higher = self.ahead.filter(|ahead| ahead.index > end.index);
        self.ahead = Some(higher.unwrap_or(*end));
    }
}
