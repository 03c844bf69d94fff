//! An operator who is removed against his will, his hosts, and what they carried.

use dagger_payload::kind::{
    HostChange, Protection, VmProtect, VolumeCreate, VolumePhase, VolumeProtect,
};
use dagger_payload::membership::{OperatorStanding, ProposalStanding};
use dagger_payload::object::HostDuty;
use dagger_payload::roster::SeatStanding;
use dagger_payload::usage::Metered;
use dagger_payload::volume::{Volume, VolumeDisk, VolumeState};

use super::members::{
    approve, come, committee, epoch, id, leave, proposal, propose, remove_operator, rotate, voters,
};
use super::snapshot::copy;
use super::volumes::{delete, grow, told};
use super::*;

/// Four operators with a host each; the developer has grants of all.
fn four() -> Court {
    let mut court = Court::of(4);
    for index in 0..4 {
        court.accept(&operator(index), join(index));
        court.accept(&operator(index), grant(8, 8));
    }
    court.accept(&operator(0), image("op0/small"));
    court
}

/// Running on a host.
fn running(court: &mut Court, name: &str, index: u8) -> Vm {
    let vm = court.vm(&developer(), on(name, index));
    let vm = court.report(&vm, index, ReportPhase::Accepted).expect("accepted");
    court.report(&vm, index, ReportPhase::Running).expect("accepted")
}

fn volume(court: &mut Court, index: u8) -> Volume {
    let (name, size_gib, host) = ("data".parse().expect("a name"), 5, host(index));
    let body = Body::VolumeCreate(VolumeCreate { name, size_gib, host });
    only_volume(&court.accept(&developer(), body))
}

fn only_volume(effects: &[Effect]) -> Volume {
    let mut volumes = effects.iter().filter_map(|effect| match effect {
        Effect::Volume(volume) => Some((**volume).clone()),
        _ => None,
    });
    let volume = volumes.next().unwrap_or_else(|| panic!("no volume in {effects:?}"));
    assert_eq!(volumes.next(), None);
    volume
}

fn changed(effects: &[Effect], vm: VmId) -> Vm {
    let found = effects.iter().find_map(|effect| match effect {
        Effect::Vm(changed) if changed.id == vm => Some((**changed).clone()),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("{vm} is not among {effects:?}"))
}

fn set_duty(index: u8, body: fn(HostChange) -> Body) -> Body {
    body(HostChange { host: host(index), expected_generation: None })
}

fn protect(vm: &Vm, protection: Protection) -> Body {
    Body::VmProtect(VmProtect { vm: vm.id, protection, expected_generation: None })
}

/// Operator 3 is removed and his host has left.
fn evict(court: &mut Court) -> CommitRelease {
    court.agree(&[0, 1, 2], remove_operator(3));
    court.finish_epoch();
    court.now = court.now.plus_ms(1_000);
    court.commit(vec![])
}

#[test]
fn three_of_four_operators_remove_the_fourth_whose_host_votes_until_the_epoch_ends() {
    let mut court = four();
    let vm = running(&mut court, "web", 3);
    let release = court.agree(&[0, 1, 2], remove_operator(3));
    assert_eq!(proposal(&release.time_effects).standing, ProposalStanding::Done);
    let members = epoch(&release).expect("decided");
    assert_eq!(members.committee, committee(0..3));
    let left = release.time_effects.iter().find_map(|effect| match effect {
        Effect::Operator(operator) => Some((operator.id, operator.standing)),
        _ => None,
    });
    assert_eq!(left, Some((id(3), OperatorStanding::Left)));
    // His key decides nothing from now on; his host goes on until the epoch ends.
    assert_eq!(court.submit(&operator(3), come(9)), Err(RefusalCode::NotAuthorized));
    assert_eq!(court.submit(&operator(3), grant(1, 1)), Err(RefusalCode::NotAuthorized));
    let vm = court.vm(&developer(), Body::VmStop(change(&vm).into()));
    court.report(&vm, 3, ReportPhase::Stopped).expect("accepted");
    assert_eq!(court.judge.roster().seat_of(&host(3)).map(|seat| seat.index), Some(AuthorIndex(3)));

    court.finish_epoch();
    // Nobody has to send anything for it.
    assert_eq!(court.judge.next_deadline(), Some(court.now));
    let commit = court.next(vec![]);
    let mut release = court.judge.apply(commit, &[]).expect("the next commit");
    court.read(&mut release);
    let [Effect::Seat(seat), Effect::Host(gone), Effect::Vm(lost)] = &release.time_effects[..]
    else {
        panic!("{release:?}")
    };
    assert_eq!((seat.index, seat.standing), (AuthorIndex(3), SeatStanding::Left));
    assert_eq!((gone.id, gone.duty), (host(3), HostDuty::Left));
    assert_eq!(lost.placement, Placement::Lost { host: host(3) });
    assert_eq!(court.judge.next_deadline(), None);
    court.judge = copy(&court);
    let late = report(lost.id, lost.generation, ReportPhase::Running);
    assert_eq!(court.submit(&agent_key(3), late), Err(RefusalCode::AccountUnknown));
}

#[test]
fn what_a_removed_operators_host_carried_runs_nowhere_else_and_can_only_be_deleted() {
    let mut court = four();
    let vm = running(&mut court, "web", 3);
    court.accept(&developer(), protect(&vm, Protection::Protected));
    let going = running(&mut court, "going", 3);
    court.vm(&developer(), Body::VmDelete(change(&going)));
    let also = running(&mut court, "also", 3);
    court.vm(&developer(), Body::VmDelete(change(&also)));
    let effects = evict(&mut court).time_effects;
    // Nobody is left to say that it is gone.
    assert_eq!(changed(&effects, going.id).state(), VmState::Deleted);
    assert_eq!(changed(&effects, also.id).state(), VmState::Deleted);
    let lost = changed(&effects, vm.id);
    assert_eq!((lost.state(), lost.placement.host()), (VmState::Degraded, None));
    assert_eq!((lost.meter.counts, lost.meter.since), (Metered::Nothing, court.now));
    assert!(lost.meter.used.cpu_ms > 0);
    for body in
        [Body::VmStart(change(&vm)), Body::VmStop(change(&vm).into()), Body::VmReboot(change(&vm))]
    {
        assert_eq!(court.submit(&developer(), body), Err(RefusalCode::StateWrong));
    }
    let protected = court.submit(&developer(), Body::VmDelete(change(&vm)));
    assert_eq!(protected, Err(RefusalCode::Protected));
    court.accept(&developer(), protect(&vm, Protection::Unprotected));
    let effects = court.accept(&developer(), Body::VmDelete(change(&vm)));
    let [Effect::Vm(deleted), Effect::Usage(past)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((deleted.state(), past.host, past.vms), (VmState::Deleted, host(3), 3));
    assert_eq!(past.used.cpu_ms, 3 * lost.meter.used.cpu_ms);
    court.vm(&developer(), on("web", 1));
}

#[test]
fn a_lost_volume_counts_no_more_and_is_deleted_by_its_owners_word_alone() {
    let mut court = four();
    let data = volume(&mut court, 3);
    court.accept(&agent_key(3), told(&data, VolumePhase::Ready));
    let lost = only_volume(&evict(&mut court).time_effects);
    assert_eq!((lost.disk, lost.state()), (VolumeDisk::Lost, VolumeState::Degraded));
    assert_eq!((lost.size(), lost.meter.counts), (Capacity::default(), Metered::Nothing));
    assert_eq!(court.submit(&developer(), grow(&lost, 40)), Err(RefusalCode::StateWrong));
    for protection in [Protection::Protected, Protection::Unprotected] {
        let (volume, expected_generation) = (lost.id, None);
        let body = VolumeProtect { volume, protection, expected_generation };
        court.accept(&developer(), Body::VolumeProtect(body));
    }
    let effects = court.accept(&developer(), delete(&lost));
    let [Effect::Volume(gone), Effect::Usage(past)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((gone.state(), past.host), (VolumeState::Deleted, host(3)));
    volume(&mut court, 1);
}

#[test]
fn the_host_of_a_removed_operator_that_does_not_vote_leaves_at_once_and_an_offer_to_it_ends() {
    let mut court = four();
    court.accept(&operator(0), come(7));
    court.agree(&[0, 1, 2], voters(&[7], &[3]));
    court.finish_epoch();
    court.commit(vec![]);
    let vm = court.vm(&developer(), on("web", 3));
    let release = court.agree(&[0, 1, 2], remove_operator(3));
    assert_eq!(proposal(&release.releases[0].effects).standing, ProposalStanding::Done);
    assert_eq!((epoch(&release), court.judge.roster().seat_of(&host(3))), (None, None));
    // No host had accepted it, so nobody can have acted for it.
    assert_eq!(changed(&release.time_effects, vm.id).placement, Placement::NoHost {});
}

#[test]
fn offers_to_a_host_that_leaves_go_on_one_after_another_so_that_none_is_of_what_another_got() {
    let mut court = four();
    court.accept(&operator(0), come(7));
    court.agree(&[0, 1, 2], voters(&[7], &[3]));
    court.finish_epoch();
    court.commit(vec![]);
    for index in 0..3 {
        court.accept(&operator(index), set_duty(index, Body::HostDrain));
    }
    court.accept(&operator(0), set_duty(7, Body::HostDrain));
    let names = ["one", "two", "three"];
    let vms = names.map(|name| court.vm(&developer(), create(name, 1)).id);
    court.accept(&operator(0), set_duty(0, Body::HostResume));
    court.accept(&operator(0), grant(8, 2));
    let effects = court.agree(&[0, 1, 2], remove_operator(3)).time_effects;
    let places = vms.map(|vm| changed(&effects, vm).placement);
    let mut addresses: Vec<_> = places.iter().filter_map(Placement::address).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 2, "{places:?}");
    assert_eq!(places.iter().filter(|place| **place == Placement::NoHost {}).count(), 1);
    // A judge that begins from a snapshot knows the same of them.
    let gone = vms.into_iter().zip(&places).find(|(_, place)| place.host() == Some(host(0)));
    let (gone, _) = gone.expect("two have a host");
    court.judge = copy(&court);
    court.accept(&developer(), Body::VmDelete(VmChange { vm: gone, expected_generation: None }));
    court.vm(&developer(), on("four", 0));
}

#[test]
fn what_an_operator_granted_who_was_removed_is_granted_no_more() {
    let mut court = Court::of(4);
    for index in 0..4 {
        court.accept(&operator(index), join(index));
    }
    court.accept(&operator(3), grant(8, 8));
    court.accept(&operator(3), image("op3/small"));
    court.accept(&developer(), own_image());
    court.agree(&[0, 1, 2], remove_operator(3));
    assert_eq!(court.submit(&developer(), on("web", 3)), Err(RefusalCode::AccountUnknown));
    let name = format!("{}/more", AccountId::of(&developer().public_key()));
    assert_eq!(court.submit(&developer(), image(&name)), Err(RefusalCode::AccountUnknown));
    // Another one's grant counts, and so does what he publishes.
    court.accept(&operator(1), grant(8, 8));
    court.accept(&developer(), image(&name));
}

#[test]
fn a_removed_operators_hosts_take_part_in_nothing_that_is_decided_later() {
    let mut court = four();
    court.agree(&[0, 1, 2], voters(&[], &[2]));
    let removal = court.agree(&[0, 1, 2], remove_operator(3));
    assert_eq!(proposal(&removal.releases[0].effects).standing, ProposalStanding::Passed);
    // He is an operator until it is decided, and no longer plans anything with his host.
    let planned = court.submit(&operator(3), rotate(3, &key(77)));
    assert_eq!(planned, Err(RefusalCode::NotFound));
    let again = court.submit(&operator(0), propose(voters(&[], &[3])));
    assert_eq!(again, Err(RefusalCode::NotFound));
    court.finish_epoch();
    let release = court.commit(vec![]);
    assert_eq!(epoch(&release).expect("decided").committee, committee(0..2));
    court.finish_epoch();
    court.commit(vec![]);
    assert_eq!(court.judge.roster().seat_of(&host(3)), None);
    assert_eq!(court.submit(&operator(3), leave(3)), Err(RefusalCode::NotFound));
}

#[test]
fn two_of_four_operators_remove_nobody() {
    let mut court = four();
    let release = court.agree(&[0, 1], remove_operator(3));
    let waiting = proposal(&release.releases[0].effects);
    assert_eq!(waiting.standing, ProposalStanding::Open);
    assert_eq!(court.accept(&operator(1), approve(waiting.id)), Vec::new());
    court.pass(20);
    assert!(court.judge.roster().seat_of(&host(3)).is_some());
}
