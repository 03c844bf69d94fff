//! From what is wanted, seen and written down to the next step for one VM: a pure function.
//!
//! Owns the order of steps, the ladder of stopping, and the rule that nothing is done while what is
//! seen is unknown (R3, R8, R9). Changes nothing. Called by the controller whenever something about
//! the VM changed.

use dagger_payload::id::{HostId, ImageDigest};
use dagger_payload::kind::{ReportPhase, RestartPolicy, StopManner};
use dagger_payload::object::{Placement, Wanted};

use super::Monotonic;
use super::entry::{Asked, Entry, Then};
use super::limits::{RESTART_WINDOW, RESTARTS_MAX, SHUTDOWN_ASK_AGAIN, SHUTDOWN_WAIT_MAX};
use super::proof::{DeleteProof, StopProof};
use super::step::{Action, Guests, NeededImage, Rung, Seen, Step};
use crate::machine::{Machine, Power, Tags};
use crate::order::AttestedVm;

/// What else the decision rests on.
pub(super) struct Surroundings<'a> {
    pub(super) here: HostId,
    pub(super) now: Monotonic,
    pub(super) guests: Option<Guests>,
    /// What the VM needs and where it may be had; asked only before it is made sure of.
    pub(super) images: &'a dyn Fn() -> Vec<NeededImage>,
}

/// What to do for one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is as wanted.
    Settled(ReportPhase),
    /// Carry this out.
    Act(Action),
    /// See that this image is fetched for the VM.
    Fetch(ImageDigest),
    /// It is off because this host's operator wants that: why.
    Halted(String),
    /// Start it again, counted: it stopped by itself.
    Restart,
    /// Look at the machine first.
    Look,
    /// Nothing before something changes, or before this time.
    Wait(Option<Monotonic>),
    /// It cannot be brought to what is wanted; nothing is done.
    Degraded(String),
    /// What the ledger shows does not fit what this host knows: nothing is done, the operator is
    /// told.
    Hold(String),
}

/// The steps towards a machine that can be switched on.
const MAKING: [Step; 5] = [Step::Image, Step::Disk, Step::Seed, Step::Network, Step::Define];
/// The steps towards nothing.
const REMOVING: [Step; 4] = [Step::Destroy, Step::Undefine, Step::Disconnect, Step::Quarantine];

/// The decision for a VM that this host carries, while no step is carried out.
pub(super) fn decide(entry: &Entry, around: &Surroundings<'_>) -> Decision {
    let Some(wanted) = &entry.wanted else { return Decision::Wait(None) };
    if let Some(objection) = objection(entry, wanted, around.here) {
        return Decision::Hold(objection);
    }
    let power = match &entry.sighting.seen {
        Seen::Unknown if planted!(UnknownIsAbsent) => None,
        Seen::Unknown => return Decision::Look,
        Seen::Present(Machine::Foreign(_)) if planted!(StrangerIsAbsent) => None,
        Seen::Present(Machine::Foreign(why)) => {
            return Decision::Degraded(format!("name_occupied: {why}"));
        }
        Seen::Present(Machine::Ours { power, .. }) => Some(*power),
        Seen::Absent => None,
    };
    match entry.failure.as_ref().map(|failure| failure.then) {
        Some(Then::Retry(at)) if at > around.now => return Decision::Wait(Some(at)),
        Some(Then::Stay) => return Decision::Wait(None),
        Some(Then::Retry(_)) | None => {}
    }
    if wanted.vm.wanted != Wanted::Deleted
        && matches!(power, Some(Power::Stopped) | None)
        && let Some(reason) = entry.halted(around.here)
    {
        return Decision::Halted(reason);
    }
    match (wanted.vm.wanted, power) {
        (Wanted::Running, Some(power @ (Power::Running | Power::Paused)))
            if let Some(proof) = reboot_proof(entry, wanted, around.here) =>
        {
            match power {
                Power::Paused => Decision::Act(Action::Destroy(proof)),
                Power::Running | Power::Stopped => stop(entry, &proof, around.now),
            }
        }
        // Once a generation and once in the agent's life: what reaches a guest may have changed,
        // and who loads the host's own filters anew takes ours away.
        (Wanted::Running | Wanted::Paused, Some(Power::Running | Power::Paused))
            if !entry.ensured.contains(&Step::Network) =>
        {
            connect(around)
        }
        (Wanted::Running | Wanted::Paused, Some(Power::Running))
            if needs_volumes(entry, wanted) =>
        {
            Decision::Act(Action::Volumes)
        }
        (Wanted::Running, Some(Power::Running)) => settle(entry, wanted, ReportPhase::Running),
        // Once a generation: a guest that does not go on has another trouble than having been
        // paused.
        (Wanted::Running, Some(Power::Paused)) if !entry.ensured.contains(&Step::Resume) => {
            Decision::Act(Action::Resume)
        }
        (Wanted::Running, Some(Power::Paused)) => Decision::Degraded(
            "paused: the guest is in memory but does not run; its disk may be full".to_owned(),
        ),
        (Wanted::Running, Some(Power::Stopped) | None) => run(entry, wanted, around),
        (Wanted::Paused, Some(Power::Running)) => Decision::Act(Action::Pause),
        (Wanted::Paused, Some(Power::Paused)) if needs_volumes(entry, wanted) => {
            Decision::Act(Action::Volumes)
        }
        (Wanted::Paused, Some(Power::Paused)) => settle(entry, wanted, ReportPhase::Paused),
        // What was in memory is gone; nothing is switched on before its owner says so.
        (Wanted::Paused, Some(Power::Stopped)) => settle(entry, wanted, ReportPhase::Stopped),
        (Wanted::Stopped, Some(power @ (Power::Running | Power::Paused))) => {
            switch_off(entry, wanted, power, around)
        }
        (Wanted::Stopped, Some(Power::Stopped)) => settle(entry, wanted, ReportPhase::Stopped),
        (Wanted::Stopped | Wanted::Paused, None) => {
            make(entry, around).unwrap_or(Decision::Act(Action::Define))
        }
        (Wanted::Deleted, _) => delete(entry, wanted, around.here),
    }
}

/// Why the wanted version must not be carried out, if so (R3).
fn objection(entry: &Entry, wanted: &AttestedVm, here: HostId) -> Option<String> {
    if let Some(hold) = &entry.hold {
        return Some(hold.clone());
    }
    let told = (wanted.vm.generation, wanted.vm.changed.digest);
    let recorded = entry.record.as_ref().map(|record| (record.generation, record.payload));
    let tagged = entry.tags().map(|tags| (tags.generation, tags.payload));
    for (generation, payload) in recorded.into_iter().chain(tagged) {
        if told.0 < generation {
            return Some(format!(
                "older_view: the ledger shows generation {} and this host carried out {}",
                told.0.0, generation.0
            ));
        }
        if told.0 == generation && told.1 != payload {
            return Some(format!(
                "conflicting_generation: another payload made generation {} before",
                generation.0
            ));
        }
    }
    let accepted = matches!(wanted.vm.placement, Placement::Accepted { host, .. } if host == here);
    (!accepted).then(|| {
        "moved_after_acceptance: this host had accepted the VM and the ledger shows it elsewhere"
            .to_owned()
    })
}

/// The power is as wanted; the tags should say for which generation.
fn settle(entry: &Entry, wanted: &AttestedVm, phase: ReportPhase) -> Decision {
    let tagged = entry.tags().is_some_and(|tags| tags.generation == wanted.vm.generation);
    if tagged && !planted!(TaggedForEver) {
        Decision::Settled(phase)
    } else {
        Decision::Act(Action::Tag)
    }
}

/// The host's own object comes with the history.
fn connect(around: &Surroundings<'_>) -> Decision {
    match around.guests {
        Some(guests) => Decision::Act(Action::Network(guests)),
        None => Decision::Wait(None),
    }
}

/// The first step of [`MAKING`] that is not ensured yet.
fn make(entry: &Entry, around: &Surroundings<'_>) -> Option<Decision> {
    let step = MAKING.into_iter().find(|step| !entry.ensured.contains(step))?;
    let Some(guests) = around.guests else {
        // The host's own object comes with the history; a VM cannot be placed before it.
        return Some(Decision::Wait(None));
    };
    Some(Decision::Act(match step {
        Step::Image if let Some((image, _)) = &entry.missing_image => {
            return Some(Decision::Fetch(*image));
        }
        Step::Image => Action::Image((around.images)()),
        Step::Disk => Action::Disk(entry.disk_rule()),
        Step::Seed => Action::Seed(guests.subnet),
        Step::Network => Action::Network(guests),
        _ => Action::Define,
    }))
}

/// Towards a running guest. One that was started and is off has stopped by itself: it is started
/// again, a few times, unless its owner wants it to stay off then.
fn run(entry: &Entry, wanted: &AttestedVm, around: &Surroundings<'_>) -> Decision {
    if !entry.was_started() {
        return make(entry, around).unwrap_or(Decision::Act(Action::Start));
    }
    if wanted.vm.restart == RestartPolicy::Never {
        // Its definition may have gone with the host's own reboot: that is no order to start it.
        return match entry.tags() {
            Some(_) => settle(entry, wanted, ReportPhase::Stopped),
            None => make(entry, around).unwrap_or(Decision::Act(Action::Define)),
        };
    }
    let recent = |at: &&Monotonic| around.now.since(**at) < RESTART_WINDOW;
    if entry.restarts.iter().filter(recent).count() < RESTARTS_MAX {
        return Decision::Restart;
    }
    Decision::Degraded(format!(
        "guest_stopped: it stopped by itself and was started again {RESTARTS_MAX} times within \
         {} minutes; stop and start it to try again",
        RESTART_WINDOW.as_secs() / 60
    ))
}

/// A reboot is due while the machine carries an older generation than it must have been switched on
/// for. The tags tell: while it runs they are left as they are until it was off.
fn reboot_proof(entry: &Entry, wanted: &AttestedVm, here: HostId) -> Option<StopProof> {
    StopProof::of_reboot(wanted, here, entry.tags()?.generation)
}

/// The machine was given its volumes for an older generation than it must have been: the tags tell,
/// which are written after that.
fn needs_volumes(entry: &Entry, wanted: &AttestedVm) -> bool {
    let is_older = |tags: &Tags| tags.generation < wanted.vm.volumes_since;
    entry.tags().is_some_and(is_older)
        && !entry.ensured.contains(&Step::Volumes)
        && !planted!(VolumesNotGiven)
}

fn switch_off(
    entry: &Entry,
    wanted: &AttestedVm,
    power: Power,
    around: &Surroundings<'_>,
) -> Decision {
    let Some(proof) = StopProof::of(wanted, around.here) else { return Decision::Wait(None) };
    match (power, wanted.vm.stop_manner) {
        (Power::Paused, _) | (_, StopManner::Forced) => Decision::Act(Action::Destroy(proof)),
        (Power::Running | Power::Stopped, StopManner::Graceful) => stop(entry, &proof, around.now),
    }
}

fn stop(entry: &Entry, proof: &StopProof, now: Monotonic) -> Decision {
    match ladder(entry.asked, now) {
        Rungs::Climb(Rung::Ask) => Decision::Act(Action::AskShutdown(proof.clone())),
        Rungs::Climb(Rung::Destroy) => Decision::Act(Action::Destroy(proof.clone())),
        Rungs::Wait(until) => Decision::Wait(Some(until)),
    }
}

/// What is next on the ladder.
pub(super) enum Rungs {
    /// Go this far.
    Climb(Rung),
    /// Give the guest until then.
    Wait(Monotonic),
}

/// The ladder: ask, ask again, switch off.
pub(super) fn ladder(asked: Option<Asked>, now: Monotonic) -> Rungs {
    let Some(asked) = asked else { return Rungs::Climb(Rung::Ask) };
    let (end, again) = (asked.first.plus(SHUTDOWN_WAIT_MAX), asked.last.plus(SHUTDOWN_ASK_AGAIN));
    if now >= end {
        Rungs::Climb(Rung::Destroy)
    } else if now >= again {
        Rungs::Climb(Rung::Ask)
    } else {
        Rungs::Wait(end.min(again))
    }
}

/// Off, gone, disconnected, disk in quarantine: each done whatever is seen, since a look may have
/// missed a machine that was just started: asking twice costs little, a machine left behind runs
/// for nobody.
fn delete(entry: &Entry, wanted: &AttestedVm, here: HostId) -> Decision {
    let Some(proof) = DeleteProof::of(wanted, here) else { return Decision::Wait(None) };
    let is_due = |step: &Step| {
        let is_forgotten = planted!(CardForgotten) && *step == Step::Disconnect;
        !entry.ensured.contains(step) && !is_forgotten
    };
    match REMOVING.into_iter().find(is_due) {
        Some(Step::Destroy) => Decision::Act(Action::Destroy(proof.stop().clone())),
        Some(Step::Undefine) => Decision::Act(Action::Undefine(proof)),
        Some(Step::Disconnect) => Decision::Act(Action::Disconnect(proof)),
        Some(_) => Decision::Act(Action::Quarantine(proof)),
        None => Decision::Settled(ReportPhase::Deleted),
    }
}
