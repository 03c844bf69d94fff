//! A cluster for the benchmark: hosts, accounts and VMs, all made by judging payloads. Payloads are
//! not signed, for nothing here looks at a signature.

use std::collections::BTreeMap;

use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::id::AuthorIndex;
use dagger_payload::id::{AccountId, ClusterId, HostId, ImageDigest, LedgerTime, Round, VmId};
use dagger_payload::key::{PublicKey, SecretKey, Signature};
use dagger_payload::kind::{
    AccountGrant, Apart, ApartBy, ApartStrength, Body, Capacity, GuestSubnet, HostJoin,
    ImageFormat, ImageRegister, Protection, VmChange, VmCreate, VmImage, VmProtect,
};
use dagger_payload::limits::{
    LABEL_VALUE_BYTES_MAX, LABELS_MAX, MEMBERS_MAX, OBJECTS_PER_OPERATOR_MAX,
};
use dagger_payload::name::Labels;
use dagger_payload::object::Effect;
use dagger_payload::payload::{Payload, SignatureKind, SignedPayload};
use dagger_payload::release::{
    CommitRelease, OrderedCommit, OrderedPayload, Verdict, extend_prefix,
};
use dagger_payload::snapshot::SnapshotHead;
use dagger_processor::judge::Judge;
use dagger_processor::judge::snapshot::Restoring;
use dagger_processor::verify::Verified;

const NOW: LedgerTime = LedgerTime(1_700_000_000_000);
/// How long payloads live where they are to be remembered for a while: ten such times are shorter
/// than any offer waits, and no VM here is ever accepted.
const LIFE_MS: u64 = 900;
/// Hosts of one operator, unless the cluster is small: he gets only so many seats.
const HOSTS_PER_OPERATOR: usize = 31;
/// VMs on the hosts of one operator: fewer than may stand there, for no operator has as many hosts
/// as another.
const VMS_PER_OPERATOR: usize = OBJECTS_PER_OPERATOR_MAX * 3 / 4;

fn key(purpose: u8, number: usize) -> PublicKey {
    let mut seed = [purpose; 32];
    seed[..8].copy_from_slice(&u64::try_from(number).expect("few").to_be_bytes());
    SecretKey::from_seed(&seed.into()).public_key()
}

/// A judge and what it has been told.
pub(crate) struct World {
    pub(crate) judge: Judge,
    genesis: Genesis,
    cluster: ClusterId,
    time: LedgerTime,
    /// Payloads expire within so many milliseconds.
    life_ms: u64,
    operators: Vec<PublicKey>,
    accounts: Vec<PublicKey>,
    indexes: BTreeMap<AccountId, usize>,
    vms: Vec<(VmId, usize)>,
    made: usize,
    not_after: u64,
    protection: Protection,
}

impl World {
    /// Hosts have joined (those that no founding has room for, as followers), accounts are granted
    /// capacity by every operator, an image is registered.
    pub(crate) fn furnished(hosts: usize, accounts: usize) -> Self {
        Self::furnished_for(hosts, accounts, 0)
    }

    /// The same with operators enough for so many VMs.
    pub(crate) fn furnished_for(hosts: usize, accounts: usize, vms: usize) -> Self {
        let name = |text: String| text.parse().expect("a name");
        let count = hosts.div_ceil(HOSTS_PER_OPERATOR).max(4).max(vms.div_ceil(VMS_PER_OPERATOR));
        let operators: Vec<_> = (0..count).map(|number| key(1, number)).collect();
        let genesis = Genesis {
            dagger: 1,
            nonce: "0".repeat(32),
            name: name("bench".to_owned()),
            mode: GenesisMode::Judged,
            operators: (0..count)
                .map(|number| GenesisOperator {
                    name: name(format!("op{number}")),
                    key: operators[number].clone(),
                })
                .collect(),
            hosts: (0..hosts.min(MEMBERS_MAX))
                .map(|number| GenesisHost {
                    name: name(format!("host{number}")),
                    operator: name(format!("op{}", number % count)),
                    ledger_key: key(2, number),
                    address: "127.0.0.1:7400".parse().expect("an address"),
                })
                .collect(),
            collection_depth_rounds: 60,
            handover_distance_commits: 10,
            commit_bytes_max: None,
        };
        let cluster = ClusterId::of(&genesis.to_bytes());
        let mut world = Self {
            judge: Judge::found(genesis.clone(), cluster),
            genesis,
            cluster,
            time: NOW,
            life_ms: 80_000_000,
            operators,
            indexes: (0..accounts).map(|number| (AccountId::of(&key(3, number)), number)).collect(),
            accounts: (0..accounts).map(|number| key(3, number)).collect(),
            vms: Vec::new(),
            made: 0,
            not_after: 0,
            protection: Protection::Unprotected,
        };
        let joins: Vec<_> = (0..hosts)
            .map(|number| (world.operators[number % count].clone(), join(number)))
            .collect();
        world.tell(joins);
        let publisher = world.operators[0].clone();
        world.tell(vec![(publisher, image())]);
        let grants = world.operators.iter().flat_map(|operator| {
            world.accounts.iter().map(|account| (operator.clone(), grant(account.clone())))
        });
        let grants = grants.collect();
        world.tell(grants);
        world
    }

    /// How many VMs there are.
    pub(crate) fn created(&self) -> usize {
        self.vms.len()
    }

    /// The VMs that there are.
    pub(crate) fn vm_ids(&self) -> Vec<VmId> {
        self.vms.iter().map(|(vm, _)| *vm).collect()
    }

    /// Creates so many VMs.
    pub(crate) fn create_all(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            let (commit, verified) = self.creations(left.min(1000));
            let release = self.judge.apply(commit, &verified).expect("the next commit");
            self.note(&release);
            left -= left.min(1000);
        }
    }

    /// Creates so many VMs by payloads that are forgotten at once, so that VMs alone remain.
    pub(crate) fn create_plain(&mut self, count: usize) {
        self.life_ms = 1;
        for first in (0..count).step_by(1000) {
            self.time = self.time.plus_ms(1);
            self.create_all((count - first).min(1000));
        }
    }

    /// From now on payloads are remembered, until [`World::let_payloads_expire`].
    pub(crate) fn let_payloads_live(&mut self) {
        self.life_ms = LIFE_MS;
        self.let_payloads_expire();
    }

    /// All payloads expire and are forgotten.
    pub(crate) fn let_payloads_expire(&mut self) {
        self.time = self.time.plus_ms(LIFE_MS);
        self.not_after = 0;
        let (commit, verified) = self.protections(1);
        self.judge.apply(commit, &verified).expect("the next commit");
    }

    /// Ledger time goes on, and payloads that live no longer are forgotten with the next commit.
    pub(crate) fn pass_a_millisecond(&mut self) {
        self.time = self.time.plus_ms(1);
    }

    /// A judge that begins again from a snapshot's chunks, which are given one by one.
    pub(crate) fn restoring(&self, head: SnapshotHead) -> Restoring {
        Restoring::begin(self.genesis.clone(), self.cluster, head)
    }

    /// The next commit: so many creations, each by another account.
    pub(crate) fn creations(&mut self, count: usize) -> (OrderedCommit, Vec<Verified>) {
        let bodies = (0..count).map(|_| {
            self.made += 1;
            (self.accounts[self.made % self.accounts.len()].clone(), create(self.made))
        });
        let bodies = bodies.collect();
        self.commit(bodies)
    }

    /// The next commit: so many VMs, spread over all, are protected or no longer so.
    pub(crate) fn protections(&mut self, count: usize) -> (OrderedCommit, Vec<Verified>) {
        self.protection = match self.protection {
            Protection::Protected => Protection::Unprotected,
            Protection::Unprotected => Protection::Protected,
        };
        let step = (self.vms.len() / count).max(1);
        let bodies = self.vms.iter().step_by(step).take(count).map(|(vm, account)| {
            let (vm, protection) = (*vm, self.protection);
            let body = VmProtect { vm, protection, expected_generation: None };
            (self.accounts[*account].clone(), Body::VmProtect(body))
        });
        let bodies = bodies.collect();
        self.commit(bodies)
    }

    /// Creates so many VMs of the first account, each with as many and as long labels as may be.
    pub(crate) fn create_labelled(&mut self, count: usize) {
        let owner = self.accounts[0].clone();
        self.life_ms = 1;
        for first in (0..count).step_by(1000) {
            self.time = self.time.plus_ms(1);
            let numbers = first..count.min(first + 1000);
            self.tell(numbers.map(|number| (owner.clone(), labelled(number))).collect());
        }
    }

    /// The next commit: the first account asks for a VM away from all that carry those labels, on a
    /// host that is none, so that nothing changes.
    pub(crate) fn in_vain(&mut self) -> (OrderedCommit, Vec<Verified>) {
        self.pass_a_millisecond();
        let Body::VmCreate(body) = create(usize::MAX) else { unreachable!() };
        let (by, strength) = (ApartBy::Host, ApartStrength::Required);
        let apart = vec![Apart { from: long_labels(), by, strength }];
        let body = VmCreate { apart, host: Some(HostId([9; 16])), ..*body };
        self.commit(vec![(self.accounts[0].clone(), Body::VmCreate(Box::new(body)))])
    }

    /// Remembers the VMs that were created.
    pub(crate) fn note(&mut self, release: &CommitRelease) {
        for effect in release.releases.iter().flat_map(|each| &each.effects) {
            let Effect::Vm(vm) = effect else { continue };
            self.vms.push((vm.id, self.indexes[&vm.account]));
        }
    }

    /// Deletes what a commit created, so that the state stays as large as it was.
    pub(crate) fn delete_newest(&mut self, release: &CommitRelease) {
        let first = self.vms.len() - release.releases.len();
        let bodies = self.vms.split_off(first).into_iter().map(|(vm, account)| {
            let change = VmChange { vm, expected_generation: None };
            (self.accounts[account].clone(), Body::VmDelete(change))
        });
        let bodies = bodies.collect();
        self.tell(bodies);
    }

    /// Bytes of names, keys and the like in one of the VMs.
    pub(crate) fn string_bytes_per_vm(&self) -> usize {
        let Body::VmCreate(body) = create(1000) else { return 0 };
        let keys: usize = body.ssh_keys.iter().map(|key| key.as_str().len()).sum();
        body.name.as_str().len() + keys
    }

    /// Memory of this process.
    pub(crate) fn resident_bytes(&self) -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: Option<usize> = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
        pages.unwrap_or(0) * 4096
    }

    fn tell(&mut self, bodies: Vec<(PublicKey, Body)>) {
        for bodies in bodies.chunks(1000) {
            let (commit, verified) = self.commit(bodies.to_vec());
            let release = self.judge.apply(commit, &verified).expect("the next commit");
            for release in release.releases {
                assert_eq!(release.verdict, Verdict::Accepted);
            }
        }
    }

    fn commit(&mut self, bodies: Vec<(PublicKey, Body)>) -> (OrderedCommit, Vec<Verified>) {
        let payloads = bodies.into_iter().map(|(signer, body)| {
            self.not_after += 1;
            let not_after = self.time.plus_ms(self.not_after % self.life_ms);
            Payload { cluster: self.cluster, signer, not_after, body }
        });
        let payloads = payloads.collect::<Vec<_>>();
        let signed: Vec<_> = payloads
            .iter()
            .map(|payload| SignedPayload {
                signature_kind: SignatureKind::SshEd25519,
                signature: Signature([0; 64]),
                bytes: payload.to_bytes().into(),
            })
            .collect();
        let verified = payloads
            .into_iter()
            .zip(&signed)
            .map(|(payload, signed)| Verified::of(signed, Ok(Box::new(payload))))
            .collect();
        let end = self.judge.end();
        let commit = OrderedCommit {
            index: end.index.next(),
            ledger_time: self.time,
            leader_round: Round(1),
            authors: Vec::new(),
            prefix_hash: extend_prefix(&end.prefix_hash, self.time, &signed),
            payloads: signed
                .into_iter()
                .map(|payload| OrderedPayload { author: AuthorIndex(0), payload })
                .collect(),
            first_position: end.position.next(),
        };
        (commit, verified)
    }
}

fn join(number: usize) -> Body {
    let third = u8::try_from(number % 256).expect("a byte");
    let second = u8::try_from(number / 256).expect("few hosts");
    Body::HostJoin(Box::new(HostJoin {
        ledger_key: key(2, number),
        address: Some("127.0.0.1:7400".parse().expect("an address")),
        agent_key: key(4, number),
        name: format!("host{number}").parse().expect("a name"),
        region: "region".parse().expect("a name"),
        site: None,
        capacity: Capacity { cpus: u32::MAX, memory_mib: 1 << 40, disk_gib: 1 << 40 },
        reserve: Capacity::default(),
        guest_subnet: GuestSubnet { network: [10, second, 0, 0].into(), prefix_length: 16 },
        labels: [("rack".parse().expect("a name"), format!("r{third}").parse().expect("a label"))]
            .into(),
        forward_ports_first: None,
        protocol_max: None,
        bridges: Vec::new(),
    }))
}

fn grant(key: PublicKey) -> Body {
    Body::AccountGrant(AccountGrant {
        key,
        capacity: Capacity { cpus: u32::MAX, memory_mib: 1 << 50, disk_gib: 1 << 50 },
        vms: u32::MAX,
        until_ms: NOW.0 + 1_000_000_000,
        expected_generation: None,
    })
}

fn image() -> Body {
    Body::ImageRegister(ImageRegister {
        name: "op0/small".parse().expect("an image name"),
        digest: ImageDigest([5; 32]),
        format: ImageFormat::Qcow2,
        size_bytes: 1 << 20,
        virtual_size_bytes: 1 << 26,
        sources: Vec::new(),
    })
}

fn labelled(number: usize) -> Body {
    let Body::VmCreate(body) = create(number) else { unreachable!() };
    Body::VmCreate(Box::new(VmCreate { labels: long_labels(), ..*body }))
}

fn long_labels() -> Labels {
    let label = |number: usize| {
        let name = format!("{}{number:03}", "n".repeat(60));
        let value = "v".repeat(LABEL_VALUE_BYTES_MAX);
        (name.parse().expect("a name"), value.parse().expect("a label"))
    };
    (0..LABELS_MAX).map(label).collect()
}

fn create(number: usize) -> Body {
    let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
    Body::VmCreate(Box::new(VmCreate {
        name: format!("vm{number}").parse().expect("a name"),
        image: VmImage {
            digest: ImageDigest([5; 32]),
            format: ImageFormat::Qcow2,
            virtual_size_bytes: 1 << 26,
        },
        cpus: 2,
        memory_mib: 2048,
        disk_gib: 20,
        ssh_keys: vec![line.parse().expect("a key line")],
        region: None,
        host: None,
        host_labels: Default::default(),
        apart: Vec::new(),
        labels: Default::default(),
        public_user_data: None,
        restart: Default::default(),
        network: None,
        boot: None,
        more_cards: Vec::new(),
    }))
}
