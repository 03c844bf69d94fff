//! Who may attest what a stream shows: evidence is checked as it comes, as an agent does.
//!
//! Seats and epochs are those that the releases tell of, from the founding on; a later epoch's
//! voters count once a quorum of those before has attested where their epoch ended.

use std::collections::BTreeSet;

use dagger_payload::event::{CommitEnd, Header};
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{ClusterId, CommitIndex};
use dagger_payload::object::Effect;
use dagger_payload::release::{CommitRelease, QuorumEvidence};
use dagger_payload::roster::{EpochMembers, Roster};

pub struct Voters {
    cluster: ClusterId,
    roster: Roster,
    /// All epochs that the releases told of, from the first one on.
    epochs: Vec<EpochMembers>,
    /// The newest of them whose voters count.
    begun: usize,
}

impl Voters {
    pub fn founding(cluster: ClusterId, genesis: &Genesis) -> Self {
        let (roster, epochs) = (Roster::founding(genesis), vec![EpochMembers::founding(genesis)]);
        Self { cluster, roster, epochs, begun: 0 }
    }

    /// Takes in what a release tells of seats and epochs.
    pub fn learn(&mut self, release: &CommitRelease) {
        for effect in release.effects() {
            match effect {
                Effect::Seat(seat) => self.roster.put(seat).expect("in order"),
                Effect::Epoch(members) => self.epochs.push(**members),
                _ => {}
            }
        }
    }

    /// Checks that exactly those who count attest `commit`, with `ends` up to there at least.
    pub fn check(&mut self, commit: CommitIndex, evidence: &QuorumEvidence, ends: &[CommitEnd]) {
        let read = |signed: &dagger_payload::event::SignedHeader| {
            signed.verify(|author| self.roster.key(author)).expect("a member's word").0
        };
        let headers: Vec<Header> = evidence.headers.iter().map(read).collect();
        let epoch = headers.first().expect("a header").epoch;
        let at = usize::try_from(epoch.0).expect("few");
        let reached = self.epochs[self.begun].epoch;
        assert!(at <= self.begun, "of epoch {epoch}, and nothing shows what follows {reached}");
        let committee = self.epochs[at].committee;
        let mut authors = BTreeSet::new();
        for header in &headers {
            assert_eq!((header.cluster, header.epoch), (self.cluster, epoch));
            assert!(committee.contains(header.author) && authors.insert(header.author));
            check_state(header, commit, ends);
        }
        assert!(authors.len() >= committee.quorum(), "{authors:?} of {committee:?}");
        let next = self.epochs.get(self.begun + 1).filter(|_| at == self.begun);
        let ends_epoch = |next: &EpochMembers| {
            let end = next.begins_after;
            commit == end && headers.iter().all(|header| header.attestation.newest.index == end)
        };
        self.begun += usize::from(next.is_some_and(ends_epoch));
    }
}

/// Every end that is known by now must be the one that was attested.
fn check_state(header: &Header, commit: CommitIndex, ends: &[CommitEnd]) {
    let attested = header.attestation.newest;
    assert!(attested.index >= commit, "{attested:?} says nothing of commit {commit}");
    let known = ends.last().map_or(commit, |last| last.index.max(commit));
    let own = ends.iter().rfind(|end| end.index <= attested.index);
    if let Some(own) = own.filter(|_| attested.index <= known) {
        let state = |end: &CommitEnd| (end.position, end.prefix_hash, end.state_root);
        assert_eq!(state(&attested), state(own), "after commit {}", attested.index);
    }
}
