//! How long a judge with many VMs takes to be written down and to begin again.
//!
//! `cargo run --release -p dagger-processor --example restart -- 1000000` makes that many VMs on
//! twenty hosts by judging their requests (without signatures: those are checked before the judge),
//! then measures the snapshot both ways, as a daemon does it but without socket and disk.

use std::time::Instant;

use anyhow::{Context, ensure};
use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::id::{AuthorIndex, ClusterId, HostId, ImageDigest, LedgerTime, Round};
use dagger_payload::key::{PublicKey, SecretKey, Signature};
use dagger_payload::kind::{
    AccountGrant, Body, Capacity, GuestSubnet, HostJoin, ImageFormat, ImageRegister, VmCreate,
    VmImage,
};
use dagger_payload::payload::{Payload, SignatureKind, SignedPayload};
use dagger_payload::release::{OrderedCommit, OrderedPayload, Verdict, extend_prefix};
use dagger_processor::judge::Judge;
use dagger_processor::judge::snapshot::{Restoring, Snapshot};
use dagger_processor::verify::Verified;

const HOSTS: u8 = 20;
const COMMIT_PAYLOADS: u32 = 10_000;
const PLENTY: Capacity = Capacity { cpus: 1 << 24, memory_mib: 1 << 40, disk_gib: 1 << 40 };
const IMAGE: VmImage = VmImage {
    digest: ImageDigest([5; 32]),
    format: ImageFormat::Qcow2,
    virtual_size_bytes: 1 << 26,
};

fn key(byte: u8) -> PublicKey {
    SecretKey::from_seed(&[byte; 32].into()).public_key()
}

struct Bench {
    judge: Judge,
    cluster: ClusterId,
    time: LedgerTime,
}

impl Bench {
    /// Orders and judges `bodies`, all signed by `signer`.
    fn commit(&mut self, signer: &PublicKey, bodies: Vec<Body>) -> anyhow::Result<()> {
        // Requests of the commit before have expired, so that VMs are what is measured.
        self.time = self.time.plus_ms(10);
        let (cluster, not_after) = (self.cluster, self.time.plus_ms(1));
        let (mut payloads, mut verified) = (Vec::new(), Vec::new());
        for body in bodies {
            let payload = Payload { cluster, signer: signer.clone(), not_after, body };
            let signed = SignedPayload {
                signature_kind: SignatureKind::SshEd25519,
                signature: Signature([0; 64]),
                bytes: payload.to_bytes().into(),
            };
            let (digest, outcome) = (signed.digest(), Ok(Box::new(payload)));
            verified.push(Verified { digest, outcome });
            payloads.push(OrderedPayload { author: AuthorIndex(0), payload: signed });
        }
        let end = self.judge.end();
        let records = payloads.iter().map(|ordered| &ordered.payload);
        let commit = OrderedCommit {
            index: end.index.next(),
            ledger_time: self.time,
            leader_round: Round(end.index.0 + 1),
            authors: Vec::new(),
            prefix_hash: extend_prefix(&end.prefix_hash, self.time, records),
            payloads,
            first_position: end.position.next(),
        };
        let release = self.judge.apply(&commit, &verified)?;
        let refused = release.releases.iter().find(|each| each.verdict != Verdict::Accepted);
        ensure!(refused.is_none(), "refused: {:?}", refused.map(|each| &each.verdict));
        Ok(())
    }
}

fn genesis() -> anyhow::Result<Genesis> {
    let host = |index: u8| {
        anyhow::Ok(GenesisHost {
            name: format!("host{index}").parse()?,
            operator: "op".parse()?,
            ledger_key: key(100 + index),
            address: "127.0.0.1:7400".parse()?,
        })
    };
    Ok(Genesis {
        dagger: 1,
        nonce: "0".repeat(32),
        name: "bench".parse()?,
        mode: GenesisMode::Judged,
        operators: vec![GenesisOperator { name: "op".parse()?, key: key(1) }],
        hosts: (0..HOSTS).map(host).collect::<Result<_, _>>()?,
        collection_depth_rounds: 60,
        handover_distance_commits: 10,
    })
}

fn furnish(bench: &mut Bench) -> anyhow::Result<()> {
    for index in 0..HOSTS {
        let join = HostJoin {
            ledger_key: key(100 + index),
            address: None,
            agent_key: key(200 + index),
            name: format!("host{index}").parse()?,
            region: "region".parse()?,
            site: None,
            reserve: Capacity::default(),
            capacity: PLENTY,
            guest_subnet: GuestSubnet { network: [10, index, 0, 0].into(), prefix_length: 16 },
            labels: Default::default(),
        };
        bench.commit(&key(1), vec![Body::HostJoin(Box::new(join))])?;
    }
    let (capacity, until_ms) = (PLENTY, bench.time.0 * 2);
    let grant = AccountGrant { key: key(2), capacity, vms: u32::MAX, until_ms };
    let image = ImageRegister {
        name: "op/small".parse()?,
        digest: IMAGE.digest,
        format: IMAGE.format,
        size_bytes: 1 << 20,
        virtual_size_bytes: IMAGE.virtual_size_bytes,
        sources: Vec::new(),
    };
    bench.commit(&key(1), vec![Body::AccountGrant(grant), Body::ImageRegister(image)])
}

fn create(number: u32) -> anyhow::Result<Body> {
    let host = u8::try_from(number % u32::from(HOSTS))?;
    Ok(Body::VmCreate(Box::new(VmCreate {
        name: format!("vm{number}").parse()?,
        image: IMAGE,
        cpus: 1,
        memory_mib: 512,
        disk_gib: 3,
        ssh_keys: Vec::new(),
        region: None,
        host: Some(HostId::of(&key(100 + host))),
        host_labels: Default::default(),
        apart: Vec::new(),
        labels: Default::default(),
        public_user_data: None,
        restart: Default::default(),
    })))
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

fn main() -> anyhow::Result<()> {
    let count = std::env::args().nth(1).context("say how many VMs")?.parse::<u32>()?;
    let genesis = genesis()?;
    let cluster = ClusterId::of(&genesis.to_bytes());
    let judge = Judge::found(genesis.clone(), cluster);
    let mut bench = Bench { judge, cluster, time: LedgerTime(1_700_000_000_000) };
    furnish(&mut bench)?;
    let started = Instant::now();
    for first in (0..count).step_by(usize::try_from(COMMIT_PAYLOADS)?) {
        let numbers = first..count.min(first + COMMIT_PAYLOADS);
        bench.commit(&key(2), numbers.map(create).collect::<Result<_, _>>()?)?;
    }
    println!("{count} VMs judged in {:.2?}, {} MiB resident", started.elapsed(), resident_mib());
    let started = Instant::now();
    let mut making = Snapshot::begin(&bench.judge);
    let chunks: Vec<_> = std::iter::from_fn(|| making.next_chunk(&bench.judge)).collect();
    let head = making.finish(&bench.judge).context("the judge stood still")?;
    println!(
        "written down in {:.2?}: {} chunks, {} bytes a VM",
        started.elapsed(),
        head.chunks,
        head.bytes / u64::from(count)
    );
    let end = bench.judge.end();
    drop(bench);
    let started = Instant::now();
    let mut restoring = Restoring::begin(genesis, cluster, head);
    for chunk in &chunks {
        restoring.take(chunk)?;
    }
    let judge = restoring.finish()?;
    println!("begun again in {:.2?}", started.elapsed());
    ensure!(judge.end() == end, "another end");
    Ok(())
}
