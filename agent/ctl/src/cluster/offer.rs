//! What each host of a development cluster offers, and declaring it in the ledger.
//!
//! Owns dividing the machine among its hosts. Never changes an offer that was made before. Called
//! by `cluster::dev`.

use std::net::Ipv4Addr;
use std::time::Instant;

use dagger_api::{HostView, IMAGE_ENDPOINT_LABEL};
use dagger_payload::id::ProtocolVersion;
use dagger_payload::kind::{Body, Capacity, GuestSubnet, HostJoin};
use dagger_payload::limits::VM_FORWARDS_MAX;
use dagger_payload::name::{Labels, Name};

use super::arguments::{DevArguments, Hypervisor};
use super::identity::{agent_key, ledger_key};
use super::record::{Directory, HostRecord, Membership, Record};
use crate::failure::Failure;
use crate::limits::CLUSTER_START_MAX;
use crate::output::Format;
use crate::progress::Progress;
use crate::session::{Session, Until};
use crate::signer::{read_public_key, with_pub};

/// CPUs are shared among the hosts' guests, so that a small machine can still show VMs with
/// several.
const CPUS_MIN: u32 = 4;
/// Ports of the machine from here on lead to guests; below the range from which Linux takes ports
/// by itself.
const FORWARD_PORTS_FIRST: u16 = 10_000;
/// The last port at which those of a host may begin.
const FORWARD_PORTS_LAST: u16 = 30_000;
/// Guests that a /24 has addresses for.
const GUESTS_OF_24: u8 = 253;
/// What a host of pretended VMs offers.
const PRETENDED: Capacity = Capacity { cpus: 32, memory_mib: 64 * 1024, disk_gib: 1024 };

/// Declares every host that is not declared yet, signed by its operator. Returns how many there
/// were.
pub(crate) async fn declare(
    arguments: &DevArguments,
    directory: &Directory,
    record: &Record,
    session: &Session,
) -> Result<usize, Failure> {
    let views: Vec<HostView> = session.client.get("/v1/hosts").await?;
    // A host that has left, or that has yet to join, declares nothing here.
    let awaited = |name: &Name| views.iter().any(|view| view.name == *name && view.host.is_none());
    let wishes = Wishes {
        cpus: arguments.host_cpus,
        memory_mib: arguments.host_memory,
        disk_gib: arguments.host_disk,
    };
    let capacity = capacity(wishes, directory, record)?;
    let deadline = Instant::now() + CLUSTER_START_MAX;
    let silent = Progress::new(Format::Json);
    let mut count = 0;
    for (index, host) in record.hosts.iter().enumerate() {
        if !awaited(&host.name) {
            continue;
        }
        let body = join((directory, record), index, host, capacity)?;
        let key = directory.key(host.operator.as_str());
        let signed = session.sign(Some(&key), body).await?;
        session.submit(&signed, Until::Judged, deadline, &silent).await?;
        count += 1;
    }
    Ok(count)
}

/// What a host of a development cluster declares: its address too when the genesis does not know
/// it.
pub(crate) fn join(
    (directory, record): (&Directory, &Record),
    index: usize,
    host: &HostRecord,
    capacity: Capacity,
) -> Result<Body, Failure> {
    let region = format!("region-{}", index + 1);
    Ok(Body::HostJoin(Box::new(HostJoin {
        ledger_key: read_public_key(&with_pub(&directory.key(&ledger_key(&host.name))))?,
        address: match host.membership {
            Membership::Founder => None,
            Membership::Joined => Some((Ipv4Addr::LOCALHOST, host.ledger_port).into()),
        },
        agent_key: read_public_key(&with_pub(&directory.key(&agent_key(&host.name))))?,
        name: host.name.clone(),
        region: region.parse().map_err(|e| Failure::broken(format!("{region}: {e}")))?,
        site: None,
        capacity,
        reserve: Capacity::default(),
        guest_subnet: GuestSubnet { network: host.guest_network, prefix_length: 24 },
        labels: labels(host)?,
        forward_ports_first: forward_ports_first(record, index),
        protocol_max: Some(ProtocolVersion::KNOWN),
        bridges: Vec::new(),
    })))
}

/// Where the ports of a host begin that lead to its guests: hosts of one machine share none, as far
/// as there are enough. Where guests have no network cards nothing can lead to them.
fn forward_ports_first(record: &Record, index: usize) -> Option<u16> {
    record.network_helper.as_ref()?;
    let ports = (usize::from(GUESTS_OF_24) * usize::from(VM_FORWARDS_MAX)).checked_mul(index)?;
    let first = FORWARD_PORTS_FIRST.checked_add(u16::try_from(ports).ok()?)?;
    (first <= FORWARD_PORTS_LAST).then_some(first)
}

/// Where the other hosts fetch images.
fn labels(host: &HostRecord) -> Result<Labels, Failure> {
    let broken = |error: &dyn std::fmt::Display| Failure::broken(format!("a label: {error}"));
    let name = IMAGE_ENDPOINT_LABEL.parse().map_err(|error| broken(&error))?;
    let endpoint = format!("{}:{}", Ipv4Addr::LOCALHOST, host.api_port);
    let value = endpoint.parse().map_err(|error| broken(&error))?;
    Ok(Labels::from([(name, value)]))
}

/// What was asked of a host to offer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wishes {
    cpus: Option<u32>,
    memory_mib: Option<u64>,
    disk_gib: Option<u64>,
}

/// What each host offers: as asked, else half of what is free on this machine, divided.
pub(crate) fn capacity(
    wishes: Wishes,
    directory: &Directory,
    record: &Record,
) -> Result<Capacity, Failure> {
    let machine = match record.hypervisor {
        Hypervisor::Test => PRETENDED,
        Hypervisor::Qemu | Hypervisor::Cloud => share(directory, record.hosts.len() as u64)?,
    };
    Ok(Capacity {
        cpus: wishes.cpus.unwrap_or(machine.cpus),
        memory_mib: wishes.memory_mib.unwrap_or(machine.memory_mib),
        disk_gib: wishes.disk_gib.unwrap_or(machine.disk_gib),
    })
}

fn share(directory: &Directory, hosts: u64) -> Result<Capacity, Failure> {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory_kib = available_kib(&memory)
        .ok_or_else(|| Failure::broken("/proc/meminfo does not tell MemAvailable"))?;
    let disk = nix::sys::statvfs::statvfs(directory.root())
        .map_err(|error| Failure::file(directory.root(), &error.into()))?;
    let free_bytes = disk.blocks_available() * disk.fragment_size();
    Ok(Capacity {
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX).max(CPUS_MIN),
        memory_mib: (memory_kib / 1024 / 2 / hosts).max(256),
        disk_gib: ((free_bytes >> 30) / 2 / hosts).max(1),
    })
}

fn available_kib(memory: &str) -> Option<u64> {
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(available_kib(text), Some(23_000_000));
        assert_eq!(available_kib(""), None);
    }
}
