//! Bugs that are planted on purpose, each one line, to prove that the simulator of machines finds
//! such a bug.
//!
//! Owns their list and which one is on. Never in a release: without debug assertions the feature
//! does not compile. Called by the lines that carry a bug, and by the simulator to choose one.

use std::sync::atomic::{AtomicU8, Ordering};

#[cfg(not(debug_assertions))]
compile_error!("planted bugs are for the simulator only: build without `planted-bugs`");

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Bug {
    /// What nobody can see counts as absent.
    UnknownIsAbsent = 1,
    /// A version that is older than the known one takes its place.
    OlderVersionTaken,
    /// An older view of the ledger is acted on.
    HoldIgnored,
    /// A step's record does not say which step is begun.
    StepNotWrittenDown,
    /// A machine is removed before it is disconnected, and then forgotten.
    CardForgotten,
    /// Remains are removed as soon as they are seen.
    RetentionIgnored,
    /// A disk that existed may be made anew.
    DiskMadeAnew,
    /// A volume that existed may be made anew.
    VolumeMadeAnew,
    /// A step whose outcome nobody knows counts as done.
    UnknownIsDone,
    /// Somebody else's machine counts as one that is not there.
    StrangerIsAbsent,
    /// A machine that is as wanted is tagged once more.
    TaggedForEver,
    /// A volume is worked on while its ledger's view is older.
    VolumesActOnHold,
    /// Volumes are not given to a machine that runs.
    VolumesNotGiven,
    /// A deleted VM's record stays.
    RecordNotForgotten,
}

/// All of them.
pub const ALL: [Bug; 14] = [
    Bug::UnknownIsAbsent,
    Bug::OlderVersionTaken,
    Bug::HoldIgnored,
    Bug::StepNotWrittenDown,
    Bug::CardForgotten,
    Bug::RetentionIgnored,
    Bug::DiskMadeAnew,
    Bug::VolumeMadeAnew,
    Bug::UnknownIsDone,
    Bug::StrangerIsAbsent,
    Bug::TaggedForEver,
    Bug::VolumesActOnHold,
    Bug::VolumesNotGiven,
    Bug::RecordNotForgotten,
];

static PLANTED: AtomicU8 = AtomicU8::new(0);

/// Turns one bug on, or all off; for the whole process.
pub fn plant(bug: Option<Bug>) {
    PLANTED.store(bug.map_or(0, |bug| bug as u8), Ordering::Relaxed);
}

/// Whether this bug is on.
pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.load(Ordering::Relaxed) == bug as u8
}
