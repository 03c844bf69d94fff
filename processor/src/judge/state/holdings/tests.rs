//! What is read when hosts leave, and that their VMs and volumes are found. Called by the test
//! runner.

use dagger_payload::codec::encode;
use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::id::{ClusterId, Generation, OperatorId, PayloadDigest, Position};
use dagger_payload::key::SecretKey;
use dagger_payload::object::{Cause, Effect};

use super::super::glance::tests::some_vm;
use super::super::kept::READ;
use super::*;

const HOSTS: u8 = 5;
const VMS: u8 = 40;

fn key(purpose: u8, number: u8) -> dagger_payload::key::PublicKey {
    let mut seed = [purpose; 32];
    seed[0] = number;
    SecretKey::from_seed(&seed.into()).public_key()
}

fn founded() -> State {
    let name = |text: &str| text.parse().expect("a name");
    let genesis = Genesis {
        dagger: 1,
        nonce: "0".repeat(32),
        name: name("test"),
        mode: GenesisMode::Judged,
        operators: vec![GenesisOperator { name: name("op"), key: key(1, 0) }],
        hosts: vec![GenesisHost {
            name: name("host"),
            operator: name("op"),
            ledger_key: key(2, 0),
            address: "127.0.0.1:7400".parse().expect("an address"),
        }],
        collection_depth_rounds: 60,
        handover_distance_commits: 10,
        commit_bytes_max: None,
    };
    let cluster = ClusterId::of(&genesis.to_bytes());
    State::found(&genesis, cluster)
}

fn host(number: u8, duty: HostDuty) -> Host {
    Host {
        id: HostId([number; 16]),
        name: format!("host{number}").parse().expect("a name"),
        operator: OperatorId([1; 16]),
        region: "region".parse().expect("a name"),
        labels: Default::default(),
        ledger_key: key(2, number),
        agent_key: key(3, number),
        capacity: Capacity { cpus: 100, memory_mib: 1 << 40, disk_gib: 1 << 40 },
        guest_subnet: GuestSubnet { network: [10, number, 0, 0].into(), prefix_length: 24 },
        generation: Generation(1),
        cause: Cause { digest: PayloadDigest([0; 32]), position: Position(1) },
        site: None,
        reserve: Capacity::default(),
        duty,
        forward_ports_first: None,
        protocol_max: None,
        bridges: Vec::new(),
    }
}

#[test]
fn however_many_hosts_leave_together_each_vm_is_looked_at_once() {
    let mut state = founded();
    for number in 1..=HOSTS {
        let effect = Effect::Host(Box::new(host(number, HostDuty::Open)));
        state.absorb_alone(&effect);
    }
    for number in 0..VMS {
        let mut vm = some_vm();
        vm.id = VmId([number; 16]);
        vm.name = format!("vm{number}").parse().expect("a name");
        let on = 1 + number % HOSTS;
        let (host, address) = (HostId([on; 16]), [10, on, 0, 2 + number].into());
        vm.placement = Placement::Accepted { host, address, position: Position(1) };
        state.absorb(&Effect::Vm(Box::new(vm.clone())), &encode(&vm));
    }
    READ.set(0);
    // All but the last one.
    for number in 1..HOSTS {
        let effect = Effect::Host(Box::new(host(number, HostDuty::Left)));
        state.absorb_alone(&effect);
    }
    state.find_stranded();
    assert_eq!(READ.get(), usize::from(VMS));
    let stays = |number: &u8| 1 + number % HOSTS == HOSTS;
    let expected = (0..VMS).filter(|number| !stays(number)).map(|number| VmId([number; 16]));
    assert!(state.stranded_vms().copied().eq(expected));
    // With nobody who leaves, nobody is looked at.
    state.find_stranded();
    assert_eq!(READ.get(), usize::from(VMS));
}
