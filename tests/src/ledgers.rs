//! A cluster of real ledgers in mode `opaque`: genesis, files, processes, and connections to them.
//!
//! Owns the processes, which end with it. Decides nothing: when a ledger starts, stops or is hurt
//! is the caller's. Called by the load generator and by the endurance runs.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail, ensure};
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
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::sleep;

/// How long the ledgers may take to find each other.
const START_WAIT_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks at a ledger that starts.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Where one ledger runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its address for its peers.
    pub address: SocketAddr,
    /// What stands before its command line: the way into its network.
    pub enter: Vec<String>,
}

/// Places on loopback, one for each of `hosts`.
///
/// # Errors
/// No ports are free.
pub fn on_loopback(hosts: u8) -> std::io::Result<Vec<Place>> {
    // All are held until the last one is chosen, so that no two are equal.
    let listeners: Vec<_> =
        (0..hosts).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let place =
        |listener: &TcpListener| Ok(Place { address: listener.local_addr()?, enter: Vec::new() });
    listeners.iter().map(place).collect()
}

/// Ledgers, each running or not.
pub struct Ledgers {
    directory: PathBuf,
    program: PathBuf,
    cluster: ClusterId,
    places: Vec<Place>,
    processes: Mutex<Vec<Option<Child>>>,
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

fn genesis(places: &[Place]) -> anyhow::Result<Genesis> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let hosts = (0_u8..).zip(places).map(|(host, place)| GenesisHost {
        name: name(&format!("host{}", host + 1)),
        operator: name("op"),
        ledger_key: host_key(host).public_key(),
        address: place.address,
    });
    Ok(Genesis {
        dagger: 1,
        nonce: format!("{:032x}", since.as_nanos()),
        name: name("tests"),
        mode: GenesisMode::Opaque,
        operators: vec![GenesisOperator { name: name("op"), key: key(1).public_key() }],
        hosts: hosts.collect(),
        collection_depth_rounds: 60,
        handover_distance_commits: 256,
        commit_bytes_max: None,
    })
}

fn write_host(directory: &Path, host: u8) -> anyhow::Result<()> {
    use std::io::Write;
    std::fs::create_dir(directory)?;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(directory.join("key"))?;
    file.write_all(host_key(host).to_openssh("tests").as_bytes())?;
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
    /// Founds a cluster with a host in each of `places`, with its files below `directory`; no
    /// ledger runs yet. `program` is started as `program ledger --configuration FILE` and must then
    /// be the ledger daemon.
    ///
    /// # Errors
    /// Its files cannot be written.
    pub fn found(places: Vec<Place>, program: &Path, directory: &Path) -> anyhow::Result<Self> {
        let bytes = genesis(&places)?.to_bytes();
        let signature = sshsig::sign(&key(1), Namespace::Genesis, &bytes);
        let armor = sshsig::to_armor(&key(1).public_key(), Namespace::Genesis, &signature);
        std::fs::write(directory.join("genesis.json"), &bytes)?;
        std::fs::write(directory.join("genesis.json.sig"), armor)?;
        let ledgers = Self {
            directory: directory.to_owned(),
            program: program.to_owned(),
            cluster: ClusterId::of(&bytes),
            processes: Mutex::new(places.iter().map(|_| None).collect()),
            places,
        };
        for host in ledgers.hosts() {
            write_host(&ledgers.host_directory(host), host)?;
        }
        Ok(ledgers)
    }

    /// Starts all ledgers and waits until they have found each other.
    ///
    /// # Errors
    /// One does not start, or they do not find each other in time.
    pub async fn start_all(&self) -> anyhow::Result<()> {
        for host in self.hosts() {
            self.start(host)?;
        }
        for host in self.hosts() {
            self.until_linked(host).await?;
        }
        Ok(())
    }

    /// Starts the ledger of `host`, which does not run.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, host: u8) -> anyhow::Result<()> {
        let directory = self.host_directory(host);
        let log = std::fs::File::options().append(true).create(true).open(directory.join("log"))?;
        let mut words = self.places[usize::from(host)].enter.iter().map(PathBuf::from);
        let mut command = words.next().map(Command::new);
        if let Some(command) = &mut command {
            command.args(words).arg(&self.program);
        }
        let process = command
            .unwrap_or_else(|| Command::new(&self.program))
            .arg("ledger")
            .arg("--configuration")
            .arg(directory.join("ledger.toml"))
            .env_remove("JOURNAL_STREAM")
            .env_remove("NOTIFY_SOCKET")
            .stderr(log)
            .spawn()
            .context("a ledger cannot be started")?;
        self.processes()[usize::from(host)] = Some(process);
        Ok(())
    }

    /// Sends `signal` to the running ledger of `host`.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, host: u8, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid(host).with_context(|| format!("host{} does not run", host + 1))?;
        Ok(kill(Pid::from_raw(i32::try_from(pid)?), signal)?)
    }

    /// Sends `signal`, which ends it, to the running ledger of `host`, and waits for its end.
    ///
    /// # Errors
    /// It does not run.
    pub fn end(&self, host: u8, signal: Signal) -> anyhow::Result<ExitStatus> {
        self.signal(host, signal)?;
        let process = self.processes()[usize::from(host)].take();
        Ok(process.ok_or_else(|| anyhow!("it was signalled"))?.wait()?)
    }

    fn processes(&self) -> MutexGuard<'_, Vec<Option<Child>>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All hosts.
    pub fn hosts(&self) -> std::ops::Range<u8> {
        0..u8::try_from(self.places.len()).expect("as many as a byte counts")
    }

    fn host_directory(&self, host: u8) -> PathBuf {
        self.directory.join(format!("h{host}"))
    }

    /// Where the store of `host` stands.
    pub fn store_directory(&self, host: u8) -> PathBuf {
        self.host_directory(host).join("state/store")
    }

    fn pid(&self, host: u8) -> Option<u32> {
        self.processes()[usize::from(host)].as_ref().map(Child::id)
    }

    /// Process ids of those that run, by host.
    pub fn pids(&self) -> Vec<u32> {
        self.processes().iter().flatten().map(Child::id).collect()
    }

    /// Ports on which the ledgers listen for each other.
    pub fn ports(&self) -> Vec<u16> {
        self.places.iter().map(|place| place.address.port()).collect()
    }

    /// Fails with the end of its log when a ledger that was started has ended by itself.
    ///
    /// # Errors
    /// That.
    pub fn check_alive(&self) -> anyhow::Result<()> {
        for (host, process) in (0_u8..).zip(self.processes().iter_mut()) {
            let ended = process.as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = ended {
                let end = self.log_end(host);
                bail!("the ledger of host{} ended ({status}): {end}", host + 1);
            }
        }
        Ok(())
    }

    /// The last lines of a host's log.
    pub fn log_end(&self, host: u8) -> String {
        let path = self.host_directory(host).join("log");
        let log = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
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
    ///
    /// # Errors
    /// The ledger does not serve.
    pub async fn requests(&self, host: u8) -> anyhow::Result<Connection> {
        self.connect(host, Purpose::Requests {}).await
    }

    /// The release stream of the commits after `after`.
    ///
    /// # Errors
    /// The ledger does not serve.
    pub async fn stream(&self, host: u8, after: CommitIndex) -> anyhow::Result<Connection> {
        let window = RELEASE_WINDOW_MAX;
        self.connect(host, Purpose::Releases { after, window }).await
    }

    /// How the ledger of `host` is.
    ///
    /// # Errors
    /// The ledger does not serve.
    pub async fn status(&self, host: u8) -> anyhow::Result<LedgerStatus> {
        let mut connection = self.requests(host).await?;
        connection.sender.send(&Request { id: 1, call: Call::Status {} }).await?;
        match connection.receiver.receive::<Response>().await?.answer {
            Answer::Status { status } => Ok(*status),
            other => bail!("no status: {other:?}"),
        }
    }

    /// Waits until the ledger of `host` takes changes and has links to all others.
    ///
    /// # Errors
    /// A ledger has ended, or it takes too long.
    pub async fn until_linked(&self, host: u8) -> anyhow::Result<()> {
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
        for process in self.processes().iter_mut().flatten() {
            // Whatever has ended already needs no signal.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
