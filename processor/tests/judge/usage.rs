//! What VMs are metered for.

use dagger_payload::id::AccountId;
use dagger_payload::kind::VmResize;
use dagger_payload::object::Agreement;
use dagger_payload::usage::{Metered, PastUsage, Used};

use super::*;

/// `cpus`, 512 MiB and 10 GiB, for so many milliseconds.
fn used(guest: &[(u64, u64)], disk_ms: u64) -> Used {
    Used {
        cpu_ms: guest.iter().map(|(cpus, ms)| cpus * ms).sum(),
        memory_mib_ms: guest.iter().map(|(_, ms)| 512 * ms).sum(),
        disk_gib_ms: 10 * disk_ms,
    }
}

fn sized(name: &str) -> Body {
    let Body::VmCreate(mut body) = on(name, 1) else { panic!("a vm.create") };
    (body.cpus, body.memory_mib, body.disk_gib) = (1, 512, 10);
    Body::VmCreate(body)
}

#[test]
fn a_guest_is_metered_from_the_report_that_it_runs_to_the_report_that_it_does_not() {
    let mut court = Court::furnished();
    let after = |court: &mut Court, ms: u64| court.now = court.now.plus_ms(ms);
    let vm = court.vm(&developer(), sized("web"));
    assert_eq!(vm.meter.counts, Metered::Nothing);
    after(&mut court, 500);
    let vm = court.report(&vm, 1, ReportPhase::Accepted).expect("accepted");
    after(&mut court, 1_000);
    let vm = court.report(&vm, 1, ReportPhase::Running).expect("runs");
    assert_eq!(vm.meter.used, used(&[], 1_000));
    after(&mut court, 2_000);
    let resize = VmResize { vm: vm.id, cpus: Some(2), memory_mib: None, expected_generation: None };
    let vm = court.vm(&developer(), Body::VmResize(resize));
    after(&mut court, 3_000);
    let vm = court.vm(&developer(), Body::VmStop(change(&vm).into()));
    after(&mut court, 4_000);
    let vm = court.report(&vm, 1, ReportPhase::Stopped).expect("is off");
    assert_eq!(vm.meter.used, used(&[(1, 2_000), (2, 7_000)], 10_000));
    after(&mut court, 5_000);
    let vm = court.vm(&developer(), Body::VmDelete(change(&vm)));
    let gone = report(vm.id, vm.generation, ReportPhase::Deleted);
    let effects = court.accept(&agent_key(1), gone);
    let account = AccountId::of(&developer().public_key());
    let total = used(&[(1, 2_000), (2, 7_000)], 15_000);
    let past = PastUsage { account, host: host(1), vms: 1, used: total };
    assert_eq!(effects.last(), Some(&Effect::Usage(Box::new(past))));
}

#[test]
fn what_a_host_reports_against_the_order_is_marked_and_not_metered_as_running() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), sized("web"));
    let vm = court.report(&vm, 1, ReportPhase::Accepted).expect("accepted");
    let vm = court.report(&vm, 1, ReportPhase::Running).expect("runs");
    let agreement = |vm: &Vm| vm.reported.as_ref().map(|report| report.agreement);
    assert_eq!(agreement(&vm), Some(Agreement::WithOrder));
    let vm = court.vm(&developer(), Body::VmStop(change(&vm).into()));
    let vm = court.report(&vm, 1, ReportPhase::Running).expect("it is kept as evidence");
    assert_eq!(agreement(&vm), Some(Agreement::AgainstOrder));
    assert_eq!(vm.meter.counts, Metered::Disk);
}

#[test]
fn a_degraded_guest_is_not_metered_as_running() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), sized("web"));
    let vm = court.report(&vm, 1, ReportPhase::Accepted).expect("accepted");
    let vm = court.report(&vm, 1, ReportPhase::Degraded).expect("reported");
    assert_eq!(vm.meter.counts, Metered::Disk);
}

/// What an owner asks for once his VM is accepted, if anything.
type Wish = fn(&Vm) -> Option<Body>;

#[test]
fn every_report_that_contradicts_what_is_wanted_is_marked_and_no_other_one() {
    let mut court = Court::furnished();
    let wishes: [(&str, Wish); 4] = [
        ("runs", |_| None),
        ("stops", |vm| Some(Body::VmStop(change(vm).into()))),
        ("pauses", |vm| Some(Body::VmPause(change(vm)))),
        ("goes", |vm| Some(Body::VmDelete(change(vm)))),
    ];
    let mut marked = Vec::new();
    for (wish, body) in wishes {
        let vm = court.vm(&developer(), on(wish, 1));
        let mut vm = court.report(&vm, 1, ReportPhase::Accepted).expect("accepted");
        if let Some(body) = body(&vm) {
            vm = court.vm(&developer(), body);
        }
        let phases = [ReportPhase::Running, ReportPhase::Paused, ReportPhase::Stopped];
        for phase in phases.into_iter().chain([ReportPhase::Degraded]) {
            let told = court.report(&vm, 1, phase).expect("it is kept as evidence");
            let report = told.reported.expect("just now");
            assert_eq!((report.phase, report.generation), (phase, vm.generation));
            if report.agreement == Agreement::AgainstOrder {
                assert_eq!(told.meter.counts, Metered::Disk);
                marked.push((wish, phase));
            }
        }
    }
    let expected = [
        ("stops", ReportPhase::Running),
        ("stops", ReportPhase::Paused),
        ("pauses", ReportPhase::Running),
        ("goes", ReportPhase::Running),
        ("goes", ReportPhase::Paused),
    ];
    assert_eq!(marked, expected);
}
