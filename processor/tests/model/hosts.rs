//! `host.*` in the model.

use dagger_payload::id::{AuthorIndex, Generation, HostId, ProtocolVersion};
use dagger_payload::kind::{
    Body, Capacity, GuestSubnet, HostChange, HostJoin, HostRotateLedgerKey,
};
use dagger_payload::membership::{Change, Proposal, ProposalStanding};
use dagger_payload::name::Name;
use dagger_payload::object::{Effect, Host, HostDuty};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::roster::{Seat, SeatStanding};

use super::kinds::{Kind, of_kind};
use super::members::{
    Plan, as_effect, count_seats, is_account_key, is_member_key, require_few, with_key,
};
use super::networks::draw_bridges;
use super::people::{Person, Scene};
use super::random::Random;
use super::state::{Asked, Model, Ruling, require_generation};
use super::volumes::draw_expected;

pub(crate) const KINDS: &[Kind] = &[
    Kind { name: "host.join", weight: 4, draw: draw_join, judge: judge_join },
    Kind { name: "host.drain", weight: 1, draw: draw_drain, judge: judge_drain },
    Kind { name: "host.resume", weight: 3, draw: draw_resume, judge: judge_resume },
    Kind { name: "host.leave", weight: 2, draw: draw_leave, judge: judge_leave },
    Kind { name: "host.rotate_ledger_key", weight: 1, draw: draw_rotate, judge: judge_rotate },
];

/// More followers than that come seldom.
const SEATED: usize = 9;

/// A seat on which somebody sits.
fn draw_seat<'s>(scene: &'s Scene, random: &mut Random) -> &'s Seat {
    let seats: Vec<_> = scene.model.present_seats().collect();
    seats[random.index(seats.len())]
}

fn draw_join(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let seat = draw_seat(scene, random);
    let seats = scene.model.present_seats().count();
    let comes = random.happens(if seats < SEATED { 250 } else { 30 });
    let number = scene.model.seats.len();
    let known = scene.model.host(seat.host);
    let ledger = if comes { scene.key(scene.fresh(random)) } else { seat.ledger_key.clone() };
    let ledger = if random.happens(970) { ledger } else { scene.key(Person::any(random)) };
    let own = known.filter(|_| !comes).map(|host| host.agent_key.clone());
    let agent = own.unwrap_or_else(|| scene.key(Person::Agent(random.index(16))));
    let agent = if random.happens(950) { agent } else { scene.key(Person::any(random)) };
    let called = if comes { format!("host{number}") } else { seat.name.to_string() };
    let called = if random.happens(970) { called } else { format!("host{}", random.index(4)) };
    let label = [("disk".parse().expect("a name"), "nvme".parse().expect("a label"))].into();
    let newest = scene.model.newest_epoch().protocol;
    let address = format!("192.0.2.{}:7400", random.below(3)).parse().expect("an address");
    let body = HostJoin {
        ledger_key: ledger,
        address: random.happens(if comes { 950 } else { 100 }).then_some(address),
        agent_key: agent,
        name: called.parse().expect("a name"),
        region: random.of(&["east", "east", "west"]).parse().expect("a name"),
        site: random
            .of(&[None, Some("hall-1"), Some("hall-2")])
            .map(|site| site.parse().expect("a name")),
        capacity: Capacity {
            cpus: random.of(&[4, 16, 64]),
            memory_mib: random.of(&[4096, 16_384]),
            disk_gib: random.of(&[100, 1000]),
        },
        reserve: random
            .of(&[Capacity::default(), Capacity { cpus: 1, memory_mib: 512, disk_gib: 10 }]),
        guest_subnet: GuestSubnet {
            network: [10, seat.index.0.to_be_bytes()[1], 0, 0].into(),
            prefix_length: random.of(&[29, 28]),
        },
        labels: random.of(&[Default::default(), label]),
        forward_ports_first: random.of(&[None, Some(20_000), Some(20_000), Some(30_000)]),
        protocol_max: random.of(&[None, Some(newest.next()), Some(ProtocolVersion(99))]),
        bridges: draw_bridges(random),
    };
    let who = if comes { scene.operator_mostly(random) } else { scene.owner_mostly(seat, random) };
    (who, Body::HostJoin(Box::new(body)))
}

fn judge_join(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, HostJoin);
    let known = model.seats.iter().find(|seat| seat.ledger_key == body.ledger_key);
    let mut seat = match known {
        Some(seat) => seat.clone(),
        None => newcomer(model, asked, body)?,
    };
    let id = seat.host;
    if known.is_some() {
        if model.operator(asked.signer) != Some(seat.operator) {
            return Err(RefusalCode::NotAuthorized);
        }
        let is_newest = model.newest_seat(id).map(|newest| newest.index) == Some(seat.index);
        if !is_newest {
            return Err(RefusalCode::StateWrong);
        }
        seat.address = body.address.unwrap_or(seat.address);
    }
    let is_own = model.host_of_agent(&body.agent_key).is_some_and(|host| host.id == id);
    let is_taken = is_member_key(model, &body.agent_key) || is_account_key(model, &body.agent_key);
    let is_used = !is_own && is_taken;
    if seat.name != body.name || is_used || body.agent_key == body.ledger_key {
        return Err(RefusalCode::Conflict);
    }
    let old = model.host(id);
    let carries = model.vms.iter().any(|vm| vm.placement.host() == Some(id));
    if carries && old.is_some_and(|old| old.guest_subnet != body.guest_subnet) {
        return Err(RefusalCode::StateWrong);
    }
    let ports = old.and_then(|old| old.forward_ports_first);
    if carries && ports.is_some() && ports != body.forward_ports_first {
        return Err(RefusalCode::StateWrong);
    }
    let goes = |bridge: &Name| !body.bridges.iter().any(|kept| kept == bridge);
    if carries && old.is_some_and(|old| old.bridges.iter().any(goes)) {
        return Err(RefusalCode::StateWrong);
    }
    let mut host = Host {
        id,
        name: body.name.clone(),
        operator: seat.operator,
        region: body.region.clone(),
        labels: body.labels.clone(),
        ledger_key: body.ledger_key.clone(),
        agent_key: body.agent_key.clone(),
        capacity: body.capacity,
        guest_subnet: body.guest_subnet,
        forward_ports_first: body.forward_ports_first,
        protocol_max: body.protocol_max,
        bridges: body.bridges.clone(),
        generation: old.map_or(Generation(0), |old| old.generation),
        cause: old.map_or(asked.cause, |old| old.cause),
        site: body.site.clone(),
        reserve: body.reserve,
        duty: old.map_or(HostDuty::Open, |old| old.duty),
    };
    let mut effects = Vec::new();
    if known != Some(&seat) {
        effects.push(Effect::Seat(Box::new(seat)));
    }
    if old != Some(&host) {
        host.generation = Generation(host.generation.0 + 1);
        host.cause = asked.cause;
        effects.push(Effect::Host(Box::new(host)));
    }
    if effects.is_empty() { Err(RefusalCode::AlreadyExists) } else { Ok(effects) }
}

fn newcomer(model: &Model, asked: &Asked<'_>, body: &HostJoin) -> Result<Seat, RefusalCode> {
    let address = body.address.ok_or(RefusalCode::NotFound)?;
    let operator = model.operator(asked.signer).ok_or(RefusalCode::NotAuthorized)?;
    if is_member_key(model, &body.ledger_key) || is_account_key(model, &body.ledger_key) {
        return Err(RefusalCode::Conflict);
    }
    if model.present_seats().any(|seat| seat.name == body.name) {
        return Err(RefusalCode::NameTaken);
    }
    // The last seats are for new keys of voters.
    if count_seats(&model.seats, operator) >= 48 || model.seats.len() >= 1008 {
        return Err(RefusalCode::LimitExceeded);
    }
    Ok(Seat {
        index: AuthorIndex(u16::try_from(model.seats.len()).expect("few")),
        host: HostId::of(&body.ledger_key),
        name: body.name.clone(),
        operator,
        ledger_key: body.ledger_key.clone(),
        address,
        standing: SeatStanding::Present,
    })
}

fn draw_drain(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, host) = draw_change(scene, random);
    (who, Body::HostDrain(change_of(scene, host, random)))
}

fn draw_resume(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, host) = draw_change(scene, random);
    (who, Body::HostResume(change_of(scene, host, random)))
}

fn draw_leave(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, host) = draw_change(scene, random);
    // Founders stay: the draws of other kinds name them.
    let is_founder = scene.model.seats.iter().any(|seat| seat.host == host && seat.index.0 < 4);
    let host = if is_founder && !scene.model.votes(host) { HostId([8; 16]) } else { host };
    (who, Body::HostLeave(change_of(scene, host, random)))
}

fn change_of(scene: &Scene, host: HostId, random: &mut Random) -> HostChange {
    let generation = scene.model.host(host).map(|host| host.generation);
    HostChange { host, expected_generation: draw_expected(generation, random) }
}

fn draw_rotate(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, host) = draw_change(scene, random);
    let key = if random.happens(900) { scene.fresh(random) } else { Person::any(random) };
    let body = HostRotateLedgerKey { host, new_ledger_key: scene.key(key) };
    (who, Body::HostRotateLedgerKey(body))
}

fn draw_change(scene: &Scene, random: &mut Random) -> (Person, HostId) {
    let seat = draw_seat(scene, random);
    let gone = scene.model.seats.iter().find(|seat| seat.standing == SeatStanding::Left);
    let host = gone.filter(|_| random.happens(30)).map_or(seat.host, |gone| gone.host);
    (scene.owner_mostly(seat, random), host)
}

fn judge_drain(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    judge_change(model, asked, of_kind!(body, HostDrain), HostDuty::Draining)
}

fn judge_resume(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    judge_change(model, asked, of_kind!(body, HostResume), HostDuty::Open)
}

fn judge_change(model: &Model, asked: &Asked<'_>, body: &HostChange, duty: HostDuty) -> Ruling {
    let host = model.host(body.host).filter(|host| host.duty != HostDuty::Left);
    let host = host.ok_or(RefusalCode::NotFound)?;
    if model.operator(asked.signer) != Some(host.operator) {
        return Err(RefusalCode::NotAuthorized);
    }
    require_generation(body.expected_generation, host.generation)?;
    if host.duty == duty {
        return Ok(Vec::new());
    }
    Ok(vec![with_duty(host, asked, duty)])
}

fn with_duty(host: &Host, asked: &Asked<'_>, duty: HostDuty) -> Effect {
    let mut host = host.clone();
    host.duty = duty;
    host.generation = Generation(host.generation.0 + 1);
    host.cause = asked.cause;
    Effect::Host(Box::new(host))
}

/// The host's newest seat, for its operator.
fn owned<'m>(model: &'m Model, asked: &Asked<'_>, host: HostId) -> Result<&'m Seat, RefusalCode> {
    let seat = model.newest_seat(host).ok_or(RefusalCode::NotFound)?;
    let is_own = model.operator(asked.signer) == Some(seat.operator);
    if is_own { Ok(seat) } else { Err(RefusalCode::NotAuthorized) }
}

fn judge_leave(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, HostLeave);
    let id = body.host;
    let mut seat = owned(model, asked, id)?.clone();
    let generation = model.host(id).map_or(Generation(0), |host| host.generation);
    require_generation(body.expected_generation, generation)?;
    let carries = model.vms.iter().any(|vm| vm.placement.host() == Some(id))
        || model.volumes.iter().any(|volume| volume.host == id);
    if model.votes(id) || carries {
        return Err(RefusalCode::StateWrong);
    }
    seat.standing = SeatStanding::Left;
    let mut effects = vec![Effect::Seat(Box::new(seat))];
    effects.extend(model.host(id).map(|host| with_duty(host, asked, HostDuty::Left)));
    Ok(effects)
}

fn judge_rotate(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, HostRotateLedgerKey);
    let seat = owned(model, asked, body.host)?;
    let key = &body.new_ledger_key;
    if is_member_key(model, key) || is_account_key(model, key) {
        return Err(RefusalCode::Conflict);
    }
    let waits = model.proposals.iter().any(|proposal| match &proposal.change {
        Change::LedgerKey { host, .. } => *host == body.host,
        _ => false,
    });
    if waits || model.present_seats().filter(|seat| seat.host == body.host).count() > 1 {
        return Err(RefusalCode::StateWrong);
    }
    let change = Change::LedgerKey { host: body.host, key: key.clone() };
    if model.votes(body.host) {
        Plan::planned(model).with(model, &change)?;
        require_few(model, seat.operator)?;
        return Ok(vec![as_effect(Proposal {
            id: asked.cause.digest,
            proposer: seat.operator,
            change,
            approvals: vec![seat.operator],
            standing: ProposalStanding::Passed,
            expires: model.now.plus_ms(30 * 24 * 60 * 60 * 1000),
            cause: asked.cause,
        })]);
    }
    let plan = Plan::decided(model).with(model, &change)?;
    let moved = plan.seats.into_iter().filter(|seat| !model.seats.contains(seat));
    let mut effects: Vec<_> = moved.map(|seat| Effect::Seat(Box::new(seat))).collect();
    effects.extend(model.host(body.host).map(|host| with_key(host, key, asked.cause)));
    Ok(effects)
}
