//! `volume.snapshot`, `volume.restore`, `volume.clone`, `snapshot.delete` and `report.snapshot`:
//! what a volume held at a time, kept.
//!
//! Owns when a volume's contents may be copied (never while a VM is to lose it, put back only while
//! none has it, and one copy at a time), that nothing is deleted of which a copy is still to be
//! made, and which names of snapshots are taken ([`SnapshotIndex`]). Not to be confused with the
//! judge's own `snapshot`.

use std::collections::{BTreeMap, BTreeSet};

use dagger_payload::id::{AccountId, SnapshotId, VolumeId};
use dagger_payload::kind::{
    ReportSnapshot, SnapshotDelete, VolumeClone, VolumeCreate, VolumePhase, VolumeRestore,
    VolumeSnapshot,
};
use dagger_payload::limits::VOLUME_SNAPSHOTS_MAX;
use dagger_payload::name::Name;
use dagger_payload::object::{Account, Effect};
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::volume::{
    Origin, Snapshot, SnapshotReport, SnapshotState, Volume, VolumeDisk, VolumeState, VolumeUse,
    VolumeWanted,
};

use super::accounts::acting;
use super::burdens::require_few_on_disk;
use super::placement::require_share;
use super::state::State;
use super::volumes::{newborn, own, reported};
use super::{Case, Ruling, refuse};

/// Names of snapshots, and what is still to be made from one.
#[derive(Debug, Default)]
pub(crate) struct SnapshotIndex {
    names: BTreeMap<(AccountId, Name), SnapshotId>,
    /// By snapshot, the volumes that are to begin with it and are not made yet.
    clones_due: BTreeMap<SnapshotId, BTreeSet<VolumeId>>,
}

impl SnapshotIndex {
    /// Takes in a version of a volume.
    pub(crate) fn insert(&mut self, volume: &Volume) {
        for snapshot in &volume.snapshots {
            self.names.insert((volume.account, snapshot.name.clone()), snapshot.id);
        }
        if let Some(origin) = due_origin(volume) {
            self.clones_due.entry(origin).or_default().insert(volume.id);
        }
    }

    /// Takes a version out that was taken in.
    pub(crate) fn remove(&mut self, volume: &Volume) {
        for snapshot in &volume.snapshots {
            self.names.remove(&(volume.account, snapshot.name.clone()));
        }
        if let Some(origin) = due_origin(volume)
            && let Some(clones) = self.clones_due.get_mut(&origin)
        {
            clones.remove(&volume.id);
            if clones.is_empty() {
                self.clones_due.remove(&origin);
            }
        }
    }

    fn named(&self, account: AccountId, name: &Name) -> Option<SnapshotId> {
        self.names.get(&(account, name.clone())).copied()
    }

    fn clone_due(&self, snapshot: SnapshotId) -> Option<VolumeId> {
        self.clones_due.get(&snapshot)?.first().copied()
    }
}

/// The snapshot that the volume is to begin with, while it is not made.
fn due_origin(volume: &Volume) -> Option<SnapshotId> {
    let is_due = (volume.wanted, volume.disk) == (VolumeWanted::Kept, VolumeDisk::NotReported);
    volume.origin.filter(|_| is_due).map(|origin| origin.snapshot)
}

/// Counts at once, as if it were full.
pub(crate) fn take(state: &State, case: &Case<'_>, body: &VolumeSnapshot) -> Ruling {
    let volume = own(state, case, body.volume, body.expected_generation)?;
    let account = granted(state, case)?;
    if let Some(other) = state.snapshots.named(account.id, &body.name) {
        let detail = format!("your snapshot {other} is called {}", body.name);
        return refuse(RefusalCode::NameTaken, detail);
    }
    require_still(volume)?;
    require_there(volume)?;
    if volume.snapshots.len() >= VOLUME_SNAPSHOTS_MAX {
        let detail = format!("the volume has {VOLUME_SNAPSHOTS_MAX} snapshots: delete one first");
        return refuse(RefusalCode::LimitExceeded, detail);
    }
    let Some(host) = state.hosts.get(&volume.host) else {
        return refuse(RefusalCode::NotFound, format!("no host {} is declared", volume.host));
    };
    let mut next = volume.clone();
    next.snapshots.push(Snapshot {
        id: SnapshotId::of(&case.cause.digest),
        name: body.name.clone(),
        size_gib: volume.size_gib,
        created: case.cause,
        created_at: case.now,
        wanted: VolumeWanted::Kept,
        disk: VolumeDisk::NotReported,
        reported: None,
    });
    require_share(state, (&account.id, host), (&volume.size(), &next.size()), case.now)?;
    require_few_on_disk(state, &account.id, &host.operator)?;
    next.meter = volume.meter.turned(volume.meter.counts, &volume.size(), case.now);
    Ok(vec![Effect::Volume(Box::new(next))])
}

/// Also takes the place of a restoration that its host cannot carry out.
pub(crate) fn restore(state: &State, case: &Case<'_>, body: &VolumeRestore) -> Ruling {
    let volume = own(state, case, body.volume, body.expected_generation)?;
    let snapshot = made(volume, body.snapshot)?;
    require_free(volume)?;
    if volume.restoring == Some(snapshot.id) && !is_stuck(volume) {
        return Ok(Vec::new()); // it is being put back to it already
    }
    if !is_stuck(volume) {
        require_still(volume)?;
    }
    if let Some(due) = volume.due_snapshot() {
        return refuse(RefusalCode::StateWrong, being_made(due));
    }
    let mut volume = volume.clone();
    volume.restoring = Some(body.snapshot);
    volume.generation = volume.generation.next();
    volume.changed = case.cause;
    Ok(vec![Effect::Volume(Box::new(volume))])
}

pub(crate) fn clone(state: &State, case: &Case<'_>, body: &VolumeClone) -> Ruling {
    let source = own(state, case, body.volume, None)?;
    let snapshot = made(source, body.snapshot)?;
    if body.size_gib < snapshot.size_gib {
        let detail = format!("the snapshot has {} GiB: a clone has no less", snapshot.size_gib);
        return refuse(RefusalCode::StateWrong, detail);
    }
    let (name, size_gib, host) = (body.name.clone(), body.size_gib, source.host);
    let account = acting(state, case)?;
    let volume = newborn(state, case, account, &VolumeCreate { name, size_gib, host })?;
    let origin = Some(Origin { volume: source.id, snapshot: snapshot.id });
    Ok(vec![Effect::Volume(Box::new(Volume { origin, ..volume }))])
}

/// One that is still to be made may be deleted too: its owner may see that its host never can.
pub(crate) fn delete(state: &State, case: &Case<'_>, body: &SnapshotDelete) -> Ruling {
    let volume = own(state, case, body.volume, None)?;
    let snapshot = found(volume, body.snapshot)?;
    if snapshot.wanted == VolumeWanted::Deleted {
        return Ok(Vec::new()); // it is, or will be, gone already
    }
    if let Some(clone) = state.snapshots.clone_due(snapshot.id) {
        let detail = format!("volume {clone} is still to be made from it: wait, or delete that");
        return refuse(RefusalCode::StateWrong, detail);
    }
    if volume.restoring == Some(snapshot.id) && !is_stuck(volume) {
        return refuse(RefusalCode::StateWrong, BEING_RESTORED);
    }
    let (id, mut next) = (snapshot.id, volume.clone());
    for snapshot in next.snapshots.iter_mut().filter(|snapshot| snapshot.id == id) {
        snapshot.wanted = VolumeWanted::Deleted;
    }
    Ok(vec![Effect::Volume(Box::new(next))])
}

pub(crate) fn report(state: &State, case: &Case<'_>, body: &ReportSnapshot) -> Ruling {
    let volume = reported(state, case, body.volume)?;
    let snapshot = found(volume, body.snapshot)?;
    match (body.phase, snapshot.wanted) {
        (VolumePhase::Deleted, VolumeWanted::Kept) => {
            return refuse(RefusalCode::StateWrong, "nobody asked for the snapshot to be deleted");
        }
        (VolumePhase::Ready, VolumeWanted::Deleted) => {
            return refuse(RefusalCode::StateWrong, "the snapshot is to be deleted");
        }
        _ => {}
    }
    let said = |report: &SnapshotReport| (report.phase, report.reason.clone());
    if snapshot.reported.as_ref().map(said) == Some((body.phase, body.reason.clone())) {
        return Ok(Vec::new());
    }
    let mut next = volume.clone();
    if body.phase == VolumePhase::Deleted {
        next.snapshots.retain(|snapshot| snapshot.id != body.snapshot);
        next.meter = volume.meter.turned(volume.meter.counts, &volume.size(), case.now);
    }
    for snapshot in next.snapshots.iter_mut().filter(|snapshot| snapshot.id == body.snapshot) {
        if body.phase == VolumePhase::Ready {
            snapshot.disk = VolumeDisk::Made;
        }
        let (phase, reason) = (body.phase, body.reason.clone());
        snapshot.reported = Some(SnapshotReport { phase, reason, cause: case.cause });
    }
    Ok(vec![Effect::Volume(Box::new(next))])
}

/// A volume goes only when none of its snapshots is wanted any more.
pub(crate) fn require_no_snapshots(volume: &Volume) -> Result<(), Refusal> {
    let is_kept = |snapshot: &&Snapshot| snapshot.wanted == VolumeWanted::Kept;
    match volume.snapshots.iter().find(is_kept) {
        Some(kept) => {
            let detail = format!("the volume has the snapshot {}: delete that first", kept.name);
            refuse(RefusalCode::StateWrong, detail)
        }
        None => Ok(()),
    }
}

/// Nothing is being copied from or to the volume's file.
pub(crate) fn require_still(volume: &Volume) -> Result<(), Refusal> {
    if let Some(due) = volume.due_snapshot() {
        return refuse(RefusalCode::StateWrong, being_made(due));
    }
    if volume.restoring.is_some() {
        return refuse(RefusalCode::StateWrong, BEING_RESTORED);
    }
    Ok(())
}

const BEING_RESTORED: &str = "the volume is being put back to a snapshot: wait until it is ready";

fn being_made(due: &Snapshot) -> String {
    if due.state() == SnapshotState::Degraded {
        let why = due.reported.as_ref().and_then(|report| report.reason.as_deref());
        let why = why.map_or_else(String::new, |why| format!(" ({why})"));
        return format!("the snapshot {} could not be made{why}: delete it first", due.name);
    }
    format!("the snapshot {} is being made: wait until it is ready, or delete it", due.name)
}

/// What is on it can be copied: nobody has it, or a VM has and its host knows how to copy beside a
/// guest, or while that is off. While a VM is to lose it nobody knows which of the two is true.
fn require_there(volume: &Volume) -> Result<(), Refusal> {
    match (volume.state(), volume.used_by) {
        (VolumeState::Ready | VolumeState::Attached, _) => Ok(()),
        (_, VolumeUse::Detaching { vm }) => {
            let detail = format!("VM {vm} is to lose the volume: wait until it is off");
            refuse(RefusalCode::StateWrong, detail)
        }
        _ => {
            let detail = "its host has not said that the volume is ready";
            refuse(RefusalCode::StateWrong, detail)
        }
    }
}

/// What a VM may be writing to is not put back under it.
fn require_free(volume: &Volume) -> Result<(), Refusal> {
    match volume.used_by {
        VolumeUse::Free {} => Ok(()),
        VolumeUse::Attached { vm } | VolumeUse::Detaching { vm } => {
            let detail =
                format!("VM {vm} has the volume: detach it first, and wait until it is off");
            refuse(RefusalCode::StateWrong, detail)
        }
    }
}

/// Its host has said that it cannot put the volume back.
fn is_stuck(volume: &Volume) -> bool {
    volume.restoring.is_some() && volume.state() == VolumeState::Degraded
}

fn found(volume: &Volume, snapshot: SnapshotId) -> Result<&Snapshot, Refusal> {
    let found = volume.snapshot(snapshot);
    found.ok_or_else(|| {
        let detail = format!("the volume has no snapshot {snapshot}");
        Refusal::new(RefusalCode::NotFound, detail)
    })
}

/// A snapshot whose contents can be copied.
fn made(volume: &Volume, snapshot: SnapshotId) -> Result<&Snapshot, Refusal> {
    let snapshot = found(volume, snapshot)?;
    match snapshot.state() {
        SnapshotState::Ready => Ok(snapshot),
        SnapshotState::Pending => refuse(RefusalCode::StateWrong, being_made(snapshot)),
        SnapshotState::Degraded => {
            refuse(RefusalCode::StateWrong, "its host says that it does not have the snapshot")
        }
        SnapshotState::Deleting => refuse(RefusalCode::StateWrong, "the snapshot is being deleted"),
    }
}

/// The account that signs, if anybody grants it anything now.
fn granted<'s>(state: &'s State, case: &Case<'_>) -> Result<&'s Account, Refusal> {
    let account = acting(state, case)?;
    match account.grants.iter().any(|grant| state.is_live(grant, case.now)) {
        true => Ok(account),
        false => refuse(RefusalCode::AccountUnknown, "the account has no live grant"),
    }
}
