//! How many VMs are looked at with one commit, to find hosts for others.

use dagger_payload::bridge::{Bridged, StaticAddress};
use dagger_payload::kind::{Apart, ApartBy, ApartStrength};
use dagger_payload::limits::COMMIT_LOOKS_PER_ACCOUNT_MAX;
use dagger_payload::network::VmNetwork;
use dagger_processor::judge::LooksMax;

use super::burdens::{everything, friend_key, large};
use super::limits::codes;
use super::snapshot::copy;
use super::*;

/// A friend's VMs.
const OWN: usize = 4;

/// Host 1 is large, and so are the grants of its operator; each friend has some VMs, which are
/// accepted.
fn crowded() -> Court {
    let mut court = Court::furnished();
    court.accept(&operator(1), large(1));
    court.accept(&operator(1), image("op1/small"));
    for friend in 0..2 {
        court.accept(&operator(1), everything(&friend_key(friend)));
        for number in 0..OWN {
            let vm = court.vm(&friend_key(friend), on(&format!("own{number}"), 1));
            court.report(&vm, 1, ReportPhase::Accepted).expect("accepted");
        }
    }
    court
}

fn looking(court: &mut Court, account: usize, together: usize) {
    court.judge = copy(court).looking_at(LooksMax { account, together });
}

/// Away from what nobody carries.
fn shy(name: &str) -> VmCreate {
    let from = [("tier".parse().expect("a name"), "none".parse().expect("a value"))].into();
    let (by, strength) = (ApartBy::Host, ApartStrength::Required);
    VmCreate {
        apart: vec![Apart { from, by, strength }],
        host: Some(host(1)),
        ..create_body(name, 1)
    }
}

fn of(body: VmCreate) -> Body {
    Body::VmCreate(Box::new(body))
}

/// What becomes of some payloads of one commit.
fn together(court: &mut Court, bodies: &[(&SecretKey, Body)]) -> Vec<Option<RefusalCode>> {
    let payloads = bodies.iter().map(|(key, body)| court.sign(key, body.clone())).collect();
    let release = court.commit(payloads);
    let verdicts: Vec<_> = release.releases.into_iter().map(|release| release.verdict).collect();
    codes(&verdicts)
}

const FULL: Option<RefusalCode> = Some(RefusalCode::CommitFull);

#[test]
fn so_many_looks_are_made_for_an_account_with_one_commit_and_what_came_late_may_be_sent_again() {
    let mut court = crowded();
    looking(&mut court, 2 * OWN, usize::MAX);
    let (one, other) = (friend_key(0), friend_key(1));
    let payloads = [
        court.sign(&one, of(shy("a"))),
        court.sign(&one, of(shy("b"))),
        court.sign(&one, of(shy("c"))),
        court.sign(&one, on("d", 1)),
        court.sign(&other, of(shy("a"))),
    ];
    let release = court.commit(payloads.to_vec());
    let verdicts: Vec<_> = release.releases.into_iter().map(|release| release.verdict).collect();
    // After four and five looks there is no third search; what looks at nothing goes on.
    assert_eq!(codes(&verdicts), [None, None, FULL, None, None]);
    // It left no trace, and the next commit begins anew.
    assert!(court.outcome(payloads[2].clone()).is_ok());
    assert_eq!(court.outcome(payloads[2].clone()), Err(RefusalCode::Duplicate));
}

#[test]
fn accounts_that_one_operator_opened_share_their_looks_and_others_have_their_own() {
    let mut court = crowded();
    court.accept(&operator(1), everything(&developer()));
    court.accept(&developer(), on("own", 1));
    looking(&mut court, usize::MAX, OWN);
    let (one, other) = (friend_key(0), friend_key(1));
    let asked = [
        (&one, of(shy("a"))),
        (&other, of(shy("a"))),
        (&other, on("b", 1)),
        (&developer(), of(shy("a"))),
    ];
    assert_eq!(together(&mut court, &asked), [None, FULL, None, None]);
}

#[test]
fn an_address_on_a_bridge_takes_looks_as_a_wish_does() {
    let mut court = crowded();
    let Body::HostJoin(mut offer) = large(1) else { panic!("a host.join") };
    offer.bridges = vec!["lan".parse().expect("a name")];
    court.accept(&operator(1), Body::HostJoin(offer));
    looking(&mut court, 1, usize::MAX);
    let at = |name: &str, address: Option<[u8; 4]>| {
        let chosen = |address: [u8; 4]| StaticAddress {
            address: address.into(),
            prefix_length: 24,
            gateway: None,
        };
        let bridge = "lan".parse().expect("a name");
        let bridge = Some(Bridged { bridge, address: address.map(chosen) });
        let network = Some(VmNetwork { bridge, ..VmNetwork::default() });
        of(VmCreate { network, host: Some(host(1)), ..create_body(name, 1) })
    };
    let one = friend_key(0);
    let asked = [
        (&one, at("a", Some([192, 0, 2, 5]))),
        (&one, at("b", Some([192, 0, 2, 6]))),
        (&one, at("c", None)),
    ];
    assert_eq!(together(&mut court, &asked), [None, FULL, None]);
}

#[test]
fn whoever_asks_in_vain_has_so_many_looks_made_and_no_more() {
    const VMS: usize = 1000;
    const SEARCHES: usize = COMMIT_LOOKS_PER_ACCOUNT_MAX / VMS;
    let mut court = crowded();
    let bodies = (OWN..VMS).map(|number| on(&format!("own{number}"), 1));
    assert!(codes(&court.many(&friend_key(0), bodies)).iter().all(Option::is_none));
    let nowhere = VmCreate { host: Some(HostId([9; 16])), ..shy("a") };
    let asked = std::iter::repeat_n(of(nowhere), SEARCHES + 20);
    let verdicts = codes(&court.many(&friend_key(0), asked));
    let looked = verdicts.iter().take_while(|code| **code == Some(RefusalCode::NoHostFits));
    assert_eq!(looked.count(), SEARCHES);
    assert!(verdicts[SEARCHES..].iter().all(|code| *code == FULL));
}

#[test]
fn an_offer_that_lapses_waits_for_looks_and_keeps_no_other_one_waiting() {
    let mut court = crowded();
    looking(&mut court, OWN, usize::MAX);
    let mut offered = Vec::new();
    for name in ["a", "b", "c"] {
        offered.push(court.vm(&friend_key(0), of(shy(name))).id);
        court.now = court.now.plus_ms(1);
    }
    let late = court.vm(&friend_key(0), on("late", 1)).id;
    court.now = court.now.plus_ms(20_000);
    for waiting in (0..offered.len()).rev() {
        // Payloads that look as much as they may are in nobody's way.
        let busy = court.sign(&friend_key(0), of(shy(&format!("busy{waiting}"))));
        let release = court.commit(vec![busy]);
        let moved: Vec<_> = release
            .time_effects
            .iter()
            .map(|effect| match effect {
                Effect::Vm(vm) => vm.id,
                other => panic!("no VM but {other:?}"),
            })
            .collect();
        let next = offered.remove(0);
        let first = waiting == 2;
        assert_eq!(moved, if first { vec![next, late] } else { vec![next] });
        // Another commit is asked for at once as long as one waits.
        let is_due = court.judge.next_deadline().is_some_and(|at| at <= court.now);
        assert_eq!(is_due, waiting > 0);
        looking(&mut court, OWN, usize::MAX);
    }
}

#[test]
fn a_host_that_refuses_an_offer_says_so_again_when_too_much_was_looked_at() {
    let mut court = crowded();
    looking(&mut court, OWN, usize::MAX);
    let vm = court.vm(&friend_key(0), of(shy("a")));
    let refuse = report(vm.id, vm.generation, ReportPhase::Refused);
    let asked = [(&friend_key(0), of(shy("b"))), (&agent_key(1), refuse.clone())];
    assert_eq!(together(&mut court, &asked), [None, FULL]);
    court.accept(&agent_key(1), refuse);
}
