//! The ledgers under load: their genesis, their files, their processes, and connections to them.
//!
//! Owns the processes, which end with it. Called by the run.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use dagger_bus::Connection;
use dagger_bus::ledger::{
    Answer, Call, LedgerStatus, LinkStatus, Open, Opened, Purpose, Request, Response,
};
use dagger_bus::limits::RELEASE_WINDOW_MAX;
use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::id::{ClusterId, CommitIndex};
use dagger_payload::key::SecretKey;
use dagger_payload::name::Name;
use dagger_payload::sshsig::{self, Namespace};
use tokio::time::sleep;

/// How long the ledgers may take to find each other.
const START_WAIT_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks at a ledger that starts.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Running ledgers.
pub(super) struct Ledgers {
    directory: PathBuf,
    cluster: ClusterId,
    addresses: Vec<SocketAddr>,
    processes: Mutex<Vec<Child>>,
}

/// The operator's key has seed 1, each host's the one of its number: nothing of value is here.
fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32].into())
}

fn host_key(host: u8) -> SecretKey {
    key(host + 2)
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn free_addresses(count: u8) -> std::io::Result<Vec<SocketAddr>> {
    // All are held until the last one is chosen, so that no two are equal.
    let listeners: Vec<_> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    listeners.iter().map(TcpListener::local_addr).collect()
}

fn genesis(addresses: &[SocketAddr]) -> anyhow::Result<Genesis> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let hosts = (0_u8..).zip(addresses).map(|(host, address)| GenesisHost {
        name: name(&format!("host{}", host + 1)),
        operator: name("op"),
        ledger_key: host_key(host).public_key(),
        address: *address,
    });
    Ok(Genesis {
        dagger: 1,
        nonce: format!("{:032x}", since.as_nanos()),
        name: name("hammer"),
        mode: GenesisMode::Opaque,
        operators: vec![GenesisOperator { name: name("op"), key: key(1).public_key() }],
        hosts: hosts.collect(),
        collection_depth_rounds: 60,
        handover_distance_commits: 256,
    })
}

fn write_host(directory: &Path, host: u8) -> anyhow::Result<()> {
    use std::io::Write;
    std::fs::create_dir(directory)?;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(directory.join("key"))?;
    file.write_all(host_key(host).to_openssh("hammer").as_bytes())?;
    let configuration = r#"
        genesis = "../genesis.json"
        genesis_signatures = "../genesis.json.sig"
        log = "info"
        key = "key"
        state_directory = "state"
        witness = "witness/last-round"
        map_gib = 1024
        [sockets]
        agent = "ledger.sock"
        processor = "nobody.sock"
    "#;
    std::fs::write(directory.join("ledger.toml"), configuration)?;
    Ok(())
}

impl Ledgers {
    /// Founds a cluster below `directory`, starts its ledgers and waits until all are linked.
    pub(super) async fn start(hosts: u8, program: &Path, directory: &Path) -> anyhow::Result<Self> {
        let addresses = free_addresses(hosts)?;
        let bytes = genesis(&addresses)?.to_bytes();
        let signature = sshsig::sign(&key(1), Namespace::Genesis, &bytes);
        let armor = sshsig::to_armor(&key(1).public_key(), Namespace::Genesis, &signature);
        std::fs::write(directory.join("genesis.json"), &bytes)?;
        std::fs::write(directory.join("genesis.json.sig"), armor)?;
        let cluster = ClusterId::of(&bytes);
        let ledgers = Self {
            directory: directory.to_owned(),
            cluster,
            addresses,
            processes: Mutex::default(),
        };
        for host in 0..hosts {
            let directory = ledgers.host_directory(host);
            write_host(&directory, host)?;
            let log = std::fs::File::create(directory.join("log"))?;
            let process = Command::new(program)
                .arg("ledger")
                .arg("--configuration")
                .arg(directory.join("ledger.toml"))
                .env_remove("JOURNAL_STREAM")
                .env_remove("NOTIFY_SOCKET")
                .stderr(log)
                .spawn()
                .context("a ledger cannot be started")?;
            ledgers.processes().push(process);
        }
        for host in 0..hosts {
            ledgers.until_linked(host).await?;
        }
        Ok(ledgers)
    }

    fn processes(&self) -> std::sync::MutexGuard<'_, Vec<Child>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn host_directory(&self, host: u8) -> PathBuf {
        self.directory.join(format!("h{host}"))
    }

    /// Process ids, by host.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.processes().iter().map(Child::id).collect()
    }

    /// Ports on which the ledgers listen for each other.
    pub(super) fn ports(&self) -> Vec<u16> {
        self.addresses.iter().map(SocketAddr::port).collect()
    }

    /// Fails with the end of its log when a ledger has died.
    pub(super) fn check_alive(&self) -> anyhow::Result<()> {
        for (host, process) in (0_u8..).zip(self.processes().iter_mut()) {
            if let Some(status) = process.try_wait()? {
                let log = std::fs::read_to_string(self.host_directory(host).join("log"))?;
                let lines: Vec<&str> = log.lines().rev().take(10).collect();
                bail!("the ledger of host{} ended ({status}): {lines:#?}", host + 1);
            }
        }
        Ok(())
    }

    async fn connect(&self, host: u8, purpose: Purpose) -> anyhow::Result<Connection> {
        let path = self.host_directory(host).join("ledger.sock");
        let mut connection = Connection::connect(&path).await?;
        connection.sender.send(&Open { cluster: self.cluster, purpose }).await?;
        let opened: Opened = connection.receiver.receive().await?;
        ensure!(opened.cluster == self.cluster, "the ledger serves another cluster");
        Ok(connection)
    }

    /// A connection for requests.
    pub(super) async fn requests(&self, host: u8) -> anyhow::Result<Connection> {
        self.connect(host, Purpose::Requests {}).await
    }

    /// The release stream, from the first commit on.
    pub(super) async fn stream(&self, host: u8) -> anyhow::Result<Connection> {
        let window = RELEASE_WINDOW_MAX;
        self.connect(host, Purpose::Releases { after: CommitIndex(0), window }).await
    }

    async fn status(&self, host: u8) -> anyhow::Result<LedgerStatus> {
        let mut connection = self.requests(host).await?;
        connection.sender.send(&Request { id: 1, call: Call::Status {} }).await?;
        match connection.receiver.receive::<Response>().await?.answer {
            Answer::Status { status } => Ok(*status),
            other => bail!("no status: {other:?}"),
        }
    }

    async fn until_linked(&self, host: u8) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_WAIT_MAX;
        loop {
            self.check_alive()?;
            // Before it listens there is nobody to ask.
            let status = self.status(host).await;
            let ready = status.as_ref().is_ok_and(|status| {
                let mut members = status.members.iter();
                let linked = members.all(|each| each.link != LinkStatus::Missing);
                linked && status.unavailable.is_none()
            });
            if ready {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the ledgers did not find each other: {status:?}");
            sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Ledgers {
    fn drop(&mut self) {
        for process in self.processes().iter_mut() {
            // Whatever has ended already needs no signal.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
