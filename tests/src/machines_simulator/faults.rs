//! Kinds of faults, and how often each comes in a run.
//!
//! Owns the list and the mixture of one seed: every run draws its own, so that some runs are full
//! of one kind and others know nothing of it. Never does any harm itself. Called by the world.

use std::collections::BTreeMap;

use crate::simulator::random::Random;

/// A kind of fault. It counts when it takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FaultKind {
    /// The agent dies before a record is durable.
    CrashBeforePersist,
    /// The agent dies once a record is durable, before anything follows from it.
    CrashAfterPersist,
    /// The agent dies once a step took effect, before it knows.
    CrashAfterStep,
    /// The agent dies at any other time.
    CrashAtRest,
    /// Everything below the agent's state directory is gone.
    LostState,
    /// One record of the journal does not read.
    LostRecord,
    /// The hypervisor cannot be asked for a while.
    SightLost,
    /// The hypervisor answers nothing for a while, and then does what it was asked.
    HypervisorHangs,
    /// A step fails, for now.
    StepRetried,
    /// A step fails for good.
    StepRefused,
    /// Nobody knows whether a step took effect; it did.
    StepUnknownDone,
    /// Nobody knows whether a step took effect; it did not.
    StepUnknownUndone,
    /// A call to the hypervisor takes effect after who made it has died.
    LateCall,
    /// A guest stops by itself.
    GuestKilled,
    /// The host is switched off and on.
    HostRebooted,
    /// Somebody removed the definition of a machine.
    DefinitionLost,
    /// The disks take nothing more for a while.
    DiskFull,
    /// The disk of a VM is gone.
    DiskLost,
    /// The disk of a volume is gone.
    VolumeLost,
    /// The host's ledger shows nothing new for a while.
    ViewDelayed,
    /// The host's ledger shows less than it did.
    OlderView,
    /// The whole history is told once more.
    HistoryToldAgain,
    /// Somebody else made something under our name.
    Stranger,
    /// An offer went on to another host since nobody answered in time.
    OfferLapsed,
    /// Ledger time goes on for long while nothing else happens.
    TimeJumps,
    /// The host's operator switches a machine off by hand.
    LocalStop,
    /// An image cannot be fetched.
    FetchFailed,
    /// A payload is ordered twice.
    PayloadTwice,
}

use self::FaultKind as F;

/// What strikes at a time of its own.
pub(super) const STRIKES: [F; 17] = [
    F::CrashAtRest,
    F::LostState,
    F::LostRecord,
    F::SightLost,
    F::HypervisorHangs,
    F::GuestKilled,
    F::HostRebooted,
    F::DefinitionLost,
    F::DiskFull,
    F::DiskLost,
    F::VolumeLost,
    F::ViewDelayed,
    F::OlderView,
    F::HistoryToldAgain,
    F::Stranger,
    F::TimeJumps,
    F::LocalStop,
];

/// What befalls a step, a record, a download or a payload.
const CHANCES: [F; 10] = [
    F::CrashBeforePersist,
    F::CrashAfterPersist,
    F::CrashAfterStep,
    F::StepRetried,
    F::StepRefused,
    F::StepUnknownDone,
    F::StepUnknownUndone,
    F::LateCall,
    F::FetchFailed,
    F::PayloadTwice,
];

/// Every kind: those that strike, those that befall, and what only time does.
pub(super) fn all() -> impl Iterator<Item = FaultKind> {
    STRIKES.into_iter().chain(CHANCES).chain([F::OfferLapsed])
}

/// The mixture of one seed.
#[derive(Debug)]
pub(super) struct Mixture {
    weights: Vec<(FaultKind, u64)>,
    permille: BTreeMap<FaultKind, u64>,
    /// Between two strikes, on average.
    pub(super) pause_ms: u64,
}

impl Mixture {
    pub(super) fn draw(random: &mut Random) -> Self {
        let weight = |random: &mut Random, kind| match (kind, random.below(4)) {
            (_, 0) => 0,
            // These leave something behind for the rest of the run.
            (F::DiskLost | F::VolumeLost | F::Stranger | F::LocalStop, _) => random.within((2, 5)),
            _ => random.within((1, 10)),
        };
        let weights = STRIKES.map(|kind| (kind, weight(random, kind))).to_vec();
        let chance = |random: &mut Random, kind| match (kind, random.below(4)) {
            (_, 0) => 0,
            (F::LateCall | F::FetchFailed, _) => random.within((100, 500)),
            (F::StepRefused, _) => random.within((3, 20)),
            (F::PayloadTwice, _) => random.within((5, 100)),
            _ => random.within((2, 40)),
        };
        let permille = CHANCES.map(|kind| (kind, chance(random, kind))).into();
        Self { weights, permille, pause_ms: random.within((800, 6_000)) }
    }

    /// How likely, in thousandths.
    pub(super) fn permille(&self, kind: FaultKind) -> u64 {
        self.permille.get(&kind).copied().unwrap_or(0)
    }

    /// The next strike.
    pub(super) fn strike(&self, random: &mut Random) -> Option<FaultKind> {
        let sum: u64 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut drawn = random.below(sum);
        self.weights.iter().find_map(|(kind, weight)| match drawn.checked_sub(*weight) {
            Some(left) => {
                drawn = left;
                None
            }
            None => Some(*kind),
        })
    }
}
