//! What the API shows of a machine.
//!
//! Owns the translation from what the controller knows to what people see. Never decides. Called
//! by the controller only.

use dagger_api::Sight;

use super::entry::Entry;
use super::step::Seen;
use crate::machine::{Machine, Power};
use crate::order::VmSight;

fn shown(power: Power) -> Sight {
    match power {
        Power::Running | Power::Paused => Sight::Running,
        Power::Stopped => Sight::Stopped,
    }
}

/// What the API shows of a machine of which nothing is known but that it is here.
pub(super) fn stranger(power: Power) -> VmSight {
    let reason = "unknown_to_ledger: nothing but its tags says what it is";
    VmSight {
        sight: shown(power),
        applied_generation: None,
        reason: Some(reason.to_owned()),
        awaits_image: false,
    }
}

/// What the API shows of an entry.
pub(super) fn sight(entry: &Entry) -> VmSight {
    let sight = match &entry.sighting.seen {
        Seen::Unknown => Sight::Unknown,
        Seen::Absent | Seen::Present(Machine::Foreign(_)) => Sight::Absent,
        Seen::Present(Machine::Ours { power, .. }) => shown(*power),
    };
    VmSight {
        sight,
        applied_generation: entry.record.as_ref().and_then(|record| record.applied),
        reason: entry.reason.clone(),
        awaits_image: entry.missing_image.is_some(),
    }
}
