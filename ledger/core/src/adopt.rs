//! Going on from a certified commit end without the history before it.
//!
//! Owns the frontier: what the consensus needs to know of a commit, besides the events above its
//! floor, to order what follows. It is the same on every honest host. Never decides whether a
//! frontier is true: the ledger's `transfer` does, before it hands one in. Called when a host has
//! begun from another one's snapshot because nobody has the events that it would have to replay.

use std::collections::BTreeSet;

use dagger_payload::codec;
use dagger_payload::committee::Committee;
use dagger_payload::event::CommitEnd;
use dagger_payload::handover::{EpochEnd, Handover};
use dagger_payload::id::{CommitIndex, Epoch};

use crate::commit::Committer;
use crate::graph::Graph;
use crate::intake::Intake;
use crate::interface::CommitRecord;
use crate::{Core, HaltReason, Output, Record, Turn};

/// A commit and what lies just before it.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Frontier {
    /// How the epoch of the commit began; none in the first one.
    #[n(0)]
    pub handover: Option<Handover>,
    /// The commit, and before it all of its epoch whose leader's round is at or above its
    /// collection round, by index.
    #[n(1)]
    pub commits: Vec<CommitRecord>,
}

impl Frontier {
    /// The commit itself, if this is a frontier at all: its commits follow each other.
    pub fn last(&self) -> Option<&CommitRecord> {
        let mut pairs = self.commits.windows(2);
        let follow = pairs.all(|pair| {
            let (one, next) = (&pair[0], &pair[1]);
            one.index.next() == next.index
                && one.last_position.next() == next.first_position
                && (one.leader.round, one.slot) < (next.leader.round, next.slot)
                && one.ledger_time <= next.ledger_time
                && one.collection_round <= next.collection_round
        });
        let began = self.began();
        let first = self.commits.first().filter(|first| follow && first.index > began);
        first.and(self.commits.last())
    }

    /// The commit before the first one of the epoch.
    pub fn began(&self) -> CommitIndex {
        let founding = self.handover.as_ref().map(|handover| handover.founding.end.index);
        founding.unwrap_or(CommitIndex(0))
    }

    /// The epoch; `first` is the one in which the cluster was founded.
    pub fn epoch(&self, first: Epoch) -> Epoch {
        self.handover.as_ref().map_or(first, |handover| handover.epoch)
    }

    /// Who votes in it; `founders` in the first one.
    pub fn committee(&self, founders: Committee) -> Committee {
        self.handover.as_ref().map_or(founders, |handover| handover.committee)
    }

    /// The bytes on which all honest hosts agree: everything but which of the headers that attest
    /// the end of the epoch before were at hand.
    pub fn agreed_bytes(&self) -> Vec<u8> {
        let mut agreed = self.clone();
        if let Some(handover) = &mut agreed.handover {
            handover.headers.clear();
        }
        codec::encode(&agreed)
    }
}

impl Core {
    /// Goes on from `frontier`, whose commit led to `end`, with those events of the graph that lie
    /// above its floor: nobody sends them again. One that is not ahead is left alone.
    pub(crate) fn adopt(
        &mut self,
        turn: &mut Turn<'_>,
        frontier: Frontier,
        end: CommitEnd,
        epoch_end: Option<EpochEnd>,
    ) -> Result<(), HaltReason> {
        let Some(last) = frontier.last().filter(|last| last.index > self.committer.index()) else {
            return Ok(());
        };
        self.leave_behind(turn, &frontier, last);
        if let Some(handover) = frontier.handover.clone() {
            self.enter_epoch(turn, handover);
        }
        let configuration = &self.configuration;
        let committee = configuration.committee;
        let mut graph = Graph::new(committee);
        graph.restore(last.collection_round, last.floor);
        if !planted!(FrontierFatesForgotten) {
            graph.expect_fates(&frontier.commits);
        }
        for event in self.graph.events() {
            graph.insert(event.clone());
        }
        self.graph = graph;
        self.committer = Committer::new(configuration);
        self.committer.restore(last);
        self.intake = Intake::new(committee);
        self.epoch_end = None;
        self.closing.clear();
        self.judging.unjudged.clear();
        self.judging.index = end.index;
        self.judging.attestation.newest = end;
        self.gossip.tell_have_at(turn.now);
        self.recovery.ask_again_at(turn.now);
        if let Some(last) = epoch_end {
            self.ends_at(last)?;
        }
        self.commit_what_is_decided(turn)
    }

    /// Payloads of own events that `last` leaves behind return to the pool. Whatever of them was
    /// ordered before the frontier, the judge knows and refuses the second copy.
    fn leave_behind(&mut self, turn: &mut Turn<'_>, frontier: &Frontier, last: &CommitRecord) {
        let configuration = &self.configuration;
        let epoch = frontier.handover.as_ref().map(|handover| handover.epoch);
        if epoch.is_some_and(|epoch| epoch > configuration.epoch) {
            return self.give_back_all(turn);
        }
        let (collection_round, floor) = (last.collection_round, last.floor);
        let mut lost = self.graph.collect(collection_round, floor, configuration.me);
        let ordered = frontier.commits.iter().flat_map(|commit| &commit.events);
        let ordered: BTreeSet<_> = ordered.map(|event| event.digest).collect();
        lost.retain(|event| !ordered.contains(&event.digest));
        self.give_back(turn, &lost);
    }

    /// A later epoch than the present one has no trace of this host's events.
    fn enter_epoch(&mut self, turn: &mut Turn<'_>, handover: Handover) {
        if handover.epoch <= self.configuration.epoch {
            return;
        }
        let configuration = &mut self.configuration;
        configuration.epoch = handover.epoch;
        configuration.committee = handover.committee;
        configuration.founding = handover.founding;
        self.graph = Graph::new(handover.committee);
        self.recovery = self.recovery.in_next_epoch(handover.committee, configuration.me, turn.now);
        let after = self.written.following();
        self.pace.begin_epoch(handover.founding.end, after);
        let memory = self.recovery.memory();
        turn.records.push(Record::Handover { handover: handover.clone(), memory });
        turn.outputs.push(Output::EpochBegan { handover, after });
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::event::Parent;
    use dagger_payload::id::{
        AuthorIndex, Epoch, EventDigest, LedgerTime, Position, PrefixHash, Round,
    };

    use super::*;

    fn commit(index: u64, round: u64, (first, last): (u64, u64)) -> CommitRecord {
        let leader =
            Parent { author: AuthorIndex(0), round: Round(round), digest: EventDigest::ZERO };
        CommitRecord {
            index: CommitIndex(index),
            leader,
            slot: 0,
            events: vec![leader],
            forked: Vec::new(),
            first_position: Position(first),
            last_position: Position(last),
            ledger_time: LedgerTime(index),
            prefix_hash: PrefixHash([1; 32]),
            collection_round: Round(0),
            floor: Round(0),
            epoch: Epoch(0),
        }
    }

    #[test]
    fn only_commits_that_follow_each_other_are_a_frontier() {
        let frontier =
            |commits: &[CommitRecord]| Frontier { handover: None, commits: commits.to_vec() };
        let (one, two) = (commit(7, 3, (5, 6)), commit(8, 4, (7, 6)));
        assert_eq!(frontier(&[one.clone(), two.clone()]).last(), Some(&two));
        assert_eq!(frontier(&[]).last(), None);
        assert_eq!(frontier(&[commit(0, 3, (1, 0))]).last(), None, "no commit is the founding");
        for wrong in [
            commit(9, 4, (7, 6)),
            commit(8, 3, (7, 6)),
            commit(8, 4, (8, 8)),
            CommitRecord { ledger_time: LedgerTime(1), ..two.clone() },
        ] {
            assert_eq!(frontier(&[one.clone(), wrong]).last(), None);
        }
        let falls = CommitRecord { collection_round: Round(1), ..one };
        assert_eq!(frontier(&[falls, two]).last(), None);
    }
}
