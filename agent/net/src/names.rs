//! Names of interfaces and tables, made from ids, so that hosts that share one machine never meet.
//!
//! Owns these rules only. Called by the helper, which makes no other name, and by the agent, which
//! tells hypervisors the interface.

use dagger_payload::id::{HostId, VmId};

/// What every interface and table of ours begins with.
pub const BEGINNING: &str = "dgr-";
/// What stands in front of the ids in an interface's alias.
const ALIAS: &str = "dagger:";

/// The tap of a VM: fifteen bytes, which is what Linux allows.
pub fn interface(host: HostId, vm: VmId) -> String {
    let digest = blake3::Hasher::new_derive_key("dagger v1 tap")
        .update(host.as_bytes())
        .update(vm.as_bytes())
        .finalize();
    format!("{BEGINNING}{}", &digest.to_hex()[..11])
}

/// What the tap says of itself, for people and for who looks for what has no owner.
pub fn alias(host: HostId, vm: VmId) -> String {
    format!("{ALIAS}{host}:{vm}")
}

/// The VM of an alias, if it is one of this host's.
pub fn vm_of_alias(host: HostId, alias: &str) -> Option<VmId> {
    let ids = alias.trim().strip_prefix(ALIAS)?;
    ids.strip_prefix(&host.to_string())?.strip_prefix(':')?.parse().ok()
}

/// The nftables tables of a VM.
pub fn table(host: HostId, vm: VmId) -> String {
    format!("{}{vm}", table_beginning(host))
}

/// The VM of a table, if it is one of this host's.
pub fn vm_of_table(host: HostId, table: &str) -> Option<VmId> {
    table.strip_prefix(&table_beginning(host))?.parse().ok()
}

fn table_beginning(host: HostId) -> String {
    format!("{BEGINNING}{}-", &host.to_string()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: HostId = HostId([1; 16]);
    const VM: VmId = VmId([7; 16]);

    #[test]
    fn two_hosts_give_one_vm_two_interfaces_that_linux_takes() {
        let name = interface(HERE, VM);
        assert_eq!(name.len(), 15);
        assert_ne!(name, interface(HostId([2; 16]), VM));
    }

    #[test]
    fn what_was_made_for_a_vm_is_known_again_on_its_own_host_only() {
        let other = HostId([2; 16]);
        assert_eq!(vm_of_alias(HERE, &alias(HERE, VM)), Some(VM));
        assert_eq!(vm_of_alias(other, &alias(HERE, VM)), None);
        assert_eq!(vm_of_table(HERE, &table(HERE, VM)), Some(VM));
        assert_eq!(vm_of_table(other, &table(HERE, VM)), None);
        assert_eq!(vm_of_table(HERE, "filter"), None);
    }
}
