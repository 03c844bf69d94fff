//! The total order and what it means: the real judge over payloads that are really signed.
//!
//! Owns the keys of the people, ledger time, every release, and every version of each VM and
//! volume. Never shows anything to a host: the world does, later. Called by the world, the owners
//! and the promises.

use std::collections::BTreeMap;
use std::sync::Arc;

use dagger_bus::judging::AdmissionOutcome;
use dagger_payload::changed_vm::WholeRelease;
use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, HostId, ImageDigest, LedgerTime, Round, VmId, VolumeId,
};
use dagger_payload::key::SecretKey;
use dagger_payload::kind::{
    AccountGrant, Body, Capacity, GuestSubnet, HostJoin, ImageFormat, ImageRegister, VmImage,
};
use dagger_payload::object::{Effect, Placement, Vm};
use dagger_payload::payload::{Payload, SignedPayload};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::{
    CommitRelease, OrderedCommit, OrderedPayload, Verdict, extend_prefix,
};
use dagger_payload::volume::Volume;
use dagger_processor::judge::Judge;
use dagger_processor::verify::{Verified, verify};

/// Ledger time when a run begins.
const START: LedgerTime = LedgerTime(1_700_000_000_000);
/// How long a payload stays valid.
const VALID_MS: u64 = 3_600_000;
/// How long grants last: longer than any run, so that only a revocation ends them.
const GRANT_MS: u64 = 400 * 24 * 3_600_000;
/// Developers.
pub(super) const DEVELOPERS: usize = 2;
/// Images: the first is in every host's store when a run begins, the second comes from elsewhere.
pub(super) const IMAGES: [ImageDigest; 2] = [ImageDigest([5; 32]), ImageDigest([6; 32])];

/// What an image is registered as.
pub(super) fn image(index: usize) -> VmImage {
    let (digest, format) = (IMAGES[index], ImageFormat::Qcow2);
    VmImage { digest, format, virtual_size_bytes: 1 << 30 }
}

fn key(purpose: u8, number: usize) -> SecretKey {
    let mut seed = [purpose; 32];
    seed[0] = u8::try_from(number).expect("few");
    SecretKey::from_seed(&seed.into())
}

/// Someone who signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Person {
    Operator(usize),
    Agent(usize),
    Developer(usize),
}

impl Person {
    pub(super) fn secret(self) -> SecretKey {
        match self {
            Self::Operator(number) => key(10, number),
            Self::Agent(number) => key(30, number),
            Self::Developer(number) => key(40, number),
        }
    }
}

/// What became of a payload at the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Door {
    Open(SignedPayload),
    /// Its signer has too much that waits to expire: not now.
    Full(SignedPayload),
    Shut(SignedPayload),
}

pub(super) struct Court {
    judge: Judge,
    cluster: ClusterId,
    round: u64,
    signed: u64,
    /// How far ledger time ran ahead of simulated time.
    pub(super) ahead_ms: u64,
    pub(super) pending: Vec<SignedPayload>,
    pub(super) releases: Vec<WholeRelease>,
    pub(super) hosts: Vec<HostId>,
    pub(super) vms: BTreeMap<VmId, Vm>,
    pub(super) volumes: BTreeMap<VolumeId, Volume>,
    pub(super) vm_versions: BTreeMap<VmId, Vec<(CommitIndex, Vm)>>,
    pub(super) volume_versions: BTreeMap<VolumeId, Vec<(CommitIndex, Volume)>>,
    /// Offers that went on to another host because nobody answered in time.
    pub(super) offers_lapsed: u64,
    pub(super) refused: u64,
    /// Reports that were ordered too late to count: their agents say them again.
    pub(super) late: Vec<(Person, Body)>,
    pub(super) accepted: BTreeMap<String, u64>,
}

impl Court {
    /// A cluster in which everybody has joined and may begin.
    pub(super) fn furnished(hosts: usize) -> Self {
        let operators = hosts.min(2);
        let name = |text: String| text.parse().expect("a name");
        let operator = |index: usize| GenesisOperator {
            name: name(format!("op{index}")),
            key: Person::Operator(index).secret().public_key(),
        };
        let host = |index: usize| GenesisHost {
            name: name(format!("host{index}")),
            operator: name(format!("op{}", index % operators)),
            ledger_key: key(20, index).public_key(),
            address: "127.0.0.1:7400".parse().expect("an address"),
        };
        let genesis = Genesis {
            dagger: 1,
            nonce: "0".repeat(32),
            name: name("test".to_owned()),
            mode: GenesisMode::Judged,
            operators: (0..operators).map(operator).collect(),
            hosts: (0..hosts).map(host).collect(),
            collection_depth_rounds: 60,
            handover_distance_commits: 10,
            commit_bytes_max: None,
        };
        let cluster = ClusterId::of(&genesis.to_bytes());
        let ids = (0..hosts).map(|index| HostId::of(&key(20, index).public_key())).collect();
        let mut court = Self {
            judge: Judge::found(genesis, cluster),
            cluster,
            round: 0,
            signed: 0,
            ahead_ms: 0,
            pending: Vec::new(),
            releases: Vec::new(),
            hosts: ids,
            vms: BTreeMap::new(),
            volumes: BTreeMap::new(),
            vm_versions: BTreeMap::new(),
            volume_versions: BTreeMap::new(),
            offers_lapsed: 0,
            refused: 0,
            late: Vec::new(),
            accepted: BTreeMap::new(),
        };
        court.furnish(operators);
        court
    }

    fn furnish(&mut self, operators: usize) {
        for index in 0..self.hosts.len() {
            let body = Self::join(index);
            self.furnish_with(Person::Operator(index % operators), body);
        }
        for operator in 0..operators {
            for developer in 0..DEVELOPERS {
                let body = self.grant(developer, 0);
                self.furnish_with(Person::Operator(operator), body);
            }
            for (index, digest) in IMAGES.into_iter().enumerate() {
                let body = Body::ImageRegister(ImageRegister {
                    name: format!("op{operator}/image{index}").parse().expect("a name"),
                    digest,
                    format: ImageFormat::Qcow2,
                    size_bytes: 1 << 20,
                    virtual_size_bytes: 1 << 30,
                    sources: vec!["https://images.example/small".parse().expect("a source")],
                });
                self.furnish_with(Person::Operator(operator), body);
            }
        }
    }

    fn furnish_with(&mut self, person: Person, body: Body) {
        let payload = self.sign(person, body, 0);
        self.pending.push(payload);
        self.commit(0);
        assert_eq!(self.refused, 0, "the cluster could not be furnished");
    }

    /// A host's own declaration.
    fn join(index: usize) -> Body {
        let byte = u8::try_from(index).expect("few");
        let port = 7_500 + u16::from(byte);
        let label = dagger_api::IMAGE_ENDPOINT_LABEL.parse().expect("a name");
        let endpoint = format!("127.0.0.1:{port}").parse().expect("a value");
        Body::HostJoin(Box::new(HostJoin {
            ledger_key: key(20, index).public_key(),
            address: None,
            agent_key: Person::Agent(index).secret().public_key(),
            name: format!("host{index}").parse().expect("a name"),
            region: "eu".parse().expect("a name"),
            site: None,
            capacity: Capacity { cpus: 8, memory_mib: 8192, disk_gib: 120 },
            reserve: Capacity::default(),
            guest_subnet: GuestSubnet {
                network: std::net::Ipv4Addr::new(10, 77, byte, 0),
                prefix_length: 24,
            },
            labels: [(label, endpoint)].into(),
            forward_ports_first: None,
            protocol_max: None,
            bridges: Vec::new(),
        }))
    }

    /// A grant of much of everything.
    pub(super) fn grant(&self, developer: usize, now_ms: u64) -> Body {
        Body::AccountGrant(AccountGrant {
            key: Person::Developer(developer).secret().public_key(),
            capacity: Capacity { cpus: 24, memory_mib: 16_384, disk_gib: 400 },
            vms: 12,
            until_ms: self.time(now_ms).plus_ms(GRANT_MS).0,
            expected_generation: None,
        })
    }

    /// Ledger time.
    pub(super) fn time(&self, now_ms: u64) -> LedgerTime {
        START.plus_ms(now_ms.saturating_add(self.ahead_ms))
    }

    fn sign(&mut self, person: Person, body: Body, now_ms: u64) -> SignedPayload {
        self.signed += 1;
        let key = person.secret();
        let not_after = self.time(now_ms).plus_ms(VALID_MS + self.signed % 1_000);
        let (cluster, signer) = (self.cluster, key.public_key());
        SignedPayload::sign(&key, &Payload { cluster, signer, not_after, body })
    }

    /// Signs, and asks at the door.
    pub(super) fn bring(&mut self, person: Person, body: Body, now_ms: u64) -> Door {
        let payload = self.sign(person, body, now_ms);
        match self.judge.admit(&verify(&payload), self.time(now_ms)) {
            AdmissionOutcome::Refused { refusal }
                if refusal.code == RefusalCode::TooManyRemembered =>
            {
                Door::Full(payload)
            }
            AdmissionOutcome::Admitted { .. } | AdmissionOutcome::Known { .. } => {
                Door::Open(payload)
            }
            _ => Door::Shut(payload),
        }
    }

    /// Whether a commit would change anything.
    pub(super) fn is_commit_due(&self, now_ms: u64) -> bool {
        let deadline = self.judge.next_deadline();
        !self.pending.is_empty() || deadline.is_some_and(|at| at < self.time(now_ms))
    }

    /// Orders and judges all that waits.
    pub(super) fn commit(&mut self, now_ms: u64) {
        let payloads = std::mem::take(&mut self.pending);
        let (before, now) = (self.judge.end(), self.time(now_ms));
        self.round += 1;
        let authors = (0..self.hosts.len())
            .map(|author| (AuthorIndex(u16::try_from(author).expect("few")), Round(self.round)));
        let ordered = |payload: &SignedPayload| OrderedPayload {
            author: AuthorIndex(0),
            payload: payload.clone(),
        };
        let commit = OrderedCommit {
            index: before.index.next(),
            ledger_time: now,
            leader_round: Round(self.round),
            authors: authors.collect(),
            prefix_hash: extend_prefix(&before.prefix_hash, now, &payloads),
            payloads: payloads.iter().map(ordered).collect(),
            first_position: before.position.next(),
        };
        let verified: Vec<Verified> = payloads.iter().map(verify).collect();
        let release = self.judge.apply(commit, &verified).expect("the next commit");
        self.count(&release, &verified);
        self.take_versions(&release);
        let known = |vm: &VmId| self.vms.get(vm).cloned().map(Arc::new);
        let release = WholeRelease::new(Arc::new(release), known);
        self.releases.push(release.expect("its VMs are known"));
    }

    fn count(&mut self, release: &CommitRelease, verified: &[Verified]) {
        for (release, verified) in release.releases.iter().zip(verified) {
            let kind = verified.outcome.as_ref().map_or("unread", |payload| payload.body.kind());
            match &release.verdict {
                Verdict::Accepted => {
                    *self.accepted.entry(kind.to_owned()).or_default() += 1;
                }
                Verdict::Refused(refusal) => {
                    self.refused += 1;
                    if let (RefusalCode::Expired, Ok(payload)) = (refusal.code, &verified.outcome) {
                        let agents = (0..self.hosts.len()).map(Person::Agent);
                        let signs = |agent: &Person| agent.secret().public_key() == payload.signer;
                        let agent = agents.into_iter().find(signs);
                        self.late.extend(agent.map(|agent| (agent, payload.body.clone())));
                    }
                }
            }
        }
        for effect in &release.time_effects {
            if let Some(vm) = effect.vm()
                && let Some(before) = self.vms.get(&vm)
                && matches!(before.placement, Placement::Offered { .. })
            {
                self.offers_lapsed += 1;
            }
        }
    }

    fn take_versions(&mut self, release: &CommitRelease) {
        let index = release.end.index;
        for effect in release.effects() {
            match effect {
                Effect::Vm(vm) => self.take_version(index, Vm::clone(vm)),
                Effect::VmChanged(change) => {
                    let before = self.vms.get(&change.id).expect("it was made before");
                    let vm = change.of(before).expect("it is the same VM");
                    self.take_version(index, vm);
                }
                Effect::Volume(volume) => {
                    let versions = self.volume_versions.entry(volume.id).or_default();
                    versions.push((index, (**volume).clone()));
                    self.volumes.insert(volume.id, (**volume).clone());
                }
                _ => {}
            }
        }
    }

    fn take_version(&mut self, commit: CommitIndex, vm: Vm) {
        self.vm_versions.entry(vm.id).or_default().push((commit, vm.clone()));
        self.vms.insert(vm.id, vm);
    }

    /// Which of our hosts this is.
    pub(super) fn host_index(&self, id: HostId) -> Option<usize> {
        self.hosts.iter().position(|host| *host == id)
    }
}
