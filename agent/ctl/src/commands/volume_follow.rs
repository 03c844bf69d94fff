//! Orders a change of a volume and follows it until it is carried out or cannot be.
//!
//! Owns where each change leads and what is told when it does not get there. Never decides what is
//! asked for. Called by `volume` and `volume_snapshots`.

use std::time::Instant;

use dagger_api::VolumeView;
use dagger_payload::id::{PayloadDigest, SnapshotId, VmId, VolumeId};
use dagger_payload::kind::Body;
use dagger_payload::volume::{Snapshot, SnapshotState, VolumeState};

use super::follow::{Goal, Story, follow};
use super::volume::{show, word};
use super::{ChangeOptions, Wait};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::session::{Pause, Session};

/// With this word a host's reason begins that makes a snapshot only while the VM is off.
const WHILE_OFF_ONLY: &str = "snapshot_while_off_only";

/// Up to where a volume is followed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reach {
    /// It is in this state, whatever became of its snapshots.
    State(VolumeState),
    /// The snapshot that was asked for can be used.
    Taken,
    /// This snapshot of it is gone.
    Without(SnapshotId),
}

impl Reach {
    /// Whether it is there, after the payload `asked`.
    fn is_reached(self, view: &VolumeView, asked: &PayloadDigest) -> bool {
        match self {
            Self::State(state) => own_state(view) == state,
            Self::Taken => asked_for(view, asked)
                .is_some_and(|snapshot| snapshot.state() == SnapshotState::Ready),
            Self::Without(id) => view.volume.snapshot(id).is_none(),
        }
    }

    /// Why it does not get there as things are, if so.
    fn lost(self, view: &VolumeView, asked: &PayloadDigest) -> Option<Failure> {
        let is_degraded = own_state(view) == VolumeState::Degraded;
        match self {
            Self::State(VolumeState::Deleted) | Self::Without(_) => None,
            Self::State(_) => is_degraded.then(|| degraded(view)),
            Self::Taken => {
                let snapshot = asked_for(view, asked)
                    .filter(|snapshot| snapshot.state() == SnapshotState::Degraded);
                let not_made = snapshot.map(|snapshot| not_made(view, snapshot));
                not_made.or_else(|| is_degraded.then(|| degraded(view)))
            }
        }
    }
}

impl std::fmt::Display for Reach {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::State(state) => formatter.write_str(word(*state)),
            Self::Taken => formatter.write_str("having the snapshot"),
            Self::Without(_) => formatter.write_str("being without the snapshot"),
        }
    }
}

/// The snapshot that the payload `asked` for.
fn asked_for<'v>(view: &'v VolumeView, asked: &PayloadDigest) -> Option<&'v Snapshot> {
    view.volume.snapshots.iter().find(|snapshot| snapshot.created.digest == *asked)
}

/// How the volume itself is: a snapshot that could not be made keeps nobody from using the volume,
/// though the volume is shown as degraded then.
fn own_state(view: &VolumeView) -> VolumeState {
    let mut volume = view.volume.clone();
    volume.snapshots.retain(|snapshot| snapshot.state() != SnapshotState::Degraded);
    volume.state()
}

const NO_REASON: &str = "no reason is known";

fn degraded(view: &VolumeView) -> Failure {
    let (name, why) = (&view.volume.name, view.reason.as_deref().unwrap_or(NO_REASON));
    let next = format!(
        "Its host goes on as soon as it has what it lacks: `daggerctl volume show {name}` tells. \
         Deleting the volume gives up what is on it."
    );
    Failure::refused("degraded", format!("volume {name} is degraded: {why}"), next)
}

fn not_made(view: &VolumeView, snapshot: &Snapshot) -> Failure {
    let (volume, name) = (&view.volume.name, &snapshot.name);
    let why = snapshot.reported.as_ref().and_then(|report| report.reason.as_deref());
    let why = why.unwrap_or(NO_REASON);
    let give_up = format!("`daggerctl volume delete-snapshot {volume} {name}`");
    let next = match why.starts_with(WHILE_OFF_ONLY) {
        true => format!("Delete it: {give_up}, stop the VM, and ask again."),
        false => format!(
            "Its host makes it as soon as it can: `daggerctl volume show {volume}` tells. To give \
             it up: {give_up}."
        ),
    };
    let what = format!("the snapshot {name} of volume {volume} could not be made: {why}");
    Failure::refused("degraded", what, next)
}

/// Orders a change of a volume, or a new one, and shows what comes of it. Where a VM is to get or
/// lose it, that VM is followed first.
pub(super) async fn order(
    (id, vm): (Option<VolumeId>, Option<VmId>),
    body: Body,
    (options, reach): (&ChangeOptions, Reach),
    session: &Session,
) -> Result<(), Failure> {
    let deadline = options.deadline();
    let progress = Progress::new(session.output.format);
    let signed = session.sign(None, body).await?;
    let payload = session.submit(&signed, options.until(), deadline, &progress).await?;
    if options.wait != Wait::Applied {
        drop(progress);
        return session.output.show(&payload, super::payload::show);
    }
    if let Some(vm) = vm {
        follow(session, vm, (Goal::Applied, Story::Change), deadline, &progress).await?;
    }
    let id = id.unwrap_or_else(|| VolumeId::of(&signed.digest));
    let view = wait_until(session, id, (reach, &signed.digest), deadline).await?;
    progress.done(word(own_state(&view)));
    drop(progress);
    session.output.show(&view, show)
}

/// Looks until the volume is where it should get to; one that cannot get there is a failure.
async fn wait_until(
    session: &Session,
    id: VolumeId,
    (reach, asked): (Reach, &PayloadDigest),
    deadline: Instant,
) -> Result<VolumeView, Failure> {
    let mut pause = Pause::new();
    let path = format!("/v1/volumes/{id}");
    loop {
        let state = match session.client.get::<VolumeView>(&path).await {
            Ok(view) if reach.is_reached(&view, asked) => return Ok(view),
            Ok(view) => match reach.lost(&view, asked) {
                Some(failure) => return Err(failure),
                None => word(view.state),
            },
            // The agent folds releases a moment after the payload's verdict is known.
            Err(failure) if failure.has_code("not_found") || failure.is_unavailable() => {
                "not visible"
            }
            Err(failure) => return Err(failure),
        };
        if Instant::now() >= deadline {
            return Err(Failure::unavailable(
                "not_in_time",
                format!("volume {id} is {state}; it did not get to {reach} in time"),
                format!("It goes on by itself. `daggerctl volume show {id}` shows how it is."),
            ));
        }
        pause.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::id::{AccountId, Generation, HostId, LedgerTime, Position};
    use dagger_payload::kind::{Protection, VolumePhase};
    use dagger_payload::object::Cause;
    use dagger_payload::usage::Meter;
    use dagger_payload::volume::{
        SnapshotReport, Volume, VolumeDisk, VolumeReport, VolumeUse, VolumeWanted,
    };

    use super::*;

    const ASKED: PayloadDigest = PayloadDigest([7; 32]);

    /// A volume that is well, and whose snapshot `monday` its host cannot make.
    fn with_a_failed_snapshot(used_by: VolumeUse, reason: &str) -> VolumeView {
        let cause = Cause { digest: PayloadDigest::ZERO, position: Position(3) };
        let (phase, reason) = (VolumePhase::Degraded, Some(reason.to_owned()));
        let snapshot = Snapshot {
            id: SnapshotId::of(&ASKED),
            name: "monday".parse().expect("a name"),
            size_gib: 1,
            created: Cause { digest: ASKED, position: Position(4) },
            created_at: LedgerTime(5),
            wanted: VolumeWanted::Kept,
            disk: VolumeDisk::NotReported,
            reported: Some(SnapshotReport { phase, reason: reason.clone(), cause }),
        };
        let (phase, generation) = (VolumePhase::Ready, Generation(1));
        let volume = Volume {
            id: VolumeId([1; 16]),
            account: AccountId::ZERO,
            name: "data".parse().expect("a name"),
            generation,
            created: cause,
            changed: cause,
            wanted: VolumeWanted::Kept,
            size_gib: 1,
            host: HostId::ZERO,
            used_by,
            disk: VolumeDisk::Made,
            reported: Some(VolumeReport { generation, phase, reason: None, cause }),
            meter: Meter::NEW,
            protection: Protection::Unprotected,
            snapshots: vec![snapshot],
            restoring: None,
            origin: None,
        };
        let (host_name, vm_name) = (None, None);
        let state = volume.state();
        VolumeView { volume, state, reason, host_name, vm_name, snapshots: Vec::new() }
    }

    fn vm() -> VolumeUse {
        VolumeUse::Attached { vm: VmId([2; 16]) }
    }

    #[test]
    fn waiting_for_a_snapshot_ends_when_it_cannot_be_made_though_the_volume_is_well() {
        let view = with_a_failed_snapshot(vm(), "snapshot_while_off_only: on paper");
        assert_eq!(view.state, VolumeState::Attached);
        let failure = Reach::Taken.lost(&view, &ASKED).expect("it is not made").to_text();
        assert!(failure.contains("snapshot monday of volume data could not be made"), "{failure}");
        assert!(failure.contains("snapshot_while_off_only: on paper"), "{failure}");
        assert!(failure.contains("volume delete-snapshot data monday`, stop the VM"), "{failure}");
        let busy = with_a_failed_snapshot(vm(), "backup_busy: another one");
        let failure = Reach::Taken.lost(&busy, &ASKED).expect("it is not made").to_text();
        assert!(failure.contains("as soon as it can"), "{failure}");
        assert!(Reach::Taken.lost(&view, &PayloadDigest([8; 32])).is_none(), "another one's");
    }

    #[test]
    fn a_snapshot_that_failed_makes_no_other_change_of_its_volume_fail() {
        let detached = with_a_failed_snapshot(VolumeUse::Free {}, "snapshot_while_off_only");
        assert_eq!(detached.state, VolumeState::Degraded);
        let ready = Reach::State(VolumeState::Ready);
        assert!(ready.lost(&detached, &ASKED).is_none());
        assert!(ready.is_reached(&detached, &ASKED));
        let attached = with_a_failed_snapshot(vm(), "snapshot_while_off_only");
        assert!(Reach::State(VolumeState::Attached).is_reached(&attached, &ASKED));
    }

    #[test]
    fn of_a_volume_whose_disk_is_gone_it_is_said_what_deleting_it_would_do() {
        let mut gone = with_a_failed_snapshot(VolumeUse::Free {}, "disk_missing: no file");
        let report = gone.volume.reported.as_mut().expect("it has one");
        report.phase = VolumePhase::Degraded;
        for reach in [Reach::State(VolumeState::Ready), Reach::State(VolumeState::Attached)] {
            let failure = reach.lost(&gone, &ASKED).expect("it is degraded").to_text();
            assert!(failure.contains("gives up what is on it"), "{failure}");
        }
        assert!(Reach::State(VolumeState::Deleted).lost(&gone, &ASKED).is_none());
    }
}
