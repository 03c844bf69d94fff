//! A stop by hand: in every mode, with the inventory alone, durable, and told once it can be.

use std::collections::BTreeMap;

use dagger_agent::controller::{HaltJob, Input, LocalPolicy, Outcome, Output, Rung, Step};
use dagger_agent::handover::{AttestedVm, Order};
use dagger_agent::hypervisor::{Machine, Power};
use dagger_agent::journal::Record;
use dagger_payload::id::Generation;
use dagger_payload::kind::{ReportPhase, StopManner};
use dagger_payload::object::Wanted;

use super::desk::{Desk, phases, reason, steps};
use super::support::{HERE, VM, accepted, after, cause, ours, report, tags, wants};

fn stop(desk: &mut Desk, manner: StopManner) -> Vec<Output> {
    desk.take(Input::LocalStop(VM, manner, "it mines coins".to_owned()))
}

/// The one stop that is begun, after its record was made durable.
fn halt(outputs: &[Output]) -> HaltJob {
    let halts = outputs.iter().filter_map(|output| match output {
        Output::Halt(job) => Some((**job).clone()),
        _ => None,
    });
    let [job] = &halts.collect::<Vec<_>>()[..] else { panic!("not one stop: {outputs:?}") };
    assert!(job.record.halted_at.is_some() && job.proof.vm() == VM);
    job.clone()
}

fn written(outputs: &[Output]) -> Record {
    match &outputs[0] {
        Output::Persist(record) => (**record).clone(),
        other => panic!("nothing was written down first: {other:?}"),
    }
}

fn running() -> AttestedVm {
    after(&accepted(), |vm| vm.reported = Some(report(1, ReportPhase::Running)))
}

fn off() -> Option<Machine> {
    Some(ours(Power::Stopped, 1))
}

#[test]
fn a_machine_goes_off_at_its_operators_word_and_stays_off_until_its_owner_asks_for_more() {
    let (mut desk, _) = Desk::live(&[running()], Some(ours(Power::Running, 1)));
    let outputs = stop(&mut desk, StopManner::Forced);
    assert_eq!(written(&outputs).halted_at.unwrap().generation, Generation(1));
    assert_eq!(halt(&outputs).rung, Rung::Destroy);
    let outputs = desk.done(Step::Destroy, off());
    assert_eq!((phases(&outputs), steps(&outputs)), (vec![ReportPhase::Stopped], vec![]));
    assert_eq!(reason(&outputs), "local_stop: it mines coins");
    assert_eq!(desk.inventory(off()), [], "it was told or done twice");
    // Its ordered report, and time, change nothing.
    let told = after(&running(), |vm| {
        let mut report = report(1, ReportPhase::Stopped);
        report.reason = Some("local_stop: it mines coins".to_owned());
        vm.reported = Some(report);
    });
    assert_eq!(desk.vm(&told), []);
    assert_eq!(desk.wait(3600), []);
    assert_eq!(steps(&desk.vm(&wants(&told, Wanted::Running))), [Step::Image]);
}

#[test]
fn a_guest_is_asked_first_where_there_is_time() {
    let (mut desk, _) = Desk::live(&[running()], Some(ours(Power::Running, 1)));
    assert_eq!(halt(&stop(&mut desk, StopManner::Graceful)).rung, Rung::Ask);
    desk.done(Step::AskShutdown, Some(ours(Power::Running, 1)));
    let rungs: Vec<_> = (0..40)
        .filter_map(|_| {
            let outputs = desk.wait(1);
            let rung = (!outputs.is_empty()).then(|| halt(&outputs).rung)?;
            let machine = if rung == Rung::Ask { Some(ours(Power::Running, 1)) } else { off() };
            desk.done(rung.step(), machine);
            Some(rung)
        })
        .collect();
    assert_eq!(rungs, [Rung::Ask, Rung::Ask, Rung::Ask, Rung::Destroy]);
}

#[test]
fn it_works_without_any_history_on_what_is_seen_alone() {
    let mut desk = Desk::new();
    assert_eq!(stop(&mut desk, StopManner::Forced), [], "nothing is seen yet");
    desk.inventory(Some(ours(Power::Running, 4)));
    let outputs = stop(&mut desk, StopManner::Forced);
    let record = written(&outputs);
    assert_eq!((record.generation, record.payload), (Generation(4), tags(4).payload));
    assert_eq!(halt(&outputs).generation, Generation(4));
    assert_eq!(desk.done(Step::Destroy, Some(ours(Power::Stopped, 4))), []);

    // The ledger is back: what was done is told, and nothing is started.
    let mut version = running();
    version.vm.generation = Generation(4);
    version.vm.changed = cause(4);
    assert_eq!(desk.vm(&version), []);
    let outputs = desk.caught_up();
    assert_eq!((phases(&outputs), steps(&outputs)), (vec![ReportPhase::Stopped], vec![]));
    assert!(reason(&outputs).starts_with("local_stop:"));
}

#[test]
fn it_works_on_hold_and_for_a_vm_whose_view_is_too_old() {
    let (mut desk, _) = Desk::live(&[running()], Some(ours(Power::Running, 1)));
    desk.order(Order::Hold("older than before".to_owned()));
    assert_eq!(halt(&stop(&mut desk, StopManner::Forced)).rung, Rung::Destroy);
    assert_eq!(desk.done(Step::Destroy, off()), []);
    assert_eq!(phases(&desk.caught_up()), [ReportPhase::Stopped]);

    let (mut desk, outputs) = Desk::live(&[running()], Some(ours(Power::Running, 3)));
    assert!(matches!(&outputs[..], [Output::Alarm(..)]));
    let job = halt(&stop(&mut desk, StopManner::Forced));
    assert_eq!(job.record.halted_at.unwrap().generation, Generation(3));
}

#[test]
fn an_agent_that_restarts_remembers_it_and_goes_on() {
    let (mut desk, _) = Desk::live(&[running()], Some(ours(Power::Running, 1)));
    let record = written(&stop(&mut desk, StopManner::Forced));
    let records = BTreeMap::from([(VM, record)]);
    // Before it was carried out: it is carried out now, history or not.
    let mut desk = Desk::with(records.clone(), LocalPolicy::default());
    assert_eq!(halt(&desk.inventory(Some(ours(Power::Running, 1)))).rung, Rung::Destroy);
    // After: it stays off.
    let mut desk = Desk::with(records, LocalPolicy::default());
    desk.vm(&running());
    desk.inventory(off());
    let outputs = desk.caught_up();
    assert_eq!((phases(&outputs), steps(&outputs)), (vec![ReportPhase::Stopped], vec![]));
    // And with the journal lost, what was told still counts.
    let mut told = running();
    let mut stopped = report(1, ReportPhase::Stopped);
    stopped.reason = Some("local_stop: it mines coins".to_owned());
    told.vm.reported = Some(stopped);
    let (_, outputs) = Desk::live(&[told], off());
    assert_eq!(outputs, []);
}

#[test]
fn a_stop_that_fails_is_tried_again_and_one_under_way_is_waited_for() {
    let (mut desk, _) = Desk::live(&[running()], Some(ours(Power::Running, 1)));
    assert_eq!(steps(&desk.vm(&wants(&running(), Wanted::Paused))), [Step::Pause]);
    let outputs = stop(&mut desk, StopManner::Forced);
    assert!(matches!(&outputs[..], [Output::Persist(_)]), "two steps at a time: {outputs:?}");
    let outputs = desk.done(Step::Pause, Some(ours(Power::Paused, 1)));
    assert_eq!(halt(&outputs).rung, Rung::Destroy);
    let failed = Outcome::Retryable("hypervisor_failed: busy".to_owned());
    let outputs = desk.finish(Step::Destroy, failed, Some(ours(Power::Paused, 1)));
    assert_eq!(outputs, []);
    assert_eq!(halt(&desk.wait(1)).rung, Rung::Destroy);
}

#[test]
fn a_deletion_goes_on_behind_it_and_another_hosts_machine_is_none_of_its_business() {
    let (mut desk, _) = Desk::live(&[running()], Some(ours(Power::Running, 1)));
    halt(&stop(&mut desk, StopManner::Forced));
    desk.done(Step::Destroy, off());
    assert_eq!(steps(&desk.vm(&wants(&running(), Wanted::Deleted))), [Step::Destroy]);

    let mut desk = Desk::new();
    desk.inventory(Some(Machine::Foreign("no tags".to_owned())));
    assert_eq!(stop(&mut desk, StopManner::Forced), []);
    assert_eq!(desk.controller.halt_of(&VM), None);
    assert_eq!(tags(1).host, HERE);
}
