//! The ledger's configuration file, and what it names: genesis and key.
//!
//! Owns the file's shape, the resolution of its paths and the checks that are the ledger's own and
//! need no running daemon; how files are read, the bus knows for all daemons. Called by `program`
//! and by tests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dagger_bus::setup::{self, SetupError};
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{AuthorIndex, ClusterId};
use dagger_payload::key::SecretKey;
use dagger_payload::name::Name;
use dagger_payload::roster::{Roster, Seat};
use serde::Deserialize;

/// `ledger.toml`. Relative paths count from the file's own directory.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// The genesis document.
    pub genesis: PathBuf,
    /// Its signatures.
    pub genesis_signatures: PathBuf,
    /// All seats of the cluster (JSON, as `daggerctl ledger roster` writes it on a member): for a
    /// host that joined after the founding, or has another ledger key since. It says which seat is
    /// this host's and where its peers are until its own judge has come that far.
    pub roster: Option<PathBuf>,
    /// What is logged: a filter of tracing, such as `info`.
    #[serde(default = "default_log")]
    pub log: String,
    /// The ledger key: an OpenSSH private key file, or `credential:NAME` for
    /// `$CREDENTIALS_DIRECTORY/NAME`.
    pub key: String,
    /// Where the store lives.
    pub state_directory: PathBuf,
    /// The witness file; outside the state directory, so that both are not lost or restored
    /// together.
    pub witness: PathBuf,
    /// Where to listen for peers when no socket named `peers` was handed over; else the address of
    /// the own seat.
    pub listen: Option<SocketAddr>,
    /// Size of the store's sparse map, in GiB: the most that it can ever hold.
    #[serde(default = "default_map_gib")]
    pub map_gib: usize,
    /// Other addresses of peers than their seats name, by host name.
    #[serde(default)]
    pub peers: BTreeMap<Name, SocketAddr>,
    /// How long is kept what only a replay needs.
    #[serde(default)]
    pub retention: RetentionSettings,
    /// Local sockets.
    pub sockets: Sockets,
    /// Where the file lies, for a key that is named relative to it.
    #[serde(skip)]
    pub directory: PathBuf,
}

/// The table `[retention]`.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionSettings {
    /// Hours of ledger time for which the bodies of events are kept at least; for ever when it is
    /// not set. Only what lies before the two newest snapshots goes, so 0 keeps those.
    pub event_bodies_hours: Option<u32>,
}

/// How long the bodies of events are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// For ever.
    Forever,
    /// At least so many hours of ledger time.
    Hours(u64),
}

impl From<RetentionSettings> for Retention {
    fn from(settings: RetentionSettings) -> Self {
        settings.event_bodies_hours.map_or(Self::Forever, |hours| Self::Hours(hours.into()))
    }
}

/// Paths of the local sockets.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sockets {
    /// Where to listen for the agent when no socket named `agent` was handed over.
    pub agent: Option<PathBuf>,
    /// Where the processor listens; in mode `opaque` nobody does.
    pub processor: PathBuf,
}

fn default_log() -> String {
    "info".to_owned()
}

fn default_map_gib() -> usize {
    1024
}

/// Why the daemon cannot start; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The file, or one that it names, is refused.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The key is no member's.
    #[error(
        "no host of the genesis has the ledger key {0}, and no seat of a `roster` file: is it \
         another host's key? A host that joined later, or has a new key, needs `roster`, as \
         `daggerctl ledger roster` writes it on a member once the change is ordered"
    )]
    NotMember(String),
    /// A peer is named that nobody knows.
    #[error("[peers] names {0}, which is no host of the genesis or the roster")]
    UnknownPeer(Name),
    /// The witness lies inside the state directory.
    #[error("the witness {0} lies inside the state directory; put it elsewhere")]
    WitnessInside(PathBuf),
    /// A number is out of range.
    #[error("map_gib must be 1 to 16384")]
    MapSize,
}

/// Everything that is checked before the daemon starts.
pub struct Prepared {
    /// As read.
    pub configuration: Configuration,
    /// The cluster's founders.
    pub genesis: Arc<Genesis>,
    /// The cluster.
    pub cluster: ClusterId,
    /// This member's seat.
    pub me: AuthorIndex,
    /// The ledger key.
    pub key: Arc<SecretKey>,
    /// What the roster file says.
    pub told: Option<Roster>,
}

impl Prepared {
    /// The seats that are known without a store.
    pub fn roster(&self) -> Roster {
        self.told.clone().unwrap_or_else(|| Roster::founding(&self.genesis))
    }

    /// The own seat.
    pub fn seat(&self) -> Seat {
        self.roster().seat(self.me).expect("found by its key").clone()
    }
}

impl Configuration {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`ConfigurationError`].
    pub fn read(path: &Path) -> Result<Self, ConfigurationError> {
        let mut configuration: Self = setup::read_configuration(path)?;
        let directory = path.parent().unwrap_or(Path::new("."));
        let sockets = &mut configuration.sockets;
        let paths = [
            &mut configuration.genesis,
            &mut configuration.genesis_signatures,
            &mut configuration.state_directory,
            &mut configuration.witness,
            &mut sockets.processor,
        ];
        for path in paths.into_iter().chain(&mut sockets.agent).chain(&mut configuration.roster) {
            *path = directory.join(&*path);
        }
        configuration.directory = directory.to_owned();
        Ok(configuration)
    }

    /// Reads and checks everything that the configuration names.
    ///
    /// # Errors
    /// [`ConfigurationError`].
    pub fn prepare(self) -> Result<Prepared, ConfigurationError> {
        let (genesis, cluster) = setup::read_genesis(&self.genesis, &self.genesis_signatures)?;
        let key = setup::read_key(&self.key, &self.directory)?;
        let public = key.public_key();
        let read_roster = |path: &PathBuf| setup::read_roster(path, &genesis);
        let told = self.roster.as_ref().map(read_roster).transpose()?;
        let roster = told.clone().unwrap_or_else(|| Roster::founding(&genesis));
        let me = roster
            .author_of(&public)
            .ok_or_else(|| ConfigurationError::NotMember(public.fingerprint()))?;
        let known = |name: &Name| roster.seats().iter().any(|seat| seat.name == *name);
        if let Some(stranger) = self.peers.keys().find(|name| !known(name)) {
            return Err(ConfigurationError::UnknownPeer(stranger.clone()));
        }
        if self.witness.starts_with(&self.state_directory) {
            return Err(ConfigurationError::WitnessInside(self.witness));
        }
        if !(1..=16_384).contains(&self.map_gib) {
            return Err(ConfigurationError::MapSize);
        }
        Ok(Prepared {
            configuration: self,
            genesis: Arc::new(genesis),
            cluster,
            me,
            key: Arc::new(key),
            told,
        })
    }
}
