//! `volume.snapshot`, `volume.restore`, `volume.clone`, `snapshot.delete` and `report.snapshot` in
//! the model.

use dagger_payload::id::{SnapshotId, VolumeId};
use dagger_payload::kind::{
    Body, ReportSnapshot, SnapshotDelete, VolumeClone, VolumeCreate, VolumePhase, VolumeRestore,
    VolumeSnapshot,
};
use dagger_payload::object::Effect;
use dagger_payload::refusal::RefusalCode;
use dagger_payload::volume::{
    Origin, Snapshot, SnapshotReport, Volume, VolumeDisk, VolumeUse, VolumeWanted,
};

use super::kinds::{Kind, of_kind};
use super::people::{Person, Scene};
use super::placement::{require_few_on_disk, require_share};
use super::random::Random;
use super::reports::read;
use super::state::{Asked, Model, Ruling};
use super::volumes::{draw_expected, draw_volume, judge_create, own};

pub(crate) const KINDS: &[Kind] = &[
    Kind { name: "volume.snapshot", weight: 12, draw: draw_take, judge: judge_take },
    Kind { name: "volume.restore", weight: 8, draw: draw_restore, judge: judge_restore },
    Kind { name: "volume.clone", weight: 6, draw: draw_clone, judge: judge_clone },
    Kind { name: "snapshot.delete", weight: 4, draw: draw_delete, judge: judge_delete },
    Kind { name: "report.snapshot", weight: 18, draw: draw_report, judge: judge_report },
];

/// What a volume takes with all that is kept of it.
pub(crate) fn takes_gib(volume: &Volume) -> u64 {
    if volume.disk == VolumeDisk::Lost {
        return 0;
    }
    volume.size_gib + volume.snapshots.iter().map(|snapshot| snapshot.size_gib).sum::<u64>()
}

/// Whether nothing is to be copied from or to it.
pub(crate) fn is_still(volume: &Volume) -> bool {
    let is_due = |snapshot: &Snapshot| {
        snapshot.wanted == VolumeWanted::Kept && snapshot.disk == VolumeDisk::NotReported
    };
    volume.restoring.is_none() && !volume.snapshots.iter().any(is_due)
}

/// What its host said about it as it is now.
fn said(volume: &Volume) -> Option<VolumePhase> {
    let report = volume.reported.as_ref()?;
    (report.generation == volume.generation).then_some(report.phase)
}

/// A volume and one of its snapshots, mostly some that exist.
type Drawn = (Option<Volume>, VolumeId, SnapshotId);

/// A snapshot, and a signer, mostly its owner.
fn draw_snapshot(scene: &Scene, random: &mut Random) -> (Person, Drawn) {
    let volumes = scene.model.volumes.iter();
    let with: Vec<&Volume> = volumes.filter(|volume| !volume.snapshots.is_empty()).collect();
    if with.is_empty() || random.happens(30) {
        let (who, drawn, id) = draw_volume(scene, random);
        return (who, (drawn, id, SnapshotId([7; 16])));
    }
    let volume = with[random.index(with.len())].clone();
    let account = scene.model.account(volume.account).expect("it has one");
    let owner = scene.acting_for(account, random);
    let who = if random.happens(930) { owner } else { Person::any(random) };
    let snapshot = volume.snapshots[random.index(volume.snapshots.len())].id;
    let id = volume.id;
    (who, (Some(volume), id, snapshot))
}

fn draw_take(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, drawn, volume) = draw_volume(scene, random);
    let name = format!("kept{}", random.below(9)).parse().expect("a name");
    let expected_generation = draw_expected(drawn.map(|volume| volume.generation), random);
    (who, Body::VolumeSnapshot(VolumeSnapshot { volume, name, expected_generation }))
}

fn draw_restore(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, (drawn, volume, snapshot)) = draw_snapshot(scene, random);
    let expected_generation = draw_expected(drawn.map(|volume| volume.generation), random);
    (who, Body::VolumeRestore(VolumeRestore { volume, snapshot, expected_generation }))
}

fn draw_clone(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, (drawn, volume, snapshot)) = draw_snapshot(scene, random);
    let name = format!("data{}", random.below(12)).parse().expect("a name");
    let now = drawn.map_or(5, |volume| volume.size_gib);
    let size_gib = random.of(&[now, now, now + 2, 1]);
    (who, Body::VolumeClone(VolumeClone { name, volume, snapshot, size_gib }))
}

fn draw_delete(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, (_, volume, snapshot)) = draw_snapshot(scene, random);
    (who, Body::SnapshotDelete(SnapshotDelete { volume, snapshot }))
}

fn draw_report(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (_, (drawn, volume, snapshot)) = draw_snapshot(scene, random);
    let any = random.of(&[VolumePhase::Ready, VolumePhase::Degraded, VolumePhase::Deleted]);
    let (mut who, mut likely) = (Person::any(random), any);
    if let Some(drawn) = drawn {
        let host = scene.model.host(drawn.host).expect("it has joined");
        let agent = scene.who(&host.agent_key);
        who = agent.filter(|_| random.happens(950)).unwrap_or(who);
        let one = drawn.snapshots.iter().find(|one| one.id == snapshot);
        likely = match one.map(|one| one.wanted) {
            Some(VolumeWanted::Kept) => VolumePhase::Ready,
            Some(VolumeWanted::Deleted) => VolumePhase::Deleted,
            None => any,
        };
    }
    let phase = if random.happens(850) { likely } else { any };
    let reason = random.happens(100).then(|| "because".to_owned());
    (who, Body::ReportSnapshot(ReportSnapshot { volume, snapshot, phase, reason }))
}

fn judge_take(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VolumeSnapshot);
    let mut volume = own(model, asked, body.volume, body.expected_generation)?;
    if !model.is_granted(model.acting(asked.signer)?) {
        return Err(RefusalCode::AccountUnknown);
    }
    let mine = model.volumes.iter().filter(|other| other.account == volume.account);
    if mine.flat_map(|other| &other.snapshots).any(|snapshot| snapshot.name == body.name) {
        return Err(RefusalCode::NameTaken);
    }
    let is_there = match volume.used_by {
        VolumeUse::Free {} => said(&volume) == Some(VolumePhase::Ready),
        VolumeUse::Attached { .. } => said(&volume) != Some(VolumePhase::Degraded),
        VolumeUse::Detaching { .. } => false,
    };
    if !is_there || !is_still(&volume) {
        return Err(RefusalCode::StateWrong);
    }
    if volume.snapshots.len() == 16 {
        return Err(RefusalCode::LimitExceeded);
    }
    let host = model.host(volume.host).expect("it has joined");
    let mut more = volume.size();
    more.disk_gib = volume.size_gib;
    require_share(model, volume.account, host, (None, &more))?;
    require_few_on_disk(model, volume.account, host)?;
    volume.meter = read(&volume.meter, &volume.size(), model.now);
    volume.snapshots.push(Snapshot {
        id: SnapshotId::of(&asked.cause.digest),
        name: body.name.clone(),
        size_gib: volume.size_gib,
        created: asked.cause,
        created_at: model.now,
        wanted: VolumeWanted::Kept,
        disk: VolumeDisk::NotReported,
        reported: None,
    });
    Ok(vec![Effect::Volume(Box::new(volume))])
}

/// A snapshot that is there, as far as anybody knows.
fn there(volume: &Volume, snapshot: SnapshotId) -> Result<&Snapshot, RefusalCode> {
    let found = volume.snapshots.iter().find(|one| one.id == snapshot);
    let snapshot = found.ok_or(RefusalCode::NotFound)?;
    let phase = snapshot.reported.as_ref().map(|report| report.phase);
    let is_lost = phase == Some(VolumePhase::Degraded);
    let is_there = snapshot.wanted == VolumeWanted::Kept && snapshot.disk == VolumeDisk::Made;
    if is_there && !is_lost { Ok(snapshot) } else { Err(RefusalCode::StateWrong) }
}

fn judge_restore(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VolumeRestore);
    let mut volume = own(model, asked, body.volume, body.expected_generation)?;
    there(&volume, body.snapshot)?;
    if volume.used_by != (VolumeUse::Free {}) {
        return Err(RefusalCode::StateWrong);
    }
    let goes_on = volume.restoring.is_some() && said(&volume) != Some(VolumePhase::Degraded);
    if goes_on && volume.restoring == Some(body.snapshot) {
        return Ok(Vec::new());
    }
    if goes_on || !is_still(&Volume { restoring: None, ..volume.clone() }) {
        return Err(RefusalCode::StateWrong);
    }
    volume.restoring = Some(body.snapshot);
    volume.generation.0 += 1;
    volume.changed = asked.cause;
    Ok(vec![Effect::Volume(Box::new(volume))])
}

fn judge_clone(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VolumeClone);
    let source = own(model, asked, body.volume, None)?;
    if there(&source, body.snapshot)?.size_gib > body.size_gib {
        return Err(RefusalCode::StateWrong);
    }
    let (name, size_gib, host) = (body.name.clone(), body.size_gib, source.host);
    let empty = Body::VolumeCreate(VolumeCreate { name, size_gib, host });
    let mut effects = judge_create(model, asked, &empty)?;
    if let Some(Effect::Volume(volume)) = effects.first_mut() {
        volume.origin = Some(Origin { volume: source.id, snapshot: body.snapshot });
    }
    Ok(effects)
}

fn judge_delete(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, SnapshotDelete);
    let mut volume = own(model, asked, body.volume, None)?;
    let at = volume.snapshots.iter().position(|one| one.id == body.snapshot);
    let at = at.ok_or(RefusalCode::NotFound)?;
    if volume.snapshots[at].wanted == VolumeWanted::Deleted {
        return Ok(Vec::new());
    }
    let needs_it = |other: &Volume| {
        other.origin.is_some_and(|origin| origin.snapshot == body.snapshot)
            && other.disk == VolumeDisk::NotReported
            && other.wanted == VolumeWanted::Kept
    };
    let goes_on = said(&volume) != Some(VolumePhase::Degraded);
    let is_restored = volume.restoring == Some(body.snapshot) && goes_on;
    if is_restored || model.volumes.iter().any(needs_it) {
        return Err(RefusalCode::StateWrong);
    }
    volume.snapshots[at].wanted = VolumeWanted::Deleted;
    Ok(vec![Effect::Volume(Box::new(volume))])
}

fn judge_report(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, ReportSnapshot);
    let host = model.host_of_agent(asked.signer).ok_or(RefusalCode::AccountUnknown)?.id;
    let mut volume = model.volume(body.volume).ok_or(RefusalCode::NotFound)?.clone();
    if volume.host != host {
        return Err(RefusalCode::Conflict);
    }
    let at = volume.snapshots.iter().position(|one| one.id == body.snapshot);
    let at = at.ok_or(RefusalCode::NotFound)?;
    let is_wanted = match body.phase {
        VolumePhase::Ready => volume.snapshots[at].wanted == VolumeWanted::Kept,
        VolumePhase::Deleted => volume.snapshots[at].wanted == VolumeWanted::Deleted,
        VolumePhase::Degraded => true,
    };
    if !is_wanted {
        return Err(RefusalCode::StateWrong);
    }
    let known = volume.snapshots[at].reported.as_ref();
    if known.is_some_and(|known| (known.phase, &known.reason) == (body.phase, &body.reason)) {
        return Ok(Vec::new());
    }
    let (phase, reason) = (body.phase, body.reason.clone());
    match phase {
        VolumePhase::Deleted => {
            volume.meter = read(&volume.meter, &volume.size(), model.now);
            volume.snapshots.remove(at);
            return Ok(vec![Effect::Volume(Box::new(volume))]);
        }
        VolumePhase::Ready => volume.snapshots[at].disk = VolumeDisk::Made,
        VolumePhase::Degraded => {}
    }
    volume.snapshots[at].reported = Some(SnapshotReport { phase, reason, cause: asked.cause });
    Ok(vec![Effect::Volume(Box::new(volume))])
}
