//! `daggerctl cluster stop`: ends a development cluster and everything that it made on this
//! machine.
//!
//! Owns the order of ending: who supervises, agents, VMs and networks, ledgers and processors,
//! libvirtd. Called by `cluster` and, on Ctrl-C, by `cluster::dev`.

use std::path::Path;

use super::daemons::{Process, Role, stop_all};
use super::forwarding::Forwarding;
use super::lock::Lock;
use super::record::{Directory, Libvirt, Record};
use super::{cloud_hypervisor, libvirt, machines};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::session::Session;

/// What a stop leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Keys, history, images and disks.
    Directory,
    /// Nothing.
    Nothing,
}

/// Stops the cluster in `directory`. One that does not run is no failure.
pub(crate) async fn run(
    directory: &Directory,
    keep: Keep,
    session: &Session,
) -> Result<(), Failure> {
    let record = directory.require_record()?;
    let progress = Progress::new(session.output.format);
    progress.working("asking the `cluster dev` that runs to stop");
    let lock = Lock::take_over(directory).await?;
    stop(directory, &record, &progress).await?;
    drop(lock);
    if keep == Keep::Nothing {
        progress.working("deleting the directory");
        std::fs::remove_dir_all(directory.root())
            .map_err(|error| Failure::file(directory.root(), &error))?;
        progress.done(format!("deleted {}", directory.root().display()));
    }
    drop(progress);
    let value = serde_json::json!({ "stopped": directory.root() });
    session.output.show(&value, |_| match keep {
        Keep::Nothing => "The cluster is stopped and deleted.".to_owned(),
        Keep::Directory => format!(
            "The cluster is stopped. Its keys, history and disks are in {}; `daggerctl cluster dev` starts it again.",
            directory.root().display()
        ),
    })
}

/// Ends every process, VM and network of the cluster.
pub(crate) async fn stop(
    directory: &Directory,
    record: &Record,
    progress: &Progress,
) -> Result<(), Failure> {
    let of = |role: Role| {
        let hosts = record.hosts.iter();
        hosts.map(|host| Process::daemon(directory, role, &host.name)).collect::<Vec<_>>()
    };
    progress.working("stopping the agents");
    stop_all(directory, &of(Role::Agent)).await;
    progress.done("agents stopped");
    if record.libvirt != Libvirt::None {
        progress.working("ending the VMs and networks");
        machines::remove(directory, record).await?;
        progress.done("VMs and networks ended");
    }
    if record.cloud_hypervisor.is_some() {
        progress.working("ending the VMs");
        cloud_hypervisor::end(directory, record);
        machines::remove_cards(&machines::host_marks(directory, record)?);
        progress.done("VMs ended");
    }
    progress.working("stopping the ledgers and processors");
    let mut rest = of(Role::Ledger);
    rest.extend(of(Role::Processor));
    stop_all(directory, &rest).await;
    progress.done("ledgers and processors stopped");
    if record.libvirt == Libvirt::Private {
        progress.working("stopping libvirtd");
        stop_all(directory, &[libvirt::process(directory)]).await;
        machines::restore_firewall();
        for path in libvirt::mount_points() {
            // Succeeds only for a directory that is empty: one that we made.
            let _ = std::fs::remove_dir(path);
        }
        progress.done("libvirtd stopped");
    }
    if record.network_helper.is_some() {
        Forwarding::of_this_machine(record).restore(machines::guests());
    }
    remove_run_directory(&directory.run_directory(record));
    Ok(())
}

/// Sockets only; nothing in it must survive.
fn remove_run_directory(path: &Path) {
    let _ = std::fs::remove_dir_all(path);
}
