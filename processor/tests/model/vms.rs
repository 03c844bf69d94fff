//! `vm.*` in the model, and the way of an offer from host to host.

use dagger_payload::id::{Generation, HostId, VmId};
use dagger_payload::kind::{
    Apart, ApartBy, ApartStrength, Body, Protection, ReportPhase, RestartPolicy, StopManner,
    VmChange, VmCreate, VmProtect, VmResize, VmStop,
};
use dagger_payload::name::Labels;
use dagger_payload::object::{Effect, Placement, Vm, Wanted};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::usage::Meter;

use super::boot::{draw_boot, draw_image, fits_in_half, judge_images};
use super::eviction::past;
use super::kinds::{Kind, of_kind};
use super::looks;
use super::networks::draw_cards;
use super::people::{Person, Scene};
use super::placement::{place, require_room};
use super::random::Random;
use super::reports::read;
use super::state::{Asked, Model, Ruling};

pub(crate) const KINDS: &[Kind] = &[
    Kind { name: "vm.create", weight: 20, draw: draw_create, judge: judge_create },
    Kind { name: "vm.start", weight: 6, draw: draw_start, judge: judge_start },
    Kind { name: "vm.stop", weight: 6, draw: draw_stop, judge: judge_stop },
    Kind { name: "vm.pause", weight: 4, draw: draw_pause, judge: judge_pause },
    Kind { name: "vm.resume", weight: 4, draw: draw_resume, judge: judge_resume },
    Kind { name: "vm.reboot", weight: 3, draw: draw_reboot, judge: judge_reboot },
    Kind { name: "vm.resize", weight: 6, draw: draw_resize, judge: judge_resize },
    Kind { name: "vm.protect", weight: 4, draw: draw_protect, judge: judge_protect },
    Kind { name: "vm.delete", weight: 8, draw: draw_delete, judge: judge_delete },
];

fn draw_labels(random: &mut Random) -> Labels {
    let value = random.of(&["web", "store"]).parse().expect("a label");
    let label = [("role".parse().expect("a name"), value)].into();
    random.of(&[Labels::new(), label])
}

fn draw_apart(random: &mut Random) -> Vec<Apart> {
    let from = draw_labels(random);
    if from.is_empty() || random.happens(500) {
        return Vec::new();
    }
    let by = random.of(&[ApartBy::Host, ApartBy::Operator, ApartBy::Site]);
    let strength = random.of(&[ApartStrength::Required, ApartStrength::Preferred]);
    vec![Apart { from, by, strength }]
}

/// A VM that would be made gets a wish, so that other VMs are looked at for it.
pub(crate) fn keep_apart(body: &mut Body, random: &mut Random) {
    let Body::VmCreate(body) = body else { return };
    while body.apart.is_empty() {
        body.apart = draw_apart(random);
    }
}

fn draw_create(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let nvme = [("disk".parse().expect("a name"), "nvme".parse().expect("a label"))].into();
    let pinned = scene.host(random);
    let memory_mib = random.of(&[128, 512, 2048]);
    let (network, more_cards) = draw_cards(random);
    let body = VmCreate {
        name: format!("vm{}", random.below(12)).parse().expect("a name"),
        image: draw_image(scene, random),
        cpus: random.of(&[1, 1, 2, 4]),
        memory_mib,
        disk_gib: random.of(&[1, 5, 50]),
        ssh_keys: Vec::new(),
        region: random.happens(200).then(|| "east".parse().expect("a name")),
        host: random.happens(150).then_some(pinned),
        host_labels: if random.happens(150) { nvme } else { Labels::new() },
        apart: draw_apart(random),
        labels: draw_labels(random),
        public_user_data: None,
        restart: random.of(&[RestartPolicy::Always, RestartPolicy::Never]),
        network,
        boot: draw_boot(scene, memory_mib, random),
        more_cards,
    };
    let who = scene.acting(random);
    let who = if random.happens(950) { who } else { Person::any(random) };
    (who, Body::VmCreate(Box::new(body)))
}

fn judge_create(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VmCreate);
    let account = model.acting(asked.signer)?;
    if !model.is_granted(account) {
        return Err(RefusalCode::AccountUnknown);
    }
    let is_homeless = |vm: &&Vm| vm.account == account.id && vm.placement == Placement::NoHost {};
    if model.vms.iter().filter(is_homeless).count() >= 64 || model.has_enough(account.id) {
        return Err(RefusalCode::LimitExceeded);
    }
    if model.vms.iter().any(|vm| vm.account == account.id && vm.name == body.name) {
        return Err(RefusalCode::NameTaken);
    }
    judge_images(model, account, body)?;
    let mut vm = Vm {
        id: VmId::of(&asked.cause.digest),
        account: account.id,
        name: body.name.clone(),
        generation: Generation(1),
        created: asked.cause,
        changed: asked.cause,
        wanted: Wanted::Running,
        image: body.image.clone(),
        size: body.size(),
        ssh_keys: body.ssh_keys.clone(),
        public_user_data: body.public_user_data.clone(),
        labels: body.labels.clone(),
        region: body.region.clone(),
        host_labels: body.host_labels.clone(),
        pinned_host: body.host,
        placement: Placement::NoHost {},
        tried: Vec::new(),
        reported: None,
        guest_host_key: None,
        protection: Protection::Unprotected,
        apart: body.apart.clone(),
        booted_since: Generation(1),
        meter: Meter::NEW,
        stop_manner: StopManner::Graceful,
        restart: body.restart,
        volumes: Vec::new(),
        volumes_since: Generation(1),
        network: body.network.clone().unwrap_or_default(),
        boot: body.boot.clone(),
        more_cards: body.more_cards.clone(),
    };
    vm.placement = place(model, &vm)?;
    Ok(vec![Effect::Vm(Box::new(vm))])
}

/// A VM, mostly one that exists, a signer, mostly its owner, and perhaps a generation.
pub(crate) fn draw_change(scene: &Scene, random: &mut Random) -> (Person, VmChange) {
    let vms = &scene.model.vms;
    if vms.is_empty() || random.happens(30) {
        let vm = VmId([7; 16]);
        return (Person::any(random), VmChange { vm, expected_generation: None });
    }
    let vm = &vms[random.index(vms.len())];
    let account = scene.model.account(vm.account).expect("it has one");
    let owner = scene.acting_for(account, random);
    let who = if random.happens(930) { owner } else { Person::any(random) };
    let expected_generation = match random.below(10) {
        0 => Some(Generation(vm.generation.0 + 1)),
        1..4 => Some(vm.generation),
        _ => None,
    };
    (who, VmChange { vm: vm.id, expected_generation })
}

fn draw_start(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, change) = draw_change(scene, random);
    (who, Body::VmStart(change))
}

fn draw_stop(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, VmChange { vm, expected_generation }) = draw_change(scene, random);
    let manner = random.of(&[StopManner::Graceful, StopManner::Forced]);
    (who, Body::VmStop(VmStop { vm, manner, expected_generation }))
}

fn draw_pause(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, change) = draw_change(scene, random);
    (who, Body::VmPause(change))
}

fn draw_resume(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, change) = draw_change(scene, random);
    (who, Body::VmResume(change))
}

fn draw_reboot(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, change) = draw_change(scene, random);
    (who, Body::VmReboot(change))
}

fn draw_resize(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, change) = draw_change(scene, random);
    let memory_mib = random.of(&[None, Some(128), Some(512), Some(2048)]);
    // A document that names neither would not be one.
    let cpus = random.of(&[None, Some(1), Some(2), Some(8)]).or(memory_mib.is_none().then_some(1));
    let VmChange { vm, expected_generation } = change;
    (who, Body::VmResize(VmResize { vm, cpus, memory_mib, expected_generation }))
}

fn draw_delete(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, change) = draw_change(scene, random);
    (who, Body::VmDelete(change))
}

fn draw_protect(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, change) = draw_change(scene, random);
    let protection =
        random.of(&[Protection::Protected, Protection::Unprotected, Protection::Unprotected]);
    let VmChange { vm, expected_generation } = change;
    (who, Body::VmProtect(VmProtect { vm, protection, expected_generation }))
}

fn judge_start(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VmStart);
    let mut vm = own(model, asked, body.vm, body.expected_generation)?;
    match vm.placement.host() {
        Some(_) if vm.wanted == Wanted::Running && !is_off(&vm) => return Ok(Vec::new()),
        Some(host) => require_grant(model, &vm, host)?,
        None => {
            vm.tried.clear();
            vm.placement = place(model, &vm)?;
        }
    }
    vm.wanted = Wanted::Running;
    changed(vm, asked)
}

/// Whether the operator of its host grants its account something now.
pub(crate) fn require_grant(model: &Model, vm: &Vm, host: HostId) -> Result<(), RefusalCode> {
    let operator = model.host(host).expect("it has joined").operator;
    let account = model.account(vm.account).expect("it has an account");
    let mut grants = account.grants.iter();
    match grants.any(|grant| grant.operator == operator && model.is_live(grant)) {
        true => Ok(()),
        false => Err(RefusalCode::GrantEnded),
    }
}

/// Whether its host said last that it is off, about this generation.
fn is_off(vm: &Vm) -> bool {
    let is_accepted = matches!(vm.placement, Placement::Accepted { .. });
    vm.reported.as_ref().is_some_and(|report| {
        is_accepted && report.phase == ReportPhase::Stopped && report.generation == vm.generation
    })
}

fn judge_stop(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VmStop);
    let mut vm = own(model, asked, body.vm, body.expected_generation)?;
    match (vm.wanted, vm.stop_manner, body.manner) {
        (Wanted::Stopped, StopManner::Graceful, StopManner::Forced) => {}
        (Wanted::Stopped, _, _) => return Ok(Vec::new()),
        _ => {}
    }
    vm.wanted = Wanted::Stopped;
    vm.stop_manner = body.manner;
    changed(vm, asked)
}

fn judge_pause(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VmPause);
    let mut vm = own(model, asked, body.vm, body.expected_generation)?;
    if vm.wanted == Wanted::Paused {
        return Ok(Vec::new());
    } else if vm.wanted != Wanted::Running {
        return Err(RefusalCode::StateWrong);
    }
    vm.wanted = Wanted::Paused;
    changed(vm, asked)
}

fn judge_resume(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VmResume);
    let mut vm = own(model, asked, body.vm, body.expected_generation)?;
    if vm.wanted == Wanted::Running {
        return Ok(Vec::new());
    } else if vm.wanted != Wanted::Paused {
        return Err(RefusalCode::StateWrong);
    }
    vm.wanted = Wanted::Running;
    changed(vm, asked)
}

fn judge_reboot(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VmReboot);
    let mut vm = own(model, asked, body.vm, body.expected_generation)?;
    if vm.wanted != Wanted::Running {
        return Err(RefusalCode::StateWrong);
    }
    vm.booted_since = Generation(vm.generation.0 + 1);
    changed(vm, asked)
}

fn judge_resize(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VmResize);
    let mut vm = own(model, asked, body.vm, body.expected_generation)?;
    let before = vm.size;
    vm.size.cpus = body.cpus.unwrap_or(before.cpus);
    vm.size.memory_mib = body.memory_mib.unwrap_or(before.memory_mib);
    if vm.size == before {
        return Ok(Vec::new());
    }
    if vm.wanted != Wanted::Stopped && !vm.size.covers(&before) {
        return Err(RefusalCode::StateWrong);
    }
    if !fits_in_half(vm.boot.as_ref(), vm.size.memory_mib) {
        return Err(RefusalCode::StateWrong);
    }
    if let Some(host) = vm.placement.host().and_then(|host| model.host(host)) {
        require_room(model, host, &vm)?;
    }
    vm.meter = read(&vm.meter, &before, model.now);
    changed(vm, asked)
}

fn judge_delete(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VmDelete);
    let mut vm = own_or_lost(model, asked, body.vm, body.expected_generation)?;
    if vm.protection == Protection::Protected {
        return Err(RefusalCode::Protected);
    }
    vm.wanted = Wanted::Deleted;
    let past = match vm.placement {
        Placement::Lost { host } => Some(past(model, &vm, host)),
        _ => None,
    };
    Ok(changed(vm, asked)?.into_iter().chain(past).collect())
}

fn judge_protect(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VmProtect);
    let mut vm = own_or_lost(model, asked, body.vm, body.expected_generation)?;
    if vm.protection == body.protection {
        return Ok(Vec::new());
    }
    vm.protection = body.protection;
    changed(vm, asked)
}

pub(crate) fn changed(mut vm: Vm, asked: &Asked<'_>) -> Ruling {
    vm.generation = Generation(vm.generation.0 + 1);
    vm.changed = asked.cause;
    Ok(vec![Effect::Vm(Box::new(vm))])
}

/// The signer's VM, if it may still be changed.
pub(crate) fn own(
    model: &Model,
    asked: &Asked<'_>,
    vm: VmId,
    expected: Option<Generation>,
) -> Result<Vm, RefusalCode> {
    let vm = own_or_lost(model, asked, vm, expected)?;
    let is_lost = matches!(vm.placement, Placement::Lost { .. });
    if is_lost { Err(RefusalCode::StateWrong) } else { Ok(vm) }
}

fn own_or_lost(
    model: &Model,
    asked: &Asked<'_>,
    vm: VmId,
    expected: Option<Generation>,
) -> Result<Vm, RefusalCode> {
    let account = model.acting(asked.signer)?;
    let vm = model.vm(vm).ok_or(RefusalCode::NotFound)?;
    match expected {
        _ if vm.account != account.id => Err(RefusalCode::NotAuthorized),
        Some(expected) if expected != vm.generation => Err(RefusalCode::Conflict),
        _ if vm.wanted == Wanted::Deleted => Err(RefusalCode::StateWrong),
        _ => Ok(vm.clone()),
    }
}

/// The host that has the offer did not take it.
pub(crate) fn offer_next(model: &Model, vm: &Vm) -> Result<Effect, RefusalCode> {
    let mut vm = vm.clone();
    vm.tried.extend(vm.placement.host());
    looks::require(model, &vm)?;
    vm.placement = place(model, &vm).unwrap_or(Placement::NoHost {});
    vm.generation = Generation(vm.generation.0 + 1);
    Ok(Effect::Vm(Box::new(vm)))
}
