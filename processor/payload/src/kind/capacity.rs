//! How much: of a host, of a grant, of a VM.
//!
//! Owns the arithmetic of capacities, which never overflows. Used by bodies and objects.

use serde::{Deserialize, Serialize};

/// What a host offers or an account may use.
#[derive(
    Debug,
    Default,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    minicbor::Encode,
    minicbor::Decode,
)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Capacity {
    /// Virtual CPUs.
    #[n(0)]
    pub cpus: u32,
    /// Memory, in MiB.
    #[n(1)]
    pub memory_mib: u64,
    /// Disk, in GiB.
    #[n(2)]
    pub disk_gib: u64,
}

impl Capacity {
    /// Whether `wanted` fits into this in every dimension.
    pub fn covers(&self, wanted: &Self) -> bool {
        self.cpus >= wanted.cpus
            && self.memory_mib >= wanted.memory_mib
            && self.disk_gib >= wanted.disk_gib
    }

    /// The sum, saturating.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            cpus: self.cpus.saturating_add(other.cpus),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            disk_gib: self.disk_gib.saturating_add(other.disk_gib),
        }
    }

    /// The difference, never below zero.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        Self {
            cpus: self.cpus.saturating_sub(other.cpus),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            disk_gib: self.disk_gib.saturating_sub(other.disk_gib),
        }
    }
}
