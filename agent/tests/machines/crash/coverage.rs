//! That nothing a host does is left out of the lives that are lived with a death at every point.
//!
//! Owns the names of all that an agent does, each list made of the same lines as the match that
//! gives the names: what is new in the agent does not build here before it has a name, and fails
//! here before a life has it. And what each kind of payload asks of a host.

use std::collections::BTreeSet;

use dagger_agent::controller::proof::Remnant;
use dagger_agent::controller::{Collection, DiskRule, Output, Rung, Step, VolumeAction, VolumeJob};
use dagger_agent::handover::ReportSubject;
use dagger_payload::kind::{Body, StopManner};
use dagger_payload::object::Wanted;

use super::lives::Wish;
use super::{LIVES, live};
use crate::support::{Guest, Victim};

/// Names for the values of a type, and the list of all of them.
macro_rules! names {
    ($list:ident, $function:ident, $type:ty, { $($pattern:pat => $name:literal,)* }) => {
        const $list: &[&str] = &[$($name),*];

        fn $function(value: &$type) -> &'static str {
            match value {
                $($pattern => $name,)*
            }
        }
    };
}

names!(OUTPUTS, output, Output, {
    Output::Act(_) => "act",
    Output::Halt(_) => "halt",
    Output::ActOnVolume(_) => "act on a volume",
    Output::LookAtStores => "look at the stores",
    Output::LookAtRoom(..) => "look at the room",
    Output::Collect(_) => "collect",
    Output::Fetch(_) => "fetch",
    Output::StopFetching(_) => "stop fetching",
    Output::DiscardFetched(_) => "discard what was fetched",
    Output::Persist(_) => "persist",
    Output::Forget(_) => "forget",
    Output::Report(_) => "report",
    Output::ReportVolume(_) => "report about a volume",
    Output::ReportSnapshot(_) => "report about a snapshot",
    Output::Look(_) => "look",
    Output::ReadConsole(_) => "read the console",
    Output::Alarm(..) => "alarm",
    Output::AlarmAboutVolume(..) => "alarm about a volume",
});

/// Nobody lies in these lives, so an alarm ends the test; and no download leaves a part behind.
const NEVER: [&str; 3] = ["alarm", "alarm about a volume", "discard what was fetched"];

names!(STEPS, step, Step, {
    Step::Image => "step: image",
    Step::Disk => "step: disk",
    Step::Seed => "step: seed",
    Step::Network => "step: network",
    Step::Define => "step: define",
    Step::Tag => "step: tag",
    Step::Start => "step: start",
    Step::Pause => "step: pause",
    Step::Resume => "step: resume",
    Step::Volumes => "step: volumes",
    Step::AskShutdown => "step: ask to shut down",
    Step::Destroy => "step: destroy",
    Step::Undefine => "step: undefine",
    Step::Disconnect => "step: disconnect",
    Step::Quarantine => "step: quarantine",
});

names!(RUNGS, rung, Rung, {
    Rung::Ask => "stop by hand: ask",
    Rung::Destroy => "stop by hand: destroy",
});

names!(VOLUME_STEPS, volume_step, VolumeAction, {
    VolumeAction::Make(DiskRule::MayMake) => "volume: make",
    VolumeAction::Make(DiskRule::MustExist) => "volume: find",
    VolumeAction::Restore(_) => "volume: restore",
    VolumeAction::Keep(_, DiskRule::MayMake) => "volume: make a snapshot",
    VolumeAction::Keep(_, DiskRule::MustExist) => "volume: find a snapshot",
    VolumeAction::QuarantineSnapshot(_) => "volume: quarantine a snapshot",
    VolumeAction::Quarantine(_) => "volume: quarantine",
});

/// [`VolumeAction::Make`] of a volume that begins with a snapshot.
const CLONE: &str = "volume: clone";

names!(REMNANTS, remnant, Remnant, {
    Remnant::Of(ReportSubject::Vm(_)) => "collect: a VM's disk",
    Remnant::Of(ReportSubject::Volume(_)) => "collect: a volume",
    Remnant::Of(ReportSubject::Snapshot(..)) => "collect: a snapshot",
    Remnant::Replaced(..) => "collect: what a volume held",
});

/// [`VolumeAction::Keep`] of a volume that a VM has.
const SNAPSHOT_IN_USE: &str = "volume: make a snapshot of one in use";

/// [`Collection::Image`].
const COLLECT_IMAGE: &str = "collect: an image";

names!(WISHES, wish, Wish, {
    Wish::Be(Wanted::Running) => "run",
    Wish::Be(Wanted::Stopped) => "stop",
    Wish::Be(Wanted::Paused) => "pause",
    Wish::Be(Wanted::Deleted) => "delete",
    Wish::Reboot => "reboot",
    Wish::ForcedStop => "stop by force",
    Wish::LocalStop(StopManner::Graceful) => "stop by hand",
    Wish::LocalStop(StopManner::Forced) => "stop by hand and force",
    Wish::Resize => "resize",
    Wish::Protect => "protect",
    Wish::Close => "close the network",
    Wish::Once => "start once",
    Wish::NewVolume => "make a volume",
    Wish::Attach(_) => "attach",
    Wish::Grow => "grow",
    Wish::Detach(_) => "detach",
    Wish::Snapshot => "snapshot",
    Wish::Restore => "restore",
    Wish::Clone => "clone",
    Wish::DeleteSnapshot => "delete a snapshot",
    Wish::DeleteVolume(_) => "delete a volume",
});

/// What a kind of payload asks of the host that carries the object.
#[derive(Debug)]
enum Asks {
    /// These wishes.
    For(&'static [&'static str]),
    /// Nothing: why.
    Nothing(&'static str),
}

const RULES: Asks = Asks::Nothing("says who may decide, and changes no machine");
const OTHERS: Asks = Asks::Nothing("what VMs lose by it comes to their hosts as versions of VMs");
const TOLD: Asks = Asks::Nothing("said by hosts, not to them");

/// Every kind of payload.
const KINDS: &[(&str, Asks)] = &[
    ("operator.propose", RULES),
    ("operator.approve", RULES),
    ("operator.withdraw", RULES),
    ("operator.rotate_key", RULES),
    ("host.join", RULES),
    ("host.drain", Asks::Nothing("says where new VMs go; those that are here stay")),
    ("host.resume", Asks::Nothing("says where new VMs go; those that are here stay")),
    ("host.leave", OTHERS),
    ("host.rotate_ledger_key", RULES),
    ("account.grant", RULES),
    ("account.revoke", OTHERS),
    ("account.add_key", RULES),
    ("account.remove_key", RULES),
    ("account.rotate_key", RULES),
    ("image.register", Asks::Nothing("names places; they are fetched from for a VM")),
    ("image.retire", Asks::Nothing("takes places away; VMs that have the image keep it")),
    ("vm.create", Asks::For(&["run", "start once"])),
    ("vm.start", Asks::For(&["run"])),
    ("vm.stop", Asks::For(&["stop", "stop by force"])),
    ("vm.pause", Asks::For(&["pause"])),
    ("vm.resume", Asks::For(&["run"])),
    ("vm.reboot", Asks::For(&["reboot"])),
    ("vm.resize", Asks::For(&["resize"])),
    ("vm.protect", Asks::For(&["protect"])),
    ("vm.network", Asks::For(&["close the network"])),
    ("vm.delete", Asks::For(&["delete"])),
    ("volume.create", Asks::For(&["make a volume"])),
    ("volume.attach", Asks::For(&["attach"])),
    ("volume.detach", Asks::For(&["detach"])),
    ("volume.grow", Asks::For(&["grow"])),
    ("volume.protect", Asks::Nothing("forbids a later payload; no host knows of it")),
    ("volume.delete", Asks::For(&["delete a volume"])),
    ("volume.snapshot", Asks::For(&["snapshot"])),
    ("volume.restore", Asks::For(&["restore"])),
    ("volume.clone", Asks::For(&["clone"])),
    ("snapshot.delete", Asks::For(&["delete a snapshot"])),
    ("report.vm", TOLD),
    ("report.volume", TOLD),
    ("report.snapshot", TOLD),
];

/// A death of the agent or of the hypervisor's process: in which act, and when.
pub(super) type Death = (&'static str, When);

/// When in an act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum When {
    /// It was decided and not begun: not even its record is written.
    Before,
    /// Its record is written, and it took effect or did not.
    Within,
    /// It took effect, and nobody was told.
    After,
}

/// Whether the act asks the host for something, so that an agent can die within. (What fetches an
/// image is a task beside the agent.)
pub(super) fn has_inside(name: &str) -> bool {
    let prefixes = ["step: ", "stop by hand: ", "volume: ", "collect: "];
    prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// The act's name, as exact as there is one.
pub(super) fn name(act: &Output) -> &'static str {
    match act {
        Output::Act(job) => step(&job.action.step()),
        Output::Halt(job) => rung(&job.rung),
        Output::ActOnVolume(job) => name_of_volume_job(job),
        Output::Collect(collection) => match &**collection {
            Collection::Remains(proof) => remnant(&proof.subject()),
            Collection::Image(_) => COLLECT_IMAGE,
        },
        other => output(other),
    }
}

fn name_of_volume_job(job: &VolumeJob) -> &'static str {
    match (&job.action, &job.volume.origin) {
        (VolumeAction::Make(DiskRule::MayMake), Some(_)) => CLONE,
        (VolumeAction::Keep(_, DiskRule::MayMake), _) if job.volume.used_by.vm().is_some() => {
            SNAPSHOT_IN_USE
        }
        (action, _) => volume_step(action),
    }
}

#[test]
fn no_operation_and_no_step_of_a_host_is_left_out_of_the_lives_that_are_lived_with_a_death() {
    let kinds: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, Body::KINDS, "say what a kind of payload asks of hosts");

    let wished = LIVES.iter().flat_map(|life| life.wishes).map(|(it, _)| wish(it));
    let wished: BTreeSet<&str> = wished.collect();
    assert_eq!(wished, WISHES.iter().copied().collect(), "a wish that is in no life");
    for (kind, asks) in KINDS {
        match asks {
            Asks::For(wishes) => {
                assert!(wishes.iter().all(|it| wished.contains(it)), "no life has {kind}: {asks:?}")
            }
            Asks::Nothing(why) => assert!(!why.is_empty()),
        }
    }

    let mut lived = BTreeSet::new();
    for life in LIVES {
        for guest in [Guest::Obeys, Guest::Ignores] {
            let whole = live(life, guest, Victim::Agent, None);
            lived.extend(whole.lived);
            // What was made before is only looked for by an agent that starts.
            let points = (0..whole.points).step_by(5);
            lived.extend(
                points.flat_map(|point| live(life, guest, Victim::Agent, Some(point)).lived),
            );
        }
    }
    // An act whose kinds have names of their own goes by those.
    let general = ["act", "halt", "act on a volume", "collect"];
    let plain = OUTPUTS.iter().filter(|it| !general.contains(it) && !NEVER.contains(it));
    let kinds = [STEPS, RUNGS, VOLUME_STEPS, REMNANTS].into_iter().flatten();
    let all: BTreeSet<&str> =
        plain.chain(kinds).copied().chain([CLONE, SNAPSHOT_IN_USE, COLLECT_IMAGE]).collect();
    assert_eq!(lived, all, "what no life has is on the right only");
}
