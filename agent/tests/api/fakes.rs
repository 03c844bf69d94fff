//! The fake ledger and the fake processor: what they say is what the test put in.

use std::path::Path;
use std::sync::{Arc, Mutex};

use dagger_bus::Connection;
use dagger_bus::ledger::{
    Answer, Call, Consumed, ForkEvidence, ForkStatus, LedgerStatus, LinkStatus, MemberStatus, Open,
    Opened, Purpose, Request, Response, Standing, StreamItem, Unavailable,
};
use dagger_bus::seal::SealKey;
use dagger_payload::attested::AttestedProof;
use dagger_payload::id::{
    AuthorIndex, CommitIndex, Epoch, EventDigest, PayloadDigest, Position, Round,
};
use dagger_payload::key::PublicKey;
use dagger_payload::payload::SignedPayload;
use dagger_payload::prediction::Prediction;
use dagger_payload::refusal::{Refusal, RefusalCode};
use tokio::net::UnixListener;
use tokio::sync::{broadcast, mpsc, watch};

use crate::support::{TIME, World};

/// What the fake says to a submission.
#[derive(Debug, Clone)]
pub(crate) enum OnSubmit {
    Receive,
    Refuse(Refusal),
    Unavailable(Unavailable),
}

#[derive(Clone)]
struct Script {
    world: Arc<World>,
    items: watch::Sender<Vec<StreamItem>>,
    on_submit: Arc<Mutex<OnSubmit>>,
    proof: Arc<Mutex<Option<AttestedProof>>>,
    received: Arc<Mutex<Vec<PayloadDigest>>>,
    submitted: mpsc::UnboundedSender<SignedPayload>,
    cut: broadcast::Sender<()>,
}

pub(crate) struct FakeLedger {
    script: Script,
    /// What was submitted, in order.
    pub(crate) submitted: mpsc::UnboundedReceiver<SignedPayload>,
}

impl FakeLedger {
    pub(crate) fn listen(path: &Path, world: &Arc<World>) -> Self {
        let listener = UnixListener::bind(path).expect("a fresh path");
        let (submitted_sender, submitted) = mpsc::unbounded_channel();
        let script = Script {
            world: Arc::clone(world),
            items: watch::Sender::new(Vec::new()),
            on_submit: Arc::new(Mutex::new(OnSubmit::Receive)),
            proof: Arc::default(),
            received: Arc::default(),
            submitted: submitted_sender,
            cut: broadcast::Sender::new(1),
        };
        let serving = script.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let script = serving.clone();
                tokio::spawn(async move { script.serve(Connection::new(stream)).await });
            }
        });
        Self { script, submitted }
    }

    pub(crate) fn say(&self, item: StreamItem) {
        self.script.items.send_modify(|items| items.push(item));
    }

    pub(crate) fn say_all(&self, items: Vec<StreamItem>) {
        self.script.items.send_modify(|all| all.extend(items));
    }

    /// Forgets everything said so far, for readers that connect from now on, and cuts those that
    /// are connected.
    pub(crate) fn start_over(&self, items: Vec<StreamItem>) {
        self.script.items.send_replace(items);
        let _ = self.script.cut.send(());
    }

    pub(crate) fn on_submit(&self, answer: OnSubmit) {
        *self.script.on_submit.lock().expect("no panic") = answer;
    }

    /// What it answers from now on, whatever is to be proven.
    pub(crate) fn prove(&self, proof: AttestedProof) {
        *self.script.proof.lock().expect("no panic") = Some(proof);
    }

    pub(crate) fn caught_up(&self, commit: u64) {
        self.say(StreamItem::CaughtUp { commit: CommitIndex(commit) });
    }
}

impl Script {
    async fn serve(&self, mut connection: Connection) -> Option<()> {
        let mut cut = self.cut.subscribe();
        let open: Open = connection.receiver.receive().await.ok()?;
        assert_eq!(open.cluster, self.world.cluster);
        let opened = Opened { cluster: self.world.cluster, host: self.world.host_id(0) };
        connection.sender.send(&opened).await.ok()?;
        let serving = async {
            match open.purpose {
                Purpose::Requests {} => self.serve_requests(connection).await,
                Purpose::Releases { after, .. } => self.serve_releases(connection, after).await,
            }
        };
        tokio::select! {
            done = serving => done,
            _ = cut.recv() => None,
        }
    }

    async fn serve_requests(&self, mut connection: Connection) -> Option<()> {
        loop {
            let request: Request = connection.receiver.receive().await.ok()?;
            let response = Response { id: request.id, answer: self.answer(request.call) };
            connection.sender.send(&response).await.ok()?;
        }
    }

    fn answer(&self, call: Call) -> Answer {
        match call {
            Call::Submit { payload } => self.answer_submit(payload),
            Call::Look { digest } => Answer::Standing { standing: self.standing(&digest) },
            Call::Status {} => Answer::Status { status: Box::new(self.status()) },
            Call::Evidence { .. } => Answer::Evidence { evidence: None },
            Call::Prove { .. } => {
                let proof = self.proof.lock().expect("no panic").clone();
                Answer::Proof { proof: proof.map(Box::new) }
            }
            Call::Predict { .. } => {
                let refusal = Some(Refusal::new(RefusalCode::NoHostFits, "it is a fake"));
                let (effects, hosts) = (Vec::new(), Vec::new());
                let prediction = Prediction { refusal, effects, hosts, hosts_left_out: 0 };
                Answer::Prediction { prediction: Box::new(prediction) }
            }
        }
    }

    fn standing(&self, digest: &PayloadDigest) -> Standing {
        if self.received.lock().expect("no panic").contains(digest) {
            Standing::Received {}
        } else {
            Standing::Unknown {}
        }
    }

    fn answer_submit(&self, payload: SignedPayload) -> Answer {
        let digest = payload.digest();
        let on_submit = self.on_submit.lock().expect("no panic").clone();
        let _ = self.submitted.send(payload);
        match on_submit {
            OnSubmit::Receive => {
                self.received.lock().expect("no panic").push(digest);
                Answer::Receipt { digest, standing: Standing::Received {} }
            }
            OnSubmit::Refuse(refusal) => Answer::Refused { refusal },
            OnSubmit::Unavailable(reason) => Answer::Unavailable { reason },
        }
    }

    fn status(&self) -> LedgerStatus {
        let on_submit = self.on_submit.lock().expect("no panic").clone();
        let members = self.world.genesis.hosts.iter().enumerate();
        let member = |(index, host): (usize, &dagger_payload::genesis::GenesisHost)| MemberStatus {
            author: AuthorIndex(u16::try_from(index).expect("few members")),
            name: host.name.clone(),
            host: host.id(),
            link: [LinkStatus::Own, LinkStatus::Connected][usize::from(index > 0)],
            highest_round: Round(3),
        };
        LedgerStatus {
            cluster: self.world.cluster,
            author: AuthorIndex(0),
            epoch: Epoch(0),
            round: Round(3),
            committed: CommitIndex(1),
            judged: CommitIndex(1),
            attested: CommitIndex(1),
            position: Position(1),
            ledger_time: TIME,
            members: members.map(member).collect(),
            quorum: 3,
            waiting: 0,
            store_bytes: 4096,
            snapshot: CommitIndex(0),
            pruned_round: Round(0),
            pruned_epoch: Epoch(0),
            forks: vec![self.fork()],
            committee: self.world.genesis.committee(),
            epoch_end: None,
            unavailable: match on_submit {
                OnSubmit::Unavailable(reason) => Some(reason),
                OnSubmit::Receive | OnSubmit::Refuse(_) => None,
            },
        }
    }

    /// The second host signed twice.
    fn fork(&self) -> ForkStatus {
        let host = &self.world.genesis.hosts[1];
        let (first, second) = (EventDigest([1; 32]), EventDigest([2; 32]));
        let evidence = Some(ForkEvidence { round: Round(3), first, second });
        ForkStatus { author: AuthorIndex(1), name: host.name.clone(), host: host.id(), evidence }
    }

    async fn serve_releases(&self, connection: Connection, after: CommitIndex) -> Option<()> {
        let Connection { mut sender, mut receiver } = connection;
        let mut items = self.items.subscribe();
        let mut said = 0;
        loop {
            let fresh: Vec<_> = items.borrow_and_update()[said..].to_vec();
            said += fresh.len();
            for item in fresh {
                let old = matches!(&item, StreamItem::Release { sealed }
                    if sealed.release.end.index <= after);
                if !old {
                    sender.send(&item).await.ok()?;
                }
            }
            tokio::select! {
                changed = items.changed() => changed.ok()?,
                consumed = receiver.receive::<Consumed>() => { consumed.ok()?; }
            }
        }
    }
}

/// Hands out a seal key; a new key cuts whoever holds the old one.
pub(crate) struct FakeProcessor {
    key: watch::Sender<PublicKey>,
}

impl FakeProcessor {
    pub(crate) fn listen(path: &Path, world: &Arc<World>, key: PublicKey) -> Self {
        let listener = UnixListener::bind(path).expect("a fresh path");
        let key = watch::Sender::new(key);
        let (keys, cluster) = (key.clone(), world.cluster);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut keys = keys.subscribe();
                tokio::spawn(async move {
                    let mut connection = Connection::new(stream);
                    let key = keys.borrow_and_update().clone();
                    let _ = connection.sender.send(&SealKey { cluster, key }).await;
                    // Dropping the connection is how a processor's end looks.
                    let _ = keys.changed().await;
                });
            }
        });
        Self { key }
    }

    pub(crate) fn restart_with(&self, key: PublicKey) {
        self.key.send_replace(key);
    }
}
