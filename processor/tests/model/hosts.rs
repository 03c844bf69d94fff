//! `host.*` in the model.

use dagger_payload::id::{Generation, HostId};
use dagger_payload::kind::{Body, Capacity, GuestSubnet, HostChange, HostJoin};
use dagger_payload::object::{Effect, Host, HostDuty};
use dagger_payload::refusal::RefusalCode;

use super::kinds::{Kind, of_kind};
use super::people::{Person, Scene};
use super::random::Random;
use super::state::{Asked, Model, Ruling};

pub(crate) const KINDS: &[Kind] = &[
    Kind { name: "host.join", weight: 4, draw: draw_join, judge: judge_join },
    Kind { name: "host.drain", weight: 1, draw: draw_drain, judge: judge_drain },
    Kind { name: "host.resume", weight: 3, draw: draw_resume, judge: judge_resume },
];

/// Hosts 0 and 3 belong to operator 0, 1 to 1, 2 to 2.
fn owner_mostly(host: usize, random: &mut Random) -> Person {
    if random.happens(900) { Person::Operator(host % 3) } else { Person::any(random) }
}

fn draw_join(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let host = random.index(4);
    let ledger = if random.happens(970) { Person::Ledger(host) } else { Person::any(random) };
    let agent = if random.happens(950) { Person::Agent(host) } else { Person::any(random) };
    let called = if random.happens(970) { host } else { random.index(4) };
    let label = [("disk".parse().expect("a name"), "nvme".parse().expect("a label"))].into();
    let body = HostJoin {
        ledger_key: scene.key(ledger),
        address: None,
        agent_key: scene.key(agent),
        name: format!("host{called}").parse().expect("a name"),
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
            network: [10, u8::try_from(host).expect("few"), 0, 0].into(),
            prefix_length: random.of(&[29, 28]),
        },
        labels: random.of(&[Default::default(), label]),
    };
    (owner_mostly(host, random), Body::HostJoin(Box::new(body)))
}

fn judge_join(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, HostJoin);
    let members = &model.genesis.hosts;
    let member = members.iter().find(|member| member.ledger_key == body.ledger_key);
    let member = member.ok_or(RefusalCode::NotFound)?;
    let operators = &model.genesis.operators;
    let owner = operators.iter().find(|operator| operator.name == member.operator);
    let owner = owner.expect("each host has one");
    if owner.key != *asked.signer {
        return Err(RefusalCode::NotAuthorized);
    }
    let id = HostId::of(&body.ledger_key);
    let is_used = members.iter().any(|member| member.ledger_key == body.agent_key)
        || operators.iter().any(|operator| operator.key == body.agent_key)
        || model.hosts.iter().any(|host| host.id != id && host.agent_key == body.agent_key);
    if member.name != body.name || is_used {
        return Err(RefusalCode::Conflict);
    }
    let old = model.host(id);
    let carries = model.vms.iter().any(|vm| vm.placement.host() == Some(id));
    if carries && old.is_some_and(|old| old.guest_subnet != body.guest_subnet) {
        return Err(RefusalCode::StateWrong);
    }
    let mut host = Host {
        id,
        name: body.name.clone(),
        operator: owner.id(),
        region: body.region.clone(),
        labels: body.labels.clone(),
        ledger_key: body.ledger_key.clone(),
        agent_key: body.agent_key.clone(),
        capacity: body.capacity,
        guest_subnet: body.guest_subnet,
        generation: old.map_or(Generation(0), |old| old.generation),
        cause: old.map_or(asked.cause, |old| old.cause),
        site: body.site.clone(),
        reserve: body.reserve,
        duty: old.map_or(HostDuty::Open, |old| old.duty),
    };
    if old == Some(&host) {
        return Err(RefusalCode::AlreadyExists);
    }
    host.generation = Generation(host.generation.0 + 1);
    host.cause = asked.cause;
    Ok(vec![Effect::Host(Box::new(host))])
}

fn draw_drain(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, host) = draw_change(scene, random);
    (who, Body::HostDrain(HostChange { host }))
}

fn draw_resume(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, host) = draw_change(scene, random);
    (who, Body::HostResume(HostChange { host }))
}

fn draw_change(scene: &Scene, random: &mut Random) -> (Person, HostId) {
    let host = random.index(4);
    let host_id = HostId::of(&scene.key(Person::Ledger(host)));
    (owner_mostly(host, random), host_id)
}

fn judge_drain(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    judge_change(model, asked, of_kind!(body, HostDrain), HostDuty::Draining)
}

fn judge_resume(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    judge_change(model, asked, of_kind!(body, HostResume), HostDuty::Open)
}

fn judge_change(model: &Model, asked: &Asked<'_>, body: &HostChange, duty: HostDuty) -> Ruling {
    let mut host = model.host(body.host).ok_or(RefusalCode::NotFound)?.clone();
    if model.operator(asked.signer) != Some(host.operator) {
        return Err(RefusalCode::NotAuthorized);
    }
    if host.duty == duty {
        return Ok(Vec::new());
    }
    host.duty = duty;
    host.generation = Generation(host.generation.0 + 1);
    host.cause = asked.cause;
    Ok(vec![Effect::Host(Box::new(host))])
}
