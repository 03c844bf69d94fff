//! Removes what the cluster's agents made on this machine outside of its directory: domains,
//! network cards, and the traces that libvirt leaves in the firewall.
//!
//! Owns `cluster stop`'s part of it. Touches only what is named from the ids of the cluster's own
//! hosts. Never deletes a disk. Called by `cluster::stop`.

use std::path::Path;
use std::process::{Command, Stdio};

use dagger_payload::genesis::{Genesis, GenesisHost};
use dagger_payload::id::HostId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::configuration::libvirt_uri;
use super::forwarding::Guests;
use super::identity::ledger_key;
use super::record::{Directory, Libvirt, Membership, Record};
use crate::failure::Failure;
use crate::limits::VIRSH_MAX;
use crate::signer::{read_public_key, read_small, with_pub};

/// Chains that libvirt makes in the firewall and leaves behind empty: table, chain that jumps
/// there, chain.
const CHAINS: [(&str, &str, &str); 6] = [
    ("filter", "INPUT", "LIBVIRT_INP"),
    ("filter", "OUTPUT", "LIBVIRT_OUT"),
    ("filter", "FORWARD", "LIBVIRT_FWI"),
    ("filter", "FORWARD", "LIBVIRT_FWO"),
    ("filter", "FORWARD", "LIBVIRT_FWX"),
    ("nat", "POSTROUTING", "LIBVIRT_PRT"),
];
const MANGLE_CHAIN: (&str, &str, &str) = ("mangle", "POSTROUTING", "LIBVIRT_PRT");
/// What the names of guests' taps and tables begin with.
const CARD: &str = "dgr-";
const INTERFACES: &str = "/sys/class/net";

/// The first eight digits of each host's id, of founders and of those that joined: what is in every
/// name on this machine.
pub(crate) fn host_marks(directory: &Directory, record: &Record) -> Result<Vec<String>, Failure> {
    let text = read_small(&directory.genesis())?;
    let genesis = Genesis::read(text.as_bytes()).map_err(|error| {
        let advice = "The cluster's genesis.json was changed; restore it.";
        Failure::refused("genesis_invalid", error.to_string(), advice)
    })?;
    let mut hosts: Vec<HostId> = genesis.hosts.iter().map(GenesisHost::id).collect();
    for host in record.hosts.iter().filter(|host| host.membership == Membership::Joined) {
        let key = directory.key(&ledger_key(&host.name));
        hosts.push(HostId::of(&read_public_key(&with_pub(&key))?));
    }
    Ok(hosts.iter().map(|host| host.to_string().chars().take(8).collect()).collect())
}

/// Ends the cluster's VMs and removes their network cards. Whatever libvirt cannot be asked to end
/// is ended by its process.
pub(crate) async fn remove(directory: &Directory, record: &Record) -> Result<(), Failure> {
    let marks = host_marks(directory, record)?;
    let uri = libvirt_uri(directory, record);
    let ours = |prefix: &str, name: &str| {
        marks.iter().any(|mark| match name.strip_prefix(prefix) {
            Some(rest) => {
                rest.strip_prefix(mark.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('-'))
            }
            None => false,
        })
    };
    for domain in virsh(&uri, &["list", "--all", "--name"]).await.unwrap_or_default().lines() {
        if ours("dagger-", domain) {
            let _ = virsh(&uri, &["destroy", "--domain", domain]).await;
            // A private libvirtd's definitions lie in the cluster's directory: its agents find them
            // again.
            if record.libvirt == Libvirt::System {
                let _ = virsh(&uri, &["undefine", "--domain", domain]).await;
            }
        }
    }
    for mark in &marks {
        end_stray_guests(mark);
    }
    remove_cards(&marks);
    Ok(())
}

/// Removes taps and filters of guests: a tap tells its host by its alias, a table by its name.
pub(crate) fn remove_cards(marks: &[String]) {
    let is_ours = |text: &str, beginning: &str| {
        let rest = text.strip_prefix(beginning);
        rest.is_some_and(|rest| marks.iter().any(|mark| rest.starts_with(mark.as_str())))
    };
    for name in interfaces().filter(|name| name.starts_with(CARD)) {
        let alias = Path::new(INTERFACES).join(&name).join("ifalias");
        let alias = std::fs::read_to_string(alias).unwrap_or_default();
        if is_ours(&alias, "dagger:") {
            run_quietly("ip", &["link", "delete", "dev", &name]);
        }
    }
    let nft = super::daemons::find_in_path("nft").unwrap_or_else(|| "nft".into());
    let Ok(listed) = Command::new(nft).args(["list", "tables"]).output() else { return };
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        if let ["table", family, table] = line.split_whitespace().collect::<Vec<_>>()[..]
            && is_ours(table, CARD)
        {
            run_quietly("nft", &["delete", "table", family, table]);
        }
    }
}

fn interfaces() -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(INTERFACES).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Runs `virsh` within its deadline; `None` when it fails.
async fn virsh(uri: &str, arguments: &[&str]) -> Option<String> {
    let running = tokio::process::Command::new("virsh")
        .args(["--quiet", "--connect", uri])
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(VIRSH_MAX, running).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// QEMU processes of a host whose libvirtd is gone, known by the name that libvirt gave them
/// (`-name guest=...`).
fn end_stray_guests(mark: &str) {
    let name = format!("guest=dagger-{mark}-");
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return;
    };
    for entry in entries.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|byte| *byte == 0);
        let is_qemu = arguments
            .next()
            .is_some_and(|program| String::from_utf8_lossy(program).contains("qemu-system-"));
        if let Some(pid) = pid
            && is_qemu
            && arguments.any(|argument| argument.starts_with(name.as_bytes()))
        {
            // It may have ended in between, which is what we want.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Whether a network of libvirt's or a guest's card is on this machine, of whatever cluster.
pub(crate) fn guests() -> Guests {
    match interfaces().any(|name| name.starts_with("virbr") || name.starts_with(CARD)) {
        true => Guests::There,
        false => Guests::Gone,
    }
}

/// Takes back what a private libvirtd changed in the firewall, unless another network of libvirt's
/// or another guest's card still needs it.
pub(crate) fn restore_firewall() {
    if guests() == Guests::There {
        return;
    }
    for (table, from, chain) in CHAINS.into_iter().chain([MANGLE_CHAIN]) {
        remove_empty_chain("iptables", table, from, chain);
        remove_empty_chain("ip6tables", table, from, chain);
    }
}

fn remove_empty_chain(program: &str, table: &str, from: &str, chain: &str) {
    let output = Command::new(program).args(["-w", "5", "-t", table, "-S", chain]).output();
    let Ok(output) = output else {
        return;
    };
    // One line makes the chain; each further one is a rule.
    let is_empty =
        output.status.success() && String::from_utf8_lossy(&output.stdout).lines().count() == 1;
    if is_empty {
        run_quietly(program, &["-w", "5", "-t", table, "-D", from, "-j", chain]);
        run_quietly(program, &["-w", "5", "-t", table, "-X", chain]);
    }
}

fn run_quietly(program: &str, arguments: &[&str]) {
    let path = super::daemons::find_in_path(program).unwrap_or_else(|| program.into());
    let _ = Command::new(path)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

#[cfg(test)]
mod tests {
    use super::super::arguments::{DirectoryArguments, Hypervisor};
    use super::super::identity::{found, make_host_keys, parse_name};
    use super::*;

    #[test]
    fn what_is_ended_is_that_of_founders_and_of_hosts_that_joined() {
        let root = tempfile::tempdir().expect("a directory");
        let arguments = DirectoryArguments { directory: Some(root.path().join("dev")) };
        let directory = Directory::of(&arguments).expect("a directory");
        let mut record = found(&directory, 2, Hypervisor::Test).expect("founds");
        let founders = host_marks(&directory, &record).expect("two");
        assert_eq!(founders.len(), 2);
        let mut joined = record.hosts[0].clone();
        joined.name = parse_name("host3").expect("a name");
        joined.membership = Membership::Joined;
        make_host_keys(&directory, &joined).expect("makes keys");
        record.hosts.push(joined);
        let all = host_marks(&directory, &record).expect("three");
        assert_eq!(all[..2], founders);
        let key = read_public_key(&with_pub(&directory.key("host3-ledger"))).expect("a key");
        assert!(HostId::of(&key).to_string().starts_with(&all[2]) && all[2].len() == 8);
    }
}
