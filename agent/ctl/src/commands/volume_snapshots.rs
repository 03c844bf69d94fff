//! `daggerctl volume snapshot|restore|clone|delete-snapshot`: what a volume held at a time, kept.
//!
//! Owns the arguments and the words of these commands. Never follows anything itself: `volume`
//! does. Called by `volume` and, to make documents without sending them, by `commands::payload`.

use clap::Args;
use dagger_api::VolumeView;
use dagger_payload::id::Generation;
use dagger_payload::kind::{Body, SnapshotDelete, VolumeClone, VolumeRestore, VolumeSnapshot};
use dagger_payload::name::Name;
use dagger_payload::volume::{Snapshot, SnapshotState, VolumeState};

use super::volume::{VolumeNamed, find};
use super::volume_follow::{Reach, order};
use super::{ChangeOptions, prefix, short};
use crate::failure::Failure;
use crate::output::table;
use crate::session::Session;
use crate::units;

pub(super) const TAKE_EXAMPLES: &str = "\
Examples:
  daggerctl volume snapshot data monday --wait applied
  daggerctl ssh web-1 -- sync && \\
      daggerctl volume snapshot data tuesday --wait applied

Of a volume that no VM has, or whose VM is switched off: what is on it. Of a
running guest's volume: what a power cut would leave at one moment between the
order and the report that it is ready; only where QEMU runs the VM, elsewhere
it is refused with snapshot_while_off_only: delete it, stop the VM, and ask
again. A VM is not switched on while its volume is copied. It stays on the
volume's host, never changes, and counts against your grant like the volume
itself: its whole size. `volume show` lists a volume's snapshots.";

pub(super) const RESTORE_EXAMPLES: &str = "\
Example:
  daggerctl volume detach data --wait applied
  daggerctl volume restore data monday --wait applied

What is on the volume now goes into quarantine on its host; take a snapshot of
it first if you may want it back. The volume keeps its size. Nobody gets it
until its host has said that it is put back.";

pub(super) const CLONE_EXAMPLES: &str = "\
Examples:
  daggerctl volume clone data monday copy --wait applied
  daggerctl volume clone data monday larger --size 40GiB

A VM may have the volume meanwhile. The new one is as large as the snapshot
unless --size says more, and depends on nothing once it is ready: volume and
snapshot may go.";

/// What `volume snapshot` names.
#[derive(Debug, Clone, Args)]
pub(crate) struct TakeArguments {
    #[command(flatten)]
    volume: VolumeNamed,
    /// Name of the snapshot, unique among all your snapshots
    #[arg(value_name = "SNAPSHOT")]
    name: Name,
    /// Refuse unless the volume is still at this generation (see `volume show`)
    #[arg(long, value_name = "N")]
    expected_generation: Option<u64>,
}

/// One snapshot of a volume.
#[derive(Debug, Clone, Args)]
pub(crate) struct SnapshotNamed {
    #[command(flatten)]
    volume: VolumeNamed,
    /// Name of one of its snapshots, or its id
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
}

/// What `volume restore` names.
#[derive(Debug, Clone, Args)]
pub(crate) struct RestoreArguments {
    #[command(flatten)]
    snapshot: SnapshotNamed,
    /// Refuse unless the volume is still at this generation (see `volume show`)
    #[arg(long, value_name = "N")]
    expected_generation: Option<u64>,
}

/// What `volume clone` orders.
#[derive(Debug, Clone, Args)]
pub(crate) struct CloneArguments {
    #[command(flatten)]
    snapshot: SnapshotNamed,
    /// Name of the new volume, unique among yours
    #[arg(value_name = "NAME")]
    name: Name,
    /// Its size, for example 40GiB; no less than the snapshot's
    #[arg(long, value_name = "SIZE", value_parser = units::disk_gib)]
    size: Option<u64>,
}

/// What `volume delete-snapshot` names.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeleteSnapshotArguments {
    #[command(flatten)]
    snapshot: SnapshotNamed,
}

impl SnapshotNamed {
    /// The volume, and which of its snapshots is meant.
    async fn find(&self, session: &Session) -> Result<(VolumeView, Snapshot), Failure> {
        let view = find(session, &self.volume.volume).await?;
        let snapshots = &view.volume.snapshots;
        let mut found = snapshots.iter().find(|snapshot| snapshot.name.as_str() == self.snapshot);
        if found.is_none() && prefix::is_prefix(&self.snapshot) {
            let id = prefix::only(&self.snapshot, snapshots.iter().map(|snapshot| snapshot.id))?;
            found = id.and_then(|id| view.volume.snapshot(id));
        }
        let Some(found) = found.cloned() else {
            let what = format!("volume {} has no snapshot {}", view.volume.name, self.snapshot);
            let next = format!("`daggerctl volume show {}` lists them.", view.volume.name);
            return Err(Failure::refused("not_found", what, next));
        };
        Ok((view, found))
    }
}

impl TakeArguments {
    /// The body of `volume.snapshot`.
    pub(crate) async fn body(&self, session: &Session) -> Result<VolumeSnapshot, Failure> {
        let volume = find(session, &self.volume.volume).await?.volume.id;
        let expected_generation = self.expected_generation.map(Generation);
        Ok(VolumeSnapshot { volume, name: self.name.clone(), expected_generation })
    }

    pub(super) async fn run(
        &self,
        options: &ChangeOptions,
        session: &Session,
    ) -> Result<(), Failure> {
        let body = self.body(session).await?;
        let id = Some(body.volume);
        order((id, None), Body::VolumeSnapshot(body), (options, Reach::Taken), session).await
    }
}

impl RestoreArguments {
    /// The body of `volume.restore`.
    pub(crate) async fn body(&self, session: &Session) -> Result<VolumeRestore, Failure> {
        let (view, snapshot) = self.snapshot.find(session).await?;
        Ok(VolumeRestore {
            volume: view.volume.id,
            snapshot: snapshot.id,
            expected_generation: self.expected_generation.map(Generation),
        })
    }

    pub(super) async fn run(
        &self,
        options: &ChangeOptions,
        session: &Session,
    ) -> Result<(), Failure> {
        let body = self.body(session).await?;
        let (id, reach) = (Some(body.volume), Reach::State(VolumeState::Ready));
        order((id, None), Body::VolumeRestore(body), (options, reach), session).await
    }
}

impl CloneArguments {
    /// The body of `volume.clone`.
    pub(crate) async fn body(&self, session: &Session) -> Result<VolumeClone, Failure> {
        let (view, snapshot) = self.snapshot.find(session).await?;
        Ok(VolumeClone {
            name: self.name.clone(),
            volume: view.volume.id,
            snapshot: snapshot.id,
            size_gib: self.size.unwrap_or(snapshot.size_gib),
        })
    }

    pub(super) async fn run(
        &self,
        options: &ChangeOptions,
        session: &Session,
    ) -> Result<(), Failure> {
        let body = Body::VolumeClone(self.body(session).await?);
        order((None, None), body, (options, Reach::State(VolumeState::Ready)), session).await
    }
}

impl DeleteSnapshotArguments {
    /// The body of `snapshot.delete`.
    pub(crate) async fn body(&self, session: &Session) -> Result<SnapshotDelete, Failure> {
        let (view, snapshot) = self.snapshot.find(session).await?;
        Ok(SnapshotDelete { volume: view.volume.id, snapshot: snapshot.id })
    }

    pub(super) async fn run(
        &self,
        options: &ChangeOptions,
        session: &Session,
    ) -> Result<(), Failure> {
        let body = self.body(session).await?;
        let (id, reach) = (Some(body.volume), Reach::Without(body.snapshot));
        order((id, None), Body::SnapshotDelete(body), (options, reach), session).await
    }
}

/// The snapshots of a volume, one a line.
pub(super) fn list(view: &VolumeView) -> String {
    let rows = view.volume.snapshots.iter().zip(&view.snapshots).map(|(snapshot, seen)| {
        [
            snapshot.name.to_string(),
            word(seen.state).to_owned(),
            format!("{} GiB", snapshot.size_gib),
            units::show_time(snapshot.created_at),
            short(&snapshot.id),
            seen.reason.clone().unwrap_or_default(),
        ]
    });
    table(["SNAPSHOT", "STATE", "SIZE", "TAKEN", "ID", "REASON"], rows, "No snapshots.")
}

fn word(state: SnapshotState) -> &'static str {
    match state {
        SnapshotState::Pending => "pending",
        SnapshotState::Ready => "ready",
        SnapshotState::Degraded => "degraded",
        SnapshotState::Deleting => "deleting",
    }
}
