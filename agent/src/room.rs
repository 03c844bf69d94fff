//! What this host has free now: memory, and room where its disks lie.
//!
//! Owns the reading of the kernel's figures. Never decides whether they are enough: the controller
//! does, and what could not be read it does not count as full. Called by the machines' half when a
//! VM is offered, and for the metrics.

use std::path::Path;

use dagger_payload::id::AccountId;
use nix::sys::statvfs::statvfs;
use nix::sys::sysinfo::sysinfo;

use crate::actuator::store::StoredDisks;
use crate::controller::{QuarantineRoom, Room};

/// Where the kernel tells of each node's memory.
const NODES: &str = "/sys/devices/system/node";

/// What is free in memory, and where `storage` lies, and how much the account has in quarantine.
pub(crate) fn look(storage: &Path, disks: &StoredDisks, account: AccountId) -> Room {
    let quarantine = match disks.is_quarantine_full(account) {
        Ok(true) => QuarantineRoom::Full,
        Ok(false) => QuarantineRoom::Left,
        Err(_) => QuarantineRoom::Unknown,
    };
    Room { quarantine, ..look_at_host(storage) }
}

fn look_at_host(storage: &Path) -> Room {
    let free = free_bytes(storage);
    let memory_kib = available_kib().or_else(available_in_nodes_kib);
    Room {
        memory_mib: memory_kib.map(|kib| kib / 1024),
        storage_mib: free.map(|bytes| bytes >> 20),
        quarantine: QuarantineRoom::Unknown,
    }
}

/// What is free where `storage` lies, for who is not root.
pub(crate) fn free_bytes(storage: &Path) -> Option<u64> {
    let there = statvfs(storage).ok()?;
    Some(there.blocks_available().saturating_mul(there.fragment_size()))
}

fn available_kib() -> Option<u64> {
    figure_kib(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// The agent's unit sees nothing of `/proc` but processes: there it is summed up by nodes, as the
/// kernel does it but for what it keeps back for itself.
fn available_in_nodes_kib() -> Option<u64> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(NODES).ok()? {
        let path = entry.ok()?.path();
        let name = path.file_name()?.to_str()?;
        if name.strip_prefix("node").is_some_and(|number| number.parse::<u32>().is_ok()) {
            texts.push(std::fs::read_to_string(path.join("meminfo")).ok()?);
        }
    }
    sum_of_nodes_kib(&texts, sysinfo().ok()?.ram_total() / 1024)
}

/// Nothing where the nodes do not have all of the memory.
fn sum_of_nodes_kib(nodes: &[String], all_kib: u64) -> Option<u64> {
    const FREE: [&str; 4] = ["MemFree:", "Active(file):", "Inactive(file):", "SReclaimable:"];
    let (mut total_kib, mut free_kib) = (0_u64, 0_u64);
    for node in nodes {
        total_kib = total_kib.saturating_add(figure_kib(node, "MemTotal:")?);
        for name in FREE {
            free_kib = free_kib.saturating_add(figure_kib(node, name)?);
        }
    }
    (total_kib >= all_kib).then_some(free_kib)
}

/// The figure after `name`, which stands at the beginning of a line or after a node's number.
fn figure_kib(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != name).skip(1);
        let figure = words.next()?.parse().ok()?;
        (words.next() == Some("kB")).then_some(figure)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "Node 0 MemTotal:       12674848 kB\nNode 0 MemFree:         6715980 kB\n\
        Node 0 Active:          1568632 kB\nNode 0 Active(file):    1567056 kB\n\
        Node 0 Inactive(file):  2394692 kB\nNode 0 SReclaimable:     480160 kB\n";

    #[test]
    fn free_memory_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(figure_kib(text, "MemAvailable:"), Some(23_000_000));
        assert_eq!(figure_kib(text, "Available:"), None);
        assert_eq!(figure_kib("MemAvailable: much\n", "MemAvailable:"), None);
    }

    #[test]
    fn the_nodes_are_summed_up_only_if_they_have_all_memory() {
        let node = || NODE.to_owned();
        let free = 6_715_980 + 1_567_056 + 2_394_692 + 480_160;
        assert_eq!(sum_of_nodes_kib(&[node()], 12_674_848), Some(free));
        assert_eq!(sum_of_nodes_kib(&[node(), node()], 2 * 12_674_848), Some(2 * free));
        assert_eq!(sum_of_nodes_kib(&[node()], 24_000_000), None);
        assert_eq!(sum_of_nodes_kib(&[node(), "Node 1 MemTotal: 1 kB".to_owned()], 1), None);
    }

    #[test]
    fn what_is_free_here_is_known_and_what_cannot_be_seen_is_unknown() {
        let here = look_at_host(Path::new("/"));
        assert!(here.storage_mib.is_some());
        assert_eq!(look_at_host(Path::new("/there/is/no/such/place")).storage_mib, None);
    }
}
