//! The daemons' configuration files in a development cluster, and the environment file for people.
//!
//! Owns their text. The files are written anew at each start, from the cluster's record. Called by
//! `cluster::dev`.

use std::path::Path;

use super::arguments::Hypervisor;
use super::daemons::Role;
use super::identity::{DEVELOPER_KEY, agent_key, ledger_key};
use super::record::{
    Accelerator, Directory, HostRecord, Libvirt, Membership, Record, make_private,
};
use crate::commands::genesis;
use crate::failure::Failure;

/// Writes every file.
pub(crate) fn write(directory: &Directory, record: &Record, log: &str) -> Result<(), Failure> {
    let run_directory = directory.run_directory(record);
    make_private(&run_directory)?;
    for name in ["hosts", "logs", "pids"] {
        make_private(&directory.join(name))?;
    }
    for host in &record.hosts {
        write_host(directory, record, host, log)?;
    }
    write_environment(directory, record)
}

/// Writes the files of one host.
pub(crate) fn write_host(
    directory: &Directory,
    record: &Record,
    host: &HostRecord,
    log: &str,
) -> Result<(), Failure> {
    make_private(&directory.join(format!("hosts/{}", host.name)))?;
    for name in ["ledger", "witness", "agent", "storage"] {
        make_private(&directory.join(format!("hosts/{}/{name}", host.name)))?;
    }
    make_private(&directory.run_directory(record).join(host.name.as_str()))?;
    let put = |role, table: toml::Table| {
        let text = table.to_string();
        write_file(&directory.configuration(role, &host.name), &text)
    };
    put(Role::Processor, processor(directory, record, host, log))?;
    put(Role::Ledger, ledger(directory, record, host, log))?;
    put(Role::Agent, agent(directory, record, host, log))
}

/// Writes what people source.
pub(crate) fn write_environment(directory: &Directory, record: &Record) -> Result<(), Failure> {
    write_file(&directory.environment(), &environment(directory, record))
}

fn write_file(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| Failure::file(path, &error))
}

fn text(path: &Path) -> toml::Value {
    path.display().to_string().into()
}

/// The keys that all three daemons have.
fn common(directory: &Directory, log: &str) -> toml::Table {
    let genesis = directory.genesis();
    toml::Table::from_iter([
        ("genesis".to_owned(), text(&genesis)),
        ("genesis_signatures".to_owned(), text(&genesis::signatures_path(&genesis))),
        ("log".to_owned(), log.into()),
    ])
}

/// A host that joined later finds its seat and its peers in a file.
fn insert_roster(table: &mut toml::Table, directory: &Directory, host: &HostRecord) {
    if host.membership == Membership::Joined {
        table.insert("roster".into(), text(&directory.roster(&host.name)));
    }
}

fn sockets(
    directory: &Directory,
    record: &Record,
    host: &HostRecord,
    names: &[(&str, &str)],
) -> toml::Value {
    let entries = names.iter().map(|(name, file)| {
        let socket = directory.socket(record, &host.name, file);
        ((*name).to_owned(), text(&socket))
    });
    toml::Table::from_iter(entries).into()
}

fn processor(directory: &Directory, record: &Record, host: &HostRecord, log: &str) -> toml::Table {
    let mut table = common(directory, log);
    let names = [("ledger", "processor.sock"), ("seal", "seal.sock")];
    table.insert("sockets".into(), sockets(directory, record, host, &names));
    table
}

fn ledger(directory: &Directory, record: &Record, host: &HostRecord, log: &str) -> toml::Table {
    let mut table = common(directory, log);
    let below = |name: &str| directory.join(format!("hosts/{}/{name}", host.name));
    insert_roster(&mut table, directory, host);
    table.insert("key".into(), text(&directory.key(&ledger_key(&host.name))));
    table.insert("state_directory".into(), text(&below("ledger")));
    table.insert("witness".into(), text(&below("witness").join("last-round")));
    table.insert("listen".into(), format!("127.0.0.1:{}", host.ledger_port).into());
    // Sparse; small enough for many ledgers on one machine.
    table.insert("map_gib".into(), 64.into());
    let names = [("agent", "ledger.sock"), ("processor", "processor.sock")];
    table.insert("sockets".into(), sockets(directory, record, host, &names));
    table
}

fn agent(directory: &Directory, record: &Record, host: &HostRecord, log: &str) -> toml::Table {
    let mut table = common(directory, log);
    insert_roster(&mut table, directory, host);
    table.insert("host".into(), host.name.to_string().into());
    table.insert("key".into(), text(&directory.key(&agent_key(&host.name))));
    let below = |name: &str| directory.join(format!("hosts/{}/{name}", host.name));
    table.insert("state_directory".into(), text(&below("agent")));
    table.insert("storage_directory".into(), text(&below("storage")));
    let names = [("ledger", "ledger.sock"), ("seal", "seal.sock"), ("api", "api.sock")];
    table.insert("sockets".into(), sockets(directory, record, host, &names));
    let listen = format!("127.0.0.1:{}", host.api_port);
    table.insert("api".into(), toml::Table::from_iter([("listen".into(), listen.into())]).into());
    table.insert("hypervisor".into(), hypervisor(directory, record, host).into());
    table.insert("network".into(), network(record).into());
    // All hosts are on this machine, so that they fetch images from loopback addresses.
    let networks = toml::Value::Array(vec!["127.0.0.0/8".into()]);
    table.insert("images".into(), toml::Table::from_iter([("networks".into(), networks)]).into());
    // The sockets belong to the host's own agent, not to a cluster that is played with.
    let helpers = toml::Table::from_iter([("supervision".into(), "direct".into())]);
    table.insert("helpers".into(), helpers.into());
    table
}

/// What connects a host's VMs.
fn network(record: &Record) -> toml::Table {
    let kind = if record.network_helper.is_some() { "nat" } else { "none" };
    toml::Table::from_iter([("kind".to_owned(), kind.into())])
}

/// What runs a host's VMs.
fn hypervisor(directory: &Directory, record: &Record, host: &HostRecord) -> toml::Table {
    if let (Hypervisor::Cloud, Some(found)) = (record.hypervisor, &record.cloud_hypervisor) {
        return toml::Table::from_iter([
            ("kind".to_owned(), "cloud_hypervisor".into()),
            ("program".to_owned(), text(&found.program)),
            ("firmware".to_owned(), text(&found.firmware)),
            ("run_directory".to_owned(), text(&directory.machines(record, &host.name))),
            // The units belong to the host's own agent, not to a cluster that is played with.
            ("supervision".to_owned(), "direct".into()),
        ]);
    }
    let accelerator = match record.accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    };
    toml::Table::from_iter([
        ("uri".to_owned(), libvirt_uri(directory, record).into()),
        ("accelerator".to_owned(), accelerator.into()),
    ])
}

/// The connection that agents, and `virsh`, use.
pub(crate) fn libvirt_uri(directory: &Directory, record: &Record) -> String {
    match record.libvirt {
        Libvirt::None => "test:///default".to_owned(),
        Libvirt::System => "qemu:///system".to_owned(),
        Libvirt::Private => {
            let socket = directory.run_directory(record).join("libvirt/libvirt-sock");
            format!("qemu:///system?socket={}", socket.display())
        }
    }
}

/// What people source before they use the cluster.
fn environment(directory: &Directory, record: &Record) -> String {
    let sockets: Vec<_> = record
        .hosts
        .iter()
        .map(|host| format!("unix:{}", directory.api_socket(record, &host.name).display()))
        .collect();
    let mut operators: Vec<_> = record
        .hosts
        .iter()
        .map(|host| directory.key(host.operator.as_str()).display().to_string())
        .collect();
    // An operator may have several hosts.
    let mut seen = std::collections::BTreeSet::new();
    operators.retain(|key| seen.insert(key.clone()));
    let mut lines = vec![
        format!("# Source this to use the development cluster in {}.", directory.root().display()),
        format!("export DAGGER_DIRECTORY={}", directory.root().display()),
        "# Every host's API; daggerctl asks the next one when one does not answer.".to_owned(),
        format!("export DAGGER_API={}", sockets.join(",")),
        "# The developer's key, and the keys of all operators (`account grant --operator-key`)."
            .to_owned(),
        format!("export DAGGER_KEY={}", directory.key(DEVELOPER_KEY).display()),
        format!("export DAGGER_OPERATOR_KEYS={}", operators.join(",")),
    ];
    if let Some(host) = record.hosts.first() {
        lines.push("# The first host's API for curl and browsers.".to_owned());
        lines.push(format!("export DAGGER_HTTP=http://127.0.0.1:{}", host.api_port));
        let socket = directory.api_socket(record, &host.name);
        lines.push(format!("export DAGGER_API_SOCKET={}", socket.display()));
    }
    if record.hypervisor == Hypervisor::Qemu {
        lines.push("# For virsh.".to_owned());
        lines.push(format!("export LIBVIRT_DEFAULT_URI='{}'", libvirt_uri(directory, record)));
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::arguments::DirectoryArguments;
    use crate::cluster::identity;
    use crate::endpoint;

    #[test]
    fn the_environment_file_names_every_host_and_keys_that_exist() {
        let root = tempfile::tempdir().expect("a directory");
        let arguments = DirectoryArguments { directory: Some(root.path().join("dev")) };
        let directory = Directory::of(&arguments).expect("a directory");
        let record = identity::found(&directory, 3, Hypervisor::Test).expect("founds");
        write(&directory, &record, "info").expect("writes");
        let output = std::process::Command::new("sh")
            .arg("-c")
            .arg(". \"$0\" && echo \"$DAGGER_API\" && echo \"$DAGGER_KEY\" && echo \"$DAGGER_OPERATOR_KEYS\"")
            .arg(directory.environment())
            .output()
            .expect("sh runs");
        let text = String::from_utf8(output.stdout).expect("text");
        let [api, key, operators] = text.lines().collect::<Vec<_>>().try_into().expect("3 lines");
        assert_eq!(endpoint::parse_list(api).expect("a list").len(), 3);
        assert!(Path::new(key).exists());
        assert_eq!(operators.split(',').filter(|key| Path::new(key).exists()).count(), 3);
    }

    #[test]
    fn hosts_share_no_socket_port_key_or_state() {
        let root = tempfile::tempdir().expect("a directory");
        let arguments = DirectoryArguments { directory: Some(root.path().join("dev")) };
        let directory = Directory::of(&arguments).expect("a directory");
        let record = identity::found(&directory, 2, Hypervisor::Test).expect("founds");
        let [one, two] = [0, 1].map(|index| {
            let host = &record.hosts[index];
            format!(
                "{}\n{}",
                ledger(&directory, &record, host, "info"),
                agent(&directory, &record, host, "info")
            )
        });
        let shared =
            ["genesis", "log", "map_gib", "uri", "accelerator", "kind", "networks", "supervision"];
        for line in one.lines().filter(|line| line.contains('=')) {
            let is_shared = shared.iter().any(|name| line.starts_with(name));
            assert_eq!(two.contains(line), is_shared, "{line}");
        }
    }
}
