//! `host.join`, `host.drain`, `host.resume`: an operator declares what his host offers, and when
//! it takes no new VMs.
//!
//! Owns who may declare it and what may change while VMs are placed there.

use dagger_payload::id::{Generation, HostId};
use dagger_payload::kind::{HostChange, HostJoin};
use dagger_payload::object::{Effect, Host, HostDuty};
use dagger_payload::refusal::RefusalCode;

use super::state::State;
use super::{Case, Ruling, refuse};

pub(crate) fn join(state: &State, case: &Case<'_>, body: &HostJoin) -> Ruling {
    let member = state.genesis.hosts.iter().find(|host| host.ledger_key == body.ledger_key);
    let Some(member) = member else {
        return refuse(RefusalCode::NotFound, "ledger_key: no member of this cluster has this key");
    };
    let operators = &state.genesis.operators;
    let owner = operators.iter().find(|operator| operator.name == member.operator);
    let Some(owner) = owner.filter(|owner| owner.key == *case.signer) else {
        let detail = format!("host {} belongs to operator {}", member.name, member.operator);
        return refuse(RefusalCode::NotAuthorized, detail);
    };
    if body.name != member.name {
        let detail = format!("name: the genesis calls this host {}", member.name);
        return refuse(RefusalCode::Conflict, detail);
    }
    let id = HostId::of(&body.ledger_key);
    let other = state.host_of_agent(&body.agent_key).is_some_and(|host| host.id != id);
    let is_ledger_key = state.genesis.author_of(&body.agent_key).is_some();
    if other || is_ledger_key || state.operator(&body.agent_key).is_some() {
        return refuse(RefusalCode::Conflict, "agent_key: this key has another use in the cluster");
    }
    let old = state.hosts.get(&id);
    let moved = old.is_some_and(|old| old.guest_subnet != body.guest_subnet);
    if moved && state.used_on(&id).vms > 0 {
        return refuse(RefusalCode::StateWrong, "guest_subnet: VMs have addresses of the old one");
    }
    let host = Host {
        id,
        name: body.name.clone(),
        operator: owner.id(),
        region: body.region.clone(),
        labels: body.labels.clone(),
        ledger_key: body.ledger_key.clone(),
        agent_key: body.agent_key.clone(),
        capacity: body.capacity,
        site: body.site.clone(),
        reserve: body.reserve,
        duty: old.map_or(HostDuty::Open, |old| old.duty),
        guest_subnet: body.guest_subnet,
        generation: old.map_or(Generation(1), |old| old.generation.next()),
        cause: case.cause,
    };
    let unchanged = old.is_some_and(|old| {
        let (generation, cause) = (old.generation, old.cause);
        *old == Host { generation, cause, ..host.clone() }
    });
    if unchanged {
        return refuse(RefusalCode::AlreadyExists, "the host has declared exactly this before");
    }
    Ok(vec![Effect::Host(Box::new(host))])
}

/// VMs that the host carries stay where they are.
pub(crate) fn set_duty(
    state: &State,
    case: &Case<'_>,
    body: &HostChange,
    duty: HostDuty,
) -> Ruling {
    let Some(host) = state.hosts.get(&body.host) else {
        return refuse(RefusalCode::NotFound, format!("no host {} has joined", body.host));
    };
    if state.operator(case.signer) != Some(host.operator) {
        let detail = format!("host {} belongs to another operator", host.name);
        return refuse(RefusalCode::NotAuthorized, detail);
    }
    if host.duty == duty {
        return Ok(Vec::new()); // it is as wished already
    }
    let generation = host.generation.next();
    let host = Host { duty, generation, cause: case.cause, ..host.clone() };
    Ok(vec![Effect::Host(Box::new(host))])
}
