//! Attested versions of VMs, as this host's agent is told them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dagger_agent::handover::AttestedVm;
use dagger_agent::hypervisor::Tags;
use dagger_payload::id::{
    AccountId, CommitIndex, Generation, HostId, ImageDigest, PayloadDigest, Position, VmId,
};
use dagger_payload::kind::{Capacity, ImageFormat, Protection, RestartPolicy, StopManner, VmImage};
use dagger_payload::object::{Cause, Placement, Vm, Wanted};

/// The host under test.
pub(crate) const HERE: HostId = HostId([1; 16]);

/// What a machine of this VM carries in a generation.
pub(crate) fn tags(vm: VmId, generation: u64) -> Tags {
    let payload = PayloadDigest([u8::try_from(generation).unwrap(); 32]);
    Tags { host: HERE, vm, generation: Generation(generation), payload }
}

/// A version of the VM that this host carries.
pub(crate) fn attested(vm: VmId, wanted: Wanted, generation: u64) -> AttestedVm {
    let cause =
        |generation| Cause { digest: tags(vm, generation).payload, position: Position(generation) };
    let vm = Vm {
        id: vm,
        account: AccountId([5; 16]),
        name: "web-1".parse().unwrap(),
        generation: Generation(generation),
        created: cause(1),
        changed: cause(generation),
        wanted,
        image: VmImage {
            digest: ImageDigest([6; 32]),
            format: ImageFormat::Raw,
            virtual_size_bytes: 1 << 20,
        },
        size: Capacity { cpus: 1, memory_mib: 64, disk_gib: 1 },
        ssh_keys: Vec::new(),
        public_user_data: None,
        labels: BTreeMap::new(),
        region: None,
        host_labels: BTreeMap::new(),
        pinned_host: None,
        apart: Vec::new(),
        network: Default::default(),
        boot: None,
        more_cards: Vec::new(),
        protection: Protection::Unprotected,
        booted_since: Generation(1),
        volumes: Vec::new(),
        volumes_since: Generation(1),
        meter: dagger_payload::usage::Meter::NEW,
        stop_manner: StopManner::Graceful,
        restart: RestartPolicy::Always,
        placement: Placement::Accepted {
            host: HERE,
            address: Ipv4Addr::new(10, 77, 1, 2),
            position: Position(1),
        },
        tried: Vec::new(),
        reported: None,
        guest_host_key: None,
    };
    AttestedVm { vm, commit: CommitIndex(generation) }
}
