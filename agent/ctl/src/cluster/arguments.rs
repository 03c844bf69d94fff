//! The arguments of `daggerctl cluster`.
//!
//! Owns their grammar and help. Never acts. Called by `arguments`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use dagger_payload::name::Name;

use super::daemons::Role;
use crate::limits::DEVELOPMENT_HOSTS_MAX;
use crate::units;

const DEV_EXAMPLES: &str = "\
Examples:
  sudo daggerctl cluster dev --hosts 4            # real VMs, until Ctrl-C
  sudo daggerctl cluster dev --hosts 4 --detach   # the same in the background
  # Pretended VMs: fast, needs no root
  daggerctl cluster dev --hypervisor test --detach

Each host is three processes of its own (processor, ledger, agent) with its
own keys, sockets, store and operator. Started again on the same directory,
the cluster is the same cluster: keys, history and VMs' disks are kept.";

const ADD_HOST_EXAMPLES: &str = "\
Examples:
  # Goes as far as the others have agreed; says what they sign
  daggerctl cluster add-host --name host5
  # Signs for all operators, whose keys lie side by side here
  daggerctl cluster add-host --name host5 --admit --vote
  # One more host of an operator who takes part
  daggerctl cluster add-host --name host6 --operator op5

Repeated, it goes on where it stopped. `cluster stop` ends the host with the
others.";

/// Arguments of `cluster add-host`.
#[derive(Debug, Clone, Args)]
pub(crate) struct AddHostArguments {
    /// What the host is called, for example host5
    #[arg(long)]
    pub(crate) name: Name,
    /// Whose it is [default: a new operator, op and the number of the host]
    #[arg(long, value_name = "NAME")]
    pub(crate) operator: Option<Name>,
    /// Which cluster.
    #[command(flatten)]
    pub(crate) directory: DirectoryArguments,
    /// Let the other operators admit the host's operator, signed with their keys
    #[arg(long)]
    pub(crate) admit: bool,
    /// Let the operators make the host vote, signed with their keys, and wait until it does
    #[arg(long)]
    pub(crate) vote: bool,
}

/// The group's commands.
#[derive(Subcommand)]
pub(crate) enum ClusterCommand {
    /// Start a cluster on this machine
    #[command(after_help = DEV_EXAMPLES)]
    Dev(DevArguments),
    /// Show the cluster's processes and whether they work
    #[command(after_help = "Example:\n  daggerctl cluster status")]
    Status(DirectoryArguments),
    /// Stop the cluster: its VMs, networks and processes; keys, history and disks stay
    #[command(after_help = "Examples:\n  daggerctl cluster stop\n  daggerctl cluster stop --purge")]
    Stop {
        /// Which cluster.
        #[command(flatten)]
        directory: DirectoryArguments,
        /// Also delete the directory: keys, history, images and disks
        #[arg(long)]
        purge: bool,
    },
    /// Start one daemon that has ended, for example one that you killed to see what happens
    #[command(after_help = "Examples:
  kill -9 $(cat $DAGGER_DIRECTORY/pids/ledger-host2)
  daggerctl cluster start-daemon ledger host2")]
    StartDaemon {
        /// Which of the host's daemons
        #[arg(value_enum)]
        role: Role,
        /// Which host, for example host2
        host: String,
        /// Which cluster.
        #[command(flatten)]
        directory: DirectoryArguments,
    },
    /// Add a host to a cluster that runs in the background: keys, configuration, daemons
    #[command(after_help = ADD_HOST_EXAMPLES)]
    AddHost(AddHostArguments),
    /// Run libvirtd in a mount namespace of its own (used by `cluster dev`)
    #[command(hide = true)]
    LibvirtNamespace(NamespaceArguments),
}

impl ClusterCommand {
    /// The arguments of the one command that must run before any thread is started.
    pub(crate) fn libvirt_namespace(&self) -> Option<&NamespaceArguments> {
        match self {
            Self::LibvirtNamespace(arguments) => Some(arguments),
            Self::Dev(_)
            | Self::Status(_)
            | Self::Stop { .. }
            | Self::AddHost(_)
            | Self::StartDaemon { .. } => None,
        }
    }
}

/// Names a cluster by its directory.
#[derive(Debug, Clone, Args)]
pub(crate) struct DirectoryArguments {
    /// Where the cluster lives [default: dagger/dev below $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, value_name = "DIRECTORY", env = "DAGGER_DIRECTORY")]
    pub(crate) directory: Option<PathBuf>,
}

/// Arguments of `cluster dev`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DevArguments {
    /// How many hosts a new cluster has [default: 4]; with 4, any one may fail or lie
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=DEVELOPMENT_HOSTS_MAX))]
    pub(crate) hosts: Option<u16>,
    /// Where the cluster lives.
    #[command(flatten)]
    pub(crate) directory: DirectoryArguments,
    /// Return once the cluster works, instead of running until Ctrl-C
    #[arg(long)]
    pub(crate) detach: bool,
    /// Start a daemon again when it ends by itself
    #[arg(long, conflicts_with = "detach")]
    pub(crate) restart: bool,
    /// What runs the VMs [default of a new cluster: qemu]
    #[arg(long, value_enum)]
    pub(crate) hypervisor: Option<Hypervisor>,
    /// How QEMU runs guests; auto tries whether KVM can start a machine here
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) accelerator: AcceleratorChoice,
    /// Cloud Hypervisor's program [default: the one in $PATH]
    #[arg(long, value_name = "FILE")]
    pub(crate) cloud_hypervisor: Option<PathBuf>,
    /// What Cloud Hypervisor's guests boot with [default: an installed CLOUDHV.fd]
    #[arg(long, value_name = "FILE")]
    pub(crate) firmware: Option<PathBuf>,
    /// CPUs that each host offers [default: as many as this machine has, at least 4]
    #[arg(long, value_name = "N")]
    pub(crate) host_cpus: Option<u32>,
    /// Memory that each host offers [default: half of what is free, divided]
    #[arg(long, value_name = "SIZE", value_parser = units::memory_mib)]
    pub(crate) host_memory: Option<u64>,
    /// Disk that each host offers [default: half of what is free, divided]
    #[arg(long, value_name = "SIZE", value_parser = units::disk_gib)]
    pub(crate) host_disk: Option<u64>,
    /// What the daemons log, for example info or debug
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub(crate) log: String,
}

/// What runs the VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Hypervisor {
    /// QEMU through libvirt: real VMs
    Qemu,
    /// Cloud Hypervisor: real VMs, with network cards if you are root
    #[value(name = "cloud-hypervisor")]
    #[serde(rename = "cloud_hypervisor")]
    Cloud,
    /// libvirt's built-in test driver: VMs that only exist on paper
    Test,
}

/// How QEMU runs guests, as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AcceleratorChoice {
    /// KVM where it works, else TCG
    Auto,
    /// Hardware virtualisation
    Kvm,
    /// QEMU's own emulation: slow, works everywhere
    Tcg,
}

/// Arguments of the hidden command that becomes libvirtd.
#[derive(Debug, Clone, Args)]
pub(crate) struct NamespaceArguments {
    /// libvirtd's configuration file; its directory holds what is mounted over libvirt's own
    /// directories
    #[arg(long)]
    pub(crate) configuration: PathBuf,
    /// What is mounted over /run/libvirt
    #[arg(long)]
    pub(crate) run_directory: PathBuf,
    /// What libvirtd sees of KVM
    #[arg(long, value_enum)]
    pub(crate) accelerator: super::record::Accelerator,
}
