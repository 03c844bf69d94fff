//! What the members attest, compared with what this host has judged itself.
//!
//! Owns the newest attestation of each member that names a commit end of this host's own judged
//! chain, and the evidence that follows from a quorum of them. An attestation counts only if index,
//! position, prefix hash and state root all match; those ahead of the own judge wait, within a
//! bound. Signatures were verified when the events came in. Fed by driver and judging; read by the
//! release streams and for proofs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use dagger_payload::attested::named_after;
use dagger_payload::codec;
use dagger_payload::committee::Committee;
use dagger_payload::event::{CommitEnd, Event, Header, SignedHeader};
use dagger_payload::handover::Handover;
use dagger_payload::id::{AuthorIndex, CommitIndex, Epoch};
use dagger_payload::release::QuorumEvidence;
use tokio::sync::watch;

use crate::driver::start::FIRST_EPOCH;
use crate::limits::{ATTESTATIONS_WAITING_MAX, JUDGED_ENDS_IN_MEMORY};
use crate::store::StoreError;
use crate::store::records::Records;

/// A commit that a quorum attests, and by which headers.
#[derive(Debug, Clone)]
pub struct Attested {
    /// The highest such commit.
    pub commit: CommitIndex,
    /// The headers of exactly a quorum of authors.
    pub evidence: QuorumEvidence,
}

#[derive(Default)]
struct Author {
    matched: Option<(CommitIndex, SignedHeader)>,
    waiting: VecDeque<(CommitEnd, SignedHeader)>,
    differed: bool,
}

struct State {
    epoch: Epoch,
    /// Members of the present epoch.
    committee: Committee,
    authors: BTreeMap<AuthorIndex, Author>,
    /// This host has judged up to here, in this life or an earlier one.
    through: CommitIndex,
    /// Where the judged history begins here: what is attested before it cannot be compared.
    began: CommitIndex,
    /// Newest commit ends that changed anything, by index.
    ends: BTreeMap<CommitIndex, CommitEnd>,
}

/// The attestations.
pub struct Evidence {
    records: Records,
    state: Mutex<State>,
    attested: watch::Sender<Option<Arc<Attested>>>,
}

fn same_state(one: &CommitEnd, other: &CommitEnd) -> bool {
    let state = |end: &CommitEnd| (end.position, end.prefix_hash, end.state_root);
    state(one) == state(other)
}

impl Evidence {
    /// Starts from what the store knows to have been judged.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn new(records: Records, committee: Committee) -> Result<Self, StoreError> {
        let last = records.last_judged()?;
        let released = records.released()?.map_or(CommitIndex(0), |released| released.through);
        let through = last.map_or(CommitIndex(0), |end| end.index).max(released);
        let handover = records.last_handover()?;
        let state = State {
            epoch: handover.map_or(FIRST_EPOCH, |handover| handover.epoch),
            committee,
            authors: BTreeMap::new(),
            through,
            began: records.began()?,
            ends: last.into_iter().map(|end| (end.index, end)).collect(),
        };
        Ok(Self { records, state: Mutex::new(state), attested: watch::Sender::new(None) })
    }

    /// An accepted, durable event: what its author attests counts if it is news.
    pub fn note(&self, event: &Event) {
        let end = event.header.attestation.newest;
        let mut state = self.state.lock().expect("no holder of this lock panics");
        let through = state.through;
        let author = event.header.author;
        // Who votes in both epochs may still be late with an event of the one that is over.
        if event.header.epoch != state.epoch || !state.committee.contains(author) {
            return;
        }
        let of_author = state.authors.entry(author).or_default();
        let known = of_author.matched.as_ref().is_some_and(|(index, _)| *index >= end.index);
        let waits = of_author.waiting.back().is_some_and(|(last, _)| last.index >= end.index);
        if known || waits {
            return;
        }
        if end.index > through {
            // When too many wait the newest one stays: it is the one that a quiet cluster ends on.
            of_author.waiting.truncate(ATTESTATIONS_WAITING_MAX - 1);
            of_author.waiting.push_back((end, event.signed_header()));
            return;
        }
        if self.compare(&mut state, author, &end, event.signed_header()) {
            self.publish(&state);
        }
    }

    /// From now on the members of the next epoch are asked; the end of the one before is attested
    /// by the handover's own certificate.
    pub fn epoch_began(&self, handover: &Handover) {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        let before = state.committee.quorum();
        self.show(
            handover.founding.end.index,
            handover.headers.iter().take(before).cloned().collect(),
        );
        state.epoch = handover.epoch;
        state.committee = handover.committee;
        state.authors.clear();
    }

    /// The present epoch; how it began is in the store.
    pub fn epoch(&self) -> Epoch {
        self.state.lock().expect("no holder of this lock panics").epoch
    }

    /// The judged history begins anew with a snapshot's commit.
    pub fn began(&self, end: &CommitEnd) {
        self.state.lock().expect("no holder of this lock panics").began = end.index;
        self.judged(end);
    }

    /// This host has judged a commit (again, perhaps).
    pub fn judged(&self, end: &CommitEnd) {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        if end.index <= state.through && !state.ends.is_empty() {
            return;
        }
        state.through = end.index.max(state.through);
        if state.ends.last_key_value().is_none_or(|(_, last)| !same_state(last, end)) {
            state.ends.insert(end.index, *end);
            if state.ends.len() > JUDGED_ENDS_IN_MEMORY {
                state.ends.pop_first();
            }
        }
        let mut changed = false;
        for author in state.committee.authors() {
            let through = state.through;
            let next = |state: &mut State| {
                let waiting = &mut state.authors.get_mut(&author)?.waiting;
                waiting.pop_front_if(|(front, _)| front.index <= through)
            };
            while let Some((end, header)) = next(&mut state) {
                changed |= self.compare(&mut state, author, &end, header);
            }
        }
        if changed {
            self.publish(&state);
        }
    }

    /// Whether the attestation matches the own chain; if so it is the author's newest.
    fn compare(
        &self,
        state: &mut State,
        author: AuthorIndex,
        attested: &CommitEnd,
        header: SignedHeader,
    ) -> bool {
        if attested.index < state.began {
            return false;
        }
        let in_memory = state.ends.range(..=attested.index).next_back().map(|(_, end)| *end);
        // What memory has lost is in the store; a store that fails is found by whoever has to write
        // to it.
        let own = in_memory.or_else(|| self.records.judged(attested.index).ok().flatten());
        let of_author = state.authors.entry(author).or_default();
        if own.is_some_and(|own| same_state(&own, attested)) {
            of_author.matched = Some((attested.index, header));
            true
        } else {
            if !std::mem::replace(&mut of_author.differed, true) {
                tracing::error!(
                    author = author.0,
                    commit = attested.index.0,
                    "a member attests another history or state than this host has judged"
                );
            }
            false
        }
    }

    fn publish(&self, state: &State) {
        let mut matched: Vec<_> =
            state.authors.values().filter_map(|author| author.matched.as_ref()).collect();
        let quorum = state.committee.quorum();
        if matched.len() < quorum {
            return;
        }
        matched.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
        matched.truncate(quorum);
        let commit = matched.last().map_or(CommitIndex(0), |(index, _)| *index);
        self.show(commit, matched.into_iter().map(|(_, header)| header.clone()).collect());
    }

    fn show(&self, commit: CommitIndex, headers: Vec<SignedHeader>) {
        let before = self.attested.borrow().as_ref().map_or(CommitIndex(0), |known| known.commit);
        if commit <= before {
            return;
        }
        let evidence = QuorumEvidence { headers };
        self.attested.send_replace(Some(Arc::new(Attested { commit, evidence })));
    }

    /// Headers of a quorum of one epoch that name exactly the state at `end`, if there is one now.
    pub fn naming(&self, end: &CommitEnd) -> Option<QuorumEvidence> {
        let epoch_if_named = |signed: &SignedHeader| {
            let header: Header = codec::decode(&signed.header).ok()?;
            named_after(&header.attestation, end).map(|_| header.epoch)
        };
        let state = self.state.lock().expect("no holder of this lock panics");
        let quorum = state.committee.quorum();
        let matched = state.authors.values().filter_map(|author| author.matched.as_ref());
        let naming = matched.filter_map(|(_, signed)| Some((epoch_if_named(signed)?, signed)));
        let naming: Vec<_> = naming.collect();
        // Events of the epoch before may still come in: they make no quorum with those of this one.
        let newest = naming.iter().map(|(epoch, _)| *epoch).max();
        let of_newest = naming.iter().filter(|(epoch, _)| Some(*epoch) == newest);
        let headers: Vec<_> = of_newest.take(quorum).map(|(_, signed)| (*signed).clone()).collect();
        if headers.len() == quorum {
            return Some(QuorumEvidence { headers });
        }
        // When an epoch has just begun only the one before attests where it ended.
        let attested = self.attested.borrow().clone()?;
        let all = attested.evidence.headers.iter().all(|signed| epoch_if_named(signed).is_some());
        all.then(|| attested.evidence.clone())
    }

    /// The newest attested commit; changes wake whoever watches.
    pub fn attested(&self) -> watch::Receiver<Option<Arc<Attested>>> {
        self.attested.subscribe()
    }
}
