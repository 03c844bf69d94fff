//! A judge for tests of the ledger alone: it speaks the processor's conversation, seals what it
//! releases, and judges by one deterministic rule: everything is accepted once. Its snapshots are
//! the digests of all that. Some payloads also say who has a seat and who votes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
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
use dagger_payload::genesis::Genesis;
use dagger_payload::handover::{EpochEnd, NextMembers};
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, Epoch, HistoryHash, HostId, LedgerTime, PayloadDigest,
    Position, ProtocolVersion,
};
use dagger_payload::key::{Domain, SecretKey};
use dagger_payload::object::Effect;
use dagger_payload::proof::JudgedProof;
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::release::{
    CommitRelease, OrderedCommit, Release, SealedRelease, Verdict, initial_prefix,
};
use dagger_payload::roster::{EpochMembers, Roster, Seat, SeatStanding};
use dagger_payload::snapshot::{Anchor, SealedAnchor, SnapshotHead, extend_history};
use dagger_payload::state_tree::Subject;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::tree::{self, Leaves};

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
    /// The same for every order, so that a snapshot needs none.
    seen_hash: [u8; 32],
    roster: Roster,
    epochs: BTreeMap<Epoch, EpochMembers>,
    kept: VecDeque<(CommitIndex, Judged)>,
    epoch_end: Option<EpochEnd>,
    /// The state at the last checkpoint.
    checkpoint: Option<(CommitEnd, Leaves)>,
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
    genesis: Genesis,
    life: Mutex<Life>,
    lives: watch::Sender<u8>,
    /// The newest version of the rules that this judge knows.
    knows: AtomicU32,
}

pub struct TestJudge {
    court: Arc<Court>,
    path: PathBuf,
    serving: JoinHandle<()>,
}

fn hash_after(before: [u8; 32], digest: &PayloadDigest) -> [u8; 32] {
    let hash = *blake3::hash(digest.as_bytes()).as_bytes();
    std::array::from_fn(|at| before[at] ^ hash[at])
}

/// A seat of the tests: key `seed` at `address`.
pub fn seat(index: u16, seed: u8, address: &str, host: HostId) -> Seat {
    let founder = super::key(1).public_key();
    Seat {
        index: AuthorIndex(index),
        host,
        name: format!("host{}", index + 1).parse().expect("a name"),
        operator: dagger_payload::id::OperatorId::of(&founder),
        ledger_key: super::key(seed).public_key(),
        address: address.parse().expect("an address"),
        standing: SeatStanding::Present,
    }
}

impl Life {
    fn begin(cluster: &ClusterId, genesis: &Genesis, number: u8) -> Self {
        let first = EpochMembers::founding(genesis);
        let end = CommitEnd {
            index: CommitIndex(0),
            position: Position(0),
            prefix_hash: initial_prefix(cluster),
            state_root: dagger_payload::id::StateRoot::ZERO,
        };
        let mut life = Self {
            seal: SecretKey::from_seed(&[number; 32].into()),
            end,
            changed: CommitIndex(0),
            ledger_time: LedgerTime(0),
            history: HistoryHash::ZERO,
            anchor: None,
            seen: BTreeSet::new(),
            seen_hash: [0x11; 32],
            roster: Roster::founding(genesis),
            epochs: BTreeMap::from([(first.epoch, first)]),
            kept: VecDeque::new(),
            epoch_end: None,
            checkpoint: None,
            salt: 0,
            reads: Reads::Snapshots,
        };
        life.end.state_root = tree::root(&life.leaves());
        life
    }

    fn leaves(&self) -> Leaves {
        let seats = self.roster.seats().iter();
        let seats = seats.map(|seat| (Subject::Seat(seat.index).key(), codec::encode(seat)));
        let epochs = self.epochs.values();
        let epochs = epochs.map(|each| (Subject::Epoch(each.epoch).key(), codec::encode(each)));
        let seen = (b"seen".to_vec(), self.seen_hash.to_vec());
        seats.chain(epochs).chain([seen]).collect()
    }

    /// Who votes in the next epoch, after the last commit of this one.
    fn next_members(&self) -> Option<Box<NextMembers>> {
        let last = self.epoch_end.filter(|end| end.last == self.end.index)?;
        let (epoch, leaves) = (*self.epochs.last_key_value()?.0, self.leaves());
        let prove = |subject: Subject| tree::prove(&leaves, &subject.key());
        let seats = last.committee.authors().map(|author| (author, prove(Subject::Seat(author))));
        let (members, seats) = (prove(Subject::Epoch(epoch)), seats.collect());
        Some(Box::new(NextMembers { epoch, members, seats }))
    }

    fn judge(&mut self, commit: OrderedCommit, knows: ProtocolVersion) -> Judged {
        if commit.index != self.end.index.next() {
            let kept = self.kept.iter().find(|(index, _)| *index == commit.index);
            let expected = self.end.index.next();
            return kept.map_or(Judged::OutOfOrder { expected }, |(_, judged)| judged.clone());
        }
        let mut epochs = self.epochs.values().rev();
        let epoch = epochs.find(|each| each.begins_after < commit.index);
        let needs = epoch.expect("the first begins after nothing").protocol;
        if needs > knows {
            return Judged::Upgrade { needs };
        }
        let mut releases = Vec::new();
        let before = self.roster.clone();
        for (position, ordered) in (commit.first_position.0..).zip(&commit.payloads) {
            let digest = ordered.payload.digest();
            let mut effects = Vec::new();
            let verdict = if self.seen.insert(digest) {
                self.seen_hash = hash_after(self.seen_hash, &digest);
                self.seen_hash[0] ^= self.salt;
                let members = self.change_members(&ordered.payload.bytes, commit.index);
                effects.extend(members.map(|members| Effect::Epoch(Box::new(members))));
                let seats = self.change_seats(&ordered.payload.bytes).into_iter();
                effects.extend(seats.map(|seat| Effect::Seat(Box::new(seat))));
                Verdict::Accepted
            } else {
                Verdict::Refused(Refusal::new(RefusalCode::Duplicate, "seen"))
            };
            releases.push(Release {
                position: Position(position),
                digest,
                ordered: ordered.clone(),
                verdict,
                effects,
            });
        }
        if !releases.is_empty() {
            self.end.state_root = tree::root(&self.leaves());
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
            self.checkpoint = Some((self.changed_end(), self.leaves()));
        }
        let seal = self.seal.sign_in(Domain::Seal, &release.seal_digest());
        let sealed = SealedRelease { release, seal };
        let epoch_end = self.epoch_end;
        let roster = (self.roster != before).then(|| Box::new(self.roster.clone()));
        let next_members = self.next_members();
        let (sealed, next_deadline) = (Box::new(sealed), None);
        let judged = Judged::Done { sealed, next_deadline, epoch_end, roster, next_members };
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
        let epochs: Vec<_> = self.epochs.values().copied().collect();
        let (time, end) = (self.ledger_time, self.epoch_end);
        let first = codec::encode(&(self.history, time, end, self.roster.clone(), epochs));
        let rest = seen.chunks(10).map(|ten| ten.iter().flat_map(|each| each.0).collect());
        [first].into_iter().chain(rest).collect()
    }

    /// The life that begins with a snapshot.
    fn restored(mut life: Self, head: &SnapshotHead, chunks: &[Bytes]) -> Result<Self, String> {
        let (first, rest) = chunks.split_first().ok_or("no chunk")?;
        let epochs: Vec<EpochMembers>;
        (life.history, life.ledger_time, life.epoch_end, life.roster, epochs) =
            codec::decode(first).map_err(|error| error.to_string())?;
        life.epochs = epochs.into_iter().map(|each| (each.epoch, each)).collect();
        for digest in rest.iter().flat_map(|chunk| chunk.chunks(32)) {
            let digest = PayloadDigest(digest.try_into().map_err(|_| "cut")?);
            life.seen_hash = hash_after(life.seen_hash, &digest);
            life.seen.insert(digest);
        }
        if tree::root(&life.leaves()) != head.end.state_root {
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
            roster: self.roster.clone(),
        }
    }

    /// The payload `members 0 2 3` names who votes in the next epoch, `protocol 2` the version of
    /// the rules that counts from then on.
    fn change_members(&mut self, payload: &[u8], decided: CommitIndex) -> Option<EpochMembers> {
        let text = String::from_utf8_lossy(payload);
        let present = *self.epochs.last_key_value().expect("the first one").1;
        let (committee, protocol) = if let Some(members) = text.strip_prefix("members ") {
            let members = members.split(' ').map(|index| index.parse().expect("an index"));
            let committee = Committee::of(members.map(AuthorIndex)).expect("in range");
            (committee, present.protocol)
        } else if let Some(version) = text.strip_prefix("protocol ") {
            (present.committee, ProtocolVersion(version.parse().expect("a version")))
        } else {
            return None;
        };
        if self.epoch_end.is_some() {
            return None;
        }
        let last = CommitIndex(decided.0 + HANDOVER_DISTANCE_COMMITS);
        self.epoch_end = Some(EpochEnd { last, committee });
        let (epoch, begins_after) = (present.epoch.next(), last);
        let members = EpochMembers { epoch, committee, begins_after, protocol };
        self.epochs.insert(epoch, members);
        Some(members)
    }

    /// `seat 4 SEED ADDRESS` gives the next seat to a new host, `rotate 5 SEED FROM` to the host of
    /// another seat, which it leaves; `leave 3` empties one; `move 2 ADDRESS` says where its host
    /// listens now.
    fn change_seats(&mut self, payload: &[u8]) -> Vec<Seat> {
        let text = String::from_utf8_lossy(payload);
        let words: Vec<&str> = text.split(' ').collect();
        let number = |word: &str| word.parse::<u16>().expect("a number");
        let seed = |word: &str| word.parse::<u8>().expect("a seed");
        let seat_at = |index: &str| {
            let seat = self.roster.seat(AuthorIndex(number(index)));
            seat.expect("a seat").clone()
        };
        let new = match words.as_slice() {
            ["seat", index, key, address] => {
                let host = HostId::of(&super::key(seed(key)).public_key());
                vec![seat(number(index), seed(key), address, host)]
            }
            ["rotate", index, key, from] => {
                let before = seat_at(from);
                let ledger_key = super::key(seed(key)).public_key();
                let index = AuthorIndex(number(index));
                let left = Seat { standing: SeatStanding::Left, ..before.clone() };
                vec![left, Seat { index, ledger_key, ..before }]
            }
            ["leave", index] => vec![Seat { standing: SeatStanding::Left, ..seat_at(index) }],
            ["move", index, address] => {
                let address = address.parse().expect("an address");
                vec![Seat { address, ..seat_at(index) }]
            }
            _ => Vec::new(),
        };
        for seat in &new {
            self.roster.put(seat).expect("in order");
        }
        new
    }

    /// The last commit end that changed anything.
    fn changed_end(&self) -> CommitEnd {
        CommitEnd { index: self.changed, ..self.end }
    }

    fn prove(&self, subject: &Subject, at: ProofAt) -> AdmissionOutcome {
        let state = match at {
            ProofAt::Present => Some((self.changed_end(), self.leaves())),
            ProofAt::Checkpoint => self.checkpoint.clone(),
        };
        let proof = state.map(|(end, leaves)| {
            Box::new(JudgedProof { end, state: tree::prove(&leaves, &subject.key()) })
        });
        proof.map_or(AdmissionOutcome::NotProven, |proof| AdmissionOutcome::Proven { proof })
    }

    fn admit(&self, admit: &Admit) -> AdmissionOutcome {
        let payload = match &admit.asked {
            Asked::Pack { payload } => payload,
            Asked::Prove { subject, at } => return self.prove(subject, *at),
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
    pub fn start(cluster: ClusterId, genesis: &Genesis, path: &Path, first_life: u8) -> Self {
        let court = Arc::new(Court {
            cluster,
            genesis: genesis.clone(),
            life: Mutex::new(Life::begin(&cluster, genesis, first_life)),
            lives: watch::Sender::new(first_life),
            knows: AtomicU32::new(u32::MAX),
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
        let (cluster, genesis) = (self.court.cluster, self.court.genesis.clone());
        *self = Self::start(cluster, &genesis, &self.path.clone(), next);
    }

    /// From now on it knows the rules up to this version only.
    pub fn knows_up_to(&self, version: u32) {
        self.court.knows.store(version, Ordering::SeqCst);
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

    /// All seats, as it has judged them.
    pub fn roster(&self) -> Roster {
        self.court.life.lock().expect("no panics").roster.clone()
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
    let life = Life::begin(&court.cluster, &court.genesis, next);
    match Life::restored(life, &head, &chunks) {
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
        *court.life.lock().expect("no panics") = Life::begin(&court.cluster, &court.genesis, next);
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
            let knows = ProtocolVersion(court.knows.load(Ordering::SeqCst));
            let judged = court.life.lock().expect("no panics").judge(judge.commit, knows);
            connection.sender.send(&judged).await?;
            if judge.then == Then::Snapshot && matches!(judged, Judged::Done { .. }) {
                write_down(court, &mut connection).await?;
            }
        }
    }
}
