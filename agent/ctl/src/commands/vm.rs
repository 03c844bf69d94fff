//! `daggerctl vm`: orders, changes and shows virtual machines.
//!
//! Owns the arguments of the group; how VMs are shown is in `vm_view`. Never decides where a VM
//! goes. Called by `main` and, to make documents without sending them, by `commands::payload`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use dagger_payload::id::{Generation, VmId};
use dagger_payload::kind::{
    Apart, ApartBy, ApartStrength, Body, ImageUse, Protection, RestartPolicy, StopManner, VmChange,
    VmCreate, VmProtect, VmResize, VmStop,
};
use dagger_payload::name::{LabelValue, Labels, Name, SshKeyLine};
use dagger_payload::object::Wanted;

use super::follow::{Goal, Story, follow};
use super::lookup::{find, find_host};
use super::vm_boot::BootWishes;
use super::vm_cards::Wish;
use super::vm_network::{self, NetworkArguments, NetworkWishes};
use super::vm_view::{list, show};
use super::{ChangeOptions, Wait, console, dry_run, history, image, vm_copy, why};
use crate::failure::Failure;
use crate::progress::{Progress, say};
use crate::session::{Session, Until};
use crate::signer::read_small;
use crate::units;

const CREATE_EXAMPLES: &str = "\
Examples:
  daggerctl vm create web-1 --image debian-12 --cpus 2 --memory 4GiB \\
      --disk 20GiB --ssh-key ~/.ssh/id_ed25519.pub --wait ssh
  daggerctl vm create db-1 --image acme/postgres --cpus 4 --memory 8GiB \\
      --disk 100GiB --ssh-key ~/.ssh/id_ed25519.pub --region eu-1 \\
      --label tier=database --dry-run
  daggerctl vm create kernel-1 --image debian-12 --cpus 2 --memory 1GiB \\
      --disk 20GiB --ssh-key ~/.ssh/id_ed25519.pub --kernel acme/linux-6.1 \\
      --initrd acme/initrd-6.1 \\
      --command-line 'console=ttyS0 root=LABEL=root ro'
  daggerctl vm create nas-1 --image debian-12 --cpus 2 --memory 4GiB \\
      --disk 20GiB --ssh-key ~/.ssh/id_ed25519.pub \\
      --network bridge=lan,address=192.0.2.5/24,gateway=192.0.2.1

With --kernel the hypervisor starts that kernel itself, without a boot loader;
the disk is there as always. Kernel and initial RAM disk are images,
registered with `image register --format kernel` and `--format initrd`.

Everything in the request is public and stays in the ledger for ever: names,
labels, SSH public keys, and the file given with --user-data-public. Put no
secret into it.";

const STOP_EXAMPLES: &str = "\
Examples:
  daggerctl vm stop web-1 --wait applied
  # Also while it is being stopped gracefully
  daggerctl vm stop web-1 --force";

const RESIZE_EXAMPLES: &str = "\
Examples:
  daggerctl vm resize web-1 --cpus 4 --memory 8GiB
  daggerctl vm reboot web-1

The new size counts against grant and host at once, and the guest gets it when
the VM is switched on the next time. While a VM runs it can only grow; stop it
to make it smaller.";

/// The group's commands.
#[derive(Subcommand)]
pub(crate) enum VmCommand {
    /// Order a new VM
    #[command(after_help = CREATE_EXAMPLES)]
    Create {
        /// What to order.
        #[command(flatten)]
        create: Box<CreateArguments>,
        /// Only show where the VM would go, or what each host lacks; nothing is signed or ordered
        #[arg(long)]
        dry_run: bool,
        /// How far to wait
        #[arg(long, value_enum, default_value = "ordered", conflicts_with = "dry_run")]
        wait: CreateWait,
        /// How long to wait at most
        #[arg(long, value_name = "SPAN", default_value = "300s", value_parser = units::span)]
        timeout: Duration,
    },
    /// List your VMs
    #[command(
        visible_alias = "list",
        after_help = "Example:\n  daggerctl vm ls --json | jq '.[].vm.name'"
    )]
    Ls {
        /// VMs of every account, not only of the key's own
        #[arg(long)]
        all: bool,
    },
    /// Show one VM
    #[command(after_help = "Example:\n  daggerctl vm show web-1")]
    Show(VmName),
    /// Switch a VM on
    #[command(after_help = "Example:\n  daggerctl vm start web-1 --wait applied")]
    Start(ChangeArguments),
    /// Switch a VM off; its disk stays. The guest is asked, and switched off when it does not go
    #[command(after_help = STOP_EXAMPLES)]
    Stop(StopArguments),
    /// Halt a VM where it is, in memory
    #[command(after_help = "Example:\n  daggerctl vm pause web-1 --wait applied")]
    Pause(ChangeArguments),
    /// Let a paused VM go on
    #[command(after_help = "Example:\n  daggerctl vm resume web-1 --wait applied")]
    Resume(ChangeArguments),
    /// Switch a VM off, if need be after a while, and on again
    #[command(after_help = "Example:\n  daggerctl vm reboot web-1 --wait applied")]
    Reboot(ChangeArguments),
    /// Give a VM other virtual CPUs and memory, from its next start on
    #[command(after_help = RESIZE_EXAMPLES)]
    Resize(ResizeArguments),
    /// Say what may reach a VM, and let ports of its host lead to it
    #[command(after_help = vm_network::EXAMPLES)]
    Network(NetworkArguments),
    /// Let a VM not be deleted before it is unprotected
    #[command(after_help = "Example:\n  daggerctl vm protect db-1")]
    Protect(ChangeArguments),
    /// Let a protected VM be deleted again
    #[command(after_help = "Example:\n  daggerctl vm unprotect db-1")]
    Unprotect(ChangeArguments),
    /// Delete a VM; its disk goes into quarantine on its host, until the operator removes it there
    #[command(after_help = "Example:\n  daggerctl vm delete web-1 --wait applied")]
    Delete(ChangeArguments),
    /// Show what happened to a VM, from the signature that asked to the machine that did
    #[command(after_help = history::EXAMPLES)]
    History(history::HistoryArguments),
    /// Sit down at a VM's serial console, or show what it said
    #[command(after_help = console::EXAMPLES)]
    Console(console::ConsoleArguments),
    /// Say why a VM is in its state, and what would change it
    #[command(after_help = "Example:\n  daggerctl vm why web-1")]
    Why(VmName),
    /// Write a VM that is switched off into one file that tells whether it is whole
    #[command(after_help = vm_copy::EXPORT_EXAMPLES)]
    Export(vm_copy::ExportArguments),
    /// Order a VM that begins with such a file
    #[command(after_help = vm_copy::IMPORT_EXAMPLES)]
    Import(vm_copy::ImportArguments),
}

/// How far `vm create` waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CreateWait {
    /// Durable on the host that took it
    Received,
    /// In its place for ever, judged by all hosts
    Ordered,
    /// The chosen host has carried it out
    Applied,
    /// The chosen host has seen it running
    Running,
    /// Its SSH server answers, tried from here
    Ssh,
}

/// What VMs that are kept apart may not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NamedApartBy {
    /// The host
    Host,
    /// The operator
    Operator,
    /// The site
    Site,
}

/// What happens when a guest stops by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NamedRestart {
    /// It is switched on again, a few times
    Always,
    /// It stays off until it is started
    Never,
}

/// Names one VM.
#[derive(Debug, Clone, Args)]
pub(crate) struct VmName {
    /// Name of a VM of yours, or the id of any (its first 8 digits will do)
    #[arg(value_name = "VM")]
    pub(crate) vm: String,
}

/// Arguments of `vm start|pause|resume|reboot|delete`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ChangeArguments {
    /// Which VM.
    #[command(flatten)]
    pub(crate) change: ChangeWhat,
    /// How far to wait.
    #[command(flatten)]
    pub(crate) options: ChangeOptions,
}

/// Arguments of `vm stop`.
#[derive(Debug, Clone, Args)]
pub(crate) struct StopArguments {
    /// Which VM, and how.
    #[command(flatten)]
    pub(crate) what: StopWhat,
    /// How far to wait.
    #[command(flatten)]
    pub(crate) options: ChangeOptions,
}

/// What `vm stop` names.
#[derive(Debug, Clone, Args)]
pub(crate) struct StopWhat {
    /// Which VM.
    #[command(flatten)]
    pub(crate) change: ChangeWhat,
    /// At once, as by pulling the plug; else the guest has 30 s to obey its power button
    #[arg(long)]
    pub(crate) force: bool,
}

/// Arguments of `vm resize`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ResizeArguments {
    /// Which VM, and its new size.
    #[command(flatten)]
    pub(crate) what: ResizeWhat,
    /// How far to wait.
    #[command(flatten)]
    pub(crate) options: ChangeOptions,
}

/// What `vm resize` names.
#[derive(Debug, Clone, Args)]
pub(crate) struct ResizeWhat {
    /// Which VM.
    #[command(flatten)]
    pub(crate) change: ChangeWhat,
    /// Virtual CPUs
    #[arg(long, value_name = "N", required_unless_present = "memory")]
    pub(crate) cpus: Option<u32>,
    /// Memory, for example 4GiB
    #[arg(long, value_name = "SIZE", value_parser = units::memory_mib)]
    pub(crate) memory: Option<u64>,
}

/// What `vm start|pause|resume|reboot|delete` name.
#[derive(Debug, Clone, Args)]
pub(crate) struct ChangeWhat {
    /// Which VM.
    #[command(flatten)]
    pub(crate) name: VmName,
    /// Refuse unless the VM is still at this generation (see `vm show`)
    #[arg(long, value_name = "N")]
    pub(crate) expected_generation: Option<u64>,
}

/// What `vm create` orders.
#[derive(Debug, Clone, Args)]
pub(crate) struct CreateArguments {
    /// Name of the VM, unique in your account; also its host name
    pub(crate) name: Name,
    /// Image: publisher/name, or name alone if it is your own or of an operator who granted you
    #[arg(long)]
    pub(crate) image: String,
    /// Virtual CPUs
    #[arg(long, value_name = "N")]
    pub(crate) cpus: u32,
    /// Memory, for example 4GiB
    #[arg(long, value_name = "SIZE", value_parser = units::memory_mib)]
    pub(crate) memory: u64,
    /// Disk, for example 20GiB; at least the image's
    #[arg(long, value_name = "SIZE", value_parser = units::disk_gib)]
    pub(crate) disk: u64,
    /// SSH public key that may log in; may be repeated
    #[arg(long, value_name = "FILE.pub", required = true)]
    pub(crate) ssh_key: Vec<PathBuf>,
    /// Only hosts of this region
    #[arg(long)]
    pub(crate) region: Option<Name>,
    /// Only this host, by name
    #[arg(long)]
    pub(crate) host: Option<Name>,
    /// Only hosts with this label; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = units::label)]
    pub(crate) host_label: Vec<(Name, LabelValue)>,
    /// Only away from your VMs with this label; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = units::label)]
    pub(crate) apart_from: Vec<(Name, LabelValue)>,
    /// Rather away from your VMs with this label; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = units::label)]
    pub(crate) rather_apart_from: Vec<(Name, LabelValue)>,
    /// What it does not share with the VMs that it is kept away from
    #[arg(long, value_enum, default_value = "host")]
    pub(crate) apart_by: NamedApartBy,
    /// Label of the VM; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = units::label)]
    pub(crate) label: Vec<(Name, LabelValue)>,
    /// What happens when the guest stops by itself or its host was switched off
    #[arg(long, value_enum, default_value = "always")]
    pub(crate) restart: NamedRestart,
    /// Network card: nat, or bridge=NAME on a bridge that hosts offer, with an address of yours or
    /// by DHCP; may be repeated, the first leads out and only it may be by NAT; one by NAT if not
    /// given
    #[arg(
        long = "network",
        value_name = "nat|bridge=NAME[,address=ADDRESS/LENGTH[,gateway=ADDRESS]]"
    )]
    pub(crate) cards: Vec<Wish>,
    /// How its network cards are reached.
    #[command(flatten)]
    pub(crate) network: NetworkWishes,
    /// What it boots directly.
    #[command(flatten)]
    pub(crate) boot: BootWishes,
    /// cloud-init user-data; PUBLIC: it stays readable in the ledger for ever
    #[arg(long, value_name = "FILE")]
    pub(crate) user_data_public: Option<PathBuf>,
}

/// Runs a command of the group.
pub(crate) async fn run(command: VmCommand, session: &Session) -> Result<(), Failure> {
    match command {
        VmCommand::Create { create, dry_run: true, .. } => {
            dry_run::run(create_body(&create, session).await?, session).await
        }
        VmCommand::Create { create, wait, timeout, .. } => {
            run_create(&create, wait, timeout, session).await
        }
        VmCommand::Ls { all } => list(all, session).await,
        VmCommand::Show(name) => {
            let vm = find(session, &name.vm).await?;
            session.output.show(&vm, show)
        }
        VmCommand::Start(arguments) => {
            change(&arguments, Body::VmStart, Goal::Running, session).await
        }
        VmCommand::Stop(arguments) => {
            let body = stop_body(&arguments.what, session).await?;
            let id = body.vm;
            let goal = (&arguments.options, Goal::Stopped);
            order(id, Body::VmStop(body), goal, session).await
        }
        VmCommand::Pause(arguments) => {
            change(&arguments, Body::VmPause, Goal::Paused, session).await
        }
        VmCommand::Resume(arguments) => {
            change(&arguments, Body::VmResume, Goal::Running, session).await
        }
        VmCommand::Reboot(arguments) => {
            change(&arguments, Body::VmReboot, Goal::Applied, session).await
        }
        VmCommand::Resize(arguments) => resize(&arguments, session).await,
        VmCommand::Network(arguments) => {
            let body = arguments.what.body(session).await?;
            let id = body.vm;
            let goal = (&arguments.options, Goal::Applied);
            order(id, Body::VmNetwork(body), goal, session).await
        }
        VmCommand::Protect(arguments) => change(&arguments, protect, Goal::Applied, session).await,
        VmCommand::Unprotect(arguments) => {
            change(&arguments, unprotect, Goal::Applied, session).await
        }
        VmCommand::Delete(arguments) => {
            change(&arguments, Body::VmDelete, Goal::Deleted, session).await
        }
        VmCommand::History(arguments) => history::run(&arguments, session).await,
        VmCommand::Console(arguments) => console::run(&arguments, session).await,
        VmCommand::Why(name) => why::run(&name, session).await,
        VmCommand::Export(arguments) => vm_copy::export(&arguments, session).await,
        VmCommand::Import(arguments) => vm_copy::import(&arguments, session).await,
    }
}

/// The body of `vm.create`: names are looked up, files are read.
pub(crate) async fn create_body(
    arguments: &CreateArguments,
    session: &Session,
) -> Result<Body, Failure> {
    let image = image::resolve_for(session, &arguments.image, ImageUse::Disk).await?;
    let boot = arguments.boot.of_new(session).await?;
    let mut ssh_keys = Vec::new();
    for path in &arguments.ssh_key {
        let line = read_small(path)?;
        let key: SshKeyLine = line.trim().parse().map_err(|error| {
            Failure::usage(
                format!("{}: {error}", path.display()),
                "Name a public key file, such as ~/.ssh/id_ed25519.pub.",
            )
        })?;
        ssh_keys.push(key);
    }
    let host = match &arguments.host {
        Some(name) => Some(find_host(session, name).await?.id),
        None => None,
    };
    let user_data = arguments.user_data_public.as_deref();
    let public_user_data = user_data.map(read_small).transpose()?;
    let (network, more_cards) = arguments.network.of_new(&arguments.cards)?;
    Ok(Body::VmCreate(Box::new(VmCreate {
        name: arguments.name.clone(),
        image,
        cpus: arguments.cpus,
        memory_mib: arguments.memory,
        disk_gib: arguments.disk,
        ssh_keys,
        region: arguments.region.clone(),
        host,
        host_labels: labels(&arguments.host_label)?,
        apart: apart(arguments),
        labels: labels(&arguments.label)?,
        public_user_data,
        restart: match arguments.restart {
            NamedRestart::Always => RestartPolicy::Always,
            NamedRestart::Never => RestartPolicy::Never,
        },
        network,
        boot,
        more_cards,
    })))
}

/// The body of `vm.stop`.
pub(crate) async fn stop_body(what: &StopWhat, session: &Session) -> Result<VmStop, Failure> {
    let VmChange { vm, expected_generation } = change_body(&what.change, session).await?;
    let manner = if what.force { StopManner::Forced } else { StopManner::Graceful };
    Ok(VmStop { vm, manner, expected_generation })
}

/// The body of `vm.resize`.
pub(crate) async fn resize_body(what: &ResizeWhat, session: &Session) -> Result<Body, Failure> {
    let VmChange { vm, expected_generation } = change_body(&what.change, session).await?;
    let (cpus, memory_mib) = (what.cpus, what.memory);
    Ok(Body::VmResize(VmResize { vm, cpus, memory_mib, expected_generation }))
}

/// The body of `vm.start`, `vm.stop`, `vm.reboot` and `vm.delete`.
pub(crate) async fn change_body(what: &ChangeWhat, session: &Session) -> Result<VmChange, Failure> {
    Ok(VmChange {
        vm: find(session, &what.name.vm).await?.vm.id,
        expected_generation: what.expected_generation.map(Generation),
    })
}

/// `vm.protect` that protects.
pub(crate) fn protect(change: VmChange) -> Body {
    protection(change, Protection::Protected)
}

/// `vm.protect` that unprotects.
pub(crate) fn unprotect(change: VmChange) -> Body {
    protection(change, Protection::Unprotected)
}

fn protection(change: VmChange, protection: Protection) -> Body {
    let VmChange { vm, expected_generation } = change;
    Body::VmProtect(VmProtect { vm, protection, expected_generation })
}

/// One wish for each label that is named.
fn apart(arguments: &CreateArguments) -> Vec<Apart> {
    let by = match arguments.apart_by {
        NamedApartBy::Host => ApartBy::Host,
        NamedApartBy::Operator => ApartBy::Operator,
        NamedApartBy::Site => ApartBy::Site,
    };
    let wish = |(key, value): &(Name, LabelValue), strength| Apart {
        from: Labels::from([(key.clone(), value.clone())]),
        by,
        strength,
    };
    let required = arguments.apart_from.iter().map(|label| wish(label, ApartStrength::Required));
    let preferred = &arguments.rather_apart_from;
    required.chain(preferred.iter().map(|label| wish(label, ApartStrength::Preferred))).collect()
}

/// Labels from the command line; a key that stands twice is an error.
pub(crate) fn labels(pairs: &[(Name, LabelValue)]) -> Result<Labels, Failure> {
    let mut labels = Labels::new();
    for (key, value) in pairs {
        if labels.insert(key.clone(), value.clone()).is_some() {
            let what = format!("label {key} is given twice");
            return Err(Failure::usage(what, "Give each label once."));
        }
    }
    Ok(labels)
}

async fn run_create(
    create: &CreateArguments,
    wait: CreateWait,
    timeout: Duration,
    session: &Session,
) -> Result<(), Failure> {
    order_new(create_body(create, session).await?, wait, timeout, session).await
}

/// Orders a new VM and shows what comes of it.
pub(crate) async fn order_new(
    body: Body,
    wait: CreateWait,
    timeout: Duration,
    session: &Session,
) -> Result<(), Failure> {
    let deadline = std::time::Instant::now() + timeout;
    let progress = Progress::new(session.output.format);
    let signed = session.sign(None, body).await?;
    let until = match wait {
        CreateWait::Received => Until::Received,
        _ => Until::Judged,
    };
    let payload = session.submit(&signed, until, deadline, &progress).await?;
    let goal = match wait {
        CreateWait::Received => return session.output.show(&payload, super::payload::show),
        CreateWait::Ordered => Goal::Ordered,
        CreateWait::Applied => Goal::Applied,
        CreateWait::Running => Goal::Running,
        CreateWait::Ssh => Goal::Ssh,
    };
    let id = payload.vm.unwrap_or_else(|| VmId::of(&signed.digest));
    let vm = follow(session, id, (goal, Story::Creation), deadline, &progress).await?;
    drop(progress);
    match vm {
        Some(vm) => session.output.show(&vm, show),
        None => session.output.show(&payload, super::payload::show),
    }
}

async fn resize(arguments: &ResizeArguments, session: &Session) -> Result<(), Failure> {
    let before = find(session, &arguments.what.change.name.vm).await?;
    let body = resize_body(&arguments.what, session).await?;
    order(before.vm.id, body, (&arguments.options, Goal::Applied), session).await?;
    if before.vm.wanted == Wanted::Running {
        say(&format!(
            "{0} runs on with its old size until it is switched on again: daggerctl vm reboot {0}",
            before.vm.name
        ));
    }
    Ok(())
}

async fn change(
    arguments: &ChangeArguments,
    kind: fn(VmChange) -> Body,
    goal: Goal,
    session: &Session,
) -> Result<(), Failure> {
    let body = change_body(&arguments.change, session).await?;
    let id = body.vm;
    order(id, kind(body), (&arguments.options, goal), session).await
}

/// Orders a change of the VM `id` and shows what comes of it.
async fn order(
    id: VmId,
    body: Body,
    (options, goal): (&ChangeOptions, Goal),
    session: &Session,
) -> Result<(), Failure> {
    let deadline = options.deadline();
    let progress = Progress::new(session.output.format);
    let signed = session.sign(None, body).await?;
    let until = options.until();
    let payload = session.submit(&signed, until, deadline, &progress).await?;
    if options.wait == Wait::Applied {
        let vm = follow(session, id, (goal, Story::Change), deadline, &progress).await?;
        drop(progress);
        if let Some(vm) = vm {
            return session.output.show(&vm, show);
        }
    }
    session.output.show(&payload, super::payload::show)
}
