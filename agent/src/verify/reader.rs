//! Reads the release stream with distrust: what is folded must be sealed and continue the own
//! chain, what is acted on must be attested, and never older than what this host has acted on
//! before (design R3).
//!
//! Owns the agent's view of how far its ledger may be trusted. Pure. Called by
//! [`crate::link::releases`] with one stream item at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use dagger_bus::ledger::StreamItem;
use dagger_payload::changed_vm::UnknownVm;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{AuthorIndex, ClusterId, CommitIndex, HistoryHash};
use dagger_payload::key::{Domain, PublicKey};
use dagger_payload::release::{CommitRelease, SealedRelease};
use dagger_payload::snapshot::{SealedAnchor, extend_history};

use super::chain::{Chain, ChainBreak};
use super::mark::Mark;
use super::quorum::{Attestations, WorthlessEvidence};

/// How far the ledger of this host may be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Its history is being read; the text says what is waited for.
    Reading(String),
    /// All that it has is read, and what is attested may be acted on.
    CaughtUp,
    /// What it says contradicts what was seen before or what members attest: nothing may change.
    Hold(String),
}

/// Where reading stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Counts how often the history was read from its beginning; other positions start over when it
    /// grows.
    pub reading: u64,
    /// The last release.
    pub judged: CommitIndex,
    /// The last release that a quorum attests.
    pub attested: CommitIndex,
    /// The point of history of the last attested release.
    pub attested_mark: Option<Mark>,
    /// For each member the highest commit up to which he attests the same history.
    pub same: BTreeMap<AuthorIndex, CommitIndex>,
    /// Members who attest another history, with the commit.
    pub contradicting: Vec<(AuthorIndex, CommitIndex)>,
    /// How far the ledger may be followed.
    pub trust: Trust,
}

/// Why an item was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    /// Not sealed by the processor that runs now: perhaps it was just restarted. The connection is
    /// renewed.
    #[error("commit {0} does not carry the seal of this host's processor")]
    Seal(CommitIndex),
    /// The release does not continue the chain. The history is read again from its beginning.
    #[error("the ledger's history is broken: {0}")]
    Chain(#[from] ChainBreak),
    /// The present processor began with another history than the ledger shows. It is read again
    /// from its beginning.
    #[error(
        "the processor began at commit {0} with another history than the ledger shows up to there"
    )]
    Anchor(CommitIndex),
    /// A release changes a VM that is not there: something was left out before it. The history is
    /// read again from its beginning.
    #[error("the ledger's history has a hole before commit {commit}: {why}")]
    Hole {
        /// The release.
        commit: CommitIndex,
        /// What it changes.
        why: UnknownVm,
    },
}

/// What came of an item.
#[derive(Debug)]
pub enum Taken {
    /// A release that is to be folded.
    Release(Arc<CommitRelease>),
    /// Progress may have changed.
    Noted,
    /// Evidence that counts for nothing.
    Worthless(WorthlessEvidence),
}

/// The reader of one release stream after another.
#[derive(Debug)]
pub struct Reader {
    cluster: ClusterId,
    genesis: Genesis,
    reading: u64,
    chain: Chain,
    /// Everything that was judged up to the chain's end.
    history: HistoryHash,
    /// The last release that the seal of a processor covers: its own, or that of an anchor.
    sealed: CommitIndex,
    attestations: Attestations,
    /// The highest point that was attested to this host before this reading.
    mark: Option<Mark>,
    /// The newest commit that the ledger showed on this connection, once it has told all that it
    /// has.
    shown: Option<CommitIndex>,
    /// Why the history was read again, until that has led to trust.
    broken: Option<String>,
}

impl Reader {
    /// A reader that has read nothing; `mark` is what this host has acted on before.
    pub fn new(cluster: ClusterId, genesis: Genesis, mark: Option<Mark>) -> Self {
        Self {
            chain: Chain::new(&cluster),
            history: HistoryHash::ZERO,
            sealed: CommitIndex(0),
            attestations: Attestations::new(cluster, &genesis),
            cluster,
            genesis,
            reading: 1,
            mark,
            shown: None,
            broken: None,
        }
    }

    /// The commit after which the stream is to go on.
    pub fn cursor(&self) -> CommitIndex {
        self.chain.last()
    }

    /// A new connection: the ledger has yet to show what it has.
    pub fn connected(&mut self) {
        self.shown = None;
    }

    /// Whether the last releases wait for an anchor. Such a reading is good for its own connection
    /// only.
    pub fn is_unsealed(&self) -> bool {
        self.sealed < self.chain.last()
    }

    /// Reads again from the beginning.
    pub fn read_again(&mut self) {
        self.mark = self.floor();
        self.chain = Chain::new(&self.cluster);
        self.history = HistoryHash::ZERO;
        self.sealed = CommitIndex(0);
        self.attestations = Attestations::new(self.cluster, &self.genesis);
        self.reading += 1;
        self.shown = None;
    }

    /// Takes in one item.
    ///
    /// # Errors
    /// [`Distrust`]; after all but [`Distrust::Seal`] the reader has started over.
    pub fn take(&mut self, item: StreamItem, seal_key: &PublicKey) -> Result<Taken, Distrust> {
        match item {
            StreamItem::Release { sealed } => self.take_release(*sealed, seal_key),
            StreamItem::Past { release } => self.extend(*release),
            StreamItem::Anchor { anchor } => self.take_anchor(&anchor, seal_key),
            StreamItem::Attested { commit, evidence } => {
                self.note_shown(commit);
                Ok(match self.attestations.add(&evidence, &self.chain) {
                    Ok(()) => Taken::Noted,
                    Err(error) => Taken::Worthless(error),
                })
            }
            StreamItem::CaughtUp { commit } => {
                self.shown = Some(commit.max(self.shown.unwrap_or_default()));
                Ok(Taken::Noted)
            }
        }
    }

    fn take_release(
        &mut self,
        sealed: SealedRelease,
        seal_key: &PublicKey,
    ) -> Result<Taken, Distrust> {
        let release = sealed.release;
        if !seal_key.verifies_in(Domain::Seal, &release.seal_digest(), &sealed.seal) {
            return Err(Distrust::Seal(release.end.index));
        }
        if self.is_unsealed() {
            // The ledger left out the anchor.
            return Err(self.false_anchor(self.chain.last()));
        }
        let taken = self.extend(release)?;
        self.sealed = self.chain.last();
        Ok(taken)
    }

    /// What was past is as good as sealed when the present processor began with the same history.
    fn take_anchor(
        &mut self,
        sealed: &SealedAnchor,
        seal_key: &PublicKey,
    ) -> Result<Taken, Distrust> {
        let anchor = &sealed.anchor;
        let commit = anchor.end.index;
        if !sealed.is_sealed_by(seal_key) {
            return Err(Distrust::Seal(commit));
        }
        let same = self.chain.end_at(commit) == Some(&anchor.end) && self.history == anchor.history;
        if !same || self.chain.last() != commit {
            return Err(self.false_anchor(commit));
        }
        self.sealed = commit;
        Ok(Taken::Noted)
    }

    /// The last release that it gave follows from nothing: the reader starts over.
    pub fn refuse(&mut self, why: UnknownVm) -> Distrust {
        let distrust = Distrust::Hole { commit: self.chain.last(), why };
        self.start_over(distrust.to_string());
        distrust
    }

    fn false_anchor(&mut self, commit: CommitIndex) -> Distrust {
        let distrust = Distrust::Anchor(commit);
        self.start_over(distrust.to_string());
        distrust
    }

    fn extend(&mut self, release: CommitRelease) -> Result<Taken, Distrust> {
        if let Err(error) = self.chain.extend(&release) {
            self.start_over(error.to_string());
            return Err(error.into());
        }
        self.history = extend_history(&self.history, &release);
        self.note_shown(release.end.index);
        self.attestations.chain_grew(&release, &self.chain);
        Ok(Taken::Release(Arc::new(release)))
    }

    fn note_shown(&mut self, commit: CommitIndex) {
        if let Some(shown) = &mut self.shown {
            *shown = commit.max(*shown);
        }
    }

    fn start_over(&mut self, why: String) {
        self.read_again();
        self.broken = Some(why);
    }

    /// The highest point that was ever attested to this host.
    fn floor(&self) -> Option<Mark> {
        let now = self.attested_mark();
        now.filter(|now| self.mark.is_none_or(|mark| now.commit >= mark.commit)).or(self.mark)
    }

    fn attested_mark(&self) -> Option<Mark> {
        let end = self.chain.end_at(self.attestations.attested().min(self.sealed));
        end.map(Mark::from)
    }

    /// Where reading stands now.
    pub fn progress(&mut self) -> Progress {
        let trust = self.trust();
        if trust == Trust::CaughtUp {
            self.broken = None;
        }
        let attested_mark = self.attested_mark();
        Progress {
            reading: self.reading,
            judged: self.chain.last(),
            attested: attested_mark.map_or(CommitIndex(0), |mark| mark.commit),
            attested_mark,
            same: self.attestations.same(),
            contradicting: self.attestations.contradicting(),
            trust,
        }
    }

    fn trust(&self) -> Trust {
        if self.attestations.is_contradicted_by_an_honest_member() {
            return Trust::Hold(self.contradiction());
        }
        if let Some(why) = self.another_history_at_mark() {
            return Trust::Hold(why);
        }
        match self.following() {
            Trust::CaughtUp => Trust::CaughtUp,
            Trust::Hold(why) => Trust::Hold(why),
            Trust::Reading(what) => match &self.broken {
                Some(why) => Trust::Hold(format!("{why}; reading it again from its beginning")),
                None => Trust::Reading(what),
            },
        }
    }

    /// Whether all is read and attested that this host has acted on before.
    fn following(&self) -> Trust {
        if self.is_unsealed() {
            let what = "reading what was judged before this host's processor began";
            return Trust::Reading(what.to_owned());
        }
        let Some(shown) = self.shown else {
            return if self.chain.last() == CommitIndex(0) || self.broken.is_some() {
                Trust::Reading("the ledger has not told its history yet".to_owned())
            } else if self.floor().map(|floor| floor.commit) > self.attested_commit() {
                Trust::Reading("waiting for the ledger's history".to_owned())
            } else {
                // A lost connection takes nothing away from what was read and attested before.
                Trust::CaughtUp
            };
        };
        let Some(floor) = self.floor() else {
            return Trust::CaughtUp;
        };
        if shown < floor.commit {
            return Trust::Hold(format!(
                "the ledger shows history up to commit {shown}, and this host has acted on commit \
                 {}: nothing changes until the ledger has caught up",
                floor.commit
            ));
        }
        if self.attested_commit() < Some(floor.commit) {
            let what = format!(
                "waiting for evidence that a quorum attests commit {}, on which this host has acted",
                floor.commit
            );
            return Trust::Reading(what);
        }
        Trust::CaughtUp
    }

    fn attested_commit(&self) -> Option<CommitIndex> {
        self.attested_mark().map(|mark| mark.commit)
    }

    fn another_history_at_mark(&self) -> Option<String> {
        let mark = self.mark.filter(|mark| mark.commit <= self.chain.last())?;
        let own = self.chain.end_at(mark.commit);
        if own.is_some_and(|end| Mark::from(end) == mark) {
            return None;
        }
        Some(format!(
            "the ledger shows another history at commit {} than the one that this host has acted \
             on: nothing changes. Compare with another host (daggerctl ledger status)",
            mark.commit
        ))
    }

    fn contradiction(&self) -> String {
        let others = self.attestations.contradicting();
        let named: Vec<_> = others
            .iter()
            .map(|(author, commit)| match self.attestations.roster().seat(*author) {
                Some(seat) => format!("{} at commit {commit}", seat.name),
                None => format!("member {author} at commit {commit}"),
            })
            .collect();
        format!(
            "other members attest another history than this host's ledger shows ({}): nothing \
             changes. Compare with another host (daggerctl ledger status)",
            named.join(", ")
        )
    }
}
