//! Hostile peers: what they may send, how often, how slowly, and what it costs.
//!
//! Setting: member 1 of a cluster of three under test, on real TCP with real TLS; the test plays
//! member 0 and strangers, and member 2 is honest. Pinned: whatever is changed in a frame is
//! refused or is another message in canonical form, never an event that nobody signed; who
//! misbehaves loses its link and nothing else happens; connections that say nothing are few and
//! short; the honest link stands all the while, and nothing is left behind.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dagger_ledger::link::frames;
use dagger_ledger::link::heard::{self, Heard};
use dagger_ledger::link::inspect::{Inbound, Inspector, KnownEvents, Refused};
use dagger_ledger::link::{LinkConfiguration, LinkEvent, Links, Member};
use dagger_payload::event::{
    Attestation, CommitEnd, EVENT_VERSION, Event, EventError, Header, Parent,
};
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, Epoch, EventDigest, LedgerTime, MerkleRoot, Position,
    PrefixHash, Round, StateRoot,
};
use dagger_payload::key::{Domain, Signature};
use dagger_payload::limits::FRAME_BYTES_MAX;
use dagger_payload::payload::{SignatureKind, SignedPayload};
use dagger_payload::peer::{EndOfEpoch, Highest, Part, PeerMessage, Receipt};
use futures_util::SinkExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::peers::{CLUSTER, dial, hello, key, listener};

const PATIENCE: Duration = Duration::from_secs(20);

/// An event of member 0, with parents and a payload.
fn event(cluster: ClusterId) -> Event {
    let end = CommitEnd {
        index: CommitIndex(7),
        position: Position(9),
        prefix_hash: PrefixHash::ZERO,
        state_root: StateRoot::ZERO,
    };
    let parent = |author| Parent {
        author: AuthorIndex(author),
        round: Round(4),
        digest: EventDigest([9; 32]),
    };
    let header = Header {
        version: EVENT_VERSION,
        cluster,
        epoch: Epoch(0),
        round: Round(5),
        author: AuthorIndex(0),
        parents: vec![parent(0), parent(1), parent(2)],
        payload_root: MerkleRoot::ZERO,
        payload_count: 0,
        timestamp: LedgerTime(1_750_000_000_000),
        attestation: Attestation { newest: end, checkpoint: None },
    };
    let payload = SignedPayload {
        signature_kind: SignatureKind::SshEd25519,
        signature: Signature([3; 64]),
        bytes: "{\"what\":\"ever\"}".into(),
    };
    let sign = |digest: &EventDigest| key(0).sign_in(Domain::Event, digest.as_bytes());
    Event::make(header, vec![payload], sign)
}

/// A frame of every kind.
fn frames_of_every_kind() -> Vec<(&'static str, Vec<u8>)> {
    let event = event(CLUSTER);
    let messages = vec![
        PeerMessage::Hello { version: 1, cluster: CLUSTER },
        PeerMessage::Have {
            highest: vec![Highest { author: AuthorIndex(2), round: Round(300) }],
            epoch: Epoch(2),
        },
        PeerMessage::event(&event),
        PeerMessage::Want { events: event.header.parents.clone(), epoch: Epoch(2) },
        PeerMessage::AskRecovery { nonce: 70_000, epoch: Epoch(1) },
        PeerMessage::AnswerRecovery {
            nonce: 3,
            highest_of_asker: Round(400),
            quorum_round: Round(500),
            epoch: Epoch(1),
            end: EndOfEpoch::MayHaveCome,
        },
        PeerMessage::AskPart { part: Part::Chunk { made_after: CommitIndex(100), number: 3 } },
        PeerMessage::Part { part: Part::Offer, bytes: Bytes::from_static(b"an offer") },
        PeerMessage::Closing { header: event.signed_header() },
        PeerMessage::Submit { payload: event.payloads[0].clone() },
        PeerMessage::Taken { digest: event.payloads[0].digest(), receipt: Receipt::NotNow {} },
    ];
    let numbers: Vec<_> = messages.iter().map(number).collect();
    assert!(numbers.iter().copied().eq(0..=10), "{numbers:?}");
    messages.into_iter().map(|message| (message.kind(), message.to_bytes())).collect()
}

/// Which kind it is; a new one belongs into [`frames_of_every_kind`], too.
fn number(message: &PeerMessage) -> usize {
    match message {
        PeerMessage::Hello { .. } => 0,
        PeerMessage::Have { .. } => 1,
        PeerMessage::Event { .. } => 2,
        PeerMessage::Want { .. } => 3,
        PeerMessage::AskRecovery { .. } => 4,
        PeerMessage::AnswerRecovery { .. } => 5,
        PeerMessage::AskPart { .. } => 6,
        PeerMessage::Part { .. } => 7,
        PeerMessage::Closing { .. } => 8,
        PeerMessage::Submit { .. } => 9,
        PeerMessage::Taken { .. } => 10,
    }
}

/// Every bit turned, every cut, every byte doubled or put behind its neighbour, and bytes added.
fn mutations(frame: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let flips = (0..frame.len() * 8).map(|bit| {
        let mut changed = frame.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        changed
    });
    let cuts = (0..frame.len()).map(|length| frame[..length].to_vec());
    let stretches = (0..frame.len()).map(|at| {
        let mut changed = frame.to_vec();
        changed.insert(at, frame[at]);
        changed
    });
    let swaps = (1..frame.len()).filter(|at| frame[at - 1] != frame[*at]).map(|at| {
        let mut changed = frame.to_vec();
        changed.swap(at - 1, at);
        changed
    });
    let tails = [0, 1, 0x7f, 0xff].map(|byte| [frame, &[byte]].concat());
    flips.chain(cuts).chain(stretches).chain(swaps).chain(tails)
}

fn inspector() -> Inspector {
    let keys = (0..3).map(|index| key(index).public_key()).collect();
    Inspector { cluster: CLUSTER, keys, known: Arc::default() }
}

#[test]
fn no_change_of_any_frame_passes_as_an_event_or_in_a_second_form() {
    let inspector = inspector();
    for (kind, frame) in frames_of_every_kind() {
        assert!(inspector.inspect(&frame).is_ok(), "{kind}");
        let mut refused = 0;
        for changed in mutations(&frame) {
            match inspector.inspect(&changed) {
                Err(_) => refused += 1,
                Ok(Inbound::Message(message)) => assert_eq!(message.to_bytes(), changed, "{kind}"),
                Ok(Inbound::Event(_) | Inbound::Known | Inbound::Closing(..)) => {
                    panic!("a changed {kind} passed as signed: {changed:02x?}");
                }
            }
        }
        assert!(refused > frame.len(), "{kind}");
    }
}

#[test]
fn what_was_signed_for_a_cluster_of_the_same_members_is_foreign_here() {
    let other = event(ClusterId([2; 32]));
    for message in
        [PeerMessage::event(&other), PeerMessage::Closing { header: other.signed_header() }]
    {
        let refused = inspector().inspect(&message.to_bytes());
        assert!(matches!(refused, Err(Refused::Event(EventError::Foreign))), "{refused:?}");
    }
}

struct Cluster {
    tested: Links,
    address: SocketAddr,
    heard: Heard,
    honest: Links,
    _honest_heard: Heard,
}

impl Cluster {
    /// Members 1 and 2, linked.
    async fn start() -> Self {
        let (tested_listener, address) = listener().await;
        let (honest_listener, honest_address) = listener().await;
        let nobody: SocketAddr = "127.0.0.1:1".parse().expect("an address");
        let start = |me: u8, listener| {
            let members = (0_u8..).zip([nobody, address, honest_address]);
            let members = members.map(|(index, address)| Member {
                name: format!("host{index}").parse().expect("a name"),
                key: key(index).public_key(),
                address,
            });
            let (cluster, members) = (CLUSTER, members.collect());
            let configuration = LinkConfiguration { cluster, me: AuthorIndex(me.into()), members };
            let (sender, heard) = heard::channel(64);
            let known = Arc::new(KnownEvents::default());
            (Links::start(configuration, &key(me), known, listener, sender), heard)
        };
        let (honest, _honest_heard) = start(2, honest_listener);
        let (tested, mut heard) = start(1, tested_listener);
        let first = timeout(PATIENCE, heard.recv()).await.expect("in time");
        assert!(matches!(first, Some(LinkEvent::Connected(AuthorIndex(2)))));
        Self { tested, address, heard, honest, _honest_heard }
    }

    async fn next(&mut self) -> LinkEvent {
        let heard = timeout(PATIENCE, self.heard.recv()).await.expect("in time");
        let heard = heard.expect("links run");
        assert!(!matches!(heard, LinkEvent::Closed(AuthorIndex(2))), "the honest link ended");
        heard
    }

    /// Waits until member 0's link is over, passing by what it said before.
    async fn hostile_is_gone(&mut self) {
        while !matches!(self.next().await, LinkEvent::Closed(AuthorIndex(0))) {}
    }

    /// What the honest member says is heard, whatever the other one does.
    async fn the_honest_one_is_heard(&mut self, nonce: u64) {
        let ask = PeerMessage::AskRecovery { nonce, epoch: Epoch(0) };
        self.honest.send(AuthorIndex(1), ask.to_bytes().into());
        loop {
            if let LinkEvent::Message(AuthorIndex(2), message) = self.next().await {
                assert_eq!(message, ask);
                return;
            }
        }
    }

    /// Member 0, linked.
    async fn hostile(&mut self) -> TlsStream<TcpStream> {
        let mut stream = dial(&key(0), self.address).await.expect("a member's key passes");
        frames::writer(&mut stream).send(hello()).await.expect("sends");
        while !matches!(self.next().await, LinkEvent::Connected(AuthorIndex(0))) {}
        stream
    }
}

/// What this process, which is the tested ledger's links and the hostile peer, may take at most.
const MEMORY_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// The most memory that this process had so far.
fn memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("stands there");
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").trim().parse().expect("a number");
    kibibytes * 1024
}

/// Whoever attacked is gone: at most `files` are open, and memory stayed within its bound.
fn nothing_is_left_behind(files: usize) {
    assert!(open_files() <= files, "{} files are open, {files} are allowed", open_files());
    let memory = memory_bytes();
    assert!(memory < MEMORY_BYTES_MAX, "{} MiB", memory >> 20);
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("Linux").count()
}

#[tokio::test]
async fn changed_frames_end_their_link_and_no_other_and_leave_nothing_behind() {
    let mut cluster = Cluster::start().await;
    drop(cluster.hostile().await);
    cluster.hostile_is_gone().await;
    let files = open_files();
    for (at, (kind, frame)) in (0..).zip(frames_of_every_kind()) {
        // Some of each sort: all of them are tried without a socket.
        let refused = mutations(&frame).filter(|changed| inspector().inspect(changed).is_err());
        for changed in refused.step_by(frame.len() * 3) {
            let mut stream = cluster.hostile().await;
            frames::writer(&mut stream).send(Bytes::from(changed)).await.expect("sends");
            cluster.hostile_is_gone().await;
        }
        cluster.the_honest_one_is_heard(at).await;
        assert!(cluster.tested.is_connected(AuthorIndex(2)), "{kind}");
    }
    nothing_is_left_behind(files + 1);
}

#[tokio::test]
async fn of_fifty_links_that_a_member_opens_while_nobody_listens_two_are_kept_at_most() {
    const LINKS: usize = 50;
    let mut cluster = Cluster::start().await;
    let files = open_files();
    // The driver is busy, and more waits for it than there is room for: no link ends soon.
    let mut first = cluster.hostile().await;
    for nonce in 0..100 {
        let ask = PeerMessage::AskRecovery { nonce, epoch: Epoch(0) };
        frames::writer(&mut first).send(Bytes::from(ask.to_bytes())).await.expect("sends");
    }
    let mut links = JoinSet::new();
    for _ in 0..LINKS {
        let mut stream = dial(&key(0), cluster.address).await.expect("a member's key passes");
        frames::writer(&mut stream).send(hello()).await.expect("sends");
        // Its handshake is over: what counts strangers counts it no more.
        stream.read_u32().await.expect("is greeted");
        links.spawn(async move {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        });
    }
    for closed in 0..LINKS - 2 {
        let ended = timeout(PATIENCE, links.join_next()).await;
        assert!(ended.is_ok(), "only {closed} of {LINKS} links were closed");
    }
    cluster.the_honest_one_is_heard(7).await;
    links.shutdown().await;
    drop(first);
    drop(cluster.hostile().await);
    cluster.hostile_is_gone().await;
    nothing_is_left_behind(files + 2);
}

#[tokio::test]
async fn of_sixty_mebibytes_that_a_member_sends_while_nobody_listens_few_are_read() {
    let mut cluster = Cluster::start().await;
    let mut stream = cluster.hostile().await;
    let bytes = Bytes::from(vec![0; FRAME_BYTES_MAX - 1024]);
    let frame = Bytes::from(PeerMessage::Part { part: Part::Offer, bytes }.to_bytes());
    // Fewer than there is room for events.
    let mut writer = frames::writer(&mut stream);
    let sending = async {
        for _ in 0..60 {
            writer.send(frame.clone()).await.expect("the link stands");
        }
    };
    let sent = timeout(Duration::from_secs(3), sending).await;
    assert!(sent.is_err(), "all of it was read, and waits");
    cluster.the_honest_one_is_heard(1).await;
    // What was kept out is read once the rest was heard.
    timeout(PATIENCE, cluster.next()).await.expect("it is listened to again");
}

#[tokio::test]
async fn a_frame_that_never_ends_costs_its_sender_the_link() {
    let mut cluster = Cluster::start().await;
    let files = open_files();
    let mut stream = cluster.hostile().await;
    stream.write_u32(64).await.expect("sends");
    stream.write_all(&[1; 10]).await.expect("sends");
    stream.flush().await.expect("sends");
    cluster.hostile_is_gone().await;
    cluster.the_honest_one_is_heard(1).await;
    drop(stream);
    nothing_is_left_behind(files + 1);
}

#[tokio::test]
async fn who_sends_a_frame_byte_by_byte_is_not_waited_for_longer() {
    /// A byte each time; twice as many as there is time for.
    const BYTES_MAX: u32 = 100;
    const EVERY: Duration = Duration::from_millis(200);
    let mut cluster = Cluster::start().await;
    let mut stream = cluster.hostile().await;
    stream.write_u32(100_000).await.expect("sends");
    let mut sent = 0;
    loop {
        assert!(sent < BYTES_MAX, "it is still listened to");
        // Fails once the other side has closed, which the link says, too.
        let _ = stream.write_all(&[1]).await;
        let _ = stream.flush().await;
        sent += 1;
        if timeout(EVERY, cluster.hostile_is_gone()).await.is_ok() {
            break;
        }
    }
    assert!(sent > 1, "it was not listened to at all");
    cluster.the_honest_one_is_heard(1).await;
}

/// Silent connections from all these addresses: all but so many are closed at once, the rest is
/// waited for no longer than a handshake may take, and members get through all the while.
async fn flood_silently(addresses: &[Ipv4Addr], of_each: usize, kept: usize) {
    let mut cluster = Cluster::start().await;
    let files = open_files();
    let mut flood = Vec::new();
    for address in addresses.iter().cycle().take(addresses.len() * of_each) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(IpAddr::V4(*address), 0)).expect("binds");
        flood.push(socket.connect(cluster.address).await.expect("connects"));
    }
    // One more may be about to be closed.
    let open_max = files + flood.len() + kept + 1;
    while flood.len() > kept {
        let closed = |stream: &TcpStream| matches!(stream.try_read(&mut [0]), Ok(0));
        flood.retain(|stream| !closed(stream));
        assert!(open_files() <= open_max, "more connections are kept than may be");
        cluster.the_honest_one_is_heard(u64::try_from(flood.len()).expect("small")).await;
    }
    let member = cluster.hostile().await;
    for mut stream in flood {
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "a silent connection was kept");
    }
    cluster.the_honest_one_is_heard(0).await;
    drop(member);
    cluster.hostile_is_gone().await;
    nothing_is_left_behind(files + 1);
}

#[tokio::test]
async fn a_flood_of_silent_connections_is_bounded_and_keeps_no_member_out() {
    // As the ledger's limit for one address.
    flood_silently(&[Ipv4Addr::new(127, 0, 0, 2)], 200, 16).await;
}

#[tokio::test]
async fn a_flood_from_many_addresses_is_bounded_in_all_and_keeps_no_member_out() {
    // As the ledger's limit for all addresses, of which none comes to its own.
    let addresses: Vec<_> = (2..22).map(|last| Ipv4Addr::new(127, 0, 0, last)).collect();
    flood_silently(&addresses, 10, 64).await;
}
