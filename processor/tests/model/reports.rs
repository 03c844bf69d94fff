//! `report.*` in the model.

use dagger_payload::id::{Generation, LedgerTime, VmId};
use dagger_payload::kind::{Body, Capacity, ReportPhase, ReportVm};
use dagger_payload::object::{Agreement, Effect, Placement, VmReport, Wanted};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::usage::{Meter, Metered, PastUsage, Used};

use super::kinds::{Kind, of_kind};
use super::people::{Person, Scene};
use super::random::Random;
use super::state::{Asked, Model, Ruling};
use super::vms::{offer_next, require_grant};
use super::volumes::released;

pub(crate) const KINDS: &[Kind] =
    &[Kind { name: "report.vm", weight: 40, draw: draw_report, judge: judge_report }];

fn draw_report(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let vms = &scene.model.vms;
    let mut who = Person::any(random);
    let (mut vm, mut generation) = (VmId([9; 16]), Generation(1));
    let mut likely = ReportPhase::Accepted;
    if !vms.is_empty() && random.happens(980) {
        let drawn = &vms[random.index(vms.len())];
        (vm, generation) = (drawn.id, drawn.generation);
        let host = drawn.placement.host().and_then(|host| scene.model.host(host));
        let agent = host.and_then(|host| scene.who(&host.agent_key));
        who = agent.filter(|_| random.happens(950)).unwrap_or(who);
        likely = match (&drawn.placement, drawn.wanted) {
            (Placement::Offered { .. } | Placement::NoHost {} | Placement::Lost { .. }, _) => {
                ReportPhase::Accepted
            }
            (Placement::Accepted { .. }, Wanted::Running) => ReportPhase::Running,
            (Placement::Accepted { .. }, Wanted::Stopped) => ReportPhase::Stopped,
            (Placement::Accepted { .. }, Wanted::Paused) => ReportPhase::Paused,
            (Placement::Accepted { .. }, Wanted::Deleted) => ReportPhase::Deleted,
        };
    }
    let any = random.of(&[
        ReportPhase::Accepted,
        ReportPhase::Refused,
        ReportPhase::Running,
        ReportPhase::Stopped,
        ReportPhase::Paused,
        ReportPhase::Degraded,
        ReportPhase::Deleted,
    ]);
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
    let body = ReportVm {
        vm,
        generation: if random.happens(950) { generation } else { Generation(generation.0 + 1) },
        phase: if random.happens(600) { likely } else { any },
        reason: random.happens(100).then(|| "because".to_owned()),
        guest_host_key: random.happens(100).then(|| key.parse().expect("a key line")),
    };
    (who, Body::ReportVm(body))
}

fn judge_report(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, ReportVm);
    let host = model.host_of_agent(asked.signer);
    let host = host.ok_or(RefusalCode::AccountUnknown)?.id;
    let mut vm = model.vm(body.vm).ok_or(RefusalCode::NotFound)?.clone();
    if vm.placement.host() != Some(host) || vm.generation != body.generation {
        return Err(RefusalCode::Conflict);
    }
    let report = VmReport {
        host,
        generation: body.generation,
        phase: body.phase,
        reason: body.reason.clone(),
        cause: asked.cause,
        agreement: agreement(body.phase, vm.wanted),
    };
    let is_offered = matches!(vm.placement, Placement::Offered { .. });
    match body.phase {
        ReportPhase::Refused if is_offered => return Ok(vec![offer_next(model, &vm)?]),
        ReportPhase::Refused => return Err(RefusalCode::StateWrong),
        ReportPhase::Accepted if !is_offered => return Ok(Vec::new()),
        ReportPhase::Accepted => {
            require_grant(model, &vm, host)?;
            let (address, position) = (vm.placement.address(), asked.cause.position);
            let address = address.expect("an offer has one");
            vm.placement = Placement::Accepted { host, address, position };
        }
        _ if is_offered => return Err(RefusalCode::StateWrong),
        ReportPhase::Deleted if vm.wanted != Wanted::Deleted => {
            return Err(RefusalCode::StateWrong);
        }
        ReportPhase::Running
        | ReportPhase::Stopped
        | ReportPhase::Paused
        | ReportPhase::Degraded
        | ReportPhase::Deleted => {
            let says = |report: &VmReport| (report.phase, report.generation, report.reason.clone());
            let is_same = vm.reported.as_ref().map(says) == Some(says(&report));
            let new_key = body.guest_host_key.is_some() && body.guest_host_key != vm.guest_host_key;
            if is_same && !new_key {
                return Ok(Vec::new());
            }
        }
    }
    vm.meter = read(&vm.meter, &vm.size, model.now);
    vm.meter.counts = match body.phase {
        ReportPhase::Deleted => Metered::Nothing,
        ReportPhase::Running if report.agreement == Agreement::WithOrder => Metered::Guest,
        ReportPhase::Paused if report.agreement == Agreement::WithOrder => Metered::Paused,
        _ => Metered::Disk,
    };
    vm.reported = Some(report);
    vm.guest_host_key = body.guest_host_key.clone().or(vm.guest_host_key);
    let mut effects = vec![Effect::Vm(Box::new(vm.clone()))];
    if body.phase == ReportPhase::Deleted {
        let is_it = |past: &&PastUsage| (past.account, past.host) == (vm.account, host);
        let mut past = model.past_usage.iter().find(is_it).cloned().unwrap_or(PastUsage {
            account: vm.account,
            host,
            vms: 0,
            used: Used::default(),
        });
        past.vms += 1;
        past.used.cpu_ms += vm.meter.used.cpu_ms;
        past.used.memory_mib_ms += vm.meter.used.memory_mib_ms;
        past.used.disk_gib_ms += vm.meter.used.disk_gib_ms;
        effects.push(Effect::Usage(Box::new(past)));
    }
    effects.extend(released(model, vm.id, body.phase));
    Ok(effects)
}

/// In memory is fine for what is to run or to pause, running only for what is to run; off is never
/// against the order.
fn agreement(phase: ReportPhase, wanted: Wanted) -> Agreement {
    match (phase, wanted) {
        (ReportPhase::Running, Wanted::Running) => Agreement::WithOrder,
        (ReportPhase::Running, _) => Agreement::AgainstOrder,
        (ReportPhase::Paused, Wanted::Running | Wanted::Paused) => Agreement::WithOrder,
        (ReportPhase::Paused, _) => Agreement::AgainstOrder,
        _ => Agreement::WithOrder,
    }
}

/// The meter as it stands now, of a VM of this size.
pub(crate) fn read(meter: &Meter, size: &Capacity, now: LedgerTime) -> Meter {
    let mut meter = *meter;
    let ms = now.0 - meter.since.0;
    if meter.counts == Metered::Guest {
        meter.used.cpu_ms += u64::from(size.cpus) * ms;
    }
    if meter.counts == Metered::Guest || meter.counts == Metered::Paused {
        meter.used.memory_mib_ms += size.memory_mib * ms;
    }
    if meter.counts != Metered::Nothing {
        meter.used.disk_gib_ms += size.disk_gib * ms;
    }
    meter.since = now;
    meter
}
