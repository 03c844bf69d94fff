//! Names of interfaces and tables, made from ids, so that hosts that share one machine never meet.
//!
//! Owns these rules only. Called by the helper, which makes no other name, and by the agent, which
//! tells hypervisors the interface.

use dagger_payload::id::{HostId, VmId};
use dagger_payload::limits::VM_CARDS_MAX;

/// What every interface and table of ours begins with.
pub const BEGINNING: &str = "dgr-";
/// What stands in front of the ids in an interface's alias.
const ALIAS: &str = "dagger:";

/// The tap of a VM's card, from 0: fifteen bytes, which is what Linux allows.
pub fn interface(host: HostId, vm: VmId, card: u8) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("dagger v1 tap");
    hasher.update(host.as_bytes()).update(vm.as_bytes());
    if card > 0 {
        hasher.update(&[card]);
    }
    let digest = hasher.finalize();
    format!("{BEGINNING}{}", &digest.to_hex()[..11])
}

/// What the tap says of itself, for people and for who looks for what has no owner.
pub fn alias(host: HostId, vm: VmId, card: u8) -> String {
    format!("{ALIAS}{host}:{}", of_card(vm, card, ':'))
}

/// The first card goes without a number.
fn of_card(vm: VmId, card: u8, between: char) -> String {
    match card {
        0 => vm.to_string(),
        card => format!("{vm}{between}{card}"),
    }
}

/// The VM of what [`of_card`] made.
fn read_card(text: &str, between: char) -> Option<VmId> {
    match text.split_once(between) {
        None => text.parse().ok(),
        Some((vm, card)) => {
            let card = card.parse().ok().filter(|card| (1..VM_CARDS_MAX).contains(card))?;
            let vm = vm.parse().ok()?;
            (of_card(vm, card, between) == text).then_some(vm)
        }
    }
}

/// The ids in an alias, without what the guest is told, which stands behind a comma.
fn ids_of_alias(alias: &str) -> Option<(&str, &str)> {
    let ids = alias.trim().strip_prefix(ALIAS)?;
    ids.split_once(',').map_or(ids, |(ids, _)| ids).split_once(':')
}

/// What stands behind the ids in an alias.
pub(crate) fn told_by_alias(alias: &str) -> Option<&str> {
    alias.trim().strip_prefix(ALIAS)?.split_once(',').map(|(_, told)| told)
}

/// Whether an alias is that of this very card, whatever else it tells. Names of interfaces are too
/// short to say so: another card's may be the same.
pub fn is_alias_of(alias: &str, host: HostId, vm: VmId, card: u8) -> bool {
    let ids = alias.trim().split_once(',').map_or(alias.trim(), |(ids, _)| ids);
    ids == self::alias(host, vm, card)
}

/// The VM of an alias, if it is one of this host's.
pub fn vm_of_alias(host: HostId, alias: &str) -> Option<VmId> {
    let (of, card) = ids_of_alias(alias)?;
    (of == host.to_string()).then(|| read_card(card, ':')).flatten()
}

/// Whether this alias is that of the first card whose tap has this name.
pub fn is_alias_of_first_card(alias: &str, tap: &str) -> bool {
    let first = || {
        let (host, vm) = ids_of_alias(alias)?;
        Some(interface(host.parse().ok()?, vm.parse().ok()?, 0) == tap)
    };
    first().unwrap_or(false)
}

/// The nftables tables of a VM's card, from 0.
pub fn table(host: HostId, vm: VmId, card: u8) -> String {
    format!("{}{}", table_beginning(host), of_card(vm, card, '-'))
}

/// The VM of a table, if it is one of this host's.
pub fn vm_of_table(host: HostId, table: &str) -> Option<VmId> {
    read_card(table.strip_prefix(&table_beginning(host))?, '-')
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
        let name = interface(HERE, VM, 0);
        assert_eq!(name.len(), 15);
        assert_ne!(name, interface(HostId([2; 16]), VM, 0));
        assert_ne!(name, interface(HERE, VM, 1));
    }

    #[test]
    fn an_alias_is_of_one_card_and_of_no_other() {
        let own = alias(HERE, VM, 1);
        assert!(is_alias_of(&format!("{own},more\n"), HERE, VM, 1));
        assert!(is_alias_of(&own, HERE, VM, 1));
        assert!(!is_alias_of(&own, HERE, VM, 0) && !is_alias_of(&own, HERE, VM, 2));
        assert!(!is_alias_of(&own, HostId([2; 16]), VM, 1));
        assert!(!is_alias_of(&own, HERE, VmId([8; 16]), 1));
        assert!(!is_alias_of("", HERE, VM, 1));
    }

    #[test]
    fn only_a_first_card_under_its_own_name_is_known_as_one() {
        let (first, second) = (alias(HERE, VM, 0), alias(HERE, VM, 1));
        assert!(is_alias_of_first_card(&first, &interface(HERE, VM, 0)));
        assert!(is_alias_of_first_card(&format!("{first},more"), &interface(HERE, VM, 0)));
        assert_eq!(vm_of_alias(HERE, &format!("{first},more")), Some(VM));
        for (alias, tap) in [
            (first.as_str(), interface(HERE, VM, 1)),
            (second.as_str(), interface(HERE, VM, 1)),
            (second.as_str(), interface(HERE, VM, 0)),
            (first.as_str(), interface(HERE, VmId([8; 16]), 0)),
            ("dagger:", interface(HERE, VM, 0)),
            ("", "virbr0".to_owned()),
        ] {
            assert!(!is_alias_of_first_card(alias, &tap), "{alias} {tap}");
        }
    }

    #[test]
    fn what_was_made_for_a_vm_is_known_again_on_its_own_host_only() {
        let other = HostId([2; 16]);
        for card in 0..VM_CARDS_MAX {
            assert_eq!(vm_of_alias(HERE, &alias(HERE, VM, card)), Some(VM));
            assert_eq!(vm_of_alias(other, &alias(HERE, VM, card)), None);
            assert_eq!(vm_of_table(HERE, &table(HERE, VM, card)), Some(VM));
            assert_eq!(vm_of_table(other, &table(HERE, VM, card)), None);
        }
        assert_eq!(vm_of_table(HERE, &table(HERE, VM, VM_CARDS_MAX)), None);
        assert_eq!(vm_of_table(HERE, &format!("{}-01", table(HERE, VM, 0))), None);
        assert_eq!(vm_of_table(HERE, "filter"), None);
    }
}
