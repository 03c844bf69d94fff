//! The identity of a development cluster: its keys and its genesis document.
//!
//! Owns making them once. What exists is never made anew, for a lost key is a lost host. Called by
//! `cluster::dev`.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use dagger_payload::genesis::{GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::key::{PublicKey, SecretKey};
use dagger_payload::name::Name;
use zeroize::Zeroizing;

use super::arguments::Hypervisor;
use super::network;
use super::record::{Directory, HostRecord, Membership, Record, make_private};
use crate::commands::genesis;
use crate::failure::Failure;
use crate::signer::{SigningKey, read_public_key, with_pub};

/// The developer's key: what `$DAGGER_KEY` names.
pub(crate) const DEVELOPER_KEY: &str = "developer";

/// Name of a host's ledger key.
pub(crate) fn ledger_key(host: &Name) -> String {
    format!("{host}-ledger")
}

/// Name of a host's agent key.
pub(crate) fn agent_key(host: &Name) -> String {
    format!("{host}-agent")
}

/// Makes a new cluster in `directory`: keys, genesis with every operator's signature, and at last
/// the record, which makes it exist.
pub(crate) fn found(
    directory: &Directory,
    hosts: u16,
    hypervisor: Hypervisor,
) -> Result<Record, Failure> {
    make_private(directory.root())?;
    make_private(&directory.join("keys"))?;
    let tag: String = genesis::random_hex()?.chars().take(12).collect();
    let name = parse_name("dev")?;
    let mut record = Record::new(name.clone(), tag, hypervisor);
    let networks = network::guest_networks(hosts)?;
    let ports = network::free_ports(hosts * 2)?;
    for index in 0..hosts {
        let place = usize::from(index);
        record.hosts.push(HostRecord {
            name: parse_name(&format!("host{}", index + 1))?,
            operator: parse_name(&format!("op{}", index + 1))?,
            ledger_port: ports[2 * place],
            api_port: ports[2 * place + 1],
            guest_network: networks[place],
            membership: Membership::Founder,
        });
    }
    make_key(&directory.key(DEVELOPER_KEY), "developer")?;
    let mut operators = Vec::new();
    let mut members = Vec::new();
    for host in &record.hosts {
        let operator = host.operator.as_str();
        operators.push(GenesisOperator {
            name: host.operator.clone(),
            key: make_key(&directory.key(operator), operator)?,
        });
        let key = ledger_key(&host.name);
        members.push(GenesisHost {
            name: host.name.clone(),
            operator: host.operator.clone(),
            ledger_key: make_key(&directory.key(&key), &key)?,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, host.ledger_port)),
        });
        let key = agent_key(&host.name);
        make_key(&directory.key(&key), &key)?;
    }
    let bytes = genesis::compose(name, GenesisMode::Judged, operators, members)?;
    let path = directory.genesis();
    // Left over from a founding that did not get as far as its record.
    let _ = std::fs::remove_file(genesis::signatures_path(&path));
    std::fs::write(&path, bytes).map_err(|error| Failure::file(&path, &error))?;
    for host in &record.hosts {
        genesis::sign(&path, &SigningKey::open(&directory.key(host.operator.as_str()))?)?;
    }
    directory.write_record(&record)?;
    Ok(record)
}

/// Reads a name that this program made up.
pub(crate) fn parse_name(text: &str) -> Result<Name, Failure> {
    text.parse().map_err(|error| Failure::broken(format!("{text}: {error}")))
}

/// Makes what a host that joins needs: its own keys, and its operator's unless he has one.
pub(crate) fn make_host_keys(directory: &Directory, host: &HostRecord) -> Result<(), Failure> {
    let names = [host.operator.to_string(), ledger_key(&host.name), agent_key(&host.name)];
    names.iter().try_for_each(|name| make_key(&directory.key(name), name).map(drop))
}

/// Makes an OpenSSH key pair, unless it exists.
fn make_key(path: &Path, comment: &str) -> Result<PublicKey, Failure> {
    if path.exists() {
        return read_public_key(&with_pub(path));
    }
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut())
        .map_err(|error| Failure::broken(format!("no random numbers: {error}")))?;
    let key = SecretKey::from_seed(&seed);
    let public = key.public_key();
    write_new(&with_pub(path), format!("{public} {comment}\n").as_bytes(), 0o644)?;
    // The private half last: where it is, both are.
    write_new(path, key.to_openssh(comment).as_bytes(), 0o600)?;
    Ok(public)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .map_err(|error| Failure::file(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::arguments::DirectoryArguments;
    use dagger_payload::genesis::Genesis;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_new_cluster_has_a_genesis_that_all_of_its_operators_signed_and_secret_keys() {
        let root = tempfile::tempdir().expect("a directory");
        let arguments = DirectoryArguments { directory: Some(root.path().join("dev")) };
        let directory = Directory::of(&arguments).expect("a directory");
        let record = found(&directory, 4, Hypervisor::Test).expect("founds");
        assert_eq!(record.hosts.len(), 4);
        let bytes = std::fs::read(directory.genesis()).expect("genesis");
        let signatures = genesis::signatures_path(&directory.genesis());
        let signatures = std::fs::read_to_string(signatures).expect("signatures");
        let (genesis, _) = Genesis::read_signed(&bytes, &signatures).expect("signed by all");
        assert_eq!(genesis.hosts.len(), 4);
        for name in ["op1", "host1-ledger", "host1-agent", DEVELOPER_KEY] {
            let metadata = std::fs::metadata(directory.key(name)).expect(name);
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
        }
    }
}
