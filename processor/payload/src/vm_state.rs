//! What follows from a VM's object alone: its state in one word, its cards, its address.
//!
//! Owns these rules. Never changes the object. Called by whoever looks at a VM.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::changed_vm::ChangedVm;
use crate::id::Generation;
use crate::kind::ReportPhase;
use crate::network::VmNetwork;
use crate::object::{Placement, Vm, VmReport, Wanted};

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

impl Vm {
    /// All its network cards, the first one first.
    pub fn cards(&self) -> impl Iterator<Item = &VmNetwork> {
        std::iter::once(&self.network).chain(&self.more_cards)
    }

    /// Where it is reached, as far as the ledger knows: by its first card that has an address of
    /// its owner's or of its host's.
    pub fn address(&self) -> Option<Ipv4Addr> {
        let known = |card: &VmNetwork| match &card.bridge {
            None => self.placement.address(),
            Some(bridged) => Some(bridged.address?.address),
        };
        self.placement.host().and_then(|_| self.cards().find_map(known))
    }

    /// The state in one word, from wanted, placement and the last report about this generation.
    pub fn state(&self) -> VmState {
        state((self.wanted, &self.placement), self.reported.as_ref(), self.generation)
    }
}

impl ChangedVm {
    /// The same after the change.
    pub fn state(&self) -> VmState {
        state((self.wanted, &self.placement), self.reported.as_ref(), self.generation)
    }
}

fn state(
    wanted: (Wanted, &Placement),
    reported: Option<&VmReport>,
    generation: Generation,
) -> VmState {
    let phase = reported.map(|report| (report.phase, report.generation));
    let current = |wanted: ReportPhase| phase == Some((wanted, generation));
    match wanted {
        (Wanted::Deleted, _) if current(ReportPhase::Deleted) => VmState::Deleted,
        (
            Wanted::Deleted,
            Placement::NoHost {} | Placement::Offered { .. } | Placement::Lost { .. },
        ) => VmState::Deleted,
        (Wanted::Deleted, Placement::Accepted { .. }) => VmState::Deleting,
        (_, Placement::NoHost {} | Placement::Lost { .. }) => VmState::Degraded,
        (_, Placement::Offered { .. }) => VmState::Pending,
        (_, Placement::Accepted { .. }) if current(ReportPhase::Degraded) => VmState::Degraded,
        (Wanted::Running, _) if current(ReportPhase::Running) => VmState::Running,
        (Wanted::Paused, _) if current(ReportPhase::Paused) => VmState::Paused,
        // A paused guest that was switched off, or one that stopped by itself, may stay so.
        (_, _) if current(ReportPhase::Stopped) => VmState::Stopped,
        (Wanted::Running | Wanted::Stopped | Wanted::Paused, _) => VmState::Converging,
    }
}
