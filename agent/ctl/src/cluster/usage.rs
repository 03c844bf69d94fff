//! What `cluster dev` prints once the cluster works: lines to copy.
//!
//! Owns that text. Called by `cluster::dev`.

use super::arguments::Hypervisor;
use super::record::{Accelerator, Directory, Record};
use crate::failure::Failure;
use crate::session::Session;

/// Whether `cluster dev` returns or stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It returned; the cluster runs on.
    Detached,
    /// It stays until Ctrl-C.
    Foreground,
}

/// Shows how to use the cluster.
pub(crate) fn show(
    directory: &Directory,
    record: &Record,
    mode: Mode,
    session: &Session,
) -> Result<(), Failure> {
    let hosts: Vec<_> = record.hosts.iter().map(|host| host.name.as_str()).collect();
    let value = serde_json::json!({
        "directory": directory.root(),
        "environment": directory.environment(),
        "hosts": hosts,
    });
    session.output.show(&value, |_| text(directory, record, mode))
}

fn text(directory: &Directory, record: &Record, mode: Mode) -> String {
    let machines = match (record.hypervisor, record.accelerator) {
        (Hypervisor::Test, _) => "VMs on paper only (libvirt's test driver)",
        (Hypervisor::Cloud, _) if record.network_helper.is_none() => {
            "real VMs, Cloud Hypervisor, no network cards"
        }
        (Hypervisor::Cloud, _) => "real VMs, Cloud Hypervisor",
        (Hypervisor::Qemu, Accelerator::Kvm) => "real VMs, QEMU with KVM",
        (Hypervisor::Qemu, Accelerator::Tcg) => "real VMs, QEMU without KVM",
    };
    let how = match mode {
        Mode::Detached => "",
        Mode::Foreground => "   (or Ctrl-C here)",
    };
    let own = std::env::current_exe().unwrap_or_else(|_| "daggerctl".into());
    let is_in_path = super::daemons::find_in_path("daggerctl") == Some(own.clone());
    let program = if is_in_path { "daggerctl".to_owned() } else { own.display().to_string() };
    let environment = directory.environment().display().to_string();
    let operator = record.hosts.first().map(|host| host.operator.to_string()).unwrap_or_default();
    format!(
        "\nThe cluster works: {count} hosts, {machines}.\n\n\
         In another shell:\n  \
         . {environment}\n  \
         {program} host ls\n  \
         {program} account grant $DAGGER_KEY.pub --cpus 8 --memory 4GiB --disk 40GiB \\\n      \
         --operator-key $DAGGER_OPERATOR_KEYS\n  \
         {program} image register IMAGE.qcow2 --name {operator}/guest \\\n      \
         --key $DAGGER_DIRECTORY/keys/{operator}\n  \
         {program} vm create web-1 --image guest --cpus 2 --memory 512MiB --disk 2GiB \\\n      \
         --ssh-key $DAGGER_KEY.pub --wait running\n  \
         {program} vm history web-1\n  \
         {program} cluster status\n  \
         {program} cluster stop{how}\n",
        count = record.hosts.len(),
    )
}
