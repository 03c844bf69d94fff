//! How VMs' cards are reached: who decides it, and which hosts can make it so.

use dagger_payload::kind::{HostJoin, VmNetworkChange};
use dagger_payload::network::{Forward, Protocol, VmNetwork};

use super::volumes::running;
use super::*;

fn forwarding() -> VmNetwork {
    let forward = Forward { slot: 3, protocol: Protocol::Tcp, guest_port: 22 };
    VmNetwork { forwards: vec![forward], ..VmNetwork::default() }
}

fn closed() -> VmNetwork {
    VmNetwork { allow: Some(Vec::new()), ..VmNetwork::default() }
}

fn reach(vm: &Vm, network: VmNetwork) -> Body {
    Body::VmNetwork(VmNetworkChange { vm: vm.id, network, expected_generation: None, card: 0 })
}

/// A declaration like the first one, with or without ports for guests.
fn offering(index: u8, first: Option<u16>) -> Body {
    let Body::HostJoin(body) = join(index) else { panic!("it is one") };
    Body::HostJoin(Box::new(HostJoin { forward_ports_first: first, ..*body }))
}

#[test]
fn an_owner_closes_and_opens_his_vm_and_nobody_else_does() {
    let mut court = Court::furnished();
    let vm = running(&mut court, "web");
    assert_eq!(vm.network, VmNetwork::default());
    let refused = court.submit(&operator(0), reach(&vm, closed()));
    assert_eq!(refused, Err(RefusalCode::AccountUnknown));
    let shut = court.vm(&developer(), reach(&vm, closed()));
    assert_eq!((shut.network.clone(), shut.wanted), (closed(), vm.wanted));
    assert_eq!(shut.generation, vm.generation.next(), "the host has something to do");
    let late = VmNetworkChange {
        vm: vm.id,
        network: VmNetwork::default(),
        expected_generation: Some(vm.generation),
        card: 0,
    };
    let late = court.submit(&developer(), Body::VmNetwork(late));
    assert_eq!(late, Err(RefusalCode::Conflict));
    // Repeating a wish is no change.
    let again = VmNetworkChange {
        vm: vm.id,
        network: closed(),
        expected_generation: Some(shut.generation),
        card: 0,
    };
    assert_eq!(court.accept(&developer(), Body::VmNetwork(again)), vec![]);
    let gone = court.vm(&developer(), Body::VmDelete(change(&vm)));
    let late = court.submit(&developer(), reach(&gone, VmNetwork::default()));
    assert_eq!(late, Err(RefusalCode::StateWrong));
}

#[test]
fn a_vm_with_forwards_goes_only_to_a_host_that_offers_ports() {
    let mut court = Court::furnished();
    let wish = |name: &str| {
        let network = Some(forwarding());
        Body::VmCreate(Box::new(VmCreate { network, ..create_body(name, 1) }))
    };
    assert_eq!(court.submit(&developer(), wish("web")), Err(RefusalCode::NoHostFits));
    court.accept(&operator(1), offering(1, Some(20_000)));
    let vm = court.vm(&developer(), wish("web"));
    assert_eq!(vm.placement.host(), Some(host(1)));
    assert_eq!(vm.network, forwarding());
}

#[test]
fn a_forward_is_refused_where_the_vm_is_and_granted_where_the_host_can() {
    let mut court = Court::furnished();
    let vm = running(&mut court, "web");
    let refused = court.submit(&developer(), reach(&vm, forwarding()));
    assert_eq!(refused, Err(RefusalCode::NoHostFits));
    // A host may begin to offer ports while it carries VMs, and not move them.
    court.accept(&operator(1), offering(1, Some(20_000)));
    let vm = court.vm(&developer(), reach(&vm, forwarding()));
    assert_eq!(vm.network, forwarding());
    for other in [Some(30_000), None] {
        let moved = court.submit(&operator(1), offering(1, other));
        assert_eq!(moved, Err(RefusalCode::StateWrong));
    }
    let vm = court.vm(&developer(), Body::VmDelete(change(&vm)));
    court.report(&vm, 1, ReportPhase::Deleted).expect("gone");
    court.accept(&operator(1), offering(1, Some(30_000)));
}

#[test]
fn an_address_is_its_machines_until_that_is_reported_gone_however_often_others_come_and_go() {
    let mut court = Court::furnished();
    court.accept(&operator(0), grant(8, 8));
    let vm = court.vm(&developer(), on("a", 0));
    let vm = court.report(&vm, 0, ReportPhase::Accepted).expect("accepted");
    let vm = court.report(&vm, 0, ReportPhase::Running).expect("accepted");
    // Twice around the subnet.
    let come_and_go = |court: &mut Court, round: &str| {
        let names = (0..12).map(|number| format!("{round}-{number}"));
        let one = |name: String| {
            let other = court.vm(&developer(), on(&name, 0));
            court.vm(&developer(), Body::VmDelete(change(&other)));
            other.placement.address()
        };
        names.map(one).collect::<Vec<_>>()
    };
    assert!(!come_and_go(&mut court, "b").contains(&vm.placement.address()));
    let deleted = court.vm(&developer(), Body::VmDelete(change(&vm)));
    assert_eq!(deleted.placement.address(), vm.placement.address());
    assert!(!come_and_go(&mut court, "c").contains(&vm.placement.address()));
    court.report(&deleted, 0, ReportPhase::Deleted).expect("accepted");
    assert!(come_and_go(&mut court, "d").contains(&vm.placement.address()));
}
