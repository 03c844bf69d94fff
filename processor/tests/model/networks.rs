//! `vm.network` in the model.

use dagger_payload::kind::{Body, VmChange, VmNetworkChange};
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
    VmNetwork {
        allow: random.of(&[None, None, Some(Vec::new()), Some(vec![rule])]),
        forwards: random.of(&[Vec::new(), vec![forward]]),
    }
}

fn draw_reach(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, VmChange { vm, expected_generation }) = draw_change(scene, random);
    let network = draw_network(random);
    (who, Body::VmNetwork(VmNetworkChange { vm, network, expected_generation }))
}

fn judge_reach(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, VmNetwork);
    let mut vm = own(model, asked, body.vm, body.expected_generation)?;
    if vm.network == body.network {
        return Ok(Vec::new());
    }
    let host = vm.placement.host().and_then(|host| model.host(host));
    if !body.network.forwards.is_empty()
        && host.is_some_and(|host| host.forward_ports_first.is_none())
    {
        return Err(RefusalCode::NoHostFits);
    }
    vm.network = body.network.clone();
    changed(vm, asked)
}
