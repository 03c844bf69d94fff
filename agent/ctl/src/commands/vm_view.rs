//! How VMs are shown: as a list, in a word, in full.
//!
//! Owns the words and the columns. Never asks for a change. Called by `commands::vm` and the others
//! that show a VM.

use dagger_api::{HostLink, Unproven, VmView};
use dagger_payload::kind::{Capacity, ReportPhase};
use dagger_payload::name::{Name, SshKeyLine};
use dagger_payload::object::{Agreement, VmReport};

use super::image::show_download;
use super::{short, vm_boot, vm_cards, vm_network};
use crate::failure::Failure;
use crate::output::{facts, table};
use crate::session::Session;
use crate::units::{show_gib, show_mib, show_time};

/// The account's VMs, or all.
pub(crate) async fn list(all: bool, session: &Session) -> Result<(), Failure> {
    let path = if all {
        "/v1/vms".to_owned()
    } else {
        format!("/v1/vms?account={}", session.account().await?)
    };
    let vms: Vec<VmView> = session.client.get(&path).await?;
    session.output.show(&vms, |vms| {
        let rows = vms.iter().map(|view| {
            let address = view.vm.address();
            [
                view.vm.name.to_string(),
                state(view),
                view.host_name.as_ref().map_or_else(|| "-".to_owned(), Name::to_string),
                address.map_or_else(|| "-".to_owned(), |address| address.to_string()),
                view.vm.size.cpus.to_string(),
                show_mib(view.vm.size.memory_mib),
                show_gib(view.vm.size.disk_gib),
                view.image_name
                    .as_ref()
                    .map_or_else(|| short(&view.vm.image.digest), |n| n.to_string()),
                short(&view.vm.id),
            ]
        });
        let header = ["NAME", "STATE", "HOST", "ADDRESS", "CPUS", "MEMORY", "DISK", "IMAGE", "ID"];
        let table = table(header, rows, "No VMs. Order one with `daggerctl vm create`.");
        if vms.iter().all(|view| view.unproven.is_none()) {
            return table;
        }
        format!(
            "{table}\n? nothing proves it any more: its host is out of sight, and this was its \
             last report; see `daggerctl vm why`"
        )
    })
}

/// Its state in a word, with a mark where nothing proves it any more.
fn state(view: &VmView) -> String {
    let mark = if view.unproven.is_some() { "?" } else { "" };
    format!("{}{mark}", view.state.word())
}

/// Why nothing proves the state that is shown, if so.
pub(crate) fn unproven(view: &VmView) -> Option<String> {
    let Unproven { link, reported_at } = view.unproven?;
    let host = view.host_name.as_ref().map_or("its host", |name| name.as_str());
    let why = match link {
        HostLink::Missing => format!("{host} cannot be reached by the host that answers"),
        HostLink::Own | HostLink::Connected | HostLink::Unknown => {
            format!("the host that answers cannot tell whether {host} can be reached")
        }
    };
    Some(match reported_at {
        Some(time) => format!("{why}; its last report is of {}", show_time(time)),
        None => format!("{why}, and it has never reported"),
    })
}

/// What the host last said, and whether that is as ordered.
pub(crate) fn reported(report: &VmReport) -> String {
    let phase = phase_word(report.phase);
    match report.agreement {
        Agreement::WithOrder => phase.to_owned(),
        Agreement::AgainstOrder => {
            format!("{phase}, against the order as it stood: marked, and not metered as running")
        }
    }
}

/// A phase as people read it.
fn phase_word(phase: ReportPhase) -> &'static str {
    match phase {
        ReportPhase::Accepted => "accepted",
        ReportPhase::Refused => "refused by its operator's policy",
        ReportPhase::Running => "running",
        ReportPhase::Stopped => "stopped",
        ReportPhase::Paused => "paused",
        ReportPhase::Degraded => "degraded",
        ReportPhase::Deleted => "deleted",
    }
}

/// A part of its size, as it is now and as it will be.
fn present(view: &VmView, part: impl Fn(&Capacity) -> String) -> String {
    let ordered = part(&view.vm.size);
    match view.running_size.as_ref().map(part) {
        Some(now) if now != ordered => format!("{now}, from its next start {ordered}"),
        Some(_) | None => ordered,
    }
}

/// Which ports of its host lead to it.
fn forwards(view: &VmView) -> String {
    let host = view.host_name.as_ref().map_or("its host", |name| name.as_str());
    let each = view.forwards.iter().map(|forward| {
        let (port, protocol) = (forward.host_port, forward.protocol.word());
        format!("{host}:{port} to {protocol}:{}", forward.guest_port)
    });
    each.collect::<Vec<_>>().join(", ")
}

/// One VM in full.
pub(crate) fn show(view: &VmView) -> String {
    let vm = &view.vm;
    let optional = |text: Option<String>| text.unwrap_or_default();
    let labels: Vec<_> = vm.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let volumes: Vec<_> = vm.volumes.iter().map(|used| short(&used.volume)).collect();
    let mut lines = vec![
        ("name", vm.name.to_string()),
        ("id", vm.id.to_string()),
        ("state", state(view)),
        ("unproven", optional(unproven(view))),
        ("reason", optional(view.reason.clone())),
        ("wanted", format!("{:?}", vm.wanted).to_lowercase()),
        ("reported", optional(vm.reported.as_ref().map(reported))),
        ("host", optional(view.host_name.as_ref().map(Name::to_string))),
        ("seen here", format!("{:?}", view.sight).to_lowercase()),
        ("address", optional(vm.address().map(|address| address.to_string()))),
        ("cards", vm_cards::show(view)),
        ("allowed in", vm_network::allowed(&vm.network)),
        ("forwards", forwards(view)),
        ("cpus", present(view, |size| size.cpus.to_string())),
        ("memory", present(view, |size| show_mib(size.memory_mib))),
        ("disk", show_gib(vm.size.disk_gib)),
        (
            "image",
            optional(view.image_name.as_ref().map(|name| name.to_string()))
                + " "
                + &short(&vm.image.digest),
        ),
    ];
    lines.extend(vm_boot::show(view));
    lines.extend([
        ("image fetched", optional(view.image_download.as_ref().map(show_download))),
        ("volumes", volumes.join(" ")),
        ("labels", labels.join(" ")),
        ("protection", format!("{:?}", vm.protection).to_lowercase()),
        ("generation", vm.generation.to_string()),
        ("applied", optional(view.applied_generation.map(|generation| generation.to_string()))),
        (
            "created by",
            format!("payload {} at position {}", vm.created.digest, vm.created.position),
        ),
        ("host key", optional(vm.guest_host_key.as_ref().map(SshKeyLine::to_string))),
    ]);
    facts(lines)
}

#[cfg(test)]
mod tests {
    use dagger_payload::id::{Generation, HostId, PayloadDigest, Position};
    use dagger_payload::object::Cause;

    use super::*;

    #[test]
    fn a_report_against_the_order_is_called_one() {
        let report = |agreement| VmReport {
            host: HostId::ZERO,
            generation: Generation(2),
            phase: ReportPhase::Running,
            reason: None,
            cause: Cause { digest: PayloadDigest::ZERO, position: Position(3) },
            agreement,
        };
        assert_eq!(reported(&report(Agreement::WithOrder)), "running");
        let words = reported(&report(Agreement::AgainstOrder));
        assert!(words.starts_with("running, against the order"), "{words}");
    }
}
