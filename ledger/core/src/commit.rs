//! The commit rule: which leaders are committed, and in which order their histories follow.
//!
//! Owns direct and indirect decisions, linearisation, the collection round and ledger time; all are
//! functions of the graph alone. Never looks at time or arrival order. Called after every accepted
//! event. Source: the Mysticeti family of uncertified DAGs (Babel et al., 2023), with three leader
//! slots a round; the argument stands in `../decisions.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dagger_payload::committee::Committee;
use dagger_payload::event::{Event, Parent, order_key};
use dagger_payload::handover::Founding;
use dagger_payload::id::{
    AuthorIndex, CommitIndex, Epoch, EventDigest, LedgerTime, Position, PrefixHash, Round,
};
use dagger_payload::release::{OrderedCommit, OrderedPayload, extend_prefix_by};

use crate::graph::{Fate, Graph};
use crate::interface::{CommitRecord, CoreConfiguration, HaltReason};
use crate::pace::packed_bytes;

/// Rounds from a leader to the events that certify it, and one more: the first round that can
/// anchor it.
const WAVE_ROUNDS: u64 = 3;

/// A place for a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot {
    round: Round,
    index: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Commit(EventDigest),
    Skip,
    Undecided,
}

/// Everything that follows from the committed prefix.
#[derive(Debug)]
pub(crate) struct Committer {
    committee: Committee,
    epoch: Epoch,
    collection_depth_rounds: u64,
    commit_bytes_max: usize,
    next_slot: Slot,
    index: CommitIndex,
    position: Position,
    prefix_hash: PrefixHash,
    ledger_time: LedgerTime,
}

/// A new commit, in both of its forms.
#[derive(Debug)]
pub(crate) struct NewCommit {
    pub(crate) record: CommitRecord,
    pub(crate) commit: OrderedCommit,
}

impl Committer {
    /// Before the first commit of the configuration's epoch.
    pub(crate) fn new(configuration: &CoreConfiguration) -> Self {
        let Founding { end, ledger_time } = &configuration.founding;
        Self {
            committee: configuration.committee,
            epoch: configuration.epoch,
            collection_depth_rounds: configuration.collection_depth_rounds,
            commit_bytes_max: configuration.commit_bytes_max,
            next_slot: Slot { round: Round(1), index: 0 },
            index: end.index,
            position: end.position,
            prefix_hash: end.prefix_hash,
            ledger_time: *ledger_time,
        }
    }

    /// Continues after the last stored commit.
    pub(crate) fn restore(&mut self, last: &CommitRecord) {
        self.next_slot = Slot { round: last.leader.round, index: usize::from(last.slot) };
        self.next_slot = self.after(self.next_slot);
        self.index = last.index;
        self.position = last.last_position;
        self.prefix_hash = last.prefix_hash;
        self.ledger_time = last.ledger_time;
    }

    pub(crate) fn index(&self) -> CommitIndex {
        self.index
    }

    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// The round of the next leader.
    pub(crate) fn next_round(&self) -> Round {
        self.next_slot.round
    }

    pub(crate) fn ledger_time(&self) -> LedgerTime {
        self.ledger_time
    }

    fn after(&self, slot: Slot) -> Slot {
        if slot.index + 1 < self.committee.leader_slots() {
            Slot { round: slot.round, index: slot.index + 1 }
        } else {
            Slot { round: slot.round.next(), index: 0 }
        }
    }

    fn leader(&self, slot: Slot) -> AuthorIndex {
        self.committee.leader(self.epoch, slot.round, slot.index)
    }

    /// The next commit, if the graph decides one now. Called again until it returns none.
    ///
    /// # Errors
    /// [`HaltReason::TwoCertifiedLeaders`].
    pub(crate) fn next_commit(
        &mut self,
        graph: &mut Graph,
    ) -> Result<Option<NewCommit>, HaltReason> {
        let decisions = self.decide(graph)?;
        let mut slot = self.next_slot;
        while let Some(decision) = decisions.get(&slot) {
            match decision {
                Decision::Undecided => break,
                Decision::Skip => slot = self.after(slot),
                Decision::Commit(leader) => {
                    self.next_slot = self.after(slot);
                    return Ok(Some(self.commit(graph, slot, *leader)));
                }
            }
        }
        self.next_slot = slot;
        Ok(None)
    }

    /// Decides every slot from the highest round down to the first one that is not yet emitted.
    fn decide(&self, graph: &Graph) -> Result<BTreeMap<Slot, Decision>, HaltReason> {
        let mut decisions = BTreeMap::new();
        let highest = graph.highest_round();
        // A slot of the last two rounds cannot be certified yet; one of the last round not even
        // blamed.
        let mut round = Round(highest.0.saturating_sub(1));
        while round >= self.next_slot.round && round.0 > 0 {
            for index in (0..self.committee.leader_slots()).rev() {
                let slot = Slot { round, index };
                if slot < self.next_slot {
                    break;
                }
                let decision = match self.decide_directly(graph, slot)? {
                    Decision::Undecided => self.decide_by_anchor(graph, slot, &decisions),
                    decided => decided,
                };
                decisions.insert(slot, decision);
            }
            round = Round(round.0 - 1);
        }
        Ok(decisions)
    }

    fn decide_directly(&self, graph: &Graph, slot: Slot) -> Result<Decision, HaltReason> {
        let leader = self.leader(slot);
        let quorum = self.committee.quorum();
        let mut certified = None;
        for voted in &self.voted(graph, slot) {
            let certifying: Vec<AuthorIndex> = graph
                .in_round(Round(slot.round.0 + 2))
                .filter(|(_, event)| self.certifies(graph, event, voted))
                .map(|(author, _)| author)
                .collect();
            let certifiers: BTreeSet<AuthorIndex> = certifying.iter().copied().collect();
            let twice = planted!(AuthorCountedTwice);
            let count = if twice { certifying.len() } else { certifiers.len() };
            if count + usize::from(planted!(QuorumMinusOne)) < quorum {
                continue;
            }
            if certified.replace(voted.digest).is_some() {
                let reason = HaltReason::TwoCertifiedLeaders { author: leader, round: slot.round };
                return Err(reason);
            }
        }
        if let Some(digest) = certified {
            return Ok(Decision::Commit(digest));
        }
        let fewer = usize::from(planted!(SkipQuorumMinusOne));
        let blames = if planted!(AuthorCountedTwice) {
            blaming(graph, slot.round, leader).count()
        } else {
            blamers(graph, slot.round, leader).len()
        };
        let skipped = blames + fewer >= quorum;
        Ok(if skipped { Decision::Skip } else { Decision::Undecided })
    }

    /// Events of a slot for which a quorum votes, without which nothing certifies them. However
    /// many twins liars make in it, these are few: no honest member votes for two.
    fn voted(&self, graph: &Graph, slot: Slot) -> Vec<Parent> {
        let leader = self.leader(slot);
        let mut voters: BTreeMap<EventDigest, BTreeSet<AuthorIndex>> = BTreeMap::new();
        for (author, vote) in graph.in_round(slot.round.next()) {
            let parents = vote.header.parents.iter();
            let of_slot = parents.filter(|at| (at.round, at.author) == (slot.round, leader));
            for parent in of_slot {
                voters.entry(parent.digest).or_default().insert(author);
            }
        }
        let quorum = self.committee.quorum();
        let events = graph.at(slot.round, leader).iter();
        let voted = events.filter(|digest| voters.get(digest).is_some_and(|by| by.len() >= quorum));
        voted.map(|digest| place(slot.round, leader, digest)).collect()
    }

    /// Whether `event`, two rounds above `leader`, has a quorum of votes for it among its parents.
    fn certifies(&self, graph: &Graph, event: &Event, leader: &Parent) -> bool {
        let votes = event.header.parents.iter().filter(|parent| {
            parent.round == leader.round.next()
                && graph.get(&parent.digest).is_some_and(|vote| votes_for(vote, leader))
        });
        votes.count() >= self.committee.quorum()
    }

    fn decide_by_anchor(
        &self,
        graph: &Graph,
        slot: Slot,
        decisions: &BTreeMap<Slot, Decision>,
    ) -> Decision {
        let first = Slot { round: Round(slot.round.0 + WAVE_ROUNDS), index: 0 };
        let anchor = decisions.range(first..).find(|(_, decision)| {
            let passes = planted!(DecidePastUndecidedAnchor) && **decision == Decision::Undecided;
            **decision != Decision::Skip && !passes
        });
        let Some((_, Decision::Commit(anchor))) = anchor else {
            return Decision::Undecided;
        };
        let certifying_round = Round(slot.round.0 + 2);
        let history = graph.history([*anchor], certifying_round);
        let certified = self.voted(graph, slot).into_iter().find(|voted| {
            graph.in_round(certifying_round).any(|(_, event)| {
                history.contains(&event.digest) && self.certifies(graph, event, voted)
            })
        });
        certified.map_or(Decision::Skip, |leader| Decision::Commit(leader.digest))
    }

    fn commit(&mut self, graph: &mut Graph, slot: Slot, leader: EventDigest) -> NewCommit {
        let leader = graph.get(&leader).expect("a committed leader is accepted").clone();
        let (events, forked) = linearise(graph, &leader, self.commit_bytes_max);
        let before = if planted!(LedgerTimeGoesBack) { LedgerTime(0) } else { self.ledger_time };
        self.ledger_time = before.max(time_of(graph, &leader));
        let payloads: Vec<OrderedPayload> = events
            .iter()
            .flat_map(|event| {
                let author = event.header.author;
                let payloads = event.payloads.iter().cloned();
                payloads.map(move |payload| OrderedPayload { author, payload })
            })
            .collect();
        let count = u64::try_from(payloads.len()).expect("a count fits into 64 bits");
        let first_position = self.position.next();
        self.index = self.index.next();
        self.position = Position(self.position.0 + count);
        let leaves = events.iter().flat_map(|event| event.leaves.iter().copied());
        self.prefix_hash = extend_prefix_by(&self.prefix_hash, self.ledger_time, leaves);
        let depth = self.collection_depth_rounds;
        let local = planted!(CollectionRoundFromLocalView);
        let from = if local { graph.highest_round() } else { leader.header.round };
        let collection_round = Round(from.0.saturating_sub(depth)).max(graph.collection_round());
        let record = CommitRecord {
            index: self.index,
            leader: leader.as_parent(),
            slot: u16::try_from(slot.index).expect("at most three slots"),
            events: events.iter().map(|event| event.as_parent()).collect(),
            forked: forked.iter().map(|event| event.as_parent()).collect(),
            first_position,
            last_position: self.position,
            ledger_time: self.ledger_time,
            prefix_hash: self.prefix_hash,
            collection_round,
            floor: Round(collection_round.0.saturating_sub(depth)),
            epoch: self.epoch,
        };
        let commit = ordered_commit(&record, payloads, &record.events);
        NewCommit { commit, record }
    }
}

/// The commit as the judge sees it.
pub(crate) fn ordered_commit(
    record: &CommitRecord,
    payloads: Vec<OrderedPayload>,
    events: &[Parent],
) -> OrderedCommit {
    let mut authors = BTreeMap::new();
    for event in events {
        let highest = authors.entry(event.author).or_insert(event.round);
        *highest = event.round.max(*highest);
    }
    OrderedCommit {
        index: record.index,
        ledger_time: record.ledger_time,
        leader_round: record.leader.round,
        authors: authors.into_iter().collect(),
        payloads,
        first_position: record.first_position,
        prefix_hash: record.prefix_hash,
    }
}

fn place(round: Round, author: AuthorIndex, digest: &EventDigest) -> Parent {
    Parent { author, round, digest: *digest }
}

/// A vote names the leader with its true author and round: a false name is none, also where nobody
/// could check it.
fn votes_for(vote: &Event, leader: &Parent) -> bool {
    vote.header.parents.contains(leader)
}

/// Authors of the round after `round` with an event that has no parent by `leader` in `round`.
pub(crate) fn blamers(graph: &Graph, round: Round, leader: AuthorIndex) -> BTreeSet<AuthorIndex> {
    blaming(graph, round, leader).collect()
}

/// The author of each event that blames: of twins twice.
fn blaming(graph: &Graph, round: Round, leader: AuthorIndex) -> impl Iterator<Item = AuthorIndex> {
    let names = move |event: &Event| {
        event.header.parents.iter().any(|parent| parent.author == leader && parent.round == round)
    };
    let blaming = graph.in_round(round.next()).filter(move |(_, event)| !names(event));
    blaming.map(|(author, _)| author)
}

/// Authors of the round after `round` with an event that votes for `leader`.
pub(crate) fn voters(graph: &Graph, leader: &Parent) -> BTreeSet<AuthorIndex> {
    let voting = graph.in_round(leader.round.next()).filter(|(_, event)| votes_for(event, leader));
    voting.map(|(author, _)| author).collect()
}

/// The leader's open history in order, as far as one commit may be large, and those of it that lose
/// to a twin. Both have their fate afterwards; the rest stays open for the leaders that follow.
/// Nothing is ordered before its causes: they have lower rounds.
fn linearise(
    graph: &mut Graph,
    leader: &Event,
    bytes_max: usize,
) -> (Vec<Arc<Event>>, Vec<Arc<Event>>) {
    let mut history = graph.open_history(leader.digest);
    history
        .sort_by_cached_key(|event| (event.header.round, order_key(&leader.digest, &event.digest)));
    if planted!(TiesByWhatArrived) {
        history.sort_by_key(|e| (e.header.round, graph.highest_of(e.header.author)));
    }
    let (mut ordered, mut forked) = (Vec::with_capacity(history.len()), Vec::new());
    let mut bytes = 0_usize;
    for event in history {
        let of_this = packed_bytes(&event.payloads);
        // One event always fits, so that every commit of a crowded graph gets on.
        if bytes > 0 && bytes + of_this > bytes_max {
            break;
        }
        if graph.has_ordered_twin(&event) && !planted!(TwinsOrdered) {
            graph.set_fate(&event.digest, Fate::Forked);
            forked.push(event);
        } else {
            graph.set_fate(&event.digest, Fate::Ordered);
            bytes += of_this;
            ordered.push(event);
        }
    }
    (ordered, forked)
}

/// The lower median of the timestamps of the leader's parents of the round before; 0 in round 1.
fn time_of(graph: &Graph, leader: &Event) -> LedgerTime {
    let below = Round(leader.header.round.0 - 1);
    let times = leader.header.parents.iter().filter(|parent| parent.round == below);
    let times = times.filter_map(|parent| graph.get(&parent.digest));
    lower_median(times.map(|event| event.header.timestamp).collect())
}

/// The lower median; 0 of none.
pub(crate) fn lower_median(mut times: Vec<LedgerTime>) -> LedgerTime {
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use dagger_payload::event::{Attestation, CommitEnd, EVENT_VERSION, Header};
    use dagger_payload::id::{ClusterId, MerkleRoot, StateRoot};
    use dagger_payload::key::Signature;
    use dagger_payload::payload::{SignatureKind, SignedPayload};

    use super::*;

    const END: CommitEnd = CommitEnd {
        index: CommitIndex(0),
        position: Position(0),
        prefix_hash: PrefixHash::ZERO,
        state_root: StateRoot::ZERO,
    };

    /// Twins differ in their time.
    fn event(author: AuthorIndex, parents: &[Parent], time: u64) -> Arc<Event> {
        carrying(Vec::new(), author, parents, time)
    }

    fn carrying(
        payloads: Vec<SignedPayload>,
        author: AuthorIndex,
        parents: &[Parent],
        time: u64,
    ) -> Arc<Event> {
        let below = parents.iter().map(|parent| parent.round.0).max().unwrap_or(0);
        let header = Header {
            version: EVENT_VERSION,
            cluster: ClusterId([3; 32]),
            epoch: Epoch(0),
            round: Round(below + 1),
            author,
            parents: parents.to_vec(),
            payload_root: MerkleRoot::ZERO,
            payload_count: 0,
            timestamp: LedgerTime(time),
            attestation: Attestation { newest: END, checkpoint: None },
        };
        Arc::new(Event::make(header, payloads, |_| Signature([1; 64])))
    }

    fn committer(committee: Committee) -> Committer {
        Committer::new(&CoreConfiguration {
            cluster: ClusterId([3; 32]),
            epoch: Epoch(0),
            committee,
            me: AuthorIndex(0),
            collection_depth_rounds: 20,
            handover_distance_commits: 10,
            commit_bytes_max: 1_000,
            founding: Founding { end: END, ledger_time: LedgerTime(0) },
        })
    }

    /// Four members, of whom one blames the first leader of round 1, and another one does so twice.
    fn decision_on_a_leader_blamed_by_two() -> Decision {
        let committee = Committee::new(4).expect("four may vote");
        let committer = committer(committee);
        let slot = Slot { round: Round(1), index: 0 };
        let leader = committer.leader(slot);
        let mut graph = Graph::new(committee);
        let first: Vec<_> = committee.authors().map(|author| event(author, &[], 1)).collect();
        first.iter().for_each(|event| graph.insert(event.clone()));
        let against: Vec<_> = first.iter().map(|event| event.as_parent()).collect();
        let against: Vec<_> = against.into_iter().filter(|at| at.author != leader).collect();
        let honest = event(against[0].author, &against, 2);
        let twins = [2, 3].map(|time| event(against[1].author, &against, time));
        for event in [honest].into_iter().chain(twins) {
            graph.insert(event);
        }
        committer.decide_directly(&graph, slot).expect("nobody is certified")
    }

    #[test]
    fn of_many_twins_only_those_are_looked_at_that_a_quorum_votes_for() {
        let committee = Committee::new(4).expect("four may vote");
        let committer = committer(committee);
        let slot = Slot { round: Round(1), index: 0 };
        let leader = committer.leader(slot);
        let mut graph = Graph::new(committee);
        let first: Vec<_> = committee.authors().map(|author| event(author, &[], 1)).collect();
        let twins: Vec<_> = (2..200).map(|time| event(leader, &[], time)).collect();
        first.iter().chain(&twins).for_each(|event| graph.insert(event.clone()));
        let others = first.iter().map(|event| event.as_parent()).filter(|at| at.author != leader);
        let others: Vec<_> = others.collect();
        let vote = |author, leader: &Event| {
            let named: Vec<_> = others.iter().copied().chain([leader.as_parent()]).collect();
            event(author, &named, 3)
        };
        // One liar votes for all twins, the others for one of them: the third does not count.
        for twin in &twins {
            graph.insert(vote(leader, twin));
        }
        graph.insert(vote(others[0].author, &twins[7]));
        assert_eq!(committer.voted(&graph, slot), []);
        graph.insert(vote(others[1].author, &twins[7]));
        assert_eq!(committer.voted(&graph, slot), [twins[7].as_parent()]);
    }

    #[test]
    fn what_is_too_much_for_one_commit_comes_with_the_next_one_and_after_its_causes() {
        let committee = Committee::new(4).expect("four may vote");
        let mut graph = Graph::new(committee);
        let payload = |length: usize| SignedPayload {
            signature_kind: SignatureKind::SshEd25519,
            signature: Signature([2; 64]),
            bytes: vec![7; length].into(),
        };
        let lengths = [300, 5_000, 300, 0];
        let first: Vec<_> = committee
            .authors()
            .zip(lengths)
            .map(|(author, length)| carrying(vec![payload(length)], author, &[], 1))
            .collect();
        first.iter().for_each(|event| graph.insert(event.clone()));
        let parents: Vec<_> = first.iter().map(|event| event.as_parent()).collect();
        let leader = carrying(vec![payload(1)], parents[0].author, &parents, 2);
        graph.insert(leader.clone());
        let mut ordered = Vec::new();
        let mut commits = 0;
        while graph.fate(&leader.digest) == Some(Fate::Open) {
            let (events, forked) = linearise(&mut graph, &leader, 1_000);
            let sizes: Vec<_> = events.iter().map(|event| packed_bytes(&event.payloads)).collect();
            assert!(sizes.iter().sum::<usize>() <= 1_000 || sizes.len() == 1, "{sizes:?}");
            assert!(!events.is_empty() && forked.is_empty());
            ordered.extend(events);
            commits += 1;
        }
        assert!((2..=3).contains(&commits), "{commits}");
        assert_eq!(ordered.len(), 5);
        assert_eq!(ordered[4].digest, leader.digest, "its causes come first");
    }

    #[test]
    fn twins_of_one_author_are_one_blame() {
        assert_eq!(decision_on_a_leader_blamed_by_two(), Decision::Undecided);
        #[cfg(feature = "planted-bugs")]
        {
            crate::planted::plant(Some(crate::planted::Bug::AuthorCountedTwice));
            let wrong = decision_on_a_leader_blamed_by_two();
            crate::planted::plant(None);
            assert_eq!(wrong, Decision::Skip, "it holds with the wrong rule, too");
        }
    }
}
