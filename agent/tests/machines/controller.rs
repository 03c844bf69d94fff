//! The controller's rules, one by one, with nothing but inputs and outputs.

use std::collections::BTreeMap;

use dagger_agent::controller::{
    Action, DiskRule, Input, LocalPolicy, Outcome, Output, QuarantineRoom, Room, Seen, Sighting,
    Step,
};
use dagger_agent::handover::Order;
use dagger_agent::hypervisor::{Machine, Power};
use dagger_agent::journal::{DiskMark, Record};
use dagger_payload::id::{Generation, LedgerTime, Position, VmId};
use dagger_payload::kind::{Capacity, ReportPhase, RestartPolicy, StopManner};
use dagger_payload::object::{Placement, Wanted};

use super::desk::{Desk, phases, reason, reports, steps};
use super::support::{
    ELSEWHERE, HERE, VM, accepted, after, cause, offered, ours, report, wants, wants_reboot,
};

fn record(generation: u64, disk: DiskMark) -> Record {
    let mut record = Record::new(HERE, VM, Generation(generation), cause(generation).digest);
    record.disk = disk;
    record
}

#[test]
fn an_offer_is_accepted_and_nothing_is_done_before_the_acceptance_is_ordered() {
    let (mut desk, outputs) = Desk::live(&[offered()], None);
    assert_eq!((phases(&outputs), steps(&outputs)), (vec![ReportPhase::Accepted], vec![]));
    assert_eq!(desk.vm(&offered()), [], "an acceptance was told twice");
    assert_eq!(steps(&desk.vm(&accepted())), [Step::Image]);
}

#[test]
fn an_offer_beyond_the_local_policy_is_refused_with_the_reason() {
    let capacity_max = Some(Capacity { cpus: 1, memory_mib: 128, disk_gib: 10 });
    for policy in [
        LocalPolicy { vms_max: Some(0), ..LocalPolicy::default() },
        LocalPolicy { capacity_max, ..LocalPolicy::default() },
    ] {
        let mut desk = Desk::with(BTreeMap::new(), policy);
        let outputs = desk.go_live(&[offered()], None);
        assert_eq!((phases(&outputs), steps(&outputs)), (vec![ReportPhase::Refused], vec![]));
        assert!(reason(&outputs).starts_with("local_policy:"));
    }
}

#[test]
fn an_offer_that_this_host_has_no_room_for_is_refused_and_one_of_unknown_room_is_not() {
    let nothing = Some(0);
    for (room, code) in [
        (Room { memory_mib: nothing, ..Room::default() }, "memory_full:"),
        (Room { storage_mib: nothing, ..Room::default() }, "disk_full:"),
        (Room { quarantine: QuarantineRoom::Full, ..Room::default() }, "quarantine_full:"),
    ] {
        let mut desk = Desk::having(room);
        let outputs = desk.go_live(&[offered()], None);
        assert_eq!((phases(&outputs), steps(&outputs)), (vec![ReportPhase::Refused], vec![]));
        assert!(reason(&outputs).starts_with(code), "{outputs:?}");
        // Its offer stays refused, whatever is free later.
        desk.room = Room::default();
        assert_eq!(desk.vm(&offered()), []);
    }
    let (_, outputs) = Desk::live(&[offered()], None);
    assert_eq!(phases(&outputs), [ReportPhase::Accepted]);
}

#[test]
fn two_offers_at_once_do_not_get_the_room_of_one() {
    let other = after(&offered(), |vm| vm.id = VmId([200; 16]));
    // The kernel has given nothing to the first one yet when the second is looked at.
    let room = Room { memory_mib: Some(512), ..Room::default() };
    let mut desk = Desk::having(room);
    let outputs = desk.go_live(&[offered(), other.clone()], None);
    assert_eq!(phases(&outputs), [ReportPhase::Accepted, ReportPhase::Refused]);
    let reports = reports(&outputs);
    assert_eq!((reports[0].vm, reports[1].vm), (VM, other.vm.id));

    // What has its memory already is in the kernel's figure.
    let mut desk = Desk::having(room);
    let outputs = desk.go_live(&[accepted(), other], Some(ours(Power::Running, 1)));
    assert_eq!(phases(&outputs), [ReportPhase::Accepted, ReportPhase::Running]);
}

#[test]
fn an_offer_to_another_host_or_past_its_deadline_is_left_alone() {
    let other = after(&offered(), |vm| {
        let address = vm.placement.address().unwrap();
        vm.placement = Placement::Offered { host: ELSEWHERE, address, deadline: LedgerTime(9) };
    });
    assert_eq!(Desk::live(&[offered(), other], None).1, []);
    let mut desk = Desk::new();
    desk.order(Order::LedgerTime(LedgerTime(10_001)));
    assert_eq!(desk.go_live(&[offered()], None), []);
}

#[test]
fn nothing_is_done_while_the_ledgers_view_is_too_old() {
    let (mut desk, _) = Desk::live(&[accepted()], None);
    desk.order(Order::Hold("older than before".to_owned()));
    assert_eq!(desk.done(Step::Image, None), []);
    assert_eq!(desk.inventory(None), []);
    assert_eq!(desk.controller.hold(), Some("older than before"));
    assert_eq!(steps(&desk.caught_up()), [Step::Disk]);
}

#[test]
fn on_hold_nobody_is_woken_for_what_cannot_be_done_and_it_is_done_afterwards() {
    let (mut desk, _) = Desk::live(&[accepted()], None);
    desk.finish(Step::Image, Outcome::Retryable("image_missing: not here".to_owned()), None);
    desk.order(Order::Hold("older than before".to_owned()));
    assert_eq!(desk.wait(60), []);
    assert_eq!(desk.controller.next_wake(), None, "the agent would go round in circles");
    assert_eq!(steps(&desk.caught_up()), [Step::Image]);
}

#[test]
fn nothing_is_done_while_what_is_seen_is_unknown() {
    for version in [accepted(), wants(&accepted(), Wanted::Deleted)] {
        let mut desk = Desk::new();
        desk.vm(&version);
        assert_eq!(desk.caught_up(), [Output::Look(VM)]);
        assert_eq!(desk.vm(&version), [], "a look was asked for twice");
        desk.take(Input::SightLost { ticket: 5 });
        desk.ticket = 3;
        assert_eq!(steps(&desk.inventory(None)), [], "a look from before the loss was believed");
        desk.ticket = 9;
        assert_eq!(steps(&desk.inventory(None)).len(), 1);
    }
}

#[test]
fn a_look_from_before_the_sight_was_lost_counts_for_nobody_that_is_told_since() {
    let mut desk = Desk::new();
    desk.caught_up();
    desk.take(Input::SightLost { ticket: 5 });
    assert_eq!(desk.vm(&accepted()), [Output::Look(VM)]);
    desk.ticket = 3;
    assert_eq!(desk.inventory(None), [], "a look from before the loss was believed");
    desk.ticket = 9;
    assert_eq!(steps(&desk.inventory(None)), [Step::Image]);
}

#[test]
fn a_vm_is_made_step_by_step_and_reported_once_it_runs() {
    let (mut desk, outputs) = Desk::live(&[accepted()], None);
    assert_eq!(steps(&outputs), [Step::Image]);
    assert_eq!(steps(&desk.done(Step::Image, None)), [Step::Disk]);
    assert_eq!(steps(&desk.done(Step::Disk, None)), [Step::Seed]);
    assert_eq!(steps(&desk.done(Step::Seed, None)), [Step::Network]);
    assert_eq!(steps(&desk.done(Step::Network, None)), [Step::Define]);
    assert_eq!(steps(&desk.done(Step::Define, Some(ours(Power::Stopped, 1)))), [Step::Start]);
    let outputs = desk.done(Step::Start, Some(ours(Power::Running, 1)));
    assert_eq!(phases(&outputs), [ReportPhase::Running]);
    assert_eq!(desk.see(ours(Power::Running, 1)), [], "an unchanged sight was told again");
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBd0cmFuc3BhcmVudGx5IG5vdCBhIHJlYWwga2V5";
    let outputs = desk.take(Input::GuestHostKey(VM, key.parse().unwrap()));
    assert_eq!(reports(&outputs)[0].guest_host_key.as_ref().unwrap().as_str(), key);
    let another = key.replace("AAAAIBd0", "AAAAIAd0").parse().unwrap();
    let outputs = desk.take(Input::GuestHostKey(VM, another));
    assert_eq!(outputs, [], "a key that was reported gave way to another");
}

#[test]
fn an_older_report_that_is_ordered_late_is_contradicted() {
    let (mut desk, _) = Desk::live(&[accepted()], None);
    desk.make();
    desk.done(Step::Start, Some(ours(Power::Running, 1)));
    let ordered = |phase| after(&accepted(), |vm| vm.reported = Some(report(1, phase)));
    assert_eq!(desk.vm(&ordered(ReportPhase::Accepted)), [], "the newer one is under way");
    assert_eq!(desk.vm(&ordered(ReportPhase::Running)), []);
    let outputs = desk.vm(&ordered(ReportPhase::Degraded));
    assert_eq!(phases(&outputs), [ReportPhase::Running]);
    assert_eq!(desk.vm(&ordered(ReportPhase::Degraded)), [], "it was said twice");
    assert_eq!(desk.vm(&ordered(ReportPhase::Running)), []);
}

#[test]
fn the_disk_of_a_vm_that_the_order_saw_running_is_not_made_anew_by_a_host_that_lost_all() {
    let used = |cpu_ms| after(&accepted(), |vm| vm.meter.used.cpu_ms = cpu_ms);
    for (cpu_ms, rule) in [(0, DiskRule::MayMake), (1, DiskRule::MustExist)] {
        let (mut desk, _) = Desk::live(&[used(cpu_ms)], None);
        let outputs = desk.done(Step::Image, None);
        let made = outputs.iter().find_map(|output| match output {
            Output::Act(job) => Some(job.action.clone()),
            _ => None,
        });
        assert_eq!(made, Some(Action::Disk(rule)));
    }
}

#[test]
fn a_second_request_for_a_vm_that_boots_stops_nothing() {
    let (mut desk, _) = Desk::live(&[accepted()], None);
    assert_eq!(desk.vm(&accepted()), []);
    desk.make();
    assert_eq!(desk.vm(&accepted()), []);
    let again = after(&accepted(), |vm| vm.reported = Some(report(1, ReportPhase::Accepted)));
    assert_eq!(desk.vm(&again), []);
}

#[test]
fn a_lower_generation_is_rejected_and_an_equal_one_by_another_payload_holds_the_vm() {
    let stopped = wants(&accepted(), Wanted::Stopped);
    let (mut desk, _) = Desk::live(&[accepted(), stopped.clone()], Some(ours(Power::Stopped, 2)));
    assert_eq!(desk.vm(&accepted()), [], "a lower generation was taken");
    let twin = after(&stopped, |vm| {
        vm.wanted = Wanted::Deleted;
        vm.changed = cause(9);
    });
    let outputs = desk.vm(&twin);
    assert!(matches!(&outputs[0], Output::Persist(record) if record.evidence.len() == 1));
    assert!(matches!(&outputs[1], Output::Alarm(vm, _) if *vm == VM));
    assert_eq!(steps(&outputs), []);
    assert_eq!(steps(&desk.see(ours(Power::Running, 2))), [], "a held VM was touched");
}

#[test]
fn a_view_older_than_the_journal_or_the_tags_holds_the_vm() {
    let mut desk = Desk::with([(VM, record(2, DiskMark::Made))].into(), LocalPolicy::default());
    let outputs = desk.go_live(&[accepted()], None);
    assert!(matches!(&outputs[..], [Output::Alarm(..)]), "{outputs:?}");
    let (desk, outputs) = Desk::live(&[accepted()], Some(ours(Power::Stopped, 3)));
    assert!(matches!(&outputs[..], [Output::Alarm(..)]), "{outputs:?}");
    assert!(desk.controller.sights()[&VM].reason.as_ref().unwrap().starts_with("older_view:"));
}

#[test]
fn a_vm_that_was_accepted_here_cannot_move() {
    let mut desk = Desk::with([(VM, record(1, DiskMark::Made))].into(), LocalPolicy::default());
    let moved = after(&accepted(), |vm| {
        let address = vm.placement.address().unwrap();
        vm.placement = Placement::Accepted { host: ELSEWHERE, address, position: Position(9) };
    });
    let outputs = desk.go_live(&[moved], Some(ours(Power::Running, 1)));
    assert!(matches!(&outputs[..], [Output::Alarm(..)]), "{outputs:?}");
}

#[test]
fn a_machine_under_our_name_with_other_tags_is_told_and_never_touched() {
    let foreign = Some(Machine::Foreign("another host's tags".to_owned()));
    for version in [accepted(), wants(&accepted(), Wanted::Deleted)] {
        let (mut desk, outputs) = Desk::live(&[version], foreign.clone());
        assert_eq!((phases(&outputs), steps(&outputs)), (vec![ReportPhase::Degraded], vec![]));
        assert!(reason(&outputs).starts_with("name_occupied:"));
        assert_eq!(desk.inventory(foreign.clone()), []);
    }
}

#[test]
fn a_disk_that_existed_is_never_made_anew() {
    let rule = |outputs: &[Output]| match outputs {
        [Output::Act(job)] => match job.action {
            Action::Disk(rule) => rule,
            ref other => panic!("not a disk step: {other:?}"),
        },
        other => panic!("not one step: {other:?}"),
    };
    let (mut desk, _) = Desk::live(&[accepted()], None);
    assert_eq!(rule(&desk.done(Step::Image, None)), DiskRule::MayMake);
    // The journal says so, or this host told the ledger so, or the machine is still defined.
    let mut desk = Desk::with([(VM, record(1, DiskMark::Made))].into(), LocalPolicy::default());
    desk.go_live(&[accepted()], None);
    assert_eq!(rule(&desk.done(Step::Image, None)), DiskRule::MustExist);
    let ran = after(&accepted(), |vm| vm.reported = Some(report(1, ReportPhase::Running)));
    for (version, machine) in [(ran, None), (accepted(), Some(ours(Power::Stopped, 1)))] {
        let (mut desk, _) = Desk::live(&[version], machine);
        assert_eq!(rule(&desk.done(Step::Image, None)), DiskRule::MustExist);
    }
}

#[test]
fn a_guest_that_stops_by_itself_is_started_three_times_and_then_told() {
    let (mut desk, _) = Desk::live(&[accepted()], None);
    desk.make();
    desk.done(Step::Start, Some(ours(Power::Running, 1)));
    for _ in 0..3 {
        assert_eq!(steps(&desk.see(ours(Power::Stopped, 1))), [Step::Image]);
        assert_eq!(steps(&desk.make()), [Step::Start]);
        desk.done(Step::Start, Some(ours(Power::Running, 1)));
    }
    let outputs = desk.see(ours(Power::Stopped, 1));
    assert_eq!((phases(&outputs), steps(&outputs)), (vec![ReportPhase::Degraded], vec![]));
    assert!(reason(&outputs).starts_with("guest_stopped:"));
    let again = wants(&wants(&accepted(), Wanted::Stopped), Wanted::Running);
    assert_eq!(steps(&desk.vm(&again)), [Step::Image], "the owner could not start it again");
}

#[test]
fn a_guest_that_ignores_the_power_button_is_asked_again_and_then_switched_off() {
    let (mut desk, _) = Desk::live(&[accepted()], Some(ours(Power::Running, 1)));
    let outputs = desk.vm(&wants(&accepted(), Wanted::Stopped));
    assert_eq!(steps(&outputs), [Step::AskShutdown]);
    let mut asked = 1;
    desk.done(Step::AskShutdown, Some(ours(Power::Running, 1)));
    let last = (0..60).find_map(|_| {
        let outputs = desk.wait(1);
        match steps(&outputs)[..] {
            [] => None,
            [Step::AskShutdown] => {
                asked += 1;
                desk.done(Step::AskShutdown, Some(ours(Power::Running, 1)));
                None
            }
            ref other => Some((desk.now.0.as_secs(), other.to_vec())),
        }
    });
    assert_eq!(last, Some((30, vec![Step::Destroy])));
    assert!(asked >= 3);
    let outputs = desk.done(Step::Destroy, Some(ours(Power::Stopped, 1)));
    assert_eq!(steps(&outputs), [Step::Tag]);
    let outputs = desk.done(Step::Tag, Some(ours(Power::Stopped, 2)));
    assert_eq!(phases(&outputs), [ReportPhase::Stopped]);
}

#[test]
fn a_forced_stop_asks_nobody_also_while_the_guest_was_being_asked() {
    let (mut desk, _) = Desk::live(&[accepted()], Some(ours(Power::Running, 1)));
    let stopped = wants(&accepted(), Wanted::Stopped);
    assert_eq!(steps(&desk.vm(&stopped)), [Step::AskShutdown]);
    desk.done(Step::AskShutdown, Some(ours(Power::Running, 1)));
    let mut forced = wants(&stopped, Wanted::Stopped);
    forced.vm.stop_manner = StopManner::Forced;
    assert_eq!(steps(&desk.vm(&forced)), [Step::Destroy]);
}

#[test]
fn a_guest_is_paused_and_goes_on_where_it_was() {
    let (mut desk, _) = Desk::live(&[accepted()], Some(ours(Power::Running, 1)));
    let paused = wants(&accepted(), Wanted::Paused);
    assert_eq!(steps(&desk.vm(&paused)), [Step::Pause]);
    assert_eq!(steps(&desk.done(Step::Pause, Some(ours(Power::Paused, 1)))), [Step::Tag]);
    let outputs = desk.done(Step::Tag, Some(ours(Power::Paused, 2)));
    assert_eq!(phases(&outputs), [ReportPhase::Paused]);
    let resumed = wants(&paused, Wanted::Running);
    assert_eq!(steps(&desk.vm(&resumed)), [Step::Resume]);
    assert_eq!(steps(&desk.done(Step::Resume, Some(ours(Power::Running, 2)))), [Step::Tag]);
    let outputs = desk.done(Step::Tag, Some(ours(Power::Running, 3)));
    assert_eq!((phases(&outputs), steps(&outputs)), (vec![ReportPhase::Running], vec![]));
}

#[test]
fn a_guest_that_does_not_go_on_is_told_so_once_and_then_degraded() {
    let (mut desk, outputs) = Desk::live(&[accepted()], Some(ours(Power::Paused, 1)));
    assert_eq!(steps(&outputs), [Step::Resume]);
    let outputs = desk.done(Step::Resume, Some(ours(Power::Paused, 1)));
    assert_eq!((phases(&outputs), steps(&outputs)), (vec![ReportPhase::Degraded], vec![]));
    let outputs = desk.see(ours(Power::Running, 1));
    assert_eq!(phases(&outputs), [ReportPhase::Running]);
}

#[test]
fn a_paused_guest_that_is_switched_off_stays_off_until_it_is_started() {
    let paused = wants(&accepted(), Wanted::Paused);
    let (mut desk, _) = Desk::live(std::slice::from_ref(&paused), Some(ours(Power::Paused, 2)));
    let outputs = desk.see(ours(Power::Stopped, 2));
    assert_eq!((phases(&outputs), steps(&outputs)), (vec![ReportPhase::Stopped], vec![]));
    assert_eq!(steps(&desk.vm(&wants(&paused, Wanted::Running))), [Step::Image]);
}

#[test]
fn a_guest_that_is_not_to_be_restarted_stays_off_when_it_stops_by_itself() {
    let mut once = accepted();
    once.vm.restart = RestartPolicy::Never;
    let (mut desk, _) = Desk::live(std::slice::from_ref(&once), Some(ours(Power::Running, 1)));
    let outputs = desk.see(ours(Power::Stopped, 1));
    assert_eq!((phases(&outputs), steps(&outputs)), (vec![ReportPhase::Stopped], vec![]));
    assert_eq!(steps(&desk.vm(&wants(&once, Wanted::Running))), [Step::Image]);
}

#[test]
fn a_guest_that_is_not_to_be_restarted_is_defined_again_and_stays_off_when_the_host_forgot_it() {
    let mut once = accepted();
    once.vm.restart = RestartPolicy::Never;
    let ran = after(&once, |vm| vm.reported = Some(report(1, ReportPhase::Running)));
    // The host was switched off and on: of its machines it knows what stands in the journal, or, if
    // that is lost too, what it told the ledger.
    let mut kept = record(1, DiskMark::Made);
    kept.done.insert(Step::Start);
    for records in [BTreeMap::from([(VM, kept)]), BTreeMap::new()] {
        let mut desk = Desk::with(records, LocalPolicy::default());
        let mut outputs = desk.go_live(std::slice::from_ref(&ran), None);
        for step in [Step::Image, Step::Disk, Step::Seed, Step::Network, Step::Define] {
            assert_eq!(steps(&outputs), [step]);
            let machine = (step == Step::Define).then(|| ours(Power::Stopped, 1));
            outputs = desk.done(step, machine);
        }
        assert_eq!((phases(&outputs), steps(&outputs)), (vec![ReportPhase::Stopped], vec![]));
    }
}

#[test]
fn a_reboot_switches_off_and_on_once_and_takes_up_the_new_definition() {
    let (mut desk, _) = Desk::live(&[accepted()], Some(ours(Power::Running, 1)));
    let reboot = wants_reboot(&accepted());
    assert_eq!(steps(&desk.vm(&reboot)), [Step::AskShutdown]);
    desk.done(Step::AskShutdown, Some(ours(Power::Running, 1)));
    // The guest obeys: from here on it is made like one that is started.
    assert_eq!(steps(&desk.see(ours(Power::Stopped, 1))), [Step::Image]);
    for step in [Step::Image, Step::Disk, Step::Seed, Step::Network] {
        desk.done(step, None);
    }
    assert_eq!(steps(&desk.done(Step::Define, Some(ours(Power::Stopped, 2)))), [Step::Start]);
    let outputs = desk.done(Step::Start, Some(ours(Power::Running, 2)));
    assert_eq!((phases(&outputs), steps(&outputs)), (vec![ReportPhase::Running], vec![]));
    // Another change of the running VM is not another reboot.
    let later = wants(&reboot, Wanted::Running);
    assert_eq!(steps(&desk.vm(&later)), [Step::Tag]);
}

#[test]
fn a_reboot_is_over_for_a_machine_that_was_started_since() {
    let reboot = wants_reboot(&accepted());
    let (_, outputs) = Desk::live(&[reboot], Some(ours(Power::Running, 2)));
    assert_eq!(steps(&outputs), []);
}

#[test]
fn a_deletion_switches_off_even_what_is_not_seen() {
    let (mut desk, outputs) = Desk::live(&[wants(&accepted(), Wanted::Deleted)], None);
    assert_eq!(steps(&outputs), [Step::Destroy]);
    assert_eq!(steps(&desk.done(Step::Destroy, None)), [Step::Undefine]);
    assert_eq!(steps(&desk.done(Step::Undefine, None)), [Step::Disconnect]);
    assert_eq!(steps(&desk.done(Step::Disconnect, None)), [Step::Quarantine]);
    assert_eq!(phases(&desk.done(Step::Quarantine, None)), [ReportPhase::Deleted]);
    let told = after(&wants(&accepted(), Wanted::Deleted), |vm| {
        vm.reported = Some(report(2, ReportPhase::Deleted));
    });
    assert_eq!(desk.vm(&told), [Output::Forget(VM)]);
    assert!(desk.controller.sights().is_empty());
}

#[test]
fn a_failing_step_is_tried_again_with_growing_pauses_and_told_once() {
    let (mut desk, _) = Desk::live(&[accepted()], None);
    let missing = || Outcome::Retryable("image_missing: not here".to_owned());
    let mut told = Vec::new();
    for pause in [1, 2, 4, 8, 16, 30, 30] {
        told.extend(phases(&desk.finish(Step::Image, missing(), None)));
        assert_eq!(steps(&desk.wait(pause - 1)), [], "it was tried before its time");
        let outputs = desk.wait(1);
        told.extend(phases(&outputs));
        assert_eq!(steps(&outputs), [Step::Image]);
    }
    assert_eq!(told, [ReportPhase::Degraded]);
    desk.done(Step::Image, None);
    desk.make();
    let outputs = desk.done(Step::Start, Some(ours(Power::Running, 1)));
    assert_eq!(phases(&outputs), [ReportPhase::Running], "a VM could not leave degraded");
}

#[test]
fn an_image_that_is_gone_when_its_disk_is_made_is_brought_again() {
    let (mut desk, outputs) = Desk::live(&[accepted()], None);
    assert_eq!(steps(&outputs), [Step::Image]);
    assert_eq!(steps(&desk.done(Step::Image, None)), [Step::Disk]);
    let gone = Outcome::Retryable("image_missing: somebody removed it".to_owned());
    assert_eq!(steps(&desk.finish(Step::Disk, gone, None)), []);
    assert_eq!(steps(&desk.wait(1)), [Step::Image]);
}

#[test]
fn steps_that_succeed_before_a_failing_one_hide_it_neither_from_the_owner_nor_from_the_clock() {
    let (mut desk, _) = Desk::live(&[wants(&accepted(), Wanted::Deleted)], None);
    let mut told = Vec::new();
    for pause in [1, 2, 4, 8] {
        assert_eq!(steps(&desk.done(Step::Destroy, None)), [Step::Undefine]);
        let failed = Outcome::Retryable("hypervisor_failed: it still runs".to_owned());
        told.extend(phases(&desk.finish(Step::Undefine, failed, None)));
        assert_eq!(steps(&desk.wait(pause - 1)), []);
        assert_eq!(steps(&desk.wait(1)), [Step::Destroy]);
    }
    assert_eq!(told, [ReportPhase::Degraded]);
}

#[test]
fn a_degraded_vm_can_be_deleted() {
    let (mut desk, _) = Desk::live(&[accepted()], None);
    let refused = Outcome::Terminal("image_refused: has a backing file".to_owned());
    assert_eq!(phases(&desk.finish(Step::Image, refused, None)), [ReportPhase::Degraded]);
    assert_eq!(desk.wait(3600), [], "what was refused for ever was tried again");
    let outputs = desk.vm(&wants(&accepted(), Wanted::Deleted));
    assert_eq!(steps(&outputs), [Step::Destroy]);
}

#[test]
fn a_step_of_unknown_outcome_is_followed_by_a_look_and_not_by_a_step() {
    let (mut desk, _) = Desk::live(&[accepted()], None);
    desk.make();
    let unknown = Outcome::Unknown("deadline_passed".to_owned());
    assert_eq!(desk.finish(Step::Start, unknown, None), [Output::Look(VM)]);
    assert_eq!(desk.wait(60), []);
    let outputs = desk.see(ours(Power::Running, 1));
    assert_eq!((steps(&outputs), phases(&outputs)), (vec![], vec![ReportPhase::Running]));
}

#[test]
fn a_look_that_began_before_a_step_ended_does_not_count() {
    let (mut desk, _) = Desk::live(&[accepted()], None);
    desk.make();
    let early = desk.ticket;
    desk.done(Step::Start, Some(ours(Power::Running, 1)));
    let stale = Sighting { ticket: early, seen: Seen::Present(ours(Power::Stopped, 1)) };
    assert_eq!(desk.take(Input::Sighting(VM, stale)), []);
}
