//! `report.vm`: what the placed host says, signed with its agent key.
//!
//! Owns which report counts when, and what a VM's meter counts after it. A host acts only on its
//! own ordered acceptance; a report about an old generation or by another host changes nothing.

use dagger_payload::id::HostId;
use dagger_payload::kind::{ReportPhase, ReportVm};
use dagger_payload::object::{Agreement, Effect, Placement, Vm, VmReport, Wanted};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::usage::{Metered, PastUsage, Used};

use super::state::State;
use super::vms::{offer_next, require_grant};
use super::volumes::released_by;
use super::{Case, Ruling, refuse};

pub(crate) fn report(state: &State, case: &Case<'_>, body: &ReportVm) -> Ruling {
    let Some(host) = state.host_of_agent(case.signer) else {
        let detail = "the signer is no agent of a host that has joined";
        return refuse(RefusalCode::AccountUnknown, detail);
    };
    let Some(vm) = state.vm(&body.vm) else {
        return refuse(RefusalCode::NotFound, format!("there is no VM {}", body.vm));
    };
    if vm.placement.host() != Some(host.id) {
        return refuse(RefusalCode::Conflict, "the VM is not placed on this host (any more)");
    }
    if body.generation != vm.generation {
        let detail =
            format!("generation {} reported, {} is wanted", body.generation, vm.generation);
        return refuse(RefusalCode::Conflict, detail);
    }
    match (body.phase, vm.placement.clone()) {
        (ReportPhase::Accepted, Placement::Accepted { .. }) => Ok(Vec::new()),
        (ReportPhase::Accepted, Placement::Offered { host, address, .. }) => {
            // Else use would begin after its end; the offer lapses, and goes to the next host.
            require_grant(state, case, &vm, &host)?;
            let placement = Placement::Accepted { host, address, position: case.cause.position };
            let accepted = Vm { placement, ..vm };
            Ok(vec![Effect::Vm(Box::new(reported(accepted, host, case, body)))])
        }
        (ReportPhase::Refused, Placement::Offered { .. }) => {
            Ok(vec![offer_next(state, case.looks, vm, case.now)?])
        }
        (ReportPhase::Refused, Placement::Accepted { .. }) => {
            refuse(RefusalCode::StateWrong, "the host has accepted the VM before")
        }
        (
            ReportPhase::Running
            | ReportPhase::Stopped
            | ReportPhase::Paused
            | ReportPhase::Degraded
            | ReportPhase::Deleted,
            Placement::Offered { .. },
        ) => refuse(RefusalCode::StateWrong, "the host has not accepted the VM"),
        (_, Placement::NoHost {} | Placement::Lost { .. }) => {
            refuse(RefusalCode::Conflict, "the VM is on no host")
        }
        (ReportPhase::Deleted, Placement::Accepted { .. }) if vm.wanted != Wanted::Deleted => {
            refuse(RefusalCode::StateWrong, "nobody asked for the VM to be deleted")
        }
        (
            ReportPhase::Running
            | ReportPhase::Stopped
            | ReportPhase::Paused
            | ReportPhase::Degraded
            | ReportPhase::Deleted,
            Placement::Accepted { host, .. },
        ) => {
            if is_known(&vm, body) {
                return Ok(Vec::new());
            }
            let released: Vec<_> = released_by(state, &vm, body).collect();
            let vm = reported(vm, host, case, body);
            let past = (body.phase == ReportPhase::Deleted).then(|| past_usage(state, host, &vm));
            Ok([Effect::Vm(Box::new(vm))].into_iter().chain(past).chain(released).collect())
        }
    }
}

/// The sum for the VM's account and host, with the VM that is gone.
pub(super) fn past_usage(state: &State, host: HostId, vm: &Vm) -> Effect {
    let past = state.past_usage.get(&(vm.account, host));
    let (vms, used) = past.map_or((0, Used::default()), |past| (past.vms, past.used));
    Effect::Usage(Box::new(PastUsage {
        account: vm.account,
        host,
        vms: vms.saturating_add(1),
        used: used.plus(&vm.meter.used),
    }))
}

/// What is paid for from this report on: a guest only while its host says that it runs and its
/// owner has not ordered it off.
fn metered(phase: ReportPhase, agreement: Agreement) -> Metered {
    match (phase, agreement) {
        (ReportPhase::Running, Agreement::WithOrder) => Metered::Guest,
        (ReportPhase::Paused, Agreement::WithOrder) => Metered::Paused,
        (ReportPhase::Deleted | ReportPhase::Refused, _) => Metered::Nothing,
        (
            ReportPhase::Running
            | ReportPhase::Paused
            | ReportPhase::Accepted
            | ReportPhase::Stopped
            | ReportPhase::Degraded,
            _,
        ) => Metered::Disk,
    }
}

fn is_known(vm: &Vm, body: &ReportVm) -> bool {
    let same_key = body.guest_host_key.is_none() || body.guest_host_key == vm.guest_host_key;
    vm.reported.as_ref().is_some_and(|known| {
        known.phase == body.phase
            && known.generation == body.generation
            && known.reason == body.reason
            && same_key
    })
}

fn reported(mut vm: Vm, host: HostId, case: &Case<'_>, body: &ReportVm) -> Vm {
    let agreement = match (body.phase, vm.wanted) {
        (ReportPhase::Running, Wanted::Stopped | Wanted::Paused | Wanted::Deleted)
        | (ReportPhase::Paused, Wanted::Stopped | Wanted::Deleted) => Agreement::AgainstOrder,
        _ => Agreement::WithOrder,
    };
    vm.meter = vm.meter.turned(metered(body.phase, agreement), &vm.size, case.now);
    vm.reported = Some(VmReport {
        host,
        generation: body.generation,
        phase: body.phase,
        reason: body.reason.clone(),
        cause: case.cause,
        agreement,
    });
    if let Some(key) = &body.guest_host_key {
        vm.guest_host_key = Some(key.clone());
    }
    vm
}
