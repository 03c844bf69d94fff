//! `daggerctl cluster status`: the processes of a development cluster and whether they work.
//!
//! Owns how they are shown. Never starts or stops anything. Called by `cluster`.

use dagger_api::{HealthStatus, LedgerView};
use serde::Serialize;

use super::daemons::{Process, health};
use super::record::{Directory, HostRecord, Libvirt, Record};
use super::{Session, libvirt};
use crate::client::Client;
use crate::endpoint::Endpoint;
use crate::failure::Failure;
use crate::output::table;

/// One process.
#[derive(Serialize)]
struct ProcessView {
    name: String,
    pid: Option<i32>,
}

/// One host.
#[derive(Serialize)]
struct HostView {
    name: String,
    api: String,
    health: String,
    ledger: String,
}

/// The whole cluster.
#[derive(Serialize)]
struct StatusView {
    directory: String,
    processes: Vec<ProcessView>,
    hosts: Vec<HostView>,
}

/// Shows the cluster; a failure when not all of it works.
pub(crate) async fn run(directory: &Directory, session: &Session) -> Result<(), Failure> {
    let record = directory.require_record()?;
    let mut hosts = Vec::new();
    for host in &record.hosts {
        hosts.push(look(directory, &record, host).await);
    }
    let view = StatusView {
        directory: directory.root().display().to_string(),
        processes: processes(directory, &record)
            .map(|process| ProcessView {
                pid: process.find(directory).map(nix::unistd::Pid::as_raw),
                name: process.name,
            })
            .collect(),
        hosts,
    };
    session.output.show(&view, show)?;
    let ended: Vec<_> = view.processes.iter().filter(|process| process.pid.is_none()).collect();
    if ended.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = ended.iter().map(|process| process.name.as_str()).collect();
    Err(Failure::unavailable(
        "cluster_incomplete",
        format!("not running: {}", names.join(", ")),
        "Start one with `daggerctl cluster start-daemon ROLE HOST`, or all with `daggerctl cluster dev`.",
    ))
}

/// Every process that a running cluster has.
pub(crate) fn processes<'a>(
    directory: &'a Directory,
    record: &'a Record,
) -> impl Iterator<Item = Process> + 'a {
    let daemons = record.daemons();
    let libvirtd = (record.libvirt == Libvirt::Private).then(|| libvirt::process(directory));
    daemons.map(|(role, host)| Process::daemon(directory, role, &host.name)).chain(libvirtd)
}

async fn look(directory: &Directory, record: &Record, host: &HostRecord) -> HostView {
    let socket = directory.api_socket(record, &host.name);
    let health = match health(&socket).await {
        Ok(view) if view.status == HealthStatus::Ok => "ok".to_owned(),
        Ok(view) => {
            let parts = view.parts.iter().filter(|part| part.status != HealthStatus::Ok);
            let parts: Vec<_> =
                parts.map(|part| format!("{}: {}", part.name, part.detail)).collect();
            format!("degraded: {}", parts.join("; "))
        }
        Err(_) => "does not answer".to_owned(),
    };
    let client = Client::new(vec![Endpoint::Unix(socket.clone())], None);
    let ledger = match client.get::<LedgerView>("/v1/ledger").await {
        Ok(ledger) => ledger.unavailable.unwrap_or_else(|| {
            let position = ledger.position;
            format!("position {position}, {} of {} reached", ledger.reached, ledger.members.len())
        }),
        Err(_) => "unknown".to_owned(),
    };
    HostView {
        name: host.name.to_string(),
        api: format!("unix:{}", socket.display()),
        health,
        ledger,
    }
}

fn show(view: &StatusView) -> String {
    let processes = view.processes.iter().map(|process| {
        let pid = process.pid.map_or_else(|| "not running".to_owned(), |pid| pid.to_string());
        [process.name.clone(), pid]
    });
    let hosts =
        view.hosts.iter().map(|host| [host.name.clone(), host.health.clone(), host.ledger.clone()]);
    format!(
        "{}\n\n{}\n\n{}",
        view.directory,
        table(["PROCESS", "PID"], processes, "No processes."),
        table(["HOST", "HEALTH", "LEDGER"], hosts, "No hosts.")
    )
}
