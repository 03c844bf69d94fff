//! Valid bytes of every kind: a small cluster, what its people signed, what came of it.
//!
//! Owns the world from which the samples are taken; it is the same in every run. Called by the
//! table of decoders.

use std::sync::OnceLock;

use bytes::Bytes;
use dagger_bus::judging::{AdmissionOutcome, Opened};
use dagger_ledger_core::Frontier;
use dagger_ledger_core::interface::CommitRecord;
use dagger_payload::committee::Committee;
use dagger_payload::event::{Attestation, CommitEnd, EVENT_VERSION, Event, Header, SignedHeader};
use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::handover::{EpochEnd, Founding, Handover};
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, Epoch, Generation, HostId, LedgerTime, MerkleRoot,
    PayloadDigest, Position, PrefixHash, Round, StateRoot, VmId, VolumeId,
};
use dagger_payload::key::{Domain, SecretKey};
use dagger_payload::kind::Body;
use dagger_payload::payload::{Payload, SignedPayload};
use dagger_payload::release::{
    OrderedCommit, OrderedPayload, QuorumEvidence, SealedRelease, extend_prefix,
};
use dagger_payload::roster::Roster;
use dagger_payload::snapshot::{SealedAnchor, SnapshotHead, SnapshotOffer};
use dagger_processor::judge::Judge;
use dagger_processor::judge::snapshot::Snapshot;
use dagger_processor::verify::verify;
use serde_json::{Value, json};

/// Ledger time of the world.
pub const NOW: LedgerTime = LedgerTime(1_700_000_000_000);

/// Everything that samples are taken from.
pub struct World {
    /// The founding document.
    pub genesis: Genesis,
    /// Its digest.
    pub cluster: ClusterId,
    /// The payloads of a life, from the host's joining to a deleted machine.
    pub lived: Vec<SignedPayload>,
    /// One document of every kind.
    pub documents: Vec<Vec<u8>>,
    /// What was ordered.
    pub commits: Vec<OrderedCommit>,
    /// What came of it.
    pub releases: Vec<SealedRelease>,
    /// The judged state, written down.
    pub snapshot: (SnapshotHead, Vec<Vec<u8>>),
    /// Events with and without parents and payloads.
    pub events: Vec<Event>,
    /// How ordering goes on after a commit.
    pub frontier: Frontier,
    /// Where the judge's life began.
    pub anchor: SealedAnchor,
    /// All seats.
    pub roster: Roster,
    /// What a dry run says.
    pub predicted: AdmissionOutcome,
}

/// The key of number `byte`.
pub fn key(byte: u8) -> SecretKey {
    SecretKey::from_seed(&[byte; 32].into())
}

/// The world.
pub fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(World::live)
}

fn operator() -> SecretKey {
    key(10)
}

fn developer() -> SecretKey {
    key(1)
}

fn agent() -> SecretKey {
    key(30)
}

fn ledger(author: u16) -> SecretKey {
    key(20 + u8::try_from(author).expect("four"))
}

fn genesis() -> Genesis {
    let name = |text: &str| text.parse().expect("a name");
    let host = |index: u16| GenesisHost {
        name: name(&format!("host{index}")),
        operator: name("op"),
        ledger_key: ledger(index).public_key(),
        address: "127.0.0.1:7400".parse().expect("an address"),
    };
    Genesis {
        dagger: 1,
        nonce: "0".repeat(32),
        name: name("test"),
        mode: GenesisMode::Judged,
        operators: vec![GenesisOperator { name: name("op"), key: operator().public_key() }],
        hosts: (0..4).map(host).collect(),
        collection_depth_rounds: 60,
        handover_distance_commits: 10,
        commit_bytes_max: None,
    }
}

/// The published bodies: one of every kind.
fn published_bodies() -> Vec<(String, Value)> {
    let text = include_str!("../../../processor/payload/vectors/bodies.json");
    let mut file: Value = serde_json::from_str(text).expect("JSON");
    let Value::Object(bodies) = file["bodies"].take() else { panic!("bodies by kind") };
    bodies.into_iter().collect()
}

struct Life {
    judge: Judge,
    cluster: ClusterId,
    lived: Vec<SignedPayload>,
    commits: Vec<OrderedCommit>,
    releases: Vec<SealedRelease>,
}

impl Life {
    fn sign(&self, key: &SecretKey, kind: &str, body: &Value) -> SignedPayload {
        let number = u64::try_from(self.lived.len()).expect("few");
        let body = Body::read(kind, &body.to_string()).expect("a good body");
        let (cluster, signer) = (self.cluster, key.public_key());
        let not_after = NOW.plus_ms(1_000_000 + number);
        SignedPayload::sign(key, &Payload { cluster, signer, not_after, body })
    }

    /// Orders and judges one payload.
    fn live(&mut self, key: &SecretKey, kind: &str, body: &Value) -> PayloadDigest {
        let signed = self.sign(key, kind, body);
        let before = self.judge.end();
        let now = NOW.plus_ms(before.index.0);
        let payloads = vec![signed.clone()];
        let commit = OrderedCommit {
            index: before.index.next(),
            ledger_time: now,
            leader_round: Round(before.index.0 + 1),
            authors: (0..4).map(|author| (AuthorIndex(author), Round(1))).collect(),
            prefix_hash: extend_prefix(&before.prefix_hash, now, &payloads),
            payloads: vec![OrderedPayload { author: AuthorIndex(0), payload: signed.clone() }],
            first_position: before.position.next(),
        };
        let release =
            self.judge.apply(commit.clone(), &[verify(&signed)]).expect("the next commit");
        let seal = key.sign_in(Domain::Seal, &release.seal_digest());
        self.releases.push(SealedRelease { release, seal });
        self.commits.push(commit);
        let digest = signed.digest();
        self.lived.push(signed);
        digest
    }

    fn report(&mut self, vm: VmId, generation: u64, phase: &str) {
        let generation = Generation(generation);
        let body = json!({"vm": vm, "generation": generation, "phase": phase, "reason": "seen"});
        self.live(&agent(), "report.vm", &body);
    }

    fn vm(&mut self, name: &str) -> VmId {
        let body = json!({
            "name": name, "image": {
                "digest": "5".repeat(64), "format": "qcow2", "virtual_size_bytes": 1_u64 << 26
            },
            "cpus": 1, "memory_mib": 512, "disk_gib": 3, "labels": {"app": name},
            "ssh_keys": [format!("{} me", developer().public_key())], "public_user_data": "#cloud",
        });
        VmId::of(&self.live(&developer(), "vm.create", &body))
    }

    /// A host joins, an account gets a grant, machines and a volume come and go.
    fn all(&mut self) {
        let host_key = ledger(0).public_key();
        self.live(
            &operator(),
            "host.join",
            &json!({
                "ledger_key": host_key, "agent_key": agent().public_key(), "name": "host0",
                "region": "north", "site": "hall", "capacity": {
                    "cpus": 8, "memory_mib": 8192, "disk_gib": 100
                },
                "reserve": {"cpus": 1, "memory_mib": 512, "disk_gib": 10},
                "guest_subnet": {"network": "10.77.1.0", "prefix_length": 29}, "labels": {"a": "b"},
            }),
        );
        self.live(
            &operator(),
            "account.grant",
            &json!({
                "key": developer().public_key(), "vms": 4, "until_ms": NOW.0 + 1_000_000,
                "capacity": {"cpus": 4, "memory_mib": 4096, "disk_gib": 50},
            }),
        );
        self.live(&operator(), "image.register", &json!({
            "name": "op/small", "digest": "5".repeat(64), "format": "qcow2", "size_bytes": 1 << 20,
            "virtual_size_bytes": 1 << 26, "sources": ["/srv/small.qcow2"],
        }));
        let gone = self.vm("gone");
        self.report(gone, 1, "accepted");
        self.report(gone, 1, "running");
        self.live(&developer(), "vm.delete", &json!({"vm": gone}));
        self.report(gone, 2, "deleted");
        let kept = self.vm("kept");
        self.report(kept, 1, "accepted");
        let host = HostId::of(&host_key);
        let volume = json!({"name": "data", "size_gib": 2, "host": host});
        let volume = VolumeId::of(&self.live(&developer(), "volume.create", &volume));
        let attach = json!({"volume": volume, "vm": kept});
        self.live(&developer(), "volume.attach", &attach);
        self.live(
            &developer(),
            "account.add_key",
            &json!({
                "key": key(2).public_key(), "role": "read",
            }),
        );
        self.live(&developer(), "vm.stop", &json!({"vm": gone}));
        self.members();
    }

    /// A follower comes, an operator, and a proposal on which not all agree yet.
    fn members(&mut self) {
        self.live(
            &operator(),
            "host.join",
            &json!({
                "ledger_key": key(40).public_key(), "agent_key": key(41).public_key(),
                "address": "192.0.2.7:7400", "name": "host9", "region": "north",
                "capacity": {"cpus": 8, "memory_mib": 8192, "disk_gib": 100},
                "guest_subnet": {"network": "10.77.2.0", "prefix_length": 29},
            }),
        );
        let follower = HostId::of(&key(40).public_key());
        let add = |name: &str, number: u8| json!({"add_operator": {"name": name, "key": key(number).public_key()}});
        let voters = json!({"voters": {"add": [follower]}});
        for change in [add("second", 11), add("third", 12), voters] {
            self.live(&operator(), "operator.propose", &json!({"change": change}));
        }
    }
}

fn written_down(judge: &Judge) -> (SnapshotHead, Vec<Vec<u8>>) {
    let mut making = Snapshot::begin(judge);
    let chunks = std::iter::from_fn(|| making.next_chunk(judge)).collect();
    (making.finish(judge).expect("the judge stands still"), chunks)
}

/// An event of `author` with parents below it.
fn event(cluster: ClusterId, (author, round): (u16, u64), payloads: Vec<SignedPayload>) -> Event {
    let parent = |parent: u16| dagger_payload::event::Parent {
        author: AuthorIndex(parent),
        round: Round(round - 1),
        digest: dagger_payload::id::EventDigest([7; 32]),
    };
    let own_first = [author].into_iter().chain((0..4).filter(|other| *other != author));
    let end = CommitEnd {
        index: CommitIndex(100),
        position: Position(7),
        prefix_hash: PrefixHash([1; 32]),
        state_root: StateRoot([2; 32]),
    };
    let header = Header {
        version: EVENT_VERSION,
        cluster,
        epoch: Epoch(0),
        round: Round(round),
        author: AuthorIndex(author),
        parents: own_first.filter(|_| round > 1).map(parent).collect(),
        payload_root: MerkleRoot::ZERO,
        payload_count: 0,
        timestamp: NOW,
        attestation: Attestation { newest: end, checkpoint: (round > 1).then_some(end) },
    };
    let key = ledger(author);
    Event::make(header, payloads, |digest| key.sign_in(Domain::Event, digest.as_bytes()))
}

impl World {
    fn live() -> Self {
        let genesis = genesis();
        let cluster = ClusterId::of(&genesis.to_bytes());
        let judge = Judge::found(genesis.clone(), cluster);
        let (lived, commits, releases) = (Vec::new(), Vec::new(), Vec::new());
        let mut life = Life { judge, cluster, lived, commits, releases };
        let bodies = published_bodies();
        let documents = bodies.iter().map(|(kind, body)| life.sign(&developer(), kind, body));
        let documents = documents.map(|signed| signed.bytes.to_vec()).collect();
        life.all();
        let snapshot = written_down(&life.judge);
        let anchor = life.judge.anchor();
        let seal = key(9).sign_in(Domain::Seal, &anchor.seal_digest());
        let dry = life.sign(&developer(), "vm.create", &bodies_of(&bodies, "vm.create"));
        let prediction = Box::new(life.judge.predict(&dry.bytes, NOW));
        let predicted = AdmissionOutcome::Predicted { prediction };
        let events = vec![
            event(cluster, (0, 1), Vec::new()),
            event(cluster, (1, 2), life.lived[..3].to_vec()),
            event(cluster, (2, 9), life.lived.clone()),
        ];
        let mut world = Self {
            genesis,
            cluster,
            documents,
            snapshot,
            anchor: SealedAnchor { anchor, seal },
            roster: life.judge.roster().clone(),
            predicted,
            lived: life.lived,
            commits: life.commits,
            releases: life.releases,
            events,
            frontier: Frontier { handover: None, commits: Vec::new() },
        };
        world.frontier = world.some_frontier();
        world
    }

    /// Signed headers of three authors.
    pub fn headers(&self) -> Vec<SignedHeader> {
        self.events.iter().map(Event::signed_header).collect()
    }

    /// Headers that attest something.
    pub fn evidence(&self) -> QuorumEvidence {
        QuorumEvidence { headers: self.headers() }
    }

    /// How an epoch begins.
    pub fn handover(&self) -> Handover {
        let founding = Founding { end: self.snapshot.0.end, ledger_time: NOW };
        let committee = self.genesis.committee();
        Handover { epoch: Epoch(1), committee, founding, headers: self.headers() }
    }

    /// A snapshot as it is offered.
    pub fn offer(&self) -> SnapshotOffer {
        SnapshotOffer { head: self.snapshot.0.clone(), evidence: self.evidence() }
    }

    /// Where an epoch ends.
    pub fn epoch_end(&self) -> EpochEnd {
        EpochEnd { last: CommitIndex(99), committee: Committee::new(4).expect("in range") }
    }

    /// How a processor greets.
    pub fn opened(&self) -> Opened {
        Opened {
            cluster: self.cluster,
            seal_key: key(9).public_key(),
            judged: self.snapshot.0.end,
            next_deadline: Some(NOW),
            epoch_end: Some(self.epoch_end()),
            anchor: Some(self.anchor.clone()),
            roster: self.roster.clone(),
        }
    }

    fn some_frontier(&self) -> Frontier {
        let began = self.handover().founding.end.index;
        let parents: Vec<_> = self.events.iter().map(Event::as_parent).collect();
        let record = |number: u64| CommitRecord {
            index: CommitIndex(began.0 + number),
            leader: dagger_payload::event::Parent { round: Round(number + 1), ..parents[0] },
            slot: 0,
            events: parents.clone(),
            forked: parents[..1].to_vec(),
            first_position: Position(8 + 2 * number),
            last_position: Position(9 + 2 * number),
            ledger_time: NOW.plus_ms(number),
            prefix_hash: PrefixHash([3; 32]),
            collection_round: Round(0),
            floor: Round(0),
            epoch: self.handover().epoch,
        };
        Frontier { handover: Some(self.handover()), commits: (1..4).map(record).collect() }
    }

    /// A payload of a life as bytes of its own.
    pub fn text(&self) -> Bytes {
        self.lived[0].bytes.shared()
    }
}

fn bodies_of(bodies: &[(String, Value)], kind: &str) -> Value {
    let found = bodies.iter().find(|(name, _)| name == kind);
    found.expect("one of every kind").1.clone()
}
