//! Cards on bridges: which hosts may carry them, and what changes of them.

use dagger_payload::bridge::{Bridged, StaticAddress};
use dagger_payload::kind::{HostJoin, VmNetworkChange};
use dagger_payload::network::{Forward, Protocol, VmNetwork};
use dagger_payload::refusal::Refusal;

use super::*;

fn on(bridge: &str, address: Option<[u8; 4]>) -> VmNetwork {
    let at = |address: [u8; 4]| StaticAddress {
        address: address.into(),
        prefix_length: 24,
        gateway: None,
    };
    let bridge = bridge.parse().expect("a name");
    let bridged = Bridged { bridge, address: address.map(at) };
    VmNetwork { bridge: Some(bridged), ..VmNetwork::default() }
}

fn with(name: &str, first: VmNetwork, more: &[VmNetwork]) -> Body {
    let (network, more_cards) = (Some(first), more.to_vec());
    Body::VmCreate(Box::new(VmCreate { network, more_cards, ..create_body(name, 1) }))
}

fn offering(index: u8, bridges: &[&str]) -> Body {
    let Body::HostJoin(body) = join(index) else { panic!("it is one") };
    let bridges = bridges.iter().map(|name| name.parse().expect("a name")).collect();
    Body::HostJoin(Box::new(HostJoin { bridges, ..*body }))
}

/// Why it would not be accepted.
fn refusal(court: &Court, body: Body) -> Refusal {
    let payload = court.sign(&developer(), body);
    match court.judge.admit(&verify(&payload), court.now) {
        AdmissionOutcome::Refused { refusal } => refusal,
        other => panic!("{other:?}"),
    }
}

fn reach(vm: &Vm, card: u8, network: VmNetwork) -> Body {
    Body::VmNetwork(VmNetworkChange { vm: vm.id, network, expected_generation: None, card })
}

#[test]
fn a_vm_goes_only_to_a_host_that_offers_all_its_bridges() {
    let mut court = Court::furnished();
    court.accept(&operator(1), offering(1, &["lan"]));
    court.accept(&operator(2), offering(2, &["lan", "dmz"]));
    let both = with("web", VmNetwork::default(), &[on("lan", None), on("dmz", None)]);
    let vm = court.vm(&developer(), both);
    assert_eq!(vm.placement.host(), Some(host(2)));
    assert_eq!(vm.cards().count(), 3);
    let nowhere = with("other", on("storage", None), &[]);
    assert_eq!(court.submit(&developer(), nowhere), Err(RefusalCode::NoHostFits));
}

#[test]
fn a_refusal_says_which_host_lacks_the_bridge() {
    let mut court = Court::furnished();
    court.accept(&operator(1), offering(1, &["dmz"]));
    let asked = with("web", on("lan", None), &[]);
    let refusal = refusal(&court, asked);
    assert_eq!(refusal.code, RefusalCode::NoHostFits);
    assert!(refusal.detail.contains("host1 offers no bridge lan"), "{}", refusal.detail);
}

#[test]
fn an_address_that_the_owner_has_given_away_on_a_host_is_not_given_again_there() {
    let mut court = Court::furnished();
    court.accept(&operator(1), offering(1, &["lan"]));
    court.accept(&operator(2), offering(2, &["lan"]));
    let same = |name: &str| with(name, on("lan", Some([192, 0, 2, 5])), &[]);
    let first = court.vm(&developer(), same("a")).placement.host();
    let second = court.vm(&developer(), same("b")).placement.host();
    assert!(first.is_some() && second.is_some() && first != second, "{first:?} {second:?}");
    let refusal = refusal(&court, same("c"));
    assert_eq!(refusal.code, RefusalCode::NoHostFits);
    assert!(refusal.detail.contains("carries a VM of yours with this address"), "{refusal:?}");
    let other = with("d", on("lan", Some([192, 0, 2, 6])), &[]);
    court.accept(&developer(), other);
}

#[test]
fn each_card_is_reached_as_its_owner_says_and_stays_where_it_is() {
    let mut court = Court::furnished();
    court.accept(&operator(1), offering(1, &["lan", "dmz"]));
    let vm = court.vm(&developer(), with("web", VmNetwork::default(), &[on("lan", None)]));
    let closed = VmNetwork { allow: Some(Vec::new()), ..on("lan", None) };
    let vm = court.vm(&developer(), reach(&vm, 1, closed.clone()));
    assert_eq!((&vm.network, &vm.more_cards[..]), (&VmNetwork::default(), &[closed][..]));
    for (card, network, refused) in [
        (1, on("dmz", None), RefusalCode::StateWrong),
        (1, on("lan", Some([192, 0, 2, 5])), RefusalCode::StateWrong),
        (1, VmNetwork::default(), RefusalCode::StateWrong),
        (0, on("lan", None), RefusalCode::StateWrong),
        (2, on("lan", None), RefusalCode::NotFound),
    ] {
        let answer = court.submit(&developer(), reach(&vm, card, network.clone()));
        assert_eq!(answer, Err(refused), "{card} {network:?}");
    }
}

#[test]
fn what_no_host_could_carry_out_is_no_payload() {
    let mut court = Court::furnished();
    court.accept(&operator(1), offering(1, &["lan", "a", "b", "c"]));
    let forward = Forward { slot: 0, protocol: Protocol::Tcp, guest_port: 22 };
    let forwarding = VmNetwork { forwards: vec![forward], ..on("lan", None) };
    let (nat, lan) = (VmNetwork::default(), on("lan", None));
    let many: Vec<_> = ["lan", "a", "b", "c"].map(|bridge| on(bridge, None)).to_vec();
    for wrong in [
        with("web", on("lan", Some([192, 0, 2, 255])), &[]),
        with("web", forwarding, &[]),
        with("web", nat.clone(), &many),
        with("web", lan.clone(), std::slice::from_ref(&lan)),
        with("web", lan.clone(), std::slice::from_ref(&nat)),
        offering(1, &["lan", "lan"]),
    ] {
        let text = wrong.to_json().to_string();
        let read = Body::read(wrong.kind(), &text).map_err(|refusal| refusal.code);
        assert_eq!(read, Err(RefusalCode::LimitExceeded), "{text}");
    }
}

#[test]
fn a_host_that_carries_vms_offers_more_bridges_and_takes_none_away() {
    let mut court = Court::furnished();
    court.accept(&operator(1), offering(1, &["lan"]));
    let vm = court.vm(&developer(), with("web", on("lan", None), &[]));
    assert_eq!(vm.placement.host(), Some(host(1)));
    court.accept(&operator(1), offering(1, &["dmz", "lan"]));
    let taken = court.submit(&operator(1), offering(1, &["dmz"]));
    assert_eq!(taken, Err(RefusalCode::StateWrong));
    let vm = court.report(&vm, 1, ReportPhase::Accepted).expect("accepted");
    let vm = court.vm(&developer(), Body::VmDelete(change(&vm)));
    court.report(&vm, 1, ReportPhase::Deleted).expect("gone");
    court.accept(&operator(1), offering(1, &["dmz"]));
}
