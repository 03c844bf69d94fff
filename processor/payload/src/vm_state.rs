//! A VM's state in one word.
//!
//! Owns the words; which one a VM is in follows from the VM alone, and stands with it in
//! [`crate::object`]. Called by whoever shows a VM.

use serde::{Deserialize, Serialize};

/// A VM's state in one word (design R11); every state accepts delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum VmState {
    /// Waiting for a host to accept.
    Pending,
    /// The host works towards what is wanted.
    Converging,
    /// Reported running, as wanted.
    Running,
    /// Reported stopped, as wanted, or by itself and to stay so.
    Stopped,
    /// Reported paused, as wanted.
    Paused,
    /// Cannot be brought to what is wanted; see the reason.
    Degraded,
    /// To be deleted, and not yet gone.
    Deleting,
    /// Gone; its disk is in quarantine.
    Deleted,
}

impl VmState {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Converging,
        Self::Running,
        Self::Stopped,
        Self::Paused,
        Self::Degraded,
        Self::Deleting,
        Self::Deleted,
    ];

    /// The word that stands for it in JSON, in metrics and where people read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Converging => "converging",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
            Self::Degraded => "degraded",
            Self::Deleting => "deleting",
            Self::Deleted => "deleted",
        }
    }
}
