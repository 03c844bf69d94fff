//! How much of the state may stand on the hosts of one operator, and be one account's.
//!
//! Owns that an operator who grants himself everything, on hosts that he says are as large as he
//! likes, fills no more than his part. Each VM counts with one operator: of the host that it is on,
//! was lost with, or was offered to last; so it goes on counting where it did when an offer lapses,
//! and only what comes anew has to be asked for. Called by the rules that make things.

use dagger_payload::id::{AccountId, HostId, OperatorId};
use dagger_payload::limits::{
    OBJECTS_PER_ACCOUNT_MAX, OBJECTS_PER_OPERATOR_MAX, VM_BYTES_PER_OPERATOR_MAX,
};
use dagger_payload::object::Placement;
use dagger_payload::refusal::{Refusal, RefusalCode};

use super::estate::Estate;
use super::refuse;
use super::state::State;

/// The host with whose operator a VM counts; none before it was offered to any.
pub(crate) fn counting_host(placement: &Placement, tried: &[HostId]) -> Option<HostId> {
    match placement {
        Placement::Offered { host, .. }
        | Placement::Accepted { host, .. }
        | Placement::Lost { host } => Some(*host),
        Placement::NoHost {} => tried.last().copied(),
    }
}

/// Whether one more thing may stand on the hosts of `operator`.
///
/// # Errors
/// `limit_exceeded`.
pub(crate) fn require_unburdened(state: &State, operator: &OperatorId) -> Result<(), Refusal> {
    let burden = state.tallies.burden(operator);
    if burden.objects < OBJECTS_PER_OPERATOR_MAX && burden.vm_bytes < VM_BYTES_PER_OPERATOR_MAX {
        return Ok(());
    }
    let name = state.operators.get(operator).map_or("its operator", |known| known.name.as_str());
    let detail = match burden.objects < OBJECTS_PER_OPERATOR_MAX {
        true => format!(
            "VMs with {} bytes stand on the hosts of {name}, and with {VM_BYTES_PER_OPERATOR_MAX} \
             no further one comes",
            burden.vm_bytes
        ),
        false => format!(
            "at most {OBJECTS_PER_OPERATOR_MAX} VMs, volumes and snapshots stand on the hosts of \
             one operator, and on those of {name} do {}",
            burden.objects
        ),
    };
    refuse(RefusalCode::LimitExceeded, detail)
}

/// Whether an account may have one more thing.
///
/// # Errors
/// `limit_exceeded`.
pub(crate) fn require_few_objects(estate: Option<&Estate>) -> Result<(), Refusal> {
    if estate.is_none_or(|own| own.objects() < OBJECTS_PER_ACCOUNT_MAX) {
        return Ok(());
    }
    let detail =
        format!("an account has at most {OBJECTS_PER_ACCOUNT_MAX} VMs, volumes and snapshots");
    refuse(RefusalCode::LimitExceeded, detail)
}

/// The same for what takes disk on a host: volumes and their snapshots.
///
/// # Errors
/// `limit_exceeded`.
pub(crate) fn require_few_on_disk(
    state: &State,
    account: &AccountId,
    operator: &OperatorId,
) -> Result<(), Refusal> {
    require_few_objects(state.estate(account))?;
    require_unburdened(state, operator)
}
