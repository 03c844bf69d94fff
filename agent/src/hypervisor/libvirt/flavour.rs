//! Which libvirt driver answers, and what it can do.
//!
//! Owns the finding of driver and accelerator when a connection is new. Called by the libvirt
//! implementation only.

use std::sync::mpsc;
use std::time::Duration;

use virt::connect::Connect;

use super::limits::KVM_ANSWER_MS_MAX;
use crate::hypervisor::HypervisorError;
use crate::machines::Accelerator;

/// The driver behind a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavour {
    /// Real machines by QEMU.
    Qemu {
        /// What runs the guest's processors.
        virtualization: Virtualization,
    },
    /// libvirt's built-in test driver: machines that exist in its memory only. For tests; it says
    /// so wherever it is shown.
    Test,
}

/// What runs a guest's processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Virtualization {
    /// The kernel's virtual machine.
    Kvm,
    /// QEMU's own translation.
    Tcg,
}

impl Flavour {
    /// Asks a new connection.
    pub(super) fn find(
        connection: &Connect,
        accelerator: Accelerator,
    ) -> Result<Self, HypervisorError> {
        let driver = connection
            .driver_type()
            .map_err(|error| HypervisorError::Unavailable(error.to_string()))?;
        match driver.as_str() {
            "TEST" => Ok(Self::Test),
            "QEMU" => Ok(Self::Qemu {
                virtualization: match accelerator {
                    Accelerator::Kvm => Virtualization::Kvm,
                    Accelerator::Tcg => Virtualization::Tcg,
                    Accelerator::Auto => find_virtualization(connection),
                },
            }),
            other => Err(HypervisorError::Refused(format!(
                "libvirt's driver {other} is not supported; use a qemu:/// or test:/// address"
            ))),
        }
    }

    /// For people.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Qemu { virtualization: Virtualization::Kvm } => "libvirt, QEMU with KVM",
            Self::Qemu { virtualization: Virtualization::Tcg } => {
                "libvirt, QEMU with TCG (slow: no KVM)"
            }
            Self::Test => "libvirt's test driver (no real machines)",
        }
    }
}

/// KVM if libvirt says so in time. A late answer is dropped with its thread's result.
fn find_virtualization(connection: &Connect) -> Virtualization {
    let (answer, asked) = mpsc::sync_channel(1);
    let connection = connection.clone();
    let spawned = std::thread::Builder::new().name("kvm-question".to_owned()).spawn(move || {
        let answered =
            connection.domain_capabilities(None, Some("x86_64"), None, Some("kvm"), 0).is_ok();
        let _ = answer.send(answered);
    });
    let answered = spawned.is_ok()
        && asked.recv_timeout(Duration::from_millis(KVM_ANSWER_MS_MAX)).unwrap_or(false);
    if answered { Virtualization::Kvm } else { Virtualization::Tcg }
}
