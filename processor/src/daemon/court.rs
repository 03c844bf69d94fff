//! One life of the judge: its state, its seal key, and the newest answers.
//!
//! Owns the seal key, which exists in memory only. Never talks. Called by the conversations in
//! `serve`.

use std::collections::VecDeque;

use anyhow::Context;
use dagger_bus::judging::{AdmissionOutcome, Judged, Opened, ProofAt};
use dagger_bus::limits::{JUDGED_KEPT_BYTES_MAX, JUDGED_KEPT_MAX};
use dagger_bus::seal::SealKey;
use dagger_payload::event::CHECKPOINT_COMMITS;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{ClusterId, CommitIndex, LedgerTime, PrefixHash};
use dagger_payload::key::{Domain, SecretKey};
use dagger_payload::object::Effect;
use dagger_payload::release::{OrderedCommit, SealedRelease};
use dagger_payload::snapshot::{SealedAnchor, SnapshotHead};
use dagger_payload::state_tree::Subject;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::proofs::{Proving, WaitingProofs};
use crate::judge::snapshot::{Restoring, Snapshot};
use crate::judge::{CommitError, Judge};
use crate::verify::Verified;

/// The judge with everything that one life of it has.
pub(super) struct Court {
    genesis: Genesis,
    judge: Judge,
    seal: SecretKey,
    /// Where this life began; none at the founding.
    anchor: Option<SealedAnchor>,
    /// The newest answers, for a ledger that died before it stored them.
    /// With the size of each.
    kept: VecDeque<(Judged, usize)>,
    kept_bytes: usize,
    /// Proofs that are to be made at the next checkpoint.
    waiting: WaitingProofs,
    /// Number of this life: conversations of an earlier one end.
    life: watch::Sender<u64>,
}

impl Court {
    /// Begins the first life.
    pub(super) fn open(genesis: Genesis, cluster: ClusterId) -> anyhow::Result<Self> {
        Ok(Self {
            judge: Judge::found(genesis.clone(), cluster),
            genesis,
            seal: draw_key()?,
            anchor: None,
            kept: VecDeque::new(),
            kept_bytes: 0,
            waiting: WaitingProofs::default(),
            life: watch::Sender::new(0),
        })
    }

    /// Begins another life: founding state, a new seal key; all conversations end.
    pub(super) fn reopen(&mut self) -> anyhow::Result<()> {
        let judge = Judge::found(self.genesis.clone(), self.judge.cluster());
        self.begin(judge)?;
        self.anchor = None;
        Ok(())
    }

    /// A judge that may replace this one when its snapshot is whole.
    pub(super) fn restoring(&self, head: SnapshotHead) -> Restoring {
        Restoring::begin(self.genesis.clone(), self.judge.cluster(), head)
    }

    /// Begins another life with `judge`; all conversations end.
    pub(super) fn reopen_from(&mut self, judge: Judge) -> anyhow::Result<()> {
        let anchor = judge.anchor();
        self.begin(judge)?;
        let seal = self.seal.sign_in(Domain::Seal, &anchor.seal_digest());
        self.anchor = Some(SealedAnchor { anchor, seal });
        Ok(())
    }

    fn begin(&mut self, judge: Judge) -> anyhow::Result<()> {
        self.seal = draw_key()?;
        self.judge = judge;
        self.kept.clear();
        self.kept_bytes = 0;
        self.waiting = WaitingProofs::default();
        self.life.send_modify(|life| *life += 1);
        Ok(())
    }

    pub(super) fn life(&self) -> watch::Receiver<u64> {
        self.life.subscribe()
    }

    pub(super) fn cluster(&self) -> ClusterId {
        self.judge.cluster()
    }

    pub(super) fn seal_key(&self) -> SealKey {
        SealKey { cluster: self.judge.cluster(), key: self.seal.public_key() }
    }

    pub(super) fn opened(&self) -> Opened {
        Opened {
            cluster: self.judge.cluster(),
            seal_key: self.seal.public_key(),
            judged: self.judge.end(),
            next_deadline: self.judge.next_deadline(),
            epoch_end: self.judge.epoch_end(),
            anchor: self.anchor.clone(),
            roster: self.judge.roster().clone(),
        }
    }

    /// The next part of a snapshot; none when it is whole or the judge has gone on.
    pub(super) fn snapshot_part(&self, making: &mut Snapshot) -> Option<Judged> {
        making.next_chunk(&self.judge).map(|bytes| Judged::Chunk { bytes: bytes.into() })
    }

    /// A snapshot of the present state.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot::begin(&self.judge)
    }

    /// The head of a whole snapshot.
    pub(super) fn snapshot_head(&self, made: Snapshot) -> Option<SnapshotHead> {
        made.finish(&self.judge)
    }

    pub(super) fn admit(&self, verified: &Verified, now: LedgerTime) -> AdmissionOutcome {
        self.judge.admit(verified, now)
    }

    /// What would come of a document.
    pub(super) fn predict(&self, document: &[u8], now: LedgerTime) -> AdmissionOutcome {
        let prediction = Box::new(self.judge.predict(document, now));
        AdmissionOutcome::Predicted { prediction }
    }

    /// What stands under a subject: at once, or at the next checkpoint.
    pub(super) fn prove(&mut self, subject: Subject, at: ProofAt) -> Proving {
        match at {
            ProofAt::Present => {
                let proof = Box::new(self.judge.prove(&subject));
                Proving::Done(AdmissionOutcome::Proven { proof })
            }
            ProofAt::Checkpoint => Proving::Waits(self.waiting.add(subject)),
        }
    }

    /// Judges a commit, or repeats the answer to a recent one.
    ///
    /// # Errors
    /// The commit contradicts what was judged: the ledger is broken. Rules that this build does not
    /// know are no such error.
    pub(super) fn judge(
        &mut self,
        commit: OrderedCommit,
        verified: &[Verified],
    ) -> Result<Judged, CommitError> {
        let asked = (commit.index, commit.prefix_hash);
        let payloads = commit.payloads.iter().map(|ordered| ordered.payload.bytes.len());
        let payloads_bytes = payloads.sum();
        let release = match self.judge.apply(commit, verified) {
            Ok(release) => release,
            Err(CommitError::OutOfOrder { expected }) => {
                return Ok(self.repeated(asked).unwrap_or(Judged::OutOfOrder { expected }));
            }
            Err(CommitError::UpgradeNeeded { needs }) => {
                tracing::warn!(commit = %asked.0, %needs, "rules that need an upgrade begin");
                return Ok(Judged::Upgrade { needs });
            }
            Err(broken @ (CommitError::Discontinuous | CommitError::Mismatched)) => {
                return Err(broken);
            }
        };
        if release.end.index.0.is_multiple_of(CHECKPOINT_COMMITS) {
            self.waiting.answer(&mut self.judge);
        }
        let seal = self.seal.sign_in(Domain::Seal, &release.seal_digest());
        let seated = release.effects().any(|effect| matches!(effect, Effect::Seat(_)));
        let judged = Judged::Done {
            sealed: Box::new(SealedRelease { release, seal }),
            next_deadline: self.judge.next_deadline(),
            epoch_end: self.judge.epoch_end(),
            roster: seated.then(|| Box::new(self.judge.roster().clone())),
            next_members: self.judge.next_members().map(Box::new),
        };
        self.keep(judged.clone(), payloads_bytes);
        Ok(judged)
    }

    fn keep(&mut self, judged: Judged, payloads_bytes: usize) {
        let bytes = self.judge.changed_bytes() + payloads_bytes;
        self.kept_bytes += bytes;
        self.kept.push_back((judged, bytes));
        while self.kept.len() > JUDGED_KEPT_MAX
            || (self.kept.len() > 1 && self.kept_bytes > JUDGED_KEPT_BYTES_MAX)
        {
            let Some((_, bytes)) = self.kept.pop_front() else { break };
            self.kept_bytes -= bytes;
        }
    }

    fn repeated(&self, (index, prefix_hash): (CommitIndex, PrefixHash)) -> Option<Judged> {
        let same = |judged: &&Judged| match judged {
            Judged::Done { sealed, .. } => {
                let end = &sealed.release.end;
                end.index == index && end.prefix_hash == prefix_hash
            }
            Judged::OutOfOrder { .. }
            | Judged::Chunk { .. }
            | Judged::Snapshot { .. }
            | Judged::Upgrade { .. } => false,
        };
        self.kept.iter().map(|(judged, _)| judged).find(same).cloned()
    }
}

fn draw_key() -> anyhow::Result<SecretKey> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice()).context("cannot draw a seal key")?;
    Ok(SecretKey::from_seed(&seed))
}
