//! The real daemon as a process: its conversations, its sandbox, its end. And the sandbox from
//! inside.

use std::hint::black_box;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dagger_bus::judging::{
    Admission, AdmissionOutcome, Admit, Asked, Judge, Judged, Open, Opened, ProofAt, Purpose,
    Restore, Restored, Then,
};
use dagger_bus::limits::PROOFS_WAITING_MAX;
use dagger_bus::seal::SealKey;
use dagger_bus::{BusError, Connection};
use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::id::{AuthorIndex, ClusterId, CommitIndex, LedgerTime, Round, VmId};
use dagger_payload::key::{Domain, SecretKey, Signature};
use dagger_payload::kind::Body;
use dagger_payload::payload::{Payload, SignatureKind, SignedPayload};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::{OrderedCommit, OrderedPayload, extend_prefix};
use dagger_payload::sshsig::{self, Namespace};
use dagger_payload::state_tree::Subject;
use dagger_processor::sandbox::{self, FileWall};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn key(byte: u8) -> SecretKey {
    SecretKey::from_seed(&[byte; 32].into())
}

fn write_genesis(directory: &Path) -> ClusterId {
    let genesis = Genesis {
        dagger: 1,
        nonce: "0".repeat(32),
        name: "test".parse().expect("a name"),
        mode: GenesisMode::Judged,
        operators: vec![GenesisOperator {
            name: "op".parse().expect("a name"),
            key: key(1).public_key(),
        }],
        hosts: vec![GenesisHost {
            name: "host".parse().expect("a name"),
            operator: "op".parse().expect("a name"),
            ledger_key: key(2).public_key(),
            address: "127.0.0.1:7400".parse().expect("an address"),
        }],
        collection_depth_rounds: 60,
        handover_distance_commits: 10,
        commit_bytes_max: None,
    };
    let bytes = genesis.to_bytes();
    let signature = sshsig::sign(&key(1), Namespace::Genesis, &bytes);
    let armor = sshsig::to_armor(&key(1).public_key(), Namespace::Genesis, &signature);
    std::fs::write(directory.join("genesis.json"), &bytes).expect("written");
    std::fs::write(directory.join("genesis.json.sig"), armor).expect("written");
    let configuration = "genesis = 'genesis.json'\ngenesis_signatures = 'genesis.json.sig'\n\
                         [sockets]\nledger = 'ledger.sock'\nseal = 'seal.sock'\n";
    std::fs::write(directory.join("processor.toml"), configuration).expect("written");
    ClusterId::of(&bytes)
}

struct Daemon {
    child: Child,
    directory: tempfile::TempDir,
    cluster: ClusterId,
}

impl Daemon {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let cluster = write_genesis(directory.path());
        let child = Command::new(env!("CARGO_BIN_EXE_dagger-processor"))
            .arg("--configuration")
            .arg(directory.path().join("processor.toml"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        Self { child, directory, cluster }
    }

    /// Connects as soon as the daemon listens.
    async fn connect(&self, socket: &str) -> Connection {
        let path = self.directory.path().join(socket);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match Connection::connect(&path).await {
                Ok(connection) => return connection,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::task::yield_now().await;
        }
    }

    async fn open(&self, purpose: Purpose) -> (Connection, Opened) {
        let mut connection = self.connect("ledger.sock").await;
        let open = Open { cluster: self.cluster, purpose };
        connection.sender.send(&open).await.expect("sent");
        let opened = connection.receiver.receive().await.expect("answered");
        (connection, opened)
    }

    fn stop(mut self) -> (Option<i32>, String) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, Signal::SIGTERM).expect("signalled");
        let mut log = String::new();
        let stderr = self.child.stderr.as_mut().expect("piped");
        stderr.read_to_string(&mut log).expect("text");
        (self.child.wait().expect("ended").code(), log)
    }
}

fn next_commit(opened: &Opened) -> OrderedCommit {
    OrderedCommit {
        index: opened.judged.index.next(),
        ledger_time: LedgerTime(1_700_000_000_000),
        leader_round: Round(1),
        authors: Vec::new(),
        payloads: Vec::new(),
        first_position: opened.judged.position.next(),
        prefix_hash: opened.judged.prefix_hash,
    }
}

#[tokio::test]
async fn the_daemon_judges_in_order_seals_repeats_and_begins_anew() {
    let daemon = Daemon::start();
    let mut agent = daemon.connect("seal.sock").await;
    let seal: SealKey = agent.receiver.receive().await.expect("a key");
    let (mut judgement, opened) = daemon.open(Purpose::Judgement).await;
    assert_eq!((seal.cluster, &seal.key), (daemon.cluster, &opened.seal_key));
    let commit = next_commit(&opened);
    for _ in 0..2 {
        judgement
            .sender
            .send(&Judge { commit: commit.clone(), then: Then::Nothing })
            .await
            .expect("sent");
        let judged = judgement.receiver.receive().await.expect("answered");
        let Judged::Done { sealed, .. } = judged else { panic!("{judged:?}") };
        let digest = sealed.release.seal_digest();
        assert!(seal.key.verifies_in(Domain::Seal, &digest, &sealed.seal));
        assert_eq!(sealed.release.end.index, CommitIndex(1));
    }
    let mut later = commit.clone();
    later.index = CommitIndex(9);
    judgement.sender.send(&Judge { commit: later, then: Then::Nothing }).await.expect("sent");
    let judged = judgement.receiver.receive().await.expect("answered");
    assert!(matches!(judged, Judged::OutOfOrder { expected: CommitIndex(2) }));
    let (_anew, opened) = daemon.open(Purpose::JudgementAnew).await;
    assert_eq!(opened.judged.index, CommitIndex(0));
    assert_ne!(opened.seal_key, seal.key);
    assert!(matches!(agent.receiver.receive::<SealKey>().await, Err(BusError::Closed)));
    assert!(matches!(judgement.receiver.receive::<Judged>().await, Err(BusError::Closed)));
    let (code, log) = daemon.stop();
    assert_eq!(code, Some(0), "{log}");
}

/// One commit with one payload (which is refused: that is content too).
fn commit_with_payload(opened: &Opened) -> OrderedCommit {
    let payload = SignedPayload {
        signature_kind: SignatureKind::SshEd25519,
        signature: Signature([0; 64]),
        bytes: b"{}"[..].into(),
    };
    let mut commit = next_commit(opened);
    let (before, time) = (opened.judged.prefix_hash, commit.ledger_time);
    commit.prefix_hash = extend_prefix(&before, time, [&payload]);
    commit.payloads = vec![OrderedPayload { author: AuthorIndex(0), payload }];
    commit
}

#[tokio::test]
async fn a_snapshot_that_was_asked_for_begins_a_later_life_and_a_false_one_does_not() {
    let daemon = Daemon::start();
    let (mut judgement, opened) = daemon.open(Purpose::Judgement).await;
    let judge = Judge { commit: commit_with_payload(&opened), then: Then::Snapshot };
    judgement.sender.send(&judge).await.expect("sent");
    let judged = judgement.receiver.receive().await.expect("answered");
    let Judged::Done { sealed, .. } = judged else { panic!("{judged:?}") };
    let end = sealed.release.end;
    let mut chunks = Vec::new();
    let head = loop {
        match judgement.receiver.receive().await.expect("answered") {
            Judged::Chunk { bytes } => chunks.push(bytes),
            Judged::Snapshot { head } => break head,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((head.end, head.chunks), (end, 1));
    let mut false_head = head.clone();
    false_head.end.state_root = opened.judged.state_root;
    for (head, is_true) in [(false_head, false), (head, true)] {
        let (mut from, before) = daemon.open(Purpose::JudgementFrom).await;
        from.sender.send(&Restore::Head { head }).await.expect("sent");
        let bytes = chunks[0].clone();
        from.sender.send(&Restore::Chunk { bytes }).await.expect("sent");
        match from.receiver.receive().await.expect("answered") {
            Restored::Refused { why } => assert!(!is_true, "{why}"),
            Restored::Done { opened } => {
                assert!(is_true);
                assert_eq!(opened.judged, end);
                assert_ne!(opened.seal_key, before.seal_key);
                let anchor = opened.anchor.clone().expect("it began there");
                assert!(anchor.is_sealed_by(&opened.seal_key));
                assert_eq!(anchor.anchor.end, end);
                let judge = Judge { commit: next_commit(&opened), then: Then::Nothing };
                from.sender.send(&judge).await.expect("sent");
                let judged = from.receiver.receive().await.expect("answered");
                let Judged::Done { sealed, .. } = judged else { panic!("{judged:?}") };
                assert_eq!(sealed.release.end.index, CommitIndex(2));
            }
        }
    }
    let ended = judgement.receiver.receive::<Judged>().await;
    assert!(matches!(ended, Err(BusError::Closed)), "the old life is over");
    daemon.stop();
}

/// What the key of number `signer` signs.
fn signed(cluster: ClusterId, signer: u8, kind: &str, body: serde_json::Value) -> SignedPayload {
    let body = Body::read(kind, &body.to_string()).expect("a good body");
    let (signer, not_after) = (key(signer), LedgerTime(1_700_000_060_000));
    let payload = Payload { cluster, signer: signer.public_key(), not_after, body };
    SignedPayload::sign(&signer, &payload)
}

/// A stranger's key costs nothing. The flood goes over a connection of its own and is larger than
/// what is answered while the honest request waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_a_strangers_requests_keeps_no_request_of_an_account_out() {
    const FLOOD: u64 = 30_000;
    const HONEST_WAIT_MAX: Duration = Duration::from_secs(10);
    let daemon = Daemon::start();
    let (mut judgement, opened) = daemon.open(Purpose::Judgement).await;
    let grant = serde_json::json!({
        "key": key(5).public_key(), "vms": 1, "until_ms": 1_800_000_000_000_u64,
        "capacity": {"cpus": 1, "memory_mib": 512, "disk_gib": 5},
    });
    let mut commit = next_commit(&opened);
    let payload = signed(daemon.cluster, 1, "account.grant", grant);
    let before = opened.judged.prefix_hash;
    commit.prefix_hash = extend_prefix(&before, commit.ledger_time, [&payload]);
    commit.payloads = vec![OrderedPayload { author: AuthorIndex(0), payload }];
    let now = commit.ledger_time;
    judgement.sender.send(&Judge { commit, then: Then::Nothing }).await.expect("sent");
    let judged: Judged = judgement.receiver.receive().await.expect("answered");
    assert!(matches!(judged, Judged::Done { .. }), "{judged:?}");

    let add = |number: u8| serde_json::json!({"key": key(number).public_key(), "role": "read"});
    let stranger = signed(daemon.cluster, 9, "account.add_key", add(8));
    let (flood, _) = daemon.open(Purpose::Admissions).await;
    let Connection { mut sender, mut receiver } = flood;
    let flooding = tokio::spawn(async move {
        for id in 0..FLOOD {
            let asked = Asked::Pack { payload: stranger.clone() };
            sender.feed(&Admit { id, asked, now }).await.expect("queued");
        }
        sender.flush().await.expect("sent");
    });
    let answered = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = answered.clone();
    let draining = tokio::spawn(async move {
        for _ in 0..FLOOD {
            let Admission { outcome, .. } = receiver.receive().await.expect("answered");
            let AdmissionOutcome::Refused { refusal } = outcome else { panic!("{outcome:?}") };
            assert_eq!(refusal.code, RefusalCode::AccountUnknown);
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    });
    while answered.load(std::sync::atomic::Ordering::Relaxed) < 100 {
        tokio::task::yield_now().await;
    }
    let (mut honest, _) = daemon.open(Purpose::Admissions).await;
    let payload = signed(daemon.cluster, 5, "account.add_key", add(6));
    let admit = Admit { id: 1, asked: Asked::Pack { payload }, now };
    let begin = Instant::now();
    honest.sender.send(&admit).await.expect("sent");
    let answer = honest.receiver.receive::<Admission>();
    let answer = tokio::time::timeout(HONEST_WAIT_MAX, answer).await.expect("in time");
    let Admission { outcome, .. } = answer.expect("answered");
    assert!(matches!(outcome, AdmissionOutcome::Admitted { .. }), "{outcome:?}");
    let of_flood = answered.load(std::sync::atomic::Ordering::Relaxed);
    assert!(of_flood < FLOOD, "the flood was over before the honest request was answered");
    println!("answered after {:?}, {of_flood} of {FLOOD} of the flood", begin.elapsed());
    flooding.await.expect("sent");
    draining.await.expect("answered");
    daemon.stop();
}

#[tokio::test]
async fn the_door_refuses_with_a_code_and_a_foreign_cluster_is_shown_out() {
    let daemon = Daemon::start();
    let (mut admissions, _) = daemon.open(Purpose::Admissions).await;
    let payload = SignedPayload {
        signature_kind: SignatureKind::SshEd25519,
        signature: Signature([0; 64]),
        bytes: b"{\"dagger\":1}"[..].into(),
    };
    let admit = Admit { id: 7, asked: Asked::Pack { payload }, now: LedgerTime(0) };
    admissions.sender.send(&admit).await.expect("sent");
    let Admission { id, outcome } = admissions.receiver.receive().await.expect("answered");
    let AdmissionOutcome::Refused { refusal } = outcome else { panic!("{outcome:?}") };
    assert_eq!((id, refusal.code), (7, RefusalCode::PayloadMalformed));
    let mut foreign = daemon.connect("ledger.sock").await;
    let open = Open { cluster: ClusterId([9; 32]), purpose: Purpose::Admissions };
    foreign.sender.send(&open).await.expect("sent");
    let opened: Opened = foreign.receiver.receive().await.expect("answered");
    assert_eq!(opened.cluster, daemon.cluster);
    assert!(matches!(foreign.receiver.receive::<Admission>().await, Err(BusError::Closed)));
    daemon.stop();
}

#[tokio::test]
async fn a_proof_comes_at_once_or_with_the_next_checkpoint_and_the_oldest_of_too_many_gives_way() {
    let daemon = Daemon::start();
    let (mut door, _) = daemon.open(Purpose::Admissions).await;
    let (mut judgement, mut opened) = daemon.open(Purpose::Judgement).await;
    let prove = |id, at| {
        let subject = Subject::Vm(VmId([u8::try_from(id).expect("few"); 16]));
        Admit { id, asked: Asked::Prove { subject, at }, now: LedgerTime(0) }
    };
    let proven = |admission: Admission| {
        let AdmissionOutcome::Proven { proof } = admission.outcome else { panic!("{admission:?}") };
        let subject = Subject::Vm(VmId([u8::try_from(admission.id).expect("few"); 16]));
        assert_eq!(proof.state.verify(&proof.end.state_root, &subject), Ok(None));
        proof.end
    };
    let waiting = u64::try_from(PROOFS_WAITING_MAX).expect("few");
    for id in 0..=waiting {
        door.sender.send(&prove(id, ProofAt::Checkpoint)).await.expect("sent");
    }
    // There is one too many, and asking for the present state waits for nobody.
    let first: Admission = door.receiver.receive().await.expect("answered");
    assert_eq!((first.id, first.outcome), (0, AdmissionOutcome::NotProven));
    door.sender.send(&prove(200, ProofAt::Present)).await.expect("sent");
    let present = door.receiver.receive().await.expect("answered");
    assert_eq!(proven(present), opened.judged);

    for index in 1..=100 {
        let commit = if index == 1 { commit_with_payload(&opened) } else { next_commit(&opened) };
        judgement.sender.send(&Judge { commit, then: Then::Nothing }).await.expect("sent");
        let judged = judgement.receiver.receive().await.expect("answered");
        let Judged::Done { sealed, .. } = judged else { panic!("{judged:?}") };
        opened.judged = sealed.release.end;
    }
    for id in 1..=waiting {
        let late: Admission = door.receiver.receive().await.expect("answered");
        assert_eq!(late.id, id);
        let end = proven(late);
        // The last commit that changed anything, whose state is that of the checkpoint.
        assert_eq!((end.index, end.state_root), (CommitIndex(1), opened.judged.state_root));
    }
    daemon.stop();
}

#[tokio::test]
async fn the_running_daemon_is_filtered_and_has_no_new_privileges() {
    let daemon = Daemon::start();
    let (_connection, _) = daemon.open(Purpose::Admissions).await;
    let tasks = format!("/proc/{}/task", daemon.child.id());
    for task in std::fs::read_dir(tasks).expect("it lives") {
        let status = task.expect("a task").path().join("status");
        let status = std::fs::read_to_string(status).expect("it lives");
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        assert!(status.contains("Seccomp:\t2"), "{status}");
    }
    daemon.stop();
}

#[test]
fn a_refused_configuration_ends_with_its_own_code() {
    let directory = tempfile::tempdir().expect("a directory");
    write_genesis(directory.path());
    let run = |text: &str| {
        let path = directory.path().join("bad.toml");
        std::fs::write(&path, text).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_dagger-processor"));
        let output = command.arg("--check").arg("--configuration").arg(path).output();
        output.expect("started").status.code()
    };
    let good = "genesis = 'genesis.json'\ngenesis_signatures = 'genesis.json.sig'\n";
    assert_eq!(run(good), Some(0));
    assert_eq!(run(&format!("{good}unknown = 1\n")), Some(64));
    std::fs::write(directory.path().join("genesis.json.sig"), "").expect("written");
    assert_eq!(run(good), Some(64));
}

/// Runs one test of this file again, alone in a child, with `variable` set.
fn inside(test: &str, variable: &str) -> std::process::Output {
    Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(variable, "1")
        .output()
        .expect("started")
}

/// Runs itself again as a child that closes the sandbox and then tries what it must not.
#[test]
fn inside_the_sandbox_nothing_can_be_opened_or_started() {
    const INSIDE: &str = "DAGGER_TEST_INSIDE_SANDBOX";
    if std::env::var_os(INSIDE).is_some() {
        let listening = std::net::TcpListener::bind("127.0.0.1:0").expect("still outside");
        let listening = listening.local_addr().expect("bound");
        let file = tempfile::NamedTempFile::new().expect("still outside");
        sandbox::close_files().expect("closed");
        sandbox::close_calls().expect("closed");
        try_files(file.path());
        try_networks(listening);
        try_processes();
        println!("everything was refused");
        // Removed by the parent, for nothing can be removed here.
        println!("left: {}", file.path().display());
        std::mem::forget(file);
        return;
    }
    let output = inside("inside_the_sandbox_nothing_can_be_opened_or_started", INSIDE);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("everything was refused"), "{text}{:?}", output);
    let left = text.lines().find_map(|line| line.strip_prefix("left: ")).expect("its path");
    std::fs::remove_file(left).expect("it could not be removed inside");
}

/// As above, with Landlock alone: the filter of system calls would refuse first.
#[test]
fn files_are_closed_to_threads_that_are_started_afterwards() {
    const INSIDE: &str = "DAGGER_TEST_INSIDE_LANDLOCK";
    if std::env::var_os(INSIDE).is_some() {
        if sandbox::close_files().expect("closed") == FileWall::Landlock {
            std::thread::spawn(try_landlock).join().expect("it was refused");
            try_landlock();
        }
        println!("everything was refused, or this kernel has no Landlock");
        return;
    }
    let output = inside("files_are_closed_to_threads_that_are_started_afterwards", INSIDE);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("everything was refused"), "{text}{:?}", output);
}

fn try_landlock() {
    let opened = std::fs::File::open("/etc/hostname").expect_err("closed");
    assert_eq!(opened.raw_os_error(), Some(nix::libc::EACCES));
}

fn try_files(existing: &Path) {
    let refused = std::io::ErrorKind::PermissionDenied;
    for path in
        [existing, Path::new("/etc/hostname"), Path::new("/dev/null"), Path::new("/dev/kvm")]
    {
        assert_eq!(std::fs::File::open(path).expect_err("closed").kind(), refused, "{path:?}");
    }
    let new = std::env::temp_dir().join(format!("dagger-sandbox-{}", std::process::id()));
    assert_eq!(std::fs::write(&new, "").expect_err("closed").kind(), refused);
    assert_eq!(std::fs::create_dir(&new).expect_err("closed").kind(), refused);
    assert_eq!(std::fs::remove_file(existing).expect_err("closed").kind(), refused);
    assert_eq!(std::fs::rename(existing, &new).expect_err("closed").kind(), refused);
    assert_eq!(std::os::unix::fs::symlink("/", &new).expect_err("closed").kind(), refused);
    assert!(std::fs::read_dir("/").is_err());
    assert!(std::fs::metadata("/etc/hostname").is_err());
    assert!(std::env::set_current_dir("/").is_err());
    assert_eq!(nix::unistd::pipe().expect_err("closed"), nix::Error::EPERM);
}

fn try_networks(listening: std::net::SocketAddr) {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};
    for family in [
        AddressFamily::Unix,
        AddressFamily::Inet,
        AddressFamily::Inet6,
        AddressFamily::Netlink,
        AddressFamily::Packet,
    ] {
        for kind in [SockType::Stream, SockType::Datagram, SockType::Raw] {
            let opened = socket(family, kind, SockFlag::empty(), None);
            assert_eq!(opened.expect_err("closed"), nix::Error::EPERM, "{family:?} {kind:?}");
        }
    }
    let (family, kind) = (AddressFamily::Unix, SockType::Stream);
    let pair = socketpair(family, kind, None, SockFlag::empty());
    assert_eq!(pair.expect_err("closed"), nix::Error::EPERM);
    assert!(std::net::TcpStream::connect(listening).is_err());
}

fn try_processes() {
    assert!(Command::new("/bin/true").spawn().is_err());
    assert!(std::thread::Builder::new().spawn(|| ()).is_err());
    assert_eq!(kill(nix::unistd::getpid(), None).expect_err("closed"), nix::Error::EPERM);
    let path = c"/bin/true";
    assert_eq!(nix::unistd::execv(path, &[path]).expect_err("closed"), nix::Error::EPERM);
    assert!(nix::unistd::setsid().is_err());
}

/// Runs itself again as a child that closes the sandbox and then asks for more memory than it may
/// have.
#[test]
fn inside_the_sandbox_memory_is_bounded_and_too_much_of_it_ends_the_process() {
    const INSIDE: &str = "DAGGER_TEST_INSIDE_BOUND";
    const TEST: &str = "inside_the_sandbox_memory_is_bounded_and_too_much_of_it_ends_the_process";
    if std::env::var_os(INSIDE).is_some() {
        sandbox::close_files().expect("closed");
        sandbox::close_calls().expect("closed");
        // Memory that nobody looks at is not even asked for, once it is optimised.
        let some: Vec<u8> = black_box(Vec::with_capacity(1 << 28));
        println!("{} bytes are there", some.capacity());
        let much: Vec<u8> = black_box(Vec::with_capacity(17 << 30));
        println!("{} bytes are there too", much.capacity());
        return;
    }
    let output = inside(TEST, INSIDE);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("268435456 bytes are there"), "{text}");
    assert!(!text.contains("there too"), "{text}");
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    assert_eq!(signal, Some(nix::libc::SIGABRT), "{output:?}");
}

#[tokio::test]
async fn the_running_daemon_has_its_limits() {
    let daemon = Daemon::start();
    let (_connection, _) = daemon.open(Purpose::Admissions).await;
    let path = format!("/proc/{}/limits", daemon.child.id());
    let limits = std::fs::read_to_string(path).expect("it lives");
    for (name, most) in [
        ("Max address space", 16_u64 << 30),
        ("Max open files", 256),
        ("Max core file size", 0),
        ("Max locked memory", 0),
    ] {
        let line = limits.lines().find(|line| line.starts_with(name)).expect("a limit");
        let words: Vec<_> = line[name.len()..].split_whitespace().collect();
        for value in &words[..2] {
            let value: u64 = value.parse().unwrap_or_else(|_| panic!("no limit: {line}"));
            assert!(value <= most, "{line}");
        }
    }
    daemon.stop();
}

/// How the daemon ends with `text` as its configuration, and what it says.
fn end_with(text: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().expect("a directory");
    write_genesis(directory.path());
    let path = directory.path().join("processor.toml");
    std::fs::write(&path, text).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_dagger-processor"))
        .arg("--configuration")
        .arg(path)
        .args(arguments)
        .output()
        .expect("started");
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}

#[test]
fn what_no_other_start_would_mend_is_no_defect_but_a_refused_configuration() {
    let genesis = "genesis = 'genesis.json'\ngenesis_signatures = 'genesis.json.sig'\n";
    let (code, log) = end_with(genesis, &[]);
    assert_eq!(code, Some(64), "{log}");
    assert!(log.contains("start dagger-processor-ledger.socket"), "{log}");
    let nowhere = format!("{genesis}[sockets]\nledger = 'nowhere/a.sock'\nseal = 'seal.sock'\n");
    let (code, log) = end_with(&nowhere, &[]);
    assert_eq!(code, Some(64), "{log}");
    for arguments in [&[][..], &["--check"]] {
        let (code, log) = end_with(&format!("{genesis}log = 'info,='\n"), arguments);
        assert_eq!(code, Some(64), "{log}");
        assert!(log.contains("`log` is no filter"), "{log}");
    }
}
