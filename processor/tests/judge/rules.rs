//! Draining, revoking, retiring, protecting, and where a VM goes under each constraint.

use dagger_payload::id::AccountId;
use dagger_payload::kind::{
    AccountRevoke, Apart, ApartBy, ApartStrength, HostChange, ImageRetire, Protection, StopManner,
    VmChange, VmProtect, VmResize, VmStop,
};
use dagger_payload::name::Labels;
use dagger_payload::prediction::HostFit;
use dagger_payload::usage::Metered;

use super::*;

fn declared(index: u8, change: impl FnOnce(&mut HostJoin)) -> Body {
    let Body::HostJoin(mut body) = join(index) else { panic!("a host.join") };
    change(&mut body);
    Body::HostJoin(body)
}

fn ordered(name: &str, change: impl FnOnce(&mut VmCreate)) -> Body {
    let mut body = create_body(name, 1);
    change(&mut body);
    Body::VmCreate(Box::new(body))
}

fn labels(value: &str) -> Labels {
    Labels::from([("tier".parse().expect("a name"), value.parse().expect("a value"))])
}

fn wish(by: ApartBy, strength: ApartStrength) -> Vec<Apart> {
    vec![Apart { from: labels("database"), by, strength }]
}

/// A VM that carries the label which the wishes name.
fn database(name: &str, apart: Vec<Apart>) -> Body {
    ordered(name, |body| {
        body.labels = labels("database");
        body.apart = apart;
    })
}

fn protection(vm: &Vm, protection: Protection) -> Body {
    Body::VmProtect(VmProtect { vm: vm.id, protection, expected_generation: None })
}

fn revoke() -> Body {
    Body::AccountRevoke(AccountRevoke {
        account: AccountId::of(&developer().public_key()),
        expected_generation: None,
    })
}

fn name_of(court: &Court, vm: &Vm) -> u8 {
    let at = vm.placement.host().expect("placed");
    (0..3).find(|index| host(*index) == at).unwrap_or_else(|| panic!("{:?}", court.cluster))
}

/// Why no host takes what `body` asks for.
fn nowhere(court: &mut Court, body: Body) -> String {
    let payload = court.sign(&developer(), body);
    match court.judge.admit(&verify(&payload), court.now) {
        AdmissionOutcome::Refused { refusal } if refusal.code == RefusalCode::NoHostFits => {
            refusal.detail
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_drained_host_keeps_its_vms_and_is_offered_no_more_until_it_resumes() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), on("kept", 1));
    let drain = Body::HostDrain(HostChange { host: host(1), expected_generation: None });
    assert_eq!(court.submit(&operator(0), drain.clone()), Err(RefusalCode::NotAuthorized));
    court.accept(&operator(1), drain.clone());
    assert_eq!(court.accept(&operator(1), drain), vec![]);
    assert_eq!(court.submit(&developer(), on("new", 1)), Err(RefusalCode::NoHostFits));
    // Declaring it anew does not end the draining.
    court.accept(&operator(1), declared(1, |body| body.capacity.cpus += 1));
    assert_eq!(court.submit(&developer(), on("new", 1)), Err(RefusalCode::NoHostFits));
    assert!(court.report(&vm, 1, ReportPhase::Accepted).is_ok());
    court.accept(
        &operator(1),
        Body::HostResume(HostChange { host: host(1), expected_generation: None }),
    );
    court.vm(&developer(), on("new", 1));
}

#[test]
fn a_revoked_grant_lets_vms_be_stopped_and_deleted_and_nothing_start() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), on("web", 1));
    let vm = court.report(&vm, 1, ReportPhase::Accepted).expect("accepted");
    assert_eq!(court.submit(&developer(), revoke()), Err(RefusalCode::NotAuthorized));
    court.accept(&operator(1), revoke());
    assert_eq!(court.submit(&operator(1), revoke()), Err(RefusalCode::NotFound));
    assert_eq!(court.submit(&developer(), on("new", 1)), Err(RefusalCode::NoHostFits));
    let running = court.report(&vm, 1, ReportPhase::Running).expect("it goes on running");
    let stopped = court.vm(&developer(), Body::VmStop(change(&running).into()));
    let start = Body::VmStart(change(&stopped));
    assert_eq!(court.submit(&developer(), start.clone()), Err(RefusalCode::GrantEnded));
    court.accept(&operator(1), grant(4, 4));
    court.vm(&developer(), start);
    court.accept(&operator(1), revoke());
    court.vm(&developer(), Body::VmDelete(change(&stopped)));
}

#[test]
fn an_offer_is_not_accepted_once_its_grant_was_taken_back_or_has_passed() {
    let mut court = Court::furnished();
    let first = court.vm(&developer(), on("first", 1));
    court.accept(&operator(1), revoke());
    // Nobody is asked anew: the host's word that it takes the VM comes too late.
    assert_eq!(court.report(&first, 1, ReportPhase::Accepted), Err(RefusalCode::GrantEnded));
    court.now = court.judge.next_deadline().expect("an open offer");
    let release = court.commit(vec![]);
    let [Effect::Vm(lapsed)] = &release.time_effects[..] else { panic!("{release:?}") };
    assert_eq!(lapsed.placement, Placement::NoHost {});

    // A smaller grant is one, too.
    court.accept(&operator(1), grant(4, 4));
    let second = court.vm(&developer(), on("second", 1));
    court.accept(&operator(1), grant(0, 0));
    court.report(&second, 1, ReportPhase::Accepted).expect("accepted");

    // Its end is within the time that a host has to accept.
    court.now = START.plus_ms(30 * DAY_MS - 1);
    let third = court.vm(&developer(), on("third", 2));
    court.now = court.now.plus_ms(2);
    assert_eq!(court.report(&third, 2, ReportPhase::Accepted), Err(RefusalCode::GrantEnded));
}

#[test]
fn a_grant_whose_time_is_over_starts_nothing_either() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), on("web", 1));
    let vm = court.report(&vm, 1, ReportPhase::Accepted).expect("accepted");
    let stopped = court.vm(&developer(), Body::VmStop(change(&vm).into()));
    court.now = START.plus_ms(30 * DAY_MS + 1);
    let start = Body::VmStart(change(&stopped));
    assert_eq!(court.submit(&developer(), start), Err(RefusalCode::GrantEnded));
    assert_eq!(court.submit(&developer(), create("new", 1)), Err(RefusalCode::AccountUnknown));
}

#[test]
fn an_offer_that_lapses_after_the_revocation_goes_to_no_host_of_that_operator() {
    let mut court = Court::furnished();
    court.vm(&developer(), create("web", 1));
    for index in 0..3 {
        court.accept(&operator(index), revoke());
    }
    court.now = court.judge.next_deadline().expect("an open offer");
    let release = court.commit(vec![]);
    let [Effect::Vm(lost)] = &release.time_effects[..] else { panic!("{release:?}") };
    assert_eq!((lost.state(), &lost.placement), (VmState::Degraded, &Placement::NoHost {}));
}

#[test]
fn nobody_gives_an_image_a_name_under_which_somebody_else_publishes() {
    let mut court = Court::furnished();
    let account = AccountId::of(&developer().public_key());
    let other = AccountId::of(&key(2).public_key());
    for name in ["op0/debian", "op1/debian", "dev/debian", "op9/debian", &format!("{other}/own")] {
        assert_eq!(court.submit(&developer(), image(name)), Err(RefusalCode::NotAuthorized));
    }
    for name in ["op0/debian", "dev/debian", &format!("{account}/own")] {
        assert_eq!(court.submit(&operator(1), image(name)), Err(RefusalCode::NotAuthorized));
    }
    court.accept(&operator(1), image("op1/debian"));
    court.accept(&developer(), own_image());
}

#[test]
fn a_retired_image_boots_nothing_new_and_its_name_stays_taken() {
    let mut court = Court::furnished();
    let retire = Body::ImageRetire(ImageRetire {
        name: "op0/small".parse().expect("a name"),
        expected_generation: None,
    });
    assert_eq!(court.submit(&operator(1), retire.clone()), Err(RefusalCode::NotAuthorized));
    court.vm(&developer(), create("before", 1));
    court.accept(&operator(0), retire.clone());
    assert_eq!(court.accept(&operator(0), retire), vec![]);
    assert_eq!(court.submit(&developer(), create("web", 1)), Err(RefusalCode::ImageUnknown));
    assert_eq!(court.submit(&operator(1), image("op0/small")), Err(RefusalCode::NotAuthorized));
    court.accept(&operator(0), image("op0/small"));
    court.vm(&developer(), create("web", 1));
}

#[test]
fn a_change_meant_for_another_generation_of_a_host_is_refused() {
    let mut court = Court::furnished();
    let at = |number| HostChange { host: host(1), expected_generation: Some(Generation(number)) };
    let submit = |court: &mut Court, body| court.submit(&operator(1), body).map(|_| ());
    assert_eq!(submit(&mut court, Body::HostDrain(at(2))), Err(RefusalCode::Conflict));
    assert_eq!(submit(&mut court, Body::HostDrain(at(1))), Ok(()));
    // Also where nothing would change: the signer saw another version.
    assert_eq!(submit(&mut court, Body::HostDrain(at(1))), Err(RefusalCode::Conflict));
    assert_eq!(submit(&mut court, Body::HostResume(at(1))), Err(RefusalCode::Conflict));
    assert_eq!(submit(&mut court, Body::HostResume(at(2))), Ok(()));
    assert_eq!(submit(&mut court, Body::HostLeave(at(2))), Err(RefusalCode::Conflict));
    assert_eq!(submit(&mut court, Body::HostLeave(at(3))), Err(RefusalCode::StateWrong));
}

#[test]
fn a_change_meant_for_another_generation_of_an_account_or_image_is_refused() {
    let mut court = Court::furnished();
    let Body::AccountGrant(granted) = grant(4, 4) else { panic!("a grant") };
    let granted = |number| {
        let expected_generation = Some(Generation(number));
        Body::AccountGrant(AccountGrant { expected_generation, ..granted.clone() })
    };
    let now = court.accept(&operator(0), grant(4, 4)).into_iter().find_map(|effect| match effect {
        Effect::Account(account) => Some(account.generation.0),
        _ => None,
    });
    let now = now.expect("the account changed");
    assert_eq!(court.submit(&operator(0), granted(0)), Err(RefusalCode::Conflict));
    assert_eq!(court.submit(&operator(0), granted(now - 1)), Err(RefusalCode::Conflict));
    court.accept(&operator(0), granted(now));
    let revoked = |number| {
        let account = AccountId::of(&developer().public_key());
        let expected_generation = Some(Generation(number));
        Body::AccountRevoke(AccountRevoke { account, expected_generation })
    };
    assert_eq!(court.submit(&operator(0), revoked(now)), Err(RefusalCode::Conflict));
    court.accept(&operator(0), revoked(now + 1));
    let retired = |number| {
        let expected_generation = Some(Generation(number));
        let name = "op0/small".parse().expect("a name");
        Body::ImageRetire(ImageRetire { name, expected_generation })
    };
    assert_eq!(court.submit(&operator(0), retired(2)), Err(RefusalCode::Conflict));
    court.accept(&operator(0), retired(1));
}

#[test]
fn a_protected_vm_is_deleted_only_after_it_is_unprotected() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), create("web", 1));
    let protected = court.vm(&developer(), protection(&vm, Protection::Protected));
    assert_eq!((protected.generation, protected.wanted), (Generation(2), Wanted::Running));
    let again = protection(&vm, Protection::Protected);
    assert_eq!(court.accept(&developer(), again), vec![]);
    let delete = Body::VmDelete(change(&vm));
    assert_eq!(court.submit(&developer(), delete.clone()), Err(RefusalCode::Protected));
    court.vm(&developer(), Body::VmStop(change(&vm).into()));
    let late = VmProtect {
        vm: vm.id,
        protection: Protection::Unprotected,
        expected_generation: Some(protected.generation),
    };
    let late = Body::VmProtect(late);
    assert_eq!(court.submit(&developer(), late), Err(RefusalCode::Conflict));
    court.vm(&developer(), protection(&vm, Protection::Unprotected));
    court.vm(&developer(), delete);
}

#[test]
fn no_vm_takes_what_a_host_reserves_for_itself() {
    let mut court = Court::furnished();
    court.accept(&operator(0), declared(0, |body| body.reserve.cpus = 6));
    court.vm(&developer(), on("a", 0));
    court.vm(&developer(), on("b", 0));
    assert_eq!(court.submit(&developer(), on("c", 0)), Err(RefusalCode::NoHostFits));
}

#[test]
fn vms_that_must_be_apart_share_no_host() {
    let mut court = Court::furnished();
    let apart = || wish(ApartBy::Host, ApartStrength::Required);
    let mut used: Vec<u8> = (0..3)
        .map(|at| {
            let vm = court.vm(&developer(), database(&format!("db{at}"), apart()));
            name_of(&court, &vm)
        })
        .collect();
    used.sort_unstable();
    assert_eq!(used, [0, 1, 2]);
    let fourth = database("db3", apart());
    let detail = nowhere(&mut court, fourth.clone());
    assert_eq!(detail.matches("carries a VM to keep away from").count(), 3, "{detail}");
    assert_eq!(court.submit(&developer(), fourth), Err(RefusalCode::NoHostFits));
    // Another label is no neighbour, and a mere preference gives way.
    let other = |body: &mut VmCreate| {
        body.labels = labels("web");
        body.apart = vec![Apart { from: labels("web"), ..apart().remove(0) }];
    };
    court.vm(&developer(), ordered("web", other));
    court.vm(&developer(), database("db4", wish(ApartBy::Host, ApartStrength::Preferred)));
}

#[test]
fn a_preference_to_be_apart_outweighs_free_memory() {
    let mut court = Court::furnished();
    court.accept(&operator(0), declared(0, |body| body.capacity.memory_mib = 1 << 30));
    let first = court.vm(&developer(), create("first", 1));
    assert_eq!(name_of(&court, &first), 0);
    let labelled = court.vm(&developer(), database("db0", Vec::new()));
    assert_eq!(name_of(&court, &labelled), 0);
    let apart = wish(ApartBy::Host, ApartStrength::Preferred);
    let second = court.vm(&developer(), database("db1", apart));
    assert_ne!(name_of(&court, &second), 0);
}

#[test]
fn sites_and_operators_keep_vms_apart_too() {
    let mut court = Court::furnished();
    let north = || Some("north".parse().expect("a name"));
    for index in 0..2 {
        court.accept(&operator(index), declared(index, |body| body.site = north()));
    }
    let at_zero = ordered("db0", |body| {
        body.labels = labels("database");
        body.host = Some(host(0));
    });
    court.vm(&developer(), at_zero);
    let by_site = database("db1", wish(ApartBy::Site, ApartStrength::Required));
    let vm = court.vm(&developer(), by_site);
    assert_eq!(name_of(&court, &vm), 2);
    // Now both sites are taken, but one operator is free.
    let by_site = database("db2", wish(ApartBy::Site, ApartStrength::Required));
    let detail = nowhere(&mut court, by_site);
    assert_eq!(detail.matches("is at the site of").count(), 3, "{detail}");
    let by_operator = database("db3", wish(ApartBy::Operator, ApartStrength::Required));
    let vm = court.vm(&developer(), by_operator);
    assert_eq!(name_of(&court, &vm), 1);
}

#[test]
fn a_refusal_says_which_host_lacks_what() {
    let mut court = Court::furnished();
    court.accept(&operator(0), grant(100, 100));
    court.accept(&operator(1), grant(100, 100));
    court.accept(
        &operator(1),
        Body::HostDrain(HostChange { host: host(1), expected_generation: None }),
    );
    let detail = nowhere(&mut court, create("big", 10));
    for part in ["host0 lacks 2 CPUs", "host1 is draining"] {
        assert!(detail.contains(part), "{detail}");
    }
    // The third operator's grant has no room for it: his host is not even looked at.
    assert!(!detail.contains("host2"), "{detail}");
}

#[test]
fn a_dry_run_names_the_host_that_the_order_then_chooses_and_changes_nothing() {
    let mut court = Court::furnished();
    court.accept(
        &operator(1),
        Body::HostDrain(HostChange { host: host(1), expected_generation: None }),
    );
    let payload = court.sign(&developer(), create("web", 1));
    let before = court.judge.end();
    let predicted = court.judge.predict(&payload.bytes, court.now);
    assert_eq!(court.judge.end(), before);
    assert_eq!(predicted.refusal, None);
    let [Effect::Vm(vm)] = &predicted.effects[..] else { panic!("{predicted:?}") };
    let first = &predicted.hosts[0];
    assert_eq!((Some(first.host), &first.fit), (vm.placement.host(), &HostFit::Chosen));
    let [.., last] = &predicted.hosts[..] else { panic!("{predicted:?}") };
    assert_eq!(last.fit, HostFit::Unfit { why: "is draining".to_owned() });
    assert_eq!(predicted.hosts.len(), 3);
    let chosen = court.vm(&developer(), create("web", 1));
    assert_eq!(chosen.placement.host(), vm.placement.host());
}

#[test]
fn a_dry_run_of_what_fits_nowhere_says_what_each_host_lacks() {
    let mut court = Court::furnished();
    court.accept(&operator(0), grant(100, 100));
    let payload = court.sign(&developer(), create("big", 10));
    let predicted = court.judge.predict(&payload.bytes, court.now);
    assert_eq!(predicted.refusal.map(|refusal| refusal.code), Some(RefusalCode::NoHostFits));
    let fits: Vec<_> = predicted.hosts.into_iter().map(|outlook| outlook.fit).collect();
    assert_eq!(fits, [HostFit::Unfit { why: "lacks 2 CPUs".to_owned() }]);
    let nonsense = court.judge.predict(b"{}", court.now);
    assert_eq!(nonsense.refusal.map(|refusal| refusal.code), Some(RefusalCode::PayloadMalformed));
}

#[test]
fn a_running_vm_is_paused_and_resumed_and_nothing_else_is() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), on("web", 1));
    let vm = court.report(&vm, 1, ReportPhase::Accepted).expect("accepted");
    let paused = court.vm(&developer(), Body::VmPause(change(&vm)));
    assert_eq!(court.accept(&developer(), Body::VmPause(change(&vm))), vec![]);
    let paused = court.report(&paused, 1, ReportPhase::Paused).expect("reported");
    assert_eq!((paused.state(), paused.meter.counts), (VmState::Paused, Metered::Paused));
    let resumed = court.vm(&developer(), Body::VmResume(change(&vm)));
    assert_eq!(court.accept(&developer(), Body::VmResume(change(&vm))), vec![]);
    assert_eq!(resumed.wanted, Wanted::Running);
    court.vm(&developer(), Body::VmStop(change(&vm).into()));
    for body in [Body::VmPause(change(&vm)), Body::VmResume(change(&vm))] {
        assert_eq!(court.submit(&developer(), body), Err(RefusalCode::StateWrong));
    }
}

#[test]
fn a_graceful_stop_may_become_a_forced_one_and_a_forced_one_stays_so() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), on("web", 1));
    let stop = |manner| Body::VmStop(VmStop { vm: vm.id, manner, expected_generation: None });
    court.vm(&developer(), stop(StopManner::Graceful));
    let forced = court.vm(&developer(), stop(StopManner::Forced));
    assert_eq!(forced.stop_manner, StopManner::Forced);
    for manner in [StopManner::Graceful, StopManner::Forced] {
        assert_eq!(court.accept(&developer(), stop(manner)), vec![]);
    }
}

#[test]
fn a_vm_that_stopped_by_itself_can_be_started_again() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), on("web", 1));
    let vm = court.report(&vm, 1, ReportPhase::Accepted).expect("accepted");
    assert_eq!(court.accept(&developer(), Body::VmStart(change(&vm))), vec![]);
    let off = court.report(&vm, 1, ReportPhase::Stopped).expect("reported");
    assert_eq!((off.wanted, off.state()), (Wanted::Running, VmState::Stopped));
    let again = court.vm(&developer(), Body::VmStart(change(&vm)));
    assert_eq!((again.generation, again.state()), (vm.generation.next(), VmState::Converging));
}

#[test]
fn a_running_vm_is_rebooted_and_only_that() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), on("web", 1));
    let vm = court.report(&vm, 1, ReportPhase::Accepted).expect("accepted");
    let again = court.vm(&developer(), Body::VmReboot(change(&vm)));
    assert_eq!(again.booted_since, again.generation);
    assert_eq!((again.generation, again.wanted), (vm.generation.next(), vm.wanted));
    let before = VmChange { vm: vm.id, expected_generation: Some(vm.generation) };
    assert_eq!(court.submit(&developer(), Body::VmReboot(before)), Err(RefusalCode::Conflict));
    let stopped = court.vm(&developer(), Body::VmStop(change(&again).into()));
    let reboot = Body::VmReboot(change(&stopped));
    assert_eq!(court.submit(&developer(), reboot), Err(RefusalCode::StateWrong));
}

fn resize(vm: &Vm, cpus: u32, memory_mib: u64) -> Body {
    let (cpus, memory_mib) = (Some(cpus), Some(memory_mib));
    Body::VmResize(VmResize { vm: vm.id, cpus, memory_mib, expected_generation: None })
}

#[test]
fn a_vm_grows_while_it_runs_and_shrinks_only_while_it_is_stopped() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), on("web", 1));
    let vm = court.report(&vm, 1, ReportPhase::Accepted).expect("accepted");
    let grown = court.vm(&developer(), resize(&vm, 2, 1024));
    assert_eq!((grown.size.cpus, grown.size.memory_mib), (2, 1024));
    assert_eq!((grown.size.disk_gib, grown.booted_since), (vm.size.disk_gib, vm.booted_since));
    let same = court.accept(&developer(), resize(&grown, 2, 1024));
    assert!(same.is_empty(), "{same:?}");
    let smaller = resize(&grown, 1, 2048);
    assert_eq!(court.submit(&developer(), smaller.clone()), Err(RefusalCode::StateWrong));
    let stopped = court.vm(&developer(), Body::VmStop(change(&grown).into()));
    let shrunk = court.vm(&developer(), smaller);
    assert_eq!(shrunk.generation, stopped.generation.next());
    assert_eq!((shrunk.size.cpus, shrunk.size.memory_mib), (1, 2048));
}

#[test]
fn a_vm_grows_no_further_than_its_grant_and_its_host_reach() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), on("web", 1));
    let vm = court.report(&vm, 1, ReportPhase::Accepted).expect("accepted");
    let over_grant = resize(&vm, 200, 512);
    assert_eq!(court.submit(&developer(), over_grant), Err(RefusalCode::GrantExceeded));
    court.accept(&operator(1), grant(250, 4));
    let over_host = resize(&vm, 200, 512);
    assert_eq!(court.submit(&developer(), over_host), Err(RefusalCode::NoHostFits));
}
