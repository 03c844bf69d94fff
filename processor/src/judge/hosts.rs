//! `host.join`, `host.drain`, `host.resume`, `host.leave`, `host.rotate_ledger_key`: an operator
//! declares what his host offers, brings it, and takes it away.
//!
//! Owns who may declare it, what may change while VMs are placed there, and how a follower gets and
//! leaves its seat. Who votes is for `members` and `epochs`.

use dagger_payload::id::{Generation, HostId, OperatorId};
use dagger_payload::kind::{HostChange, HostJoin, HostRotateLedgerKey};
use dagger_payload::limits::PROPOSAL_LIFE_MS_MAX;
use dagger_payload::membership::{Change, Proposal, ProposalStanding};
use dagger_payload::object::{Effect, Host, HostDuty};
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::roster::{Seat, SeatStanding};

use super::epochs::{self, Draft, Seated, newest_seat, next_seat};
use super::members::{acting, is_of_account, is_of_member, require_few_proposals};
use super::state::{State, Usage};
use super::{Case, Ruling, refuse, require_generation};

pub(crate) fn join(state: &State, case: &Case<'_>, body: &HostJoin) -> Ruling {
    let known = state.roster.author_of(&body.ledger_key).and_then(|at| state.roster.seat(at));
    let seat = match known {
        Some(seat) => seated(state, case, body, seat)?,
        None => follower(state, case, body)?,
    };
    let id = seat.host;
    let own_agent = state.host_of_agent(&body.agent_key).is_some_and(|host| host.id == id);
    let is_taken = is_of_member(state, &body.agent_key) || is_of_account(state, &body.agent_key);
    let is_used = is_taken && !own_agent;
    if is_used || body.agent_key == body.ledger_key {
        return refuse(RefusalCode::Conflict, "agent_key: this key has another use in the cluster");
    }
    let old = state.hosts.get(&id);
    let moved = old.is_some_and(|old| old.guest_subnet != body.guest_subnet);
    if moved && state.used_on(&id).vms > 0 {
        return refuse(RefusalCode::StateWrong, "guest_subnet: VMs have addresses of the old one");
    }
    let remapped = old.and_then(|old| old.forward_ports_first).is_some()
        && old.is_some_and(|old| old.forward_ports_first != body.forward_ports_first);
    if remapped && state.used_on(&id).vms > 0 {
        return refuse(RefusalCode::StateWrong, "forward_ports_first: VMs have ports of the old");
    }
    let mut withdrawn = old.iter().flat_map(|old| &old.bridges);
    if withdrawn.any(|bridge| !body.bridges.contains(bridge)) && state.used_on(&id).vms > 0 {
        return refuse(RefusalCode::StateWrong, "bridges: VMs may be on one that would go");
    }
    let host = Host {
        id,
        name: body.name.clone(),
        operator: seat.operator,
        region: body.region.clone(),
        labels: body.labels.clone(),
        ledger_key: body.ledger_key.clone(),
        agent_key: body.agent_key.clone(),
        capacity: body.capacity,
        site: body.site.clone(),
        reserve: body.reserve,
        duty: old.map_or(HostDuty::Open, |old| old.duty),
        guest_subnet: body.guest_subnet,
        forward_ports_first: body.forward_ports_first,
        protocol_max: body.protocol_max,
        bridges: body.bridges.clone(),
        generation: old.map_or(Generation(1), |old| old.generation.next()),
        cause: case.cause,
    };
    let unchanged = old.is_some_and(|old| {
        let (generation, cause) = (old.generation, old.cause);
        *old == Host { generation, cause, ..host.clone() }
    });
    let seat = Some(seat).filter(|seat| known != Some(seat));
    if unchanged && seat.is_none() {
        return refuse(RefusalCode::AlreadyExists, "the host has declared exactly this before");
    }
    let seat = seat.map(|seat| Effect::Seat(Box::new(seat)));
    let host = (!unchanged).then(|| Effect::Host(Box::new(host)));
    Ok(seat.into_iter().chain(host).collect())
}

/// The seat of a member that declares itself, perhaps with another address.
fn seated(state: &State, case: &Case<'_>, body: &HostJoin, seat: &Seat) -> Result<Seat, Refusal> {
    if state.operator(case.signer) != Some(seat.operator) {
        let detail = format!("host {} is {}'s", seat.name, owner_name(state, &seat.operator));
        return refuse(RefusalCode::NotAuthorized, detail);
    }
    let newest = newest_seat(&state.roster, &seat.host).map(|newest| newest.index);
    if newest != Ok(seat.index) {
        let detail = "ledger_key: the host has left, or has another key";
        return refuse(RefusalCode::StateWrong, detail);
    }
    if body.name != seat.name {
        let detail = format!("name: this host is called {}", seat.name);
        return refuse(RefusalCode::Conflict, detail);
    }
    Ok(Seat { address: body.address.unwrap_or(seat.address), ..seat.clone() })
}

/// The seat of a host that comes.
fn follower(state: &State, case: &Case<'_>, body: &HostJoin) -> Result<Seat, Refusal> {
    let Some(address) = body.address else {
        let detail = "ledger_key: no member has this key: give the host's present one, or for a \
                      host that comes its address";
        return refuse(RefusalCode::NotFound, detail);
    };
    let operator = acting(state, case)?;
    if is_of_member(state, &body.ledger_key) || is_of_account(state, &body.ledger_key) {
        return refuse(
            RefusalCode::Conflict,
            "ledger_key: this key has another use in the cluster",
        );
    }
    if state.roster.present().any(|seat| seat.name == body.name) {
        return refuse(RefusalCode::NameTaken, format!("name: a host is called {}", body.name));
    }
    let index = next_seat(&state.roster, &operator, Seated::Follower)?;
    Ok(Seat {
        index,
        host: HostId::of(&body.ledger_key),
        name: body.name.clone(),
        operator,
        ledger_key: body.ledger_key.clone(),
        address,
        standing: SeatStanding::Present,
    })
}

/// VMs that the host carries stay where they are.
pub(crate) fn set_duty(
    state: &State,
    case: &Case<'_>,
    body: &HostChange,
    duty: HostDuty,
) -> Ruling {
    let Some(host) = state.present_host(&body.host) else {
        return refuse(RefusalCode::NotFound, format!("no host {} has joined", body.host));
    };
    require_own(state, case, &host.operator)?;
    require_generation(body.expected_generation, ("host", host.generation))?;
    if host.duty == duty {
        return Ok(Vec::new()); // it is as wished already
    }
    Ok(vec![with_duty(host, case, duty)])
}

/// The host's object stays, since usage and history name it; its seat stays empty for ever.
pub(crate) fn leave(state: &State, case: &Case<'_>, body: &HostChange) -> Ruling {
    let seat = newest_seat(&state.roster, &body.host)?;
    require_own(state, case, &seat.operator)?;
    let host = state.hosts.get(&body.host);
    // A host that has declared nothing is at none.
    let generation = host.map_or(Generation(0), |host| host.generation);
    require_generation(body.expected_generation, ("host", generation))?;
    if epochs::votes(state, &body.host, case.judged) {
        let detail = format!("host {} votes: let it be a follower first", seat.name);
        return refuse(RefusalCode::StateWrong, detail);
    }
    if state.used_on(&body.host) != Usage::default() {
        let detail = format!("host {} carries VMs or volumes", seat.name);
        return refuse(RefusalCode::StateWrong, detail);
    }
    let left = Seat { standing: SeatStanding::Left, ..seat.clone() };
    let host = host.map(|host| with_duty(host, case, HostDuty::Left));
    Ok([Effect::Seat(Box::new(left))].into_iter().chain(host).collect())
}

/// What a voter signs in this epoch it signs with the old key.
pub(crate) fn rotate_ledger_key(
    state: &State,
    case: &Case<'_>,
    body: &HostRotateLedgerKey,
) -> Ruling {
    let seat = newest_seat(&state.roster, &body.host)?;
    require_own(state, case, &seat.operator)?;
    let key = &body.new_ledger_key;
    if is_of_member(state, key) || is_of_account(state, key) {
        let detail = "new_ledger_key: this key has another use in the cluster";
        return refuse(RefusalCode::Conflict, detail);
    }
    let is_of_host =
        |change: &Change| matches!(change, Change::LedgerKey { host, .. } if *host == body.host);
    let is_waiting = state.proposals.values().any(|proposal| is_of_host(&proposal.change));
    let seats = state.roster.present().filter(|seat| seat.host == body.host);
    if is_waiting || seats.count() > 1 {
        let detail = "the host changes its key with the next epoch already";
        return refuse(RefusalCode::StateWrong, detail);
    }
    let change = Change::LedgerKey { host: body.host, key: key.clone() };
    if epochs::votes(state, &body.host, case.judged) {
        Draft::planned(state).take(state, &change)?;
        require_few_proposals(state, &seat.operator)?;
        return Ok(vec![Effect::Proposal(Box::new(Proposal {
            id: case.cause.digest,
            proposer: seat.operator,
            change,
            approvals: vec![seat.operator],
            standing: ProposalStanding::Passed,
            expires: case.now.plus_ms(PROPOSAL_LIFE_MS_MAX),
            cause: case.cause,
        }))]);
    }
    let mut draft = Draft::decided(state);
    draft.take(state, &change)?;
    let host = state.hosts.get(&body.host).map(|host| epochs::with_key(host, key, case.cause));
    Ok(draft.seats_since(&state.roster).into_iter().chain(host).collect())
}

fn owner_name(state: &State, owner: &OperatorId) -> String {
    let known = state.operators.get(owner);
    known.map_or_else(|| format!("operator {owner}"), |owner| format!("operator {}", owner.name))
}

fn require_own(state: &State, case: &Case<'_>, owner: &OperatorId) -> Result<(), Refusal> {
    if state.operator(case.signer) != Some(*owner) {
        let detail = format!("the host is {}'s", owner_name(state, owner));
        return refuse(RefusalCode::NotAuthorized, detail);
    }
    Ok(())
}

fn with_duty(host: &Host, case: &Case<'_>, duty: HostDuty) -> Effect {
    let generation = host.generation.next();
    Effect::Host(Box::new(Host { duty, generation, cause: case.cause, ..host.clone() }))
}
