//! What is written down about a development cluster, so that it can be started again as the same
//! one.
//!
//! Owns the file `cluster.toml` and the places of everything below the cluster's directory. Never
//! starts anything. Called by the other modules of `cluster`.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use dagger_payload::name::Name;
use serde::{Deserialize, Serialize};

use super::arguments::{DirectoryArguments, Hypervisor};
use super::daemons::Role;
use crate::failure::Failure;
use crate::limits::SOCKET_PATH_BYTES_MAX;
use crate::signer::read_small;

/// Version of the file's shape.
const RECORD_VERSION: u32 = 1;
/// The longest path below the run directory.
const LONGEST_SOCKET: &str = "/libvirt/libvirt-admin-sock";

/// How QEMU runs guests, as decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Accelerator {
    /// Hardware virtualisation
    Kvm,
    /// QEMU's own emulation
    Tcg,
}

/// Which libvirt the agents use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Libvirt {
    /// The cluster's own libvirtd.
    Private,
    /// The machine's, at `qemu:///system`.
    System,
    /// None: the test driver lives inside each agent.
    None,
}

/// One host of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostRecord {
    /// What it is called.
    pub(crate) name: Name,
    /// Whose it is.
    pub(crate) operator: Name,
    /// Port of its ledger, on 127.0.0.1.
    pub(crate) ledger_port: u16,
    /// Port of its API, on 127.0.0.1.
    pub(crate) api_port: u16,
    /// Network address of its guests, a /24.
    pub(crate) guest_network: std::net::Ipv4Addr,
    /// Since when it is there.
    #[serde(default)]
    pub(crate) membership: Membership,
}

/// Since when a host is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Membership {
    /// The genesis names it.
    #[default]
    Founder,
    /// It joined later: its daemons need a roster file.
    Joined,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// [`RECORD_VERSION`].
    pub(crate) version: u32,
    /// What the cluster is called.
    pub(crate) name: Name,
    /// Short random text in the name of its run directory.
    pub(crate) tag: String,
    /// What runs the VMs.
    pub(crate) hypervisor: Hypervisor,
    /// How.
    pub(crate) accelerator: Accelerator,
    /// Through which libvirt.
    pub(crate) libvirt: Libvirt,
    /// Cloud Hypervisor's files, where that runs the VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cloud_hypervisor: Option<super::cloud_hypervisor::Programs>,
    /// What connects the VMs: `dagger-net`; nothing where they have no network cards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) network_helper: Option<PathBuf>,
    /// The hosts: first those of the genesis, in its order.
    pub(crate) hosts: Vec<HostRecord>,
}

/// Where everything of one cluster is.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    root: PathBuf,
}

/// The directory that is meant when none is named.
fn default_root() -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".local/state")))
        .map(|state| state.join("dagger/dev"))
        .ok_or_else(|| {
            Failure::usage("neither $XDG_STATE_HOME nor $HOME is set", "Give --directory.")
        })
}

impl Directory {
    /// The directory that the arguments name. It need not exist.
    pub(crate) fn of(arguments: &DirectoryArguments) -> Result<Self, Failure> {
        let root = match &arguments.directory {
            Some(directory) => directory.clone(),
            None => default_root()?,
        };
        let root = std::path::absolute(&root).map_err(|error| Failure::file(&root, &error))?;
        // Paths stand in shell scripts, configuration files and XML: keep to characters that need
        // no quoting anywhere.
        let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.+@".contains(c);
        match root.to_str() {
            Some(text) if text.chars().all(plain) => Ok(Self { root }),
            _ => Err(Failure::usage(
                format!(
                    "the directory {root:?} has characters other than letters, digits and /-_.+@"
                ),
                "Choose another with --directory.",
            )),
        }
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A file or directory below it.
    pub(crate) fn join(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(below)
    }

    /// A key file by name.
    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.join("keys").join(name)
    }

    /// The genesis document.
    pub(crate) fn genesis(&self) -> PathBuf {
        self.join("genesis.json")
    }

    /// The environment that people source.
    pub(crate) fn environment(&self) -> PathBuf {
        self.join("environment")
    }

    /// Configuration file of a daemon.
    pub(crate) fn configuration(&self, role: Role, host: &Name) -> PathBuf {
        self.join(format!("hosts/{host}/{}.toml", role.as_str()))
    }

    /// The roster file of a host that joined.
    pub(crate) fn roster(&self, host: &Name) -> PathBuf {
        self.join(format!("hosts/{host}/roster.json"))
    }

    /// Log of a process, by its name.
    pub(crate) fn log(&self, process: &str) -> PathBuf {
        self.join(format!("logs/{process}.log"))
    }

    /// File with the process id of a process, by its name.
    pub(crate) fn pid(&self, process: &str) -> PathBuf {
        self.join("pids").join(process)
    }

    /// Reads `cluster.toml`; `None` where there is no cluster yet.
    pub(crate) fn read_record(&self) -> Result<Option<Record>, Failure> {
        let path = self.join("cluster.toml");
        if !path.exists() {
            return Ok(None);
        }
        let damaged = |why: String| {
            Failure::refused(
                "cluster_record_damaged",
                format!("{}: {why}", path.display()),
                "Repair the file, or start a new cluster in another --directory.",
            )
        };
        let record: Record =
            toml::from_str(&read_small(&path)?).map_err(|error| damaged(error.to_string()))?;
        if record.version != RECORD_VERSION {
            return Err(damaged(format!("version {} is unknown", record.version)));
        }
        Ok(Some(record))
    }

    /// Reads `cluster.toml` of a cluster that must exist.
    pub(crate) fn require_record(&self) -> Result<Record, Failure> {
        self.read_record()?.ok_or_else(|| {
            Failure::refused(
                "no_cluster",
                format!("there is no development cluster in {}", self.root.display()),
                "Name its --directory, or start one with `daggerctl cluster dev`.",
            )
        })
    }

    /// Writes `cluster.toml`, whole or not at all.
    pub(crate) fn write_record(&self, record: &Record) -> Result<(), Failure> {
        let text = toml::to_string(record)
            .map_err(|error| Failure::broken(format!("cannot write TOML: {error}")))?;
        let head = "# A development cluster of daggerctl. Written by `daggerctl cluster dev`.\n";
        let path = self.join("cluster.toml");
        let temporary = self.join("cluster.toml.new");
        std::fs::write(&temporary, format!("{head}{text}"))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|error| Failure::file(&path, &error))
    }

    /// Where sockets are: below the directory, or somewhere short when its path is long.
    pub(crate) fn run_directory(&self, record: &Record) -> PathBuf {
        let own = self.join("run");
        if own.as_os_str().len() + LONGEST_SOCKET.len() <= SOCKET_PATH_BYTES_MAX {
            return own;
        }
        let base = if nix::unistd::geteuid().is_root() { "/run" } else { "/tmp" };
        PathBuf::from(format!("{base}/dagger-dev-{}", record.tag))
    }

    /// A socket of one host.
    pub(crate) fn socket(&self, record: &Record, host: &Name, name: &str) -> PathBuf {
        self.run_directory(record).join(host.as_str()).join(name)
    }

    /// Where one host's Cloud Hypervisor machines are while they run: short, since it holds sockets
    /// of long names.
    pub(crate) fn machines(&self, record: &Record, host: &Name) -> PathBuf {
        let base = if nix::unistd::geteuid().is_root() { "/run" } else { "/tmp" };
        PathBuf::from(format!("{base}/dagger-dev-{}-vm/{host}", record.tag))
    }

    /// The API socket of one host.
    pub(crate) fn api_socket(&self, record: &Record, host: &Name) -> PathBuf {
        self.socket(record, host, "api.sock")
    }
}

impl Record {
    /// A new record.
    pub(crate) fn new(name: Name, tag: String, hypervisor: Hypervisor) -> Self {
        Self {
            version: RECORD_VERSION,
            name,
            tag,
            hypervisor,
            accelerator: Accelerator::Tcg,
            libvirt: Libvirt::None,
            cloud_hypervisor: None,
            network_helper: None,
            hosts: Vec::new(),
        }
    }

    /// Every daemon of the cluster, in the order in which they are started.
    pub(crate) fn daemons(&self) -> impl Iterator<Item = (Role, &HostRecord)> {
        let roles = [Role::Processor, Role::Ledger, Role::Agent];
        roles.into_iter().flat_map(|role| self.hosts.iter().map(move |host| (role, host)))
    }
}

/// Makes a directory that only its owner can enter; one that exists must be the caller's own.
pub(crate) fn make_private(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::MetadataExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| Failure::file(path, &error))?;
    let metadata = std::fs::symlink_metadata(path).map_err(|error| Failure::file(path, &error))?;
    let own = metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw();
    if own {
        return Ok(());
    }
    Err(Failure::refused(
        "directory_foreign",
        format!("{} belongs to somebody else", path.display()),
        "Choose another --directory.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let name: Name = "dev".parse().expect("a name");
        Record::new(name, "0123456789ab".into(), Hypervisor::Test)
    }

    #[test]
    fn sockets_of_a_directory_with_a_long_name_have_short_paths() {
        let long = format!("/tmp/{}", "x".repeat(100));
        let arguments = |directory: &str| DirectoryArguments { directory: Some(directory.into()) };
        let host: Name = "host16".parse().expect("a name");
        for root in ["/tmp/short", &long] {
            let directory = Directory::of(&arguments(root)).expect("a directory");
            let socket = directory.socket(&record(), &host, "processor.sock");
            assert!(socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX, "{socket:?}");
        }
        let quoted = Directory::of(&arguments("/tmp/it's"));
        assert!(quoted.is_err());
    }

    #[test]
    fn a_record_reads_back_and_an_unknown_version_is_refused() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = Directory { root: root.path().to_owned() };
        assert!(directory.require_record().expect_err("none").has_code("no_cluster"));
        let mut record = record();
        directory.write_record(&record).expect("writes");
        assert_eq!(directory.require_record().expect("reads"), record);
        record.version = 2;
        directory.write_record(&record).expect("writes");
        assert!(directory.read_record().is_err());
    }
}
