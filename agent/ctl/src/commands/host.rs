//! `daggerctl host`: lists hosts, and declares what a host offers.
//!
//! Owns the arguments of the group. Never changes a host by itself. Called by `main` and
//! `commands::payload`.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use dagger_api::{HostLink, HostView};
use dagger_payload::kind::{Body, Capacity, GuestSubnet, HostChange, HostJoin};
use dagger_payload::name::{LabelValue, Name};
use dagger_payload::object::{Host, HostDuty};

use super::vm::{find_host, labels};
use super::{ChangeOptions, short};
use crate::failure::Failure;
use crate::output::table;
use crate::progress::Progress;
use crate::session::Session;
use crate::signer::read_public_key;
use crate::units;

const JOIN_EXAMPLES: &str = "\
Example (signed by the host's operator):
  daggerctl host join host1 --region eu-1 --cpus 32 --memory 128GiB --disk 2TiB \\
      --guest-subnet 10.77.1.0/24 --ledger-key ledger_key.pub --agent-key agent_key.pub --key operator_key

Repeat it with other numbers to change the offer.";

/// The group's commands.
#[derive(Subcommand)]
pub(crate) enum HostCommand {
    /// List hosts: what they offer, what is used, and whether they are connected
    #[command(visible_alias = "list", after_help = "Example:\n  daggerctl host ls")]
    Ls,
    /// List disks, machines and units without an owner, and owners without their disk
    #[command(after_help = super::fsck::HELP)]
    Fsck,
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
}

/// Arguments of `host drain|resume`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DutyArguments {
    /// Which host.
    #[command(flatten)]
    pub(crate) host: HostName,
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
    /// Name of the host, as in the genesis document
    pub(crate) name: Name,
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
    /// The public half of its ledger's key
    #[arg(long, value_name = "FILE.pub")]
    pub(crate) ledger_key: PathBuf,
    /// The public half of its agent's key
    #[arg(long, value_name = "FILE.pub")]
    pub(crate) agent_key: PathBuf,
    /// Label for placement; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = units::label)]
    pub(crate) label: Vec<(Name, LabelValue)>,
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
        HostCommand::Join { join, options } => submit(join_body(&join)?, &options, session).await,
        HostCommand::Drain(arguments) => {
            let body = Body::HostDrain(duty_body(&arguments.host, session).await?);
            submit(body, &arguments.options, session).await
        }
        HostCommand::Resume(arguments) => {
            let body = Body::HostResume(duty_body(&arguments.host, session).await?);
            submit(body, &arguments.options, session).await
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

/// The body of `host.drain` and `host.resume`.
pub(crate) async fn duty_body(name: &HostName, session: &Session) -> Result<HostChange, Failure> {
    Ok(HostChange { host: find_host(session, &name.host).await?.id })
}

/// The body of `host.join`.
pub(crate) fn join_body(arguments: &JoinArguments) -> Result<Body, Failure> {
    Ok(Body::HostJoin(Box::new(HostJoin {
        ledger_key: read_public_key(&arguments.ledger_key)?,
        address: None,
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
            link_word(view.link).to_owned(),
            view.host.as_ref().map_or("-", |host| duty_word(host.duty)).to_owned(),
            view.vms.to_string(),
            format!("{}/{}", view.used.cpus, offered.cpus),
            format!("{}/{} MiB", view.used.memory_mib, offered.memory_mib),
            format!("{}/{} GiB", view.used.disk_gib, offered.disk_gib),
            short(&view.id),
        ]
    });
    let header =
        ["NAME", "OPERATOR", "REGION", "LINK", "DUTY", "VMS", "CPUS", "MEMORY", "DISK", "ID"];
    table(header, rows, "No hosts.")
}

fn duty_word(duty: HostDuty) -> &'static str {
    match duty {
        HostDuty::Open => "open",
        HostDuty::Draining => "draining",
        HostDuty::Left => "left",
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
