//! The end of an epoch, and how the next one begins.
//!
//! Owns where the present epoch ends, when a quorum attests that end, and what the next epoch
//! starts with. Never decides who votes: the judge does, from the order alone. Called after every
//! input. The rules stand in design section 7, "Epochs".
//!
//! Once the judge has named an end, rounds go on until its commit stands; no commit follows it.
//! Then every member makes closing events, which are never ordered, until a quorum attests exactly
//! that end. Those headers are the certificate of the handover.

use dagger_payload::event::{CommitEnd, Header, SignedHeader};
use dagger_payload::handover::{EpochEnd, Founding, Handover};
use dagger_payload::id::{CommitIndex, Round};

use crate::commit::Committer;
use crate::graph::Graph;
use crate::intake::Intake;
use crate::interface::HaltReason;
use crate::limits::ROUNDS_AHEAD_OF_JUDGE_MAX;
use crate::{Core, Output, Record, Turn};

impl Core {
    /// The last commit that may stand now. Commits are never further ahead of the judge than the
    /// handover distance, so that nobody passes the end of an epoch before he knows of it.
    pub(crate) fn commit_limit(&self) -> CommitIndex {
        let distance = self.configuration.handover_distance_commits;
        let distance = if planted!(CommitsPastTheEnd) { u64::MAX } else { distance };
        let ahead = CommitIndex(self.judging.index.0.saturating_add(distance));
        self.epoch_end.map_or(ahead, |end| end.last.min(ahead))
    }

    /// Whether every commit of this epoch stands.
    pub(crate) fn is_closed(&self) -> bool {
        self.epoch_end.is_some_and(|end| self.committer.index() >= end.last)
    }

    /// Whether this epoch has an end that its commits have not reached.
    pub(crate) fn is_ending(&self) -> bool {
        self.epoch_end.is_some() && !self.is_closed()
    }

    /// Whether commits wait for the judge.
    pub(crate) fn judging_lags(&self) -> bool {
        let distance = self.configuration.handover_distance_commits;
        !self.is_closed()
            && self.committer.index().0.saturating_sub(self.judging.index.0) >= distance
    }

    /// Whether an event is too far above what may be committed to be kept in memory.
    pub(crate) fn is_far_ahead_of_the_judge(&self, round: Round) -> bool {
        let far = self.committer.next_round().0.saturating_add(ROUNDS_AHEAD_OF_JUDGE_MAX);
        round.0 > far && self.judging_lags()
    }

    /// The judge says where the epoch ends; it says so again with every later commit.
    pub(crate) fn ends_at(&mut self, end: EpochEnd) -> Result<(), HaltReason> {
        let same = self.epoch_end.is_none_or(|known| known == end);
        if !same || end.last < self.committer.index() {
            let epoch = self.configuration.epoch;
            return Err(HaltReason::EndsOtherwise { epoch, index: end.last });
        }
        self.epoch_end = Some(end);
        Ok(())
    }

    /// Begins the next epoch when a quorum attests the end of this one.
    pub(crate) fn hand_over(&mut self, turn: &mut Turn<'_>) {
        let newest = self.judging.attestation.newest;
        let Some(end) = self.epoch_end.filter(|end| end.last == newest.index) else {
            return;
        };
        let headers = self.headers_attesting(&newest);
        let missing = usize::from(planted!(HandoverQuorumMinusOne));
        if headers.len() + missing < self.configuration.committee.quorum() {
            return;
        }
        let founding = Founding { end: newest, ledger_time: self.committer.ledger_time() };
        let epoch = self.configuration.epoch.next();
        self.begin(turn, Handover { epoch, committee: end.committee, founding, headers });
    }

    /// A header with its author's signature came: if it attests the end of this epoch, it counts
    /// for that, also where its event is a twin or rests on what nobody has and can never be
    /// accepted.
    pub(crate) fn note_closing(&mut self, header: &Header, signed: impl FnOnce() -> SignedHeader) {
        let newest = self.judging.attestation.newest;
        let ends = self.epoch_end.is_some_and(|end| end.last == newest.index);
        let configuration = &self.configuration;
        let fits =
            header.epoch == configuration.epoch && configuration.committee.contains(header.author);
        if ends && fits && header.attestation.newest == newest {
            self.closing.entry(header.author).or_insert_with(signed);
        }
    }

    /// One header of each author that names exactly this end.
    fn headers_attesting(&self, end: &CommitEnd) -> Vec<SignedHeader> {
        let mut headers = self.closing.clone();
        for event in self.graph.events() {
            if event.header.attestation.newest == *end {
                headers.entry(event.header.author).or_insert_with(|| event.signed_header());
            }
        }
        headers.into_values().collect()
    }

    fn begin(&mut self, turn: &mut Turn<'_>, handover: Handover) {
        // What was never ordered goes on in the next epoch.
        self.give_back_all(turn);
        let configuration = &mut self.configuration;
        configuration.epoch = handover.epoch;
        configuration.committee = handover.committee;
        configuration.founding = handover.founding;
        let committee = handover.committee;
        self.graph = Graph::new(committee);
        self.committer = Committer::new(configuration);
        self.intake = Intake::new(committee);
        self.recovery = self.recovery.in_next_epoch(committee, configuration.me, turn.now);
        self.epoch_end = None;
        self.closing.clear();
        self.judging.unjudged.clear();
        let after = self.written.following();
        self.pace.begin_epoch(handover.founding.end, after);
        self.gossip.tell_have_at(turn.now);
        let memory = self.recovery.memory();
        turn.records.push(Record::Handover { handover: handover.clone(), memory });
        turn.outputs.push(Output::EpochBegan { handover, after });
    }
}
