//! Four real ledger processes on loopback, with real TLS and real LMDB, a test judge each, and an
//! agent's hand.
#![allow(dead_code, unreachable_pub)]

pub mod judge;
pub mod peer;
pub mod tree;
pub mod voters;

use std::net::{SocketAddr, TcpListener};
use std::ops::Deref;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use dagger_bus::Connection;
use dagger_bus::ledger::{
    Answer, Call, Consumed, LedgerStatus, LinkStatus, Open, Opened, Purpose, Request, Response,
    Standing, StreamItem, Unavailable,
};
use dagger_payload::event::CommitEnd;
use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::id::{AuthorIndex, ClusterId, CommitIndex, PayloadDigest, Position};
use dagger_payload::key::{SecretKey, Signature};
use dagger_payload::payload::{SignatureKind, SignedPayload};
use dagger_payload::release::CommitRelease;
use dagger_payload::roster::Roster;
use dagger_payload::sshsig::{self, Namespace};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use judge::TestJudge;
use voters::Voters;

pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn key(byte: u8) -> SecretKey {
    SecretKey::from_seed(&[byte; 32].into())
}

pub fn payload(text: &str) -> SignedPayload {
    SignedPayload {
        signature_kind: SignatureKind::SshEd25519,
        signature: Signature([3; 64]),
        bytes: text.to_owned().into_bytes().into(),
    }
}

pub struct Cluster {
    pub directory: TempDir,
    pub genesis: Genesis,
    pub id: ClusterId,
    pub hosts: Vec<Host>,
}

/// Where a host belongs.
struct Founded<'a> {
    directory: &'a Path,
    id: ClusterId,
    genesis: &'a Genesis,
    index: u8,
}

pub struct Host {
    pub judge: TestJudge,
    pub process: Option<Child>,
    door: Door,
}

/// Where a host's ledger is spoken to, whether it runs or not.
#[derive(Clone)]
pub struct Door {
    pub directory: PathBuf,
    cluster: ClusterId,
    genesis: Arc<Genesis>,
}

impl Deref for Host {
    type Target = Door;

    fn deref(&self) -> &Door {
        &self.door
    }
}

pub fn free_addresses(count: usize) -> Vec<SocketAddr> {
    // All are held until the last one is chosen, so that no two are equal.
    let listeners: Vec<_> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("binds")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("is bound")).collect()
}

fn write_private(path: &Path, text: &str) {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(path).expect("opens");
    file.write_all(text.as_bytes()).expect("writes");
}

impl Cluster {
    /// Founds a cluster of `count` hosts; their judges run, their ledgers do not yet.
    pub fn found(count: u8) -> Self {
        Self::found_in(GenesisMode::Judged, count)
    }

    /// The same, in another mode than `judged`, perhaps.
    pub fn found_in(mode: GenesisMode, count: u8) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let name = |text: String| text.parse().expect("a name");
        let hosts =
            (0_u8..).zip(free_addresses(count.into())).map(|(index, address)| GenesisHost {
                name: name(format!("host{}", index + 1)),
                operator: name("op1".to_owned()),
                ledger_key: key(index + 10).public_key(),
                address,
            });
        let genesis = Genesis {
            dagger: 1,
            nonce: "0".repeat(32),
            name: name("test".to_owned()),
            mode,
            operators: vec![GenesisOperator {
                name: name("op1".to_owned()),
                key: key(1).public_key(),
            }],
            hosts: hosts.collect(),
            collection_depth_rounds: 60,
            handover_distance_commits: judge::HANDOVER_DISTANCE_COMMITS,
            commit_bytes_max: None,
        };
        let bytes = genesis.to_bytes();
        let signature = sshsig::sign(&key(1), Namespace::Genesis, &bytes);
        let armor = sshsig::to_armor(&key(1).public_key(), Namespace::Genesis, &signature);
        std::fs::write(directory.path().join("genesis.json"), &bytes).expect("writes");
        std::fs::write(directory.path().join("genesis.json.sig"), armor).expect("writes");
        let id = ClusterId::of(&bytes);
        let founder = |index| Founded { directory: directory.path(), id, genesis: &genesis, index };
        let hosts =
            (0..count).map(|index| Host::prepare(&founder(index), index + 10, "")).collect();
        Self { directory, genesis, id, hosts }
    }

    /// A host from outside the genesis, whose seat a member knows already; its judge runs, its
    /// ledger does not yet.
    pub fn add(&mut self, seat: u16, seed: u8, member: usize) {
        let roster = self.hosts[member].judge.roster();
        assert!(roster.seat(AuthorIndex(seat)).is_some(), "{roster:?}");
        let (directory, id, genesis) = (self.directory.path(), self.id, &self.genesis);
        let index = u8::try_from(self.hosts.len()).expect("few");
        let founded = Founded { directory, id, genesis, index };
        let host = Host::prepare(&founded, seed, "roster = \"roster.json\"");
        host.write_roster(&roster);
        self.hosts.push(host);
    }

    /// Founds a cluster and starts all of its ledgers.
    pub async fn start(count: u8) -> Self {
        let mut cluster = Self::found(count);
        cluster.start_all().await;
        cluster
    }

    /// Starts all ledgers of a founded cluster.
    pub async fn start_all(&mut self) {
        for host in &mut self.hosts {
            host.start();
        }
        for host in &self.hosts {
            host.until_linked().await;
        }
    }

    /// Waits until all of these are attested on all hosts that run, in the same order.
    pub async fn attested_everywhere(&self, digests: &[PayloadDigest]) {
        let mut all = Vec::new();
        for host in self.hosts.iter().filter(|host| host.process.is_some()) {
            let mut stream = host.stream(0).await;
            stream.until_attested(digests).await;
            all.push(stream.seen);
        }
        let shortest = all.iter().map(|seen| seen.ordered.len()).min().expect("some host runs");
        let (first, others) = all.split_first().expect("some host runs");
        for other in others {
            assert_eq!(first.ordered[..shortest], other.ordered[..shortest]);
        }
        let positions = first.ordered.iter().map(|(position, _)| position.0);
        assert!(positions.eq(1..=u64::try_from(first.ordered.len()).expect("few")), "no gap");
    }
}

impl Host {
    fn prepare(founded: &Founded<'_>, seed: u8, more: &str) -> Self {
        let index = founded.index;
        let directory = founded.directory.join(format!("h{index}"));
        std::fs::create_dir(&directory).expect("makes");
        let configuration = r#"
            genesis = "../genesis.json"
            genesis_signatures = "../genesis.json.sig"
            log = "info"
            key = "key"
            state_directory = "state"
            witness = "witness/last-round"
            map_gib = 16
            [sockets]
            agent = "ledger.sock"
            processor = "processor.sock"
        "#;
        let configuration = format!("{more}\n{configuration}");
        std::fs::write(directory.join("ledger.toml"), configuration).expect("writes");
        let (cluster, socket) = (founded.id, directory.join("processor.sock"));
        let judge = TestJudge::start(cluster, founded.genesis, &socket, index + 1);
        let genesis = Arc::new(founded.genesis.clone());
        let host = Self { judge, process: None, door: Door { directory, cluster, genesis } };
        host.write_key(seed);
        host
    }

    /// From the next start on it has this ledger key.
    pub fn write_key(&self, seed: u8) {
        write_private(&self.directory.join("key"), &key(seed).to_openssh("test"));
    }

    /// The list of seats that it is told, if its configuration names it.
    pub fn write_roster(&self, roster: &Roster) {
        let document = serde_json::to_vec(roster).expect("plain values");
        std::fs::write(self.directory.join("roster.json"), document).expect("writes");
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dagger-ledger"));
        command.arg("--configuration").arg(self.directory.join("ledger.toml"));
        command.env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET");
        command
    }

    pub fn start(&mut self) {
        let mut options = std::fs::OpenOptions::new();
        let log = options.append(true).create(true).open(self.log_path()).expect("opens");
        let process = self.command().stderr(log).spawn().expect("starts");
        self.process = Some(process);
    }

    /// Whether it was started, and neither killed nor stopped since.
    pub fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// kill -9
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("runs");
        process.kill().expect("can be killed");
        process.wait().expect("ends");
    }

    /// Sends its ledger a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let process = self.process.as_ref().expect("runs");
        let pid = nix::unistd::Pid::from_raw(process.id().try_into().expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("signals");
    }

    /// Waits until it ends by itself.
    pub async fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let process = self.process.as_mut().expect("was started");
            if let Some(status) = process.try_wait().expect("waits") {
                self.process = None;
                return status.code();
            }
            assert!(Instant::now() < deadline, "it runs on:\n{}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until its log holds `words`.
    pub async fn until_logged(&self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(words) {
            assert!(Instant::now() < deadline, "it never says `{words}`:\n{}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGTERM, and the exit status.
    pub fn stop(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("runs");
        let pid = nix::unistd::Pid::from_raw(process.id().try_into().expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signals");
        process.wait().expect("ends")
    }
}

impl Door {
    pub fn log_path(&self) -> PathBuf {
        self.directory.join("ledger.log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    async fn connect(&self, purpose: Purpose) -> Option<Connection> {
        let mut connection = Connection::connect(&self.directory.join("ledger.sock")).await.ok()?;
        let cluster = self.cluster;
        connection.sender.send(&Open { cluster, purpose }).await.ok()?;
        let opened: Opened = connection.receiver.receive().await.ok()?;
        assert_eq!(opened.cluster, cluster);
        Some(connection)
    }

    /// Asks, again and again until the ledger serves.
    pub async fn ask(&self, call: Call) -> Answer {
        let asking = async {
            loop {
                if let Some(mut connection) = self.connect(Purpose::Requests {}).await {
                    let request = Request { id: 7, call: call.clone() };
                    if connection.sender.send(&request).await.is_ok()
                        && let Ok(response) = connection.receiver.receive::<Response>().await
                    {
                        assert_eq!(response.id, 7);
                        return response.answer;
                    }
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("no answer\n{}", self.log()))
    }

    /// To be spoken to by somebody else at the same time.
    pub fn door(&self) -> Self {
        self.clone()
    }

    pub async fn submit(&self, text: &str) -> Answer {
        self.ask(Call::Submit { payload: payload(text) }).await
    }

    /// Submits all of these in one go on one connection, and gives the answers in the same order.
    pub async fn submit_together(&self, payloads: &[SignedPayload]) -> Vec<Answer> {
        let connection = self.connect(Purpose::Requests {}).await.expect("a ledger that serves");
        let Connection { mut sender, mut receiver } = connection;
        let sending = async {
            for (id, payload) in (0..).zip(payloads) {
                let call = Call::Submit { payload: payload.clone() };
                sender.feed(&Request { id, call }).await.expect("queued");
            }
            sender.flush().await.expect("sent");
        };
        let receiving = async {
            let mut answers: Vec<Option<Answer>> = vec![None; payloads.len()];
            while answers.iter().any(Option::is_none) {
                let receiving = receiver.receive::<Response>();
                let response = timeout(PATIENCE, receiving).await.expect("in time");
                let Response { id, answer } = response.expect("an answer");
                answers[usize::try_from(id).expect("small")] = Some(answer);
            }
            answers.into_iter().flatten().collect()
        };
        tokio::join!(sending, receiving).1
    }

    /// Submits, again while no processor can be asked, and expects a receipt.
    pub async fn submitted(&self, text: &str) -> PayloadDigest {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.submit(text).await {
                Answer::Receipt { digest, .. } => return digest,
                // A judge that begins a new life ends the conversations of the one before, and who
                // has just started has yet to find the others.
                Answer::Unavailable {
                    reason:
                        Unavailable::NoProcessor {}
                        | Unavailable::Recovering {}
                        | Unavailable::NoQuorum { .. },
                } if Instant::now() < deadline => {
                    sleep(Duration::from_millis(20)).await;
                }
                other => panic!("{other:?}\n{}", self.log()),
            }
        }
    }

    pub async fn status(&self) -> LedgerStatus {
        match self.ask(Call::Status {}).await {
            Answer::Status { status } => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the status is as wanted.
    pub async fn until(&self, wanted: impl Fn(&LedgerStatus) -> bool) -> LedgerStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await;
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{status:#?}\n{}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether a payload's place is known.
    pub async fn knows(&self, digest: &PayloadDigest) -> bool {
        let look = Call::Look { digest: *digest };
        matches!(self.ask(look).await, Answer::Standing { standing: Standing::Ordered { .. } })
    }

    /// Waits until the log says what is wanted.
    pub async fn until_log(&self, wanted: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(&self.log()) {
            assert!(Instant::now() < deadline, "{}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until changes are taken and no member is out of reach.
    pub async fn until_linked(&self) -> LedgerStatus {
        self.until(|status| {
            let mut members = status.members.iter();
            status.unavailable.is_none() && members.all(|each| each.link != LinkStatus::Missing)
        })
        .await
    }

    /// A release stream from `after`.
    pub async fn stream(&self, after: u64) -> Stream {
        let after = CommitIndex(after);
        let asking = async {
            loop {
                let window = 8;
                if let Some(connection) = self.connect(Purpose::Releases { after, window }).await {
                    return connection;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let connection = timeout(PATIENCE, asking).await.expect("a ledger that serves");
        // Who comes later is not told of seats and epochs before.
        let founding = || Voters::founding(self.cluster, &self.genesis);
        let voters = (after == CommitIndex(0)).then(founding);
        Stream { connection, log: self.log_path(), voters, seen: Seen::default() }
    }

    /// Reads from the beginning until all of this is attested, in a life that began as wanted.
    pub async fn read(&self, digests: &[PayloadDigest], wanted: fn(&Seen) -> bool) -> Stream {
        loop {
            let mut stream = self.stream(0).await;
            let mut goes_on = true;
            while goes_on && !(stream.seen.has_attested(digests) && wanted(&stream.seen)) {
                // A stream ends with the life that it shows.
                goes_on = stream.take().await;
            }
            if goes_on {
                return stream;
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// What a stream has shown.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Seen {
    pub ordered: Vec<(Position, PayloadDigest)>,
    pub ends: Vec<CommitEnd>,
    pub attested: CommitIndex,
    pub caught_up: Option<CommitIndex>,
    pub anchor: Option<CommitIndex>,
}

impl Seen {
    /// Whether all of these are ordered and attested.
    pub fn has_attested(&self, digests: &[PayloadDigest]) -> bool {
        let all = digests.iter().all(|digest| self.ordered.iter().any(|(_, d)| d == digest));
        all && self.ends.last().is_some_and(|end| self.attested >= end.index)
    }
}

pub struct Stream {
    connection: Connection,
    log: PathBuf,
    voters: Option<Voters>,
    pub seen: Seen,
}

impl Stream {
    /// Takes in one item; `false` at the end of the stream.
    pub async fn take(&mut self) -> bool {
        let receiving = timeout(PATIENCE, self.connection.receiver.receive::<StreamItem>()).await;
        let log = || std::fs::read_to_string(&self.log).unwrap_or_default();
        let Ok(item) = receiving.unwrap_or_else(|_| panic!("{:#?}\n{}", self.seen, log())) else {
            return false;
        };
        match item {
            StreamItem::Release { sealed } => self.take_release(sealed.release).await,
            StreamItem::Past { release } => self.take_release(*release).await,
            StreamItem::Anchor { anchor } => {
                assert_eq!(self.seen.ends.last(), Some(&anchor.anchor.end));
                self.seen.anchor = Some(anchor.anchor.end.index);
            }
            StreamItem::Attested { commit, evidence } => {
                if let Some(voters) = &mut self.voters {
                    voters.check(commit, &evidence, &self.seen.ends);
                }
                // Where an epoch ended its certificate comes too, and says nothing new then.
                self.seen.attested = self.seen.attested.max(commit);
            }
            StreamItem::CaughtUp { commit } => {
                assert_eq!(self.seen.caught_up, None);
                self.seen.caught_up = Some(commit);
            }
        }
        true
    }

    async fn take_release(&mut self, release: CommitRelease) {
        let commit = release.end.index;
        assert!(self.seen.ends.last().is_none_or(|last| last.index < commit));
        let placed = release.releases.iter().map(|each| (each.position, each.digest));
        self.seen.ordered.extend(placed);
        self.seen.ends.push(release.end);
        if let Some(voters) = &mut self.voters {
            voters.learn(&release);
        }
        // A stream that has just ended shows so at the next item.
        let _ = self.connection.sender.send(&Consumed { commit }).await;
    }

    /// Takes in items until `wanted`.
    pub async fn until(&mut self, wanted: impl Fn(&Seen) -> bool) {
        while !wanted(&self.seen) {
            assert!(self.take().await, "the stream ended: {:#?}", self.seen);
        }
    }

    /// Takes in items until all of these are ordered and attested.
    pub async fn until_attested(&mut self, digests: &[PayloadDigest]) {
        self.until(|seen| seen.has_attested(digests)).await;
    }
}
