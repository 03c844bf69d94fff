//! A request that arrives while a step for the one before it is carried out: what that step did, or
//! failed to do, counts for nothing in the new generation but what is seen.

use dagger_agent::controller::{Action, DiskRule, Outcome, Output, Step};
use dagger_agent::handover::AttestedVm;
use dagger_agent::hypervisor::Power;
use dagger_payload::id::VolumeId;
use dagger_payload::kind::ReportPhase;
use dagger_payload::object::Wanted;

use super::desk::{Desk, phases, reason, steps};
use super::support::{VM, accepted, after, ours, report, wants};
use super::volumes::{VOLUME, with_volumes};

/// Another volume.
const OTHER: VolumeId = VolumeId([9; 16]);

/// A VM that runs in its first generation, without volumes.
fn running() -> (Desk, AttestedVm) {
    let running = after(&accepted(), |vm| vm.reported = Some(report(1, ReportPhase::Running)));
    let (desk, _) = Desk::live(std::slice::from_ref(&running), Some(ours(Power::Running, 1)));
    (desk, running)
}

#[test]
fn a_volume_detached_while_it_is_being_given_is_taken_away_before_the_vm_is_reported() {
    let (mut desk, running) = running();
    let given = with_volumes(&running, &[VOLUME]);
    assert_eq!(steps(&desk.vm(&given)), [Step::Volumes]);
    let taken = with_volumes(&given, &[]);
    assert_eq!(desk.vm(&taken), [], "two steps at a time");
    let outputs = desk.done(Step::Volumes, Some(ours(Power::Running, 1)));
    assert_eq!((steps(&outputs), phases(&outputs)), (vec![Step::Volumes], vec![]));
    let outputs = desk.done(Step::Volumes, Some(ours(Power::Running, 1)));
    assert_eq!((steps(&outputs), phases(&outputs)), (vec![Step::Tag], vec![]));
    assert_eq!(
        phases(&desk.done(Step::Tag, Some(ours(Power::Running, 3)))),
        [ReportPhase::Running]
    );
}

#[test]
fn of_two_volumes_attached_quickly_one_after_the_other_both_are_given() {
    let (mut desk, running) = running();
    let first = with_volumes(&running, &[VOLUME]);
    assert_eq!(steps(&desk.vm(&first)), [Step::Volumes]);
    let both = with_volumes(&first, &[VOLUME, OTHER]);
    desk.vm(&both);
    assert_eq!(
        steps(&desk.done(Step::Volumes, Some(ours(Power::Running, 1)))),
        [Step::Volumes],
        "the second volume was never given"
    );
    // The same when the second comes while the first is written on the machine.
    desk.done(Step::Volumes, Some(ours(Power::Running, 1)));
    let third = with_volumes(&both, &[OTHER]);
    desk.vm(&third);
    let outputs = desk.done(Step::Tag, Some(ours(Power::Running, 3)));
    assert_eq!((steps(&outputs), phases(&outputs)), (vec![Step::Volumes], vec![]));
}

#[test]
fn a_vm_resized_while_it_is_being_defined_is_defined_again_before_it_starts() {
    let (mut desk, _) = Desk::live(&[accepted()], None);
    for step in [Step::Image, Step::Disk, Step::Seed, Step::Network] {
        desk.done(step, None);
    }
    let mut larger = wants(&accepted(), Wanted::Running);
    larger.vm.size.cpus = 4;
    assert_eq!(desk.vm(&larger), []);
    let outputs = desk.done(Step::Define, Some(ours(Power::Stopped, 1)));
    assert_eq!(steps(&outputs), [Step::Image]);
    for step in [Step::Image, Step::Disk, Step::Seed] {
        desk.done(step, None);
    }
    let outputs = desk.done(Step::Network, None);
    assert!(
        matches!(&outputs[..], [Output::Act(job)]
            if job.action == Action::Define && job.vm.size.cpus == 4),
        "{outputs:?}"
    );
}

#[test]
fn what_was_refused_for_ever_in_an_older_generation_is_tried_in_the_new_one() {
    let (mut desk, _) = Desk::live(&[accepted()], None);
    let again = wants(&accepted(), Wanted::Running);
    desk.vm(&again);
    let refused = || Outcome::Terminal("image_refused: has a backing file".to_owned());
    let outputs = desk.finish(Step::Image, refused(), None);
    assert_eq!((steps(&outputs), phases(&outputs)), (vec![Step::Image], vec![]));
    let outputs = desk.finish(Step::Image, refused(), None);
    assert_eq!(phases(&outputs), [ReportPhase::Degraded]);
    assert!(reason(&outputs).starts_with("image_refused:"));
}

#[test]
fn a_guest_asked_to_switch_off_for_an_older_request_is_asked_anew_for_the_next() {
    let (mut desk, running) = running();
    let stopped = wants(&running, Wanted::Stopped);
    assert_eq!(steps(&desk.vm(&stopped)), [Step::AskShutdown]);
    desk.vm(&wants(&stopped, Wanted::Stopped));
    desk.now = desk.now.plus(std::time::Duration::from_secs(29));
    let outputs = desk.done(Step::AskShutdown, Some(ours(Power::Running, 1)));
    assert_eq!(steps(&outputs), [Step::AskShutdown]);
}

#[test]
fn an_outcome_nobody_knows_is_looked_at_also_when_it_is_of_an_older_generation() {
    let (mut desk, running) = running();
    let given = with_volumes(&running, &[VOLUME]);
    desk.vm(&given);
    desk.vm(&wants(&given, Wanted::Deleted));
    let unknown = Outcome::Unknown("deadline_passed: it hangs".to_owned());
    let outputs = desk.finish(Step::Volumes, unknown, None);
    assert_eq!(outputs, [Output::Look(VM)]);
}

#[test]
fn a_disk_made_for_an_older_generation_is_never_made_again() {
    let (mut desk, _) = Desk::live(&[accepted()], None);
    desk.done(Step::Image, None);
    desk.vm(&wants(&accepted(), Wanted::Running));
    assert_eq!(steps(&desk.done(Step::Disk, None)), [Step::Image]);
    let outputs = desk.done(Step::Image, None);
    assert!(
        matches!(&outputs[..], [Output::Act(job)]
            if job.action == Action::Disk(DiskRule::MustExist)),
        "{outputs:?}"
    );
}
