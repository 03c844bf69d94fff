//! A made-up cluster of four hosts with its keys, and a chronicle: hand-made releases with a true
//! chain, seals and headers.

use std::collections::BTreeSet;
use std::sync::Arc;

use dagger_bus::ledger::StreamItem;
use dagger_payload::event::{Attestation, CommitEnd, EVENT_VERSION, Event, Header, SignedHeader};
use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::id::{
    AccountId, AuthorIndex, ClusterId, CommitIndex, Epoch, Generation, HistoryHash, HostId,
    ImageDigest, LedgerTime, MerkleRoot, OperatorId, PayloadDigest, Position, PrefixHash, Round,
    StateRoot, VmId,
};
use dagger_payload::key::{Domain, SecretKey};
use dagger_payload::kind::{
    Body, Capacity, GuestSubnet, ImageFormat, KeyRole, Protection, ReportPhase, ReportVm, VmChange,
    VmCreate, VmImage,
};
use dagger_payload::name::Name;
use dagger_payload::object::{
    Account, AccountKey, Cause, Effect, Host, HostDuty, Placement, Vm, VmReport, VmState, Wanted,
};
use dagger_payload::payload::{Payload, SignedPayload};
use dagger_payload::refusal::Refusal;
use dagger_payload::release::{
    CommitRelease, OrderedPayload, QuorumEvidence, Release, SealedRelease, Verdict, extend_prefix,
    initial_prefix,
};
use dagger_payload::snapshot::{Anchor, SealedAnchor, extend_history};
use zeroize::Zeroizing;

pub(crate) fn key(byte: u8) -> SecretKey {
    SecretKey::from_seed(&Zeroizing::new([byte; 32]))
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// Ledger time of everything here: far enough in the future that no wall clock is later.
pub(crate) const TIME: LedgerTime = LedgerTime(4_000_000_000_000);

pub(crate) struct World {
    pub(crate) genesis: Arc<Genesis>,
    pub(crate) cluster: ClusterId,
}

impl World {
    pub(crate) const DEVELOPER: u8 = 50;
    pub(crate) const OTHER_DEVELOPER: u8 = 51;
    pub(crate) const SEAL: u8 = 60;

    pub(crate) fn ledger_key(author: u16) -> SecretKey {
        key(10 + u8::try_from(author).expect("few members"))
    }

    pub(crate) fn agent_key(author: u16) -> SecretKey {
        key(30 + u8::try_from(author).expect("few members"))
    }

    pub(crate) fn new() -> Self {
        let host = |author: u16| GenesisHost {
            name: name(&format!("host{}", author + 1)),
            operator: name(&format!("op{}", author + 1)),
            ledger_key: Self::ledger_key(author).public_key(),
            address: format!("127.0.0.1:{}", 7400 + author).parse().expect("an address"),
        };
        let operator = |author: u8| GenesisOperator {
            name: name(&format!("op{}", author + 1)),
            key: key(1 + author).public_key(),
        };
        let genesis = Genesis {
            dagger: 1,
            nonce: "0".repeat(32),
            name: name("test"),
            mode: GenesisMode::Judged,
            operators: (0..4).map(operator).collect(),
            hosts: (0..4).map(host).collect(),
            collection_depth_rounds: 60,
            handover_distance_commits: 10,
            commit_bytes_max: None,
        };
        let cluster = ClusterId::of(&genesis.to_bytes());
        Self { genesis: Arc::new(genesis), cluster }
    }

    pub(crate) fn host_id(&self, author: u16) -> HostId {
        self.genesis.hosts[usize::from(author)].id()
    }

    pub(crate) fn sign(&self, signer: &SecretKey, body: Body) -> SignedPayload {
        self.sign_until(signer, body, TIME.plus_ms(60_000))
    }

    pub(crate) fn sign_until(
        &self,
        signer: &SecretKey,
        body: Body,
        not_after: LedgerTime,
    ) -> SignedPayload {
        let document =
            Payload { cluster: self.cluster, signer: signer.public_key(), not_after, body };
        SignedPayload::sign(signer, &document)
    }
}

pub(crate) fn vm_create(vm_name: &str) -> Body {
    Body::VmCreate(Box::new(VmCreate {
        name: name(vm_name),
        image: image(),
        cpus: 2,
        memory_mib: 512,
        disk_gib: 2,
        ssh_keys: Vec::new(),
        region: None,
        host: None,
        host_labels: std::collections::BTreeMap::new(),
        apart: Vec::new(),
        labels: std::collections::BTreeMap::new(),
        public_user_data: None,
        restart: Default::default(),
        network: None,
        boot: None,
        more_cards: Vec::new(),
    }))
}

pub(crate) fn vm_stop(vm: VmId) -> Body {
    Body::VmStop(VmChange { vm, expected_generation: None }.into())
}

pub(crate) fn report(vm: VmId, phase: ReportPhase) -> ReportVm {
    ReportVm { vm, generation: Generation(1), phase, reason: None, guest_host_key: None }
}

fn image() -> VmImage {
    VmImage {
        digest: ImageDigest([7; 32]),
        format: ImageFormat::Qcow2,
        virtual_size_bytes: 1 << 30,
    }
}

/// A judged payload of a commit that is being made.
pub(crate) type Judged = (SignedPayload, Verdict, Vec<Effect>);

/// Hand-made history.
pub(crate) struct Chronicle {
    cluster: ClusterId,
    pub(crate) releases: Vec<CommitRelease>,
    /// Ledger time of the commits to come.
    pub(crate) time: LedgerTime,
    index: CommitIndex,
    position: Position,
    prefix: PrefixHash,
    /// VMs that were told of, and not yet for the last time.
    vms: BTreeSet<VmId>,
}

impl Chronicle {
    pub(crate) fn new(world: &World) -> Self {
        Self {
            cluster: world.cluster,
            releases: Vec::new(),
            time: TIME,
            index: CommitIndex(0),
            position: Position(0),
            prefix: initial_prefix(&world.cluster),
            vms: BTreeSet::new(),
        }
    }

    /// Position of the next payload.
    pub(crate) fn next_position(&self) -> Position {
        self.position.next()
    }

    /// A commit that changes nothing and is therefore not released.
    pub(crate) fn skip(&mut self) -> CommitEnd {
        self.index = self.index.next();
        let last = self.releases.last().expect("something was released");
        CommitEnd { index: self.index, ..last.end }
    }

    pub(crate) fn commit(&mut self, judged: Vec<Judged>, time_effects: Vec<Effect>) -> CommitEnd {
        self.index = self.index.next();
        let payloads: Vec<_> = judged.iter().map(|(payload, ..)| payload.clone()).collect();
        self.prefix = extend_prefix(&self.prefix, self.time, &payloads);
        let mut releases = Vec::new();
        for (payload, verdict, effects) in judged {
            self.position = self.position.next();
            releases.push(Release {
                position: self.position,
                digest: payload.digest(),
                ordered: OrderedPayload { author: AuthorIndex(1), payload },
                verdict,
                effects: self.told(effects),
            });
        }
        let time_effects = self.told(time_effects);
        let end = CommitEnd {
            index: self.index,
            position: self.position,
            prefix_hash: self.prefix,
            state_root: StateRoot(*blake3::hash(&self.index.0.to_be_bytes()).as_bytes()),
        };
        let ledger_time = self.time;
        self.releases.push(CommitRelease { end, ledger_time, releases, time_effects });
        end
    }

    /// As the judge tells it: a VM whole once, and later what has changed of it.
    fn told(&mut self, effects: Vec<Effect>) -> Vec<Effect> {
        let told = effects.into_iter().map(|effect| {
            let Effect::Vm(vm) = &effect else { return effect };
            let is_known = !self.vms.insert(vm.id);
            if vm.state() == VmState::Deleted {
                self.vms.remove(&vm.id);
            }
            if is_known { effect.told() } else { effect }
        });
        told.collect()
    }

    /// The newest release, sealed.
    pub(crate) fn newest(&self) -> StreamItem {
        sealed_by(&key(World::SEAL), self.releases.last().expect("there is one"))
    }

    pub(crate) fn attested(&self, authors: &[u16], end: CommitEnd) -> StreamItem {
        StreamItem::Attested { commit: end.index, evidence: evidence(self.cluster, authors, end) }
    }
}

pub(crate) fn sealed_by(seal: &SecretKey, release: &CommitRelease) -> StreamItem {
    StreamItem::Release {
        sealed: Box::new(SealedRelease {
            release: release.clone(),
            seal: seal.sign_in(Domain::Seal, &release.seal_digest()),
        }),
    }
}

/// A release of an earlier life of the processor.
pub(crate) fn past(release: &CommitRelease) -> StreamItem {
    StreamItem::Past { release: Box::new(release.clone()) }
}

/// Where a processor's life began that knows these releases.
pub(crate) fn anchor_after(seal: &SecretKey, releases: &[CommitRelease]) -> StreamItem {
    let history =
        releases.iter().fold(HistoryHash::ZERO, |before, each| extend_history(&before, each));
    let end = releases.last().expect("there is one").end;
    let anchor = Anchor { end, ledger_time: TIME, history };
    let seal = seal.sign_in(Domain::Seal, &anchor.seal_digest());
    StreamItem::Anchor { anchor: Box::new(SealedAnchor { anchor, seal }) }
}

pub(crate) fn evidence(cluster: ClusterId, authors: &[u16], end: CommitEnd) -> QuorumEvidence {
    let headers =
        authors.iter().map(|author| header_by(cluster, *author, end, &World::ledger_key(*author)));
    QuorumEvidence { headers: headers.collect() }
}

/// A header of the first epoch in the name of `author`, signed by `signer`.
pub(crate) fn header_by(
    cluster: ClusterId,
    author: u16,
    newest: CommitEnd,
    signer: &SecretKey,
) -> SignedHeader {
    header_in(Epoch(0), cluster, author, newest, signer)
}

/// A header of `epoch` in the name of `author`, signed by `signer`.
pub(crate) fn header_in(
    epoch: Epoch,
    cluster: ClusterId,
    author: u16,
    newest: CommitEnd,
    signer: &SecretKey,
) -> SignedHeader {
    let header = Header {
        version: EVENT_VERSION,
        cluster,
        epoch,
        round: Round(1),
        author: AuthorIndex(author),
        parents: Vec::new(),
        payload_root: MerkleRoot::ZERO,
        payload_count: 0,
        timestamp: TIME,
        attestation: Attestation { newest, checkpoint: None },
    };
    let sign =
        |digest: &dagger_payload::id::EventDigest| signer.sign_in(Domain::Event, digest.as_bytes());
    Event::make(header, Vec::new(), sign).signed_header()
}

/// A host as its operator declared it.
pub(crate) fn host_object(world: &World, author: u16, cause: Cause) -> Effect {
    let member = &world.genesis.hosts[usize::from(author)];
    Effect::Host(Box::new(Host {
        id: member.id(),
        name: member.name.clone(),
        operator: OperatorId::of(&key(1).public_key()),
        region: name("here"),
        labels: std::collections::BTreeMap::new(),
        ledger_key: member.ledger_key.clone(),
        agent_key: World::agent_key(author).public_key(),
        capacity: Capacity { cpus: 8, memory_mib: 8192, disk_gib: 100 },
        guest_subnet: GuestSubnet {
            network: "10.77.0.0".parse().expect("an address"),
            prefix_length: 24,
        },
        site: None,
        forward_ports_first: None,
        protocol_max: None,
        bridges: Vec::new(),
        reserve: Capacity::default(),
        duty: HostDuty::Open,
        generation: Generation(1),
        cause,
    }))
}

/// Tells of the accounts of these developers.
pub(crate) fn open_accounts(chronicle: &mut Chronicle, developers: &[u8]) {
    let digest = PayloadDigest([9; 32]);
    let cause = Cause { digest, position: chronicle.next_position() };
    let open = |developer: &u8| account_object(&key(*developer), cause);
    chronicle.commit(Vec::new(), developers.iter().map(open).collect());
}

pub(crate) fn account_object(developer: &SecretKey, cause: Cause) -> Effect {
    Effect::Account(Box::new(Account {
        id: AccountId::of(&developer.public_key()),
        key: developer.public_key(),
        keys: vec![AccountKey { key: developer.public_key(), role: KeyRole::Owner, cause }],
        grants: Vec::new(),
        generation: Generation(1),
        cause,
        opened_by: OperatorId([1; 16]),
    }))
}

/// A VM that `payload` made, offered to `host`.
pub(crate) fn vm_object(
    developer: &SecretKey,
    vm_name: &str,
    payload: &SignedPayload,
    position: Position,
    host: HostId,
) -> Vm {
    let cause = Cause { digest: payload.digest(), position };
    Vm {
        id: VmId::of(&payload.digest()),
        account: AccountId::of(&developer.public_key()),
        name: name(vm_name),
        generation: Generation(1),
        created: cause,
        changed: cause,
        wanted: Wanted::Running,
        image: image(),
        size: Capacity { cpus: 2, memory_mib: 512, disk_gib: 2 },
        ssh_keys: Vec::new(),
        public_user_data: None,
        labels: std::collections::BTreeMap::new(),
        region: None,
        host_labels: std::collections::BTreeMap::new(),
        pinned_host: None,
        placement: Placement::Offered {
            host,
            address: "10.77.0.2".parse().expect("an address"),
            deadline: TIME.plus_ms(15_000),
        },
        tried: Vec::new(),
        reported: None,
        guest_host_key: None,
        protection: Protection::Unprotected,
        booted_since: Generation(1),
        volumes: Vec::new(),
        volumes_since: Generation(1),
        meter: dagger_payload::usage::Meter::NEW,
        stop_manner: dagger_payload::kind::StopManner::Graceful,
        restart: dagger_payload::kind::RestartPolicy::Always,
        apart: Vec::new(),
        network: Default::default(),
        boot: None,
        more_cards: Vec::new(),
    }
}

/// The VM after an accepted report by the host that carries it.
pub(crate) fn after_report(
    vm: &Vm,
    phase: ReportPhase,
    payload: &SignedPayload,
    at: Position,
) -> Vm {
    let host = vm.placement.host().expect("placed");
    let address = vm.placement.address().expect("placed");
    let mut after = vm.clone();
    if phase == ReportPhase::Accepted {
        after.placement = Placement::Accepted { host, address, position: at };
    }
    after.reported = Some(VmReport {
        host,
        generation: vm.generation,
        phase,
        reason: None,
        cause: Cause { digest: payload.digest(), position: at },
        agreement: dagger_payload::object::Agreement::WithOrder,
    });
    after
}

pub(crate) fn refused(code: dagger_payload::refusal::RefusalCode) -> Verdict {
    Verdict::Refused(Refusal::new(code, "because of the test"))
}

/// A VM `vm_name` of the developer `developer`, created in a commit of its own on the host of
/// member 0.
pub(crate) fn create_vm(
    world: &World,
    chronicle: &mut Chronicle,
    developer: u8,
    vm_name: &str,
) -> Vm {
    let developer = key(developer);
    let payload = world.sign(&developer, vm_create(vm_name));
    let position = chronicle.next_position();
    let vm = vm_object(&developer, vm_name, &payload, position, world.host_id(0));
    let effects = vec![Effect::Vm(Box::new(vm.clone()))];
    chronicle.commit(vec![(payload, Verdict::Accepted, effects)], Vec::new());
    vm
}
