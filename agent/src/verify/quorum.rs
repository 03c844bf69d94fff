//! What the members attest, epoch by epoch, and how one epoch's quorum vouches for the next one's.
//!
//! Owns the count of Q, and which epochs count. Seats and epochs come from the own chain's
//! releases; signatures are checked under the seats' keys. Called by [`super::reader`].

use std::collections::{BTreeMap, VecDeque};

use dagger_payload::event::CommitEnd;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{AuthorIndex, ClusterId, CommitIndex, Epoch};
use dagger_payload::object::Effect;
use dagger_payload::release::{CommitRelease, QuorumEvidence};
use dagger_payload::roster::{EpochMembers, Roster};

use super::chain::Chain;
use super::epoch::{EpochVotes, Standing};
use crate::limits::EVIDENCE_HEADERS_MAX;

/// Evidence that is worth nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WorthlessEvidence {
    /// More headers than any evidence needs.
    #[error("the evidence has more headers than two of each member")]
    TooLong,
    /// Too few of those who vote in one epoch signed it.
    #[error("the evidence has valid headers of {valid} members, and it takes {quorum}")]
    TooFew {
        /// Members with a valid header, in the epoch of which there are most.
        valid: usize,
        /// How many it takes in that epoch.
        quorum: usize,
    },
}

/// All members' attestations, as far as they were shown.
#[derive(Debug, Clone)]
pub struct Attestations {
    cluster: ClusterId,
    /// Whose signature is whose, in every epoch.
    roster: Roster,
    /// The epochs that the own chain names and that are not settled, in order without gap; never
    /// empty. The first one has begun. As many as the own chain made, which lies in memory too.
    epochs: VecDeque<EpochVotes>,
    /// For each member the highest commit up to which he attested the own history in an epoch that
    /// is settled.
    settled: BTreeMap<AuthorIndex, CommitIndex>,
    /// Up to here a quorum attests the own history. It never goes back.
    attested: CommitIndex,
}

/// What one piece of evidence has of each epoch: the ends that each author signed in it.
type Shown = BTreeMap<Epoch, BTreeMap<AuthorIndex, Vec<CommitEnd>>>;

impl Attestations {
    /// None yet; the members of `genesis` vote.
    pub fn new(cluster: ClusterId, genesis: &Genesis) -> Self {
        let founding = EpochMembers::founding(genesis);
        let first = EpochVotes::new(founding, CommitIndex(0), Standing::Begun);
        Self {
            cluster,
            roster: Roster::founding(genesis),
            epochs: VecDeque::from([first]),
            settled: BTreeMap::new(),
            attested: CommitIndex(0),
        }
    }

    /// Takes in evidence: headers that do not verify, or whose author does not vote in their epoch,
    /// are left out. What is shown of an epoch that has not begun counts once it has.
    ///
    /// # Errors
    /// [`WorthlessEvidence`] when a quorum of no epoch's voters signed it; nothing of it counts
    /// then.
    pub fn add(
        &mut self,
        evidence: &QuorumEvidence,
        chain: &Chain,
    ) -> Result<(), WorthlessEvidence> {
        if evidence.headers.len() > EVIDENCE_HEADERS_MAX {
            return Err(WorthlessEvidence::TooLong);
        }
        let mut counts = Counts::Nothing { valid: 0, quorum: self.present().committee.quorum() };
        for (epoch, authors) in self.valid(evidence) {
            let Some(votes) = self.epochs.iter_mut().find(|votes| votes.members.epoch == epoch)
            else {
                // Settled: there is nothing to learn from it, and nothing wrong with it.
                counts = Counts::Something;
                continue;
            };
            let quorum = votes.members.committee.quorum();
            if authors.len() < quorum {
                counts = counts.or(Counts::Nothing { valid: authors.len(), quorum });
                continue;
            }
            counts = Counts::Something;
            authors.into_iter().for_each(|(author, ends)| votes.take(author, &ends, chain));
        }
        self.follow(chain);
        match counts {
            Counts::Something => Ok(()),
            Counts::Nothing { valid, quorum } => Err(WorthlessEvidence::TooFew { valid, quorum }),
        }
    }

    /// The headers that verify, of authors who vote in their epoch or did so in a settled one.
    fn valid(&self, evidence: &QuorumEvidence) -> Shown {
        let mut shown = Shown::new();
        for signed in &evidence.headers {
            let Ok((header, _)) = signed.verify(|author| self.roster.key(author)) else {
                continue;
            };
            let of_epoch = self.epochs.iter().find(|votes| votes.members.epoch == header.epoch);
            let votes = match of_epoch {
                Some(votes) => votes.members.committee.contains(header.author),
                None => header.epoch < self.oldest().epoch,
            };
            if votes && header.cluster == self.cluster {
                let authors = shown.entry(header.epoch).or_default();
                let ends = authors.entry(header.author).or_default();
                ends.push(header.attestation.newest);
                ends.extend(header.attestation.checkpoint);
            }
        }
        shown
    }

    /// The chain grew by `release`: takes in who sits where and who votes next, and compares again
    /// what could not be compared before.
    pub fn chain_grew(&mut self, release: &CommitRelease, chain: &Chain) {
        for effect in release.effects() {
            if let Effect::Seat(seat) = effect {
                // The processor, whose seal is on the release, places seats in their order.
                let _ = self.roster.put(seat);
            }
            if let Effect::Epoch(members) = effect {
                self.announce(**members, release.end.index);
            }
        }
        self.epochs.iter_mut().for_each(|votes| votes.chain_grew(chain));
        self.follow(chain);
    }

    /// An epoch that does not follow the last one leads nowhere, and counts for nothing.
    fn announce(&mut self, members: EpochMembers, decided: CommitIndex) {
        let last = self.epochs.back().expect("never empty").members;
        if members.epoch == last.epoch.next() && members.begins_after >= decided {
            self.epochs.push_back(EpochVotes::new(members, decided, Standing::Announced));
        }
    }

    /// Passes from epoch to epoch as far as quorums vouch for it, counts, and puts aside what is
    /// settled.
    fn follow(&mut self, chain: &Chain) {
        for next in 1..self.epochs.len() {
            let begins = self.epochs[next].standing == Standing::Begun
                || self.epochs[next - 1].attests_beginning_of(&self.epochs[next], chain);
            if !begins {
                break;
            }
            self.epochs[next].standing = Standing::Begun;
        }
        let counted = self.counted().map(|(votes, end)| votes.attested().min(end));
        self.attested = counted.fold(self.attested, CommitIndex::max);
        while self.settles_first(chain) {
            let first = self.epochs.pop_front().expect("never empty");
            let end = self.oldest().begins_after;
            for (author, same) in first.same() {
                let highest = self.settled.entry(author).or_default();
                *highest = same.min(end).max(*highest);
            }
            let next = self.epochs.front_mut().expect("the one that follows");
            first.contradicting().for_each(|(who, end)| next.remember_contradiction(who, end));
        }
    }

    /// Whether the first epoch is over, the chain has passed its end, and nobody honest objects:
    /// then nothing that its voters sign is news.
    fn settles_first(&self, chain: &Chain) -> bool {
        let (Some(first), Some(next)) = (self.epochs.front(), self.epochs.get(1)) else {
            return false;
        };
        next.standing == Standing::Begun
            && chain.last() >= next.members.begins_after
            && !first.is_contradicted_by_an_honest_voter()
    }

    /// The epochs whose voters count, each with its last commit.
    fn counted(&self) -> impl Iterator<Item = (&EpochVotes, CommitIndex)> {
        let ends = self.epochs.iter().skip(1).map(|next| next.members.begins_after);
        let ends = ends.chain(std::iter::once(CommitIndex(u64::MAX)));
        let begun = |(votes, _): &(&EpochVotes, _)| votes.standing == Standing::Begun;
        self.epochs.iter().zip(ends).take_while(begun)
    }

    fn oldest(&self) -> &EpochMembers {
        &self.epochs.front().expect("never empty").members
    }

    /// The newest epoch that a quorum of the one before vouches for.
    pub fn present(&self) -> &EpochMembers {
        self.counted().last().map_or(self.oldest(), |(votes, _)| &votes.members)
    }

    /// The highest commit such that a quorum attests the own history up to it or further.
    pub fn attested(&self) -> CommitIndex {
        self.attested
    }

    /// For each member the highest commit up to which he attests the own history, in whichever
    /// epoch he did.
    pub fn same(&self) -> BTreeMap<AuthorIndex, CommitIndex> {
        let mut all = self.settled.clone();
        for (votes, end) in self.counted() {
            for (author, same) in votes.same() {
                let highest = all.entry(author).or_default();
                *highest = same.min(end).max(*highest);
            }
        }
        all
    }

    /// Members who signed another history, with the commit.
    pub fn contradicting(&self) -> Vec<(AuthorIndex, CommitIndex)> {
        let mut others = BTreeMap::new();
        for (votes, _) in self.counted() {
            others.extend(votes.contradicting().map(|(author, end)| (author, end.index)));
        }
        others.into_iter().collect()
    }

    /// Whether so many members of one epoch contradict that at least one of them is honest.
    pub fn is_contradicted_by_an_honest_member(&self) -> bool {
        self.counted().any(|(votes, _)| votes.is_contradicted_by_an_honest_voter())
    }

    /// Who sits where, as far as the own chain goes.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }
}

/// What a piece of evidence is worth so far.
#[derive(Debug, Clone, Copy)]
enum Counts {
    Nothing { valid: usize, quorum: usize },
    Something,
}

impl Counts {
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Something, _) | (_, Self::Something) => Self::Something,
            (Self::Nothing { valid, .. }, Self::Nothing { valid: more, .. }) if more > valid => {
                other
            }
            (Self::Nothing { .. }, Self::Nothing { .. }) => self,
        }
    }
}
