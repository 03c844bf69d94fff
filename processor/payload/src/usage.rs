//! What VMs and volumes have used, counted in ledger time.
//!
//! Owns the meter that each of them carries, the sums that deleted ones leave behind, and their
//! exact arithmetic, so that every host, an auditor and the customer come to the same numbers.
//! Never decides when a meter runs: the judge's rule of reports does. Called by the judge, the
//! agent (shows) and the model that tests compare the judge with.
//!
//! A meter is written down only when something changes; in between, what was used follows from
//! ledger time. Units are milliseconds of ledger time, times what was taken.

use serde::{Deserialize, Serialize};

use crate::id::{AccountId, HostId, LedgerTime};
use crate::kind::Capacity;

/// What was used. Sums saturate: a host of 4 TiB reaches that after some 130 years.
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
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Used {
    /// Virtual CPUs, times milliseconds in which the guest was switched on.
    #[n(0)]
    pub cpu_ms: u64,
    /// Memory in MiB, times milliseconds in which the guest was switched on.
    #[n(1)]
    pub memory_mib_ms: u64,
    /// Disk in GiB, times milliseconds from its host's acceptance to its deletion.
    #[n(2)]
    pub disk_gib_ms: u64,
}

impl Used {
    /// The sum.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            cpu_ms: self.cpu_ms.saturating_add(other.cpu_ms),
            memory_mib_ms: self.memory_mib_ms.saturating_add(other.memory_mib_ms),
            disk_gib_ms: self.disk_gib_ms.saturating_add(other.disk_gib_ms),
        }
    }
}

/// What a meter counts from now on.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Metered {
    /// Nothing: no host has accepted the VM, or it is gone.
    #[n(0)]
    Nothing,
    /// The disk.
    #[n(1)]
    Disk,
    /// The disk, and the processors and memory of a guest that is switched on.
    #[n(2)]
    Guest,
    /// The disk, and the memory of a guest that is paused.
    #[n(3)]
    Paused,
}

/// The meter of a VM or volume.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Meter {
    /// What it counts.
    #[n(0)]
    pub counts: Metered,
    /// Since when, in ledger time.
    #[n(1)]
    pub since: LedgerTime,
    /// What it had counted by then.
    #[n(2)]
    pub used: Used,
}

impl Meter {
    /// The meter of a VM that no host has accepted.
    pub const NEW: Self = Self {
        counts: Metered::Nothing,
        since: LedgerTime(0),
        used: Used { cpu_ms: 0, memory_mib_ms: 0, disk_gib_ms: 0 },
    };

    /// What it shows at `now` for a VM of `size`.
    pub fn read(&self, size: &Capacity, now: LedgerTime) -> Used {
        let span_ms = now.0.saturating_sub(self.since.0);
        let times = |amount: u64| amount.saturating_mul(span_ms);
        let (disk, memory, processors) = match self.counts {
            Metered::Nothing => (0, 0, 0),
            Metered::Disk => (1, 0, 0),
            Metered::Paused => (1, 1, 0),
            Metered::Guest => (1, 1, 1),
        };
        self.used.plus(&Used {
            cpu_ms: times(u64::from(size.cpus) * processors),
            memory_mib_ms: times(size.memory_mib * memory),
            disk_gib_ms: times(size.disk_gib * disk),
        })
    }

    /// From `now` on it counts `counts`; so far it counted for a VM of `size`.
    #[must_use]
    pub fn turned(&self, counts: Metered, size: &Capacity, now: LedgerTime) -> Self {
        Self { counts, since: now, used: self.read(size, now) }
    }
}

/// What an account's deleted VMs and volumes have used on one host.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PastUsage {
    /// Whose VMs.
    #[n(0)]
    pub account: AccountId,
    /// On which host.
    #[n(1)]
    pub host: HostId,
    /// How many VMs.
    #[n(2)]
    pub vms: u64,
    /// Their sum.
    #[n(3)]
    pub used: Used,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Capacity = Capacity { cpus: 2, memory_mib: 512, disk_gib: 10 };

    #[test]
    fn a_meter_counts_what_it_is_turned_to_and_loses_nothing_when_it_is_turned() {
        let bought = Meter::NEW.turned(Metered::Disk, &SIZE, LedgerTime(1_000));
        let on = bought.turned(Metered::Guest, &SIZE, LedgerTime(3_000));
        let larger = Capacity { cpus: 4, ..SIZE };
        let resized = on.turned(Metered::Guest, &SIZE, LedgerTime(4_000));
        let off = resized.turned(Metered::Disk, &larger, LedgerTime(6_000));
        let expected = |disk_ms: u64| Used {
            cpu_ms: 2 * 1_000 + 4 * 2_000,
            memory_mib_ms: 512 * 3_000,
            disk_gib_ms: 10 * disk_ms,
        };
        assert_eq!(off.used, expected(5_000));
        assert_eq!(off.read(&larger, LedgerTime(9_000)), expected(8_000));
        let gone = off.turned(Metered::Nothing, &larger, LedgerTime(9_000));
        assert_eq!(gone.read(&larger, LedgerTime(99_000)), expected(8_000));
        // A clock that stands, or a reader who looks back, takes nothing away.
        assert_eq!(off.read(&larger, LedgerTime(0)), off.used);
    }

    #[test]
    fn sums_at_the_limit_stay_there() {
        let most = Used { cpu_ms: u64::MAX, memory_mib_ms: u64::MAX, disk_gib_ms: u64::MAX };
        assert_eq!(most.plus(&most), most);
        let meter = Meter { counts: Metered::Guest, since: LedgerTime(0), used: most };
        let huge = Capacity { cpus: u32::MAX, memory_mib: u64::MAX, disk_gib: u64::MAX };
        assert_eq!(meter.read(&huge, LedgerTime(u64::MAX)), most);
    }
}
