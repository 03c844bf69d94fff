//! What would come of a request if it were ordered now: a dry run.
//!
//! Owns the shape of the answer. A prediction binds nobody: what counts is the judgement after
//! order. Made by the processor from the rules that judge, passed on by ledger and agent, shown by
//! `daggerctl`.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::id::HostId;
use crate::name::Name;
use crate::object::Effect;
use crate::refusal::Refusal;

/// What would come of a request.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Prediction {
    /// Why it would be refused, if so.
    #[n(0)]
    pub refusal: Option<Refusal>,
    /// The new versions of objects if it would be accepted, else none. VMs are whole in them.
    #[n(1)]
    pub effects: Vec<Effect>,
    /// For a new VM: what speaks for and against each host that a grant with room allows, the
    /// best first.
    #[n(2)]
    pub hosts: Vec<HostOutlook>,
    /// How many hosts more there are: at most `PREDICTION_HOSTS_MAX` are named.
    #[n(3)]
    pub hosts_left_out: u64,
}

/// What speaks for or against one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HostOutlook {
    /// Which.
    #[n(0)]
    pub host: HostId,
    /// What it is called.
    #[n(1)]
    pub name: Name,
    /// How it fits.
    #[n(2)]
    pub fit: HostFit,
    /// Free memory after the VM, in thousandths of what the host offers: the highest is chosen
    /// first, among hosts that break as few preferences. 0 for a host that does not fit.
    #[n(3)]
    pub free_memory_permille: u64,
    /// How many preferred separations it would break.
    #[n(4)]
    pub broken_preferences: u64,
}

/// How a host fits a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum HostFit {
    /// It would be offered the VM.
    #[n(0)]
    Chosen,
    /// It could carry the VM.
    #[n(1)]
    Fits,
    /// It cannot.
    #[n(2)]
    Unfit {
        /// Why, and what it lacks.
        #[n(0)]
        why: String,
    },
}
