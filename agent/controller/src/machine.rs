//! What is seen of machines: tags, power, and what stands under our names.
//!
//! Owns these words. Made by hypervisors and the observation, read by the controller.

use std::collections::BTreeMap;

use dagger_payload::id::{Generation, HostId, PayloadDigest, VmId};

/// What every machine of ours carries, so that a host can tell its own machines from others'
/// without its journal (R6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tags {
    /// The host that carries it.
    pub host: HostId,
    /// The VM that it is.
    pub vm: VmId,
    /// The generation that was worked on last.
    pub generation: Generation,
    /// The payload that made that generation.
    pub payload: PayloadDigest,
}

/// Whether a machine that exists has a running guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// The guest runs, or is just being started or stopped.
    Running,
    /// The guest is in memory but does not run.
    Paused,
    /// Defined, no guest in memory.
    Stopped,
}

/// What stands under the name of one of our VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Machine {
    /// A machine whose tags name this host and that VM.
    Ours {
        /// How it is.
        power: Power,
        /// What it carries.
        tags: Tags,
    },
    /// Something else that only has the name: it is never touched. The text says what is wrong with
    /// it.
    Foreign(String),
}

/// All machines under our names; only ever made from a full listing over a live connection.
pub type Inventory = BTreeMap<VmId, Machine>;
