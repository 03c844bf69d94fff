//! The agent's configuration file, and what it names: genesis, key, directories, sockets.
//!
//! Owns the file's shape and its checks. Never opens a socket. Called once at start.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode};
use dagger_payload::id::ClusterId;
use dagger_payload::key::SecretKey;
use dagger_payload::limits::GENESIS_BYTES_MAX;
use dagger_payload::name::Name;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::controller::LocalPolicy;
use crate::machines::{Accelerator, MachineConfiguration, NetworkKind};

/// Bytes of the configuration and of the key file that are read at most.
const FILE_BYTES_MAX: usize = 64 * 1024;

/// Why the configuration was refused; the daemon exits with 64.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The configuration file is not in form.
    #[error("{}: {detail}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The genesis is not.
    #[error("{}", path.display())]
    Genesis {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: dagger_payload::genesis::GenesisError,
    },
    /// The parts do not fit together.
    #[error("{0}")]
    Inconsistent(String),
}

/// The file, as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The cluster's genesis document.
    genesis: PathBuf,
    /// Its operators' signatures.
    genesis_signatures: PathBuf,
    /// A tracing filter such as `info` or `info,dagger_agent=debug`.
    #[serde(default = "default_log")]
    log: String,
    /// This host's name in the genesis.
    host: Name,
    /// The agent's OpenSSH private key file, or `credential:NAME` for
    /// `$CREDENTIALS_DIRECTORY/NAME`.
    key: String,
    /// Journal, images, disks and seeds live below it.
    state_directory: PathBuf,
    sockets: Sockets,
    #[serde(default)]
    api: Api,
    hypervisor: Hypervisor,
    #[serde(default)]
    network: Network,
    /// What the operator lets this host take, beyond what the ledger says.
    #[serde(default)]
    policy: LocalPolicy,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sockets {
    /// The ledger's socket; the agent connects.
    ledger: PathBuf,
    /// The processor's seal socket; the agent connects.
    seal: PathBuf,
    /// The API's socket; the agent listens, unless it is handed one named `api`.
    api: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Api {
    /// Also listen here, unless a socket named `api-tcp` is handed over. Loopback addresses only.
    listen: Option<SocketAddr>,
    /// Names besides the loopback ones that `Host` and `Origin` may carry, for a proxy in front.
    #[serde(default)]
    hosts: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hypervisor {
    /// The libvirt connection, such as `qemu:///system` or `test:///default`.
    uri: String,
    /// `auto`, `kvm` or `tcg`.
    #[serde(default)]
    accelerator: Accelerator,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    /// `nat` or `none`.
    #[serde(default)]
    kind: NetworkKind,
}

fn default_log() -> String {
    "info".to_owned()
}

/// Where the API listens and whom it answers.
#[derive(Debug, Clone)]
pub struct ApiConfiguration {
    /// The Unix socket.
    pub socket: PathBuf,
    /// The TCP address, if any.
    pub listen: Option<SocketAddr>,
    /// Further names accepted in `Host` and `Origin`.
    pub hosts: BTreeSet<String>,
}

/// The configuration with everything that it names read and checked.
#[derive(Debug)]
pub struct Configuration {
    /// The cluster's founding document.
    pub genesis: Genesis,
    /// The cluster.
    pub cluster: ClusterId,
    /// This host's entry in the genesis.
    pub host: GenesisHost,
    /// Signs reports.
    pub key: SecretKey,
    /// A tracing filter.
    pub log: String,
    /// Where state is kept.
    pub state_directory: PathBuf,
    /// The ledger's socket.
    pub ledger_socket: PathBuf,
    /// The processor's seal socket.
    pub seal_socket: PathBuf,
    /// The API.
    pub api: ApiConfiguration,
    /// The machines' half.
    pub machines: MachineConfiguration,
}

impl Configuration {
    /// Reads the file at `path`; relative paths in it are resolved against its directory.
    ///
    /// # Errors
    /// [`ConfigurationError`].
    pub fn read(path: &Path) -> Result<Self, ConfigurationError> {
        let text = read_text(path, FILE_BYTES_MAX)?;
        let file: File = toml::from_str(&text).map_err(|error| ConfigurationError::Malformed {
            path: path.to_owned(),
            detail: error.to_string(),
        })?;
        let directory = path.parent().unwrap_or_else(|| Path::new(""));
        let absolute = |path: &Path| directory.join(path);
        let (genesis, cluster) =
            read_genesis(&absolute(&file.genesis), &absolute(&file.genesis_signatures))?;
        let host = member(&genesis, &file.host)?;
        let key = read_key(&file.key, directory)?;
        if let Some(listen) = file.api.listen
            && !listen.ip().is_loopback()
        {
            let detail = format!(
                "api.listen: {listen} is no loopback address; put a proxy in front to serve others"
            );
            return Err(ConfigurationError::Inconsistent(detail));
        }
        let state_directory = absolute(&file.state_directory);
        let machines = MachineConfiguration {
            host_id: host.id(),
            state_directory: state_directory.clone(),
            uri: file.hypervisor.uri,
            accelerator: file.hypervisor.accelerator,
            network_kind: file.network.kind,
            policy: file.policy,
        };
        Ok(Self {
            genesis,
            cluster,
            host,
            key,
            log: file.log,
            ledger_socket: absolute(&file.sockets.ledger),
            seal_socket: absolute(&file.sockets.seal),
            api: ApiConfiguration {
                socket: absolute(&file.sockets.api),
                listen: file.api.listen,
                hosts: file.api.hosts,
            },
            state_directory,
            machines,
        })
    }
}

fn read_text(path: &Path, bytes_max: usize) -> Result<Zeroizing<String>, ConfigurationError> {
    let unreadable = |source| ConfigurationError::Unreadable { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > bytes_max as u64 {
        return Err(ConfigurationError::Malformed {
            path: path.to_owned(),
            detail: format!("{length} bytes; expected at most {bytes_max}"),
        });
    }
    std::fs::read_to_string(path).map(Zeroizing::new).map_err(unreadable)
}

fn read_genesis(
    path: &Path,
    signatures: &Path,
) -> Result<(Genesis, ClusterId), ConfigurationError> {
    let text = read_text(path, GENESIS_BYTES_MAX)?;
    let signatures = read_text(signatures, GENESIS_BYTES_MAX)?;
    let (genesis, cluster) = Genesis::read_signed(text.as_bytes(), &signatures)
        .map_err(|source| ConfigurationError::Genesis { path: path.to_owned(), source })?;
    if genesis.mode == GenesisMode::Judged {
        Ok((genesis, cluster))
    } else {
        Err(ConfigurationError::Inconsistent(
            "the genesis has mode `opaque` (for benchmarks): no agent joins such a cluster"
                .to_owned(),
        ))
    }
}

fn member(genesis: &Genesis, name: &Name) -> Result<GenesisHost, ConfigurationError> {
    let found = genesis.hosts.iter().find(|host| host.name == *name);
    found.cloned().ok_or_else(|| {
        let names: Vec<_> = genesis.hosts.iter().map(|host| host.name.as_str()).collect();
        ConfigurationError::Inconsistent(format!(
            "host: the genesis knows no {name}; it lists {}",
            names.join(", ")
        ))
    })
}

fn read_key(key: &str, directory: &Path) -> Result<SecretKey, ConfigurationError> {
    let path = match key.strip_prefix("credential:") {
        Some(name) => {
            let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                ConfigurationError::Inconsistent(
                    "key: $CREDENTIALS_DIRECTORY is not set; start this as a systemd unit with \
                     LoadCredential=, or name a file"
                        .to_owned(),
                )
            })?;
            Path::new(&credentials).join(name)
        }
        None => directory.join(key),
    };
    let text = read_text(&path, FILE_BYTES_MAX)?;
    let malformed = |detail: String| ConfigurationError::Malformed { path: path.clone(), detail };
    let mode = std::fs::metadata(&path)
        .map_err(|source| ConfigurationError::Unreadable { path: path.clone(), source })?
        .permissions()
        .mode();
    if mode & 0o007 != 0 {
        let detail =
            format!("everybody may read this private key (mode {:o}); chmod 600", mode & 0o777);
        return Err(malformed(detail));
    }
    SecretKey::from_openssh(&text).map_err(|error| malformed(error.to_string()))
}
