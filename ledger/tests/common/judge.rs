//! A judge for tests of the ledger alone: it speaks the processor's conversation, seals what it
//! releases, and judges by one deterministic rule: everything is accepted once.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use dagger_bus::judging::{
    Admission, AdmissionOutcome, Admit, Judge, Judged, Open, Opened, Purpose,
};
use dagger_bus::limits::JUDGED_KEPT_MAX;
use dagger_bus::{BusError, Connection};
use dagger_payload::committee::Committee;
use dagger_payload::event::CommitEnd;
use dagger_payload::handover::EpochEnd;
use dagger_payload::id::{AuthorIndex, ClusterId, CommitIndex, PayloadDigest, Position, StateRoot};
use dagger_payload::key::{Domain, SecretKey};
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::release::{
    CommitRelease, OrderedCommit, Release, SealedRelease, Verdict, initial_prefix,
};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// As the genesis of the tests says.
pub const HANDOVER_DISTANCE_COMMITS: u64 = 10;

struct Life {
    seal: SecretKey,
    end: CommitEnd,
    seen: HashSet<PayloadDigest>,
    kept: VecDeque<(CommitIndex, Judged)>,
    epoch_end: Option<EpochEnd>,
    /// Makes another state of the same history.
    salt: u8,
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
    let mut hasher = blake3::Hasher::new();
    StateRoot(*hasher.update(before.as_bytes()).update(digest.as_bytes()).finalize().as_bytes())
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
            seen: HashSet::new(),
            kept: VecDeque::new(),
            epoch_end: None,
            salt: 0,
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
        let seal = self.seal.sign_in(Domain::Seal, &release.seal_digest());
        let sealed = SealedRelease { release, seal };
        let epoch_end = self.epoch_end;
        let judged = Judged::Done { sealed: Box::new(sealed), next_deadline: None, epoch_end };
        if epoch_end.is_some_and(|end| end.last == commit.index) {
            self.epoch_end = None;
        }
        self.kept.push_back((commit.index, judged.clone()));
        if self.kept.len() > JUDGED_KEPT_MAX {
            self.kept.pop_front();
        }
        judged
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

    fn admit(&self, admit: &Admit) -> AdmissionOutcome {
        let digest = admit.payload.digest();
        if self.seen.contains(&digest) {
            AdmissionOutcome::Known { digest }
        } else if admit.payload.bytes.starts_with(b"refuse") {
            let refusal = Refusal::new(RefusalCode::NotAuthorized, "as it says");
            AdmissionOutcome::Refused { refusal }
        } else {
            let account = None;
            AdmissionOutcome::Admitted { digest, account }
        }
    }
}

impl TestJudge {
    pub fn start(cluster: ClusterId, path: &Path, first_life: u8) -> Self {
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
    let opened = {
        let life = court.life.lock().expect("no panics");
        Opened {
            cluster: court.cluster,
            seal_key: life.seal.public_key(),
            judged: life.end,
            next_deadline: None,
            epoch_end: life.epoch_end,
        }
    };
    connection.sender.send(&opened).await?;
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
        }
    }
}
