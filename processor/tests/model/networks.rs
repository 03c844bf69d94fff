//! `vm.network` in the model.

use dagger_payload::bridge::{Bridged, StaticAddress};
use dagger_payload::kind::{Body, VmChange, VmNetworkChange};
use dagger_payload::name::Name;
use dagger_payload::network::{Allowed, Forward, Ipv4Prefix, Protocol, VmNetwork};
use dagger_payload::refusal::RefusalCode;

use super::kinds::{Kind, of_kind};
use super::people::{Person, Scene};
use super::random::Random;
use super::state::{Asked, Model, Ruling};
use super::vms::{changed, draw_change, own};

pub(crate) const KINDS: &[Kind] =
    &[Kind { name: "vm.network", weight: 6, draw: draw_reach, judge: judge_reach }];

pub(crate) fn draw_network(random: &mut Random) -> VmNetwork {
    let forward = Forward { slot: 0, protocol: Protocol::Tcp, guest_port: 22 };
    let rule = Allowed { from: Ipv4Prefix::ALL, protocol: Some(Protocol::Icmp), ports: None };
    let bridge = random.happens(250).then(|| draw_bridged(random));
    let allow = random.of(&[None, None, Some(Vec::new()), Some(vec![rule])]);
    let forwards = random.of(&[Vec::new(), vec![forward]]);
    VmNetwork { allow, forwards: if bridge.is_some() { Vec::new() } else { forwards }, bridge }
}

/// Few addresses, so that some meet.
fn draw_bridged(random: &mut Random) -> Bridged {
    let address = StaticAddress {
        address: [192, 0, 2, random.of(&[5, 6])].into(),
        prefix_length: 24,
        gateway: None,
    };
    let bridge = random.of(&["lan", "lan", "dmz"]).parse().expect("a name");
    Bridged { bridge, address: random.of(&[None, Some(address)]) }
}

/// Which bridges a host offers.
pub(crate) fn draw_bridges(random: &mut Random) -> Vec<Name> {
    let names = random.of(&[&[][..], &["lan"], &["lan"], &["lan", "dmz"]]);
    names.iter().map(|name| name.parse().expect("a name")).collect()
}

/// The cards of a new VM: each bridge at most once.
pub(crate) fn draw_cards(random: &mut Random) -> (Option<VmNetwork>, Vec<VmNetwork>) {
    let first = random.happens(300).then(|| draw_network(random));
    let mut more = Vec::new();
    if random.happens(200) {
        let card = draw_bridged(random);
        let used = first.as_ref().and_then(|first| first.bridge.as_ref());
        if used.is_none_or(|used| used.bridge != card.bridge) {
            more.push(VmNetwork { bridge: Some(card), ..VmNetwork::default() });
        }
    }
    (first, more)
}

fn draw_reach(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, VmChange { vm, expected_generation }) = draw_change(scene, random);
    let mut network = draw_network(random);
    let card = random.of(&[0, 0, 0, 1]);
    let known = scene.model.vms.iter().find(|known| known.id == vm);
    let there = known.and_then(|known| known.cards().nth(card.into()));
    // Mostly the card stays where it is.
    if let Some(there) = there.filter(|_| random.happens(800)) {
        network.bridge.clone_from(&there.bridge);
        if network.bridge.is_some() {
            network.forwards.clear();
        }
    }
    (who, Body::VmNetwork(VmNetworkChange { vm, network, expected_generation, card }))
}

fn judge_reach(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VmNetwork);
    let mut vm = own(model, asked, body.vm, body.expected_generation)?;
    let before = vm.cards().nth(body.card.into()).ok_or(RefusalCode::NotFound)?;
    if *before == body.network {
        return Ok(Vec::new());
    }
    if before.bridge != body.network.bridge {
        return Err(RefusalCode::StateWrong);
    }
    let host = vm.placement.host().and_then(|host| model.host(host));
    if !body.network.forwards.is_empty()
        && host.is_some_and(|host| host.forward_ports_first.is_none())
    {
        return Err(RefusalCode::NoHostFits);
    }
    match body.card {
        0 => vm.network = body.network.clone(),
        more => vm.more_cards[usize::from(more) - 1] = body.network.clone(),
    }
    changed(vm, asked)
}
