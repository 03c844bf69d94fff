//! One open connection to the judge: commits go out in order, a bounded number ahead of the
//! answers.
//!
//! Owns the window, the check of each answer against what was ordered and against what was judged
//! before (a difference is broken, never repaired), and what of an answer is stored. Whatever is
//! stored is stored before the agent can see it. Called by `judging`, and by `opaque` in a cluster
//! without a judge.

use std::sync::Arc;

use dagger_bus::connection::{Receiver, Sender};
use dagger_bus::judging::{Judge, Judged, Opened, Then};
use dagger_bus::{BusError, Connection};
use dagger_ledger_core::Input;
use dagger_payload::event::{CHECKPOINT_COMMITS, CommitEnd};
use dagger_payload::handover::{EpochEnd, NextMembers};
use dagger_payload::id::{CommitIndex, LedgerTime, PayloadDigest, ProtocolVersion};
use dagger_payload::key::PublicKey;
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::{OrderedCommit, SealedRelease, Verdict};
use dagger_payload::roster::Roster;
use dagger_payload::snapshot::SealedAnchor;
use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc};

use super::{Delivery, DeliveryError, Released, beginning, snapshots};
use crate::limits::{JUDGING_WINDOW, UNMARKED_COMMITS_MAX};
use crate::store::records::{self, OrderedAt};
use crate::store::seats::roster_change;
use crate::store::{Change, StoreError, chain};

/// Commits that were sent and not yet answered.
type Expected = mpsc::Receiver<(Arc<OrderedCommit>, Then)>;

/// The state of one connection.
pub(super) struct Session {
    delivery: Arc<Delivery>,
    seal_key: PublicKey,
    /// Where the processor's life began.
    anchor: Option<Arc<SealedAnchor>>,
    /// The processor's own newest commit when it was opened, and its next deadline.
    opened: (CommitIndex, Option<LedgerTime>),
    /// The last judged commit end.
    last: CommitEnd,
    /// The last commit end that changed anything in an earlier life: up to here answers are
    /// compared.
    recorded: CommitIndex,
    /// Up to where the store says that all releases of this life are in it.
    marked: CommitIndex,
    /// Where the epoch ends, as far as it is stored.
    epoch_end: Option<EpochEnd>,
    keeping: Keeping,
}

/// What an answer says besides its release.
#[derive(Default)]
pub(super) struct Outlook {
    pub(super) next_deadline: Option<LedgerTime>,
    /// Where the epoch ends.
    pub(super) epoch_end: Option<EpochEnd>,
    /// All seats, if one has changed.
    pub(super) roster: Option<Box<Roster>>,
    /// Who votes next, after the last commit of an epoch.
    pub(super) next_members: Option<Box<NextMembers>>,
}

/// What of a release is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeping {
    /// All of it, and where its payloads were ordered.
    Releases,
    /// Only where its payloads were ordered: the rest follows from the commit.
    Places,
}

/// What a batch of answers leads to.
#[derive(Default)]
pub(super) struct Batch {
    changes: Vec<Change>,
    /// Places of payloads, in order.
    placed: Vec<(PayloadDigest, OrderedAt)>,
    /// What streams send.
    releases: Vec<SealedRelease>,
}

impl Session {
    pub(super) fn new(
        delivery: Arc<Delivery>,
        opened: Opened,
        through: CommitIndex,
        keeping: Keeping,
    ) -> Result<Self, DeliveryError> {
        let damaged = || DeliveryError::Judge("no founding state is known".to_owned());
        let last = delivery.records.judged(through)?.ok_or_else(damaged)?;
        let epoch_end = delivery.records.epoch_end()?;
        let recorded = delivery.records.last_judged()?.ok_or_else(damaged)?.index;
        if opened.judged.index == through && opened.judged != last {
            let message = format!("it says another state after commit {through} than before");
            return Err(DeliveryError::Judge(message));
        }
        // A life that is behind what was judged before says what seats were then.
        if opened.judged.index >= recorded {
            delivery.seats.take(opened.roster)?;
        } else {
            delivery.seats.check(&opened.roster)?;
        }
        Ok(Self {
            delivery,
            seal_key: opened.seal_key,
            anchor: opened.anchor.map(Arc::new),
            opened: (opened.judged.index, opened.next_deadline),
            last,
            recorded,
            marked: through,
            epoch_end,
            keeping,
        })
    }

    /// Works until the connection ends.
    pub(super) async fn run(mut self, connection: Connection) -> Result<(), DeliveryError> {
        let Connection { sender, receiver } = connection;
        self.delivery.upgrade_needed.send_replace(None);
        self.begin().await?;
        let window = Semaphore::new(JUDGING_WINDOW);
        let (sent, expected) = mpsc::channel(JUDGING_WINDOW);
        let delivery = self.delivery.clone();
        let first = self.last.index.next();
        let judged = self.opened.0;
        let sending = send_all(&delivery, sender, (first, judged), &window, sent);
        let receiving = self.receive_all(receiver, expected, &window);
        tokio::select! {
            sent = sending => sent,
            received = receiving => received,
        }
    }

    /// Tells store, core and streams where this life stands.
    pub(super) async fn begin(&self) -> Result<(), DeliveryError> {
        let delivery = &self.delivery;
        // A session may end while its last releases become durable: the mark is beyond them then,
        // and nobody judges them again.
        beginning::note_places(delivery, self.last.index).await?;
        let known = delivery.records.released()?;
        if known.is_none_or(|known| known.seal_key != self.seal_key) {
            // Places are read from releases up to the mark, which goes back now.
            let mut moving = delivery.places.all();
            let mut changes = moving.take_changes();
            let (seal_key, through) = (self.seal_key.clone(), self.last.index);
            changes.push(records::released_change(&records::Released { seal_key, through }));
            delivery.writer.store(changes).await?;
            delivery.places.moved(&moving);
        }
        delivery.recent.begin(self.seal_key.clone(), self.last.index);
        self.publish();
        let through = self.last.index;
        if through.0 == 0 {
            return Ok(());
        }
        // The core keeps the first of equal commit ends and the last checkpoint: both come before
        // the newest.
        let checkpoint = through.0 - through.0 % CHECKPOINT_COMMITS;
        let changed = delivery.records.last_judged_until(through)?;
        let mut ends: Vec<CommitEnd> = changed.into_iter().collect();
        if checkpoint > 0 {
            ends.extend(delivery.records.judged(CommitIndex(checkpoint))?);
        }
        ends.sort_by_key(|end| end.index);
        for end in ends {
            self.tell_core(end, None, self.epoch_end).await;
        }
        let (judged, deadline) = self.opened;
        let deadline = if judged == through { deadline } else { None };
        self.tell_core(self.last, deadline, self.epoch_end).await;
        Ok(())
    }

    async fn tell_core(
        &self,
        end: CommitEnd,
        next_deadline: Option<LedgerTime>,
        epoch_end: Option<EpochEnd>,
    ) {
        let input = Input::Judged { end, next_deadline, epoch_end };
        // The core is gone only when the daemon stops.
        let _ = self.delivery.core.send(input).await;
    }

    fn publish(&self) {
        let released = Released {
            seal_key: self.seal_key.clone(),
            through: self.last.index,
            history_end: self.recorded.max(self.last.index),
            anchor: self.anchor.clone(),
        };
        self.delivery.released.send_replace(Some(released));
    }

    async fn receive_all(
        &mut self,
        mut receiver: Receiver,
        mut expected: Expected,
        window: &Semaphore,
    ) -> Result<(), DeliveryError> {
        loop {
            let mut batch = Batch::default();
            let mut answer: Option<Judged> = Some(receiver.receive().await?);
            // All answers that are here already share one durable write.
            while let Some(judged) = answer {
                let (commit, then) = expected.recv().await.ok_or(BusError::Closed)?;
                let (sealed, outlook) = match judged {
                    Judged::Done { sealed, next_deadline, epoch_end, roster, next_members } => {
                        (*sealed, Outlook { next_deadline, epoch_end, roster, next_members })
                    }
                    Judged::OutOfOrder { expected } => {
                        let asked = commit.index;
                        return Err(DeliveryError::OutOfStep { asked, expected });
                    }
                    Judged::Upgrade { needs } => {
                        self.store(&mut batch).await?;
                        return wait_for_upgrade(&self.delivery, needs, receiver).await;
                    }
                    Judged::Chunk { .. } | Judged::Snapshot { .. } => {
                        return Err(BusError::Malformed.into());
                    }
                };
                self.take(&commit, sealed, outlook, &mut batch).await?;
                if then == Then::Snapshot {
                    self.store(&mut batch).await?;
                    snapshots::receive(&self.delivery, &mut receiver, self.last).await?;
                }
                window.add_permits(1);
                answer = receiver.receive().now_or_never().transpose()?;
            }
            self.store(&mut batch).await?;
        }
    }

    /// Takes in what came of a commit.
    ///
    /// # Errors
    /// It is about another commit, or another result than the same commit had before.
    pub(super) async fn take(
        &mut self,
        commit: &OrderedCommit,
        sealed: SealedRelease,
        outlook: Outlook,
        batch: &mut Batch,
    ) -> Result<(), DeliveryError> {
        let Outlook { next_deadline, epoch_end, roster, next_members } = outlook;
        let end = sealed.release.end;
        let ordered = (commit.index, commit.last_position(), commit.prefix_hash);
        if (end.index, end.position, end.prefix_hash) != ordered {
            let index = commit.index;
            let message = format!("its answer to commit {index} is about another commit");
            return Err(DeliveryError::Judge(message));
        }
        let before = self.last;
        let changed = (before.position, before.state_root) != (end.position, end.state_root);
        if end.index <= self.recorded {
            let recorded = self.delivery.records.judged(end.index)?;
            if recorded != Some(end) {
                let index = end.index;
                let message = format!(
                    "commit {index} was judged before with another result; this host stops before it \
                     acts on either"
                );
                return Err(DeliveryError::Judge(message));
            }
        } else if changed || epoch_end.is_some_and(|last| last.last == end.index) {
            // The last end of an epoch is attested by itself, also where it equals the one before.
            batch.changes.push(records::judged_change(&end));
        }
        if let Some(roster) = roster {
            self.take_seats(&end, *roster, batch)?;
        }
        if let Some(members) = next_members {
            batch.changes.push(chain::members_change(*members));
        }
        if let Some(last) = epoch_end.filter(|_| epoch_end != self.epoch_end) {
            batch.changes.push(records::epoch_end_change(&last));
            self.epoch_end = epoch_end;
        }
        self.last = end;
        if changed || !sealed.release.is_empty() {
            self.keep(sealed, batch);
        }
        self.delivery.evidence.judged(&end);
        self.tell_core(end, next_deadline, epoch_end).await;
        Ok(())
    }

    /// Takes in the seats after a commit. Links follow them before the core hears of the commit, so
    /// that it never knows a member whom they do not.
    fn take_seats(
        &self,
        end: &CommitEnd,
        roster: Roster,
        batch: &mut Batch,
    ) -> Result<(), DeliveryError> {
        let seats = &self.delivery.seats;
        if end.index <= self.recorded {
            return Ok(seats.check(&roster)?);
        }
        batch.changes.push(roster_change(&roster));
        Ok(seats.take(roster)?)
    }

    /// Keeps a release with content, and where its payloads were ordered first.
    fn keep(&self, sealed: SealedRelease, batch: &mut Batch) {
        if self.keeping == Keeping::Releases {
            batch.changes.push(records::release_change(&sealed));
        }
        batch.placed.extend(places_in(&sealed));
        batch.releases.push(sealed);
    }

    /// Lets requests and streams see what came of commits.
    pub(super) fn show(&self, batch: &mut Batch) {
        // A place is known before its submission is forgotten: somebody may ask in between.
        self.delivery.places.note(&batch.placed);
        self.delivery.are_ordered(batch.placed.drain(..).map(|(digest, _)| digest));
        batch.releases.drain(..).for_each(|sealed| self.delivery.recent.push(sealed));
        self.publish();
    }

    /// Whether the store should soon learn how far this life has come.
    pub(super) fn is_unmarked(&self) -> bool {
        self.last.index.0 - self.marked.0 >= UNMARKED_COMMITS_MAX
    }

    /// Makes a batch durable; then streams may show it.
    ///
    /// # Errors
    /// The daemon stops.
    pub(super) async fn store(&mut self, batch: &mut Batch) -> Result<(), DeliveryError> {
        let mut changes = std::mem::take(&mut batch.changes);
        let through = self.last.index;
        if changes.is_empty() && !self.is_unmarked() {
            self.publish();
            return Ok(());
        }
        let seal_key = self.seal_key.clone();
        changes.push(records::released_change(&records::Released { seal_key, through }));
        let forwarding = &self.delivery.forwarding;
        let placed = batch.placed.iter().map(|(digest, _)| digest);
        let handed_on = placed.filter(|digest| forwarding.contains(digest));
        changes.extend(handed_on.filter_map(|digest| self.delivery.pool.removal(digest)));
        self.delivery.writer.store(changes).await?;
        self.marked = through;
        self.show(batch);
        while let Some(mut moving) = self.delivery.places.too_many() {
            self.delivery.writer.store(moving.take_changes()).await?;
            self.delivery.places.moved(&moving);
        }
        Ok(())
    }
}

/// Judging stands still until the processor is another one: then this connection ends.
async fn wait_for_upgrade(
    delivery: &Delivery,
    needs: ProtocolVersion,
    mut receiver: Receiver,
) -> Result<(), DeliveryError> {
    tracing::warn!(%needs, "the processor does not know the rules that count now: upgrade it");
    delivery.upgrade_needed.send_replace(Some(needs));
    loop {
        // What was sent before its first answer has the same one.
        let Judged::Upgrade { .. } = receiver.receive().await? else {
            return Err(BusError::Malformed.into());
        };
    }
}

/// Where the payloads of a release were ordered for the first time.
pub(super) fn places_in(
    sealed: &SealedRelease,
) -> impl Iterator<Item = (PayloadDigest, OrderedAt)> {
    let commit = sealed.release.end.index;
    let first = sealed.release.releases.iter().filter(|release| is_first_copy(&release.verdict));
    first.map(move |release| (release.digest, OrderedAt { position: release.position, commit }))
}

/// Whether this is the payload's place for ever. One that does not verify under the key that it
/// names is noise: it keeps its position but leaves no entry, so that nobody can poison another's
/// payload; of copies the first one counts.
pub(super) fn is_first_copy(verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Accepted => true,
        Verdict::Refused(refusal) => !matches!(
            refusal.code,
            RefusalCode::Duplicate
                | RefusalCode::SignatureInvalid
                | RefusalCode::SignerUnsupported
                | RefusalCode::PayloadMalformed
                | RefusalCode::PayloadTooLarge
                | RefusalCode::KindUnknown
        ),
    }
}

async fn send_all(
    delivery: &Delivery,
    mut sender: Sender,
    (first, judged): (CommitIndex, CommitIndex),
    window: &Semaphore,
    sent: mpsc::Sender<(Arc<OrderedCommit>, Then)>,
) -> Result<(), DeliveryError> {
    let mut newest = delivery.commits.newest();
    let mut next = first;
    loop {
        // The sender of this watch lives as long as delivery does.
        newest.wait_for(|newest| *newest >= next).await.map_err(|_| BusError::Closed)?;
        window.acquire().await.map_err(|_| BusError::Closed)?.forget();
        let missing = || StoreError::Damaged { table: "commits", key: format!("{next}") };
        let commit = delivery.commits.get(next).await?.ok_or_else(missing)?;
        // A repeated answer is not the processor's present state.
        let is_new = next > judged;
        let then = if is_new { delivery.snapshots.wanted_after(&commit) } else { Then::Nothing };
        sent.send((commit.clone(), then)).await.map_err(|_| BusError::Closed)?;
        let commit = OrderedCommit::clone(&commit);
        sender.send(&Judge { commit, then }).await?;
        next = next.next();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
    use dagger_payload::id::{AuthorIndex, ClusterId, Position, PrefixHash, StateRoot};
    use dagger_payload::key::{SecretKey, Signature};
    use dagger_payload::payload::{SignatureKind, SignedPayload};
    use dagger_payload::release::{CommitRelease, OrderedPayload, Release};
    use tokio::sync::watch;

    use super::super::evidence::Evidence;
    use super::super::places::Places;
    use super::super::{Admissions, Snapshots};
    use super::*;
    use crate::configuration::Retention;
    use crate::driver::commits::Commits;
    use crate::seats::Seats;
    use crate::store::Store;
    use crate::store::memory::MemoryStore;
    use crate::store::pool::Pool;
    use crate::store::records::{InstanceId, Records, Released};
    use crate::store::witness::Witness;
    use crate::store::writer;

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_seed(&[byte; 32].into())
    }

    fn genesis() -> Genesis {
        let name = |text: &str| text.parse().expect("a name");
        let host = GenesisHost {
            name: name("host1"),
            operator: name("op1"),
            ledger_key: key(10).public_key(),
            address: "127.0.0.1:1".parse().expect("an address"),
        };
        Genesis {
            dagger: 1,
            nonce: "0".repeat(32),
            name: name("test"),
            mode: GenesisMode::Judged,
            operators: vec![GenesisOperator { name: name("op1"), key: key(1).public_key() }],
            hosts: vec![host],
            collection_depth_rounds: 60,
            handover_distance_commits: 10,
            commit_bytes_max: None,
        }
    }

    fn end(index: u64) -> CommitEnd {
        CommitEnd {
            index: CommitIndex(index),
            position: Position(index),
            prefix_hash: PrefixHash::ZERO,
            state_root: StateRoot::ZERO,
        }
    }

    fn sealed(index: u64) -> SealedRelease {
        let (signature_kind, signature) = (SignatureKind::SshEd25519, Signature([3; 64]));
        let payload = SignedPayload { signature_kind, signature, bytes: "{}".into() };
        let release = Release {
            position: Position(index),
            digest: payload.digest(),
            ordered: OrderedPayload { author: AuthorIndex(0), payload },
            verdict: Verdict::Accepted,
            effects: Vec::new(),
        };
        let (releases, time_effects) = (vec![release], Vec::new());
        let (end, ledger_time) = (end(index), LedgerTime(index));
        let release = CommitRelease { end, ledger_time, releases, time_effects };
        SealedRelease { release, seal: Signature([1; 64]) }
    }

    /// What judging shares, over a store in memory; the core's end and the links' are gone.
    fn delivery(store: Arc<MemoryStore>, directory: &std::path::Path) -> Arc<Delivery> {
        let records = Records::new(store.clone());
        let genesis = genesis();
        let cluster = ClusterId::of(&genesis.to_bytes());
        let roster = Roster::founding(&genesis);
        let committee = genesis.committee();
        let seats = Seats::new(roster, None, None, BTreeMap::new(), committee).expect("one list");
        let (stop, _) = crate::exit::channel();
        let (witness, _) = Witness::open(&directory.join("witness")).expect("opens");
        let instance = InstanceId([0; 16].into());
        let (writer, _) = writer::start(store, witness, instance, stop.clone()).expect("starts");
        Arc::new(Delivery {
            cluster,
            me: AuthorIndex(0),
            evidence: Arc::new(Evidence::new(records.clone(), committee).expect("reads")),
            seats: Arc::new(seats),
            commits: Arc::new(Commits::new(records.clone()).expect("reads")),
            writer,
            submissions: Default::default(),
            forwarding: Default::default(),
            recent: Default::default(),
            snapshots: Snapshots::restore(&records).expect("reads"),
            pool: Pool::restore(&records).expect("reads"),
            places: Places::restore(records.clone(), genesis.mode).expect("reads"),
            records,
            genesis: Arc::new(genesis),
            admissions: Admissions::open(),
            proofs: Default::default(),
            core: mpsc::channel(1).0,
            status: watch::channel(None).1,
            links: watch::channel(None).1,
            released: watch::Sender::new(None),
            upgrade_needed: watch::Sender::new(None),
            retention: Retention::Forever,
            stop,
        })
    }

    #[tokio::test]
    async fn a_session_that_ends_while_its_releases_become_durable_loses_no_place() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Arc::new(MemoryStore::default());
        store.commit(&[records::judged_change(&end(0))]).expect("commits");
        let delivery = delivery(store.clone(), directory.path());
        // As an earlier session left it to the writer, which never came to show it.
        let (seal_key, through) = (key(5).public_key(), CommitIndex(1));
        let released = Released { seal_key: seal_key.clone(), through };
        let changes = [
            records::release_change(&sealed(1)),
            records::judged_change(&end(1)),
            records::released_change(&released),
        ];
        store.commit(&changes).expect("commits");
        let digest = sealed(1).release.releases[0].digest;
        assert_eq!(delivery.places.find(&digest).expect("reads"), None);

        let opened = Opened {
            cluster: delivery.cluster,
            seal_key,
            judged: end(1),
            next_deadline: None,
            epoch_end: None,
            anchor: None,
            roster: Roster::founding(&delivery.genesis),
        };
        let session = Session::new(delivery.clone(), opened, through, Keeping::Releases);
        session.expect("the same life").begin().await.expect("begins");
        let place = delivery.places.find(&digest).expect("reads");
        assert_eq!(place, Some(OrderedAt { position: Position(1), commit: through }));
    }
}
