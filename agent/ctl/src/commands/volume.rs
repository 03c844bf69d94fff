//! `daggerctl volume`: orders, gives, takes away and shows volumes.
//!
//! Owns the arguments and the words of the group. Never decides where a volume goes: whoever orders
//! it names a host or a VM. Called by `main` and, to make documents without sending them, by
//! `commands::payload`.

use clap::{Args, Subcommand};
use dagger_api::VolumeView;
use dagger_payload::id::{Generation, HostId, VolumeId};
use dagger_payload::kind::{
    Body, Protection, VolumeAttach, VolumeCreate, VolumeDelete, VolumeDetach, VolumeGrow,
    VolumeProtect,
};
use dagger_payload::name::Name;
use dagger_payload::volume::VolumeState;

use super::lookup::{find as find_vm, find_host};
use super::volume_follow::{Reach, order};
use super::volume_snapshots::{
    self, CloneArguments, DeleteSnapshotArguments, RestoreArguments, TakeArguments,
};
use super::{ChangeOptions, encode, prefix, short};
use crate::failure::Failure;
use crate::output::{facts, table};
use crate::session::Session;
use crate::units::{self, show_gib};

const CREATE_EXAMPLES: &str = "\
Examples:
  daggerctl volume create data --size 20GiB --vm web-1 --wait applied
  daggerctl volume attach data web-1 --wait applied
  daggerctl volume create scratch --size 5GiB --host host1

A volume stays on its host for all its life, and only VMs on that host can use
it: name the VM that it is for, or the host. It counts against your grant like
the disk of a VM. It outlives the VMs that use it.";

const ATTACH_EXAMPLES: &str = "\
Examples:
  daggerctl volume attach data web-1 --wait applied
  # In the guest, the first time:
  #   ls /dev/disk/by-id/virtio-*
  #     (one of them ends in the first 20 digits of the volume's id)
  #   mkfs.ext4 /dev/disk/by-id/virtio-...

A VM that runs gets the volume at once, except on Cloud Hypervisor: there stop
and start the VM. A VM that is off gets it when it is switched on. No two VMs
ever have a volume at a time.";

const DETACH_EXAMPLES: &str = "\
Example (unmount it in the guest first, or the guest does not let go):
  daggerctl volume detach data --wait applied

Until the VM's host has said that the volume is off, nobody else gets it and
it cannot be deleted.";

const GROW_EXAMPLES: &str = "\
Examples:
  daggerctl volume grow data --size 40GiB --wait applied
  # Then in the guest:
  #   resize2fs /dev/disk/by-id/virtio-...

A VM that runs sees the larger disk at once, except on Cloud Hypervisor: there
stop and start it. One that is off sees it when it is switched on. A volume
never shrinks.";

/// The group's commands.
#[derive(Subcommand)]
pub(crate) enum VolumeCommand {
    /// Order a new, empty volume
    #[command(after_help = CREATE_EXAMPLES)]
    Create {
        /// What to order.
        #[command(flatten)]
        create: CreateArguments,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// List your volumes
    #[command(visible_alias = "list", after_help = "Example:\n  daggerctl volume ls")]
    Ls {
        /// Volumes of every account, not only of the key's own
        #[arg(long)]
        all: bool,
    },
    /// Show one volume
    #[command(after_help = "Example:\n  daggerctl volume show data")]
    Show(VolumeNamed),
    /// Give a volume to a VM as one more disk
    #[command(after_help = ATTACH_EXAMPLES)]
    Attach {
        /// Which, and to whom.
        #[command(flatten)]
        attach: AttachArguments,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Take a volume away from its VM; what is on it stays
    #[command(after_help = DETACH_EXAMPLES)]
    Detach {
        /// Which.
        #[command(flatten)]
        detach: DetachArguments,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Make a volume larger; what is on it stays
    #[command(after_help = GROW_EXAMPLES)]
    Grow {
        /// Which, and how large.
        #[command(flatten)]
        grow: GrowArguments,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Let a volume not be deleted before it is unprotected
    #[command(after_help = "Example:\n  daggerctl volume protect data")]
    Protect {
        /// Which.
        #[command(flatten)]
        protect: ProtectArguments,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Keep what is on a volume now, also beside a running guest (QEMU)
    #[command(after_help = volume_snapshots::TAKE_EXAMPLES)]
    Snapshot {
        /// Which, and under what name.
        #[command(flatten)]
        take: TakeArguments,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Let a protected volume be deleted again
    #[command(after_help = "Example:\n  daggerctl volume unprotect data")]
    Unprotect {
        /// Which.
        #[command(flatten)]
        protect: ProtectArguments,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Put a volume back to one of its snapshots; no VM may have it
    #[command(after_help = volume_snapshots::RESTORE_EXAMPLES)]
    Restore {
        /// Which, and to what.
        #[command(flatten)]
        restore: RestoreArguments,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Order a new volume that begins with what a snapshot holds, on the same host
    #[command(after_help = volume_snapshots::CLONE_EXAMPLES)]
    Clone {
        /// What to order.
        #[command(flatten)]
        clone: CloneArguments,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Delete a snapshot; its file goes into quarantine
    #[command(
        after_help = "Example:\n  daggerctl volume delete-snapshot data monday --wait applied"
    )]
    DeleteSnapshot {
        /// Which.
        #[command(flatten)]
        delete: DeleteSnapshotArguments,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Delete a volume; its disk goes into quarantine, until its host's operator removes it there
    #[command(after_help = "Example:\n  daggerctl volume delete data --wait applied")]
    Delete {
        /// Which.
        #[command(flatten)]
        delete: DeleteArguments,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
}

/// Names one volume.
#[derive(Debug, Clone, Args)]
pub(crate) struct VolumeNamed {
    /// Name of a volume of yours, or the id of any (its first 8 digits will do)
    #[arg(value_name = "VOLUME")]
    pub(super) volume: String,
}

/// What `volume create` orders.
#[derive(Debug, Clone, Args)]
pub(crate) struct CreateArguments {
    /// Name of the volume, unique among yours
    name: Name,
    /// Its size, for example 20GiB
    #[arg(long, value_name = "SIZE", value_parser = units::disk_gib)]
    size: u64,
    /// Where it is.
    #[command(flatten)]
    place: PlaceArguments,
}

/// On which host a new volume is: one of the two.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct PlaceArguments {
    /// On the host of this VM of yours
    #[arg(long)]
    vm: Option<String>,
    /// On this host, by name
    #[arg(long)]
    host: Option<Name>,
}

/// What `volume attach` names.
#[derive(Debug, Clone, Args)]
pub(crate) struct AttachArguments {
    #[command(flatten)]
    volume: VolumeNamed,
    /// Name of a VM of yours on the volume's host, or its id
    #[arg(value_name = "VM")]
    vm: String,
    /// Refuse unless the VM is still at this generation (see `vm show`)
    #[arg(long, value_name = "N")]
    expected_generation: Option<u64>,
}

/// What `volume detach` names.
#[derive(Debug, Clone, Args)]
pub(crate) struct DetachArguments {
    #[command(flatten)]
    volume: VolumeNamed,
    /// Refuse unless the VM that has it is still at this generation (see `vm show`)
    #[arg(long, value_name = "N")]
    expected_generation: Option<u64>,
}

/// What `volume grow` names.
#[derive(Debug, Clone, Args)]
pub(crate) struct GrowArguments {
    #[command(flatten)]
    volume: VolumeNamed,
    /// Its new size, for example 40GiB; more than now
    #[arg(long, value_name = "SIZE", value_parser = units::disk_gib)]
    size: u64,
    /// Refuse unless the volume is still at this generation (see `volume show`)
    #[arg(long, value_name = "N")]
    expected_generation: Option<u64>,
}

/// What `volume protect|unprotect` names.
#[derive(Debug, Clone, Args)]
pub(crate) struct ProtectArguments {
    #[command(flatten)]
    volume: VolumeNamed,
    /// Refuse unless the volume is still at this generation (see `volume show`)
    #[arg(long, value_name = "N")]
    expected_generation: Option<u64>,
}

/// What `volume delete` names.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeleteArguments {
    #[command(flatten)]
    volume: VolumeNamed,
    /// Refuse unless the volume is still at this generation (see `volume show`)
    #[arg(long, value_name = "N")]
    expected_generation: Option<u64>,
}

impl CreateArguments {
    /// The body of `volume.create`.
    pub(crate) async fn body(&self, session: &Session) -> Result<Body, Failure> {
        let (name, size_gib) = (self.name.clone(), self.size);
        Ok(Body::VolumeCreate(VolumeCreate { name, size_gib, host: self.host(session).await? }))
    }

    async fn host(&self, session: &Session) -> Result<HostId, Failure> {
        let named = match (&self.place.vm, &self.place.host) {
            (Some(vm), _) => {
                let view = find_vm(session, vm).await?;
                return view.vm.placement.host().ok_or_else(|| {
                    let what = format!("no host has VM {}", view.vm.name);
                    Failure::refused("no_host", what, "Name a host: `daggerctl host ls`.")
                });
            }
            (None, Some(host)) => host,
            (None, None) => {
                return Err(Failure::usage("no place is named", "Give --vm VM or --host HOST."));
            }
        };
        Ok(find_host(session, named).await?.id)
    }
}

impl AttachArguments {
    /// The body of `volume.attach`.
    pub(crate) async fn body(&self, session: &Session) -> Result<VolumeAttach, Failure> {
        Ok(VolumeAttach {
            volume: find(session, &self.volume.volume).await?.volume.id,
            vm: find_vm(session, &self.vm).await?.vm.id,
            expected_generation: self.expected_generation.map(Generation),
        })
    }
}

impl DetachArguments {
    /// The body of `volume.detach`.
    pub(crate) async fn body(&self, session: &Session) -> Result<VolumeDetach, Failure> {
        let volume = find(session, &self.volume.volume).await?.volume.id;
        let expected_generation = self.expected_generation.map(Generation);
        Ok(VolumeDetach { volume, expected_generation })
    }
}

impl GrowArguments {
    /// The body of `volume.grow`.
    pub(crate) async fn body(&self, session: &Session) -> Result<VolumeGrow, Failure> {
        let volume = find(session, &self.volume.volume).await?.volume.id;
        let expected_generation = self.expected_generation.map(Generation);
        Ok(VolumeGrow { volume, size_gib: self.size, expected_generation })
    }
}

impl ProtectArguments {
    /// The body of `volume.protect`.
    pub(crate) async fn body(
        &self,
        protection: Protection,
        session: &Session,
    ) -> Result<VolumeProtect, Failure> {
        let volume = find(session, &self.volume.volume).await?.volume.id;
        let expected_generation = self.expected_generation.map(Generation);
        Ok(VolumeProtect { volume, protection, expected_generation })
    }
}

impl DeleteArguments {
    /// The body of `volume.delete`.
    pub(crate) async fn body(&self, session: &Session) -> Result<VolumeDelete, Failure> {
        let volume = find(session, &self.volume.volume).await?.volume.id;
        let expected_generation = self.expected_generation.map(Generation);
        Ok(VolumeDelete { volume, expected_generation })
    }
}

/// Runs a command of the group.
pub(crate) async fn run(command: VolumeCommand, session: &Session) -> Result<(), Failure> {
    match command {
        VolumeCommand::Create { create, options } => {
            let body = create.body(session).await?;
            order((None, None), body, (&options, Reach::State(VolumeState::Ready)), session).await
        }
        VolumeCommand::Snapshot { take, options } => take.run(&options, session).await,
        VolumeCommand::Restore { restore, options } => restore.run(&options, session).await,
        VolumeCommand::Clone { clone, options } => clone.run(&options, session).await,
        VolumeCommand::DeleteSnapshot { delete, options } => delete.run(&options, session).await,
        VolumeCommand::Ls { all } => list(all, session).await,
        VolumeCommand::Show(named) => {
            session.output.show(&find(session, &named.volume).await?, show)
        }
        VolumeCommand::Attach { attach, options } => {
            let body = attach.body(session).await?;
            let who = (Some(body.volume), Some(body.vm));
            let goal = (&options, Reach::State(VolumeState::Attached));
            order(who, Body::VolumeAttach(body), goal, session).await
        }
        VolumeCommand::Detach { detach, options } => {
            let body = detach.body(session).await?;
            let id = body.volume;
            let user = find(session, &id.to_string()).await?.volume.used_by.vm();
            let goal = (&options, Reach::State(VolumeState::Ready));
            order((Some(id), user), Body::VolumeDetach(body), goal, session).await
        }
        VolumeCommand::Grow { grow, options } => {
            let body = grow.body(session).await?;
            let id = body.volume;
            let user = find(session, &id.to_string()).await?.volume.used_by.vm();
            let goal = if user.is_some() { VolumeState::Attached } else { VolumeState::Ready };
            let who = (Some(id), user);
            order(who, Body::VolumeGrow(body), (&options, Reach::State(goal)), session).await
        }
        VolumeCommand::Protect { protect, options } => {
            let body = protect.body(Protection::Protected, session).await?;
            order_protection(body, &options, session).await
        }
        VolumeCommand::Unprotect { protect, options } => {
            let body = protect.body(Protection::Unprotected, session).await?;
            order_protection(body, &options, session).await
        }
        VolumeCommand::Delete { delete, options } => {
            let body = delete.body(session).await?;
            let goal = (&options, Reach::State(VolumeState::Deleted));
            order((Some(body.volume), None), Body::VolumeDelete(body), goal, session).await
        }
    }
}

/// Where a VM has the volume it stays so, and no host has anything to do for it.
async fn order_protection(
    body: VolumeProtect,
    options: &ChangeOptions,
    session: &Session,
) -> Result<(), Failure> {
    let id = body.volume;
    let user = find(session, &id.to_string()).await?.volume.used_by.vm();
    let goal = if user.is_some() { VolumeState::Attached } else { VolumeState::Ready };
    order((Some(id), None), Body::VolumeProtect(body), (options, Reach::State(goal)), session).await
}

/// Looks a volume up by name in the key's account, by id, or by the first digits of an id.
pub(super) async fn find(session: &Session, volume: &str) -> Result<VolumeView, Failure> {
    if volume.parse::<VolumeId>().is_ok() {
        return session.client.get(&format!("/v1/volumes/{volume}")).await;
    }
    if prefix::is_prefix(volume)
        && let Some(id) = begins_with(session, volume).await?
    {
        return session.client.get(&format!("/v1/volumes/{id}")).await;
    }
    let account = session.account().await?;
    session.client.get(&format!("/v1/volumes/{}?account={account}", encode(volume))).await
}

/// The volume whose id begins with these digits, unless it is the name of one that may be seen.
async fn begins_with(session: &Session, digits: &str) -> Result<Option<VolumeId>, Failure> {
    let volumes: Vec<VolumeView> = session.client.get("/v1/volumes").await?;
    if volumes.iter().any(|view| view.volume.name.as_str() == digits) {
        return Ok(None);
    }
    prefix::only(digits, volumes.iter().map(|view| view.volume.id))
}

async fn list(all: bool, session: &Session) -> Result<(), Failure> {
    let path = if all {
        "/v1/volumes".to_owned()
    } else {
        format!("/v1/volumes?account={}", session.account().await?)
    };
    let volumes: Vec<VolumeView> = session.client.get(&path).await?;
    let name = |name: &Option<Name>| name.as_ref().map_or_else(|| "-".to_owned(), Name::to_string);
    session.output.show(&volumes, |volumes| {
        let rows = volumes.iter().map(|view| {
            [
                view.volume.name.to_string(),
                word(view.state).to_owned(),
                show_gib(view.volume.size_gib),
                name(&view.host_name),
                name(&view.vm_name),
                short(&view.volume.id),
            ]
        });
        let header = ["NAME", "STATE", "SIZE", "HOST", "VM", "ID"];
        table(header, rows, "No volumes. Order one with `daggerctl volume create`.")
    })
}

/// A state as people read it.
pub(super) fn word(state: VolumeState) -> &'static str {
    match state {
        VolumeState::Pending => "pending",
        VolumeState::Ready => "ready",
        VolumeState::Attached => "attached",
        VolumeState::Detaching => "detaching",
        VolumeState::Degraded => "degraded",
        VolumeState::Deleting => "deleting",
        VolumeState::Deleted => "deleted",
    }
}

/// One volume in full, and its snapshots.
pub(super) fn show(view: &VolumeView) -> String {
    let volume = &view.volume;
    let optional = |name: &Option<Name>| name.as_ref().map(Name::to_string).unwrap_or_default();
    let origin = volume.origin.map(|origin| {
        format!("snapshot {} of volume {}", short(&origin.snapshot), short(&origin.volume))
    });
    let facts = facts([
        ("name", volume.name.to_string()),
        ("id", volume.id.to_string()),
        ("state", word(view.state).to_owned()),
        ("reason", view.reason.clone().unwrap_or_default()),
        ("size", show_gib(volume.size_gib)),
        ("counted", show_gib(volume.size().disk_gib)),
        ("host", optional(&view.host_name)),
        ("vm", optional(&view.vm_name)),
        ("protection", format!("{:?}", volume.protection).to_lowercase()),
        ("made from", origin.unwrap_or_default()),
        ("generation", volume.generation.to_string()),
        (
            "created by",
            format!("payload {} at position {}", volume.created.digest, volume.created.position),
        ),
    ]);
    match volume.snapshots.is_empty() {
        true => facts,
        false => format!("{facts}\n\n{}", volume_snapshots::list(view)),
    }
}
