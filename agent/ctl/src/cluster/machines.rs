//! Removes what the cluster's agents made on this machine outside of its directory: domains,
//! networks, bridges, and the traces that libvirt leaves in the firewall.
//!
//! Owns `cluster stop`'s part of it. Touches only what is named from the ids of the cluster's own
//! hosts. Never deletes a disk. Called by `cluster::stop`.

use std::path::Path;
use std::process::{Command, Stdio};

use dagger_payload::genesis::Genesis;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::configuration::libvirt_uri;
use super::record::{Directory, Libvirt, Record};
use crate::failure::Failure;
use crate::limits::VIRSH_MAX;
use crate::signer::read_small;

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
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// The first eight digits of each host's id: what is in every name on this machine.
pub(crate) fn host_marks(directory: &Directory) -> Result<Vec<String>, Failure> {
    let text = read_small(&directory.genesis())?;
    let genesis = Genesis::read(text.as_bytes()).map_err(|error| {
        let advice = "The cluster's genesis.json was changed; restore it.";
        Failure::refused("genesis_invalid", error.to_string(), advice)
    })?;
    let mark = |host: &dagger_payload::genesis::GenesisHost| {
        host.id().to_string().chars().take(8).collect()
    };
    Ok(genesis.hosts.iter().map(mark).collect())
}

/// Ends the cluster's VMs and networks. Whatever libvirt cannot be asked to end is ended by its
/// process or device.
pub(crate) async fn remove(directory: &Directory, record: &Record) -> Result<(), Failure> {
    let marks = host_marks(directory)?;
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
    for network in virsh(&uri, &["net-list", "--all", "--name"]).await.unwrap_or_default().lines() {
        if ours("dagger-", network) {
            let _ = virsh(&uri, &["net-destroy", "--network", network]).await;
            if record.libvirt == Libvirt::System {
                let _ = virsh(&uri, &["net-undefine", "--network", network]).await;
            }
        }
    }
    for mark in &marks {
        end_stray_guests(mark);
        let bridge = format!("dg{mark}");
        if Path::new("/sys/class/net").join(&bridge).exists() {
            run_quietly("ip", &["link", "delete", &bridge]);
        }
    }
    Ok(())
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

/// Notes whether this machine forwarded packets before libvirt switched that on for its networks.
pub(crate) fn note_forwarding(directory: &Directory) {
    let note = directory.join("libvirt/ip_forward");
    if !note.exists()
        && let Ok(before) = std::fs::read_to_string(FORWARDING)
    {
        // Without the note forwarding stays on, as it does after libvirt itself.
        let _ = std::fs::write(note, before);
    }
}

/// Takes back what libvirt changed for the whole machine, unless another network of libvirt's still
/// needs it.
pub(crate) fn restore_machine(directory: &Directory) {
    let interfaces = std::fs::read_dir("/sys/class/net");
    let others = interfaces.into_iter().flatten().flatten().any(|interface| {
        let name = interface.file_name();
        let name = name.to_string_lossy();
        name.starts_with("virbr") || is_dagger_bridge(&name)
    });
    let note = directory.join("libvirt/ip_forward");
    if !others {
        for (table, from, chain) in CHAINS.into_iter().chain([MANGLE_CHAIN]) {
            remove_empty_chain("iptables", table, from, chain);
            remove_empty_chain("ip6tables", table, from, chain);
        }
        if std::fs::read_to_string(&note).is_ok_and(|before| before.trim() == "0") {
            let _ = std::fs::write(FORWARDING, "0\n");
        }
    }
    let _ = std::fs::remove_file(note);
}

/// `dg` and the eight digits of a host: the bridge of some development cluster.
fn is_dagger_bridge(name: &str) -> bool {
    name.strip_prefix("dg")
        .is_some_and(|mark| mark.len() == 8 && mark.bytes().all(|c| c.is_ascii_hexdigit()))
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
    use super::*;

    #[test]
    fn only_bridges_of_dagger_keep_the_machine_as_libvirt_left_it() {
        assert!(is_dagger_bridge("dg0a1b2c3d"));
        for name in ["dg", "dg0", "dgnotahexd", "eth0", "docker0", "dg0a1b2c3d4"] {
            assert!(!is_dagger_bridge(name), "{name}");
        }
    }
}
