//! `daggerctl cluster`: a whole cluster on one machine, for development, tests and the
//! demonstration.
//!
//! Owns one directory per cluster and the processes that run from it. Never restarts what it was
//! not asked to. Called by `main`.

mod add_host;
pub(crate) mod arguments;
mod cloud_hypervisor;
mod configuration;
mod daemons;
mod dev;
mod forwarding;
mod identity;
mod kvm;
pub(crate) mod libvirt;
mod lock;
mod machines;
mod network;
mod offer;
pub(crate) mod record;
mod status;
mod stop;
mod usage;

use self::arguments::ClusterCommand;
use self::daemons::Process;
use self::record::Directory;
use crate::failure::Failure;
use crate::session::Session;

/// Runs a command of the group.
pub(crate) async fn run(command: ClusterCommand, session: &Session) -> Result<(), Failure> {
    match command {
        ClusterCommand::Dev(arguments) => dev::run(&arguments, session).await,
        ClusterCommand::Status(arguments) => {
            status::run(&Directory::of(&arguments)?, session).await
        }
        ClusterCommand::Stop { directory, purge } => {
            let keep = if purge { stop::Keep::Nothing } else { stop::Keep::Directory };
            stop::run(&Directory::of(&directory)?, keep, session).await
        }
        ClusterCommand::AddHost(arguments) => add_host::run(&arguments, session).await,
        ClusterCommand::StartDaemon { role, host, directory } => {
            start_daemon(role, &host, &Directory::of(&directory)?, session).await
        }
        ClusterCommand::LibvirtNamespace(arguments) => libvirt::enter_and_run(&arguments),
    }
}

async fn start_daemon(
    role: daemons::Role,
    host: &str,
    directory: &Directory,
    session: &Session,
) -> Result<(), Failure> {
    let record = directory.require_record()?;
    let host = record.hosts.iter().find(|known| known.name.as_str() == host).ok_or_else(|| {
        let names: Vec<_> = record.hosts.iter().map(|host| host.name.as_str()).collect();
        let what = format!("the cluster has no host {host}");
        Failure::refused("not_found", what, format!("It has {}.", names.join(", ")))
    })?;
    let process = Process::daemon(directory, role, &host.name);
    if let Some(pid) = process.find(directory) {
        let what = format!("{} runs already, as process {pid}", process.name);
        return Err(Failure::refused("already_running", what, "Nothing needs to be done."));
    }
    let child = daemons::start(directory, &record, role, &host.name).await?;
    let value = serde_json::json!({ "process": process.name, "pid": child.id() });
    session.output.show(&value, |_| format!("{} runs as process {}", process.name, child.id()))
}
