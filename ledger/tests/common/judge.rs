//! A judge for tests of the ledger alone: it speaks the processor's conversation, seals what it
//! releases, and judges by one deterministic rule: everything is accepted once. Its snapshots are
//! the digests of all that.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use dagger_bus::judging::{
    Admission, AdmissionOutcome, Admit, Asked, Judge, Judged, Open, Opened, ProofAt, Purpose,
    Restore, Restored, Then,
};
use dagger_bus::limits::JUDGED_KEPT_MAX;
use dagger_bus::{BusError, Connection};
use dagger_payload::codec;
use dagger_payload::committee::Committee;
use dagger_payload::event::{CHECKPOINT_COMMITS, CommitEnd};
use dagger_payload::handover::EpochEnd;
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, HistoryHash, LedgerTime, PayloadDigest, Position,
    StateRoot,
};
use dagger_payload::key::{Domain, SecretKey};
use dagger_payload::proof::{Finding, JudgedProof, Path, StateProof};
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::release::{
    CommitRelease, OrderedCommit, Release, SealedRelease, Verdict, initial_prefix,
};
use dagger_payload::roster::Roster;
use dagger_payload::snapshot::{Anchor, SealedAnchor, SnapshotHead, extend_history};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// As the genesis of the tests says.
pub const HANDOVER_DISTANCE_COMMITS: u64 = 10;

struct Life {
    seal: SecretKey,
    end: CommitEnd,
    /// The last commit with payloads, and what stood after it.
    changed: CommitIndex,
    ledger_time: LedgerTime,
    history: HistoryHash,
    anchor: Option<SealedAnchor>,
    seen: BTreeSet<PayloadDigest>,
    kept: VecDeque<(CommitIndex, Judged)>,
    epoch_end: Option<EpochEnd>,
    /// The state at the last checkpoint.
    checkpoint: Option<CommitEnd>,
    /// Makes another state of the same history.
    salt: u8,
    /// Whether snapshots are read.
    reads: Reads,
}

#[derive(Clone, Copy, PartialEq)]
enum Reads {
    Snapshots,
    None,
}

struct Court {
    cluster: ClusterId,
    life: Mutex<Life>,
    lives: watch::Sender<u8>,
}

pub struct TestJudge {
    court: Arc<Court>,
    path: PathBuf,
    serving: JoinHandle<()>,
}

fn root_after(before: StateRoot, digest: &PayloadDigest) -> StateRoot {
    // The same for every order, so that a snapshot needs none.
    let hash = *blake3::hash(digest.as_bytes()).as_bytes();
    StateRoot(std::array::from_fn(|at| before.0[at] ^ hash[at]))
}

impl Life {
    fn begin(cluster: &ClusterId, number: u8) -> Self {
        let end = CommitEnd {
            index: CommitIndex(0),
            position: Position(0),
            prefix_hash: initial_prefix(cluster),
            state_root: StateRoot([0x11; 32]),
        };
        Self {
            seal: SecretKey::from_seed(&[number; 32].into()),
            end,
            changed: CommitIndex(0),
            ledger_time: LedgerTime(0),
            history: HistoryHash::ZERO,
            anchor: None,
            seen: BTreeSet::new(),
            kept: VecDeque::new(),
            epoch_end: None,
            checkpoint: None,
            salt: 0,
            reads: Reads::Snapshots,
        }
    }

    fn judge(&mut self, commit: OrderedCommit) -> Judged {
        if commit.index != self.end.index.next() {
            let kept = self.kept.iter().find(|(index, _)| *index == commit.index);
            let expected = self.end.index.next();
            return kept.map_or(Judged::OutOfOrder { expected }, |(_, judged)| judged.clone());
        }
        let mut releases = Vec::new();
        for (position, ordered) in (commit.first_position.0..).zip(&commit.payloads) {
            let digest = ordered.payload.digest();
            let verdict = if self.seen.insert(digest) {
                self.end.state_root = root_after(self.end.state_root, &digest);
                self.end.state_root.0[0] ^= self.salt;
                self.change_members(&ordered.payload.bytes, commit.index);
                Verdict::Accepted
            } else {
                Verdict::Refused(Refusal::new(RefusalCode::Duplicate, "seen"))
            };
            releases.push(Release {
                position: Position(position),
                digest,
                ordered: ordered.clone(),
                verdict,
                effects: vec![],
            });
        }
        self.end.index = commit.index;
        self.end.position = commit.last_position();
        self.end.prefix_hash = commit.prefix_hash;
        let release = CommitRelease {
            end: self.end,
            ledger_time: commit.ledger_time,
            releases,
            time_effects: vec![],
        };
        if !release.is_empty() {
            (self.changed, self.ledger_time) = (commit.index, commit.ledger_time);
        }
        self.history = extend_history(&self.history, &release);
        if commit.index.0.is_multiple_of(CHECKPOINT_COMMITS) {
            self.checkpoint = Some(self.changed_end());
        }
        let seal = self.seal.sign_in(Domain::Seal, &release.seal_digest());
        let sealed = SealedRelease { release, seal };
        let epoch_end = self.epoch_end;
        let (sealed, next_deadline, roster) = (Box::new(sealed), None, None);
        let judged = Judged::Done { sealed, next_deadline, epoch_end, roster };
        if epoch_end.is_some_and(|end| end.last == commit.index) {
            self.epoch_end = None;
        }
        self.kept.push_back((commit.index, judged.clone()));
        if self.kept.len() > JUDGED_KEPT_MAX {
            self.kept.pop_front();
        }
        judged
    }

    /// What begins with history, time and epoch's end, and goes on with what was seen.
    fn chunks(&self) -> Vec<Vec<u8>> {
        let seen: Vec<_> = self.seen.iter().collect();
        let first = codec::encode(&(self.history, self.ledger_time, self.epoch_end));
        let rest = seen.chunks(10).map(|ten| ten.iter().flat_map(|each| each.0).collect());
        [first].into_iter().chain(rest).collect()
    }

    /// The life that begins with a snapshot.
    fn restored(number: u8, head: &SnapshotHead, chunks: &[Bytes]) -> Result<Self, String> {
        let mut life = Self::begin(&ClusterId([0; 32]), number);
        let (first, rest) = chunks.split_first().ok_or("no chunk")?;
        (life.history, life.ledger_time, life.epoch_end) =
            codec::decode(first).map_err(|error| error.to_string())?;
        let mut root = life.end.state_root;
        for digest in rest.iter().flat_map(|chunk| chunk.chunks(32)) {
            let digest = PayloadDigest(digest.try_into().map_err(|_| "cut")?);
            root = root_after(root, &digest);
            life.seen.insert(digest);
        }
        if root != head.end.state_root {
            return Err("another root".to_owned());
        }
        (life.end, life.changed) = (head.end, head.end.index);
        let (end, ledger_time, history) = (life.end, life.ledger_time, life.history);
        let anchor = Anchor { end, ledger_time, history };
        let seal = life.seal.sign_in(Domain::Seal, &anchor.seal_digest());
        life.anchor = Some(SealedAnchor { anchor, seal });
        Ok(life)
    }

    fn opened(&self, cluster: ClusterId) -> Opened {
        Opened {
            cluster,
            seal_key: self.seal.public_key(),
            judged: self.end,
            next_deadline: None,
            epoch_end: self.epoch_end,
            anchor: self.anchor.clone(),
            roster: Roster::try_from(Vec::new()).expect("nobody is in order"),
        }
    }

    /// The payload `members 0 2 3` names who votes in the next epoch.
    fn change_members(&mut self, payload: &[u8], decided: CommitIndex) {
        let text = String::from_utf8_lossy(payload);
        if let Some(members) = text.strip_prefix("members ") {
            let members = members.split(' ').map(|index| index.parse().expect("an index"));
            let committee = Committee::of(members.map(AuthorIndex)).expect("in range");
            let last = CommitIndex(decided.0 + HANDOVER_DISTANCE_COMMITS);
            self.epoch_end.get_or_insert(EpochEnd { last, committee });
        }
    }

    /// The last commit end that changed anything.
    fn changed_end(&self) -> CommitEnd {
        CommitEnd { index: self.changed, ..self.end }
    }

    /// It has no tree: whatever is asked is not there.
    fn prove(&self, at: ProofAt) -> AdmissionOutcome {
        let end = match at {
            ProofAt::Present => Some(self.changed_end()),
            ProofAt::Checkpoint => self.checkpoint,
        };
        let state = StateProof { path: Path(Vec::new()), finding: Finding::Nothing };
        let proof = end.map(|end| Box::new(JudgedProof { end, state }));
        proof.map_or(AdmissionOutcome::NotProven, |proof| AdmissionOutcome::Proven { proof })
    }

    fn admit(&self, admit: &Admit) -> AdmissionOutcome {
        let payload = match &admit.asked {
            Asked::Pack { payload } => payload,
            Asked::Prove { at, .. } => return self.prove(*at),
            Asked::Predict { .. } => panic!("it predicts nothing"),
        };
        let digest = payload.digest();
        if self.seen.contains(&digest) {
            AdmissionOutcome::Known { digest }
        } else if payload.bytes.starts_with(b"refuse") {
            let refusal = Refusal::new(RefusalCode::NotAuthorized, "as it says");
            AdmissionOutcome::Refused { refusal }
        } else {
            let account = None;
            AdmissionOutcome::Admitted { digest, account }
        }
    }
}

impl TestJudge {
    pub fn start(cluster: ClusterId, path: &std::path::Path, first_life: u8) -> Self {
        let court = Arc::new(Court {
            cluster,
            life: Mutex::new(Life::begin(&cluster, first_life)),
            lives: watch::Sender::new(first_life),
        });
        let listener = dagger_bus::listener::bind(path).expect("binds");
        let serving = tokio::spawn(serve(court.clone(), listener));
        Self { court, path: path.to_owned(), serving }
    }

    /// The judge's process dies and another one takes its place.
    pub async fn restart(&mut self) {
        self.serving.abort();
        // The socket is closed when the task is gone.
        let _ = (&mut self.serving).await;
        let next = *self.court.lives.borrow() + 100;
        self.court.lives.send_replace(next);
        *self = Self::start(self.court.cluster, &self.path.clone(), next);
    }

    /// Another judge takes its place, which refuses what this one accepted.
    pub async fn restart_with_other_rules(&mut self) {
        self.restart().await;
        self.court.life.lock().expect("no panics").salt = 1;
    }

    /// Another judge takes its place, which can read no snapshot.
    pub async fn restart_that_refuses_snapshots(&mut self) {
        self.restart().await;
        self.court.life.lock().expect("no panics").reads = Reads::None;
    }

    /// Number of the present life.
    pub fn life(&self) -> u8 {
        *self.court.lives.borrow()
    }
}

impl Drop for TestJudge {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(court: Arc<Court>, listener: UnixListener) {
    loop {
        let (stream, _) = listener.accept().await.expect("accepts");
        let court = court.clone();
        tokio::spawn(async move {
            let mut lives = court.lives.subscribe();
            let connection = Connection::new(stream);
            // How a conversation ends is the ledger's business.
            let _ = converse(&court, connection, &mut lives).await;
        });
    }
}

async fn write_down(court: &Court, connection: &mut Connection) -> Result<(), BusError> {
    let (end, changed, made_after, chunks) = {
        let life = court.life.lock().expect("no panics");
        (life.end, life.changed, life.end.index, life.chunks())
    };
    let count = u32::try_from(chunks.len()).expect("few");
    let end = CommitEnd { index: changed, ..end };
    let mut head = SnapshotHead { end, chunks: count, bytes: 0, made_after };
    for chunk in chunks {
        head.bytes += u64::try_from(chunk.len()).expect("short");
        connection.sender.send(&Judged::Chunk { bytes: chunk.into() }).await?;
    }
    connection.sender.send(&Judged::Snapshot { head }).await
}

async fn restore(court: &Court, connection: &mut Connection) -> Result<(), BusError> {
    let Restore::Head { head } = connection.receiver.receive().await? else {
        return Err(BusError::Malformed);
    };
    let mut chunks = Vec::new();
    for _ in 0..head.chunks {
        let Restore::Chunk { bytes } = connection.receiver.receive().await? else {
            return Err(BusError::Malformed);
        };
        chunks.push(bytes);
    }
    let next = *court.lives.borrow() + 1;
    let reads = court.life.lock().expect("no panics").reads;
    match Life::restored(next, &head, &chunks) {
        Ok(life) if reads == Reads::Snapshots => {
            let opened = Box::new(life.opened(court.cluster));
            *court.life.lock().expect("no panics") = life;
            court.lives.send_replace(next);
            connection.sender.send(&Restored::Done { opened }).await
        }
        refused => {
            let why = refused.err().unwrap_or_else(|| "it is not read".to_owned());
            connection.sender.send(&Restored::Refused { why }).await?;
            Err(BusError::Closed)
        }
    }
}

async fn converse(
    court: &Court,
    mut connection: Connection,
    lives: &mut watch::Receiver<u8>,
) -> Result<(), BusError> {
    let open: Open = connection.receiver.receive().await?;
    if open.purpose == Purpose::JudgementAnew {
        let next = *court.lives.borrow() + 1;
        *court.life.lock().expect("no panics") = Life::begin(&court.cluster, next);
        court.lives.send_replace(next);
    }
    lives.mark_unchanged();
    let opened = court.life.lock().expect("no panics").opened(court.cluster);
    connection.sender.send(&opened).await?;
    if open.purpose == Purpose::JudgementFrom {
        restore(court, &mut connection).await?;
        lives.mark_unchanged();
    }
    loop {
        if open.purpose == Purpose::Admissions {
            let admit: Admit = tokio::select! {
                _ = lives.changed() => return Ok(()),
                admit = connection.receiver.receive() => admit?,
            };
            let outcome = court.life.lock().expect("no panics").admit(&admit);
            connection.sender.send(&Admission { id: admit.id, outcome }).await?;
        } else {
            let judge: Judge = tokio::select! {
                _ = lives.changed() => return Ok(()),
                judge = connection.receiver.receive() => judge?,
            };
            let judged = court.life.lock().expect("no panics").judge(judge.commit);
            connection.sender.send(&judged).await?;
            if judge.then == Then::Snapshot {
                write_down(court, &mut connection).await?;
            }
        }
    }
}
