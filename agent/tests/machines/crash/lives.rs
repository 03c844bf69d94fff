//! What owners and operators ask for, one after the other, and what must have come of it.
//!
//! Owns the lives that are lived with a death at every point. That no operation and no step of a
//! host is left out of them is checked in [`super::coverage`].

use dagger_payload::id::VolumeId;
use dagger_payload::kind::{ReportPhase, StopManner, VolumePhase};
use dagger_payload::object::Wanted;

use super::super::kept::KeptEnd;
use super::super::volumes::VOLUME;

/// A volume that begins with a snapshot of the other.
pub(super) const COPY: VolumeId = VolumeId([11; 16]);

/// What is asked for, each once the one before is reported; and what must have come of it in the
/// end, wherever the agent died meanwhile.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) wishes: &'static [(Wish, Told)],
    pub(super) starts: usize,
    pub(super) disks: usize,
    /// The volumes that were made, each once.
    pub(super) volumes: &'static [(VolumeId, VolumeEnd)],
    pub(super) kept: KeptEnd,
    pub(super) image: ImageAt,
    pub(super) remains: Remains,
}

/// Where the image is in the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImageAt {
    Here,
    /// On another host, from where it is fetched this often.
    Elsewhere(usize),
}

/// What becomes of what nobody needs any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remains {
    /// Its operator keeps it.
    Kept,
    /// It goes for ever after an hour: this many things, and the image.
    Collected(usize),
}

/// Where a volume is in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VolumeEnd {
    /// Deleted, with this size in GiB.
    Quarantined(u64),
    /// Deleted, and removed for ever.
    Collected,
    /// Still there: only its VM was deleted.
    Kept,
}

/// One thing that is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wish {
    Be(Wanted),
    Reboot,
    ForcedStop,
    /// The operator of the host stops the machine by hand.
    LocalStop(StopManner),
    Resize,
    Protect,
    Close,
    Once,
    NewVolume,
    Attach(VolumeId),
    Grow,
    Detach(VolumeId),
    Snapshot,
    Restore,
    Clone,
    DeleteSnapshot,
    DeleteVolume(VolumeId),
}

/// What the host says once a wish is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Vm(ReportPhase),
    Volume(VolumeId, VolumePhase),
    Snapshot(VolumePhase),
    /// Nothing yet: it is seen that the image is being fetched.
    Fetching,
}

const RUN: (Wish, Told) = (Wish::Be(Wanted::Running), Told::Vm(ReportPhase::Running));
const STOP: (Wish, Told) = (Wish::Be(Wanted::Stopped), Told::Vm(ReportPhase::Stopped));
const PAUSE: (Wish, Told) = (Wish::Be(Wanted::Paused), Told::Vm(ReportPhase::Paused));
const DELETE: (Wish, Told) = (Wish::Be(Wanted::Deleted), Told::Vm(ReportPhase::Deleted));
const NEW_VOLUME: (Wish, Told) = (Wish::NewVolume, Told::Volume(VOLUME, VolumePhase::Ready));
const ATTACH: (Wish, Told) = (Wish::Attach(VOLUME), Told::Vm(ReportPhase::Running));
const DETACH: (Wish, Told) = (Wish::Detach(VOLUME), Told::Vm(ReportPhase::Running));
const SNAPSHOT: (Wish, Told) = (Wish::Snapshot, Told::Snapshot(VolumePhase::Ready));
const DELETE_SNAPSHOT: (Wish, Told) = (Wish::DeleteSnapshot, Told::Snapshot(VolumePhase::Deleted));
const DELETE_VOLUME: (Wish, Told) =
    (Wish::DeleteVolume(VOLUME), Told::Volume(VOLUME, VolumePhase::Deleted));

/// What all others differ from.
const SHORT: Life = Life {
    wishes: &[RUN, DELETE],
    starts: 1,
    disks: 1,
    volumes: &[],
    kept: KeptEnd { snapshots: 0, restored: 0, cloned: 0 },
    image: ImageAt::Here,
    remains: Remains::Kept,
};

/// All that is asked for of a VM that is looked after.
pub(super) const LONG: Life = Life {
    wishes: &[
        RUN,
        NEW_VOLUME,
        ATTACH,
        PAUSE,
        RUN,
        (Wish::Grow, Told::Vm(ReportPhase::Running)),
        (Wish::Reboot, Told::Vm(ReportPhase::Running)),
        DETACH,
        DELETE_VOLUME,
        STOP,
        RUN,
        DELETE,
    ],
    starts: 3,
    volumes: &[(VOLUME, VolumeEnd::Quarantined(3))],
    ..SHORT
};

/// Changed while it runs and while it is off, and switched off by force.
pub(super) const FORCED: Life = Life {
    wishes: &[
        RUN,
        (Wish::Resize, Told::Vm(ReportPhase::Running)),
        (Wish::Close, Told::Vm(ReportPhase::Running)),
        (Wish::Protect, Told::Vm(ReportPhase::Running)),
        (Wish::ForcedStop, Told::Vm(ReportPhase::Stopped)),
        (Wish::Resize, Told::Vm(ReportPhase::Stopped)),
        RUN,
        DELETE,
    ],
    starts: 2,
    ..SHORT
};

/// Paused again and again, and everything else asked for then.
pub(super) const PAUSED: Life = Life {
    wishes: &[
        RUN,
        PAUSE,
        (Wish::Reboot, Told::Vm(ReportPhase::Running)),
        PAUSE,
        STOP,
        RUN,
        PAUSE,
        DELETE,
    ],
    starts: 3,
    ..SHORT
};

/// Stopped by the operator's hand, with and without time for the guest.
pub(super) const HALTED: Life = Life {
    wishes: &[
        RUN,
        (Wish::LocalStop(StopManner::Graceful), Told::Vm(ReportPhase::Stopped)),
        RUN,
        (Wish::LocalStop(StopManner::Forced), Told::Vm(ReportPhase::Stopped)),
        RUN,
        DELETE,
    ],
    starts: 3,
    ..SHORT
};

/// Never started again by itself, also when the agent dies at the worst moment.
pub(super) const ONCE: Life = Life {
    wishes: &[RUN, (Wish::Once, Told::Vm(ReportPhase::Running)), STOP, RUN, DELETE],
    starts: 2,
    ..SHORT
};

/// The same, while its host is busy with a volume.
pub(super) const ONCE_BESIDE_A_VOLUME: Life = Life {
    wishes: &[
        RUN,
        (Wish::Once, Told::Vm(ReportPhase::Running)),
        NEW_VOLUME,
        SNAPSHOT,
        DELETE_SNAPSHOT,
        DELETE_VOLUME,
        STOP,
        RUN,
        DELETE,
    ],
    volumes: &[(VOLUME, VolumeEnd::Quarantined(1))],
    kept: KeptEnd { snapshots: 1, restored: 0, cloned: 0 },
    ..ONCE
};

/// Deleted before anything of it was made.
pub(super) const UNMADE: Life = Life {
    wishes: &[(Wish::Be(Wanted::Running), Told::Vm(ReportPhase::Accepted)), DELETE],
    starts: 0,
    disks: 0,
    ..SHORT
};

/// Its image comes from elsewhere.
pub(super) const FETCHED: Life =
    Life { wishes: &[RUN, STOP, RUN, DELETE], starts: 2, image: ImageAt::Elsewhere(1), ..SHORT };

/// Deleted because its image takes too long.
pub(super) const GIVEN_UP: Life = Life {
    wishes: &[(Wish::Be(Wanted::Running), Told::Fetching), DELETE],
    starts: 0,
    disks: 0,
    image: ImageAt::Elsewhere(0),
    ..SHORT
};

/// Deleted with a volume, which stays.
pub(super) const ATTACHED: Life = Life {
    wishes: &[RUN, NEW_VOLUME, ATTACH, DELETE],
    volumes: &[(VOLUME, VolumeEnd::Kept)],
    ..SHORT
};

/// Its volume comes, grows and goes while it is off.
pub(super) const OFF: Life = Life {
    wishes: &[
        RUN,
        STOP,
        NEW_VOLUME,
        (Wish::Grow, Told::Volume(VOLUME, VolumePhase::Ready)),
        (Wish::Attach(VOLUME), Told::Vm(ReportPhase::Stopped)),
        (Wish::Grow, Told::Vm(ReportPhase::Stopped)),
        RUN,
        STOP,
        (Wish::Detach(VOLUME), Told::Vm(ReportPhase::Stopped)),
        DELETE_VOLUME,
        DELETE,
    ],
    starts: 2,
    volumes: &[(VOLUME, VolumeEnd::Quarantined(5))],
    ..SHORT
};

/// With a volume that is kept, written to, and put back.
pub(super) const KEPT: Life = Life {
    wishes: &[
        RUN,
        NEW_VOLUME,
        ATTACH,
        DETACH,
        SNAPSHOT,
        ATTACH,
        DETACH,
        (Wish::Restore, Told::Volume(VOLUME, VolumePhase::Ready)),
        DELETE_SNAPSHOT,
        DELETE_VOLUME,
        DELETE,
    ],
    volumes: &[(VOLUME, VolumeEnd::Quarantined(1))],
    kept: KeptEnd { snapshots: 1, restored: 1, cloned: 0 },
    ..SHORT
};

/// The same, and all that is left of it goes for ever: what the volume held before it was put back,
/// the snapshot, the volume and the VM's disk; then the image.
pub(super) const COLLECTED: Life =
    Life { volumes: &[(VOLUME, VolumeEnd::Collected)], remains: Remains::Collected(4), ..KEPT };

/// A second volume begins with the first one's snapshot and outlives both.
pub(super) const CLONED: Life = Life {
    wishes: &[
        RUN,
        NEW_VOLUME,
        ATTACH,
        DETACH,
        SNAPSHOT,
        (Wish::Clone, Told::Volume(COPY, VolumePhase::Ready)),
        (Wish::Attach(COPY), Told::Vm(ReportPhase::Running)),
        DELETE_SNAPSHOT,
        DELETE_VOLUME,
        (Wish::Detach(COPY), Told::Vm(ReportPhase::Running)),
        (Wish::Attach(COPY), Told::Vm(ReportPhase::Running)),
        DELETE,
    ],
    volumes: &[(VOLUME, VolumeEnd::Quarantined(1)), (COPY, VolumeEnd::Kept)],
    kept: KeptEnd { snapshots: 1, restored: 0, cloned: 1 },
    ..SHORT
};

/// A volume of a machine that runs is kept, copied beside its guest.
pub(super) const KEPT_LIVE: Life = Life {
    wishes: &[RUN, NEW_VOLUME, ATTACH, SNAPSHOT, DETACH, DELETE_SNAPSHOT, DELETE_VOLUME, DELETE],
    volumes: &[(VOLUME, VolumeEnd::Quarantined(1))],
    kept: KeptEnd { snapshots: 1, restored: 0, cloned: 0 },
    ..SHORT
};

/// The same of one that is switched off, and switched on after it.
pub(super) const KEPT_OFF: Life = Life {
    wishes: &[
        RUN,
        NEW_VOLUME,
        ATTACH,
        STOP,
        SNAPSHOT,
        RUN,
        DETACH,
        DELETE_SNAPSHOT,
        DELETE_VOLUME,
        DELETE,
    ],
    starts: 2,
    ..KEPT_LIVE
};
