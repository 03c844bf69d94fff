//! `report.vm`: what the placed host says, signed with its agent key.
//!
//! Owns which report counts when. A host acts only on its own ordered acceptance; a report about an
//! old generation or by another host changes nothing.

use dagger_payload::id::HostId;
use dagger_payload::kind::{ReportPhase, ReportVm};
use dagger_payload::object::{Effect, Placement, Vm, VmReport, Wanted};
use dagger_payload::refusal::RefusalCode;

use super::state::State;
use super::vms::offer_next;
use super::{Case, Ruling, refuse};

pub(crate) fn report(state: &State, case: &Case<'_>, body: &ReportVm) -> Ruling {
    let Some(host) = state.host_of_agent(case.signer) else {
        let detail = "the signer is no agent of a host that has joined";
        return refuse(RefusalCode::AccountUnknown, detail);
    };
    let Some(vm) = state.vms.get(&body.vm) else {
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
    match (body.phase, &vm.placement) {
        (ReportPhase::Accepted, Placement::Accepted { .. }) => Ok(Vec::new()),
        (ReportPhase::Accepted, Placement::Offered { host, address, .. }) => {
            let placement = Placement::Accepted {
                host: *host,
                address: *address,
                position: case.cause.position,
            };
            let accepted = Vm { placement, ..vm.clone() };
            Ok(vec![Effect::Vm(Box::new(reported(accepted, *host, case, body)))])
        }
        (ReportPhase::Refused, Placement::Offered { .. }) => {
            Ok(vec![offer_next(state, vm, case.now)])
        }
        (ReportPhase::Refused, Placement::Accepted { .. }) => {
            refuse(RefusalCode::StateWrong, "the host has accepted the VM before")
        }
        (
            ReportPhase::Running
            | ReportPhase::Stopped
            | ReportPhase::Degraded
            | ReportPhase::Deleted,
            Placement::Offered { .. },
        ) => refuse(RefusalCode::StateWrong, "the host has not accepted the VM"),
        (_, Placement::NoHost {}) => refuse(RefusalCode::Conflict, "the VM is on no host"),
        (ReportPhase::Deleted, Placement::Accepted { .. }) if vm.wanted != Wanted::Deleted => {
            refuse(RefusalCode::StateWrong, "nobody asked for the VM to be deleted")
        }
        (
            ReportPhase::Running
            | ReportPhase::Stopped
            | ReportPhase::Degraded
            | ReportPhase::Deleted,
            Placement::Accepted { host, .. },
        ) => {
            if is_known(vm, body) {
                return Ok(Vec::new());
            }
            Ok(vec![Effect::Vm(Box::new(reported(vm.clone(), *host, case, body)))])
        }
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
    vm.reported = Some(VmReport {
        host,
        generation: body.generation,
        phase: body.phase,
        reason: body.reason.clone(),
        cause: case.cause,
    });
    if let Some(key) = &body.guest_host_key {
        vm.guest_host_key = Some(key.clone());
    }
    vm
}
