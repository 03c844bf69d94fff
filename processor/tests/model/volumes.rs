//! `volume.*` and `report.volume` in the model.

use dagger_payload::id::{AccountId, Generation, HostId, VmId, VolumeId};
use dagger_payload::kind::{
    Body, Protection, ReportPhase, ReportVolume, VolumeAttach, VolumeCreate, VolumeDelete,
    VolumeDetach, VolumeGrow, VolumePhase, VolumeProtect,
};
use dagger_payload::object::{Effect, HostDuty, Placement, Vm, Wanted};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::usage::{Meter, Metered, PastUsage, Used};
use dagger_payload::volume::{
    Snapshot, VmVolume, Volume, VolumeDisk, VolumeReport, VolumeUse, VolumeWanted,
};

use super::kinds::{Kind, of_kind};
use super::people::{Person, Scene};
use super::placement::{require_few_on_disk, require_share};
use super::random::Random;
use super::reports::read;
use super::snapshots::is_still;
use super::state::{Asked, Model, Ruling};
use super::vms;

pub(crate) const KINDS: &[Kind] = &[
    Kind { name: "volume.create", weight: 10, draw: draw_create, judge: judge_create },
    Kind { name: "volume.attach", weight: 12, draw: draw_attach, judge: judge_attach },
    Kind { name: "volume.detach", weight: 6, draw: draw_detach, judge: judge_detach },
    Kind { name: "volume.grow", weight: 6, draw: draw_grow, judge: judge_grow },
    Kind { name: "volume.protect", weight: 3, draw: draw_protect, judge: judge_protect },
    Kind { name: "volume.delete", weight: 2, draw: draw_delete, judge: judge_delete },
    Kind { name: "report.volume", weight: 18, draw: draw_report, judge: judge_report },
];

fn draw_create(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (mut who, mut host) = (scene.acting(random), scene.host(random));
    // Mostly where its owner has a VM: else it would find no user.
    let placed = scene.model.vms.iter().filter(|vm| takes_volumes(vm));
    let placed: Vec<(AccountId, Option<HostId>)> =
        placed.map(|vm| (vm.account, vm.placement.host())).collect();
    if !placed.is_empty() && random.happens(800) {
        let (account, at) = random.of(&placed);
        who = scene.acting_for(scene.model.account(account).expect("it has one"), random);
        host = at.unwrap_or(host);
    }
    let name = format!("data{}", random.below(9)).parse().expect("a name");
    let body = VolumeCreate { name, size_gib: random.of(&[1, 1, 5, 40]), host };
    let who = if random.happens(950) { who } else { Person::any(random) };
    (who, Body::VolumeCreate(body))
}

/// Whether a VM could be given a volume.
fn takes_volumes(vm: &Vm) -> bool {
    let is_wanted = matches!(vm.wanted, Wanted::Running | Wanted::Stopped);
    is_wanted && matches!(vm.placement, Placement::Accepted { .. })
}

pub(crate) fn judge_create(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VolumeCreate);
    let account = model.acting(asked.signer)?;
    if !model.is_granted(account) {
        return Err(RefusalCode::AccountUnknown);
    }
    if model.volumes.iter().any(|one| one.account == account.id && one.name == body.name) {
        return Err(RefusalCode::NameTaken);
    }
    let host = model.host(body.host).filter(|host| host.duty != HostDuty::Left);
    let host = host.ok_or(RefusalCode::NotFound)?;
    if host.duty == HostDuty::Draining || model.is_silent(host.id) {
        return Err(RefusalCode::NoHostFits);
    }
    let volume = Volume {
        id: VolumeId::of(&asked.cause.digest),
        account: account.id,
        name: body.name.clone(),
        generation: Generation(1),
        created: asked.cause,
        changed: asked.cause,
        wanted: VolumeWanted::Kept,
        size_gib: body.size_gib,
        host: host.id,
        used_by: VolumeUse::Free {},
        disk: VolumeDisk::NotReported,
        reported: None,
        meter: Meter::NEW,
        protection: Protection::Unprotected,
        snapshots: Vec::new(),
        restoring: None,
        origin: None,
    };
    require_share(model, account.id, host, (None, &volume.size()))?;
    require_few_on_disk(model, account.id, host)?;
    Ok(vec![Effect::Volume(Box::new(volume))])
}

/// A volume, mostly one that exists, and a signer, mostly its owner.
pub(crate) fn draw_volume(
    scene: &Scene,
    random: &mut Random,
) -> (Person, Option<Volume>, VolumeId) {
    let volumes = &scene.model.volumes;
    if volumes.is_empty() || random.happens(30) {
        return (Person::any(random), None, VolumeId([7; 16]));
    }
    let volume = volumes[random.index(volumes.len())].clone();
    let account = scene.model.account(volume.account).expect("it has one");
    let owner = scene.acting_for(account, random);
    let who = if random.happens(930) { owner } else { Person::any(random) };
    let id = volume.id;
    (who, Some(volume), id)
}

/// Mostly none, and seldom one that is wrong.
pub(crate) fn draw_expected(now: Option<Generation>, random: &mut Random) -> Option<Generation> {
    match random.below(10) {
        0 => now.map(|now| Generation(now.0 + 1)),
        1..4 => now,
        _ => None,
    }
}

/// A volume and a VM, mostly two that go together.
fn draw_attach(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let vms = &scene.model.vms;
    let (mut who, mut drawn, mut volume) = draw_volume(scene, random);
    let mut vm = (!vms.is_empty()).then(|| &vms[random.index(vms.len())]);
    let pairs = fitting(scene.model.volumes.as_slice(), vms);
    if !pairs.is_empty() && random.happens(850) {
        let (fits, user) = pairs[random.index(pairs.len())];
        (drawn, volume, vm) = (Some(fits.clone()), fits.id, Some(user));
    }
    if let Some(drawn) = drawn.filter(|_| random.happens(930)) {
        who = scene.acting_for(scene.model.account(drawn.account).expect("it has one"), random);
    }
    let expected_generation = draw_expected(vm.map(|vm| vm.generation), random);
    let vm = vm.map_or(VmId([7; 16]), |vm| vm.id);
    (who, Body::VolumeAttach(VolumeAttach { volume, vm, expected_generation }))
}

/// Volumes that are free, each with a VM of its owner on its host.
fn fitting<'model>(
    volumes: &'model [Volume],
    vms: &'model [Vm],
) -> Vec<(&'model Volume, &'model Vm)> {
    let free = volumes.iter().filter(|volume| {
        volume.used_by == VolumeUse::Free {} && volume.wanted == VolumeWanted::Kept
    });
    let near = |volume: &'model Volume| {
        let could = move |vm: &&Vm| {
            let place = (vm.account, vm.placement.host());
            place == (volume.account, Some(volume.host)) && takes_volumes(vm)
        };
        vms.iter().filter(could).map(move |vm| (volume, vm))
    };
    free.flat_map(near).collect()
}

fn draw_detach(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, drawn, volume) = draw_volume(scene, random);
    let user = drawn.and_then(|volume| volume.used_by.vm());
    let generation = user.and_then(|vm| scene.model.vm(vm)).map(|vm| vm.generation);
    let expected_generation = draw_expected(generation, random);
    (who, Body::VolumeDetach(VolumeDetach { volume, expected_generation }))
}

fn draw_grow(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, drawn, volume) = draw_volume(scene, random);
    let now = drawn.as_ref().map_or(5, |volume| volume.size_gib);
    let size_gib = random.of(&[now, now + 1, now + 3, now + 3, now + 200, 1]);
    let expected_generation = draw_expected(drawn.map(|volume| volume.generation), random);
    (who, Body::VolumeGrow(VolumeGrow { volume, size_gib, expected_generation }))
}

fn draw_protect(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, drawn, volume) = draw_volume(scene, random);
    let protection =
        random.of(&[Protection::Protected, Protection::Unprotected, Protection::Unprotected]);
    let expected_generation = draw_expected(drawn.map(|volume| volume.generation), random);
    (who, Body::VolumeProtect(VolumeProtect { volume, protection, expected_generation }))
}

fn draw_delete(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, drawn, volume) = draw_volume(scene, random);
    let expected_generation = draw_expected(drawn.map(|volume| volume.generation), random);
    (who, Body::VolumeDelete(VolumeDelete { volume, expected_generation }))
}

fn draw_report(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (_, drawn, volume) = draw_volume(scene, random);
    let any = random.of(&[VolumePhase::Ready, VolumePhase::Degraded, VolumePhase::Deleted]);
    let (mut who, mut generation, mut likely) = (Person::any(random), Generation(1), any);
    if let Some(drawn) = drawn {
        let host = scene.model.host(drawn.host).expect("it has joined");
        let agent = scene.who(&host.agent_key);
        who = agent.filter(|_| random.happens(950)).unwrap_or(who);
        generation = drawn.generation;
        likely = match drawn.wanted {
            VolumeWanted::Kept => VolumePhase::Ready,
            VolumeWanted::Deleted => VolumePhase::Deleted,
        };
    }
    let body = ReportVolume {
        volume,
        generation: if random.happens(950) { generation } else { Generation(generation.0 + 1) },
        phase: if random.happens(800) { likely } else { any },
        reason: random.happens(100).then(|| "because".to_owned()),
    };
    (who, Body::ReportVolume(body))
}

/// The signer's volume, if it may still be changed.
pub(crate) fn own(
    model: &Model,
    asked: &Asked<'_>,
    volume: VolumeId,
    expected: Option<Generation>,
) -> Result<Volume, RefusalCode> {
    let volume = own_or_lost(model, asked, volume, expected)?;
    if volume.disk == VolumeDisk::Lost { Err(RefusalCode::StateWrong) } else { Ok(volume) }
}

fn own_or_lost(
    model: &Model,
    asked: &Asked<'_>,
    volume: VolumeId,
    expected: Option<Generation>,
) -> Result<Volume, RefusalCode> {
    let account = model.acting(asked.signer)?;
    let volume = model.volume(volume).ok_or(RefusalCode::NotFound)?;
    match expected {
        _ if volume.account != account.id => Err(RefusalCode::NotAuthorized),
        Some(expected) if expected != volume.generation => Err(RefusalCode::Conflict),
        _ if volume.wanted == VolumeWanted::Deleted => Err(RefusalCode::StateWrong),
        _ => Ok(volume.clone()),
    }
}

fn judge_attach(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VolumeAttach);
    let mut volume = own(model, asked, body.volume, None)?;
    let mut vm = vms::own(model, asked, body.vm, body.expected_generation)?;
    match volume.used_by {
        VolumeUse::Attached { vm: user } if user == vm.id => return Ok(Vec::new()),
        VolumeUse::Attached { .. } | VolumeUse::Detaching { .. } => {
            return Err(RefusalCode::StateWrong);
        }
        VolumeUse::Free {} => {}
    }
    let said = volume.reported.as_ref().map(|report| (report.phase, report.generation));
    let is_ready = said == Some((VolumePhase::Ready, volume.generation));
    let is_here = matches!(vm.placement, Placement::Accepted { host, .. } if host == volume.host);
    if !is_ready || !is_still(&volume) || !is_here || vm.wanted == Wanted::Paused {
        return Err(RefusalCode::StateWrong);
    }
    let taken: Vec<u8> = vm.volumes.iter().map(|used| used.slot).collect();
    let slot = (0..8).find(|slot| !taken.contains(slot)).ok_or(RefusalCode::LimitExceeded)?;
    // Those, too, that its host has not said it lost.
    if model.volumes.iter().filter(|other| other.used_by.vm() == Some(vm.id)).count() >= 8 {
        return Err(RefusalCode::LimitExceeded);
    }
    vm.volumes.push(VmVolume { volume: volume.id, slot, size_gib: volume.size_gib });
    volume.used_by = VolumeUse::Attached { vm: vm.id };
    given(vm, volume, asked)
}

fn judge_detach(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VolumeDetach);
    let mut volume = own(model, asked, body.volume, None)?;
    let VolumeUse::Attached { vm } = volume.used_by else { return Ok(Vec::new()) };
    let mut vm = vms::own(model, asked, vm, body.expected_generation)?;
    if vm.wanted == Wanted::Paused {
        return Err(RefusalCode::StateWrong);
    }
    vm.volumes.retain(|used| used.volume != volume.id);
    volume.used_by = VolumeUse::Detaching { vm: vm.id };
    given(vm, volume, asked)
}

fn given(mut vm: Vm, volume: Volume, asked: &Asked<'_>) -> Ruling {
    vm.volumes_since = Generation(vm.generation.0 + 1);
    let mut effects = vec![Effect::Volume(Box::new(volume))];
    effects.extend(vms::changed(vm, asked)?);
    Ok(effects)
}

fn judge_grow(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VolumeGrow);
    let mut volume = own(model, asked, body.volume, body.expected_generation)?;
    if body.size_gib == volume.size_gib {
        return Ok(Vec::new());
    }
    let is_detaching = matches!(volume.used_by, VolumeUse::Detaching { .. });
    let is_made = volume.disk == VolumeDisk::Made && is_still(&volume);
    if body.size_gib < volume.size_gib || !is_made || is_detaching {
        return Err(RefusalCode::StateWrong);
    }
    let user = match volume.used_by.vm() {
        Some(vm) => Some(vms::own(model, asked, vm, None)?),
        None => None,
    };
    if user.as_ref().is_some_and(|vm| vm.wanted == Wanted::Paused) {
        return Err(RefusalCode::StateWrong);
    }
    let host = model.host(volume.host).expect("it has joined");
    let mut more = volume.size();
    more.disk_gib = body.size_gib - volume.size_gib;
    require_share(model, volume.account, host, (None, &more))?;
    volume.meter = read(&volume.meter, &volume.size(), model.now);
    volume.size_gib = body.size_gib;
    volume.generation = Generation(volume.generation.0 + 1);
    volume.changed = asked.cause;
    let Some(mut vm) = user else { return Ok(vec![Effect::Volume(Box::new(volume))]) };
    let used = vm.volumes.iter_mut().find(|used| used.volume == volume.id);
    used.expect("it has it").size_gib = body.size_gib;
    given(vm, volume, asked)
}

fn judge_protect(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VolumeProtect);
    let mut volume = own_or_lost(model, asked, body.volume, body.expected_generation)?;
    if volume.protection == body.protection {
        return Ok(Vec::new());
    }
    volume.protection = body.protection;
    volume.generation = Generation(volume.generation.0 + 1);
    volume.changed = asked.cause;
    Ok(vec![Effect::Volume(Box::new(volume))])
}

fn judge_delete(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VolumeDelete);
    let mut volume = own_or_lost(model, asked, body.volume, body.expected_generation)?;
    if volume.protection == Protection::Protected {
        return Err(RefusalCode::Protected);
    }
    let is_kept = |snapshot: &Snapshot| snapshot.wanted == VolumeWanted::Kept;
    let is_lost = volume.disk == VolumeDisk::Lost;
    let has_snapshots = volume.snapshots.iter().any(is_kept) && !is_lost;
    if volume.used_by != (VolumeUse::Free {}) || has_snapshots {
        return Err(RefusalCode::StateWrong);
    }
    volume.restoring = None;
    volume.wanted = VolumeWanted::Deleted;
    volume.generation = Generation(volume.generation.0 + 1);
    volume.changed = asked.cause;
    if is_lost {
        return Ok(with_past(model, volume));
    }
    Ok(vec![Effect::Volume(Box::new(volume))])
}

fn judge_report(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, ReportVolume);
    let host = model.host_of_agent(asked.signer);
    let host = host.ok_or(RefusalCode::AccountUnknown)?.id;
    let mut volume = model.volume(body.volume).ok_or(RefusalCode::NotFound)?.clone();
    if (volume.host, volume.generation) != (host, body.generation) {
        return Err(RefusalCode::Conflict);
    }
    let is_wanted = match body.phase {
        VolumePhase::Ready => volume.wanted == VolumeWanted::Kept,
        VolumePhase::Deleted => volume.wanted == VolumeWanted::Deleted,
        VolumePhase::Degraded => true,
    };
    if !is_wanted {
        return Err(RefusalCode::StateWrong);
    }
    let report = VolumeReport {
        generation: body.generation,
        phase: body.phase,
        reason: body.reason.clone(),
        cause: asked.cause,
    };
    let says = |report: &VolumeReport| (report.generation, report.phase, report.reason.clone());
    if volume.reported.as_ref().map(says) == Some(says(&report)) {
        return Ok(Vec::new());
    }
    volume.meter = read(&volume.meter, &volume.size(), model.now);
    match body.phase {
        VolumePhase::Ready => {
            volume.meter.counts = Metered::Disk;
            volume.disk = VolumeDisk::Made;
            volume.restoring = None;
        }
        VolumePhase::Deleted => volume.meter.counts = Metered::Nothing,
        VolumePhase::Degraded => {}
    }
    volume.reported = Some(report);
    match body.phase {
        VolumePhase::Deleted => Ok(with_past(model, volume)),
        VolumePhase::Ready | VolumePhase::Degraded => Ok(vec![Effect::Volume(Box::new(volume))]),
    }
}

/// The last version of a volume, and the sum with it.
pub(crate) fn with_past(model: &Model, volume: Volume) -> Vec<Effect> {
    let (account, host) = (volume.account, volume.host);
    let past = model.past_usage.iter().find(|past| (past.account, past.host) == (account, host));
    let nothing = PastUsage { account, host, vms: 0, used: Used::default() };
    let mut past = past.cloned().unwrap_or(nothing);
    past.used.disk_gib_ms += volume.meter.used.disk_gib_ms;
    vec![Effect::Volume(Box::new(volume)), Effect::Usage(Box::new(past))]
}

/// What a host's report about a VM sets free, by id.
pub(crate) fn released(model: &Model, vm: VmId, phase: ReportPhase) -> Vec<Effect> {
    let is_settled =
        matches!(phase, ReportPhase::Running | ReportPhase::Stopped | ReportPhase::Paused);
    let mut freed: Vec<Volume> = model
        .volumes
        .iter()
        .filter(|volume| match volume.used_by {
            VolumeUse::Free {} => false,
            VolumeUse::Attached { vm: user } => user == vm && phase == ReportPhase::Deleted,
            VolumeUse::Detaching { vm: user } => {
                user == vm && (is_settled || phase == ReportPhase::Deleted)
            }
        })
        .cloned()
        .collect();
    freed.sort_by_key(|volume| volume.id);
    let free = |volume| Volume { used_by: VolumeUse::Free {}, ..volume };
    freed.into_iter().map(|volume| Effect::Volume(Box::new(free(volume)))).collect()
}
