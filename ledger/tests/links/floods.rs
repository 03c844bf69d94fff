//! An authenticated member that floods: valid frames without end, and events whose parents nobody
//! has.
//!
//! Setting: three of four real ledger processes on loopback; the test holds the key of the fourth
//! and plays it, on real TCP with real TLS. Pinned: none of them takes more memory than
//! [`MEMORY_BYTES_MAX`], none ends, the flood leaves no file descriptor behind, and what honest
//! users submit meanwhile is ordered and attested.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dagger_bus::ledger::{LinkStatus, MemberStatus};
use dagger_ledger::link::frames;
use dagger_payload::event::{Attestation, CommitEnd, EVENT_VERSION, Event, Header, Parent};
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, Epoch, EventDigest, LedgerTime, MerkleRoot, Position,
    PrefixHash, Round, StateRoot,
};
use dagger_payload::key::{Domain, Signature};
use dagger_payload::payload::{SignatureKind, SignedPayload};
use dagger_payload::peer::{Highest, PeerMessage};
use dagger_payload::sshsig::{self, Namespace};
use futures_util::SinkExt;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::common::{Cluster, Host, key, peer};

const PATIENCE: Duration = Duration::from_secs(30);
/// What a ledger may take while it is flooded, program and store's pages included.
const MEMORY_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Frames of one flood.
const FLOOD: u64 = 20_000;
/// Events of a flood whose parents nobody has; each carries a payload of 60 KiB.
const ORPHANS: u64 = 4_000;
/// Who the test plays: as the lowest member it dials all others.
const ME: AuthorIndex = AuthorIndex(0);

/// Three real ledgers; the first member is the test.
async fn three() -> Cluster {
    // A new member asks all others before it signs: so the first one is there at first.
    let mut cluster = Cluster::start(4).await;
    let first = cluster.hosts[0].submitted("the founding").await;
    cluster.hosts[0].stream(0).await.until_attested(&[first]).await;
    assert_eq!(cluster.hosts[0].stop().code(), Some(0));
    for host in &cluster.hosts[1..] {
        let gone = |each: &MemberStatus| each.link == LinkStatus::Missing;
        host.until(|status| status.unavailable.is_none() && gone(&status.members[0])).await;
    }
    cluster
}

fn proc_file(host: &Host, name: &str) -> String {
    let pid = host.process.as_ref().expect("runs").id();
    std::fs::read_to_string(format!("/proc/{pid}/{name}")).expect("Linux")
}

/// The most memory that a process had so far.
fn memory_bytes(host: &Host) -> u64 {
    let status = proc_file(host, "status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("stands there");
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").trim().parse().expect("a number");
    kibibytes * 1024
}

fn open_files(host: &Host) -> usize {
    let pid = host.process.as_ref().expect("runs").id();
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("Linux").count()
}

async fn link(genesis: &Genesis, cluster: ClusterId, to: AuthorIndex) -> TlsStream<TcpStream> {
    peer::link(genesis, cluster, to).await.expect("a member's key passes")
}

/// Sends frame after frame, and reads what comes back, until the other side closes the link or all
/// are sent. Gives how many went out.
async fn flood(
    stream: TlsStream<TcpStream>,
    frame: impl Fn(u64) -> PeerMessage + Send + 'static,
    count: u64,
) -> u64 {
    let (mut reading, writing) = tokio::io::split(stream);
    let draining: JoinHandle<()> = tokio::spawn(async move {
        let mut bytes = vec![0; 64 * 1024];
        while reading.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
    });
    let mut writer = frames::writer(writing);
    let mut sent = 0;
    while sent < count && writer.send(Bytes::from(frame(sent).to_bytes())).await.is_ok() {
        sent += 1;
    }
    // What was sent is taken in before the link ends.
    let _closed_already = SinkExt::<Bytes>::close(&mut writer).await;
    let _ = timeout(PATIENCE, draining).await;
    sent
}

/// An event that its author signed, upon parents that nobody has.
fn orphan(cluster: ClusterId, number: u64, payload_bytes: usize) -> Event {
    let mut unknown = [0x77; 32];
    unknown[..8].copy_from_slice(&number.to_be_bytes());
    // Within reach of the others' rounds: what is far ahead is left out anyway.
    let below = Round(1 + number % 100);
    let mut parent = |author: u16| {
        unknown[8] = u8::try_from(author).expect("four");
        Parent { author: AuthorIndex(author), round: below, digest: EventDigest(unknown) }
    };
    let end = CommitEnd {
        index: CommitIndex(0),
        position: Position(0),
        prefix_hash: PrefixHash::ZERO,
        state_root: StateRoot::ZERO,
    };
    let header = Header {
        version: EVENT_VERSION,
        cluster,
        epoch: Epoch(0),
        round: below.next(),
        author: ME,
        parents: [0, 1, 2].map(&mut parent).to_vec(),
        payload_root: MerkleRoot::ZERO,
        payload_count: 0,
        timestamp: LedgerTime(1_750_000_000_000),
        attestation: Attestation { newest: end, checkpoint: None },
    };
    let payload = SignedPayload {
        signature_kind: SignatureKind::SshEd25519,
        signature: Signature([3; 64]),
        bytes: vec![0x20; payload_bytes].into(),
    };
    Event::make(header, vec![payload], |digest| key(10).sign_in(Domain::Event, digest.as_bytes()))
}

/// Orders payloads at host2 and waits for their attestation, again and again, until told to end;
/// gives how many were ordered and how long the slowest took.
async fn honest_users(host: &Host, ended: &AtomicBool, ordered: &AtomicU64) -> Duration {
    let mut slowest = Duration::ZERO;
    let mut stream = host.stream(0).await;
    while !ended.load(Ordering::Relaxed) {
        let number = ordered.load(Ordering::Relaxed);
        let begin = std::time::Instant::now();
        let digest = host.submitted(&format!("honest {number}")).await;
        stream.until_attested(&[digest]).await;
        slowest = slowest.max(begin.elapsed());
        ordered.fetch_add(1, Ordering::Relaxed);
    }
    slowest
}

/// Floods all three ledgers with the frames that `frame` makes, while users go on.
async fn stands(frame: impl Fn(ClusterId, u64) -> PeerMessage + Copy + Send + 'static, count: u64) {
    let mut cluster = three().await;
    let first = cluster.hosts[1].submitted("before").await;
    cluster.hosts[1].stream(0).await.until_attested(&[first]).await;
    let files: Vec<usize> = cluster.hosts[1..].iter().map(open_files).collect();
    let (ended, ordered) = (Arc::new(AtomicBool::new(false)), AtomicU64::new(0));
    let mut floods = Vec::new();
    let id = cluster.id;
    for to in 1..4 {
        let stream = link(&cluster.genesis, id, AuthorIndex(to)).await;
        floods.push(tokio::spawn(flood(stream, move |number| frame(id, number), count)));
    }
    let flooding = async {
        let mut sent = 0;
        for flood in floods {
            sent += flood.await.expect("no panic");
        }
        ended.store(true, Ordering::Relaxed);
        sent
    };
    let users = honest_users(&cluster.hosts[1], &ended, &ordered);
    let (sent, slowest) = tokio::join!(flooding, users);
    let ordered = ordered.load(Ordering::Relaxed);
    let most = cluster.hosts[1..].iter().map(memory_bytes).max().expect("three");
    println!("{sent} frames, {ordered} ordered, slowest {slowest:?}, {} MiB", most >> 20);
    assert!(sent > count / 2, "{sent} frames went out");
    assert!(ordered > 0 && slowest < PATIENCE, "{ordered} ordered, slowest {slowest:?}");
    assert!(most < MEMORY_BYTES_MAX, "{} MiB", most >> 20);
    let last = cluster.hosts[1].submitted("after").await;
    for host in &cluster.hosts[1..] {
        host.stream(0).await.until_attested(&[first, last]).await;
    }
    // The links of the flood are gone, and with them their files.
    for (host, before) in cluster.hosts[1..].iter().zip(files) {
        host.until(|_| open_files(host) <= before + 2).await;
    }
    for host in &mut cluster.hosts[1..] {
        assert_eq!(host.stop().code(), Some(0), "{}", host.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_valid_haves_wants_and_questions_costs_bounded_memory_and_stops_nobody() {
    stands(
        |_, number| match number % 4 {
            0 => PeerMessage::Have { highest: Vec::new(), epoch: Epoch(0) },
            1 => {
                let round = Round(u64::MAX - number);
                let highest = (0..4).map(|author| Highest { author: AuthorIndex(author), round });
                PeerMessage::Have { highest: highest.collect(), epoch: Epoch(0) }
            }
            2 => {
                let mut digest = [0x55; 32];
                digest[..8].copy_from_slice(&number.to_be_bytes());
                let (author, round) = (AuthorIndex(1), Round(number));
                let wanted = Parent { author, round, digest: EventDigest(digest) };
                PeerMessage::Want { events: vec![wanted; 256], epoch: Epoch(0) }
            }
            _ => PeerMessage::AskRecovery { nonce: number, epoch: Epoch(0) },
        },
        FLOOD,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_events_without_parents_costs_bounded_memory_and_stops_nobody() {
    let frame = |cluster, number| PeerMessage::event(&orphan(cluster, number, 60 * 1024));
    stands(frame, ORPHANS).await;
}

/// Two founding documents that differ in the nonce alone: the same members, the same keys, two
/// clusters.
#[tokio::test]
async fn what_members_signed_for_a_cluster_with_another_nonce_ends_the_link() {
    let mut cluster = three().await;
    let other = Genesis { nonce: "1".repeat(32), ..cluster.genesis.clone() };
    let bytes = other.to_bytes();
    let signature = sshsig::sign(&key(1), Namespace::Genesis, &bytes);
    let armor = sshsig::to_armor(&key(1).public_key(), Namespace::Genesis, &signature);
    let (_, other_id) = Genesis::read_signed(&bytes, &armor).expect("a good genesis");
    assert_ne!(other_id, cluster.id);

    // As a member of the other cluster: the greeting is refused.
    let mut stream = link(&cluster.genesis, other_id, AuthorIndex(1)).await;
    let mut rest = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "a link of another cluster was kept");
    // As a member of this one, with what it signed for the other: the event is refused, and the
    // same event for this cluster is not.
    for (signed_for, kept) in [(other_id, false), (cluster.id, true)] {
        let stream = link(&cluster.genesis, cluster.id, AuthorIndex(1)).await;
        let (mut reading, writing) = tokio::io::split(stream);
        let mut writer = frames::writer(writing);
        let event = PeerMessage::event(&orphan(signed_for, 1, 100));
        writer.send(Bytes::from(event.to_bytes())).await.expect("sends");
        let ended = async {
            let mut bytes = vec![0; 64 * 1024];
            while reading.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
        };
        let patience = if kept { Duration::from_secs(2) } else { PATIENCE };
        assert_eq!(timeout(patience, ended).await.is_err(), kept, "{}", cluster.hosts[1].log());
    }
    let digest = cluster.hosts[1].submitted("after").await;
    cluster.hosts[2].stream(0).await.until_attested(&[digest]).await;
    for host in &mut cluster.hosts[1..] {
        assert_eq!(host.stop().code(), Some(0), "{}", host.log());
    }
}
