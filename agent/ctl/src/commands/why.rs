//! `daggerctl vm why`: says in words why a VM is in its state, and what would change it.
//!
//! Owns the explanation; all facts in it come from the agent, what a start would come to from a
//! prediction by the rules that judge. Never guesses. Called by `commands::vm`.

use dagger_api::{LedgerView, PredictionView, VmView};
use dagger_payload::id::HostId;
use dagger_payload::kind::{Body, VmChange};
use dagger_payload::name::Name;
use dagger_payload::object::{Placement, VmState, Wanted};
use dagger_payload::refusal::RefusalCode;
use serde_json::json;

use super::image::show_download;
use super::lookup::{find, named_hosts};
use super::vm::VmName;
use super::vm_view::{reported, unproven};
use crate::failure::Failure;
use crate::output::Format;
use crate::session::Session;
use crate::units::show_time;

/// Explains a VM's state.
pub(crate) async fn run(name: &VmName, session: &Session) -> Result<(), Failure> {
    let view = find(session, &name.vm).await?;
    let ledger: LedgerView = session.client.get("/v1/ledger").await?;
    let mut reasons = explain(&view, &ledger);
    if view.state == VmState::Degraded && view.vm.placement == (Placement::NoHost {}) {
        let hosts = named_hosts(session).await?;
        let tried = view.vm.tried.iter().filter_map(|id| hosts.get(id).map(Name::as_str));
        let tried: Vec<_> = tried.collect();
        if !tried.is_empty() {
            reasons.push(format!("it was offered in vain to {}", tried.join(", ")));
        }
        let start = start(&view, session).await;
        reasons.extend(start.and_then(|start| outcome(&start, |id| hosts.get(id).cloned())));
    }
    let next = next_step(&view.vm.name, (view.state, view.vm.wanted, &view.vm.placement));
    if session.output.format == Format::Json {
        let state = view.state.word();
        let value = json!({ "state": state, "because": reasons, "next": next });
        return session.output.json(&value);
    }
    session.output.line(format!("{} is {}", view.vm.name, view.state.word()))?;
    for reason in reasons.into_iter().chain(next) {
        session.output.line(format!("  {reason}"))?;
    }
    Ok(())
}

/// What would come of starting it now, as the rules would judge; only its owner can ask that.
async fn start(view: &VmView, session: &Session) -> Option<PredictionView> {
    let key = session.signing_key().ok()?;
    let body = Body::VmStart(VmChange { vm: view.vm.id, expected_generation: None });
    let document = session.document(&key, body).await.ok()?.to_bytes();
    session.client.predict(document.into()).await.ok()
}

/// The same in words; nothing about who asks.
fn outcome(start: &PredictionView, called: impl Fn(&HostId) -> Option<Name>) -> Option<String> {
    if let Some(refusal) = &start.refusal {
        return match refusal.code {
            RefusalCode::NotAuthorized | RefusalCode::AccountUnknown => None,
            _ => Some(format!("a start now would find no host either: {}", refusal.detail)),
        };
    }
    let host = start.vm.as_ref()?.placement.host()?;
    let host = called(&host).map_or_else(|| host.to_string(), |name| name.to_string());
    Some(format!("a start now would offer it to {host}"))
}

/// What its owner can do about the state, if anything.
fn next_step(
    name: &Name,
    (state, wanted, placement): (VmState, Wanted, &Placement),
) -> Option<String> {
    let again =
        |command: &str| Some(format!("to have it tried again: daggerctl vm {command} {name}"));
    match (state, wanted, placement) {
        (VmState::Degraded, _, Placement::Lost { .. }) => {
            Some(format!("to give it up: daggerctl vm delete {name}"))
        }
        (VmState::Degraded, _, Placement::NoHost {}) => again("start"),
        // What is wanted already changes nothing: only another wish makes its host try again.
        (VmState::Degraded, Wanted::Running, _) => again("reboot"),
        (VmState::Degraded, Wanted::Stopped, _) => again("start"),
        (VmState::Degraded, Wanted::Paused, _) => again("resume"),
        (VmState::Stopped, Wanted::Stopped, _) => {
            Some(format!("its owner wants it off; to switch it on: daggerctl vm start {name}"))
        }
        (VmState::Stopped, _, _) => Some(format!(
            "it stopped although its owner did not ask for that; to switch it on: daggerctl vm \
             start {name}"
        )),
        (VmState::Paused, _, _) => {
            Some(format!("its owner wants it halted; to let it go on: daggerctl vm resume {name}"))
        }
        (VmState::Deleted, _, _) => Some(
            "its disk is in quarantine on its host, until the host's operator removes it"
                .to_owned(),
        ),
        (
            VmState::Pending
            | VmState::Converging
            | VmState::Running
            | VmState::Deleting
            | VmState::Degraded,
            _,
            _,
        ) => None,
    }
}

fn explain(view: &VmView, ledger: &LedgerView) -> Vec<String> {
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
        Placement::NoHost {} => {}
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

#[cfg(test)]
mod tests {
    use dagger_payload::refusal::Refusal;

    use super::*;

    #[test]
    fn each_state_that_its_owner_can_change_says_by_which_command() {
        let name: Name = "web-1".parse().expect("a name");
        let (host, nowhere) = (HostId::ZERO, Placement::NoHost {});
        let lost = Placement::Lost { host };
        let told = |state, wanted, placement: &Placement| {
            next_step(&name, (state, wanted, placement)).unwrap_or_default()
        };
        let cases = [
            (VmState::Degraded, Wanted::Running, &nowhere, "vm start web-1"),
            (VmState::Degraded, Wanted::Running, &lost, "vm delete web-1"),
            (VmState::Stopped, Wanted::Stopped, &nowhere, "vm start web-1"),
            (VmState::Stopped, Wanted::Running, &nowhere, "vm start web-1"),
            (VmState::Paused, Wanted::Paused, &nowhere, "vm resume web-1"),
        ];
        for (state, wanted, placement, command) in cases {
            let said = told(state, wanted, placement);
            assert!(said.contains(command), "{}: {said}", state.word());
        }
        assert_eq!(told(VmState::Running, Wanted::Running, &nowhere), "");
    }

    #[test]
    fn what_a_start_would_come_to_is_told_to_its_owner_alone() {
        let start = |code| PredictionView {
            refusal: Some(Refusal::new(code, "host1 is draining; host2 has no bridge lan")),
            vm: None,
            hosts: Vec::new(),
            hosts_left_out: 0,
        };
        let told = outcome(&start(RefusalCode::NoHostFits), |_| None).expect("the owner");
        assert!(told.contains("host1 is draining; host2 has no bridge lan"), "{told}");
        assert_eq!(outcome(&start(RefusalCode::NotAuthorized), |_| None), None);
    }
}
