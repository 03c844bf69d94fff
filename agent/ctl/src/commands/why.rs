//! `daggerctl vm why`: says in words why a VM is in its state, and what would change it.
//!
//! Owns the explanation; all facts in it come from the agent. Never guesses. Called by
//! `commands::vm`.

use dagger_api::{HostView, LedgerView, VmView};
use dagger_payload::object::{Placement, VmState};
use serde_json::json;

use super::image::show_download;
use super::vm::{VmName, find};
use super::vm_view::{reported, unproven};
use crate::failure::Failure;
use crate::output::Format;
use crate::session::Session;
use crate::units::show_time;

/// Explains a VM's state.
pub(crate) async fn run(name: &VmName, session: &Session) -> Result<(), Failure> {
    let view = find(session, &name.vm).await?;
    let hosts: Vec<HostView> = session.client.get("/v1/hosts").await?;
    let ledger: LedgerView = session.client.get("/v1/ledger").await?;
    let reasons = explain(&view, &hosts, &ledger);
    if session.output.format == Format::Json {
        let state = view.state.word();
        return session.output.json(&json!({ "state": state, "because": reasons }));
    }
    session.output.line(format!("{} is {}", view.vm.name, view.state.word()))?;
    for reason in reasons {
        session.output.line(format!("  {reason}"))?;
    }
    Ok(())
}

fn explain(view: &VmView, hosts: &[HostView], ledger: &LedgerView) -> Vec<String> {
    let mut reasons = Vec::new();
    let vm = &view.vm;
    let host = view.host_name.as_ref().map_or_else(|| "its host".to_owned(), ToString::to_string);
    if let Some(reason) = &view.reason {
        reasons.push(format!("reason: {reason}"));
    }
    if let Some(download) = &view.image_download {
        let from =
            download.source.as_ref().map_or_else(String::new, |from| format!(" from {from}"));
        reasons.push(format!("its image comes: {}{from}", show_download(download)));
    }
    match &vm.placement {
        Placement::Offered { deadline, .. } => reasons.push(format!(
            "{host} was chosen and has until {} to accept; then the next host is tried",
            show_time(*deadline)
        )),
        Placement::Accepted { position, .. } => {
            reasons.push(format!("{host} accepted it at position {position}"));
        }
        Placement::Lost { .. } => reasons.push(
            "its host left the cluster without giving it up: whatever still runs there is out of \
             reach, and no other host gets it; delete it and create another one"
                .to_owned(),
        ),
        Placement::NoHost {} => {
            reasons.push("no host takes it; these are the hosts:".to_owned());
            reasons.extend(hosts.iter().map(|host| no_host_reason(view, host)));
        }
    }
    if let Some(report) = &vm.reported {
        let about = if report.generation == vm.generation {
            "its present generation".to_owned()
        } else {
            format!("generation {}, but it is at {}", report.generation, vm.generation)
        };
        let phase = reported(report);
        reasons.push(format!(
            "last report: {phase}, about {about}, at position {}",
            report.cause.position
        ));
    } else if view.state == VmState::Converging {
        reasons.push(format!("{host} has not reported yet"));
    }
    reasons.extend(unproven(view).map(|why| format!("nothing proves that it is still so: {why}")));
    if let Some(why) = &ledger.unavailable {
        reasons.push(format!("changes are not possible now: {why}"));
    }
    reasons
}

fn no_host_reason(view: &VmView, candidate: &HostView) -> String {
    let vm = &view.vm;
    let why = match &candidate.host {
        None => "was not declared by its operator (host.join)".to_owned(),
        Some(_) if vm.tried.contains(&candidate.id) => "was tried and did not take it".to_owned(),
        Some(host) if vm.region.as_ref().is_some_and(|region| *region != host.region) => {
            format!("is in region {}", host.region)
        }
        Some(_) if vm.pinned_host.is_some_and(|pinned| pinned != candidate.id) => {
            "is not the host that was asked for".to_owned()
        }
        Some(host) => {
            let free = host.capacity.minus(&candidate.used);
            let lacks =
                vm.host_labels.iter().find(|(key, value)| host.labels.get(*key) != Some(*value));
            match lacks {
                Some((key, value)) => format!("lacks the label {key}={value}"),
                None if !free.covers(&vm.size) => format!(
                    "has only {} CPUs, {} MiB and {} GiB free",
                    free.cpus, free.memory_mib, free.disk_gib
                ),
                None => {
                    "has room: its operator may not have granted you, or it was silent".to_owned()
                }
            }
        }
    };
    format!("  {} {why}", candidate.name)
}
