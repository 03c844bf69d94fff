//! What a daemon reads before it starts: its configuration file, and the genesis, roster and key
//! that the file names. One reading for all daemons, so that what one refuses no other takes.
//!
//! Owns how these files are read and which of them are refused: sizes, signatures, who else may
//! read a key. Never writes, and knows no daemon's own settings. Called by each daemon's
//! `configuration`.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dagger_payload::genesis::{Genesis, GenesisError, GenesisMode};
use dagger_payload::id::ClusterId;
use dagger_payload::key::{KeyError, SecretKey};
use dagger_payload::limits::GENESIS_BYTES_MAX;
use dagger_payload::roster::Roster;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::limits::{CONFIGURATION_BYTES_MAX, ROSTER_BYTES_MAX};

/// Text before the name of a systemd credential, in place of a path.
const CREDENTIAL: &str = "credential:";
/// Where `make install` puts the examples.
const EXAMPLES: &str = "/usr/share/dagger";

/// Why a daemon does not start; each says what to do. All are exit code 64.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// There is no configuration.
    #[error("cannot read the configuration {}; examples are in {EXAMPLES}", path.display())]
    NoConfiguration {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The configuration has another shape.
    #[error("the configuration {} is refused", path.display())]
    Configuration {
        /// Which.
        path: PathBuf,
        /// Where in it, and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is larger than anything of its kind.
    #[error("{} has over {bytes_max} bytes", path.display())]
    TooLong {
        /// Which.
        path: PathBuf,
        /// The most that is read.
        bytes_max: usize,
    },
    /// The genesis is refused.
    #[error("the genesis {} is refused", path.display())]
    Genesis {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: GenesisError,
    },
    /// The genesis is one of a benchmark.
    #[error(
        "the genesis has mode `opaque` (for benchmarks): there is nothing to judge, and no agent \
         joins such a cluster"
    )]
    Opaque,
    /// The roster is refused.
    #[error("the roster {} is refused: {why}", path.display())]
    Roster {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The key file is refused.
    #[error("the key {} is refused", path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: KeyError,
    },
    /// Others than its owner may read the key.
    #[error(
        "the key {} can be read by others than its owner (mode {mode:o}); run `chmod 600 {}`",
        path.display(), path.display()
    )]
    KeyExposed {
        /// Which.
        path: PathBuf,
        /// Who may.
        mode: u32,
    },
    /// A credential is asked for, but systemd gave none.
    #[error(
        "key: `{0}` is set, but $CREDENTIALS_DIRECTORY is not: start this as a systemd unit with \
         LoadCredential=, or name a file"
    )]
    NoCredentials(String),
}

/// Reads a configuration file.
///
/// # Errors
/// [`SetupError`]: it cannot be read, or has another shape.
pub fn read_configuration<T: DeserializeOwned>(path: &Path) -> Result<T, SetupError> {
    let text = read_text(path, CONFIGURATION_BYTES_MAX).map_err(|error| match error {
        SetupError::Unreadable { path, source } => SetupError::NoConfiguration { path, source },
        other => other,
    })?;
    toml::from_str(&text).map_err(|source| SetupError::Configuration {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// Reads the genesis document and checks every operator's signature.
///
/// # Errors
/// [`SetupError`]: it cannot be read, contradicts itself, or is not signed by all.
pub fn read_genesis(
    document: &Path,
    signatures: &Path,
) -> Result<(Genesis, ClusterId), SetupError> {
    let text = read_text(document, GENESIS_BYTES_MAX)?;
    let signatures = read_text(signatures, GENESIS_BYTES_MAX)?;
    Genesis::read_signed(text.as_bytes(), &signatures)
        .map_err(|source| SetupError::Genesis { path: document.to_owned(), source })
}

/// The same of a cluster whose payloads are judged, as all but those of benchmarks are.
///
/// # Errors
/// As [`read_genesis`]; and the genesis is one of a benchmark.
pub fn read_judged_genesis(
    document: &Path,
    signatures: &Path,
) -> Result<(Genesis, ClusterId), SetupError> {
    let (genesis, cluster) = read_genesis(document, signatures)?;
    match genesis.mode {
        GenesisMode::Judged => Ok((genesis, cluster)),
        GenesisMode::Opaque => Err(SetupError::Opaque),
    }
}

/// Reads a list of all seats. Those of another cluster are told by the founders, who come first.
///
/// # Errors
/// [`SetupError`]: it cannot be read, is none, or is another cluster's.
pub fn read_roster(path: &Path, genesis: &Genesis) -> Result<Roster, SetupError> {
    let text = read_text(path, ROSTER_BYTES_MAX)?;
    let refused = |why| SetupError::Roster { path: path.to_owned(), why };
    let roster = Roster::from_document(text.as_bytes()).map_err(refused)?;
    let founding = Roster::founding(genesis);
    if roster.seats().len() < founding.seats().len() {
        return Err(refused("it lacks hosts of the genesis".to_owned()));
    }
    match founding.contradiction(&roster).and_then(|seat| founding.seat(seat)) {
        None => Ok(roster),
        Some(seat) => Err(refused(format!(
            "seat {} is not that of {} in the genesis: these are another cluster's seats",
            seat.index, seat.name
        ))),
    }
}

/// Reads an OpenSSH private key: a file, relative to `directory`, or `credential:NAME` for
/// `$CREDENTIALS_DIRECTORY/NAME`.
///
/// # Errors
/// [`SetupError`]: it cannot be read, is none, or others than its owner may read it.
pub fn read_key(key: &str, directory: &Path) -> Result<SecretKey, SetupError> {
    let path = match key.strip_prefix(CREDENTIAL) {
        // Who may read it is the service manager's to say; by an ACL, which the mode shows as a
        // group's.
        Some(name) => {
            let credentials = std::env::var_os("CREDENTIALS_DIRECTORY")
                .ok_or_else(|| SetupError::NoCredentials(key.to_owned()))?;
            Path::new(&credentials).join(name)
        }
        None => {
            let path = directory.join(key);
            let metadata = std::fs::metadata(&path)
                .map_err(|source| SetupError::Unreadable { path: path.clone(), source })?;
            let mode = metadata.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(SetupError::KeyExposed { path, mode });
            }
            path
        }
    };
    let text = read_text(&path, CONFIGURATION_BYTES_MAX)?;
    SecretKey::from_openssh(&text).map_err(|source| SetupError::Key { path, source })
}

/// Wiped when it is dropped, for it may be a key.
fn read_text(path: &Path, bytes_max: usize) -> Result<Zeroizing<String>, SetupError> {
    let unreadable = |source| SetupError::Unreadable { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    // As large as it may become, so that no copy is left behind where it grew.
    let length = file.metadata().map_err(unreadable)?.len().min(bytes_max as u64);
    let capacity = usize::try_from(length).unwrap_or(bytes_max) + 1;
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    file.take(bytes_max as u64 + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() > bytes_max {
        return Err(SetupError::TooLong { path: path.to_owned(), bytes_max });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dagger_payload::genesis::{GenesisHost, GenesisOperator};
    use dagger_payload::sshsig::{self, Namespace};

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_seed(&[byte; 32].into())
    }

    fn genesis(mode: GenesisMode) -> Genesis {
        Genesis {
            dagger: 1,
            nonce: "0".repeat(32),
            name: "test".parse().expect("a name"),
            mode,
            operators: vec![GenesisOperator {
                name: "op".parse().expect("a name"),
                key: key(1).public_key(),
            }],
            hosts: vec![GenesisHost {
                name: "host".parse().expect("a name"),
                operator: "op".parse().expect("a name"),
                ledger_key: key(2).public_key(),
                address: "127.0.0.1:7400".parse().expect("an address"),
            }],
            collection_depth_rounds: 60,
            handover_distance_commits: 10,
            commit_bytes_max: None,
        }
    }

    /// The document and its signatures, in `directory`.
    fn write(directory: &Path, genesis: &Genesis) -> [PathBuf; 2] {
        let bytes = genesis.to_bytes();
        let signature = sshsig::sign(&key(1), Namespace::Genesis, &bytes);
        let armor = sshsig::to_armor(&key(1).public_key(), Namespace::Genesis, &signature);
        let paths = ["genesis.json", "genesis.json.sig"].map(|name| directory.join(name));
        std::fs::write(&paths[0], &bytes).expect("written");
        std::fs::write(&paths[1], armor).expect("written");
        paths
    }

    #[test]
    fn a_named_key_is_read_only_if_nobody_but_its_owner_may_read_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        std::fs::write(&path, key(1).to_openssh("test").as_bytes()).expect("written");
        for mode in [0o640, 0o604, 0o620, 0o666, 0o755] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mine");
            let error = read_key("key", directory.path()).expect_err("others may read it");
            assert!(matches!(error, SetupError::KeyExposed { .. }), "{mode:o}: {error}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        for mode in [0o600, 0o400] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mine");
            let read = read_key("key", directory.path()).expect("mine alone");
            assert_eq!(read.public_key(), key(1).public_key());
        }
        // Set by systemd alone, which no test runner is.
        let error = read_key("credential:key", directory.path()).expect_err("no credentials");
        assert!(matches!(error, SetupError::NoCredentials(_)), "{error}");
    }

    #[test]
    fn a_genesis_of_a_benchmark_is_refused_where_payloads_are_judged() {
        let directory = tempfile::tempdir().expect("a directory");
        let [document, signatures] = write(directory.path(), &genesis(GenesisMode::Opaque));
        read_genesis(&document, &signatures).expect("signed");
        let error = read_judged_genesis(&document, &signatures).expect_err("nothing to judge");
        assert!(matches!(error, SetupError::Opaque), "{error}");
    }

    #[test]
    fn a_file_that_is_larger_than_any_of_its_kind_is_not_read_further() {
        let directory = tempfile::tempdir().expect("a directory");
        let [document, signatures] = write(directory.path(), &genesis(GenesisMode::Judged));
        std::fs::write(&signatures, "x".repeat(GENESIS_BYTES_MAX + 1)).expect("written");
        let error = read_genesis(&document, &signatures).expect_err("too long");
        assert!(matches!(error, SetupError::TooLong { .. }), "{error}");
        let error = read_text(Path::new("/dev/zero"), 100).expect_err("it has no end");
        assert!(matches!(error, SetupError::TooLong { bytes_max: 100, .. }), "{error}");
    }

    #[test]
    fn seats_that_lack_or_contradict_the_founders_are_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("roster.json");
        let founders = genesis(GenesisMode::Judged);
        let write = |seats: &[_]| {
            std::fs::write(&path, serde_json::to_vec(seats).expect("names and numbers"))
        };
        let mut seats = Roster::founding(&founders).seats().to_vec();
        write(&seats).expect("written");
        assert_eq!(read_roster(&path, &founders).expect("ours").seats(), seats);
        write(&[]).expect("written");
        let error = read_roster(&path, &founders).expect_err("nobody");
        assert!(error.to_string().contains("lacks hosts of the genesis"), "{error}");
        seats[0].ledger_key = key(9).public_key();
        write(&seats).expect("written");
        let error = read_roster(&path, &founders).expect_err("another's");
        assert!(error.to_string().contains("not that of host in the genesis"), "{error}");
    }
}
