//! What the members attest: for each, the highest commit up to which he signed the same history as
//! this agent computed.
//!
//! Owns the count of Q. Signatures are checked under the members' keys from the genesis. Called by
//! [`super::reader`].

use std::collections::BTreeMap;

use dagger_payload::committee::Committee;
use dagger_payload::event::CommitEnd;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{AuthorIndex, ClusterId, CommitIndex};
use dagger_payload::release::QuorumEvidence;

use super::chain::{Chain, Comparison};
use crate::limits::EVIDENCE_HEADERS_MAX;

/// What one member attested.
#[derive(Debug, Clone, Default)]
struct Member {
    /// The highest own release up to which his history is ours.
    same: CommitIndex,
    /// The highest end of his that cannot be compared yet.
    ahead: Option<CommitEnd>,
    /// The end by which he contradicts us, until he attests our history above it.
    other: Option<CommitEnd>,
}

/// Evidence that is worth nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WorthlessEvidence {
    /// More headers than any evidence needs.
    #[error("the evidence has more headers than two of each member")]
    TooLong,
    /// Too few members signed it.
    #[error("the evidence has valid headers of {valid} members, and it takes {quorum}")]
    TooFew {
        /// Members with a valid header.
        valid: usize,
        /// How many it takes.
        quorum: usize,
    },
}

/// All members' attestations, as far as they were shown.
#[derive(Debug, Clone)]
pub struct Attestations {
    cluster: ClusterId,
    genesis: Genesis,
    committee: Committee,
    members: BTreeMap<AuthorIndex, Member>,
}

impl Attestations {
    /// None yet, of the members of `genesis`.
    pub fn new(cluster: ClusterId, genesis: Genesis) -> Self {
        let committee = genesis.committee();
        Self { cluster, genesis, committee, members: BTreeMap::new() }
    }

    /// Takes in evidence: headers that do not verify are left out.
    ///
    /// # Errors
    /// [`WorthlessEvidence`] when fewer than a quorum of members signed it; nothing of it counts
    /// then.
    pub fn add(
        &mut self,
        evidence: &QuorumEvidence,
        chain: &Chain,
    ) -> Result<(), WorthlessEvidence> {
        if evidence.headers.len() > EVIDENCE_HEADERS_MAX {
            return Err(WorthlessEvidence::TooLong);
        }
        let key_of = |author| self.genesis.host(author).map(|host| &host.ledger_key);
        let mut valid: BTreeMap<AuthorIndex, Vec<CommitEnd>> = BTreeMap::new();
        for signed in &evidence.headers {
            let Ok((header, _)) = signed.verify(key_of) else {
                continue;
            };
            // Members are those of the genesis: an epoch with others has other keys.
            if header.cluster == self.cluster && header.epoch.0 == 0 {
                let ends = valid.entry(header.author).or_default();
                ends.push(header.attestation.newest);
                ends.extend(header.attestation.checkpoint);
            }
        }
        let quorum = self.committee.quorum();
        if valid.len() < quorum {
            let valid = valid.len();
            return Err(WorthlessEvidence::TooFew { valid, quorum });
        }
        for (author, ends) in valid {
            let member = self.members.entry(author).or_default();
            ends.iter().for_each(|end| member.take(end, chain));
        }
        Ok(())
    }

    /// Compares again what could not be compared before the chain grew.
    pub fn chain_grew(&mut self, chain: &Chain) {
        for member in self.members.values_mut() {
            if let Some(end) = member.ahead.take() {
                member.take(&end, chain);
            }
        }
    }

    /// The highest commit such that a quorum attests the own history up to it or further.
    pub fn attested(&self) -> CommitIndex {
        let mut same: Vec<CommitIndex> = self.members.values().map(|member| member.same).collect();
        same.sort_unstable_by(|a, b| b.cmp(a));
        let quorum = self.committee.quorum();
        same.get(quorum - 1).copied().unwrap_or_default()
    }

    /// Members who attest the own history up to `commit` or further.
    pub fn attesters(&self, commit: CommitIndex) -> impl Iterator<Item = AuthorIndex> + '_ {
        self.members
            .iter()
            .filter(move |(_, member)| member.same >= commit && commit.0 > 0)
            .map(|(author, _)| *author)
    }

    /// For each member the highest commit up to which he attests the own history.
    pub fn same(&self) -> BTreeMap<AuthorIndex, CommitIndex> {
        let same = self.members.iter().map(|(author, member)| (*author, member.same));
        same.collect()
    }

    /// Members who signed another history, with the commit.
    pub fn contradicting(&self) -> Vec<(AuthorIndex, CommitIndex)> {
        let others = self.members.iter();
        others.filter_map(|(author, member)| Some((*author, member.other?.index))).collect()
    }

    /// Whether so many members contradict that at least one of them is honest.
    pub fn is_contradicted_by_an_honest_member(&self) -> bool {
        self.contradicting().len() > self.committee.faulty_max()
    }
}

impl Member {
    fn take(&mut self, end: &CommitEnd, chain: &Chain) {
        match chain.compare(end) {
            Comparison::Same { up_to } => {
                self.same = self.same.max(up_to);
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
