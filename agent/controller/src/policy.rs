//! What the operator of this host takes, beyond what the ledger's rules allow.
//!
//! Owns the comparison only. Called by the controller when a VM is offered or a volume is new.

use dagger_payload::kind::Capacity;
use serde::{Deserialize, Serialize};

/// The operator's local limits; whatever is not given is not limited. A refusal by this policy is
/// signed and public.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalPolicy {
    /// How many VMs this host carries at most.
    #[serde(default)]
    pub vms_max: Option<usize>,
    /// How much all VMs and volumes of this host may use together.
    #[serde(default)]
    pub capacity_max: Option<Capacity>,
}

impl LocalPolicy {
    /// Whether a VM of `size` may be taken beside `carried` VMs that use `used` together.
    ///
    /// # Errors
    /// The reason for the refusal, in one sentence.
    pub fn admit(&self, size: &Capacity, carried: usize, used: &Capacity) -> Result<(), String> {
        if let Some(vms_max) = self.vms_max
            && carried >= vms_max
        {
            return Err(format!("local_policy: this host carries at most {vms_max} VMs"));
        }
        match &self.capacity_max {
            Some(capacity) if !capacity.covers(&used.plus(size)) => {
                Err("local_policy: this host's operator set aside less than this VM needs"
                    .to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Whether a volume of `size` may be made beside what uses `used`.
    ///
    /// # Errors
    /// The reason for the refusal, in one sentence.
    pub fn admit_volume(&self, size: &Capacity, used: &Capacity) -> Result<(), String> {
        match &self.capacity_max {
            Some(capacity) if capacity.disk_gib < used.plus(size).disk_gib => {
                Err("local_policy: this host's operator set aside less disk than this volume needs"
                    .to_owned())
            }
            _ => Ok(()),
        }
    }
}
