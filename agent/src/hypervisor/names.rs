//! Names and addresses on a host, all made from ids (R6), so that hosts that share one machine
//! never meet.
//!
//! Owns these rules only. Called by the hypervisors, the actuator and the observation.

use std::fmt::Write as _;

use dagger_payload::id::{HostId, VmId};

/// XML namespace of the tags in a domain's metadata.
pub const TAGS_NAMESPACE: &str = "https://dagger.example/domain/1";

/// What names of one host are made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostNames {
    host: HostId,
}

impl HostNames {
    /// The names of `host`.
    pub fn of(host: HostId) -> Self {
        Self { host }
    }

    /// Whose names these are.
    pub fn host(&self) -> HostId {
        self.host
    }

    /// The first eight hex digits of the host's id.
    fn short(&self) -> String {
        self.host.to_string()[..8].to_owned()
    }

    /// Name of a VM's domain.
    pub fn domain(&self, vm: VmId) -> String {
        format!("dagger-{}-{vm}", self.short())
    }

    /// The VM that a domain's name means, if it is one of this host's names.
    pub fn vm_of_domain(&self, name: &str) -> Option<VmId> {
        let rest = name.strip_prefix("dagger-")?.strip_prefix(&self.short())?;
        rest.strip_prefix('-')?.parse().ok()
    }

    /// The tap of a VM's card, from 0, as the helper names it.
    pub fn tap(&self, vm: VmId, card: u8) -> String {
        dagger_net::names::interface(self.host, vm, card)
    }

    /// The MAC address of a VM's network card, from 0, on this host: six lower-case hex pairs with
    /// colons.
    pub fn mac(&self, vm: VmId, card: u8) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("dagger v1 mac");
        hasher.update(self.host.as_bytes()).update(vm.as_bytes());
        if card > 0 {
            hasher.update(&[card]);
        }
        let digest = hasher.finalize();
        digest.as_bytes()[..3].iter().fold("52:54:00".to_owned(), |mut text, byte| {
            let _ = write!(text, ":{byte:02x}");
            text
        })
    }
}

/// The UUID of a VM's domain: its id's bytes, in the usual text form.
pub fn uuid(vm: VmId) -> String {
    let hex = vm.to_string();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_name_reads_back_on_its_own_host_only() {
        let (mine, other) = (HostNames::of(HostId([1; 16])), HostNames::of(HostId([2; 16])));
        let vm = VmId([7; 16]);
        assert_eq!(mine.vm_of_domain(&mine.domain(vm)), Some(vm));
        assert_eq!(other.vm_of_domain(&mine.domain(vm)), None);
        assert_eq!(mine.vm_of_domain("dagger-01010101-07"), None);
        assert_eq!(mine.vm_of_domain("test"), None);
    }

    #[test]
    fn two_hosts_give_one_vm_two_mac_addresses() {
        let vm = VmId([7; 16]);
        let names = HostNames::of(HostId([1; 16]));
        let mac = names.mac(vm, 0);
        assert_ne!(mac, HostNames::of(HostId([2; 16])).mac(vm, 0));
        assert_ne!(mac, names.mac(vm, 1));
        assert!(mac.starts_with("52:54:00:") && mac.len() == 17);
    }
}
