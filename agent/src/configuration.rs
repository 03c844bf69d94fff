//! The agent's configuration file, and what it names: genesis, key, directories, sockets.
//!
//! Owns the file's shape and the checks that are the agent's own; how files are read, the bus knows
//! for all daemons. Never opens a socket. Called once at start.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use dagger_bus::setup::{self, SetupError};
use dagger_images::fetch::AddressRange;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{ClusterId, HostId};
use dagger_payload::key::SecretKey;
use dagger_payload::limits::NAMESERVERS_MAX;
use dagger_payload::name::Name;
use dagger_payload::roster::{Roster, Seat};
use serde::Deserialize;

use crate::controller::{LocalPolicy, Retention};
use crate::downloads::DownloadConfiguration;
use crate::handover::Introduction;
use crate::hypervisor::cloud_hypervisor::{CloudHypervisorConfiguration, Supervision};
use crate::machines::{Accelerator, Backend, MachineConfiguration, NetworkKind};
use crate::name_servers;
use crate::one_shot::HelperConfiguration;

/// Where disks are when no storage directory is named; the units know the same place.
const STORAGE_DIRECTORY: &str = "/var/lib/dagger-storage";
/// Where Cloud Hypervisor is looked for when no program is named.
const CLOUD_HYPERVISOR: &str = "/usr/bin/cloud-hypervisor";
/// Where its machines' files are when no run directory is named; the unit template knows the same
/// place.
const RUN_DIRECTORY: &str = "/run/dagger/vm";

/// Why the configuration was refused; the daemon exits with 64.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The file, or one that it names, is refused.
    #[error(transparent)]
    Setup(#[from] SetupError),
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
    /// All seats of the cluster (JSON, as `daggerctl ledger roster` writes it on a member): for a
    /// host that joined after the founding. The same file as the ledger's.
    roster: Option<PathBuf>,
    /// This host's name.
    host: Name,
    /// The agent's OpenSSH private key file, or `credential:NAME` for
    /// `$CREDENTIALS_DIRECTORY/NAME`.
    key: String,
    /// What this host must remember lives below it: its journal, and how far it has seen.
    state_directory: PathBuf,
    /// What VMs are made of lives below it: images, disks, seeds, consoles.
    #[serde(default = "default_storage_directory")]
    storage_directory: PathBuf,
    sockets: Sockets,
    #[serde(default)]
    api: Api,
    hypervisor: Hypervisor,
    #[serde(default)]
    network: Network,
    #[serde(default)]
    images: Images,
    #[serde(default)]
    helpers: Helpers,
    /// What the operator lets this host take, beyond what the ledger says.
    #[serde(default)]
    policy: LocalPolicy,
    /// How long this host keeps what nobody needs any more.
    #[serde(default)]
    retention: Retention,
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
    /// `libvirt` or `cloud_hypervisor`.
    #[serde(default)]
    kind: HypervisorKind,
    /// libvirt's connection, such as `qemu:///system` or `test:///default`.
    uri: Option<String>,
    /// libvirt's: `auto`, `kvm` or `tcg`.
    accelerator: Option<Accelerator>,
    /// Cloud Hypervisor's program.
    program: Option<PathBuf>,
    /// The firmware that Cloud Hypervisor's guests boot with.
    firmware: Option<PathBuf>,
    /// Where the files of Cloud Hypervisor's machines are while the host is up.
    run_directory: Option<PathBuf>,
    /// Who owns Cloud Hypervisor's processes: `auto`, `systemd` or `direct`.
    supervision: Option<Supervision>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum HypervisorKind {
    #[default]
    Libvirt,
    /// Also as the command line writes it.
    #[serde(alias = "cloud-hypervisor")]
    CloudHypervisor,
}

impl Hypervisor {
    /// The one that is meant, if everything that is said is about it.
    fn backend(self) -> Result<Backend, ConfigurationError> {
        let refuse = |detail: &str| Err(ConfigurationError::Inconsistent(detail.to_owned()));
        match self.kind {
            HypervisorKind::Libvirt
                if self.program.is_some()
                    || self.firmware.is_some()
                    || self.run_directory.is_some()
                    || self.supervision.is_some() =>
            {
                return refuse(
                    "hypervisor: program, firmware, run_directory and supervision are for kind \
                     \"cloud_hypervisor\"; with kind \"libvirt\" take them out",
                );
            }
            HypervisorKind::CloudHypervisor if self.uri.is_some() || self.accelerator.is_some() => {
                return refuse(
                    "hypervisor: with kind \"cloud_hypervisor\" take out uri and accelerator",
                );
            }
            HypervisorKind::Libvirt | HypervisorKind::CloudHypervisor => {}
        }
        match (self.kind, self.uri, self.firmware) {
            (HypervisorKind::Libvirt, Some(uri), _) => {
                Ok(Backend::Libvirt { uri, accelerator: self.accelerator.unwrap_or_default() })
            }
            (HypervisorKind::Libvirt, None, _) => refuse(
                "hypervisor.uri: libvirt's connection is missing, such as \"qemu:///system\"",
            ),
            (HypervisorKind::CloudHypervisor, _, Some(firmware)) => {
                Ok(Backend::CloudHypervisor(CloudHypervisorConfiguration {
                    program: self.program.unwrap_or_else(|| CLOUD_HYPERVISOR.into()),
                    firmware,
                    run_directory: self.run_directory.unwrap_or_else(|| RUN_DIRECTORY.into()),
                    supervision: self.supervision.unwrap_or_default(),
                }))
            }
            (HypervisorKind::CloudHypervisor, _, None) => refuse(
                "hypervisor.firmware: the file that guests boot with is missing, such as CLOUDHV.fd",
            ),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    /// `nat` or `none`.
    #[serde(default)]
    kind: NetworkKind,
    /// Who resolves names for guests; those that this host asks, unless named. An empty list gives
    /// guests none.
    nameservers: Option<Vec<Ipv4Addr>>,
}

impl Network {
    fn nameservers(&self) -> Result<Vec<Ipv4Addr>, ConfigurationError> {
        match &self.nameservers {
            Some(named) if named.len() > NAMESERVERS_MAX => Err(ConfigurationError::Inconsistent(
                format!("network.nameservers: at most {NAMESERVERS_MAX} are given to a guest"),
            )),
            Some(named) => Ok(named.clone()),
            None => Ok(name_servers::of_this_host()),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Images {
    /// Where files that registered images name as their source may lie. Empty: none is imported on
    /// anybody's word but that of who holds the API's Unix socket.
    #[serde(default)]
    import_directories: Vec<PathBuf>,
    /// Addresses from which images may be fetched although they are private, link-local or
    /// loopback, such as `10.0.0.0/8`.
    #[serde(default)]
    networks: Vec<AddressRange>,
    /// Where other hosts may fetch images, unless a socket named `images` is handed over. The
    /// label `image-endpoint` of this host tells them.
    listen: Option<SocketAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Helpers {
    /// Who owns the helpers' processes: `auto`, `systemd` or `direct`.
    #[serde(default)]
    supervision: Supervision,
    /// Where the programs of helpers are that the agent starts itself; beside its own if not named.
    programs: Option<PathBuf>,
}

fn default_storage_directory() -> PathBuf {
    STORAGE_DIRECTORY.into()
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

/// Which host this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIdentity {
    /// Its id, for ever.
    pub id: HostId,
    /// What it is called.
    pub name: Name,
}

/// The configuration with everything that it names read and checked.
#[derive(Debug)]
pub struct Configuration {
    /// The cluster's founding document.
    pub genesis: Genesis,
    /// The cluster.
    pub cluster: ClusterId,
    /// This host.
    pub host: HostIdentity,
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
    /// Where other hosts may fetch images, if anywhere.
    pub images_listen: Option<SocketAddr>,
    /// The machines' half.
    pub machines: MachineConfiguration,
}

impl Configuration {
    /// Reads the file at `path`; relative paths in it are resolved against its directory.
    ///
    /// # Errors
    /// [`ConfigurationError`].
    pub fn read(path: &Path) -> Result<Self, ConfigurationError> {
        let file: File = setup::read_configuration(path)?;
        let directory = path.parent().unwrap_or_else(|| Path::new(""));
        let absolute = |path: &Path| directory.join(path);
        let (genesis, cluster) = setup::read_judged_genesis(
            &absolute(&file.genesis),
            &absolute(&file.genesis_signatures),
        )?;
        let roster = match &file.roster {
            Some(path) => setup::read_roster(&absolute(path), &genesis)?,
            None => Roster::founding(&genesis),
        };
        let host = member(&roster, &file.host)?;
        let key = setup::read_key(&file.key, directory)?;
        if let Some(listen) = file.api.listen
            && !listen.ip().is_loopback()
        {
            let detail = format!(
                "api.listen: {listen} is no loopback address; put a proxy in front to serve others"
            );
            return Err(ConfigurationError::Inconsistent(detail));
        }
        let state_directory = absolute(&file.state_directory);
        let storage_directory = absolute(&file.storage_directory);
        check_storage(&state_directory, &storage_directory, &file.images.import_directories)?;
        let helpers = HelperConfiguration {
            supervision: file.helpers.supervision,
            programs: file.helpers.programs.as_deref().map(absolute),
        };
        let machines = MachineConfiguration {
            host_id: host.id,
            state_directory: state_directory.clone(),
            storage_directory,
            import_directories: file.images.import_directories,
            downloads: DownloadConfiguration {
                networks: file.images.networks,
                helpers: helpers.clone(),
                introduction: Introduction::default(),
            },
            backend: file.hypervisor.backend()?,
            network_kind: file.network.kind,
            nameservers: file.network.nameservers()?,
            helpers,
            policy: file.policy,
            retention: file.retention,
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
            images_listen: file.images.listen,
            state_directory,
            machines,
        })
    }

    /// What guests cannot start without and is not there. Not refused at a start: an agent without
    /// its firmware still looks after the guests that run.
    pub fn missing_files(&self) -> Vec<String> {
        let Backend::CloudHypervisor(machines) = &self.machines.backend else {
            return Vec::new();
        };
        let named = [("program", &machines.program), ("firmware", &machines.firmware)];
        let missing = named.into_iter().filter(|(_, path)| !path.is_file());
        let words = |(key, path): (_, &PathBuf)| {
            format!("hypervisor.{key}: there is no file {}", path.display())
        };
        missing.map(words).collect()
    }
}

/// Disks must not be looked for where they are not: a host that made them below its state directory
/// goes on there, since they name each other by their whole paths.
fn check_storage(
    state: &Path,
    storage: &Path,
    imports: &[PathBuf],
) -> Result<(), ConfigurationError> {
    if let Some(relative) = imports.iter().find(|directory| !directory.is_absolute()) {
        let detail = format!("images.import_directories: {} is not absolute", relative.display());
        return Err(ConfigurationError::Inconsistent(detail));
    }
    if state != storage && state.join("disks").exists() {
        let state = state.display();
        return Err(ConfigurationError::Inconsistent(format!(
            "storage_directory: disks of this host are in {state}/disks; write \
             storage_directory = \"{state}\" to go on with them"
        )));
    }
    Ok(())
}

fn member(roster: &Roster, name: &Name) -> Result<HostIdentity, ConfigurationError> {
    let named = |seat: &&Seat| seat.name == *name;
    // A name that was given again is the present host's.
    let found = roster.present().find(named).or_else(|| roster.seats().iter().rfind(named));
    let found = found.map(|seat| HostIdentity { id: seat.host, name: seat.name.clone() });
    found.ok_or_else(|| {
        let names: Vec<_> = roster.present().map(|seat| seat.name.as_str()).collect();
        ConfigurationError::Inconsistent(format!(
            "host: neither the genesis nor a `roster` file knows {name}; they list {}. A host that \
             joined after the founding needs `roster`, as `daggerctl ledger roster` writes it",
            names.join(", ")
        ))
    })
}
