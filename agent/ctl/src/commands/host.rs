//! `daggerctl host`: lists hosts, and declares what a host offers.
//!
//! Owns the arguments of the group. Never changes a host by itself. Called by `main` and
//! `commands::payload`.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use dagger_api::{ClusterView, HostLink, HostView, LedgerView, Vote};
use dagger_payload::id::ProtocolVersion;
use dagger_payload::kind::{
    Body, Capacity, GuestSubnet, HostChange, HostJoin, HostRotateLedgerKey,
};
use dagger_payload::name::{LabelValue, Name};
use dagger_payload::object::{Host, HostDuty};

use super::lookup::find_host;
use super::vm::labels;
use super::{ChangeOptions, Expected, Wait, short};
use crate::failure::Failure;
use crate::output::table;
use crate::progress::{Progress, say};
use crate::session::Session;
use crate::signer::read_public_key;
use crate::units::{self, show_gib, show_mib};

const JOIN_EXAMPLES: &str = "\
Example (signed by the host's operator):
  daggerctl host join host1 --region eu-1 --cpus 32 --memory 128GiB \\
      --disk 2TiB --guest-subnet 10.77.1.0/24 --ledger-key ledger_key.pub \\
      --agent-key agent_key.pub --key operator_key

Repeat it with other numbers to change the offer, and after an upgrade: it
says which rules the host's build knows, and rules are only activated that
more than two thirds of the voting hosts know.

A host that is not of the genesis names the address at which the others reach
its ledger:
  daggerctl host join host5 --address 192.0.2.5:7400 --region eu-2 ... \\
      --key operator_key

It follows at once: it verifies, and runs VMs. It votes when more than two
thirds of the operators approve:
  daggerctl operator propose add-voter host5 --key operator_key";

const LEAVE_EXAMPLES: &str = "\
Example (the host carries no VM and no volume, and does not vote):
  daggerctl host drain host1 --key operator_key
  # And the others' approval
  daggerctl operator propose remove-voter host1 --key operator_key
  daggerctl host leave host1 --key operator_key";

const ROTATE_EXAMPLES: &str = "\
Example:
  ssh-keygen -t ed25519 -N '' -f new_ledger_key
  daggerctl host rotate-ledger-key host1 new_ledger_key.pub \\
      --key operator_key --wait applied
  daggerctl ledger roster > roster.json

A host that votes signs with its old key until the next epoch begins. Then
give its ledger the new key, and both its ledger and its agent the roster
(`roster = \"roster.json\"`), and start them again: the host keeps its id and
its VMs.";

/// The group's commands.
#[derive(Subcommand)]
pub(crate) enum HostCommand {
    /// List hosts: what they offer, what is used, and whether they are connected
    #[command(visible_alias = "list", after_help = "Example:\n  daggerctl host ls")]
    Ls,
    /// List disks, machines and units without an owner, and owners without their disk
    #[command(after_help = super::fsck::HELP)]
    Fsck,
    /// Switch a VM of this machine's host off by hand, also without ledger or quorum (operators)
    #[command(after_help = super::stop_vm::HELP)]
    StopVm(super::stop_vm::StopVmArguments),
    /// Declare what a host of yours offers from now on (operators)
    #[command(after_help = JOIN_EXAMPLES)]
    Join {
        /// What it offers.
        #[command(flatten)]
        join: Box<JoinArguments>,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Offer a host of yours no new VMs; those it carries stay (operators)
    #[command(after_help = "Example:\n  daggerctl host drain host1 --key operator_key")]
    Drain(DutyArguments),
    /// Offer a drained host of yours VMs again (operators)
    #[command(after_help = "Example:\n  daggerctl host resume host1 --key operator_key")]
    Resume(DutyArguments),
    /// Take a host of yours that carries nothing and does not vote out of the cluster (operators)
    #[command(after_help = LEAVE_EXAMPLES)]
    Leave(DutyArguments),
    /// Let a host's ledger sign with another key (operators)
    #[command(after_help = ROTATE_EXAMPLES)]
    RotateLedgerKey {
        /// Which host, which key.
        #[command(flatten)]
        rotate: RotateLedgerKeyArguments,
        /// How far to wait; applied: until the old key counts no more
        #[command(flatten)]
        options: ChangeOptions,
    },
}

/// What `host rotate-ledger-key` changes.
#[derive(Debug, Clone, Args)]
pub(crate) struct RotateLedgerKeyArguments {
    /// Which host.
    #[command(flatten)]
    pub(crate) host: HostName,
    /// The public half of the key that comes
    #[arg(value_name = "NEW.pub")]
    pub(crate) new_ledger_key: PathBuf,
}

/// What `host drain|resume|leave` changes.
#[derive(Debug, Clone, Args)]
pub(crate) struct DutyWhat {
    /// Which host.
    #[command(flatten)]
    pub(crate) host: HostName,
    /// In which version.
    #[command(flatten)]
    pub(crate) expected: Expected,
}

/// Arguments of `host drain|resume|leave`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DutyArguments {
    /// What changes.
    #[command(flatten)]
    pub(crate) what: DutyWhat,
    /// How far to wait.
    #[command(flatten)]
    pub(crate) options: ChangeOptions,
}

/// Names one host.
#[derive(Debug, Clone, Args)]
pub(crate) struct HostName {
    /// Name of the host
    #[arg(value_name = "HOST")]
    pub(crate) host: Name,
}

/// What `host join` declares.
#[derive(Debug, Clone, Args)]
pub(crate) struct JoinArguments {
    /// Name of the host; a member's, or that of one that comes
    pub(crate) name: Name,
    /// Where its ledger listens, ADDRESS:PORT: for a host that comes, or to change it
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) address: Option<std::net::SocketAddr>,
    /// Where it stands
    #[arg(long)]
    pub(crate) region: Name,
    /// Virtual CPUs that it offers
    #[arg(long, value_name = "N")]
    pub(crate) cpus: u32,
    /// Memory that it offers, for example 128GiB
    #[arg(long, value_name = "SIZE", value_parser = units::memory_mib)]
    pub(crate) memory: u64,
    /// Disk that it offers, for example 2TiB
    #[arg(long, value_name = "SIZE", value_parser = units::disk_gib)]
    pub(crate) disk: u64,
    /// The building or fire compartment inside the region; VMs can be kept apart by it
    #[arg(long)]
    pub(crate) site: Option<Name>,
    /// Of the CPUs: how many no VM may take
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) reserve_cpus: u32,
    /// Of the memory: how much no VM may take
    #[arg(long, value_name = "SIZE", value_parser = units::memory_mib)]
    pub(crate) reserve_memory: Option<u64>,
    /// Of the disk: how much no VM may take
    #[arg(long, value_name = "SIZE", value_parser = units::disk_gib)]
    pub(crate) reserve_disk: Option<u64>,
    /// Private IPv4 network for its guests, /16 to /29, for example 10.77.1.0/24
    #[arg(long, value_name = "NETWORK")]
    pub(crate) guest_subnet: Subnet,
    /// First of its own ports that lead to guests who ask for one: each guest address gets eight;
    /// none does without it
    #[arg(long, value_name = "PORT")]
    pub(crate) forward_ports_first: Option<u16>,
    /// Bridge that guests may be on, by its name in the host's own /etc/dagger-net.conf; may be
    /// repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) bridge: Vec<Name>,
    /// The public half of its ledger's key
    #[arg(long, value_name = "FILE.pub")]
    pub(crate) ledger_key: PathBuf,
    /// The public half of its agent's key
    #[arg(long, value_name = "FILE.pub")]
    pub(crate) agent_key: PathBuf,
    /// The newest version of the rules that the host's build knows [default: what this command's
    /// build knows]
    #[arg(long, value_name = "VERSION")]
    pub(crate) protocol_max: Option<u32>,
    /// Label for placement; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = units::label)]
    pub(crate) label: Vec<(Name, LabelValue)>,
}

impl JoinArguments {
    fn protocol_max(&self) -> ProtocolVersion {
        self.protocol_max.map_or(ProtocolVersion::KNOWN, ProtocolVersion)
    }
}

/// A network as people write it: `10.77.1.0/24`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subnet(pub(crate) GuestSubnet);

impl FromStr for Subnet {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no network; write for example 10.77.1.0/24");
        let (network, prefix_length) = text.split_once('/').ok_or_else(wrong)?;
        Ok(Self(GuestSubnet {
            network: network.parse::<Ipv4Addr>().map_err(|_| wrong())?,
            prefix_length: prefix_length.parse().map_err(|_| wrong())?,
        }))
    }
}

/// Runs a command of the group.
pub(crate) async fn run(command: HostCommand, session: &Session) -> Result<(), Failure> {
    match command {
        HostCommand::Ls => {
            let hosts: Vec<HostView> = session.client.get("/v1/hosts").await?;
            session.output.show(&hosts, |hosts| list(hosts))
        }
        HostCommand::Fsck => super::fsck::run(session).await,
        HostCommand::StopVm(arguments) => super::stop_vm::run(&arguments, session).await,
        HostCommand::Join { join, options } => run_join(&join, &options, session).await,
        HostCommand::Drain(arguments) => {
            let body = Body::HostDrain(duty_body(&arguments.what, session).await?);
            submit(body, &arguments.options, session).await
        }
        HostCommand::Resume(arguments) => {
            let body = Body::HostResume(duty_body(&arguments.what, session).await?);
            submit(body, &arguments.options, session).await
        }
        HostCommand::Leave(arguments) => {
            let body = Body::HostLeave(duty_body(&arguments.what, session).await?);
            submit(body, &arguments.options, session).await
        }
        HostCommand::RotateLedgerKey { rotate, options } => {
            let body = rotate.body(session).await?;
            submit(body, &options, session).await?;
            if options.wait == Wait::Applied {
                let host = rotate.host.host.clone();
                let ends = |ledger: &LedgerView| {
                    let seats = ledger.members.iter().filter(|member| member.name == host);
                    seats.count() > 1 || ledger.next_epoch.is_some()
                };
                super::operator::wait_epoch(ends, &options, session).await?;
            }
            Ok(())
        }
    }
}

async fn submit(body: Body, options: &ChangeOptions, session: &Session) -> Result<(), Failure> {
    let progress = Progress::new(session.output.format);
    let signed = session.sign(None, body).await?;
    let view = session.submit(&signed, options.until(), options.deadline(), &progress).await?;
    drop(progress);
    session.output.show(&view, super::payload::show)
}

async fn run_join(
    join: &JoinArguments,
    options: &ChangeOptions,
    session: &Session,
) -> Result<(), Failure> {
    let cluster: ClusterView = session.client.get("/v1/cluster").await?;
    if let Some(warning) = unknown_to(&cluster, join) {
        say(&warning);
    }
    let progress = Progress::new(session.output.format);
    let signed = session.sign(None, join_body(join)?).await?;
    let view = session.submit(&signed, options.until(), options.deadline(), &progress).await?;
    drop(progress);
    let follows = find_host(session, &join.name).await.is_ok_and(|host| host.vote == Vote::Follows);
    session.output.show(&view, |view| {
        let shown = super::payload::show(view);
        if follows { format!("{shown}\n\n{}", next_steps(&join.name)) } else { shown }
    })
}

/// What speaks against a declaration, where the host itself answers.
fn unknown_to(cluster: &ClusterView, join: &JoinArguments) -> Option<String> {
    let (declared, known) = (join.protocol_max(), cluster.protocol_max);
    (cluster.host_name == join.name && declared > known).then(|| {
        format!(
            "warning: {} itself says that its build knows the rules up to version {known}, not \
             {declared}: once those count it would judge nothing",
            join.name
        )
    })
}

/// What is left to do once a host that is not of the genesis was declared.
pub(crate) fn next_steps(host: &Name) -> String {
    format!(
        "{host} follows: it verifies and runs VMs, and does not vote. What comes next:\n  \
         1. daggerctl ledger roster > roster.json\n     \
         and hand it to the new host with genesis.json and genesis.json.sig, from a member that you trust.\n  \
         2. On the new host: roster = \"roster.json\" in ledger.toml and agent.toml, host = \"{host}\" in \
         agent.toml; then systemctl enable --now dagger.target\n  \
         3. To let it vote: daggerctl operator propose add-voter {host} --key OPERATOR_KEY; the others: daggerctl \
         operator approve"
    )
}

impl RotateLedgerKeyArguments {
    /// The body of `host.rotate_ledger_key`.
    pub(crate) async fn body(&self, session: &Session) -> Result<Body, Failure> {
        Ok(Body::HostRotateLedgerKey(HostRotateLedgerKey {
            host: find_host(session, &self.host.host).await?.id,
            new_ledger_key: read_public_key(&self.new_ledger_key)?,
        }))
    }
}

/// The body of `host.drain`, `host.resume` and `host.leave`.
pub(crate) async fn duty_body(what: &DutyWhat, session: &Session) -> Result<HostChange, Failure> {
    let host = find_host(session, &what.host.host).await?.id;
    Ok(HostChange { host, expected_generation: what.expected.generation() })
}

/// The body of `host.join`.
pub(crate) fn join_body(arguments: &JoinArguments) -> Result<Body, Failure> {
    Ok(Body::HostJoin(Box::new(HostJoin {
        ledger_key: read_public_key(&arguments.ledger_key)?,
        address: arguments.address,
        agent_key: read_public_key(&arguments.agent_key)?,
        name: arguments.name.clone(),
        region: arguments.region.clone(),
        capacity: Capacity {
            cpus: arguments.cpus,
            memory_mib: arguments.memory,
            disk_gib: arguments.disk,
        },
        site: arguments.site.clone(),
        reserve: Capacity {
            cpus: arguments.reserve_cpus,
            memory_mib: arguments.reserve_memory.unwrap_or(0),
            disk_gib: arguments.reserve_disk.unwrap_or(0),
        },
        guest_subnet: arguments.guest_subnet.0,
        forward_ports_first: arguments.forward_ports_first,
        protocol_max: Some(arguments.protocol_max()),
        bridges: arguments.bridge.clone(),
        labels: labels(&arguments.label)?,
    })))
}

fn list(hosts: &[HostView]) -> String {
    let rows = hosts.iter().map(|view| {
        let offered = view.host.as_ref().map(Host::offered).unwrap_or_default();
        let region = view.host.as_ref().map(|host| host.region.to_string());
        [
            view.name.to_string(),
            view.operator.to_string(),
            region.unwrap_or_else(|| "not declared".to_owned()),
            vote_word(view.vote).to_owned(),
            link_word(view.link).to_owned(),
            view.host.as_ref().map_or("-", |host| duty_word(host.duty)).to_owned(),
            view.vms.to_string(),
            format!("{}/{}", view.used.cpus, offered.cpus),
            format!("{} of {}", show_mib(view.used.memory_mib), show_mib(offered.memory_mib)),
            format!("{} of {}", show_gib(view.used.disk_gib), show_gib(offered.disk_gib)),
            short(&view.id),
        ]
    });
    let header = [
        "NAME", "OPERATOR", "REGION", "VOTE", "LINK", "DUTY", "VMS", "CPUS", "MEMORY", "DISK", "ID",
    ];
    table(header, rows, "No hosts.")
}

fn duty_word(duty: HostDuty) -> &'static str {
    match duty {
        HostDuty::Open => "open",
        HostDuty::Draining => "draining",
        HostDuty::Left => "left",
    }
}

/// A vote as people read it.
pub(crate) fn vote_word(vote: Vote) -> &'static str {
    match vote {
        Vote::Votes => "votes",
        Vote::Ending => "votes until the next epoch",
        Vote::Coming => "follows, votes from the next epoch on",
        Vote::Follows => "follows",
    }
}

/// A link as people read it.
pub(crate) fn link_word(link: HostLink) -> &'static str {
    match link {
        HostLink::Own => "answers",
        HostLink::Connected => "connected",
        HostLink::Missing => "missing",
        HostLink::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_an_address_and_a_prefix_length() {
        assert!("10.77.1.0/24".parse::<Subnet>().is_ok());
        for text in ["10.77.1.0", "10.77.1/24", "x/24", "10.77.1.0/", "10.77.1.0/999", ""] {
            assert!(text.parse::<Subnet>().is_err(), "{text:?} was accepted");
        }
    }
}
