//! Network cards of the fake host: who has one, how it is reached, and that nobody runs without.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use dagger_agent::actuator::Performer;
use dagger_agent::controller::proof::DeleteProof;
use dagger_agent::controller::{Action, Job, Outcome, Output, Step};
use dagger_agent::handover::AttestedVm;
use dagger_agent::hypervisor::Power;
use dagger_agent::hypervisor::names::HostNames;
use dagger_agent::journal::Journal;
use dagger_agent::machines::NetworkKind;
use dagger_agent::network::{NetworkError, Networks};
use dagger_agent::observation::Tickets;
use dagger_images::Addressing;
use dagger_net::request::{BridgedCard, Card, Owner};
use dagger_payload::bridge::{Bridged, StaticAddress};
use dagger_payload::id::VmId;
use dagger_payload::kind::ReportPhase;
use dagger_payload::network::VmNetwork;
use dagger_payload::object::Wanted;

use super::desk::{Desk, phases, reason, steps};
use super::support::{ADDRESS, FakeHost, Guest, HERE, VM, accepted, after, ours, subnet, wants};

fn died() -> NetworkError {
    NetworkError::Failed("network_failed: the agent is dead".to_owned())
}

impl Networks for FakeHost {
    fn ensure(&self, card: Card) -> Result<(), NetworkError> {
        self.change(died, |state| {
            state.offers.insert(card.vm, card.offer());
            state.cards.entry(card.vm).or_default().insert(0, card.network);
            Ok(())
        })
    }

    fn bridge(&self, card: BridgedCard) -> Result<(), NetworkError> {
        self.change(died, |state| {
            let (allow, bridge) = (card.allow, Some(card.bridge));
            let network = VmNetwork { allow, bridge, ..VmNetwork::default() };
            state.cards.entry(card.vm).or_default().insert(card.card, network);
            Ok(())
        })
    }

    fn remove(&self, proof: &DeleteProof) -> Result<(), NetworkError> {
        self.change(died, |state| {
            let runs = state.machines.contains_key(&proof.vm());
            assert!(!runs, "a machine lost its card before it was gone");
            state.cards.remove(&proof.vm());
            Ok(())
        })
    }

    fn list(&self) -> Result<BTreeSet<VmId>, NetworkError> {
        Ok(self.state().cards.keys().copied().collect())
    }
}

fn closed() -> VmNetwork {
    VmNetwork { allow: Some(Vec::new()), ..VmNetwork::default() }
}

#[test]
fn a_running_guest_is_reached_as_asked_before_its_host_says_so() {
    let (mut desk, _) = Desk::live(&[accepted()], Some(ours(Power::Running, 1)));
    desk.connects = false;
    let shut = after(&wants(&accepted(), Wanted::Running), |vm| vm.network = closed());
    let outputs = desk.vm(&shut);
    let [Output::Act(job)] = &outputs[..] else { panic!("{outputs:?}") };
    assert!(matches!(job.action, Action::Network(_)) && job.vm.network == closed());
    let failed = Outcome::Retryable("network_failed: nft: no".to_owned());
    let outputs = desk.finish(Step::Network, failed, None);
    assert_eq!((steps(&outputs), phases(&outputs)), (vec![], vec![]));
    assert_eq!(steps(&desk.wait(60)), [Step::Network]);
    assert_eq!(steps(&desk.done(Step::Network, None)), [Step::Tag]);
    let outputs = desk.done(Step::Tag, Some(ours(Power::Running, 2)));
    assert_eq!(phases(&outputs), [ReportPhase::Running]);
}

#[test]
fn a_running_guests_filters_are_made_sure_of_when_the_agent_starts_and_not_again() {
    let mut desk = Desk::new();
    desk.connects = false;
    let outputs = desk.go_live(&[accepted()], Some(ours(Power::Running, 1)));
    assert_eq!((steps(&outputs), phases(&outputs)), (vec![Step::Network], vec![]));
    assert_eq!(phases(&desk.done(Step::Network, None)), [ReportPhase::Running]);
    assert_eq!(desk.see(ours(Power::Running, 1)), []);
}

#[test]
fn a_wish_that_the_host_cannot_carry_out_is_told_and_the_guest_runs_on() {
    let (mut desk, _) = Desk::live(&[accepted()], Some(ours(Power::Running, 1)));
    desk.connects = false;
    desk.vm(&wants(&accepted(), Wanted::Running));
    let never = Outcome::Terminal("network_unsupported: no card".to_owned());
    let outputs = desk.finish(Step::Network, never, None);
    assert_eq!((steps(&outputs), phases(&outputs)), (vec![], vec![ReportPhase::Degraded]));
    assert!(reason(&outputs).starts_with("network_unsupported:"));
}

#[test]
fn a_card_is_taken_away_only_once_its_machine_is_gone() {
    let (mut desk, outputs) =
        Desk::live(&[wants(&accepted(), Wanted::Deleted)], Some(ours(Power::Running, 2)));
    assert_eq!(steps(&outputs), [Step::Destroy]);
    assert_eq!(steps(&desk.done(Step::Destroy, None)), [Step::Undefine]);
    let outputs = desk.done(Step::Undefine, None);
    let [Output::Act(job)] = &outputs[..] else { panic!("{outputs:?}") };
    assert!(matches!(&job.action, Action::Disconnect(proof) if proof.vm() == VM));
    let failed = Outcome::Retryable("network_failed: busy".to_owned());
    assert_eq!(phases(&desk.finish(Step::Disconnect, failed, None)), []);
}

/// A card on a bridge, with a chosen address, that nobody reaches.
pub(crate) fn on_a_bridge() -> VmNetwork {
    let address =
        StaticAddress { address: [192, 0, 2, 5].into(), prefix_length: 24, gateway: None };
    let bridge = Some(Bridged { bridge: "lan".parse().unwrap(), address: Some(address) });
    VmNetwork { bridge, ..closed() }
}

/// One card by NAT that nobody reaches, and one on a bridge.
fn two_cards() -> (AttestedVm, VmNetwork) {
    let second = on_a_bridge();
    let vm = after(&wants(&accepted(), Wanted::Running), |vm| {
        vm.network = closed();
        vm.more_cards = vec![second.clone()];
    });
    (vm, second)
}

fn performer(world: &Arc<FakeHost>, directory: &Path, kind: NetworkKind) -> Performer {
    let networks = (kind == NetworkKind::Nat).then(|| (Arc::clone(world) as _, Owner::Root));
    Performer {
        hypervisor: Arc::clone(world) as _,
        disks: Arc::clone(world) as _,
        journal: Journal::open(directory.to_owned(), HERE).unwrap(),
        tickets: Tickets::default(),
        names: HostNames::of(HERE),
        networks,
        nameservers: vec![[9, 9, 9, 9].into()],
        consoles: "/consoles".into(),
    }
}

/// The job of making a running VM's cards.
fn network_job(vm: &AttestedVm) -> Job {
    let (mut desk, _) = Desk::live(&[accepted()], Some(ours(Power::Running, 1)));
    desk.connects = false;
    match desk.vm(vm).pop() {
        Some(Output::Act(job)) if matches!(job.action, Action::Network(_)) => *job,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_card_of_a_vm_is_made_and_its_guest_is_told_of_each() {
    let (world, directory) = (Arc::new(FakeHost::new(Guest::Obeys)), tempfile::tempdir().unwrap());
    let (vm, second) = two_cards();
    let job = network_job(&vm);
    let performer = performer(&world, directory.path(), NetworkKind::Nat);
    for _ in 0..2 {
        assert_eq!(performer.perform(&job).unwrap().outcome, Outcome::Done);
    }
    assert_eq!(world.state().cards[&VM], [(0, closed()), (1, second)].into());

    let seed = Job { action: Action::Seed(subnet()), ..job };
    assert_eq!(performer.perform(&seed).unwrap().outcome, Outcome::Done);
    let contents = world.state().seeds[&VM].clone();
    let cards = contents.cards.clone();
    let names = HostNames::of(HERE);
    let told: Vec<_> = cards.iter().map(|card| (card.mac.to_string(), card.addressing)).collect();
    let decided = |address: Ipv4Addr, gateway: Option<Ipv4Addr>| Addressing::Static {
        address,
        prefix_length: 24,
        gateway,
    };
    assert_eq!(
        told,
        [
            (names.mac(VM, 0), decided(ADDRESS, subnet().address(1))),
            (names.mac(VM, 1), decided([192, 0, 2, 5].into(), None)),
        ]
    );
    // Who asks by DHCP hears the same.
    let offer = world.state().offers[&VM].clone();
    let (gateway, prefix_length) = (Some(offer.gateway()), offer.subnet.prefix_length);
    let first = Addressing::Static { address: offer.address, prefix_length, gateway };
    assert_eq!(cards[0].addressing, first);
    assert_eq!((offer.hostname, offer.nameservers), (contents.name, contents.nameservers));
}

#[test]
fn a_host_whose_guests_have_no_cards_puts_none_on_a_bridge() {
    let (world, directory) = (Arc::new(FakeHost::new(Guest::Obeys)), tempfile::tempdir().unwrap());
    let job = network_job(&two_cards().0);
    let performer = performer(&world, directory.path(), NetworkKind::None);
    let Outcome::Terminal(why) = performer.perform(&job).unwrap().outcome else {
        panic!("it was made")
    };
    assert!(why.starts_with("network_unsupported:"), "{why}");
}
